"""What our Captum attributions share: arguments checked, and the model posed as a function from noise to state."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

from captum._utils.common import (
    _format_additional_forward_args,
    _format_output,
    _format_tensor_into_tuples,
    _run_forward,
    _validate_target,
)
from captum.attr._utils.attribution import Attribution
from torch import Tensor, equal, nn

from interp_plugin.arguments import repeated, told_mask
from interp_plugin.padding import FULL, lengths_of
from interp_plugin.problem import Problem, Terms, pose, warn_of_training
from interp_plugin.state import LayerCall, NoisyModel, Selector, Site, module_of

Tensors = Tensor | tuple[Tensor, ...]
At = TypeVar("At", bound="AtLayer")


@dataclass(frozen=True)
class ModelRows:
    """Runs ``forward_func`` on rows: arguments and targets that have one entry an example follow the rows.

    Where ``tokens`` are known, arguments that have one entry a token are cut to the length of the inputs.
    """

    module: Callable[..., Any]
    batch: int
    target: Any
    arguments: tuple[Any, ...] | None
    tokens: int | None = None

    def __call__(self, inputs: tuple[Tensor, ...], rows: Tensor) -> Tensor:
        arguments = self.arguments and tuple(self._at(a, rows, inputs[0].shape[1]) for a in self.arguments)
        output = _run_forward(self.module, inputs, self._target_at(rows), arguments)
        return cast(Tensor, output)

    def at(self, rows: Tensor) -> ModelRows:
        """The same for rows as examples of their own."""
        arguments = self.arguments and tuple(self._at(a, rows, self.tokens) for a in self.arguments)
        return replace(self, batch=len(rows), target=self._target_at(rows), arguments=arguments)

    def _at(self, argument: Any, rows: Tensor, length: int | None) -> Any:
        if not isinstance(argument, Tensor) or not argument.ndim or len(argument) != self.batch:
            return argument
        if argument.shape[1:2] == (self.tokens,):
            argument = argument[:, :length]
        return argument[rows.to(argument.device)]

    def is_told(self, mask: Tensor) -> bool:
        """Whether an argument says which tokens are real, (B, T), and all arguments can be cut after any of them."""
        told, (batch, tokens) = False, mask.shape
        for argument in self.arguments or ():
            if not isinstance(argument, (Tensor, bool, int, float, str, type(None))):
                return False
            if isinstance(argument, Tensor) and tokens in argument.shape:
                if argument.shape[:2] != (batch, tokens) or tokens in argument.shape[2:]:
                    return False
                real = argument.bool()
                told |= argument.ndim == 2 and any(equal(m, mask.to(m.device)) for m in (real, ~real))
        return told

    def _target_at(self, rows: Tensor) -> Any:
        if isinstance(self.target, list):
            return [self.target[row] for row in rows.tolist()]
        if isinstance(self.target, Tensor) and self.target.numel() > 1:
            return self.target[rows.to(self.target.device)]
        return self.target


def _leave_padding_out(problem: Problem) -> None:
    """Spare a batch of texts of different lengths most of its padding, where the model is given a mask of it."""
    objective, model = problem.objective, problem.objective.model
    forward, mask, [origin, *others] = cast(ModelRows, model.forward), objective.groups.active, model.origin
    lengths = lengths_of(mask)
    if others or lengths is None or lengths.min() >= FULL * mask.shape[1]:
        return
    tensors = (origin, *model.inputs)
    if origin.ndim == 3 and all(x.shape[:2] == mask.shape for x in tensors) and forward.is_told(mask):
        model.forward = replace(forward, tokens=mask.shape[1])
        objective.leave_padding_out(lengths)


def input_of(layer: Site) -> LayerCall:
    """The input of a layer, whose output (or input) was meant."""
    return replace(layer, side="input") if isinstance(layer, LayerCall) else LayerCall(layer, None, "input")


class TokenAttribution(Attribution):
    """A score for each input token of what a state of the model says of it.

    Args:
        forward_func: the model, or any function of it.
        state_layer: the module whose output is the state; None: the output of ``forward_func``.
    """

    input_setting: str | None = None  # Captum's name of what moves noise or state to a layer's input

    def __init__(self, forward_func: Callable[..., Any], state_layer: Site | None = None) -> None:
        super().__init__(forward_func)
        if not isinstance(state_layer, (nn.Module, LayerCall, type(None))):
            raise TypeError(
                f"state_layer is {state_layer!r}, a {type(state_layer).__name__}; give the module whose output is the "
                "state (model.get_submodule finds one by its dotted name), or None for the forward's output"
            )
        self.state_layer = state_layer

    def attribute_future(self) -> None:
        """Not offered."""
        raise NotImplementedError(f"attribute_future is not implemented for {type(self).__name__}")

    def _model(
        self,
        inputs: tuple[Tensor, ...],
        target: Any,
        additional_forward_args: Any,
        neuron_selector: Selector | None,
        internal_batch_size: int | None,
    ) -> NoisyModel:
        """The model as a function from noise to state, its arguments checked."""
        if target is not None and self.state_layer is not None:
            raise ValueError(
                f"target={target!r} picks an output, but the state is at {type(module_of(self.state_layer)).__name__}; "
                "use neuron_selector to pick a part of that layer, or leave state_layer out"
            )
        batch = len(inputs[0])
        if not batch or not all(x.numel() for x in inputs):
            raise ValueError(
                f"inputs of shape {[tuple(x.shape) for x in inputs]} are empty; give at least one example and token"
            )
        if any(x.ndim < 2 for x in inputs):
            raise ValueError(
                f"inputs of shape {[tuple(x.shape) for x in inputs]} have no dimension but the batch; give (B, ...), "
                "one example as inputs.unsqueeze(0)"
            )
        if any(len(x) != batch for x in inputs):
            raise ValueError(f"inputs have batch sizes {[len(x) for x in inputs]}; they must agree")
        if internal_batch_size is not None and internal_batch_size < 1:
            raise ValueError(
                f"internal_batch_size is {internal_batch_size}; give a positive number of rows or None"
            )
        _validate_target(batch, target)
        arguments = _format_additional_forward_args(additional_forward_args)
        forward = ModelRows(self.forward_func, batch, target, arguments)
        return NoisyModel(
            forward,
            inputs,
            self._noise_layer(),
            self.state_layer,
            neuron_selector,
            max_rows=internal_batch_size,
        )

    def _noise_layer(self) -> Site | None:
        return None

    def _checked_inputs(self, inputs: Tensors) -> tuple[Tensor, ...]:
        tensors = _format_tensor_into_tuples(inputs)
        for tensor in tensors:
            if not tensor.is_floating_point():
                raise TypeError(
                    f"inputs are of type {tensor.dtype}, and noise needs floating point numbers; for token ids use "
                    "LayerInformationLoss(forward_func, layer=the embedding layer)"
                )
        return tuple(tensor.detach() for tensor in tensors)

    def _problem(
        self,
        inputs: Tensors,
        target: Any,
        additional_forward_args: Any,
        feature_mask: Tensors | None,
        neuron_selector: Selector | None,
        token_mask: Tensor | None,
        terms: Terms,
        internal_batch_size: int | None,
    ) -> Problem:
        """Check the arguments, run the model once without noise, and set up what the solver needs."""
        model = self._model(
            self._checked_inputs(inputs),
            target,
            additional_forward_args,
            neuron_selector,
            internal_batch_size,
        )
        warn_of_training(self.forward_func, module_of(self.state_layer), module_of(self._noise_layer()))
        mask = None if feature_mask is None else _format_tensor_into_tuples(feature_mask)
        whole = model.clean()[0]
        if mask is None and token_mask is None:
            token_mask = self._told_mask(model)
        token_mask = repeated(token_mask, model.batch, 2)
        if mask is not None:
            mask = tuple(repeated(m, model.batch, m.ndim) for m in mask)
        problem = pose(model, terms, mask, token_mask, whole=whole)
        if mask is None and token_mask is not None:
            _leave_padding_out(problem)
        return problem

    def _told_mask(self, model: NoisyModel) -> Tensor | None:
        """Which tokens an argument of the model says are real, (B, T), where those tokens bear the noise."""
        mask = told_mask(self.forward_func, model.inputs, cast(ModelRows, model.forward).arguments)
        [origin, *others] = model.origin
        return mask if mask is not None and not others and origin.shape[:-1] == mask.shape else None

    def _shaped(self, problem: Problem, values: Tensor, share: bool, is_tuple: bool) -> Tensors:
        """Values of the tokens, (B, T), in the shapes of what bears the noise: each element has its share, or all."""
        if share:
            values = values / problem.objective.groups.sizes.to(values).clamp(min=1)
        return cast(Tensors, _format_output(is_tuple and self._noise_layer() is None, problem.shaped(values)))


class AtLayer(TokenAttribution):
    """The same with tokens that are the (first) output of a layer, whatever the model's inputs are.

    Args:
        forward_func: the model, or any function of it.
        layer: the module whose output holds the tokens; it must fire once in a forward.
        state_layer: the module whose output is the state; None: the output of ``forward_func``.
    """

    input_setting = "attribute_to_layer_input"

    def __init__(
        self, forward_func: Callable[..., Any], layer: Site, state_layer: Site | None = None
    ) -> None:
        super().__init__(forward_func, state_layer)
        if not isinstance(layer, (nn.Module, LayerCall)):
            raise TypeError(
                f"layer is a {type(layer).__name__}, and noise enters at one module's output; give one module, and one "
                "call for each of several"
            )
        self.layer = layer

    def at_input(self: At) -> At:
        """The same method with the noise at the layer's input."""
        moved = copy.copy(self)
        moved.layer = input_of(self.layer)
        return moved

    def _noise_layer(self) -> Site | None:
        return self.layer

    def _checked_inputs(self, inputs: Tensors) -> tuple[Tensor, ...]:
        return tuple(tensor.detach() for tensor in _format_tensor_into_tuples(inputs))
