"""Units of a text: its tokens gathered into words or sentences."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

Granularity = Literal["token", "word", "sentence"]
Aggregate = Literal["sum", "mean", "max"]
Offset = tuple[int, int, int]  # segment (0 = text, 1 = pair), start, end, in characters
Span = tuple[int, int]

_CHUNK = re.compile(r"\S+")
_BLANK_LINE = re.compile(r"\n\s*\n")
_ENDS = ".!?…。！？؟۔।"  # noqa: RUF001
_CLOSERS = "\"'”’»›)]}」』）】》"  # noqa: RUF001
_FULL_WIDTH_END = re.compile(f"[。！？][{_ENDS}]*[{re.escape(_CLOSERS)}]*")  # noqa: RUF001


@dataclass(frozen=True)
class Unit:
    """Tokens that are read as one.

    Attributes:
        name: what the text says there; for a token, and for every special token, the token itself.
        offset: (segment, start, end) in characters, None for a special token.
        tokens: their indices.
    """

    name: str
    offset: Offset | None
    tokens: tuple[int, ...]


def group(
    texts: Sequence[str | None],
    tokens: Sequence[str],
    offsets: Sequence[Offset | None],
    granularity: Granularity,
) -> tuple[Unit, ...]:
    """The units that hold the T tokens, each token in exactly one, in order of their first tokens.

    A token goes to the unit with the first character of its span that is no space, so "Ġfilm" belongs to
    "film"; a token without such a character goes to the next unit, and to the last one at the end of the
    text. Special tokens (offset None) stay alone. Words without a token are left out.

    Args:
        texts: the text and its pair, one for each segment.
        tokens: T of them.
        offsets: (segment, start, end) of each token; None for a special one.
        granularity: "token", "word" (see `word_spans`) or "sentence" (see `sentence_spans`).

    Raises:
        ValueError: another granularity.

    Example::

        >>> offsets = [None, (0, 0, 2), (0, 2, 5), (0, 5, 10), None]
        >>> [unit.name for unit in group(["don't stop"], ["<s>", "do", "n't", " stop", "</s>"], offsets, "word")]
        ['<s>', "don't", 'stop', '</s>']
    """
    if granularity not in get_args(Granularity):
        raise ValueError(f"granularity is {granularity!r}: choose from {', '.join(get_args(Granularity))}")
    if granularity == "token":
        return tuple(Unit(*pair, (i,)) for i, pair in enumerate(zip(tokens, offsets, strict=True)))
    find_spans: Callable[[str], list[Span]] = word_spans if granularity == "word" else sentence_spans
    spans = [find_spans(text or "") for text in texts]

    members: dict[int | Offset, list[int]] = {}  # a special token's own index, or the unit's place
    for i, offset in enumerate(offsets):
        members.setdefault(i if offset is None else _unit_of(offset, texts, spans), []).append(i)
    return tuple(
        Unit(tokens[place], None, tuple(inside))
        if isinstance(place, int)
        else Unit((texts[place[0]] or "")[place[1] : place[2]], place, tuple(inside))
        for place, inside in members.items()
    )


def check_aggregate(aggregate: str) -> None:
    """Raise a ValueError for a way to aggregate that does not exist."""
    if aggregate not in get_args(Aggregate):
        raise ValueError(f"aggregate is {aggregate!r}: choose from {', '.join(get_args(Aggregate))}")


def word_spans(text: str) -> list[Span]:
    """(start, end) of each word: what stands between spaces, without the punctuation at its two ends.

    A run of punctuation at an end is a unit of its own (Unicode category P; symbols such as $ and emoji
    belong to the word). Inner punctuation stays: "don't", "state-of-the-art". Marks and joiners go with the
    character before them. A script without spaces, such as Chinese, is not split further.

    Example::

        >>> text = '"Don\\'t," she said...'
        >>> [text[start:end] for start, end in word_spans(text)]
        ['"', "Don't", ',"', 'she', 'said', '...']
    """
    return [span for chunk in _CHUNK.finditer(text) for span in _peel(chunk.group(), chunk.start())]


def sentence_spans(text: str) -> list[Span]:
    """(start, end) of each sentence, without the space around it.

    One ends at a chunk of text that ends in one of ``. ! ? … 。 ！ ？ ؟ ۔ ।``, closing quotes and brackets
    aside; after 。 ！ ？ also where no space follows; and at a blank line. That is all: "Dr. No" is two.

    Example::

        >>> text = 'It works. "Really?" Yes'
        >>> [text[start:end] for start, end in sentence_spans(text)]
        ['It works.', '"Really?"', 'Yes']
    """
    cuts = {0, len(text)} | {blank.end() for blank in _BLANK_LINE.finditer(text)}
    for chunk in _CHUNK.finditer(text):
        if chunk.group().rstrip(_CLOSERS).endswith(tuple(_ENDS)):
            cuts.add(chunk.end())
        cuts |= {chunk.start() + end.end() for end in _FULL_WIDTH_END.finditer(chunk.group())}
    stripped = [_strip(text, *span) for span in pairwise(sorted(cuts))]
    return [(start, end) for start, end in stripped if start < end]


def _unit_of(offset: Offset, texts: Sequence[str | None], spans: Sequence[list[Span]]) -> Offset:
    """The place of the unit that holds a token."""
    segment, start, _ = offset
    text, inside = texts[segment] or "", spans[segment]
    if not inside:  # nothing but space: the whole segment is the unit
        return segment, 0, len(text)
    character = _CHUNK.search(text, start)
    if character is None:
        return segment, *inside[-1]
    # no unit starts or ends inside a space, so the last one that starts at or before a character holds it
    return segment, *inside[bisect_right(inside, character.start(), key=lambda span: span[0]) - 1]


def _peel(chunk: str, start: int) -> list[Span]:
    """The punctuation before, the core and the punctuation after, as far as they are there."""
    punctuation: list[bool] = []
    for character in chunk:
        category = unicodedata.category(character)
        attached = bool(punctuation) and (category[0] == "M" or category == "Cf")
        punctuation.append(punctuation[-1] if attached else category[0] == "P")
    if all(punctuation):
        return [(start, start + len(chunk))]
    first, last = punctuation.index(False), len(chunk) - punctuation[::-1].index(False)
    cuts = (start, start + first, start + last, start + len(chunk))
    return [span for span in pairwise(cuts) if span[0] < span[1]]


def _strip(text: str, start: int, end: int) -> Span:
    """The span without the space at its two ends."""
    inside = text[start:end]
    return start + len(inside) - len(inside.lstrip()), start + len(inside.rstrip())
