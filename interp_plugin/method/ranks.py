"""How far the order of tokens can be told, given their standard errors."""

from __future__ import annotations

import torch
from torch import Tensor

REPEATS = 64  # of the simulation


def expected_agreement(values: Tensor, errors: Tensor, known: Tensor, noise: Tensor) -> Tensor:
    """Spearman's correlation to be expected between these values and another estimate as noisy as they are, (b,).

    Two such estimates differ by normal errors of sqrt(2) times the standard error: what is simulated.

    Args:
        values: one per token, no two alike, (b, T).
        errors: their standard errors, (b, T).
        known: which tokens are ranked, (b, T); fewer than two always agree.
        noise: standard normal, (repeats, T).

    Examples::
        >>> noise = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
        >>> values, known = torch.tensor([[0.0, 1.0, 2.0]]), torch.ones(1, 3, dtype=torch.bool)
        >>> [round(float(expected_agreement(values, torch.full((1, 3), e), known, noise)), 2) for e in (0.1, 1.0)]
        [1.0, 0.63]
    """
    place = values.masked_fill(~known, torch.inf)
    moved = place + 2**0.5 * errors * noise.unsqueeze(1)  # (repeats, b, T)
    squares = (_ranks(moved) - _ranks(place)).square().sum(-1).float().mean(0)
    n = known.sum(-1)
    return 1 - 6 * squares / (n * (n.square() - 1)).clamp(min=1)


def _ranks(values: Tensor) -> Tensor:
    return values.argsort(dim=-1, stable=True).argsort(-1)
