"""Information loss as Captum attributions: thin shells over the solver."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

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

from interp_plugin.arguments import captum_call, repeated, told_mask
from interp_plugin.padding import FULL, lengths_of
from interp_plugin.problem import Problem, Terms, pose, warn_of_quality, warn_of_training
from interp_plugin.solver import NoiseFit, Solver
from interp_plugin.state import LayerCall, NoisyModel, RunningStd, Selector, Site, module_of

Tensors = Tensor | tuple[Tensor, ...]
Score = Literal["loss", "kept", "sigma", "signed"]
SCORES = ("loss", "kept", "sigma", "signed")


@dataclass(frozen=True)
class _ModelRows:
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

    def _at(self, argument: Any, rows: Tensor, length: int) -> Any:
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
    forward, mask, [origin, *others] = cast(_ModelRows, model.forward), objective.groups.active, model.origin
    lengths = lengths_of(mask)
    if others or lengths is None or lengths.min() >= FULL * mask.shape[1]:
        return
    tensors = (origin, *model.inputs)
    if origin.ndim == 3 and all(x.shape[:2] == mask.shape for x in tensors) and forward.is_told(mask):
        model.forward = replace(forward, tokens=mask.shape[1])
        objective.leave_padding_out(lengths)


def _input_of(layer: Site) -> LayerCall:
    """The input of a layer, whose output (or input) was meant."""
    return replace(layer, side="input") if isinstance(layer, LayerCall) else LayerCall(layer, None, "input")


class InformationLoss(Attribution):
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

    input_setting: str | None = None  # Captum's name of what moves noise or state to a layer's input

    def __init__(self, forward_func: Callable[..., Any], state_layer: Site | None = None) -> None:
        super().__init__(forward_func)
        if not isinstance(state_layer, (nn.Module, LayerCall, type(None))):
            raise TypeError(
                f"state_layer is {state_layer!r}, a {type(state_layer).__name__}; give the module whose output is the "
                "state (model.get_submodule finds one by its dotted name), or None for the forward's output"
            )
        self.state_layer = state_layer

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
        """The score of every token.

        An example's scores do not depend on its neighbours in the batch, nor on its padding where the
        model is given its attention mask and we are given ``token_mask``.  There most of the padding at the
        end of texts of different lengths is not even run, if a first run without it gives the same states.

        Args:
            inputs: floating point tensor or tuple of them, each (B, ...).  In a 3-D or higher input the
                elements along the last dimension are one token; in a 2-D input every element is one.
            target: which output is the state, as in Captum (an int, tuple, tensor or list); None: all
                of it.  Not together with a state layer.
            additional_forward_args: further arguments of ``forward_func``, as in Captum.  Tensors whose
                first dimension is B follow the examples.  An attention mask among them is the ``token_mask``
                where none is given (see ``arguments.told_mask``; ``token_mask=torch.ones(B, T)`` forgets it).
            feature_mask: integers shaped like the inputs; equal numbers make one token.
            neuron_selector: part of the state: an int or tuple of ints and slices that index it after
                the batch dimension, or a callable (B, ...) -> (B, ...).
            token_mask: (B, T), false for tokens (padding) that get no noise, keep nothing, and count
                nowhere: not in n, and not in the state where its dimension 1 runs over the tokens.  As with
                ``max_sigma``, fewer entries than examples are each repeated, as NoiseTunnel repeats examples.
            state_std: v, broadcasts to the state; makes layers and models comparable (see
                ``estimate_state_std``).  None: v^2 is the mean of s^2 of each example.
            rate: lambda > 0, the weight of the entropy.
            max_sigma: cap on sigma, a number or one per example, (B,).  None: 10 times ``input_std``.
            score: "loss" (H_i, nats), "kept" (I_i, what a Gaussian channel with noise sigma_i passes of elements
                of standard deviation tau, K/2 log(1 + tau^2 / sigma_i^2), less the same at the cap: nats, high =
                important, 0 = noise far beyond the spread of the inputs goes unnoticed),
                "sigma" (input units), or "signed": I_i times the sign of the token's push on the state.  It
                needs a state of one number (a ``target``, one neuron) and 16 more forward and backward
                passes an example, which integrate the state's gradient from an input that says nothing:
                the mean row of an embedding layer's table; zeros for raw inputs and other layers.
            return_input_shape: True: the shape of the inputs, each element with its share, H_i / K, so
                that ``.sum(dim=-1)`` is the token's score ("sigma": sigma itself on each element).
                False: (B, T), one score a token.
            solver: how hard to look.
            internal_batch_size: most rows in one forward and backward pass; bounds the memory.
            show_progress: a progress bar.
            input_std: tau, the standard deviation of one element of what the noise is added to, a number or one
                per example, (B,).  None: where the noise layer is an ``nn.Embedding``, that of its table;
                otherwise of the example's own unmasked elements (their root mean square, if they are constant).
                Give one number to compare examples, or layers, by "kept" where there is no table.

        Returns:
            float32, detached; shaped like ``inputs``, or (B, T).

        Raises:
            TypeError: integer inputs, a state that is not floating point, or arguments of Captum's other
                methods (``n_steps``, ``baselines``, or baselines second and the target third).
            ValueError: NaN or infinite values, masks or ``state_std`` that do not broadcast, a rate that
                is not positive, a layer that does not fire exactly once, all tokens masked, score "signed"
                of a state of several elements.
            AssertionError: a bad target (Captum's own check).
        """
        if score not in SCORES:
            raise ValueError(f"score is {score!r}; choose one of {', '.join(map(repr, SCORES))}")
        problem = self._problem(
            inputs, target, additional_forward_args, feature_mask, neuron_selector, token_mask,
            Terms(rate, max_sigma, state_std, input_std), internal_batch_size,
        )  # fmt: skip
        sign = problem.sign() if score == "signed" else 1.0
        fit = problem.fit(solver, show_progress)
        warn_of_quality(fit, solver)
        if score == "sigma":
            values = fit.sigma
        else:
            values = fit.loss() if score == "loss" else fit.kept() * sign
        if not return_input_shape:
            return values
        if score != "sigma":
            values = values / fit.token_size.clamp(min=1)
        is_tuple = isinstance(inputs, tuple) and self._noise_layer() is None
        return cast(Tensors, _format_output(is_tuple, problem.shaped(values)))

    def attribute_future(self) -> None:
        """Not offered."""
        raise NotImplementedError(f"attribute_future is not implemented for {type(self).__name__}")

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
        """The fit behind the scores: sigma, standard errors and diagnostics; arguments as in :meth:`attribute`."""
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
        """v: the standard deviation of each element of the state over a corpus, in one pass.

        Args:
            batches: each a mapping with ``inputs`` and, where needed, ``additional_forward_args`` and
                ``token_mask`` (B, T), named as in :meth:`attribute`.  With a ``token_mask`` every unmasked
                position of a state (B, T, ...) is a sample, so that texts of different lengths mix;
                without it every example is one.
            target, neuron_selector, internal_batch_size: as in :meth:`attribute`.

        Returns:
            float32, the shape of one sample: broadcasts to the state.
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
        forward = _ModelRows(self.forward_func, batch, target, arguments)
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
        mask = told_mask(self.forward_func, model.inputs, cast(_ModelRows, model.forward).arguments)
        [origin, *others] = model.origin
        return mask if mask is not None and not others and origin.shape[:-1] == mask.shape else None


class LayerInformationLoss(InformationLoss):
    """:class:`InformationLoss` with the noise at a layer's output: for token ids, its embedding layer.

    The drop-in for Captum's ``LayerIntegratedGradients``: ``inputs`` are whatever the model takes (ids),
    and the result has the shape of the layer's output, examples first (XLNet's layers give (T, B, K)).
    ``attribute_to_layer_input=True`` is understood: noise then enters the layer's input, as at
    ``LayerCall(layer, side="input")``.

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

    def at_input(self) -> LayerInformationLoss:
        """The same method with the noise at the layer's input."""
        moved = copy.copy(self)
        moved.layer = _input_of(self.layer)
        return moved

    def _noise_layer(self) -> Site | None:
        return self.layer

    def _checked_inputs(self, inputs: Tensors) -> tuple[Tensor, ...]:
        return tuple(tensor.detach() for tensor in _format_tensor_into_tuples(inputs))


class NeuronInformationLoss(Attribution):
    """:class:`InformationLoss` for part of a layer, under Captum's names for neuron methods.

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

    def at_input(self) -> NeuronInformationLoss:
        """The same method for neurons of the layer's input."""
        moved = copy.copy(self)
        moved.layer = _input_of(self.layer)
        return moved

    @log_usage(part_of_slo=True)
    @captum_call
    def attribute(
        self, inputs: Tensors, neuron_selector: Selector, additional_forward_args: Any = None, **settings: Any
    ) -> Tensors:
        """The score of every token for the selected neurons.

        Args:
            inputs, additional_forward_args: as in :meth:`InformationLoss.attribute`.
            neuron_selector: an int or tuple of ints and slices that index the layer's output after the
                batch dimension, or a callable.  Selected neurons are one vector state (not a sum).
            **settings: the other keyword arguments of :meth:`InformationLoss.attribute`, but ``target``.
        """
        return self._method().attribute(
            inputs, None, additional_forward_args, neuron_selector=neuron_selector, **settings
        )

    @captum_call
    def fit(
        self, inputs: Tensors, neuron_selector: Selector, additional_forward_args: Any = None, **settings: Any
    ) -> NoiseFit:
        """The fit behind the scores; arguments as in :meth:`attribute`."""
        return self._method().fit(
            inputs, None, additional_forward_args, neuron_selector=neuron_selector, **settings
        )

    def attribute_future(self) -> None:
        """Not offered."""
        raise NotImplementedError("attribute_future is not implemented for NeuronInformationLoss")

    def _method(self) -> InformationLoss:
        return InformationLoss(self.forward_func, state_layer=self.layer)


class InformationLossLLMAttribution(LLMGradientAttribution):
    """Captum's ``LLMGradientAttribution`` for :class:`LayerInformationLoss`.

    The state is the log probability of each output token.  Over several output tokens the sequence's
    score is the mean over them: a sum of entropies of the same input tokens has no meaning.
    """

    SUPPORTED_METHODS = (*LLMGradientAttribution.SUPPORTED_METHODS, LayerInformationLoss)

    def attribute(self, *args: Any, **kwargs: Any) -> LLMAttributionResult:
        """As ``LLMGradientAttribution.attribute``; further keyword arguments go to our ``attribute``."""
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
