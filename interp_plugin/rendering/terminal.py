"""Tables of information kept, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from interp_plugin.rendering import labels, shades
from interp_plugin.rendering.labels import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.style import Style
    from rich.table import Table
    from rich.text import Text

_TOKEN_WIDTH = 20
_HEADER_WIDTH = 20


def show(explanation: Mapping[str, Any], console: Console | None = None) -> None:
    """Print an explanation, given as plain values: per text the prediction and the table, then the cost.

    Args:
        explanation: what ``Explanation.to_dict()`` gives: texts of T units and R rows; kept and
            standard_error (R, T) in nats; None stands for a number that is not known or not finite.
        console: default a new one on stdout, as wide as the terminal.
    """
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    texts = explanation["texts"]
    for number, text in enumerate(texts, start=1):
        if len(texts) > 1:
            console.print(_heading(text, f"{number} of {len(texts)}"))
        facts = labels.prediction(text)
        if facts:
            console.print(_facts(facts))
        for table in kept_tables(
            text["units"],
            text["rows"],
            unit=labels.unit_name(explanation),
            width=console.width,
            rates=[labels.rate(row, explanation) for row in text["rows"]],
        ):
            console.print(table)
    console.print(Text(labels.legend(explanation), style="dim"))
    yardstick = labels.yardstick(explanation)
    if yardstick is not None:
        console.print(Text(yardstick, style="dim"))
    settings = explanation["settings"]
    rate = "" if labels.is_erased(explanation) else f"rate {settings['rate']:g}, "
    console.print(Text(f"{rate}seed {settings['seed']}; {labels.cost(explanation)}"))


def kept_tables(
    units: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    unit: str = "token",
    width: int = 80,
    rates: Sequence[str | None] | None = None,
) -> list[Table]:
    """Tables of T units x R rows, no wider than ``width``: as many rows (as columns) side by side as fit.

    Args:
        units: their T names.
        rows: R of them, with layer, position, kept (T,) and standard_error (T,) in nats, regime_index,
            converged and perhaps tied (T,).
        unit: what a unit is, the heading of the first column.
        width: columns of the terminal.
        rates: of each row, where it is smaller than the one asked for, else None.

    Example::

        >>> row = {"layer": 1, "position": None, "kept": [2.0, 1.0], "standard_error": [0.1, 0.1],
        ...        "regime_index": 1.02, "converged": True}
        >>> [table] = kept_tables(["a", "b"], [row])
        >>> table.row_count
        2
    """
    from rich.text import Text

    cells = [_cells(row) for row in rows]  # (R, T)
    styles = [_styles(row) for row in rows]
    headers = [labels.row_label(row) for row in rows]
    name = max([len("converged"), *(min(_cell_len(printable(u)), _TOKEN_WIDTH) for u in units)])
    header = max([len("layer 00"), *(min(_cell_len(h), _HEADER_WIDTH) for h in headers)])
    cell = max([header, *(len(text) for row in cells for text in row)])
    per_table = max(1, (width - name - 3) // (cell + 2))  # two columns between layers, one at each edge

    tables = []
    for start in range(0, len(rows), per_table):
        block = range(start, min(start + per_table, len(rows)))
        footers = [_footer(rows[i], rates[i] if rates else None) for i in block]
        facts = "damage" if rows and "erased" in rows[0] else "E\nconverged"
        table = _empty_table(unit, [headers[i] for i in block], footers, cell, facts)
        for t, token in enumerate(units):
            # aligned here, because rich would strip the space that stands for no mark
            values = (Text(cells[i][t].rjust(cell), styles[i][t], justify="left") for i in block)
            table.add_row(_text(token), *values)
        tables.append(table)
    return tables


def _heading(text: Mapping[str, Any], number: str) -> Text:
    from rich.text import Text

    words = text["text"] if text["pair"] is None else f"{text['text']} | {text['pair']}"
    return Text.assemble((f"\ntext {number}: ", "bold"), printable(words))


def _facts(facts: Sequence[tuple[str, str]]) -> Text:
    """One line, as in: positive with probability 0.987; target negative."""
    from rich.text import Text

    joint = {"predicted": "", "probability": " with probability ", "target": "; target "}
    line = Text()
    for name, value in facts:
        line.append(joint[name] if line else joint[name].lstrip(" ;"))
        line.append(value, style="bold" if name == "predicted" else "")
    return line


def _empty_table(unit: str, headers: Sequence[str], footers: Sequence[str], width: int, facts: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_footer=True, padding=(0, 1), collapse_padding=True, pad_edge=True)
    table.add_column(_text(unit), footer=facts, max_width=_TOKEN_WIDTH, overflow="fold")
    for header, footer in zip(headers, footers, strict=True):
        # a module's dotted name may be wider than any cell: it folds, the cells never need to
        table.add_column(_text(header), footer=footer, justify="right", max_width=width, overflow="fold")
    return table


def _footer(row: Mapping[str, Any], rate: str | None) -> str:
    if "erased" in row:
        return labels.number(row["damage"], 2)
    facts = f"{labels.number(row['regime_index'], 2)}\n{'yes' if row['converged'] else 'NO'}"
    return facts if rate is None else f"{facts}\nrate {rate}"


def _cells(row: Mapping[str, Any]) -> list[str]:
    """One row's cells, errors and marks aligned: "123.4 ±0.3 ≈"."""
    pairs = labels.rounded(labels.values(row), row["standard_error"])
    pad = max((len(error) for _, error in pairs), default=0)
    tied = labels.tied(row)
    marks = [f" {labels.TIED if it else ' '}" if any(tied) else "" for it in tied]
    return [f"{value} {error:>{pad}}{mark}" for (value, error), mark in zip(pairs, marks, strict=True)]


def _styles(row: Mapping[str, Any]) -> list[Style]:
    from rich.color import Color
    from rich.style import Style

    pairs = map(shades.shade, labels.shares(row))
    return [Style(color=Color.from_rgb(*front), bgcolor=Color.from_rgb(*back)) for back, front in pairs]


def _text(data: str) -> Text:
    """Data is never markup: ``[bold]`` and ``[CLS]`` are tokens."""
    from rich.text import Text

    return Text(printable(data))


def _cell_len(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)
