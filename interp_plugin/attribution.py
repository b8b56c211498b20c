"""Captum attribution classes for information loss and erasure, and their checks of Captum-style arguments."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, cast

import numpy as np
import torch
from captum._utils.common import (
    _format_additional_forward_args,
    _format_output,
    _format_tensor_into_tuples,
    _run_forward,
    _validate_target,
)
from captum.attr import LLMAttributionResult, LLMGradientAttribution
from captum.attr._utils.attribution import Attribution
from captum.log import log_usage
from torch import Tensor, equal, nn

from interp_plugin.method.erasure import (
    PASSES,
    Erasing,
    Erasure,
    ErasureFit,
    Side,
    Way,
    check_ways,
    learn_erasure,
)
from interp_plugin.method.perturbation import (
    FULL,
    LayerCall,
    NoisyModel,
    RunningStd,
    Selector,
    Site,
    gradients,
    lengths_of,
    module_of,
    turned,
)
from interp_plugin.method.problem import (
    Problem,
    Terms,
    nothing,
    pose,
    repeated,
    warn_of_quality,
    warn_of_training,
)
from interp_plugin.method.solver import NoiseFit, Solver

Call = TypeVar("Call", bound=Callable[..., Any])

_INSTEAD = {
    "noise needs no baseline: leave it out": ("baselines", "baseline", "draw_baseline_from_distrib"),
    "set accuracy and number of passes with solver=Solver(...)": ("n_steps", "n_samples", "perturb_func"),
    "there is one method: leave it out": (
        "method", "custom_attribution_func", "use_weights", "interpretable_model", "multiply_by_inputs",
    ),
    "scores need not sum to an output; fit(...) reports convergence": ("return_convergence_delta",),
    "gradients are taken only with respect to the noise: leave it out": ("grad_kwargs",),
    "it is an argument of LayerInformationLoss": ("attribute_to_layer_input",),
    "it is an argument of NeuronInformationLoss": ("attribute_to_neuron_input",),
    "bound the memory with internal_batch_size": ("perturbations_per_eval", "batch_size"),
    "wrap the method: NoiseTunnel(method).attribute(...)": (
        "stdevs", "nt_type", "nt_samples", "nt_samples_batch_size",
    ),
    "define tokens with feature_mask": ("sliding_window_shapes", "strides"),
    "neuron_selector picks the state: leave it out": ("target",),
    "score='kept' is never negative": ("relu_attributions", "abs"),
}  # fmt: skip
FOREIGN = {name: instead for instead, names in _INSTEAD.items() for name in names}
"""Arguments of Captum's other methods -> what to use here instead."""


def captum_call(call: Call) -> Call:
    """Accept Captum-style arguments of a method where they have a meaning, and explain in an error where not.

    ``call`` takes (inputs, target, additional_forward_args, ...) and keeps its signature.  Its object has
    ``input_setting``, the name of Captum's argument that selects the input of ``layer`` in place of its output.
    """

    @functools.wraps(call)
    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.input_setting is not None and kwargs.pop(self.input_setting, False):
            layer = self.layer if isinstance(self.layer, LayerCall) else LayerCall(self.layer, None)
            self = copy.copy(self)
            self.layer = replace(layer, side="input")
        refuse_order(call, args)
        refuse_settings(
            f"{type(self).__name__}.{call.__name__}", args, kwargs, inspect.signature(call).parameters
        )
        return call(self, *args, **kwargs)

    return cast(Call, called)


def refuse_settings(
    name: str, args: Sequence[Any], settings: dict[str, Any], own: Container[str] = ()
) -> None:
    """Remove arguments of Captum's other methods that are None or False, and raise an error for any others.

    Args:
        name: name of the called method.
        args: its positional arguments, for the message.
        settings: its keyword arguments; changed in place.
        own: names of the arguments that the method itself accepts.
    """
    foreign = {key: settings.pop(key) for key in list(settings) if key in FOREIGN and key not in own}
    refused = {key: value for key, value in foreign.items() if value is not None and value is not False}
    if not refused:
        return
    why = "; ".join(dict.fromkeys(FOREIGN[key] for key in refused))
    theirs, ours = ([f"{key}={_short(value)}" for key, value in part.items()] for part in (refused, settings))
    are, mean = ("is a setting", "means") if len(refused) == 1 else ("are settings", "mean")
    raise TypeError(
        f"{', '.join(theirs)} {are} of Captum's other methods and {mean} nothing to {name} ({why}); write "
        f"{name.rpartition('.')[2]}({', '.join(['inputs', *map(_short, args[1:]), *ours])})"
    )


def refuse_order(call: Callable[..., Any], args: Sequence[Any]) -> None:
    """Raise an error for positional arguments in the order of integrated gradients: (inputs, baselines, target)."""
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
            f"({', '.join(names[:3])}) without a baseline; write {line}, and give further arguments of the model as "
            "additional_forward_args=..."
        )


def _only_baseline(value: Any) -> bool:
    """Whether a value can be a baseline but not a target: fractional numbers, or more than one dimension."""
    if isinstance(value, tuple):
        return any(map(_only_baseline, value))
    if isinstance(value, Tensor):
        return value.is_floating_point() or value.ndim > 1
    return isinstance(value, (float, np.floating)) or (isinstance(value, np.ndarray) and value.ndim > 1)


def _only_target(value: Any) -> bool:
    """Whether a value can be a target but not an additional argument of the model: an integer or a list of them."""
    if isinstance(value, Tensor):
        return value.ndim == 0 and not value.is_floating_point()
    if isinstance(value, list):
        return bool(value) and all(map(_only_target, value))
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _short(value: Any) -> str:
    """Return the repr of a value for a line of code, or "..." if it is long."""
    text = repr(value)
    return text if not isinstance(value, (Tensor, np.ndarray)) and len(text) <= 40 else "..."


TOKEN_MASKS = {
    "attention_mask", "attention_masks", "attn_mask", "att_mask", "input_mask", "mask", "masks", "token_mask",
}  # fmt: skip
PADDING_MASKS = {"key_padding_mask", "src_key_padding_mask"}
OTHER_ARGUMENTS = (
    "type", "segment", "pos", "label", "target", "ids", "head", "global", "encoder", "decoder", "cross", "special",
    "perm", "causal",
)  # fmt: skip


def inferred_token_mask(
    forward: Callable[..., Any], inputs: Sequence[Tensor], arguments: Sequence[Any] | None
) -> Tensor | None:
    """Infer which tokens are real and which are padding, (B, T), from the model's arguments; None if none says so.

    A mask has the shape of the first two dimensions of the first input, holds only zeros and ones, and keeps at least
    one token of each example.  The name of the forward's parameter decides what it means: in ``attention_mask`` and
    the like (``TOKEN_MASKS``) 1 is a real token, in ``src_key_padding_mask`` (``PADDING_MASKS``) 1 is padding, and
    ``token_type_ids``, ``position_ids``, ``labels`` and the like (``OTHER_ARGUMENTS``) are no masks.  An argument with
    another name, or with none (``*args``), is a mask if it looks like one: integers or bools, the ones contiguous at
    one end of each row, one row of ones only, and the same token id wherever it is zero.  (``token_type_ids`` begin
    with 0 in every row.)

    Args:
        forward: the model or a function of it, as the user gave it.
        inputs: inputs of the model.
        arguments: arguments of the model after the inputs.

    Examples::
        >>> import torch
        >>> ids, mask = torch.tensor([[5, 6, 7], [5, 0, 0]]), torch.tensor([[1, 1, 1], [1, 0, 0]])
        >>> inferred_token_mask(lambda ids, attention_mask: ids, [ids], [mask]).tolist()
        [[True, True, True], [True, False, False]]
        >>> inferred_token_mask(lambda ids, token_type_ids: ids, [ids], [mask]) is None
        True
    """
    found = None
    for _, name, argument in _token_arguments(forward, inputs, arguments):
        if not ((argument == 0) | (argument == 1)).all():
            continue
        real = argument.bool()
        if name in PADDING_MASKS:
            real = ~real
        elif name not in TOKEN_MASKS and (_is_other(name) or not _is_padding(argument, inputs[0])):
            continue
        if real.any(1).all() and not real.all():
            found = real if found is None else found & real.to(found.device)
    return found if found is not None and found.any(1).all() else None


def mask_argument(
    forward: Callable[..., Any], inputs: Sequence[Tensor], arguments: Sequence[Any] | None
) -> tuple[int, bool] | None:
    """Return the index of the attention mask among the arguments, and whether 1 means padding in it; None if none.

    The name decides, as in :func:`inferred_token_mask`; an unnamed argument counts if it looks like a mask or holds
    only ones.
    """
    unnamed = None
    for index, name, argument in _token_arguments(forward, inputs, arguments):
        if name in TOKEN_MASKS or name in PADDING_MASKS:
            return index, name in PADDING_MASKS
        if not _is_other(name) and ((argument == 1).all() or _is_padding(argument, inputs[0])):
            unnamed = index if unnamed is None else unnamed
    return None if unnamed is None else (unnamed, False)


def _token_arguments(
    forward: Callable[..., Any], inputs: Sequence[Tensor], arguments: Sequence[Any] | None
) -> Iterator[tuple[int, str | None, Tensor]]:
    """Yield the arguments with one number for each token, (B, T): index, name (None if unknown) and value."""
    arguments = arguments or ()
    names = [*parameter_names(forward)[len(inputs) :], *[None] * len(arguments)]
    for index, (name, argument) in enumerate(zip(names, arguments)):
        if isinstance(argument, Tensor) and argument.ndim == 2 and argument.shape == inputs[0].shape[:2]:
            yield index, name, argument


def _is_other(name: str | None) -> bool:
    return name is not None and any(word in name for word in OTHER_ARGUMENTS)


def _is_padding(argument: Tensor, inputs: Tensor) -> bool:
    """Whether the zeros look like padding: at one end of each row, not in every row, all on the same token id."""
    if argument.is_floating_point() or not argument.bool().all(1).any():
        return False
    steps = argument.int().diff(dim=1)
    if not ((steps <= 0).all(1) | (steps >= 0).all(1)).all():
        return False
    padding = inputs[(argument == 0).to(inputs.device)]
    return inputs.is_floating_point() or not len(padding) or bool((padding == padding[0]).all())


def parameter_names(forward: Callable[..., Any]) -> list[str]:
    """Return the names of the positional parameters of a function or module."""
    while isinstance(forward, nn.Module):  # unwrap compiled and data-parallel modules
        inner = getattr(forward, "_orig_mod", None) or (
            forward.module if isinstance(forward, nn.DataParallel) else None
        )
        forward = forward.forward if inner is None else inner
    try:
        parameters: Mapping[str, inspect.Parameter] = inspect.signature(forward).parameters
    except (TypeError, ValueError):  # builtins may have no signature
        return []
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [name for name, parameter in parameters.items() if parameter.kind in by_position]


Tensors = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class ModelRows:
    """Runs ``forward_func`` on rows, with the arguments and targets of the example of each row.

    If ``tokens`` is given, arguments with one entry for each token are cut to the length of the inputs.
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
        """Return a copy in which each of these rows is an example of its own."""
        arguments = self.arguments and tuple(self._at(a, rows, self.tokens) for a in self.arguments)
        return replace(self, batch=len(rows), target=self._target_at(rows), arguments=arguments)

    def _at(self, argument: Any, rows: Tensor, length: int | None) -> Any:
        if not isinstance(argument, Tensor) or not argument.ndim or len(argument) != self.batch:
            return argument
        if argument.shape[1:2] == (self.tokens,):
            argument = argument[:, :length]
        return argument[rows.to(argument.device)]

    def can_be_cut(self, mask: Tensor) -> bool:
        """Whether an argument equals this token mask, (B, T), and all arguments can be cut to fewer tokens."""
        found, (batch, tokens) = False, mask.shape
        for argument in self.arguments or ():
            if not isinstance(argument, (Tensor, bool, int, float, str, type(None))):
                return False
            if isinstance(argument, Tensor) and tokens in argument.shape:
                if argument.shape[:2] != (batch, tokens) or tokens in argument.shape[2:]:
                    return False
                real = argument.bool()
                found |= argument.ndim == 2 and any(equal(m, mask.to(m.device)) for m in (real, ~real))
        return found

    def _target_at(self, rows: Tensor) -> Any:
        if isinstance(self.target, list):
            return [self.target[row] for row in rows.tolist()]
        if isinstance(self.target, Tensor) and self.target.numel() > 1:
            return self.target[rows.to(self.target.device)]
        return self.target


def _leave_padding_out(problem: Problem) -> None:
    """Skip most of the padding of a batch of texts of different lengths, if the model gets a mask of it."""
    objective, model = problem.objective, problem.objective.model
    forward, mask, [origin, *others] = cast(ModelRows, model.forward), objective.groups.active, model.origin
    lengths = lengths_of(mask)
    if others or lengths is None or lengths.min() >= FULL * mask.shape[1]:
        return
    tensors = (origin, *model.inputs)
    if origin.ndim == 3 and all(x.shape[:2] == mask.shape for x in tensors) and forward.can_be_cut(mask):
        model.forward = replace(forward, tokens=mask.shape[1])
        objective.leave_padding_out(lengths)


class TokenAttribution(Attribution):
    """Base class: one score for each input token, with respect to a state of the model.

    Args:
        forward_func: the model, or any function of it.
        state_layer: the module whose output is the state; None: the output of ``forward_func``.
    """

    layer: Site | None = None  # noise is added to its output; None: to the inputs
    input_setting: str | None = (
        None  # Captum's argument that selects the layer's input in place of its output
    )
    has_draws = False  # whether noise is drawn, which belongs to positions

    def __init__(self, forward_func: Callable[..., Any], state_layer: Site | None = None) -> None:
        super().__init__(forward_func)
        if not isinstance(state_layer, (nn.Module, LayerCall, type(None))):
            raise TypeError(
                f"state_layer is {state_layer!r}, a {type(state_layer).__name__}; give the module whose output is the "
                "state (model.get_submodule finds one by its dotted name), or None for the forward's output"
            )
        self.state_layer = state_layer

    def attribute_future(self) -> None:
        """Not implemented."""
        raise NotImplementedError(f"attribute_future is not implemented for {type(self).__name__}")

    def _model(
        self,
        inputs: tuple[Tensor, ...],
        target: Any,
        additional_forward_args: Any,
        neuron_selector: Selector | None,
        internal_batch_size: int | None,
    ) -> NoisyModel:
        """Check the arguments and build the model as a function from noise to state."""
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
            forward, inputs, self.layer, self.state_layer, neuron_selector, max_rows=internal_batch_size
        )

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
        tensors = tuple(tensor.detach() for tensor in _format_tensor_into_tuples(inputs))
        for tensor in tensors if self.layer is None else ():
            if not tensor.is_floating_point():
                raise TypeError(
                    f"inputs are of type {tensor.dtype}, and noise needs floating point numbers; for token ids use "
                    "LayerInformationLoss(forward_func, layer=the embedding layer)"
                )
        model = self._model(tensors, target, additional_forward_args, neuron_selector, internal_batch_size)
        warn_of_training(self.forward_func, module_of(self.state_layer), module_of(self.layer))
        mask = None if feature_mask is None else _format_tensor_into_tuples(feature_mask)
        whole = model.clean()[0]
        if mask is None and token_mask is None:
            token_mask = self._inferred_token_mask(model)
        token_mask = repeated(token_mask, model.batch, 2)
        if mask is not None:
            dims = (
                [x.ndim for x in model.origin] if len(mask) == len(model.origin) else [m.ndim for m in mask]
            )
            mask = tuple(repeated(m, model.batch, ndim) for m, ndim in zip(mask, dims))
        starts = None if mask is not None else self._starts(model, terms, token_mask, whole)
        if starts is not None:
            model = model.from_first_tokens(starts)
            whole = model.turned_state(whole, torch.arange(len(whole)))
            token_mask = turned(cast(Tensor, token_mask), starts)
        problem = pose(model, terms, mask, token_mask, whole=whole)
        if mask is None and token_mask is not None and starts is None:
            _leave_padding_out(problem)
        return problem

    def _starts(
        self, model: NoisyModel, terms: Terms, token_mask: Tensor | None, whole: Tensor
    ) -> Tensor | None:
        """Return the length of the padding before each example's tokens, (B,), from which its draws are counted.

        None: there is none, or a setting is of the state's own positions.
        """
        [origin, *others] = model.origin
        is_mask = isinstance(token_mask, Tensor) and token_mask.shape == origin.shape[:2]
        if not self.has_draws or others or not is_mask:
            return None
        mask, index = cast(Tensor, token_mask).to(origin.device).bool(), model.selector
        picks = index is not None and not (isinstance(index, tuple) and index[0] == slice(None))
        if whole.ndim > 2 and (picks or getattr(terms.state_std, "ndim", 0) > 1):
            return None
        lengths = lengths_of(mask.flip(1))
        return None if lengths is None or mask.all() else mask.shape[1] - lengths

    def _inferred_token_mask(self, model: NoisyModel) -> Tensor | None:
        """Return the token mask among the model's arguments, (B, T), if noise is added to the tokens it describes."""
        mask = inferred_token_mask(self.forward_func, model.inputs, cast(ModelRows, model.forward).arguments)
        [origin, *others] = model.origin
        return mask if mask is not None and not others and origin.shape[:-1] == mask.shape else None

    def _returned(
        self, problem: Problem, values: Tensor, inputs: Tensors, in_input_shape: bool, share: bool = True
    ) -> Tensors:
        """Return the tokens' values, (B, T), or spread over the elements that receive the noise.

        Each element gets an equal share of its token's value (``share``), or the value itself.
        """
        if not in_input_shape:
            return values
        if share:
            values = values / problem.objective.groups.sizes.to(values).clamp(min=1)
        is_tuple = isinstance(inputs, tuple) and self.layer is None
        return cast(Tensors, _format_output(is_tuple, problem.shaped(values)))


class AtLayer(TokenAttribution):
    """Base class whose tokens are the (first) output of a layer, whatever the model's inputs are.

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


Baselines = float | int | Tensor | tuple[float | int | Tensor, ...]


class InformationErased(TokenAttribution):
    r"""How much of a state of the model is lost when each input token is erased.

    Learns the erasure probabilities p_i that damage the state most with the fewest erasures (side "damage"), or least
    with the most (side "keep")::

        max_p  Delta(p) - T sum_i KL(p_i || pi),   Delta(p) = E_{b ~ p} Delta(b)

    where Delta(b) is the damage of erasing the tokens b: the decrease of a scalar state (a ``target``, one neuron), or
    the distortion D of any other state.  The score of a token is dDelta/dp_i, the damage of its erasure averaged over
    the erasures of the others: positive if the token supports the state, negative if it counts against it.
    :class:`InformationLoss` measures how *precisely* a state knows each token (Gaussian channel); this class measures
    which tokens *carry* the state (erasure channel, see ``method.erasure``).

    To explain a class, use its log-odds: ``lambda *x: log_odds(model(*x).logits, target)`` without a ``target``.  A
    logit is used unchanged.

    The inputs must be floating point tensors (embeddings, images, ...); for token ids use
    :class:`LayerInformationErased`.

    Args:
        forward_func: the model, or any function of it.
        state_layer: the module whose output is the state; None: the output of ``forward_func``.

    Examples::
        >>> import torch
        >>> from interp_plugin import InformationErased
        >>> weights = torch.tensor([[1.0], [2.0], [-4.0]])
        >>> method = InformationErased(lambda x: (weights * x).sum((1, 2)))  # 3 tokens of one element
        >>> method.attribute(torch.ones(1, 3, 1))[0, :, 0].tolist()
        [1.0, 2.0, -4.0]
    """

    @log_usage(part_of_slo=True)
    @captum_call
    def attribute(
        self,
        inputs: Tensors,
        baselines: Baselines | None = None,
        target: Any = None,
        additional_forward_args: Any = None,
        feature_mask: Tensors | None = None,
        neuron_selector: Selector | None = None,
        token_mask: Tensor | None = None,
        state_std: float | Tensor | None = None,
        side: Side = "damage",
        ways: Sequence[Way] = ("mask",),
        passes: int = PASSES,
        seed: int = 0,
        return_input_shape: bool = True,
        internal_batch_size: int | None = None,
    ) -> Tensors:
        """Compute the score of every token.

        The scores of an example do not depend on the rest of the batch, nor on padding that is masked.

        Args:
            inputs, target, additional_forward_args, feature_mask, neuron_selector, token_mask, state_std,
                internal_batch_size: as in :meth:`InformationLoss.attribute`.
            baselines: replacement of an erased token, as in Captum's integrated gradients: a number or a tensor that
                broadcasts to the inputs; for token ids, an id or ids like the inputs (or floating point values that
                broadcast to the layer's output, such as a vector (K,)).  A token that equals its baseline is never
                erased: make special tokens their own baselines (``torch.where(is_special, ids, mask_id)``).  None:
                the mean row of the table if the layer is an ``nn.Embedding``, otherwise zeros.
            side: "damage": the fewest erasures that damage most; "keep": the most erasures that damage least.
            ways: how tokens are erased, one or more of "mask" (replaced by their baseline), "attention" (replaced, and
                hidden by the attention mask among ``additional_forward_args``) and "delete" (removed from dimension 1
                of the inputs and of all arguments that have it).  The damage is their weighted mean, in which each but
                the first has weight 0.2; all are evaluated on the same masks.
            passes: forward and backward passes for each way, whatever the number of tokens; 16 of them compute
                integrated gradients.  If the others suffice for all erasures (six tokens at 100 passes), all are
                enumerated and the scores are exact.
            seed: seed of the random masks.
            return_input_shape: True: the shape of the inputs, each element with its share, so that ``.sum(dim=-1)``
                is the token's score.  False: (B, T).

        Returns:
            float32, detached; shaped like ``inputs``, or (B, T).

        Raises:
            TypeError, ValueError, AssertionError: as in :meth:`InformationLoss.attribute`; an unknown side or way; way
                "attention" without an attention mask.
        """
        settings = Erasure(side, passes, seed)
        problem = self._problem(
            inputs, target, additional_forward_args, feature_mask, neuron_selector, token_mask,
            Terms(1.0, None, state_std, 1.0), internal_batch_size,
        )  # fmt: skip
        fit = self._learned(problem, inputs, baselines, settings, ways)
        return self._returned(problem, fit.score.to(problem.objective.device), inputs, return_input_shape)

    @captum_call
    def fit(
        self,
        inputs: Tensors,
        baselines: Baselines | None = None,
        target: Any = None,
        additional_forward_args: Any = None,
        feature_mask: Tensors | None = None,
        neuron_selector: Selector | None = None,
        token_mask: Tensor | None = None,
        state_std: float | Tensor | None = None,
        side: Side = "damage",
        ways: Sequence[Way] = ("mask",),
        passes: int = PASSES,
        seed: int = 0,
        internal_batch_size: int | None = None,
    ) -> ErasureFit:
        """Return scores with standard errors, p and the damage; arguments as in :meth:`attribute`."""
        settings = Erasure(side, passes, seed)
        problem = self._problem(
            inputs, target, additional_forward_args, feature_mask, neuron_selector, token_mask,
            Terms(1.0, None, state_std, 1.0), internal_batch_size,
        )  # fmt: skip
        return self._learned(problem, inputs, baselines, settings, ways)

    def _learned(
        self,
        problem: Problem,
        inputs: Tensors,
        baselines: Baselines | None,
        settings: Erasure,
        ways: Sequence[Way],
    ) -> ErasureFit:
        ways = check_ways(ways)
        baseline = self._baseline(problem, _format_tensor_into_tuples(inputs), baselines)
        edit = _Edit(self.forward_func, problem.objective.model)
        erasing = Erasing(problem.objective, baseline, ways, edit)
        with gradients():
            return learn_erasure(erasing.players, erasing.damage, erasing.prior, settings, len(ways))

    def _baseline(self, problem: Problem, inputs: tuple[Tensor, ...], baselines: Baselines | None) -> Tensor:
        """Return the replacement of erased tokens; it broadcasts to (B, N)."""
        if baselines is None:
            return nothing(module_of(self.layer), problem.objective)
        parts = _shaped_like(problem.objective.model.origin, baselines)
        return torch.cat([part.flatten(1) for part in parts], 1)


def _shaped_like(tensors: tuple[Tensor, ...], baselines: Baselines) -> tuple[Tensor, ...]:
    """Broadcast baselines to the shapes and types of the tensors that they replace."""
    values = baselines if isinstance(baselines, tuple) else (baselines,) * len(tensors)
    if len(values) != len(tensors):
        raise ValueError(f"baselines has {len(values)} parts for {len(tensors)} inputs; give one for each")
    parts = []
    for value, tensor in zip(values, tensors):
        value = torch.as_tensor(value, device=tensor.device).to(tensor.dtype)
        try:
            parts.append(value.broadcast_to(tensor.shape))
        except RuntimeError as error:
            raise ValueError(
                f"baselines of shape {tuple(value.shape)} do not broadcast to {tuple(tensor.shape)}, the shape of "
                "what they replace"
            ) from error
    return tuple(parts)


class LayerInformationErased(AtLayer, InformationErased):
    """:class:`InformationErased` whose tokens are a layer's output: for token ids, the output of the embedding layer.

    A drop-in replacement for Captum's ``LayerIntegratedGradients``: ``inputs`` are whatever the model takes (ids), and
    ``baselines`` are ids like them, one id (of the mask token), or vectors like the layer's output.

    Args:
        forward_func: the model, or any function of it.
        layer: the module whose (first) output is erased; it must fire once in a forward.
        state_layer: the module whose output is the state; None: the output of ``forward_func``.

    Examples::
        >>> import torch
        >>> from interp_plugin import LayerInformationErased
        >>> _ = torch.manual_seed(0)
        >>> embed, head = torch.nn.Embedding(50, 16), torch.nn.Linear(16, 4)
        >>> method = LayerInformationErased(lambda ids: head(embed(ids).tanh().sum(1)), embed)
        >>> ids = torch.tensor([[3, 14, 15, 49]])
        >>> scores = method.attribute(ids, baselines=49, target=1, return_input_shape=False)
        >>> scores.shape, float(scores[0, 3])  # a token that is its own baseline is not erased
        (torch.Size([1, 4]), 0.0)
    """

    def _baseline(self, problem: Problem, inputs: tuple[Tensor, ...], baselines: Baselines | None) -> Tensor:
        if baselines is None or all(x.is_floating_point() for x in inputs):
            return super()._baseline(problem, inputs, baselines)
        values = baselines if isinstance(baselines, tuple) else (baselines,)
        are_vectors = [torch.as_tensor(value).is_floating_point() for value in values]
        if any(are_vectors):  # they replace vectors of the layer's output
            return super()._baseline(problem, inputs, baselines)
        ids = tuple(part.contiguous() for part in _shaped_like(inputs, baselines))
        model = replace(problem.objective.model, inputs=ids).learned_from(problem.objective.model)
        model.read([])
        [origin] = model.origin
        return origin.flatten(1)


@dataclass(frozen=True)
class _Edit:
    """Builds the model on rows with tokens hidden from attention or deleted."""

    function: Callable[..., Any]  # as the user gave it: its parameter names identify the attention mask
    model: NoisyModel

    def __call__(self, way: Way, examples: Tensor, kept: Tensor) -> NoisyModel:
        forward = cast(ModelRows, self.model.forward)
        rows = forward.at(examples)
        inputs = tuple(x[examples.to(x.device)] for x in self.model.inputs)
        if way == "attention":
            return self._hidden(rows, inputs, kept)
        places = kept.nonzero()[:, 1].reshape(len(kept), -1)

        def remaining(x: Any) -> Any:
            if not isinstance(x, Tensor) or x.shape[:2] != kept.shape:
                return x
            index = places.to(x.device).reshape(*places.shape, *[1] * (x.ndim - 2))
            return x.gather(1, index.expand(*places.shape, *x.shape[2:]))

        arguments = None if rows.arguments is None else tuple(map(remaining, rows.arguments))
        shorter = replace(self.model, forward=replace(rows, arguments=arguments), noise_layer=None)
        shorter.inputs = tuple(map(remaining, inputs))
        return shorter.learned_from(self.model)

    def _hidden(self, rows: ModelRows, inputs: tuple[Tensor, ...], kept: Tensor) -> NoisyModel:
        found = mask_argument(self.function, inputs, rows.arguments)
        if found is None:
            raise ValueError(
                "ways has 'attention', and no argument of the model is an attention mask, (examples, tokens); give one "
                "in additional_forward_args to a forward that names it attention_mask"
            )
        index, one_is_padding = found
        arguments = list(rows.arguments or ())
        mask = arguments[index]
        kept = kept.to(mask.device)
        arguments[index] = (
            (mask.bool() | ~kept).to(mask.dtype) if one_is_padding else mask * kept.to(mask.dtype)
        )
        edited = replace(self.model, forward=replace(rows, arguments=tuple(arguments)), inputs=inputs)
        return edited.learned_from(self.model)


Score = Literal["loss", "kept", "sigma", "signed"]
SCORES = ("loss", "kept", "sigma", "signed")


class InformationLoss(TokenAttribution):
    """How much of each input token is lost on the way to a state of the model, in nats.

    Learns, for every token, the largest Gaussian noise that the state does not notice (Guan et al.,
    "Towards a Deep and Unified Understanding of Deep Neural Models in NLP", ICML 2019, eq. 7): with
    n tokens it minimises::

        D(sigma) - (rate / n) sum_i log sigma_i,  sigma_i <= max_sigma

    where D is the mean over the state's elements of ``E[((Phi(x + sigma eps) - s) / v)^2]``.
    The score of a token of K elements is its entropy ``H_i = K/2 log(2 pi e) + K log sigma_i``: high where
    the state does not need the token.

    The noise enters the inputs, which must be floating point tensors (embeddings, images, ...); for
    token ids use :class:`LayerInformationLoss`.

    Args:
        forward_func: the model, or any function of it.
        state_layer: the module whose output is the state; None: the output of ``forward_func``.

    Examples::
        >>> import torch
        >>> from interp_plugin import InformationLoss
        >>> weights = torch.tensor([[1.0], [2.0], [4.0]])
        >>> method = InformationLoss(lambda x: (weights * x).sum(1))  # 3 tokens of 256 elements
        >>> x = torch.randn(1, 3, 256, generator=torch.Generator().manual_seed(0))
        >>> scores = method.attribute(x).sum(dim=-1)  # nats; the heavier token loses less
        >>> scores.shape, bool(scores[0, 0] > scores[0, 1] > scores[0, 2])
        (torch.Size([1, 3]), True)
    """

    has_draws = True

    @log_usage(part_of_slo=True)
    @captum_call
    def attribute(
        self,
        inputs: Tensors,
        target: Any = None,
        additional_forward_args: Any = None,
        feature_mask: Tensors | None = None,
        neuron_selector: Selector | None = None,
        token_mask: Tensor | None = None,
        state_std: float | Tensor | None = None,
        rate: float = 0.1,
        max_sigma: float | Tensor | None = None,
        score: Score = "loss",
        return_input_shape: bool = True,
        solver: Solver = Solver(),
        internal_batch_size: int | None = None,
        show_progress: bool = False,
        input_std: float | Tensor | None = None,
    ) -> Tensors:
        """Compute the score of every token.

        The scores of an example do not depend on the rest of the batch, nor on padding on either side if the model
        gets an attention mask and this method the ``token_mask``.  Most of the padding at the end of texts of
        different lengths is then skipped, if a first run without it gives the same states.

        Args:
            inputs: floating point tensor or tuple of them, each (B, ...).  In a 3-D or higher input the
                elements along the last dimension are one token; in a 2-D input every element is one.
            target: which output is the state, as in Captum (an int, tuple, tensor or list); None: all
                of them.  Not together with a state layer.
            additional_forward_args: further arguments of ``forward_func``, as in Captum.  Tensors whose
                first dimension is B follow the examples.  An attention mask among them is used as the ``token_mask``
                if none is given (see ``inferred_token_mask``; ``token_mask=torch.ones(B, T)`` prevents it).
            feature_mask: integers shaped like the inputs, or so that they broadcast to them, as in Captum; elements
                with equal numbers are one token.
            neuron_selector: part of the state: an int or tuple of ints and slices that index it after
                the batch dimension, or a callable (B, ...) -> (B, ...).
            token_mask: (B, T), false for tokens (padding) that get no noise, keep nothing, and are not counted,
                neither in n nor in a state whose dimension 1 runs over the tokens.  If there are fewer entries than
                examples, each is repeated, as NoiseTunnel repeats examples; the same holds for ``max_sigma``.
            state_std: v, broadcasts to the state; makes layers and models comparable (see
                ``estimate_state_std``).  None: v^2 is the mean of s^2 of each example.
            rate: lambda > 0, the weight of the entropy.
            max_sigma: cap on sigma, a number or one per example, (B,).  None: 10 times ``input_std``.
            score: "loss" (H_i, nats), "kept" (I_i, what a Gaussian channel with noise sigma_i passes of elements
                of standard deviation tau, K/2 log(1 + tau^2 / sigma_i^2), less the same at the cap: nats, high =
                important, 0 = noise far beyond the spread of the inputs goes unnoticed),
                "sigma" (input units), or "signed": the contribution of the token to a scalar state (a ``target``, one
                neuron), negative if it lowers the state, in units of the state.  No noise is learned for "signed":
                the state's gradient is integrated on the path to white noise of standard deviation ``input_std``
                around the mean row of an embedding layer's table (around 0 for raw inputs and other layers), in 36
                forward and backward passes.  The scores sum to the state minus its mean on that noise (see
                ``method.erasure``); a warning is given if the sum is off by more than 5 %.
            return_input_shape: True: the shape of the inputs, each element with its share, H_i / K, so
                that ``.sum(dim=-1)`` is the token's score ("sigma": sigma itself on each element).
                False: (B, T), one score for each token.
            solver: tolerance and budget of the solver.
            internal_batch_size: largest number of rows in one forward and backward pass; bounds the memory.
            show_progress: show a progress bar.
            input_std: tau, the standard deviation of one element of what the noise is added to, a number or one
                per example, (B,).  None: that of the table if the noise layer is an ``nn.Embedding``, otherwise that
                of the example's own unmasked elements (their root mean square, if they are constant).
                Without a table, give one number to compare examples or layers by "kept".

        Returns:
            float32, detached; shaped like ``inputs``, or (B, T).

        Raises:
            TypeError: integer inputs, a state that is not floating point, or arguments of Captum's other
                methods (``n_steps``, ``baselines``, or the order (inputs, baselines, target)).
            ValueError: NaN or infinite values, masks or ``state_std`` that do not broadcast, a rate that
                is not positive, a layer that does not fire exactly once, all tokens masked, or score "signed"
                for a state of several elements.
            AssertionError: an invalid target (Captum's own check).
        """
        if score not in SCORES:
            raise ValueError(f"score is {score!r}; choose one of {', '.join(map(repr, SCORES))}")
        problem = self._problem(
            inputs, target, additional_forward_args, feature_mask, neuron_selector, token_mask,
            Terms(rate, max_sigma, state_std, input_std), internal_batch_size,
        )  # fmt: skip
        if score == "signed":
            values = problem.signed(solver.seed)
        else:
            fit = problem.fit(solver, show_progress)
            warn_of_quality(fit, solver)
            values = fit.sigma if score == "sigma" else fit.loss() if score == "loss" else fit.kept()
        return self._returned(problem, values, inputs, return_input_shape, share=score != "sigma")

    @captum_call
    def fit(
        self,
        inputs: Tensors,
        target: Any = None,
        additional_forward_args: Any = None,
        feature_mask: Tensors | None = None,
        neuron_selector: Selector | None = None,
        token_mask: Tensor | None = None,
        state_std: float | Tensor | None = None,
        rate: float = 0.1,
        max_sigma: float | Tensor | None = None,
        solver: Solver = Solver(),
        internal_batch_size: int | None = None,
        show_progress: bool = False,
        input_std: float | Tensor | None = None,
    ) -> NoiseFit:
        """Return the fit: sigma, standard errors and diagnostics; arguments as in :meth:`attribute`."""
        problem = self._problem(
            inputs, target, additional_forward_args, feature_mask, neuron_selector, token_mask,
            Terms(rate, max_sigma, state_std, input_std), internal_batch_size,
        )  # fmt: skip
        return problem.fit(solver, show_progress)

    def estimate_state_std(
        self,
        batches: Iterable[Mapping[str, Any]],
        target: Any = None,
        neuron_selector: Selector | None = None,
        internal_batch_size: int | None = None,
    ) -> Tensor:
        """Estimate v, the standard deviation of each element of the state over a corpus, in one pass.

        Args:
            batches: mappings with ``inputs`` and, if needed, ``additional_forward_args`` and
                ``token_mask`` (B, T), as in :meth:`attribute`.  With a ``token_mask`` every unmasked
                position of a state (B, T, ...) is a sample, so that texts may differ in length;
                without it every example is one sample.
            target, neuron_selector, internal_batch_size: as in :meth:`attribute`.

        Returns:
            float32, the shape of one sample; it broadcasts to the state.
        """
        running = RunningStd()
        for batch in batches:
            inputs = _format_tensor_into_tuples(batch["inputs"])
            arguments = batch.get("additional_forward_args")
            model = self._model(inputs, target, arguments, neuron_selector, internal_batch_size)
            _, state = model.clean()
            mask = batch.get("token_mask")
            running.update(state, mask if state.ndim > 2 else None)
        return running.std()


class LayerInformationLoss(AtLayer, InformationLoss):
    """:class:`InformationLoss` with the noise at a layer's output: for token ids, at the embedding layer's output.

    A drop-in replacement for Captum's ``LayerIntegratedGradients``: ``inputs`` are whatever the model takes (ids),
    and the result has the shape of the layer's output, examples first (XLNet's layers give (T, B, K)).
    ``attribute_to_layer_input=True`` adds the noise to the layer's input, as ``LayerCall(layer, side="input")`` does.

    Args:
        forward_func: the model, or any function of it.
        layer: the module whose (first) output receives the noise; it must fire once in a forward.
        state_layer: the module whose output is the state; None: the output of ``forward_func``.

    Examples::
        >>> import torch
        >>> from interp_plugin import LayerInformationLoss
        >>> _ = torch.manual_seed(0)
        >>> embed, head = torch.nn.Embedding(50, 16), torch.nn.Linear(16, 4)
        >>> method = LayerInformationLoss(lambda ids: head(embed(ids).tanh().sum(1)), embed)
        >>> ids = torch.tensor([[3, 14, 15]])
        >>> method.attribute(ids, score="kept", return_input_shape=False).shape
        torch.Size([1, 3])
    """


class NeuronInformationLoss(TokenAttribution):
    """:class:`InformationLoss` for neurons of a layer, with the interface of Captum's neuron methods.

    ``NeuronInformationLoss(f, layer).attribute(x, selector)`` is
    ``InformationLoss(f, state_layer=layer).attribute(x, neuron_selector=selector)``; with
    ``attribute_to_neuron_input=True`` the neurons are the layer's input.

    Args:
        forward_func: the model, or any function of it.
        layer: the module whose output holds the neurons.

    Examples::
        >>> import torch
        >>> from interp_plugin import NeuronInformationLoss
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
        >>> NeuronInformationLoss(model, model[0]).attribute(torch.randn(3, 6), 2).shape
        torch.Size([3, 6])
    """

    input_setting = "attribute_to_neuron_input"

    def __init__(self, forward_func: Callable[..., Any], layer: Site) -> None:
        super().__init__(forward_func)
        self.layer = layer

    @log_usage(part_of_slo=True)
    @captum_call
    def attribute(
        self, inputs: Tensors, neuron_selector: Selector, additional_forward_args: Any = None, **settings: Any
    ) -> Tensors:
        """Compute the score of every token for the selected neurons.

        Args:
            inputs, additional_forward_args: as in :meth:`InformationLoss.attribute`.
            neuron_selector: an int or tuple of ints and slices that index the layer's output after the
                batch dimension, or a callable.  Selected neurons are one vector state (not a sum).
            **settings: the other keyword arguments of :meth:`InformationLoss.attribute`, except ``target``.
        """
        return self._method().attribute(
            inputs, None, additional_forward_args, neuron_selector=neuron_selector, **settings
        )

    @captum_call
    def fit(
        self, inputs: Tensors, neuron_selector: Selector, additional_forward_args: Any = None, **settings: Any
    ) -> NoiseFit:
        """Return the fit; arguments as in :meth:`attribute`."""
        return self._method().fit(
            inputs, None, additional_forward_args, neuron_selector=neuron_selector, **settings
        )

    def _method(self) -> InformationLoss:
        return InformationLoss(self.forward_func, state_layer=self.layer)


class InformationLossLLMAttribution(LLMGradientAttribution):
    """Captum's ``LLMGradientAttribution`` for :class:`LayerInformationLoss` and :class:`LayerInformationErased`.

    The state is the log probability of each output token.  The sequence score of information loss is the mean over the
    output tokens, because a sum of entropies of the same input tokens has no meaning.  The sequence score of erasure is
    their sum, because log probabilities add up.
    """

    SUPPORTED_METHODS = (
        *LLMGradientAttribution.SUPPORTED_METHODS,
        LayerInformationLoss,
        LayerInformationErased,
    )

    def attribute(self, *args: Any, **kwargs: Any) -> LLMAttributionResult:
        """As ``LLMGradientAttribution.attribute``; further keyword arguments go to the method's ``attribute``."""
        if not isinstance(self.attr_method, LayerInformationLoss):
            return super().attribute(*args, **kwargs)
        if kwargs.get("score", "loss") == "sigma" or not kwargs.get("return_input_shape", True):
            raise ValueError(
                "InformationLossLLMAttribution sums the elements of each token; use score='loss', 'kept' or 'signed' "
                "with return_input_shape=True"
            )
        result = super().attribute(*args, **kwargs)
        result.seq_attr = result.token_attr.mean(0)
        return result
