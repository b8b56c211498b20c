"""Shades: how dark a value is drawn.  One rule for the terminal, the page, the figures and Captum's records."""

from __future__ import annotations

from collections.abc import Sequence

# One hue, dark = high: order is carried by lightness alone, so it survives every kind of colour blindness
# and a grey print (ColorBrewer "Blues").
LOW, HIGH = (247, 251, 255), (8, 48, 107)
# What is below 0, where values have a sign (ColorBrewer "Reds"): as dark for as much.
BELOW_LOW, BELOW_HIGH = (255, 245, 240), (103, 0, 13)

EVEN = 0.179  # luminance on which black and white contrast alike: sqrt(1.05 * 0.05) - 0.05

Rgb = tuple[int, int, int]


def scale(
    values: Sequence[float | None], errors: Sequence[float | None], zero: float | None = None
) -> tuple[float, float]:
    """Where the shades begin and the span of them, both in the values' unit.

    They begin at ``zero``, where the values have a natural one, otherwise at the lowest value.  The scale spans at
    least ten standard errors, so that pure noise does not look like a pattern.

    Example::

        >>> scale([1.0, 9.0], [0.5, 0.5]), scale([1.0, 9.0], [0.5, 0.5], 0.0)
        ((1.0, 8.0), (0.0, 9.0))
        >>> scale([1.0, 2.0], [0.5, None])
        (1.0, 5.0)
    """
    known = [value for value in values if value is not None] or [0.0]
    low = min(known) if zero is None else zero
    widest = max((error for error in errors if error is not None), default=0.0)
    return low, max(max(known) - low, 10 * widest) or 1.0


def shares(
    values: Sequence[float | None], errors: Sequence[float | None], zero: float | None = None
) -> list[float]:
    """Each value's place on the scale of all of them, 0 (lowest, or ``zero``) to 1; a missing value counts as 0.

    Example::

        >>> shares([1.0, 9.0, 5.0, None], [0.5, 0.5, 0.5, None])
        [0.0, 1.0, 0.5, 0.0]
    """
    low, span = scale(values, errors, zero)
    return [0.0 if value is None else (value - low) / span for value in values]


def signed_shares(values: Sequence[float | None], errors: Sequence[float | None]) -> list[float]:
    """Each value's place between 0 and the largest of all of them, with its sign, -1 to 1; a missing one counts as 0.

    Example::

        >>> signed_shares([-4.0, 8.0, None], [0.1, 0.1, None])
        [-0.5, 1.0, 0.0]
    """
    sizes = [None if value is None else abs(value) for value in values]
    return [
        -share if value is not None and value < 0 else share
        for value, share in zip(values, shares(sizes, errors, 0.0))
    ]


def shade(share: float) -> tuple[Rgb, Rgb]:
    """Background and text colour (RGB) for a share of the scale, -1 to 1; the text always contrasts.

    Example::

        >>> shade(0.0)
        ((247, 251, 255), (0, 0, 0))
        >>> shade(1.0)
        ((8, 48, 107), (255, 255, 255))
    """
    ends = (LOW, HIGH) if share >= 0 else (BELOW_LOW, BELOW_HIGH)
    size = min(abs(share), 1.0)
    red, green, blue = (round(low + size * (high - low)) for low, high in zip(*ends, strict=True))
    return (red, green, blue), ((0, 0, 0) if _luminance(red, green, blue) > EVEN else (255, 255, 255))


def _luminance(*channels: int) -> float:
    """Relative luminance of a colour, 0 to 1 (WCAG 2.1)."""
    shares = (channel / 255 for channel in channels)
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in shares]
    return sum(weight * x for weight, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
