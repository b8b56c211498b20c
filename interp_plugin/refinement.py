"""Newton steps in log sigma on fresh draws, averaged: one round of the solver.

Two independent estimates of log sigma are kept for every example: the *closed form*, exact where D is
quadratic, and the *draws*.  At the current iterate a round of fresh draws gives an unbiased stationarity
g_i for every token, hence a one-step (Newton) estimate of the optimum; rounds are averaged, so that
every pass counts.  While the draws cannot tell the two apart they are combined by precision; once they
can, the closed form is dropped.

A round is made of units of two passes: a draw and its mirror image, or two draws, whichever scatters less, and
less what earlier draws say of their quadratic part (controls.py).

A step divides a common change of scale by the elasticity of D (p = sum g / D, which is 2 where D is
quadratic) and the differences between tokens by 2: an undamped fixed point oscillates where p > 4.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from interp_plugin.controls import quadratic_controls
from interp_plugin.noise import Tilt
from interp_plugin.objective import Evaluation, Objective

SCOUTS = 4  # draws that look for the small-noise side of the minimum
PAIR = 0.05  # scale of the small draws that stand for the quadratic part
KEPT_ELEMENTS = 2**25  # of gradients kept at a time
TEACHERS = 28  # gradients of earlier draws kept for the controls of later ones
MAX_STEP = 1.0
MAX_RISE = 0.25  # of a token against the others: upwards the draws grow wilder than they show
LONG_STEP = 0.1  # r.m.s. over tokens, beyond noise: too long for one Newton step to be the end
NEWTON_ERROR = 0.3  # error of a step as a share of its length: 0.1 to 0.4 at MiniLM's layers 1 to 3
CLOSE = 0.002  # r.m.s. difference from the closed form that may be rounding: no reason to drop it
LEAST_WORTH = 0.05  # of a round, as a share of its draws
WILD = 4.0  # times the variance of the other draws
LOUD = 0.3  # r.m.s. noise of a round's step beyond which its place was probably a bad one
BURN_IN = 3  # rounds after which a step lost in noise is averaged all the same


@dataclass
class Trace:
    """What is known of the examples still being solved; every field's first dimension is b."""

    example: Tensor  # (b,)
    closed: Tensor  # log sigma by the closed form, (b, T)
    closed_variance: Tensor  # (b, T)
    closed_common: Tensor  # variance of what all its tokens share, (b,)
    trust: Tensor  # whether the closed form still stands, (b,)
    theta: Tensor  # the iterate, log sigma, (b, T)
    mean: Tensor  # average of the one-step estimates, (b, T)
    draws: Tensor  # how many units of two passes are in it, (b,)
    settled: Tensor  # whether the next round is averaged with it or replaces it, (b,)
    variance: Tensor  # of one draw's estimate, (b, T)
    common_variance: Tensor  # of what all tokens of it share, (b,)
    distortion: Tensor  # (b,)
    place: Tensor  # the average of the iterates where it was measured, (b, T)
    residual: Tensor  # (b, T)
    gradient: Tensor  # sum over passes of sigma dD/dx, (b, N)
    gradient_square: Tensor  # (b,)
    gradient_passes: Tensor  # (b,)
    teachers: Tensor  # gradients of the last draws, (b, R, N)
    paired: Tensor  # whether a draw and its mirror image are worth more than two draws, (b,)
    quiet: Tensor  # whether D is nearly quadratic draw by draw, (b,)

    def at(self, keep: Tensor) -> Trace:
        """The part of some of the examples (a mask of b)."""
        return Trace(**{name: value[keep] for name, value in vars(self).items()})

    def without_teachers(self) -> Trace:
        """For examples that need no further round."""
        return replace(self, teachers=self.teachers[:, :0])


def examples_at_once(objective: Objective) -> int:
    """How many examples may keep their teachers, so that memory does not grow with the batch."""
    return max(1, 2 * KEPT_ELEMENTS // (TEACHERS * objective.origin.shape[1]))


def closed_variance(curvatures: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
    """Variance of log sigma by the closed form, (B, T), and of what its tokens share, (B,)."""
    tiny = torch.finfo(curvatures.dtype).tiny
    logs = curvatures / curvatures.mean(0).clamp(min=tiny) / 2 * free  # log sigma = -1/2 log c
    return logs.var(0) / len(logs), token_mean(logs, free).var(0) / len(logs)


def new_trace(
    objective: Objective,
    everyone: Tensor,
    closed: Tensor,
    variance: Tensor,
    common: Tensor,
    predicted: Tensor,
) -> Trace:
    """Everything at the closed form, whose quadratic model gives the distortion ``predicted``."""
    zeros = torch.zeros_like(predicted)
    return Trace(
        example=everyone,
        closed=closed,
        closed_variance=variance,
        closed_common=common,
        trust=torch.ones_like(zeros, dtype=torch.bool),
        theta=closed.clone(),
        mean=closed.clone(),
        draws=zeros.clone(),
        settled=torch.zeros_like(zeros, dtype=torch.bool),
        variance=torch.zeros_like(closed),
        common_variance=zeros.clone(),
        distortion=predicted,
        place=closed.clone(),
        residual=torch.full_like(closed, torch.nan),
        gradient=torch.zeros_like(objective.origin),
        gradient_square=zeros.clone(),
        gradient_passes=zeros.clone(),
        teachers=objective.origin.new_zeros(len(everyone), 0, objective.origin.shape[1]),
        paired=torch.ones_like(zeros, dtype=torch.bool),
        quiet=torch.zeros_like(zeros, dtype=torch.bool),
    )


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
    objective: Objective, trace: Trace, noise: Tensor, curvature: Tensor, scouted: Evaluation | None = None
) -> Round:
    """A round of fresh draws, two passes a unit.

    Args:
        noise: two draws a unit, (2 S, N); only the first half is used in the first round, where all are paired.
        curvature: c of the closed form, (B, T).
        scouted: the first few draws, if they are known already.
    """
    tilt = tilt_of(trace)
    if tilt is not None:
        trace.paired &= tilt.shift == 0
    elements = len(noise) * objective.origin.shape[1]
    few = max(
        1, KEPT_ELEMENTS // elements
    )  # examples at a time, for the gradients of all their draws are kept
    pairs, others = (mask.nonzero()[:, 0] for mask in (trace.paired, ~trace.paired))
    half = noise[: len(noise) // 2]
    parts = [
        _mirrored(objective, trace, rows, half, curvature, scouted) for rows in pairs.split(few) if len(rows)
    ]
    parts += [_apart(objective, trace, rows, noise, tilt) for rows in others.split(few) if len(rows)]
    return _joined(parts, torch.cat([pairs, others]).argsort())


def _joined(parts: list[Round], order: Tensor) -> Round:
    """All examples of a round, put in order."""
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
    there = _continued(objective, examples, sigma, noise, scouted)
    back = objective.evaluate(examples, sigma, -noise)
    pair = Evaluation(
        (there.distortion + back.distortion) / 2,
        (there.stationarity + back.stationarity) / 2,
        (there.pull - back.pull) / 2,
    )
    rest = _controlled(objective, trace, rows, pair, noise)
    quiet = trace.quiet[rows]
    if quiet.any():
        exact = _less_quadratic(objective, examples[quiet], sigma[quiet], noise, pair.at(quiet), curvature)
        exact = _controlled(objective, trace, rows[quiet], exact, noise)
        pays = 3 * _spread(exact) < 2 * _spread(rest)[quiet]
        rest.put(quiet.nonzero()[:, 0][pays], exact.at(pays))
        trace.quiet[rows[quiet]] = pays
    if scouted is None:  # the first few pairs, at the closed form, say little
        single = (_spread(there) + _spread(back)) / 2
        trace.paired[rows] = trace.quiet[rows] | (2 * _spread(rest) < single)
    pulls = torch.cat([there.pull, back.pull])
    return _round(rest, pulls, (2 + quiet.long()) * len(noise))


def _apart(objective: Objective, trace: Trace, rows: Tensor, noise: Tensor, tilt: Tilt | None) -> Round:
    """Independent draws, two a unit, less what the others say of their quadratic part."""
    if tilt is not None:
        tilt = Tilt(tilt.direction[rows], tilt.shift[rows])
    seen = objective.evaluate(trace.example[rows], trace.theta[rows].exp(), noise, tilt)
    rest = _controlled(objective, trace, rows, seen, noise)
    if tilt is not None:  # the controls have mean 0 under the noise itself only
        rest.put((tilt.shift > 0).nonzero()[:, 0], seen.at(tilt.shift > 0))
    units = Evaluation(*(value.unflatten(0, (-1, 2)).mean(1) for value in vars(rest).values()))
    return _round(units, seen.pull, torch.full_like(rows, len(noise)))


def _round(units: Evaluation, pulls: Tensor, passes: Tensor) -> Round:
    return Round(
        units.distortion, units.stationarity, units.pull, pulls.sum(0), pulls.square().sum((0, 2)), passes
    )


def _continued(
    objective: Objective, examples: Tensor, sigma: Tensor, noise: Tensor, scouted: Evaluation | None
) -> Evaluation:
    """The draws at ``sigma``, of which the first few may be known."""
    if scouted is None:
        return objective.evaluate(examples, sigma, noise)
    known = scouted.at(examples)
    if len(known.distortion) == len(noise):
        return known
    more = objective.evaluate(examples, sigma, noise[len(known.distortion) :])
    return Evaluation(*(torch.cat(pair) for pair in zip(vars(known).values(), vars(more).values())))


def _controlled(
    objective: Objective, trace: Trace, rows: Tensor, seen: Evaluation, noise: Tensor
) -> Evaluation:
    """Less the control variates; D's share is half its stationarity's, as for a quadratic D."""
    groups = objective.groups.at(trace.example[rows])
    teachers = trace.teachers[rows].transpose(0, 1)
    removed = quadratic_controls(seen.stationarity, seen.pull, noise, groups, teachers)
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


def tilt_of(trace: Trace) -> Tilt | None:
    """Shift along the mean gradient by the mean of the noise under the D-weighted distribution.

    By Stein's lemma E[D eps] = E[sigma dD/dx], so the cross-entropy method's shift E[D eps] / E[D] is
    known from the passes already made.  Its length is corrected for the noise of that mean.
    """
    count = trace.gradient_passes.clamp(min=1)
    mean = trace.gradient / count.unsqueeze(1)
    square = mean.square().sum(1)
    noise = ((trace.gradient_square / count - square) / count).clamp(min=0)
    signal = (square - noise).clamp(min=0)
    shift = (signal.sqrt() / trace.distortion.clamp(min=1e-30)).clamp(max=3.0)
    shift = torch.where((shift > 0.5) & (trace.gradient_passes > 0) & ~trace.quiet, shift, 0.0)
    if not shift.any():
        return None
    return Tilt(mean / square.sqrt().clamp(min=1e-30).unsqueeze(1), shift)


def update(trace: Trace, found: Round, active: Tensor, cap: Tensor, rate: float, index: int) -> Tensor:
    """Take in a round of draws; returns which tokens are below the cap, (b, T)."""
    step = _newton_step(trace.theta, found, active, cap, rate)
    free, count = step.free, step.count
    noise = token_mean(step.variance, free) / count
    distance = (token_mean(step.move.square(), free) - noise).clamp(min=0)  # squared, beyond noise
    far = distance > (3 * noise).clamp(min=LONG_STEP**2)
    # a Newton step is wrong by a share of its length: as good as so many draws from nearby
    tiny = torch.finfo(noise.dtype).tiny
    worth = count * ((noise + tiny) / (noise + tiny + NEWTON_ERROR**2 * distance)).clamp(min=LEAST_WORTH)
    # a rare wild draw says that there are such, not how many: its round counts for less than its draws
    here, before = (token_mean(v, free).clamp(min=tiny) for v in (step.variance, trace.variance))
    known = trace.draws > 0
    worth = torch.where(known, worth * (WILD * before / here).clamp(max=1.0), worth)
    kept = trace.draws * (WILD * here / before).clamp(max=1.0)
    kept = torch.where(trace.settled | (here > WILD * before), kept, 0.0) * known
    weight = worth / (kept + worth)
    trace.draws = kept + worth
    estimate = torch.minimum(trace.theta + step.move, cap)
    trace.mean = trace.mean.lerp(estimate, weight.unsqueeze(1))
    trace.variance = trace.variance.lerp(step.variance, weight.unsqueeze(1))
    trace.common_variance = trace.common_variance.lerp(step.common_variance, weight)
    trace.distortion = trace.distortion.lerp(step.distortion, weight)
    trace.place = trace.place.lerp(trace.theta, weight.unsqueeze(1))
    trace.residual = step.residual * free
    _combine(trace, free, cap)
    if index == 0:  # draws at a closed form that turns out wrong are in the wrong place, often a wilder one
        misplaced = ~trace.trust & (far | (noise > LONG_STEP**2))
    elif index < BURN_IN:
        misplaced = far | (noise > LOUD**2)
    else:
        misplaced = far & (noise < LONG_STEP**2)
    trace.settled = trace.settled | ~misplaced

    keep = (~far).to(weight.dtype)
    trace.gradient = trace.gradient * keep.unsqueeze(1) + found.gradient
    trace.gradient_square = trace.gradient_square * keep + found.gradient_square
    trace.gradient_passes = trace.gradient_passes * keep + 2 * count
    trace.teachers = torch.cat([found.teachers.transpose(0, 1), trace.teachers], 1)[:, :TEACHERS]
    return free


@dataclass(frozen=True)
class _Step:
    """A Newton step from one round, with the variance of a single draw's step."""

    count: int
    move: Tensor  # (b, T)
    variance: Tensor  # (b, T)
    common_variance: Tensor  # of the part that all tokens share, (b,)
    residual: Tensor  # (b, T)
    distortion: Tensor  # (b,)
    free: Tensor  # (b, T)


def _newton_step(theta: Tensor, found: Round, active: Tensor, cap: Tensor, rate: float) -> _Step:
    """The step from ``theta`` towards sigma_i dD/dsigma_i = rate / n, by the draws of one round."""
    count = len(found.stationarity)
    n = active.sum(1, keepdim=True)
    excess = found.stationarity * (n / rate) - 1  # r of each draw, (S, b, T)
    residual = excess.mean(0)
    # at the cap only a push inwards counts (Karush, Kuhn and Tucker)
    free = active & ((theta < cap - 1e-6) | (residual > 0))
    distortion = found.distortion.mean(0)
    elasticity = ((residual + 1) * free).sum(1) * rate / n[:, 0] / distortion.clamp(min=1e-30)
    elasticity = elasticity.clamp(2.0, 30.0)

    shared = token_mean(excess, free)  # (S, b)
    per_draw = (excess - shared.unsqueeze(-1)) / 2 + (shared / elasticity).unsqueeze(-1)
    log_shared = _log1p(shared.mean(0), shared.var(0) / count)
    common = (-log_shared / elasticity).clamp(-MAX_STEP, MAX_STEP)
    differences = (log_shared.unsqueeze(1) - _log1p(residual, excess.var(0) / count)) / 2
    return _Step(
        count=count,
        move=(common.unsqueeze(1) + differences.clamp(-MAX_STEP, MAX_RISE)) * free,
        variance=per_draw.var(0) * free,
        common_variance=(shared / elasticity).var(0),
        residual=residual,
        distortion=distortion,
        free=free,
    )


def _combine(trace: Trace, free: Tensor, cap: Tensor) -> None:
    """The next iterate: the draws' estimate, with the closed form while the two agree."""
    gap = torch.where(free, trace.mean - trace.closed, 0.0)
    shared = token_mean(gap, free)
    ours = trace.variance / trace.draws.unsqueeze(1)
    apart = token_mean((gap - shared.unsqueeze(1)).square(), free)
    # one precision for all of an example's tokens: each token's own would favour draws that came out low
    mean_ours, theirs = token_mean(ours, free), token_mean(trace.closed_variance, free)
    common_ours = trace.common_variance / trace.draws
    common_noise = common_ours + trace.closed_common
    disagree = _significant(apart, mean_ours + theirs + CLOSE**2, free.sum(1))
    disagree |= shared.square() > 16 * common_noise + CLOSE**2
    trace.trust = trace.trust & ~disagree & (mean_ours < LONG_STEP**2)  # nothing agrees with noise
    # what the tokens share and their differences are known to different precision
    share = (mean_ours / (mean_ours + theirs).clamp(min=1e-30)).unsqueeze(1)
    common_share = (common_ours / common_noise.clamp(min=1e-30)).unsqueeze(1)
    common = shared.unsqueeze(1)
    both = torch.where(free, trace.mean - share * (gap - common) - common_share * common, trace.mean)
    trace.theta = torch.minimum(torch.where(trace.trust.unsqueeze(1), both, trace.mean), cap)


def variance_of(trace: Trace, free: Tensor) -> Tensor:
    """Of log sigma, (b, T); 0 at the cap, the closed form's where no draw was made."""
    from_draws = trace.variance / trace.draws.clamp(min=1).unsqueeze(1)
    from_closed = trace.closed_variance * (trace.quiet | (trace.draws == 0)).unsqueeze(1)
    return torch.where(free, from_draws + from_closed, 0.0)


def done_enough(trace: Trace, free: Tensor, tolerance: float) -> Tensor:
    """Whether an example that meets the tolerance gains little by further draws, (b,).

    Draws of quiet examples say so much that a smaller error is cheap, but none makes the closed form's
    own part of it smaller.
    """
    own = token_mean(trace.variance, free) / trace.draws.clamp(min=1)
    floor = token_mean(trace.closed_variance, free) / 4
    return ~trace.quiet | (own <= floor.clamp(min=(tolerance / 4) ** 2))


def common_variance_of(trace: Trace) -> Tensor:
    """Of the mean of log sigma over an example's free tokens, (b,)."""
    from_draws = trace.common_variance / trace.draws.clamp(min=1)
    return from_draws + trace.closed_common * (trace.quiet | (trace.draws == 0))


def token_mean(values: Tensor, free: Tensor) -> Tensor:
    """Mean over the free tokens, the last dimension."""
    return torch.where(free, values, 0.0).sum(-1) / free.sum(-1).clamp(min=1)


def _significant(square: Tensor, noise: Tensor, tokens: Tensor) -> Tensor:
    """Whether a mean square over tokens is larger than its noise explains: chi-square at three deviations."""
    return square > noise.clamp(min=1e-30) * (1 + 3 * (2 / tokens.clamp(min=1)).sqrt())


def _log1p(residual: Tensor, variance: Tensor) -> Tensor:
    """log(1 + r) less its bias for a mean of that variance; linear where r is too noisy for a logarithm."""
    ratio = (1 + residual).clamp(min=0.1)
    clear = variance < 0.1
    return torch.where(
        clear, ratio.log() + (variance / 2 / ratio.square()).clamp(max=0.2), residual.clamp(-1.0, 1.0)
    )
