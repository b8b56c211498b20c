"""Methods of one backward pass that follows rules of its own: GIM and AttnLRP.

Both are implemented from their papers, for any model made of the operations that have a rule.  The authors' packages
do not do it.  Of a model of transformers ``gim-explain`` 0.1.4 reaches the softmax where attention is computed step
by step, or queries, keys and values where it is fused, never both, and no norms but torch's.  ``lxt`` 2.1 imports names
that transformers 5 no longer has.  The tests compare with both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout

from interp_plugin.comparison.gradients import baseline_of, signed
from interp_plugin.comparison.inputs import Answer, Inputs
from interp_plugin.comparison.rules import ATTENTION, Activation, Rule, following, slope
from interp_plugin.text.batch import State

TEMPERATURE = 2.0  # of GIM's softmax
_PRODUCTS = ("bmm", "einsum", "matmul", "mul", "multiply", "__matmul__", "__mul__", "__rmul__")


def gim(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """Gradient interaction modifications: the embedding less a baseline's, times a modified gradient, (T,), signed.

    The baseline, which the package leaves to the user, is [MASK], or [PAD] where the model has none.  In the backward
    pass a softmax has the gradient of temperature 2, norms keep their scale, and each factor of a product of two
    activations gets half of its gradient, so that queries and keys get a quarter.
    """
    baseline = baseline_of(inputs, "[PAD]" if inputs.model.mask_id is None else "[MASK]")
    gradient = _gradient(inputs, target, state, _rules(TEMPERATURE), _plain)
    return signed(gradient * (inputs.embeddings - baseline))


def attn_lrp(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """AttnLRP: the embedding times a modified gradient, which is its relevance, (T,), signed.

    The rules of the paper in its efficient form: norms keep their scale and element-wise functions their slope
    f(x) / x (eq. 9), the factors of a product share its relevance (eq. 7), and softmax and linear layers have plain
    gradients (proposition 3.1; epsilon rule with epsilon 0).  Biases absorb relevance, and so does the softmax.
    """
    gradient = _gradient(inputs, target, state, _rules(1.0), _identity)
    return signed(gradient * inputs.embeddings)


def _gradient(
    inputs: Inputs, target: int | None, state: State | None, rules: dict[str, Rule], activation: Activation
) -> Tensor:
    """Of the answer by the rules, with respect to the embeddings, (1, T, K).

    Raises:
        ValueError: no attention was seen that could follow the rules.
    """
    points = inputs.embeddings.clone().requires_grad_()
    read = Answer(inputs, target) if state is None else _along_itself(inputs, state)
    with torch.enable_grad(), following(inputs.model.module, rules, activation) as followed:
        answer = read(points)
    if not followed.seen & set(ATTENTION):
        raise ValueError(
            f"the rules found no attention in the forward of {inputs.model.name}; use a transformer whose attention is "
            "'sdpa' or 'eager' (set_attn_implementation), or another method"
        )
    [gradient] = torch.autograd.grad(answer.sum(), points)
    return gradient


def _along_itself(inputs: Inputs, state: State) -> Callable[[Tensor], Tensor]:
    """The part of a state along what it is at the text, ``mean(s Phi(x) / v^2)``: linear in the state, (1,).

    Relevance starts from a neuron's own value, so that here it starts from ``s^2 / v^2``.  The distance D, which other
    methods explain, has no gradient at the text.
    """
    noisy = inputs.noisy(inputs.model.embedding, state.site, state.selector)
    answer = Answer(inputs, state=state)
    weight = answer.origin.float() / answer.scale.square()
    return lambda points: (weight * noisy.perturb((points,), torch.arange(1)).float()).flatten(1).mean(1)


def _rules(temperature: float) -> dict[str, Rule]:
    softmax = partial(_softmax, temperature=temperature)
    return {
        "layer_norm": _layer_norm,
        "rms_norm": _rms_norm,
        "rsqrt": _constant,  # the scale of transformers' own RMS norms
        "softmax": softmax,
        "scaled_dot_product_attention": lambda _, *args, **kwargs: _attention(softmax, *args, **kwargs),
        **dict.fromkeys(_PRODUCTS, _product),
    }


def _plain(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return function(x)


def _identity(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return x * slope(function, x.detach())


def _constant(function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    return function(*args, **kwargs).detach()


def _product(product: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """A product of two activations, each of which gets half of its gradient."""
    factors = [each for each in args if isinstance(each, Tensor) and each.requires_grad]
    if len(factors) < 2:
        return product(*args, **kwargs)
    return product(*(_halved(each) if isinstance(each, Tensor) else each for each in args), **kwargs)


def _halved(x: Tensor) -> Tensor:
    """x, with half of its gradient."""
    return x / 2 + (x / 2).detach()


def _softmax(
    softmax: Callable[..., Tensor], x: Tensor, *args: Any, temperature: float, **kwargs: Any
) -> Tensor:
    """The softmax, with the gradient at ``x / temperature`` in place of x (without the factor 1 / temperature)."""
    weights = softmax(x, *args, **kwargs)
    if temperature == 1.0:
        return weights
    softer = temperature * softmax(x / temperature, *args, **kwargs)
    return softer + (weights - softer).detach()


def _layer_norm(
    _: Any, x: Tensor, shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5,
    *args: Any,
) -> Tensor:  # fmt: skip
    """Layer normalisation whose scale is a constant."""
    dims = tuple(range(-len(shape), 0))
    centred = x - x.mean(dims, keepdim=True)
    scaled = centred * (centred.detach().square().mean(dims, keepdim=True) + eps).rsqrt()
    scaled = scaled if weight is None else scaled * weight
    return scaled if bias is None else scaled + bias


def _rms_norm(
    _: Any, x: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """Root mean square normalisation whose scale is a constant."""
    dims = tuple(range(-len(shape), 0))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    scaled = x * (x.detach().square().mean(dims, keepdim=True) + eps).rsqrt()
    return scaled if weight is None else scaled * weight


def _attention(
    softmax: Rule,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Scaled dot product attention, step by step, so that each step follows its rule; arguments as torch's."""
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = (x.repeat_interleave(groups, -3) for x in (key, value))
    scores = _product(torch.matmul, query, key.transpose(-2, -1))
    scores = scores * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, torch.finfo(scores.dtype).min)
    elif attn_mask is not None:
        scores = scores + attn_mask
    weights = softmax(torch.softmax, scores, -1)
    weights = dropout(weights, dropout_p) if dropout_p else weights
    return _product(torch.matmul, weights, value)
