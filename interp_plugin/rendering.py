"""Tables of information kept, for a terminal.  Draws what it is given."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from rich.console import Console
    from rich.style import Style
    from rich.table import Table
    from rich.text import Text

# One hue, dark = high: order is carried by lightness alone, so it survives every kind of colour blindness
# and a grey print (ColorBrewer "Blues").
_LOW, _HIGH = (247, 251, 255), (8, 48, 107)
_TOKEN_WIDTH = 20

LEGEND = (
    "Information kept, in nats, ± its standard error: high = the layer still holds this token, 0 = it does "
    "not need it. Shade: from each layer's lowest to its highest; compare within a layer. "
    "E: regime index, 1 = small-noise regime."
)


def show(explanation: Mapping[str, Any], console: Console | None = None) -> None:
    """Print an explanation, given as plain values: the prediction, the table and what it cost.

    Args:
        explanation: tokens (T), layers (L), kept and standard_error (L, T) in nats, regime_index and
            converged (L), predicted, probability, n_forward, n_backward, seconds; None stands for a number
            that is not finite.
        console: default a new one on stdout, as wide as the terminal.
    """
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    console.print(
        Text.assemble(
            (printable(explanation["predicted"]), "bold"),
            f" with probability {explanation['probability']:.3f}",
        )
    )
    for table in kept_tables(
        explanation["tokens"],
        explanation["layers"],
        explanation["kept"],
        explanation["standard_error"],
        explanation["regime_index"],
        explanation["converged"],
        width=console.width,
    ):
        console.print(table)
    console.print(Text(LEGEND, style="dim"))
    console.print(
        Text(
            f"{explanation['seconds']:.2f} s, {explanation['n_forward']} forward and "
            f"{explanation['n_backward']} backward sample passes"
        )
    )


def kept_tables(
    tokens: Sequence[str],
    layers: Sequence[int],
    kept: Sequence[Sequence[float | None]],
    standard_error: Sequence[Sequence[float | None]],
    regime_index: Sequence[float | None],
    converged: Sequence[bool],
    width: int = 80,
) -> list[Table]:
    """Tables of T tokens x L layers, no wider than ``width``: as many layers side by side as fit.

    Args:
        kept: (L, T) in nats.
        standard_error: (L, T) in nats.
        regime_index: (L,).
        converged: (L,).

    Example::

        >>> [table] = kept_tables(["a", "b"], [1], [[2.0, 1.0]], [[0.1, 0.1]], [1.02], [True])
        >>> table.row_count
        2
    """
    cells = [_cells(*pair) for pair in zip(kept, standard_error, strict=True)]  # (L, T)
    shades = [_shades(*pair) for pair in zip(kept, standard_error, strict=True)]
    label = max(
        [
            len("converged"),
            *(min(_cell_len(token), _TOKEN_WIDTH) for token in map(printable, tokens)),
        ]
    )
    cell = max([len("layer 00"), *(len(text) for row in cells for text in row)])
    per_table = max(1, (width - label - 3) // (cell + 2))  # two columns between layers, one at each edge

    tables = []
    for start in range(0, len(layers), per_table):
        block = range(start, min(start + per_table, len(layers)))
        footers = [f"{_number(regime_index[i], 2)}\n{'yes' if converged[i] else 'NO'}" for i in block]
        table = _empty_table([f"layer {layers[i]}" for i in block], footers)
        for t, token in enumerate(tokens):
            table.add_row(_text(token), *(_text(cells[i][t], shades[i][t]) for i in block))
        tables.append(table)
    return tables


def draw_words_heatmap(
    sigma: NDArray[np.floating], words: Sequence[str], figure: Figure | None = None
) -> Figure:
    """One row of cells, a cell per word: dark where the word bears little noise, so where it matters.

    Args:
        sigma: (words,).
        words: their names.
        figure: an empty figure to draw in; default a new one, unknown to pyplot.
    """
    from matplotlib.figure import Figure

    figure = Figure() if figure is None else figure
    figure.set_size_inches(max(4.0, 0.7 * len(words)), 1.8)
    figure.set_layout_engine("constrained")
    axes = figure.add_subplot()
    image = axes.imshow(sigma.reshape(1, -1), aspect="auto", cmap="Blues_r")
    axes.set_yticks([])
    # a word is data: "$" in it starts no formula
    axes.set_xticks(range(len(words)), words, rotation=45, ha="right", parse_math=False)
    figure.colorbar(image, ax=axes, label="sigma")
    return figure


def printable(text: str) -> str:
    """The text with everything a terminal could obey (escape sequences, line ends) written out.

    Example::

        >>> printable("a\\x1b[1m")
        'a\\\\x1b[1m'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shade(share: float) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Background and text colour (RGB) for a share of the scale, 0 to 1; the text always contrasts.

    Example::

        >>> shade(0.0)
        ((247, 251, 255), (0, 0, 0))
        >>> shade(1.0)
        ((8, 48, 107), (255, 255, 255))
    """
    share = min(max(share, 0.0), 1.0)
    red, green, blue = (round(low + share * (high - low)) for low, high in zip(_LOW, _HIGH, strict=True))
    light = 0.299 * red + 0.587 * green + 0.114 * blue > 115  # where black and white contrast alike
    return (red, green, blue), ((0, 0, 0) if light else (255, 255, 255))


def _empty_table(headers: Sequence[str], footers: Sequence[str]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD,
        show_footer=True,
        padding=(0, 1),
        collapse_padding=True,
        pad_edge=True,
    )
    table.add_column("token", footer="E\nconverged", max_width=_TOKEN_WIDTH, overflow="fold")
    for header, footer in zip(headers, footers, strict=True):
        table.add_column(header, footer=footer, justify="right", no_wrap=True)
    return table


def _cells(kept: Sequence[float | None], standard_error: Sequence[float | None]) -> list[str]:
    """One layer's cells: four significant digits for its highest value, errors to the same place."""
    highest = max((value for value in kept if value is not None), default=0.0)
    digits = min(3, max(0, 3 - math.floor(math.log10(highest)))) if highest > 0 else 1
    errors = [f"±{_number(value, digits)}" for value in standard_error]
    pad = max(map(len, errors), default=0)
    return [f"{_number(value, digits)} {error:>{pad}}" for value, error in zip(kept, errors, strict=True)]


def _shades(kept: Sequence[float | None], standard_error: Sequence[float | None]) -> list[Style]:
    """One layer's styles, on a scale from its lowest value (a cap chosen by hand sets the zero) to its highest.

    The scale spans at least ten standard errors, so that pure noise does not look like a pattern.
    """
    from rich.color import Color
    from rich.style import Style

    known = [value for value in kept if value is not None] or [0.0]
    errors = [error for error in standard_error if error is not None]
    low = min(known)
    span = max(max(known) - low, 10 * max(errors, default=0.0)) or 1.0
    styles = []
    for value in kept:
        back, front = shade(0.0 if value is None else (value - low) / span)
        styles.append(Style(color=Color.from_rgb(*front), bgcolor=Color.from_rgb(*back)))
    return styles


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _text(data: str, style: Style | str = "") -> Text:
    """Data is never markup: ``[bold]`` and ``[CLS]`` are tokens."""
    from rich.text import Text

    return Text(printable(data), style=style)


def _cell_len(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)
