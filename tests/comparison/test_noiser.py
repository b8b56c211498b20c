"""Noiser, against a search over all scales of noise on small models."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_plain import tokenizer
from torch import Tensor, nn

from interp_plugin.comparison.interface import Inputs, seeded
from interp_plugin.comparison.methods import METHODS
from interp_plugin.text.models import PlainModel

WIDTH, DRAWS = 6, 10


class Product(nn.Module):
    """The words' weights times the first element of their vectors, squashed; scores of three classes."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(12, WIDTH)
        self.embedding.weight.data *= 0.2  # or no noise of scale 1 would change the prediction
        self.weights = nn.Parameter(torch.tensor([3.0, -2.0, 0.0, 0.4]))
        self.head = nn.Linear(WIDTH, classes)

    def forward(self, ids: Tensor) -> Tensor:
        scores: Tensor = self.head(torch.einsum("btk,t->bk", self.embedding(ids), self.weights))
        return scores


def inputs_of(classes: int) -> tuple[Inputs, Product]:
    net = Product(classes).eval()
    names = [str(c) for c in range(classes)]
    model = PlainModel(net, tokenizer, net.embedding, classes=names)
    return Inputs(model, model.encode("the cat sat on"), seed=3), net


def test_the_scores_are_those_of_the_largest_noise_found_by_trying_all() -> None:
    inputs, net = inputs_of(3)
    with seeded(3):
        noise = torch.randn(DRAWS, WIDTH) / math.sqrt(2 * math.log(WIDTH))
    with torch.no_grad():
        clean = net(inputs.ids).softmax(-1)[0]
        vectors = net.embedding(inputs.ids)[0]

        def mean_probabilities(place: int, k: float) -> Tensor:
            noisy = vectors.repeat(DRAWS, 1, 1)
            noisy[:, place] += k * noise
            return net.head(torch.einsum("btk,t->bk", noisy, net.weights)).softmax(-1).mean(0)  # type: ignore[no-any-return]

        predicted = int(clean.argmax())
        largest = []
        for place in range(4):
            holds = [
                k for k in range(1, 1024) if int(mean_probabilities(place, k / 1024).argmax()) == predicted
            ]
            assert holds == list(range(1, len(holds) + 1))  # or bisection could end anywhere
            largest.append(len(holds) / 1024)
        assert min(largest) < 0.99  # some noise changes the prediction, otherwise the test would be trivial
        for target in range(3):
            lost = METHODS["Noiser"](inputs, target, None)
            truth = [clean[target] - mean_probabilities(place, k)[target] for place, k in enumerate(largest)]
            assert torch.allclose(lost, torch.stack(truth), atol=2e-3)  # bisection ends within 1 / 1024 of k


def test_a_word_that_is_not_read_loses_nothing() -> None:
    inputs, _ = inputs_of(3)
    assert float(METHODS["Noiser"](inputs, 0, None)[2]) == pytest.approx(0, abs=1e-6)


def test_a_model_of_one_score_is_refused() -> None:
    inputs, _ = inputs_of(1)
    with pytest.raises(ValueError, match="has a single output, so it has no predicted class"):
        METHODS["Noiser"](inputs, 0, None)
