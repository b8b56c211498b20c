"""Tokenization with a Hugging Face tokenizer: ids, character offsets, readable tokens, targets and length limits."""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast
from unicodedata import category, combining, normalize

from interp_plugin.text.models import (
    CHARACTERS,
    Encoding,
    Offset,
    Source,
    Target,
    Words,
    as_int,
    is_cut_already,
    shown,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from interp_plugin.huggingface.outputs import Vocabulary

_BEFORE = ("##", "▁", "Ġ", "@@")  # prefixes of tokens in WordPiece, SentencePiece and byte-level BPE
_AFTER = ("</w>", "@@")  # suffixes of tokens in BPE


def align(text: str, tokens: Sequence[str]) -> list[tuple[int, int]]:
    """Find the characters of ``text`` of each token: one (start, end) for each token, both never decreasing.

    The matching is greedy: each token is matched at its nearest occurrence after the token before it.  Case, accents,
    compatibility forms (``ﬁ`` is ``fi``), whitespace and control characters are ignored, because tokenizers change or
    drop them; so are the marks ``##``, ``▁``, ``Ġ``, ``@@`` and ``</w>``.  A token that is not found ("[UNK]") gets an
    empty span at the end of the token before it.

    Examples::
        >>> align("Un café noir", ["un", "cafe", "no", "##ir"])
        [(0, 2), (3, 7), (8, 10), (10, 12)]
        >>> align("a 😀 film", ["a", "[UNK]", "film"])
        [(0, 1), (1, 1), (4, 8)]
    """
    pieces = [fold(char) for char in text]
    folded = "".join(pieces)
    sources = [
        index for index, piece in enumerate(pieces) for _ in piece
    ]  # original index of each folded character
    spans, place, end = [], 0, 0
    for token in tokens:
        start, stop = _find(folded, token, place) or (0, 0)
        first = end
        if stop:
            first, end, place = sources[start], sources[stop - 1] + 1, stop
        spans.append((first, end))
    return spans


def fold(text: str) -> str:
    """Remove case, accents, whitespace, control characters and compatibility forms from ``text``.

    Examples::
        >>> fold("Café ﬁn")
        'cafefin'
    """
    plain = normalize("NFKD", normalize("NFKD", text).casefold())
    return "".join(c for c in plain if not (combining(c) or c.isspace() or category(c) in ("Cc", "Cf")))


def _find(folded: str, token: str, place: int) -> tuple[int, int] | None:
    """Return the nearest span of ``folded`` from ``place`` on that equals ``token``, with or without its mark."""
    forms = [token]
    forms += [token.removeprefix(mark) for mark in _BEFORE if token.startswith(mark)]
    forms += [form.removesuffix(mark) for form in forms for mark in _AFTER if form.endswith(mark)]
    hits = [
        (start, start + len(form))
        for form in map(fold, forms)
        if form and (start := folded.find(form, place)) >= 0
    ]
    return min(hits, key=lambda hit: (hit[0], -hit[1]), default=None)


_ONE_AT_A_TIME = threading.Lock()  # a call changes the settings of the tokenizer
# tokenizer -> private copy of its backend, and the state that was copied
_PRIVATE: weakref.WeakKeyDictionary[Any, tuple[Any, Any]] = weakref.WeakKeyDictionary()
UNDECODED = "\N{REPLACEMENT CHARACTER}"  # decoding of an incomplete sequence of bytes


@dataclass(frozen=True)
class Pieces:
    """The T tokens of a text, or of a pair of texts.

    Args:
        ids: T token ids.
        spans: T offsets; None for a token that the tokenizer added.
        types: T token type ids; empty if the tokenizer returns none.
    """

    ids: tuple[int, ...]
    spans: tuple[Offset | None, ...]
    types: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def __add__(self, after: Pieces) -> Pieces:
        return Pieces(self.ids + after.ids, self.spans + after.spans, self.types + after.types)

    def at(self, indices: Iterable[int]) -> Pieces:
        """Return only the tokens at these indices."""
        chosen = list(indices)
        types = tuple(self.types[i] for i in chosen) if self.types else ()
        return Pieces(tuple(self.ids[i] for i in chosen), tuple(self.spans[i] for i in chosen), types)

    def without_end(self) -> Pieces:
        """Remove the special tokens after the last token of the text."""
        last = max((i for i, span in enumerate(self.spans) if span is not None), default=-1)
        return self.at(range(last + 1))


def checked(text: Any, name: str = "text") -> str:
    """Check that ``text`` is a string that can be encoded as UTF-8, and return it.

    Raises:
        TypeError: it is not a string.
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
            f"{name} holds {text[error.start]!r} at character {error.start}: half a surrogate pair is not a "
            "character; decode the text with errors='replace'"
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
    """Tokenize a text or a pair, without truncation.

    Args:
        special: add the special tokens of the tokenizer.
        as_target: tokenize as a decoder's text (tokenizers for translation may mark it with another language).
    """
    texts = (text, pair or "")
    inputs = {"text_target": text} if as_target else {"text": text, "text_pair": pair}
    if not tokenizer.is_fast:
        return _aligned(tokenizer, inputs, (text, pair), special)
    encoded = _call(tokenizer, inputs, add_special_tokens=special, return_offsets_mapping=True)
    return _with_spans(encoded, lambda segment, word: (segment, 0, len(texts[segment])))


def _with_spans(encoded: Any, part_of: Callable[[int, Any], Offset]) -> Pieces:
    """Read the output of a fast tokenizer, whose offsets are relative to a part of a segment: all of it, or a word."""
    spans: list[Offset | None] = []
    found = zip(encoded.sequence_ids(0), encoded.word_ids(0), encoded["offset_mapping"], strict=True)
    for segment, word, (first, last) in found:
        if segment is None:
            spans.append(None)
        else:
            _, start, stop = part_of(segment, word)
            spans.append(_span(segment, (start + first, start + last), stop))
    return Pieces(tuple(encoded["input_ids"]), tuple(spans), tuple(encoded.get("token_type_ids", ())))


def split_words(
    tokenizer: PreTrainedTokenizerBase, words: Words, pair: Words | None
) -> tuple[Pieces, tuple[Offset, ...]]:
    """Tokenize texts that are already split into words; also return the offsets of the words.

    Offsets refer to the words joined by spaces.

    Raises:
        ValueError: no words, a blank word, or a tokenizer that ignores the spaces between words.
    """
    texts = [each for each in (words, pair) if each is not None]
    places = [_places(each, segment) for segment, each in enumerate(texts)]
    if tokenizer.is_fast:
        inputs = {"text": list(words), "text_pair": None if pair is None else list(pair)}
        encoded = _call(tokenizer, inputs, is_split_into_words=True, return_offsets_mapping=True)
        pieces = _with_spans(encoded, lambda segment, word: places[segment][word])
    else:
        pieces = split(tokenizer, " ".join(words), None if pair is None else " ".join(pair))
    if len(words) > 1 and not any(map(str.isspace, str(tokenizer.decode(list(pieces.ids))).strip())):
        raise ValueError(
            "the tokenizer ignores the spaces between words that are given one by one; load it with "
            "add_prefix_space=True, or give the text as one string"
        )
    return pieces, tuple(place for of_text in places for place in of_text)


def _places(words: Words, segment: int) -> list[Offset]:
    """Return the offsets of words in the text that joins them by spaces."""
    if not words:
        raise ValueError("a text has 0 words; give at least one")
    places, start = [], 0
    for word in words:
        if not checked(word, "a word").strip():
            raise ValueError(f"word {word!r} is blank; leave it out")
        places.append((segment, start, start + len(word)))
        start += len(word) + 1
    if start > CHARACTERS:
        raise ValueError(f"the words have {start} characters: at most {CHARACTERS} are read; give fewer")
    return places


def _marks(tokenizer: PreTrainedTokenizerBase) -> set[Any]:
    """Return the ids of the tokens for beginning, end and padding; the set may contain None."""
    return {getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "cls", "sep", "pad")}


def _with_special_tokens(tokenizer: PreTrainedTokenizerBase, pieces: Pieces) -> Pieces:
    """Treat special tokens written in the text, as chat templates do, as special; drop a doubled first one."""
    marks = _marks(tokenizer)
    written = [
        span is not None and token in marks for token, span in zip(pieces.ids, pieces.spans, strict=True)
    ]
    if not any(written):
        return pieces
    spans = tuple(None if mark else span for mark, span in zip(written, pieces.spans))
    doubled = len(pieces) > 1 and written[1] and not written[0] and pieces.ids[0] == pieces.ids[1]
    return replace(pieces, spans=spans).at(range(int(doubled), len(pieces)))


def _call(tokenizer: PreTrainedTokenizerBase, inputs: dict[str, Any], **options: Any) -> Any:
    """Call a tokenizer without side effects on other threads.

    A call changes the truncation, padding and language of the tokenizer, which other threads may be using with other
    settings.  A fast tokenizer is therefore called with a private copy of its backend.
    """
    with _ONE_AT_A_TIME:
        if tokenizer.is_fast:
            private: Any = copy.copy(tokenizer)
            backend = private.backend_tokenizer
            after = backend.post_processor  # holds the language
            state = (backend.get_vocab_size(), None if after is None else after.__getstate__())
            if _PRIVATE.get(tokenizer, (None, None))[1] != state:
                _PRIVATE[tokenizer] = copy.deepcopy(backend), state
            private._tokenizer = _PRIVATE[tokenizer][0]
            tokenizer = private
        return tokenizer(**inputs, verbose=False, **options)


def _span(segment: int, offset: tuple[int, int], length: int) -> Offset:
    start = min(max(offset[0], 0), length)
    return segment, start, min(max(offset[1], start), length)


def _aligned(
    tokenizer: PreTrainedTokenizerBase, inputs: dict[str, Any], texts: tuple[str, str | None], special: bool
) -> Pieces:
    """As ``split``, for tokenizers that return no offsets."""
    encoded = _call(tokenizer, inputs, add_special_tokens=special)
    ids = list(encoded["input_ids"])
    spans: list[Offset | None] = [None] * len(ids)
    place = 0
    for segment, text in enumerate(texts):
        if text is None:
            continue
        key = "text_target" if "text_target" in inputs else "text"
        content = _call(tokenizer, {key: text}, add_special_tokens=False)["input_ids"]
        place = _place(ids, content, place)
        tokens = _decoded(tokenizer, content)
        for index, (start, end) in enumerate(align(text, tokens), place):
            spans[index] = (segment, start, end)
        place += len(content)
    return Pieces(tuple(ids), tuple(spans), tuple(encoded.get("token_type_ids", ())))


def _place(ids: Sequence[int], content: Sequence[int], start: int) -> int:
    """Return the index at which the tokens of one text begin: special tokens are around them, never between."""
    for place in range(start, len(ids) - len(content) + 1):
        if list(ids[place : place + len(content)]) == list(content):
            return place
    raise ValueError(
        f"the tokenizer gives ids {list(content)} for a text alone and {list(ids)} with special tokens: the second "
        "must contain the first; give a tokenizer that only adds special tokens around a text"
    )


def cut(pieces: Pieces, most: int, side: str) -> Pieces:
    """Cut to at most ``most`` tokens: on ``side``, from the longer text first; special tokens are kept.

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
            f"there is room for {most} tokens, and special tokens or the target need all of it: at least one token "
            "must belong to the text; give a shorter target or a model that takes more tokens"
        )
    dropped: set[int] = set()
    while len(pieces) - len(dropped) > most:
        longer = max(texts, key=len)
        dropped.add(longer.pop(0 if side == "left" else -1))
    return pieces.at(i for i in range(len(pieces)) if i not in dropped)


def continued(tokenizer: PreTrainedTokenizerBase, text: str, continuation: str) -> tuple[Pieces, Pieces]:
    """Tokenize a text and its continuation together.

    ``continuation`` is appended to ``text`` unchanged, so it must begin with a space if one is needed.  If a token
    would cross the boundary ("New Yo" + "rk"), the two are tokenized separately.

    Returns:
        The tokens of the text with the special tokens before them, segment 0; and the tokens of the continuation,
        without special tokens, segment 1.
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
    """Return the index of the continuation's first token in ``joint``; None if no token begins at the boundary."""
    if joint.ids[: len(alone)] == alone.ids:
        return len(alone)
    for index, span in enumerate(joint.spans):
        if span is not None and span[2] > len(text):
            blank = not text[span[1] :].strip()  # a token may begin with the space that ends the text
            return index if blank and any(joint.spans[:index]) else None
    return None


def _moved(pieces: Pieces, origin: int, length: int) -> Pieces:
    """Move tokens to segment 1, with offsets relative to character ``origin``."""
    spans = tuple(
        span and _span(1, (span[1] - origin, span[2] - origin), length)
        for span in pieces.spans
    )  # fmt: skip
    return Pieces(pieces.ids, spans, pieces.types)


def pieces_of_ids(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> tuple[str, Pieces]:
    """Decode token ids; return the text and the tokens with their offsets in it (None for special tokens)."""
    text = str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
    marks = _marks(tokenizer)
    # these count as words, as in a text that is given as a string
    words = {tokenizer.unk_token_id, tokenizer.mask_token_id} - marks
    special = (set(tokenizer.all_special_ids) | marks) - words
    spans = align(text, _decoded(tokenizer, ids))
    found = (None if token in special else (0, *span) for token, span in zip(ids, spans, strict=True))
    return text, Pieces(tuple(ids), tuple(found))


def chat_pieces(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]]
) -> tuple[str, Pieces, tuple[tuple[int, str] | None, ...]]:
    """Format a chat with its template; return the text, its tokens, and the number and role of each token's message.

    The template writes all special tokens, so the tokenizer adds none.  Tokens outside the messages' contents count as
    special tokens.  If the last message is not the assistant's, the generation prompt is added.

    Raises:
        ValueError: messages without role and content, no template, or a template that rewrites a message.
    """
    for message in messages:
        if not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
            raise ValueError(f"message {message!r} must have a role and a content, both strings")
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "the tokenizer has no chat template; give the text itself, with the special tokens that it needs"
        )
    prompted = messages[-1]["role"] != "assistant"
    text = str(
        tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=prompted
        )
    )
    pieces = split(tokenizer, text, special=False)
    parts: list[tuple[int, str] | None] = [None] * len(pieces)
    place = 0
    for number, message in enumerate(messages):
        content = message["content"].strip()
        start = text.find(content, place)
        if start < 0:
            raise ValueError(
                f"the chat template rewrites message {number}, {shown(content)}; give the text itself"
            )
        place = start + len(content)
        for token in overlapping(pieces, start, place) if content else ():
            parts[token] = (number, message["role"])
    spans = tuple(span if part else None for span, part in zip(pieces.spans, parts))
    return text, Pieces(pieces.ids, spans, pieces.types), tuple(parts)


def overlapping(pieces: Pieces, start: int, stop: int) -> list[int]:
    """Return the indices of the tokens that overlap the characters ``start`` to ``stop``."""
    return [
        index
        for index, span in enumerate(pieces.spans)
        if span is not None and span[1] < stop and max(span[2], span[1] + 1) > start
    ]


def readable(
    tokenizer: PreTrainedTokenizerBase, pieces: Pieces, texts: tuple[str, str | None]
) -> tuple[str, ...]:
    """Return the T tokens in readable form: special tokens unchanged, "Ġgood" as " good".

    If the bytes of a character are split into several tokens, each shows the whole character.
    """
    tokens = []
    for token, span in zip(_decoded(tokenizer, pieces.ids, pieces.spans), pieces.spans, strict=True):
        written = "" if span is None else (texts[span[0]] or "")[span[1] : span[2]]
        tokens.append(written if UNDECODED in token and written else token)
    return tuple(tokens)


def _decoded(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], spans: Sequence[Offset | None] | None = None
) -> list[str]:
    """Decode tokens one by one; those without a span, and those that decode to nothing, are kept unchanged."""
    known = tokenizer.convert_ids_to_tokens(list(ids))
    # a model may have more ids than its tokenizer has tokens (Qwen): these have no name
    tokens = [f"<id {index}>" if token is None else token for index, token in zip(ids, known, strict=True)]
    special = [False] * len(tokens) if spans is None else [span is None for span in spans]
    return [
        token if added else tokenizer.convert_tokens_to_string([token]) or token
        for token, added in zip(tokens, special, strict=True)
    ]


PER_TOKEN = 1000
"""Upper bound on characters for each token: usual texts have four, but a long unknown word is a single token."""

_CUT_OFF = ("text", "text before its target")  # what truncation=True shortens

Reading = Literal["text", "continuation", "decoder", "echo"]


@dataclass(frozen=True)
class Encoder:
    """Turns texts into encodings for one kind of model.

    Args:
        reading: what the model reads besides the text: nothing ("text"), the target after the text
            ("continuation"), the target in a decoder ("decoder"), or the text again in a decoder ("echo").
        limit: largest number of tokens.
        vocabulary: the ids that the model embeds.
        with_types: whether the model takes token_type_ids.
        start: first tokens of the decoder.
        end: id of the token at which an encoder-decoder classifier predicts.
    """

    tokenizer: PreTrainedTokenizerBase
    reading: Reading
    limit: int
    vocabulary: Vocabulary
    with_types: bool = False
    start: tuple[int, ...] = ()
    end: int | None = None

    def __call__(self, text: Source, pair: str | None, target: Target, truncation: bool) -> Encoding:
        """Check and encode one text or pair; see ``HuggingFaceModel.encode``."""
        target = as_int(target)
        if isinstance(text, Words):
            return self._encode_words(text, pair, target, truncation)
        if is_cut_already(text):
            return self._encode_ids_or_chat(cast(Sequence[Any], text), pair, target, truncation)
        return self._encode_text(
            checked(text), None if pair is None else checked(pair, "pair"), target, truncation
        )

    def _encode_text(self, text: str, pair: str | None, target: Target, truncation: bool) -> Encoding:
        """Encode a text or pair, tokenizing only as many characters as the model's tokens can cover."""
        most = min(PER_TOKEN * self.limit, CHARACTERS)
        continuation = target[0] if isinstance(target, tuple) and target else target
        for name, value in (("text", text), ("pair", pair), ("target", continuation)):
            if isinstance(value, str) and len(value) > most and (name == "target" or not truncation):
                tokens = f"at most {self.limit} tokens, which are " if most < CHARACTERS else ""
                raise ValueError(
                    f"{name} has {len(value)} characters: the model takes {tokens}no more than {most}; shorten it"
                    + (", or cut it off with truncation=True" if name != "target" else "")
                )
        left = self.tokenizer.truncation_side == "left"
        part = slice(-most, None) if left else slice(most)
        found = self._encode(text[part], None if pair is None else pair[part], target, truncation)
        starts = [max(0, len(value) - most) if left else 0 for value in (text, pair or "")]
        offsets = tuple(
            offset and (offset[0], offset[1] + starts[offset[0]], offset[2] + starts[offset[0]])
            for offset in found.offsets
        )
        return replace(found, text=text, pair=found.pair if pair is None else pair, offsets=offsets)

    def _encode_ids_or_chat(
        self, source: Sequence[Any], pair: str | None, target: Target, truncation: bool
    ) -> Encoding:
        """Encode token ids, or the messages of a chat with its template; both include all special tokens."""
        if pair is not None:
            raise ValueError("token ids and chats are read alone, without a pair; leave the pair out")
        parts: tuple[tuple[int, str] | None, ...] = ()
        if isinstance(source[0], Mapping):
            text, pieces, parts = chat_pieces(self.tokenizer, source)
        else:
            text, pieces = self._of_ids(source)
        if truncation and len(pieces) > self.limit:
            raise ValueError(
                f"the text has {len(pieces)} tokens, and the model takes {self.limit}: token ids and chats are not cut "
                "off; shorten them"
            )
        found = self._encode(text, None, target, False, pieces)
        return replace(found, parts=parts + (None,) * (len(found.ids) - len(parts)) if parts else ())

    def _encode_words(self, text: Words, pair: Any, target: Target, truncation: bool) -> Encoding:
        """Encode a text, or a pair of texts, that is split into words."""
        if pair is not None and not isinstance(pair, Words):
            raise TypeError(f"pair is {pair!r}, and the text is split into words: it must be a list of words")
        pieces, words = split_words(self.tokenizer, text, pair)
        joined, second = " ".join(text), None if pair is None else " ".join(pair)
        pieces = self._fitted(self._prepared(pieces, joined, second), truncation, "text")
        return replace(self._encode(joined, second, target, False, pieces), words=words)

    def _encode(
        self, text: str, pair: str | None, target: Target, truncation: bool, pieces: Pieces | None = None
    ) -> Encoding:
        """As ``__call__``, for a text that is short enough to tokenize, or that is tokenized already (``pieces``)."""
        is_text = target is not None and not isinstance(target, int)
        if self.reading == "continuation" and is_text:
            return self._continued(text, pair, target, truncation, pieces)
        if pieces is None:
            pieces = self._pieces(text, pair, truncation)
        else:
            pieces = self._fitted(pieces, False, "text")
        if self.reading == "decoder" and is_text:
            return self._with_decoder_target(pieces, text, pair, target)
        if self.reading in ("text", "echo"):
            return self._encoding(pieces, text, pair, self._echo(pieces))
        decoder = self.start or None
        found = self._encoding(pieces, text, pair, decoder)
        if target is None:
            return found
        place = len(decoder or pieces.ids) - 1
        return replace(found, target=(self.vocabulary.index(cast(int, target)),), target_positions=(place,))

    def _continued(
        self, text: str, pair: str | None, target: Any, truncation: bool, pieces: Pieces | None
    ) -> Encoding:
        """Encode text and target as one sequence for a decoder, without the last target token."""
        continuation, start, stop = checked_target(target)
        if pair is not None:
            raise ValueError(
                f"pair {pair!r} and target {continuation!r} both follow the text: only one can; join text and pair"
            )
        before, after = self._before_and_after(text, continuation, pieces)
        chosen = self._chosen(after, continuation, start, stop)
        last = chosen[-1]
        after = self._fitted(after.at(range(last + 1)), False, "target")
        before = self._fitted(before, truncation, "text before its target", self.limit - last)
        whole = self._encoding(before + after.at(range(last)), text, continuation)
        places = tuple(len(before) - 1 + i for i in chosen)
        return replace(whole, target=tuple(after.ids[i] for i in chosen), target_positions=places)

    def _before_and_after(
        self, text: str, continuation: str | Sequence[int], pieces: Pieces | None
    ) -> tuple[Pieces, Pieces]:
        """Return the tokens of a text (``pieces``, if given) and those of the string or ids that follow it."""
        if not isinstance(continuation, str):
            _, after = self._of_ids(continuation)
            spans = tuple(span and (1, *span[1:]) for span in after.spans)
            return pieces or self._pieces(text, None, False), replace(after, spans=spans)
        if pieces is None:
            self._check_content(split(self.tokenizer, text), text, None)
        before, after = continued(self.tokenizer, text, continuation)
        before = _with_special_tokens(self.tokenizer, before)
        if pieces is None or before.ids == pieces.ids:
            return pieces or before, after
        after = split(self.tokenizer, continuation, special=False)
        return pieces, _moved(after, 0, len(continuation))

    def steps(self, text: Source, continuation: str | Sequence[int]) -> tuple[Encoding, list[Encoding]]:
        """Encode a text with its continuation; also, for each token of the continuation, what precedes it.

        The token is the target of that encoding.  In an encoder-decoder the continuation is read by the decoder and is
        not among the text's tokens.

        Args:
            continuation: a string, or token ids.
        """
        if self.reading not in ("continuation", "decoder"):
            raise ValueError("continuation is only for language models; leave it out")
        prompt = self(text, None, None, False)
        if self.reading == "decoder":
            whole = self._with_continuation(text, prompt, continuation)
            pairs = zip(whole.target, whole.target_positions)
            return whole, [
                replace(whole, target=(token,), target_positions=(place,)) for token, place in pairs
            ]
        pieces = None if isinstance(text, str) else Pieces(prompt.ids, prompt.offsets)
        before, after = self._before_and_after(prompt.text, continuation, pieces)
        if not len(after):
            raise ValueError(f"continuation {continuation!r} has no tokens; give some words")
        joined = self._fitted(before + after, False, "text with its continuation")
        written = (
            continuation if isinstance(continuation, str) else pieces_of_ids(self.tokenizer, after.ids)[0]
        )
        whole = self._encoding(joined, prompt.text, written)
        if prompt.parts:
            whole = replace(whole, parts=prompt.parts + (None,) * (len(joined) - len(prompt.parts)))
        steps = []
        for place in range(len(before), len(joined)):
            kept = whole.only([index < place for index in range(len(joined))])
            steps.append(replace(kept, target=(joined.ids[place],), target_positions=(place - 1,)))
        return whole, steps

    def _with_continuation(
        self, text: Source, prompt: Encoding, continuation: str | Sequence[int]
    ) -> Encoding:
        """Encode a text with all tokens of a continuation as the decoder's target."""
        if isinstance(continuation, str):
            return self(text, None, continuation, False)
        written, after = self._of_ids(continuation)
        if not len(after):
            raise ValueError(f"continuation {continuation!r} has no tokens; give some words")
        start = Pieces(self.start, (None,) * len(self.start))
        decoder = self._fitted(start + after.at(range(len(after) - 1)), False, "continuation").ids
        places = tuple(range(len(self.start) - 1, len(decoder)))
        extra = {**prompt.extra, "decoder_input_ids": decoder}
        pair = written if prompt.pair is None else prompt.pair
        return replace(prompt, pair=pair, extra=extra, target=after.ids, target_positions=places)

    def _with_decoder_target(self, pieces: Pieces, text: str, pair: str | None, target: Any) -> Encoding:
        """Encode the text for the encoder and the target, shifted right, for the decoder."""
        decoded, start, stop = checked_target(target)
        labels = split(self.tokenizer, decoded, as_target=True)
        chosen = self._chosen(labels, decoded, start, stop)
        labels = self._fitted(labels.at(range(chosen[-1] + 1)), False, "target")
        decoder = (self.start[0], *labels.ids[:-1])
        whole = self._encoding(pieces, text, decoded if pair is None else pair, decoder)
        return replace(whole, target=tuple(labels.ids[i] for i in chosen), target_positions=tuple(chosen))

    def _echo(self, pieces: Pieces) -> tuple[int, ...] | None:
        """Return the decoder input of an encoder-decoder classifier: the text itself, shifted right."""
        if self.reading != "echo":
            return None
        if self.end is not None and self.end not in pieces.ids:
            raise ValueError(
                f"tokenizer and model do not fit: the model predicts at the end token, id {self.end}, and "
                "the tokenizer adds none; give the tokenizer that the model was trained with"
            )
        return (self.start[0], *pieces.ids[:-1])

    def _encoding(
        self, pieces: Pieces, text: str, pair: str | None, decoder: tuple[int, ...] | None = None
    ) -> Encoding:
        """Build the encoding of tokens and, if given, the decoder's input, without a target."""
        # token ids have no types; models use 0 if none are given
        types = pieces.types if len(pieces.types) == len(pieces) else (0,) * len(pieces)
        extra = {"token_type_ids": types} if self.with_types else {}
        if decoder is not None:
            extra["decoder_input_ids"] = decoder
        tokens = readable(self.tokenizer, pieces, (text, pair))
        return Encoding(text, pair, tokens, pieces.spans, pieces.ids, extra)

    def _pieces(self, text: str, pair: str | None, truncation: bool) -> Pieces:
        """Return the tokens of a text or pair, checked and truncated."""
        pieces = self._prepared(split(self.tokenizer, text, pair), text, pair)
        return self._fitted(pieces, truncation, "text")

    def _prepared(self, pieces: Pieces, text: str, pair: str | None) -> Pieces:
        """Return the tokens of a text or pair as the model reads them, before any truncation."""
        self._check_content(pieces, text, pair)
        if self.reading == "continuation":
            pieces = pieces.without_end()  # after an end token the model expects another text
        return _with_special_tokens(self.tokenizer, pieces)

    def _check_content(self, pieces: Pieces, text: str, pair: str | None) -> None:
        """Check that each text has a token that is not a special token."""
        marks = _marks(self.tokenizer)
        for segment, content in enumerate((text, pair)):
            written = [i for i, span in zip(pieces.ids, pieces.spans) if span and span[0] == segment]
            if content is not None and marks.issuperset(written):
                raise ValueError(
                    f"{('text', 'pair')[segment]} {shown(content)} has no tokens but special ones: it must hold at "
                    "least one other token; give some words"
                )

    def _of_ids(self, ids: Sequence[Any]) -> tuple[str, Pieces]:
        """Return the text of token ids, and the tokens."""
        return pieces_of_ids(self.tokenizer, self._checked_ids(ids))

    def _checked_ids(self, ids: Sequence[Any]) -> tuple[int, ...]:
        size, known = self.vocabulary.size, tuple(map(int, ids))
        for token in known:
            if not 0 <= token < size:
                raise ValueError(
                    f"token id {token} is not one of the model's, 0 to {size - 1}; give ids of its own tokenizer"
                )
        return known

    def _fitted(self, pieces: Pieces, truncation: bool, name: str, limit: int | None = None) -> Pieces:
        """Check that the model embeds these tokens, and cut them to ``limit`` (default: the model's limit)."""
        limit = self.limit if limit is None else limit
        if max(pieces.ids) >= self.vocabulary.size:
            raise ValueError(
                f"tokenizer and model do not fit: the {name} has token id {max(pieces.ids)}, and the model embeds ids "
                f"below {self.vocabulary.size}; give the tokenizer that the model was trained with"
            )
        if len(pieces) <= limit:
            return pieces
        if not truncation:
            raise ValueError(
                f"{name} has {len(pieces)} tokens: the model takes at most {limit}; shorten it"
                + (", or cut it off with truncation=True" if name in _CUT_OFF else "")
            )
        return cut(pieces, limit, self.tokenizer.truncation_side)

    def _chosen(self, pieces: Pieces, text: str, start: int, stop: int) -> list[int]:
        """Return the indices of the target's tokens at these characters, at least one."""
        chosen = overlapping(pieces, start, stop)
        if not chosen:
            raise ValueError(
                f"target {text!r} has no tokens at characters {start} to {stop}: it must hold at least one; give some "
                "words"
            )
        return chosen


def checked_target(target: Any) -> tuple[str, int, int]:
    """Check a target; return the continuation and the span of characters that is the target.

    Examples::
        >>> checked_target((" a good film", (3, 7)))
        (' a good film', 3, 7)
    """
    match target:
        case str():
            return checked(target, "target"), 0, max(len(target), 1)
        case (str() as text, (int() as start, int() as stop)):
            checked(text, "target")
        case _:
            raise TypeError(
                f"target {target!r} is a {type(target).__name__}: it must be a continuation, a token id, or "
                "(continuation, (start, stop)); give one of them"
            )
    if not 0 <= start < stop <= len(text):
        raise ValueError(
            f"target span ({start}, {stop}) is not within {text!r}: 0 <= start < stop <= {len(text)} must hold; "
            "give characters of the continuation"
        )
    return text, start, stop
