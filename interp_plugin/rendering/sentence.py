"""Sentence: a text cut into its units and what stands between them, in reading order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Piece:
    """Some characters of a line: a unit (its index), or what lies between units (None)."""

    text: str
    unit: int | None = None
    special: bool = False  # a unit that is no part of the text: [CLS]


def lines(text: Mapping[str, Any]) -> list[list[Piece]]:
    """The pieces of each segment (the text, its pair); special tokens stand where the model reads them.

    Units whose characters are already taken (an emoji in four byte-level tokens) show their own names.

    Example::

        >>> text = {"text": "a film!", "pair": None, "units": ["[CLS]", "a", "film"],
        ...         "offsets": [None, [0, 0, 1], [0, 2, 6]]}
        >>> [line] = lines(text)
        >>> [(piece.text, piece.unit) for piece in line]
        [('[CLS]', 0), ('a', 1), (' ', None), ('film', 2), ('!', None)]
    """
    segments = [text["text"], text["pair"] or ""]
    offsets: Sequence[Sequence[int] | None] = text["offsets"]
    last = {offset[0]: u for u, offset in enumerate(offsets) if offset is not None}  # unit by segment
    result: list[list[Piece]] = [[]]
    here, taken = 0, 0  # segment and characters of it that are out
    for u, (name, offset) in enumerate(zip(text["units"], offsets, strict=True)):
        if offset is None:
            result[-1].append(Piece(name, u, special=True))
            continue
        segment, start, end = offset
        if segment != here:
            here, taken = segment, 0
            result.append([])
        if start > taken:
            result[-1].append(Piece(segments[segment][taken:start]))
        own = segments[segment][max(start, taken) : end]
        result[-1].append(Piece(own or name, u, special=not own))
        taken = max(taken, end)
        if u == last[segment] and taken < len(segments[segment]):
            result[-1].append(Piece(segments[segment][taken:]))
    return [line for line in result if line]
