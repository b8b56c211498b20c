"""The learned erasure channel: which tokens carry a class or a state.

Token i is erased with probability p_i, independently of the others.  With Delta(b) the damage done by erasing the
tokens b (the loss of a class's log-odds, or the distortion D of a state), the channel solves::

    max_p  Delta(p) - T sum_i KL(p_i || pi),   Delta(p) = E_{b ~ p} Delta(b)

It is Guan et al.'s objective (ICML 2019, eq. 7) with a discrete channel.  Its stationarity condition is
T (logit p_i - logit pi) = dDelta/dp_i, so the derivative s_i of the multilinear extension Delta(p) is the score of a
token: the mean damage done by erasing it, over the channel's erasures of the other tokens.  As T goes to infinity,
all p_i become pi; at pi = 1/2 the scores are Banzhaf values, and their mean over pi from 0 to 1 are Shapley values
(Owen, 1972).  T < 0 reverses the channel: as many erasures as possible with little damage, as in Guan et al.'s
objective (side "keep").

The derivatives are the coefficients of a linear regression of Delta(b) on b under p.  They are estimated from few
masks by a Bayesian regression of what integrated gradients leave unexplained (regression-adjusted estimators: Witter
et al., arXiv 2506.11849), in rounds: each draws masks from the channel of the scores so far (mean-field games: Bian et
al., arXiv 2106.02938; deletion and preservation games: Fong and Vedaldi, ICCV 2017).

:func:`noise_path` computes scores from noise in place of erasures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from interp_plugin.method.objective import Objective, distortion, distortion_gradient
from interp_plugin.method.perturbation import ExampleError, NoisyModel, no_fastpath
from interp_plugin.method.sampling import Draws

Array = NDArray[Any]
Side = Literal["damage", "keep"]
Damage = Callable[[Tensor, Tensor], Tensor]
"""(examples (R,), erased tokens (R, T), bool) -> the damage to each row's example, (R,)."""

PASSES = 100  # forward and backward passes per example, whatever its length
PRIOR_POINTS = 8  # of integrated gradients: as many forward and backward passes
ROUNDS = (0.25, 0.25, 0.5)  # shares of the masks; each round draws from the channel of the scores so far
TEMPERATURE = 0.5  # |T|, in standard deviations of the scores over the tokens
SHARES = {"damage": 0.3, "keep": 0.7}  # mean share of erased tokens, by side
LEAST = 0.03  # p_i lies between this and 1 minus this: no token is always or never erased
STEPS, DAMPING = 100, 0.3  # of the fixed-point iteration if all erasures were enumerated
VARIANCES = (0.0, 0.01, 0.1, 1.0, 10.0, 1e2, 1e4)  # of coefficients, in units of the noise variance
OWN_VARIANCES = (0.0, 0.01, 0.1, 1.0, 10.0)  # of the part specific to a round, at most the common one


@dataclass(frozen=True)
class Erasure:
    """Settings of the erasure channel's estimator.

    Attributes:
        side: "damage": few erasures with much damage; "keep": many erasures with little damage.
        passes: forward and backward passes per example, including 16 for the prior; if the others suffice for all
            erasures of a text, they are enumerated.
        seed: of the masks.

    Raises:
        ValueError: unknown side, or fewer than 20 passes.
    """

    side: Side = "damage"
    passes: int = PASSES
    seed: int = 0

    def __post_init__(self) -> None:
        if self.side not in get_args(Side):
            raise ValueError(f"side is {self.side!r}; choose from {', '.join(map(repr, get_args(Side)))}")
        if self.passes < 2 * PRIOR_POINTS + 4:
            raise ValueError(
                f"passes is {self.passes}; give at least {2 * PRIOR_POINTS + 4}: {2 * PRIOR_POINTS} of them are "
                "integrated gradients'"
            )

    @property
    def masks(self) -> int:
        """Total number of masks."""
        return self.passes - 2 * PRIOR_POINTS


@dataclass(frozen=True)
class ErasureFit:
    """The learned channel of B examples with T tokens.

    Attributes:
        score: s_i = dDelta/dp_i, (B, T): what the state loses with the token (below 0: its erasure raises the
            answer), in units of the state if it is one number, else in D; 0 for tokens that cannot be erased.
        standard_error: of ``score``, (B, T); 0 if all erasures were enumerated.
        probability: p_i, (B, T): the erasure probabilities at which ``score`` is the derivative.
        damage: Delta(p), the mean damage at these probabilities, (B,).
        temperature: T of the channel of these scores, (B,).
        token_mask: which tokens can be erased, (B, T).
        n_forward, n_backward: passes per example, (B,).
    """

    score: Tensor
    standard_error: Tensor
    probability: Tensor
    damage: Tensor
    temperature: Tensor
    token_mask: Tensor
    n_forward: Tensor
    n_backward: Tensor


def log_odds(scores: Tensor, target: int) -> Tensor:
    """Return log p / (1 - p) of one class from the scores of all classes, (R, C) -> (R,); it never saturates.

    A single score is returned unchanged, because that of a binary model already is its log-odds.

    Examples::
        >>> log_odds(torch.tensor([[1.0, 3.0]]), 1), log_odds(torch.zeros(1, 3), 0).exp()
        (tensor([2.]), tensor([0.5000]))
    """
    if scores.shape[1] == 1:
        return scores[:, 0]
    others = [index for index in range(scores.shape[1]) if index != target]
    return scores[:, target] - scores[:, others].logsumexp(1)


def channel(scores: Array, side: Side) -> tuple[Array, float]:
    """Return p of the channel of these scores, (n,), and its temperature T.

    p_i = sigmoid(mu + s_i / T), clipped to 0.03 to 0.97, with T = 0.5 standard deviations of the scores (negative for
    side "keep"), and mu such that the mean of p is 0.3 (0.7 for side "keep").

    Examples::
        >>> p, temperature = channel(np.array([0.0, 0.0, 0.0, 2.0]), "damage")
        >>> p.round(2), round(float(p.mean()), 3)
        (array([0.1 , 0.1 , 0.1 , 0.91]), 0.3)
    """
    spread, share = float(scores.std()), SHARES[side]
    temperature = TEMPERATURE * spread * (1 if side == "damage" else -1)
    if spread <= 1e-12 * float(np.abs(scores).max(initial=0.0)):  # all alike
        return np.full(len(scores), share), temperature
    lean = (scores - scores.mean()) / temperature
    low, high = -5.0 - abs(lean).max(), 5.0 + abs(lean).max()
    for _ in range(35):
        mu = (low + high) / 2
        p = _clamped_sigmoid(mu + lean)
        low, high = (mu, high) if p.mean() < share else (low, mu)
    return p, temperature


def _clamped_sigmoid(x: Array) -> Array:
    p: Array = np.clip(1 / (1 + np.exp(-np.clip(x, -40, 40))), LEAST, 1 - LEAST)
    return p


def draw_masks(p: Array, count: int, generator: np.random.Generator) -> Array:
    """Draw masks of n tokens with erasure probabilities p, (count, n), bool; every column is balanced.

    Token i is erased in count * p_i of the masks, rounded up or down at random.
    """
    expected = count * p
    ones = np.floor(expected + generator.random(len(p)))  # (n,)
    order = generator.random((count, len(p))).argsort(0).argsort(0)
    return order < ones


def regress(masks: Array, damages: Array, rounds: Array, prior: Array) -> tuple[Array, Array]:
    """Regress damages on masks; return coefficients under the last round's p, (n,), and their standard errors.

    Bayesian linear regression with a free mean for each round and a free multiple of the prior as the expected
    coefficients.  Deviations from it are normal, with a part common to all rounds and a part specific to each round:
    if damages are not additive, coefficients depend on p.  Results are averaged over the variances of the two parts,
    weighted by their restricted likelihood (Patterson and Thompson, 1971), so that errors include their uncertainty.

    Args:
        masks: (m, n).
        damages: (m,).
        rounds: round of each mask, (m,); the largest is the last.
        prior: expected coefficients up to a factor, (n,).
    """
    x, y = torch.from_numpy(masks).double(), torch.from_numpy(damages).double()
    which = torch.from_numpy(rounds)[:, None]
    means = (which == which.unique()).double()
    along = (x @ torch.from_numpy(prior).double())[:, None]
    # effects with a flat prior, (m, h)
    free = torch.cat([means, along], 1) if along.max() > along.min() else means
    expected = x.new_zeros(len(prior), free.shape[1])  # expected coefficients for each of these effects
    expected[:, means.shape[1] :] = torch.from_numpy(prior)[:, None]
    common, last = x @ x.T, (which == which.max()).double()
    own = common * (which == which.T)
    found = []
    for first in VARIANCES:
        second = x.new_tensor([value for value in OWN_VARIANCES if value <= first])[:, None, None]
        kernel = first * common + second * own  # covariance of the damages, (g, m, m)
        towards = x * (first + second * last)  # covariance with the last round's coefficients, (g, m, n)
        found.append(_posterior(y, free, expected, kernel, towards, first + second[:, :, 0]))
    mean, variance, likelihood = (torch.cat(parts) for parts in zip(*found))
    weight = likelihood.softmax(0)[:, None]
    average = (weight * mean).sum(0)
    spread = (weight * (variance + (mean - average).square())).sum(0)
    return average.numpy(), spread.sqrt().numpy()


def _posterior(
    damages: Tensor, free: Tensor, expected: Tensor, kernel: Tensor, towards: Tensor, variance: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return means and variances of coefficients, (g, n), for g pairs of variances, and log likelihoods, (g,).

    Universal kriging; all variances are in units of the noise variance.
    """
    count, effects = len(damages), free.shape[1]
    factor = torch.linalg.cholesky(kernel + torch.eye(count, dtype=kernel.dtype))
    data = torch.cat([damages[:, None], free], 1).expand(len(kernel), -1, -1)
    solved = torch.linalg.solve_triangular(factor, torch.cat([data, towards], 2), upper=False)
    y, h, k = solved.split([1, effects, towards.shape[2]], 2)
    precision = h.mT @ h + 1e-10 * torch.eye(effects, dtype=h.dtype)
    fitted = torch.linalg.solve(precision, h.mT @ y)  # (g, h, 1)
    residual = y - h @ fitted
    degrees = max(count - effects, 1)
    least = 1e-24 * max(float(damages.square().mean()), 1e-200)
    noise = (residual.square().sum(1) / degrees).clamp(min=least)  # (g, 1)
    mean = (expected @ fitted + k.mT @ residual)[:, :, 0]
    unsure = expected - k.mT @ h  # derivative of the coefficients by the free effects, (g, n, h)
    more = (unsure * torch.linalg.solve(precision, unsure.mT).mT).sum(2)
    likelihood = -factor.diagonal(dim1=1, dim2=2).log().sum(1) - torch.linalg.slogdet(precision)[1] / 2
    likelihood = likelihood - degrees / 2 * noise[:, 0].log()
    return mean, noise * (variance - k.square().sum(1) + more).clamp(min=0), likelihood


def learn_erasure(
    players: Tensor,
    damage: Damage,
    prior: Callable[[Tensor], Tensor],
    settings: Erasure = Erasure(),
    ways: int = 1,
) -> ErasureFit:
    """Learn the channel of every example.

    An example's result only depends on the seed and its own tokens, not on other examples or padding.

    Args:
        players: which tokens can be erased, (B, T), bool.
        damage: damage of erasures; called with rows of several examples.
        prior: from examples (b,) to the expected damage of each token's erasure, up to a factor, (b, T).
        settings: of the estimator.
        ways: number of forward passes that ``damage`` takes per row.

    Raises:
        ValueError: a damage is not finite.

    Examples::
        >>> weights = torch.tensor([2.0, 0.0, -1.0, 0.5, 0.0, 0.0, 0.0, 0.0])  # the damage of each token adds up
        >>> fit = learn_erasure(
        ...     torch.ones(1, 8, dtype=torch.bool), lambda _, erased: erased.float() @ weights, lambda _: weights[None]
        ... )
        >>> torch.allclose(fit.score, weights, atol=1e-4), bool(fit.probability[0, 0] > fit.probability[0, 2])
        (True, True)
    """
    masks = [_Masks(row.nonzero()[:, 0].numpy(), settings) for row in players.cpu()]
    learning = [number for number, each in enumerate(masks) if not each.is_small]
    guess = np.zeros(players.shape)
    if learning:
        guess[learning] = prior(torch.tensor(learning)).detach().cpu().double().numpy()
    for number, each in enumerate(masks):
        each.prior = guess[number, each.places]
    for index in range(len(ROUNDS)):
        drawn = [
            (number, each.next(index))
            for number, each in enumerate(masks)
            if len(each.places) and (index == 0 or not each.is_small)
        ]
        if not drawn:
            break
        rows = [np.full(len(erased), number) for number, erased in drawn]
        whole = np.zeros((sum(map(len, rows)), players.shape[1]), dtype=bool)
        for at, (number, erased) in zip(np.cumsum([0, *map(len, rows)]), drawn):
            whole[at : at + len(erased), masks[number].places] = erased
        found = (
            damage(torch.from_numpy(np.concatenate(rows)), torch.from_numpy(whole)).detach().cpu().double()
        )
        bad = ~found.isfinite()
        if bad.any():
            number = int(np.concatenate(rows)[int(bad.nonzero()[0, 0])])
            raise ExampleError(
                f"the model gave NaN or infinite values for example {number} with tokens erased", number
            )
        for (number, erased), values in zip(drawn, found.split(list(map(len, rows)))):
            masks[number].take(erased, values.numpy())
    learned = [each.learned() for each in masks]
    forwards = [ways * len(each.damages) + (0 if each.is_small else PRIOR_POINTS) for each in masks]

    def at_places(values: Sequence[Array]) -> Tensor:
        filled = torch.zeros(players.shape, dtype=torch.float32)
        for row, each, own in zip(filled, masks, values):
            row[torch.from_numpy(each.places)] = torch.from_numpy(own).float()
        return filled

    scores, errors, probabilities, damages, temperatures = zip(*learned)
    return ErasureFit(
        score=at_places(scores),
        standard_error=at_places(errors),
        probability=at_places(probabilities),
        damage=torch.tensor(damages, dtype=torch.float32),
        temperature=torch.tensor(temperatures, dtype=torch.float32),
        token_mask=players.cpu(),
        n_forward=torch.tensor(forwards),
        n_backward=torch.tensor([0 if each.is_small else PRIOR_POINTS for each in masks]),
    )


class _Masks:
    """The masks of one example so far, their damages, and the scores estimated from them."""

    def __init__(self, places: Array, settings: Erasure) -> None:
        self.places, self.settings = places, settings
        self.generator = np.random.Generator(np.random.Philox(key=settings.seed))
        n = len(places)
        self.is_small = n < 63 and 2**n <= settings.masks
        self.prior = np.zeros(n)
        self.masks, self.damages = np.zeros((0, n), dtype=bool), np.zeros(0)
        self.p = np.full(n, SHARES[settings.side])  # of the last round
        self.rounds = np.zeros(0, dtype=int)

    def next(self, index: int) -> Array:
        """Draw the masks of a round, (m, n)."""
        n = len(self.places)
        if self.is_small:
            return every_erasure(n)
        self.p, _ = channel(self._scores()[0] if index else self.prior, self.settings.side)
        done, total = (round(self.settings.masks * sum(ROUNDS[:end])) for end in (index, index + 1))
        return draw_masks(self.p, total - done, self.generator)

    def take(self, masks: Array, damages: Array) -> None:
        """Add masks and the damage of each."""
        self.masks = np.concatenate([self.masks, masks])
        self.damages = np.concatenate([self.damages, damages])
        self.rounds = np.append(self.rounds, np.full(len(masks), self.rounds.max(initial=-1) + 1))

    def _scores(self) -> tuple[Array, Array]:
        return regress(self.masks, self.damages, self.rounds, self.prior)

    def learned(self) -> tuple[Array, Array, Array, float, float]:
        """Return scores, their standard errors, p, Delta(p) and T."""
        if not len(self.places):
            return self.prior, self.prior, self.prior, 0.0, 0.0
        if self.is_small:
            return self._enumerated()
        scores, errors = self._scores()
        _, temperature = channel(scores, self.settings.side)
        last = self.rounds == self.rounds.max()
        masks, damages = self.masks[last], self.damages[last]
        mean = damages.mean() + (self.p - masks.mean(0)) @ scores
        return scores, errors, self.p, float(mean), temperature

    def _enumerated(self) -> tuple[Array, Array, Array, float, float]:
        """Find the fixed point p = channel(dDelta/dp) by damped steps, with the exact derivative."""
        p = self.p
        for _ in range(STEPS):
            scores, damage = multilinear(self.damages, p)
            towards, temperature = channel(scores, self.settings.side)
            p = p + DAMPING * (towards - p)
            if abs(towards - p).max() < 1e-6:
                break
        scores, damage = multilinear(self.damages, p)
        return scores, np.zeros(len(p)), p, damage, temperature


def multilinear(damages: Array, p: Array) -> tuple[Array, float]:
    """Return derivative, (n,), and value of the multilinear extension, from the damages of all 2^n erasures.

    Args:
        damages: in the order of :func:`every_erasure`, (2^n,).
        p: above 0 and below 1, (n,).

    Examples::
        >>> slope, value = multilinear(np.array([0.0, 1.0, 1.0, 0.0]), np.array([0.25, 0.5]))  # one of the two alone
        >>> slope.tolist(), value
        ([0.0, 0.5], 0.5)
    """
    erased = every_erasure(len(p))
    weight = np.where(erased, p, 1 - p).prod(1) * damages
    return weight @ ((erased - p) / (p * (1 - p))), float(weight.sum())


def every_erasure(n: int) -> Array:
    """Return all erasures of n tokens, (2^n, n), bool: erasure m erases the tokens whose bit is set in m."""
    every: Array = (np.arange(2**n)[:, None] >> np.arange(n)) % 2 == 1
    return every


Way = Literal["mask", "attention", "delete"]
"""How a token is erased: replaced by a baseline, also hidden from attention, or deleted from the input.

If deletion would leave no token, all are replaced by baselines instead.
"""
Edit = Callable[[Way, Tensor, Tensor], NoisyModel]
"""(way, examples (R,), kept tokens (R, T)) -> the model on these rows with the other tokens hidden or deleted.

Every row has the same number of deleted tokens; a model with deleted tokens runs on its own inputs, without noise.
"""
FURTHER_WAY = 0.2  # weight of the damage for each way except the first


def check_ways(ways: str | Sequence[str]) -> tuple[Way, ...]:
    """Return the ways as a tuple, or raise ValueError."""
    chosen: tuple[Any, ...] = (ways,) if isinstance(ways, str) else tuple(ways)
    if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(get_args(Way)):
        raise ValueError(
            f"ways is {ways!r}; choose one or more of {', '.join(map(repr, get_args(Way)))}, each once"
        )
    return chosen


class Erasing:
    """The examples of an objective with tokens erased.

    The damage is the loss of a state of one number, and the distortion D of other states.  For several ways it is the
    weighted mean, with weight 0.2 for each way except the first.

    Args:
        objective: of the states.
        baseline: replaces erased tokens, broadcasts to (B, N).
        ways: how tokens are erased.
        edit: returns the model with tokens hidden or deleted.

    Attributes:
        players: the tokens that can be erased, (B, T): those that differ from their baseline.
    """

    def __init__(
        self,
        objective: Objective,
        baseline: Tensor,
        ways: tuple[Way, ...],
        edit: Edit,
    ) -> None:
        self.objective, self.ways, self.edit = objective, ways, edit
        self.change = baseline.to(objective.device, objective.dtype) - objective.origin  # (B, N)
        differs = objective.groups.collect((self.change != 0).to(objective.dtype)) > 0
        self.players = objective.groups.active & differs
        self.is_number = objective.reference[0].numel() == 1

    @torch.no_grad()
    def damage(self, examples: Tensor, erased: Tensor) -> Tensor:
        """Return the damage to the examples (R,) of erasing tokens (R, T), (R,)."""
        examples, erased = examples.to(self.objective.device), erased.to(self.objective.device)
        weights = [1 - FURTHER_WAY * (len(self.ways) - 1), *[FURTHER_WAY] * (len(self.ways) - 1)]
        total = self.objective.origin.new_zeros(len(examples))
        with no_fastpath():
            for way, weight in zip(self.ways, weights):
                for own_way, rows in self._together(way, examples, erased):
                    total[rows] += weight * self._cost(own_way, examples[rows], erased[rows])
        return total

    def _together(self, way: Way, examples: Tensor, erased: Tensor) -> Iterator[tuple[Way, Tensor]]:
        """Yield the way and the rows of each forward pass; baselines are used if deletion would leave no token."""
        most = self.objective.max_rows
        if way != "delete":
            yield from ((way, rows) for rows in torch.arange(len(erased), device=erased.device).split(most))
            return
        left = (self.objective.groups.active[examples] & ~erased).any(1)
        counts = erased.sum(1)
        for count in counts[left].unique():
            yield from ((way, rows) for rows in ((counts == count) & left).nonzero()[:, 0].split(most))
        if not left.all():
            yield from (("mask", rows) for rows in (~left).nonzero()[:, 0].split(most))

    def _cost(self, way: Way, examples: Tensor, erased: Tensor) -> Tensor:
        objective, rows = self.objective, torch.arange(len(examples), device=examples.device)
        if way == "delete":
            model = self.edit(way, examples, ~erased)
            state = model.perturb(model.inputs, rows)
        else:
            moved = self.change[examples] * objective.groups.at(examples).spread(erased.to(objective.dtype))
            points = objective.points(examples, moved)
            if way == "mask":
                state = objective.model.perturb(points, examples)
            else:
                state = self.edit(way, examples, ~erased).perturb(points, rows)
        state, reference = state.to(objective.device, objective.dtype), objective.reference[examples]
        if state.shape != reference.shape:
            raise ValueError(
                f"with tokens left out the state has shape {tuple(state.shape[1:])}, and "
                f"{tuple(reference.shape[1:])} with all of them; erase in the ways 'mask' or 'attention'"
            )
        if self.is_number:
            return (reference - state).flatten()
        return distortion(state, reference, objective.weight[examples])

    def prior(self, examples: Tensor) -> Tensor:
        """Return integrated gradients of the damage on the straight path to all tokens erased, (b,) -> (b, T).

        Sundararajan et al., ICML 2017, eq. 1, by Gauss-Legendre quadrature with eight points.
        """
        objective, examples = self.objective, examples.to(self.objective.device)
        groups = objective.groups.at(examples)
        change = self.change[examples] * groups.spread(self.players[examples].to(objective.dtype))
        nodes, weights = np.polynomial.legendre.leggauss(PRIOR_POINTS)
        total = torch.zeros_like(change)
        rows = torch.cartesian_prod(torch.arange(PRIOR_POINTS), torch.arange(len(examples)))
        for node, which in (part.to(change.device).unbind(1) for part in rows.split(objective.max_rows)):
            share = torch.from_numpy((nodes + 1) / 2)[node.cpu()].to(change.device, change.dtype)
            points = objective.points(examples[which], change[which] * share.unsqueeze(1))
            _, slope = answer_and_gradient(objective, points, examples[which])
            weight = torch.from_numpy(weights / 2)[node.cpu()].to(change.device, change.dtype)
            total.index_add_(0, which, -slope * weight.unsqueeze(1))
        return groups.collect(total * change)


def answer_and_gradient(
    objective: Objective, points: tuple[Tensor, ...], examples: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the answer at the points, (R,), and its gradient, (R, N): a state of one number itself, else -D."""
    state = objective.model.perturb(points, examples).to(objective.device, objective.dtype)
    if state[0].numel() == 1:
        answer, push = state.detach().flatten(), torch.ones_like(state)
    else:
        terms = (state.detach(), objective.reference[examples], objective.weight[examples])
        answer, push = -distortion(*terms), -distortion_gradient(*terms)
    largest = push.reshape(len(push), -1).abs().amax(1).clamp(min=torch.finfo(push.dtype).tiny)
    scale = torch.exp2(-largest.log2().round())  # the gradient of a mean would underflow in half precision
    scaled = push * scale.reshape(-1, *[1] * (push.ndim - 1))
    slope = objective.gradient(state, points, scaled) / scale.unsqueeze(1)
    objective.check_finite(slope.sum(1) + answer, examples, "way to the erased input")
    return answer, slope


PATHS, NODES = 4, 8  # one forward and one backward pass at each node of each path
PATH_ROUND = 2**32 + 4  # a separate stream of random numbers


@dataclass(frozen=True)
class NoisePath:
    """Scores of B examples with T tokens along a path of noise.

    Attributes:
        score: what each token adds to the state, (B, T), negative if it lowers the state; 0 for masked tokens.
        change: the state minus its mean on the paths' noise, (B,); the scores sum to it.
    """

    score: Tensor
    change: Tensor

    @property
    def error(self) -> Tensor:
        """Sum of the scores minus ``change``, (B,): the error of the integration."""
        return self.score.sum(1) - self.change


def _path_noise(objective: Objective, seed: int) -> Tensor:
    """White noise of each path, (P, N), on the CPU: half of them, and their mirror images."""
    half = Draws([x.shape[1:] for x in objective.model.origin], seed).batch(PATH_ROUND, PATHS // 2)
    return torch.cat([half, -half])


def noise_path(objective: Objective, mean: Tensor, std: Tensor, seed: int) -> NoisePath:
    """Attribute a state of one number to the tokens, along a path from white noise to the input.

    The input is changed to white noise with the mean and spread of the inputs, x(theta) = m + cos(theta) (x - m) +
    sin(theta) eps, theta from 0 to pi/2, and the gradient is integrated along it: score_i = -E int <d answer/dx_i,
    dx_i/dtheta> dtheta, over four paths by Gauss-Legendre quadrature with eight points.  Two noises and their mirror
    images make the scores of a linear state exact.  Path integrals are complete (Sundararajan et al., ICML 2017,
    proposition 1): the scores sum to the answer minus its mean on noise.  No token has to represent "nothing", and
    every point of the path has the spread of real inputs.

    Args:
        objective: its state has one element per example.
        mean: m, broadcasts to (B, N).
        std: of the noise, (B,).
        seed: of the noise; an example's result only depends on it and on the example.

    Raises:
        ValueError: the state has several elements, or values are NaN or infinite.
    """
    size = objective.reference[0].numel()
    if size != 1:
        raise ValueError(
            f"the state has {size} elements an example, and score 'signed' needs one number to push up or down; pick "
            "it with target or neuron_selector, or use score='kept'"
        )
    origin, groups, batch = objective.origin, objective.groups, len(objective.origin)
    active = groups.spread(groups.active.to(origin.dtype))
    noise = _path_noise(objective, seed).to(origin.device, origin.dtype)  # (P, N)
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    angles = torch.from_numpy((nodes + 1) * math.pi / 4)
    signal = origin - mean.to(origin)
    total, ends = torch.zeros_like(origin), origin.new_zeros(batch)
    rows = torch.cartesian_prod(torch.arange(PATHS), torch.arange(NODES + 1), torch.arange(batch))
    for path, node, example in (part.unbind(1) for part in rows.split(objective.max_rows)):
        angle = torch.cat([angles, angles.new_tensor([math.pi / 2])])[node].to(origin.device, origin.dtype)[
            :, None
        ]
        weight = torch.from_numpy(np.append(weights, 0.0) * math.pi / 4)[node].to(origin.device, origin.dtype)
        path, example = path.to(origin.device), example.to(origin.device)
        eps = noise[path] * std.to(origin)[example, None]
        moved = ((angle.cos() - 1) * signal[example] + angle.sin() * eps) * active[example]
        points = objective.points(example, moved)
        answer, slope = answer_and_gradient(objective, points, example)
        way = (angle.cos() * eps - angle.sin() * signal[example]) * active[example]
        total.index_add_(0, example, -slope * way * weight[:, None] / PATHS)
        at_end = (node == NODES).to(origin.device, origin.dtype)
        ends.index_add_(0, example, answer * at_end / PATHS)
    clean = objective.reference.reshape(batch)
    return NoisePath(groups.collect(total).float(), (clean - ends).float())


@torch.no_grad()
def entry_path(objective: Objective, mean: Tensor, std: Tensor, seed: int, examples: Tensor) -> NoisePath:
    """Attribute a state of one number to the tokens by replacing noise with them one by one, in random orders.

    There is one path for each of the four noises of :func:`noise_path`; every second path reverses the order of the one
    before it.  The scores are differences of successive answers, so they sum to the change exactly, where an integral
    of gradients may not (language models with RMSNorm, whose answers change sharply along a straight path).  Their
    expectation over orders are Shapley values of the answer on noise.

    Args:
        objective, mean, std, seed: as for :func:`noise_path`.
        examples: indices of the examples, (b,).

    Returns:
        Scores (b, T) and changes (b,).
    """
    origin, count, tokens = objective.origin, len(examples), objective.groups.n_tokens
    groups = objective.groups.at(examples)
    noise = _path_noise(objective, seed)
    keys = Draws([(tokens,)], seed).batch(PATH_ROUND + 1, (PATHS + 1) // 2).to(origin.device)
    score, ends = origin.new_zeros(count, tokens), origin.new_zeros(count)
    clean = objective.reference[examples].reshape(count)
    for path in range(PATHS):
        key = keys[path // 2] * (-1) ** path
        # position of each token in the order of entry; tokens without noise come last
        place = torch.where(groups.active, key, torch.inf).argsort(1).argsort(1)
        end = mean.to(origin) + noise[path].to(origin) * std.to(origin)[examples, None]
        steps = torch.cartesian_prod(torch.arange(tokens), torch.arange(count)).to(origin.device)
        answers = clean.repeat(tokens + 1, 1)  # (tokens + 1, b), by the number of tokens that have entered
        used = steps[steps[:, 0] < groups.counts[steps[:, 1]]]
        for rows in used.split(objective.max_rows):
            step, which = rows.unbind(1)
            out = groups.at(which).spread(((place[which] >= step[:, None]) & groups.active[which]).to(origin))
            points = objective.points(examples[which], (end[which] - origin[examples[which]]) * out)
            state = objective.model.perturb(points, examples[which]).to(origin)
            objective.check_finite(state.flatten(), examples[which], "entry of the tokens")
            answers[step, which] = state.flatten()
        gained = answers.diff(dim=0).T  # (b, tokens), by the time of entry
        score += gained.gather(1, place) * groups.active / PATHS
        ends += answers[0] / PATHS
    return NoisePath(score.float(), (clean - ends).float())
