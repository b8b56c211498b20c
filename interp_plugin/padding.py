"""How long the examples of a padded batch are, and which of them are about as long."""

from __future__ import annotations

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


def alike(lengths: Tensor) -> list[tuple[int, Tensor]]:
    """Examples of about one length, as (length of the longest, indices), the longest first.

    Examples::
        >>> [(longest, of.tolist()) for longest, of in alike(torch.tensor([3, 10, 9, 2]))]
        [(10, [1, 2]), (3, [0]), (2, [3])]
    """
    found: list[tuple[int, list[int]]] = []
    known = lengths.tolist()
    for index in sorted(range(len(known)), key=lambda i: -known[i]):
        if not found or known[index] < FULL * found[-1][0]:
            found.append((known[index], []))
        found[-1][1].append(index)
    return [(longest, torch.tensor(of, device=lengths.device)) for longest, of in found]
