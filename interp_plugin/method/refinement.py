"""Newton steps in log sigma on fresh draws, averaged: what the solver learns from a round.

Two independent estimates of log sigma are kept for every example: the *closed form*, exact where D is
quadratic, and the *draws*.  At the current iterate a round of fresh draws gives an unbiased stationarity
g_i for every token, hence a one-step (Newton) estimate of the optimum; rounds are averaged, so that
every pass counts.  While the draws cannot tell the two apart they are combined by precision; once they
can, the closed form is dropped.

A step divides a common change of scale by the elasticity of D (p = sum g / D, which is 2 where D is
quadratic) and the differences between tokens by 2: an undamped fixed point oscillates where p > 4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from interp_plugin.method.ranks import expected_agreement
from interp_plugin.method.rounds import Round
from interp_plugin.method.trace import TEACHERS, Trace, token_mean

MAX_STEP = 1.0
MAX_RISE = 0.25  # of a token against the others: upwards the draws grow wilder than they show
LONG_STEP = 0.1  # r.m.s. over tokens, beyond noise: too long for one Newton step to be the end
NEWTON_ERROR = 0.3  # error of a step as a share of its length: 0.1 to 0.4 at MiniLM's layers 1 to 3
CLOSE = 0.002  # r.m.s. difference from the closed form that may be rounding: no reason to drop it
LEAST_WORTH = 0.05  # of a round, as a share of its draws
WILD = 4.0  # times the variance of the other draws
LOUD = 0.3  # r.m.s. noise of a round's step beyond which its place was probably a bad one
DISORDER = 7.0  # 1 - Spearman of two fits, over tolerance^1.5: 0.98 at the default, 0.993 at half of it
MOST_ORDERED = 4096  # tokens of an example: nobody reads the ranks of more
QUIET_ERROR = 0.0025  # of log sigma, where draws say so much that it is cheap
BURN_IN = 3  # rounds after which a step lost in noise is averaged all the same


def update(trace: Trace, found: Round, active: Tensor, cap: Tensor, rate: float, index: int) -> Tensor:
    """Take in a round of draws; returns which tokens are below the cap, (b, T)."""
    share = rate / active.sum(1, keepdim=True).to(trace.theta.dtype)
    step = newton_step(trace.theta, found.stationarity, found.distortion, active, cap, share)
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
    trace.residual = step.residual
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
class Step:
    """A Newton step from S samples, with the variance of a single sample's step."""

    count: int
    move: Tensor  # (b, T)
    variance: Tensor  # (b, T)
    common_variance: Tensor  # of the part that all tokens share, (b,)
    residual: Tensor  # (b, T)
    distortion: Tensor  # (b,)
    free: Tensor  # (b, T)


def newton_step(
    theta: Tensor, stationarity: Tensor, distortion: Tensor, active: Tensor, cap: Tensor, share: Tensor
) -> Step:
    """The step from ``theta`` towards sigma_i dD/dsigma_i = rate / n.

    Args:
        theta: log sigma, (b, T).
        stationarity: sigma_i dD/dsigma_i of each sample, (S, b, T).
        distortion: D of each sample, (S, b).
        active: which tokens bear noise, (b, T).
        cap: log of max_sigma, (b, 1).
        share: rate / n, (b, 1).
    """
    count = len(stationarity)
    excess = stationarity / share - 1  # r of each sample, (S, b, T)
    residual = excess.mean(0)
    # at the cap only a push inwards counts (Karush, Kuhn and Tucker)
    free = active & ((theta < cap - 1e-6) | (residual > 0))
    mean = distortion.mean(0)
    elasticity = ((residual + 1) * free).sum(1) * share[:, 0] / mean.clamp(min=1e-30)
    elasticity = elasticity.clamp(2.0, 30.0)

    shared = token_mean(excess, free)  # (S, b)
    per_draw = (excess - shared.unsqueeze(-1)) / 2 + (shared / elasticity).unsqueeze(-1)
    log_shared = _log1p(shared.mean(0), shared.var(0) / count)
    common = (-log_shared / elasticity).clamp(-MAX_STEP, MAX_STEP)
    differences = (log_shared.unsqueeze(1) - _log1p(residual, excess.var(0) / count)) / 2
    return Step(
        count=count,
        move=(common.unsqueeze(1) + differences.clamp(-MAX_STEP, MAX_RISE)) * free,
        variance=per_draw.var(0) * free,
        common_variance=(shared / elasticity).var(0),
        residual=residual,
        distortion=mean,
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


def done_enough(
    trace: Trace, free: Tensor, met: Tensor, tolerance: float, noise: Callable[[], Tensor]
) -> Tensor:
    """Which of the examples that meet the tolerance gain little by further draws, (b,).

    Tokens that lie closer together than the tolerance get more draws, until they keep their order.  Draws of quiet
    examples say so much that a smaller error is cheap, but none makes the closed form's own part of it smaller.

    Args:
        met: which examples meet it, (b,).
        noise: gives standard normal numbers, (repeats, T), to try the order with.
    """
    own = trace.variance / trace.draws.clamp(min=1).unsqueeze(1)
    floor = token_mean(trace.closed_variance, free) / 4
    done = met & (
        ~trace.quiet | (token_mean(own, free) <= floor.clamp(min=min(tolerance / 4, QUIET_ERROR) ** 2))
    )
    ordered = (met & ~trace.quiet).nonzero()[:, 0]
    if len(ordered):
        done[ordered] = keep_their_order(
            trace.theta[ordered], own[ordered].sqrt(), free[ordered], tolerance, noise()
        )
    return done


def keep_their_order(theta: Tensor, errors: Tensor, free: Tensor, tolerance: float, noise: Tensor) -> Tensor:
    """Whether another fit as noisy as this one would order the free tokens alike, (b,); too many are not ordered.

    Args:
        theta, errors: log sigma and its standard errors, (b, T).
        noise: standard normal numbers to try it with, (repeats, T).
    """
    agreement = expected_agreement(theta, errors, free, noise)
    alike: Tensor = agreement >= 1 - DISORDER * tolerance**1.5
    return alike | (free.sum(1) > MOST_ORDERED)


def _significant(square: Tensor, noise: Tensor, tokens: Tensor) -> Tensor:
    """Whether a mean square over tokens is larger than its noise explains: chi-square at three deviations."""
    deviation = (2 / tokens.clamp(min=1).to(noise.dtype)).sqrt()
    return square > noise.clamp(min=1e-30) * (1 + 3 * deviation)


def _log1p(residual: Tensor, variance: Tensor) -> Tensor:
    """log(1 + r) less its bias for a mean of that variance; linear where r is too noisy for a logarithm."""
    ratio = (1 + residual).clamp(min=0.1)
    clear = variance < 0.1
    return torch.where(
        clear, ratio.log() + (variance / 2 / ratio.square()).clamp(max=0.2), residual.clamp(-1.0, 1.0)
    )
