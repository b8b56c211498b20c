"""DecompX: every state of an encoder as a sum of one vector for each token, up to the class scores.

Modarressi et al. (2023), written from the paper.  The parts go through the model as rows of one batch, whose sum is
what the model computes itself; rules say how the parts go through each operation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from interp_plugin.comparison.attention import Attends
from interp_plugin.comparison.inputs import Answer, Inputs
from interp_plugin.comparison.rules import Rule, following, slope
from interp_plugin.method.perturbation import LayerCall, at_site, first_tensor
from interp_plugin.text.batch import State
from interp_plugin.text.models import Label

_TOLERANCE = 1e-3  # of the sum of the parts, relative to the largest element of the whole


def decompx(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """What each token adds to the log-odds of the class, or to a state along itself, (T,), signed.

    The log-odds are split where they are linear in the scores: at the text; of two classes everywhere.  A state s
    is the sum of a vector s_k for each token, whose score is ``mean(s s_k / v^2)``.  Both add up to the whole.

    Raises:
        ValueError: the model is no encoder of linear layers, layer normalisation, fused attention and element-wise
            activations: the parts do not add up to what it computes.
    """
    parts = _parts(inputs, state)
    if state is None:
        return _of_log_odds(parts, 0 if target is None else target)
    weight = parts.sum(0) / Answer(inputs, state=state).scale.square()
    return (parts * weight).flatten(1).mean(1)


def _of_log_odds(parts: Tensor, target: int) -> Tensor:
    """Parts of the scores, (T, C) -> parts of log p / (1 - p), (T,)."""
    others = [index for index in range(parts.shape[1]) if index != target]
    if not others:
        return parts[:, target]
    shares = parts.sum(0)[others].softmax(0)
    return parts[:, target] - parts[:, others] @ shares


@torch.no_grad()
def _parts(inputs: Inputs, state: State | None) -> Tensor:
    """What each token adds to the class scores or to a state, (T, ...)."""
    model, length = inputs.model, inputs.length
    values = _value_weights(inputs)
    first = next(iter(model.layers.values()))
    site = None if state is None else state.site
    selector = None if state is None else state.selector
    noisy = inputs.noisy(None, site, selector)
    whole = noisy.perturb(inputs.arguments, torch.arange(1)).float()

    def split(passing: Any) -> Any:
        hidden = first_tensor(passing)  # (T + 1, T, H), all rows alike
        apart = torch.zeros_like(hidden)
        places = torch.arange(length)
        apart[places, places] = hidden[0]
        followed.paused -= 1
        return (apart, *passing[1:])

    rules = _rules(values, length + 1, model.name)
    with following(model.module, rules, _activation) as followed:
        followed.paused += 1  # what comes before the first layer is not split
        with at_site(LayerCall(first.layer, first.call or 0, "input"), split):
            rows = torch.zeros(length + 1, dtype=torch.long)
            parts = noisy.perturb(inputs.rows(length + 1), rows).float()
    _check_sum(inputs, parts.sum(0), whole[0])
    return parts[:-1]


def _value_weights(inputs: Inputs) -> set[int]:
    """The weights of the linear layers that compute values, by identity.

    Raises:
        ValueError: a model that is no encoder, or whose value vectors are not found.
    """
    model, labels = inputs.model, list(inputs.model.layers)
    if not isinstance(model, Attends) or not all(isinstance(label, int) for label in labels):
        raise ValueError(
            f"{model.name} is no transformer of one stack, whose states could be decomposed; use another method"
        )
    return {id(_value_weight(model, label)) for label in labels}


def _value_weight(model: Any, label: Label) -> nn.Parameter:
    found = model.value_site(label)
    if found is None:
        raise ValueError(
            f"the value vectors of layer {label!r} of {model.name} are not found; use another method"
        )
    weight: nn.Parameter = found[0].layer.weight
    return weight


def _check_sum(inputs: Inputs, found: Tensor, whole: Tensor) -> None:
    gap = float((found - whole).abs().max() / whole.abs().max().clamp(min=torch.finfo(whole.dtype).tiny))
    if not gap <= _TOLERANCE:
        raise _unknown(
            f"the parts of the tokens differ from what {inputs.model.name} computes by {gap:.1g} of it"
        )


def _unknown(what: str) -> ValueError:
    return ValueError(
        f"{what}: it has operations that are not decomposed; use an encoder such as BERT with attention 'sdpa' "
        "(set_attn_implementation), or another method"
    )


# Each rule sees the parts as rows, (T + 1, ...), and the whole as their sum.  The last row is no token's: it carries
# the bias of value vectors, which attention leaves as it is, to the linear layer after attention (eq. 3).


def _rules(values: set[int], count: int, name: str) -> dict[str, Rule]:
    def of_linear(_: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        parts = linear(x, weight)
        if bias is None:
            bias = parts.new_zeros(parts.shape[-1])
        if id(weight) in values:
            parts[-1] += bias
            return parts
        return _shared(parts, parts[-1] + bias)

    def of_parts(rule: Rule) -> Rule:
        def checked(operation: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
            if len(x) != count:
                raise _unknown(f"{name} computes with {len(x)} rows where there are {count} parts")
            return rule(operation, x, *args, **kwargs)

        return checked

    rules: dict[str, Rule] = {
        "linear": of_linear,
        "layer_norm": _layer_norm,
        "scaled_dot_product_attention": _attention,
    }
    return {operation: of_parts(rule) for operation, rule in rules.items()}


def _shared(parts: Tensor, bias: Tensor) -> Tensor:
    """Parts that take a bias in, each as much as its dot product with it is large (AbsDot, eq. 5 and 6).

    Args:
        parts: (T + 1, ..., K); what the last row holds is in the bias.
        bias: (..., K).
    """
    parts = torch.cat([parts[:-1], torch.zeros_like(parts[-1:])])
    weights = (parts * bias).sum(-1, keepdim=True).abs()  # (T + 1, ..., 1)
    total = weights.sum(0, keepdim=True)
    alike = torch.full_like(weights, 1 / (len(parts) - 1))  # no part has anything in the bias's direction
    alike[-1] = 0
    shares = torch.where(total > 0, weights / total.clamp(min=torch.finfo(total.dtype).tiny), alike)
    return parts + shares * bias


def _layer_norm(
    _: Any, x: Tensor, shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5,
    *args: Any,
) -> Tensor:  # fmt: skip
    """Each part less its own mean, in units of the whole's standard deviation (eq. 8)."""
    dims = tuple(range(-len(shape), 0))
    std = (x.sum(0).var(dims, correction=0, keepdim=True) + eps).sqrt()
    parts = (x - x.mean(dims, keepdim=True)) / std
    parts = parts if weight is None else parts * weight
    return parts if bias is None else _shared(parts, bias)


def _activation(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Each part times the slope of the whole (eq. 10 and 11)."""
    return x * slope(function, x.sum(0))


def _attention(
    attention: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    """The weights of the whole, applied to the values of each part (eq. 4)."""
    query, key = (x.sum(0, keepdim=True).expand_as(x) for x in (query, key))
    return attention(query, key, value, *args, **kwargs)
