"""Fits of states of few elements, such as class outputs: with a known Jacobian, and at a lower rate where need be.

Two things make such states harder than layers.  A single output gives sigma_i dD/dsigma_i a relative standard
deviation of sqrt(n + 1) a sample even where it is linear; but there the linear model, with D_lin(eps) =
sum_m (J_m . sigma eps)^2, says all of it on the same noise, and its mean is known: what is left after taking it out,
over a sample and its mirror image, shrinks with the square of the noise (control variates and antithetic sampling:
Owen 2013, ch. 8).  And
at the usual rate a confident classifier's D is made of the rare samples that flip the class: no affordable number of
samples determines the tokens' scales there.  Then the example is solved at the largest rate at which they do, found
from pilot samples that are the same for all seeds, so that all seeds solve the same problem.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from interp_plugin.method.objective import Objective, closed_form
from interp_plugin.method.refinement import LONG_STEP, NEWTON_ERROR, Step, keep_their_order, newton_step
from interp_plugin.method.sampling import Draws
from interp_plugin.method.trace import examples_at_once, token_mean

PILOT_PAIRS = 4
CHECK_PAIRS = 12  # that look for rare samples, which few pairs miss
MOST_CHECKS = 3
PILOT_SEED = 0  # whatever the solver's
PILOT_ROUND = 2**32 + 2  # a stream of its own
MOST_PILOTS = 12
SPREAD = 0.16  # standard deviation of log sigma by one pair at the rate asked for, at most: 64 pairs make 2 %
EDGE = 0.3  # the same at the largest rate where samples are sound; there is a cliff beyond it
MARGIN = 2  # halvings from such a rate to the one that is solved: rare samples must not reach the cliff
LARGEST_DROP = 6  # of the rate, in halvings, from one set of pilot samples to the next
CLIMB = 2  # halvings of the rate that are tried to be taken back at a time
LARGEST = 1e6  # variance of log sigma that anything is made of
LOWEST = 2.0**-48  # of the rate asked for; nothing is left of it in single precision
UNSEEN = 0.005  # of log sigma: the least standard error of what is not linear
ROUNDING = 1e-4  # of log sigma: rounds that differ by less agree
LARGEST_RISE = 0.3  # of log sigma in a step: the minimum is followed from the small-noise side


@dataclass(frozen=True)
class Solved:
    """What the samples say of b examples.

    Attributes:
        example: (b,).
        theta: log sigma, (b, T).
        variance: of it, (b, T).
        common_variance: of its mean over the tokens below the cap, (b,).
        distortion: D, measured at ``place`` on average, (b,).
        place: log sigma, (b, T).
        residual: sigma_i dD/dsigma_i / (rate / n) - 1 of the last samples, (b, T).
        rate: lambda, (b,).
        converged: (b,).
    """

    example: Tensor
    theta: Tensor
    variance: Tensor
    common_variance: Tensor
    distortion: Tensor
    place: Tensor
    residual: Tensor
    rate: Tensor
    converged: Tensor


@dataclass(frozen=True)
class Settings:
    """How hard to look.

    Attributes:
        rounds: at most.
        order_rounds: after which tokens that would not keep their order keep no example that meets the tolerance.
        pairs: of samples in a round; the first takes half of them.
        tolerance: standard error of log sigma to stop at.
        seed: of the samples.
        jitter: gives standard normal numbers, (repeats, T), to try the order of tokens with.
    """

    rounds: int
    order_rounds: int
    pairs: int
    tolerance: float
    seed: int
    jitter: Callable[[], Tensor]


def solve_few(
    objective: Objective,
    examples: Tensor,
    jacobian: Tensor,
    rate: float,
    cap: Tensor,
    settings: Settings,
    passes: Tensor,
) -> list[Solved]:
    """Fit the given examples (b,), whose Jacobian (b, M, N) is that of ``Curvature``; adds to ``passes``, (B,).

    1. The closed form, exact where the state is linear.
    2. Pilot samples choose the rate and the place to start from.
    3. Rounds of samples: Newton steps from each, averaged, until the standard error meets the tolerance.
    """
    found = []
    for rows in torch.arange(len(examples), device=examples.device).split(examples_at_once(objective)):
        few = _Few(objective, examples[rows], jacobian[rows], cap[examples[rows]], passes)
        rates, theta, sound = few.pilot(rate)
        found.append(few.refine(rates, theta, sound, settings))
    return found


class _Few:
    """Some examples of few state elements: their samples less the linear model's, and the two stages of the fit."""

    def __init__(
        self, objective: Objective, examples: Tensor, jacobian: Tensor, cap: Tensor, passes: Tensor
    ) -> None:
        self.objective, self.examples, self.jacobian, self.cap = objective, examples, jacobian, cap
        self.passes = passes
        self.groups = objective.groups.at(examples)
        self.n = self.groups.active.sum(1, keepdim=True)
        self.curvature = self.groups.collect(jacobian.square().sum(1))  # (b, T)

    def closed(self, rates: Tensor) -> Tensor:
        """log sigma by the closed form at each example's rate, not above the cap, (b, T)."""
        theta = closed_form(self.curvature, 1.0, self.n[:, 0]) + rates.log().unsqueeze(1) / 2
        return torch.where(self.groups.active, theta, torch.inf).minimum(self.cap)

    def step(self, some: Tensor, theta: Tensor, rates: Tensor, noise: Tensor) -> Step:
        """The Newton step of some of the examples (indices) from pairs of samples at theta (b', T); noise is (S, N)."""
        stationarity, distortion = self._pairs(some, theta, noise)
        active, share = self.groups.active[some], rates.unsqueeze(1) / self.n[some]
        return newton_step(theta, stationarity, distortion, active, self.cap[some], share)

    def _pairs(self, some: Tensor, theta: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Stationarity (S, b', T) and D (S, b') of each sample with its mirror image, less the linear model's error."""
        groups, sigma = self.groups.at(some), theta.exp()
        seen = self.objective.evaluate(self.examples[some], sigma, torch.cat([noise, -noise]))
        self.passes[self.examples[some]] += 2 * len(noise)
        there, back = seen.stationarity.chunk(2)
        one_way, other_way = seen.distortion.chunk(2)
        known = sigma.square() * self.curvature[some] * groups.active  # (b', T)
        scaled = self.jacobian[some] * groups.spread(sigma * groups.active).unsqueeze(1)  # (b', M, N)
        stationarity, distortion = (there + back) / 2, (one_way + other_way) / 2
        for index, eps in enumerate(noise):
            parts = torch.stack([groups.collect(row * eps) for row in scaled.unbind(1)], 1)  # (b', M, T)
            moves = parts.sum(2, keepdim=True)  # of each state element, by the linear model
            stationarity[index] += 2 * (known - (moves * parts).sum(1))
            distortion[index] += known.sum(1) - moves.square().sum((1, 2))
        return stationarity, distortion

    def pilot(self, rate: float) -> tuple[Tensor, Tensor, Tensor]:
        """The rate of each example, where to start, (b, T), and whether samples there are sound, (b,).

        Where pairs scatter too much the rate is lowered by what that scatter, proportional to the rate where
        noise is small, makes of it; then it is raised as long as they do not, from the small-noise side.  What is
        solved lies below the largest rate found so, unless that is the one asked for.
        """
        draws = Draws([x.shape[1:] for x in self.objective.model.origin], PILOT_SEED)
        asked = torch.full_like(self.cap[:, 0], rate)
        rates, theta = asked.clone(), self.closed(asked)
        # the largest sound rate so far, and theta less its closed form there
        known, offset = rates.clone(), torch.zeros_like(theta)
        sound, steady = torch.zeros(2, len(rates), dtype=torch.bool, device=rates.device)
        looking = torch.arange(len(rates), device=rates.device)
        for index in range(MOST_PILOTS):
            noise = draws.round(PILOT_ROUND + index, PILOT_PAIRS).to(self.cap.device, self.cap.dtype)
            step = self.step(looking, theta[looking], rates[looking], noise)
            scatter, halvings = self._scatter(looking, step, rates[looking])
            is_good, at_asked = halvings == 0, rates[looking] == asked[looking]
            moved = torch.minimum(theta[looking] + step.move.clamp(max=LARGEST_RISE), self.cap[looking])
            noise_of = token_mean(step.variance, step.free) / PILOT_PAIRS
            is_near = token_mean(step.move.square(), step.free) - noise_of <= LONG_STEP**2
            found, before = is_good & is_near, sound[looking]
            offset[looking[found]] = (moved - self.closed(rates)[looking])[found]
            known[looking[found]] = rates[looking[found]]
            sound[looking] = before | found
            steady[looking] = found & at_asked & (scatter <= SPREAD)
            climbing, falling = found & ~at_asked, ~is_good & ~before
            falling &= rates[looking] > LOWEST * asked[looking]
            change = torch.where(climbing, float(CLIMB), torch.where(falling, -halvings, 0.0))
            rates[looking] = (rates[looking] * torch.exp2(change)).minimum(asked[looking])
            afresh = (self.closed(rates) + offset)[looking].minimum(self.cap[looking])
            theta[looking] = torch.where((climbing | falling).unsqueeze(1), afresh, moved)
            looking = looking[climbing | falling | (is_good & ~is_near)]
            if not len(looking):
                break
        known = torch.where(steady, known, known * 0.5**MARGIN)
        offset = torch.where(steady.unsqueeze(1), offset, offset * 0.5**MARGIN)  # proportional to the rate
        return *self._checked(draws, known, offset, sound, rate), sound

    def _checked(
        self, draws: Draws, rates: Tensor, offset: Tensor, sound: Tensor, asked: float
    ) -> tuple[Tensor, Tensor]:
        """Rates at which a larger pilot sample, of noise twice as large, scatters little enough; and theta there."""
        theta = (self.closed(rates) + offset).minimum(self.cap)
        looking = sound.nonzero()[:, 0]
        for index in range(MOST_CHECKS):
            if not len(looking):
                break
            noise = draws.round(PILOT_ROUND + MOST_PILOTS + index, CHECK_PAIRS)
            noise = noise.to(self.cap.device, self.cap.dtype)
            wide = (theta[looking] + MARGIN * math.log(2) / 2).minimum(self.cap[looking])
            step = self.step(looking, wide, rates[looking] * 2**MARGIN, noise)
            _, halvings = self._scatter(looking, step, rates[looking] * 2**MARGIN)
            rates[looking] *= torch.exp2(-halvings)
            offset[looking] *= torch.exp2(-halvings).unsqueeze(1)
            theta = (self.closed(rates) + offset).minimum(self.cap)
            sound[looking] = rates[looking] > LOWEST * asked
            looking = looking[halvings > 0]
        return rates, theta

    def _scatter(self, some: Tensor, step: Step, rates: Tensor) -> tuple[Tensor, Tensor]:
        """Standard deviation of log sigma by one pair, and how often the rates have to be halved for it, (b',) each."""
        # where nothing is below the cap, what scatters there counts
        counts = step.free | (self.groups.active[some] & ~step.free.any(1, keepdim=True))
        scatter = token_mean(step.variance, counts).sqrt()
        # D = rate / p at the optimum that continues from small noise, with p at least 2
        most = torch.maximum((scatter / EDGE).log2(), (step.distortion / rates).clamp(min=0).log2())
        halvings = most.ceil().clamp(0, LARGEST_DROP)
        return scatter, torch.where(scatter.isfinite(), halvings, float(LARGEST_DROP))

    def refine(self, rates: Tensor, theta: Tensor, sound: Tensor, settings: Settings) -> Solved:
        """Rounds of fresh samples from ``theta`` on, each example until it is known well enough."""
        draws = Draws([x.shape[1:] for x in self.objective.model.origin], settings.seed)
        average = _Average.nothing(theta)
        live = torch.arange(len(rates), device=rates.device)
        converged = torch.zeros_like(sound)
        for index in range(settings.rounds):
            pairs = max(2, settings.pairs // (1 if index else 2))
            noise = draws.round(index, pairs).to(self.cap.device, self.cap.dtype)
            step = self.step(live, theta[live], rates[live], noise)
            average.take(live, theta[live], step, self.cap[live])
            theta[live] = average.mean[live]
            free = step.free
            error = average.error()[live]
            size = token_mean(error, free).sqrt()
            # a second round has to agree, but where the state is linear
            seen = (average.rounds[live] > 0) | (size < ROUNDING)
            converged[live] = sound[live] & seen & (size <= settings.tolerance)
            done = converged[live].clone()
            if done.any() and index + 1 < settings.order_rounds:
                jitter = settings.jitter()
                done &= keep_their_order(theta[live], error.sqrt(), free, settings.tolerance, jitter)
            live = live[~done]
            if not len(live):
                break
        return Solved(
            example=self.examples,
            theta=theta,
            variance=average.error(),
            common_variance=average.common_error(),
            distortion=average.distortion,
            place=average.place,
            residual=average.residual,
            rate=rates,
            converged=converged,
        )


@dataclass
class _Average:
    """Running averages over the rounds that are near the optimum; b examples, T tokens."""

    mean: Tensor  # of the rounds' estimates of log sigma, (b, T)
    place: Tensor  # of the iterates they were made at, (b, T)
    variance: Tensor  # of the mean, (b, T)
    excess: Tensor  # what the last round adds to it where it disagrees, (b, T)
    common_variance: Tensor  # of what all tokens of it share, (b,)
    distortion: Tensor  # (b,)
    residual: Tensor  # of the last round, (b, T)
    weight: Tensor  # of the rounds in the average, (b,)
    rounds: Tensor  # of which each was compared with those before it, (b,)
    surprise: Tensor  # sum over these of the squared difference over its variance, mean over tokens, (b,)

    @classmethod
    def nothing(cls, theta: Tensor) -> _Average:
        each = theta.new_zeros(5, len(theta)).unbind(0)
        return cls(
            mean=theta.clone(),
            place=theta.clone(),
            variance=torch.zeros_like(theta),
            excess=torch.zeros_like(theta),
            residual=torch.full_like(theta, torch.nan),
            **dict(zip(("common_variance", "distortion", "weight", "rounds", "surprise"), each)),
        )

    def take(self, some: Tensor, theta: Tensor, step: Step, cap: Tensor) -> None:
        """Take in a round of some of the examples (indices), made at theta; a long step starts afresh."""
        free, tiny = step.free, torch.finfo(theta.dtype).tiny
        noise = token_mean(step.variance, free).clamp(max=LARGEST) / step.count
        length = (token_mean(step.move.square(), free) - noise).clamp(min=0)  # squared, beyond noise
        far = length > (3 * noise).clamp(min=LONG_STEP**2)
        # a Newton step is wrong by a share of its length: its round counts as so many pairs from nearby
        new = step.count * (noise + tiny) / (noise + tiny + NEWTON_ERROR**2 * length)
        spread = step.variance.clamp(max=LARGEST) / step.count
        variance = (spread + (NEWTON_ERROR * step.move).square()) * free
        moved = NEWTON_ERROR**2 * token_mean(step.move.square(), free)
        common = step.common_variance.clamp(max=LARGEST) / step.count + moved
        estimate = torch.minimum(theta + step.move, cap)
        old = torch.where(far, 0.0, self.weight[some])
        compared = old > 0
        apart, explained = (estimate - self.mean[some]).square() * free, variance + self.variance[some]
        # a token that moved more than two of its standard errors: Newton's step is too long where D grows as sigma^4
        excess = (apart - 4 * explained).clamp(min=0) / 4
        self.excess[some] = torch.where(compared.unsqueeze(1), excess, 0.0)
        gap, expected = token_mean(apart, free), token_mean(explained, free).clamp(min=ROUNDING**2)
        self.surprise[some] = torch.where(compared, self.surprise[some] + gap / expected, 0.0)
        self.rounds[some] = torch.where(compared, self.rounds[some] + 1, 0.0)
        self.weight[some] = old + new
        share = new / (old + new)
        for mine, theirs in (
            (self.mean, estimate),
            (self.place, theta),
            (self.distortion, step.distortion),
        ):
            mine[some] = mine[some].lerp(theirs, share.reshape(-1, *[1] * (mine.ndim - 1)))
        for mine, theirs in (
            (self.variance, variance),
            (self.common_variance, common),
        ):
            part = share.reshape(-1, *[1] * (mine.ndim - 1))
            mine[some] = (1 - part).square() * mine[some] + part.square() * theirs
        self.residual[some] = step.residual

    def error(self) -> Tensor:
        """Variance of log sigma, (b, T), with what unseen samples may add where any saw more than a line."""
        return self.variance * self.inflation().unsqueeze(1) + self.excess + self._unseen().unsqueeze(1)

    def common_error(self) -> Tensor:
        """Variance of the mean of log sigma over the tokens below the cap, (b,)."""
        return self.common_variance * self.inflation() + self._unseen()

    def _unseen(self) -> Tensor:
        variance = token_mean(self.variance, self.variance > 0) * self.inflation()
        return (variance > ROUNDING**2 / 100).to(variance.dtype) * UNSEEN**2

    def inflation(self) -> Tensor:
        """By how much more the rounds scatter than their own variances explain, at least 1, (b,)."""
        return torch.where(self.rounds > 0, self.surprise / self.rounds, 1.0).clamp(min=1.0)
