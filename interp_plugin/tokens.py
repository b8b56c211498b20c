"""A text as a model reads it, and what a model must offer to explain texts with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from interp_plugin.state import LayerCall

Span = tuple[int, int, int]
"""Segment (0 = text, 1 = pair), first character, one past the last."""
Axis = Literal["input", "decoder"]
Task = Literal["sequence classes", "token classes", "next token", "none"]
Target = str | int | tuple[str, tuple[int, int]] | None
"""A continuation, one token id, or a continuation and the characters of it that are asked about."""


@dataclass(frozen=True)
class Encoding:
    """One text, unpadded.

    Args:
        tokens: T, the tokens that bear noise, readable.
        offsets: T, where each token stands; None for special tokens.
        ids: T, what enters the noise layer's module.
        extra: further per-token inputs of length T (``token_type_ids``), and for encoder-decoders
            ``decoder_input_ids`` of a length of its own.
        target: ids of the tokens that the output is asked about (language models), else ().
        target_positions: the position of the output whose prediction each target id is.
    """

    text: str
    pair: str | None
    tokens: tuple[str, ...]
    offsets: tuple[Span | None, ...]
    ids: tuple[int, ...]
    extra: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    target: tuple[int, ...] = ()
    target_positions: tuple[int, ...] = ()


class TextModel(Protocol):
    """A model with its tokenizer, as the text explainer uses it."""

    embedding: LayerCall
    layers: Mapping[int | str, LayerCall]
    axis: Mapping[int | str, Axis]
    name: str
    task: Task

    @property
    def device(self) -> torch.device: ...

    def encode(
        self, text: str, pair: str | None = None, *, target: Target = None, truncation: bool = False
    ) -> Encoding: ...

    def collate(self, encodings: Sequence[Encoding]) -> tuple[tuple[Tensor, ...], Tensor]: ...

    def __call__(self, *arguments: Tensor) -> Tensor: ...

    def class_index(self, target: int | str) -> int: ...

    def class_name(self, index: int) -> str: ...

    def heads(self, layer: int | str) -> tuple[int, int] | None: ...
