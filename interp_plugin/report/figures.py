"""The figure renderer: draw tables and charts with matplotlib, without pyplot."""

from __future__ import annotations

import functools
import io
import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from interp_plugin.report import explanations, numbers
from interp_plugin.report.explanations import TIED, Choice, Values
from interp_plugin.report.model import Boxes, Cell, Chart, Curves, Point, Points, Row, Table
from interp_plugin.report.numbers import printable, shortened

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.image import AxesImage
    from numpy.typing import NDArray

Kind = Literal["layers", "tokens", "flow"]

INK, SOFT, LINE, PAPER = "#1b1f24", "#57606a", "#d0d7de", "#fefefe"
# One colour for each group; they differ in grey too, and each group has its own marker, line and fill.
COLOURS = ("#2171b5", "#b3420c", "#3f7d20", "#7b3fa0")
_MARKS, _LINES, _HATCHES = "oDs^v", ("-", "--", ":", "-."), ("", "///", "...", "xxx")
# The figures' colours and their variables in the page's stylesheet, which has values for light and dark backgrounds.
_VARIABLES = {
    INK: "--ink", SOFT: "--soft", LINE: "--line", PAPER: "--paper",
    **dict(zip(COLOURS, ("--unsigned", "--signed", "--third", "--fourth"), strict=True)),
}  # fmt: skip
_LONGEST = 44  # most characters of a name
_TEXTS = 12  # most texts in one figure
# fonts for characters that the user's own font lacks; used if they are installed
_FALLBACKS = ("DejaVu Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Emoji", "Arial Unicode MS")


def plot(
    explanation: Values, kind: Kind = "layers", text: int | None = None, layer: Choice | None = None
) -> Figure:
    """Draw a figure of an explanation; its title is the answer.

    * "layers": heat map of R rows (layers, or time steps) x T units, each row on its own scale from 0 to its highest
      value, as on the page; with ``layer`` only that layer's rows.
    * "tokens": one row's T values as bars, with whiskers of one standard error; by default the last row.
    * "flow": information kept of all units together, by layer, a line per text with a band of one standard error;
      ``text`` is ignored.

    Args:
        explanation: the result of ``Explanation.to_dict()``.
        kind: "layers", "tokens" or "flow".
        text: index of the text, from 0; None: all texts, one below the other.
        layer: a layer, or a pair (layer, position) if its rows have positions.

    Raises:
        ValueError: there is no such kind, text or layer (the message names those that exist), or the texts do not fit
            in one figure.

    Example::

        >>> row = {"layer": 3, "position": None, "kept": [8.0, 2.0], "standard_error": [0.1, 0.1],
        ...        "converged": True}
        >>> text = {"text": "good film", "pair": None, "units": ["good", "film"], "offsets": [[0, 0, 4], [0, 5, 9]],
        ...         "predicted": None, "probability": None, "target": None, "rows": [row]}
        >>> figure = plot({"texts": [text], "settings": {"state_std": True}}, kind="tokens")
        >>> [float(bar.get_height()) for bar in figure.axes[0].patches]
        [8.0, 2.0]
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind {kind!r} is not known; there are: {', '.join(get_args(Kind))}")
    if kind == "flow":
        if explanations.is_erased(explanation):
            raise ValueError(
                "kind 'flow' shows information kept by layer, but tokens were erased; draw 'layers'"
            )
        return draw_curves(explanations.curves(explanation, layer))
    texts = _texts(explanation, text)
    tables, answers = [], []
    for each in texts:
        row = explanations.one_row(each, layer) if kind == "tokens" else explanations.rows_of(each, layer)[-1]
        here = (row["layer"], row.get("position"))
        tables.append(explanations.table(explanation, each, here if kind == "tokens" else layer))
        answers.append(explanations.answer(explanation, each, here))
    sizes = [_size_of_map(table) if kind == "layers" else _size_of_bars(table) for table in tables]
    figure = _figure(max(width for width, _ in sizes), sum(height for _, height in sizes))
    parts = figure.subfigures(len(tables), 1, squeeze=False, height_ratios=[height for _, height in sizes])[
        :, 0
    ]
    for part, table, answer in zip(parts, tables, answers, strict=True):
        draw: Any = _draw_map if kind == "layers" else _draw_bars
        draw(part, table, answer, explanations.is_erased(explanation))
    return figure


def draw_curves(chart: Curves) -> Figure:
    """Draw curves of means, a line for each text or model, with bands; a single mean has its interval as a whisker.

    Examples::
        >>> from interp_plugin.report.model import Curve
        >>> figure = draw_curves(Curves("", (Curve("a", [1, 2], [9.0, 5.0], [8.5, 4.6], [9.5, 5.4]),), "nats", "95 %"))
        >>> [float(y) for y in figure.axes[0].lines[0].get_ydata()]
        [9.0, 5.0]
    """
    import numpy as np
    from matplotlib import colormaps

    curves = chart.curves
    names = list(dict.fromkeys(str(place) for curve in curves for place in curve.places))
    figure = _figure(max(4.5, 2.0 + 0.4 * len(names)), 3.2 + _room(names))
    axes = figure.add_subplot()
    # viridis without its yellow end: distinguishable in grey and with colour blindness, and dark enough
    colours = (
        colormaps["viridis"](np.linspace(0.0, 0.8, max(1, len(curves)))) if len(curves) > 1 else [COLOURS[0]]
    )
    for number, (curve, colour) in enumerate(zip(curves, colours, strict=False)):
        places = [names.index(str(place)) for place in curve.places]
        style = {"marker": _MARKS[number % 5], "linestyle": _LINES[number % 4], "color": colour}
        axes.plot(places, curve.mean, markersize=4, label=_name(curve.name), **style)
        if len(places) > 1:
            axes.fill_between(places, curve.low, curve.high, color=colour, alpha=0.25, linewidth=0)
        else:
            ends = [_whiskers(*each) for each in zip(curve.mean, curve.low, curve.high, strict=True)]
            axes.errorbar(places, curve.mean, yerr=list(zip(*ends, strict=True)), fmt="none", ecolor=colour)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.set_ylabel(f"{chart.unit}\n({'band' if len(names) > 1 else 'whisker'}: {chart.band})", **_words())
    _name_places(axes, names)
    _plain(axes)
    if len(curves) > 1:
        legend = figure.legend(loc="outside right upper", frameon=False, ncols=1 + (len(curves) - 1) // 14)
        for text in legend.get_texts():
            text.set(**_words())
    elif curves and curves[0].name and not re.fullmatch(r"text \d+", curves[0].name):
        _title(axes, curves[0].name)
    return figure


def draw_heat_map(table: Table) -> Figure:
    """Draw a heat map of rows x columns with the numbers in the cells, on one scale from 0.

    Examples::
        >>> from interp_plugin.report.model import Column
        >>> rows = (Row("stop word (7)", (Cell("3.0", 3.0), Cell("1.0", 1.0))),)
        >>> figure = draw_heat_map(Table("", "class", (Column("1"), Column("2")), {"": rows}))
        >>> figure.axes[0].images[0].get_array().tolist()
        [[3.0, 1.0]]
    """
    import numpy as np

    rows, columns = table.rows, [column.name for column in table.columns]
    names = [printable(row.name) for row in rows]
    found = np.array([[_value(cell) for cell in row.cells] for row in rows], dtype=float)  # (R, C)
    end = numbers.highest(found.ravel().tolist()) or 1.0
    width = 2.4 + 0.08 * max(map(len, names), default=0) + 0.75 * len(columns)
    figure = _figure(width, 1.2 + 0.4 * len(rows) + _room(columns))
    axes = figure.add_subplot()
    image = axes.imshow(found, aspect="auto", cmap=_colours(), vmin=0, vmax=end)
    axes.set_facecolor("0.8")  # colour of a missing value, which no shade has
    for r, c in np.ndindex(*found.shape):
        cell = rows[r].cells[c]
        if cell is not None and math.isfinite(found[r, c]):
            ink = [part / 255 for part in numbers.shade(float(found[r, c] / end))[1]]
            axes.text(c, r, cell.text, ha="center", va="center", fontsize="small", color=ink)
    _name_places(axes, columns)
    axes.set_yticks(range(len(names)), names, **_words())
    _add_bar(figure, axes, image, table.scale)
    return figure


def draw_boxes(chart: Boxes) -> Figure:
    """Draw boxes of quartiles and median, whiskers from 5 to 95 %, and a line at the expected value.

    Examples::
        >>> draw_boxes(Boxes("", [1], [[0.9, 0.95, 1.0, 1.1, 1.3]], "E", 1.0)).axes[0].get_ylabel().startswith("E")
        True
    """
    names = [str(place) for place in chart.places]
    figure = _figure(max(4.5, 2.0 + 0.4 * len(names)), 2.8 + _room(names))
    axes = figure.add_subplot()
    keys = ("whislo", "q1", "med", "q3", "whishi")
    boxes = [{**dict(zip(keys, quantiles, strict=True)), "fliers": []} for quantiles in chart.quantiles]
    drawn = axes.bxp(boxes, positions=range(len(names)), showfliers=False, patch_artist=True)
    for part in drawn["boxes"]:
        part.set(facecolor=PAPER, edgecolor=COLOURS[0], hatch="///")
    for kind in ("medians", "whiskers", "caps"):
        for line in drawn[kind]:
            line.set_color(INK)
    axes.axhline(chart.expected, color=COLOURS[1], linewidth=1, linestyle="--")
    label = f"{chart.unit}\n(box: quartiles; whiskers: 5 to 95 %;\ndashed: {chart.expected:g})"
    axes.set_ylabel(label, **_words())
    _name_places(axes, names)
    _plain(axes)
    return figure


def draw_points(chart: Points) -> Figure:
    """Draw quality against seconds per text, with each group's Pareto front; better is up, cheaper is left.

    Points are numbered, and a list beside the picture names them, best first.  A line below the axis names methods
    without a cost (scores computed elsewhere), which cannot be drawn.

    Raises:
        ValueError: no point has a finite quality and a cost above 0.

    Example::

        >>> points = (Point("saliency", "unsigned", 0.01, 0.33, 0.30, 0.36, True),
        ...           Point("occlusion", "unsigned", 0.20, 0.41, 0.38, 0.44, True))
        >>> draw_points(Points("", "comprehensiveness", True, points)).axes[0].get_xscale()
        'log'
    """
    drawn = [point for point in chart.points if can_be_drawn(point)]
    if not drawn:
        raise ValueError(
            f"none of {len(chart.points)} points has a finite quality and a cost above 0; give at least one that has"
        )
    sign = -1 if chart.higher_is_better else 1
    drawn.sort(key=lambda point: sign * point.quality)
    figure = _figure(8.2, max(4.2, 1.6 + 0.2 * len(drawn)))
    axes = figure.add_subplot()
    axes.set_xscale("log")
    left, right = min(point.cost for point in drawn), max(point.cost for point in drawn)
    room = max(1.5, (right / left) ** 0.08)
    axes.set_xlim(left / room, right * room)
    for g, group in enumerate(dict.fromkeys(point.group for point in drawn)):
        _draw_group(axes, [point for point in drawn if point.group == group], g, right * room)
    for number, point in enumerate(drawn, 1):
        bold = "bold" if point.on_front else "normal"
        place = (point.cost, point.quality)
        axes.annotate(
            str(number), place, (5, 3), textcoords="offset points", fontweight=bold, **_words("x-small")
        )
        # an entry in the legend without a marker: its number is the marker
        axes.plot([], [], linestyle="none", label=f"{number} {_name(point.method)}")
    if not chart.higher_is_better:
        axes.invert_yaxis()
    kind = "higher is better" if chart.higher_is_better else "lower is better: the axis is inverted"
    axes.set_ylabel(f"{_name(chart.quality)} {'↓↑'[chart.higher_is_better]}\n{kind}", **_words())
    note = "seconds per text ↓ (log scale)"
    without = [point.method for point in chart.points if not can_be_drawn(point)]
    if without:
        note += "\n" + textwrap.fill(f"without seconds, so not drawn: {', '.join(map(_name, without))}", 80)
    axes.set_xlabel(note, **_words())
    _title(axes, chart.title)
    _plain(axes)
    axes.grid(color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    legend = figure.legend(loc="outside right upper", frameon=False, handlelength=1.2)
    best = {f"{number} {_name(point.method)}" for number, point in enumerate(drawn, 1) if point.on_front}
    for text in legend.get_texts():
        text.set(**_words("x-small"), fontweight="bold" if text.get_text() in best else "normal")
    return figure


def draw_metric(table: Table, column: str | int = 0) -> Figure:
    """Draw one metric of all methods as bars, best first, with 95 % intervals; a panel for each group, on one scale.

    Args:
        table: a table with methods as rows and metrics as columns.
        column: a metric's name, or its number from 0.

    Raises:
        ValueError: there is no such column (the message names those that exist), or it is empty.

    Example::

        >>> from interp_plugin.report.model import Column
        >>> rows = (Row("random", (Cell("0.10", 0.1),)), Row("occlusion", (Cell("0.46", 0.46),)))
        >>> figure = draw_metric(Table("class", "method", (Column("comprehensiveness", True),), {"unsigned": rows}))
        >>> [round(float(bar.get_width()), 2) for bar in figure.axes[0].patches]
        [0.46, 0.1]
    """
    place = _column(table, column)
    metric = table.columns[place]
    groups: dict[str, list[tuple[str, Cell]]] = {}
    for group, rows in table.groups.items():
        found = [(row.name, cell) for row in rows if (cell := row.cells[place]) and cell.value is not None]
        found.sort(key=lambda pair: pair[1].value or 0.0, reverse=bool(metric.higher_is_better))
        if found:
            groups[group] = found
    if not groups:
        raise ValueError(
            f"no method has a value of {metric.name!r} for {table.title!r}; choose another column"
        )
    names = [name for found in groups.values() for name, _ in found]
    figure = _figure(4.4 + _room(names), 1.3 + 0.27 * len(names) + 0.35 * len(groups))
    heights = [len(found) + 0.6 for found in groups.values()]
    panels = figure.subplots(len(groups), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for number, (axes, (group, found)) in enumerate(zip(panels, groups.items(), strict=True)):
        cells = [cell for _, cell in found]
        colour = COLOURS[number % 4]
        ends = [_whiskers(_value(cell), _or_nan(cell.low), _or_nan(cell.high)) for cell in cells]
        axes.barh(
            range(len(found)), [_value(cell) for cell in cells], xerr=list(zip(*ends, strict=True)), height=0.72,
            color=colour if not number % 2 else PAPER, edgecolor=colour, hatch=_HATCHES[number % 4], ecolor=INK,
            capsize=2,
        )  # fmt: skip
        for row, cell in enumerate(cells):
            if cell.mark:
                end = (max(_value(cell) + ends[row][1], 0.0), row)
                axes.annotate(cell.mark, end, (4, 0), textcoords="offset points", va="center", **_words())
        axes.set_yticks(range(len(found)), [_name(name) for name, _ in found], **_words())
        for label, cell in zip(axes.get_yticklabels(), cells, strict=True):
            label.set_fontweight("bold" if cell.best else "normal")
        axes.set_ylim(len(found) - 0.4, -0.6)  # the best on top
        axes.margins(x=0.06)
        if any(_value(cell) < 0 for cell in cells):
            axes.axvline(0, color=INK, linewidth=0.8)
        _plain(axes)
        _title(axes, group, "small")
    panels[-1].set_xlabel(f"{_name(metric.heading)}   (whiskers: 95 % interval)", **_words())
    tied = any(cell.mark for found in groups.values() for _, cell in found)
    note = f"\n{TIED}: not significantly different from the best" if tied else ""
    figure.suptitle(_name(table.title) + note, **_words("medium"))
    return figure


def can_be_drawn(point: Point) -> bool:
    """Return whether a point has a finite quality, and a positive cost for the log axis."""
    return math.isfinite(point.quality) and math.isfinite(point.cost) and point.cost > 0


def draw_words_heatmap(
    sigma: NDArray[np.floating], words: Sequence[str], figure: Figure | None = None
) -> Figure:
    """Draw one row of cells, one per word: dark cells are words with little noise, which are important.

    Args:
        sigma: noise scale of each word, (words,).
        words: the words.
        figure: an empty figure to draw in; None: a new one, not managed by pyplot.
    """
    figure = _figure(max(4.0, 0.7 * len(words)), 1.8, figure)
    axes = figure.add_subplot()
    image = axes.imshow(sigma.reshape(1, -1), aspect="auto", cmap="Blues_r")
    axes.set_yticks([])
    _name_places(axes, words)
    figure.colorbar(image, ax=axes, label="sigma")
    return figure


def svg(chart: Chart, number: str) -> str:
    """Render a chart as an SVG element of the page, in the page's colours and fonts; names stay text."""
    from matplotlib import rc_context

    if isinstance(chart, Curves):
        is_single = len(chart.curves) == 1  # the page's title names a single curve
        figure = draw_curves(
            replace(chart, curves=(replace(chart.curves[0], name=""),)) if is_single else chart
        )
    elif isinstance(chart, Boxes):
        figure = draw_boxes(chart)
    else:
        figure = draw_points(replace(chart, title=""))  # the page shows the title below
    file = io.StringIO()
    about = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    # the salt gives the parts of two figures on a page different ids, and makes pages reproducible
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": f"figure {number}"}):
        figure.savefig(file, format="svg", transparent=True, metadata=about)
    source = file.getvalue()[file.getvalue().index("<svg") :]
    for colour, variable in _VARIABLES.items():
        source = re.sub(rf"(fill|stroke): {colour}", rf"\1: var({variable})", source)
    links = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    wide = f"{96 * figure.get_figwidth():.0f}px"
    shape = f'style="max-width: {wide}; --wide: {wide}"'
    source = re.sub(
        r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', rf'<svg role="img" \1 {shape} {links}>', source, count=1
    )
    # ids such as axes_1 and figure_1 would be the same in every figure
    return re.sub(r'(<g id=")', rf"\g<1>figure-{number}-", source)


def _size_of_map(table: Table) -> tuple[float, float]:
    """Return width and height of a heat map in inches."""
    names, units = [row.name for row in table.rows], [column.name for column in table.columns]
    width = max(5.0, 2.2 + 0.3 * len(units) + _room(names))
    return width, 1.6 + 0.28 * len(names) + _room(units)


def _size_of_bars(table: Table) -> tuple[float, float]:
    units = [column.name for column in table.columns]
    return max(5.0, 1.5 + 0.3 * len(units)), 3.2 + _room(units)


def _draw_map(figure: SubFigure, table: Table, answer: str, signed: bool) -> None:
    import numpy as np
    from matplotlib.patches import Rectangle

    shown = [
        [math.nan if cell is None or cell.shade is None else cell.shade for cell in row.cells]
        for row in table.rows
    ]
    places = np.array(shown, dtype=float)  # (R, T), NaN: not known, or a special token
    axes = figure.add_subplot()
    image = axes.imshow(places, aspect="auto", cmap=_colours(signed), vmin=-1 if signed else 0, vmax=1)
    for r, row in enumerate(table.rows):
        for t, cell in enumerate(row.cells):
            if cell is not None and cell.uncertain:
                box = Rectangle(
                    (t - 0.5, r - 0.5), 1, 1, fill=False, hatch="////", edgecolor="0.55", linewidth=0
                )
                axes.add_patch(box)
    specials = sum(column.special for column in table.columns)
    if specials:  # special tokens are not shaded, and follow a line
        axes.axvline(len(table.columns) - specials - 0.5, color=SOFT, linewidth=1, linestyle=":")
    _name_places(axes, [column.name for column in table.columns])
    axes.set_yticks(
        range(len(table.rows)), [_name(row.name + _warned(row)) for row in table.rows], **_words()
    )
    _add_bar(figure, axes, image, textwrap.fill(table.scale, 30))
    uncertain = any(cell is not None and cell.uncertain for row in table.rows for cell in row.cells)
    _answer(answer, figure, "hatched: uncertain" if uncertain else "")


def _draw_bars(figure: SubFigure, table: Table, answer: str, signed: bool) -> None:
    [row] = table.rows
    cells = [cell or Cell("-") for cell in row.cells]
    found = [_value(cell) for cell in cells]  # (T,), NaN draws no bar
    errors = [_whiskers(_value(cell), _or_nan(cell.low), _or_nan(cell.high))[1] for cell in cells]
    axes = figure.add_subplot()
    bars = axes.bar(range(len(cells)), found, yerr=errors, color=COLOURS[0], ecolor=INK, capsize=2)
    for bar, column, cell in zip(bars, table.columns, cells, strict=True):
        if column.special:  # special tokens are drawn hollow
            bar.set(facecolor="none", edgecolor=SOFT, linestyle="--")
        elif cell.uncertain:
            bar.set(facecolor=PAPER, edgecolor=COLOURS[0], hatch="////")
    axes.set_xlim(-0.6, len(cells) - 0.4)
    if signed:
        axes.axhline(0, color=INK, linewidth=0.8)
    else:
        axes.set_ylim(bottom=0)
    unit = "lost when erased" if signed else "information kept, nats"
    axes.set_ylabel(f"{row.name}{_warned(row)}\n{unit}\n(whiskers: ± 1 standard error)", **_words())
    _name_places(axes, [column.name for column in table.columns])
    for t, cell in enumerate(cells):
        if cell.mark and cell.value is not None:
            axes.annotate(TIED, (t, cell.value + errors[t]), (0, 1), textcoords="offset points", ha="center")
    notes = (
        [f"{TIED}: not clearly different from the next in rank"] if any(cell.mark for cell in cells) else []
    )
    notes += ["hatched: uncertain"] if any(cell.uncertain for cell in cells) else []
    _answer(answer, figure, "; ".join(notes))
    _plain(axes)


def _draw_group(axes: Axes, points: Sequence[Point], number: int, right: float) -> None:
    """Draw a group's points with their intervals, and its Pareto front up to the right end of the picture."""
    colour = COLOURS[number % 4]
    cost, quality = [point.cost for point in points], [point.quality for point in points]
    ends = list(zip(*(_whiskers(p.quality, p.low, p.high) for p in points), strict=True))
    axes.errorbar(cost, quality, yerr=ends, fmt="none", ecolor=colour, elinewidth=1, alpha=0.45)
    face = PAPER if number % 2 else colour  # filled or open, to distinguish groups without colour
    axes.plot(
        cost, quality, _MARKS[number % 4], color=colour, markersize=6.4, markerfacecolor=face, markeredgewidth=1.4,
        label=f"{points[0].group} methods",
    )  # fmt: skip
    front = sorted((point.cost, point.quality) for point in points if point.on_front)
    if front:
        style: Any = {"color": colour, "linestyle": _LINES[number % 4], "linewidth": 1.2, "zorder": 1.5}
        corners = zip(*front, (right, front[-1][1]), strict=True)
        label = f"Pareto front of {points[0].group} methods (bold)"
        axes.plot(*corners, drawstyle="steps-post", label=label, **style)


def _texts(explanation: Values, index: int | None) -> Sequence[Values]:
    """Return the text with this index, or all texts."""
    texts: Sequence[Values] = explanation["texts"]
    if index is None:
        if not texts:
            raise ValueError("there is no text to draw")
        if len(texts) > _TEXTS:
            raise ValueError(
                f"there are {len(texts)} texts, but at most {_TEXTS} fit in a figure; choose one, text=0 to "
                f"text={len(texts) - 1}"
            )
        return texts
    if not -len(texts) <= index < len(texts):
        raise ValueError(f"text {index} does not exist; there are {len(texts)}, counted from 0")
    return [texts[index]]


def _column(table: Table, column: str | int) -> int:
    names = [metric.name for metric in table.columns]
    if isinstance(column, str) and column in names:
        return names.index(column)
    if isinstance(column, int) and -len(names) <= column < len(names):
        return column
    raise ValueError(
        f"column {column!r} does not exist in {table.title!r}; there are {', '.join(map(repr, names))}, or their "
        "numbers from 0"
    )


def _figure(width: float, height: float, figure: Figure | None = None) -> Figure:
    """Return an empty figure, or the given one, with this size in inches."""
    from matplotlib.figure import Figure

    if figure is None:
        figure = Figure()
        # for notebooks: IPython shows a plain figure as a picture only once pyplot is loaded
        figure._repr_png_ = functools.partial(_png, figure)  # type: ignore[attr-defined]
    figure.set_size_inches(width, height)
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    return figure


def _png(figure: Figure) -> bytes:
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def _words(size: str = "small") -> dict[str, Any]:
    """Return text properties: "$" does not start a formula, and fonts are tried in order for each character."""
    return {"fontsize": size, "parse_math": False, "family": _families(), "color": INK}


@functools.cache
def _installed() -> tuple[str, ...]:
    from matplotlib.font_manager import fontManager

    names = {font.name for font in fontManager.ttflist}
    return tuple(name for name in _FALLBACKS if name in names)


def _families() -> list[str]:
    from matplotlib import rcParams

    return [*rcParams["font.family"], *_installed()]


def _name(name: str) -> str:
    return shortened(name, _LONGEST)


def _room(names: Sequence[str]) -> float:
    """Return the inches that the longest name needs, horizontally or (slightly less) rotated by 45 degrees."""
    return 0.08 * max((len(_name(str(name))) for name in names), default=0)


def _name_places(axes: Axes, names: Sequence[str]) -> None:
    """Write names below the axis; long names are rotated about their ends, to stay below their ticks."""
    short = max(map(len, names), default=0) <= 3
    rotation: dict[str, Any] = {} if short else {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(names)), [_name(name) for name in names], **_words(), **rotation)
    if names and all(name.isdecimal() for name in names):
        axes.set_xlabel("layer", **_words())


def _title(axes: Axes, text: str, size: str = "medium") -> None:
    axes.set_title(_name(text), loc="left", **_words(size))


def _answer(answer: str, figure: SubFigure, note: str) -> None:
    """Write the answer above a picture, wrapped to the width of the picture."""
    wide = max(30, int(11 * figure.bbox.width / figure.dpi))  # characters
    title = textwrap.fill(printable(answer), wide) + (f"\n({note})" if note else "")
    figure.suptitle(title, x=0.01, ha="left", **_words("medium"))


def _add_bar(figure: Figure | SubFigure, axes: Axes, image: AxesImage, scale: str) -> None:
    """Add a colour bar that says what the colours mean."""
    figure.colorbar(image, ax=axes, fraction=0.05, aspect=15).set_label(scale, **_words())


def _plain(axes: Axes) -> None:
    """Use the page's colours, which its stylesheet replaces on a dark background."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(SOFT)
    axes.tick_params(which="both", color=SOFT, labelcolor=INK, labelsize="small")
    axes.patch.set_alpha(0)


def _whiskers(middle: float, low: float, high: float) -> tuple[float, float]:
    """Return how far the interval extends below and above the middle; 0 if that is not known."""
    below, above = (
        side if math.isfinite(side) and side > 0 else 0.0 for side in (middle - low, high - middle)
    )
    return below, above


def _warned(row: Row) -> str:
    return f" ({row.warning})" if row.warning else ""


def _value(cell: Cell | None) -> float:
    return math.nan if cell is None or cell.value is None else cell.value


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _colours(signed: bool = False) -> Colormap:
    """Return the colours of the shades as a colour map, from 0 to 1, or from -1 to 1 for signed values."""
    from matplotlib.colors import LinearSegmentedColormap

    steps = [numbers.shade(step / 16)[0] for step in range(-16 if signed else 0, 17)]
    return LinearSegmentedColormap.from_list("shades", [tuple(part / 255 for part in rgb) for rgb in steps])
