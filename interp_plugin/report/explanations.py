"""Fills the report model from an explanation, given as the plain values of ``Explanation.to_dict()``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from interp_plugin.report import numbers, shades
from interp_plugin.report.model import Cell, Column, Curve, Curves, Piece, Report, Row, Section, Table
from interp_plugin.report.numbers import number, rounded, shortened, significant

Choice = int | str | tuple[int | str, int | None]  # a layer, or a layer and a position
Values = Mapping[str, Any]

TIED = "≈"  # not told apart from the next in rank
SATURATED = 0.65  # regime index below which no minimum is certain (see method/objective.py)
INSTEAD_OF = " instead of "  # between the names of a target and of what it is compared with
_NAMED = 3  # words that an answer names
_LONGEST = 120  # characters of a text in a heading


def report(explanation: Values, title: str | None = None) -> Report:
    """The report of an explanation: for each text the answer, the shaded text and a table of layers x units.

    Args:
        explanation: what ``Explanation.to_dict()`` gives: texts of T units and R rows; kept (or erased) and
            standard_error (R, T); None stands for a number that is not known or not finite.
        title: default says what the numbers are, and of which text.

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
    """What is shown of one text; ``number`` is put before its words in the heading."""
    heading = number + _words(text) if number else ""
    if not text["rows"]:
        words = ((Piece(_words(text)),),)
        return Section(heading, " ".join(_prediction(text)), lines=words, notes=("No layer was asked for.",))
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
    """Whether tokens were erased; otherwise they bore noise."""
    return explanation.get("settings", {}).get("erased") is not None


def values(row: Values) -> Sequence[float | None]:
    """The numbers that a row is drawn by: the answer lost with each unit where tokens were erased, else nats kept."""
    found: Sequence[float | None] = row["erased"] if "erased" in row else row["kept"]
    return found


def special(text: Values) -> list[bool]:
    """Which units are no part of the text; none where all would be."""
    found = [offset is None for offset in text.get("offsets") or [()] * len(text["units"])]
    return [False] * len(found) if all(found) else found


def shares(text: Values, row: Values) -> list[float | None]:
    """Each unit's place on its row's scale, -1 to 1; special tokens have none."""
    return [None if apart else share for share, apart in zip(_shares(text, row), special(text), strict=True)]


def row_label(row: Values, tokens: Sequence[str] = ()) -> str:
    """Name of a row: its layer, and the position of its state if it has one, with the token that stands there.

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
    """The rows of one layer (all of them with None).

    Raises:
        ValueError: there are none.

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
        raise ValueError(f"layer {layer!r} is not in this text; there are: {exists}")
    return found


def one_row(text: Values, layer: Choice | None) -> Values:
    """The one row of a layer, or of a pair (layer, position); the last row with None.

    Raises:
        ValueError: there is none, or there is one per position.
    """
    found = rows_of(text, layer)
    if layer is not None and len(found) > 1:
        pairs = ", ".join(repr((row["layer"], row.get("position"))) for row in found)
        raise ValueError(f"layer {layer!r} has a row per position: choose one of {pairs}")
    return found[-1]


def total(row: Values) -> tuple[float, float]:
    """What a row keeps (or loses) of all units together and its standard error; NaN where a value is missing.

    Without the row's own total, the units' sum; without its error, theirs count as independent.

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
    """Information kept of all units together, by layer: a curve for each text, with one standard error."""
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
    """Rows (layers) x units, each row shaded on its own scale; special tokens last, outside of the scale."""
    apart = special(text)
    order = sorted(range(len(apart)), key=apart.__getitem__)
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
        columns=tuple(Column(text["units"][u], special=apart[u]) for u in order),
        groups={"": tuple(_row(explanation, text, row, order) for row in chosen)},
        more={} if erased else more,
        scale=("lost when erased" if erased else "information kept") + ", share of the row's highest",
        across=unit,
    )


def answer(explanation: Values, text: Values, layer: Choice | None = None) -> str:
    """What the numbers of a text say: the prediction, and what the last layer (or that one) keeps most of.

    A class has no direction where noise was learned, which the answer says.
    """
    own = f"output.{text['predicted']}"  # where each class has a row, that of the predicted one says most
    row = one_row(text, own if layer is None and any(row["layer"] == own for row in text["rows"]) else layer)
    name = row_label(row, _tokens(explanation, text))
    which = f" '{name[7:]}'" if name.startswith("output.") else ""
    name = f"The output{which}" if which or name == "output" else name[:1].upper() + name[1:]
    said = _prediction(text)
    if "erased" in row:
        needs = _named(text, row, 1)
        against = [name for name in _named(text, row, -1) if name not in needs]  # a word that occurs twice
        said.append(f"{name} needs most: {', '.join(needs)}." if needs else f"{name} needs no token.")
        if against:
            said.append(f"Against it speak: {', '.join(against)}.")
        return " ".join(said)
    kept = _named(text, row, 1)
    said.append(f"{name} keeps most of: {', '.join(kept)}." if kept else f"{name} keeps none of the tokens.")
    if _lacks_direction(text):
        said.append("This has no direction; --score erased (in Python score='erased') has one.")
    return " ".join(said)


def lines(text: Values) -> tuple[tuple[Piece, ...], ...]:
    """The text cut into units and what lies between them, a line for each segment (the text, its pair).

    Special tokens stand where the model reads them, and units whose characters are already taken (an emoji in four
    byte-level tokens) show their own names.  Units are numbered by their columns in the table.
    """
    segments = [text["text"], text["pair"] or ""]
    offsets: Sequence[Sequence[int] | None] = text["offsets"]
    apart = special(text)
    order = sorted(range(len(apart)), key=apart.__getitem__)
    columns = {u: column for column, u in enumerate(order)}
    last = {offset[0]: u for u, offset in enumerate(offsets) if offset is not None}  # unit by segment
    found: list[list[Piece]] = [[]]
    here, taken = 0, 0  # segment and characters of it that are written
    seen = {0}  # segments that were begun; a text is read again before each further choice
    before = next((u for u, offset in enumerate(offsets) if offset is not None), 0)  # special tokens
    for u, (name, offset) in enumerate(zip(text["units"], offsets, strict=True)):
        if offset is None:
            found[-1].append(Piece(name, columns[u], special=True))
            continue
        segment, start, end = offset
        if segment != here:
            is_again = segment < here and before > 0  # what stands before a text does once more
            found.append(found[-1][-before:] if is_again else [])
            if is_again:
                del found[-2][-before:]
            here, taken = segment, start if segment in seen else 0
            seen.add(segment)
        if start > taken:
            found[-1].append(Piece(segments[segment][taken:start]))
        own = segments[segment][max(start, taken) : end]
        space = own[: len(own) - len(own.lstrip())] if own.strip() else ""  # of " film", which is not shaded
        if space:
            found[-1].append(Piece(space))
            own = own.removeprefix(space)
        found[-1].append(Piece(own or name, columns[u], special=not own))
        taken = max(taken, end)
        if u == last[segment] and taken < len(segments[segment]):
            found[-1].append(Piece(segments[segment][taken:]))
    return tuple(tuple(line) for line in found if line)


def unit_name(explanation: Values) -> str:
    """What one unit is: "token", "word" or "sentence"."""
    return numbers.printable(str(explanation.get("granularity") or "token"))


def guide(explanation: Values) -> tuple[str, ...]:
    """How to read the numbers and shades, a sentence or two each."""
    unit = unit_name(explanation)
    rows = [row for text in explanation["texts"] for row in text["rows"]]
    if is_erased(explanation):
        how = numbers.printable(str(explanation["settings"]["erased"]))
        said = [
            f"Lost when the {unit} is erased ({how}), ± standard error, on average over "
            "erasures of the others: of the output, nats of the log-odds of the class, or of the log probability of a "
            "language model's target or of an answer; of a layer, D, the distance that its state moves.",
            f"Blue: the answer needs the {unit}; red: it speaks against it. Shades go up to each row's largest value.",
        ]
    else:
        said = [
            f"The numbers are information kept, in nats, ± standard error: high = the layer still holds this {unit}, 0 "
            "= noise far beyond the spread of the inputs goes unnoticed.",
            "Shades go from 0 to each layer's highest value: compare them within a layer.",
        ]
    said.append(
        "Special tokens, such as [CLS], are no part of the text: they stand apart and are not shaded. "
        "Hatched, or with a question mark: standard error above a tenth of the row's highest value."
    )
    if unit != "token":
        how = {"sum": "the sum", "max": "the highest"}.get(str(explanation.get("aggregate")), "the mean")
        said.append(f"A {unit}'s value is {how} over its tokens.")
    if any(any(row.get("tied") or ()) for row in rows):
        said.append(f"{TIED}: within two standard errors of the next {unit} in rank, so not told apart.")
    if not is_erased(explanation):
        said.append("E is the regime index: 1 = the small-noise regime, where the closed form is exact.")
    lower = {row_label(row): row["rate"] for row in rows if _is_lowered(row, explanation)}
    if lower:
        where = ", ".join(f"{label} at {rate:.1g}" for label, rate in lower.items())
        said.append(
            f"Solved at a smaller rate than {explanation['settings']['rate']:.3g}: {where}. At the one asked for the "
            "map would depend on the samples. The nats of such a row compare with one another, not with other rows'."
        )
    if any(row.get("position") is not None for row in rows):
        said.append("@5: the state is the hidden vector at position 5, counted from 0.")
    if not explanation["settings"]["state_std"]:
        said.append(
            "Made without calibration (state_std): each text is its own unit, so values of different layers compare "
            "only roughly."
        )
    return tuple(said)


def _row(explanation: Values, text: Values, row: Values, order: Sequence[int]) -> Row:
    found, errors = values(row), row["standard_error"]
    apart, places = special(text), _shares(text, row)
    end = _end(text, row)
    hazy = shades.uncertain(errors, end)
    ties = row.get("tied") or [False] * len(found)
    written = rounded(found, errors)
    cells = []
    for u in order:
        if row["layer"] == "output" and row.get("position") is not None and u >= row["position"]:
            cells.append(Cell("-"))  # of a continuation: the token that is predicted, and those after it
            continue
        words, digits = written[u]
        value, error = found[u], errors[u]
        spread = f"±{number(error, digits)}"
        width = error or 0.0
        ends = (value - width, value + width) if numbers.known(value) else (None, None)
        shaded = None if apart[u] else places[u]
        cells.append(
            Cell(
                words, value, spread, spread, shaded, hazy[u] and shaded is not None, mark=TIED if ties[u] else "",
                low=ends[0], high=ends[1],
            )
        )  # fmt: skip
    settings = explanation["settings"]
    is_sought = not settings.get("amortised") and not _is_closed_form(settings)
    warning = "not converged" if is_sought and not row["converged"] else ""
    if _is_lowered(row, explanation):
        warning = ", ".join(filter(None, (warning, f"rate {row['rate']:.1g}")))
    return Row(row_label(row, _tokens(explanation, text)), tuple(cells), warning)


def _tokens(explanation: Values, text: Values) -> Sequence[str]:
    """What positions count, where the units are these."""
    tokens: Sequence[str] = text["units"] if unit_name(explanation) == "token" else ()
    return tokens


def _is_closed_form(settings: Values) -> bool:
    """Whether the solver was told not to refine its first estimate."""
    return settings.get("iterations") == 0


def _end(text: Values, row: Values) -> float:
    """The end of a row's scale, which special tokens do not set."""
    return shades.highest([v for v, apart in zip(values(row), special(text), strict=True) if not apart])


def _shares(text: Values, row: Values) -> list[float | None]:
    return shades.shares(values(row), _end(text, row))


def _details(explanation: Values, text: Values) -> Table:
    """How the numbers came about: a row for each layer."""
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
    """How sure the numbers of a text are, and what would make them surer; whether that is a warning."""
    settings, rows = explanation["settings"], text["rows"]
    worst = max((_relative_error(text, row) for row in rows), default=0.0)
    errors = f"standard errors are at most {_percent(worst)} of a row's highest value"
    if settings.get("amortised"):
        return f"Predicted by a trained head, not solved for; its {errors}.", False
    count = {1: "the row", 2: "both rows"}.get(len(rows), f"all {len(rows)} rows")
    if is_erased(explanation):
        if not worst:
            return "Exact: every set of erased tokens was tried.", False
        if worst <= shades.UNCERTAIN:
            return f"Sure: {errors}.", False
        wanted = _rounded_up(max(row["n_forward"] for row in rows) * (worst / shades.UNCERTAIN) ** 2)
        return f"Not sure: {errors}. More passes: --max-passes {wanted} (in Python passes={wanted}).", True
    if _is_closed_form(settings):
        better = "without --quick (in Python iterations=0) the solver refines it"
        return f"The closed form alone: {errors}; {better}.", worst > shades.UNCERTAIN
    unfinished = [row for row in rows if not row["converged"]]
    if not unfinished:
        return f"Sure: {count} converged; {errors}.", False
    names = ", ".join(row_label(row) for row in unfinished[:5])
    names += f" and {len(unfinished) - 5} more" if len(unfinished) > 5 else ""
    saturated = [row for row in unfinished if _is_saturated(row)]
    noisy = [row for row in unfinished if not _is_saturated(row)]
    said = []
    if saturated:
        of_some = f" of {len(saturated)} of these rows" if noisy else ""
        rate = min(row.get("rate") or settings.get("rate") or math.nan for row in saturated)
        lower = f"{float(f'{rate / 10:.0e}'):g}"
        said.append(
            f"the state{of_some} saturates: more noise hardly moves it further. A lower rate mends it, such as --rate "
            f"{lower} (in Python rate={lower})"
        )
    if noisy:
        wanted = max(_passes_needed(row, settings) for row in noisy)
        said.append(
            f"{'for the others' if saturated else f'{errors}. This mends it'}: --max-passes {wanted} (in Python "
            f"solver=Solver(max_passes={wanted}))"
        )
    return f"Not converged: {names}; {'; '.join(said)}.", True


def _is_saturated(row: Values) -> bool:
    """Whether no minimum is certain there, however many passes are made."""
    index = row.get("regime_index")
    return index is not None and index < SATURATED


def _passes_needed(row: Values, settings: Values) -> int:
    """Passes that would meet the tolerance: errors fall with the square root of the passes."""
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
    """The next of 1, 2, 5, 10, ..., at least 100."""
    size = 10 ** math.floor(math.log10(max(100.0, passes)))
    return int(next(step * size for step in (1, 2, 5, 10) if step * size >= passes or step == 10))


def _relative_error(text: Values, row: Values) -> float:
    end = _end(text, row)
    pairs = zip(row["standard_error"], special(text), strict=True)
    errors = [error for error, apart in pairs if error is not None and not apart]
    return max(errors, default=0.0) / end if end else 0.0


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.095 else f"{100 * share:.0f} %"


def _prediction(text: Values) -> list[str]:
    """What is known of the model's output on a text, as sentences."""
    said = []
    if text["predicted"] is not None:
        sure = "" if text["probability"] is None else f", {_probability(text['probability'])}"
        said.append(f"Predicted {_quoted(text['predicted'])}{sure}.")
    if text["target"] is not None and text["target"] != text["predicted"]:
        names = text["target"].split(INSTEAD_OF)
        said.append(f"Target: {INSTEAD_OF.join(map(_quoted, names))}.")
    return said


def _quoted(name: str) -> str:
    """A class as it is; a token with a blank, a choice or an answer in quotes."""
    return repr(name) if " " in name else name


def _probability(share: float) -> str:
    """Two decimals, and more where these would say that it is certain."""
    return f"{share:.2f}" if 0.005 <= share < 0.995 else f"{share:.4f}"


def _named(text: Values, row: Values, sign: int) -> list[str]:
    """The words that a row keeps (or loses, or with sign -1 gains by) most, without repeats and punctuation."""
    pairs = zip(values(row), special(text), strict=True)
    found = [(sign * v, u) for u, (v, apart) in enumerate(pairs) if numbers.known(v) and not apart]
    names = []
    for value, u in sorted(found, key=lambda pair: -pair[0]):
        # a sign is sound beyond two standard errors
        least = max(0.1 * _end(text, row), 2 * (row["standard_error"][u] or 0.0)) if "erased" in row else 0.0
        if value > least:
            names.append(_word(text, u))
    words = [name for name in dict.fromkeys(names) if re.search(r"\w", name)]
    return words[: max(1, min(_NAMED, (len(found) + 1) // 2))]


def _word(text: Values, u: int) -> str:
    """The word of the text that a unit is a part of, or the unit's own name."""
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
    parts = [text["text"], *(text["pair"] or "").split("\n")]  # choices stand in the pair, a line each
    return shortened(" | ".join(filter(None, parts)), _LONGEST)


def _is_lowered(row: Values, explanation: Values) -> bool:
    """Whether a row was solved at a smaller rate than the one asked for."""
    rate, asked = row.get("rate"), explanation["settings"].get("rate")
    return rate is not None and asked is not None and bool(rate < 0.999 * asked)


def _cost(explanation: Values) -> str:
    """Time and sample passes of the whole explanation."""
    rows = [row for text in explanation["texts"] for row in text["rows"]]
    forward, backward = (sum(row[key] for row in rows) for key in ("n_forward", "n_backward"))
    return (
        f"{numbers.duration(explanation['seconds'])}, {forward} forward and {backward} backward sample passes"
    )


def _picked(found: Sequence[float | None], order: Sequence[int], digits: int) -> list[float | None]:
    """The numbers in the table's order, with the digits that a reader needs, so that many of them stay small."""
    return [
        float(f"{value:.{digits}g}") if numbers.known(value) else None for value in (found[u] for u in order)
    ]
