"""Figures and pages of a study as plain values for :mod:`interp_plugin.rendering.corpus`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from interp_plugin.corpus.words import WORD
from interp_plugin.rendering.corpus import Classes, Curve, Page, Regime

if TYPE_CHECKING:
    import pandas as pd

    from interp_plugin.corpus.result import CorpusResult

Per = Literal["sentence", "token", "token of a sentence", "dimension", "word", "word of a sentence"]
Quantity = Literal["kept", "loss", "erased"]
ERASED = "lost when erased; nats for the output, D for layers"

SHOWN_FAILURES = 100  # on a page
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def curve(layers: pd.DataFrame, name: str, per: Per, quantity: Quantity) -> Curve:
    """A line of the plot of layers.

    Args:
        layers: as :meth:`CorpusResult.layers` gives it.
        name: of the line.
        per, quantity: which of the means.

    Raises:
        ValueError: there are no such means.
    """
    some = layers[(layers["per"] == per) & (layers["quantity"] == quantity)]
    if not len(some):
        raise ValueError(
            f"per is {per!r} and quantity {quantity!r}: choose from {get_args(Per)} and {get_args(Quantity)}"
        )
    return Curve(name, list(some["layer"]), *(list(some[c]) for c in ("mean", "low", "high")))


def axis_label(erased: bool, per: Per | None, quantity: Quantity | None) -> str:
    """What a curve shows, with its unit."""
    if erased:
        return f"{ERASED} (per {per or 'word'})"
    return f"{'H(X|S)' if quantity == 'loss' else 'information kept'}, nats per {per or 'token'}"


def classes(table: pd.DataFrame) -> Classes:
    """The map of word classes by layer, from the table of :meth:`CorpusResult.word_classes`."""
    value, counted = ("erased", "words") if "erased" in table else ("kept", "tokens")
    names = list(dict.fromkeys(table["class"]))
    values, errors = (table[c].to_numpy().reshape(-1, len(names)).tolist() for c in (value, "standard_error"))
    counts = [int(n) for n in table[counted][: len(names)]]
    what = f"{ERASED} (per word)" if value == "erased" else "kept, nats per token"
    return Classes(list(dict.fromkeys(table["layer"])), names, counts, values, errors, what)


def regime(result: CorpusResult) -> Regime:
    """Quantiles of E over the sentences, by layer; where the state does not move at all E does not count."""
    facts = result.sentences.facts
    known = np.where(facts["distortion"] > 0, facts["regime_index"], np.nan)
    finite = [column[np.isfinite(column)] for column in known.T]
    quantiles = [np.quantile(column if len(column) else [np.nan], _QUANTILES).tolist() for column in finite]
    return Regime(list(result.layer_labels), quantiles)


def checks(result: CorpusResult) -> list[dict[str, Any]]:
    """Agreement of the predictions with the solver; nothing where it found all the numbers."""
    found: list[dict[str, Any]] = result.check().to_dict("records") if result.is_amortised else []
    return found


def page(result: CorpusResult) -> Page:
    """All of it on one page."""
    failed = result.failures()
    words = result.word_classes()
    found = set(words["class"])
    # knowledge points are of information kept, and need a foreground and a background
    mixed = WORD in found and len(found) > 1 and not result.is_erased
    return Page(
        model=str(result.settings["model"]),
        texts=result.texts,
        failed=len(failed),
        seconds=result.seconds,
        layers=result.layers().to_dict("records"),
        growth=[] if result.is_erased else result.monotonicity().to_dict("records"),
        classes=classes(words),
        knowledge=result.knowledge().to_dict("records") if mixed else [],
        regime=None if result.is_amortised or result.is_erased else regime(result),
        checks=checks(result),
        failures=[(f.row, f.reason, f.beginning) for f in failed[:SHOWN_FAILURES]],
        settings=dict(result.settings),
    )
