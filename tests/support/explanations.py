"""Made-up plain values of explanations, as from ``Explanation.to_dict()``, for tests of the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

K = 312  # elements of a token's embedding


def row(
    kept: Sequence[float | None], layer: int | str = 1, position: int | None = None, error: float = 0.26
) -> dict[str, Any]:
    """One row whose sigma, loss and kept agree."""
    std = 0.05
    at_cap = K / 2 * math.log(1 + 0.01)
    # kept + at_cap = K / 2 log(1 + std^2 / sigma^2)
    sigma = [
        None if value is None else std / math.sqrt(math.expm1(min(2 * (value + at_cap) / K, 700)))
        for value in kept
    ]
    entropy = K / 2 * math.log(2 * math.pi * math.e)
    return {
        "layer": layer,
        "position": position,
        "sigma": sigma,
        "loss": [None if value is None else entropy + K * math.log(value) for value in sigma],
        "kept": list(kept),
        "standard_error": [error] * len(kept),
        "loss_standard_error": [error] * len(kept),
        "sigma_standard_error": [None if value is None else value * error / K for value in sigma],
        "max_sigma": 10 * std,
        "input_std": std,
        "regime_index": 1.068,
        "distortion": 0.05,
        "converged": True,
        "n_forward": 256,
        "n_backward": 128,
        "saturated": False,
    }


def text(
    units: Sequence[str], rows: Sequence[dict[str, Any]] | None = None, **changes: Any
) -> dict[str, Any]:
    """One text; its units are separated by spaces."""
    offsets, end = [], -1
    for unit in units:
        offsets.append([0, end + 1, end + 1 + len(unit)])
        end += 1 + len(unit)
    return {
        "text": " ".join(units),
        "pair": None,
        "predicted": "positive",
        "probability": 0.9871,
        "target": None,
        "units": list(units),
        "offsets": offsets,
        "rows": [row(falling(len(units)))] if rows is None else list(rows),
        **changes,
    }


def falling(n: int, highest: float = 123.4) -> list[float]:
    return [highest / (i + 1) for i in range(n)]


def explanation(*texts: dict[str, Any], state_std: bool = True, granularity: str = "token") -> dict[str, Any]:
    settings = {
        "model": "default_model",
        "noise_layer": "embeddings",
        "rate": 0.1,
        "seed": 7,
        "tolerance": 0.02,
        "draws": 16,
        "iterations": None,
        "state_std": state_std,
        "versions": {"torch": "2.13.0"},
    }
    return {"settings": settings, "seconds": 1.234, "granularity": granularity, "texts": list(texts)}


# Possible content of a hostile or unusual text
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</script><script>alert(2)</script>",
    "{{ 7 * 7 }}",
    "&lt;",
    "a\x1b[31m",
    "b\nc",
    "\u202eevil",
    "\ud800",
    "$x^2$",
    "映画",
    "😀",
    "قسم",
    "",
)
