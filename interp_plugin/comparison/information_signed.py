"""Our own method asked about the probability of one class: what it takes to believe it, and what speaks against it."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from interp_plugin.attribution import InformationLoss, Score
from interp_plugin.batches import State
from interp_plugin.comparison.inputs import Answer, Inputs
from interp_plugin.problem import cap_of_embedding
from interp_plugin.solver import Solver
from interp_plugin.state import module_of

RATE = 0.3  # chosen out of 0.03, 0.1, 0.3 and 1 by comprehensiveness on other texts than those of the README's table


def of_log_probability(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """Nats that the log-probability of the class keeps, (T,), measured in nats (v = 1).

    It cannot rise above 0, so where the model is sure noise on what speaks for the class shows, and noise on
    what speaks against it hardly does; scores and log-odds feel both alike.
    """
    return _kept(inputs, target, state, "kept")


def signed_information(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """The same below 0 for tokens that push the log-probability down, (T,)."""
    return _kept(inputs, target, state, "signed")


def _kept(inputs: Inputs, target: int | None, state: State | None, score: Score) -> Tensor:
    answer = Answer(inputs, target, state)
    method = InformationLoss(lambda embeddings: torch.nn.functional.logsigmoid(answer(embeddings)))
    scores = method.attribute(
        inputs.embeddings,
        state_std=1.0,
        rate=RATE,
        max_sigma=cap_of_embedding(module_of(inputs.model.embedding)),
        score=score,
        return_input_shape=False,
        solver=Solver(seed=inputs.seed),
    )
    return cast(Tensor, scores)[0]
