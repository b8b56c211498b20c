"""Placing: where the names of points go, so that they cover neither one another nor the points."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

Box = tuple[float, float, float, float]
"""Left, bottom, right, top."""
Place = tuple[float, float]

_FAR = 14  # rings of places that are tried
# What it costs: a whole name under another one, a whole point under a name, a name outside, a name full of
# lines, a line's height of distance
_NAME, _POINT, _OUTSIDE, _LINE, _DISTANCE = 20.0, 12.0, 50.0, 8.0, 0.35


def places(
    points: Sequence[Place],
    sizes: Sequence[tuple[float, float]],
    frame: Box,
    radius: float,
    lines: Sequence[Box] = (),
) -> list[Box]:
    """A box for each name, near its point; the first have the first choice.

    Greedy: each name takes the cheapest of some hundred places around its point, of those where it lies in the
    frame and on no other name if there are any.  None is left out: where everything is full the least bad
    place is taken.

    Args:
        points: N places.
        sizes: width and height of the N names, in the unit of the places.
        frame: what the names should stay in.
        radius: half the size of a point's mark.
        lines: what the names should not lie on, if it can be helped.

    Example::

        >>> places([(10, 10), (12, 10)], [(30, 5), (30, 5)], (0, 0, 100, 50), 2)[0]
        (14, 7.5, 44, 12.5)
    """
    marks = [_around(x, y, radius, radius) for x, y in points]
    taken: list[Box] = []
    for point, (width, height) in zip(points, sizes, strict=True):

        def cost(box: Box, place: Place = point, area: float = width * height, line: float = height) -> float:
            away = abs(_middle(box)[1] - place[1]) + max(0.0, box[0] - place[0], place[0] - box[2])
            return (
                _NAME * sum(_shared(box, other) for other in taken) / area
                + _POINT * sum(_shared(box, mark) for mark in marks) / (4 * radius * radius)
                + _OUTSIDE * (1 - _shared(box, frame) / area)
                + _LINE * sum(_shared(box, drawn) for drawn in lines) / area
                + _DISTANCE * away / line
            )

        def crowded(box: Box) -> bool:
            inside = frame[0] <= box[0] and frame[1] <= box[1] and box[2] <= frame[2] and box[3] <= frame[3]
            return not inside or any(_shared(box, other) > 0 for other in taken)

        taken.append(
            min(_candidates(point, width, height, radius), key=lambda box: (crowded(box), cost(box)))
        )
    return taken


def _candidates(point: Place, width: float, height: float, radius: float) -> Iterator[Box]:
    """Right of the point, left, above and below, then the same farther away."""
    x, y = point
    for ring in range(_FAR):
        for up in (0.0,) if not ring else (ring * height, -ring * height):
            for left in (x + 2 * radius, x - 2 * radius - width, *([x - width / 2] if ring else [])):
                yield (left, y + up - height / 2, left + width, y + up + height / 2)
        if ring:
            for left in (x + 2 * radius + ring * height, x - 2 * radius - ring * height - width):
                yield (left, y - height / 2, left + width, y + height / 2)


def _around(x: float, y: float, width: float, height: float) -> Box:
    return (x - width, y - height, x + width, y + height)


def _middle(box: Box) -> Place:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _shared(box: Box, other: Box) -> float:
    """Area that lies in both."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    return width * height if width > 0 and height > 0 else 0.0
