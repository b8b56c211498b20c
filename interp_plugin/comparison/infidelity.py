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
NOISE = 0.2
"""Standard deviation of the noise, in those of the text's embeddings."""

Perturb = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Embeddings, (R, T, K) -> what the scores are multiplied with, and the perturbed embeddings, both alike."""


def spread(scores: Tensor, size: int) -> Tensor:
    """Scores of tokens, (T,), as attributions of their embeddings, (1, T, size): equal shares that sum to them.

    Examples::
        >>> spread(torch.tensor([4.0, 2.0]), 2)
        tensor([[[2., 2.],
                 [1., 1.]]])
    """
    return (scores / size).reshape(1, -1, 1).repeat(1, 1, size)


def with_noise(inputs: Inputs, noise: float = NOISE) -> Perturb:
    """Gaussian noise on every element of the players; the scores are multiplied with the noise itself."""
    scale = noise * float(inputs.embeddings.std())

    def perturb(embeddings: Tensor) -> tuple[Tensor, Tensor]:
        players = inputs.players.reshape(1, -1, 1).to(embeddings)
        drawn = scale * torch.randn(embeddings.shape).to(embeddings) * players
        return drawn, embeddings - drawn

    return perturb


def with_masks(inputs: Inputs) -> Perturb:
    """[MASK] in the place of one to all of the players; the scores of those are summed.

    A score is what its token brings, not a slope: it is multiplied with 1 where the token is gone, as in
    Captum's ``infidelity_perturb_func_decorator``.
    """

    def perturb(embeddings: Tensor) -> tuple[Tensor, Tensor]:
        places = inputs.players.nonzero()[:, 0]
        count = torch.randint(1, len(places) + 1, (len(embeddings), 1))
        first = torch.rand(len(embeddings), len(places)).argsort(1).argsort(1) < count
        gone = torch.zeros(embeddings.shape[:2], dtype=torch.bool)
        gone[:, places] = first
        gone = gone.unsqueeze(-1).to(embeddings.device)
        return gone.expand_as(embeddings).to(embeddings), torch.where(
            gone, inputs.masked_embeddings, embeddings
        )

    return perturb


def infidelity(
    name: str, perturbation: Literal["noise", "mask"], draws: int = DRAWS, noise: float = NOISE
) -> Metric:
    """Captum's ``infidelity`` with ``normalize=True``, of a token's score spread evenly over its embedding.

    The mean over draws of the squared gap between what the scores foretell, at their best scale, and what
    the answer (a class's probability, minus the distance of a state) really loses.

    Args:
        name: in tables.
        perturbation: :func:`with_noise` or :func:`with_masks`.
        draws: perturbations of each text, the same for all methods.
        noise: of the first kind.
    """
    if draws < 1 or noise <= 0:
        raise ValueError(f"draws is {draws} and noise {noise}; give at least one draw and noise above 0")

    def measure(trial: Trial) -> float | None:
        import captum.metrics

        inputs, answer = trial.inputs, trial.answer
        if int(inputs.players.sum()) < 2:
            return None
        perturb = with_masks(inputs) if perturbation == "mask" else with_noise(inputs, noise)
        scores = torch.where(inputs.players, trial.scores, 0.0).to(inputs.embeddings)
        with seeded(inputs.seed):
            found = captum.metrics.infidelity(
                lambda embeddings: worth(answer.of_embeddings(embeddings), trial.state),
                perturb,
                inputs.embeddings,
                spread(scores, inputs.embeddings.shape[2]),
                n_perturb_samples=draws,
                max_examples_per_batch=MAX_ROWS,
                normalize=True,
            )
        return float(found)

    return Metric(
        name,
        measure,
        higher_is_better=False,
        source="Yeh et al. 2019; Captum infidelity, normalised",
        removal="mask" if perturbation == "mask" else None,
    )
