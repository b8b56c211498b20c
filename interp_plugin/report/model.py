"""The model of a report: sections, each with an answer, a shaded text, tables and charts.

Explanations, corpus studies and comparison studies make reports, and every renderer renders them.  Strings are data:
the renderers make them printable and escape them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from interp_plugin.report.numbers import known


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: the number as text; "-" if it is not known.
        value: the number; None: not known or not finite, or the cell holds words.
        spread: its error or interval as text; "" if there is none.
        error: a shorter form of that (half the width of an interval), for media with little room.
        shade: its position on the scale, -1 to 1; None: not shaded.
        uncertain: whether its shade says little, because its standard error is large.
        best: whether it is the best of its column and group.
        mark: a mark after the number, such as: not clearly different from the next in rank, or from the best.
        note: a note after the mark, such as: computed from fewer texts than the others.
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
        higher_is_better: the direction of its numbers; None: no direction.
        source: paper and equation.
        special: whether it is a token that is not part of the text, which is drawn separately and not shaded.
        words: whether its cells hold words, which are aligned to the left and may be wrapped.
    """

    name: str
    higher_is_better: bool | None = None
    source: str = ""
    special: bool = False
    words: bool = False

    @property
    def heading(self) -> str:
        """Its name, and the direction in which it is better.

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
        cells: one for each column; None: empty.
        warning: a warning about the row; "" if there is none.
    """

    name: str
    cells: tuple[Cell | None, ...]
    warning: str = ""


@dataclass(frozen=True)
class Table:
    """A table, with rows that may be in groups.

    Attributes:
        title: what the numbers are.
        corner: what the rows are.
        columns: C columns.
        groups: name ("" for no group) -> rows.
        notes: notes for the reader.
        more: numbers that only the page's script shows, by name, (R, C) each.
        scale: what the colours mean, for a figure's colour bar.
        across: what the columns are.

    Raises:
        ValueError: the number of cells in a row differs from that of the columns.
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
        """Transpose the table; special columns become a separate group of rows.

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
    """Some characters of a text: a unit, with its column in the table, or characters between units (None)."""

    text: str
    column: int | None = None
    special: bool = False  # a token without characters in the text, such as [CLS]


@dataclass(frozen=True)
class Curve:
    """A mean for each of L places (layers), with both ends of its interval.

    Attributes:
        name: name of the text or model.
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
    """Curves on common axes.

    Attributes:
        title: a description for readers who do not see the picture.
        curves: the curves.
        unit: unit of the vertical axis.
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
        title: a description for readers who do not see the picture.
        places: L labels.
        quantiles: the 5, 25, 50, 75 and 95 % quantiles of each, (L, 5).
        unit: unit of the vertical axis.
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
        on_front: whether it is on the Pareto front: no method of its group is both cheaper and better.
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
        title: what was compared, and by which metric.
        quality: name of the metric.
        higher_is_better: direction of the metric; if false, the axis is inverted, so that better is up.
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
        heading: its heading; "" if the report has only one section.
        answer: what the numbers say, in a sentence or two.
        status: how certain the numbers are, and how to improve them; "" if there is nothing to say.
        warns: whether the status is a warning.
        lines: the text, a line for each segment, shaded by a row of the first table.
        tables: the tables that the answer is based on.
        charts: charts of the same numbers.
        details: tables of how the numbers were computed.
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
    """Everything that a page or a terminal shows.

    Attributes:
        title: title of the report.
        sections: its sections.
        guide: how to read it, one sentence or more each.
        scale: what the two ends of the shades mean; () if nothing is shaded.
        signed: whether values below 0 are shaded too.
        cost: time and passes that were needed.
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
        """Sources of the columns, each once: heading -> source."""
        columns = (c for section in self.sections for table in section.tables for c in table.columns)
        return {column.heading: column.source for column in columns if column.source}
