"""What a round of draws says and how the solver takes it in, against quadratic forms and closed means."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from interp_plugin.method.objective import Objective, state_weight
from interp_plugin.method.perturbation import NoisyModel
from interp_plugin.method.refinement import _log1p, update
from interp_plugin.method.rounds import PAIR, Round, evaluate_round, scout
from interp_plugin.method.sampling import Draws, token_groups
from interp_plugin.method.trace import Trace, closed_variance, new_trace, tilt_of, token_mean

RATE, TOKENS, SIZE, ELEMENTS = 0.1, 3, 4, 6


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


MATRIX = normal(TOKENS * SIZE, ELEMENTS, seed=1)
X = normal(2, TOKENS, SIZE, seed=2)


def linear(x: Tensor) -> Tensor:
    return x.flatten(1) @ MATRIX


def bent(x: Tensor) -> Tensor:
    return linear(x) + linear(x).square() / 2


def objective_of(phi: Callable[[Tensor], Tensor], x: Tensor = X) -> Objective:
    model = NoisyModel(lambda inputs, rows: phi(*inputs), (x,))
    _, state = model.clean()
    return Objective(
        model,
        state,
        state_weight(state, torch.ones_like(state), torch.ones_like(state, dtype=torch.bool)),
        token_groups([x]),
    )


def trace_of(objective: Objective, sigma: Tensor, **known: Tensor) -> Trace:
    """What is known at ``sigma``, (B, T), before any draw."""
    batch = torch.arange(len(sigma))
    zeros = torch.zeros_like(sigma)
    trace = new_trace(objective, batch, sigma.log(), zeros, zeros[:, 0].clone(), zeros[:, 0].clone())
    return replace(trace, **known)


def quadratic_form() -> Tensor:
    """A of D = (sigma eps)^T A (sigma eps) of the linear state with v = 1."""
    return MATRIX @ MATRIX.T / ELEMENTS


def curvature_by_blocks() -> Tensor:
    """c_i, the trace of A's block of token i, for both examples."""
    return quadratic_form().diagonal().reshape(TOKENS, SIZE).sum(1).expand(2, -1)


SIGMA = torch.tensor([[0.1, 0.2, 0.05], [0.3, 0.1, 0.2]], dtype=torch.float64)


def by_hand(phi: Callable[[Tensor], Tensor], example: int, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """D, g (T,) and the gradient in noise units (N,) of one draw."""
    scale = SIGMA[example].repeat_interleave(SIZE)
    eps = noise.clone().requires_grad_()
    x = X[example : example + 1]
    moved = phi(x + (scale * eps).reshape(1, TOKENS, SIZE)) - phi(x)
    distortion = moved.square().mean()
    [pull] = torch.autograd.grad(distortion, eps)
    return distortion.detach(), (pull * noise).reshape(TOKENS, SIZE).sum(1), pull


# A round


def round_of(objective: Objective, trace: Trace, noise: Tensor, curvature: Tensor) -> Round:
    """A round of these draws, two a unit."""
    return evaluate_round(objective, trace, lambda first: noise[:first], len(noise) // 2, curvature)


def test_a_pair_is_the_mean_of_a_draw_and_its_mirror_image() -> None:
    objective = objective_of(bent)
    noise = Draws([(TOKENS, SIZE)]).round(0, 4).double()  # two pairs: too few for control variates
    found = round_of(objective, trace_of(objective, SIGMA), noise, curvature_by_blocks())
    for example in range(2):
        for unit in range(2):
            there, back = (by_hand(bent, example, sign * noise[unit]) for sign in (1, -1))
            torch.testing.assert_close(found.distortion[unit, example], (there[0] + back[0]) / 2)
            torch.testing.assert_close(found.stationarity[unit, example], (there[1] + back[1]) / 2)
            torch.testing.assert_close(found.teachers[unit, example], (there[2] - back[2]) / 2)
        pulls = torch.stack([by_hand(bent, example, sign * e)[2] for e in noise[:2] for sign in (1, -1)])
        torch.testing.assert_close(found.gradient[example], pulls.sum(0))
        torch.testing.assert_close(found.gradient_square[example], pulls.square().sum())
    assert found.passes.tolist() == [4, 4]


def test_two_draws_that_are_not_paired_are_a_unit_of_their_mean() -> None:
    objective = objective_of(bent)
    noise = Draws([(TOKENS, SIZE)]).round(0, 2).double()
    trace = trace_of(objective, SIGMA, paired=torch.tensor([False, False]))
    found = round_of(objective, trace, noise, curvature_by_blocks())
    for example in range(2):
        one, other = (by_hand(bent, example, eps) for eps in noise)
        torch.testing.assert_close(found.distortion[0, example], (one[0] + other[0]) / 2)
        torch.testing.assert_close(found.stationarity[0, example], (one[1] + other[1]) / 2)
        torch.testing.assert_close(found.gradient[example], one[2] + other[2])
    assert found.passes.tolist() == [2, 2]


def test_examples_of_both_kinds_in_a_round_are_as_they_are_alone() -> None:
    noise = Draws([(TOKENS, SIZE)]).round(0, 12).double()
    paired = torch.tensor([False, True])
    objective = objective_of(bent)
    both = round_of(objective, trace_of(objective, SIGMA, paired=paired), noise, curvature_by_blocks())
    for i in range(2):
        objective = objective_of(bent, X[i : i + 1])
        trace = trace_of(objective, SIGMA[i : i + 1], paired=paired[i : i + 1])
        alone = round_of(objective, trace, noise, curvature_by_blocks()[:1])
        torch.testing.assert_close(both.distortion[:, i], alone.distortion[:, 0])
        torch.testing.assert_close(both.stationarity[:, i], alone.stationarity[:, 0])
        torch.testing.assert_close(both.gradient[i], alone.gradient[0])


def test_a_quiet_example_of_a_quadratic_distortion_has_no_noise_left() -> None:
    objective = objective_of(linear)
    trace = trace_of(objective, SIGMA, quiet=torch.tensor([True, True]))
    noise = Draws([(TOKENS, SIZE)]).round(0, 12).double()
    found = round_of(objective, trace, noise, curvature_by_blocks())
    part = SIGMA.square() * curvature_by_blocks()
    torch.testing.assert_close(found.distortion, part.sum(1).expand(6, -1))
    torch.testing.assert_close(found.stationarity, (2 * part).expand(6, -1, -1))
    assert found.passes.tolist() == [18, 18]


@pytest.mark.parametrize("paired", [True, False])
def test_a_round_is_right_on_average_and_its_control_variates_add_nothing(paired: bool) -> None:
    objective = objective_of(linear)
    sums = []
    for index in range(150):
        trace = trace_of(objective, SIGMA, paired=torch.full((2,), paired))
        noise = Draws([(TOKENS, SIZE)]).round(index, 12).double()
        found = round_of(objective, trace, noise, curvature_by_blocks())
        sums.append(torch.cat([found.distortion.mean(0)[:, None], found.stationarity.mean(0)], 1))
    seen = torch.stack(sums)
    part = SIGMA.square() * curvature_by_blocks()
    truth = torch.cat([part.sum(1, keepdim=True), 2 * part], 1)
    assert ((seen.mean(0) - truth).abs() < 4 * seen.std(0) / len(seen) ** 0.5).all()


def test_scouts_take_the_noise_back_to_half_the_rate_in_one_step_where_distortion_is_quadratic() -> None:
    objective = objective_of(linear)
    form, noise = quadratic_form(), Draws([(TOKENS, SIZE)]).round(0, 4).double()
    moved = noise * SIGMA[0].repeat_interleave(SIZE)
    value = (moved @ form * moved).sum(1).mean()
    start = SIGMA[:1].repeat(2, 1) * torch.stack([4 * RATE / value, RATE / 2 / value]).sqrt().unsqueeze(1)
    trace = trace_of(objective, start)
    seen, passes = scout(objective, trace, RATE, noise, 0.02)
    assert seen.distortion.mean(0).tolist() == pytest.approx([RATE / 2, RATE / 2])
    torch.testing.assert_close(trace.theta[0].exp() / start[0], torch.full((3,), 1 / 8**0.5).double())
    torch.testing.assert_close(trace.theta[1].exp(), start[1])
    assert passes.tolist() == [8, 4]
    assert trace.trust.tolist() == [False, True]


def test_the_tilt_is_the_mean_of_the_noise_where_the_distortion_is() -> None:
    # D = 3 exp(a . eps - |a|^2 / 2): E[D] = 3 and E[D eps] = 3 a, by completing the square
    objective = objective_of(linear)
    a = normal(TOKENS * SIZE, seed=3)
    a = 1.2 * a / a.norm()
    eps = normal(200_000, TOKENS * SIZE, seed=4)
    distortion = 3 * (eps @ a - a.square().sum() / 2).exp()
    gradient = distortion.unsqueeze(1) * a
    trace = trace_of(
        objective,
        SIGMA,
        gradient=gradient.sum(0).repeat(2, 1),
        gradient_square=gradient.square().sum().repeat(2),
        gradient_passes=torch.full((2,), float(len(eps))).double(),
        distortion=distortion.mean().repeat(2),
        quiet=torch.tensor([False, True]),
    )
    tilt = tilt_of(trace)
    assert tilt is not None
    torch.testing.assert_close(tilt.shift, torch.tensor([1.2, 0.0]).double(), rtol=0.02, atol=0)
    torch.testing.assert_close(tilt.direction[0], a / a.norm())
    assert tilt_of(replace(trace, quiet=torch.tensor([True, True]))) is None


# What the solver makes of it


def told(stationarity: Tensor, distortion: Tensor) -> Round:
    """A round that says g, (S, b, T), and D, (b,)."""
    units, batch, _ = stationarity.shape
    zeros = torch.zeros(batch, TOKENS * SIZE, dtype=torch.float64)
    return Round(
        distortion.expand(units, -1), stationarity, zeros.expand(units, -1, -1), zeros,
        zeros[:, 0], zeros[:, 0],
    )  # fmt: skip


HIGH = torch.full((2, 1), 5.0, dtype=torch.float64)  # a cap far away


def test_one_step_is_exact_where_the_distortion_is_quadratic_whatever_is_masked() -> None:
    """D = sum c_i sigma_i^2, whose optimum is sigma_i^2 = rate / (2 n c_i) with n the unmasked tokens."""
    active = torch.tensor([[True, True, True], [True, False, True]])
    c = torch.tensor([[2.0, 5.0, 1.0], [3.0, 7.0, 4.0]], dtype=torch.float64)
    n = active.sum(1, keepdim=True)
    best = (RATE / (2 * n * c)).sqrt().log()
    theta = best + torch.tensor([[0.3, 0.1, 0.2], [-0.2, 0.0, -0.1]]).double()
    part = c * (2 * theta).exp() * active
    trace = trace_of(objective_of(linear), theta.exp())
    free = update(trace, told((2 * part).expand(4, -1, -1), part.sum(1)), active, HIGH, RATE, 0)
    assert torch.equal(free, active)
    torch.testing.assert_close(trace.mean[active], best[active])
    torch.testing.assert_close(trace.residual[active], (2 * (theta - best)).expm1()[active])


@pytest.mark.parametrize("power", [2.0, 3.0, 6.0])
def test_a_change_that_all_tokens_share_is_exact_for_any_power_of_sigma(power: float) -> None:
    """D = C s^p: at the optimum p D = rate, so one step goes to s (rate / (p D))^(1 / p)."""
    distortion = torch.tensor([0.03, 0.02], dtype=torch.float64)
    share = power * distortion / TOKENS
    trace = trace_of(objective_of(linear), SIGMA)
    active = torch.ones(2, TOKENS, dtype=torch.bool)
    found = told(share[:, None].expand(4, 2, TOKENS), distortion)
    update(trace, found, active, HIGH, RATE, 0)
    expected = SIGMA.log() + ((RATE / power / distortion).log() / power)[:, None]
    torch.testing.assert_close(trace.mean, expected)


def test_a_token_at_the_cap_comes_back_only_if_the_distortion_pushes_it() -> None:
    """Karush, Kuhn and Tucker: at the cap g may be below rate / n, and nowhere else."""
    cap = SIGMA.amax(1, keepdim=True).log()
    trace = trace_of(objective_of(linear), cap.exp().expand(2, TOKENS))
    active = torch.ones(2, TOKENS, dtype=torch.bool)
    excess = torch.tensor([[-0.5, 0.2, 0.1], [-0.1, -0.9, -0.3]]).double()
    g = RATE / TOKENS * (1 + excess)
    free = update(trace, told(g.expand(4, -1, -1), g.sum(1) / 2), active, cap, RATE, 0)
    assert torch.equal(free, excess > 0)
    assert (trace.mean <= cap).all()
    assert torch.equal(trace.mean[~free], cap.expand(2, TOKENS)[~free])
    assert (trace.mean[free] < cap.expand(2, TOKENS)[free]).all()
    torch.testing.assert_close(trace.residual, excess)  # what E needs at the cap too; the fit's is 0 there


def test_an_estimate_beyond_the_cap_is_averaged_as_the_cap() -> None:
    cap = SIGMA.amax(1, keepdim=True).log()
    trace = trace_of(objective_of(linear), (cap - 0.01).exp().expand(2, TOKENS))
    active = torch.ones(2, TOKENS, dtype=torch.bool)
    g = torch.full(
        (4, 2, TOKENS), 0.5 * RATE / TOKENS
    ).double()  # far too little: sigma would grow by a third
    update(trace, told(g, g[0].sum(1) / 2), active, cap, RATE, 0)
    torch.testing.assert_close(trace.mean, cap.expand(2, TOKENS))


def noisy(scale: float, seed: int, count: int) -> Round:
    """Stationarities at the optimum, of relative standard deviation ``scale``."""
    excess = scale * normal(count, 2, TOKENS, seed=seed)
    g = RATE / TOKENS * (1 + excess)
    return told(g, torch.full((2,), RATE / 2).double())


@pytest.mark.parametrize("size, share", [(0.0, 1.0), (1.0, 0.5), (1e6, 0.0)])
def test_closed_form_and_draws_are_weighed_by_their_precision(size: float, share: float) -> None:
    """``size``: the closed form's variance in those of the draws' mean; ``share``: its weight."""
    active = torch.ones(2, TOKENS, dtype=torch.bool)
    first = trace_of(objective_of(linear), SIGMA)
    update(first, noisy(0.05, 5, 20), active, HIGH, RATE, 0)
    ours, common = first.variance.mean(1) / 20, first.common_variance / 20
    trace = trace_of(
        objective_of(linear),
        SIGMA,
        closed_variance=(size * ours)[:, None].expand(2, TOKENS),
        closed_common=size * common,
    )
    update(trace, noisy(0.05, 5, 20), active, HIGH, RATE, 0)
    assert trace.trust.all()
    torch.testing.assert_close(trace.theta, share * trace.closed + (1 - share) * trace.mean)


def test_rounds_near_the_optimum_are_averaged_by_their_numbers_of_draws() -> None:
    active = torch.ones(2, TOKENS, dtype=torch.bool)
    single = []
    for seed, count in ((6, 10), (7, 30)):
        alone = trace_of(objective_of(linear), SIGMA)
        update(alone, noisy(0.05, seed, count), active, HIGH, RATE, 0)
        single.append(alone.mean)
    trace = trace_of(objective_of(linear), SIGMA)
    update(trace, noisy(0.05, 6, 10), active, HIGH, RATE, 0)
    trace.theta = SIGMA.log()  # the second round at the same place
    update(trace, noisy(0.05, 7, 30), active, HIGH, RATE, 1)
    assert trace.draws.tolist() == pytest.approx([40, 40], rel=0.02)
    torch.testing.assert_close(trace.mean, (10 * single[0] + 30 * single[1]) / 40, rtol=0, atol=2e-3)


def test_the_variance_of_a_draw_is_that_of_log_sigma() -> None:
    """d log sigma = -(r_i - r) / 2 - r / p, with p = 2 and r the mean over tokens: half of r_i's deviation."""
    active = torch.ones(2, TOKENS, dtype=torch.bool)
    trace = trace_of(objective_of(linear), SIGMA)
    update(trace, noisy(0.1, 8, 20_000), active, HIGH, RATE, 0)
    torch.testing.assert_close(trace.variance, torch.full((2, TOKENS), 0.05**2).double(), rtol=0.05, atol=0)
    expected = torch.full((2,), 0.05**2 / TOKENS).double()
    torch.testing.assert_close(trace.common_variance, expected, rtol=0.05, atol=0)


@pytest.mark.parametrize("residual", [-0.2, 0.0, 0.3])
def test_the_logarithm_of_a_noisy_mean_is_unbiased(residual: float) -> None:
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    deviation = 0.15
    noisy_mean = torch.from_numpy(residual + deviation * nodes)
    mean = (_log1p(noisy_mean, torch.full((20,), deviation**2).double()) * torch.from_numpy(weights)).sum()
    bias = mean.item() / weights.sum() - math.log(1 + residual)
    assert abs(bias) < 0.1 * deviation**2 / 2 / (1 + residual) ** 2  # a plain logarithm's


def test_the_closed_forms_error_is_its_scatter() -> None:
    """4,000 examples with 8 noisy estimates of c each: log sigma = -1/2 log of their mean."""
    estimates = 2 + 0.3 * normal(8, 4000, TOKENS, seed=9) + 0.4 * normal(8, 4000, 1, seed=10)
    free = torch.ones(4000, TOKENS, dtype=torch.bool)
    variance, common = closed_variance(estimates, free)
    log_sigma = -0.5 * estimates.mean(0).log()
    torch.testing.assert_close(variance.mean(0), log_sigma.var(0), rtol=0.1, atol=0)
    torch.testing.assert_close(common.mean(), log_sigma.mean(1).var(), rtol=0.1, atol=0)
    free[:, 0] = False
    variance, common = closed_variance(estimates, free)
    assert not variance[:, 0].any()
    torch.testing.assert_close(common.mean(), log_sigma[:, 1:].mean(1).var(), rtol=0.1, atol=0)


def test_a_mean_over_tokens_leaves_out_those_that_are_not_free() -> None:
    values = torch.tensor([[1.0, 100.0, 3.0], [5.0, math.nan, 7.0]])
    free = torch.tensor([[True, False, True], [False, False, False]])
    assert token_mean(values, free).tolist() == [2.0, 0.0]


def test_the_third_pass_of_a_quiet_example_is_its_draw_at_a_small_scale() -> None:
    seen: list[Tensor] = []

    def watched(x: Tensor) -> Tensor:
        seen.append(x.detach() - X[:1])
        return linear(x)

    objective = objective_of(watched, X[:1])
    seen.clear()
    trace = trace_of(objective, SIGMA[:1], quiet=torch.tensor([True]))
    round_of(objective, trace, Draws([(TOKENS, SIZE)]).round(0, 4).double(), curvature_by_blocks()[:1])
    both, small = seen
    there, back = both.chunk(2)
    torch.testing.assert_close(back, -there)
    torch.testing.assert_close(small, PAIR * there)
