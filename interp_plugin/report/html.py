"""The HTML renderer: a report as one self-contained page, which loads nothing and runs only its own script."""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import re
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import TYPE_CHECKING, Any

from interp_plugin.report import figures, numbers
from interp_plugin.report.model import Report
from interp_plugin.report.numbers import printable

if TYPE_CHECKING:
    from jinja2 import Template

_STEPS = 32  # steps of shade: finer than an eye can distinguish, few enough for one CSS class each
_PAPER = 12  # columns that fit on a page in portrait format


def page(report: Report) -> str:
    """Render one self-contained page: for each section the answer, the shaded text, tables and charts, and details.

    Every value and standard error is readable without JavaScript.  With it, cells and words have tooltips, a click on a
    layer or a word selects it, and tables can be sorted, copied and saved.  The page's content security policy forbids
    it to load anything.

    Example::

        >>> from interp_plugin.report.model import Cell, Column, Row, Section, Table
        >>> table = Table("t", "layer", (Column("<"),), {"": (Row("1", (Cell("6.93", 6.93, "±0.20", shade=1.0),)),)})
        >>> source = page(Report("a title", (Section(answer="So it is.", tables=(table,)),)))
        >>> "<bdi>&lt;</bdi>" in source and "6.93 <small>±0.20</small>" in source and "So it is." in source
        True
    """
    script, style = _source("page.js"), _source("page.css")
    settings = {name: value for name, value in report.settings.items() if name != "versions"}
    versions = report.settings.get("versions") or {}
    return _template().render(
        report=report,
        style=style + shade_rules(),
        script=script,
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        swatches=[
            shade_class(step / _STEPS) for step in range(-_STEPS if report.signed else 0, _STEPS + 1, 4)
        ],
        settings=list(settings_shown({**settings, **versions})),
        paper=_PAPER,
    )


def frame(report: Report) -> str:
    """Render the page in an iframe, for ``_repr_html_``: its style and script are separate from the notebook's.

    Example::

        >>> source = frame(Report("nothing", ()))
        >>> source.startswith("<iframe ") and source.endswith("></iframe>")
        True
    """
    rows = sum(len(table.rows) for section in report.sections for table in section.tables)
    height = 240 + 240 * len(report.sections) + 40 * rows
    return (
        f'<iframe title="{html.escape(printable(report.title))}" sandbox="allow-scripts allow-downloads" '
        f'style="width: 100%; height: {min(height, 900)}px; border: 0; resize: vertical" '
        f'srcdoc="{html.escape(page(report))}"></iframe>'
    )


def settings_shown(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield settings as pairs of printable strings."""
    for name, value in values.items():
        value = {True: "yes", False: "no"}[value] if isinstance(value, bool) else value
        yield printable(str(name).replace("_", " ")), "-" if value is None else printable(str(value))


def shade_class(share: float | None) -> str:
    """Return the CSS class for a share of the scale: s0 to s32 (highest), n1 to n32 (lowest), "" for None.

    Example::

        >>> shade_class(0.5), shade_class(-1), shade_class(None)
        ('s16', 'n32', '')
    """
    if share is None:
        return ""
    step = round(_STEPS * share)
    return f"n{-step}" if step < 0 else f"s{step}"


def shade_rules() -> str:
    """Return the CSS rules of the shades: dark is high on a light background and on paper, bright on a dark one."""

    def rules(dark: bool) -> str:
        found = []
        for step in range(-_STEPS, _STEPS + 1):
            back, front = ("#" + bytes(rgb).hex() for rgb in numbers.shade(step / _STEPS, dark))
            found.append(f".{shade_class(step / _STEPS)}{{background-color:{back};color:{front}}}")
        return "\n".join(found)

    return f"{rules(False)}\n@media screen and (prefers-color-scheme: dark) {{\n{rules(True)}\n}}\n"


@functools.cache
def _template() -> Template:
    """Load the page's template: values are escaped, and a missing value is an error."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, auto_reload=False
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    environment.filters |= {"printable": printable, "shade": shade_class, "lines": _lines}
    environment.globals["draw"] = figures.svg
    return environment.from_string(_source("page.html"))


def _lines(text: str) -> list[str]:
    """Split the characters between units into lines: a line break there is layout, but one in a unit is data."""
    return [printable(part) for part in re.split(r"\r\n|\r|\n", text)]


@functools.cache
def _source(name: str) -> str:
    """Read a file of this folder."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
