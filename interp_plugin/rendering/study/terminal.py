"""Terminal: a study as tables no wider than the screen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from interp_plugin.rendering.labels import TIED, printable
from interp_plugin.rendering.study import words
from interp_plugin.rendering.study.values import StudyCell, StudyTable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_BEST = "*"  # what is bold on a screen is not so in a file
_NAME = 30  # columns for the longest name, where there is room for it
_HEADER = 18


def print_tables(tables: Sequence[StudyTable], console: Console | None = None) -> None:
    """Print every question's table with its notes, as many metrics side by side as fit, then the legend.

    Args:
        tables: one for each question.
        console: default a new one on stdout, as wide as the terminal.
    """
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    for table in tables:
        console.print(Text(f"\n{printable(table.title)}", style="bold"))
        if words.empty(table):
            console.print("No method could be judged.")
        for block in study_tables(table, console.width):
            console.print(block)
        for note in table.notes:
            console.print(Text(printable(note), style="dim"))
    legend = " ".join(words.legend(f"{_BEST} and bold", "± half the width of its 95 % bootstrap interval"))
    console.print(Text(f"\n{legend}", style="dim"))


def print_list(
    methods: Sequence[Mapping[str, Any]], metrics: Sequence[Mapping[str, Any]], console: Console | None = None
) -> None:
    """Print what there is to choose from.

    Args:
        methods: name, explains ("class", "state", "both"), signed and source of each.
        metrics: name, judges, higher_is_better and source of each.
        console: default a new one on stdout.
    """
    from rich.console import Console

    console = console or Console()
    lists = (
        (
            "method",
            "explains",
            [(m["name"], m["explains"], _group(m), m["source"]) for m in methods],
            "scores",
        ),
        ("metric", "judges", [(m["name"], m["judges"], _better(m), m["source"]) for m in metrics], "better"),
    )
    for kind, verb, rows, fact in lists:
        console.print(_list((kind, verb, fact, "source"), rows))


def _list(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False)
    for heading in headings:
        drawn.add_column(heading, overflow="fold", no_wrap=heading not in ("source", headings[0]))
    for row in rows:
        drawn.add_row(*(Text(printable(part)) for part in row))
    return drawn


def _group(method: Mapping[str, Any]) -> str:
    return "signed" if method["signed"] else "unsigned"


def _better(metric: Mapping[str, Any]) -> str:
    return words.arrow(metric["higher_is_better"])


def study_tables(table: StudyTable, width: int = 80) -> list[Table]:
    """Tables of methods x metrics, no wider than ``width``, the groups one below the other.

    Example::

        >>> from interp_plugin.rendering.study import StudyColumn
        >>> column = StudyColumn("comprehensiveness", True, "DeYoung et al. 2020")
        >>> cells = (StudyCell(0.463, 0.431, 0.495, 200, True, None),)
        >>> [block] = study_tables(StudyTable("class", (column,), {"unsigned": {"occlusion": cells}}, ()))
        >>> block.row_count
        2
    """
    if words.empty(table):
        return []
    names = [printable(method) for rows in table.groups.values() for method in rows]
    longest = max(_cell_len(name) for name in [*names, *map(words.group_name, table.groups)])
    name = min(longest, max(12, min(_NAME, width // 3 + 4)))
    shown = {group: _written(table, group) for group, rows in table.groups.items() if rows}
    sizes = [
        max(_wide(words.heading(column)), *(len(cells[c]) for rows in shown.values() for cells in rows))
        for c, column in enumerate(table.columns)
    ]
    return [_block(table, shown, block, [name, *sizes]) for block in _blocks(sizes, width - name - 4)]


def _block(
    table: StudyTable, shown: dict[str, list[list[str]]], columns: Sequence[int], widths: Sequence[int]
) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=True)
    drawn.add_column("method", max_width=widths[0], overflow="fold")
    for c in columns:
        header = Text(printable(words.heading(table.columns[c])))
        drawn.add_column(header, justify="right", max_width=widths[1 + c], overflow="fold")
    for group, rows in shown.items():
        drawn.add_row(Text(printable(words.group_name(group)), style="italic"))
        for (method, cells), written in zip(table.groups[group].items(), rows, strict=True):
            values = (
                Text(written[c], style="bold" if (cell := cells[c]) is not None and cell.best else "")
                for c in columns
            )
            drawn.add_row(Text(printable(method)), *values)
        drawn.add_section()
    return drawn


def _blocks(sizes: Sequence[int], room: int) -> Iterator[list[int]]:
    """Numbers of the columns that fit side by side."""
    block: list[int] = []
    left = room
    for c, size in enumerate(sizes):
        if block and left < size + 2:
            yield block
            block, left = [], room
        block.append(c)
        left -= size + 2
    yield block


def _written(table: StudyTable, group: str) -> list[list[str]]:
    """One group's cells, (methods, C)."""
    rows = list(table.groups[group].values())
    columns = [
        [
            "-" if cell is None or pair is None else _cell(table, cell, pair[0])
            for cell, pair in zip(column, words.rounded(column), strict=True)
        ]
        for column in zip(*rows, strict=True)
    ]
    return [list(cells) for cells in zip(*columns, strict=True)]


def _cell(table: StudyTable, cell: StudyCell, mean: str) -> str:
    mark = _BEST if cell.best else TIED if words.tied(cell) else ""
    return " ".join(filter(None, [mean, words.half(cell, mean), words.fewer(table, cell), mark]))


def _wide(header: str) -> int:
    """Columns that a header needs once it is folded between its words."""
    return min(_HEADER, max(_cell_len(printable(word)) for word in header.split()))


def _cell_len(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)
