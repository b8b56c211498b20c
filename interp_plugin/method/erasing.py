"""Erasing tokens of a model's input, in one way or several, and the damage that it does to the state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from interp_plugin.method.erasure import PRIOR_POINTS
from interp_plugin.method.objective import Objective, distortion
from interp_plugin.method.perturbation import NoisyModel, no_fastpath

Way = Literal["mask", "attention", "delete"]
"""How a token is erased: a baseline in its place, the same and hidden from attention, or left out of the input.

Of an input with all tokens erased nothing would be left, and baselines stand for them.
"""
Edit = Callable[[Way, Tensor, Tensor], NoisyModel]
"""(way, examples (R,), kept tokens (R, T)) -> the model on these rows with the other tokens hidden, or left out.

Of left out tokens every row has as many; such a model's inputs are whole, and nothing replaces what passes in it.
"""
FURTHER_WAY = 0.2  # weight of the damage by each way but the first


def check_ways(ways: str | Sequence[str]) -> tuple[Way, ...]:
    """The ways as a tuple, or a ValueError."""
    chosen: tuple[Any, ...] = (ways,) if isinstance(ways, str) else tuple(ways)
    if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(get_args(Way)):
        raise ValueError(
            f"ways is {ways!r}; choose one or more of {', '.join(map(repr, get_args(Way)))}, each once"
        )
    return chosen


class Erasing:
    """The examples of an objective with tokens erased.

    The damage is what a state of one number loses, and the distortion D of any other.  By several ways it is their
    weighted mean: each but the first weighs 0.2.

    Args:
        objective: its states.
        baseline: what stands in an erased token's place, broadcasts to (B, N).
        ways: how tokens are erased.
        edit: the model with tokens hidden or left out.

    Attributes:
        players: the tokens that can be erased, (B, T): those that differ from their baseline.
    """

    def __init__(
        self,
        objective: Objective,
        baseline: Tensor,
        ways: tuple[Way, ...],
        edit: Edit,
    ) -> None:
        self.objective, self.ways, self.edit = objective, ways, edit
        self.change = baseline.to(objective.device, objective.dtype) - objective.origin  # (B, N)
        differs = objective.groups.collect((self.change != 0).to(objective.dtype)) > 0
        self.players = objective.groups.active & differs
        self.is_number = objective.reference[0].numel() == 1

    @torch.no_grad()
    def damage(self, examples: Tensor, erased: Tensor) -> Tensor:
        """The damage done to the examples (R,) by erasing tokens, (R, T); (R,)."""
        examples, erased = examples.to(self.objective.device), erased.to(self.objective.device)
        weights = [1 - FURTHER_WAY * (len(self.ways) - 1), *[FURTHER_WAY] * (len(self.ways) - 1)]
        total = self.objective.origin.new_zeros(len(examples))
        with no_fastpath():
            for way, weight in zip(self.ways, weights):
                for own_way, rows in self._together(way, examples, erased):
                    total[rows] += weight * self._cost(own_way, examples[rows], erased[rows])
        return total

    def _together(self, way: Way, examples: Tensor, erased: Tensor) -> Iterator[tuple[Way, Tensor]]:
        """Rows that share a forward, and how: where no token would be left, baselines stand for all of them."""
        most = self.objective.max_rows
        if way != "delete":
            yield from ((way, rows) for rows in torch.arange(len(erased), device=erased.device).split(most))
            return
        left = (self.objective.groups.active[examples] & ~erased).any(1)
        counts = erased.sum(1)
        for count in counts[left].unique():
            yield from ((way, rows) for rows in ((counts == count) & left).nonzero()[:, 0].split(most))
        if not left.all():
            yield from (("mask", rows) for rows in (~left).nonzero()[:, 0].split(most))

    def _cost(self, way: Way, examples: Tensor, erased: Tensor) -> Tensor:
        objective, rows = self.objective, torch.arange(len(examples), device=examples.device)
        if way == "delete":
            model = self.edit(way, examples, ~erased)
            state = model.perturb(model.inputs, rows)
        else:
            moved = self.change[examples] * objective.groups.at(examples).spread(erased.to(objective.dtype))
            points = objective.points(examples, moved)
            if way == "mask":
                state = objective.model.perturb(points, examples)
            else:
                state = self.edit(way, examples, ~erased).perturb(points, rows)
        state, reference = state.to(objective.device, objective.dtype), objective.reference[examples]
        if state.shape != reference.shape:
            raise ValueError(
                f"with tokens left out the state has shape {tuple(state.shape[1:])}, and "
                f"{tuple(reference.shape[1:])} with all of them; erase in the ways 'mask' or 'attention'"
            )
        if self.is_number:
            return (reference - state).flatten()
        return distortion(state, reference, objective.weight[examples])[0]

    def prior(self, examples: Tensor) -> Tensor:
        """Integrated gradients of the damage on the straight way to all tokens erased, (b,) -> (b, T).

        Sundararajan et al., ICML 2017, eq. 1, at the eight points of Gauss and Legendre's rule.
        """
        objective, examples = self.objective, examples.to(self.objective.device)
        groups = objective.groups.at(examples)
        change = self.change[examples] * groups.spread(self.players[examples].to(objective.dtype))
        nodes, weights = np.polynomial.legendre.leggauss(PRIOR_POINTS)
        total = torch.zeros_like(change)
        rows = torch.cartesian_prod(torch.arange(PRIOR_POINTS), torch.arange(len(examples)))
        for node, which in (part.to(change.device).unbind(1) for part in rows.split(objective.max_rows)):
            share = torch.from_numpy((nodes + 1) / 2)[node.cpu()].to(change.device, change.dtype)
            points = objective.points(examples[which], change[which] * share.unsqueeze(1))
            _, slope = answer_and_gradient(objective, points, examples[which])
            weight = torch.from_numpy(weights / 2)[node.cpu()].to(change.device, change.dtype)
            total.index_add_(0, which, -slope * weight.unsqueeze(1))
        return groups.collect(total * change)


def answer_and_gradient(
    objective: Objective, points: tuple[Tensor, ...], examples: Tensor
) -> tuple[Tensor, Tensor]:
    """The answer at the points, (R,), and its gradient, (R, N): a state of one number as it is, else -D."""
    state = objective.model.perturb(points, examples).to(objective.device, objective.dtype)
    if state[0].numel() == 1:
        answer, push = state.detach().flatten(), torch.ones_like(state)
    else:
        moved, push = distortion(state.detach(), objective.reference[examples], objective.weight[examples])
        answer, push = -moved, -push
    largest = push.reshape(len(push), -1).abs().amax(1).clamp(min=torch.finfo(push.dtype).tiny)
    lift = torch.exp2(-largest.log2().round())  # half precision has no room for the gradient of a mean
    lifted = push * lift.reshape(-1, *[1] * (push.ndim - 1))
    slope = objective.gradient(state, points, lifted) / lift.unsqueeze(1)
    objective.check_finite(slope.sum(1) + answer, examples, "way to the erased input")
    return answer, slope
