"""What the caller does not say: the cap, and which elements of the state count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from interp_plugin.problem import Terms, cap_of_embedding, pose
from interp_plugin.state import NoisyModel

TERMS = Terms(0.1, None, 1.0)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def model_of(
    phi: Callable[[Tensor], Tensor], x: Tensor, layer: nn.Module | None = None, selector: Any = None
) -> NoisyModel:
    return NoisyModel(lambda inputs, rows: phi(*inputs), (x,), layer, selector=selector)


def test_the_default_cap_is_ten_deviations_of_an_examples_own_unmasked_elements() -> None:
    x = normal(3, 4, 5) * torch.tensor([1.0, 3.0, 0.2])[:, None, None] + 7
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 1, 0]]).bool()
    x[~mask] = 1000.0
    cap = pose(model_of(lambda x: x.sum(1), x), TERMS, None, mask).max_sigma
    expected = torch.stack([10 * x[i][mask[i]].std(unbiased=False) for i in range(3)])
    torch.testing.assert_close(cap, expected)


class Scaled(nn.Embedding):
    """A table whose rows are multiplied when looked up, as BART's and Gemma's are."""

    embed_scale = 4.0

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) * self.embed_scale


@pytest.mark.parametrize("make, scale", [(nn.Embedding, 1.0), (Scaled, 4.0)])
def test_the_default_cap_of_an_embedding_is_ten_deviations_of_its_weights(make: Any, scale: float) -> None:
    torch.manual_seed(0)
    layer = make(50, 8)
    with torch.no_grad():
        layer.weight += 2
    model = model_of(lambda ids: layer(ids).sum(1), torch.tensor([[3, 1, 4], [1, 5, 9]]), layer)
    expected = float(f"{10 * scale * layer.weight.double().std():.5g}")
    assert pose(model, TERMS, None, None).max_sigma.tolist() == pytest.approx([expected] * 2)


def test_the_default_cap_has_the_same_digits_with_any_number_of_threads() -> None:
    """Ray's workers have another number than the driver, and were refused."""
    layer = nn.Embedding.from_pretrained(normal(30_000, 64) + 0.1)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(cap_of_embedding(layer))
    finally:
        torch.set_num_threads(before)
    assert set(found) == {float(f"{10 * layer.weight.double().std():.5g}")}


def test_the_largest_table_of_a_layer_sets_the_cap() -> None:
    torch.manual_seed(0)
    layer = nn.Sequential()
    layer.add_module("words", nn.Embedding(50, 8))
    layer.add_module("places", nn.Embedding(9, 8))
    with torch.no_grad():
        layer.places.weight *= 100  # type: ignore[operator]
    layer.forward = layer.words.forward  # type: ignore[method-assign, assignment, union-attr]
    model = model_of(lambda ids: layer(ids).sum(1), torch.tensor([[3, 1, 4]]), layer)
    expected = torch.tensor([float(f"{10 * layer.words.weight.double().std():.5g}")])  # type: ignore[operator]
    torch.testing.assert_close(pose(model, TERMS, None, None).max_sigma, expected)


@pytest.mark.parametrize(
    "selector, expected",
    [
        (None, [[1, 1, 1, 1], [1, 1, 0, 0]]),
        ((slice(None), 0), [[1, 1, 1, 1], [1, 1, 0, 0]]),
        (1, [[1], [1]]),
        (lambda state: state[:, :, :2], [[1, 1, 1, 1], [1, 1, 0, 0]]),
        (lambda state: state.mean(1), [[1], [1]]),  # no places any more
    ],
)
def test_masked_places_of_a_state_do_not_count_and_what_has_no_places_counts(
    selector: Any, expected: list[list[int]]
) -> None:
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    model = model_of(lambda x: 2 * x, normal(2, 4, 3), selector=selector)
    weight = pose(model, TERMS, None, mask).objective.weight
    counted = (weight != 0).reshape(2, len(expected[0]), -1)
    assert torch.equal(counted.any(2), torch.tensor(expected).bool())
    assert torch.equal(counted.all(2), counted.any(2))
    torch.testing.assert_close(weight.square().flatten(1).sum(1), torch.ones(2))  # a mean: 1 / M each


def test_a_place_that_is_masked_in_one_example_leaves_it_without_a_state() -> None:
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    with pytest.raises(ValueError, match="example 1 has no element"):
        pose(model_of(lambda x: 2 * x, normal(2, 4, 3), selector=2), TERMS, None, mask)


def test_a_state_of_another_length_than_the_tokens_counts_whole() -> None:
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    model = model_of(lambda x: x[:, :3], normal(2, 4, 3))
    assert (pose(model, TERMS, None, mask).objective.weight != 0).all()


def test_a_state_mask_says_what_counts() -> None:
    mask = torch.tensor([[1, 0, 0], [0, 1, 1]]).bool()
    weight = pose(
        model_of(lambda x: x, normal(2, 3, 4)), TERMS, None, None, mask[:, :, None]
    ).objective.weight
    assert torch.equal(weight != 0, mask[:, :, None].expand(2, 3, 4))


def test_each_score_goes_to_the_elements_of_its_token() -> None:
    inputs = (normal(2, 3), normal(2, 2, 4))
    model = NoisyModel(lambda given, rows: given[0].sum(1) + given[1].sum((1, 2)), inputs)
    problem = pose(model, TERMS, None, None)
    first, second = problem.shaped(torch.tensor([[1.0, 2, 3, 4, 5], [6, 7, 8, 9, 10]]))
    assert first.tolist() == [[1, 2, 3], [6, 7, 8]]
    assert second.tolist() == [[[4] * 4, [5] * 4], [[9] * 4, [10] * 4]]
