"""Which tokens of a text bear no noise, and which share one scale of noise: words, sentences, messages, spans."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from interp_plugin.text.models import Encoding
from interp_plugin.text.scores import group

PARAGRAPH = re.compile(r"\S(?:.|\n(?!\s*\n))*")
NAMED = ("word", "sentence", "paragraph", "message")


def with_parts(encoding: Encoding, fixed: Any = None, units: Any = None) -> Encoding:
    """The text with its tokens gathered into units of one scale each, and without noise on some of them.

    Args:
        fixed: what bears no noise: "special" (all tokens that are not the text's own: marks, a chat's template), the
            role of a chat's messages ("system"), a span of the text's characters (start, stop), a compiled regular
            expression, or a list of these.
        units: what has one scale: "word", "sentence", "paragraph", "message" (of a chat), a compiled regular
            expression, or a list of spans (start, stop); tokens outside have their own.  None: every token.

    Raises:
        ValueError: parts that are not there, or all tokens are fixed.

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
            f"fixed {fixed!r} leaves no token that bears noise; leave some of the text out of it"
        )
    return replace(encoding, units=tuple(known.get(number, -1) for number in numbers))


def _numbers(encoding: Encoding, units: Any) -> list[int]:
    """The number of each token's unit; tokens outside of all have their own, special ones too."""
    if units in ("word", "sentence"):
        found = group(
            (encoding.text, encoding.pair), encoding.tokens, encoding.offsets, units, encoding.words
        )
        sets = [list(unit.tokens) for unit in found]
    elif units == "message":
        if not any(encoding.parts):
            raise ValueError(
                "units is 'message', and the text is no chat; give a list of messages as the text"
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
    """The tokens of a part: special ones, of a role, on characters, or where an expression matches; at least one."""
    if part == "special":
        return [token for token, offset in enumerate(encoding.offsets) if offset is None]
    if isinstance(part, str):
        found = [token for token, own in enumerate(encoding.parts) if own is not None and own[1] == part]
        roles = dict.fromkeys(own[1] for own in encoding.parts if own is not None)
        if not found:
            known = ", ".join(map(repr, roles)) or "none: it is no chat"
            raise ValueError(
                f"part {part!r} is not in the text, whose roles are {known}; 'special' is its marks"
            )
        return found
    if isinstance(part, re.Pattern):
        return [token for tokens in _matches(encoding, part) for token in tokens]
    try:
        start, stop = part
        tokens = _on(encoding, 0, int(start), int(stop))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"part {part!r} is no span of characters (start, stop), role, 'special' or compiled regular expression"
        ) from error
    if not tokens:
        raise ValueError(f"span ({start}, {stop}) has no tokens in a text of {len(encoding.text)} characters")
    return tokens


def _matches(encoding: Encoding, pattern: re.Pattern[str]) -> Iterator[list[int]]:
    """The tokens of each match, in the text and in its pair."""
    for segment, text in enumerate((encoding.text, encoding.pair or "")):
        for match in pattern.finditer(text):
            tokens = _on(encoding, segment, *match.span())
            if tokens:
                yield tokens


def _on(encoding: Encoding, segment: int, start: int, stop: int) -> list[int]:
    """The tokens of the text that stand on some of these characters; a leading blank does not count."""
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
