"""Score "signed": what each token adds to a state of one number along the path from white noise."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_conformance import BERT, IDS, MLP64, normal, seeded, untouched
from torch import Tensor, nn

from interp_plugin import InformationLoss, LayerInformationLoss, NeuronInformationLoss
from interp_plugin.method.erasure import NODES, PATHS, NoisePath, entry_path, noise_path
from interp_plugin.method.perturbation import NoisyModel
from interp_plugin.method.problem import Terms, nothing, pose

TOKENS = normal(2, 5, 4).double()
WEIGHTS = normal(5, 4, seed=2).double()


def path_of(
    forward: Callable[[Tensor], Tensor], x: Tensor, mean: Tensor | float = 0.0, std: float = 1.0, **more: Any
) -> NoisePath:
    """Of a plain function of x, (B, T, K)."""
    model = NoisyModel(lambda inputs, rows: forward(*inputs), (x,), max_rows=more.get("max_rows"))
    problem = pose(model, Terms(0.1, 1.0, None), None, more.get("token_mask"))
    with torch.enable_grad():
        spread = torch.full((len(x),), std)
        return noise_path(problem.objective, torch.as_tensor(mean, dtype=x.dtype), spread, 0)


def linear(x: Tensor) -> Tensor:
    return (x * WEIGHTS.to(x)).sum((1, 2))


def test_without_noise_a_linear_state_is_added_up_from_the_mean() -> None:
    mean = normal(4, seed=3).double()
    found = path_of(linear, TOKENS, mean.repeat(5), std=0.0)
    torch.testing.assert_close(found.score, (WEIGHTS * (TOKENS - mean)).sum(2).float())


def test_a_linear_state_is_added_up_exactly_for_the_noises_mirror_each_other() -> None:
    torch.testing.assert_close(path_of(linear, TOKENS).score, (WEIGHTS * TOKENS).sum(2).float())


def test_with_many_paths_a_square_adds_its_value_less_the_variance_of_the_noise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("interp_plugin.method.erasure.PATHS", 4000)
    found = path_of(lambda x: x.square().sum((1, 2)), TOKENS)
    torch.testing.assert_close(found.score, (TOKENS.square().sum(2) - 4).float(), atol=0.3, rtol=0)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 2**31))
def test_scores_sum_to_the_change_of_the_state(seed: int) -> None:
    x = normal(3, 5, seed=seed).double()
    found = path_of(lambda x: MLP64(x)[:, 1], x)
    torch.testing.assert_close(found.score.sum(1), found.change, rtol=1e-3, atol=1e-3)


def test_masked_tokens_stay_and_add_nothing() -> None:
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    state = lambda x: x.tanh().sum((1, 2)).square()  # noqa: E731
    found = path_of(state, TOKENS, token_mask=mask).score
    kept_tail = lambda x: state(torch.cat([x, TOKENS[:1, 3:].expand(len(x), -1, -1)], 1))  # noqa: E731
    torch.testing.assert_close(found[:1, :3], path_of(kept_tail, TOKENS[:1, :3]).score)
    assert (found[0, 3:] == 0).all() and (found[1] != 0).all()


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_rows_in_a_forward_change_no_score(rows: int) -> None:
    state = lambda x: x.tanh().sum((1, 2)).square()  # noqa: E731
    torch.testing.assert_close(path_of(state, TOKENS, max_rows=rows).score, path_of(state, TOKENS).score)


def test_no_forward_has_more_rows_than_max_rows() -> None:
    seen: list[int] = []
    path_of(lambda x: (seen.append(len(x)), linear(x))[1], TOKENS, max_rows=5)
    assert max(seen) <= 5 and sum(seen) == 2 + 2 * PATHS * (NODES + 1)


def test_the_mean_of_an_embedding_is_its_mean_row_and_zero_elsewhere() -> None:
    embed = seeded(lambda: nn.Embedding(9, 4))
    problem = pose(
        NoisyModel(lambda inputs, rows: linear(*inputs), (TOKENS,)), Terms(0.1, 1.0, None), None, None
    )
    expected = embed.weight.detach().double().mean(0).repeat(5).unsqueeze(0)
    torch.testing.assert_close(nothing(embed, problem.objective), expected)
    for layer in (None, nn.Linear(4, 4)):
        assert not nothing(layer, problem.objective).any()


def test_the_share_of_each_element_sums_to_the_token() -> None:
    method = InformationLoss(linear)
    shares = method.attribute(TOKENS.float(), score="signed")
    tokens = method.attribute(TOKENS.float(), score="signed", return_input_shape=False)
    torch.testing.assert_close(shares.sum(-1), tokens)


def test_swapping_the_sign_of_the_state_swaps_the_sign_of_the_score() -> None:
    up, down = (
        LayerInformationLoss(lambda ids, sign=sign: sign * BERT(ids).logits, BERT.get_input_embeddings())
        for sign in (1, -1)
    )
    with untouched(BERT):
        first = up.attribute(IDS, target=1, score="signed")
    second = down.attribute(IDS, target=1, score="signed")
    torch.testing.assert_close(first, -second)
    assert (first > 0).any() and (first < 0).any()


def test_a_neuron_is_explained_as_the_same_layers_part() -> None:
    net = MLP64[:2]
    x = normal(4, 5).double()
    by_neuron = NeuronInformationLoss(MLP64, MLP64[1]).attribute(x, 3, score="signed")
    by_output = InformationLoss(net).attribute(x, target=3, score="signed")
    torch.testing.assert_close(by_neuron, by_output, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_has_nearly_the_same_scores(dtype: torch.dtype) -> None:
    def signed(x: Tensor) -> Tensor:
        return InformationLoss(linear).attribute(x, score="signed", return_input_shape=False, input_std=1.0)

    half = signed(TOKENS.to(dtype))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, signed(TOKENS.float()), atol=0.1, rtol=0.05)


def test_a_batch_with_padding_is_its_single_sentences() -> None:
    ids, mask = torch.tensor([[3, 14, 15, 0, 0], [6, 5, 3, 5, 8]]), torch.tensor([[1, 1, 1, 0, 0], [1] * 5])
    method = LayerInformationLoss(lambda i, m: BERT(i, attention_mask=m).logits, BERT.get_input_embeddings())

    def signed(ids: Tensor, mask: Tensor, **more: Any) -> Tensor:
        return method.attribute(
            ids, 0, (mask,), token_mask=mask, score="signed", return_input_shape=False, **more
        )

    batch = signed(ids, mask)
    torch.testing.assert_close(batch[:1, :3], signed(ids[:1, :3], mask[:1, :3]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(batch, signed(ids, mask, internal_batch_size=3), rtol=1e-4, atol=1e-4)
    assert (batch[0, 3:] == 0).all()


def test_a_state_of_several_elements_has_no_signed_score() -> None:
    with untouched(BERT), pytest.raises(ValueError, match=r"2 elements.*target or neuron_selector"):
        LayerInformationLoss(lambda ids: BERT(ids).logits, BERT.get_input_embeddings()).attribute(
            IDS, score="signed"
        )


def sharp(x: Tensor) -> Tensor:
    """A state with so many turns along a straight path that eight points miss its integral."""
    return (30 * x.sum((1, 2))).sin() + x.sum((1, 2))


def test_tokens_enter_one_by_one_if_the_integral_misses_the_change() -> None:
    x = normal(2, 3, 2)
    with pytest.warns(UserWarning, match=r"integral of \d of 2 examples misses .* one by one"):
        score = InformationLoss(sharp).attribute(x, score="signed").sum((1, 2))
    problem = pose(NoisyModel(lambda inputs, rows: sharp(*inputs), (x,)), Terms(0.1, None, None), None, None)
    change = noise_path(problem.objective, torch.zeros(6), problem.input_std, 0).change
    torch.testing.assert_close(score, change, rtol=0.05, atol=1e-4)


def test_tokens_that_enter_one_by_one_have_the_scores_of_a_linear_state_exactly() -> None:
    model = NoisyModel(lambda inputs, rows: linear(*inputs), (TOKENS,), max_rows=3)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1] * 5])
    objective = pose(model, Terms(0.1, 1.0, None), None, mask).objective
    both = [
        path(objective, torch.zeros(20, dtype=torch.float64), torch.ones(2), 0)
        for path in (noise_path, partial(entry_path, examples=torch.tensor([0, 1])))
    ]
    torch.testing.assert_close(both[1].score, both[0].score, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both[1].change, both[0].change)
    torch.testing.assert_close(both[1].score.sum(1), both[1].change)


def test_a_state_that_is_not_finite_on_the_path_names_the_example() -> None:
    broken = lambda x: x.sum(1) / (x.sum(1) > 0.5)  # noqa: E731  infinite near zero
    x = torch.tensor([[0.7, 0.8], [3.0, 4.0]])
    with pytest.raises(ValueError, match=r"NaN or infinite values for example [01] in the way"):
        InformationLoss(broken).attribute(x, score="signed", max_sigma=1e-3)
