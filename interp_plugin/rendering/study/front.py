"""Front: what a study's methods are worth against what they cost."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from interp_plugin.rendering import drawing
from interp_plugin.rendering.study import words
from interp_plugin.rendering.study.dress import (
    COLOURS,
    LINE,
    LINES,
    MARKS,
    PAPER,
    SOFT,
    dress,
    named,
    title,
    whiskers,
    words_style,
)
from interp_plugin.rendering.study.placing import Box, Place, places
from interp_plugin.rendering.study.values import StudyPoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_RADIUS = 4.0  # of a mark, in points of 1/72 inch


def front_figure(
    points: Sequence[StudyPoint],
    quality: str = "quality",
    higher_is_better: bool = True,
    heading: str | None = None,
) -> Figure:
    """Quality against seconds per text, with each group's Pareto front; better is up, cheaper is left.

    Methods without a cost (scores from elsewhere) cannot be placed: a line below the axis names them.

    Args:
        points: one for each method.
        quality: what the quality is.
        higher_is_better: otherwise the axis is turned over, so that better is up.
        heading: above the picture.

    Raises:
        ValueError: no point has a finite quality and a cost above 0.

    Example::

        >>> points = [StudyPoint("saliency", "unsigned", 0.01, 0.33, 0.30, 0.36, True),
        ...           StudyPoint("occlusion", "unsigned", 0.20, 0.41, 0.38, 0.44, True)]
        >>> front_figure(points, "comprehensiveness").axes[0].get_xscale()
        'log'
    """
    drawn = [point for point in points if can_be_drawn(point)]
    if not drawn:
        raise ValueError(
            f"none of {len(points)} points has a finite quality and a cost above 0; give at least one that has"
        )
    figure = drawing.new_figure(7.6, max(4.4, 2.8 + 0.14 * len(drawn)))
    axes = figure.add_subplot()
    axes.set_xscale("log")
    axes.set_autoscalex_on(False)
    axes.set_xlim(_cost_limits([point.cost for point in drawn]))
    axes.margins(y=0.06)
    groups = dict.fromkeys(point.group for point in drawn)
    for number, group in enumerate(groups):
        _draw_points(axes, [point for point in drawn if point.group == group], number)
    fronts = [_front(drawn, group, axes.get_xlim()[1]) for group in groups]
    for number, (group, front) in enumerate(zip(groups, fronts, strict=True)):
        if front:
            style: Any = {"color": COLOURS[number % 4], "linestyle": LINES[number % 4], "linewidth": 1.2}
            label = f"front of {group} methods (bold)"
            axes.plot(*zip(*front, strict=True), drawstyle="steps-post", label=label, zorder=1.5, **style)
    if not higher_is_better:
        axes.invert_yaxis()
    _label(axes, quality, higher_is_better, [point.method for point in points if not can_be_drawn(point)])
    if heading is not None:
        title(axes, heading)
    dress(axes)
    axes.grid(color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    legend = figure.legend(loc="outside lower center", ncols=2, frameon=False)
    for text in legend.get_texts():
        text.set(**words_style())
    _name_points(figure, axes, drawn, fronts)
    return figure


def can_be_drawn(point: StudyPoint) -> bool:
    """Whether it has a quality, and a cost that a log axis has a place for."""
    return math.isfinite(point.quality) and math.isfinite(point.cost) and point.cost > 0


def _cost_limits(costs: Sequence[float]) -> tuple[float, float]:
    """Ends of the axis: a seventh of its length on either side, for names, where there is any length."""
    room = max(1.5, (max(costs) / min(costs)) ** 0.14)
    return min(costs) / room, max(costs) * room


def _draw_points(axes: Axes, points: Sequence[StudyPoint], number: int) -> None:
    colour = COLOURS[number % 4]
    cost, quality = [point.cost for point in points], [point.quality for point in points]
    below, above = zip(*(whiskers(p.quality, p.low, p.high) for p in points), strict=True)
    axes.errorbar(cost, quality, yerr=(below, above), fmt="none", ecolor=colour, elinewidth=1, alpha=0.45)
    face = PAPER if number % 2 else colour  # filled or open: told apart without colour
    axes.plot(
        cost, quality, MARKS[number % 4], color=colour, markersize=1.6 * _RADIUS, markerfacecolor=face,
        markeredgewidth=1.4, label=words.group_name(points[0].group),
    )  # fmt: skip


def _front(points: Sequence[StudyPoint], group: str, right: float) -> list[Place]:
    """The corners of a group's front, from its cheapest method to the picture's right end."""
    front = sorted((p.cost, p.quality) for p in points if p.on_front and p.group == group)
    return [*front, (right, front[-1][1])] if front else []


def _label(axes: Axes, quality: str, higher_is_better: bool, left_out: Sequence[str]) -> None:
    kind = "higher is better" if higher_is_better else "lower is better: the axis is turned over"
    axes.set_ylabel(f"{named(quality)} {words.arrow(higher_is_better)}\n{kind}", **words_style())
    note = "seconds per text ↓ (log scale)"
    if left_out:
        names = ", ".join(map(named, left_out))
        note += "\n" + textwrap.fill(f"without seconds, so not drawn: {names}", 90)
    axes.set_xlabel(note, **words_style())


def _name_points(
    figure: Figure, axes: Axes, points: Sequence[StudyPoint], fronts: Sequence[list[Place]]
) -> None:
    """Every point's name near it, with a line to it where it had to go farther."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer: Any = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    # those on the front first: they get the best places
    ranked = sorted(points, key=lambda point: (not point.on_front, point.cost))
    names: list[Any] = [_name(axes, point) for point in ranked]
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # else every name moves the axes
    unit = figure.dpi / 72  # pixels in a point

    def pixels(place: Place) -> Place:
        x, y = axes.transData.transform(place)
        return float(x), float(y)

    spots = [pixels((point.cost, point.quality)) for point in ranked]
    extents = [name.get_window_extent(renderer) for name in names]
    sizes = [(box.width + 2 * unit, box.height + unit) for box in extents]
    lines = [box for front in fronts for box in _segments([pixels(corner) for corner in front], unit)]
    boxes = places(spots, sizes, axes.get_window_extent(renderer).extents, _RADIUS * unit, lines)
    for (x, y), name, box in zip(spots, names, boxes, strict=True):
        name.set_position(((box[0] - x) / unit + 1, ((box[1] + box[3]) / 2 - y) / unit))
        near = max(box[0] - x, x - box[2], box[1] - y, y - box[3]) < 3 * _RADIUS * unit
        name.arrow_patch.set_visible(not near)


def _name(axes: Axes, point: StudyPoint) -> Any:
    line = {
        "arrowstyle": "-",
        "color": SOFT,
        "linewidth": 0.5,
        "shrinkA": 0,
        "shrinkB": _RADIUS,
        "visible": False,
    }
    name = axes.annotate(
        named(point.method), (point.cost, point.quality), (0, 0), textcoords="offset points", va="center",
        annotation_clip=False, arrowprops=line, fontweight="bold" if point.on_front else "normal",
        **words_style("x-small"),
    )  # fmt: skip
    name.set_in_layout(False)
    return name


def _segments(corners: Sequence[Place], unit: float) -> Iterator[Box]:
    """The boxes that a line of steps covers: right at one height, then up or down."""
    for (x, y), (far, high) in pairwise(corners):
        yield (x, y - unit, far, y + unit)
        yield (far - unit, min(y, high), far + unit, max(y, high))
