"""The solver: Newton steps in log sigma on new noise draws, averaged until their standard error is small enough."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from interp_plugin.method.objective import (
    SATURATED,
    Evaluation,
    Objective,
    closed_form,
    information_kept,
    information_loss,
    kept_slope,
    loss,
    regime_index,
    residual,
)
from interp_plugin.method.sampling import (
    NORM_STREAM,
    Draws,
    JacobianNorms,
    antithetic_pairs,
    jacobian_norms,
    without_linear_part,
    without_quadratic_part,
)

# tests/benchmarks/README.md: effects of halving or doubling a constant, or of removing its mechanism (ablation.py).
PROBES = 8  # vector-Jacobian products of the closed form
FEW_PROBES = 4  # the same for several states together, which start from one another
EXACT = 32  # maximum number of state elements for which the whole Jacobian is computed
SAMPLES = 144  # for an example at the default tolerance, otherwise proportional to 1 / tolerance^2
SPARE = 3.0  # factor for examples that have not met the tolerance by then, such as last layers
LOOSEST = 0.02  # the maximum number of batches does not fall further for looser tolerances
MIN_BATCHES = 4  # that may be drawn to settle the order of tokens, however loose the tolerance
KEPT_GRADIENTS = 28  # of earlier pairs, for the control variates of later ones
KEPT_ELEMENTS = 2**25  # maximum number of elements of these gradients in memory

FIRST_BATCH = 0.5  # size of the first batch, as a share of the others: it mostly moves the iterate
LARGEST_STEP = 1.0  # of log sigma
LEAST_ELASTICITY = 4 * SATURATED - 2  # of the slope of D in a scale shared by all tokens: 2 p - 2, p = 2 E
LARGEST_ELASTICITY = 30.0
LARGEST_RISE = 0.25  # of a token relative to the others: for larger sigma, samples understate their scatter
LONG_STEP = 0.1  # r.m.s. over tokens, beyond noise: after a longer Newton step another one is needed
NEWTON_ERROR = 0.3  # error of a step as a share of its length: 0.1 to 0.4 at MiniLM's layers 1 to 3
OUTLIER = 4.0  # times the variance of the samples so far: above, a batch gets a smaller weight
DRIFT = 4.0  # standard errors of the last steps' mean: above, a token has not arrived (its slope is flat)
LAG = 2.0  # the same beside tokens at the cap in which D saturates; and where a bent token's average starts again
BELOW_CAP = 0.1  # in log sigma: smallest distance of the closed form of such capped tokens from the cap
RECENT = 4  # number of steps in that mean, with weights that fall with their age
BENT = 0.75  # slope of a token as a share of a quadratic D's: below, D is bent and its slope may be flat
NEARBY = 0.2  # in log sigma: where its slope is measured on both sides
FLATTEST = 0.1  # smallest elasticity by which a standard error is divided
ROUNDING = 1e-4  # in log sigma: batches that differ by less agree
QUADRATIC = 1e-4  # of D: largest deviation of a quadratic D from sum_i g_i = 2 D in a draw, 0.005 % of sigma
MOST_SHRINKS, LARGEST_SHRINK = 12, 1.2  # of the noise at the start: number, and change of log sigma in one
UNSEEN = 0.005  # in log sigma: minimum standard error of class outputs that are not linear
REPEATS = 64  # of the simulation of the rank agreement between two fits
DISORDER = 7.0  # (1 - Spearman of two fits) / tolerance^1.5; Spearman 0.98 at the default, 0.993 at half
MOST_ORDERED = 4096  # in examples with more tokens, the order is not checked

PILOT_SEED = 0  # of the pilot samples that choose the rate of class outputs, independent of the solver's seed
PILOT_PAIRS, MOST_PILOTS = 4, 12  # pairs in a pilot sample, and maximum number of pilot samples
CHECK_PAIRS, MOST_CHECKS = 12, 3  # the same for detecting rare flips of the class, which few pairs miss
SPREAD = 0.16  # largest s.d. of log sigma from one pair at the requested rate: 2 % from 64 pairs
EDGE = 0.3  # the same at the largest rate with sound samples, beyond which there is a cliff
MARGIN = 2  # halvings from that rate to the one that is solved, so that rare samples do not reach the cliff
LARGEST_DROP, CLIMB = 6, 2  # change of the rate between pilot samples: most halvings down, doublings up
LOWEST = 2.0**-48  # smallest share of the requested rate, beyond single precision
ORDER_STREAM, PILOT_STREAM = NORM_STREAM + 1, NORM_STREAM + 2  # streams of random numbers


@dataclass(frozen=True)
class Solver:
    """Settings of the solver; the defaults are chosen for hidden states of trained networks.

    Args:
        draws: noise draws in a batch, including mirror images; the first batch has half as many.
        iterations: maximum number of batches; 0: the closed form only; None: enough for the tolerance if one draw's
            stationarity has a relative standard deviation up to 1/2.
        tolerance: standard error of log sigma (root mean square over an example's tokens) at which to stop.  If tokens
            have close values, batches continue until two such fits would agree on their order (Spearman at least 1 - 7
            tolerance^1.5, 0.98 at the default).
        seed: of the noise.
        max_passes: maximum number of sample passes of an example, without those of the closed form, the pilot samples
            and a last batch on standard errors (at tokens with flat slopes); None: determined by ``iterations``.
        lower_rate: solve at a smaller rate (see ``NoiseFit.rate``) if the scales at the requested one would depend on
            the samples: for states of at most 32 elements, such as class outputs; and in ``TextExplainer.explain`` for
            states that saturate.

    Examples::
        >>> Solver().max_batches, Solver(tolerance=0.01).max_batches, Solver(max_passes=280).max_batches
        (16, 62, 10)
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
        if not 0 < self.tolerance <= 1:
            raise ValueError(
                f"tolerance is {self.tolerance:g}, a standard error of log sigma, of which 1 is a factor of 2.7 "
                "already; give a number above 0 and at most 1, such as 0.1"
            )
        if self.max_passes is not None and self.max_passes < self.draws:
            raise ValueError(
                f"max_passes is {self.max_passes}, and one batch takes {self.draws}; give at least that, or fewer draws"
            )
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; give a non-negative integer")

    @property
    def max_batches(self) -> int:
        """Maximum number of batches of samples."""
        if self.iterations is not None:
            return self.iterations
        if self.max_passes is not None:
            return self.max_passes // self.draws
        return math.ceil(SPARE * self._samples(min(self.tolerance, LOOSEST)) / self.draws - 1e-9)

    @property
    def order_batches(self) -> int:
        """Number of batches after which an example that meets the tolerance is finished, whatever its token order."""
        return max(MIN_BATCHES, math.ceil(self._samples(self.tolerance) / self.draws - 1e-9))

    @staticmethod
    def _samples(tolerance: float) -> float:
        return SAMPLES * (LOOSEST / tolerance) ** 2


@dataclass(frozen=True)
class NoiseFit:
    """The learned noise of each token, and its standard errors; B examples, T tokens.

    Attributes:
        sigma: standard deviation of the noise in input units, (B, T); max_sigma for masked tokens.
        standard_error: of log sigma, (B, T); 0 at the cap.  Times K it is the standard error of the loss.  It is large
            for a token whose slope hardly changes with sigma, so that a wide range of sigma is nearly optimal.
        common_error: standard error of the mean of log sigma over an example's tokens below the cap, (B,), whose
            errors are correlated.
        distortion: D at sigma, (B,), dimensionless.
        regime_index: E = slope / (2 D), (B,), where the slope is lambda, or less if tokens at the cap have less than
            their share rate / n; 1 where the closed form is exact.
        residual: sigma_i dD/dsigma_i / (rate / n) - 1, (B, T), measured on the last batch's draws at the iterate before
            them, which does not depend on them; 0 at the cap, NaN for the closed form alone.
        converged: (B,), whether the standard error, without what flat slopes add to it, met the tolerance; never if D
            saturates.
        saturated: (B,), whether D of a fit that has not converged saturates: E is below 0.65, so that the slope may
            never reach lambda, or reach it at several scales; or a scale still rises from batch to batch; or a token is
            at the cap that a quadratic D would keep below it.  The remedy is a lower rate.
        n_forward, n_backward: sample passes spent on each example, (B,).
        rate: lambda, (B,): the requested one, or a smaller one at which samples determine the scales of a state of few
            elements, such as a class output (``Solver.lower_rate``).
        asked_rate: the requested lambda.
        max_sigma: the cap, (B,).
        input_std: tau, the standard deviation of the inputs' elements, (B,).
        token_size: K, (B, T).
        token_mask: (B, T), false for tokens without noise.
    """

    sigma: Tensor
    standard_error: Tensor
    common_error: Tensor
    distortion: Tensor
    regime_index: Tensor
    residual: Tensor
    converged: Tensor
    saturated: Tensor
    n_forward: Tensor
    n_backward: Tensor
    rate: Tensor
    asked_rate: float
    max_sigma: Tensor
    input_std: Tensor
    token_size: Tensor
    token_mask: Tensor

    def objective(self) -> Tensor:
        """Return L(sigma) = D - rate / n * sum_i log sigma_i at the solved rate, (B,), which the fit minimises."""
        return loss(self.distortion, self.sigma.log(), self.rate, self.token_mask)

    def loss(self) -> Tensor:
        """Return H_i in nats, (B, T): high if the state does not need the token."""
        return information_loss(self.sigma, self.token_size)

    def kept(self) -> Tensor:
        """Return I_i in nats, (B, T), 0 at the cap: high if the state needs the token."""
        return information_kept(self.sigma, self.token_size, self.max_sigma, self.input_std)

    def kept_error(self) -> Tensor:
        """Return the standard error of :meth:`kept` in nats, (B, T)."""
        return kept_slope(self.sigma, self.token_size, self.input_std) * self.standard_error

    @property
    def at_cap(self) -> Tensor:
        """Which tokens are at max_sigma, (B, T)."""
        return self.sigma >= self.max_sigma.unsqueeze(1)


def solve(
    objective: Objective,
    rate: float,
    max_sigma: Tensor,
    input_std: Tensor,
    solver: Solver,
    show_progress: bool = False,
    norms: JacobianNorms | None = None,
    offset: Tensor | None = None,
) -> NoiseFit:
    """Minimise L for every example of the batch; examples that have converged are removed from it.

    1. Jacobian norms give the optimum for small noise in closed form, from which the iteration starts.
    2. For states of few elements, pilot samples choose the rate (:func:`choose_rate`).
    3. Batches of new noise draws give the stationarity sigma_i dD/dsigma_i, and with it a Newton step; the end points
       of the steps are averaged (:class:`SolverState`) until their standard error meets the tolerance.

    Args:
        objective: D and its derivatives.
        rate: lambda > 0.
        max_sigma: cap, (B,).
        input_std: tau, (B,), for the information kept.
        solver: settings.
        show_progress: show a bar over the batches.
        norms: result of ``jacobian_norms`` for this objective, if it is known.
        offset: start, as log sigma minus its closed form, (B, T); None: the closed form.
    """
    if norms is None:
        [norms] = jacobian_norms([objective], solver.seed, PROBES, EXACT)
    cap = max_sigma.to(objective.dtype).log().unsqueeze(1)  # (B, 1)
    passes = norms.passes.clone()
    state = at_closed_form(objective, norms, rate, cap)
    if offset is not None:
        state.log_sigma = (state.log_sigma + offset).minimum(cap)
    # without any gradient, the closed form is not defined at any rate
    has_jacobian = norms.exact & (state.norms > 0).any(1)
    few = has_jacobian & (solver.max_batches > 0) & solver.lower_rate
    parts: list[SolverState] = []
    with tqdm(desc="noise", disable=not show_progress) as bar:
        for rows in _split(~few, objective):
            parts += _iterate(objective, state.at(rows), solver, passes, bar)
        for rows, own in zip(_split(few, objective), _split(few[norms.exact], objective)):
            start = replace(state.at(rows), jacobian=norms.jacobian[own])
            choose_rate(objective, start, passes)
            parts += _iterate(objective, start, solver, passes, bar)
    return _fit(objective, parts, rate, input_std, passes)


def solve_together(
    objectives: Sequence[Objective],
    rate: float,
    max_sigma: Sequence[Tensor],
    input_std: Tensor,
    solver: Solver,
    show_progress: bool = False,
    on_fit: Callable[[], None] | None = None,
) -> list[NoiseFit]:
    """Solve for several states of one model, inputs and noise layer, which share forward passes if possible.

    Each state starts at the distance from its closed form at which the one before it ended, because consecutive layers
    have similar distances.  ``on_fit`` is called after each state.
    """
    fits: list[NoiseFit] = []
    offset = None
    few = len(objectives) > 1 and solver.max_batches > 0
    found = jacobian_norms(objectives, solver.seed, FEW_PROBES if few else PROBES, EXACT)
    for objective, norms, caps in zip(objectives, found, max_sigma):
        fit = solve(objective, rate, caps, input_std, solver, show_progress, norms, offset)
        closed = at_closed_form(objective, norms, rate, caps.log().unsqueeze(1)).log_sigma
        certain = fit.converged.unsqueeze(1) & ~fit.at_cap
        offset = torch.where(certain, fit.sigma.log() - closed, 0.0)
        fits.append(fit)
        if on_fit is not None:
            on_fit()
    return fits


@dataclass
class SolverState:
    """Mutable state of the examples that are being solved; b examples, T tokens, N input elements.

    Attributes:
        example: number of the example in the batch, (b,).
        rate: lambda, (b,).
        cap: log of max_sigma, (b, 1).
        norms: c of the closed form, (b, T).
        closed: log sigma by the closed form at this rate, (b, T).
        log_sigma: the iterate, (b, T): the average of the end points of the batches' Newton steps.
        place: the average of their starting points, where D was measured, (b, T).
        variance: of log sigma, (b, T).
        common_variance: variance of its mean over the tokens below the cap, (b,).
        excess: increase of the variance if the last batch disagrees with the average before it, (b, T).
        distortion: D at ``place`` on average, (b,).
        power: sum_i g_i / D there, (b,): 2 if D is quadratic, less if it saturates.
        residual: sigma_i dD/dsigma_i / (rate / n) - 1 of the last batch, (b, T).
        free: which tokens are below the cap, (b, T).
        move: the last batch's Newton step, (b, T).
        drift: the mean step of the last batches that were compared, (b, T): 0 up to noise if the average has arrived.
        weight: number of pairs of samples in the average, (b, T).
        compared: number of batches that were compared with the average before them, (b,).
        surprise: sum over these of the squared difference divided by its variance, mean over tokens, (b,).
        elasticity: of each token's slope in its own log sigma, (b, T): 2 if D is quadratic, 0 if the slope is flat.
        gradients: of earlier pairs, for control variates, (b, R, N).
        jacobian: of states of few elements, (b, M, N); M = 0 for others.
        sound: whether samples determine the scales at this rate, (b,).
        converged: whether the example has converged, (b,).
    """

    example: Tensor
    rate: Tensor
    cap: Tensor
    norms: Tensor
    closed: Tensor
    log_sigma: Tensor
    place: Tensor
    variance: Tensor
    common_variance: Tensor
    excess: Tensor
    distortion: Tensor
    power: Tensor
    residual: Tensor
    free: Tensor
    move: Tensor
    drift: Tensor
    weight: Tensor
    compared: Tensor
    surprise: Tensor
    elasticity: Tensor
    gradients: Tensor
    jacobian: Tensor
    sound: Tensor
    converged: Tensor

    @property
    def is_layer(self) -> bool:
        """Whether the state is a layer's, and not of so few elements that its Jacobian is known."""
        return self.jacobian.shape[1] == 0

    def at(self, rows: Tensor) -> SolverState:
        """Return the part of some examples (indices, or a mask of b)."""
        return SolverState(**{name: value[rows] for name, value in vars(self).items()})

    def without_gradients(self) -> SolverState:
        """Return a copy without the large gradients, which only further batches need."""
        return replace(self, gradients=self.gradients[:, :0])

    def take_in(self, step: Step) -> None:
        """Add a batch's Newton estimate to the average.

        A long step in the direction of the one before restarts the average.  Where D bends, a token's own average is
        restarted as long as its steps go up, because Newton's steps for a quadratic D are too short.  The error of a
        Newton step is proportional to its length, so a batch with a longer step has a smaller weight.
        """
        free, tiny = step.free, torch.finfo(self.log_sigma.dtype).tiny
        noise = token_mean(step.variance, free) / step.count
        length = (token_mean(step.move.square(), free) - noise).clamp(min=0)  # squared, beyond noise
        far = length > (3 * noise).clamp(min=LONG_STEP**2)
        new = step.count * (noise + tiny) / (noise + tiny + NEWTON_ERROR**2 * length)
        spread = step.variance / step.count
        variance = (spread + (NEWTON_ERROR * step.move).square()) * free
        moved = NEWTON_ERROR**2 * token_mean(step.move.square(), free)
        common = step.common_variance / step.count + moved
        estimate = torch.minimum(self.log_sigma + step.move, self.cap)
        # if D depends steeply on the differences between tokens, a layer's steps may overshoot; their average does not
        onwards = (step.move * self.move).sum(1) > 0
        old = torch.where((far & (onwards | (not self.is_layer))).unsqueeze(1), 0.0, self.weight)
        new, again = new.unsqueeze(1), (old > 0).any(1)
        if self.is_layer:
            # variance of a sample, in this batch and in earlier ones: batches with outliers have a smaller weight
            here, before = (
                v.clamp(min=tiny).unsqueeze(1)
                for v in (noise * step.count, token_mean(self.variance * old, free))
            )
            new = torch.where(again.unsqueeze(1), new * (OUTLIER * before / here).clamp(max=1.0), new)
            old = old * (OUTLIER * here / before).clamp(max=1.0)
        apart, explained = (estimate - self.log_sigma).square() * free, variance + self.variance
        # for tokens that moved by more than two standard errors: Newton's step is too long if D grows as sigma^4
        self.excess = torch.where(again.unsqueeze(1), (apart - 4 * explained).clamp(min=0) / 4, 0.0)
        gap, expected = token_mean(apart, free), token_mean(explained, free).clamp(min=ROUNDING**2)
        self.surprise = torch.where(again, self.surprise + gap / expected, 0.0)
        self.compared = torch.where(again, self.compared + 1, 0.0)
        latest = (step.move - self.drift) / self.compared.clamp(1, RECENT).unsqueeze(1)
        self.drift = torch.where(again.unsqueeze(1), self.drift + latest, 0.0)
        self.residual, self.free, self.move = step.residual, free, step.move
        lags = self.is_bent() & (self.drift > LAG * self._drift_error())
        self.weight = torch.where(lags, 0.0, old) + new
        share = new / self.weight
        whole = share.amin(1)
        self.place = self.place.lerp(self.log_sigma, share)
        self.log_sigma = self.log_sigma.lerp(estimate, share)
        self.distortion = self.distortion.lerp(step.distortion, whole)
        self.power = self.power.lerp(step.power, whole)
        self.variance = (1 - share).square() * self.variance + share.square() * variance
        self.common_variance = (1 - whole).square() * self.common_variance + whole.square() * common

    def error(self) -> Tensor:
        """Return the variance of log sigma, (b, T), for class outputs with disagreement of batches and rare samples."""
        if self.is_layer:
            return self.variance + self._flatness()
        return self.variance * self.inflation().unsqueeze(1) + self.excess + self._unseen().unsqueeze(1)

    def common_error(self) -> Tensor:
        """Return the variance of the mean of log sigma over the tokens below the cap, (b,)."""
        if self.is_layer:
            count = self.free.sum(1).clamp(min=1)
            return self.common_variance + token_mean(self._flatness(), self.free) / count
        return self.common_variance * self.inflation() + self._unseen()

    def inflation(self) -> Tensor:
        """Return the ratio of the batches' scatter to what their variances explain, at least 1, (b,)."""
        return torch.where(self.compared > 0, self.surprise / self.compared, 1.0).clamp(min=1.0)

    def is_bent(self) -> Tensor:
        """Return which tokens of a layer's state are so far above the closed form that D bends, (b, T).

        At the optimum, their slope is then a small share of a quadratic D's, and may hardly change with sigma.
        """
        share = (2 * (self.closed - self.log_sigma)).exp()
        return self.free & (self.closed < self.cap) & (share < BENT) & self.is_layer

    def saturates_at_cap(self) -> Tensor:
        """Return whether a layer's state saturates in a token at the cap, (b,): a quadratic D would keep it below."""
        return (~self.free & (self.closed < self.cap - BELOW_CAP)).any(1) & self.is_layer

    def has_arrived(self) -> Tensor:
        """Return whether no token of a layer's state still moves in one direction, (b,).

        If D saturates in a token, its slope hardly changes with sigma: Newton's steps for a quadratic D are far too
        short then.
        """
        if not self.is_layer:
            return torch.ones_like(self.sound)
        limit = torch.where(self.saturates_at_cap(), LAG, DRIFT).unsqueeze(1)
        return ((self.drift.abs() <= limit * self._drift_error()) | ~self.free).all(1)

    def _drift_error(self) -> Tensor:
        """Return the standard error of ``drift``, (b, T)."""
        # of a mean of so many steps, each of which also undoes the noise in the average from which it starts
        steps = torch.where(self.compared > RECENT, 2 * RECENT - 1.0, self.compared.clamp(min=1))
        scatter = (1 + (self.compared + 1) / steps).unsqueeze(1) * self.variance
        return scatter.clamp(min=ROUNDING**2).sqrt()

    def _flatness(self) -> Tensor:
        """Return what a slope that is flatter than a quadratic D's adds to the variance of log sigma, (b, T)."""
        return self.variance * ((2 / self.elasticity.clamp(FLATTEST, 2.0)).square() - 1)

    def _unseen(self) -> Tensor:
        """Return the variance that unseen rare samples may add if a class output is not linear, (b,)."""
        scatter = token_mean(self.variance, self.variance > 0) * self.inflation()
        return (scatter > ROUNDING**2 / 100).to(scatter.dtype) * UNSEEN**2


def at_closed_form(objective: Objective, norms: JacobianNorms, rate: float, cap: Tensor) -> SolverState:
    """Return the state before any sample: the optimum for small noise, and its variance from the Jacobian norms."""
    c, active = norms.estimates.mean(0), objective.groups.active
    zeros, vectors = torch.zeros_like(c[:, 0]), c.new_zeros(len(c), 0, objective.origin.shape[1])
    rates = torch.full_like(zeros, rate)
    log_sigma = closed_log_sigma(c, rates, active, cap)
    free = active & (log_sigma < cap)
    logs = norms.estimates / c.clamp(min=torch.finfo(c.dtype).tiny) / 2 * free  # log sigma = -1/2 log c
    return SolverState(
        example=torch.arange(len(c), device=c.device),
        rate=rates,
        cap=cap,
        norms=c,
        closed=log_sigma,
        log_sigma=log_sigma,
        place=log_sigma,
        variance=logs.var(0) / len(logs),
        common_variance=token_mean(logs, free).var(0) / len(logs),
        excess=torch.zeros_like(c),
        distortion=(log_sigma.exp().square() * c * active).sum(1),
        power=torch.full_like(zeros, 2.0),
        residual=torch.full_like(c, torch.nan),
        free=free,
        move=torch.zeros_like(c),
        drift=torch.zeros_like(c),
        weight=torch.zeros_like(c),
        compared=zeros,
        surprise=zeros,
        elasticity=torch.full_like(c, 2.0),
        gradients=vectors,
        jacobian=vectors,
        sound=torch.ones_like(zeros, dtype=torch.bool),
        converged=torch.zeros_like(zeros, dtype=torch.bool),
    )


def closed_log_sigma(norms: Tensor, rate: Tensor, active: Tensor, cap: Tensor) -> Tensor:
    """Return log sigma by the closed form, (b, T); the cap for tokens without a gradient or without noise."""
    theta = closed_form(norms, 1.0, active.sum(1)) + rate.log().unsqueeze(1) / 2
    return torch.where(active, theta, torch.inf).minimum(cap)


def _split(mask: Tensor, objective: Objective) -> list[Tensor]:
    """Split the marked examples into parts whose gradients fit in memory, whatever the batch size."""
    most = max(1, KEPT_ELEMENTS // (KEPT_GRADIENTS * objective.origin.shape[1]))
    return [rows for rows in mask.nonzero()[:, 0].split(most) if len(rows)]


def _iterate(
    objective: Objective, state: SolverState, solver: Solver, passes: Tensor, bar: Any
) -> list[SolverState]:
    """Draw batches of samples until every example has converged; add to ``passes``, (B,)."""
    draws = Draws([x.shape[1:] for x in objective.model.origin], solver.seed)
    done: list[SolverState] = []
    for index in range(solver.max_batches):
        count = max(2, int(solver.draws // 2 * (1 if index else FIRST_BATCH)))
        noise = draws.batch(index, count).to(objective.device, objective.dtype)
        pairs = _pairs(objective, state, noise, passes)
        if index == 0:
            pairs = _from_small_noise(objective, state, pairs, noise, passes)
        if index == 0 and state.is_layer:
            exact = _is_quadratic(pairs) & (token_mean(state.variance, state.free) <= solver.tolerance**2)
            done.append(_by_closed_form(objective, state.at(exact)))
            state, pairs = state.at(~exact), pairs.at(~exact)
            if not len(state.example):
                break
        state.take_in(_step(objective, state, pairs, noise))
        state.gradients = torch.cat([pairs.gradient.transpose(0, 1), state.gradients], 1)[:, :KEPT_GRADIENTS]
        error = state.error()
        size = token_mean(error, state.free).sqrt()
        # a second batch has to agree, unless there is no scatter because the state is linear
        agrees = (state.compared > 0) | (size < ROUNDING)
        saturated = state.power < 2 * SATURATED
        arrived = state.has_arrived()
        state.converged = (size <= solver.tolerance) & agrees & arrived & state.sound & ~saturated
        finished = state.converged
        if finished.any() and index + 1 < solver.order_batches:
            jitter = Draws([(objective.groups.n_tokens,)], solver.seed).batch(ORDER_STREAM, REPEATS).to(noise)
            finished = finished & keep_their_order(
                state.log_sigma, error.sqrt(), state.free, solver.tolerance, jitter
            )
        if index + 1 >= max(MIN_BATCHES, solver.max_batches // 2):
            finished = finished | saturated  # more samples do not help
        if index + 1 == solver.max_batches:
            finished = torch.ones_like(finished)
        done.append(state.at(finished).without_gradients())
        _measure_elasticity(objective, done[-1], noise[: len(noise) // 2], passes)
        state = state.at(~finished)
        bar.update()
        if not len(state.example):
            break
    return [*done, state.without_gradients()]


def _measure_elasticity(objective: Objective, state: SolverState, noise: Tensor, passes: Tensor) -> None:
    """Measure the elasticity of bent tokens' slopes, on which the standard errors of converged examples depend.

    The same draws, whose errors are nearly the same, give the slope on both sides of the optimum.
    """
    bent = state.is_bent() & state.converged.unsqueeze(1)
    rows = bent.any(1).nonzero()[:, 0]
    if not len(rows):
        return
    below, above = state.log_sigma - bent * NEARBY, (state.log_sigma + bent * NEARBY).minimum(state.cap)
    low, high = (
        _pairs(objective, replace(state.at(rows), log_sigma=place[rows]), noise, passes)
        .stationarity.mean(0)
        .clamp(min=1e-30)
        for place in (below, above)
    )
    found = (high / low).log() / (above - below)[rows]
    state.elasticity[rows] = torch.where(bent[rows], found, state.elasticity[rows])


def _pairs(objective: Objective, state: SolverState, noise: Tensor, passes: Tensor) -> Evaluation:
    """Return pairs of samples at the iterate."""
    passes[state.example] += 2 * len(noise)
    return antithetic_pairs(objective, state.example, state.log_sigma.exp(), noise)


def _from_small_noise(
    objective: Objective, state: SolverState, pairs: Evaluation, noise: Tensor, passes: Tensor
) -> Evaluation:
    """Shrink an example's noise until D is not above the rate; return the pairs of samples there.

    D = rate / p at the minimum that continues from small noise, with p = 2 if D is quadratic and more otherwise.  At
    larger noise, a state that saturates has other minima ("everything at the cap"), from which no step returns.
    """
    for _ in range(MOST_SHRINKS):
        large = (pairs.distortion.mean(0) > state.rate).nonzero()[:, 0]
        if not len(large):
            break
        ratio = state.rate[large] / 2 / pairs.distortion[:, large].mean(0)
        shift = (
            (0.5 * ratio.log()).clamp(min=-LARGEST_SHRINK).unsqueeze(1).expand(-1, state.log_sigma.shape[1])
        )
        state.log_sigma = state.log_sigma.index_add(0, large, shift)
        pairs = pairs.put(large, _pairs(objective, state.at(large), noise, passes))
    return pairs


def _is_quadratic(pairs: Evaluation) -> Tensor:
    """Return whether D is quadratic along every draw, (b,): by Euler's theorem sum_i g_i = 2 D then."""
    gap = pairs.stationarity.sum(2) - 2 * pairs.distortion
    return gap.square().mean(0).sqrt() <= QUADRATIC * pairs.distortion.mean(0)


def _by_closed_form(objective: Objective, state: SolverState) -> SolverState:
    """Return the exact optimum of examples with a quadratic D, which need no further samples."""
    active = objective.groups.active[state.example]
    parts = state.closed.exp().square() * state.norms * active  # each token's part of D
    state.log_sigma = state.place = state.closed
    state.distortion = parts.sum(1)
    state.residual = residual(2 * parts, state.rate, active.sum(1))
    state.converged = state.sound
    return state


def _step(objective: Objective, state: SolverState, pairs: Evaluation, noise: Tensor) -> Step:
    """Return the Newton step from the pairs, minus control variates."""
    groups, sigma = objective.groups.at(state.example), state.log_sigma.exp()
    if state.is_layer:
        # from the closed form: an expectation from the same samples would bias the result
        expected = state.norms * sigma.square() * groups.active
        seen = without_quadratic_part(pairs, noise, groups, state.gradients.transpose(0, 1), expected)
    else:
        seen = without_linear_part(pairs, noise, groups, sigma, state.jacobian)
    return newton_step(state.log_sigma, seen, groups.active, state.cap, state.rate)


@dataclass(frozen=True)
class Step:
    """A Newton step from S samples, with the variance of a single sample's step."""

    count: int
    move: Tensor  # (b, T)
    variance: Tensor  # (b, T)
    common_variance: Tensor  # variance of the part that all tokens share, (b,)
    residual: Tensor  # (b, T)
    distortion: Tensor  # (b,)
    power: Tensor  # p = sum_i g_i / D, (b,)
    free: Tensor  # (b, T)


def newton_step(log_sigma: Tensor, seen: Evaluation, active: Tensor, cap: Tensor, rate: Tensor) -> Step:
    """Return the step from ``log_sigma`` towards sigma_i dD/dsigma_i = rate / n.

    It divides the differences between tokens by 2, and a change of scale that all tokens share by the elasticity of
    the slope sum_i g_i.  If D is a power of sigma, that is p = sum_i g_i / D, 2 for a quadratic D; an undamped fixed
    point iteration oscillates if p > 4.  If D saturates, D = a x - b x^2 + ... with x = sigma^2, p is below 2 and the
    elasticity is 2 p - 2 up to terms in b^2: it is 0 where the slope is largest, and there is no minimum at larger
    sigma.

    Args:
        log_sigma: (b, T).
        seen: D and g of S samples.
        active: which tokens bear noise, (b, T).
        cap: log of max_sigma, (b, 1).
        rate: lambda, (b,).
    """
    count = len(seen.stationarity)
    each = residual(seen.stationarity, rate, active.sum(1))  # for each sample, (S, b, T)
    mean = each.mean(0)
    # a token at the cap is free only if its residual pushes it inwards (Karush-Kuhn-Tucker conditions)
    free = active & ((log_sigma < cap - 1e-6) | (mean > 0))
    distortion = seen.distortion.mean(0)
    slope = seen.stationarity.mean(0)
    power, own = ((slope * of).sum(1) / distortion.clamp(min=1e-30) for of in (active, free))
    # tokens at the cap contribute to D and do not move: a saturating D is treated as quadratic then
    saturates = (free == active).all(1) & (power < 2)
    elasticity = torch.where(saturates, 2 * power - 2, own.clamp(min=2.0))
    bounded = elasticity.clamp(LEAST_ELASTICITY, LARGEST_ELASTICITY)

    shared = token_mean(each, free)  # (S, b)
    per_sample = (each - shared.unsqueeze(-1)) / 2 + (shared / bounded).unsqueeze(-1)
    log_shared = _log1p(shared.mean(0), shared.var(0) / count)
    common = (-log_shared / bounded).clamp(-LARGEST_STEP, LARGEST_STEP)
    common = torch.where(elasticity < 0, common.clamp(max=0.0), common)  # no minimum at larger sigma
    differences = (log_shared.unsqueeze(1) - _log1p(mean, each.var(0) / count)) / 2
    return Step(
        count=count,
        move=(common.unsqueeze(1) + differences.clamp(-LARGEST_STEP, LARGEST_RISE)) * free,
        variance=per_sample.var(0) * free,
        common_variance=(shared / bounded).var(0),
        residual=mean,
        distortion=distortion,
        power=power,
        free=free,
    )


def _log1p(mean: Tensor, variance: Tensor) -> Tensor:
    """Return log(1 + r) minus its bias for a mean of that variance; linear if r is too noisy for a logarithm."""
    ratio = (1 + mean).clamp(min=0.1)
    clear = variance < 0.1
    return torch.where(
        clear, ratio.log() + (variance / 2 / ratio.square()).clamp(max=0.2), mean.clamp(-1.0, 1.0)
    )


def choose_rate(objective: Objective, state: SolverState, passes: Tensor) -> None:
    """Set the rate at which samples determine the scales, the start there, and whether there is one (``sound``).

    At the usual rate a confident classifier's D comes from rare samples that flip the class: no affordable number of
    samples determines the tokens' scales there.  The example is then solved at a smaller rate, found from pilot
    samples that are the same for all seeds, so that all seeds solve the same problem.  If pairs scatter too much, the
    rate is lowered by a factor computed from their scatter, which is proportional to the rate for small noise; then it
    is raised, from the small-noise side, as long as the scatter is acceptable.  The solved rate is below the largest
    rate found this way, unless that is the requested one.

    Args:
        objective: D and its derivatives.
        state: of examples whose Jacobian is known, at the requested rate.
        passes: increased by the passes made, (B,).
    """
    draws = Draws([x.shape[1:] for x in objective.model.origin], PILOT_SEED)
    active, caps, asked = objective.groups.active[state.example], state.cap, state.rate

    def closed(rate: Tensor) -> Tensor:
        return closed_log_sigma(state.norms, rate, active, caps)

    def pilot(
        rows: Tensor, log_sigma: Tensor, rate: Tensor, stream: int, count: int
    ) -> tuple[Step, Tensor, Tensor]:
        noise = draws.batch(PILOT_STREAM + stream, count).to(objective.device, objective.dtype)
        here = replace(state.at(rows), log_sigma=log_sigma, rate=rate)
        step = _step(objective, here, _pairs(objective, here, noise, passes), noise)
        return step, *_scatter(step, active[rows], rate)

    rate, log_sigma = asked.clone(), closed(asked)
    # the largest sound rate so far, and log sigma minus its closed form there
    largest, offset = asked.clone(), torch.zeros_like(log_sigma)
    sound, steady = torch.zeros(2, len(rate), dtype=torch.bool, device=rate.device)
    looking = torch.arange(len(rate), device=rate.device)
    for index in range(MOST_PILOTS):
        step, scatter, halvings = pilot(looking, log_sigma[looking], rate[looking], index, PILOT_PAIRS)
        is_good, at_asked = halvings == 0, rate[looking] == asked[looking]
        moved = torch.minimum(log_sigma[looking] + step.move, caps[looking])
        noise_of = token_mean(step.variance, step.free) / PILOT_PAIRS
        is_near = token_mean(step.move.square(), step.free) - noise_of <= LONG_STEP**2
        found, before = is_good & is_near, sound[looking]
        offset[looking[found]] = (moved - closed(rate)[looking])[found]
        largest[looking[found]] = rate[looking[found]]
        sound[looking] = before | found
        steady[looking] = found & at_asked & (scatter <= SPREAD)
        climbing, falling = found & ~at_asked, ~is_good & ~before
        falling &= rate[looking] > LOWEST * asked[looking]
        change = torch.where(climbing, float(CLIMB), torch.where(falling, -halvings, 0.0))
        rate[looking] = (rate[looking] * torch.exp2(change)).minimum(asked[looking])
        afresh = (closed(rate) + offset)[looking].minimum(caps[looking])
        log_sigma[looking] = torch.where((climbing | falling).unsqueeze(1), afresh, moved)
        looking = looking[climbing | falling | (is_good & ~is_near)]
        if not len(looking):
            break
    rate = torch.where(steady, largest, largest * 0.5**MARGIN)
    offset = torch.where(steady.unsqueeze(1), offset, offset * 0.5**MARGIN)  # proportional to the rate
    # a larger pilot sample at twice the noise must not scatter too much, either
    log_sigma, looking = (closed(rate) + offset).minimum(caps), sound.nonzero()[:, 0]
    for index in range(MOST_CHECKS):
        if not len(looking):
            break
        wide = (log_sigma[looking] + MARGIN * math.log(2) / 2).minimum(caps[looking])
        _, _, halvings = pilot(looking, wide, rate[looking] * 2**MARGIN, MOST_PILOTS + index, CHECK_PAIRS)
        rate[looking] *= torch.exp2(-halvings)
        offset[looking] *= torch.exp2(-halvings).unsqueeze(1)
        log_sigma = (closed(rate) + offset).minimum(caps)
        sound[looking] = rate[looking] > LOWEST * asked[looking]
        looking = looking[halvings > 0]
    state.rate, state.closed, state.log_sigma, state.sound = rate, closed(rate), log_sigma, sound


def _scatter(step: Step, active: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    """Return the standard deviation of log sigma from one pair, and the number of halvings of the rate, (b,) each."""
    # where no token is below the cap, the scatter of all active tokens counts
    counts = step.free | (active & ~step.free.any(1, keepdim=True))
    scatter = token_mean(step.variance, counts).sqrt()
    # D = rate / p at the optimum that continues from small noise, with p at least 2
    most = torch.maximum((scatter / EDGE).log2(), (step.distortion / rate).clamp(min=0).log2())
    halvings = most.ceil().clamp(0, LARGEST_DROP)
    return scatter, torch.where(scatter.isfinite(), halvings, float(LARGEST_DROP))


def keep_their_order(
    log_sigma: Tensor, errors: Tensor, free: Tensor, tolerance: float, noise: Tensor
) -> Tensor:
    """Return whether another fit with these errors would order the free tokens alike, (b,); True for many tokens.

    Args:
        log_sigma, errors: log sigma and its standard errors, (b, T).
        free: which tokens are below the cap, (b, T).
        tolerance: of the fit.
        noise: standard normal numbers for the simulation, (repeats, T).
    """
    alike: Tensor = expected_agreement(log_sigma, errors, free, noise) >= 1 - DISORDER * tolerance**1.5
    return alike | (free.sum(1) > MOST_ORDERED)


def expected_agreement(values: Tensor, errors: Tensor, known: Tensor, noise: Tensor) -> Tensor:
    """Return the expected Spearman correlation of these values with another estimate with the same errors, (b,).

    Two such estimates differ by normal errors of sqrt(2) times the standard error, which is simulated.

    Args:
        values: one per token, all different, (b, T).
        errors: their standard errors, (b, T).
        known: which tokens are ranked, (b, T); fewer than two always agree.
        noise: standard normal, (repeats, T).

    Examples::
        >>> noise = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
        >>> values, known = torch.tensor([[0.0, 1.0, 2.0]]), torch.ones(1, 3, dtype=torch.bool)
        >>> [round(float(expected_agreement(values, torch.full((1, 3), e), known, noise)), 2) for e in (0.1, 1.0)]
        [1.0, 0.63]
    """
    place = values.masked_fill(~known, torch.inf)
    moved = place + 2**0.5 * errors * noise.unsqueeze(1)  # (repeats, b, T)
    squares = (_ranks(moved) - _ranks(place)).square().sum(-1).float().mean(0)
    n = known.sum(-1)
    return 1 - 6 * squares / (n * (n.square() - 1)).clamp(min=1)


def _ranks(values: Tensor) -> Tensor:
    return values.argsort(dim=-1, stable=True).argsort(-1)


def token_mean(values: Tensor, free: Tensor) -> Tensor:
    """Return the mean over the free tokens, the last dimension; 0 if there are none."""
    return torch.where(free, values, 0.0).sum(-1) / free.sum(-1).clamp(min=1)


def _fit(
    objective: Objective,
    parts: list[SolverState],
    rate: float,
    input_std: Tensor,
    passes: Tensor,
) -> NoiseFit:
    """Assemble the result, with the examples in their order."""
    order = torch.cat([part.example for part in parts]).argsort()

    def whole(read: Callable[[SolverState], Tensor]) -> Tensor:
        return torch.cat([read(part) for part in parts])[order]

    groups, log_sigma, rates = objective.groups, whole(lambda s: s.log_sigma), whole(lambda s: s.rate)
    cap, closed = whole(lambda s: s.cap), whole(lambda s: s.closed)
    free = groups.active & (log_sigma < cap - 1e-6)
    # "everything at the cap" is a second minimum of states that saturate, excluded if the closed form is below the cap
    lost = ~free.any(1) & (groups.active & (closed < cap - 1e-6)).any(1)
    share = (rates / groups.counts).unsqueeze(1)  # (B, 1)
    # D was measured at the iterates; at the optimum each log sigma moves it by rate / n
    measured, residuals = whole(lambda s: s.distortion), whole(lambda s: s.residual)
    moved = ((log_sigma - whole(lambda s: s.place)) * free * share).sum(1)
    at_sigma = torch.where(measured > 0, (measured + moved).maximum(measured / 2), 0.0)
    # at the optimum a token below the cap has sigma dD/dsigma = rate / n, one at the cap less
    slope = (torch.where(free, 1.0, (1 + residuals).clamp(0, 1)) * groups.active * share).sum(1)
    # the closed form alone assumes that D is quadratic
    slope = torch.where(slope.isnan(), 2 * at_sigma, slope)
    power = whole(lambda s: s.power)
    # if D saturates there may be no optimum, and the measured slope is used
    is_saturated = power < 2 * SATURATED
    slope = torch.where(is_saturated, power.clamp(min=0) * at_sigma, slope)
    converged = whole(lambda s: s.converged) & ~lost
    error, common_error = whole(SolverState.error), whole(SolverState.common_error)
    return NoiseFit(
        sigma=torch.where(free, log_sigma, cap).exp().minimum(cap.exp()).float(),
        standard_error=torch.where(free, error, 0.0).sqrt().float(),
        common_error=torch.where(free.any(1), common_error.sqrt(), 0.0).float(),
        distortion=at_sigma.float(),
        regime_index=regime_index(slope, at_sigma).float(),
        residual=(residuals * free).float(),
        converged=converged,
        saturated=~converged & (is_saturated | whole(lambda s: s.saturates_at_cap() | ~s.has_arrived())),
        n_forward=passes + objective.clean_passes,
        n_backward=passes,
        rate=rates.float(),
        asked_rate=rate,
        max_sigma=cap[:, 0].exp().float(),
        input_std=input_std,
        token_size=groups.sizes,
        token_mask=groups.active,
    )
