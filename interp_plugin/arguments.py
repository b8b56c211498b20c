"""Calls written for Captum's other methods, and what the arguments of a call say without being asked."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

import numpy as np
from torch import Tensor, nn

Call = TypeVar("Call", bound=Callable[..., Any])
Value = TypeVar("Value")

_PACKAGES = (__name__.split(".")[0], "captum")
_BASELINE = "noise needs no baseline: leave it out"
_SOLVER = "how hard to look is solver=Solver(...)"
_ROWS = "the memory is bounded by internal_batch_size"
_TUNNEL = "write NoiseTunnel(method).attribute(...) around it"
_TOKENS = "which elements are one token is said by feature_mask"
FOREIGN = {
    "baselines": _BASELINE,
    "baseline": _BASELINE,
    "n_steps": _SOLVER,
    "n_samples": _SOLVER,
    "method": "there is one method: leave it out",
    "return_convergence_delta": "nothing has to add up to an output; fit(...) says what converged",
    "grad_kwargs": "gradients are taken to the noise alone: leave it out",
    "attribute_to_layer_input": "LayerInformationLoss has it",
    "attribute_to_neuron_input": "NeuronInformationLoss has it",
    "perturbations_per_eval": _ROWS,
    "batch_size": _ROWS,
    "stdevs": _TUNNEL,
    "nt_type": _TUNNEL,
    "nt_samples": _TUNNEL,
    "nt_samples_batch_size": _TUNNEL,
    "draw_baseline_from_distrib": _BASELINE,
    "sliding_window_shapes": _TOKENS,
    "strides": _TOKENS,
    "custom_attribution_func": "there is one method: leave it out",
    "use_weights": "there is one method: leave it out",
    "perturb_func": _SOLVER,
    "interpretable_model": "there is one method: leave it out",
    "relu_attributions": "score='kept' is never negative",
    "multiply_by_inputs": "there is one method: leave it out",
    "abs": "score='kept' is never negative",
}
"""Settings of Captum's other methods, and what stands in their place here."""


def captum_call(call: Call) -> Call:
    """Let a method be called as Captum's others are, where that has a meaning, and say what to write where not.

    ``call`` takes (inputs, target, additional_forward_args, ...) and keeps its signature.  Its object has
    ``input_setting``, Captum's name of the setting that moves a layer's noise or state to the layer's input, and
    ``at_input``, which gives the object so moved.
    """

    @functools.wraps(call)
    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.input_setting is not None and kwargs.pop(self.input_setting, False):
            self = self.at_input()
        refuse_settings(f"{type(self).__name__}.{call.__name__}", kwargs, inspect.signature(call).parameters)
        refuse_order(call, args)
        return call(self, *args, **kwargs)

    return cast(Call, called)


def user_level() -> int:
    """``stacklevel`` of a warning in the calling function that is shown at the user's line.

    That is the nearest one outside this package and Captum, whose wrappers lie between.
    """
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in _PACKAGES:
        frame, level = frame.f_back, level + 1
    return level


def refuse_settings(name: str, settings: dict[str, Any], own: Container[str] = ()) -> None:
    """Take out what other methods' settings ask for nothing (None, False), and refuse the others at once.

    Args:
        name: of what is called.
        settings: its keyword arguments; changed in place.
        own: those that it has itself.
    """
    given = {key: settings.pop(key) for key in list(settings) if key in FOREIGN and key not in own}
    asked = {key: value for key, value in given.items() if value is not None and value is not False}
    if not asked:
        return
    why = "; ".join(dict.fromkeys(FOREIGN[key] for key in asked))
    line = ", ".join(["inputs", *(f"{key}={_short(value)}" for key, value in settings.items())])
    raise TypeError(
        f"{', '.join(f'{key}={_short(value)}' for key, value in asked.items())} "
        f"{'is a setting' if len(asked) == 1 else 'are settings'} of Captum's other methods and "
        f"{'means' if len(asked) == 1 else 'mean'} nothing to {name} ({why}); write "
        f"{name.rpartition('.')[2]}({line})"
    )


def refuse_order(call: Callable[..., Any], args: Sequence[Any]) -> None:
    """Refuse arguments without names that are in integrated gradients' order: (inputs, baselines, target)."""
    names = list(inspect.signature(call).parameters)[1:]
    if names[1] == "baselines":
        return
    second, third = (*args, None, None, None)[1:3]
    at_neuron = names[1] == "neuron_selector"  # (inputs, neuron_selector, baselines) there
    if at_neuron:
        wrong = isinstance(third, (int, float, np.number)) and not isinstance(third, bool)
        line = f"{call.__name__}(inputs, {_short(second)})"
    else:
        wrong = _only_baseline(second) or _only_target(third)
        target = third if _only_target(third) or isinstance(third, Tensor) else "..."
        line = f"{call.__name__}(inputs, target={_short(target)})"
    if wrong:
        given = ", ".join(["inputs", *map(_short, args[1:])])
        theirs = "inputs, neuron_selector, baselines" if at_neuron else "inputs, baselines, target"
        raise TypeError(
            f"{call.__name__}({given}) is in the order of Captum's integrated gradients, ({theirs}), and here it is "
            f"({', '.join(names[:3])}) without a baseline; write {line}, and what the model takes besides as "
            "additional_forward_args=..."
        )


def _only_baseline(value: Any) -> bool:
    """Whether it cannot be a target: numbers that are not whole, or a tensor of an input's shape."""
    if isinstance(value, tuple):
        return any(map(_only_baseline, value))
    if isinstance(value, Tensor):
        return value.is_floating_point() or value.ndim > 1
    return isinstance(value, (float, np.floating)) or (isinstance(value, np.ndarray) and value.ndim > 1)


def _only_target(value: Any) -> bool:
    """Whether it is no model's argument that Captum would be given without a name or a tuple around it."""
    if isinstance(value, Tensor):
        return value.ndim == 0 and not value.is_floating_point()
    if isinstance(value, list):
        return bool(value) and all(map(_only_target, value))
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _short(value: Any) -> str:
    """A value in a line of code, or dots."""
    text = repr(value)
    return text if not isinstance(value, (Tensor, np.ndarray)) and len(text) <= 40 else "..."


KEEP = {
    "attention_mask",
    "attention_masks",
    "attn_mask",
    "att_mask",
    "input_mask",
    "mask",
    "masks",
    "token_mask",
}
LEAVE_OUT = {"key_padding_mask", "src_key_padding_mask"}
OTHERS = (
    "type", "segment", "pos", "label", "target", "ids", "head", "global", "encoder", "decoder", "cross", "special",
    "perm", "causal",
)  # fmt: skip


def told_mask(
    forward: Callable[..., Any], inputs: Sequence[Tensor], arguments: Sequence[Any] | None
) -> Tensor | None:
    """Which tokens are real, (B, T), where an argument of the model says that some are padding; else None.

    It must have the shape of the first input's first two dimensions, hold zeros and ones alone, and leave every
    example a token.  Then the name of the forward's parameter decides: ``attention_mask`` and the like
    (``KEEP``) say 1 for a real token, ``src_key_padding_mask`` (``LEAVE_OUT``) for padding, and
    ``token_type_ids``, ``position_ids``, ``labels`` and the like (``OTHERS``) say neither.  Where the name is none of
    these, or there is none (``*args``), an argument counts that is as padding must be: whole numbers or bools,
    ones at one end of every row and in the whole of one, and zeros where token ids are one and the same.
    (``token_type_ids`` begin with 0 in every row.)

    Args:
        forward: the model, or a function of it, as the user gave it.
        inputs: its inputs.
        arguments: what it is given after them.

    Examples::
        >>> import torch
        >>> ids, mask = torch.tensor([[5, 6, 7], [5, 0, 0]]), torch.tensor([[1, 1, 1], [1, 0, 0]])
        >>> told_mask(lambda ids, attention_mask: ids, [ids], [mask]).tolist()
        [[True, True, True], [True, False, False]]
        >>> told_mask(lambda ids, token_type_ids: ids, [ids], [mask]) is None
        True
    """
    found = None
    for _, name, argument in _of_tokens(forward, inputs, arguments):
        if not ((argument == 0) | (argument == 1)).all():
            continue
        real = argument.bool()
        if name in LEAVE_OUT:
            real = ~real
        elif name not in KEEP and (_says_other(name) or not _is_padding(argument, inputs[0])):
            continue
        if real.any(1).all() and not real.all():
            found = real if found is None else found & real.to(found.device)
    return found if found is not None and found.any(1).all() else None


def mask_argument(
    forward: Callable[..., Any], inputs: Sequence[Tensor], arguments: Sequence[Any] | None
) -> tuple[int, bool] | None:
    """Which argument is the attention mask, (B, T), and whether it says 1 for what is left out; None: none is.

    Its name decides, as in :func:`told_mask`; where names say nothing, a mask that is told there, or all ones.
    """
    unnamed = None
    for index, name, argument in _of_tokens(forward, inputs, arguments):
        if name in KEEP or name in LEAVE_OUT:
            return index, name in LEAVE_OUT
        if not _says_other(name) and ((argument == 1).all() or _is_padding(argument, inputs[0])):
            unnamed = index if unnamed is None else unnamed
    return None if unnamed is None else (unnamed, False)


def _of_tokens(
    forward: Callable[..., Any], inputs: Sequence[Tensor], arguments: Sequence[Any] | None
) -> Iterator[tuple[int, str | None, Tensor]]:
    """The arguments that have a number for each token, (B, T): their places, names (None: not known) and values."""
    arguments = arguments or ()
    names = [*parameter_names(forward)[len(inputs) :], *[None] * len(arguments)]
    for index, (name, argument) in enumerate(zip(names, arguments)):
        if isinstance(argument, Tensor) and argument.ndim == 2 and argument.shape == inputs[0].shape[:2]:
            yield index, name, argument


def _says_other(name: str | None) -> bool:
    return name is not None and any(word in name for word in OTHERS)


def _is_padding(argument: Tensor, inputs: Tensor) -> bool:
    """Whether zeros stand as padding does, at one end of each row but not of all, on one token id."""
    if argument.is_floating_point() or not argument.bool().all(1).any():
        return False
    steps = argument.int().diff(dim=1)
    if not ((steps <= 0).all(1) | (steps >= 0).all(1)).all():
        return False
    padding = inputs[(argument == 0).to(inputs.device)]
    return inputs.is_floating_point() or not len(padding) or bool((padding == padding[0]).all())


def parameter_names(forward: Callable[..., Any]) -> list[str]:
    """Names of the parameters that a function or module takes by position."""
    while isinstance(forward, nn.Module):  # compiled and data-parallel modules hold the model itself
        inner = getattr(forward, "_orig_mod", None) or (
            forward.module if isinstance(forward, nn.DataParallel) else None
        )
        forward = forward.forward if inner is None else inner
    try:
        parameters: Mapping[str, inspect.Parameter] = inspect.signature(forward).parameters
    except (TypeError, ValueError):  # a builtin, which says nothing of itself
        return []
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [name for name, parameter in parameters.items() if parameter.kind in by_position]


def repeated(value: Value, batch: int, ndim: int) -> Value:
    """What has an entry for each of fewer examples, each entry as often as NoiseTunnel and sensitivity_max repeat it.

    Args:
        value: whatever the caller gave; a tensor of ``ndim`` dimensions whose length divides ``batch`` is repeated.
        batch: examples there are, those of one original next to each other.
        ndim: dimensions of a value with one entry an example.

    Examples::
        >>> import torch
        >>> repeated(torch.tensor([1.0, 2.0]), 4, 1).tolist()
        [1.0, 1.0, 2.0, 2.0]
    """
    if (
        not isinstance(value, Tensor)
        or value.ndim != ndim
        or not 1 < len(value) < batch
        or batch % len(value)
    ):
        return value
    return cast(Value, value.repeat_interleave(batch // len(value), 0))
