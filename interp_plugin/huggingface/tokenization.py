"""Texts as a Hugging Face tokenizer cuts them: ids, where each token stands, readable tokens."""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from interp_plugin.huggingface.alignment import align
from interp_plugin.tokens import Offset

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ONE_AT_A_TIME = threading.Lock()  # a tokenizer is set anew for each call
_PRIVATE: weakref.WeakKeyDictionary[Any, tuple[Any, Any]] = (
    weakref.WeakKeyDictionary()
)  # backends, of what state
UNDECODED = "\N{REPLACEMENT CHARACTER}"  # what decoding gives for some of a character's bytes


@dataclass(frozen=True)
class Pieces:
    """The T tokens of a text, or of a pair of texts.

    Args:
        ids: T token ids.
        spans: T, where each token stands; None: a token that the tokenizer added.
        types: T token type ids; empty where the tokenizer gives none.
    """

    ids: tuple[int, ...]
    spans: tuple[Offset | None, ...]
    types: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def __add__(self, after: Pieces) -> Pieces:
        return Pieces(self.ids + after.ids, self.spans + after.spans, self.types + after.types)

    def at(self, indices: Iterable[int]) -> Pieces:
        """Those tokens only."""
        chosen = list(indices)
        types = tuple(self.types[i] for i in chosen) if self.types else ()
        return Pieces(tuple(self.ids[i] for i in chosen), tuple(self.spans[i] for i in chosen), types)

    def without_end(self) -> Pieces:
        """Without the special tokens after the last token of the text."""
        last = max((i for i, span in enumerate(self.spans) if span is not None), default=-1)
        return self.at(range(last + 1))


def checked(text: Any, name: str = "text") -> str:
    """``text`` if it is a string that has an UTF-8 form.

    Raises:
        TypeError: it is no string.
        ValueError: it holds half a surrogate pair, which no tokenizer can read.
    """
    if not isinstance(text, str):
        raise TypeError(
            f"{name} is a {type(text).__name__}: it must be a str; give one text at a time, as a string"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} holds {text[error.start]!r} at character {error.start}: half a surrogate pair is no character; "
            "decode the text with errors='replace'"
        ) from error
    return text


def split(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    pair: str | None = None,
    *,
    special: bool = True,
    as_target: bool = False,
) -> Pieces:
    """The tokens of a text, all of them.

    Args:
        special: with the special tokens that the tokenizer adds.
        as_target: as a decoder's text (some translators' tokenizers mark it with another language).
    """
    given = {"text_target": text} if as_target else {"text": text, "text_pair": pair}
    if not tokenizer.is_fast:
        return _aligned(tokenizer, given, (text, pair), special)
    encoded = _called(tokenizer, given, add_special_tokens=special, return_offsets_mapping=True)
    spans = tuple(
        None if segment is None else _span(segment, offset, len(text if segment == 0 else pair or ""))
        for segment, offset in zip(encoded.sequence_ids(0), encoded["offset_mapping"], strict=True)
    )
    return Pieces(tuple(encoded["input_ids"]), spans, tuple(encoded.get("token_type_ids", ())))


def _called(tokenizer: PreTrainedTokenizerBase, given: dict[str, Any], **options: Any) -> Any:
    """What a tokenizer gives, in no way of what other threads ask of it.

    A call sets truncation and padding, and the language, of the whole tokenizer: threads that serve would have our
    texts cut, or we leave theirs whole.  So a fast one is called with a copy of what does the work.
    """
    with _ONE_AT_A_TIME:
        if tokenizer.is_fast:
            apart: Any = copy.copy(tokenizer)
            backend = apart.backend_tokenizer
            after = backend.post_processor  # which has the language
            state = (backend.get_vocab_size(), None if after is None else after.__getstate__())
            if _PRIVATE.get(tokenizer, (None, None))[1] != state:
                _PRIVATE[tokenizer] = copy.deepcopy(backend), state
            apart._tokenizer = _PRIVATE[tokenizer][0]
            tokenizer = apart
        return tokenizer(**given, verbose=False, **options)


def _span(segment: int, offset: tuple[int, int], length: int) -> Offset:
    start = min(max(offset[0], 0), length)
    return segment, start, min(max(offset[1], start), length)


def _aligned(
    tokenizer: PreTrainedTokenizerBase, given: dict[str, Any], texts: tuple[str, str | None], special: bool
) -> Pieces:
    """As ``split``, for tokenizers that do not say where their tokens stand."""
    encoded = _called(tokenizer, given, add_special_tokens=special)
    ids = list(encoded["input_ids"])
    spans: list[Offset | None] = [None] * len(ids)
    place = 0
    for segment, text in enumerate(texts):
        if text is None:
            continue
        key = "text_target" if "text_target" in given else "text"
        content = _called(tokenizer, {key: text}, add_special_tokens=False)["input_ids"]
        place = _place(ids, content, place)
        tokens = _plain(tokenizer, content)
        for index, (start, end) in enumerate(align(text, tokens), place):
            spans[index] = (segment, start, end)
        place += len(content)
    return Pieces(tuple(ids), tuple(spans), tuple(encoded.get("token_type_ids", ())))


def _place(ids: Sequence[int], content: Sequence[int], start: int) -> int:
    """Where the tokens of one text begin among all: special tokens stand around them, never between."""
    for place in range(start, len(ids) - len(content) + 1):
        if list(ids[place : place + len(content)]) == list(content):
            return place
    raise ValueError(
        f"the tokenizer gives ids {list(content)} for a text alone and {list(ids)} with special tokens: the first must "
        "stand in the second; give a tokenizer that adds special tokens around a text only"
    )


def cut(pieces: Pieces, most: int, side: str) -> Pieces:
    """At most ``most`` tokens: the longer text loses tokens first, on ``side``; special tokens stay.

    Raises:
        ValueError: there are ``most`` special tokens or more.

    Examples::
        >>> pieces = Pieces((101, 7, 8, 9, 102), (None, (0, 0, 1), (0, 1, 2), (0, 2, 3), None))
        >>> cut(pieces, 4, "right").ids, cut(pieces, 4, "left").ids
        ((101, 7, 8, 102), (101, 8, 9, 102))
    """
    texts = [[i for i, span in enumerate(pieces.spans) if span and span[0] == segment] for segment in (0, 1)]
    if most <= len(pieces) - sum(map(len, texts)):
        raise ValueError(
            f"there is room for {most} tokens, and special tokens or the target take them all: at least one must be of "
            "the text; give a shorter target or a model that takes more tokens"
        )
    dropped: set[int] = set()
    while len(pieces) - len(dropped) > most:
        longer = max(texts, key=len)
        dropped.add(longer.pop(0 if side == "left" else -1))
    return pieces.at(i for i in range(len(pieces)) if i not in dropped)


def has_content(tokenizer: PreTrainedTokenizerBase, pieces: Pieces, segment: int = 0) -> bool:
    """Whether a text has a token that is not just a mark of begin, end or padding."""
    names = ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "pad_token_id")
    marks = {getattr(tokenizer, name, None) for name in names}
    return any(
        span is not None and span[0] == segment and token not in marks
        for token, span in zip(pieces.ids, pieces.spans, strict=True)
    )


def continued(tokenizer: PreTrainedTokenizerBase, text: str, continuation: str) -> tuple[Pieces, Pieces]:
    """The tokens of a text and of what follows it, as they are when both are read as one.

    ``continuation`` follows ``text`` as it stands: it begins with a space where one belongs.  Where a token
    would reach over the boundary ("New Yo" + "rk"), the two are cut up apart.

    Returns:
        The text's tokens, with the special tokens before them and none after, segment 0; the
        continuation's, without special tokens, segment 1.
    """
    alone = split(tokenizer, text).without_end()
    joint = split(tokenizer, text + continuation).without_end()
    boundary = _boundary(alone, joint, text)
    if boundary is None:
        after = split(tokenizer, continuation, special=False)
        return alone, _moved(after, 0, len(continuation))
    before, after = joint.at(range(boundary)), joint.at(range(boundary, len(joint)))
    return before, _moved(after, len(text), len(continuation))


def _boundary(alone: Pieces, joint: Pieces, text: str) -> int | None:
    """The continuation's first token in ``joint``; None where no token begins at the boundary."""
    if joint.ids[: len(alone)] == alone.ids:
        return len(alone)
    for index, span in enumerate(joint.spans):
        if span is not None and span[2] > len(text):
            blank = not text[span[1] :].strip()  # a token may begin with the space that ends the text
            return index if blank and any(joint.spans[:index]) else None
    return None


def _moved(pieces: Pieces, origin: int, length: int) -> Pieces:
    """Offsets counted from character ``origin``, as segment 1."""
    spans = tuple(
        span and _span(1, (span[1] - origin, span[2] - origin), length)
        for span in pieces.spans
    )  # fmt: skip
    return Pieces(pieces.ids, spans, pieces.types)


def overlapping(pieces: Pieces, start: int, stop: int) -> list[int]:
    """Indices of the tokens that stand on some of the characters ``start`` to ``stop``."""
    return [
        index
        for index, span in enumerate(pieces.spans)
        if span is not None and span[1] < stop and max(span[2], span[1] + 1) > start
    ]


def readable(
    tokenizer: PreTrainedTokenizerBase, pieces: Pieces, texts: tuple[str, str | None]
) -> tuple[str, ...]:
    """The tokens for people to read, T: special tokens as they are, "Ġgood" as " good".

    Of a character whose bytes are several tokens each shows the whole character.
    """
    tokens = []
    for token, span in zip(_plain(tokenizer, pieces.ids, pieces.spans), pieces.spans, strict=True):
        written = "" if span is None else (texts[span[0]] or "")[span[1] : span[2]]
        tokens.append(written if UNDECODED in token and written else token)
    return tuple(tokens)


def _plain(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], spans: Sequence[Offset | None] | None = None
) -> list[str]:
    """Tokens decoded one by one; those without a span, and those that decode to nothing, as they are."""
    known = tokenizer.convert_ids_to_tokens(list(ids))
    # a model may have more ids than its tokenizer has tokens (Qwen): they have no name
    tokens = [f"<id {index}>" if token is None else token for index, token in zip(ids, known, strict=True)]
    special = [False] * len(tokens) if spans is None else [span is None for span in spans]
    return [
        token if added else tokenizer.convert_tokens_to_string([token]) or token
        for token, added in zip(tokens, special, strict=True)
    ]
