"""Bars: one metric of all methods of a study."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from interp_plugin.rendering import drawing
from interp_plugin.rendering.labels import TIED
from interp_plugin.rendering.study import words
from interp_plugin.rendering.study.dress import (
    COLOURS,
    HATCHES,
    INK,
    LONGEST,
    PAPER,
    dress,
    named,
    title,
    whiskers,
    words_style,
)
from interp_plugin.rendering.study.values import StudyCell, StudyTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[tuple[str, StudyCell]]


def bars_figure(table: StudyTable, column: str | int = 0) -> Figure:
    """One metric of all methods, best first, with 95 % intervals; a panel for each group, on one scale.

    Args:
        table: one question.
        column: a metric's name, or its number from 0.

    Raises:
        ValueError: no such column, or nothing in it; the message names those that exist.

    Example::

        >>> from interp_plugin.rendering.study import StudyColumn
        >>> metric = StudyColumn("comprehensiveness", True, "DeYoung et al. 2020")
        >>> cells = {"occlusion": (StudyCell(0.46, 0.43, 0.50, 200, True, None),),
        ...          "random": (StudyCell(0.10, 0.08, 0.12, 200, False, 1e-9),)}
        >>> figure = bars_figure(StudyTable("class", (metric,), {"unsigned": cells}, ()))
        >>> [round(float(bar.get_width()), 2) for bar in figure.axes[0].patches]
        [0.46, 0.1]
    """
    place = _place(table, column)
    metric = table.columns[place]
    groups = _sorted(table, place)
    if not groups:
        raise ValueError(
            f"no method has a value of {metric.name!r} for {table.title!r}; choose another column"
        )
    names = [method for rows in groups.values() for method, _ in rows]
    width, height = 4.4 + drawing.room(names, LONGEST), 1.3 + 0.27 * len(names) + 0.35 * len(groups)
    figure = drawing.new_figure(width, height)
    heights = [len(rows) + 0.6 for rows in groups.values()]
    panels = figure.subplots(
        len(groups), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
    )[:, 0]
    for number, (axes, (group, rows)) in enumerate(zip(panels, groups.items(), strict=True)):
        _draw(axes, rows, number)
        title(axes, words.group_name(group), "small")
    panels[-1].set_xlabel(f"{named(words.heading(metric))}   (whiskers: 95 % interval)", **words_style())
    tied = any(words.tied(cell) for rows in groups.values() for _, cell in rows)
    note = f"\n{TIED}: not significantly different from the best" if tied else ""
    figure.suptitle(named(table.title) + note, **words_style("medium"))
    return figure


def _draw(axes: Axes, rows: Rows, number: int) -> None:
    colour = COLOURS[number % 4]
    cells = [cell for _, cell in rows]
    below, above = zip(*(whiskers(cell.mean, cell.low, cell.high) for cell in cells), strict=True)
    axes.barh(
        range(len(rows)), [cell.mean for cell in cells], xerr=(below, above), height=0.72,
        color=colour if not number % 2 else PAPER, edgecolor=colour, hatch=HATCHES[number % 4], ecolor=INK, capsize=2,
    )  # fmt: skip
    for place, cell in enumerate(cells):
        if words.tied(cell):
            end = (max(cell.mean, cell.high if math.isfinite(cell.high) else cell.mean, 0.0), place)
            axes.annotate(TIED, end, (4, 0), textcoords="offset points", va="center", **words_style())
    drawing.name_ticks(axes.set_yticks, [method for method, _ in rows], LONGEST)
    for label, cell in zip(axes.get_yticklabels(), cells, strict=True):
        label.set_fontweight("bold" if cell.best else "normal")
    axes.set_ylim(len(rows) - 0.4, -0.6)  # the best on top
    axes.margins(x=0.06)
    if any(cell.mean < 0 for cell in cells):
        axes.axvline(0, color=INK, linewidth=0.8)
    dress(axes)


def _sorted(table: StudyTable, place: int) -> Mapping[str, Rows]:
    """Per group its methods that have a value, best first."""
    groups = {}
    for group, methods in table.groups.items():
        found = [(method, cell) for method, cells in methods.items() if (cell := words.known(cells[place]))]
        found.sort(key=lambda row: row[1].mean, reverse=table.columns[place].higher_is_better)
        if found:
            groups[group] = found
    return groups


def _place(table: StudyTable, column: str | int) -> int:
    names = [metric.name for metric in table.columns]
    if isinstance(column, str) and column in names:
        return names.index(column)
    if isinstance(column, int) and -len(names) <= column < len(names):
        return column
    raise ValueError(
        f"column {column!r} does not exist in {table.title!r}; there are {', '.join(map(repr, names))}, or their "
        "numbers from 0"
    )
