"""Methods that take tokens away and look at the answer, as Captum computes them."""

from __future__ import annotations

from functools import partial
from typing import Any

import captum.attr
import torch
from torch import Tensor

from interp_plugin.comparison.inputs import MAX_ROWS, Answer, Inputs
from interp_plugin.comparison.judged import Score
from interp_plugin.text.batch import State

SAMPLES = 200  # of LIME and KernelSHAP
PERMUTATIONS = 25  # of Shapley value sampling, Captum's default
# Ribeiro et al.'s own choices for text: cosine distance, kernel width 25 in hundredths, ridge regression
KERNEL_WIDTH = 0.25
RIDGE = 1.0


class Game:
    """Which of the P players are there -> the answer; the others stand as [MASK].

    Captum's perturbation methods explain this function of P numbers, 0 or 1: special tokens are no features
    of it, and are always there.

    Examples::
        >>> from interp_plugin import huggingface
        >>> model = huggingface.HuggingFaceModel(*huggingface.load(huggingface.default_model_path()))
        >>> game = Game(Inputs(model, model.encode("a good film")), 1, None)
        >>> [round(p, 2) for p in game(torch.tensor([[1.0, 1, 1], [1, 0, 1]])).sigmoid().tolist()]  # without "good"
        [0.99, 0.67]
    """

    def __init__(self, inputs: Inputs, target: int | None, state: State | None) -> None:
        self.answer = Answer(inputs, target, state)
        self.places = inputs.players.nonzero()[:, 0]
        self.length = inputs.length

    def __call__(self, present: Tensor) -> Tensor:
        """(R, P) -> (R,)."""
        kept = torch.ones(len(present), self.length, dtype=torch.bool)
        kept[:, self.places] = present.bool()
        return self.answer.of_kept(kept, "mask")

    def attribute(self, method: Any, **options: Any) -> Tensor:
        """Scores by one of Captum's methods, (T,); 0 for those who are no players."""
        everyone = torch.ones(1, len(self.places), dtype=torch.float32)
        found = method.attribute(everyone, baselines=0.0, perturbations_per_eval=MAX_ROWS, **options)
        return self.spread(found[0])

    def spread(self, values: Tensor) -> Tensor:
        """The players' values in the places of the tokens, (P,) -> (T,)."""
        scores = torch.zeros(self.length, dtype=torch.float32)
        scores[self.places] = values.float()
        return scores


def feature_ablation(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """What the answer loses when the token is masked, (T,)."""
    game = Game(inputs, target, state)
    return game.attribute(captum.attr.FeatureAblation(game))


def _occlusion(inputs: Inputs, target: int | None, state: State | None, *, window: int) -> Tensor:
    game = Game(inputs, target, state)
    size = min(window, len(game.places))
    return game.attribute(captum.attr.Occlusion(game), sliding_window_shapes=(size,))


def occlusion(window: int) -> Score:
    """Mean loss of the answer over the windows of so many neighbours that hold the token, all masked."""
    return partial(_occlusion, window=window)


def lime(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """Coefficients of a ridge regression on 200 texts with random halves of the tokens masked, (T,).

    The texts' weights fall with the cosine distance from the whole one.
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
    if len(game.places) == 1:  # Captum divides by zero, and the value of a single player is known
        everyone, nobody = game(torch.tensor([[True], [False]]))
        return game.spread((everyone - nobody).reshape(1))
    return game.attribute(captum.attr.KernelShap(game), n_samples=SAMPLES)


def shapley_value_sampling(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """What each token adds when the text is filled in in random order, mean of 25 orders, (T,)."""
    game = Game(inputs, target, state)
    return game.attribute(captum.attr.ShapleyValueSampling(game), n_samples=PERMUTATIONS)


def leave_one_out(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """What the answer loses when the token is deleted, so that its neighbours meet, (T,)."""
    places = inputs.players.nonzero()[:, 0]
    kept = torch.ones(len(places) + 1, inputs.length, dtype=torch.bool)
    kept[torch.arange(len(places)), places] = False  # the last row is the whole text
    answers = Answer(inputs, target, state).of_kept(kept, "delete")
    scores = torch.zeros(inputs.length, dtype=torch.float32)
    scores[places] = answers[-1] - answers[:-1]
    return scores
