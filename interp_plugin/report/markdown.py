"""The Markdown renderer: a report in GitHub-flavoured Markdown."""

from __future__ import annotations

import re

from interp_plugin.report.model import Cell, Report, Row, Table
from interp_plugin.report.numbers import printable


def markdown(report: Report, title: bool = False, level: int = 2) -> str:
    """Render answers and tables (one for each group) with their notes, and then the columns' sources.

    Args:
        report: the report.
        title: begin with its title.
        level: level of the sections' headings; the title's level is one less.

    Example::

        >>> from interp_plugin.report.model import Column, Section
        >>> cell = Cell("0.463", 0.463, "[0.431, 0.495]", best=True)
        >>> groups = {"unsigned methods": (Row("occlusion", (cell,)),)}
        >>> table = Table("class", "method", (Column("comprehensiveness", True),), groups)
        >>> print(markdown(Report("", (Section("class", tables=(table,)),))).strip())
        ## class
        <BLANKLINE>
        | unsigned methods | comprehensiveness ↑ |
        | :-- | --: |
        | occlusion | **0.463** [0.431, 0.495] |
    """
    heading = "#" * level
    parts = [f"{'#' * max(1, level - 1)} {escaped(report.title)}"] if title else []
    if report.guide:
        parts.append(" ".join(map(escaped, report.guide)))
    for section in report.sections:
        parts += [f"{heading} {escaped(section.heading)}"] if section.heading else []
        parts += [escaped(words) for words in (section.answer, section.status) if words]
        for table in section.tables:
            blocks = [_table(table, group, rows) for group, rows in table.groups.items() if rows]
            parts += blocks or ["There is nothing to show."]
            if table.notes:
                parts.append("\n".join(f"- {escaped(note)}" for note in table.notes))
        parts += map(escaped, section.notes)
    if report.sources:
        lines = [f"- {escaped(name)}: {escaped(source)}" for name, source in report.sources.items()]
        parts += [f"{heading} Metrics", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """Escape data, so that it is never markup: a method may be called ``a | b`` or ``<script>``.

    Example::

        >>> print(escaped("[MASK] | <b>"))
        \\[MASK\\] \\| \\<b\\>
    """
    return re.sub(r"([\\`*_{}\[\]<>#|~$&@!])", r"\\\1", printable(text))


def _table(table: Table, group: str, rows: tuple[Row, ...]) -> str:
    names = [group or table.corner, *(column.heading for column in table.columns)]
    lines = [[escaped(row.name), *map(_cell, row.cells)] for row in rows]
    marks = [":--", *(":--" if column.words else "--:" for column in table.columns)]
    return "\n".join(f"| {' | '.join(line)} |" for line in ([*map(escaped, names)], marks, *lines))


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    text = escaped(cell.text)
    # the brackets of an interval are not a link, because no parenthesis follows them
    return " ".join(filter(None, [f"**{text}**" if cell.best else text, cell.spread, cell.mark, cell.note]))
