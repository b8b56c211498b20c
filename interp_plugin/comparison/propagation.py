"""Methods that follow the tokens through the layers: attention rollout, value zeroing, GIM, AttnLRP and DecompX.

The last three have rules of their own for single operations of the model.  A rule is found by the name of the operation
(``layer_norm``, ``softmax``), whatever module calls it, so that it works for every model whose forward is made of these
operations.  They are implemented from their papers, because the packages of their authors do not work here: in models
of transformers, ``gim-explain`` 0.1.4 reaches the softmax where attention is computed step by step, or queries, keys
and values where it is fused, never both, and no norms but those of torch; ``lxt`` 2.1 imports names that transformers 5
no longer has.  The tests compare with both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, dropout, linear
from torch.overrides import TorchFunctionMode

from interp_plugin.comparison.captum_methods import baseline_of, signed
from interp_plugin.comparison.interface import MAX_ROWS, Answer, Inputs
from interp_plugin.method.perturbation import LayerCall, at_site, first_tensor, in_this_thread, no_fastpath
from interp_plugin.text.models import OUTPUT, Label, are_exclusive
from interp_plugin.text.states import State

Rule = Callable[..., Any]
"""(the operation, its arguments) -> the result that replaces the operation's."""
Activation = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]
"""(an element-wise function f with f(0) = 0, x) -> the result that replaces f(x)."""

ACTIVATIONS = (
    "celu",
    "elu",
    "gelu",
    "hardswish",
    "leaky_relu",
    "mish",
    "relu",
    "relu6",
    "selu",
    "silu",
    "tanh",
)
ATTENTION = ("scaled_dot_product_attention", "softmax")
TEMPERATURE = 2.0  # of GIM's softmax
TOLERANCE = 1e-3  # of the sum of DecompX's parts, relative to the largest element of the whole
_NEAR_ZERO = 1e-6
_PRODUCTS = ("bmm", "einsum", "matmul", "mul", "multiply", "__matmul__", "__mul__", "__rmul__")


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


class Rules(TorchFunctionMode):
    """While it is active, operations that have a rule follow it.

    Args:
        rules: name of the operation -> rule.

    Attributes:
        seen: names of the operations whose rule was applied.
        paused: while it is above 0 no rule is applied.

    Examples::
        >>> with Rules({"relu": lambda relu, x: relu(x) + 10}) as rules:
        ...     torch.relu(torch.tensor([-1.0, 1.0])), torch.tanh(torch.zeros(1))
        (tensor([10., 11.]), tensor([0.]))
        >>> rules.seen
        {'relu'}
    """

    def __init__(self, rules: Mapping[str, Rule]) -> None:
        super().__init__()
        self.rules = rules
        self.seen: set[str] = set()
        self.paused = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if self.paused or name not in self.rules:
            return func(*args, **(kwargs or {}))
        self.seen.add(name)
        return self.rules[name](func, *args, **(kwargs or {}))


@contextmanager
def following(module: nn.Module, rules: Mapping[str, Rule], activation: Activation) -> Iterator[Rules]:
    """Inside the block the model follows the rules, and its parameters need no gradients, only its activations.

    Args:
        module: the model.
        rules: name of the operation -> rule.
        activation: the rule of element-wise functions.  A module that is such a function (transformers writes some
            GELUs as products) follows it as a whole, not operation by operation.
    """
    mode = Rules({**{name: _of_function(activation) for name in ACTIVATIONS}, **rules})
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]

    def before(part: nn.Module, args: Any) -> None:
        mode.paused += 1

    def after(part: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        try:
            return activation(part.forward, args[0]) if mode.paused == 1 else output
        finally:
            mode.paused -= 1

    with ExitStack() as stack:
        for part in module.modules():
            if _is_activation(part):
                stack.callback(part.register_forward_pre_hook(in_this_thread(before)).remove)
                stack.callback(part.register_forward_hook(in_this_thread(after)).remove)
        for parameter in trainable:
            parameter.requires_grad_(False)
            stack.callback(parameter.requires_grad_, True)
        stack.enter_context(mode)
        yield mode


def slope(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """f(x) / x, the slope of a linear stand-in for f (AttnLRP, eq. 9; DecompX, eq. 10); near 0 that of a point nearby.

    Examples::
        >>> slope(torch.tanh, torch.tensor([-2.0, 0.0, 2.0]))
        tensor([0.4820, 1.0000, 0.4820])
    """
    away = torch.where(x.abs() < _NEAR_ZERO, _NEAR_ZERO, x)
    return function(away.clone()) / away  # some activations work in place


def _is_activation(part: nn.Module) -> bool:
    """Whether a module is one of :data:`ACTIVATIONS`, recognised by the name of its class."""
    name = type(part).__name__.lower()
    return not any(part.children()) and any(kind in name for kind in ("elu", "silu", "swish", "mish", "tanh"))


def _of_function(activation: Activation) -> Rule:
    def rule(func: Callable[..., Any], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return activation(lambda value: func(value, *args, **kwargs), x)

    return rule


def gim(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """Gradient interaction modifications: the embedding less a baseline's, times a modified gradient, (T,), signed.

    The baseline, which the paper leaves to the user, is [MASK], or [PAD] where the model has no mask token.  In the
    backward pass a softmax has the gradient of temperature 2, the scale of norms is constant, and each factor of a
    product of two activations gets half of its gradient, so that queries and keys get a quarter.
    """
    baseline = baseline_of(inputs, "[PAD]" if inputs.model.mask_id is None else "[MASK]")
    gradient = _gradient(inputs, target, state, _rules(TEMPERATURE), _plain)
    return signed(gradient * (inputs.embeddings - baseline))


def attn_lrp(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """AttnLRP: the embedding times a modified gradient, which is its relevance, (T,), signed.

    The rules of the paper in its efficient form: the scale of norms and the slope f(x) / x of element-wise functions
    are constant (eq. 9), the factors of a product share its relevance (eq. 7), and softmax and linear layers have
    plain gradients (proposition 3.1; epsilon rule with epsilon 0).  Biases and the softmax absorb relevance.
    """
    gradient = _gradient(inputs, target, state, _rules(1.0), _identity)
    return signed(gradient * inputs.embeddings)


def _gradient(
    inputs: Inputs, target: int | None, state: State | None, rules: dict[str, Rule], activation: Activation
) -> Tensor:
    """Gradient of the answer by the rules, with respect to the embeddings, (1, T, K).

    Raises:
        ValueError: the model computes no attention that could follow the rules.
    """
    points = inputs.embeddings.clone().requires_grad_()
    explained = Answer(inputs, target) if state is None else _along_itself(inputs, state)
    with torch.enable_grad(), following(inputs.model.module, rules, activation) as mode:
        answer = explained(points)
    if not mode.seen & set(ATTENTION):
        raise ValueError(
            f"the rules found no attention in the forward of {inputs.model.name}; use a transformer whose attention is "
            "'sdpa' or 'eager' (set_attn_implementation), or another method"
        )
    [gradient] = torch.autograd.grad(answer.sum(), points)
    return gradient


def _along_itself(inputs: Inputs, state: State) -> Callable[[Tensor], Tensor]:
    """The projection of a state on its value at the text, ``mean(s Phi(x) / v^2)``: linear in the state, (1,).

    Relevance starts from a neuron's own value, here from ``s^2 / v^2``.  The distance D, which other methods
    explain, has no gradient at the text.
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
        "rsqrt": _constant,  # the scale in RMS norms of transformers
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
    """A product; where two factors are activations, each gets half of its gradient."""
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


def decompx(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """DecompX: each token's contribution to the log-odds of the class, or to a state along itself, (T,), signed.

    Every state of the encoder is decomposed into a sum of one vector for each token, up to the class scores
    (Modarressi et al., 2023).  The vectors go through the model as rows of one batch, whose sum is what the model
    itself computes; the rules say how they go through each operation.  The log-odds are decomposed by their
    linearisation at the text, which is exact for two classes.  A token's score for a state s = sum_k s_k is
    ``mean(s s_k / v^2)``.  Scores add up to the whole.

    Raises:
        ValueError: the model is no encoder of linear layers, layer normalisation, fused attention and element-wise
            activations, so that the parts do not add up to what it computes.
    """
    if state is None and inputs.encoding.target:
        raise _not_decomposable(
            "the logarithm of a next token's probability is asked about, and class scores can be"
        )
    parts = decomposed(inputs, state)
    if state is None:
        return _of_log_odds(parts, 0 if target is None else target, are_exclusive(inputs.model))
    weight = parts.sum(0) / Answer(inputs, state=state).scale.square()
    return (parts * weight).flatten(1).mean(1)


def _of_log_odds(parts: Tensor, target: int, exclusive: bool) -> Tensor:
    """Parts of the scores, (T, C) -> parts of log p / (1 - p), (T,)."""
    others = [index for index in range(parts.shape[1]) if index != target and exclusive]
    if not others:
        return parts[:, target]
    shares = parts.sum(0)[others].softmax(0)
    return parts[:, target] - parts[:, others] @ shares


@torch.no_grad()
def decomposed(inputs: Inputs, state: State | None) -> Tensor:
    """Each token's part of the class scores or of a state, (T, ...)."""
    model, length = inputs.model, inputs.length
    values = _value_weights(inputs)
    first = next(iter(model.layers.values()))
    site = None if state is None else state.site
    selector = None if state is None else state.selector
    noisy = inputs.noisy(None, site, selector)
    whole = noisy.perturb(inputs.arguments, torch.arange(1)).float()

    def split(arguments: Any) -> Any:
        hidden = first_tensor(arguments)  # (T + 1, T, H), all rows equal
        apart = torch.zeros_like(hidden)
        tokens = torch.arange(length)
        apart[tokens, tokens] = hidden[0]
        mode.paused -= 1
        return (apart, *arguments[1:])

    rules = _splitting_rules(values, length + 1, model.name)
    with following(model.module, rules, _split_activation) as mode:
        mode.paused += 1  # operations before the first layer are not decomposed
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
            f"{model.name} is not a transformer with a single stack of layers, whose states could be decomposed; use "
            "another method"
        )
    return {id(value_layer(model, label)[0].layer.weight) for label in labels}


def _check_sum(inputs: Inputs, found: Tensor, whole: Tensor) -> None:
    gap = float((found - whole).abs().max() / whole.abs().max().clamp(min=torch.finfo(whole.dtype).tiny))
    if not gap <= TOLERANCE:
        raise _not_decomposable(
            f"the parts of the tokens differ from what {inputs.model.name} computes by {gap:.1g} of it"
        )


def _not_decomposable(what: str) -> ValueError:
    return ValueError(
        f"{what}: it has operations that are not decomposed; use an encoder such as BERT with attention 'sdpa' "
        "(set_attn_implementation), or another method"
    )


# DecompX's rules get the parts as rows, (T + 1, ...); their sum is the whole.  The last row belongs to no token: it
# carries the bias of the value vectors, which attention does not change, to the linear layer after attention (eq. 3).


def _splitting_rules(values: set[int], count: int, name: str) -> dict[str, Rule]:
    def of_linear(_: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        parts = linear(x, weight)
        if bias is None:
            bias = parts.new_zeros(parts.shape[-1])
        if id(weight) in values:
            parts[-1] += bias
            return parts
        return _with_shared_bias(parts, parts[-1] + bias)

    def of_parts(rule: Rule) -> Rule:
        def checked(operation: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
            if len(x) != count:
                raise _not_decomposable(f"{name} computes with {len(x)} rows where there are {count} parts")
            return rule(operation, x, *args, **kwargs)

        return checked

    rules: dict[str, Rule] = {
        "linear": of_linear,
        "layer_norm": _split_layer_norm,
        "scaled_dot_product_attention": _split_attention,
    }
    return {operation: of_parts(rule) for operation, rule in rules.items()}


def _with_shared_bias(parts: Tensor, bias: Tensor) -> Tensor:
    """The parts with a bias distributed in proportion to the absolute dot product with it (AbsDot, eq. 5 and 6).

    Args:
        parts: (T + 1, ..., K); the last row is included in the bias already.
        bias: (..., K).
    """
    parts = torch.cat([parts[:-1], torch.zeros_like(parts[-1:])])
    weights = (parts * bias).sum(-1, keepdim=True).abs()  # (T + 1, ..., 1)
    total = weights.sum(0, keepdim=True)
    equal = torch.full_like(weights, 1 / (len(parts) - 1))  # where all parts are orthogonal to the bias
    equal[-1] = 0
    shares = torch.where(total > 0, weights / total.clamp(min=torch.finfo(total.dtype).tiny), equal)
    return parts + shares * bias


def _split_layer_norm(
    _: Any, x: Tensor, shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5,
    *args: Any,
) -> Tensor:  # fmt: skip
    """Layer normalisation of each part: less its own mean, divided by the standard deviation of the whole (eq. 8)."""
    dims = tuple(range(-len(shape), 0))
    std = (x.sum(0).var(dims, correction=0, keepdim=True) + eps).sqrt()
    parts = (x - x.mean(dims, keepdim=True)) / std
    parts = parts if weight is None else parts * weight
    return parts if bias is None else _with_shared_bias(parts, bias)


def _split_activation(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Each part times the slope f(x) / x of the whole (eq. 10 and 11)."""
    return x * slope(function, x.sum(0))


def _split_attention(
    attention: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    """The attention weights of the whole, applied to the values of each part (eq. 4)."""
    query, key = (x.sum(0, keepdim=True).expand_as(x) for x in (query, key))
    return attention(query, key, value, *args, **kwargs)
