"""What the solver knows of the examples that it is still solving."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from interp_plugin.method.objective import Objective
from interp_plugin.method.sampling import Tilt

KEPT_ELEMENTS = 2**25  # of gradients kept at a time
TEACHERS = 28  # gradients of earlier draws kept for the controls of later ones


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


def variance_of(trace: Trace, free: Tensor) -> Tensor:
    """Of log sigma, (b, T); 0 at the cap, the closed form's where no draw was made."""
    from_draws = trace.variance / trace.draws.clamp(min=1).unsqueeze(1)
    from_closed = trace.closed_variance * (trace.quiet | (trace.draws == 0)).unsqueeze(1)
    return torch.where(free, from_draws + from_closed, 0.0)


def common_variance_of(trace: Trace) -> Tensor:
    """Of the mean of log sigma over an example's free tokens, (b,)."""
    from_draws = trace.common_variance / trace.draws.clamp(min=1)
    return from_draws + trace.closed_common * (trace.quiet | (trace.draws == 0))


def token_mean(values: Tensor, free: Tensor) -> Tensor:
    """Mean over the free tokens, the last dimension."""
    return torch.where(free, values, 0.0).sum(-1) / free.sum(-1).clamp(min=1)
