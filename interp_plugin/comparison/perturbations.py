"""Methods that perturb tokens and look at the answer: ablation, Shapley values, LIME, leave-one-out, Noiser."""

from __future__ import annotations

import math
from typing import Any

import captum.attr
import torch
from torch import Tensor

from interp_plugin.comparison.interface import MAX_ROWS, Answer, Inputs, Removal
from interp_plugin.text.states import State

SAMPLES = 200  # of LIME and KernelSHAP
PERMUTATIONS = 25  # of Shapley value sampling, Captum's default
NOISER_DRAWS = 10
HALVINGS = 10  # of the interval from 0 to 1 that holds the largest noise of Noiser
# Ribeiro et al.'s own choices for text: cosine distance, kernel width 25 in hundredths, ridge regression
KERNEL_WIDTH = 0.25
RIDGE = 1.0


class Game:
    """The answer as a function of which of the P tokens are present, (R, P) of 0 or 1.

    The others become [MASK], and are deleted from what a decoder reads.  Captum's perturbation methods explain this
    function.  Special tokens are no features of it and always present.

    Examples::
        >>> from interp_plugin import huggingface
        >>> model = huggingface.HuggingFaceModel(*huggingface.load(huggingface.default_model_path()))
        >>> game = Game(Inputs(model, model.encode("a good film")), 1, None)
        >>> [round(p, 2) for p in game(torch.tensor([[1.0, 1, 1], [1, 0, 1]])).sigmoid().tolist()]  # without "good"
        [0.99, 0.67]
    """

    def __init__(self, inputs: Inputs, target: int | None, state: State | None) -> None:
        self.answer = Answer(inputs, target, state)
        self.positions = inputs.players.nonzero()[:, 0]
        self.length = inputs.length

    def __call__(self, present: Tensor) -> Tensor:
        """(R, P) -> (R,)."""
        kept = torch.ones(len(present), self.length, dtype=torch.bool)
        kept[:, self.positions] = present.bool()
        return self.answer.of_kept(kept, self.answer.inputs.usual_removal)

    def attribute(self, method: Any, **options: Any) -> Tensor:
        """Scores by one of Captum's methods, (T,); 0 for tokens that are no features."""
        everyone = torch.ones(1, len(self.positions), dtype=torch.float32)
        found = method.attribute(everyone, baselines=0.0, perturbations_per_eval=MAX_ROWS, **options)
        return self.spread(found[0])

    def spread(self, values: Tensor) -> Tensor:
        """The values at the positions of their tokens, (P,) -> (T,)."""
        scores = torch.zeros(self.length, dtype=torch.float32)
        scores[self.positions] = values.float()
        return scores


def feature_ablation(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """The decrease of the answer when the token is masked (of a decoder: deleted), (T,)."""
    game = Game(inputs, target, state)
    return game.attribute(captum.attr.FeatureAblation(game))


def occlusion(inputs: Inputs, target: int | None, state: State | None, *, window: int) -> Tensor:
    """The mean decrease of the answer over the masked windows of ``window`` neighbouring tokens that hold the token."""
    game = Game(inputs, target, state)
    size = min(window, len(game.positions))
    return game.attribute(captum.attr.Occlusion(game), sliding_window_shapes=(size,))


def lime(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """Coefficients of a ridge regression on 200 texts with random halves of the tokens masked, (T,).

    The weight of a text falls with its cosine distance from the whole text.
    """
    from captum._utils.models.linear_model import SkLearnRidge
    from captum.attr._core.lime import get_exp_kernel_similarity_function

    game = Game(inputs, target, state)
    method = captum.attr.Lime(
        game,
        interpretable_model=SkLearnRidge(alpha=RIDGE),
        similarity_func=get_exp_kernel_similarity_function("cosine", KERNEL_WIDTH),
    )
    return game.attribute(method, n_samples=SAMPLES)


def kernel_shap(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """Shapley values by a weighted regression on 200 texts, (T,)."""
    game = Game(inputs, target, state)
    if len(game.positions) == 1:  # Captum divides by zero, and the value of a single token is known
        present, absent = game(torch.tensor([[True], [False]]))
        return game.spread((present - absent).reshape(1))
    return game.attribute(captum.attr.KernelShap(game), n_samples=SAMPLES)


def shapley_value_sampling(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """Mean increase of the answer when a token is unmasked, over 25 random orders of unmasking all tokens, (T,)."""
    game = Game(inputs, target, state)
    return game.attribute(captum.attr.ShapleyValueSampling(game), n_samples=PERMUTATIONS)


def leave_one_out(inputs: Inputs, target: int | None, state: State | None, *, removal: Removal) -> Tensor:
    """The decrease of the answer when the token alone is removed from the text, (T,)."""
    positions = inputs.players.nonzero()[:, 0]
    kept = torch.ones(len(positions) + 1, inputs.length, dtype=torch.bool)
    kept[torch.arange(len(positions)), positions] = False  # the last row is the whole text
    answers = Answer(inputs, target, state).of_kept(kept, removal)
    scores = torch.zeros(inputs.length, dtype=torch.float32)
    scores[positions] = answers[-1] - answers[:-1]
    return scores


def noiser(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """Noiser: decrease of the class's probability under the largest noise that keeps the prediction, (T,), signed.

    Ghasemi Madani et al. (2025), written from the paper with the constants of its code, as there is no package.
    A token of K elements gets Gaussian noise of standard deviation ``k / sqrt(2 ln K)``, so that its largest
    element is about k.  Bisection finds the largest k up to 1 for which the mean probability over 10 draws (the
    same for every token and every k) is still highest for the predicted class.  Special tokens have score 0.

    Raises:
        ValueError: a model with a single score predicts no class.
    """
    Answer(inputs, target, state)  # raises for a model without classes
    positions, size = inputs.players.nonzero()[:, 0], inputs.embeddings.shape[-1]
    noise = torch.randn(NOISER_DRAWS, 1, size, dtype=torch.float32).expand(-1, len(positions), -1) / bound(
        size
    )
    whole = _probabilities(inputs, inputs.embeddings)  # (1, C), or the probabilities of all next tokens
    if whole.shape[1] < 2:
        raise ValueError(
            f"{inputs.model.name} has a single output, so no predicted class that noise could change; use another "
            "method"
        )
    low, high = (
        torch.zeros(len(positions), dtype=torch.float32),
        torch.ones(len(positions), dtype=torch.float32),
    )
    for _ in range(HALVINGS):
        scale = (low + high) / 2
        noisy = _with_noise_on_each(inputs, positions, noise * scale.reshape(-1, 1))  # (P, C)
        holds = noisy.argmax(1) == whole.argmax()
        low, high = torch.where(holds, scale, low), torch.where(holds, high, scale)
    scores = torch.zeros(inputs.length, dtype=torch.float32)
    scores[positions] = whole[0, target] - noisy[:, target]
    return scores


def bound(size: int) -> float:
    """The approximate maximum of K standard normal numbers, ``sqrt(2 ln K)``.

    Examples::
        >>> round(bound(384), 2)
        3.45
    """
    return math.sqrt(2 * math.log(size))


def _with_noise_on_each(inputs: Inputs, positions: Tensor, noise: Tensor) -> Tensor:
    """Mean probabilities over draws with noise on one token at a time, (draws, P, K) -> (P, C)."""
    draws, count, _ = noise.shape
    found = []
    for rows in torch.arange(draws * count).split(MAX_ROWS):
        points = inputs.embeddings.expand(len(rows), -1, -1).clone()
        token, draw = rows // draws, rows % draws
        points[torch.arange(len(rows)), positions[token]] += noise[draw, token].to(points)
        found.append(_probabilities(inputs, points))
    return torch.cat(found).reshape(count, draws, -1).mean(1)


@torch.no_grad()
def _probabilities(inputs: Inputs, points: Tensor) -> Tensor:
    """Class probabilities for embeddings, (R, T, K) -> (R, C), on the CPU."""
    rows = torch.zeros(len(points), dtype=torch.long)
    noisy = inputs.noisy(inputs.model.embedding, None)
    if inputs.encoding.target:
        noisy.forward = lambda arguments, _: inputs.next_scores(*arguments)[:, 0]
    return noisy.perturb((points,), rows).float().softmax(-1).cpu()
