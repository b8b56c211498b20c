"""Newton steps in log sigma on fresh draws, averaged: one round of the solver.

Two independent estimates of log sigma are kept for every example: the *closed form*, exact where D is
quadratic, and the *draws*.  At the current iterate a round of fresh draws gives an unbiased stationarity
g_i for every token, hence a one-step (Newton) estimate of the optimum; rounds are averaged, so that
every pass counts.  While the draws cannot tell the two apart they are combined by precision; once they
can, the closed form is dropped.

A step divides a common change of scale by the elasticity of D (p = sum g / D, which is 2 where D is
quadratic) and the differences between tokens by 2: an undamped fixed point oscillates where p > 4.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from interp_plugin.noise import Draws, Tilt
from interp_plugin.objective import Evaluation, Objective

SCOUTS = 4  # draws that look for the small-noise side of the minimum
PAIR = 0.05  # scale of the small draws that stand for the quadratic part
QUIET = 0.3  # variance beyond the quadratic part, as a share of the whole, below which taking it out pays
SCOUT_ROUND = 2**33
MAX_STEP = 1.0
MAX_RISE = 0.25  # of a token against the others: upwards the draws grow wilder than they show
LONG_STEP = 0.1  # r.m.s. over tokens, beyond noise: too long for one Newton step to be the end
NEWTON_ERROR = 0.3  # error of a step as a share of its length: 0.1 to 0.4 at MiniLM's layers 1 to 3
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
    draws: Tensor  # how many draws are in it, (b,)
    settled: Tensor  # whether the next round is averaged with it or replaces it, (b,)
    variance: Tensor  # of one draw's estimate, (b, T)
    common_variance: Tensor  # of what all tokens of it share, (b,)
    distortion: Tensor  # (b,)
    place: Tensor  # the average of the iterates where it was measured, (b, T)
    residual: Tensor  # (b, T)
    gradient: Tensor  # sum over draws of sigma dD/dx, (b, N)
    gradient_square: Tensor  # (b,)
    gradient_draws: Tensor  # (b,)
    quiet: Tensor  # whether D is nearly quadratic draw by draw, (b,)

    def at(self, keep: Tensor) -> Trace:
        """The part of some of the examples (a mask of b)."""
        return Trace(**{name: value[keep] for name, value in vars(self).items()})


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
        gradient_draws=zeros.clone(),
        quiet=torch.zeros_like(zeros, dtype=torch.bool),
    )


def scout(objective: Objective, trace: Trace, rate: float, draws: Draws, tolerance: float) -> Tensor:
    """A few draws at the closed form, to choose where and how to go on; returns passes spent, (B,).

    Where D is above the rate all of the example's noise shrinks until it is not: D = rate / p at the
    minimum that continues from small noise, and beyond it a state that saturates has others
    ("everything at the cap") from which no step comes back.

    Where D and its quadratic part nearly agree draw by draw, the example is *quiet*: see evaluate_round.
    """
    noise = draws.round(SCOUT_ROUND, SCOUTS).to(objective.device, objective.dtype)
    everyone = trace.example
    sigma = trace.theta.exp()
    seen = objective.evaluate(everyone, sigma, noise)
    passes = torch.full_like(everyone, SCOUTS)
    known = token_mean(trace.closed_variance, objective.groups.active)
    if (may := (known < (tolerance / 2) ** 2).nonzero()[:, 0]).numel():
        before = seen.at(may)
        trace.quiet[may] = _is_quiet(_beyond_quadratic(objective, may, sigma[may], noise, before), before)
        passes[may] += 2 * SCOUTS
    looking, value = everyone, seen.distortion.mean(0)
    for _ in range(12):
        over = value > rate
        looking, value = looking[over], value[over]
        if not len(looking):
            break
        trace.theta[looking] += (0.5 * (rate / 2 / value).log()).clamp(min=-1.2).unsqueeze(1)
        trace.trust[looking] = trace.quiet[looking] = False
        value = objective.evaluate(looking, trace.theta[looking].exp(), noise).distortion.mean(0)
        passes[looking] += SCOUTS
    return passes


def evaluate_round(objective: Objective, trace: Trace, noise: Tensor, curvature: Tensor) -> Evaluation:
    """A round of draws; what quiet examples have beyond the quadratic part, with that part put back exactly."""
    sigma = trace.theta.exp()
    tilt = tilt_of(trace) if trace.gradient_draws.any() else None
    whole = objective.evaluate(trace.example, sigma, noise, tilt)
    if not trace.quiet.any():
        return whole
    quiet = trace.quiet.clone()
    examples = trace.example[quiet]
    seen = whole.at(quiet)
    rest = _beyond_quadratic(objective, examples, sigma[quiet], noise, seen)
    trace.quiet[quiet.nonzero()[:, 0]] = _is_quiet(rest, seen)  # a few scouts may have missed rare draws
    known = sigma[quiet].square() * curvature[examples] * objective.groups.at(examples).active
    whole.distortion[:, quiet] = rest.distortion + known.sum(1)
    whole.stationarity[:, quiet] = rest.stationarity + 2 * known
    return whole


def _is_quiet(rest: Evaluation, seen: Evaluation) -> Tensor:
    """Whether little of the stationarity's variance is left without the quadratic part, (b,)."""
    return rest.stationarity.var(0).mean(1) < QUIET * seen.stationarity.var(0).mean(1)


def _beyond_quadratic(
    objective: Objective, examples: Tensor, sigma: Tensor, noise: Tensor, seen: Evaluation
) -> Evaluation:
    """What ``seen`` has beyond the quadratic part of D, draw by draw: a control variate.

    On the same draws at a small scale h, D / h^2 is the quadratic part alone, whose mean the closed form
    knows.  Of what is left the leading term is odd in the noise, and the mirrored draws remove it (alone
    they would do harm: the quadratic part is even).  Three passes a draw pay for smooth states; for a
    transformer's layers they do not ("control" in tests/benchmarks/estimators.py).
    """
    small = objective.evaluate(examples, PAIR * sigma, noise)
    mirrored = objective.evaluate(examples, sigma, -noise)
    return replace(
        seen,
        distortion=(seen.distortion + mirrored.distortion) / 2 - small.distortion / PAIR**2,
        stationarity=(seen.stationarity + mirrored.stationarity) / 2 - small.stationarity / PAIR**2,
    )


def tilt_of(trace: Trace) -> Tilt | None:
    """Shift along the mean gradient by the mean of the noise under the D-weighted distribution.

    By Stein's lemma E[D eps] = E[sigma dD/dx], so the cross-entropy method's shift E[D eps] / E[D] is
    known from the passes already made.  Its length is corrected for the noise of that mean.
    """
    count = trace.gradient_draws.clamp(min=1)
    mean = trace.gradient / count.unsqueeze(1)
    square = mean.square().sum(1)
    noise = ((trace.gradient_square / count - square) / count).clamp(min=0)
    signal = (square - noise).clamp(min=0)
    shift = (signal.sqrt() / trace.distortion.clamp(min=1e-30)).clamp(max=3.0)
    shift = torch.where((shift > 0.5) & (trace.gradient_draws > 0) & ~trace.quiet, shift, 0.0)
    if not shift.any():
        return None
    return Tilt(mean / square.sqrt().clamp(min=1e-30).unsqueeze(1), shift)


def update(
    trace: Trace, evaluation: Evaluation, active: Tensor, cap: Tensor, rate: float, index: int
) -> Tensor:
    """Take in a round of draws; returns which tokens are below the cap, (b, T)."""
    step = _newton_step(trace.theta, evaluation, active, cap, rate)
    free, count = step.free, step.count
    noise = token_mean(step.variance, free) / count
    distance = (token_mean(step.move.square(), free) - noise).clamp(min=0)  # squared, beyond noise
    far = distance > LONG_STEP**2
    # a Newton step is wrong by a share of its length: as good as so many draws from nearby
    worth = count * noise / (noise + NEWTON_ERROR**2 * distance).clamp(min=1e-30)
    restart = ~trace.settled
    weight = torch.where(restart, 1.0, worth / (trace.draws + worth).clamp(min=1e-30))
    trace.draws = torch.where(restart, 0.0, trace.draws) + worth
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
    trace.gradient = trace.gradient * keep.unsqueeze(1) + evaluation.gradient * count
    trace.gradient_square = trace.gradient_square * keep + evaluation.gradient_square * count
    trace.gradient_draws = trace.gradient_draws * keep + count
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


def _newton_step(theta: Tensor, evaluation: Evaluation, active: Tensor, cap: Tensor, rate: float) -> _Step:
    """The step from ``theta`` towards sigma_i dD/dsigma_i = rate / n, by the draws of one round."""
    count = len(evaluation.stationarity)
    n = active.sum(1, keepdim=True)
    excess = evaluation.stationarity * (n / rate) - 1  # r of each draw, (S, b, T)
    residual = excess.mean(0)
    # at the cap only a push inwards counts (Karush, Kuhn and Tucker)
    free = active & ((theta < cap - 1e-6) | (residual > 0))
    distortion = evaluation.distortion.mean(0)
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
    common_noise = trace.common_variance / trace.draws + trace.closed_common
    disagree = _significant(apart, mean_ours + theirs, free.sum(1)) | (shared.square() > 16 * common_noise)
    trace.trust = trace.trust & ~disagree & (mean_ours < LONG_STEP**2)  # nothing agrees with noise
    share = (mean_ours / (mean_ours + theirs).clamp(min=1e-30)).unsqueeze(1)
    both = torch.where(free, trace.mean - share * gap, trace.mean)
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
