"""Checks and conversion of user input: texts, pairs, words, chats, targets, further arguments, and units of noise."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from interp_plugin import data
from interp_plugin.huggingface.outputs import Labels
from interp_plugin.text.models import (
    EACH,
    PER_TOKEN,
    Encoding,
    Label,
    Second,
    Source,
    TextModel,
    Words,
    as_int,
    is_cut_already,
    plain_values,
)
from interp_plugin.text.scores import group

Text = str | tuple[str, str]
Given = Source | Text | tuple[str, Sequence[str]] | Sequence[str]
"""A text, a pair, a text with choices, token ids, the messages of a chat, or words."""
Layers = Label | Sequence[Label]
PARAGRAPH = re.compile(r"\S(?:.|\n(?!\s*\n))*")
NAMED = ("word", "sentence", "paragraph", "message")


def read_texts(texts: Any, is_split_into_words: bool = False) -> list[tuple[Source, Second]]:
    """Convert a text or pair, or a list of them, to a list of (text, second or None); texts may be ids or chats."""
    texts = data.in_memory(texts)
    texts = plain_values(texts)
    if is_one(texts, is_split_into_words):
        texts = [texts]
    if not isinstance(texts, Sequence) or isinstance(texts, bytes):
        raise TypeError(
            f"texts is a {type(texts).__name__}: it must be a str, a pair of str or a list of them"
        )
    if not texts:
        raise ValueError("texts is empty; give at least one text")
    convert = _words_and_pair if is_split_into_words else _text_and_pair
    return [convert(index, plain_values(text)) for index, text in enumerate(texts)]


def is_one(texts: Any, is_split_into_words: bool) -> bool:
    """Whether this is a single text or pair and not a list of them."""
    if is_split_into_words and isinstance(texts, list) and _are_words(texts):
        return True
    return isinstance(texts, (str, tuple)) or is_cut_already(texts)


def _text_and_pair(index: int, text: Any) -> tuple[Source, Second]:
    """Return a text and its pair or choices."""
    if is_cut_already(text):
        return text, None
    first, second = text if isinstance(text, (tuple, list)) and len(text) == 2 else (text, None)
    second = plain_values(second)
    if isinstance(first, str) and isinstance(second, (list, tuple)) and _are_words(second):
        return first, list(second)
    if not isinstance(first, str) or not isinstance(second, (str, type(None))):
        raise TypeError(
            f"text {index} is {text!r}: it must be a str, a tuple or list of two for a pair of sentences, a text with "
            "a list of choices, token ids, or the messages of a chat; for words set is_split_into_words=True"
        )
    return first, second


def _words_and_pair(index: int, text: Any) -> tuple[Source, Second]:
    """Return a text, and possibly its pair, that are split into words."""
    if isinstance(text, (tuple, list)) and not text:
        raise ValueError(
            f"text {index} is {text!r}: with is_split_into_words=True it must have at least one word"
        )
    parts = [text] if _are_words(text) else list(text) if isinstance(text, (tuple, list)) else []
    if not 0 < len(parts) < 3 or not all(map(_are_words, parts)):
        raise TypeError(
            f"text {index} is {text!r}: with is_split_into_words=True it must be a list of words, or a pair of such "
            "lists"
        )
    return Words(parts[0]), Words(parts[1]) if len(parts) > 1 else None


def _are_words(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(word, str) for word in value)


def the_only(pairs: Sequence[tuple[Source, Second]]) -> Sequence[tuple[Source, Second]]:
    """Check that there is exactly one text for a continuation."""
    if len(pairs) != 1:
        raise ValueError(
            f"a continuation needs exactly one text, and there are {len(pairs)}; call once for each"
        )
    return pairs


def for_each(target: Any, count: int) -> list[Any]:
    """Return one target for each text."""
    target = plain_values(target)
    targets = [as_int(each) for each in target] if isinstance(target, list) else [target] * count
    if len(targets) != count:
        raise ValueError(f"target lists {len(targets)} for {count} texts; give one for each")
    return targets


def class_number(model: TextModel, target: Any, choices: Sequence[str] = ()) -> int:
    """Return the index of a class or choice given by name or number; digits in a string count as a number."""
    find = Labels(tuple(choices)).index if choices else model.class_index
    try:
        return find(target)
    except ValueError:
        number = re.fullmatch(r"\s*(\d{1,9})(?:\.0+)?\s*", target) if isinstance(target, str) else None
        if number is not None:  # "1.0" is how tables with missing values write whole numbers
            return find(int(number[1]))
        raise


def is_each(target: Any) -> bool:
    return isinstance(target, str) and target == EACH


def arguments_of_each(arguments: Mapping[str, Any], count: int, is_one: bool) -> list[Mapping[str, Any]]:
    """Return the arguments of each text; for several texts, a value is a list, or one number for all of them."""
    found: list[dict[str, Any]] = [{} for _ in range(count)]
    for name, value in arguments.items():
        values = [value] if is_one else plain_values(value)
        if isinstance(values, (int, float)):
            values = [values] * count
        if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != count:
            one = f", [{value}] for one text" if count == 1 else ""
            raise ValueError(
                f"forward_args[{name!r}] is {value!r}: it must have a value for each text ({count}){one}, or be one "
                "number for all of them"
            )
        for own, each in zip(found, values):
            own[name] = each
    return list(found)


def with_arguments(encoding: Encoding, arguments: Mapping[str, Any]) -> Encoding:
    """Add further arguments of the model's forward to a text.

    Args:
        arguments: name -> one number for all tokens, or one value for each token (special tokens included) or, if the
            text was given as words, for each word; a list of another length is an argument of the whole text.

    Raises:
        ValueError: an invalid value, or a wrong number of values for an argument with one for each token (PER_TOKEN).

    Examples::
        >>> text = Encoding("a b", None, ("<s>", "a", "b"), (None, (0, 0, 1), (0, 2, 3)), (0, 1, 2))
        >>> with_arguments(text, {"langs": 3, "token_type_ids": torch.tensor([0, 0, 1])}).extra
        {'langs': (3, 3, 3), 'token_type_ids': (0, 0, 1)}
    """
    count, extra = len(encoding.ids), dict(encoding.extra)
    for name, value in arguments.items():
        value = plain_values(value)
        if isinstance(value, Sequence) and len(value) == 1 and isinstance(value[0], Sequence):
            value = value[0] if len(value[0]) == count else value  # a batch of one, as tokenizers return
        if name in PER_TOKEN and isinstance(value, float):
            raise ValueError(f"{name} is {value!r}; it counts from 0: give whole numbers")
        if isinstance(value, (int, float)):
            extra[name] = (value,) * count
        elif not isinstance(value, Sequence) or isinstance(value, str):
            raise ValueError(f"{name} is {value!r}; give a number, a list, an array or a tensor")
        elif len(value) == len(encoding.words) != count:
            extra[name] = _values_of_tokens(encoding, value)
        elif name in PER_TOKEN and len(value) != count:
            words = f" or {len(encoding.words)} words" if encoding.words else ""
            raise ValueError(
                f"{name} has {len(value)} values for {count} tokens{words}; give one for each, special tokens too"
            )
        else:
            extra[name] = tuple(value)
    return replace(encoding, extra=extra)


def _values_of_tokens(encoding: Encoding, values: Sequence[Any]) -> tuple[Any, ...]:
    """Return, for each token, the value of its word; zeros for special tokens."""
    zeros = torch.zeros_like(torch.as_tensor(values[0])).tolist()
    found = []
    for offset in encoding.offsets:
        inside = (
            number
            for number, (segment, start, stop) in enumerate(encoding.words)
            if offset is not None and offset[0] == segment and start <= offset[1] < stop
        )
        number = next(inside, None)
        found.append(zeros if number is None else values[number])
    return tuple(found)


def with_parts(encoding: Encoding, fixed: Any = None, units: Any = None) -> Encoding:
    """Group the tokens of a text into units that share one noise scale, and exclude fixed tokens from noise.

    Args:
        fixed: parts without noise: "special" (all special tokens, including a chat's template), the role of a chat's
            messages ("system"), a span of the text's characters (start, stop), a compiled regular expression, or a
            list of these.
        units: parts with one scale each: "word", "sentence", "paragraph", "message" (of a chat), a compiled regular
            expression, or a list of spans (start, stop); other tokens have a scale each.  None: every token.

    Raises:
        ValueError: a part that is not in the text, or all tokens are fixed.

    Examples::
        >>> offsets = (None, (0, 0, 1), (0, 2, 4), (0, 5, 6))
        >>> text = Encoding("a b. c", None, ("<s>", "a", "b.", "c"), offsets, (0, 1, 2, 3))
        >>> with_parts(text, "special", "sentence").units
        (-1, 0, 0, 1)
    """
    if fixed is None and units is None:
        return encoding
    numbers = list(range(len(encoding.ids))) if units is None else _numbers(encoding, units)
    for part in fixed if isinstance(fixed, list) else [] if fixed is None else [fixed]:
        for token in _tokens_of(encoding, part):
            numbers[token] = -1
    known = {number: index for index, number in enumerate(dict.fromkeys(n for n in numbers if n >= 0))}
    if not known:
        raise ValueError(
            f"fixed {fixed!r} covers all tokens, so none can receive noise; exclude some of the text from it"
        )
    return replace(encoding, units=tuple(known.get(number, -1) for number in numbers))


def _numbers(encoding: Encoding, units: Any) -> list[int]:
    """Return the unit number of each token; tokens outside all units, special ones too, are units of their own."""
    if units in ("word", "sentence"):
        found = group(
            (encoding.text, encoding.pair), encoding.tokens, encoding.offsets, units, encoding.words
        )
        sets = [list(unit.tokens) for unit in found]
    elif units == "message":
        if not any(encoding.parts):
            raise ValueError(
                "units is 'message', but the text is not a chat; give a list of messages as the text"
            )
        places: dict[int, list[int]] = {}
        for token, part in enumerate(encoding.parts):
            if part is not None:
                places.setdefault(part[0], []).append(token)
        sets = list(places.values())
    elif units == "paragraph" or isinstance(units, re.Pattern):
        sets = list(_matches(encoding, PARAGRAPH if units == "paragraph" else units))
    elif isinstance(units, Sequence) and not isinstance(units, str):
        sets = [_tokens_of(encoding, span) for span in units]
    else:
        raise ValueError(
            f"units is {units!r}; choose from {', '.join(NAMED)}, or give a compiled regular expression or spans"
        )
    numbers = [-1] * len(encoding.ids)
    for number, tokens in enumerate(sets):
        for token in tokens:
            if numbers[token] < 0:
                numbers[token] = number
    count = len(sets)
    return [count + token if number < 0 else number for token, number in enumerate(numbers)]


def _tokens_of(encoding: Encoding, part: Any) -> list[int]:
    """Return the tokens of a part (special tokens, a role, a span or a regular expression), at least one."""
    if part == "special":
        return [token for token, offset in enumerate(encoding.offsets) if offset is None]
    if isinstance(part, str):
        found = [token for token, own in enumerate(encoding.parts) if own is not None and own[1] == part]
        roles = dict.fromkeys(own[1] for own in encoding.parts if own is not None)
        if not found:
            known = ", ".join(map(repr, roles)) or "none: it is not a chat"
            raise ValueError(
                f"part {part!r} is not in the text, whose roles are {known}; 'special' means special tokens"
            )
        return found
    if isinstance(part, re.Pattern):
        return [token for tokens in _matches(encoding, part) for token in tokens]
    try:
        start, stop = part
        tokens = _tokens_at(encoding, 0, int(start), int(stop))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"part {part!r} is not a span of characters (start, stop), a role, 'special' or a compiled regular "
            "expression"
        ) from error
    if not tokens:
        raise ValueError(f"span ({start}, {stop}) has no tokens in a text of {len(encoding.text)} characters")
    return tokens


def _matches(encoding: Encoding, pattern: re.Pattern[str]) -> Iterator[list[int]]:
    """Yield the tokens of each match, in the text and in its pair."""
    for segment, text in enumerate((encoding.text, encoding.pair or "")):
        for match in pattern.finditer(text):
            tokens = _tokens_at(encoding, segment, *match.span())
            if tokens:
                yield tokens


def _tokens_at(encoding: Encoding, segment: int, start: int, stop: int) -> list[int]:
    """Return the tokens of the text that overlap these characters; leading whitespace of a token is ignored."""
    text = (encoding.text, encoding.pair or "")[segment]
    found = []
    for token, offset in enumerate(encoding.offsets):
        if offset is None or offset[0] != segment:
            continue
        _, first, last = offset
        first += len(text[first:last]) - len(text[first:last].lstrip()) if text[first:last].strip() else 0
        if first < stop and last > start and first < last:
            found.append(token)
    return found
