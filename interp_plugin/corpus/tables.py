"""Builds the report of a corpus study: answers, tables and charts for the page, the terminal and figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from interp_plugin.corpus.words import WORD
from interp_plugin.report import numbers
from interp_plugin.report.model import Boxes, Cell, Column, Curve, Curves, Report, Row, Section, Table
from interp_plugin.report.numbers import number, rounded, significant

if TYPE_CHECKING:
    import pandas as pd

    from interp_plugin.corpus.result import CorpusResult

Per = Literal["sentence", "token", "token of a sentence", "dimension", "word", "word of a sentence"]
Quantity = Literal["kept", "loss", "erased"]
ERASED = "lost when erased; output: nats, layers: D"

INTERVAL = "95 % of bootstrap means"
# columns of the table of layers: quantity, per and heading; the first is also drawn
KEPT_MEANS: tuple[tuple[Quantity, Per, str], ...] = (
    ("kept", "token", "kept per token"),
    ("kept", "sentence", "per text"),
    ("kept", "dimension", "per dimension"),
    ("loss", "sentence", "H(X|S) per text"),
)
ERASED_MEANS: tuple[tuple[Quantity, Per, str], ...] = (
    ("erased", "word", "lost per word"),
    ("erased", "sentence", "per text"),
)

SHOWN_FAILURES = 100  # maximum number on a page
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def curve(layers: pd.DataFrame, name: str, per: Per, quantity: Quantity) -> Curve:
    """Return a curve of means by layer.

    Args:
        layers: result of :meth:`CorpusResult.layers`.
        name: of the curve.
        per, quantity: which means.

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
    """Return the quantity of a curve, with its unit."""
    if erased:
        return f"{ERASED} (per {per or 'word'})"
    return f"{'H(X|S)' if quantity == 'loss' else 'information kept'}, nats per {per or 'token'}"


def curves(
    result: CorpusResult, found: Sequence[Curve], per: Per | None, quantity: Quantity | None
) -> Curves:
    """Return a chart of curves on common axes."""
    unit = axis_label(result.is_erased, per, quantity)
    return Curves(f"{unit}, by layer", tuple(found), unit, INTERVAL)


def classes(table: pd.DataFrame) -> Table:
    """Return the heat map of word classes by layer, from the table of :meth:`CorpusResult.word_classes`."""
    value, counted = ("erased", "words") if "erased" in table else ("kept", "tokens")
    names = list(dict.fromkeys(table["class"]))
    values, errors = (table[c].to_numpy().reshape(-1, len(names)).tolist() for c in (value, "standard_error"))
    counts = [int(n) for n in table[counted][: len(names)]]
    flat = [each for layer in values for each in layer]
    end = numbers.highest(flat)
    digits = numbers.decimals(flat, [each for layer in errors for each in layer])
    rows = []
    for c, (name, count) in enumerate(zip(names, counts, strict=True)):
        column, spread = [layer[c] for layer in values], [layer[c] for layer in errors]
        shares, uncertain = numbers.shares(column, end), numbers.uncertain(spread, end)
        cells = []
        for v, e, share, unsure in zip(column, spread, shares, uncertain, strict=True):
            error = f"±{number(e, digits)}"
            cells.append(Cell(number(v, digits), v, error, error, share, unsure, low=v - e, high=v + e))
        rows.append(Row(f"{name} ({count})", tuple(cells)))
    what = f"{ERASED} (per word)" if value == "erased" else "kept, nats per token"
    layers = tuple(Column(str(layer)) for layer in dict.fromkeys(table["layer"]))
    return Table(
        f"{what}, ± standard error, by layer", f"class ({counted})", layers, {"": tuple(rows)}, scale=what
    )


def regime(result: CorpusResult) -> Boxes:
    """Return quantiles of E over the sentences whose state moved, by layer."""
    facts = result.sentences.facts
    known = np.where(facts["distortion"] > 0, facts["regime_index"], np.nan)
    finite = [column[np.isfinite(column)] for column in known.T]
    quantiles = [np.quantile(column if len(column) else [np.nan], _QUANTILES).tolist() for column in finite]
    title = "Regime index E over the sentences, by layer"
    return Boxes(title, list(result.layer_labels), quantiles, "regime index E over sentences", 1.0)


def report(result: CorpusResult, other: CorpusResult | None = None, whole: bool = True) -> Report:
    """Return the report of a study: layers, checks, growth and, for two studies, their differences.

    Args:
        result: the study.
        other: a study of the same texts to compare with.
        whole: add the sections of a page: charts, word classes, knowledge points, failures.
    """
    found = _layers(result)
    settings = {name: value for name, value in result.settings.items() if name != "held_out"}
    sections = [found]
    if result.is_amortised:
        sections.append(_checks(result.check().to_dict("records")))
    if not result.is_erased:
        growth = result.monotonicity().to_dict("records")
        grown = [line for line in growth if line["violation"]]
        if growth and (whole or grown):
            sections.append(_growth(growth, grown, whole))
    if other is not None:
        sections.append(_differences(result, other))
    if whole:
        sections += _words(result)
        if not result.is_amortised and not result.is_erased:
            sections.append(Section("Regime", charts=(regime(result),)))
        failed = result.failures()
        if failed:
            sections.append(_failures(failed))
    subject = "what is lost with erased words" if result.is_erased else "information kept"
    failed_too = f", {len(result.failures())} left out" if result.failures() else ""
    return Report(
        f"{result.settings['model']}: {subject}, layer by layer, of {result.texts} texts{failed_too}",
        tuple(sections),
        _guide(result),
        cost=f"scoring took {numbers.duration(result.seconds)}",
        settings=settings,
    )


def _layers(result: CorpusResult) -> Section:
    """Return the section with the answer, the curve and the means of each layer."""
    means = result.layers()
    layers = list(result.layer_labels)
    of = {(line["quantity"], line["per"], line["layer"]): line for line in means.to_dict("records")}

    def at_layers(quantity: str, per: str) -> list[dict[str, Any]]:
        return [of[quantity, per, layer] for layer in layers]

    shown = ERASED_MEANS if result.is_erased else KEPT_MEANS
    columns = {heading: _means(at_layers(quantity, per)) for quantity, per, heading in shown}
    if result.is_erased:
        columns["damage"] = _means(at_layers("damage", "sentence"))
        columns["unit"] = [Cell(result.units[layer]) for layer in layers]
    else:
        medians = [line["mean"] for line in at_layers("regime_index", "median sentence")]
        columns["E (median)"] = [Cell(significant(median), median) for median in medians]
        if result.is_amortised:
            columns["predicted"] = [Cell("100 %", 1.0)] * len(layers)
        else:
            columns["converged"] = [_share(line["converged"]) for line in at_layers("converged", "sentence")]
    forward, backward = (
        [line["mean"] for line in at_layers(n, "sentence")] for n in ("n_forward", "n_backward")
    )
    columns["passes"] = [Cell(f"{f:.0f} + {b:.0f}", f + b) for f, b in zip(forward, backward, strict=True)]
    rows = tuple(Row(str(layer), cells) for layer, cells in zip(layers, zip(*columns.values()), strict=True))
    table = Table("Means over the corpus", "layer", tuple(map(Column, columns)), {"": rows})
    quantity, per, _ = shown[0]
    line = curve(means, str(result.settings["model"]), per, quantity)
    chart = curves(result, [line], None, None)
    return Section(
        "Layers", _answer(result, line), tables=(table,), charts=(chart,), status=_status(result, of, layers)
    )


def _answer(result: CorpusResult, line: Curve) -> str:
    verb, unit = ("loses", "per erased word") if result.is_erased else ("keeps", "nats per token")
    written = [
        text
        for text, _ in rounded(line.mean, [(b - a) / 2 for a, b in zip(line.low, line.high, strict=True)])
    ]
    known = [place for place, mean in enumerate(line.mean) if math.isfinite(mean)]
    if not known:
        return "No layer has a mean."
    most, least = (
        max(known, key=lambda place: line.mean[place]),
        min(known, key=lambda place: line.mean[place]),
    )
    said = f"Over {result.texts} texts, {_named(line.places[most])} {verb} most: {written[most]} {unit}"
    return said + (f"; {_named(line.places[least])} least: {written[least]}." if most != least else ".")


def _status(result: CorpusResult, of: Mapping[Any, Mapping[str, Any]], layers: Sequence[Any]) -> str:
    if result.is_amortised:
        return "A trained head predicted these numbers; the table below compares it with the solver."
    if result.is_erased:
        return ""
    shares = {layer: of["converged", "sentence", layer]["converged"] for layer in layers}
    few = {layer: share for layer, share in shares.items() if share < 0.9}
    if not few:
        return "Sure: at least 90 % of the texts converged at each layer."
    names = ", ".join(f"{_named(layer)} ({100 * share:.0f} % of the texts)" for layer, share in few.items())
    saturated = [layer for layer in few if of["saturated", "sentence", layer]["mean"] > (1 - few[layer]) / 2]
    ways = []
    if saturated:
        where = f" of {', '.join(map(_named, saturated))}" if len(saturated) < len(few) else ""
        ways.append(f"The states{where} saturate: use a lower --rate (in Python rate=).")
    if len(saturated) < len(few):
        others = "For the others, more" if saturated else "More"
        ways.append(
            f"{others} passes (in Python solver=Solver(max_passes=...)) reduce the errors of single texts; a larger "
            "--tolerance accepts larger errors."
        )
    return f"Not everywhere converged: {names}. {' '.join(ways)}"


def _checks(lines: Sequence[Mapping[str, Any]]) -> Section:
    """Return the section that compares predictions with the solver."""
    columns = (
        "error of log sigma", "when trained", "ranks (Spearman)", "within 2 s.e.", "shift, nats per token", "drift",
    )  # fmt: skip
    rows = []
    for line in lines:
        drift = f"yes (p {significant(line['p_holm'], 2)})" if line["drift"] else "no"
        cells = (
            *(Cell(significant(line[name]), line[name]) for name in ("error", "held_out", "spearman")),
            _share(line["covered"]),
            _with_error(line, "shift"),
            Cell(drift),
        )
        rows.append(Row(str(line["layer"]), cells))
    note = (
        f"A head predicted the numbers from one forward pass per text. The solver checked {lines[0]['texts']} texts: "
        "the error between the two, beside the head's error on texts held out when it was trained. Shift: kept, "
        "predicted minus solved."
    )
    table = Table(
        "Check by the solver", "layer", tuple(map(Column, columns)), {"": tuple(rows)}, notes=(note,)
    )
    return Section("Predicted against solved", tables=(table,))


def _growth(lines: Sequence[Mapping[str, Any]], grown: Sequence[Mapping[str, Any]], whole: bool) -> Section:
    """Return the section on layers that keep more than the layer they are computed from."""
    said = [
        f"{_named(line['layer'])} seems to keep more than {_named(line['after'])}, from which it is computed (p "
        f"{significant(line['p_holm'], 2)}): compare these two with care."
        for line in grown
    ]
    answer = " ".join(words[:1].upper() + words[1:] for words in said) or "No step grows by more than chance."
    if not whole:
        return Section(status=answer, warns=True)
    rows = []
    for line in lines:
        (cell,) = _means([{**line, "mean": line["growth"]}])
        share = _share(line["share"])
        verdict = Cell("grows" if line["violation"] else "no growth beyond chance")
        cells = (cell, share, Cell(significant(line["p_holm"], 2), line["p_holm"]), verdict)
        rows.append(Row(f"{line['after']} to {line['layer']}", cells, "grows" if line["violation"] else ""))
    columns = ("growth, nats per text", "texts that grow", "p, corrected (Holm)", "verdict")
    table = Table(
        "Growth of the nats kept, paired by text", "step", tuple(map(Column, columns)), {"": tuple(rows)}
    )
    note = "No layer can have more information than the layer it is computed from; if it seems to, compare with care."
    return Section(
        "Does it fall with depth?", status=answer, warns=bool(grown), tables=(table,), notes=(note,)
    )


def _differences(result: CorpusResult, other: CorpusResult) -> Section:
    """Return the section with the differences from another study of the same texts."""
    unit = "word" if result.is_erased else "token"
    words = {"kept": "kept", "loss": "lost", "erased": "lost when erased"}
    rows = []
    for line in filter(lambda line: line["per"] == unit, result.compare(other).to_dict("records")):
        (cell,) = _means([{**line, "mean": line["difference"]}])
        p = Cell(significant(line["p_holm"], 2), line["p_holm"])
        rows.append(Row(str(line["layer"]), (Cell(words[line["quantity"]]), cell, p)))
    columns = (Column("", words=True), Column("difference"), Column("p (Holm)"))
    title = f"difference from {other.settings['model']}, paired by text, per {unit}"
    return Section("Compared", tables=(Table(title, "layer", columns, {"": tuple(rows)}),))


def _words(result: CorpusResult) -> list[Section]:
    """Return the sections on word classes and, if there is a foreground, knowledge points."""
    words = result.word_classes()
    sections = [Section("Word classes", tables=(classes(words),))]
    found = set(words["class"])
    # knowledge points need information kept, a foreground and a background
    if WORD not in found or len(found) == 1 or result.is_erased:
        return sections
    lines = result.knowledge().to_dict("records")
    names = (
        "concentration",
        "concentration_ratio",
        "foreground_points",
        "background_points",
        "foreground_share",
    )
    rows = []
    for line in lines:
        background = Cell(significant(line["background"], 4), line["background"])
        ratio = Cell(significant(line["concentration_ratio"]), line["concentration_ratio"])
        cells = {name: ratio if name == "concentration_ratio" else _with_error(line, name) for name in names}
        rows.append(Row(str(line["layer"]), (background, *cells.values())))
    columns = (
        "background, nats per token", "concentration: foreground minus background", "as a ratio",
        "points per sentence, foreground", "points per sentence, background", "quality",
    )  # fmt: skip
    threshold = significant(lines[0]["threshold"]) if lines else numbers.UNKNOWN
    note = (
        f"Foreground: words that are neither stop words nor punctuation. A knowledge point is a token that is kept by "
        f"more than {threshold} nats above the mean of the background; quality is the share of points in the "
        "foreground, over sentences with any."
    )
    title = "Concentration and knowledge points, ± standard error"
    table = Table(title, "layer", tuple(map(Column, columns)), {"": tuple(rows)}, notes=(note,))
    return [*sections, Section("Foreground and background", tables=(table,))]


def _failures(failed: Sequence[Any]) -> Section:
    """Return the section with the rows of the corpus without results."""
    shown = failed[:SHOWN_FAILURES]
    more = len(failed) - len(shown)
    title = f"The first {len(shown)}; {more} more are in the study's folder" if more else "All of them"
    columns = (Column("reason", words=True), Column("text begins with", words=True))
    rows = tuple(Row(str(each.row), (Cell(each.reason), Cell(each.beginning))) for each in shown)
    return Section("Texts without results", tables=(Table(title, "row", columns, {"": rows}),))


def _guide(result: CorpusResult) -> tuple[str, ...]:
    if result.is_erased:
        return (
            f"Words are erased for {result.settings['erased']}. Lost: of the log-odds of the predicted class (nats), "
            "or of a layer (D): high = the answer needs them, below 0 = they are evidence against it.",
            "In brackets the 95 % bootstrap interval over the texts (± half of it).",
        )
    said = (
        "Information kept, in nats: high = the layer still holds the input, 0 = it does not need it. H(X|S): "
        "information lost. In brackets the 95 % bootstrap interval over the texts (± half of it).",
        "E: regime index (median), 1 = small-noise regime. Converged: share of the texts whose standard error met the "
        "tolerance; the others are in the means too. Passes: forward + backward sample passes of a text.",
    )
    if result.settings.get("state_std"):
        return said
    rough = "Made without calibration (state_std): each text is its own unit, so layers compare only roughly."
    return (*said, rough)


def _means(lines: Sequence[Mapping[str, Any]]) -> list[Cell]:
    """Return cells of means with their 95 % intervals, with common decimals."""
    halves = [(line["high"] - line["low"]) / 2 for line in lines]
    cells = []
    for line, half, (text, digits) in zip(
        lines, halves, rounded([line["mean"] for line in lines], halves), strict=True
    ):
        known = math.isfinite(half)
        interval = f"[{number(line['low'], digits)}, {number(line['high'], digits)}]" if known else ""
        error = f"±{number(half, digits)}" if known else ""
        cells.append(Cell(text, line["mean"], interval, error, low=line["low"], high=line["high"]))
    return cells


def _with_error(line: Mapping[str, Any], name: str) -> Cell:
    """Return the cell of a number with its standard error."""
    value, error = line[name], line[f"{name}_error"]
    digits = numbers.decimals([value], [error])
    spread = f"±{number(error, digits)}"
    return Cell(number(value, digits), value, spread, spread)


def _share(share: float) -> Cell:
    return Cell(numbers.UNKNOWN if math.isnan(share) else f"{100 * share:.0f} %", share)


def _named(layer: int | str) -> str:
    return f"layer {layer}" if isinstance(layer, int) else str(layer)
