"""A corpus study's tables, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from interp_plugin.rendering.corpus import (
    CHECKS,
    ERASED_LAYERS,
    check_cells,
    curves_of,
    is_erased,
    label,
    layer_cells,
    number,
)
from interp_plugin.rendering.labels import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

LAYERS = (
    "layer",
    "I a token",
    "I a sentence",
    "I a dimension",
    "H(X|s) a sentence",
    "E",
    "converged",
    "passes",
)


def show(
    heading: str,
    layers: Sequence[Mapping[str, Any]],
    growth: Sequence[Mapping[str, Any]],
    differences: Sequence[Mapping[str, Any]] | None = None,
    other: str = "",
    console: Console | None = None,
    checks: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Print what each layer keeps and, of two studies, the paired differences; of predictions how far off they are.

    Args:
        heading: of the first table.
        layers, growth: lines of ``CorpusResult.layers`` and ``.monotonicity``.
        differences: lines of ``CorpusResult.compare``; None: there is no other study.
        other: the name of the model that was taken from this one.
        console: default a new one on stdout.
        checks: lines of ``CorpusResult.check``.
    """
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    console.print(Text(printable(heading)))
    names, of = curves_of(layers)
    erased = is_erased(layers)
    console.print(_table(ERASED_LAYERS if erased else LAYERS, [layer_cells(name, of) for name in names]))
    if erased:
        console.print(
            "Lost: of the log-odds of the predicted class (nats) or of a layer (D) when the words are erased; below 0: "
            "the words speak against it.  95 % bootstrap intervals over the texts."
        )
    else:
        console.print(
            "I: information kept, H: lost, in nats, with 95 % bootstrap intervals over the texts; E: median."
        )
    if checks:
        console.print(f"Predicted from one forward a text; the solver checked {checks[0]['texts']}:")
        console.print(_table(CHECKS, [check_cells(line) for line in checks]))
    for line in filter(itemgetter("violation"), growth):
        growing = (
            f"{label(line['layer'])} seems to keep more than {label(line['after'])}, which it is computed from "
            f"(p {number(line['p_holm'], 2)}): compare these two with care."
        )
        console.print(Text(printable(growing)))
    if differences is not None:
        console.print(Text(printable(f"less {other}, paired by text, a {'word' if erased else 'token'}:")))
        unit = "word" if erased else "token"
        rows = [_difference(line) for line in differences if line["per"] == unit]
        console.print(_table(("layer", "", "difference", "95 % interval", "p (Holm)"), rows))


def _difference(line: Mapping[str, Any]) -> list[str]:
    return [
        printable(label(line["layer"])),
        {"kept": "kept", "loss": "lost", "erased": "lost when erased"}[line["quantity"]],
        f"{line['difference']:+.4g}",
        f"{line['low']:+.4g} to {line['high']:+.4g}",
        number(line["p_holm"], 2),
    ]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for index, name in enumerate(header):
        table.add_column(name, justify="right" if index else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
