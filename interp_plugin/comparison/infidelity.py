"""How badly scores foretell what a perturbation of the embeddings does to the answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from interp_plugin.comparison.erasure import worth
from interp_plugin.comparison.inputs import MAX_ROWS, Inputs, seeded
from interp_plugin.comparison.judged import Metric, Trial

DRAWS = 64
NOISE = 0.5
"""Standard deviation of the noise, in those of the text's embeddings."""

Kind = Literal["noise", "mask"]
Perturb = Callable[[Tensor], tuple[Tensor, Tensor]]


def spread(scores: Tensor, size: int) -> Tensor:
    """Scores of tokens, (T,), as attributions of their embeddings, (1, T, size): equal shares that sum to them.

    Examples::
        >>> spread(torch.tensor([4.0, 2.0]), 2)
        tensor([[[2., 2.],
                 [1., 1.]]])
    """
    return (scores / size).reshape(1, -1, 1).repeat(1, 1, size)


def perturbation(inputs: Inputs, kind: Kind, noise: float = NOISE) -> Perturb:
    """A function for Captum that spoils a random half of the players (rounded up).

    Their embeddings become that of [MASK], or get Gaussian noise.  The scores are to be multiplied with 1
    where a token is spoilt and 0 elsewhere: a token's score says what it brings and is no slope, so this is
    Captum's ``infidelity_perturb_func_decorator(multiply_by_inputs=True)``.  Noise on all elements, times
    spread scores, says nothing: of token scores it leaves 98 % unexplained, random ones or not.

    Args:
        inputs: the text.
        kind: what happens to a token.
        noise: its standard deviation, in those of the text's embeddings.

    Returns:
        Embeddings, (R, T, K) -> what the attributions are multiplied with, and the perturbed embeddings,
        (R, T, K) each.  It draws from torch's global generator, as Captum expects.
    """
    places = inputs.players.nonzero()[:, 0]
    scale = noise * float(inputs.embeddings.std())

    def perturb(embeddings: Tensor) -> tuple[Tensor, Tensor]:
        chosen = torch.rand(len(embeddings), len(places), dtype=torch.float32).argsort(1)[
            :, : (len(places) + 1) // 2
        ]
        spoilt = torch.zeros(embeddings.shape[:2], dtype=torch.bool)
        spoilt.scatter_(1, places[chosen], True)
        where = spoilt.unsqueeze(-1).to(embeddings.device)  # (R, T, 1)
        if kind == "mask":
            other = inputs.masked_embeddings
        else:
            other = embeddings + scale * torch.randn(embeddings.shape, dtype=torch.float32).to(embeddings)
        return where.expand_as(embeddings).to(embeddings), torch.where(where, other, embeddings)

    return perturb


def infidelity(name: str, kind: Kind, draws: int = DRAWS, noise: float = NOISE) -> Metric:
    """Captum's ``infidelity`` with ``normalize=True``, as a share of the answer's mean squared change.

    How far from what happens to the answer (a class's probability, minus the distance of a state) the sum
    of the spoilt tokens' scores is, at its best scale: 0 if it foretells all, 1 if nothing.

    Args:
        name: in tables.
        kind: what happens to tokens, see :func:`perturbation`.
        draws: perturbations of each text, the same for all methods.
        noise: of the first kind.
    """
    if draws < 1 or noise <= 0:
        raise ValueError(f"draws is {draws} and noise {noise}; give at least one draw and noise above 0")

    def measure(trial: Trial) -> float | None:
        import captum.metrics

        inputs = trial.inputs
        if int(inputs.players.sum()) < 2:
            return None
        scores = torch.where(inputs.players, trial.scores, 0.0).to(inputs.embeddings)
        answers = _Answers(trial)
        with seeded(inputs.seed):
            found = captum.metrics.infidelity(
                answers,
                perturbation(inputs, kind, noise),
                inputs.embeddings,
                spread(scores, inputs.embeddings.shape[2]),
                n_perturb_samples=draws,
                max_examples_per_batch=min(MAX_ROWS, draws),
                normalize=True,
            )
        return float(found) / (answers.squares / draws) if answers.squares else None

    return Metric(
        name,
        measure,
        higher_is_better=False,
        source="Yeh et al. 2019; Captum infidelity, normalised",
        removal="mask" if kind == "mask" else None,
    )


class _Answers:
    """What Captum calls: the answer from embeddings, and the sum of its squared changes so far."""

    def __init__(self, trial: Trial) -> None:
        self.embeddings, self.answer, self.state = trial.inputs.embeddings, trial.answer, trial.state
        self.whole = worth(self.answer.of_embeddings(self.embeddings), self.state)
        self.squares = 0.0

    def __call__(self, embeddings: Tensor) -> Tensor:
        if bool((embeddings == self.embeddings).all()):  # Captum asks for the text itself once for each draw
            return self.whole.expand(len(embeddings)).to(embeddings.device)
        values = worth(self.answer.of_embeddings(embeddings), self.state)
        self.squares += float((values - self.whole).square().sum())
        return values.to(embeddings.device)
