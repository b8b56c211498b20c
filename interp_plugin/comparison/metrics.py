"""The metrics of a study by name; among them plausibility: scores compared with rationales, which annotators marked."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from interp_plugin.comparison.erasure import Bounds, erasure, log_odds, normalised, soft_erasure
from interp_plugin.comparison.interface import REMOVALS, Metric, Trial
from interp_plugin.comparison.robustness import (
    infidelity,
    max_sensitivity,
    seed_stability,
    weight_randomisation,
)
from interp_plugin.text.models import Encoding

OVERLAP = 0.5
"""Least intersection over union of two spans that match."""


def rationale_tokens(rationale: Any, encoding: Encoding) -> Tensor:
    """The tokens of a rationale, (T,), bool.

    Args:
        rationale: spans of characters, (start, stop), for a pair of texts (0 or 1, start, stop); or a mask (0 or 1)
            of the text's words, separated by white space, of its tokens, or of its tokens without special
            ones.  Or one of these as JSON.

    Raises:
        ValueError: another value, or one that does not fit the text.

    Examples::
        >>> encoding = Encoding("a film", None, ("[CLS]", "a", "film", "[SEP]"), (None, (0, 0, 1), (0, 2, 6), None), ())
        >>> rationale_tokens([(2, 6)], encoding).int().tolist(), rationale_tokens([0, 1], encoding).int().tolist()
        ([0, 0, 1, 0], [0, 0, 1, 0])
    """
    parts = _as_list(rationale)
    if all(isinstance(part, (bool, int, float)) and part in (0, 1) for part in parts) and parts:
        return _of_mask([bool(part) for part in parts], encoding)
    chosen = torch.zeros(len(encoding.offsets), dtype=torch.bool)
    for part in parts:
        segment, start, stop = _span(part, encoding)
        for token, offset in enumerate(encoding.offsets):
            if offset is not None and offset[0] == segment and offset[1] < stop and start < offset[2]:
                chosen[token] = True
    return chosen


def _as_list(rationale: Any) -> list[Any]:
    try:
        plain = json.loads(rationale) if isinstance(rationale, str) else rationale
        return list(plain.tolist() if hasattr(plain, "tolist") else plain)
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(
            f"its rationale is {rationale!r}; give a list of spans of characters, or a mask of words or tokens"
        ) from error


def _of_mask(mask: list[bool], encoding: Encoding) -> Tensor:
    words = [] if encoding.pair else [found.span() for found in re.finditer(r"\S+", encoding.text)]
    real = torch.tensor([offset is not None for offset in encoding.offsets])
    if len(mask) == len(words):
        return rationale_tokens([span for span, chosen in zip(words, mask) if chosen], encoding)
    given = torch.tensor(mask)
    if len(mask) == len(real):
        return given
    if len(mask) == int(real.sum()):
        return torch.zeros_like(real).masked_scatter(real, given)
    raise ValueError(
        f"its rationale is a mask of {len(mask)}, and the text has {len(words)} words, {len(real)} tokens and "
        f"{int(real.sum())} without special ones; give one number for each of those, or spans of characters"
    )


def _span(part: Any, encoding: Encoding) -> tuple[int, int, int]:
    """Which text of the pair, and start and stop in its characters."""
    numbers = list(part) if isinstance(part, Sequence) and not isinstance(part, str) else []
    segment, start, stop = [0, *numbers] if len(numbers) == 2 else numbers if len(numbers) == 3 else (0, 0, 0)
    texts = (encoding.text, encoding.pair)
    if segment not in (0, 1) or not 0 <= start < stop <= len(texts[segment] or ""):
        raise ValueError(
            f"its rationale has the span {part!r}, which is not in the text; give (start, stop) in characters, or a "
            "mask of words or tokens"
        )
    return segment, start, stop


def auprc(scores: Tensor, rationale: Tensor) -> float:
    """Area under the precision-recall curve (average precision) of scores, (n,), for a rationale, (n,), bool.

    Examples::
        >>> round(auprc(torch.tensor([0.9, 0.1, 0.5]), torch.tensor([True, True, False])), 4)
        0.8333
    """
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(rationale.numpy(), scores.numpy()))


def top(order: Sequence[int], rationale: Tensor) -> Tensor:
    """The first tokens of an order, as many as the rationale has, (T,), bool."""
    chosen = torch.zeros_like(rationale)
    chosen[list(order[: int(rationale.sum())])] = True
    return chosen


def token_f1(chosen: Tensor, rationale: Tensor) -> float:
    """F1 of chosen tokens, (T,), bool, for a rationale, (T,), bool.

    Examples::
        >>> token_f1(torch.tensor([True, True, False]), torch.tensor([True, False, False]))
        0.6666666666666666
    """
    return 2 * int((chosen & rationale).sum()) / int(chosen.sum() + rationale.sum())


def spans(chosen: Tensor) -> list[tuple[int, int]]:
    """Runs of neighbouring tokens, (start, stop) each.

    Examples::
        >>> spans(torch.tensor([True, True, False, True]))
        [(0, 2), (3, 4)]
    """
    inside = [False, *chosen.tolist(), False]
    ends = [place for place in range(len(inside) - 1) if inside[place] != inside[place + 1]]
    return list(zip(ends[::2], ends[1::2]))


def iou_f1(chosen: Tensor, rationale: Tensor, overlap: float = OVERLAP) -> float:
    """F1 of the spans of chosen tokens; a span counts where it overlaps one of the rationale's enough.

    Args:
        chosen, rationale: (T,), bool.
        overlap: least intersection over union.

    Examples::
        >>> iou_f1(torch.tensor([True, True, False, True]), torch.tensor([True, True, True, False]))
        0.6666666666666666
    """
    ours, theirs = spans(chosen), spans(rationale)
    found = sum(max((_overlap(span, other) for other in theirs), default=0.0) >= overlap for span in ours)
    return 2 * found / (len(ours) + len(theirs))


def plausibility(name: str, measure: Callable[[Trial, Tensor], float], source: str) -> Metric:
    """A metric of scores and a rationale; None without a rationale, or if it has all tokens that are ranked."""

    def measured(trial: Trial) -> float | None:
        if trial.rationale is None:
            return None
        if trial.rationale.shape != (trial.inputs.length,):
            raise ValueError(
                f"the rationale has shape {tuple(trial.rationale.shape)} for {trial.inputs.length} tokens; give one "
                "value, 0 or 1, for each"
            )
        players = trial.inputs.players
        rationale = trial.rationale.bool() & players
        if not rationale.any() or bool((rationale == players).all()):
            return None
        return measure(trial, rationale)

    return Metric(name, measured, higher_is_better=True, source=source)


def _auprc(trial: Trial, rationale: Tensor) -> float:
    players = trial.inputs.players
    return auprc(trial.scores[players], rationale[players])


def _token_f1(trial: Trial, rationale: Tensor) -> float:
    return token_f1(top(trial.order(), rationale), rationale)


def _iou_f1(trial: Trial, rationale: Tensor) -> float:
    return iou_f1(top(trial.order(), rationale), rationale)


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> float:
    common = min(one[1], other[1]) - max(one[0], other[0])
    return max(0, common) / (one[1] - one[0] + other[1] - other[0] - max(0, common))


_BOUNDS = Bounds()
_PAIR = (("comprehensiveness", False), ("sufficiency", True))  # and whether the important tokens are kept
_INFIDELITY = "Yeh et al. 2019; Captum infidelity, normalised"
_ADEBAYO = "Adebayo et al. 2018, cascading randomisation"
_LENGTH = "; as many tokens as the rationale has"  # are chosen
_ALL = (
    *(erasure(f"comprehensiveness ({removal})", removal) for removal in REMOVALS),
    *(erasure(f"sufficiency ({removal})", removal, keep=True) for removal in REMOVALS),
    erasure("comprehensiveness (full curve)", bins=None),
    erasure("sufficiency (full curve)", bins=None, keep=True),
    *(
        Metric(
            f"normalised {name}", partial(normalised, bounds=_BOUNDS, keep=keep), higher_is_better=not keep,
            source="Edin et al. 2025 (Normalized AOPC)", judges="class", removal="mask",
        )
        for name, keep in _PAIR
    ),
    *(
        erasure(f"contrastive {name} ({removal})", removal, keep=keep, contrast=True)
        for name, keep in _PAIR
        for removal in REMOVALS
    ),
    Metric(
        "log-odds", log_odds, higher_is_better=False, source="Shrikumar et al. 2017; Chen et al. 2019 (L-Shapley)",
        judges="class", removal="mask",
    ),
    *(erasure(f"state erasure ({removal})", removal, judges="state") for removal in REMOVALS),
    erasure("state erasure (full curve)", judges="state", bins=None),
    *(erasure(f"state sufficiency ({removal})", removal, judges="state", keep=True) for removal in REMOVALS),
    erasure("state sufficiency (full curve)", judges="state", bins=None, keep=True),
    *(
        Metric(
            f"soft {name}", partial(soft_erasure, keep=keep), higher_is_better=not keep,
            source="Zhao and Aletras 2023, with ranks as probabilities",
        )
        for name, keep in _PAIR
    ),
    Metric(
        "infidelity (noise)", partial(infidelity, kind="noise"), higher_is_better=False, source=_INFIDELITY
    ),
    Metric(
        "infidelity (mask)", partial(infidelity, kind="mask"), higher_is_better=False, source=_INFIDELITY,
        removal="mask",
    ),
    Metric(
        "max-sensitivity", max_sensitivity, higher_is_better=False,
        source="Yeh et al. 2019, def. 2.2; Captum sensitivity_max",
    ),
    Metric("weight randomisation", weight_randomisation, higher_is_better=False, source=_ADEBAYO),
    Metric(
        "weight randomisation (all)", partial(weight_randomisation, embeddings=True), higher_is_better=False,
        source=_ADEBAYO,
    ),
    Metric("seed stability", seed_stability, higher_is_better=True, source="Spearman over tokens, between seeds"),
    plausibility("AUPRC", _auprc, "DeYoung et al. 2020 (ERASER), sec. 4"),
    plausibility("token-F1", _token_f1, "DeYoung et al. 2020 (ERASER), sec. 4" + _LENGTH),
    plausibility("IOU-F1", _iou_f1, "DeYoung et al. 2020 (ERASER), sec. 4" + _LENGTH),
)  # fmt: skip
QUICK = (
    "comprehensiveness (delete)",
    "sufficiency (delete)",
    "state erasure (delete)",
    "state sufficiency (delete)",
)
"""Metrics for a first look: every model supports deletion, and no method of ``methods.quick`` uses it itself."""
METRICS: Mapping[str, Metric] = MappingProxyType({metric.name: metric for metric in _ALL})
"""Name -> metric, in the order of tables.  ``robustness.two_models`` is not among them, as it needs a second model."""
