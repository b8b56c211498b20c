"""Words: the numbers, marks and sentences of a study's report, the same in all its forms."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import median

from interp_plugin.rendering.labels import TIED
from interp_plugin.rendering.study.values import StudyCell, StudyColumn, StudyTable

LEVEL = 0.05  # of the tests
_DECADES = 100.0  # highest to lowest of a column, from which on one number of decimals does not suit all
_DECIMALS = 6  # more than that, and an exponent reads better

Cells = Sequence[StudyCell | None]


def heading(column: StudyColumn) -> str:
    """A metric's name and its direction.

    Example::

        >>> heading(StudyColumn("seconds", False, "wall clock"))
        'seconds ↓'
    """
    return f"{column.name} {arrow(column.higher_is_better)}"


def arrow(higher_is_better: bool) -> str:
    """Where better is."""
    return "↑" if higher_is_better else "↓"


def tied(cell: StudyCell) -> bool:
    """Whether a test could not tell it from the best of its group."""
    return not cell.best and cell.p is not None and cell.p >= LEVEL


def known(cell: StudyCell | None) -> StudyCell | None:
    """The cell if it holds a number; NaN and infinity are none."""
    return cell if cell is not None and math.isfinite(cell.mean) else None


def rounded(cells: Cells) -> list[tuple[str, str] | None]:
    """One column's means and intervals, with as many decimals as the intervals deserve.

    Half an interval keeps two significant digits.  A column that spans decades, seconds for one, is rounded
    cell by cell.  The interval is empty where all texts gave the same number.

    Example::

        >>> rounded([StudyCell(0.46312, 0.43104, 0.49521, 200, True, None), None])
        [('0.463', '[0.431, 0.495]'), None]
    """
    found = [known(cell) for cell in cells]
    some = [cell for cell in found if cell is not None]
    sizes = [abs(cell.mean) for cell in some if cell.mean]
    alone = bool(sizes) and max(sizes) > _DECADES * min(sizes)
    shared = _decimals(some)
    return [
        None if cell is None else _numbers(cell, _decimals([cell]) if alone else shared) for cell in found
    ]


def half(cell: StudyCell, mean: str) -> str:
    """Half the width of the interval, with the decimals of the mean as it is written; "" if there is none.

    Example::

        >>> half(StudyCell(0.46312, 0.43104, 0.49521, 200, True, None), "0.463")
        '±0.032'
    """
    if not _has_interval(cell):
        return ""
    if "e" in mean:
        return f"±{(cell.high - cell.low) / 2:.1e}"
    return f"±{(cell.high - cell.low) / 2:.{len(mean.partition('.')[2])}f}"


def texts(table: StudyTable) -> int:
    """The number of texts that the table is over; cells may have fewer."""
    cells = (cell for methods in table.groups.values() for row in methods.values() for cell in row)
    return max((cell.n for cell in cells if cell is not None), default=0)


def fewer(table: StudyTable, cell: StudyCell) -> str:
    """Over how many texts a cell is, where they are not all."""
    return "" if cell.n == texts(table) else f"n {cell.n}"


def group_name(group: str) -> str:
    return f"{group} methods"


def legend(bold: str = "Bold", interval: str = "in brackets its 95 % bootstrap interval") -> Iterator[str]:
    """What numbers, arrows and marks mean, a sentence each."""
    yield f"Mean over the texts, {interval}; none where all texts gave the same number."
    yield "↑: higher is better, ↓: lower is better."
    yield (
        f"{bold}: the best of its group; {TIED}: not significantly different from it (paired test, "
        f"Holm-corrected p ≥ {LEVEL:g})."
    )
    yield (
        "Signed methods also say which tokens speak against a class; there they and unsigned ones are compared "
        "apart."
    )
    yield "n: over fewer texts than the rest.  -: nothing to judge."


def metrics(tables: Sequence[StudyTable]) -> list[StudyColumn]:
    """Every metric once, in the order of the tables."""
    return list({column.name: column for table in tables for column in table.columns}.values())


def empty(table: StudyTable) -> bool:
    return not table.columns or not any(table.groups.values())


def _decimals(cells: Sequence[StudyCell]) -> int:
    widths = [(cell.high - cell.low) / 2 for cell in cells if _has_interval(cell)]
    if widths:
        return max(0, 1 - math.floor(math.log10(median(widths))))
    sizes = [abs(cell.mean) for cell in cells if cell.mean]
    if all(size.is_integer() for size in sizes):
        return 0
    return max(0, 2 - math.floor(math.log10(max(sizes))))


def _has_interval(cell: StudyCell) -> bool:
    return math.isfinite(cell.low) and math.isfinite(cell.high) and cell.high > cell.low


def _numbers(cell: StudyCell, decimals: int) -> tuple[str, str]:
    mean, low, high = (_number(value, decimals) for value in (cell.mean, cell.low, cell.high))
    return mean, f"[{low}, {high}]" if _has_interval(cell) else ""


def _number(value: float, decimals: int) -> str:
    if not math.isfinite(value):
        return "-"
    if decimals > _DECIMALS:
        return f"{value:.2e}"
    return f"{round(value, decimals) + 0.0:.{decimals}f}"  # + 0.0: no minus before a zero
