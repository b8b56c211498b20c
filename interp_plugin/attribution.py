"""Information loss as Captum attributions: thin shells over the solver."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from captum._utils.common import _format_tensor_into_tuples
from captum.attr import LLMAttributionResult, LLMGradientAttribution
from captum.attr._utils.attribution import Attribution
from captum.log import log_usage
from torch import Tensor

from interp_plugin.arguments import captum_call
from interp_plugin.erased import LayerInformationErased
from interp_plugin.posed import AtLayer, Tensors, TokenAttribution, input_of
from interp_plugin.problem import Terms, warn_of_quality
from interp_plugin.solver import NoiseFit, Solver
from interp_plugin.state import RunningStd, Selector, Site

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
                "sigma" (input units), or "signed": what the token adds to a state of one number (a ``target``, one
                neuron), below 0 where it takes away, in units of the state.  No noise is learned for it: the
                state's gradient is integrated on the way to white noise with the spread ``input_std`` around the mean
                row of an embedding layer's table (around 0 for raw inputs and other layers), in 36 forward and
                backward passes.  Scores sum to the state less its mean on that noise (see
                ``method.noise_path``); a warning says where they miss it by more than 5 %.
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
        if score == "signed":
            values = problem.signed(solver.seed)
        else:
            fit = problem.fit(solver, show_progress)
            warn_of_quality(fit, solver)
            values = fit.sigma if score == "sigma" else fit.loss() if score == "loss" else fit.kept()
        if not return_input_shape:
            return values
        return self._shaped(problem, values, share=score != "sigma", is_tuple=isinstance(inputs, tuple))

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


class LayerInformationLoss(AtLayer, InformationLoss):
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
        moved.layer = input_of(self.layer)
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
    """Captum's ``LLMGradientAttribution`` for :class:`LayerInformationLoss` and :class:`LayerInformationErased`.

    The state is the log probability of each output token.  Over several output tokens the sequence's score of
    information loss is the mean over them: a sum of entropies of the same input tokens has no meaning.  What is lost
    with erased tokens adds up, as log probabilities do.
    """

    SUPPORTED_METHODS = (
        *LLMGradientAttribution.SUPPORTED_METHODS,
        LayerInformationLoss,
        LayerInformationErased,
    )

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
