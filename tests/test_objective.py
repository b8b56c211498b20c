"""The objective's pieces against brute force."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from interp_plugin.method.curvature import curvatures
from interp_plugin.method.objective import (
    Objective,
    closed_form,
    distortion,
    information_kept,
    information_loss,
    kept_slope,
    regime_index,
    state_weight,
)
from interp_plugin.method.perturbation import NoisyModel
from interp_plugin.method.sampling import Draws, Tilt, token_groups


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
    value, found = distortion(state.detach(), reference, weight)
    assert torch.allclose(value, expected)
    assert torch.allclose(found, slope)


def test_without_state_std_each_example_is_its_own_yardstick_over_what_counts():
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
    draws = Draws([(4, 2)]).round(0, 6).double()
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
@pytest.mark.parametrize("shift", [None, 1.5])
def test_every_draw_of_every_example_is_that_of_autograd_alone(max_rows, shift):
    torch.manual_seed(0)
    x, sigma = torch.randn(3, 4, 2, dtype=torch.float64), torch.rand(2, 4, dtype=torch.float64) + 0.1
    objective = objective_of(smooth, x, torch.ones(3, 7, dtype=torch.float64), max_rows=max_rows)
    draws, examples = Draws([(4, 2)]).round(0, 6).double(), torch.tensor([2, 0])
    direction = torch.nn.functional.normalize(torch.randn(2, 8, dtype=torch.float64))
    tilt = None if shift is None else Tilt(direction, torch.full((2,), shift, dtype=torch.float64))
    found = objective.evaluate(examples, sigma, draws, tilt)
    for i, example in enumerate(examples):
        for s in range(6):
            # every second draw is shifted; 2 p / (p + q) weighs normal densities around 0 and the shift
            eps = draws[s] + (s % 2) * (shift or 0) * direction[i]
            densities = [
                stats.multivariate_normal(mean).pdf(eps)
                for mean in (np.zeros(8), (shift or 0) * direction[i])
            ]
            weight = 2 * densities[0] / sum(densities)
            eps.requires_grad_()
            noise = sigma[i].repeat_interleave(2) * eps
            moved = smooth(x[example] + noise.reshape(1, 4, 2)) - smooth(x[example][None])
            value = weight * moved.square().mean()
            (pull,) = torch.autograd.grad(value, eps)
            stationarity = (pull * eps).detach().reshape(4, 2).sum(1)
            assert torch.allclose(found.distortion[s, i], value.detach(), rtol=1e-10)
            assert torch.allclose(found.stationarity[s, i], stationarity, rtol=1e-10)
            assert torch.allclose(found.pull[s, i], pull, rtol=1e-10)


def test_one_vector_of_signs_is_exact_where_no_two_state_elements_share_an_input():
    """|J^T r|^2 = sum_k J_k^2 r_k^2 there, and r_k^2 = 1 for signs alone; where they share, vectors differ."""
    x = torch.randn(1, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    apart = curvatures([objective_of(lambda x: x.exp(), x)], 0, probes=3, exact_up_to=0)[0].estimates
    expected = x.exp().square().sum(2) / x.exp().square().sum()  # v^2 M = sum of s^2
    assert torch.allclose(apart, expected.expand(3, 1, 6), rtol=1e-10)
    shared = curvatures([objective_of(lambda x: x.cumsum(1), x)], 0, probes=3, exact_up_to=0)[0].estimates
    assert len(shared[:, 0, 0].unique()) == 3


def test_curvatures_are_squared_jacobian_norms_exactly_for_a_small_state_and_on_average_for_a_large_one():
    torch.manual_seed(0)
    x = torch.randn(1, 3, 4, dtype=torch.float64)
    objective = objective_of(smooth, x)
    jacobian = torch.autograd.functional.jacobian(smooth, x)[0, :, 0] * objective.weight[0].reshape(-1, 1, 1)
    expected = jacobian.square().sum((0, 2))
    exact = curvatures([objective], 0, probes=4, exact_up_to=7)[0]
    assert exact.passes == 7
    assert torch.allclose(exact.estimates[0, 0], expected)
    runs = [curvatures([objective], seed, probes=4, exact_up_to=6)[0] for seed in range(500)]
    many = torch.cat([run.estimates for run in runs])
    error = many.std(0) / len(many) ** 0.5
    assert ((many.mean(0) - expected).abs() < 4 * error).all()


def test_the_closed_form_solves_the_stationarity_of_a_quadratic():
    c, rate, n = torch.tensor([[2.0, 8.0]]), 0.1, torch.tensor([2])
    sigma = closed_form(c, rate, n).exp()
    assert torch.allclose(2 * sigma.square() * c, torch.full((1, 2), rate / 2))


def test_masked_tokens_bear_no_noise():
    x = torch.randn(1, 3, 2, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True, False, True]])
    objective = objective_of(smooth, x, token_mask=mask)
    found = objective.evaluate(torch.tensor([0]), torch.full((1, 3), 0.5), Draws([(3, 2)]).round(0, 4))
    assert (found.stationarity[..., 1] == 0).all()
    assert (found.stationarity[..., [0, 2]] != 0).all()


def test_the_regime_index_is_one_where_half_the_slope_is_distortion_and_finite_at_zero():
    found = regime_index(torch.tensor([0.1, 0.02, 0.0]), torch.tensor([0.05, 0.01, 0.0]))
    assert found[:2].tolist() == pytest.approx([1, 1])
    assert found[2].isfinite() and found[2] > 1e30
