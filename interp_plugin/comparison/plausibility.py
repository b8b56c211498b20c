"""Scores against the tokens that people hold to be the reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from interp_plugin.comparison.judged import Metric, Trial

OVERLAP = 0.5
"""Share of their union that two spans must have in common to be one find."""


def auprc(scores: Tensor, rationale: Tensor) -> float:
    """Area under the precision-recall curve (average precision) of scores, (n,), for a rationale, (n,), bool.

    Examples::
        >>> round(auprc(torch.tensor([0.9, 0.1, 0.5]), torch.tensor([True, True, False])), 4)
        0.8333
    """
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(rationale.numpy(), scores.numpy()))


def top(order: Sequence[int], rationale: Tensor) -> Tensor:
    """As many first tokens of an order as the rationale has, (T,), bool."""
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
    """Runs of neighbouring tokens: the first, and the one after the last.

    Examples::
        >>> spans(torch.tensor([True, True, False, True]))
        [(0, 2), (3, 4)]
    """
    inside = [False, *chosen.tolist(), False]
    ends = [place for place in range(len(inside) - 1) if inside[place] != inside[place + 1]]
    return list(zip(ends[::2], ends[1::2]))


def iou_f1(chosen: Tensor, rationale: Tensor, overlap: float = OVERLAP) -> float:
    """F1 of the spans of chosen tokens; a span is found where one of the rationale's overlaps it enough.

    Args:
        chosen, rationale: (T,), bool.
        overlap: intersection over union, at least.

    Examples::
        >>> iou_f1(torch.tensor([True, True, False, True]), torch.tensor([True, True, True, False]))
        0.6666666666666666
    """
    ours, theirs = spans(chosen), spans(rationale)
    found = sum(max((_overlap(span, other) for other in theirs), default=0.0) >= overlap for span in ours)
    return 2 * found / (len(ours) + len(theirs))


def plausibility(name: str, measure: Callable[[Trial, Tensor], float], source: str) -> Metric:
    """A metric of scores and a rationale among the players; None without one, or if it is all of them."""

    def measured(trial: Trial) -> float | None:
        if trial.rationale is None:
            return None
        if trial.rationale.shape != (trial.inputs.length,):
            raise ValueError(
                f"the rationale has shape {tuple(trial.rationale.shape)} for {trial.inputs.length} tokens; give one "
                "truth value for each"
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


_LENGTH = "; as many tokens as the rationale has"
AUPRC = plausibility("AUPRC", _auprc, "DeYoung et al. 2020 (ERASER), sec. 4")
TOKEN_F1 = plausibility("token-F1", _token_f1, "DeYoung et al. 2020 (ERASER), sec. 4" + _LENGTH)
IOU_F1 = plausibility("IOU-F1", _iou_f1, "DeYoung et al. 2020 (ERASER), sec. 4" + _LENGTH)
