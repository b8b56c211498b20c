"""Methods that follow tokens through the layers: attention rollout, value zeroing, GIM, AttnLRP and DecompX.

GIM, AttnLRP and DecompX replace single operations of the model by rules.  A rule is found by the name of the operation
(``layer_norm``, ``softmax``), whatever module calls it, so it works for every model whose forward uses these
operations.  The three are implemented from their papers, because the packages of their authors do not work with models
of current transformers: ``gim-explain`` 0.1.4 modifies either the softmax (if attention is computed step by step) or
queries, keys and values (if it is fused), never both, and no norms except torch's; ``lxt`` 2.1 imports names that
transformers 5 removed.  The tests compare with both packages.
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
"""(the operation, its arguments) -> the result that replaces the operation's result."""
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
TEMPERATURE = 2.0  # temperature of GIM's softmax
TOLERANCE = 1e-3  # largest error of the sum of DecompX's parts, relative to the largest element of the whole
_NEAR_ZERO = 1e-6
_PRODUCTS = ("bmm", "einsum", "matmul", "mul", "multiply", "__matmul__", "__mul__", "__rmul__")


@runtime_checkable
class Attends(Protocol):
    """A model with access to its attention weights and value layers, as in :mod:`interp_plugin.huggingface`."""

    def attentions(self, *arguments: Tensor) -> tuple[Tensor, ...]: ...

    def value_site(self, label: Label) -> tuple[LayerCall, int] | None: ...


def rollout(mixing: list[Tensor]) -> Tensor:
    """Multiply the layers' mixing matrices, first layer rightmost, (T, T) (Abnar and Zuidema, 2020, eq. 1).

    Args:
        mixing: for each layer the share of each token (column) in each position (row), (T, T); rows sum to 1.

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
    """Attention rollout of the mean over heads, where the residual connection has half of each layer's weight, (T,).

    For a state, it goes up to the state's layer and averages the rows of all positions.  For a class, it goes up to
    the last layer and averages the rows of the positions that the classifier reads.

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
    """Rollout of how much each layer's output changes when a token's value vector is set to zero, (T,).

    The change is the cosine distance of each position's output from the output with all values; rows are scaled to
    sum to 1.  Layers and positions are chosen as in :func:`attention_rollout`.

    Raises:
        ValueError: the model's value vectors cannot be found.
    """
    _, labels = _attending(inputs, state)
    return _read(inputs, target, state, rollout([_value_effects(inputs, label) for label in labels]))


@torch.no_grad()
def _value_effects(inputs: Inputs, label: Label) -> Tensor:
    """Compute the relative change of a layer's output at each position (row) without each token's value (column)."""
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
    # a position whose output no value changes (all values are zero) depends only on itself
    itself = torch.eye(inputs.length, dtype=change.dtype, device=change.device)
    return torch.where(total > 0, change / total.clamp(min=torch.finfo(total.dtype).tiny), itself)


def value_layer(model: Any, label: Label) -> tuple[LayerCall, int]:
    """Return the linear layer that computes a layer's value vectors, and the number of parts in its output.

    The value vectors are the last of these equal parts.

    Raises:
        ValueError: the linear layer cannot be found.
    """
    found: tuple[LayerCall, int] | None = model.value_site(label)
    if found is None:
        raise ValueError(
            f"the value vectors of layer {label!r} of {model.name} cannot be found; use another method"
        )
    return found


def _zeroed(output: Any, tokens: Tensor, parts: int) -> Tensor:
    """Set the value vector of one token to zero in each row of a layer's output, (R, T, parts * width)."""
    values: Tensor = output.clone()
    rows = (tokens < values.shape[1]).nonzero()[:, 0]
    values[rows, tokens[rows], -values.shape[2] // parts :] = 0
    return values


def _attending(inputs: Inputs, state: State | None) -> tuple[Attends, list[Label]]:
    """Return the model, and its layers up to the explained one."""
    model, labels = inputs.model, list(inputs.model.layers)
    if not isinstance(model, Attends):
        raise ValueError(
            f"{model.name} does not return attention weights, unlike models of transformers; leave out attention "
            "rollout and value zeroing"
        )
    if not all(isinstance(label, int) for label in labels):
        raise ValueError(
            f"{model.name} has an encoder and a decoder, not a single stack of layers; use another method"
        )
    if state is None or state.label == OUTPUT:
        return model, labels
    return model, labels[: labels.index(state.label) + 1]


def _read(inputs: Inputs, target: int | None, state: State | None, whole: Tensor) -> Tensor:
    """Average the rows of the explained positions, (T, T) -> (T,)."""
    if state is not None and state.label != OUTPUT:
        return (whole if state.places is None else whole[list(state.places)]).mean(0)
    return whole[_positions_read(inputs, 0 if target is None else target).to(whole.device)].mean(0)


def _positions_read(inputs: Inputs, target: int) -> Tensor:
    """Find the positions of the last layer's output that the class score depends on, (T,), bool."""
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
    """A torch function mode that replaces operations by their rules.

    Args:
        rules: name of the operation -> rule.

    Attributes:
        seen: names of the operations whose rule was applied.
        paused: while above 0, no rule is applied.

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
    """Apply the rules to the model inside the block, and compute gradients of activations only, not of parameters.

    Args:
        module: the model.
        rules: name of the operation -> rule.
        activation: the rule for element-wise functions.  It replaces a module that is such a function as a whole, not
            operation by operation (transformers writes some GELUs as products).
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
    """Compute f(x) / x, the slope of a linear function in place of f (AttnLRP, eq. 9; DecompX, eq. 10).

    Near 0 it is the slope at a nearby point.

    Examples::
        >>> slope(torch.tanh, torch.tensor([-2.0, 0.0, 2.0]))
        tensor([0.4820, 1.0000, 0.4820])
    """
    nonzero = torch.where(x.abs() < _NEAR_ZERO, _NEAR_ZERO, x)
    return function(nonzero.clone()) / nonzero  # some activations work in place


def _is_activation(part: nn.Module) -> bool:
    """Return whether a module is one of :data:`ACTIVATIONS`, recognised by the name of its class."""
    name = type(part).__name__.lower()
    return not any(part.children()) and any(kind in name for kind in ("elu", "silu", "swish", "mish", "tanh"))


def _of_function(activation: Activation) -> Rule:
    def rule(func: Callable[..., Any], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return activation(lambda value: func(value, *args, **kwargs), x)

    return rule


def gim(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """GIM: the embedding minus a baseline, times a modified gradient, (T,), signed.

    The paper (Gradient Interaction Modifications) leaves the baseline to the user; here it is [MASK], or [PAD] if the
    model has no mask token.  In the backward pass, softmax has the gradient at temperature 2, the scale of norms is
    constant, and each factor of a product of two activations gets half of its gradient, so queries and keys get a
    quarter.
    """
    baseline = baseline_of(inputs, "[PAD]" if inputs.model.mask_id is None else "[MASK]")
    gradient = _gradient(inputs, target, state, _rules(TEMPERATURE), _plain)
    return signed(gradient * (inputs.embeddings - baseline))


def attn_lrp(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """AttnLRP: relevance as the embedding times a modified gradient, (T,), signed.

    This is the efficient form of the paper's rules: the scale of norms and the slope f(x) / x of element-wise functions
    are constant (eq. 9), the factors of a product share its relevance (eq. 7), and softmax and linear layers have
    plain gradients (proposition 3.1; epsilon rule with epsilon 0).  Biases and softmax absorb relevance.
    """
    gradient = _gradient(inputs, target, state, _rules(1.0), _identity)
    return signed(gradient * inputs.embeddings)


def _gradient(
    inputs: Inputs, target: int | None, state: State | None, rules: dict[str, Rule], activation: Activation
) -> Tensor:
    """Compute the gradient of the answer with respect to the embeddings under the rules, (1, T, K).

    Raises:
        ValueError: the rules find no attention operation in the model.
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
    """Return the projection of a state on its value s at the text, ``mean(s Phi(x) / v^2)``; linear in the state.

    Relevance starts from a neuron's own value, here from ``s^2 / v^2``.  The distance D, which other methods
    explain, has gradient 0 at the text.
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
    """Compute a product; if two factors are activations, each gets half of its gradient."""
    factors = [each for each in args if isinstance(each, Tensor) and each.requires_grad]
    if len(factors) < 2:
        return product(*args, **kwargs)
    return product(*(_halved(each) if isinstance(each, Tensor) else each for each in args), **kwargs)


def _halved(x: Tensor) -> Tensor:
    """Return x, with half of its gradient."""
    return x / 2 + (x / 2).detach()


def _softmax(
    softmax: Callable[..., Tensor], x: Tensor, *args: Any, temperature: float, **kwargs: Any
) -> Tensor:
    """Compute the softmax, with its gradient at ``x / temperature`` (without the factor 1 / temperature)."""
    weights = softmax(x, *args, **kwargs)
    if temperature == 1.0:
        return weights
    softer = temperature * softmax(x / temperature, *args, **kwargs)
    return softer + (weights - softer).detach()


def _layer_norm(
    _: Any, x: Tensor, shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5,
    *args: Any,
) -> Tensor:  # fmt: skip
    """Layer normalisation with a constant scale in the backward pass."""
    dims = tuple(range(-len(shape), 0))
    centred = x - x.mean(dims, keepdim=True)
    scaled = centred * (centred.detach().square().mean(dims, keepdim=True) + eps).rsqrt()
    scaled = scaled if weight is None else scaled * weight
    return scaled if bias is None else scaled + bias


def _rms_norm(
    _: Any, x: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """Root mean square normalisation with a constant scale in the backward pass."""
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
    """Compute scaled dot product attention step by step, so that each step follows its rule; arguments as in torch."""
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
    """DecompX: each token's contribution to the log-odds of the class, or to the projection of a state, (T,), signed.

    Every state of the encoder, up to the class scores, is decomposed into a sum of one vector for each token
    (Modarressi et al., 2023).  The vectors pass through the model as rows of one batch, whose sum is what the model
    itself computes; a rule for each operation says how they pass through it.  The log-odds are decomposed by their
    linearisation at the text, which is exact for two classes.  A token's score for a state s = sum_k s_k is
    ``mean(s s_k / v^2)``.  The scores add up to the whole.

    Raises:
        ValueError: the model is not an encoder of linear layers, layer normalisation, fused attention and element-wise
            activations, so the parts do not add up to what it computes.
    """
    if state is None and inputs.encoding.target:
        raise _not_decomposable(
            "the log-probability of a next token is explained, and DecompX decomposes only class scores and states"
        )
    parts = decomposed(inputs, state)
    if state is None:
        return _of_log_odds(parts, 0 if target is None else target, are_exclusive(inputs.model))
    weight = parts.sum(0) / Answer(inputs, state=state).scale.square()
    return (parts * weight).flatten(1).mean(1)


def _of_log_odds(parts: Tensor, target: int, exclusive: bool) -> Tensor:
    """Convert parts of the class scores, (T, C), to parts of log p / (1 - p), (T,)."""
    others = [index for index in range(parts.shape[1]) if index != target and exclusive]
    if not others:
        return parts[:, target]
    shares = parts.sum(0)[others].softmax(0)
    return parts[:, target] - parts[:, others] @ shares


@torch.no_grad()
def decomposed(inputs: Inputs, state: State | None) -> Tensor:
    """Compute each token's part of the class scores or of a state, (T, ...)."""
    model, length = inputs.model, inputs.length
    values = _value_weights(inputs)
    first = next(iter(model.layers.values()))
    site = None if state is None else state.site
    selector = None if state is None else state.selector
    noisy = inputs.noisy(None, site, selector)
    whole = noisy.perturb(inputs.arguments, torch.arange(1)).float()

    def split(arguments: Any) -> Any:
        hidden = first_tensor(arguments)  # (T + 1, T, H), all rows equal
        parts = torch.zeros_like(hidden)
        tokens = torch.arange(length)
        parts[tokens, tokens] = hidden[0]
        mode.paused -= 1
        return (parts, *arguments[1:])

    rules = _splitting_rules(values, length + 1, model.name)
    with following(model.module, rules, _split_activation) as mode:
        mode.paused += 1  # operations before the first layer are not decomposed
        with at_site(LayerCall(first.layer, first.call or 0, "input"), split):
            rows = torch.zeros(length + 1, dtype=torch.long)
            parts = noisy.perturb(inputs.rows(length + 1), rows).float()
    _check_sum(inputs, parts.sum(0), whole[0])
    return parts[:-1]


def _value_weights(inputs: Inputs) -> set[int]:
    """Return the ids (as of ``id()``) of the weights of the linear layers that compute value vectors.

    Raises:
        ValueError: the model is not an encoder, or its value vectors cannot be found.
    """
    model, labels = inputs.model, list(inputs.model.layers)
    if not isinstance(model, Attends) or not all(isinstance(label, int) for label in labels):
        raise ValueError(
            f"{model.name} is not a transformer with a single stack of layers, so its states cannot be decomposed; use "
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


# DecompX's rules receive the parts as rows, (T + 1, ...), whose sum is the whole.  The last row belongs to no token: it
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
    """Distribute a bias over the parts in proportion to their absolute dot product with it (AbsDot, eq. 5 and 6).

    Args:
        parts: (T + 1, ..., K); the last row is already included in the bias.
        bias: (..., K).
    """
    parts = torch.cat([parts[:-1], torch.zeros_like(parts[-1:])])
    weights = (parts * bias).sum(-1, keepdim=True).abs()  # (T + 1, ..., 1)
    total = weights.sum(0, keepdim=True)
    equal = torch.full_like(weights, 1 / (len(parts) - 1))  # used if all parts are orthogonal to the bias
    equal[-1] = 0
    shares = torch.where(total > 0, weights / total.clamp(min=torch.finfo(total.dtype).tiny), equal)
    return parts + shares * bias


def _split_layer_norm(
    _: Any, x: Tensor, shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5,
    *args: Any,
) -> Tensor:  # fmt: skip
    """Normalise each part: subtract its own mean, divide by the standard deviation of the whole (eq. 8)."""
    dims = tuple(range(-len(shape), 0))
    std = (x.sum(0).var(dims, correction=0, keepdim=True) + eps).sqrt()
    parts = (x - x.mean(dims, keepdim=True)) / std
    parts = parts if weight is None else parts * weight
    return parts if bias is None else _with_shared_bias(parts, bias)


def _split_activation(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Multiply each part by the slope f(x) / x of the whole (eq. 10 and 11)."""
    return x * slope(function, x.sum(0))


def _split_attention(
    attention: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    """Apply the attention weights of the whole to the values of each part (eq. 4)."""
    query, key = (x.sum(0, keepdim=True).expand_as(x) for x in (query, key))
    return attention(query, key, value, *args, **kwargs)
