"""Labels: the words and numbers written for the plain values of an explanation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from interp_plugin.rendering import shades

TIED = "≈"

Values = Mapping[str, Any]


def printable(text: str) -> str:
    """The text with everything a terminal could obey (escape sequences, line ends) written out.

    Example::

        >>> printable("a\\x1b[1m")
        'a\\\\x1b[1m'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def row_label(row: Values) -> str:
    """Name of a row: its layer, and the position of its state if it has one.

    Example::

        >>> row_label({"layer": 3, "position": None}), row_label({"layer": "output", "position": 5})
        ('layer 3', 'output @5')
    """
    layer, position = row["layer"], row.get("position")
    name = printable(layer) if isinstance(layer, str) else f"layer {layer}"
    return name if position is None else f"{name} @{position}"


def is_erased(explanation: Values) -> bool:
    """Whether tokens were erased; otherwise they bore noise."""
    return explanation.get("settings", {}).get("erased") is not None


def values(row: Values) -> Sequence[float | None]:
    """What a row is drawn by: the answer lost with each unit where tokens were erased, otherwise nats kept."""
    found: Sequence[float | None] = row["erased"] if "erased" in row else row["kept"]
    return found


def shares(row: Values) -> list[float]:
    """The place of each value on its row's scale: 0 to 1, or -1 to 1 where tokens were erased."""
    if "erased" in row:
        return shades.signed_shares(row["erased"], row["standard_error"])
    return shades.shares(row["kept"], row["standard_error"], 0.0)


def quantity(explanation: Values) -> str:
    """What the values are, in a few words."""
    return "lost when erased" if is_erased(explanation) else "information kept, nats"


def number(value: float | None, digits: int) -> str:
    """A number with so many digits after the point; "-" where it is not known."""
    return "-" if value is None else f"{value:.{digits}f}"


def rounded(kept: Sequence[float | None], errors: Sequence[float | None]) -> list[tuple[str, str]]:
    """One row's values and errors: four significant digits for its highest value, errors to the same place.

    Example::

        >>> rounded([123.44, None], [0.26, 0.26])
        [('123.4', '±0.3'), ('-', '±0.3')]
    """
    highest = max((abs(value) for value in kept if value is not None), default=0.0)
    digits = min(3, max(0, 3 - math.floor(math.log10(highest)))) if highest > 0 else 1
    pairs = zip(kept, errors, strict=True)
    return [(number(value, digits), f"±{number(error, digits)}") for value, error in pairs]


def tied(row: Values) -> list[bool]:
    """Per unit: within two standard errors of the next one in rank.  False where the row does not say."""
    return list(row.get("tied") or [False] * len(values(row)))


def any_tied(explanation: Values) -> bool:
    return any(any(tied(row)) for text in explanation["texts"] for row in text["rows"])


def unit_name(explanation: Values) -> str:
    """What one unit is: "token", "word" or "sentence"."""
    return printable(str(explanation.get("granularity") or "token"))


def legend(explanation: Values) -> str:
    """What the numbers and shades mean: unit, sign, scale, marks."""
    unit = unit_name(explanation)
    lines = (
        [_erased_legend(explanation)]
        if is_erased(explanation)
        else [
            f"Information kept, in nats, ± its standard error: high = the layer still holds this {unit}, 0 = noise "
            "far beyond the spread of the inputs goes unnoticed. Shade: from 0 to each layer's highest; compare "
            "shades within a layer. E: regime index, 1 = small-noise regime."
        ]
    )
    if unit != "token":
        how = {"sum": "the sum", "max": "the highest"}.get(str(explanation.get("aggregate")), "the mean")
        lines.append(f"A {unit}'s value is {how} over its tokens.")
    if any_tied(explanation):
        lines.append(f"{TIED}: within two standard errors of the next {unit} in rank, so not told apart.")
    rows = [row for text in explanation["texts"] for row in text["rows"]]
    if not all(row["converged"] for row in rows):
        lines.append(
            "Not converged: the passes ran out before the errors were as small as the tolerance asks; ± says what they "
            "are. More passes help: --max-passes 1000, in Python Solver(max_passes=1000)."
        )
    lower = {row_label(row): row["rate"] for row in rows if is_lowered(row, explanation)}
    if lower:
        where = ", ".join(f"{label} at {rate:.1g}" for label, rate in lower.items())
        lines.append(
            f"Solved at a smaller rate than {explanation['settings']['rate']:.3g}: {where}. At the one asked for the "
            "map would depend on the samples. The nats of such a row compare with one another, not with other rows'."
        )
    if any(row.get("position") is not None for row in rows):
        lines.append("@5: the state is the hidden vector at position 5, counted from 0.")
    return " ".join(lines)


def _erased_legend(explanation: Values) -> str:
    unit, how = unit_name(explanation), printable(str(explanation["settings"]["erased"]))
    return (
        f"Lost when the {unit} is erased ({how}), ± its standard error, on average over erasures of the others: of the "
        "output, nats of the log-odds of the class, or of the log probability of a language model's target; of a "
        f"layer, D, the distance that its state moves. Blue: the answer needs the {unit}; red: it speaks against it. "
        "Shade: up to each row's largest; compare shades within a row."
    )


def is_lowered(row: Values, explanation: Values) -> bool:
    """Whether a row was solved at a smaller rate than the one asked for.

    Example::

        >>> is_lowered({"rate": 0.001}, {"settings": {"rate": 0.1}})
        True
    """
    rate, asked = row.get("rate"), explanation["settings"].get("rate")
    return rate is not None and asked is not None and rate < 0.999 * asked


def rate(row: Values, explanation: Values) -> str | None:
    """The rate of a row that was solved at a smaller one than asked for, as text."""
    return f"{row['rate']:.1g}" if is_lowered(row, explanation) else None


def cost(explanation: Values) -> str:
    """Time and sample passes of the whole explanation."""
    rows = [row for text in explanation["texts"] for row in text["rows"]]
    forward, backward = (sum(row[key] for row in rows) for key in ("n_forward", "n_backward"))
    return f"{explanation['seconds']:.2f} s, {forward} forward and {backward} backward sample passes"


def yardstick(explanation: Values) -> str | None:
    """The caveat of an explanation made without ``state_std``; None with one."""
    if explanation["settings"]["state_std"]:
        return None
    return (
        "Made without calibration (state_std): each text is its own yardstick, so values of different layers "
        "compare only roughly."
    )


def prediction(text: Values) -> list[tuple[str, str]]:
    """What is known of the model's output on a text, as (name, value).

    Example::

        >>> prediction({"predicted": "good", "probability": 0.98712, "target": None})
        [('predicted', 'good'), ('probability', '0.987')]
    """
    facts = []
    if text["predicted"] is not None:
        facts.append(("predicted", printable(text["predicted"])))
    if text["probability"] is not None:
        facts.append(("probability", f"{text['probability']:.3f}"))
    if text["target"] is not None:
        facts.append(("target", printable(text["target"])))
    return facts
