"""A classifier that adds the values of its words, for which the values of metrics are known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from interp_plugin.comparison.interface import Inputs, Method, Trial
from interp_plugin.text.models import PlainModel
from interp_plugin.text.states import State

SIZE = 3


class Bag(nn.Module):
    """Log-odds of class 1: the sum of its words' values, which are the first element of their vectors."""

    def __init__(self, values: Sequence[float]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        vectors = torch.randn(len(values) + 1, SIZE, generator=generator)
        vectors[:, 0] = torch.tensor([*values, 0.0])  # the last is the mask's: nothing in it
        vectors[-1] = 0.0
        self.embedding = nn.Embedding.from_pretrained(vectors)
        self.state = nn.Identity()
        self.head = nn.Linear(SIZE, 2, bias=False)
        self.head.weight.data = torch.tensor([[0.0] * SIZE, [1.0] + [0.0] * (SIZE - 1)])

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        scores: Tensor = self.head((self.state(self.embedding(ids)) * mask.unsqueeze(-1)).sum(1))
        return scores


def bag(values: Sequence[float]) -> PlainModel:
    """Words are the numbers of their values."""
    net = Bag(values).eval()
    return PlainModel(
        net,
        lambda text: list(map(int, text.split())),
        net.embedding,
        {"vectors": net.state},
        classes=("no", "yes"),
        pads=True,
        mask_id=len(values),
    )


def inputs_of(values: Sequence[float]) -> Inputs:
    """Every word once."""
    model = bag(values)
    return Inputs(model, model.encode(" ".join(map(str, range(len(values))))))


def trial_of(inputs: Inputs, scores: Sequence[float] | Tensor, state: State | None = None) -> Trial:
    """These scores, given to the class 1 or a state."""
    given = torch.as_tensor(scores, dtype=torch.float32)
    method = Method("given", lambda *question: given)
    return Trial(inputs, 1 if state is None else None, state, method, given)


def state_of(inputs: Inputs) -> State:
    """The words' vectors."""
    return State("vectors", inputs.model.layers["vectors"])


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))
