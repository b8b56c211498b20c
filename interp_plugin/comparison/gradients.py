"""Methods from gradients (Captum's) and from attention, which say how layers mix tokens whatever the answer is."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, Protocol, runtime_checkable

import captum.attr
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from interp_plugin.comparison.interface import MAX_ROWS, Answer, Inputs
from interp_plugin.method.perturbation import LayerCall, at_site, no_fastpath
from interp_plugin.text.models import OUTPUT, Label
from interp_plugin.text.states import State

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


def integrated_gradients(
    inputs: Inputs, target: int | None, state: State | None, *, baseline: Baseline, reduction: str
) -> Tensor:
    """Integrated gradients in 50 steps from a baseline; ``reduction`` is one of :data:`REDUCTIONS`."""
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
    """Input times gradient; ``reduction`` is one of :data:`REDUCTIONS`."""
    return REDUCTIONS[reduction](
        captum.attr.InputXGradient(Answer(inputs, target, state)).attribute(_leaf(inputs))
    )


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


def smooth_grad(
    inputs: Inputs, target: int | None, state: State | None, *, kind: Literal["smoothgrad", "smoothgrad_sq"]
) -> Tensor:
    """Norm of the mean of gradients (or of their squares) at 50 noisy copies of the embeddings."""
    tunnel = captum.attr.NoiseTunnel(captum.attr.Saliency(Answer(inputs, target, state)))
    spread = float(inputs.embeddings.max() - inputs.embeddings.min())
    return norm(
        tunnel.attribute(
            _leaf(inputs), nt_type=kind, nt_samples=STEPS, nt_samples_batch_size=STEPS, stdevs=NOISE * spread,
            abs=False,
        )
    )  # fmt: skip


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


@runtime_checkable
class Attends(Protocol):
    """A model that gives its attention weights and value layers, as those of :mod:`interp_plugin.huggingface`."""

    def attentions(self, *arguments: Tensor) -> tuple[Tensor, ...]: ...

    def value_site(self, label: Label) -> tuple[LayerCall, int] | None: ...


def rollout(mixing: list[Tensor]) -> Tensor:
    """The product of the layers' mixing matrices, first layer rightmost, (T, T) (Abnar and Zuidema, 2020, eq. 1).

    Args:
        mixing: for each layer the share of each token (column) in each position (row), (T, T), rows sum to 1.

    Examples::
        >>> swap, half = torch.tensor([[0.0, 1], [1, 0]]), torch.tensor([[0.5, 0.5], [0, 1]])
        >>> rollout([swap, half])
        tensor([[0.5000, 0.5000],
                [1.0000, 0.0000]])
    """
    whole = torch.eye(len(mixing[0]), dtype=mixing[0].dtype, device=mixing[0].device)
    for layer in mixing:
        whole = layer @ whole
    return whole


def attention_rollout(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """Attention rollout of the mean over heads, with half of each step for the residual connection, (T,).

    For a state it goes up to its layer and averages the rows of all positions; for a class up to the last
    layer, and averages the positions that the classifier reads.

    Raises:
        ValueError: the model does not return attention weights.
    """
    model, labels = _attending(inputs, state)
    with no_fastpath():
        weights = model.attentions(*inputs.arguments)
    mixing = [
        (w[0].mean(0) + torch.eye(inputs.length, dtype=w.dtype, device=w.device)) / 2
        for w in weights[: len(labels)]
    ]
    return _read(inputs, target, state, rollout(mixing))


def value_zeroing(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """Rollout of how much each layer's output changes when a token's value vector is zeroed, (T,).

    The change is the cosine distance of each position's output from the output with all values, rows scaled to
    sum 1; layers and positions as in :func:`attention_rollout`.

    Raises:
        ValueError: the model's value vectors are not found.
    """
    _, labels = _attending(inputs, state)
    return _read(inputs, target, state, rollout([_value_effects(inputs, label) for label in labels]))


@torch.no_grad()
def _value_effects(inputs: Inputs, label: Label) -> Tensor:
    """Relative change of a layer's output at each position (row) without each token's value (column), (T, T)."""
    site, parts = value_layer(inputs.model, label)
    noisy = inputs.noisy(None, inputs.model.layers[label])
    outputs = []
    for tokens in torch.arange(inputs.length + 1).split(MAX_ROWS):  # in the last row nothing is zeroed
        rows = torch.zeros(len(tokens), dtype=torch.long)
        with no_fastpath(), at_site(site, partial(_zeroed, tokens=tokens, parts=parts)):
            outputs.append(noisy.perturb(inputs.rows(len(tokens)), rows).float())
    states = torch.cat(outputs)  # (T + 1, T, H)
    change = (1 - cosine_similarity(states[:-1], states[-1:], dim=-1)).T.clamp(min=0)
    total = change.sum(1, keepdim=True)
    # a position that no value changes (all are zero already) depends on itself alone
    itself = torch.eye(inputs.length, dtype=change.dtype, device=change.device)
    return torch.where(total > 0, change / total.clamp(min=torch.finfo(total.dtype).tiny), itself)


def value_layer(model: Any, label: Label) -> tuple[LayerCall, int]:
    """The linear layer that computes a layer's value vectors, and of how many parts its output is the last.

    Raises:
        ValueError: it is not found.
    """
    found: tuple[LayerCall, int] | None = model.value_site(label)
    if found is None:
        raise ValueError(
            f"the value vectors of layer {label!r} of {model.name} are not found; use another method"
        )
    return found


def _zeroed(output: Any, tokens: Tensor, parts: int) -> Tensor:
    """A layer's output, (R, T, parts * width), with the value vector of one token set to zero in each row."""
    values: Tensor = output.clone()
    rows = (tokens < values.shape[1]).nonzero()[:, 0]
    values[rows, tokens[rows], -values.shape[2] // parts :] = 0
    return values


def _attending(inputs: Inputs, state: State | None) -> tuple[Attends, list[Label]]:
    """The model, and its layers up to the explained one."""
    model, labels = inputs.model, list(inputs.model.layers)
    if not isinstance(model, Attends):
        raise ValueError(
            f"{model.name} does not give its attention weights, as models of transformers do; leave out attention "
            "rollout and value zeroing"
        )
    if not all(isinstance(label, int) for label in labels):
        raise ValueError(f"{model.name} has an encoder and a decoder, no single stack; use another method")
    if state is None or state.label == OUTPUT:
        return model, labels
    return model, labels[: labels.index(state.label) + 1]


def _read(inputs: Inputs, target: int | None, state: State | None, whole: Tensor) -> Tensor:
    """The mean over the rows of the explained positions, (T, T) -> (T,)."""
    if state is not None and state.label != OUTPUT:
        return (whole if state.places is None else whole[list(state.places)]).mean(0)
    return whole[_positions_read(inputs, 0 if target is None else target).to(whole.device)].mean(0)


def _positions_read(inputs: Inputs, target: int) -> Tensor:
    """Which positions of the last layer's output the class score depends on, (T,), bool."""
    last = list(inputs.model.layers.values())[-1]
    with torch.no_grad():
        state = inputs.noisy(None, last).perturb(inputs.arguments, torch.arange(1))
    state.requires_grad_()
    with torch.enable_grad():
        scores = inputs.noisy(last, None).perturb((state,), torch.arange(1))
        scores = scores if inputs.encoding.target else scores[..., target]
        [slope] = torch.autograd.grad(scores.sum(), state)
    return slope[0].abs().sum(-1) > 0
