"""The curvature of D at the clean input, which the closed form needs, by vector-Jacobian products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interp_plugin.method.objective import Objective, rows_of
from interp_plugin.method.perturbation import select
from interp_plugin.method.sampling import Draws

PROBE_ROUND = 2**32  # a stream of its own, apart from the refinement's rounds


@dataclass(frozen=True)
class Curvature:
    """What the Jacobian at the clean input says of B examples with T tokens.

    Attributes:
        estimates: independent estimates of c, (P, B, T), all the same where they are exact.
        passes: that it took, (B,).
        exact: which examples have so few state elements that their Jacobian is known, (B,).
        jacobian: of those B' examples, ds/dx / (v sqrt(M)), (B', M, N); with rows of zeros where an example has fewer
            elements than another.
    """

    estimates: Tensor
    passes: Tensor
    exact: Tensor
    jacobian: Tensor


def curvatures(objectives: Sequence[Objective], seed: int, probes: int, exact_up_to: int) -> list[Curvature]:
    """c_i = ||J_i / v||_F^2 / M at the clean input, by vector-Jacobian products.

    A random sign vector r in state space gives an unbiased ||J_i / v||^2 for all tokens at once; an
    example of which at most ``exact_up_to`` state elements count (padding does not) is done exactly,
    one element at a time.

    Args:
        objectives: states of one model with the same inputs and noise layer; they share the forwards.
    """
    found = []
    sampled: dict[tuple[bool, ...], list[int]] = {}  # which objectives sample the same examples
    for index, objective in enumerate(objectives):
        counted = objective.weight.reshape(len(objective.weight), -1) != 0
        exact = counted.sum(1) <= exact_up_to
        c = objective.origin.new_zeros(probes, len(counted), objective.groups.n_tokens)
        few = exact.nonzero()[:, 0]
        jacobian = _jacobian(objective, few, counted[few])
        for row, example in enumerate(few.tolist()):
            own = objective.groups.at(few[row : row + 1])
            c[:, example] = own.collect(jacobian[row].square().sum(0, keepdim=True))
        if not exact.all():
            sampled.setdefault(tuple(exact.tolist()), []).append(index)
        found.append(Curvature(c, torch.where(exact, counted.sum(1), probes), exact, jacobian))
    for exact_examples, indices in sampled.items():
        examples = (~torch.tensor(exact_examples, device=objectives[0].device)).nonzero()[:, 0]
        together = [objectives[i] for i in indices]
        parts: list[tuple[Sequence[Objective], Tensor]] = [(together, examples)]
        if len(together) == 1:
            parts = [([short], examples[rows]) for short, rows in together[0].by_length(examples)]
        for cut, some in parts:
            _sample_squares(cut, some, seed, [found[i].estimates for i in indices])
    for objective, each in zip(objectives, found):
        everyone = torch.arange(each.estimates.shape[1], device=each.estimates.device)
        objective.check_finite(each.estimates.sum(-1), everyone.repeat(probes), "closed form")
    return found


def _jacobian(objective: Objective, examples: Tensor, counted: Tensor) -> Tensor:
    """Rows e^T J / (v sqrt(M)) for the state elements that count, (b, M, N); counted is (b, elements)."""
    places = counted.cumsum(1) - 1
    most = int(counted.sum(1).max()) if len(counted) else 0
    found = objective.origin.new_zeros(len(examples), most, objective.origin.shape[1])
    elements = counted.nonzero()
    for row, element in (part.unbind(1) for part in elements.split(objective.max_rows) if len(part)):
        ones = torch.nn.functional.one_hot(element, counted.shape[1]).to(objective.dtype)
        [slopes] = _slopes([objective], examples[row], [ones])
        found[row, places[row, element]] = slopes
    return found


def _sample_squares(
    objectives: Sequence[Objective], examples: Tensor, seed: int, cs: Sequence[Tensor]
) -> None:
    """Set each c, (P, B, T), to |J_i^T r / v|^2 / M for P sign vectors r, at the given examples."""
    first, probes = objectives[0], len(cs[0])
    signs = [
        Draws([o.reference.shape[1:]], seed).round(PROBE_ROUND, probes).sign().to(o.device, o.dtype)
        for o in objectives
    ]
    rows = torch.cartesian_prod(torch.arange(probes, device=first.device), examples)
    for probe, example in (part.unbind(1) for part in rows.split(first.max_rows)):
        for c, slopes in zip(cs, _slopes(objectives, example, [sign[probe] for sign in signs])):
            squares = first.groups.at(example).collect(slopes.square())
            c[probe, example, : squares.shape[1]] = squares


def _slopes(objectives: Sequence[Objective], examples: Tensor, directions: Sequence[Tensor]) -> list[Tensor]:
    """J^T (r / v) / sqrt(M), (R, N), for directions r in each state's space, (R, elements)."""
    first = objectives[0]
    points = first.points(examples, torch.zeros_like(first.origin[examples]))
    states = first.model.perturbed(points, examples, [o.model.state_layer for o in objectives])
    slopes = []
    for o, whole, direction in zip(objectives, states, directions):
        state = select(whole, o.model.selector).to(o.device, o.dtype)
        push = direction.reshape(state.shape) * rows_of(o.weight, examples)
        slopes.append(o.gradient(state, points, push, again=o is not objectives[-1]))
    return slopes
