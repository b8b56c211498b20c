"""Attention methods: how layers mix tokens (rollout, value zeroing), whatever the answer depends on."""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from interp_plugin.comparison.interface import MAX_ROWS, Inputs
from interp_plugin.method.perturbation import LayerCall, at_site, no_fastpath
from interp_plugin.text.batch import State
from interp_plugin.text.models import OUTPUT, Label


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
        return whole.mean(0)
    return whole[_positions_read(inputs, 0 if target is None else target).to(whole.device)].mean(0)


def _positions_read(inputs: Inputs, target: int) -> Tensor:
    """Which positions of the last layer's output the class score depends on, (T,), bool."""
    last = list(inputs.model.layers.values())[-1]
    with torch.no_grad():
        state = inputs.noisy(None, last).perturb(inputs.arguments, torch.arange(1))
    state.requires_grad_()
    with torch.enable_grad():
        scores = inputs.noisy(last, None).perturb((state,), torch.arange(1))
        [slope] = torch.autograd.grad(scores[..., target].sum(), state)
    return slope[0].abs().sum(-1) > 0
