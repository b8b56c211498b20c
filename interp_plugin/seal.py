"""Seal: a digest of a file inside the file, so that a change of any bit of it is seen before it is read."""

from __future__ import annotations

import hashlib
import re
import uuid

BLANK = b"0" * 64  # stands in the place of the digest while that is computed
TRIED = 100  # seals at most: each costs a reading of the file
_SEAL = re.compile(rb"interp-plugin sha256 ([0-9a-f]{64})")


def blank_seal() -> str:
    """A place for a seal, which no other file has: to be written once into the file that `sealed` then gets.

    Examples::
        >>> blank = blank_seal()
        >>> content = sealed(b'{"n": 1, "seal": "%s"}' % blank.encode(), blank)
        >>> is_sealed(content), is_sealed(content.replace(b"n", b"m", 1)), is_sealed(b"{}")
        (True, False, False)
    """
    return f"interp-plugin sha256 {uuid.uuid4().hex}{uuid.uuid4().hex}"


def sealed(content: bytes, blank: str) -> bytes:
    """The content with its digest in place of the blank seal."""
    start = content.index(blank.encode()) + len(blank) - len(BLANK)
    return content[:start] + _digest(content, start).encode() + content[start + len(BLANK) :]


def is_sealed(content: bytes) -> bool:
    """Whether the content holds the digest of all the rest of it."""
    # a text in the file may look like a seal, so several are tried, from the end, where Parquet has its header
    found = list(_SEAL.finditer(content))[-TRIED:]
    return any(match[1].decode() == _digest(content, match.start(1)) for match in reversed(found))


def _digest(content: bytes, start: int) -> str:
    view = memoryview(content)
    digest = hashlib.sha256(view[:start])
    digest.update(BLANK)
    digest.update(view[start + len(BLANK) :])
    return digest.hexdigest()
