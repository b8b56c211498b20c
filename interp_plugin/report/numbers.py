"""How values look in every medium: number format ("-" if not finite), printable text, and shades."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import TypeGuard

UNKNOWN = "-"
_DIGITS = 4  # largest number of significant digits
_DECIMALS = 6  # numbers with more decimals are written with an exponent
_RANGE = 100.0  # ratio of largest to smallest number above which numbers need different decimals

UNCERTAIN = 0.1  # standard error, as a share of the scale, above which a value is marked as uncertain
_EVEN = 0.179  # luminance with equal contrast to black and white: sqrt(1.05 * 0.05) - 0.05

Numbers = Sequence[float | None]
Rgb = tuple[int, int, int]

# One hue for each sign, and order by lightness alone, so that it is visible with every kind of colour blindness and in
# a grey print (ColorBrewer "Blues" and "Reds").  On a dark background, bright is high.
_LIGHT: tuple[tuple[Rgb, Rgb], tuple[Rgb, Rgb]] = (
    ((247, 251, 255), (8, 48, 107)),
    ((255, 245, 240), (103, 0, 13)),
)
_DARK: tuple[tuple[Rgb, Rgb], tuple[Rgb, Rgb]] = (
    ((29, 36, 44), (158, 208, 255)),
    ((42, 32, 30), (255, 170, 150)),
)


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


def highest(values: Numbers) -> float:
    """Return the end of the scale, which begins at the values' natural zero: the largest known absolute value."""
    return max((abs(value) for value in values if known(value)), default=0.0)


def shares(values: Numbers, end: float | None = None) -> list[float | None]:
    """Return each value's position on the scale from 0 to the highest value, with its sign, -1 to 1; None: not known.

    Args:
        values: numbers with a natural zero.
        end: end of the scale; None: the highest of these values.  Values beyond the end are clipped to it.

    Example::

        >>> shares([8.0, 2.0, -4.0, None])
        [1.0, 0.25, -0.5, None]
    """
    end = highest(values) if end is None else end
    return [
        None if not known(value) else max(-1.0, min(1.0, value / end)) if end else 0.0 for value in values
    ]


def uncertain(errors: Numbers, end: float) -> list[bool]:
    """Return which values have a standard error above a tenth of the scale, so that their shade says little.

    Example::

        >>> uncertain([0.2, 1.1, None], 10.0)
        [False, True, False]
    """
    return [error is not None and error > UNCERTAIN * end for error in errors]


def ranks(values: Numbers, half_widths: Numbers, higher_is_better: bool) -> list[float | None]:
    """Return shades of numbers without a natural zero, such as a metric of several methods: 1 is as good as the best.

    The scale spans at least the median width of the intervals, so that methods that do not differ clearly look alike.

    Example::

        >>> ranks([0.5, 0.3, 0.1, None], [0.01, 0.01, 0.01, None], True), ranks([0.4], [0.1], True)
        ([1.0, 0.5, 0.0, None], [1.0])
    """
    sign = 1 if higher_is_better else -1
    qualities = [sign * v if known(v) else None for v in values]
    found = [v for v in qualities if v is not None]
    widths = sorted(filter(known, half_widths))
    median_width = 2 * widths[len(widths) // 2] if widths else 0.0
    span = max(max(found) - min(found), median_width) if found else 0.0
    return [None if v is None else 1 - (max(found) - v) / span if span else 1.0 for v in qualities]


def shade(share: float, dark: bool = False) -> tuple[Rgb, Rgb]:
    """Return background and text colour (RGB) for a share of the scale, -1 to 1; the text colour always contrasts.

    Example::

        >>> shade(0.0), shade(1.0)
        (((247, 251, 255), (0, 0, 0)), ((8, 48, 107), (255, 255, 255)))
        >>> shade(1.0, dark=True)
        ((158, 208, 255), (0, 0, 0))
    """
    ends: Sequence[Rgb] = (_DARK if dark else _LIGHT)[share < 0]
    size = min(abs(share), 1.0)
    red, green, blue = (round(low + size * (high - low)) for low, high in zip(*ends, strict=True))
    return (red, green, blue), ((0, 0, 0) if _luminance(red, green, blue) > _EVEN else (255, 255, 255))


def _luminance(*channels: int) -> float:
    """Compute the relative luminance of a colour, 0 to 1 (WCAG 2.1)."""
    parts = (channel / 255 for channel in channels)
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return sum(weight * x for weight, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _exponent(value: float) -> int:
    return math.floor(math.log10(abs(value)))
