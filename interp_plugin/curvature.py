"""The curvature of D at the clean input, which the closed form needs, by vector-Jacobian products."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from interp_plugin.noise import Draws
from interp_plugin.objective import Objective, rows_of
from interp_plugin.state import select

PROBE_ROUND = 2**32  # a stream of its own, apart from the refinement's rounds


def curvatures(
    objectives: Sequence[Objective], seed: int, probes: int, exact_up_to: int
) -> list[tuple[Tensor, Tensor]]:
    """c_i = ||J_i / v||_F^2 / M at the clean input, by vector-Jacobian products.

    A random sign vector r in state space gives an unbiased ||J_i / v||^2 for all tokens at once; an
    example of which at most ``exact_up_to`` state elements count (padding does not) is done exactly,
    one element at a time.

    Args:
        objectives: states of one model with the same inputs and noise layer; they share the forwards.

    Returns:
        For each objective independent estimates of c, (P, B, T), all the same where they are exact; and
        the number of passes each example took, (B,).
    """
    found = []
    sampled: dict[tuple[bool, ...], list[int]] = {}  # which objectives sample the same examples
    for index, objective in enumerate(objectives):
        counted = objective.weight.reshape(len(objective.weight), -1) != 0
        exact = counted.sum(1) <= exact_up_to
        c = objective.origin.new_zeros(probes, len(counted), objective.groups.n_tokens)
        if exact.any():
            _add_exact_squares(objective, (counted & exact.unsqueeze(1)).nonzero(), c)
        if not exact.all():
            sampled.setdefault(tuple(exact.tolist()), []).append(index)
        found.append((c, torch.where(exact, counted.sum(1), probes)))
    for exact_examples, indices in sampled.items():
        examples = (~torch.tensor(exact_examples, device=objectives[0].device)).nonzero()[:, 0]
        together = [objectives[i] for i in indices]
        parts: list[tuple[Sequence[Objective], Tensor]] = [(together, examples)]
        if len(together) == 1:
            parts = [([short], examples[rows]) for short, rows in together[0].by_length(examples)]
        for cut, some in parts:
            _sample_squares(cut, some, seed, [found[i][0] for i in indices])
    for objective, (c, _) in zip(objectives, found):
        everyone = torch.arange(c.shape[1], device=c.device)
        objective.check_finite(c.sum(-1), everyone.repeat(probes), "closed form")
    return found


def _add_exact_squares(objective: Objective, elements: Tensor, c: Tensor) -> None:
    """Add |J_i^T e / v|^2 / M for every (example, state element) to every row of c."""
    for example, element in (part.unbind(1) for part in elements.split(objective.max_rows)):
        ones = torch.nn.functional.one_hot(element, objective.reference[0].numel()).to(objective.dtype)
        [squares] = _squares([objective], example, [ones])
        c.index_add_(1, example, squares.expand(len(c), -1, -1))


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
        for c, squares in zip(cs, _squares(objectives, example, [sign[probe] for sign in signs])):
            c[probe, example, : squares.shape[1]] = squares


def _squares(objectives: Sequence[Objective], examples: Tensor, directions: Sequence[Tensor]) -> list[Tensor]:
    """|J_i^T (r / v)|^2 / M of each token, (R, T), for directions r in each state's space, (R, elements)."""
    first = objectives[0]
    points = first.points(examples, torch.zeros_like(first.origin[examples]))
    states = first.model.perturbed(points, examples, [o.model.state_layer for o in objectives])
    squares = []
    for o, whole, direction in zip(objectives, states, directions):
        state = select(whole, o.model.selector).to(o.device, o.dtype)
        push = direction.reshape(state.shape) * rows_of(o.weight, examples)
        slope = o.gradient(state, points, push, again=o is not objectives[-1])
        squares.append(o.groups.at(examples).collect(slope.square()))
    return squares
