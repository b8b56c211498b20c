"""Explanation: what each layer keeps of each token of a text."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from torch import Tensor

from interp_plugin import rendering

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Explanation:
    """Information kept of T tokens by L layers, with everything needed to judge the numbers.

    Example::

        >>> import torch
        >>> row = torch.tensor([[2.0, 1.0]])
        >>> e = Explanation("a b", ("a", "b"), "positive", 0.75, (3,), row, row, row, row[:, 0], row[:, 0],
        ...                 torch.tensor([True]), 64, 32, 0.5, 0.1, 0)
        >>> e.to_dict()["kept"]
        [[2.0, 1.0]]
    """

    text: str
    tokens: tuple[str, ...]  # T of them, as the tokenizer writes them
    predicted: str  # name of the predicted class
    probability: float
    layers: tuple[int, ...]  # L of them; 1 is the first block
    sigma: Tensor  # (L, T), units of the embeddings
    kept: Tensor  # (L, T), nats: high = the layer still holds this token
    standard_error: Tensor  # (L, T) of kept, nats
    regime_index: Tensor  # (L,): 1 = small-noise regime
    distortion: Tensor  # (L,)
    converged: Tensor  # (L,) bool
    n_forward: int  # sample passes, all layers together
    n_backward: int
    seconds: float
    rate: float
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """All fields as lists and numbers, ready for strict JSON: a number that is not finite is None."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}

    def show(self, console: Console | None = None) -> None:
        """Print the prediction, the table of tokens x layers and the cost (console: default stdout)."""
        rendering.show(self.to_dict(), console)


def _plain(value: Any) -> Any:
    """Tensors and tuples become lists, and what is not finite becomes None."""
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
