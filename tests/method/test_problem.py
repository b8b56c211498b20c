"""Defaults: the cap, and which elements of the state count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from interp_plugin.method.perturbation import NoisyModel
from interp_plugin.method.problem import Terms, pose, std_of_table

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
    """Ray's workers have another number of threads than the driver, and were refused."""
    layer = nn.Embedding.from_pretrained(normal(30_000, 64) + 0.1)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(std_of_table(layer))
    finally:
        torch.set_num_threads(before)
    assert set(found) == {float(f"{layer.weight.double().std():.5g}")}


class Normalised(nn.Module):
    """Word and position embeddings with a layer norm, as in BERT: the output has another spread than the table."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(50, 8), nn.Embedding(9, 8)
        self.norm = nn.LayerNorm(8)

    def forward(self, ids: Tensor) -> Tensor:
        found: Tensor = self.norm(self.words(ids) + self.places(torch.arange(ids.shape[1])))
        return found


def test_a_table_inside_the_noise_layer_does_not_set_the_spread_of_its_output() -> None:
    torch.manual_seed(0)
    layer = Normalised()
    with torch.no_grad():
        layer.words.weight *= 0.01
    ids = torch.tensor([[3, 1, 4], [1, 5, 9]])
    problem = pose(model_of(lambda ids: layer(ids).sum(1), ids, layer), TERMS, None, None)
    own = layer(ids).flatten(1).std(1, unbiased=False)
    torch.testing.assert_close(problem.input_std, own)
    torch.testing.assert_close(problem.max_sigma, 10 * own)


def test_the_callers_spread_comes_first_and_sets_the_cap_unless_that_is_given() -> None:
    layer = nn.Embedding(50, 8)
    model = model_of(lambda ids: layer(ids).sum(1), torch.tensor([[3, 1, 4], [1, 5, 9]]), layer)
    for given, expected in ((0.3, [0.3, 0.3]), (torch.tensor([0.3, 2.0]), [0.3, 2.0])):
        problem = pose(model, Terms(0.1, None, 1.0, given), None, None)
        assert problem.input_std.tolist() == pytest.approx(expected)
        assert problem.max_sigma.tolist() == pytest.approx([10 * each for each in expected])
        assert pose(model, Terms(0.1, 7.0, 1.0, given), None, None).max_sigma.tolist() == [7.0, 7.0]


@pytest.mark.parametrize("given", [0.0, -1.0, float("nan"), float("inf"), torch.tensor([1.0, 0.0])])
def test_a_spread_that_is_not_positive_is_refused(given: Any) -> None:
    model = model_of(lambda x: x.sum(1), normal(2, 4, 3))
    with pytest.raises(ValueError, match=r"input_std of example [01] is .*positive finite number"):
        pose(model, Terms(0.1, None, 1.0, given), None, None)


def test_a_spread_that_does_not_broadcast_is_refused() -> None:
    model = model_of(lambda x: x.sum(1), normal(2, 4, 3))
    with pytest.raises(ValueError, match=r"input_std of shape \(3,\) does not broadcast to 2 examples"):
        pose(model, Terms(0.1, None, 1.0, torch.ones(3)), None, None)


def test_constant_inputs_take_their_root_mean_square_and_zeros_1_with_a_warning() -> None:
    x = torch.stack([torch.full((4, 3), 0.1), normal(4, 3), torch.full((4, 3), -7.0)])
    model = model_of(lambda x: x.sum(1), x)
    expected = [0.1, x[1].std(unbiased=False).item(), 7.0]
    assert pose(model, TERMS, None, None).input_std.tolist() == pytest.approx(expected)
    with pytest.warns(UserWarning, match="0 throughout example 1.*input_std"):
        problem = pose(
            model_of(lambda x: (x + 1).sum(1), x * torch.tensor([1, 0, 1])[:, None, None]), TERMS, None, None
        )
    assert problem.input_std.tolist() == pytest.approx([0.1, 1.0, 7.0])


def test_a_constant_table_is_not_used_as_the_spread() -> None:
    layer = nn.Embedding.from_pretrained(torch.full((50, 8), 0.1))
    assert std_of_table(layer) is None
    model = model_of(lambda ids: layer(ids).sum(1), torch.tensor([[3, 1, 4]]), layer)
    assert pose(model, TERMS, None, None).input_std.tolist() == pytest.approx([0.1])


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
def test_masked_positions_do_not_count_and_states_without_positions_count(
    selector: Any, expected: list[list[int]]
) -> None:
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    model = model_of(lambda x: 2 * x, normal(2, 4, 3), selector=selector)
    weight = pose(model, TERMS, None, mask).objective.weight
    counted = (weight != 0).reshape(2, len(expected[0]), -1)
    assert torch.equal(counted.any(2), torch.tensor(expected).bool())
    assert torch.equal(counted.all(2), counted.any(2))
    torch.testing.assert_close(weight.square().flatten(1).sum(1), torch.ones(2))  # a mean: 1 / M each


def test_an_example_without_unmasked_state_elements_is_refused() -> None:
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    with pytest.raises(ValueError, match="example 1 has no element"):
        pose(model_of(lambda x: 2 * x, normal(2, 4, 3), selector=2), TERMS, None, mask)


def test_a_state_of_another_length_than_the_tokens_counts_whole() -> None:
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    model = model_of(lambda x: x[:, :3], normal(2, 4, 3))
    assert (pose(model, TERMS, None, mask).objective.weight != 0).all()


def test_a_state_mask_selects_the_elements_that_count() -> None:
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
