"""TextExplainer: a model, its tokenizer and a text become an Explanation."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from interp_plugin import huggingface
from interp_plugin.attribution import LayerInformationLoss
from interp_plugin.explanation import Explanation
from interp_plugin.solver import Solver

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class TextExplainer:
    """Says how much of each token every layer of a sequence classifier keeps.

    Noise enters at the output of the word embeddings; the state is a layer's output for all tokens.

    Example::

        >>> from interp_plugin import huggingface
        >>> model, tokenizer = huggingface.load(huggingface.default_model_path())
        >>> explanation = TextExplainer(model, tokenizer).explain("a good film", layers=1)
        >>> explanation.tokens, explanation.kept.shape
        (('[CLS]', 'a', 'good', 'film', '[SEP]'), torch.Size([1, 5]))
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model
        self.tokenizer = tokenizer

    def explain(
        self,
        text: str,
        layers: Literal["all"] | int | Sequence[int] = "all",
        rate: float = 0.1,
        solver: Solver | None = None,
    ) -> Explanation:
        """Information kept of each token of ``text`` by each of ``layers``.

        Args:
            layers: numbers from 1 (the first block) on, or "all".
            rate: weight of entropy against distortion, > 0.
            solver: default ``Solver()``.

        Raises:
            ValueError: an empty text, one longer than the model takes, or a layer that is not there.
            TypeError: the text is not a string.
        """
        blocks = huggingface.transformer_layers(self.model)
        numbers = _layer_numbers(layers, len(blocks))
        ids, mask = self._encode(text)  # (1, T) each
        with torch.no_grad():
            logits = self._forward(ids, mask)  # (1, C)
        predicted, probability = huggingface.predicted_class(self.model, logits[0])

        solver = Solver() if solver is None else solver
        start = time.perf_counter()
        fits = [
            LayerInformationLoss(
                self._forward, self.model.get_input_embeddings(), state_layer=blocks[number - 1]
            ).fit(ids, additional_forward_args=(mask,), rate=rate, solver=solver)
            for number in numbers
        ]
        return Explanation(
            text=text,
            tokens=tuple(self.tokenizer.convert_ids_to_tokens(ids[0].tolist())),
            predicted=predicted,
            probability=probability,
            layers=numbers,
            sigma=torch.cat([fit.sigma for fit in fits]).cpu(),
            kept=torch.cat([fit.kept() for fit in fits]).cpu(),
            standard_error=torch.cat([fit.token_size * fit.standard_error for fit in fits]).cpu(),
            regime_index=torch.cat([fit.regime_index for fit in fits]).cpu(),
            distortion=torch.cat([fit.distortion for fit in fits]).cpu(),
            converged=torch.cat([fit.converged for fit in fits]).cpu(),
            n_forward=sum(int(fit.n_forward.sum()) for fit in fits),
            n_backward=sum(int(fit.n_backward.sum()) for fit in fits),
            seconds=time.perf_counter() - start,
            rate=rate,
            seed=solver.seed,
        )

    def _forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=ids, attention_mask=mask).logits
        return logits  # (B, C)

    def _encode(self, text: str) -> tuple[Tensor, Tensor]:
        """Ids and attention mask of one text, (1, T) each, on the model's device."""
        if not isinstance(text, str):
            raise TypeError(f"text is a {type(text).__name__}: it must be a str; call explain once per text")
        if not self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]:
            raise ValueError(f"text {text!r} has no tokens: it must hold at least one; give some words")
        encoded = self.tokenizer(text, return_tensors="pt", verbose=False).to(self.model.device)
        length, limit = encoded["input_ids"].shape[1], huggingface.token_limit(self.model, self.tokenizer)
        if length > limit:
            raise ValueError(
                f"text has {length} tokens: the model takes at most {limit}; shorten or split it"
            )
        return encoded["input_ids"], encoded["attention_mask"]


def _layer_numbers(layers: Literal["all"] | int | Sequence[int], depth: int) -> tuple[int, ...]:
    """The chosen layers, without repeats, each checked to be one of 1 to ``depth``."""
    if layers == "all":
        return tuple(range(1, depth + 1))
    numbers = (layers,) if isinstance(layers, int) else tuple(dict.fromkeys(layers))
    if not numbers:
        raise ValueError(f"layers {layers!r} names no layer: choose from 1 to {depth}, or 'all'")
    for number in numbers:
        if number not in range(1, depth + 1):
            raise ValueError(
                f"layer {number!r} does not exist: the model has layers 1 to {depth}; choose from them"
            )
    return tuple(int(number) for number in numbers)
