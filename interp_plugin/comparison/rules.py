"""Rules that take the place of single operations while a model runs: how methods change its backward pass.

A rule is found by the operation's name (``layer_norm``, ``softmax``), whatever module calls it, so that it holds for
every model whose forward is made of these operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from interp_plugin.method.perturbation import in_this_thread

Rule = Callable[..., Any]
"""(the operation, its arguments) -> what is used in place of its result."""
Activation = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]
"""(an element-wise function f with f(0) = 0, x) -> what is used in place of f(x)."""

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
_NEAR_ZERO = 1e-6


class Rules(TorchFunctionMode):
    """While it is active, operations that have a rule follow it.

    Args:
        rules: by the operation's name.

    Attributes:
        seen: names of the operations whose rule was followed.
        paused: while it is above 0 no rule is followed.

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
    """Inside the block the model follows the rules, and has no trainable parameter: only activations have gradients.

    Args:
        module: the model.
        rules: by the operation's name.
        activation: the rule of element-wise functions.  A module that is one (transformers writes some GELUs
            as products) follows it as a whole, not operation by operation.
    """
    mode = Rules({**{name: _of_function(activation) for name in ACTIVATIONS}, **rules})
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]

    def enter(part: nn.Module, args: Any) -> None:
        mode.paused += 1

    def leave(part: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        try:
            return activation(part.forward, args[0]) if mode.paused == 1 else output
        finally:
            mode.paused -= 1

    with ExitStack() as stack:
        for part in module.modules():
            if _is_activation(part):
                stack.callback(part.register_forward_pre_hook(in_this_thread(enter)).remove)
                stack.callback(part.register_forward_hook(in_this_thread(leave)).remove)
        for parameter in trainable:
            parameter.requires_grad_(False)
            stack.callback(parameter.requires_grad_, True)
        stack.enter_context(mode)
        yield mode


def slope(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """f(x) / x, which makes a linear function of f (AttnLRP, eq. 9; DecompX, eq. 10); at 0 that of a point nearby.

    Examples::
        >>> slope(torch.tanh, torch.tensor([-2.0, 0.0, 2.0]))
        tensor([0.4820, 1.0000, 0.4820])
    """
    away = torch.where(x.abs() < _NEAR_ZERO, _NEAR_ZERO, x)
    return function(away.clone()) / away  # some activations work in place


def _is_activation(part: nn.Module) -> bool:
    """Whether a module is one of the functions above: they are recognised by their classes' names."""
    name = type(part).__name__.lower()
    return not any(part.children()) and any(kind in name for kind in ("elu", "silu", "swish", "mish", "tanh"))


def _of_function(activation: Activation) -> Rule:
    def rule(func: Callable[..., Any], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return activation(lambda value: func(value, *args, **kwargs), x)

    return rule
