"""Methods that look at attention: how tokens mix on the way up, without asking what the answer makes of it."""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from interp_plugin.comparison.inputs import MAX_ROWS, Inputs
from interp_plugin.method.perturbation import LayerCall, at_site, no_fastpath
from interp_plugin.text.batch import State
from interp_plugin.text.models import OUTPUT, Label


@runtime_checkable
class Attends(Protocol):
    """A model whose attention can be looked at, as :class:`~interp_plugin.huggingface.HuggingFaceModel`'s."""

    def attentions(self, *arguments: Tensor) -> tuple[Tensor, ...]: ...

    def value_site(self, label: Label) -> tuple[LayerCall, int] | None: ...


def rollout(mixing: list[Tensor]) -> Tensor:
    """The product of the layers' mixing matrices, first layer rightmost, (T, T) (Abnar and Zuidema, 2020, eq. 1).

    Args:
        mixing: for each layer how much of each token (column) goes into each place (row), (T, T), rows sum to 1.

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
    """Attention, mean of the heads, rolled out with half of every step staying where it is, (T,).

    It is rolled out up to the layer of the state, and the rows of its places are averaged; for a class up
    to the last layer, for the places that the classifier reads there.

    Raises:
        ValueError: the model gives no attention weights out.
    """
    attends, labels = _attending(inputs, state)
    with no_fastpath():
        weights = attends.attentions(*inputs.arguments)
    mixing = [
        (w[0].mean(0) + torch.eye(inputs.length, dtype=w.dtype, device=w.device)) / 2
        for w in weights[: len(labels)]
    ]
    return _read(inputs, target, state, rollout(mixing))


def value_zeroing(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """How far each layer's output turns when a token's value vector is zeroed in it, rolled out, (T,).

    The cosine distance of each place's output from what it is with all values, rows scaled to sum 1; layers
    and places as in :func:`attention_rollout`.

    Raises:
        ValueError: the model's value vectors are not found.
    """
    attends, labels = _attending(inputs, state)
    return _read(inputs, target, state, rollout([_turned(inputs, attends, label) for label in labels]))


@torch.no_grad()
def _turned(inputs: Inputs, attends: Attends, label: Label) -> Tensor:
    """How far a layer's output turns at each place (row) without each token's value (column), (T, T)."""
    found = attends.value_site(label)
    if found is None:
        raise ValueError(
            f"the value vectors of layer {label!r} of {inputs.model.name} are not found; use another method"
        )
    site, parts = found
    noisy = inputs.noisy(None, inputs.model.layers[label])
    outputs = []
    for tokens in torch.arange(inputs.length + 1).split(MAX_ROWS):  # in the last row nothing is zeroed
        rows = torch.zeros(len(tokens), dtype=torch.long)
        with no_fastpath(), at_site(site, partial(_zeroed, tokens=tokens, parts=parts)):
            outputs.append(noisy.perturb(inputs.rows(len(tokens)), rows).float())
    states = torch.cat(outputs)  # (T + 1, T, H)
    turned = (1 - cosine_similarity(states[:-1], states[-1:], dim=-1)).T.clamp(min=0)
    total = turned.sum(1, keepdim=True)
    # a place that no value moves (all are zero already) keeps what it is
    stays = torch.eye(inputs.length, dtype=turned.dtype, device=turned.device)
    return torch.where(total > 0, turned / total.clamp(min=torch.finfo(total.dtype).tiny), stays)


def _zeroed(passing: Any, tokens: Tensor, parts: int) -> Tensor:
    """What passes, (R, T, parts * width), with the values of one token zero in each row that has one."""
    values: Tensor = passing.clone()
    rows = (tokens < values.shape[1]).nonzero()[:, 0]
    values[rows, tokens[rows], -values.shape[2] // parts :] = 0
    return values


def _attending(inputs: Inputs, state: State | None) -> tuple[Attends, list[Label]]:
    """The model, and the layers up to the one that is read."""
    model, labels = inputs.model, list(inputs.model.layers)
    if not isinstance(model, Attends):
        raise ValueError(
            f"{model.name} has no attention that could be looked at, as transformers' models have; leave attention "
            "rollout and value zeroing out"
        )
    if not all(isinstance(label, int) for label in labels):
        raise ValueError(f"{model.name} has an encoder and a decoder, no single stack; use another method")
    if state is None or state.label == OUTPUT:
        return model, labels
    return model, labels[: labels.index(state.label) + 1]


def _read(inputs: Inputs, target: int | None, state: State | None, whole: Tensor) -> Tensor:
    """The rows of the places that are read, averaged, (T, T) -> (T,)."""
    if state is not None and state.label != OUTPUT:
        return whole.mean(0)
    return whole[_readers(inputs, 0 if target is None else target).to(whole.device)].mean(0)


def _readers(inputs: Inputs, target: int) -> Tensor:
    """The places of the last layer's output that the class score is computed from, (T,), bool."""
    last = list(inputs.model.layers.values())[-1]
    with torch.no_grad():
        state = inputs.noisy(None, last).perturb(inputs.arguments, torch.arange(1))
    state.requires_grad_()
    with torch.enable_grad():
        scores = inputs.noisy(last, None).perturb((state,), torch.arange(1))
        [slope] = torch.autograd.grad(scores[..., target].sum(), state)
    return slope[0].abs().sum(-1) > 0
