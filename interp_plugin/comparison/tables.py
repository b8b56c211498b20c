"""Tables, notes, answers and charts of a study, in the form of the report model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from interp_plugin.comparison.costs import COSTS, StudyColumn
from interp_plugin.report import numbers
from interp_plugin.report.figures import can_be_drawn
from interp_plugin.report.model import Cell, Column, Point, Points, Report, Row, Section, Table
from interp_plugin.statistics import RESAMPLES

if TYPE_CHECKING:
    from interp_plugin.comparison.result import StudyResult

CLASS, NEXT = "class", "next token"  # names of the questions that are not about a state
Group = Literal["unsigned", "signed"]
GROUPS: tuple[Group, ...] = ("unsigned", "signed")
SECONDS = "seconds"
LEVEL = 0.05  # significance level of the tests
TIED = "≈"  # marks a method that is not significantly different from the best
_SHOWN = 160  # most characters of a reason in a note
_COST_NAMES = frozenset(column.name for column in COSTS)

GUIDE = (
    "Mean over the texts, with its 95 % bootstrap interval in brackets (or ± half of its width); no interval if all "
    "texts gave the same number.",
    "↑: higher is better, ↓: lower is better. Dark: as good as the best of the group; costs are not shaded.",
    f"Bold, or *: the best of its group; {TIED}: not significantly different from it (paired test, Holm-corrected p ≥ "
    f"{LEVEL:g}).",
    "Signed methods also say which tokens speak against a class; signed and unsigned methods are compared separately.",
    "n: number of texts, where it is smaller than for the rest.  -: no number.",
)


@dataclass(frozen=True)
class StudyCell:
    """One metric of one method.

    Attributes:
        mean: mean over the texts, in the metric's unit.
        low, high: ends of its 95 % bootstrap interval.
        n: number of texts.
        best: whether it is the best of its group.
        p: Holm-corrected p-value of the paired difference from the group's best; None for the best itself, and
            if there was no test.
    """

    mean: float
    low: float
    high: float
    n: int
    best: bool
    p: float | None

    @property
    def half(self) -> float | None:
        """Half the width of the interval; None if there is no interval."""
        width = self.high - self.low
        return width / 2 if math.isfinite(width) and width > 0 else None

    @property
    def is_tied(self) -> bool:
        """Whether it is not significantly different from the best of its group."""
        return not self.best and self.p is not None and self.p >= LEVEL


def report(
    result: StudyResult,
    quality: str | None = None,
    title: str = "Attribution methods compared",
) -> Report:
    """Make the report of a study, with a section for each question.

    Args:
        result: the study's result.
        quality: the metric of the charts; None: the first one of each question that is not a cost.
        title: title of the report.
    """
    sections = (
        Section(table.title, _answer(table), tables=(table,), charts=_charts(result, q, quality))
        for q, table in enumerate(tables(result))
    )
    return Report(
        title,
        tuple(sections),
        GUIDE,
        scale=("worse", "as good as the best of its group"),
        settings=result.settings,
    )


@dataclass(frozen=True)
class _QuestionCells:
    """The numbers for one question: the metrics that have numbers, and group -> method -> a cell for each metric."""

    question: str
    metrics: tuple[StudyColumn, ...]
    groups: Mapping[str, Mapping[str, Sequence[StudyCell | None]]]
    notes: tuple[str, ...]


def _by_question(result: StudyResult) -> Iterator[_QuestionCells]:
    for q, question in enumerate(result.questions):
        known = result.summary.n[q].astype(bool)  # (M, K)
        shown = np.flatnonzero(known.any(0)).tolist()
        groups: dict[str, dict[str, list[StudyCell | None]]] = {}
        for group in GROUPS:
            for m in np.flatnonzero(known.any(1)).tolist():
                if result.group(q, m) == group:
                    cells = [result.evaluated.get((q, k, m)) for k in shown]
                    groups.setdefault(group, {})[result.methods[m].name] = cells
        metrics = tuple(result.metrics[k] for k in shown)
        yield _QuestionCells(question, metrics, groups, (*notes(result, q), *result.notes))


def tables(result: StudyResult) -> tuple[Table, ...]:
    """Make a table for each question."""
    found = []
    for part in _by_question(result):
        rows = {f"{group} methods": _rows(part, methods) for group, methods in part.groups.items()}
        columns = tuple(Column(m.name, m.higher_is_better, m.source) for m in part.metrics)
        found.append(Table(part.question, "method", columns, rows, part.notes))
    return tuple(found)


def _rows(part: _QuestionCells, methods: Mapping[str, Sequence[StudyCell | None]]) -> tuple[Row, ...]:
    """Make the rows of a group, one for each method."""
    every = (cell for some in part.groups.values() for cells in some.values() for cell in cells)
    most = max((cell.n for cell in every if cell is not None), default=0)
    columns = (
        metric_cells(metric, [cells[place] for cells in methods.values()], most)
        for place, metric in enumerate(part.metrics)
    )
    return tuple(Row(name, cells) for name, cells in zip(methods, zip(*columns)))


def plain(result: StudyResult) -> list[dict[str, Any]]:
    """Convert the tables to plain values, for JSON."""
    return [
        {
            "title": part.question,
            "columns": [dict(vars(metric)) for metric in part.metrics],
            "groups": {
                group: {
                    name: [cell and dict(vars(cell)) for cell in cells] for name, cells in methods.items()
                }
                for group, methods in part.groups.items()
            },
            "notes": list(part.notes),
        }
        for part in _by_question(result)
    ]


def points(result: StudyResult, question: int, metric: int) -> tuple[Point, ...]:
    """Make a point for each method that has a number; its cost is NaN if its seconds are not known."""
    summary = result.summary
    known = [m for m in range(len(result.methods)) if summary.n[question, m, metric]]
    names = result.names["metric"]
    unknown = np.full(len(result.methods), np.nan)
    seconds = summary.mean[question, :, names.index(SECONDS)] if SECONDS in names else unknown
    quality = summary.mean[question, :, metric]
    sign = 1 if result.metrics[metric].higher_is_better else -1

    def beats(a: int, b: int) -> bool:
        gain, saved = sign * (quality[a] - quality[b]), seconds[b] - seconds[a]
        same_group = result.group(question, a) == result.group(question, b)
        return bool(same_group and gain >= 0 and saved >= 0 and (gain > 0 or saved > 0))

    return tuple(
        Point(
            method=result.methods[m].name,
            group=result.group(question, m),
            cost=float(seconds[m]),
            quality=float(quality[m]),
            low=float(summary.low[question, m, metric]),
            high=float(summary.high[question, m, metric]),
            on_front=bool(np.isfinite(seconds[m])) and not any(beats(other, m) for other in known),
        )
        for m in known
    )


def _charts(result: StudyResult, question: int, quality: str | None) -> tuple[Points, ...]:
    """Make a chart of a metric against seconds, if any method has both.

    Without ``quality`` it is the first metric that has numbers and is not a cost.
    """
    names = [metric.name for metric in result.metrics if metric.name not in _COST_NAMES]
    for k in [result.number("metric", name) for name in (names if quality is None else [quality])]:
        if result.summary.n[question, :, k].any():
            metric, drawn = result.metrics[k], points(result, question, k)
            title = f"{metric.name}, {result.questions[question]}: up is better, left is cheaper"
            chart = Points(title, metric.name, metric.higher_is_better, drawn)
            return (chart,) if any(map(can_be_drawn, drawn)) else ()
    return ()


def notes(result: StudyResult, question: int) -> Iterator[str]:
    """Yield the notes on a question's table."""
    name, settings = result.questions[question], result.settings
    count = len(result.texts)
    special = "ranked and removed like others" if settings["special tokens"] else "neither ranked nor removed"
    yield f"{count} text{'s' if count != 1 else ''}; special tokens are {special}."
    yield _explained(result, name)
    yield (
        f"Intervals: percentile bootstrap of the texts, {RESAMPLES:,} resamples; p: Wilcoxon's signed-rank test "
        "against the best of the group (zeros after Pratt), Holm-corrected within metric and group."
    )
    empty = [m.name for k, m in enumerate(result.metrics) if not result.summary.n[:, :, k].any()]
    if empty:
        yield f"No text could be evaluated with {', '.join(empty)}."
    yield from _failures(result, name)
    for part, why in result.left_out.items():
        if part.endswith(f", {name}"):
            yield f"Left out, as it does not support the model: {part.removesuffix(f', {name}')} ({_short(why)})."


def _explained(result: StudyResult, question: str) -> str:
    if question == NEXT:
        own = (
            "the model's own"
            if result.settings["target"] == "predicted"
            else "the given target (compared with another token where one is given), or else the model's own"
        )
        return f"Explained: the next token, {own}."
    if question != CLASS:
        calibrated = result.settings["calibration"] is not None
        unit = (
            "its standard deviation over the calibration texts"
            if calibrated
            else "its root mean square in each text"
        )
        place = f", {result.settings['states']}" if "states" in result.settings else ""
        return f"Explained: the state of {question}{place}, in units of {unit}."
    if result.settings["target"] == "label":
        return "Explained: the true class."
    known = [text for text in result.texts if text.label is not None and text.target is not None]
    if not known:
        return "Explained: the class that the model predicts."
    right = sum(text.label == text.target for text in known) / len(known)
    return f"Explained: the class that the model predicts, which is the true one in {right:.1%} of {len(known)} texts."


def _failures(result: StudyResult, question: str) -> Iterator[str]:
    """Yield a note for each method and metric that failed, with the first reason."""
    parts: dict[tuple[str, str], list[str]] = {}
    for failure in result.failures:
        if failure.question == question:
            found = parts.setdefault((failure.method, failure.metric), [])
            found.append(f"text {failure.text}: {_short(failure.reason)}")
    for (method, metric), reasons in parts.items():
        what = method if not metric else f"{metric} of {method}"
        yield f"{what} failed on {len(reasons)} of {len(result.texts)} texts, first on {reasons[0]}."


def _short(reason: str) -> str:
    return numbers.shortened(" ".join(reason.split()).rstrip("."), _SHOWN)


def metric_cells(metric: StudyColumn, cells: Sequence[StudyCell | None], most: int) -> list[Cell | None]:
    """Make the cells of a metric for one group; costs are not shaded."""
    known = [cell if cell is not None and math.isfinite(cell.mean) else None for cell in cells]
    means = [None if cell is None else cell.mean for cell in known]
    halves = [None if cell is None else cell.half for cell in known]
    is_cost = metric.name in _COST_NAMES
    places = [None] * len(known) if is_cost else numbers.ranks(means, halves, metric.higher_is_better)
    found: list[Cell | None] = []
    for cell, half, shade, (text, digits) in zip(
        known, halves, places, numbers.rounded(means, halves, apart=True), strict=True
    ):
        if cell is None:
            found.append(None)
            continue
        low, high = numbers.number(cell.low, digits), numbers.number(cell.high, digits)
        found.append(
            Cell(
                text, cell.mean, f"[{low}, {high}]" if half else "", f"±{numbers.number(half, digits)}" if half else "",
                shade, best=cell.best, mark=TIED if cell.is_tied else "", note="" if cell.n == most else f"n {cell.n}",
                low=cell.low, high=cell.high,
            )
        )  # fmt: skip
    return found


def _answer(table: Table) -> str:
    """Name the best of each group by the first metric that is not a cost, and what does not differ significantly."""
    quality = [c for c, column in enumerate(table.columns) if column.name not in _COST_NAMES]
    sentences = []
    for c in quality[:1]:
        for group, rows in table.groups.items():
            cells = {row.name: cell for row in rows if (cell := row.cells[c])}
            tied = [name for name, cell in cells.items() if cell.mark]
            also = f"; not significantly different: {', '.join(tied[:3])}" if tied else ""
            also += " and more" if len(tied) > 3 else ""
            best = [f"{name} ({cell.text})" for name, cell in cells.items() if cell.best]
            if best:
                sentences.append(f"Best of the {group} by {table.columns[c].name}: {best[0]}{also}.")
    return " ".join(sentences)


def known(kind: str) -> list[dict[str, Any]]:
    """Describe every method ("methods") or metric ("metrics") as plain values.

    Examples::
        >>> known("metrics")[0]["name"]
        'comprehensiveness (mask)'
    """
    from interp_plugin.comparison import METHODS, METRICS

    names = ("name", "explains", "signed", "source")
    if kind == "metrics":
        names = ("name", "judges", "higher_is_better", "source")
    parts: Any = (METHODS if kind == "methods" else METRICS).values()
    return [{name: getattr(part, name) for name in names} for part in parts]


def catalogue() -> Report:
    """List all methods and metrics: what they explain or evaluate, and their sources."""
    words = {"signed": ("unsigned", "signed"), "higher_is_better": "↓↑"}
    heads = {"methods": ("explains", "scores", "source"), "metrics": ("judges", "better", "source")}
    sections = []
    for kind, names in heads.items():
        rows = []
        for part in known(kind):
            name, *values = (words[key][value] if key in words else value for key, value in part.items())
            rows.append(Row(name, tuple(map(Cell, values))))
        columns = tuple(Column(name, words=True) for name in names)
        sections.append(Section(tables=(Table("", kind[:-1], columns, {"": tuple(rows)}),)))
    return Report("", tuple(sections))
