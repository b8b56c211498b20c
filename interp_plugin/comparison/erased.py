"""Our methods for which tokens carry an answer: the erasure channel and the noise path."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from interp_plugin.attribution import LayerInformationErased, LayerInformationLoss
from interp_plugin.comparison.gradients import baseline_of
from interp_plugin.comparison.inputs import Answer, Inputs
from interp_plugin.comparison.judged import Score
from interp_plugin.method.erasure import Side, Way
from interp_plugin.method.solver import Solver
from interp_plugin.text.batch import State


def _reading(inputs: Inputs, target: int | None, state: State | None) -> Callable[..., Tensor]:
    """The answer as a function of the model's arguments, whose second is named as the attention mask it is."""
    answer = Answer(inputs, target, state)

    def read(ids: Tensor, attention_mask: Any = None, *others: Any) -> Tensor:
        masks = () if attention_mask is None else (attention_mask,)
        return answer.reading(ids, *masks, *others)

    return read


def _erased(
    inputs: Inputs, target: int | None, state: State | None, *, side: Side, ways: tuple[Way, ...]
) -> Tensor:
    method = LayerInformationErased(_reading(inputs, target, state), inputs.model.embedding)
    ids, *others = inputs.arguments
    scores = method.attribute(
        ids,
        baseline_of(inputs, "mean" if inputs.model.mask_id is None else "[MASK]"),
        additional_forward_args=tuple(others),
        side=side,
        ways=ways,
        seed=inputs.seed,
        return_input_shape=False,
    )
    return cast(Tensor, scores)[0]


def erased(side: Side = "damage", ways: tuple[Way, ...] = ("mask",)) -> Score:
    """dDelta/dp_i of the answer under the learned erasure channel, in 100 passes; [MASK] stands for erased tokens.

    Special tokens are never erased.  Where the model has no mask token, the mean of its embeddings stands for it.
    """
    return partial(_erased, side=side, ways=ways)


def noise_path(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """What each token adds to the answer on the way from white noise, (T,), in 36 passes; special tokens stay."""
    ids, *others = inputs.arguments
    scores = LayerInformationLoss(_reading(inputs, target, state), inputs.model.embedding).attribute(
        ids,
        additional_forward_args=tuple(others),
        token_mask=inputs.players.unsqueeze(0).to(ids.device),
        score="signed",
        return_input_shape=False,
        solver=Solver(seed=inputs.seed),
    )
    return torch.where(inputs.players.to(ids.device), cast(Tensor, scores)[0], 0.0)
