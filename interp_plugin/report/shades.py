"""Shades of values: one rule for the terminal, the page, the figures and Captum's records."""

from __future__ import annotations

from collections.abc import Sequence

from interp_plugin.report.numbers import Numbers, known

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

UNCERTAIN = 0.1  # standard error, as a share of the scale, above which a value is marked as uncertain
_EVEN = 0.179  # luminance with equal contrast to black and white: sqrt(1.05 * 0.05) - 0.05


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
