"""Interoperability: convert scores to the formats of shap, Quantus, inseq and interpreto.

In these packages a high score means an important token, so they get information kept, never information loss.
They are optional: ``pip install "interp-plugin[interop]"`` installs all four.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from importlib import import_module
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from interp_plugin.attribution import InformationLoss, LayerInformationLoss
from interp_plugin.method.problem import std_of_table
from interp_plugin.method.solver import Solver
from interp_plugin.text.explanation import Explanation, TextExplanation
from interp_plugin.text.rows import Layer
from interp_plugin.text.scores import Aggregate, Granularity, Offset, check_aggregate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from interp_plugin.huggingface import HuggingFaceModel

Choice = Layer | tuple[Layer, int] | None
"""A layer, a layer and one of its positions, or None for the last row of each text."""
Important = Literal["kept", "signed"]
"""Scores that are high for important tokens."""


def to_shap(
    explanation: Explanation | TextExplanation,
    layer: Choice = None,
    granularity: Granularity = "token",
    aggregate: Aggregate = "mean",
) -> Any:
    """Convert information kept to a ``shap.Explanation``, for ``shap.plots.text`` and other plots of shap.

    The base value is 0.  With ``aggregate="sum"``, shap's f(x) = base value + sum of values is the nats that the state
    keeps of the whole text.  ``data`` holds the pieces of the text, including the white space between them, and
    ``error_std`` the standard errors.

    Args:
        explanation: an explanation of texts, or one of its texts.
        layer: a label, or (label, position); None: the last row of each text.
        granularity: "token", "word" or "sentence".
        aggregate: how a unit's nats are computed from its tokens': "mean" (comparable between words), "sum" or "max".

    Returns:
        For one text, values (U,); for several, an array of such arrays, as from shap's own text explainers.

    Raises:
        ImportError: shap is missing.
        KeyError: the layer was not explained.

    Example::

        >>> import pytest
        >>> shap = pytest.importorskip("shap")
        >>> from interp_plugin.text.explanation import example
        >>> values = to_shap(example()[0], layer=1)
        >>> values.data.tolist(), values.values.round().tolist()
        (['[CLS] ', 'a ', 'film ', '[SEP] '], [0.0, 8.0, 15.0, 0.0])
        >>> "film" in shap.plots.text(values, display=False)
        True
    """
    shap = _peer("shap", "to_shap")
    if isinstance(explanation, TextExplanation):
        values, errors, pieces = _kept(explanation, layer, granularity, aggregate)
        return shap.Explanation(values, 0.0, pieces, feature_names=pieces.tolist(), error_std=errors)
    if not len(explanation):
        raise ValueError("the explanation has 0 texts, but shap needs at least one; explain some first")
    values, errors, pieces = (
        _ragged(part) for part in zip(*(_kept(item, layer, granularity, aggregate) for item in explanation))
    )
    names = [row.tolist() for row in pieces]
    return shap.Explanation(values, np.zeros(len(values)), pieces, feature_names=names, error_std=errors)


def quantus_explain_func(
    model: nn.Module,
    inputs: NDArray[Any],
    targets: NDArray[Any] | None,
    *,
    state_layer: str | None = None,
    axis: int = -1,
    score: Important = "kept",
    device: Any = None,
    method: str | None = None,
    **settings: Any,
) -> NDArray[Any]:
    """Compute scores as the ``explain_func`` of Quantus' metrics; call the metrics with ``channel_first=True``.

    For text, inputs are embeddings (B, T, K), and the model maps embeddings to class scores (B, C). Quantus
    gets one score per token, (B, T, 1), and broadcasts it over the K elements; a step of K features then
    perturbs one whole token. This function does not need Quantus, but Quantus 0.6 computes areas under curves with a
    function that numpy 2.4 removed: use an older numpy with it.

    Args:
        model: the model, in evaluation mode.
        inputs: (B, ...).
        targets: a class for each example, (B,), whose score is the state; None: all outputs. Ignored with a state
            layer.
        state_layer: dotted name, in ``model``, of the module whose output is the state; it is a name because
            Quantus' randomisation metrics pass copies of the model.
        axis: axis of a token's elements, which is summed over and kept with length 1, for inputs of three and more
            dimensions. For images (B, C, H, W), use 1 and a ``feature_mask`` that makes each pixel one token.
        score: "kept", or "signed" (with a target).
        device: device to run on; None: the model's device.
        method: name of this function in ``quantus.evaluate``; ignored.
        **settings: arguments of :meth:`InformationLoss.attribute`, given to a metric in its ``explain_func_kwargs``.
            A number for ``input_std`` makes the scores of different examples comparable.

    Returns:
        The scores, float32, of the inputs' shape except that ``axis`` has length 1.

    Raises:
        ValueError: the score is neither "kept" nor "signed".

    Example::

        >>> import pytest
        >>> quantus = pytest.importorskip("quantus")
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(5 * 16, 2)).eval()
        >>> embeddings, classes = torch.randn(3, 5, 16).numpy(), np.array([0, 1, 1])
        >>> quantus_explain_func(model, embeddings, classes).shape
        (3, 5, 1)
        >>> metric = quantus.PixelFlipping(features_in_step=16, disable_warnings=True)
        >>> curves = metric(
        ...     model, embeddings, classes, None, channel_first=True, explain_func=quantus_explain_func
        ... )
        >>> np.shape(curves)
        (3, 5)
    """
    _check_important(score)
    like = next(model.parameters(), torch.empty(0, dtype=torch.float32))
    x = torch.as_tensor(inputs, dtype=like.dtype, device=like.device if device is None else device)
    layer = None if state_layer is None else model.get_submodule(state_layer)
    has_target = targets is not None and layer is None
    target = torch.as_tensor(targets, device=x.device).long() if has_target else None
    shares = cast(Tensor, InformationLoss(model, layer).attribute(x, target=target, score=score, **settings))
    return (shares.sum(axis, keepdim=True) if x.ndim > 2 else shares).cpu().numpy()


@cache
def register_inseq() -> type[Any]:
    """Make "information_loss" an attribution method of inseq, and return its class.

    ``inseq.load_model(model, "information_loss", tokenizer=...)`` then explains each generated token. Noise is added to
    the embeddings of the preceding tokens (in an encoder-decoder: of the source, and with ``attribute_target=True`` of
    the decoder's tokens too). The state is what inseq's ``attributed_fn`` computes (by default the probability of the
    token), or the output of a layer, ``load_model(..., state_layer="transformer.h.1")``. Settings of
    :meth:`InformationLoss.attribute` (``rate``, ``solver``, ``score="signed"``, which integrates from zeros here)
    are keyword arguments of inseq's ``attribute``. ``input_std`` is that of the embedding table, as in
    :class:`LayerInformationLoss`. With ``load_model(..., target_layer="transformer.h.0")``, noise is added to the
    output of that layer, (B, T, K), instead of the embeddings.

    Scores are nats of each token, (T, generated), not normalised. Padding gets no noise. inseq pads on the left, which
    shifts the noise draws, so a text's scores in a batch differ from its scores alone, within their standard errors.
    For each generated token, ``step_scores`` holds "converged", 1 or 0, and "residual", the largest relative distance
    of a token from the optimum (``NoiseFit.residual``).

    Raises:
        ImportError: inseq is missing.

    Example::

        >>> import pytest
        >>> inseq = pytest.importorskip("inseq")
        >>> register_inseq().method_name in inseq.list_feature_attribution_methods()
        True
    """
    _peer("inseq", "register_inseq")
    methods, data = import_module("inseq.attr.feat"), import_module("inseq.data")

    class InformationLossAttribution(methods.GradientAttributionRegistry):  # type: ignore[misc, name-defined]
        """Information kept of each token (Guan et al., ICML 2019), in nats."""

        method_name = "information_loss"

        def __init__(
            self,
            attribution_model: Any,
            state_layer: str | None = None,
            target_layer: str | nn.Module | None = None,
        ) -> None:
            super().__init__(attribution_model, hook_to_model=False)
            layer = None if state_layer is None else attribution_model.model.get_submodule(state_layer)
            forward = _inseq_forward(attribution_model)
            self.attribute_batch_ids = target_layer is not None
            self.forward_batch_embeds = target_layer is None
            if target_layer is None:
                self.hook()
                self.method = InformationLoss(forward, layer)
            else:
                self.hook(target_layer=target_layer)  # turns a name into the module
                self.method = LayerInformationLoss(forward, self.target_layer, layer)

        def prepare_and_attribute(self, *args: Any, **kwargs: Any) -> Any:
            """Attribute as inseq does, and record settings in a form that its ``save`` and ``load`` support."""
            outputs = super().prepare_and_attribute(*args, **kwargs)
            for output in outputs if isinstance(outputs, list) else [outputs]:
                settings = output.info["attribution_args"]
                output.info["attribution_args"] = {name: _plain(value) for name, value in settings.items()}
            return outputs

        def attribute_step(
            self, attribute_fn_main_args: dict[str, Any], attribution_args: dict[str, Any] | None = None
        ) -> Any:
            """Explain one generated token: scores (B, T) of the source, of the prefix, or of both."""
            settings = dict(attribution_args or {})
            score = settings.pop("score", "kept")
            settings.pop("return_input_shape", None)
            _check_important(score)
            if isinstance(settings.get("solver"), dict):  # the form in a loaded result
                settings["solver"] = Solver(**settings["solver"])
            model, inputs = self.attribution_model, attribute_fn_main_args["inputs"]
            _check_inseq(model, self.method, attribute_fn_main_args)
            std = std_of_table(model.get_embedding_layer())
            if std is not None and self.forward_batch_embeds:
                settings.setdefault("input_std", std * float(model.embed_scale))
            settings.setdefault("token_mask", _inseq_mask(**attribute_fn_main_args))
            values, quality = _inseq_values(self.method, attribute_fn_main_args, settings, score)
            scores = values.split([each.shape[1] for each in inputs], dim=1)  # (B, T) each
            source, prefix = (*scores, None)[:2] if model.is_encoder_decoder else (None, scores[0])
            return data.CoarseFeatureAttributionStepOutput(
                source_attributions=source, target_attributions=prefix, step_scores=quality
            )

    return InformationLossAttribution


def to_interpreto(
    explanation: Explanation | TextExplanation,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    layer: Choice = None,
    granularity: Any = "all_tokens",
    targets: int | str | None = None,
    aggregate: Aggregate = "mean",
) -> list[Any]:
    """Convert information kept to interpreto's ``AttributionOutput``, for its metrics and ``plot_attributions``.

    Only for sequence classifiers.  For the text that a language model generates, use `register_inseq`.

    Args:
        explanation: an explanation of texts, or one of its texts, by this model and tokenizer.
        model, tokenizer: the model and tokenizer, as for interpreto's own classes.
        layer: a label, or (label, position); None: the last row of each text.
        granularity: interpreto's ``Granularity`` or its name: "all_tokens", "token" (without special tokens),
            "word" (as defined by the tokenizer), "part_sentence" or "sentence".
        targets: the class whose probability the metrics watch; None: the target of the explanation, or else the
            predicted class.
        aggregate: how a unit's nats are computed from its tokens': "mean" (comparable between words), "sum" or "max".

    Returns:
        One output for each text, with attributions (1, U).

    Raises:
        ImportError: interpreto is missing.
        KeyError: the layer was not explained.
        ValueError: the granularity is unknown, there is no class, or the tokenizer gives other tokens than those of
            the explanation.

    Example::

        >>> import pytest
        >>> _ = pytest.importorskip("interpreto")
        >>> from interp_plugin import TextExplainer, huggingface
        >>> model, tokenizer = huggingface.load(huggingface.default_model_path())
        >>> explanation = TextExplainer(model, tokenizer).explain("a funny film", layers=1)
        >>> [output] = to_interpreto(explanation, model, tokenizer, granularity="word")
        >>> output.elements, output.attributions.shape
        (['a', 'funny', 'film'], torch.Size([1, 3]))
    """
    _peer("interpreto", "to_interpreto")
    from interp_plugin.huggingface import HuggingFaceModel

    text_model = HuggingFaceModel(model, tokenizer)
    if text_model.task != "sequence classes":
        raise ValueError(
            f"the task of {text_model.name} is {text_model.task!r}, but to_interpreto supports only sequence "
            "classifiers; for the text that a language model generates, use register_inseq"
        )
    base = import_module("interpreto.attributions.base")
    try:
        level = base.Granularity(granularity)
    except ValueError:
        known = ", ".join(each.value for each in base.Granularity)
        raise ValueError(f"granularity is {granularity!r}: choose from {known}") from None
    items = [explanation] if isinstance(explanation, TextExplanation) else explanation
    return [_interpreto_output(item, layer, text_model, base, level, targets, aggregate) for item in items]


def _interpreto_output(
    item: TextExplanation,
    layer: Choice,
    model: HuggingFaceModel,
    base: Any,
    granularity: Any,
    target: Any,
    aggregate: Aggregate,
) -> Any:
    """Convert the nats of one text to an ``AttributionOutput``; ``base`` is the module of that class."""
    tokenizer = model.tokenizer
    encoding = model.encode(item.text, item.pair, truncation=True)
    inputs = tokenizer(
        item.text, item.pair, return_tensors="pt", return_offsets_mapping=tokenizer.is_fast, truncation=True
    )
    if encoding.tokens != item.tokens or list(encoding.ids) != inputs["input_ids"][0].tolist():
        raise ValueError(
            f"text {item.text!r} has tokens {list(item.tokens)}, but this tokenizer gives {list(encoding.tokens)}; "
            "give the model and tokenizer that were explained"
        )
    name = next((each for each in (target, item.target, item.predicted) if each is not None), None)
    if name is None:
        raise ValueError(f"text {item.text!r} has no predicted class; give the class to watch as targets")
    kept, _, _ = _kept(item, layer, "token")
    check_aggregate(aggregate)
    combine = getattr(np, aggregate)
    if item.pair is not None:
        inputs = _of_pair(inputs)
    units = granularity.get_indices(inputs, tokenizer)[0]
    _check_segments(item, units, granularity)
    return base.AttributionOutput(
        attributions=torch.tensor([[combine(kept[unit]) for unit in units]], dtype=torch.float32),  # (1, U)
        elements=granularity.get_decomposition(inputs, tokenizer, return_text=True)[0],
        model_inputs_to_explain=inputs,
        targets=torch.tensor([model.class_index(name)]),
        model_task=base.ModelTask.CLASSIFICATION,
        granularity=granularity,
        granularity_aggregation_strategy=base.GranularityAggregationStrategy[aggregate.upper()],
    )


def _of_pair(inputs: Any) -> Any:
    """Number the words of a tokenised pair without restarting in the second text: interpreto joins equal numbers."""

    class OfPair(type(inputs)):  # type: ignore[misc]
        def word_ids(self, batch_index: int = 0) -> list[int | None]:
            """Return the number of each token's word; None for a special token."""
            words, segments = super().word_ids(batch_index), self.sequence_ids(batch_index)
            count = 1 + max((w for w, s in zip(words, segments) if w is not None and s == 0), default=-1)
            return [w if w is None or s != 1 else w + count for w, s in zip(words, segments)]

    return OfPair(dict(inputs), encoding=inputs.encodings)


def _check_segments(item: TextExplanation, units: list[list[int]], granularity: Any) -> None:
    texts = [None if offset is None else offset[0] for offset in item.scores("kept", "token").offsets]
    for unit in units:
        if len({texts[i] for i in unit} - {None}) > 1:
            raise ValueError(
                f"granularity {granularity.value!r} of interpreto joins the two texts of the pair {item.text!r}, "
                f"{item.pair!r}; end the first with a full stop, or choose 'word' or 'token'"
            )


def _peer(package: str, name: str) -> Any:
    """Import one of the supported packages."""
    try:
        return import_module(package)
    except ImportError as error:
        raise ImportError(
            f"{name} needs {package}, which cannot be imported ({error}): pip install {package}"
        ) from error


def _check_important(score: str) -> None:
    if score not in ("kept", "signed"):
        raise ValueError(
            f"score is {score!r}, but a high score must mean an important token here: choose 'kept' or 'signed'"
        )


def _kept(
    item: TextExplanation, layer: Choice, granularity: Granularity, aggregate: Aggregate = "sum"
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return the information kept of one row, its standard errors and the pieces of the text, (U,) each."""
    row = item.rows[-1] if layer is None else item.row(*layer if isinstance(layer, tuple) else (layer,))
    number = next(i for i, each in enumerate(item.rows) if each is row)
    scores = item.scores("kept", granularity, aggregate)
    pieces = np.array(_pieces(item, scores.units, scores.offsets))
    return scores.values[number].numpy(), scores.standard_error[number].numpy(), pieces


def _pieces(item: TextExplanation, units: Sequence[str], offsets: Sequence[Offset | None]) -> list[str]:
    """Return the characters of the text from each unit to the next one, which shap joins to show the text."""
    texts, pieces = (item.text, item.pair or ""), []
    for unit, offset, following in zip(units, offsets, [*offsets[1:], None]):
        piece = ""
        if offset is not None:
            segment, start, stop = offset
            if following is not None and following[0] == segment:
                piece = texts[segment][start : max(stop, following[1])]
            else:
                piece = f"{texts[segment][start:].rstrip()} "
        pieces.append(piece if piece.strip() else f"{unit} ")  # a special token, or "[UNK]" for white space
    return pieces


def _ragged(rows: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Make an array of arrays, also if all have the same length."""
    array = np.empty(len(rows), dtype=object)
    for number, row in enumerate(rows):
        array[number] = row
    return array


def _inseq_mask(inputs: tuple[Tensor, ...], additional_forward_args: tuple[Any, ...], **_: Any) -> Tensor:
    """Return which tokens of the inputs are not padding, (B, T): inseq's masks follow the attributed function."""
    place = next(i for i, each in enumerate(additional_forward_args) if callable(each))
    masks = takewhile(lambda each: isinstance(each, Tensor), additional_forward_args[place + 1 :])
    return torch.cat([mask.bool() for mask, _ in zip(masks, inputs)], dim=1)


def _inseq_forward(attribution_model: nn.Module) -> Any:
    """Return inseq's model as a function of its arguments, with texts to contrast with repeated for each row."""

    def forward(*arguments: Any) -> Any:
        repeated = list(arguments)
        place = _names_place(arguments)
        for number, name in enumerate(arguments[place], place + 1):
            if name in CONTRASTS and isinstance(repeated[number], (str, list)):
                texts = [repeated[number]] if isinstance(repeated[number], str) else repeated[number]
                repeated[number] = texts * len(arguments[0]) if len(texts) == 1 else texts
        return attribution_model(*repeated)

    return forward


CONTRASTS = ("contrast_sources", "contrast_targets")
"""inseq's names of the texts that others are contrasted with."""


def _names_place(arguments: Sequence[Any]) -> int:
    """Return the index of the list of names of the attributed function's own arguments; their values follow."""
    return next(i for i, each in enumerate(arguments) if isinstance(each, list))


def _check_inseq(model: Any, method: InformationLoss, main: dict[str, Any]) -> None:
    """Raise an error for requests that would be explained wrongly."""
    arguments, inputs = main["additional_forward_args"], main["inputs"]
    if len(inputs[0]) > 1 and set(CONTRASTS) & set(arguments[_names_place(arguments)]):
        raise ValueError(
            f"{len(inputs[0])} texts are contrasted at once, but inseq aligns only one; call attribute for each text"
        )
    if isinstance(method, LayerInformationLoss) and model.is_encoder_decoder:
        layer = method.layer
        if len(inputs) > 1 or all(each is not layer for each in model.get_encoder().modules()):
            raise ValueError(
                f"target_layer is {type(layer).__name__}: for an encoder-decoder model, give a layer of the encoder "
                "and no attribute_target"
            )


def _inseq_values(
    method: InformationLoss, main: dict[str, Any], settings: dict[str, Any], score: Important
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the score of each token, (B, T), and the quality of the fit, (B,) each."""
    arguments, inputs = main["additional_forward_args"], main["inputs"]
    is_constant = False
    if method.state_layer is None and set(CONTRASTS) & set(arguments[_names_place(arguments)]):
        with torch.no_grad():  # contrasted with the same token, the difference is always 0
            is_constant = not method.forward_func(*inputs, *arguments).any()
    if not is_constant and score == "kept":
        fit = method.fit(**main, **settings)
        residual = fit.residual.abs().amax(1).float()
        return fit.kept(), {"converged": fit.converged.float(), "residual": residual}
    # no noise is learned, so there is nothing to converge
    if is_constant:
        values = torch.zeros(len(inputs[0]), sum(each.shape[1] for each in inputs), dtype=torch.float32)
    else:
        values = cast(Tensor, method.attribute(**main, **settings, score=score, return_input_shape=False))
    return values, {"converged": torch.ones_like(values[:, 0]), "residual": torch.zeros_like(values[:, 0])}


def _plain(value: Any) -> Any:
    """Convert a setting to numbers, strings and lists."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, Solver):
        return asdict(value)
    return value if isinstance(value, (bool, int, float, str, list, tuple, dict, type(None))) else repr(value)
