"""Rows of a text: choosing them, and what adds up over their units."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from interp_plugin.rendering.labels import row_label

Choice = int | str | tuple[int | str, int]  # a layer, or a layer and a position

Row = Mapping[str, Any]


def of_layer(text: Mapping[str, Any], layer: Choice | None) -> list[Row]:
    """The rows of one layer (all of them with None).

    Raises:
        ValueError: there are none.

    Example::

        >>> text = {"rows": [{"layer": 1, "position": 0}, {"layer": 1, "position": 1}]}
        >>> len(of_layer(text, 1)), len(of_layer(text, (1, 0)))
        (2, 1)
    """
    found = [row for row in text["rows"] if layer is None or _is(row, layer)]
    if not found:
        exists = ", ".join(row_label(row) for row in text["rows"]) or "none"
        raise ValueError(f"layer {layer!r} is not in this text; there are: {exists}")
    return found


def one(text: Mapping[str, Any], layer: Choice | None) -> Row:
    """The one row of a layer, or of a pair (layer, position); the last row with None.

    Raises:
        ValueError: there is none, or there is one per position.
    """
    found = of_layer(text, layer)
    if layer is not None and len(found) > 1:
        pairs = ", ".join(repr((row["layer"], row.get("position"))) for row in found)
        raise ValueError(f"layer {layer!r} has a row per position: choose one of {pairs}")
    return found[-1]


def total(row: Row) -> tuple[float, float]:
    """Information kept of all units together and its standard error, nats; NaN where a value is missing.

    Without the row's own total_standard_error, the units' errors count as independent.

    Example::

        >>> total({"kept": [1.0, 2.0], "standard_error": [0.3, 0.4]})
        (3.0, 0.5)
    """
    kept = _known(row["kept"])
    error = row.get("total_standard_error")
    if error is None:
        error = math.hypot(*_known(row["standard_error"]))
    return sum(kept), error


def sigma_errors(row: Row) -> list[float | None]:
    """Standard error of each unit's sigma, in sigma's units, (T,).

    The error of information kept is n times that of log sigma, where n counts the unit's elements (K per
    token). n follows from kept = n log(max_sigma / sigma) or from loss = n (log(2 pi e) / 2 + log sigma):
    whichever of the two logarithms is further from zero divides.

    Example::

        >>> row = {"sigma": [0.5], "max_sigma": 1.0, "kept": [6.931471806], "standard_error": [0.2],
        ...        "loss": [7.257912808]}
        >>> round(sigma_errors(row)[0], 6)
        0.01
    """
    columns = zip(row["sigma"], row["kept"], row["loss"], row["standard_error"], strict=True)
    return [_sigma_error(*column, row["max_sigma"]) for column in columns]


def _sigma_error(
    sigma: float | None,
    kept: float | None,
    loss: float | None,
    error: float | None,
    max_sigma: float | None,
) -> float | None:
    if sigma is None or kept is None or loss is None or error is None or not max_sigma or sigma <= 0:
        return None
    gap = math.log(max_sigma / sigma)
    entropy = math.log(2 * math.pi * math.e) / 2 + math.log(sigma)
    elements = kept / gap if abs(gap) > abs(entropy) else loss / entropy
    return sigma * error / elements if elements else None


def _is(row: Row, layer: Choice) -> bool:
    here = (row["layer"], row.get("position"))
    return here == layer if isinstance(layer, tuple) else here[0] == layer


def _known(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]
