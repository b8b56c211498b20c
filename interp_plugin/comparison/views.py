"""What a report shows of the findings of a study: tables with notes, and points of quality against seconds."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from interp_plugin.comparison.result import CLASS, GROUPS, StudyResult
from interp_plugin.rendering.study import StudyCell, StudyColumn, StudyPoint, StudyTable
from interp_plugin.statistics import RESAMPLES

SECONDS = "seconds"
_SHOWN = 160  # characters of a reason


def tables(findings: StudyResult) -> tuple[StudyTable, ...]:
    """A table for each question."""
    cells = _cells(findings)
    found = []
    for q, question in enumerate(findings.questions):
        shown = [k for k in range(len(findings.metrics)) if findings.summary.n[q, :, k].any()]
        groups = {
            group: {
                method.name: tuple(cells.get((q, m, k)) for k in shown)
                for m, method in enumerate(findings.methods)
                if findings.group(q, m) == group and findings.summary.n[q, m].any()
            }
            for group in GROUPS
        }
        columns = tuple(findings.metrics[k] for k in shown)
        found.append(
            StudyTable(
                question,
                columns,
                {name: rows for name, rows in groups.items() if rows},
                tuple(notes(findings, q)),
            )
        )
    return tuple(found)


def points(findings: StudyResult, question: int, metric: int) -> tuple[StudyPoint, ...]:
    """A point for each method that has a number there; cost is NaN where its seconds are not known."""
    summary = findings.summary
    known = [m for m in range(len(findings.methods)) if summary.n[question, m, metric]]
    seconds = summary.mean[question, :, findings.number("metric", SECONDS)]
    quality = summary.mean[question, :, metric]
    sign = 1 if findings.metrics[metric].higher_is_better else -1

    def beats(a: int, b: int) -> bool:
        worth, cost = sign * (quality[a] - quality[b]), seconds[b] - seconds[a]
        same_group = findings.group(question, a) == findings.group(question, b)
        return bool(same_group and worth >= 0 and cost >= 0 and (worth > 0 or cost > 0))

    return tuple(
        StudyPoint(
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


def fronts(
    findings: StudyResult, quality: str | None, costs: frozenset[str]
) -> dict[StudyColumn, tuple[StudyPoint, ...]]:
    """The points of every question, by what their quality is.

    Args:
        quality: a metric; None: the first that judges the question and is no cost.
        costs: names of metrics that are.
    """
    found = {}
    wanted = None if quality is None else findings.number("metric", quality)
    for q, question in enumerate(findings.questions):
        some = [k for k, metric in enumerate(findings.metrics) if metric.name not in costs]
        some = [k for k in (some if wanted is None else [wanted]) if findings.summary.n[q, :, k].any()]
        for k in some[:1]:
            metric = findings.metrics[k]
            heading = StudyColumn(f"{metric.name}, {question}", metric.higher_is_better, metric.source)
            found[heading] = points(findings, q, k)
    return found


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
    if question != CLASS:
        calibrated = findings.settings["calibration"] is not None
        unit = "its spread over the texts of a calibration" if calibrated else "its own size in each text"
        return f"Explained: the state of {question}, in units of {unit}."
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


def _cells(findings: StudyResult) -> dict[tuple[int, int, int], StudyCell]:
    """By question, method and metric."""
    found = {}
    summary = findings.summary
    for q, k, _, methods in findings.groups():
        best = findings.best(q, k, methods)
        ps = findings.against(q, k, methods, best)
        for m in methods:
            mean, low, high = (float(x[q, m, k]) for x in (summary.mean, summary.low, summary.high))
            p = None if m == best or np.isnan(ps[m]) else ps[m]
            found[q, m, k] = StudyCell(mean, low, high, int(summary.n[q, m, k]), m == best, p)
    return found


def _short(reason: str) -> str:
    line = " ".join(reason.split()).rstrip(".")
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 1]}…"
