"""Results of the Captum classes: nats of a known sigma, shares of elements, the spread over a corpus."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from interp_plugin import InformationLoss, LayerInformationLoss

RATE, CAP, WIDTH = 0.1, 3.0, 8


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


WEIGHTS = torch.tensor([1.0, 2.0, -4.0])
X = normal(2, 3, WIDTH)


def weighted(x: Tensor) -> Tensor:
    """Each token times a number: with v = 1 c_i = w_i^2 K / M = w_i^2 / 3, and M = 24 is done exactly."""
    return x * WEIGHTS[: x.shape[1], None]


SIGMA = (RATE / (2 * 3 * WEIGHTS.square() / 3)).sqrt()


def scores(score: str, **settings: bool) -> Tensor:
    result = InformationLoss(weighted).attribute(
        X,
        state_std=1.0,
        rate=RATE,
        max_sigma=CAP,
        score=score,
        **settings,  # type: ignore[arg-type]
    )
    assert isinstance(result, Tensor)
    return result


def test_scores_are_the_nats_of_the_known_sigma() -> None:
    def entropy(*spreads: float) -> float:
        return float(WIDTH * stats.norm(scale=math.hypot(*spreads)).entropy())

    lost = torch.tensor([entropy(sigma) for sigma in SIGMA.tolist()])
    for score, values in {"sigma": SIGMA, "loss": lost}.items():
        found = scores(score, return_input_shape=False)
        torch.testing.assert_close(found, values.float().expand(2, 3), rtol=2e-3, atol=2e-2)
    std = 0.7
    passed = [entropy(sigma, std) - entropy(sigma) for sigma in [*SIGMA.tolist(), CAP]]  # H(x + e) - H(e)
    kept = torch.tensor(passed[:-1]) - passed[-1]
    found = scores("kept", return_input_shape=False, input_std=std)
    torch.testing.assert_close(found, kept.float().expand(2, 3), rtol=2e-3, atol=2e-2)


def test_shares_of_the_elements_are_equal_and_sum_to_the_token() -> None:
    for score in ("loss", "kept"):
        shares = scores(score)
        torch.testing.assert_close(shares.sum(-1), scores(score, return_input_shape=False))
        assert torch.equal(shares, shares[..., :1].expand_as(shares))
    sigma = scores("sigma")
    assert torch.equal(sigma, scores("sigma", return_input_shape=False).unsqueeze(-1).expand_as(sigma))


def test_the_state_std_equals_numpys_over_all_unmasked_positions() -> None:
    batches = []
    for length in (3, 5):
        inputs = normal(4, length, WIDTH, seed=length) * 2 + 1
        mask = torch.arange(length) < torch.tensor([length, 1, 2, length - 1]).unsqueeze(1)
        inputs[~mask] = 1e6
        batches.append({"inputs": inputs, "token_mask": mask})
    samples = np.concatenate([batch["inputs"][batch["token_mask"]].numpy() for batch in batches])
    found = InformationLoss(nn.Tanh()).estimate_state_std(batches)
    np.testing.assert_allclose(found.numpy(), np.tanh(samples).std(0), rtol=1e-5)
    part = InformationLoss(nn.Tanh()).estimate_state_std(
        batches, neuron_selector=lambda state: state[..., 2:4]
    )
    np.testing.assert_allclose(part.numpy(), np.tanh(samples).std(0)[2:4], rtol=1e-5)


def test_without_positions_every_example_is_a_sample_of_the_state_std() -> None:
    torch.manual_seed(0)
    embed, shift = nn.Embedding(20, 4), normal(6, 4)
    ids = torch.arange(18).reshape(6, 3)
    mask = torch.tensor([[1, 1, 0]] * 6)  # a token mask does not apply to a state without tokens
    method = LayerInformationLoss(lambda ids, shift: embed(ids).sum(1) + shift, embed)
    batches = [
        {"inputs": ids[part], "additional_forward_args": shift[part], "token_mask": mask[part]}
        for part in (slice(0, 2), slice(2, 6))
    ]
    expected = (embed.weight[:18].reshape(6, 3, 4).sum(1) + shift).detach().numpy().std(0)
    np.testing.assert_allclose(method.estimate_state_std(batches).numpy(), expected, rtol=1e-5)
    assert method.estimate_state_std(batches, target=2).item() == pytest.approx(expected[2], rel=1e-5)
