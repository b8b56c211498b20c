"""Gradient methods: Captum's, applied to the gradient of the answer with respect to the embeddings."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Literal

import captum.attr
import torch
from torch import Tensor, nn

from interp_plugin.comparison.interface import MAX_ROWS, Answer, Inputs, Score
from interp_plugin.text.batch import State

Baseline = Literal["zero", "[PAD]", "[MASK]", "mean"]
BASELINES: tuple[Baseline, ...] = ("zero", "[PAD]", "[MASK]", "mean")
"""The embedding of an uninformative token: zeros, that of the padding or mask token, or the mean of the table."""
STEPS = 50  # points on the path from the baseline, or samples
NOISE = 0.15  # of SmoothGrad, as a share of the embeddings' range (Smilkov et al., 2017, section 3.1)
Reduction = Callable[[Tensor], Tensor]


def signed(attributions: Tensor) -> Tensor:
    """The sum over a token's elements, (1, T, K) -> (T,)."""
    return attributions[0].sum(dim=-1)


def absolute(attributions: Tensor) -> Tensor:
    """The sum's absolute value, (T,)."""
    return signed(attributions).abs()


def norm(attributions: Tensor) -> Tensor:
    """The elements' L2 norm, (T,)."""
    norms: Tensor = torch.linalg.vector_norm(attributions[0], dim=-1)
    return norms


REDUCTIONS: dict[str, Reduction] = {"signed": signed, "absolute": absolute, "L2": norm}


def baseline_of(inputs: Inputs, kind: Baseline) -> Tensor:
    """The embeddings of an uninformative text, (1, T, K): special tokens keep their own.

    Raises:
        ValueError: the model has no mask token, or its embedding is no table that has a mean.

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
    """Mean row of the embedding table, (K,)."""
    tables = [m for m in layer.modules() if isinstance(m, nn.Embedding)]
    table = max(tables, key=lambda table: table.weight.numel(), default=None)
    if table is None or table.embedding_dim != like.shape[-1]:
        raise ValueError(
            f"the embedding {type(layer).__name__} has no table of {like.shape[-1]} dimensions, so no mean; use "
            "another baseline"
        )
    scale = float(getattr(table, "embed_scale", 1.0))  # BART's and Gemma's tables scale their rows
    return table.weight.detach().mean(0) * scale


def _leaf(inputs: Inputs) -> Tensor:
    """A copy of the embeddings that collects gradients."""
    return inputs.embeddings.clone().requires_grad_()


def _integrated_gradients(
    inputs: Inputs, target: int | None, state: State | None, *, baseline: Baseline, reduce: Reduction
) -> Tensor:
    method = captum.attr.IntegratedGradients(Answer(inputs, target, state))
    return reduce(
        method.attribute(
            _leaf(inputs), baseline_of(inputs, baseline), n_steps=STEPS, internal_batch_size=MAX_ROWS
        )
    )


def integrated_gradients(baseline: Baseline, reduction: str) -> Score:
    """Integrated gradients in 50 steps from a baseline; ``reduction`` is one of :data:`REDUCTIONS`."""
    return partial(_integrated_gradients, baseline=baseline, reduce=REDUCTIONS[reduction])


def saliency(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """L2 norm of the answer's gradient, (T,)."""
    return norm(captum.attr.Saliency(Answer(inputs, target, state)).attribute(_leaf(inputs), abs=False))


def _input_x_gradient(
    inputs: Inputs, target: int | None, state: State | None, *, reduce: Reduction
) -> Tensor:
    return reduce(captum.attr.InputXGradient(Answer(inputs, target, state)).attribute(_leaf(inputs)))


def input_x_gradient(reduction: str) -> Score:
    """Input times gradient; ``reduction`` is one of :data:`REDUCTIONS`."""
    return partial(_input_x_gradient, reduce=REDUCTIONS[reduction])


def gradient_shap(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """Expected gradients at 50 random points between the text and one of the baselines, (T,), signed.

    The baselines are those of integrated gradients; [MASK] only where the model has a mask token.
    """
    kinds = [kind for kind in BASELINES if kind != "[MASK]" or inputs.model.mask_id is not None]
    return signed(
        captum.attr.GradientShap(Answer(inputs, target, state)).attribute(
            _leaf(inputs), torch.cat([baseline_of(inputs, kind) for kind in kinds]), n_samples=STEPS
        )
    )


def _smooth_grad(inputs: Inputs, target: int | None, state: State | None, *, kind: str) -> Tensor:
    tunnel = captum.attr.NoiseTunnel(captum.attr.Saliency(Answer(inputs, target, state)))
    spread = float(inputs.embeddings.max() - inputs.embeddings.min())
    return norm(
        tunnel.attribute(
            _leaf(inputs), nt_type=kind, nt_samples=STEPS, nt_samples_batch_size=STEPS, stdevs=NOISE * spread,
            abs=False,
        )
    )  # fmt: skip


def smooth_grad(kind: Literal["smoothgrad", "smoothgrad_sq"]) -> Score:
    """Norm of the mean of gradients (or of their squares) at 50 noisy copies of the embeddings."""
    return partial(_smooth_grad, kind=kind)


def deep_lift(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """DeepLIFT's rescale rule against [MASK], (T,), signed.

    Captum has the rule for the modules ReLU, ELU, LeakyReLU, Sigmoid, Tanh, Softplus, Softmax and max pooling; all
    other operations (GELU, attention's softmax, layer normalisation, activations called as functions) have plain
    gradients.
    """
    answer = Answer(inputs, target, state)
    with _removing_left_tensors(answer), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Setting forward, backward hooks")
        return signed(captum.attr.DeepLift(answer).attribute(_leaf(inputs), baseline_of(inputs, "[MASK]")))


@contextmanager
def _removing_left_tensors(module: nn.Module) -> Iterator[None]:
    """Removes the tensors that Captum's DeepLift leaves on activations that no gradient reached."""
    before = {part: set(vars(part)) for part in module.modules()}
    try:
        yield
    finally:
        for part, names in before.items():
            for name in {"input", "output"} & (set(vars(part)) - names):
                delattr(part, name)
