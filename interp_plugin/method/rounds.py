"""A round of fresh draws: what it says of the stationarity at the current iterate, with as little noise as it can.

A round is made of units of two passes: a draw and its mirror image, or two draws, whichever scatters less, and
less what earlier draws say of their quadratic part (controls.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from interp_plugin.method.controls import quadratic_controls
from interp_plugin.method.objective import Evaluation, Objective, join
from interp_plugin.method.sampling import Tilt
from interp_plugin.method.trace import KEPT_ELEMENTS, Trace, tilt_of, token_mean

SCOUTS = 4  # draws that look for the small-noise side of the minimum
PAIR = 0.05  # scale of the small draws that stand for the quadratic part


def scout(
    objective: Objective, trace: Trace, rate: float, noise: Tensor, tolerance: float
) -> tuple[Evaluation, Tensor]:
    """The first few draws, to choose where to go on; returns them as seen there and passes spent, (b,).

    Where D is above the rate all of the example's noise shrinks until it is not: D = rate / p at the
    minimum that continues from small noise, and beyond it a state that saturates has others
    ("everything at the cap") from which no step comes back.
    """
    known = token_mean(trace.closed_variance, objective.groups.at(trace.example).active)
    trace.quiet = known < (tolerance / 2) ** 2  # may be: evaluate_round finds out
    seen = objective.evaluate(trace.example, trace.theta.exp(), noise)
    passes = torch.full_like(trace.example, len(noise))
    for _ in range(12):
        looking = (seen.distortion.mean(0) > rate).nonzero()[:, 0]
        if not len(looking):
            break
        value = seen.distortion[:, looking].mean(0)
        trace.theta[looking] += (0.5 * (rate / 2 / value).log()).clamp(min=-1.2).unsqueeze(1)
        trace.trust[looking] = trace.quiet[looking] = False
        again = objective.evaluate(trace.example[looking], trace.theta[looking].exp(), noise)
        seen.put(looking, again)
        passes[looking] += len(noise)
    return seen, passes


@dataclass(frozen=True)
class Round:
    """What a round says of b examples: S units, each the mean of two passes.

    Attributes:
        distortion: (S, b).
        stationarity: (S, b, T).
        teachers: a gradient of each unit in noise units, (S, b, N).
        gradient, gradient_square: sums over the passes of those gradients and of their squared norms, (b, N), (b,).
        passes: spent, (b,).
    """

    distortion: Tensor
    stationarity: Tensor
    teachers: Tensor
    gradient: Tensor
    gradient_square: Tensor
    passes: Tensor


def evaluate_round(
    objective: Objective,
    trace: Trace,
    noise: Callable[[int], Tensor],
    units: int,
    curvature: Tensor,
    scouted: Evaluation | None = None,
) -> Round:
    """A round of fresh draws, two passes a unit.

    Args:
        noise: gives the first so many draws of the round, (·, N): as many as units where all are paired, else twice
            as many.
        units: S.
        curvature: c of the closed form, (B, T).
        scouted: the first few draws, if they are known already.
    """
    tilt = tilt_of(trace)
    if tilt is not None:
        trace.paired &= tilt.shift == 0
    elements = 2 * units * objective.origin.shape[1]
    few = max(
        1, KEPT_ELEMENTS // elements
    )  # examples at a time, for the gradients of all their draws are kept
    pairs, others = (mask.nonzero()[:, 0] for mask in (trace.paired, ~trace.paired))
    drawn = noise(2 * units if len(others) else units)
    parts = [
        _mirrored(objective, trace, rows, drawn[:units], curvature, scouted)
        for rows in pairs.split(few)
        if len(rows)
    ]
    parts += [
        _apart(objective, trace, rows, drawn, curvature, tilt) for rows in others.split(few) if len(rows)
    ]
    return _joined(parts, torch.cat([pairs, others]).argsort())


def _joined(parts: list[Round], order: Tensor) -> Round:
    """All examples of a round, put in order."""
    if len(parts) == 1:
        return parts[0]
    whole = {}
    for field in fields(Round):
        values = [getattr(part, field.name) for part in parts]
        dim = 1 if field.name in ("distortion", "stationarity", "teachers") else 0
        whole[field.name] = torch.cat(values, dim).index_select(dim, order)
    return Round(**whole)


def _mirrored(
    objective: Objective,
    trace: Trace,
    rows: Tensor,
    noise: Tensor,
    curvature: Tensor,
    scouted: Evaluation | None,
) -> Round:
    """Each draw with its mirror image, less what the others say of its quadratic part.

    The mirror image removes what is odd in the noise, most of what D has beyond its quadratic part; alone it
    would do harm, for the quadratic part is even.  Pairs go on while they are worth more than two draws,
    which they are not where the state saturates.
    """
    examples, sigma = trace.example[rows], trace.theta[rows].exp()
    known = None if scouted is None else scouted.at(rows)
    there, back = _both_ways(objective, examples, sigma, noise, known)
    pair = Evaluation(
        (there.distortion + back.distortion) / 2,
        (there.stationarity + back.stationarity) / 2,
        (there.pull - back.pull) / 2,
    )
    rest = _controlled(objective, trace, rows, pair, noise, curvature)
    quiet = trace.quiet[rows]
    if quiet.any():
        exact = _less_quadratic(objective, examples[quiet], sigma[quiet], noise, pair.at(quiet), curvature)
        exact = _controlled(objective, trace, rows[quiet], exact, noise, curvature)
        pays = 3 * _spread(exact) < 2 * _spread(rest)[quiet]
        rest.put(quiet.nonzero()[:, 0][pays], exact.at(pays))
        trace.quiet[rows[quiet]] = pays
    if scouted is None:  # the first few pairs, at the closed form, say little
        single = (_spread(there) + _spread(back)) / 2
        trace.paired[rows] = trace.quiet[rows] | (2 * _spread(rest) < single)
    return _round(rest, torch.cat([there.pull, back.pull]), (2 + quiet.long()) * len(noise))


def _apart(
    objective: Objective, trace: Trace, rows: Tensor, noise: Tensor, curvature: Tensor, tilt: Tilt | None
) -> Round:
    """Independent draws, two a unit, less what the others say of their quadratic part."""
    if tilt is not None:
        tilt = Tilt(tilt.direction[rows], tilt.shift[rows])
    seen = objective.evaluate(trace.example[rows], trace.theta[rows].exp(), noise, tilt)
    rest = _controlled(objective, trace, rows, seen, noise, curvature)
    if tilt is not None:  # the controls have mean 0 under the noise itself only
        rest.put((tilt.shift > 0).nonzero()[:, 0], seen.at(tilt.shift > 0))
    units = Evaluation(*(value.unflatten(0, (-1, 2)).mean(1) for value in vars(rest).values()))
    return _round(units, seen.pull, torch.full_like(rows, len(noise)))


def _round(units: Evaluation, pulls: Tensor, passes: Tensor) -> Round:
    return Round(
        units.distortion, units.stationarity, units.pull, pulls.sum(0), pulls.square().sum((0, 2)), passes
    )


def _both_ways(
    objective: Objective, examples: Tensor, sigma: Tensor, noise: Tensor, scouted: Evaluation | None
) -> tuple[Evaluation, Evaluation]:
    """The draws at ``sigma``, of which the first few may be known, and their mirror images."""
    known = [] if scouted is None else [scouted]
    first = sum(len(k.distortion) for k in known)
    seen = objective.evaluate(examples, sigma, torch.cat([noise[first:], -noise]))
    whole = join([*known, seen])
    there, back = (Evaluation(*half) for half in zip(*(x.chunk(2) for x in vars(whole).values())))
    return there, back


def _controlled(
    objective: Objective, trace: Trace, rows: Tensor, seen: Evaluation, noise: Tensor, curvature: Tensor
) -> Evaluation:
    """Less the control variates; D's share is half its stationarity's, as for a quadratic D."""
    groups = objective.groups.at(trace.example[rows])
    teachers = trace.teachers[rows].transpose(0, 1)
    # what these draws say themselves is no expectation: it would leave a bias
    expected = curvature[trace.example[rows]] * (2 * trace.theta[rows]).exp() * groups.active
    removed = quadratic_controls(seen.stationarity, seen.pull, noise, groups, teachers, expected)
    return replace(
        seen, distortion=seen.distortion - removed.sum(-1) / 2, stationarity=seen.stationarity - removed
    )


def _spread(seen: Evaluation) -> Tensor:
    """Variance of the stationarity, mean over tokens, (b,)."""
    return seen.stationarity.var(0).mean(1)


def _less_quadratic(
    objective: Objective, examples: Tensor, sigma: Tensor, noise: Tensor, pair: Evaluation, curvature: Tensor
) -> Evaluation:
    """Pairs less the quadratic part of D on the same noise, with that part put back exactly.

    At a small scale h, D / h^2 is the quadratic part alone, whose mean the closed form knows.  A third pass
    pays where little else is left (*quiet* examples): for smooth states, not for a trained transformer's
    layers ("control" in tests/benchmarks/estimators.py).
    """
    small = objective.evaluate(examples, PAIR * sigma, noise)
    known = sigma.square() * curvature[examples] * objective.groups.at(examples).active
    return replace(
        pair,
        distortion=pair.distortion - small.distortion / PAIR**2 + known.sum(1),
        stationarity=pair.stationarity - small.stationarity / PAIR**2 + 2 * known,
    )
