"""Noise draws, and estimates from them: Jacobian norms, and the stationarity sigma_i dD/dsigma_i.

The stationarity is estimated from pairs of a draw and its mirror image (antithetic sampling), which cancels terms odd
in the noise, minus control variates (Owen, Monte Carlo theory, methods and examples, 2013, ch. 8) of two kinds:

* The quadratic part of D, from the gradients of earlier draws, without further passes.  Near a minimum D is mostly
  eps^T A eps, and a draw's stationarity 2 eps_i^T (A eps)_i varies by sums of eps_i^T A_ij eps_j over other tokens,
  whose mean is 0, and by eps_i^T A_ii eps_i.  The gradients of *earlier* draws, u_r = 2 A eps_r, are independent of eps
  and have large components in the large directions of A, so that sum_r (u_r,i eps_i)(u_r,j eps_j) resembles the first,
  with mean 0, and sum_r (u_r,i eps_i)^2 the second, with mean sum_r |u_r,i|^2; and |eps_i|^2 has mean K.  The
  coefficients come from a regression over the tokens of the other draws.  The mean of the remainder is unbiased, except
  for a draw's influence on the coefficients of later ones: less than 2 % of g with six draws of tokens of one element.
  Only earlier draws are used: two draws that served each other would share a term, because u_r eps_s = u_s eps_r, and
  their scatter would underestimate the error of their mean (by 8 to 17 % in variance at MiniLM's layer 1).
* The linear model of the state, if its Jacobian is known (states of few elements, such as class outputs):
  D_lin(eps) = sum_m (J_m . sigma eps)^2 on the same draws, whose mean is known; for a linear state the variance is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from interp_plugin.method.objective import Evaluation, Objective, TokenGroups, rows_of
from interp_plugin.method.perturbation import select

NORM_STREAM = 2**32  # stream of random numbers, separate from those of the solver's batches
ROUNDING = 1e-5  # rounding error of a difference, as a share of the subtracted term
RIDGE = 4.0  # in units of (draws x tokens): prevents three coefficients from overfitting a handful of numbers


@dataclass(frozen=True)
class Draws:
    """Standard normal noise, shared by the examples of a batch.

    The noise at a position depends on the seed, the batch index, the input and the position alone: not on the examples,
    the padded length, the device or a global generator.

    Args:
        shapes: shape of each input without its batch dimension.
        seed: of the private counter-based generator (Philox).

    Examples::
        >>> short = Draws([(3, 4)], seed=0).batch(0, 5)
        >>> long = Draws([(9, 4)], seed=0).batch(0, 5)
        >>> short.shape, torch.equal(long[:, : 3 * 4], short)
        (torch.Size([5, 12]), True)
    """

    shapes: Sequence[torch.Size | tuple[int, ...]]
    seed: int = 0

    def batch(self, index: int, count: int) -> Tensor:
        """Return draws of batch ``index``, (count, N): all inputs flattened and concatenated, float32, on the CPU."""
        blocks = []
        for number, shape in enumerate(self.shapes):
            if len(shape) < 2:  # every element is a position: one block, filled one element after another
                blocks.append(torch.from_numpy(self._block(index, number, 0, int(np.prod(shape)), count)).T)
                continue
            size = int(np.prod(shape[1:]))
            for position in range(shape[0]):
                blocks.append(torch.from_numpy(self._block(index, number, position, count, size)))
        return torch.cat(blocks, dim=1)

    def _block(self, index: int, number: int, position: int, rows: int, columns: int) -> np.ndarray:
        # the lowest word of the counter is incremented within a block, so blocks never overlap
        generator = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, position, number, index]))
        return generator.standard_normal((rows, columns), dtype=np.float32)


@dataclass(frozen=True)
class JacobianNorms:
    """Squared norms of the Jacobian at the clean input, of B examples with T tokens.

    Attributes:
        estimates: P independent estimates of c, (P, B, T), equal if they are exact.
        passes: number of passes, (B,).
        exact: which examples have few enough state elements to compute their Jacobian, (B,).
        jacobian: of those B' examples, ds/dx / (v sqrt(M)), (B', M, N); padded with rows of zeros for examples with
            fewer elements.
    """

    estimates: Tensor
    passes: Tensor
    exact: Tensor
    jacobian: Tensor


def jacobian_norms(
    objectives: Sequence[Objective], seed: int, probes: int, exact_up_to: int
) -> list[JacobianNorms]:
    """Estimate c_i = ||J_i / v||_F^2 / M at the clean input, by vector-Jacobian products.

    A random sign vector r in state space gives an unbiased estimate of ||J_i / v||_F^2 for all tokens at once.  For an
    example with at most ``exact_up_to`` state elements (without padding), the result is exact, from one product for
    each element.

    Args:
        objectives: states of one model with the same inputs and noise layer; they share forward passes.
        seed: of the sign vectors.
        probes: number of sign vectors.
        exact_up_to: maximum number of state elements for the exact result.
    """
    found = []
    sampled: dict[tuple[bool, ...], list[int]] = {}  # objectives by which examples are exact
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
        found.append(JacobianNorms(c, torch.where(exact, counted.sum(1), probes), exact, jacobian))
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
    """Return the rows of J / (v sqrt(M)) for the state elements that count, (b, M, N); counted is (b, elements)."""
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
        Draws([o.reference.shape[1:]], seed).batch(NORM_STREAM, probes).sign().to(o.device, o.dtype)
        for o in objectives
    ]
    rows = torch.cartesian_prod(torch.arange(probes, device=first.device), examples)
    for probe, example in (part.unbind(1) for part in rows.split(first.max_rows)):
        for c, slopes in zip(cs, _slopes(objectives, example, [sign[probe] for sign in signs])):
            squares = first.groups.at(example).collect(slopes.square())
            c[probe, example, : squares.shape[1]] = squares


def _slopes(objectives: Sequence[Objective], examples: Tensor, directions: Sequence[Tensor]) -> list[Tensor]:
    """Return J^T (r / v) / sqrt(M), (R, N), for directions r in each state's space, (R, elements)."""
    first = objectives[0]
    points = first.points(examples, torch.zeros_like(first.origin[examples]))
    states = first.model.perturbed(points, examples, [o.model.state_layer for o in objectives])
    slopes = []
    for o, whole, direction in zip(objectives, states, directions):
        state = select(whole, o.model.selector).to(o.device, o.dtype)
        by_state = direction.reshape(state.shape) * rows_of(o.weight, examples)
        slopes.append(o.gradient(state, points, by_state, again=o is not objectives[-1]))
    return slopes


def antithetic_pairs(objective: Objective, examples: Tensor, sigma: Tensor, noise: Tensor) -> Evaluation:
    """Return the means of D and g over each of S draws and its mirror image, and half the difference of the gradients.

    Args:
        objective: D and its derivatives.
        examples: which examples, (b,).
        sigma: (b, T).
        noise: standard normal, (S, N).
    """
    seen = objective.evaluate(examples, sigma, torch.cat([noise, -noise]))
    (value, mirrored_value), (slope, mirrored_slope), (gradient, mirrored_gradient) = (
        x.chunk(2) for x in (seen.distortion, seen.stationarity, seen.gradient)
    )
    return Evaluation(
        (value + mirrored_value) / 2, (slope + mirrored_slope) / 2, (gradient - mirrored_gradient) / 2
    )


def without_quadratic_part(
    pairs: Evaluation, noise: Tensor, groups: TokenGroups, earlier: Tensor, expected: Tensor
) -> Evaluation:
    """Subtract :func:`quadratic_controls` from g, and half their sum from D, as for a quadratic D."""
    removed = quadratic_controls(pairs.stationarity, pairs.gradient, noise, groups, earlier, expected)
    distortion, slope = pairs.distortion - removed.sum(-1) / 2, pairs.stationarity - removed
    return Evaluation(distortion, slope, pairs.gradient)


def without_linear_part(
    pairs: Evaluation, noise: Tensor, groups: TokenGroups, sigma: Tensor, jacobian: Tensor
) -> Evaluation:
    """Replace the linear model's D and g on these draws by their means.

    Args:
        pairs: at ``sigma``, from ``noise``, (S, N).
        groups: the tokens of the b examples.
        sigma: (b, T).
        jacobian: ds/dx / (v sqrt(M)), (b, M, N).
    """
    sigma = sigma * groups.active
    mean = sigma.square() * groups.collect(jacobian.square().sum(1))  # mean of each token's part of D, (b, T)
    scaled = jacobian * groups.spread(sigma).unsqueeze(1)  # (b, M, N)
    distortion, slope = pairs.distortion.clone(), pairs.stationarity.clone()
    for index, eps in enumerate(noise):
        parts = torch.stack([groups.collect(row * eps) for row in scaled.unbind(1)], 1)  # (b, M, T)
        moved = parts.sum(2, keepdim=True)  # change of each state element in the linear model
        slope[index] += 2 * (mean - (moved * parts).sum(1))
        distortion[index] += mean.sum(1) - moved.square().sum((1, 2))
    return Evaluation(distortion, slope, pairs.gradient)


def quadratic_controls(
    stationarity: Tensor,
    gradient: Tensor,
    noise: Tensor,
    groups: TokenGroups,
    earlier: Tensor,
    expected: Tensor,
) -> Tensor:
    """Return control variates of the stationarity with mean 0, (S, b, T); 0 for examples they do not help.

    Args:
        stationarity: g, (S, b, T).
        gradient: gradient of D in noise units, (S, b, N).
        noise: standard normal, (S, N).
        groups: the tokens of the b examples.
        earlier: gradients of earlier pairs, (R, b, N).
        expected: g as expected before these draws, (b, T); only its ratios between tokens matter.
    """
    if len(stationarity) < 3:
        return torch.zeros_like(stationarity)
    features = torch.stack(
        [
            *_quadratic(torch.cat([gradient, earlier]), noise, groups),
            expected * _size(noise, groups),
        ],
        -1,
    )
    features = features / _root_mean_square(features)
    removed = (features * _coefficients(stationarity, features, groups).unsqueeze(2)).sum(-1)
    before, after = (x.var(0).sum(1) for x in (stationarity, stationarity - removed))
    return torch.where((after < before).unsqueeze(1), removed, 0.0)


def _quadratic(gradients: Tensor, noise: Tensor, groups: TokenGroups) -> tuple[Tensor, Tensor]:
    """Return products of a draw's noise with the gradients of earlier draws, across and within tokens, (S, b, T)."""
    products = groups.products(gradients, noise)  # (R, S, b, T)
    lengths = groups.squares(gradients)  # (R, b, T)
    total = lengths.sum(-1)
    weight = torch.where(total > 0, 1 / total.clamp(min=torch.finfo(total.dtype).tiny), 0.0)
    is_earlier = torch.ones(len(gradients), len(noise), dtype=total.dtype, device=total.device)
    is_earlier[: len(noise)].triu_(1)  # draw r comes before draw s if r < s
    weight = weight.unsqueeze(1) * is_earlier.unsqueeze(2)  # (R, S, b)
    squares = torch.einsum("rsbt,rsb->sbt", products.square(), weight)
    across = torch.einsum("rsbt,rsb->sbt", products, weight * products.sum(-1)) - squares
    # if only one token matters, the products across tokens are rounding, which the regression must not amplify
    real = across.square().mean((0, 2)) > ROUNDING**2 * squares.square().mean((0, 2))
    return across * real.unsqueeze(1), squares - torch.einsum("rbt,rsb->sbt", lengths, weight)


def _size(noise: Tensor, groups: TokenGroups) -> Tensor:
    """Return |eps_i|^2 / K - 1, (S, b, T)."""
    sizes = groups.sizes.to(noise.dtype)
    return groups.squares(noise.unsqueeze(1).expand(-1, len(sizes), -1)) / sizes.clamp(min=1) - 1


def _root_mean_square(features: Tensor) -> Tensor:
    """Return the root mean square of each example's features, (b, 1, F)."""
    square = features.square().mean((0, 2)).unsqueeze(1)
    return square.sqrt().clamp(min=torch.finfo(square.dtype).tiny ** 0.5)


def _coefficients(values: Tensor, features: Tensor, groups: TokenGroups) -> Tensor:
    """Return coefficients of the regression on all other draws, shared by an example's tokens, (S, b, F)."""
    values, features = values - values.mean(0), features - features.mean(0)
    normal = torch.einsum("sbtf,sbtg->sbfg", features, features)
    right = torch.einsum("sbtf,sbt->sbf", features, values)
    normal, right = normal.sum(0) - normal, right.sum(0) - right
    size = normal.diagonal(dim1=-2, dim2=-1).mean(-1) * RIDGE / (len(values) * groups.counts) + 1e-6
    ridge = size[..., None, None] * torch.eye(features.shape[-1], dtype=size.dtype, device=size.device)
    coefficients: Tensor = torch.linalg.solve(normal + ridge, right)
    return coefficients
