"""Reports of explanations, and Captum's records of them, made from the plain values of ``Explanation.to_dict()``."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from interp_plugin.report import numbers
from interp_plugin.report.model import Cell, Column, Curve, Curves, Piece, Report, Row, Section, Table
from interp_plugin.report.numbers import UNKNOWN, known, number, printable, rounded, shortened, significant

if TYPE_CHECKING:
    from captum.attr import visualization

Choice = int | str | tuple[int | str, int | None]  # a layer, or a layer and a position
Values = Mapping[str, Any]

TIED = "≈"  # marks a unit that is not significantly different from the next in rank
INSTEAD_OF = " instead of "  # between the names of a target and of what it is compared with
_NAMED = 3  # most words named in an answer
_LONGEST = 120  # most characters of a text in a heading


def report(explanation: Values, title: str | None = None) -> Report:
    """Make the report of an explanation: for each text the answer, the shaded text and a table of layers x units.

    Args:
        explanation: the result of ``Explanation.to_dict()``: texts of T units and R rows; kept (or erased) and
            standard_error (R, T); None stands for a number that is not known or not finite.
        title: title of the report; by default it says what the numbers are, and for which text.

    Example::

        >>> row = {"layer": 4, "position": None, "kept": [9.0, 8.0, 1.0], "standard_error": [0.1, 0.1, 0.1],
        ...        "regime_index": 1.02, "converged": True, "n_forward": 64, "n_backward": 32}
        >>> text = {"text": "funny film", "pair": None, "predicted": "positive", "probability": 0.991, "target": None,
        ...         "units": ["[CLS]", "funny", "film"], "offsets": [None, [0, 0, 5], [0, 6, 10]], "rows": [row]}
        >>> values = {"texts": [text], "settings": {"rate": 0.1, "seed": 0, "state_std": True}, "seconds": 0.5}
        >>> report(values).sections[0].answer
        'Predicted positive, 0.99. Layer 4 keeps most of: funny.'
    """
    texts = explanation["texts"]
    erased = is_erased(explanation)
    settings = dict(explanation["settings"])
    return Report(
        title=_title(explanation) if title is None else title,
        sections=tuple(
            section(explanation, text, f"Text {place} of {len(texts)}: " if len(texts) > 1 else "")
            for place, text in enumerate(texts, 1)
        ),
        guide=guide(explanation),
        scale=("speaks against it", "needed most") if erased else ("0", "the layer's highest"),
        signed=erased,
        cost=_cost(explanation),
        settings=settings,
    )


def section(explanation: Values, text: Values, number: str = "") -> Section:
    """Make the section of one text; ``number`` precedes the text in the heading."""
    heading = number + _words(text) if number else ""
    if not text["rows"]:
        words = ((Piece(_words(text)),),)
        return Section(heading, " ".join(_prediction(text)), lines=words, notes=("No layer was requested.",))
    main = table(explanation, text)
    status, warns = _status(explanation, text)
    return Section(
        heading=heading,
        answer=answer(explanation, text),
        status=status,
        warns=warns,
        lines=lines(text),
        tables=(main,),
        details=(_details(explanation, text),),
    )


def is_erased(explanation: Values) -> bool:
    """Return whether tokens were erased; otherwise noise was added to them."""
    return explanation.get("settings", {}).get("erased") is not None


def values(row: Values) -> Sequence[float | None]:
    """Return the values of a row: the loss of the answer for each unit if tokens were erased, else nats kept."""
    found: Sequence[float | None] = row["erased"] if "erased" in row else row["kept"]
    return found


def special(text: Values) -> list[bool]:
    """Return which units are not part of the text; if all would be special, none is."""
    found = [offset is None for offset in text.get("offsets") or [()] * len(text["units"])]
    return [False] * len(found) if all(found) else found


def shares(text: Values, row: Values) -> list[float | None]:
    """Return each unit's position on its row's scale, -1 to 1; None for special tokens."""
    return [
        None if is_special else share
        for share, is_special in zip(_shares(text, row), special(text), strict=True)
    ]


def row_label(row: Values, tokens: Sequence[str] = ()) -> str:
    """Return the name of a row: its layer, and if its state has a position, that and the token there.

    Example::

        >>> row_label({"layer": 3, "position": None}), row_label({"layer": "output", "position": 5})
        ('layer 3', 'output @5')
        >>> row_label({"layer": 3, "position": 1}, ["[CLS]", "funny"])
        'layer 3 @1 funny'
    """
    layer, position = row["layer"], row.get("position")
    name = numbers.printable(layer) if isinstance(layer, str) else f"layer {layer}"
    if position is None:
        return name
    token = shortened(tokens[position], 24) if position < len(tokens) else ""
    return f"{name} @{position} {token}".rstrip()


def rows_of(text: Values, layer: Choice | None) -> list[Values]:
    """Return the rows of one layer, or all rows for None.

    Raises:
        ValueError: there are no such rows.

    Example::

        >>> text = {"rows": [{"layer": 1, "position": 0}, {"layer": 1, "position": 1}]}
        >>> len(rows_of(text, 1)), len(rows_of(text, (1, 0)))
        (2, 1)
    """

    def chosen(row: Values) -> bool:
        here = (row["layer"], row.get("position"))
        return layer is None or (here == layer if isinstance(layer, tuple) else here[0] == layer)

    found = [row for row in text["rows"] if chosen(row)]
    if not found:
        exists = ", ".join(row_label(row) for row in text["rows"]) or "none"
        raise ValueError(f"layer {layer!r} is not in the explanation of this text, which has: {exists}")
    return found


def one_row(text: Values, layer: Choice | None) -> Values:
    """Return the row of a layer, or of a pair (layer, position), or the last row for None.

    Raises:
        ValueError: there is no such row, or there is one for each position.
    """
    found = rows_of(text, layer)
    if layer is not None and len(found) > 1:
        pairs = ", ".join(repr((row["layer"], row.get("position"))) for row in found)
        raise ValueError(f"layer {layer!r} has a row per position: choose one of {pairs}")
    return found[-1]


def total(row: Values) -> tuple[float, float]:
    """Return what a row keeps (or loses) of all units together and its standard error; NaN if a value is missing.

    If the row has no total, this is the sum over the units; if it has no error of the total, the errors of the units
    are treated as independent.

    Example::

        >>> total({"kept": [1.0, 2.0], "standard_error": [0.3, 0.4]})
        (3.0, 0.5)
    """

    def known(found: Sequence[float | None]) -> list[float]:
        return [math.nan if value is None else value for value in found]

    nats, error = row.get("total"), row.get("total_standard_error")
    return (
        sum(known(values(row))) if nats is None else nats,
        math.hypot(*known(row["standard_error"])) if error is None else error,
    )


def curves(explanation: Values, layer: Choice | None = None) -> Curves:
    """Make curves of the information kept of all units together by layer, one for each text, with standard errors."""
    found = []
    for place, text in enumerate(explanation["texts"], 1):
        rows = rows_of(text, layer) if text["rows"] or layer is not None else []
        if rows:
            sums = [total(row) for row in rows]
            means, low, high = zip(*((nats, nats - error, nats + error) for nats, error in sums), strict=True)
            found.append(Curve(f"text {place}", [row_label(row) for row in rows], means, low, high))
    return Curves(
        "Information kept by layer", tuple(found), "information kept of all units, nats", "± 1 standard error"
    )


def table(explanation: Values, text: Values, layer: Choice | None = None) -> Table:
    """Make a table of layers x units, each row shaded on its own scale; special tokens are last and not shaded."""
    is_special = special(text)
    order = sorted(range(len(is_special)), key=is_special.__getitem__)
    chosen = rows_of(text, layer)
    erased = is_erased(explanation)
    unit = unit_name(explanation)
    nothing = [None] * len(order)
    more = {
        "lost": [_picked(row.get("loss", nothing), order, 4) for row in chosen],
        "sigma": [_picked(row.get("sigma", nothing), order, 4) for row in chosen],
        "sigmaError": [_picked(row.get("sigma_standard_error", nothing), order, 2) for row in chosen],
    }
    return Table(
        title=f"What each layer loses with each {unit}"
        if erased
        else f"Nats that each layer keeps of each {unit}",
        corner="layer",
        columns=tuple(Column(text["units"][u], special=is_special[u]) for u in order),
        groups={"": tuple(_row(explanation, text, row, order) for row in chosen)},
        more={} if erased else more,
        scale=("lost when erased" if erased else "information kept") + ", share of the row's highest",
        across=unit,
    )


def answer(explanation: Values, text: Values, layer: Choice | None = None) -> str:
    """Summarise a text: the prediction, and which words the last layer (or the given one) keeps most of.

    If noise was learned for a class, the answer says that the numbers have no direction (for or against the class).
    """
    own = f"output.{text['predicted']}"  # if each class has a row, use that of the predicted class
    row = one_row(text, own if layer is None and any(row["layer"] == own for row in text["rows"]) else layer)
    name = row_label(row, _tokens(explanation, text))
    which = f" '{name[7:]}'" if name.startswith("output.") else ""
    name = f"The output{which}" if which or name == "output" else name[:1].upper() + name[1:]
    sentences = _prediction(text)
    if "erased" in row:
        needs = _named(text, row, 1)
        against = [name for name in _named(text, row, -1) if name not in needs]  # a word may occur twice
        sentences.append(f"{name} needs most: {', '.join(needs)}." if needs else f"{name} needs no token.")
        if against:
            sentences.append(f"Against it speak: {', '.join(against)}.")
        return " ".join(sentences)
    kept = _named(text, row, 1)
    sentences.append(
        f"{name} keeps most of: {', '.join(kept)}." if kept else f"{name} keeps none of the tokens."
    )
    if _lacks_direction(text):
        sentences.append("This has no direction; --score erased (in Python score='erased') has one.")
    return " ".join(sentences)


def lines(text: Values) -> tuple[tuple[Piece, ...], ...]:
    """Split the text into units and the characters between them, a line for each segment (the text, its pair).

    Special tokens are placed where the model reads them.  Units whose characters another unit already shows (an emoji
    of four byte-level tokens) show their own names.  Units are numbered by their columns in the table.
    """
    segments = [text["text"], text["pair"] or ""]
    offsets: Sequence[Sequence[int] | None] = text["offsets"]
    is_special = special(text)
    order = sorted(range(len(is_special)), key=is_special.__getitem__)
    columns = {u: column for column, u in enumerate(order)}
    last = {offset[0]: u for u, offset in enumerate(offsets) if offset is not None}  # unit by segment
    found: list[list[Piece]] = [[]]
    here, taken = 0, 0  # current segment, and number of its characters already written
    seen = {0}  # segments already begun; the text is repeated before each further choice
    # number of leading special tokens
    before = next((u for u, offset in enumerate(offsets) if offset is not None), 0)
    for u, (name, offset) in enumerate(zip(text["units"], offsets, strict=True)):
        if offset is None:
            found[-1].append(Piece(name, columns[u], special=True))
            continue
        segment, start, end = offset
        if segment != here:
            is_repeated = segment < here and before > 0  # the leading special tokens are repeated too
            found.append(found[-1][-before:] if is_repeated else [])
            if is_repeated:
                del found[-2][-before:]
            here, taken = segment, start if segment in seen else 0
            seen.add(segment)
        if start > taken:
            found[-1].append(Piece(segments[segment][taken:start]))
        own = segments[segment][max(start, taken) : end]
        # the blank in " film" is not shaded
        space = own[: len(own) - len(own.lstrip())] if own.strip() else ""
        if space:
            found[-1].append(Piece(space))
            own = own.removeprefix(space)
        found[-1].append(Piece(own or name, columns[u], special=not own))
        taken = max(taken, end)
        if u == last[segment] and taken < len(segments[segment]):
            found[-1].append(Piece(segments[segment][taken:]))
    return tuple(tuple(line) for line in found if line)


def unit_name(explanation: Values) -> str:
    """Return the name of a unit: "token", "word" or "sentence"."""
    return numbers.printable(str(explanation.get("granularity") or "token"))


def guide(explanation: Values) -> tuple[str, ...]:
    """Explain how to read the numbers and shades, in a sentence or two each."""
    unit = unit_name(explanation)
    rows = [row for text in explanation["texts"] for row in text["rows"]]
    if is_erased(explanation):
        how = numbers.printable(str(explanation["settings"]["erased"]))
        sentences = [
            f"Lost when the {unit} is erased ({how}), ± standard error, averaged over erasures of the others. For the "
            "output: nats of the log-odds of the class, or of the log probability of a language model's target or of "
            "an answer. For a layer: D, the distance that its state moves.",
            f"Blue: the answer needs the {unit}; red: it speaks against it. Shades go up to each row's largest value.",
        ]
    else:
        sentences = [
            f"The numbers are information kept, in nats, ± standard error: high = the layer still holds this {unit}; 0 "
            "= the layer does not notice noise far beyond the spread of the inputs.",
            "Shades go from 0 to each layer's highest value: compare them within a layer.",
        ]
    sentences.append(
        "Special tokens, such as [CLS], are not part of the text: they are shown separately and not shaded. "
        "Hatched, or with a question mark: standard error above a tenth of the row's highest value."
    )
    if unit != "token":
        how = {"sum": "the sum", "max": "the highest"}.get(str(explanation.get("aggregate")), "the mean")
        sentences.append(f"A {unit}'s value is {how} over its tokens.")
    if any(any(row.get("tied") or ()) for row in rows):
        sentences.append(
            f"{TIED}: within two standard errors of the next {unit} in rank, so not clearly different."
        )
    if not is_erased(explanation):
        sentences.append("E is the regime index: 1 = the small-noise regime, where the closed form is exact.")
    lower = {row_label(row): row["rate"] for row in rows if _is_lowered(row, explanation)}
    if lower:
        where = ", ".join(f"{label} at {rate:.1g}" for label, rate in lower.items())
        sentences.append(
            f"Solved at a smaller rate than {explanation['settings']['rate']:.3g}: {where}. At the requested rate the "
            "map would depend on the samples. Compare the nats of such a row with one another, not with other rows."
        )
    if any(row.get("position") is not None for row in rows):
        sentences.append("@5: the state is the hidden vector at position 5, counted from 0.")
    if not explanation["settings"]["state_std"]:
        sentences.append(
            "Computed without calibration (state_std): the unit is the size of each text's own state, so values of "
            "different layers are only roughly comparable."
        )
    return tuple(sentences)


def _row(explanation: Values, text: Values, row: Values, order: Sequence[int]) -> Row:
    found, errors = values(row), row["standard_error"]
    is_special, places = special(text), _shares(text, row)
    end = _end(text, row)
    uncertain = numbers.uncertain(errors, end)
    ties = row.get("tied") or [False] * len(found)
    written = rounded(found, errors)
    cells = []
    for u in order:
        if row["layer"] == "output" and row.get("position") is not None and u >= row["position"]:
            cells.append(Cell("-"))  # for a continuation: the predicted token and the tokens after it
            continue
        words, digits = written[u]
        value, error = found[u], errors[u]
        spread = f"±{number(error, digits)}"
        width = error or 0.0
        ends = (value - width, value + width) if numbers.known(value) else (None, None)
        shaded = None if is_special[u] else places[u]
        cells.append(
            Cell(
                words, value, spread, spread, shaded, uncertain[u] and shaded is not None,
                mark=TIED if ties[u] else "", low=ends[0], high=ends[1],
            )
        )  # fmt: skip
    settings = explanation["settings"]
    is_solved = not settings.get("amortised") and not _is_closed_form(settings)
    warning = "not converged" if is_solved and not row["converged"] else ""
    if _is_lowered(row, explanation):
        warning = ", ".join(filter(None, (warning, f"rate {row['rate']:.1g}")))
    return Row(row_label(row, _tokens(explanation, text)), tuple(cells), warning)


def _tokens(explanation: Values, text: Values) -> Sequence[str]:
    """Return the tokens, which positions count, if the units are tokens; else nothing."""
    tokens: Sequence[str] = text["units"] if unit_name(explanation) == "token" else ()
    return tokens


def _is_closed_form(settings: Values) -> bool:
    """Return whether the solver did not refine the closed form."""
    return settings.get("iterations") == 0


def _end(text: Values, row: Values) -> float:
    """Return the end of a row's scale, without special tokens."""
    return numbers.highest(
        [v for v, is_special in zip(values(row), special(text), strict=True) if not is_special]
    )


def _shares(text: Values, row: Values) -> list[float | None]:
    return numbers.shares(values(row), _end(text, row))


def _details(explanation: Values, text: Values) -> Table:
    """Make a table of how the numbers were computed, with a row for each layer."""
    rows = text["rows"]
    sums = [total(row) for row in rows]
    written = rounded([nats for nats, _ in sums], [error for _, error in sums])
    erased = is_erased(explanation)
    names = ["damage"] if erased else ["kept of the whole text", "E", "converged", "rate"]
    cells = []
    for row, (nats, error), (words, digits) in zip(rows, sums, written, strict=True):
        spread = f"±{number(error, digits)}"
        known = [
            Cell(words, nats, spread, spread),
            Cell(significant(row.get("regime_index")), row.get("regime_index")),
            Cell("yes" if row["converged"] else "no"),
            Cell(f"{row.get('rate') or explanation['settings'].get('rate') or math.nan:.3g}"),
        ]
        if erased:
            known = [Cell(significant(row["damage"]), row["damage"])]
        passes = [Cell(str(row[name]), row[name]) for name in ("n_forward", "n_backward")]
        cells.append(Row(row_label(row, _tokens(explanation, text)), (*known, *passes)))
    columns = tuple(Column(name) for name in (*names, "forward passes", "backward passes"))
    return Table("Details of each layer", "layer", columns, {"": tuple(cells)})


def _status(explanation: Values, text: Values) -> tuple[str, bool]:
    """Describe how certain the numbers of a text are and how to improve them; also return whether this is a warning."""
    settings, rows = explanation["settings"], text["rows"]
    worst = max((_relative_error(text, row) for row in rows), default=0.0)
    errors = f"standard errors are at most {_percent(worst)} of a row's highest value"
    if settings.get("amortised"):
        return f"Predicted by a trained head, not by the solver; its {errors}.", False
    count = {1: "the row", 2: "both rows"}.get(len(rows), f"all {len(rows)} rows")
    if is_erased(explanation):
        if not worst:
            return "Exact: every set of erased tokens was tried.", False
        if worst <= numbers.UNCERTAIN:
            return f"Sure: {errors}.", False
        needed = _rounded_up(max(row["n_forward"] for row in rows) * (worst / numbers.UNCERTAIN) ** 2)
        return f"Not sure: {errors}. More passes: --max-passes {needed} (in Python passes={needed}).", True
    if _is_closed_form(settings):
        better = "without --quick (in Python iterations=0) the solver refines it"
        return f"The closed form alone: {errors}; {better}.", worst > numbers.UNCERTAIN
    unfinished = [row for row in rows if not row["converged"]]
    if not unfinished:
        return f"Sure: {count} converged; {errors}.", False
    names = ", ".join(row_label(row) for row in unfinished[:5])
    names += f" and {len(unfinished) - 5} more" if len(unfinished) > 5 else ""
    saturated = [row for row in unfinished if row["saturated"]]
    noisy = [row for row in unfinished if not row["saturated"]]
    sentences = []
    if saturated:
        of_some = f" of {len(saturated)} of these rows" if noisy else ""
        rate = min(row.get("rate") or settings.get("rate") or math.nan for row in saturated)
        lower = f"{float(f'{rate / 10:.0e}'):g}"
        sentences.append(
            f"the state{of_some} saturates: more noise hardly moves it further. Use a lower rate, such as --rate "
            f"{lower} (in Python rate={lower})"
        )
    if noisy:
        needed = max(_passes_needed(row, settings) for row in noisy)
        sentences.append(
            f"{'for the others' if saturated else f'{errors}. Use more passes'}: --max-passes {needed} (in Python "
            f"solver=Solver(max_passes={needed}))"
        )
    return f"Not converged: {names}; {'; '.join(sentences)}.", True


def _passes_needed(row: Values, settings: Values) -> int:
    """Estimate the passes that would reach the tolerance: errors fall with the square root of the passes."""
    logs = [
        (error / sigma) ** 2
        for sigma, error in zip(row.get("sigma") or (), row.get("sigma_standard_error") or (), strict=False)
        if sigma and error is not None
    ]
    spent = max(1, row["n_forward"], settings.get("max_passes") or 0)
    tolerance = settings.get("tolerance")
    ratio = sum(logs) / len(logs) / tolerance**2 if logs and tolerance else 0.0
    return _rounded_up(max(2 * spent, 1.5 * spent * ratio))


def _rounded_up(passes: float) -> int:
    """Round up to the next of 100, 200, 500, 1000, ..."""
    size = 10 ** math.floor(math.log10(max(100.0, passes)))
    return int(next(step * size for step in (1, 2, 5, 10) if step * size >= passes or step == 10))


def _relative_error(text: Values, row: Values) -> float:
    end = _end(text, row)
    pairs = zip(row["standard_error"], special(text), strict=True)
    errors = [error for error, is_special in pairs if error is not None and not is_special]
    return max(errors, default=0.0) / end if end else 0.0


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.095 else f"{100 * share:.0f} %"


def _prediction(text: Values) -> list[str]:
    """Describe the prediction and the target for a text, as sentences."""
    sentences = []
    if text["predicted"] is not None:
        probability = "" if text["probability"] is None else f", {_probability(text['probability'])}"
        sentences.append(f"Predicted {_quoted(text['predicted'])}{probability}.")
    if text["target"] is not None and text["target"] != text["predicted"]:
        names = text["target"].split(INSTEAD_OF)
        sentences.append(f"Target: {INSTEAD_OF.join(map(_quoted, names))}.")
    return sentences


def _quoted(name: str) -> str:
    """Quote a name that contains a blank: a token, a choice or an answer."""
    return repr(name) if " " in name else name


def _probability(share: float) -> str:
    """Format a probability with two decimals, or four if two would round to 0 or 1."""
    return f"{share:.2f}" if 0.005 <= share < 0.995 else f"{share:.4f}"


def _named(text: Values, row: Values, sign: int) -> list[str]:
    """Return the words with the highest values of a row (with sign -1, the lowest), without repeats and punctuation."""
    pairs = zip(values(row), special(text), strict=True)
    found = [(sign * v, u) for u, (v, is_special) in enumerate(pairs) if numbers.known(v) and not is_special]
    names = []
    for value, u in sorted(found, key=lambda pair: -pair[0]):
        # a sign is certain beyond two standard errors
        least = max(0.1 * _end(text, row), 2 * (row["standard_error"][u] or 0.0)) if "erased" in row else 0.0
        if value > least:
            names.append(_word(text, u))
    words = [name for name in dict.fromkeys(names) if re.search(r"\w", name)]
    return words[: max(1, min(_NAMED, (len(found) + 1) // 2))]


def _word(text: Values, u: int) -> str:
    """Return the word of the text that a unit is a part of, or the unit's own name."""
    offset = text["offsets"][u]
    if offset is None:
        return shortened(text["units"][u], 24)
    segment, start, end = offset
    words = text["text"] if segment == 0 else text["pair"] or ""
    start += len(words[start:end]) - len(words[start:end].lstrip())  # " film" begins with its letters
    before, after = re.search(r"[\w'-]*\Z", words[:start]), re.match(r"[\w'-]*", words[end:])
    own = words[start:end]
    if re.search(r"\w", own) and not re.search(r"\s\S", own.strip()):
        own = (before.group() if before else "") + own + (after.group() if after else "")
    return shortened(own.strip() or text["units"][u], 24)


def _lacks_direction(text: Values) -> bool:
    rows = text["rows"]
    return text["target"] is not None and any(row["layer"] == "output" and "kept" in row for row in rows)


def _title(explanation: Values) -> str:
    texts = explanation["texts"]
    what = "Lost when erased" if is_erased(explanation) else "Information kept"
    if any(_lacks_direction(text) for text in texts):
        what += ", without direction"
    return f"{what}: {_words(texts[0]) if len(texts) == 1 else f'{len(texts)} texts'}"


def _words(text: Values) -> str:
    parts = [text["text"], *(text["pair"] or "").split("\n")]  # the pair holds choices, one per line
    return shortened(" | ".join(filter(None, parts)), _LONGEST)


def _is_lowered(row: Values, explanation: Values) -> bool:
    """Return whether a row was solved at a smaller rate than the requested one."""
    rate, requested = row.get("rate"), explanation["settings"].get("rate")
    return rate is not None and requested is not None and bool(rate < 0.999 * requested)


def _cost(explanation: Values) -> str:
    """Describe the time and sample passes of the whole explanation."""
    rows = [row for text in explanation["texts"] for row in text["rows"]]
    forward, backward = (sum(row[key] for row in rows) for key in ("n_forward", "n_backward"))
    return (
        f"{numbers.duration(explanation['seconds'])}, {forward} forward and {backward} backward sample passes"
    )


def _picked(found: Sequence[float | None], order: Sequence[int], digits: int) -> list[float | None]:
    """Return the numbers in the table's order, rounded to significant digits to keep the page small."""
    return [
        float(f"{value:.{digits}g}") if numbers.known(value) else None for value in (found[u] for u in order)
    ]


def captum_records(
    explanation: Values, layer: Choice | None = None
) -> list[visualization.VisualizationDataRecord]:
    """Make one record per text, for ``captum.attr.visualization.visualize_text``.

    Attributions are on the scale of the shades, 0 to 1 (-1 to 1 if tokens were erased) and 0 for special tokens,
    because ``visualize_text`` clips to [-1, 1]. attr_score is the total of the text, in nats if noise was learned.
    convergence_score is 1 if the row converged, else 0. All strings are escaped, because ``visualize_text`` escapes
    nothing. Unknown values are "-"; an unknown probability is NaN, because ``visualize_text`` needs a number.

    Args:
        explanation: the result of ``Explanation.to_dict()``.
        layer: a layer, or a pair (layer, position) if its rows have positions; None: each text's last row.

    Raises:
        ValueError: a text has no such row, or its information kept is not known for a unit
            (``visualize_text`` would show the unit as important).

    Example::

        >>> row = {"layer": 3, "position": None, "kept": [8.0, 0.0], "standard_error": [0.1, 0.1],
        ...        "regime_index": 1.0, "converged": True}
        >>> text = {"units": ["good", "<s>"], "offsets": [[0, 0, 4], None], "rows": [row], "predicted": "positive",
        ...         "probability": 0.9, "target": None}
        >>> [record] = captum_records({"texts": [text]})
        >>> record.raw_input_ids, record.word_attributions.tolist(), record.attr_score
        (['good', '&lt;s&gt;'], [1.0, 0.0], 8.0)
    """
    return [_record(text, one_row(text, layer)) for text in explanation["texts"]]


def _record(text: Values, row: Values) -> visualization.VisualizationDataRecord:
    import torch
    from captum.attr import visualization

    for unit, value in zip(text["units"], values(row), strict=True):
        if not known(value):
            raise ValueError(
                f"information kept of {unit!r} by {row_label(row)} is {value}, but a record needs every "
                "value; choose another layer, or leave this text out"
            )
    target = text["predicted"] if text["target"] is None else text["target"]
    return visualization.VisualizationDataRecord(
        word_attributions=torch.tensor([share or 0.0 for share in shares(text, row)]),
        pred_prob=math.nan if text["probability"] is None else text["probability"],
        pred_class=_escaped(text["predicted"]),
        true_class=UNKNOWN,
        attr_class=_escaped(target),
        attr_score=float(total(row)[0]),
        raw_input_ids=[_escaped(unit) for unit in text["units"]],
        convergence_score=float(row["converged"]),
    )


def _escaped(data: str | None) -> str:
    return UNKNOWN if data is None else html.escape(printable(data))
