"""Draws that depend on nothing but seed, round and position; groups of elements."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from interp_plugin.method.sampling import Draws, Tilt, token_groups


@given(length=st.integers(1, 8), extra=st.integers(1, 8), seed=st.integers(0, 2**31), index=st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_the_noise_of_a_position_does_not_depend_on_padding(length, extra, seed, index):
    short = Draws([(length, 3)], seed).round(index, 4)
    long = Draws([(length + extra, 3)], seed).round(index, 4)
    assert torch.equal(short, long[:, : length * 3])


def test_the_noise_of_a_series_of_numbers_does_not_depend_on_its_length():
    short, long = (Draws([(length,)], 3).round(1, 6) for length in (4, 9))
    assert torch.equal(short, long[:, :4])
    assert len(long.unique()) == 6 * 9


@given(shape=st.sampled_from([(5,), (3, 4), (2, 3, 2)]), first=st.integers(1, 6))
@settings(max_examples=15, deadline=None)
def test_the_first_draws_of_a_round_are_those_of_the_whole_round(shape, first):
    draws = Draws([shape, (2,)], 1)
    assert torch.equal(draws.round(3, 6, first), draws.round(3, 6)[:first])


def test_rounds_seeds_positions_and_inputs_are_independent_standard_normal():
    shapes = [(3, 50), (2, 50)]
    blocks = [Draws(shapes, seed).round(index, 40) for seed in (0, 1) for index in (0, 1)]
    values = torch.cat([block.reshape(40, 5, 50) for block in blocks], 1)  # (40, 20, 50)
    assert stats.kstest(values.flatten().numpy(), "norm").pvalue > 1e-3
    correlations = np.corrcoef(values.transpose(0, 1).reshape(20, -1).numpy())
    assert np.abs(correlations - np.eye(20)).max() < 0.1  # 2,000 values: s.d. 0.022


def test_draws_leave_the_global_generators_alone():
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    Draws([(3, 4)]).round(0, 2)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()


def test_a_tilt_keeps_every_mean_unbiased():
    # E[f] under N(0, I) for an f that lives where plain draws are rare, against the closed form
    count, size, shift = 200_000, 3, 2.0
    draws = torch.from_numpy(np.random.default_rng(0).standard_normal((count, size))).float()
    direction = torch.tensor([[0.6, 0.8, 0.0]])
    tilt = Tilt(direction, torch.tensor([shift]))
    draw, which = torch.arange(count), torch.zeros(count, dtype=torch.long)
    eps, weight = tilt.shifted(draws, draw, which), tilt.weights(draws)[:, 0]
    along = eps @ direction[0]
    assert weight.mean().item() == pytest.approx(1, abs=0.01)
    assert weight.max() <= 2
    rare = (weight * (along > 2.5)).mean().item()
    assert rare == pytest.approx(stats.norm.sf(2.5), rel=0.05)
    assert (weight * eps[:, 2].square()).mean().item() == pytest.approx(1, abs=0.02)


def test_a_tilt_of_zero_is_plain_sampling():
    draws = Draws([(2, 3)]).round(0, 6)
    tilt = Tilt(torch.eye(1, 6), torch.zeros(1))
    rows = torch.arange(6)
    assert torch.equal(tilt.shifted(draws, rows, torch.zeros(6, dtype=torch.long)), draws)
    assert torch.equal(tilt.weights(draws), torch.ones(6, 1))


def test_default_groups_share_the_last_dimension_and_two_dimensional_inputs_do_not():
    groups = token_groups([torch.zeros(2, 3, 4), torch.zeros(2, 5)])
    assert groups.n_tokens == 3 + 5
    assert groups.sizes[1].tolist() == [4] * 3 + [1] * 5


@given(seed=st.integers(0, 1000), tokens=st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_spread_and_collect_agree_with_a_loop(seed, tokens):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 3, 4, generator=generator)
    mask = torch.randint(0, tokens, (2, 3, 4), generator=generator) * 7  # gaps in the numbers
    groups = token_groups([x], [mask])
    numbers = sorted(set(mask.flatten().tolist()))
    expected = torch.stack([torch.stack([x[b][mask[b] == k].sum() for k in numbers]) for b in range(2)])
    assert torch.allclose(groups.collect(x.flatten(1)), expected, atol=1e-5)
    values = torch.randn(2, len(numbers), generator=generator)
    spread = groups.spread(values).reshape(2, 3, 4)
    for b in range(2):
        for column, k in enumerate(numbers):
            assert (spread[b][mask[b] == k] == values[b, column]).all()
            assert groups.active[b, column] == (mask[b] == k).any()


def test_spread_and_collect_follow_the_tokens_of_a_sequence():
    groups = token_groups([torch.zeros(2, 3, 4)])
    sigma = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert torch.equal(groups.spread(sigma).reshape(2, 3, 4), sigma.unsqueeze(2).expand(2, 3, 4))
    values = torch.arange(24.0).reshape(2, 3, 4)
    assert torch.equal(groups.collect(values.flatten(1)), values.sum(2))


def test_a_feature_mask_joins_elements_of_several_inputs():
    inputs = [torch.zeros(1, 2, 2), torch.zeros(1, 3)]
    groups = token_groups(inputs, [torch.tensor([[[0, 0], [5, 5]]]), torch.tensor([[5, 9, 9]])])
    assert groups.sizes.tolist() == [[2, 3, 2]]
