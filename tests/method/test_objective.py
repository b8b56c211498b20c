"""The objective's pieces against brute force."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from interp_plugin.method.objective import (
    Objective,
    closed_form,
    distortion,
    distortion_gradient,
    information_kept,
    information_loss,
    kept_slope,
    loss,
    regime_index,
    residual,
    state_weight,
    stationarity,
    token_groups,
)
from interp_plugin.method.perturbation import NoisyModel
from interp_plugin.method.sampling import Draws


def objective_of(phi, x, state_std=None, token_mask=None, max_rows=None):
    model = NoisyModel(lambda inputs, rows: phi(*inputs), (x,))
    _, state = model.clean()
    weight = state_weight(state, state_std, torch.ones_like(state, dtype=torch.bool))
    return Objective(model, state, weight, token_groups([x], None, token_mask), max_rows)


def smooth(x):
    return torch.tanh(x.flatten(1) @ torch.linspace(-1, 1, x[0].numel() * 7, dtype=x.dtype).reshape(-1, 7))


def test_information_loss_is_the_entropy_of_the_noise():
    sigma, size = 0.3, 5
    expected = size * stats.norm(scale=sigma).entropy()
    assert information_loss(torch.tensor([[sigma]]), torch.tensor([[5.0]])).item() == pytest.approx(expected)


def test_information_kept_is_the_mutual_information_of_a_gaussian_channel_less_that_at_the_cap():
    sigma, size, std = torch.tensor([[0.3, 2.0], [0.01, 40.0]]), torch.tensor([[5.0, 4.0]] * 2), [0.5, 4.0]
    cap = [5.0, 40.0]

    def channel(noise: float, spread: float, size: float) -> float:  # H(x + e) - H(e), by SciPy's entropies
        whole = stats.norm(scale=math.hypot(noise, spread)).entropy()
        return size * (whole - stats.norm(scale=noise).entropy())

    expected = [
        [channel(s, std[b], k) - channel(cap[b], std[b], k) for s, k in zip(sigma[b].tolist(), (5, 4))]
        for b in range(2)
    ]
    found = information_kept(sigma, size, torch.tensor(cap), torch.tensor(std))
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float32), rtol=1e-4)
    assert found[1, 1] == 0


def test_the_error_of_information_kept_is_its_slope_times_that_of_log_sigma():
    sigma, size, std = torch.tensor([[0.03, 0.5, 3.0]]).double(), torch.full((1, 3), 7.0), torch.tensor([0.5])
    log_sigma = sigma.log().requires_grad_()
    kept = information_kept(log_sigma.exp(), size, torch.tensor([5.0]), std)
    [slope] = torch.autograd.grad(kept.sum(), log_sigma)
    assert torch.allclose(kept_slope(sigma, size, std), -slope)


def test_distortion_is_the_mean_square_in_units_of_v():
    torch.manual_seed(0)
    state, reference, v = torch.randn(2, 3, 4), torch.randn(2, 3, 4), torch.rand(3, 4) + 0.5
    weight = state_weight(reference, v.expand(2, 3, 4), torch.ones(2, 3, 4, dtype=torch.bool))
    expected = ((state.requires_grad_() - reference) / v).square().mean((1, 2))
    [slope] = torch.autograd.grad(expected.sum(), state)
    assert torch.allclose(distortion(state.detach(), reference, weight), expected)
    found = distortion_gradient(state.detach(), reference, weight)
    assert torch.allclose(found, slope)


def test_the_loss_is_least_where_the_stationarity_is_the_rates_share():
    """D = sum c_i sigma_i^2 over the tokens with noise: L and g by autograd, and the closed form's residual."""
    c, rate = torch.tensor([[2.0, 8.0, 5.0], [1.0, 3.0, 4.0]]).double(), torch.tensor([0.1, 0.3]).double()
    active = torch.tensor([[True, True, True], [True, True, False]])
    n = active.sum(1)
    theta = (closed_form(c, 1.0, n) + rate.log()[:, None] / 2).requires_grad_()
    value = (c * (2 * theta).exp() * active).sum(1)
    (slope,) = torch.autograd.grad(loss(value, theta, rate, active).sum(), theta, retain_graph=True)
    torch.testing.assert_close(slope, torch.zeros_like(slope))
    (g,) = torch.autograd.grad(value.sum(), theta)
    torch.testing.assert_close(residual(g, rate, n)[active], torch.zeros(5).double())
    by_hand = value - rate * torch.stack([theta[0].mean(), theta[1, :2].mean()])
    torch.testing.assert_close(loss(value, theta, rate, active), by_hand)


def test_stationarity_is_the_gradients_product_with_the_noise_summed_over_a_tokens_elements():
    gradient, noise = torch.arange(6.0).reshape(1, 6), torch.tensor([[1.0, -1.0, 2.0, 0.0, 0.5, 1.0]])
    groups = token_groups([torch.zeros(1, 3, 2)])
    assert stationarity(gradient, noise, groups).tolist() == [[-1.0, 4.0, 7.0]]


def test_without_state_std_the_unit_is_the_root_mean_square_of_each_example():
    reference = torch.tensor([[[1.0], [2.0], [100.0]]])
    counted = torch.tensor([[[True], [True], [False]]])
    weight = state_weight(reference, None, counted)
    expected = 1 / math.sqrt(2.5 * 2)
    assert torch.allclose(weight[0, :, 0], torch.tensor([expected, expected, 0.0]))


def test_a_double_state_is_measured_in_double_precision():
    reference = torch.tensor([[3.0, 4.0, 5.0]], dtype=torch.float64)
    weight = state_weight(reference, torch.full_like(reference, 0.7), torch.ones(1, 3, dtype=torch.bool))
    assert weight[0, 0].item() == pytest.approx(1 / (0.7 * math.sqrt(3)), rel=1e-14)


def test_state_elements_that_never_moved_do_not_count():
    weight = state_weight(
        torch.ones(1, 3), torch.tensor([[1.0, 0.0, 2.0]]), torch.ones(1, 3, dtype=torch.bool)
    )
    assert torch.allclose(weight, torch.tensor([[1.0, 0.0, 0.5]]) / math.sqrt(2))


@pytest.mark.parametrize("max_rows", [None, 1, 5])
def test_stationarity_is_the_derivative_of_the_distortion_draw_by_draw(max_rows):
    torch.manual_seed(0)
    x = torch.randn(3, 4, 2, dtype=torch.float64)
    objective = objective_of(smooth, x, max_rows=max_rows)
    draws = Draws([(4, 2)]).batch(0, 6).double()
    examples = torch.tensor([0, 2])
    log_sigma = torch.randn(2, 4, dtype=torch.float64) / 2 - 1
    found = objective.evaluate(examples, log_sigma.exp(), draws)
    step = 1e-5
    for token in range(4):
        up, down = log_sigma.clone(), log_sigma.clone()
        up[:, token] += step
        down[:, token] -= step
        slope = objective.evaluate(examples, up.exp(), draws).distortion
        slope = (slope - objective.evaluate(examples, down.exp(), draws).distortion) / (2 * step)
        assert torch.allclose(found.stationarity[..., token], slope, atol=1e-8)


@pytest.mark.parametrize("max_rows", [None, 5])
def test_every_draw_of_every_example_is_that_of_autograd_alone(max_rows):
    torch.manual_seed(0)
    x, sigma = torch.randn(3, 4, 2, dtype=torch.float64), torch.rand(2, 4, dtype=torch.float64) + 0.1
    objective = objective_of(smooth, x, torch.ones(3, 7, dtype=torch.float64), max_rows=max_rows)
    draws, examples = Draws([(4, 2)]).batch(0, 6).double(), torch.tensor([2, 0])
    found = objective.evaluate(examples, sigma, draws)
    for i, example in enumerate(examples):
        for s in range(6):
            eps = draws[s].clone().requires_grad_()
            noise = sigma[i].repeat_interleave(2) * eps
            value = (smooth(x[example] + noise.reshape(1, 4, 2)) - smooth(x[example][None])).square().mean()
            (gradient,) = torch.autograd.grad(value, eps)
            slope = (gradient * eps).detach().reshape(4, 2).sum(1)
            assert torch.allclose(found.distortion[s, i], value.detach(), rtol=1e-10)
            assert torch.allclose(found.stationarity[s, i], slope, rtol=1e-10)
            assert torch.allclose(found.gradient[s, i], gradient, rtol=1e-10)


def test_the_closed_form_solves_the_stationarity_of_a_quadratic():
    c, rate, n = torch.tensor([[2.0, 8.0]]), 0.1, torch.tensor([2])
    sigma = closed_form(c, rate, n).exp()
    assert torch.allclose(2 * sigma.square() * c, torch.full((1, 2), rate / 2))


def test_masked_tokens_get_no_noise():
    x = torch.randn(1, 3, 2, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True, False, True]])
    objective = objective_of(smooth, x, token_mask=mask)
    found = objective.evaluate(torch.tensor([0]), torch.full((1, 3), 0.5), Draws([(3, 2)]).batch(0, 4))
    assert (found.stationarity[..., 1] == 0).all()
    assert (found.stationarity[..., [0, 2]] != 0).all()


def test_the_regime_index_is_one_where_half_the_slope_is_distortion_and_finite_at_zero():
    found = regime_index(torch.tensor([0.1, 0.02, 0.0]), torch.tensor([0.05, 0.01, 0.0]))
    assert found[:2].tolist() == pytest.approx([1, 1])
    assert found[2].isfinite() and found[2] > 1e30


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
