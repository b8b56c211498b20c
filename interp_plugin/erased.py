"""Information erased as Captum attributions: which tokens carry a class or a state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from captum._utils.common import _format_tensor_into_tuples
from captum.log import log_usage
from torch import Tensor

from interp_plugin.arguments import captum_call, mask_argument
from interp_plugin.forwards import gradients
from interp_plugin.method.erasing import Erasing, Way, check_ways
from interp_plugin.method.erasure import PASSES, Erasure, ErasureFit, Side, learn_erasure
from interp_plugin.posed import AtLayer, ModelRows, Tensors, TokenAttribution
from interp_plugin.problem import Problem, Terms, nothing
from interp_plugin.state import NoisyModel, Selector, module_of

Baselines = float | int | Tensor | tuple[float | int | Tensor, ...]


class InformationErased(TokenAttribution):
    r"""How much of a state of the model is lost with each input token.

    Learns the probability p_i of erasing each token that damages the state most for the fewest erasures (side
    "damage"), or least for the most (side "keep")::

        max_p  Delta(p) - T sum_i KL(p_i || pi),   Delta(p) = E_{b ~ p} Delta(b)

    where Delta(b) is the damage done by erasing the tokens b: what a state of one number loses (a ``target``, one
    neuron), and the distortion D of any other.  The score of a token is dDelta/dp_i, the mean damage done by its
    erasure over the erasures of the others: positive where the state needs it, negative where it speaks against it.
    It is the twin of :class:`InformationLoss` with a discrete channel (see ``method.erasure``): that one says how
    *precisely* a state knows each token, this one which tokens *carry* it.

    Of a class, give the log-odds: ``lambda *x: log_odds(model(*x).logits, target)`` without a ``target``.  A logit
    is taken as it is.

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
        """The score of every token.

        An example's scores do not depend on its neighbours in the batch, nor on its padding where that is masked.

        Args:
            inputs, target, additional_forward_args, feature_mask, neuron_selector, token_mask, state_std,
                internal_batch_size: as in :meth:`InformationLoss.attribute`.
            baselines: what stands in an erased token's place, as in Captum's integrated gradients: a number or a
                tensor that broadcasts to the inputs; for token ids, an id or ids like the inputs (or, as floating
                point, a vector (K,) or more of the layer's output).  A token that equals its baseline is never
                erased: give special tokens as their own (``torch.where(is_special, ids, mask_id)``).  None: the mean
                row of the table where the layer is an ``nn.Embedding``, zeros elsewhere.
            side: "damage": the fewest erasures that damage most; "keep": the most that harm least.
            ways: how tokens are erased, one or more of "mask" (their baseline), "attention" (their baseline, and
                hidden by the attention mask among ``additional_forward_args``) and "delete" (left out of dimension 1
                of the inputs and of all arguments that have it).  The damage is their weighted mean, in which each but
                the first weighs 0.2; each evaluates the same masks.
            passes: forward and backward passes with one way, 16 of them integrated gradients': the price is the same
                for every length.  Where all erasures are no more than the others (six tokens at 100 passes), they are
                enumerated, and the scores exact.
            seed: of the masks.
            return_input_shape: True: the shape of the inputs, each element with its share, so that ``.sum(dim=-1)``
                is the token's score.  False: (B, T).

        Returns:
            float32, detached; shaped like ``inputs``, or (B, T).

        Raises:
            TypeError, ValueError, AssertionError: as :meth:`InformationLoss.attribute`; another side or way; no
                attention mask to hide tokens with.
        """
        settings = Erasure(side, passes, seed)
        problem = self._problem(
            inputs, target, additional_forward_args, feature_mask, neuron_selector, token_mask,
            Terms(1.0, None, state_std, 1.0), internal_batch_size,
        )  # fmt: skip
        fit = self._learned(problem, inputs, baselines, settings, ways)
        values = fit.score.to(problem.objective.device)
        if not return_input_shape:
            return values
        return self._shaped(problem, values, share=True, is_tuple=isinstance(inputs, tuple))

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
        """Scores with their standard errors, p and the damage; arguments as in :meth:`attribute`."""
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
        """What stands in an erased token's place, broadcasts to (B, N)."""
        origin = problem.objective.model.origin
        if baselines is None:
            return nothing(module_of(self._noise_layer()), problem.objective)
        given = baselines if isinstance(baselines, tuple) else (baselines,) * len(origin)
        if len(given) != len(origin):
            raise ValueError(f"baselines has {len(given)} parts for {len(origin)} inputs; give one for each")
        parts = []
        for value, tensor in zip(given, origin):
            value = torch.as_tensor(value, device=tensor.device).to(tensor.dtype)
            try:
                parts.append(value.broadcast_to(tensor.shape).flatten(1))
            except RuntimeError as error:
                raise ValueError(
                    f"baselines of shape {tuple(value.shape)} do not broadcast to {tuple(tensor.shape)}, what they "
                    "stand for"
                ) from error
        return torch.cat(parts, 1)


class LayerInformationErased(AtLayer, InformationErased):
    """:class:`InformationErased` with tokens that are a layer's output: for token ids, its embedding layer.

    The drop-in for Captum's ``LayerIntegratedGradients``: ``inputs`` are whatever the model takes (ids), and
    ``baselines`` are ids like them, one id (of the mask token), or vectors of the layer's output.

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
        given = baselines if isinstance(baselines, tuple) else (baselines,) * len(inputs)
        if any(torch.as_tensor(value).is_floating_point() for value in given):
            if isinstance(baselines, tuple):
                [baselines] = baselines
            return super()._baseline(problem, inputs, baselines)
        if len(given) != len(inputs):
            raise ValueError(f"baselines has {len(given)} parts for {len(inputs)} inputs; give one for each")
        try:
            ids = tuple(
                torch.as_tensor(value, device=x.device).to(x.dtype).broadcast_to(x.shape).contiguous()
                for value, x in zip(given, inputs)
            )
        except RuntimeError as error:
            raise ValueError(
                f"baselines do not broadcast to the inputs, {[tuple(x.shape) for x in inputs]}: {error}"
            ) from error
        model = replace(problem.objective.model, inputs=ids).learned_from(problem.objective.model)
        model.read([])
        [origin] = model.origin
        return origin.flatten(1)


@dataclass(frozen=True)
class _Edit:
    """The model on rows with tokens hidden or left out."""

    function: Callable[..., Any]  # as the user gave it: the names of its parameters say what arguments are
    model: NoisyModel

    def __call__(self, way: Way, examples: Tensor, kept: Tensor) -> NoisyModel:
        forward = cast(ModelRows, self.model.forward)
        rows = forward.at(examples)
        inputs = tuple(x[examples.to(x.device)] for x in self.model.inputs)
        if way == "attention":
            return self._hidden(rows, inputs, kept)
        places = kept.nonzero()[:, 1].reshape(len(kept), -1)

        def left(x: Any) -> Any:
            if not isinstance(x, Tensor) or x.shape[:2] != kept.shape:
                return x
            index = places.to(x.device).reshape(*places.shape, *[1] * (x.ndim - 2))
            return x.gather(1, index.expand(*places.shape, *x.shape[2:]))

        arguments = None if rows.arguments is None else tuple(map(left, rows.arguments))
        shorter = replace(self.model, forward=replace(rows, arguments=arguments), noise_layer=None)
        shorter.inputs = tuple(map(left, inputs))
        return shorter.learned_from(self.model)

    def _hidden(self, rows: ModelRows, inputs: tuple[Tensor, ...], kept: Tensor) -> NoisyModel:
        found = mask_argument(self.function, inputs, rows.arguments)
        if found is None:
            raise ValueError(
                "ways has 'attention', and no argument of the model is an attention mask, (examples, tokens); give one "
                "in additional_forward_args to a forward that names it attention_mask"
            )
        index, leaves_out = found
        arguments = list(rows.arguments or ())
        mask = arguments[index]
        seen = kept.to(mask.device)
        arguments[index] = (mask.bool() | ~seen).to(mask.dtype) if leaves_out else mask * seen.to(mask.dtype)
        edited = replace(self.model, forward=replace(rows, arguments=tuple(arguments)), inputs=inputs)
        return edited.learned_from(self.model)
