"""Fills the report model from a study: tables with notes, answers, and points of quality against seconds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from interp_plugin.comparison.costs import COSTS, StudyColumn
from interp_plugin.report import numbers, shades
from interp_plugin.report.figures import can_be_drawn
from interp_plugin.report.model import Cell, Column, Point, Points, Report, Row, Section, Table
from interp_plugin.statistics import RESAMPLES

if TYPE_CHECKING:
    from interp_plugin.comparison.result import StudyResult

CLASS, NEXT = "class", "next token"  # the questions that are about no state
Group = Literal["unsigned", "signed"]
GROUPS: tuple[Group, ...] = ("unsigned", "signed")
SECONDS = "seconds"
LEVEL = 0.05  # of the tests
TIED = "≈"  # not significantly different from the best
_SHOWN = 160  # characters of a reason
_COST_NAMES = frozenset(column.name for column in COSTS)

GUIDE = (
    "Mean over the texts, in brackets its 95 % bootstrap interval (± half of it); none where all texts gave the same "
    "number.",
    "↑: higher is better, ↓: lower is better. Dark: as good as the best of the group; costs are not shaded.",
    f"Bold, or *: the best of its group; {TIED}: not significantly different from it (paired test, Holm-corrected p ≥ "
    f"{LEVEL:g}).",
    "Signed methods also say which tokens speak against a class; they and unsigned ones are compared apart.",
    "n: over fewer texts than the rest.  -: no number.",
)


@dataclass(frozen=True)
class StudyCell:
    """One metric of one method.

    Attributes:
        mean: over the texts, in the metric's unit.
        low, high: ends of its 95 % bootstrap interval.
        n: how many texts.
        best: whether it is the best of its group.
        p: of the paired difference to the group's best, Holm-corrected; None for the best itself, and where
            nothing was tested.
    """

    mean: float
    low: float
    high: float
    n: int
    best: bool
    p: float | None

    @property
    def half(self) -> float | None:
        """Half the width of the interval; None where there is none."""
        width = self.high - self.low
        return width / 2 if math.isfinite(width) and width > 0 else None

    @property
    def is_tied(self) -> bool:
        """Whether a test could not tell it from the best of its group."""
        return not self.best and self.p is not None and self.p >= LEVEL


def report(
    findings: StudyResult,
    quality: str | None = None,
    title: str = "Attribution methods compared",
) -> Report:
    """The report of a study: a section for each question.

    Args:
        findings: the study.
        quality: the metric of the charts; None: the first of each question that is no cost.
        title: of the whole.
    """
    sections = (
        Section(table.title, _answer(table), tables=(table,), charts=_charts(findings, q, quality))
        for q, table in enumerate(tables(findings))
    )
    return Report(
        title,
        tuple(sections),
        GUIDE,
        scale=("worse", "as good as the best of its group"),
        settings=findings.settings,
    )


@dataclass(frozen=True)
class _Judged:
    """The numbers about one question: the metrics that have any, and group -> method -> a cell for each metric."""

    question: str
    metrics: tuple[StudyColumn, ...]
    groups: Mapping[str, Mapping[str, Sequence[StudyCell | None]]]
    notes: tuple[str, ...]


def _by_question(findings: StudyResult) -> Iterator[_Judged]:
    for q, question in enumerate(findings.questions):
        known = findings.summary.n[q].astype(bool)  # (M, K)
        shown = np.flatnonzero(known.any(0)).tolist()
        groups: dict[str, dict[str, list[StudyCell | None]]] = {}
        for group in GROUPS:
            for m in np.flatnonzero(known.any(1)).tolist():
                if findings.group(q, m) == group:
                    cells = [findings.judged.get((q, k, m)) for k in shown]
                    groups.setdefault(group, {})[findings.methods[m].name] = cells
        metrics = tuple(findings.metrics[k] for k in shown)
        yield _Judged(question, metrics, groups, (*notes(findings, q), *findings.notes))


def tables(findings: StudyResult) -> tuple[Table, ...]:
    """A table for each question."""
    found = []
    for judged in _by_question(findings):
        rows = {f"{group} methods": _rows(judged, methods) for group, methods in judged.groups.items()}
        columns = tuple(Column(m.name, m.higher_is_better, m.source) for m in judged.metrics)
        found.append(Table(judged.question, "method", columns, rows, judged.notes))
    return tuple(found)


def _rows(judged: _Judged, methods: Mapping[str, Sequence[StudyCell | None]]) -> tuple[Row, ...]:
    """A group's rows, by method."""
    every = (cell for some in judged.groups.values() for cells in some.values() for cell in cells)
    most = max((cell.n for cell in every if cell is not None), default=0)
    columns = (
        metric_cells(metric, [cells[place] for cells in methods.values()], most)
        for place, metric in enumerate(judged.metrics)
    )
    return tuple(Row(name, cells) for name, cells in zip(methods, zip(*columns)))


def plain(findings: StudyResult) -> list[dict[str, Any]]:
    """The tables as plain values, for JSON."""
    return [
        {
            "title": judged.question,
            "columns": [dict(vars(metric)) for metric in judged.metrics],
            "groups": {
                group: {
                    name: [cell and dict(vars(cell)) for cell in cells] for name, cells in methods.items()
                }
                for group, methods in judged.groups.items()
            },
            "notes": list(judged.notes),
        }
        for judged in _by_question(findings)
    ]


def points(findings: StudyResult, question: int, metric: int) -> tuple[Point, ...]:
    """A point for each method that has a number there; cost is NaN where its seconds are not known."""
    summary = findings.summary
    known = [m for m in range(len(findings.methods)) if summary.n[question, m, metric]]
    names = findings.names["metric"]
    unknown = np.full(len(findings.methods), np.nan)
    seconds = summary.mean[question, :, names.index(SECONDS)] if SECONDS in names else unknown
    quality = summary.mean[question, :, metric]
    sign = 1 if findings.metrics[metric].higher_is_better else -1

    def beats(a: int, b: int) -> bool:
        worth, cost = sign * (quality[a] - quality[b]), seconds[b] - seconds[a]
        same_group = findings.group(question, a) == findings.group(question, b)
        return bool(same_group and worth >= 0 and cost >= 0 and (worth > 0 or cost > 0))

    return tuple(
        Point(
            method=findings.methods[m].name,
            group=findings.group(question, m),
            cost=float(seconds[m]),
            quality=float(quality[m]),
            low=float(summary.low[question, m, metric]),
            high=float(summary.high[question, m, metric]),
            on_front=bool(np.isfinite(seconds[m])) and not any(beats(other, m) for other in known),
        )
        for m in known
    )


def _charts(findings: StudyResult, question: int, quality: str | None) -> tuple[Points, ...]:
    """A metric against seconds, where some method has both; None: the first that has any number and is no cost."""
    names = [metric.name for metric in findings.metrics if metric.name not in _COST_NAMES]
    for k in [findings.number("metric", name) for name in (names if quality is None else [quality])]:
        if findings.summary.n[question, :, k].any():
            metric, drawn = findings.metrics[k], points(findings, question, k)
            title = f"{metric.name}, {findings.questions[question]}: up is better, left is cheaper"
            chart = Points(title, metric.name, metric.higher_is_better, drawn)
            return (chart,) if any(map(can_be_drawn, drawn)) else ()
    return ()


def notes(findings: StudyResult, question: int) -> Iterator[str]:
    """What a reader of a question's table must know."""
    name, settings = findings.questions[question], findings.settings
    count = len(findings.texts)
    special = "ranked and removed like others" if settings["special tokens"] else "neither ranked nor removed"
    yield f"{count} text{'s' if count != 1 else ''}; special tokens are {special}."
    yield _explained(findings, name)
    yield (
        f"Intervals: percentile bootstrap of the texts, {RESAMPLES:,} resamples; p: Wilcoxon's signed-rank test "
        "against the best of the group (zeros after Pratt), Holm-corrected within metric and group."
    )
    silent = [m.name for k, m in enumerate(findings.metrics) if not findings.summary.n[:, :, k].any()]
    if silent:
        yield f"No text could be judged by {', '.join(silent)}."
    yield from _failures(findings, name)
    for part, why in findings.left_out.items():
        if part.endswith(f", {name}"):
            yield f"Left out, as it does not suit the model: {part.removesuffix(f', {name}')} ({_short(why)})."


def _explained(findings: StudyResult, question: str) -> str:
    if question == NEXT:
        own = (
            "the model's own"
            if findings.settings["target"] == "predicted"
            else "the one that was given (against another where there is one), or the model's own"
        )
        return f"Explained: the next token, {own}."
    if question != CLASS:
        calibrated = findings.settings["calibration"] is not None
        unit = "its spread over the texts of a calibration" if calibrated else "its own size in each text"
        place = f", {findings.settings['states']}" if "states" in findings.settings else ""
        return f"Explained: the state of {question}{place}, in units of {unit}."
    if findings.settings["target"] == "label":
        return "Explained: the true class."
    known = [text for text in findings.texts if text.label is not None and text.target is not None]
    if not known:
        return "Explained: the class that the model predicts."
    right = sum(text.label == text.target for text in known) / len(known)
    return f"Explained: the class that the model predicts, which is the true one in {right:.1%} of {len(known)} texts."


def _failures(findings: StudyResult, question: str) -> Iterator[str]:
    """One note for each method and metric that failed, with its first reason."""
    parts: dict[tuple[str, str], list[str]] = {}
    for failure in findings.failures:
        if failure.question == question:
            found = parts.setdefault((failure.method, failure.metric), [])
            found.append(f"text {failure.text}: {_short(failure.reason)}")
    for (method, metric), reasons in parts.items():
        what = method if not metric else f"{metric} of {method}"
        yield f"{what} failed on {len(reasons)} of {len(findings.texts)} texts, first on {reasons[0]}."


def _short(reason: str) -> str:
    return numbers.shortened(" ".join(reason.split()).rstrip("."), _SHOWN)


def metric_cells(metric: StudyColumn, cells: Sequence[StudyCell | None], most: int) -> list[Cell | None]:
    """One group's cells of a metric: quality is shaded, costs are not."""
    known = [cell if cell is not None and math.isfinite(cell.mean) else None for cell in cells]
    means = [None if cell is None else cell.mean for cell in known]
    halves = [None if cell is None else cell.half for cell in known]
    is_cost = metric.name in _COST_NAMES
    places = [None] * len(known) if is_cost else shades.ranks(means, halves, metric.higher_is_better)
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
    """The best of each group by the first metric that is no cost, and who is not told apart from it."""
    judging = [c for c, column in enumerate(table.columns) if column.name not in _COST_NAMES]
    said = []
    for c in judging[:1]:
        for group, rows in table.groups.items():
            cells = {row.name: cell for row in rows if (cell := row.cells[c])}
            near = [name for name, cell in cells.items() if cell.mark]
            also = f"; not told apart: {', '.join(near[:3])}" if near else ""
            also += " and more" if len(near) > 3 else ""
            best = [f"{name} ({cell.text})" for name, cell in cells.items() if cell.best]
            if best:
                said.append(f"Best of the {group} by {table.columns[c].name}: {best[0]}{also}.")
    return " ".join(said)


def known(kind: str) -> list[dict[str, Any]]:
    """Every method ("methods"), or metric ("metrics"), and what it is about, as plain values.

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
    """All methods and metrics: what they explain or judge, and their sources."""
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
