"""Drawing: a figure unknown to pyplot, and names that come out as they are."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from interp_plugin.rendering import shades
from interp_plugin.rendering.labels import printable

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

_LONGEST = 24  # characters of a label
# Wide coverage and often installed: tried for what the reader's own font lacks.
_FALLBACKS = (
    "DejaVu Sans",
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Hiragino Sans",
    "Microsoft YaHei",
    "Yu Gothic",
    "Malgun Gothic",
    "WenQuanYi Zen Hei",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "Noto Emoji",
    "Segoe UI Symbol",
    "Symbola",
    "Arial Unicode MS",
)


def new_figure(width: float, height: float, figure: Figure | None = None) -> Figure:
    """An empty figure, or the one given, of so many inches."""
    from matplotlib.figure import Figure

    if figure is None:
        figure = Figure()
        # what a notebook asks for: IPython shows a plain figure as a picture only once pyplot is loaded
        figure._repr_png_ = functools.partial(_png, figure)  # type: ignore[attr-defined]
    figure.set_size_inches(width, height)
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    return figure


def _png(figure: Figure) -> bytes:
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def name_ticks(set_ticks: Any, names: Sequence[str], longest: int = _LONGEST, **style: Any) -> None:
    """Names on an axis: data, so "$" in it starts no formula; figures grow with the number of names."""
    drawn = [drawable(name, longest) for name in names]
    set_ticks(range(len(names)), drawn, fontsize="small", parse_math=False, family=families(), **style)


def room(names: Sequence[str], longest: int = _LONGEST) -> float:
    """Inches that the longest name needs, level or (a little less) turned by 45 degrees."""
    return 0.08 * max((len(drawable(name, longest)) for name in names), default=0)


def drawable(name: str, longest: int = _LONGEST) -> str:
    """The name with what no installed font can draw written out: a row of empty boxes names nothing."""
    name = printable(name)
    name = name if len(name) <= longest else name[: longest - 1] + "…"
    fonts = tuple(families())
    return "".join(c if _covered(c, fonts) else c.encode("unicode_escape").decode() for c in name)


@functools.cache
def _covered(character: str, families: tuple[str, ...]) -> bool:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    paths = [findfont(FontProperties(family=[family])) for family in families]
    return any(get_font(path).get_char_index(ord(character)) for path in paths)


def families() -> list[str]:
    """The reader's own fonts first, then those installed that cover more scripts."""
    from matplotlib import rcParams
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    return [*rcParams["font.family"], *(name for name in _FALLBACKS if name in installed)]


def colours(signed: bool = False) -> Colormap:
    """The shades' own colours, from 0 up; with those of what is below 0 where values have a sign."""
    from matplotlib.colors import LinearSegmentedColormap

    below = (shades.BELOW_HIGH, shades.BELOW_LOW) if signed else ()
    ends = [tuple(part / 255 for part in rgb) for rgb in (*below, shades.LOW, shades.HIGH)]
    if signed:  # white in the middle
        ends[1:3] = [(1.0, 1.0, 1.0)]
    return LinearSegmentedColormap.from_list("kept", ends)


def viridis() -> Colormap:
    """Colours for lines that come in an order."""
    from matplotlib import colormaps

    return colormaps["viridis"]
