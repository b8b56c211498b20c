"""The metrics of a study, by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

import torch

from interp_plugin.comparison.agreement import seed_stability, weight_randomisation
from interp_plugin.comparison.bounds import Bounds, normalised
from interp_plugin.comparison.erasure import erasure, log_odds
from interp_plugin.comparison.infidelity import infidelity
from interp_plugin.comparison.inputs import REMOVALS, Inputs
from interp_plugin.comparison.judged import Metric
from interp_plugin.comparison.plausibility import AUPRC, IOU_F1, TOKEN_F1
from interp_plugin.comparison.sensitivity import max_sensitivity
from interp_plugin.comparison.soft_erasure import soft_erasure

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
METRICS: Mapping[str, Metric] = MappingProxyType({metric.name: metric for metric in _ALL})
"""In the order of tables.  :func:`~interp_plugin.comparison.agreement.two_models` needs a second model, and is not
among them."""


def chosen(metrics: Iterable[str | Metric]) -> list[Metric]:
    """Metrics, given by name or as they are.

    Raises:
        ValueError: a name that is not known, or two metrics of one name.

    Examples::
        >>> [metric.higher_is_better for metric in chosen(["log-odds", "AUPRC"])]
        [False, True]
        >>> chosen(["accuracy"])
        Traceback (most recent call last):
            ...
        ValueError: metric 'accuracy' is not known; choose from 'comprehensiveness (mask)', ...
    """
    found: list[Metric] = []
    for metric in metrics:
        if isinstance(metric, str) and metric not in METRICS:
            raise ValueError(f"metric {metric!r} is not known; choose from {', '.join(map(repr, METRICS))}")
        found.append(METRICS[metric] if isinstance(metric, str) else metric)
    names = [metric.name for metric in found]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"there are two metrics named {twice[0]!r}; give each its own name")
    return found


def fitting(inputs: Inputs, metrics: Iterable[Metric] | None = None) -> list[Metric]:
    """The metrics that take tokens away only in ways the model bears (some have no mask token, say).

    Args:
        inputs: any text of the study.
        metrics: what to choose from; None: :data:`METRICS`.

    Examples::
        >>> net = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.LSTM(4, 3, batch_first=True))
        >>> from interp_plugin.text.models import PlainModel
        >>> inputs = Inputs(model := PlainModel(net, lambda text: [1, 2], net[0]), model.encode("a film"))
        >>> [metric.name for metric in fitting(inputs)][:2]
        ['comprehensiveness (delete)', 'sufficiency (delete)']
    """
    every = torch.ones(1, inputs.length, dtype=torch.bool)
    refused = set()
    for removal in REMOVALS:
        try:
            list(inputs.without(every, removal))
        except ValueError:
            refused.add(removal)
    return [
        metric
        for metric in (METRICS.values() if metrics is None else metrics)
        if metric.removal not in refused
    ]
