"""Where in a text its tokens stand, for tokenizers that do not say."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

_BEFORE = ("##", "▁", "Ġ", "@@")  # what WordPiece, SentencePiece, byte-level BPE put before a piece
_AFTER = ("</w>", "@@")  # and what BPE puts after one


def align(text: str, tokens: Sequence[str]) -> list[tuple[int, int]]:
    """Characters of ``text`` that each token was made of: one (start, end) a token, both never decreasing.

    A greedy matcher: each token is looked for right after the one before it, then further on, and the
    nearest place wins.  Case, accents, compatibility forms (``ﬁ`` is ``fi``), blanks and control
    characters do not count, as tokenizers change or drop them; neither do the marks ``##``, ``▁``, ``Ġ``,
    ``@@`` and ``</w>``.  A token that is not there ("[UNK]") gets the empty span where the one before it ends.

    Examples::
        >>> align("Un café noir", ["un", "cafe", "no", "##ir"])
        [(0, 2), (3, 7), (8, 10), (10, 12)]
        >>> align("a 😀 film", ["a", "[UNK]", "film"])
        [(0, 1), (1, 1), (4, 8)]
    """
    folded, sources = _folded(text)
    spans, place, end = [], 0, 0
    for token in tokens:
        found = _find(folded, token, place)
        if found is not None:
            start, place = found
            first, end = sources[start], sources[place - 1] + 1
            spans.append((first, end))
        else:
            spans.append((end, end))
    return spans


def fold(text: str) -> str:
    """``text`` without case, accents, blanks, control characters and compatibility forms.

    Examples::
        >>> fold("Café ﬁn")
        'cafefin'
    """
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return "".join(c for c in plain if not (unicodedata.combining(c) or c.isspace() or _is_control(c)))


def _is_control(char: str) -> bool:
    return unicodedata.category(char) in ("Cc", "Cf")


def _folded(text: str) -> tuple[str, list[int]]:
    """The folded text, and for each of its characters the one of ``text`` that it comes from."""
    pieces = [fold(char) for char in text]
    return "".join(pieces), [index for index, piece in enumerate(pieces) for _ in piece]


def _find(folded: str, token: str, place: int) -> tuple[int, int] | None:
    """The nearest stretch of ``folded`` from ``place`` on that is ``token``, with or without its mark."""
    hits = [
        (start, start + len(form))
        for form in map(fold, _forms(token))
        if form and (start := folded.find(form, place)) >= 0
    ]
    return min(hits, key=lambda hit: (hit[0], -hit[1]), default=None)


def _forms(token: str) -> list[str]:
    forms = [token]
    forms += [token.removeprefix(mark) for mark in _BEFORE if token.startswith(mark)]
    forms += [form.removesuffix(mark) for form in forms for mark in _AFTER if form.endswith(mark)]
    return forms
