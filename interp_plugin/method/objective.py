"""The objective of Guan et al. (ICML 2019, eq. 7) and its derivatives.

For an example with tokens i = 1..n, each with a noise scale sigma_i of at most max_sigma::

    L(sigma) = D(sigma) - rate / n * sum_i log sigma_i
    D(sigma) = E_eps[ 1 / M * sum_m ((Phi(x + sigma * eps)_m - s_m) / v_m)^2 ],    s = Phi(x),  eps ~ N(0, 1)

The first part of the module has pure functions of tensors: L and D, the stationarity g_i = sigma_i dD/dsigma_i, which
is rate / n at the optimum for every token below the cap, the closed form of the optimum for small noise, and the
quantities computed from sigma.  Then come the tokens, as groups of input elements, and :class:`Objective`, which
evaluates D and its derivatives for a batch of examples.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from interp_plugin.method.perturbation import ExampleError, NoisyModel, alike, no_fastpath

SATURATED = 0.65  # below this E, D is near its largest slope, and a minimum is not certain
MAX_ROWS = 64  # maximum rows in one forward and backward pass
MAX_ELEMENTS = 2**21  # maximum input elements in one forward and backward pass, to bound memory


def loss(distortion: Tensor, log_sigma: Tensor, rate: float | Tensor, active: Tensor | None = None) -> Tensor:
    """Return L = D - rate / n * sum_i log sigma_i over the n active tokens, (B,), which is minimised (eq. 7).

    Args:
        distortion: D, (B,).
        log_sigma: (B, T).
        rate: lambda, a number or (B,).
        active: which tokens bear noise, (B, T); None: all.

    Examples::
        >>> loss(torch.tensor([0.05]), torch.tensor([[1.0, 3.0]]), rate=0.1)
        tensor([-0.1500])
    """
    active = torch.ones_like(log_sigma, dtype=torch.bool) if active is None else active
    return distortion - rate * torch.where(active, log_sigma, 0.0).sum(1) / active.sum(1)


def distortion(state: Tensor, reference: Tensor, weight: Tensor) -> Tensor:
    """Return D of one draw, (R,): the mean over the state's elements of ((state - reference) / v)^2.

    Args:
        state, reference: (R, ...).
        weight: from :func:`state_weight`, (R, ...): sqrt(1 / (v^2 M)) for elements that count and 0 for the others.

    Examples::
        >>> reference, state = torch.tensor([[3.0, 1.0]]), torch.tensor([[3.5, 1.0]])
        >>> distortion(state, reference, torch.full((1, 2), 0.5**0.5))  # v = 1, M = 2
        tensor([0.1250])
    """
    moved = (state - reference) * weight  # may be one number per row, if a selector removed the dimension
    return moved.reshape(len(moved), -1).square().sum(1)


def distortion_gradient(state: Tensor, reference: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient of :func:`distortion` by the state, (R, ...)."""
    return (state - reference).mul_(weight).mul_(2 * weight)


def stationarity(gradient: Tensor, noise: Tensor, groups: TokenGroups) -> Tensor:
    """Return g_i = sigma_i dD/dsigma_i of each draw, (R, T), for all tokens from one backward pass.

    Args:
        gradient: of D by the noise, sigma dD/dx, (R, N).
        noise: eps, (R, N).
        groups: the tokens of the R rows.
    """
    return groups.collect(gradient * noise)


def residual(stationarity: Tensor, rate: Tensor | float, counts: Tensor) -> Tensor:
    """Return sigma_i dD/dsigma_i / (rate / n) - 1, (..., B, T): 0 at the optimum, -1 if noise has no effect.

    Args:
        stationarity: g, (..., B, T).
        rate: lambda, a number or (B,).
        counts: n, (B,).
    """
    return stationarity / (rate / counts.to(stationarity.dtype)).unsqueeze(-1) - 1


def state_weight(reference: Tensor, state_std: Tensor | None, counted: Tensor) -> Tensor:
    """Return sqrt(1 / (v^2 M)) for each state element, in the shape of ``reference``; 0 for elements that do not count.

    Args:
        reference: the state s, (B, ...).
        state_std: v, in the shape of ``reference``; None: v^2 = mean of s^2 of each example.
            A state of zeros (of a dead neuron) has v = 1, with a warning.
            Elements of zero standard deviation never moved and do not count.
        counted: bool, in the shape of ``reference``; false for masked tokens.
    """
    keep = counted.reshape(len(counted), -1)
    if state_std is None:
        size = keep.sum(1, keepdim=True).clamp(min=1)
        own = (reference.reshape(keep.shape).square() * keep).sum(1, keepdim=True).div(size).sqrt()
        zero = (own == 0) & keep.any(1, keepdim=True)
        if zero.any():
            warnings.warn(
                f"the state of example {int(zero.nonzero()[0, 0])} is 0 throughout and gives no unit to measure its "
                "distortion in: 1 is taken; pass a positive state_std",
                stacklevel=6,
            )
        v = torch.where(zero, 1.0, own).expand_as(keep)
    else:
        v = state_std.reshape(keep.shape)
    keep = keep & (v > 0)
    size = keep.sum(1, keepdim=True)
    if not size.bool().all():
        example = int((size[:, 0] == 0).nonzero()[0, 0])
        raise ExampleError(
            f"the state of example {example} has no element to measure distortion by (all are masked, or have zero "
            "state_std); pass a positive state_std",
            example,
        )
    weight = torch.where(keep, 1 / torch.where(keep, v, 1.0), 0.0) / size.to(v.dtype).sqrt()
    return weight.reshape(reference.shape)


def closed_form(curvature: Tensor, rate: float, counts: Tensor) -> Tensor:
    """Return log sigma_i = 1/2 log(rate / (2 n c_i)), the small-noise optimum, (B, T); infinite where c_i is 0.

    Args:
        curvature: c_i = ||J_i / v||_F^2 / M, (B, T).
        rate: lambda.
        counts: n, (B,).
    """
    return 0.5 * (math.log(rate / 2) - counts.unsqueeze(1).to(curvature.dtype).log() - curvature.log())


def regime_index(slope: Tensor, distortion_at_optimum: Tensor) -> Tensor:
    """Return E = slope / (2 D*), (B,): 1 in the small-noise regime, where the closed form is exact.

    By Euler's theorem the slope of a quadratic D is 2 D, for any cap.  If the state does not move at all, E is infinite
    in theory and reported as the largest float.

    Args:
        slope: sum over tokens of sigma_i dD/dsigma_i, (B,): lambda, less if tokens at the cap have less than rate / n.
        distortion_at_optimum: D, (B,).
    """
    largest = torch.finfo(torch.float32).max
    return torch.where(distortion_at_optimum > 0, slope / (2 * distortion_at_optimum), largest).clamp(
        max=largest
    )


def log_normal_constant(sizes: Tensor) -> Tensor:
    """Return K / 2 log(2 pi e), the entropy in nats of K Gaussian elements of unit variance."""
    return sizes / 2 * math.log(2 * math.pi * math.e)


def information_loss(sigma: Tensor, sizes: Tensor) -> Tensor:
    """Return H_i = K / 2 log(2 pi e) + K log sigma_i in nats (Guan et al., 2019, eq. 5), (B, T).

    Examples::
        >>> information_loss(torch.tensor([[1.0]]), torch.tensor([[2.0]]))
        tensor([[2.8379]])
    """
    return log_normal_constant(sizes) + sizes * sigma.log()


def information_kept(sigma: Tensor, sizes: Tensor, max_sigma: Tensor, input_std: Tensor) -> Tensor:
    """Return I_i = K / 2 log(1 + tau^2 / sigma_i^2) minus the same at the cap, in nats, (B, T).

    The information that a Gaussian channel with noise sigma_i transmits about K elements of variance tau^2 (Cover and
    Thomas, Elements of Information Theory, eq. 9.16), relative to the cap, where it is exactly 0.

    Args:
        sigma, sizes: (B, T).
        max_sigma, input_std: the cap and tau, (B,).

    Examples::
        >>> sigma, one = torch.tensor([[0.1, 10.0]]), torch.ones(1)
        >>> information_kept(sigma, torch.tensor([[2.0, 2.0]]), 10 * one, one)
        tensor([[4.6052, 0.0000]])
    """
    cap, std = max_sigma.unsqueeze(1), input_std.unsqueeze(1)
    nats = sizes * (_half_log(std / sigma) - _half_log(std / cap))
    return torch.where(sigma >= cap, 0.0, nats).clamp(min=0)


def _half_log(ratio: Tensor) -> Tensor:
    """Return 1 / 2 log(1 + ratio^2); softplus would round equal numbers differently at other places of a tensor."""
    return torch.where(ratio > 1e6, ratio.log(), ratio.square().log1p() / 2)


def kept_slope(sigma: Tensor, sizes: Tensor, input_std: Tensor) -> Tensor:
    """Return -dI_i / d log sigma_i = K tau^2 / (tau^2 + sigma_i^2), (B, T): the error of I_i per error of log sigma."""
    return sizes / (1 + (sigma / input_std.unsqueeze(1)).square())


@dataclass(frozen=True)
class TokenGroups:
    """Which token each of the N flattened input elements belongs to.

    Attributes:
        index: (B or 1, N), values in [0, T).
        active: (B, T), bool; a token that is masked, or that has no element in an example, is not active.
    """

    index: Tensor
    active: Tensor

    @property
    def n_tokens(self) -> int:
        """T, the number of columns of sigma."""
        return self.active.shape[1]

    @cached_property
    def sizes(self) -> Tensor:
        """K of each token, (B, T)."""
        ones = torch.ones_like(self.index, dtype=torch.float32)
        counts = ones.new_zeros(len(self.index), self.n_tokens).scatter_add_(1, self.index, ones)
        return counts.expand(len(self.active), -1)

    @property
    def counts(self) -> Tensor:
        """n, the number of active tokens of each example, (B,)."""
        return self.active.sum(1)

    def at(self, rows: Tensor) -> TokenGroups:
        """Return the groups of the given examples."""
        index = self.index if len(self.index) == 1 else self.index[rows]
        return TokenGroups(index, self.active[rows])

    def spread(self, values: Tensor) -> Tensor:
        """Give every element its token's value: (B, T) -> (B, N)."""
        if self.width:
            return values.repeat_interleave(self.width, 1)
        return values.gather(1, self.index.expand(len(values), -1))

    def collect(self, values: Tensor) -> Tensor:
        """Sum the elements of every token: (B, N) -> (B, T)."""
        if self.width:
            return values.reshape(len(values), self.n_tokens, self.width).sum(-1)
        totals = values.new_zeros(len(values), self.n_tokens)
        return totals.scatter_add_(1, self.index.expand(len(values), -1), values)

    @cached_property
    def width(self) -> int | None:
        """Elements per token if all have the same number, contiguous, as in a sequence of embeddings; else None."""
        elements = self.index.shape[1]
        size, rest = divmod(elements, self.n_tokens)
        if rest or len(self.index) > 1:
            return None
        regular = torch.arange(elements, device=self.index.device) // size
        return size if torch.equal(self.index[0], regular) else None

    def squares(self, values: Tensor) -> Tensor:
        """Sum of squares over each token's elements: (R, B, N) -> (R, B, T)."""
        if self.width:
            return values.reshape(*values.shape[:2], self.n_tokens, self.width).square().sum(-1)
        return torch.stack([self.collect(row.square()) for row in values])

    def products(self, left: Tensor, right: Tensor) -> Tensor:
        """Scalar products over each token's elements: (R, B, N), (S, N) -> (R, S, B, T)."""
        if self.width:
            split = (self.n_tokens, self.width)
            return torch.einsum("rbtk,stk->rsbt", left.unflatten(2, split), right.unflatten(1, split))
        rows = [torch.stack([self.collect(row * other) for other in right]) for row in left]
        return torch.stack(rows)


def token_groups(
    inputs: Sequence[Tensor], feature_mask: Sequence[Tensor] | None = None, token_mask: Tensor | None = None
) -> TokenGroups:
    """Group the elements of ``inputs`` (each (B, ...)) into tokens.

    Without ``feature_mask`` the elements along the last dimension of a 3-D or higher input are one token, and every
    element of a 1-D or 2-D input is one token.  With it, elements with equal numbers are one token, also across inputs,
    as in Captum.

    Args:
        inputs: tensors with the same batch dimension.
        feature_mask: integers, one tensor per input, each of a shape that broadcasts to its input.
        token_mask: (B or 1, T); false or 0 for tokens that get no noise and are not counted.

    Examples::
        >>> groups = token_groups([torch.zeros(2, 3, 4)])
        >>> groups.n_tokens, groups.sizes[0].tolist()
        (3, [4.0, 4.0, 4.0])
    """
    batch = len(inputs[0])
    if feature_mask is None:
        parts, offset = [], 0
        for tensor in inputs:
            size = tensor.shape[-1] if tensor.ndim > 2 else 1
            numbers = torch.arange(tensor[0].numel(), device=tensor.device) // size + offset
            parts.append(numbers)
            offset += tensor[0].numel() // size
        index = torch.cat(parts).unsqueeze(0)
        active = torch.ones(batch, offset, dtype=torch.bool, device=index.device)
    else:
        index, active = _groups_of_mask(inputs, feature_mask)
    if token_mask is not None:
        active = active & _checked_mask(token_mask, active)
    if not active.any(1).all():
        example = int((~active.any(1)).nonzero()[0, 0])
        raise ExampleError(
            f"example {example} has no token left to bear noise (every token is masked); "
            "leave at least one token unmasked or drop the example",
            example,
        )
    return TokenGroups(index, active)


def _groups_of_mask(inputs: Sequence[Tensor], feature_mask: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the index (B or 1, N) and which tokens occur (B, T), with the mask's numbers made contiguous."""
    if len(feature_mask) != len(inputs):
        raise ValueError(
            f"feature_mask has {len(feature_mask)} tensors for {len(inputs)} inputs; give one per input"
        )
    batch = len(inputs[0])
    masks = [_broadcast_mask(tensor, mask) for tensor, mask in zip(inputs, feature_mask)]
    rows = max(map(len, masks))
    device = inputs[0].device
    flat = [mask.to(device).flatten(1).expand(rows, -1) for mask in masks]
    numbers, index = torch.unique(torch.cat(flat, 1), return_inverse=True)
    occurs = torch.zeros(rows, len(numbers), dtype=torch.bool, device=device).scatter_(
        1, index, torch.ones_like(index, dtype=torch.bool)
    )
    return index, occurs.expand(batch, -1)


def _broadcast_mask(tensor: Tensor, mask: Tensor) -> Tensor:
    """Return a feature mask in the shape of its input, with one row if it is the same for all examples."""
    rows = len(mask) if mask.ndim == tensor.ndim else 1
    try:
        if mask.is_floating_point() or rows not in (1, len(tensor)):
            raise ValueError
        return mask.broadcast_to((rows, *tensor.shape[1:]))
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"feature_mask of shape {tuple(mask.shape)} and type {mask.dtype} does not fit an input of shape "
            f"{tuple(tensor.shape)}; give integers of the input's shape, or of one that broadcasts to it, batch "
            f"dimension 1 or {len(tensor)}"
        ) from error


def _checked_mask(token_mask: Tensor, active: Tensor) -> Tensor:
    try:
        mask = token_mask.to(active.device).bool()
        return torch.broadcast_to(mask, active.shape)
    except (RuntimeError, AttributeError) as error:
        shape = tuple(getattr(token_mask, "shape", ()))
        raise ValueError(
            f"token_mask of shape {shape} does not broadcast to (examples, tokens) = {tuple(active.shape)}; "
            "give one true or false per token"
        ) from error


def default_rows(elements: int) -> int:
    """Return the number of rows in one forward pass, from the number of input elements of each."""
    return max(1, min(MAX_ROWS, MAX_ELEMENTS // elements))


def rows_of(values: Tensor, rows: Tensor) -> Tensor:
    """Select rows of ``values``; the one row of a single example is returned as it is, because it broadcasts."""
    return values if len(values) == 1 else values[rows]


@dataclass(frozen=True)
class Evaluation:
    """D and its derivatives at S noise draws, for b examples with T tokens.

    Attributes:
        distortion: D of each draw, (S, b).
        stationarity: g, (S, b, T).
        gradient: of D by the noise, sigma dD/dx, (S, b, N).
    """

    distortion: Tensor
    stationarity: Tensor
    gradient: Tensor

    def at(self, examples: Tensor) -> Evaluation:
        """Return the part of some examples (indices or a mask of b)."""
        return Evaluation(
            self.distortion[:, examples], self.stationarity[:, examples], self.gradient[:, examples]
        )

    def put(self, examples: Tensor, other: Evaluation) -> Evaluation:
        """Return a copy with the part of some examples (indices) replaced."""
        pairs = zip(vars(self).values(), vars(other).values())
        return Evaluation(*(mine.index_copy(1, examples, theirs) for mine, theirs in pairs))


def join(parts: Sequence[Evaluation]) -> Evaluation:
    """Concatenate the draws of several evaluations; a single one is returned without a copy."""
    if len(parts) == 1:
        return parts[0]
    return Evaluation(*(torch.cat(values) for values in zip(*(vars(part).values() for part in parts))))


class Objective:
    """D and its derivatives for a batch of examples that share the draws.

    Args:
        model: noise in, state out; ``clean()`` has run.
        reference: the clean state s, (B, ...).
        weight: from :func:`state_weight`.
        groups: the tokens.
        max_rows: maximum rows in one forward and backward pass; None: chosen by size.
    """

    def __init__(
        self,
        model: NoisyModel,
        reference: Tensor,
        weight: Tensor,
        groups: TokenGroups,
        max_rows: int | None = None,
    ) -> None:
        self.model = model
        self.groups = groups
        self.dtype = torch.promote_types(model.origin[0].dtype, torch.float32)
        self.origin = torch.cat([x.flatten(1).to(self.dtype) for x in model.origin], 1)  # (B, N)
        self.reference = reference.to(self.device, self.dtype)
        self.weight = weight.to(self.device, self.dtype)
        # dD/ds is near 1 / M, which underflows in half precision for large states; scaling by a power of two is exact
        self._loss_scale = torch.exp2(-self.weight.reshape(len(weight), -1).amax(1).log2().round())  # (B,)
        self.max_rows = max_rows or default_rows(self.origin.shape[1])
        self.clean_passes = torch.ones(
            len(self.origin), dtype=torch.long, device=self.device
        )  # number of forward passes without noise so far, (B,)
        self._lengths: Tensor | None = None  # lengths at which the examples are run without padding, (B,)
        self._state_has_positions = False  # in dimension 1, so that padding is cut off the state, too

    @property
    def device(self) -> torch.device:
        return self.origin.device

    def leave_padding_out(self, lengths: Tensor) -> None:
        """Run each example at about its own length from now on, without padding, if that does not change its state.

        This is tested under noise of the size of the inputs.  If one example differs, all are run at full length.

        Args:
            lengths: number of tokens of each example before its padding, (B,), in dimension 1 of the model's inputs,
                of the values that get noise and possibly of the state.
        """
        found = torch.full_like(lengths, self.groups.n_tokens)
        noise = torch.randn(
            1, self.origin.shape[1], generator=torch.Generator().manual_seed(0)
        )  # private, on the CPU
        noise = noise.to(self.device, self.dtype)
        size = self.origin.square().mean().sqrt()
        points = self.origin + size * noise * self.groups.spread(self.groups.active.to(self.dtype))
        positions = set()
        for together in alike(lengths.tolist()):
            examples = torch.tensor(together, device=self.device)
            length = int(lengths[together[0]])
            if length == self.groups.n_tokens:
                continue
            for rows in examples.split(self.max_rows):
                kind = self._runs_without_padding(length, rows, points[rows])
                if kind is None:
                    return
                positions.add(kind)
            found[examples] = length
        if len(positions) == 1:
            self._lengths, [self._state_has_positions] = found, positions

    @torch.no_grad()
    def _runs_without_padding(self, length: int, rows: Tensor, points: Tensor) -> bool | None:
        """Return whether the state is shorter if the input is cut to this length; None: its values change."""
        shape, short = self.model.origin[0].shape, self.model.shorter(length)
        points = points.reshape(len(rows), *shape[1:]).to(self.model.origin[0].dtype)
        self.clean_passes[rows] += 2
        try:
            with no_fastpath():
                whole, state = (
                    model.perturb((given.contiguous(),), rows).to(self.device, self.dtype)
                    for model, given in ((self.model, points), (short, points[:, :length]))
                )
        except Exception:  # any exception of a model that cannot run at this length
            return None
        reference, weight = self.reference[rows], self.weight[rows]
        is_cut = state.shape != whole.shape
        moved = distortion(whole, reference, weight)
        if is_cut:
            if whole.ndim < 2 or state.shape != whole[:, :length].shape or weight[:, length:].any():
                return None
            whole, weight = whole[:, :length], weight[:, :length]
        rounding = min(32 * torch.finfo(points.dtype).eps, 1e-3) ** 2
        return is_cut if (distortion(state, whole, weight) <= rounding * (1 + moved)).all() else None

    def shorter(self, length: int) -> Objective:
        """Return the same examples cut to this number of tokens."""
        if length == self.groups.n_tokens:
            return self
        short = copy(self)
        short.model, short._lengths = self.model.shorter(length), None
        width = short.model.origin[0][0].numel()
        short.origin = self.origin[:, :width]
        short.groups = TokenGroups(self.groups.index[:, :width], self.groups.active[:, :length])
        if self._state_has_positions:
            short.reference, short.weight = self.reference[:, :length], self.weight[:, :length]
        return short

    def by_length(self, examples: Tensor) -> list[tuple[Objective, Tensor]]:
        """Return objectives cut to the lengths at which examples are run, each with the indices of its examples."""
        if self._lengths is None:
            return [(self, torch.arange(len(examples), device=self.device))]
        lengths = self._lengths[examples]
        return [
            (self.shorter(length), (lengths == length).nonzero()[:, 0])
            for length in lengths.unique().tolist()
        ]

    def evaluate(self, examples: Tensor, sigma: Tensor, draws: Tensor) -> Evaluation:
        """Evaluate distortion, stationarity and gradient at ``sigma`` for every draw.

        Args:
            examples: which examples, (b,).
            sigma: (b, T).
            draws: (S, N), shared by the examples.
        """
        if self._lengths is None:
            return self._evaluate(examples, sigma, draws)
        whole = Evaluation(
            draws.new_zeros(len(draws), len(examples)),
            draws.new_zeros(len(draws), *sigma.shape),
            draws.new_zeros(len(draws), len(examples), draws.shape[1]),
        )
        for short, rows in self.by_length(examples):
            tokens, width = short.groups.n_tokens, short.origin.shape[1]
            seen = short._evaluate(examples[rows], sigma[rows, :tokens], draws[:, :width])
            whole.distortion[:, rows] = seen.distortion
            whole.stationarity[:, rows, :tokens] = seen.stationarity
            whole.gradient[:, rows, :width] = seen.gradient
        return whole

    def _evaluate(self, examples: Tensor, sigma: Tensor, draws: Tensor) -> Evaluation:
        count, b = len(draws), len(examples)
        scale = self.groups.at(examples).spread(sigma * self.groups.active[examples])  # (b, N)
        parts = []
        for chunk in torch.arange(count * b, device=self.device).split(self.max_rows):
            draw, which = chunk // b, chunk % b  # row r is draw r // b of example r % b
            noise, spread = draws[draw], rows_of(scale, which)
            value, slope = self._distortion_and_gradient(examples[which], spread * noise)
            gradient = slope.mul_(spread)
            slopes = stationarity(gradient, noise, self.groups.at(examples[which]))
            parts.append(Evaluation(value, slopes, gradient))  # joined below, in the order of draws
        rows = join(parts)
        values, slopes = rows.distortion.reshape(count, b), rows.stationarity.reshape(count, b, -1)
        no_gradient = values.any(0) & ~slopes.any(2).any(0)
        # a state without noise may still change by rounding, which depends on the number of rows
        still = no_gradient & (values.amax(0) < (16 * torch.finfo(self.model.origin[0].dtype).eps) ** 2)
        values, no_gradient = values.masked_fill(still, 0), no_gradient & ~still
        if no_gradient.any():
            example = int(examples[no_gradient][0])
            raise ExampleError(
                f"the state of example {example} moves with its input but carries no gradient (detach, numpy, argmax "
                "or rounding on the way); read the state before that step",
                example,
            )
        return Evaluation(values, slopes, rows.gradient.reshape(count, b, -1))

    def _distortion_and_gradient(self, examples: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return D (R,) and dD/dx (R, N) at the noisy points of the rows' examples."""
        points = self.points(examples, noise)
        state = self.model.perturb(points, examples).to(self.device, self.dtype)
        reference, weight = rows_of(self.reference, examples), rows_of(self.weight, examples)
        value = distortion(state.detach(), reference, weight)
        self.check_finite(value, examples, "refinement")
        by_state = distortion_gradient(state.detach(), reference, weight)
        scale = self._loss_scale[examples].unsqueeze(1)
        by_state = by_state.reshape(len(by_state), -1).mul_(scale).reshape(by_state.shape)
        slope = self.gradient(state, points, by_state) / scale
        self.check_finite(slope.sum(1), examples, "backward pass of the refinement")
        return value, slope

    def points(self, examples: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        """Return the noisy values in the model's shapes and type, as leaves of a new graph."""
        flat = rows_of(self.origin, examples) + noise
        parts = flat.split([x[0].numel() for x in self.model.origin], 1)
        return tuple(
            part.reshape(len(part), *x.shape[1:])
            .to(x.dtype, memory_format=torch.contiguous_format)
            .detach()
            .requires_grad_()
            for part, x in zip(parts, self.model.origin)
        )

    def gradient(
        self, state: Tensor, points: tuple[Tensor, ...], by_state: Tensor, again: bool = False
    ) -> Tensor:
        """Return d (state . by_state) / d points, (R, N), for a constant ``by_state``; 0 where nothing depends on them.

        ``again``: keep the graph for another call.
        """
        if not state.requires_grad:
            return torch.cat([torch.zeros_like(p, dtype=self.dtype).flatten(1) for p in points], 1)
        try:
            grads = torch.autograd.grad(
                state, points, by_state, retain_graph=again, allow_unused=True, materialize_grads=True
            )
        except RuntimeError as error:
            if "use_reentrant=True" not in str(error):
                raise
            raise ValueError(
                "the model uses torch.utils.checkpoint with use_reentrant=True, which gives no gradient of its inputs; "
                "switch it off, as by model.gradient_checkpointing_disable() or model.eval(), or use "
                "use_reentrant=False"
            ) from error
        return torch.cat([g.flatten(1).to(self.dtype) for g in grads], 1)

    @staticmethod
    def check_finite(values: Tensor, examples: Tensor, step: str) -> None:
        bad = ~values.detach().flatten().isfinite()
        if bad.any():
            example = int(examples[bad][0])
            raise ExampleError(
                f"the model gave NaN or infinite values for example {example} in the {step}; check its weights and "
                "inputs, or use a type of wider range than half precision",
                example,
            )
