"""The terminal renderer: answers, shaded texts, and tables that fit the width of the terminal."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from interp_plugin.report import numbers
from interp_plugin.report.model import Cell, Report, Row, Section, Table
from interp_plugin.report.numbers import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

_NAME, _HEADER = 30, 20  # largest width of a row's name and of a column's heading, if there is room
_WHOLE = 12  # a heading up to this width is not wrapped
_BEST = "*"  # marks the best value in files too, where bold text is lost


def show(report: Report, console: Console | None = None, details: bool = True) -> None:
    """Print a report: for each section the answer, the shaded text and the tables.

    Args:
        report: the report.
        console: where to print; None: a new console on stdout, as wide as the terminal.
        details: also print errors, how the numbers were computed, how to read them, settings and cost.
    """
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    dark = _is_dark(console)
    if report.title and any(section.heading for section in report.sections):
        console.print(Text(printable(report.title), style="dim"))
    for section in report.sections:
        if section.heading:
            console.print(Text(f"\n{printable(section.heading)}", style="bold"))
        _show_section(section, console, details, dark)
    if details:
        if report.guide:
            console.print(Text(" ".join(map(printable, report.guide)), style="dim"))
        settings = [
            f"{name} {report.settings[name]}"
            for name in ("rate", "seed")
            if report.settings.get(name) is not None
        ]
        if report.cost:
            console.print(Text(printable("; ".join(filter(None, (", ".join(settings), report.cost))))))


def tables(table: Table, width: int = 80, details: bool = True, dark: bool = False) -> list[RichTable]:
    """Split a table into tables no wider than ``width``, with as many columns side by side as fit.

    Example::

        >>> from interp_plugin.report.model import Column
        >>> table = Table("", "token", (Column("layer 1"),), {"": (Row("funny", (Cell("9.0", 9.0, "±0.1"),)),)})
        >>> [block] = tables(table)
        >>> block.row_count
        1
    """
    if table.is_empty:
        return []
    rows = table.rows
    names = [*(row.name for row in rows), *table.groups, table.corner]
    longest = max(map(_width, names))
    name = min(longest, max(12, min(_NAME, width // 3)))
    written = [_written([row.cells[c] for row in rows], details) for c in range(len(table.columns))]
    sizes = []
    for column, cells in zip(table.columns, written, strict=True):
        content = max(map(_width, cells))
        words = max((_width(word) for word in column.heading.split()), default=0)
        words = max(words, _width(column.heading) if _width(column.heading) <= _WHOLE else 0)
        content = min(content, 40) if column.words else content
        sizes.append(min(max(content, min(_HEADER, words)), max(8, width - name - 4)))
    return [_block(table, block, name, sizes, written, dark) for block in _blocks(sizes, width - name - 4)]


def _show_section(section: Section, console: Console, details: bool, dark: bool) -> None:
    from rich.text import Text

    if section.answer:
        console.print(Text(printable(section.answer), style="bold"))
    for line in section.lines:
        shaded = Text()
        row = section.tables[0].rows[-1] if section.tables and section.tables[0].rows else None
        for piece in line:
            cell = row.cells[piece.column] if row is not None and piece.column is not None else None
            shown = printable(piece.text.replace("\n", " "))
            shaded.append(shown, style=_style(cell, dark) if not piece.special else "dim")
        console.print(shaded)
    for table in section.tables:
        # tokens of a text are shown from top to bottom
        shown_table = table.turned() if section.lines else table
        if table.title and table.title != section.heading:
            console.print(Text(printable(table.title), style="dim"))
        if table.is_empty:
            console.print(Text("There is nothing to show."))
        for block in tables(shown_table, console.width, details or not section.lines, dark):
            console.print(block)
        for note in table.notes:
            console.print(Text(printable(note), style="dim"))
    if section.status:
        console.print(Text(printable(section.status), style="bold yellow" if section.warns else ""))
    for note in section.notes:
        console.print(Text(printable(note)))
    for table in section.details if details else ():
        for block in tables(table, console.width):
            console.print(block)


def _is_dark(console: Console) -> bool:
    """Return whether the background is dark, as in most terminals; then bright is high.

    Terminals with a light background set COLORFGBG (7 and 15 are light grey and white); notebooks have a light one.
    """
    return not console.is_jupyter and os.environ.get("COLORFGBG", "").split(";")[-1] not in ("7", "15")


def _block(
    table: Table,
    columns: Sequence[int],
    name: int,
    sizes: Sequence[int],
    written: Sequence[Sequence[str]],
    dark: bool,
) -> RichTable:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=True)
    # + 1 for the left padding
    drawn.add_column(Text(printable(table.corner)), width=name + 1, overflow="fold")
    for c in columns:
        column = table.columns[c]
        # a module's dotted name may be wider than any cell and is then wrapped; numbers never are
        side: Literal["left", "right"] = "left" if column.words else "right"
        drawn.add_column(Text(printable(column.heading)), justify=side, width=sizes[c], overflow="fold")
    number = 0
    several = len(table.groups) > 1 or any(group for group in table.groups if group != "special")
    for group, rows in table.groups.items():
        if several and group and rows:
            drawn.add_section()
            drawn.add_row(Text(printable(group), style="italic"))
        for row in rows:
            cells = []
            for c in columns:
                cell, shown = row.cells[c], written[c][number]
                words = table.columns[c].words
                # aligned here, because rich would strip the blanks in place of a missing mark
                cells.append(
                    Text(
                        shown if words else shown.rjust(sizes[c]),
                        _style(cell, dark),
                        justify="left",
                    )
                )
            drawn.add_row(_name(row, group), *cells)
            number += 1
        drawn.add_section()
    return drawn


def _name(row: Row, group: str) -> Text:
    from rich.text import Text

    # data is never markup: ``[bold]`` and ``[CLS]`` are tokens
    name = Text(printable(row.name), style="dim" if group == "special" else "")
    return name.append(f" ({printable(row.warning)})", style="yellow") if row.warning else name


def _written(cells: Sequence[Cell | None], details: bool) -> list[str]:
    """Format a column's cells, with numbers, errors and marks aligned."""
    parts = [("-", "", "") if cell is None else _parts(cell, details) for cell in cells]
    error, tail = (max((_width(part[place]) for part in parts), default=0) for place in (1, 2))
    return [
        f"{text}{f' {spread:>{error}}' if error else ''}{f' {mark:<{tail}}' if tail else ''}"
        for text, spread, mark in parts
    ]


def _parts(cell: Cell, details: bool) -> tuple[str, str, str]:
    mark = _BEST if cell.best else cell.mark if details else ""
    marks = " ".join(filter(None, [cell.note, mark, "?" if cell.uncertain else ""]))
    return printable(cell.text), cell.error if details else "", marks


def _style(cell: Cell | None, dark: bool) -> str:
    if cell is None or cell.shade is None:
        return "bold" if cell is not None and cell.best else ""
    back, front = ("#" + bytes(rgb).hex() for rgb in numbers.shade(cell.shade, dark))
    return f"{front} on {back}" + (" bold" if cell.best else "")


def _blocks(sizes: Sequence[int], room: int) -> Iterator[list[int]]:
    """Yield the numbers of the columns that fit side by side."""
    block: list[int] = []
    left = room
    for c, size in enumerate(sizes):
        if block and left < size + 2:
            yield block
            block, left = [], room
        block.append(c)
        left -= size + 2
    yield block


def _width(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(printable(text))
