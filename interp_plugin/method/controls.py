"""Control variates that draws get from earlier ones: the quadratic part of D, at no further pass.

Near a minimum D is mostly eps^T A eps, and a draw's stationarity 2 eps_i^T (A eps)_i varies by sums of
eps_i^T A_ij eps_j over other tokens, whose mean is 0, and by eps_i^T A_ii eps_i.  The gradients of *earlier*
draws, u_r = 2 A eps_r, are independent of eps and show the large directions of A, so that
sum_r (u_r,i eps_i)(u_r,j eps_j) is like the first, with mean 0, and sum_r (u_r,i eps_i)^2 like the second, with
mean sum_r |u_r,i|^2; and |eps_i|^2 has mean K.  How much of each to take out is a regression over the tokens of
the other draws.  So the mean of what is left stays unbiased, up to what a draw's part in the lessons of later ones
leaves: less than 2 % of g with six draws of tokens of one element.

Earlier ones only: two draws that taught each other would share a term, u_r eps_s and u_s eps_r being alike, and
their scatter would show less than the error of their mean (by 8 to 17 % in variance at MiniLM's layer 1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from interp_plugin.method.sampling import TokenGroups

ROUNDING = 1e-5  # of a difference, as a share of what is subtracted
RIDGE = 4.0  # in (draws x tokens): keeps three coefficients from fitting a handful of numbers


def quadratic_controls(
    stationarity: Tensor,
    pull: Tensor,
    noise: Tensor,
    groups: TokenGroups,
    teachers: Tensor,
    expected: Tensor,
) -> Tensor:
    """What to take from each draw's stationarity, of mean 0, (S, b, T); 0 for an example that it does not help.

    Args:
        stationarity: g, (S, b, T).
        pull: gradient of D in noise units, (S, b, N).
        noise: standard normal, (S, N).
        groups: the tokens of the b examples.
        teachers: gradients of earlier rounds, (R, b, N).
        expected: g as it was foreseen before these draws, (b, T); only its ratios between tokens matter.
    """
    if len(stationarity) < 3:
        return torch.zeros_like(stationarity)
    features = torch.stack(
        [
            *_quadratic(torch.cat([pull, teachers]), noise, groups),
            expected * _size(noise, groups),
        ],
        -1,
    )
    features = features / _root_mean_square(features)
    removed = (features * _coefficients(stationarity, features, groups).unsqueeze(2)).sum(-1)
    before, after = (x.var(0).sum(1) for x in (stationarity, stationarity - removed))
    return torch.where((after < before).unsqueeze(1), removed, 0.0)


def _quadratic(pulls: Tensor, noise: Tensor, groups: TokenGroups) -> tuple[Tensor, Tensor]:
    """Products of a draw's noise with the gradients of earlier ones: across tokens and within, (S, b, T)."""
    products = groups.products(pulls, noise)  # (R, S, b, T)
    lengths = groups.squares(pulls)  # (R, b, T)
    total = lengths.sum(-1)
    weight = torch.where(total > 0, 1 / total.clamp(min=torch.finfo(total.dtype).tiny), 0.0)
    earlier = torch.ones(len(pulls), len(noise), dtype=total.dtype, device=total.device)
    earlier[: len(noise)].triu_(1)  # draw r teaches draw s if r < s
    weight = weight.unsqueeze(1) * earlier.unsqueeze(2)  # (R, S, b)
    squares = torch.einsum("rsbt,rsb->sbt", products.square(), weight)
    across = torch.einsum("rsbt,rsb->sbt", products, weight * products.sum(-1)) - squares
    # of a single token that matters nothing is left but rounding, which no regression may blow up
    real = across.square().mean((0, 2)) > ROUNDING**2 * squares.square().mean((0, 2))
    return across * real.unsqueeze(1), squares - torch.einsum("rbt,rsb->sbt", lengths, weight)


def _size(noise: Tensor, groups: TokenGroups) -> Tensor:
    """|eps_i|^2 / K - 1, (S, b, T)."""
    sizes = groups.sizes.to(noise.dtype)
    return groups.squares(noise.unsqueeze(1).expand(-1, len(sizes), -1)) / sizes.clamp(min=1) - 1


def _root_mean_square(features: Tensor) -> Tensor:
    """Of each example's, (b, 1, F)."""
    square = features.square().mean((0, 2)).unsqueeze(1)
    return square.sqrt().clamp(min=torch.finfo(square.dtype).tiny ** 0.5)


def _coefficients(values: Tensor, features: Tensor, groups: TokenGroups) -> Tensor:
    """Of the regression on all other draws, one for all tokens of an example, (S, b, F)."""
    values, features = values - values.mean(0), features - features.mean(0)
    normal = torch.einsum("sbtf,sbtg->sbfg", features, features)
    right = torch.einsum("sbtf,sbt->sbf", features, values)
    normal, right = normal.sum(0) - normal, right.sum(0) - right
    size = normal.diagonal(dim1=-2, dim2=-1).mean(-1) * RIDGE / (len(values) * groups.counts) + 1e-6
    ridge = size[..., None, None] * torch.eye(features.shape[-1], dtype=size.dtype, device=size.device)
    coefficients: Tensor = torch.linalg.solve(normal + ridge, right)
    return coefficients
