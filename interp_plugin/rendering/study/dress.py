"""Dress: colours, marks and fonts of a study's figures."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from interp_plugin.rendering import drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, SOFT, LINE, PAPER = "#1b1f24", "#57606a", "#d0d7de", "#fefefe"
# One for each group: told apart in grey too, and each with another mark, another line and another fill.
COLOURS = ("#2171b5", "#b3420c", "#3f7d20", "#7b3fa0")
MARKS, LINES, HATCHES = "oDs^", ("-", "--", ":", "-."), ("", "///", "...", "xxx")
LONGEST = 44  # characters of a method's name


def words_style(size: str = "small", colour: str = INK) -> dict[str, Any]:
    """Names are data: "$" in them starts no formula, and every script finds a font."""
    return {"fontsize": size, "color": colour, "parse_math": False, "family": drawing.families()}


def named(name: str) -> str:
    return drawing.drawable(name, LONGEST)


def title(axes: Axes, text: str, size: str = "medium") -> None:
    axes.set_title(named(text), loc="left", **words_style(size))


def dress(axes: Axes) -> None:
    """The page's own colours, which it exchanges for others at night."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(SOFT)
    axes.tick_params(which="both", color=SOFT, labelcolor=INK, labelsize="small")
    axes.patch.set_alpha(0)


def whiskers(middle: float, low: float, high: float) -> tuple[float, float]:
    """How far the interval goes below and above the middle; 0 where it is not known."""
    below, above = (
        side if math.isfinite(side) and side > 0 else 0.0 for side in (middle - low, high - middle)
    )
    return below, above
