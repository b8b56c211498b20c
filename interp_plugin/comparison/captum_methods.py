"""Captum's gradient and perturbation methods, and two that Captum lacks: leave-one-out and Noiser."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import captum.attr
import torch
from torch import Tensor, nn

from interp_plugin.comparison.interface import MAX_ROWS, Answer, Inputs, Removal
from interp_plugin.text.states import State

Baseline = Literal["zero", "[PAD]", "[MASK]", "mean"]
BASELINES: tuple[Baseline, ...] = ("zero", "[PAD]", "[MASK]", "mean")
"""Embedding of an uninformative token: zeros, the padding token's, the mask token's, or the mean of the table."""
STEPS = 50  # points on the path from the baseline, or number of samples
NOISE = 0.15  # of SmoothGrad, as a share of the embeddings' range (Smilkov et al., 2017, section 3.1)
SAMPLES = 200  # texts sampled by LIME and KernelSHAP
PERMUTATIONS = 25  # permutations in Shapley value sampling, Captum's default
NOISER_DRAWS = 10
HALVINGS = 10  # bisection steps of Noiser, in the interval from 0 to 1
# settings of Ribeiro et al. for text: cosine distance, kernel width 25 (in hundredths), ridge regression
KERNEL_WIDTH = 0.25
RIDGE = 1.0


def signed(attributions: Tensor) -> Tensor:
    """Sum over each token's elements, (1, T, K) -> (T,)."""
    return attributions[0].sum(dim=-1)


def absolute(attributions: Tensor) -> Tensor:
    """Absolute value of the sum over each token's elements, (T,)."""
    return signed(attributions).abs()


def norm(attributions: Tensor) -> Tensor:
    """L2 norm of each token's elements, (T,)."""
    norms: Tensor = torch.linalg.vector_norm(attributions[0], dim=-1)
    return norms


REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"signed": signed, "absolute": absolute, "L2": norm}


def baseline_of(inputs: Inputs, kind: Baseline) -> Tensor:
    """Return the embeddings of an uninformative text, (1, T, K); special tokens keep their own embeddings.

    Raises:
        ValueError: the model has no mask token, or its embedding layer has no table to take the mean of.

    Examples::
        >>> from interp_plugin import huggingface
        >>> model = huggingface.HuggingFaceModel(*huggingface.load(huggingface.default_model_path()))
        >>> baseline_of(Inputs(model, model.encode("a good film")), "zero")[0].norm(dim=-1) > 0
        tensor([ True, False, False, False,  True])
    """
    own = inputs.embeddings
    model = inputs.model
    if kind == "zero":
        baseline = torch.zeros_like(own)
    elif kind == "mean":
        baseline = _mean_row(model.embedding.layer, own)
    else:
        token = model.pad_id if kind == "[PAD]" else model.mask_id
        if token is None:
            raise ValueError(
                f"{model.name} has no mask token for a baseline; use another baseline, such as zero"
            )
        baseline = inputs.embedded(torch.full_like(inputs.ids, token))
    return torch.where(inputs.players.to(own.device)[:, None], baseline, own)


def _mean_row(layer: nn.Module, like: Tensor) -> Tensor:
    """Return the mean row of the embedding table, (K,)."""
    tables = [m for m in layer.modules() if isinstance(m, nn.Embedding)]
    table = max(tables, key=lambda table: table.weight.numel(), default=None)
    if table is None or table.embedding_dim != like.shape[-1]:
        raise ValueError(
            f"the embedding {type(layer).__name__} has no table of {like.shape[-1]} dimensions to take the mean of; "
            "use another baseline"
        )
    scale = float(getattr(table, "embed_scale", 1.0))  # the tables of BART and Gemma scale their rows
    return table.weight.detach().mean(0) * scale


def _leaf(inputs: Inputs) -> Tensor:
    """Return a copy of the embeddings that requires gradients."""
    return inputs.embeddings.clone().requires_grad_()


def integrated_gradients(
    inputs: Inputs, target: int | None, state: State | None, *, baseline: Baseline, reduction: str
) -> Tensor:
    """Integrated gradients with 50 steps from a baseline, (T,); ``reduction`` is one of :data:`REDUCTIONS`."""
    method = captum.attr.IntegratedGradients(Answer(inputs, target, state))
    return REDUCTIONS[reduction](
        method.attribute(
            _leaf(inputs), baseline_of(inputs, baseline), n_steps=STEPS, internal_batch_size=MAX_ROWS
        )
    )


def saliency(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """L2 norm of the answer's gradient, (T,)."""
    return norm(captum.attr.Saliency(Answer(inputs, target, state)).attribute(_leaf(inputs), abs=False))


def input_x_gradient(inputs: Inputs, target: int | None, state: State | None, *, reduction: str) -> Tensor:
    """Input times gradient, (T,); ``reduction`` is one of :data:`REDUCTIONS`."""
    return REDUCTIONS[reduction](
        captum.attr.InputXGradient(Answer(inputs, target, state)).attribute(_leaf(inputs))
    )


def gradient_shap(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """Expected gradients at 50 random points between the text and one of the baselines, (T,), signed.

    The baselines are those of integrated gradients, without [MASK] if the model has no mask token.
    """
    kinds = [kind for kind in BASELINES if kind != "[MASK]" or inputs.model.mask_id is not None]
    return signed(
        captum.attr.GradientShap(Answer(inputs, target, state)).attribute(
            _leaf(inputs), torch.cat([baseline_of(inputs, kind) for kind in kinds]), n_samples=STEPS
        )
    )


def smooth_grad(
    inputs: Inputs, target: int | None, state: State | None, *, kind: Literal["smoothgrad", "smoothgrad_sq"]
) -> Tensor:
    """Norm of the mean gradient (or mean squared gradient) over 50 noisy copies of the embeddings, (T,)."""
    tunnel = captum.attr.NoiseTunnel(captum.attr.Saliency(Answer(inputs, target, state)))
    spread = float(inputs.embeddings.max() - inputs.embeddings.min())
    return norm(
        tunnel.attribute(
            _leaf(inputs), nt_type=kind, nt_samples=STEPS, nt_samples_batch_size=STEPS, stdevs=NOISE * spread,
            abs=False,
        )
    )  # fmt: skip


def deep_lift(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """DeepLIFT's rescale rule with the baseline [MASK], (T,), signed.

    Captum applies the rule to the modules ReLU, ELU, LeakyReLU, Sigmoid, Tanh, Softplus, Softmax and max pooling.  All
    other operations (GELU, the softmax of attention, layer normalisation, activations called as functions) use plain
    gradients.
    """
    answer = Answer(inputs, target, state)
    with _removing_leftover_tensors(answer), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Setting forward, backward hooks")
        return signed(captum.attr.DeepLift(answer).attribute(_leaf(inputs), baseline_of(inputs, "[MASK]")))


@contextmanager
def _removing_leftover_tensors(module: nn.Module) -> Iterator[None]:
    """Remove the tensors that Captum's DeepLift leaves on activations that no gradient reached."""
    before = {part: set(vars(part)) for part in module.modules()}
    try:
        yield
    finally:
        for part, names in before.items():
            for name in {"input", "output"} & (set(vars(part)) - names):
                delattr(part, name)


class Game:
    """The answer as a function of which of the P removable tokens are present, (R, P) of 0 or 1.

    Captum's perturbation methods explain this function.  Special tokens are not features and are always present.

    Args:
        removal: how absent tokens are removed; None: they are replaced by [MASK], or deleted if the model is a decoder.

    Examples::
        >>> from interp_plugin import huggingface
        >>> model = huggingface.HuggingFaceModel(*huggingface.load(huggingface.default_model_path()))
        >>> game = Game(Inputs(model, model.encode("a good film")), 1, None)
        >>> [round(p, 2) for p in game(torch.tensor([[1.0, 1, 1], [1, 0, 1]])).sigmoid().tolist()]  # without "good"
        [0.99, 0.67]
    """

    def __init__(
        self, inputs: Inputs, target: int | None, state: State | None, removal: Removal | None = None
    ) -> None:
        self.answer = Answer(inputs, target, state)
        self.removal = removal or inputs.usual_removal
        self.positions = inputs.players.nonzero()[:, 0]
        self.length = inputs.length

    def __call__(self, present: Tensor) -> Tensor:
        """Evaluate the answer, (R, P) -> (R,)."""
        kept = torch.ones(len(present), self.length, dtype=torch.bool)
        kept[:, self.positions] = present.bool()
        return self.answer.of_kept(kept, self.removal)

    def attribute(self, method: Any, **options: Any) -> Tensor:
        """Compute scores with one of Captum's methods, (T,); tokens that are not features get 0."""
        whole = torch.ones(1, len(self.positions), dtype=torch.float32)
        attributions = method.attribute(whole, baselines=0.0, perturbations_per_eval=MAX_ROWS, **options)
        return self.spread(attributions[0])

    def spread(self, values: Tensor) -> Tensor:
        """Place the values at the positions of their tokens, (P,) -> (T,)."""
        scores = torch.zeros(self.length, dtype=torch.float32)
        scores[self.positions] = values.float()
        return scores


def feature_ablation(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """Decrease of the answer when the token is masked (for a decoder: deleted), (T,)."""
    game = Game(inputs, target, state)
    return game.attribute(captum.attr.FeatureAblation(game))


def occlusion(inputs: Inputs, target: int | None, state: State | None, *, window: int) -> Tensor:
    """Mean decrease of the answer when a window of ``window`` tokens that contains the token is masked, (T,)."""
    game = Game(inputs, target, state)
    size = min(window, len(game.positions))
    return game.attribute(captum.attr.Occlusion(game), sliding_window_shapes=(size,))


def lime(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """Coefficients of a ridge regression on 200 texts, each with a random half of the tokens masked, (T,).

    A text has less weight the larger its cosine distance from the whole text is.
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
    if len(game.positions) == 1:  # Captum would divide by zero; a single token has the whole difference
        present, absent = game(torch.tensor([[True], [False]]))
        return game.spread((present - absent).reshape(1))
    return game.attribute(captum.attr.KernelShap(game), n_samples=SAMPLES)


def shapley_value_sampling(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """Mean increase of the answer when the token is unmasked, over 25 random orders of unmasking the tokens, (T,)."""
    game = Game(inputs, target, state)
    return game.attribute(captum.attr.ShapleyValueSampling(game), n_samples=PERMUTATIONS)


def leave_one_out(inputs: Inputs, target: int | None, state: State | None, *, removal: Removal) -> Tensor:
    """Decrease of the answer when only this token is removed from the text, (T,)."""
    game = Game(inputs, target, state, removal)
    count = len(game.positions)
    answers = game(~torch.eye(count + 1, count, dtype=torch.bool))  # the last row is the whole text
    return game.spread(answers[-1] - answers[:-1])


def noiser(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """Noiser: decrease of the class probability under the largest noise that keeps the prediction, (T,), signed.

    Implemented from Ghasemi Madani et al. (2025) with the constants of their code, because there is no package.
    A token of K elements gets Gaussian noise of standard deviation ``k / sqrt(2 ln K)``, so that the largest noise
    element is about k.  Bisection finds the largest k up to 1 for which the mean probability over 10 draws (the
    same for every token and every k) is still highest for the predicted class.  Special tokens have score 0.

    Raises:
        ValueError: the model has a single score, so it predicts no class.
    """
    game = Game(inputs, target, state)
    positions, size = game.positions, inputs.embeddings.shape[-1]
    noise = torch.randn(NOISER_DRAWS, 1, size, dtype=torch.float32).expand(-1, len(positions), -1)
    noise = noise / bound(size)
    whole = _probabilities(inputs, inputs.embeddings)  # (1, C); C is the vocabulary size for a language model
    if whole.shape[1] < 2:
        raise ValueError(
            f"{inputs.model.name} has a single output, so it has no predicted class that noise could change; use "
            "another method"
        )
    low = torch.zeros(len(positions), dtype=torch.float32)
    high = torch.ones_like(low)
    for _ in range(HALVINGS):
        scale = (low + high) / 2
        noisy = _with_noise_on_each(inputs, positions, noise * scale.reshape(-1, 1))  # (P, C)
        holds = noisy.argmax(1) == whole.argmax()
        low, high = torch.where(holds, scale, low), torch.where(holds, high, scale)
    return game.spread(whole[0, target] - noisy[:, target])


def bound(size: int) -> float:
    """Return the approximate maximum of K standard normal numbers, ``sqrt(2 ln K)``.

    Examples::
        >>> round(bound(384), 2)
        3.45
    """
    return math.sqrt(2 * math.log(size))


def _with_noise_on_each(inputs: Inputs, positions: Tensor, noise: Tensor) -> Tensor:
    """Compute mean probabilities over draws, with noise on one token at a time, (draws, P, K) -> (P, C)."""
    draws, count, _ = noise.shape
    probabilities = []
    for rows in torch.arange(draws * count).split(MAX_ROWS):
        points = inputs.embeddings.expand(len(rows), -1, -1).clone()
        token, draw = rows // draws, rows % draws
        points[torch.arange(len(rows)), positions[token]] += noise[draw, token].to(points)
        probabilities.append(_probabilities(inputs, points))
    return torch.cat(probabilities).reshape(count, draws, -1).mean(1)


@torch.no_grad()
def _probabilities(inputs: Inputs, points: Tensor) -> Tensor:
    """Compute class probabilities from embeddings, (R, T, K) -> (R, C), on the CPU."""
    rows = torch.zeros(len(points), dtype=torch.long)
    noisy = inputs.noisy(inputs.model.embedding, None)
    if inputs.encoding.target:
        noisy.forward = lambda arguments, _: inputs.next_scores(*arguments)[:, 0]
    return noisy.perturb((points,), rows).float().softmax(-1).cpu()
