"""GitHub: a study as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from interp_plugin.rendering.labels import TIED, printable
from interp_plugin.rendering.study import words
from interp_plugin.rendering.study.values import StudyCell, StudyTable


def markdown(tables: Sequence[StudyTable], title: str | None = None, level: int = 2) -> str:
    """Tables as GitHub reads them: one for each question and group, with its notes; then the metrics' sources.

    Args:
        tables: one for each question.
        title: a heading above all; None: none.
        level: of the questions' headings; the title's is one less.

    Example::

        >>> from interp_plugin.rendering.study import StudyColumn
        >>> cells = (StudyCell(0.463, 0.431, 0.495, 200, True, None),)
        >>> column = StudyColumn("comprehensiveness", True, "DeYoung et al. 2020")
        >>> table = StudyTable("class", (column,), {"unsigned": {"occlusion": cells}}, ("200 texts.",))
        >>> print(markdown([table]).split("## class")[1].split("- 200")[0].strip())
        | unsigned methods | comprehensiveness ↑ |
        |:--|--:|
        | occlusion | **0.463** [0.431, 0.495] |
    """
    heading = "#" * level
    parts = [] if title is None else [f"{'#' * max(1, level - 1)} {escaped(title)}"]
    parts.append(" ".join(map(escaped, words.legend())))
    for table in tables:
        parts.append(f"{heading} {escaped(table.title)}")
        parts += ["\n".join(_group(table, group, rows)) for group, rows in table.groups.items() if rows] or [
            "No method could be judged."
        ]
        if table.notes:
            parts.append("\n".join(f"- {escaped(note)}" for note in table.notes))
    sources = [
        f"- {escaped(words.heading(c))}: {escaped(c.source)}" for c in words.metrics(tables) if c.source
    ]
    if sources:
        parts += [f"{heading} Metrics", "\n".join(sources)]
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """Data is never markup: a method may be called ``a | b`` or ``<script>``.

    Example::

        >>> print(escaped("[MASK] | <b>"))
        \\[MASK\\] \\| \\<b\\>
    """
    return re.sub(r"([\\`*_{}\[\]<>#|~$&@!])", r"\\\1", printable(text))


def _group(table: StudyTable, group: str, rows: Mapping[str, words.Cells]) -> Iterator[str]:
    yield _row([words.group_name(group), *map(words.heading, table.columns)])
    yield "|:--|" + "--:|" * len(table.columns)
    columns = [words.rounded(column) for column in zip(*rows.values(), strict=True)]
    for number, (method, cells) in enumerate(rows.items()):
        shown = [column[number] for column in columns]
        yield f"| {escaped(method)} |" + "".join(
            f" {_cell(table, *pair)} |" for pair in zip(cells, shown, strict=True)
        )


def _row(names: Sequence[str]) -> str:
    return "| " + " | ".join(map(escaped, names)) + " |"


def _cell(table: StudyTable, cell: StudyCell | None, shown: tuple[str, str] | None) -> str:
    if cell is None or shown is None:
        return "-"
    mean, interval = shown
    marks = [TIED if words.tied(cell) else "", words.fewer(table, cell)]
    return " ".join(filter(None, [f"**{mean}**" if cell.best else mean, interval, *marks]))
