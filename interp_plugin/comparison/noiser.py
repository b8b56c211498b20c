"""Noiser: the largest noise on a token that leaves the prediction as it is, and what it does to the class.

Ghasemi Madani et al. (2025), written from the paper and with the constants of its code: there is no package.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from interp_plugin.comparison.inputs import MAX_ROWS, Answer, Inputs
from interp_plugin.text.batch import State

DRAWS = 10
HALVINGS = 10  # of the interval from 0 to 1 that holds the largest noise


def noiser(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """What the probability of the class loses under the largest noise, (T,), signed; 0 for who is no player.

    A token of K elements gets Gaussian noise of standard deviation ``k / sqrt(2 ln K)``, so that its largest
    element is about k.  Bisection finds the largest k up to 1 for which the mean probability of 10 draws, the same
    for every token and every k, is still highest for the predicted class.

    Raises:
        ValueError: a model with a single score predicts no class.
    """
    Answer(inputs, target, state)  # refuses a model that has no classes
    places, size = inputs.players.nonzero()[:, 0], inputs.embeddings.shape[-1]
    noise = torch.randn(DRAWS, 1, size, dtype=torch.float32).expand(-1, len(places), -1) / bound(size)
    whole = _probabilities(inputs, inputs.embeddings)  # (1, C)
    if whole.shape[1] < 2:
        raise ValueError(
            f"{inputs.model.name} has one score, and no predicted class that noise could change; use another method"
        )
    low, high = torch.zeros(len(places), dtype=torch.float32), torch.ones(len(places), dtype=torch.float32)
    for _ in range(HALVINGS):
        scale = (low + high) / 2
        noisy = _of_tokens(inputs, places, noise * scale.reshape(-1, 1))  # (P, C)
        holds = noisy.argmax(1) == whole.argmax()
        low, high = torch.where(holds, scale, low), torch.where(holds, high, scale)
    scores = torch.zeros(inputs.length, dtype=torch.float32)
    scores[places] = whole[0, target] - noisy[:, target]
    return scores


def bound(size: int) -> float:
    """About the largest of so many standard normal numbers, ``sqrt(2 ln K)``.

    Examples::
        >>> round(bound(384), 2)
        3.45
    """
    return math.sqrt(2 * math.log(size))


def _of_tokens(inputs: Inputs, places: Tensor, noise: Tensor) -> Tensor:
    """Mean probabilities over draws with noise on one token at a time, (draws, P, K) -> (P, C)."""
    draws, count, _ = noise.shape
    found = []
    for rows in torch.arange(draws * count).split(MAX_ROWS):
        points = inputs.embeddings.expand(len(rows), -1, -1).clone()
        player, draw = rows // draws, rows % draws
        points[torch.arange(len(rows)), places[player]] += noise[draw, player].to(points)
        found.append(_probabilities(inputs, points))
    return torch.cat(found).reshape(count, draws, -1).mean(1)


@torch.no_grad()
def _probabilities(inputs: Inputs, points: Tensor) -> Tensor:
    """(R, T, K) -> (R, C), on the CPU."""
    rows = torch.zeros(len(points), dtype=torch.long)
    scores = inputs.noisy(inputs.model.embedding, None).perturb((points,), rows)
    return scores.float().softmax(-1).cpu()
