"""Report: a study as one HTML file that needs nothing else, and runs nothing but its own script."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from interp_plugin.rendering import shades, templates
from interp_plugin.rendering.labels import TIED, printable
from interp_plugin.rendering.study import dress, words
from interp_plugin.rendering.study.front import can_be_drawn, front_figure
from interp_plugin.rendering.study.values import StudyColumn, StudyPoint, StudyTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PAPER = 7  # metrics that fit on an upright page
_ERRORS = 2 * 1.96  # standard errors in a 95 % interval
# The figure's colours, by the names that the page's style has for them by day and by night.
_VARIABLES = {
    dress.INK: "--ink", dress.SOFT: "--soft", dress.LINE: "--line", dress.PAPER: "--paper",
    **dict(zip(dress.COLOURS, ("--unsigned", "--signed", "--third", "--fourth"), strict=True)),
}  # fmt: skip


def to_html(
    tables: Sequence[StudyTable],
    points: Mapping[StudyColumn, Sequence[StudyPoint]],
    title: str,
    settings: Mapping[str, Any] | None = None,
) -> str:
    """One self-contained page: a table for each question, the figures of quality against cost, the sources.

    Without JavaScript everything is readable; with it a click on a metric sorts the methods of each group.
    The page's own policy forbids it to load anything.  matplotlib draws the figures.

    Args:
        tables: one for each question.
        points: quality (its name says of what: "state erasure, layer 3") -> a point for each method; a figure
            each, and none for those where no method has a cost.
        title: heading of the page.
        settings: what else a reader needs to do it again: model, data, seed, versions.

    Example::

        >>> from interp_plugin.rendering.study import StudyCell
        >>> column = StudyColumn("comprehensiveness", True, "DeYoung et al. 2020")
        >>> cells = {"<b>": (StudyCell(0.463, 0.431, 0.495, 200, True, None),)}
        >>> source = to_html([StudyTable("class", (column,), {"unsigned": cells}, ())], {}, "Study")
        >>> "<bdi>&lt;b&gt;</bdi>" in source and "<strong>0.463</strong> <small>[0.431, 0.495]</small>" in source
        True
    """
    script = templates.source("page.study.js")
    style = templates.source("page.css") + templates.source("page.study.css") + templates.shade_rules()
    drawn = {column: some for column, some in points.items() if any(map(can_be_drawn, some))}
    return templates.template("page.study.html").render(
        title=printable(title),
        style=style,
        script=script,
        digest=templates.digest(script),
        legend=[*words.legend(), "Shade: dark = better; all are pale where the intervals are wide."],
        swatches=range(0, templates.SHADES + 1, 4),
        tables=[_Table.of(table) for table in tables],
        figures=[
            (printable(column.name), _svg(front_figure(some, column.name, column.higher_is_better), number))
            for number, (column, some) in enumerate(drawn.items())
        ],
        metrics=[_Column.of(column) for column in words.metrics(tables) if column.source],
        settings=[(printable(name), printable(str(value))) for name, value in (settings or {}).items()],
    )


@dataclass(frozen=True)
class _Cell:
    mean: str
    more: str  # interval, and over how many texts if not all
    value: float
    shade: int
    best: bool
    mark: str


@dataclass(frozen=True)
class _Column:
    heading: str
    better: str
    source: str

    @classmethod
    def of(cls, column: StudyColumn) -> _Column:
        better = "higher" if column.higher_is_better else "lower"
        return cls(printable(words.heading(column)), better, printable(column.source))


@dataclass(frozen=True)
class _Row:
    method: str
    cells: list[_Cell | None]  # (C,)


@dataclass(frozen=True)
class _Group:
    name: str
    rows: list[_Row]

    @classmethod
    def of(cls, table: StudyTable, group: str) -> _Group:
        methods = table.groups[group]
        columns = zip(*methods.values(), strict=True)
        shown = [
            list(_cells(table, column, cells)) for column, cells in zip(table.columns, columns, strict=True)
        ]
        rows = zip(*shown, strict=True) if shown else [()] * len(methods)
        return cls(
            printable(words.group_name(group)),
            [_Row(printable(method), list(cells)) for method, cells in zip(methods, rows, strict=True)],
        )


@dataclass(frozen=True)
class _Table:
    title: str
    columns: list[_Column]
    groups: list[_Group]
    notes: list[str]

    @property
    def wide(self) -> bool:
        """Whether it needs a turned page."""
        return len(self.columns) > _PAPER

    @classmethod
    def of(cls, table: StudyTable) -> _Table:
        groups = [_Group.of(table, group) for group, methods in table.groups.items() if methods]
        columns = [_Column.of(column) for column in table.columns]
        return cls(printable(table.title), columns, groups, [printable(note) for note in table.notes])


def _cells(table: StudyTable, column: StudyColumn, cells: words.Cells) -> Iterator[_Cell | None]:
    """One group's cells of a column, dark = better."""
    steps = _steps(column, cells)
    for cell, shown, step in zip(cells, words.rounded(cells), steps, strict=True):
        if cell is None or shown is None:
            yield None
            continue
        mean, interval = shown
        more = " ".join(filter(None, [interval, words.fewer(table, cell)]))
        yield _Cell(mean, more, cell.mean, step, cell.best, TIED if words.tied(cell) else "")


def _steps(column: StudyColumn, cells: words.Cells) -> list[int]:
    sign = 1 if column.higher_is_better else -1
    found = [words.known(cell) for cell in cells]
    means = [None if cell is None else sign * cell.mean for cell in found]
    widths = [0.0 if cell is None else cell.high - cell.low for cell in found]
    errors = [width / _ERRORS if math.isfinite(width) else None for width in widths]
    return [round(templates.SHADES * share) for share in shades.shares(means, errors)]


def _svg(figure: Figure, number: int) -> str:
    """The figure as an element of the page, in the page's colours and fonts; its names stay text."""
    from matplotlib import rc_context

    file = io.StringIO()
    about = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    # the salt gives the parts of two figures on a page names of their own, and the same page the same bytes
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": f"figure {number}"}):
        figure.savefig(file, format="svg", transparent=True, metadata=about)
    svg = file.getvalue()[file.getvalue().index("<svg") :]
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(f"fill: {colour}", f"fill: var({variable})")
        svg = svg.replace(f"stroke: {colour}", f"stroke: var({variable})")
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', rf'<svg role="img" \1 {_LINKS}>', svg, count=1)
    # ids such as axes_1 and figure_1 are the same in every figure
    return re.sub(r'(<g id=")', rf"\g<1>figure-{number}-", svg)


_LINKS = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
