"""Templates: what every page is made of: its sources, its shades, and the digest that lets its script run."""

from __future__ import annotations

import base64
import functools
import hashlib
from importlib import resources
from typing import TYPE_CHECKING

from interp_plugin.rendering import shades

if TYPE_CHECKING:
    from jinja2 import Template

SHADES = 32  # more steps than an eye tells apart; few enough for a class each


@functools.cache
def template(name: str) -> Template:
    """The template in a file of this folder: what it is given is escaped, what it lacks is an error."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, auto_reload=False
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    return environment.from_string(source(name))


@functools.cache
def source(name: str) -> str:
    """The text of a file of this folder."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def digest(script: str) -> str:
    """What a content security policy calls a script by, SHA-256 in base 64."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def shade_rules() -> str:
    """A style for each of the classes s0 to s32 (highest), and n1 to n32 (lowest) for what is below 0."""
    rules = []
    for step in range(-SHADES, SHADES + 1):
        back, front = ("#" + bytes(rgb).hex() for rgb in shades.shade(step / SHADES))
        rules.append(f".{shade_class(step / SHADES)}{{background:{back};color:{front}}}")
    return "\n".join(rules)


def shade_class(share: float) -> str:
    """The class of a share of the scale, -1 to 1.

    Example::

        >>> shade_class(0.5), shade_class(-1)
        ('s16', 'n32')
    """
    step = round(SHADES * share)
    return f"n{-step}" if step < 0 else f"s{step}"
