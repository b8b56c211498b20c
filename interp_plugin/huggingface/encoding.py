"""From texts and targets to the ids that a model reads, within its limits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from interp_plugin.huggingface import tokenization
from interp_plugin.huggingface.classes import Vocabulary
from interp_plugin.huggingface.tokenization import Pieces
from interp_plugin.tokens import CHARACTERS, Encoding, Target, as_int, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PER_TOKEN = (
    1000  # characters: texts have four, and a word without blanks that no tokenizer knows is one token
)

Reading = Literal["text", "continuation", "decoder", "echo"]


@dataclass(frozen=True)
class Asked:
    """What the output is asked about.

    Args:
        ids: target ids.
        positions: where in the output each is predicted.
        decoder: ids that the decoder reads; None: there is no decoder.
    """

    ids: tuple[int, ...] = ()
    positions: tuple[int, ...] = ()
    decoder: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Encoder:
    """Turns texts into encodings for one kind of model.

    Args:
        reading: what the model reads besides the text: nothing ("text"), the target after the text
            ("continuation"), the target in a decoder ("decoder"), or the text once more in a decoder ("echo").
        limit: most tokens.
        vocabulary: the ids that the model embeds.
        with_types: whether it takes token_type_ids.
        start: what a decoder begins with.
        end: the id at which a classifier with a decoder gives its answer.
    """

    tokenizer: PreTrainedTokenizerBase
    reading: Reading
    limit: int
    vocabulary: Vocabulary
    with_types: bool = False
    start: tuple[int, ...] = ()
    end: int | None = None

    def __call__(self, text: str, pair: str | None, target: Target, truncation: bool) -> Encoding:
        """One text or pair, checked; see ``HuggingFaceModel.encode``."""
        target = as_int(target)
        tokenization.checked(text)
        if pair is not None:
            tokenization.checked(pair, "pair")
        # more characters than the tokens that the model takes can stand for: see what it takes to tokenize them
        most = min(PER_TOKEN * self.limit, CHARACTERS)
        spoken = target[0] if isinstance(target, tuple) and target else target
        for name, value in (("text", text), ("pair", pair or ""), ("target", spoken)):
            if isinstance(value, str) and len(value) > most and (name == "target" or not truncation):
                tokens = f"at most {self.limit} tokens, which are " if most < CHARACTERS else ""
                raise ValueError(
                    f"{name} has {len(value)} characters: the model takes {tokens}no more than {most}; shorten it"
                    + (", or cut it off with truncation=True" if name != "target" else "")
                )
        if max(len(text), len(pair or "")) <= most:
            return self._encoded(text, pair, target, truncation)
        left = self.tokenizer.truncation_side == "left"
        place = slice(-most, None) if left else slice(most)
        found = self._encoded(text[place], None if pair is None else pair[place], target, truncation)
        starts = [max(0, len(value) - most) if left else 0 for value in (text, pair or "")]
        offsets = tuple(
            offset and (offset[0], offset[1] + starts[offset[0]], offset[2] + starts[offset[0]])
            for offset in found.offsets
        )
        return replace(found, text=text, pair=found.pair if pair is None else pair, offsets=offsets)

    def _encoded(self, text: str, pair: str | None, target: Target, truncation: bool) -> Encoding:
        """As ``__call__``, of what is short enough to be tokenized."""
        if self.reading == "decoder":
            return self._beside(text, pair, target, truncation)
        if self.reading == "continuation":
            if target is None or isinstance(target, int):
                return self._before_one(text, pair, target, truncation)
            return self._continued(text, pair, target, truncation)
        pieces = self._pieces(text, pair, truncation)
        return self._encoding(pieces, text, pair, Asked(decoder=self._echo(pieces)))

    def _before_one(self, text: str, pair: str | None, target: int | None, truncation: bool) -> Encoding:
        """A decoder reads the text, and the next token is asked about."""
        pieces = self._pieces(text, pair, truncation)
        if target is None:
            return self._encoding(pieces, text, pair)
        return self._encoding(pieces, text, pair, Asked((self.vocabulary.index(target),), (len(pieces) - 1,)))

    def _continued(self, text: str, pair: str | None, target: Any, truncation: bool) -> Encoding:
        """A decoder reads text and target as one, but for the last token asked about."""
        continuation, start, stop = checked_target(target)
        if pair is not None:
            raise ValueError(
                f"pair {pair!r} and target {continuation!r} both follow the text: only one can; join text and pair"
            )
        self._check_content(tokenization.split(self.tokenizer, text), text, None)
        before, after = tokenization.continued(self.tokenizer, text, continuation)
        chosen = self._chosen(after, continuation, start, stop)
        last = chosen[-1]
        after = self._fitted(after.at(range(last + 1)), False, self.limit, "target")
        before = self._fitted(before, truncation, self.limit - last, "text before its target")
        asked = Asked(tuple(after.ids[i] for i in chosen), tuple(len(before) - 1 + i for i in chosen))
        return self._encoding(before + after.at(range(last)), text, continuation, asked)

    def _beside(self, text: str, pair: str | None, target: Any, truncation: bool) -> Encoding:
        """An encoder reads the text, the decoder the target, shifted right."""
        pieces = self._pieces(text, pair, truncation)
        if target is None:
            return self._encoding(pieces, text, pair, Asked(decoder=self.start))
        if isinstance(target, int):
            index = self.vocabulary.index(target)
            return self._encoding(pieces, text, pair, Asked((index,), (len(self.start) - 1,), self.start))
        decoded, start, stop = checked_target(target)
        labels = tokenization.split(self.tokenizer, decoded, as_target=True)
        chosen = self._chosen(labels, decoded, start, stop)
        labels = self._fitted(labels.at(range(chosen[-1] + 1)), False, self.limit, "target")
        asked = Asked(tuple(labels.ids[i] for i in chosen), tuple(chosen), (self.start[0], *labels.ids[:-1]))
        return self._encoding(pieces, text, decoded if pair is None else pair, asked)

    def _echo(self, pieces: Pieces) -> tuple[int, ...] | None:
        """The text itself, shifted right: what a classifier with a decoder gives that to read."""
        if self.reading != "echo":
            return None
        if self.end is not None and self.end not in pieces.ids:
            raise ValueError(
                f"tokenizer and model do not fit: the model gives its answer at the end mark, token id {self.end}, and "
                "the tokenizer adds none; give the tokenizer that the model was trained with"
            )
        return (self.start[0], *pieces.ids[:-1])

    def _encoding(self, pieces: Pieces, text: str, pair: str | None, asked: Asked = Asked()) -> Encoding:
        extra = {"token_type_ids": pieces.types} if self.with_types else {}
        if asked.decoder is not None:
            extra["decoder_input_ids"] = asked.decoder
        return Encoding(
            text=text,
            pair=pair,
            tokens=tokenization.readable(self.tokenizer, pieces, (text, pair)),
            offsets=pieces.spans,
            ids=pieces.ids,
            extra=extra,
            target=asked.ids,
            target_positions=asked.positions,
        )

    def _pieces(self, text: str, pair: str | None, truncation: bool) -> Pieces:
        """The tokens of a text or pair, checked and cut off."""
        pieces = tokenization.split(self.tokenizer, text, pair)
        self._check_content(pieces, text, pair)
        if self.reading == "continuation":
            pieces = pieces.without_end()  # what follows an end mark is another text
        return self._fitted(pieces, truncation, self.limit, "text")

    def _check_content(self, pieces: Pieces, text: str, pair: str | None) -> None:
        for segment, given in enumerate((text, pair)):
            if given is not None and not tokenization.has_content(self.tokenizer, pieces, segment):
                raise ValueError(
                    f"{('text', 'pair')[segment]} {shown(given)} has no tokens but special ones: it must hold at "
                    "least one; give some words"
                )

    def _fitted(self, pieces: Pieces, truncation: bool, limit: int, name: str) -> Pieces:
        """At most ``limit`` tokens that the model has embeddings for."""
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
                + (", or cut it off with truncation=True" if name != "target" else "")
            )
        return tokenization.cut(pieces, limit, self.tokenizer.truncation_side)

    def _chosen(self, pieces: Pieces, text: str, start: int, stop: int) -> list[int]:
        """The target's tokens on these characters, at least one."""
        chosen = tokenization.overlapping(pieces, start, stop)
        if not chosen:
            raise ValueError(
                f"target {text!r} has no tokens at characters {start} to {stop}: it must hold at least one; give some "
                "words"
            )
        return chosen


def checked_target(target: Any) -> tuple[str, int, int]:
    """A continuation and the characters of it that are asked about: all, or a span.

    Examples::
        >>> checked_target((" a good film", (3, 7)))
        (' a good film', 3, 7)
    """
    if isinstance(target, str):
        return tokenization.checked(target, "target"), 0, max(len(target), 1)
    try:
        text, (start, stop) = target
        stands = isinstance(text, str) and isinstance(start, int) and isinstance(stop, int)
    except (TypeError, ValueError):
        stands = False
    if not stands:
        raise TypeError(
            f"target {target!r} is a {type(target).__name__}: it must be a continuation, a token id, or "
            "(continuation, (start, stop)); give one of them"
        )
    tokenization.checked(text, "target")
    if not 0 <= start < stop <= len(text):
        raise ValueError(
            f"target span ({start}, {stop}) does not stand in {text!r}: it must hold 0 <= start < stop <= {len(text)}; "
            "give characters of the continuation"
        )
    return text, start, stop
