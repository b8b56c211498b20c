"""Reproducible Gaussian draws, one block per token position, and the groups of elements that share a scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Draws:
    """Standard normal noise for one example, the same for every example of a batch.

    The block at a position depends on the seed, the round, the input and the position alone: not on
    the batch, not on how far a sequence is padded, not on the device, not on any global generator.

    Args:
        shapes: shape of each input without its batch dimension.
        seed: of the private counter-based generator (Philox).

    Examples::
        >>> short = Draws([(3, 4)], seed=0).round(0, 5)
        >>> long = Draws([(9, 4)], seed=0).round(0, 5)
        >>> short.shape, torch.equal(long[:, : 3 * 4], short)
        (torch.Size([5, 12]), True)
    """

    shapes: Sequence[torch.Size | tuple[int, ...]]
    seed: int = 0

    def round(self, index: int, count: int, first: int | None = None) -> Tensor:
        """Draws of round ``index``, (count, N): all inputs flattened and joined, float32, CPU.

        Args:
            index: of the round.
            count: draws in the round.
            first: of these only the first so many; None: all.
        """
        first = count if first is None else first
        blocks = []
        for number, shape in enumerate(self.shapes):
            if len(shape) < 2:  # every element is a position: one block, filled element by element
                size = int(np.prod(shape))
                blocks.append(torch.from_numpy(self._block(index, number, 0, size, count)).T[:first])
                continue
            size = int(np.prod(shape[1:]))
            for position in range(shape[0]):
                blocks.append(torch.from_numpy(self._block(index, number, position, first, size)))
        return torch.cat(blocks, dim=1)

    def _block(self, index: int, number: int, position: int, rows: int, columns: int) -> np.ndarray:
        # the lowest word counts within the block, so blocks never overlap
        generator = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, position, number, index]))
        return generator.standard_normal((rows, columns), dtype=np.float32)


@dataclass(frozen=True)
class Tilt:
    """Importance sampling along one direction for each of b examples.

    Far from the small-noise regime most of the distortion comes from rare draws in which the state
    flips, and those lean to one side.  Every second draw is moved by ``shift`` along ``direction``; the
    balance heuristic (Veach and Guibas, 1995) weighs the draws so that every mean stays unbiased.  A
    weight is at most 2, and a shift of 0 is plain sampling.

    Attributes:
        direction: unit vectors, (b, N).
        shift: in standard deviations, (b,).
    """

    direction: Tensor
    shift: Tensor

    def _moved(self, draw: Tensor) -> Tensor:
        return (draw % 2).to(self.shift.dtype)

    def shifted(self, draws: Tensor, draw: Tensor, which: Tensor) -> Tensor:
        """The noise of rows that are draw ``draw[r]`` of example ``which[r]``, (R, N)."""
        step = self._moved(draw) * self.shift[which]
        return draws[draw] + step.unsqueeze(1) * self.direction[which]

    def weights(self, draws: Tensor) -> Tensor:
        """Importance weight of every draw for every example, (S, b)."""
        along = draws @ self.direction.T
        along = along + self._moved(torch.arange(len(draws), device=draws.device)).unsqueeze(1) * self.shift
        return 2 / (1 + (self.shift * along - self.shift.square() / 2).exp())


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
        """The groups of the given examples."""
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
        """Elements of every token if all tokens are equally many neighbours, as a sequence's embeddings are."""
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

    Without ``feature_mask`` the elements along the last dimension of a 3-D or higher input are one
    token, and every element of a 1-D or 2-D input is its own.  With it, equal numbers are one token,
    across inputs too, as in Captum.

    Args:
        inputs: tensors with the same batch dimension.
        feature_mask: integers, one tensor per input, each of shape (B or 1, ...) like its input.
        token_mask: (B or 1, T); false or 0 where a token bears no noise and counts nowhere.

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
        raise ValueError(
            f"example {example} has no token left to bear noise (every token is masked); "
            "leave at least one token unmasked or drop the example"
        )
    return TokenGroups(index, active)


def _groups_of_mask(inputs: Sequence[Tensor], feature_mask: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Index (B or 1, N) and which tokens occur (B, T), with the mask's numbers made contiguous."""
    if len(feature_mask) != len(inputs):
        raise ValueError(
            f"feature_mask has {len(feature_mask)} tensors for {len(inputs)} inputs; give one per input"
        )
    batch = len(inputs[0])
    for tensor, mask in zip(inputs, feature_mask):
        if mask.is_floating_point() or mask.shape not in (tensor.shape, (1, *tensor.shape[1:])):
            raise ValueError(
                f"feature_mask of shape {tuple(mask.shape)} and type {mask.dtype} does not fit an input of shape "
                f"{tuple(tensor.shape)}; give integers of the input's shape, batch dimension 1 or {batch}"
            )
    rows = max(len(mask) for mask in feature_mask)
    device = inputs[0].device
    flat = [mask.to(device).flatten(1).expand(rows, -1) for mask in feature_mask]
    numbers, index = torch.unique(torch.cat(flat, 1), return_inverse=True)
    occurs = torch.zeros(rows, len(numbers), dtype=torch.bool, device=device).scatter_(
        1, index, torch.ones_like(index, dtype=torch.bool)
    )
    return index, occurs.expand(batch, -1)


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
