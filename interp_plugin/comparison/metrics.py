"""The metrics of a study by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from interp_plugin.comparison.erasure import Bounds, erasure, log_odds, normalised, soft_erasure
from interp_plugin.comparison.interface import REMOVALS, Metric
from interp_plugin.comparison.plausibility import AUPRC, IOU_F1, TOKEN_F1
from interp_plugin.comparison.robustness import (
    infidelity,
    max_sensitivity,
    seed_stability,
    weight_randomisation,
)

_BOUNDS = Bounds()
_ALL = (
    *(erasure(f"comprehensiveness ({removal})", removal) for removal in REMOVALS),
    *(erasure(f"sufficiency ({removal})", removal, keep=True) for removal in REMOVALS),
    erasure("comprehensiveness (full curve)", bins=None),
    erasure("sufficiency (full curve)", bins=None, keep=True),
    normalised("normalised comprehensiveness", _BOUNDS),
    normalised("normalised sufficiency", _BOUNDS, keep=True),
    log_odds(),
    *(erasure(f"state erasure ({removal})", removal, judges="state") for removal in REMOVALS),
    erasure("state erasure (full curve)", judges="state", bins=None),
    *(erasure(f"state sufficiency ({removal})", removal, judges="state", keep=True) for removal in REMOVALS),
    erasure("state sufficiency (full curve)", judges="state", bins=None, keep=True),
    soft_erasure("soft comprehensiveness"),
    soft_erasure("soft sufficiency", keep=True),
    infidelity("infidelity (noise)", "noise"),
    infidelity("infidelity (mask)", "mask"),
    max_sensitivity(),
    weight_randomisation(),
    weight_randomisation("weight randomisation (all)", embeddings=True),
    seed_stability(),
    AUPRC,
    TOKEN_F1,
    IOU_F1,
)
QUICK = (
    "comprehensiveness (delete)",
    "sufficiency (delete)",
    "state erasure (delete)",
    "state sufficiency (delete)",
)
"""Metrics for a first look: every model supports deletion, and no method of ``methods.quick`` uses it itself."""
METRICS: Mapping[str, Metric] = MappingProxyType({metric.name: metric for metric in _ALL})
"""Name -> metric, in the order of tables.  ``robustness.two_models`` is not among them, as it needs a second model."""


def chosen(metrics: Iterable[str | Metric] | str | Metric | None = None) -> list[Metric]:
    """The metrics of these names, and given metrics as they are; None: all of :data:`METRICS`.

    Raises:
        ValueError: an unknown name, or two metrics of one name.

    Examples::
        >>> [metric.higher_is_better for metric in chosen(["log-odds", "AUPRC"])]
        [False, True]
        >>> chosen(["accuracy"])
        Traceback (most recent call last):
            ...
        ValueError: metric 'accuracy' is not known; choose from 'comprehensiveness (mask)', ...
    """
    if metrics is None:
        return list(METRICS.values())
    found: list[Metric] = []
    for metric in [metrics] if isinstance(metrics, (str, Metric)) else metrics:
        if isinstance(metric, str) and metric not in METRICS:
            raise ValueError(f"metric {metric!r} is not known; choose from {', '.join(map(repr, METRICS))}")
        found.append(METRICS[metric] if isinstance(metric, str) else metric)
    names = [metric.name for metric in found]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"there are two metrics named {twice[0]!r}; give each its own name")
    return found
