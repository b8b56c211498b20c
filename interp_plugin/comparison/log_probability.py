"""Our own method asked about the log-probability of one class: what it takes to believe it."""

from __future__ import annotations

from typing import cast

from torch import Tensor
from torch.nn.functional import logsigmoid

from interp_plugin.attribution import LayerInformationLoss
from interp_plugin.comparison.information import RATE
from interp_plugin.comparison.inputs import Answer, Inputs
from interp_plugin.method.solver import Solver
from interp_plugin.text.batch import State


def of_log_probability(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """Nats that the log-probability of the class keeps, (T,), measured in nats (v = 1).

    It cannot rise above 0: where the model is sure of the class, noise that drowns what speaks for it shows, and
    noise that drowns what speaks against it hardly does.  The scores themselves feel both alike.
    """
    answer = Answer(inputs, target, state)
    ids, *others = inputs.arguments

    def log_probability(*arguments: Tensor) -> Tensor:
        return logsigmoid(answer.reading(*arguments))

    scores = LayerInformationLoss(log_probability, inputs.model.embedding).attribute(
        ids,
        additional_forward_args=tuple(others),
        state_std=1.0,
        rate=RATE,
        score="kept",
        return_input_shape=False,
        solver=Solver(seed=inputs.seed, lower_rate=False),
    )
    return cast(Tensor, scores)[0]
