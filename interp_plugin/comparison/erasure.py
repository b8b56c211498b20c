"""Tokens taken away in the order of their scores, and how much of the answer goes with them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from interp_plugin.comparison.inputs import Removal
from interp_plugin.comparison.judged import Metric, Trial
from interp_plugin.text.batch import State

BINS = (0.05, 0.1, 0.2, 0.5)
"""Shares of the players that are taken away, or left."""
TOP = 0.2
"""Share that the log-odds take away."""
_ERASER = "DeYoung et al. 2020 (ERASER)"
_SAMEK = "Samek et al. 2017"


def bin_counts(players: int, bins: Sequence[float] = BINS) -> list[int]:
    """How many tokens each share of them is: rounded up, one at least.

    Raises:
        ValueError: a share that is not above 0 and at most 1.

    Examples::
        >>> bin_counts(20), bin_counts(7)
        ([1, 2, 4, 10], [1, 1, 2, 4])
    """
    wrong = [share for share in bins if not 0 < share <= 1]
    if wrong or not bins:
        raise ValueError(
            f"bins are {tuple(bins)}; give shares of the tokens above 0 and up to 1, one or more"
        )
    return [max(1, math.ceil(share * players - 1e-9)) for share in bins]  # 0.07 * 100 is above 7


def kept_without(order: Sequence[int], counts: Sequence[int], length: int) -> Tensor:
    """The tokens that stay when the first ones of an order go, (counts, T), bool.

    Args:
        order: the tokens that may go, first to last; all others always stay.
        counts: how many go, row by row.
        length: T.

    Examples::
        >>> kept_without([2, 1], [0, 1, 2], 4).int()
        tensor([[1, 1, 1, 1],
                [1, 1, 0, 1],
                [1, 0, 0, 1]], dtype=torch.int32)
    """
    rank = torch.full((length,), length)
    rank[list(order)] = torch.arange(len(order))
    return rank >= torch.tensor(counts).unsqueeze(1)


def kept_only(order: Sequence[int], counts: Sequence[int], length: int) -> Tensor:
    """The tokens that stay when of an order only the first ones do, (counts, T), bool.

    Examples::
        >>> kept_only([2, 1], [0, 1], 4).int()
        tensor([[1, 0, 0, 1],
                [1, 0, 1, 1]], dtype=torch.int32)
    """
    return kept_without(order[::-1], [len(order) - count for count in counts], length)


def worth(answers: Tensor, state: State | None) -> Tensor:
    """Answers as metrics weigh them, float64: of a class its probability, of a state minus its distance D.

    Examples::
        >>> worth(torch.tensor([0.0, 100.0]), None)
        tensor([0.5000, 1.0000], dtype=torch.float64)
    """
    return answers.double() if state is not None else answers.double().sigmoid()


def lost(trial: Trial, kept: Tensor, removal: Removal) -> Tensor:
    """How much of the answer is lost when tokens go: p(x) - p(x'), or how far the state is moved, D.

    Args:
        kept: (R, T), bool; the tokens that stay in each row.

    Returns:
        (R,), float64.
    """
    whole = torch.ones(1, kept.shape[1], dtype=torch.bool)
    values = worth(trial.answer.of_kept(torch.cat([whole, kept]), removal), trial.state)
    return values[0] - values[1:]


def can_remove(trial: Trial, kept: Tensor, removal: Removal) -> bool:
    """Whether there is an order at all (two players), and no row that deletion or hiding would leave empty."""
    enough = int(trial.inputs.players.sum()) > 1
    return enough and (removal == "mask" or bool(kept.any(1).all()))


def aopc(trial: Trial, kept: Tensor, removal: Removal) -> float | None:
    """Area over the perturbation curve: the mean of what is :func:`lost` over rows, (R, T).

    None where the tokens cannot go in this way.
    """
    return float(lost(trial, kept, removal).mean()) if can_remove(trial, kept, removal) else None


def erasure(
    name: str,
    removal: Removal = "mask",
    *,
    judges: Literal["class", "state"] = "class",
    keep: bool = False,
    bins: Sequence[float] | None = BINS,
) -> Metric:
    """Comprehensiveness or sufficiency of an order of tokens, as the mean over shares of them.

    Comprehensiveness takes the most important tokens away: much should be lost.  Sufficiency leaves only
    them: little should be lost.  What is lost is the class's probability, or how far the state moves.

    Args:
        name: in tables.
        removal: how tokens go.
        judges: answers about a class or about a state (with deletion: of the tokens that stay).
        keep: sufficiency.
        bins: the shares; None: the whole curve, one token after another until none is left.

    Examples::
        >>> from interp_plugin import huggingface
        >>> from interp_plugin.comparison.inputs import Inputs
        >>> from interp_plugin.comparison.judged import Method
        >>> model = huggingface.HuggingFaceModel(*huggingface.load(huggingface.default_model_path()))
        >>> inputs = Inputs(model, model.encode("a good film"))
        >>> scores = torch.tensor([0.0, 0.1, 0.9, 0.2, 0.0])
        >>> trial = Trial(inputs, 1, None, Method("by hand", lambda *question: scores), scores)
        >>> metric = erasure("comprehensiveness (delete)", "delete")
        >>> metric.higher_is_better, round(metric(trial), 2)
        (True, 0.31)
    """
    if bins is not None:
        bin_counts(1, bins)  # says at once what is wrong with them

    def measure(trial: Trial) -> float | None:
        order, length = trial.order(), trial.inputs.length
        if bins is None:
            steps = range(1, len(order) + 1)
            return aopc(trial, kept_without(order[::-1] if keep else order, steps, length), removal)
        counts = bin_counts(len(order), bins)
        return aopc(trial, (kept_only if keep else kept_without)(order, counts, length), removal)

    source = _SAMEK if bins is None else _ERASER
    return Metric(
        name,
        measure,
        higher_is_better=not keep,
        source=_of_states(source, judges),
        judges=judges,
        removal=removal,
    )


def log_odds(name: str = "log-odds", removal: Removal = "mask", top: float = TOP) -> Metric:
    """log p(x') - log p(x) without the top share of the tokens: the lower, the more they mattered."""
    bin_counts(1, [top])

    def measure(trial: Trial) -> float | None:
        order, length = trial.order(), trial.inputs.length
        kept = kept_without(order, [0, *bin_counts(len(order), [top])], length)
        if not can_remove(trial, kept, removal):
            return None
        whole, left = torch.nn.functional.logsigmoid(trial.answer.of_kept(kept, removal).double())
        return float(left - whole)

    source = "Shrikumar et al. 2017; Chen et al. 2019 (L-Shapley)"
    return Metric(name, measure, higher_is_better=False, source=source, judges="class", removal=removal)


def _of_states(source: str, judges: str) -> str:
    return f"as {source}, with the distance of states" if judges == "state" else source
