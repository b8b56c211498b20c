"""Rows of a text: choosing them, and what adds up over their units."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from interp_plugin.rendering.labels import row_label, values

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
    """What a row keeps (or loses) of all units together and its standard error; NaN where a value is missing.

    Without the row's own total, the units' sum; without its error, theirs count as independent.

    Example::

        >>> total({"kept": [1.0, 2.0], "standard_error": [0.3, 0.4]})
        (3.0, 0.5)
    """
    nats, error = row.get("total"), row.get("total_standard_error")
    if nats is None:
        nats = sum(_known(values(row)))
    if error is None:
        error = math.hypot(*_known(row["standard_error"]))
    return nats, error


def _is(row: Row, layer: Choice) -> bool:
    here = (row["layer"], row.get("position"))
    return here == layer if isinstance(layer, tuple) else here[0] == layer


def _known(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]
