"""Score "signed": information kept, below 0 where a token pushes the state down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from captum.attr import IntegratedGradients
from hypothesis import given, settings
from hypothesis import strategies as st
from test_conformance import BERT, FAST, IDS, MLP64, normal, seeded, untouched
from torch import Tensor, nn

from interp_plugin import InformationLoss, LayerInformationLoss, NeuronInformationLoss
from interp_plugin.direction import push, reference_of
from interp_plugin.problem import Terms, pose
from interp_plugin.state import NoisyModel

TOKENS = normal(2, 5, 4).double()
WEIGHTS = normal(5, 4, seed=2).double()


def pushes(
    forward: Callable[[Tensor], Tensor], x: Tensor, reference: Tensor | float = 0.0, **more: Any
) -> Tensor:
    """Of a plain function of x, (B, T, K) -> (B, T)."""
    model = NoisyModel(lambda inputs, rows: forward(*inputs), (x,), max_rows=more.get("max_rows"))
    problem = pose(model, Terms(0.1, 1.0, None), None, more.get("token_mask"))
    with torch.enable_grad():
        return push(problem.objective, torch.as_tensor(reference, dtype=x.dtype))


def linear(x: Tensor) -> Tensor:
    return (x * WEIGHTS.to(x)).sum((1, 2))


# The push


def test_a_linear_state_is_pushed_by_what_each_token_adds() -> None:
    reference = normal(4, seed=3).double()
    found = pushes(linear, TOKENS, reference.repeat(5))
    torch.testing.assert_close(found, (WEIGHTS * (TOKENS - reference)).sum(2))


def test_a_sum_of_squares_is_pushed_up_by_every_token() -> None:
    found = pushes(lambda x: x.square().sum((1, 2)), TOKENS)
    torch.testing.assert_close(found, TOKENS.square().sum(2))


def test_the_product_of_two_tokens_is_shared_between_them() -> None:
    found = pushes(lambda x: x[:, 0, 0] * x[:, 1, 0], TOKENS)
    half = TOKENS[:, 0, 0] * TOKENS[:, 1, 0] / 2
    torch.testing.assert_close(found, torch.stack([half, half, *[0 * half] * 3], 1))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 2**31))
def test_pushes_sum_to_the_state_less_that_of_the_reference(seed: int) -> None:
    x, reference = normal(3, 5, seed=seed).double(), normal(5, seed=seed + 1).double()
    found = pushes(lambda x: MLP64(x)[:, 1], x, reference)
    expected = (MLP64(x) - MLP64(reference[None]))[:, 1].detach()
    torch.testing.assert_close(found.sum(1), expected, rtol=1e-4, atol=1e-4)


def test_pushes_are_captums_integrated_gradients() -> None:
    x = normal(3, 5).double()
    expected = IntegratedGradients(MLP64).attribute(x, target=2, n_steps=200)
    torch.testing.assert_close(pushes(lambda x: MLP64(x)[:, 2], x), expected, rtol=1e-4, atol=1e-5)


def test_masked_tokens_stay_and_do_not_push() -> None:
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    state = lambda x: x.tanh().sum((1, 2)).square()  # noqa: E731
    found = pushes(state, TOKENS, token_mask=mask)
    kept_tail = lambda x: state(torch.cat([x, TOKENS[:1, 3:].expand(len(x), -1, -1)], 1))  # noqa: E731
    torch.testing.assert_close(found[:1, :3], pushes(kept_tail, TOKENS[:1, :3]))
    assert (found[0, 3:] == 0).all() and (found[1] != 0).all()


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_rows_in_a_forward_change_no_push(rows: int) -> None:
    state = lambda x: x.tanh().sum((1, 2)).square()  # noqa: E731
    torch.testing.assert_close(pushes(state, TOKENS, max_rows=rows), pushes(state, TOKENS))


def test_no_forward_has_more_rows_than_asked() -> None:
    seen: list[int] = []
    pushes(lambda x: (seen.append(len(x)), linear(x))[1], TOKENS, max_rows=5)
    assert max(seen) <= 5 and sum(seen) == 2 + 2 * 16  # the clean pass, and 16 points an example


def test_the_reference_of_an_embedding_is_its_mean_row_and_zero_elsewhere() -> None:
    embed = seeded(lambda: nn.Embedding(9, 4))
    problem = pose(
        NoisyModel(lambda inputs, rows: linear(*inputs), (TOKENS,)), Terms(0.1, 1.0, None), None, None
    )
    expected = embed.weight.detach().double().mean(0).repeat(5).unsqueeze(0)
    torch.testing.assert_close(reference_of(embed, problem.objective), expected)
    for layer in (None, nn.Linear(4, 4)):
        assert not reference_of(layer, problem.objective).any()


# The score


def test_signed_is_information_kept_with_the_sign_of_the_push() -> None:
    x = TOKENS.float()
    method, settings = (
        InformationLoss(linear),
        {"return_input_shape": False, "max_sigma": 9.0, "solver": FAST},
    )
    signed, kept = (method.attribute(x, score=score, **settings) for score in ("signed", "kept"))
    assert torch.equal(signed.abs(), kept) and (kept > 0).all()
    assert torch.equal(signed > 0, (WEIGHTS * TOKENS).sum(2) > 0)


def test_the_share_of_each_element_sums_to_the_token() -> None:
    method = InformationLoss(linear)
    shares = method.attribute(TOKENS.float(), score="signed", solver=FAST)
    tokens = method.attribute(TOKENS.float(), score="signed", solver=FAST, return_input_shape=False)
    torch.testing.assert_close(shares.sum(-1), tokens)


def test_swapping_the_sign_of_the_state_swaps_the_sign_of_the_score() -> None:
    up, down = (
        LayerInformationLoss(lambda ids, sign=sign: sign * BERT(ids).logits, BERT.get_input_embeddings())
        for sign in (1, -1)
    )
    with untouched(BERT):
        first = up.attribute(IDS, target=1, score="signed", max_sigma=9.0, solver=FAST)
    second = down.attribute(IDS, target=1, score="signed", max_sigma=9.0, solver=FAST)
    assert torch.equal(first, -second)
    assert (first > 0).any() and (first < 0).any()


def test_a_neuron_is_pushed_as_the_same_layers_part() -> None:
    net = MLP64[:2]
    x = normal(4, 5).double()
    by_neuron = NeuronInformationLoss(MLP64, MLP64[1]).attribute(x, 3, score="signed", solver=FAST)
    by_output = InformationLoss(net).attribute(x, target=3, score="signed", solver=FAST)
    torch.testing.assert_close(by_neuron, by_output, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_has_the_same_signs(dtype: torch.dtype) -> None:
    def signed(x: Tensor) -> Tensor:
        return InformationLoss(linear).attribute(x, score="signed", return_input_shape=False, max_sigma=9.0)

    half = signed(TOKENS.to(dtype))
    assert half.dtype == torch.float32
    assert torch.equal(half.sign(), signed(TOKENS.float()).sign())


def test_a_batch_with_padding_is_its_single_sentences() -> None:
    ids, mask = torch.tensor([[3, 14, 15, 0, 0], [6, 5, 3, 5, 8]]), torch.tensor([[1, 1, 1, 0, 0], [1] * 5])
    method = LayerInformationLoss(lambda i, m: BERT(i, attention_mask=m).logits, BERT.get_input_embeddings())

    def signed(ids: Tensor, mask: Tensor, **more: Any) -> Tensor:
        return method.attribute(
            ids, 0, (mask,), token_mask=mask, score="signed", return_input_shape=False, solver=solver, **more
        )

    # at a smaller rate noise moves a single-precision output by a thousandth, and rounding by 2e-4 of that
    solver = replace(FAST, lower_rate=False)
    batch = signed(ids, mask)
    torch.testing.assert_close(batch[:1, :3], signed(ids[:1, :3], mask[:1, :3]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(batch, signed(ids, mask, internal_batch_size=3), rtol=1e-4, atol=1e-4)
    assert (batch[0, 3:] == 0).all()


def test_a_state_of_several_elements_has_no_sign() -> None:
    with untouched(BERT), pytest.raises(ValueError, match=r"2 elements.*target or neuron_selector"):
        LayerInformationLoss(lambda ids: BERT(ids).logits, BERT.get_input_embeddings()).attribute(
            IDS, score="signed", solver=FAST
        )


def test_a_state_that_breaks_near_the_reference_names_the_example() -> None:
    broken = lambda x: x.sum(1) / (x.sum(1) > 0.5)  # noqa: E731  infinite near zero
    x = torch.tensor([[0.7, 0.8], [3.0, 4.0]])
    with pytest.raises(
        ValueError, match=r"NaN or infinite values for example [01] in the way from the reference"
    ):
        InformationLoss(broken).attribute(x, score="signed", max_sigma=1e-3, solver=FAST)
