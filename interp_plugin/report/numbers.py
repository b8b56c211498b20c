"""The number format: decimals chosen by the errors, "-" for numbers that are not finite; and printable text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import TypeGuard

UNKNOWN = "-"
_DIGITS = 4  # largest number of significant digits
_DECIMALS = 6  # numbers with more decimals are written with an exponent
_RANGE = 100.0  # ratio of largest to smallest number above which numbers need different decimals

Numbers = Sequence[float | None]


def known(value: float | None) -> TypeGuard[float]:
    """Return whether a value is a finite number; None, NaN and infinity are not."""
    return value is not None and math.isfinite(value)


def number(value: float | None, decimals: int) -> str:
    """Format a number with the given number of decimals.

    Example::

        >>> number(0.4631, 2), number(None, 2), number(float("nan"), 2), number(-0.001, 2), number(2e-9, 10)
        ('0.46', '-', '-', '0.00', '2.00e-09')
    """
    if not known(value):
        return UNKNOWN
    if decimals > _DECIMALS:
        return f"{value:.2e}"
    return f"{round(value, decimals) + 0.0:.{decimals}f}"  # + 0.0 avoids "-0.00"


def significant(value: float | None, digits: int = 3) -> str:
    """Format a number with the given number of significant digits.

    Example::

        >>> significant(0.98712), significant(1234.5), significant(None), significant(3.0)
        ('0.987', '1234', '-', '3.00')
    """
    return number(value, 0 if not known(value) or not value else max(0, digits - 1 - _exponent(value)))


def decimals(values: Numbers, errors: Numbers = ()) -> int:
    """Return the number of decimals for numbers that are shown together.

    They show two digits of the median error, but at most four digits of the largest number, unless the error needs one
    more.

    Example::

        >>> decimals([123.44, 5.1], [0.26, 0.3]), decimals([0.46312], [0.032]), decimals([50.0, 3.0])
        (1, 3, 0)
    """
    sizes = [abs(value) for value in values if known(value) and value]
    some = [error for error in errors if known(error) and error > 0]
    if not sizes:
        return max(0, 1 - _exponent(median(some))) if some else 1
    if not some:
        whole = all(size.is_integer() for size in sizes)
        return 0 if whole else max(0, 2 - _exponent(max(sizes)))
    error = _exponent(median(some))
    return max(0, min(1 - error, max(-error, _DIGITS - 1 - _exponent(max(sizes)))))


def rounded(values: Numbers, errors: Numbers = (), apart: bool = False) -> list[tuple[str, int]]:
    """Format numbers that are shown together, and return each with its number of decimals.

    Args:
        values, errors: numbers, and their errors if they have any.
        apart: let each number have its own decimals if they span more than two orders of magnitude, such as the seconds
            of several methods.

    Example::

        >>> rounded([0.46312, 0.1, None], [0.032, 0.03, None])
        [('0.463', 3), ('0.100', 3), ('-', 3)]
        >>> rounded([0.0034, 3.4], [0.0003, 0.3], apart=True)
        [('0.00340', 5), ('3.40', 2)]
    """
    sizes = [abs(value) for value in values if known(value) and value]
    if apart and sizes and max(sizes) > _RANGE * min(sizes):
        padded = [*errors, *[None] * (len(values) - len(errors))]
        places = [decimals([value], [error]) for value, error in zip(values, padded, strict=True)]
    else:
        places = [decimals(values, errors)] * len(values)
    return [(number(value, digits), digits) for value, digits in zip(values, places, strict=True)]


def duration(seconds: float) -> str:
    """Format a duration in seconds, minutes or hours.

    Example::

        >>> duration(1.234), duration(300.0), duration(9000.0)
        ('1.2 s', '5.0 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def printable(text: str) -> str:
    """Escape the characters of a text that could control a terminal (escape sequences, line ends).

    Example::

        >>> printable("a\\x1b[1m")
        'a\\\\x1b[1m'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shortened(text: str, longest: int) -> str:
    """Make a text printable, and cut it to the given number of characters."""
    text = printable(text)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _exponent(value: float) -> int:
    return math.floor(math.log10(abs(value)))
