"""From the closed form to the optimum, for a batch whose examples finish one by one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from interp_plugin.method.curvature import PROBE_ROUND, Curvature, curvatures
from interp_plugin.method.few import Settings, Solved, solve_few
from interp_plugin.method.objective import (
    Objective,
    closed_form,
    information_kept,
    information_loss,
    kept_slope,
    regime_index,
)
from interp_plugin.method.ranks import REPEATS
from interp_plugin.method.refinement import done_enough, update
from interp_plugin.method.rounds import SCOUTS, evaluate_round, scout
from interp_plugin.method.sampling import Draws
from interp_plugin.method.trace import (
    Trace,
    closed_variance,
    common_variance_of,
    examples_at_once,
    new_trace,
    token_mean,
    variance_of,
)

PROBES = 8  # vector-Jacobian products of the closed form
FEW_PROBES = 4  # of several states together, which start from one another
RANK_ROUND = PROBE_ROUND + 1  # a stream of its own
EXACT = 32  # state elements up to which they are done one by one, without chance
BUDGET = 0.0576  # draws at most, times tolerance^2: about 144 at the default
QUIET_ROUNDS = 24  # at most, of quiet examples
SPARE = 1.5  # times that, for examples that have not met the tolerance by then: MiniLM's layers 5 and 6
LOOSEST = 0.02  # tolerance that the number of rounds depends on
MIN_ROUNDS = 4  # of draws that may go into the order of tokens, however loose the tolerance


@dataclass(frozen=True)
class Solver:
    """How hard to look; the defaults suit hidden states of trained networks.

    Args:
        draws: noise draws a round, mirror images included; the first round takes half of them, and nearly
            quadratic states half as many again.
        iterations: rounds at most; 0 is the closed form only, None is enough of them for the
            tolerance wherever one draw's stationarity has a relative standard deviation up to 1/2 (and up to
            24 where D is quadratic draw by draw but for little, which makes 0.25 % cheap).
        tolerance: standard error of log sigma (root mean square over an example's tokens) to stop at.  Rounds go on
            while two such fits would not order the tokens alike (Spearman below 1 - 7 tolerance^1.5, 0.98 at the
            default): where they lie close together.
        seed: of the noise.
        max_passes: sample passes of an example at most, beside those of the closed form and of the pilot samples; None:
            as many as ``iterations`` says.
        lower_rate: for states of at most 32 elements, such as class outputs: solve at a smaller rate where the map at
            the one asked for would depend on the samples; ``NoiseFit.rate`` says at which.

    Examples::
        >>> Solver().max_rounds, Solver(tolerance=0.01).max_rounds, Solver(max_passes=280).max_rounds
        (8, 31, 10)
    """

    draws: int = 28
    iterations: int | None = None
    tolerance: float = 0.02
    seed: int = 0
    max_passes: int | None = None
    lower_rate: bool = True

    def __post_init__(self) -> None:
        if self.draws < 4:
            raise ValueError(f"draws is {self.draws}, and at least 4 are needed for a standard error")
        if self.iterations is not None and self.iterations < 0:
            raise ValueError(
                f"iterations is {self.iterations}; give 0 (closed form only), a positive number or None"
            )
        if not self.tolerance > 0:
            raise ValueError(f"tolerance is {self.tolerance}; give a positive standard error of log sigma")
        if self.max_passes is not None and self.max_passes < self.draws:
            raise ValueError(
                f"max_passes is {self.max_passes}, and one round takes {self.draws}; give at least that, or fewer draws"
            )
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; give a non-negative integer")

    @property
    def max_rounds(self) -> int:
        """Rounds at most, but of quiet examples."""
        if self.iterations is not None:
            return self.iterations
        if self.max_passes is not None:
            return self.max_passes // self.draws
        # a looser tolerance stops sooner where it is met, and gives up no sooner where it is not
        return math.ceil(SPARE * BUDGET / min(self.tolerance, LOOSEST) ** 2 / self.draws - 1e-9)

    @property
    def order_rounds(self) -> int:
        """Rounds after which an example that meets the tolerance is done, whether its tokens would keep their order."""
        return max(MIN_ROUNDS, math.ceil(BUDGET / self.tolerance**2 / self.draws - 1e-9))

    @property
    def quiet_rounds(self) -> int:
        """Rounds at most of *quiet* examples, whose D is nearly quadratic draw by draw."""
        bounded = self.iterations is not None or self.max_passes is not None
        return self.max_rounds if bounded else max(self.max_rounds, QUIET_ROUNDS)


@dataclass(frozen=True)
class NoiseFit:
    """The noise each token bears, and how well it is known; B examples, T tokens.

    Attributes:
        sigma: standard deviation of the noise in input units, (B, T); max_sigma for masked tokens.
        standard_error: of log sigma, (B, T); 0 at the cap.  Times K it is that of the loss.
        common_error: of the mean of log sigma over an example's tokens below the cap, (B,): their errors are
            correlated, so it is not what independent ones would give.
        distortion: D at sigma, (B,), dimensionless.
        regime_index: E = slope / (2 D), (B,), where the slope is lambda, less what tokens at the cap lack of their
            share rate / n; 1 where the closed form is exact.
        residual: sigma_i dD/dsigma_i / (rate / n) - 1, (B, T), measured on the last round's draws at
            the iterate before them, which they had no part in; 0 at the cap, NaN for the closed form alone.
        converged: (B,), whether the standard error met the tolerance.
        n_forward, n_backward: sample passes spent on each example, (B,).
        rate: lambda, (B,): the one asked for, or a smaller one where a state of few elements, such as a class
            output, has no answer there that samples can tell (``Solver.lower_rate``).
        asked_rate: lambda as it was asked for.
        max_sigma: the cap, (B,).
        input_std: tau, the standard deviation of the inputs' elements, (B,).
        token_size: K, (B, T).
        token_mask: (B, T), false for tokens that bear no noise.
    """

    sigma: Tensor
    standard_error: Tensor
    common_error: Tensor
    distortion: Tensor
    regime_index: Tensor
    residual: Tensor
    converged: Tensor
    n_forward: Tensor
    n_backward: Tensor
    rate: Tensor
    asked_rate: float
    max_sigma: Tensor
    input_std: Tensor
    token_size: Tensor
    token_mask: Tensor

    def loss(self) -> Tensor:
        """H_i in nats, (B, T): high where the state does not need the token."""
        return information_loss(self.sigma, self.token_size)

    def kept(self) -> Tensor:
        """I_i in nats, (B, T), 0 at the cap: high where the state needs the token."""
        return information_kept(self.sigma, self.token_size, self.max_sigma, self.input_std)

    def kept_error(self) -> Tensor:
        """Standard error of :meth:`kept` in nats, (B, T)."""
        return kept_slope(self.sigma, self.token_size, self.input_std) * self.standard_error

    @property
    def at_cap(self) -> Tensor:
        """(B, T): tokens whose noise the state does not notice up to max_sigma."""
        return self.sigma >= self.max_sigma.unsqueeze(1)


def solve(
    objective: Objective,
    rate: float,
    max_sigma: Tensor,
    input_std: Tensor,
    solver: Solver,
    show_progress: bool = False,
    curvature: Curvature | None = None,
    lead: Tensor | None = None,
) -> NoiseFit:
    """Minimise L for every example of the batch; an example that is done leaves it.

    Args:
        objective: D and its derivatives.
        rate: lambda > 0.
        max_sigma: cap, (B,).
        input_std: tau, (B,), which the information kept is counted with.
        solver: settings.
        show_progress: a bar over the rounds.
        curvature: what ``curvatures`` gives for this objective, where it is known already.
        lead: where to start, as log sigma less its closed form, (B, T); None: at the closed form.
    """
    if curvature is None:
        [curvature] = curvatures([objective], solver.seed, PROBES, EXACT)
    groups, device = objective.groups, objective.device
    batch = len(max_sigma)
    everyone = torch.arange(batch, device=device)
    c = curvature.estimates.mean(0)
    cap = max_sigma.to(objective.dtype).log().unsqueeze(1)  # (B, 1)
    closed = closed_theta(objective, c, rate, cap)
    predicted = (closed.exp().square() * c * groups.active).sum(1)
    variance, common = closed_variance(curvature.estimates, groups.active & (closed < cap))
    trace = new_trace(objective, everyone, closed, variance, common, predicted)
    if lead is not None:
        trace.theta = (closed + lead).minimum(cap)
    passes = curvature.passes.clone()
    converged = torch.zeros(batch, dtype=torch.bool, device=device)
    # where no element has a gradient, the closed form says nothing at any rate
    few = curvature.exact & (c > 0).any(1) & (solver.max_rounds > 0) & solver.lower_rate
    solved: list[Solved] = []
    if few.any():
        jitter = cache(partial(_jitter, objective, solver.seed))
        settings = Settings(
            solver.max_rounds,
            solver.order_rounds,
            solver.draws // 2,
            solver.tolerance,
            solver.seed,
            jitter,
        )
        jacobian = curvature.jacobian[few[curvature.exact]]
        solved = solve_few(objective, few.nonzero()[:, 0], jacobian, rate, cap, settings, passes)
    done: list[Trace] = []
    many = (~few).nonzero()[:, 0]
    with tqdm(desc="noise", disable=not show_progress) as bar:
        for some in many.split(examples_at_once(objective)) if len(many) else ():
            # an example does not depend on the others
            done += _refine(objective, trace.at(some), c, rate, cap, solver, passes, converged, bar)
    solved += [_solved(each, groups.at(each.example).active, rate, cap, converged) for each in done]
    return _fit(objective, solved, rate, cap, input_std, passes)


def _solved(trace: Trace, active: Tensor, rate: float, cap: Tensor, converged: Tensor) -> Solved:
    """What a trace has come to."""
    at_cap = trace.theta >= cap[trace.example] - 1e-6
    free = active & ~at_cap
    # "everything at the cap" is a second minimum of states that saturate, where the closed form says otherwise
    lost = (at_cap | ~active).all(1) & (active & (trace.closed < cap[trace.example] - 1e-6)).any(1)
    return Solved(
        example=trace.example,
        theta=trace.theta,
        variance=variance_of(trace, free),
        common_variance=common_variance_of(trace),
        distortion=trace.distortion,
        place=trace.place,
        residual=trace.residual,
        rate=torch.full_like(trace.distortion, rate),
        converged=converged[trace.example] & ~lost,
    )


def _refine(
    objective: Objective,
    trace: Trace,
    curvature: Tensor,
    rate: float,
    cap: Tensor,
    solver: Solver,
    passes: Tensor,
    converged: Tensor,
    bar: Any,
) -> list[Trace]:
    """Rounds of draws until every example is done; adds to ``passes`` and sets ``converged``, both (B,)."""
    draws = Draws([x.shape[1:] for x in objective.model.origin], solver.seed)
    jitter = cache(partial(_jitter, objective, solver.seed))
    done: list[Trace] = []
    scouted = None
    for index in range(solver.quiet_rounds):
        if index >= solver.max_rounds:  # only quiet examples go on
            done.append(trace.at(~trace.quiet).without_teachers())
            trace = trace.at(trace.quiet)
            if not len(trace.example):
                break
        units = max(2, solver.draws // (2 if index else 4))  # the first round mostly finds the place
        noise = cache(partial(_drawn, objective, draws, index, 2 * units))  # the scouts' go on into the round
        if index == 0:
            scouted, spent = scout(objective, trace, rate, noise(units)[:SCOUTS], solver.tolerance)
            passes[trace.example] += spent - len(scouted.distortion)  # those go on into the round
        found = evaluate_round(objective, trace, noise, units, curvature, None if index else scouted)
        passes[trace.example] += found.passes
        active = objective.groups.at(trace.example).active
        free = update(trace, found, active, cap[trace.example], rate, index)
        error = token_mean(variance_of(trace, free), free).sqrt()
        met = converged[trace.example] = (error <= solver.tolerance) & trace.settled
        done_now = done_enough(trace, free, met, solver.tolerance, jitter)
        done_now |= met & ~trace.quiet & (index + 1 >= solver.order_rounds)
        if done_now.any():
            done.append(trace.at(done_now).without_teachers())
            trace = trace.at(~done_now)
        bar.update()
        if not len(trace.example):
            break
    return [*done, trace.without_teachers()]


def _drawn(objective: Objective, draws: Draws, index: int, count: int, first: int) -> Tensor:
    """The first draws of a round of ``count``, where the objective wants them."""
    return draws.round(index, count, first).to(objective.device, objective.dtype)


def _jitter(objective: Objective, seed: int) -> Tensor:
    """Normal numbers for each token, (REPEATS, T): the same however far a sequence is padded."""
    numbers = Draws([(objective.groups.n_tokens,)], seed).round(RANK_ROUND, REPEATS)
    return numbers.to(objective.device, objective.dtype)


def closed_theta(objective: Objective, curvature: Tensor, rate: float, cap: Tensor) -> Tensor:
    """log sigma by the closed form, (B, T), at the cap where there is no curvature; cap is (B, 1)."""
    groups = objective.groups
    return torch.where(groups.active, closed_form(curvature, rate, groups.counts), torch.inf).minimum(cap)


def solve_together(
    objectives: Sequence[Objective],
    rate: float,
    max_sigma: Sequence[Tensor],
    input_std: Tensor,
    solver: Solver,
) -> list[NoiseFit]:
    """Solve for several states of one model, inputs and noise layer; they share forwards where they can.

    Each state starts as far from its closed form as the one before it ended: layers that follow one
    another are alike in that.
    """
    fits: list[NoiseFit] = []
    lead = None
    few = len(objectives) > 1 and solver.max_rounds > 0
    found = curvatures(objectives, solver.seed, FEW_PROBES if few else PROBES, EXACT)
    for objective, curvature, caps in zip(objectives, found, max_sigma):
        fit = solve(objective, rate, caps, input_std, solver, curvature=curvature, lead=lead)
        closed = closed_theta(objective, curvature.estimates.mean(0), rate, caps.log().unsqueeze(1))
        certain = fit.converged.unsqueeze(1) & ~fit.at_cap
        lead = torch.where(certain, fit.sigma.log() - closed, 0.0)
        fits.append(fit)
    return fits


def _fit(
    objective: Objective, parts: list[Solved], rate: float, cap: Tensor, input_std: Tensor, passes: Tensor
) -> NoiseFit:
    """Put the examples back in order."""
    order = torch.cat([part.example for part in parts]).argsort()
    whole = Solved(
        **{name: torch.cat([getattr(part, name) for part in parts])[order] for name in vars(parts[0])}
    )
    groups = objective.groups
    free = groups.active & (whole.theta < cap - 1e-6)
    share = (whole.rate / groups.counts).unsqueeze(1)  # (B, 1)
    # D was measured at the iterates; at the optimum each log sigma moves it by rate / n
    moved = ((whole.theta - whole.place) * free * share).sum(1)
    at_sigma = torch.where(
        whole.distortion > 0, (whole.distortion + moved).maximum(whole.distortion / 2), 0.0
    )
    # at the optimum a token below the cap has sigma dD/dsigma = rate / n, one at the cap less
    slope = (torch.where(free, 1.0, (1 + whole.residual).clamp(0, 1)) * groups.active * share).sum(1)
    slope = torch.where(slope.isnan(), 2 * at_sigma, slope)  # the closed form alone takes D to be quadratic
    sigma = torch.where(free, whole.theta, cap).exp().minimum(cap.exp())
    return NoiseFit(
        sigma=sigma.float(),
        standard_error=torch.where(free, whole.variance, 0.0).sqrt().float(),
        common_error=torch.where(free.any(1), whole.common_variance.sqrt(), 0.0).float(),
        distortion=at_sigma.float(),
        regime_index=regime_index(slope, at_sigma).float(),
        residual=(whole.residual * free).float(),
        converged=whole.converged,
        n_forward=passes + objective.clean_passes,
        n_backward=passes,
        rate=whole.rate.float(),
        asked_rate=rate,
        max_sigma=cap[:, 0].exp().float(),
        input_std=input_std,
        token_size=groups.sizes,
        token_mask=groups.active,
    )
