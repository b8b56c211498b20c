"""Memory: what tensors of ever new sizes leave behind."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable
from functools import cache


def give_back() -> None:
    """Give freed memory back to the system, where the C library keeps it (glibc).

    Batches of ever new lengths break its heap into pieces: over 5,000 sentences the resident set of a study grew from
    720 to 1,040 MiB without one object more, and fell to 520 when it was given back.  It takes milliseconds.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Callable[[int], int] | None:
    if platform.libc_ver()[0] != "glibc":
        return None
    found: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return found
