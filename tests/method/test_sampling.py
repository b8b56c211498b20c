"""Draws, Jacobian norms, antithetic pairs and control variates, against brute force."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from interp_plugin.method.objective import Objective, TokenGroups, state_weight, token_groups
from interp_plugin.method.perturbation import NoisyModel
from interp_plugin.method.sampling import (
    Draws,
    antithetic_pairs,
    jacobian_norms,
    quadratic_controls,
    without_linear_part,
    without_quadratic_part,
)


def objective_of(phi, x):
    model = NoisyModel(lambda inputs, rows: phi(*inputs), (x,))
    _, state = model.clean()
    weight = state_weight(state, None, torch.ones_like(state, dtype=torch.bool))
    return Objective(model, state, weight, token_groups([x]))


def smooth(x):
    return torch.tanh(x.flatten(1) @ torch.linspace(-1, 1, x[0].numel() * 7, dtype=x.dtype).reshape(-1, 7))


@given(length=st.integers(1, 8), extra=st.integers(1, 8), seed=st.integers(0, 2**31), index=st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_the_noise_of_a_position_does_not_depend_on_padding(length, extra, seed, index):
    short = Draws([(length, 3)], seed).batch(index, 4)
    long = Draws([(length + extra, 3)], seed).batch(index, 4)
    assert torch.equal(short, long[:, : length * 3])


def test_the_noise_of_a_series_of_numbers_does_not_depend_on_its_length():
    short, long = (Draws([(length,)], 3).batch(1, 6) for length in (4, 9))
    assert torch.equal(short, long[:, :4])
    assert len(long.unique()) == 6 * 9


def test_batches_seeds_positions_and_inputs_are_independent_standard_normal():
    shapes = [(3, 50), (2, 50)]
    blocks = [Draws(shapes, seed).batch(index, 40) for seed in (0, 1) for index in (0, 1)]
    values = torch.cat([block.reshape(40, 5, 50) for block in blocks], 1)  # (40, 20, 50)
    assert stats.kstest(values.flatten().numpy(), "norm").pvalue > 1e-3
    correlations = np.corrcoef(values.transpose(0, 1).reshape(20, -1).numpy())
    assert np.abs(correlations - np.eye(20)).max() < 0.1  # 2,000 values: s.d. 0.022


def test_draws_leave_the_global_generators_alone():
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    Draws([(3, 4)]).batch(0, 2)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()


# Jacobian norms


def test_one_vector_of_signs_is_exact_where_no_two_state_elements_share_an_input():
    """|J^T r|^2 = sum_k J_k^2 r_k^2 there, and r_k^2 = 1 for signs alone; where they share, vectors differ."""
    x = torch.randn(1, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    apart = jacobian_norms([objective_of(lambda x: x.exp(), x)], 0, probes=3, exact_up_to=0)[0].estimates
    expected = x.exp().square().sum(2) / x.exp().square().sum()  # v^2 M = sum of s^2
    assert torch.allclose(apart, expected.expand(3, 1, 6), rtol=1e-10)
    shared = jacobian_norms([objective_of(lambda x: x.cumsum(1), x)], 0, probes=3, exact_up_to=0)[0].estimates
    assert len(shared[:, 0, 0].unique()) == 3


def test_the_norms_are_squared_jacobian_norms_exactly_for_a_small_state_and_on_average_for_a_large_one():
    torch.manual_seed(0)
    x = torch.randn(1, 3, 4, dtype=torch.float64)
    objective = objective_of(smooth, x)
    jacobian = torch.autograd.functional.jacobian(smooth, x)[0, :, 0] * objective.weight[0].reshape(-1, 1, 1)
    expected = jacobian.square().sum((0, 2))
    exact = jacobian_norms([objective], 0, probes=4, exact_up_to=7)[0]
    assert exact.passes == 7
    assert torch.allclose(exact.estimates[0, 0], expected)
    runs = [jacobian_norms([objective], seed, probes=4, exact_up_to=6)[0] for seed in range(500)]
    many = torch.cat([run.estimates for run in runs])
    error = many.std(0) / len(many) ** 0.5
    assert ((many.mean(0) - expected).abs() < 4 * error).all()


# Antithetic pairs


def bent(x):
    return x.flatten(1) @ MATRIX + (x.flatten(1) @ MATRIX).square() / 2


def linear(x):
    return x.flatten(1) @ MATRIX


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


MATRIX, X = normal(12, 6, seed=1), normal(2, 3, 4, seed=2)
SIGMA = torch.tensor([[0.1, 0.2, 0.05], [0.3, 0.1, 0.2]], dtype=torch.float64)
BOTH = torch.arange(2)


def test_a_pair_is_the_mean_of_a_draw_and_its_mirror_image():
    objective, noise = objective_of(bent, X), Draws([(3, 4)]).batch(0, 5).double()
    found = antithetic_pairs(objective, BOTH, SIGMA, noise)
    there, back = (objective.evaluate(BOTH, SIGMA, sign * noise) for sign in (1, -1))
    torch.testing.assert_close(found.distortion, (there.distortion + back.distortion) / 2)
    torch.testing.assert_close(found.stationarity, (there.stationarity + back.stationarity) / 2)
    torch.testing.assert_close(found.gradient, (there.gradient - back.gradient) / 2)


def test_nothing_is_left_of_a_linear_state_without_its_linear_part():
    objective, noise = objective_of(linear, X), Draws([(3, 4)]).batch(0, 5).double()
    [norms] = jacobian_norms([objective], 0, probes=2, exact_up_to=6)
    pairs = antithetic_pairs(objective, BOTH, SIGMA, noise)
    found = without_linear_part(pairs, noise, objective.groups, SIGMA, norms.jacobian)
    part = SIGMA.square() * norms.estimates[0]
    torch.testing.assert_close(found.distortion, part.sum(1).expand(5, -1))
    torch.testing.assert_close(found.stationarity, (2 * part).expand(5, -1, -1))


def test_a_masked_token_is_not_part_of_the_linear_model():
    """The masked token's noise is 0: the linear model of a linear state is exact without it."""
    objective, noise = objective_of(linear, X), Draws([(3, 4)]).batch(0, 5).double()
    [norms] = jacobian_norms([objective], 0, probes=2, exact_up_to=6)
    masked = token_groups([X], token_mask=torch.tensor([[True, False, True]]))
    pairs = antithetic_pairs(objective, BOTH, SIGMA * masked.active, noise)
    found = without_linear_part(pairs, noise, masked, SIGMA, norms.jacobian)
    part = SIGMA.square() * norms.estimates[0] * masked.active
    torch.testing.assert_close(found.distortion, part.sum(1).expand(5, -1))
    torch.testing.assert_close(found.stationarity, (2 * part).expand(5, -1, -1))


def test_the_control_variates_of_a_quadratic_distortion_keep_eulers_identity():
    """sum_i g_i = 2 D of every draw, before and after: D loses half of what g loses."""
    objective, noise = objective_of(linear, X), Draws([(3, 4)]).batch(0, 12).double()
    pairs = antithetic_pairs(objective, BOTH, SIGMA, noise)
    earlier = antithetic_pairs(objective, BOTH, SIGMA, Draws([(3, 4)]).batch(1, 12).double()).gradient
    found = without_quadratic_part(pairs, noise, objective.groups, earlier, torch.ones_like(SIGMA))
    torch.testing.assert_close(found.stationarity.sum(2), 2 * found.distortion)
    assert (found.stationarity.var(0).sum(1) < 0.9 * pairs.stationarity.var(0).sum(1)).all()


@pytest.mark.parametrize("control", ["quadratic", "linear"])
def test_pairs_less_control_variates_are_right_on_average(control):
    """Against plain draws of their own for a state that is not linear."""
    objective = objective_of(bent, X)
    [norms] = jacobian_norms([objective], 0, probes=2, exact_up_to=6)
    expected, sums = norms.estimates[0] * SIGMA.square(), []
    earlier = antithetic_pairs(objective, BOTH, SIGMA, Draws([(3, 4)]).batch(999, 4).double()).gradient
    for index in range(150):
        noise = Draws([(3, 4)]).batch(index, 6).double()
        pairs = antithetic_pairs(objective, BOTH, SIGMA, noise)
        if control == "linear":
            found = without_linear_part(pairs, noise, objective.groups, SIGMA, norms.jacobian)
        else:
            found = without_quadratic_part(pairs, noise, objective.groups, earlier, expected)
        sums.append(torch.cat([found.distortion.mean(0)[:, None], found.stationarity.mean(0)], 1))
    seen, plain = torch.stack(sums), objective.evaluate(BOTH, SIGMA, normal(20_000, 12, seed=5))
    plain = torch.cat([plain.distortion.unsqueeze(2), plain.stationarity], 2)
    error = (seen.var(0) / len(seen) + plain.var(0) / len(plain)).sqrt()
    assert ((seen.mean(0) - plain.mean(0)).abs() < 4 * error).all()


# Control variates

TOKENS, WIDTH, DRAWS = 4, 24, 12
EVEN = torch.ones(1, TOKENS)  # the g that is expected


def quadratic(rank: int = 3) -> torch.Tensor:
    """A of D = eps^T A eps, of few directions, (N, N)."""
    root = torch.randn(rank, TOKENS * WIDTH, generator=torch.Generator().manual_seed(9))
    return root.T @ root / root.square().sum()


def regular(batch: int = 1, mask: torch.Tensor | None = None) -> TokenGroups:
    return token_groups([torch.zeros(batch, TOKENS, WIDTH)], token_mask=mask)


def sample(matrix: torch.Tensor, draws: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Stationarity (S, 1, T), gradient (S, 1, N) and noise (S, N)."""
    noise = torch.randn(draws, len(matrix), generator=torch.Generator().manual_seed(seed))
    gradient = 2 * noise @ matrix
    return (gradient * noise).reshape(draws, 1, TOKENS, WIDTH).sum(-1), gradient.unsqueeze(1), noise


def test_the_mean_stays_and_the_variance_falls() -> None:
    matrix, groups = quadratic(), regular()
    truth = 2 * torch.stack([block.trace() for block in blocks(matrix)])
    plain, left = [], []
    for seed in range(400):
        stationarity, gradient, noise = sample(matrix, DRAWS, seed)
        removed = quadratic_controls(stationarity, gradient, noise, groups, gradient[:0], EVEN)
        plain.append(stationarity.mean(0)[0] - truth)
        left.append((stationarity - removed).mean(0)[0] - truth)
    before, after = torch.stack(plain), torch.stack(left)
    assert after.square().mean() < 0.8 * before.square().mean()
    assert (after.mean(0).abs() < 4 * after.std(0) / len(after) ** 0.5).all()


def test_tokens_of_one_element_keep_their_mean() -> None:
    """sum_i a_i eps_i^2 has the stationarities 2 a_i; a control made of the draws' own g left 8 % too much."""
    weights = torch.tensor([1.0, 2.0, 3.0])
    groups = token_groups([torch.zeros(1, 3, 1)])
    noise = torch.randn(3000, 6, 3, generator=torch.Generator().manual_seed(0))
    left = []
    for draws in noise:
        gradient = (2 * weights * draws).unsqueeze(1)
        stationarity = gradient * draws.unsqueeze(1)
        removed = quadratic_controls(stationarity, gradient, draws, groups, gradient[:0], 2 * weights[None])
        left.append((stationarity - removed).mean(0)[0] / (2 * weights))
    assert torch.stack(left).mean().item() == pytest.approx(1, abs=0.03)  # standard error 0.003
    assert torch.stack(left).std() < 0.5 * (noise.square().mean(1)).std()


def test_a_token_with_zero_expected_stationarity_gets_no_control_variate() -> None:
    stationarity, gradient, noise = sample(quadratic(), DRAWS, 0)
    stationarity[..., 1], gradient[..., WIDTH : 2 * WIDTH] = 0, 0
    expected = torch.tensor([[1.0, 0.0, 1.0, 1.0]])
    removed = quadratic_controls(stationarity, gradient, noise, regular(), gradient[:0], expected)
    assert not removed[..., 1].any()
    assert removed[..., [0, 2, 3]].all()


def blocks(matrix: torch.Tensor) -> list[torch.Tensor]:
    steps = range(0, TOKENS * WIDTH, WIDTH)
    return [matrix[start : start + WIDTH, start : start + WIDTH] for start in steps]


def test_earlier_gradients_reduce_the_variance() -> None:
    matrix, groups = quadratic(rank=12), regular()
    left = []
    for count in (0, 40):
        spreads = []
        for seed in range(40):
            stationarity, gradient, noise = sample(matrix, DRAWS, seed)
            earlier = sample(matrix, 40, 1000 + seed)[1][:count]
            removed = quadratic_controls(stationarity, gradient, noise, groups, earlier, EVEN)
            spreads.append((stationarity - removed).var(0).mean())
        left.append(torch.stack(spreads).mean())
    assert left[1] < 0.85 * left[0]


def test_control_variates_never_increase_the_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    stationarity = torch.randn(DRAWS, 1, TOKENS, generator=generator)
    gradient = torch.randn(DRAWS, 1, TOKENS * WIDTH, generator=generator)
    noise = torch.randn(DRAWS, TOKENS * WIDTH, generator=generator)
    removed = quadratic_controls(stationarity, gradient, noise, regular(), gradient[:0], EVEN)
    assert (stationarity - removed).var(0).sum() <= stationarity.var(0).sum()


@pytest.mark.parametrize("draws", [1, 2])
def test_too_few_draws_give_no_control_variates(draws: int) -> None:
    stationarity, gradient, noise = sample(quadratic(), draws, 0)
    assert not quadratic_controls(stationarity, gradient, noise, regular(), gradient[:0], EVEN).any()


def test_an_example_does_not_depend_on_other_examples_or_masked_tokens() -> None:
    matrix = quadratic()
    stationarity, gradient, noise = sample(matrix, DRAWS, 0)
    alone = quadratic_controls(stationarity, gradient, noise, regular(), gradient[:0], EVEN)
    # another example of another scale, and a masked token, with gradient and stationarity 0
    more = torch.cat([noise, torch.randn(DRAWS, WIDTH, generator=torch.Generator().manual_seed(5))], 1)
    longer = torch.nn.functional.pad(gradient, (0, WIDTH)).repeat(1, 2, 1)
    wider = torch.nn.functional.pad(stationarity, (0, 1)).repeat(1, 2, 1)
    longer[:, 1] *= 100
    wider[:, 1] *= 7
    mask = torch.tensor([[True] * TOKENS + [False]]).expand(2, -1)
    groups = token_groups([torch.zeros(2, TOKENS + 1, WIDTH)], token_mask=mask)
    both = quadratic_controls(wider, longer, more, groups, longer[:0], torch.ones(2, TOKENS + 1) * mask)
    assert torch.allclose(both[:, :1, :TOKENS], alone, rtol=1e-4, atol=1e-6)
    assert not both[:, :, TOKENS].any()


def test_groups_of_any_shape_are_multiplied_alike() -> None:
    index = torch.arange(TOKENS).repeat_interleave(WIDTH)
    left, right = torch.randn(3, 2, len(index)), torch.randn(5, len(index))
    even = regular(2)
    mixed = TokenGroups(index.flip(0).repeat(2, 1), even.active)
    assert even.width == WIDTH
    assert mixed.width is None
    assert torch.allclose(mixed.products(left, right), even.products(left, right).flip(-1), atol=1e-4)
    assert torch.allclose(mixed.squares(left), even.squares(left).flip(-1), atol=1e-4)


def test_rounding_is_no_control_where_one_token_alone_matters() -> None:
    matrix = quadratic()
    matrix[WIDTH:], matrix[:, WIDTH:] = 0, 0
    stationarity, gradient, noise = sample(matrix, DRAWS, 0)
    removed = quadratic_controls(stationarity, gradient, noise, regular(), gradient[:0], EVEN)
    shaken = quadratic_controls(
        stationarity * (1 + 1e-6), gradient * (1 + 1e-6), noise, regular(), gradient[:0], EVEN
    )
    assert torch.allclose(removed, shaken, rtol=1e-3, atol=1e-6)
