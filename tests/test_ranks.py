"""How far the order of tokens can be told, against SciPy's correlation of simulated estimates."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from interp_plugin.method.ranks import expected_agreement

NOISE = torch.randn(2000, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def everyone(values):
    return torch.ones(values.shape, dtype=torch.bool)


@pytest.mark.parametrize("error", [0.01, 0.03, 0.06])
def test_the_agreement_is_that_of_two_estimates_with_such_errors(error):
    rng = np.random.default_rng(1)
    truth, errors = rng.normal(size=14), error * rng.uniform(0.5, 2, size=14)
    pairs = truth + errors * rng.normal(size=(1000, 2, 14))
    expected = np.mean([spearmanr(first, second).statistic for first, second in pairs])
    estimates = torch.from_numpy(pairs[:200, 0])
    spread = torch.from_numpy(errors).expand(200, -1)
    found = expected_agreement(estimates, spread, everyone(estimates), NOISE[:200, :14])
    assert found.mean().item() == pytest.approx(expected, abs=0.01)


@given(st.integers(2, 12), st.integers(0, 28), st.integers(0, 2**31))
def test_padding_and_neighbours_change_nothing(tokens, padding, seed):
    values, errors = torch.randn(2, 3, tokens, generator=torch.Generator().manual_seed(seed)).double()
    errors = errors.abs()
    alone = expected_agreement(values[1:2], errors[1:2], everyone(values[1:2]), NOISE[:50, :tokens])
    wide = torch.zeros(2, 3, tokens + padding, dtype=torch.float64)
    wide[:, :, :tokens] = torch.stack([values, errors])
    known = torch.zeros(3, tokens + padding, dtype=torch.bool)
    known[:, :tokens] = True
    assert expected_agreement(*wide, known, NOISE[:50, : tokens + padding])[1] == pytest.approx(alone.item())


def test_a_single_token_and_errors_of_nothing_agree():
    values = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    known = torch.tensor([[True, True, True], [True, False, False]])
    errors = torch.tensor([[0.0, 0.0, 0.0], [9.0, 9.0, 9.0]])
    assert expected_agreement(values, errors, known, NOISE[:, :3].float()).tolist() == [1, 1]
