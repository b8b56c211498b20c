"""The model of what is shown: a report of sections, each with an answer, a shaded text, tables and charts.

Explanations, corpus studies and comparison studies all fill it, and every renderer draws it.  Strings are data: the
renderers make them printable and escape them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from interp_plugin.report.numbers import known


@dataclass(frozen=True)
class Cell:
    """One number of a table.

    Attributes:
        text: as it is written; "-" where it is not known.
        value: the number; None: not known or not finite, or the cell holds words.
        spread: its error or interval as it is written, "" where there is none.
        error: half of that, for media with little room.
        shade: its place on the scale, -1 to 1; None: not shaded.
        uncertain: its shade says little, because its standard error is large.
        best: of its column and group.
        mark: after the number: not told apart from the next in rank, or from the best.
        note: after that: over fewer texts than the others.
        low, high: ends of the interval, or of one standard error, for figures; None: not known.
    """

    text: str
    value: float | None = None
    spread: str = ""
    error: str = ""
    shade: float | None = None
    uncertain: bool = False
    best: bool = False
    mark: str = ""
    note: str = ""
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        for name in ("value", "low", "high"):
            if not known(getattr(self, name)):
                object.__setattr__(self, name, None)


@dataclass(frozen=True)
class Column:
    """A column: a token, a metric, a quantity.

    Attributes:
        name: its heading.
        higher_is_better: None where neither is.
        source: where it comes from: paper and equation.
        special: a token that is no part of the text, drawn apart and outside of the scale.
        words: its cells hold words, which are aligned to the left and may fold.
    """

    name: str
    higher_is_better: bool | None = None
    source: str = ""
    special: bool = False
    words: bool = False

    @property
    def heading(self) -> str:
        """Its name, and which way is better.

        Example::

            >>> Column("seconds", False).heading
            'seconds ↓'
        """
        return self.name if self.higher_is_better is None else f"{self.name} {'↓↑'[self.higher_is_better]}"


@dataclass(frozen=True)
class Row:
    """A row: a layer, a method.

    Attributes:
        name: its heading.
        cells: one for each column; None: there is nothing.
        warning: what a reader must know, "" if nothing.
    """

    name: str
    cells: tuple[Cell | None, ...]
    warning: str = ""


@dataclass(frozen=True)
class Table:
    """Rows, perhaps in groups, by columns.

    Attributes:
        title: what the numbers are.
        corner: what the rows are.
        columns: C of them.
        groups: name ("" for none) -> rows.
        notes: what a reader must know.
        more: numbers that only the page's script shows, by name, (R, C) each.
        scale: what the colours mean, for a figure's colour bar.
        across: what the columns are.

    Raises:
        ValueError: a row with more or fewer cells than there are columns.
    """

    title: str
    corner: str
    columns: tuple[Column, ...]
    groups: Mapping[str, tuple[Row, ...]]
    notes: tuple[str, ...] = ()
    more: Mapping[str, Sequence[Sequence[float | None]]] = field(default_factory=dict)
    scale: str = ""
    across: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row.cells) != len(self.columns):
                raise ValueError(
                    f"row {row.name!r} has {len(row.cells)} cells for {len(self.columns)} columns of {self.title!r}; "
                    "give one for each, None where there is no value"
                )

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows of all groups."""
        return tuple(row for rows in self.groups.values() for row in rows)

    @property
    def is_empty(self) -> bool:
        return not self.columns or not self.rows

    def turned(self) -> Table:
        """Columns as rows and rows as columns; special columns become a group of their own.

        Example::

            >>> rows = (Row("1", (Cell("x"), Cell("y"))),)
            >>> turned = Table("", "layer", (Column("a"), Column("b")), {"": rows}, across="token").turned()
            >>> turned.corner, [row.name for row in turned.rows], [column.name for column in turned.columns]
            ('token', ['a', 'b'], ['1'])
        """
        groups: dict[str, list[Row]] = {}
        for c, column in enumerate(self.columns):
            cells = tuple(row.cells[c] for row in self.rows)
            groups.setdefault("special" if column.special else "", []).append(Row(column.name, cells))
        columns = tuple(Column(row.name + (f" ({row.warning})" if row.warning else "")) for row in self.rows)
        turned = {name: tuple(rows) for name, rows in groups.items()}
        return replace(self, corner=self.across, across=self.corner, columns=columns, groups=turned, more={})


@dataclass(frozen=True)
class Piece:
    """Some characters of a text: a unit, by its column in the table, or what lies between units (None)."""

    text: str
    column: int | None = None
    special: bool = False  # it stands for no characters of the text: [CLS]


@dataclass(frozen=True)
class Curve:
    """A mean for each of L places, with both ends of its interval.

    Attributes:
        name: of the text or model.
        places: L labels, in order.
        mean, low, high: L each; NaN where an end is not known.
    """

    name: str
    places: Sequence[int | str]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True)
class Curves:
    """Lines on common axes.

    Attributes:
        title: in words, for readers who do not see the picture.
        unit: of the vertical axis.
        band: what the interval is.
    """

    title: str
    curves: tuple[Curve, ...]
    unit: str
    band: str


@dataclass(frozen=True)
class Boxes:
    """Distributions side by side.

    Attributes:
        title: in words, for readers who do not see the picture.
        places: L labels.
        quantiles: 5, 25, 50, 75 and 95 % of each, (L, 5).
        unit: of the vertical axis.
        expected: a value to compare with, drawn as a line.
    """

    title: str
    places: Sequence[int | str]
    quantiles: Sequence[Sequence[float]]
    unit: str
    expected: float


@dataclass(frozen=True)
class Point:
    """One method's quality against its cost.

    Attributes:
        method, group: its name, and "unsigned" or "signed".
        cost: seconds per text; NaN where it is not known.
        quality: a metric's mean.
        low, high: ends of the mean's 95 % interval.
        on_front: whether no method of its group is both cheaper and better.
    """

    method: str
    group: str
    cost: float
    quality: float
    low: float
    high: float
    on_front: bool


@dataclass(frozen=True)
class Points:
    """Quality against cost.

    Attributes:
        title: what was compared, and by what.
        quality: name of the metric.
        higher_is_better: otherwise the axis is turned over, so that better is up.
        points: one for each method.
    """

    title: str
    quality: str
    higher_is_better: bool
    points: tuple[Point, ...]


Chart = Curves | Boxes | Points


@dataclass(frozen=True)
class Section:
    """One text, or one question.

    Attributes:
        heading: "" where the report has one section.
        answer: what the numbers say, in a sentence or two.
        status: how sure the numbers are, and what makes them surer; "" where nothing is to be said.
        warns: whether the status is a warning.
        lines: the text, a line for each segment, to be shaded by a row of the first table.
        tables: what the answer rests on.
        charts: the same in pictures.
        details: tables for those who ask how the numbers came about.
        notes: further sentences.
    """

    heading: str = ""
    answer: str = ""
    status: str = ""
    warns: bool = False
    lines: tuple[tuple[Piece, ...], ...] = ()
    tables: tuple[Table, ...] = ()
    charts: tuple[Chart, ...] = ()
    details: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """All that a page, or a terminal, shows.

    Attributes:
        title: of the whole.
        sections: its parts.
        guide: how to read it, a sentence each.
        scale: what the two ends of the shades mean; () where nothing is shaded.
        signed: whether values below 0 are shaded too.
        cost: what it took.
        settings: what the numbers depend on.
    """

    title: str
    sections: tuple[Section, ...]
    guide: tuple[str, ...] = ()
    scale: tuple[str, str] | tuple[()] = ()
    signed: bool = False
    cost: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sources(self) -> dict[str, str]:
        """Where the columns come from, each once: heading -> source."""
        columns = (c for section in self.sections for table in section.tables for c in table.columns)
        return {column.heading: column.source for column in columns if column.source}
