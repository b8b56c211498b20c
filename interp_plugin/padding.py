"""How long the examples of a padded batch are, and which of them are about as long."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

FULL = 0.8  # of the longest example's length: the least of those that are about as long


def lengths_of(mask: Tensor) -> Tensor | None:
    """How many tokens each example has before its padding, (B,); None where padding is not all at the end.

    Args:
        mask: true where a token is real, (B, T).

    Examples::
        >>> lengths_of(torch.tensor([[True, True, False], [True, True, True]])).tolist()
        [2, 3]
        >>> lengths_of(torch.tensor([[False, True]])) is None
        True
    """
    lengths = mask.sum(1)
    first = torch.arange(mask.shape[1], device=mask.device) < lengths.unsqueeze(1)
    return lengths if torch.equal(first, mask) else None


def alike(
    lengths: Sequence[int], full: float = FULL, size: float = math.inf, tokens: float = math.inf
) -> list[list[int]]:
    """Indices of examples of about one length, the longest first.

    Args:
        lengths: of the examples.
        full: of the longest one's length, the least of those that go with it; 1 keeps lengths apart.
        size, tokens: most examples, and most tokens padding included, of those that go together.

    Examples::
        >>> alike([3, 10, 9, 2]), alike([3, 10, 9, 2], tokens=12)
        ([[1, 2], [0], [3]], [[1], [2], [0], [3]])
    """
    found: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        together = found[-1] if found else []
        longest = lengths[together[0]] if found else 0
        fits = lengths[index] >= full * longest and len(together) < size
        if not found or not fits or (len(together) + 1) * longest > tokens:
            found.append([])
        found[-1].append(index)
    return found
