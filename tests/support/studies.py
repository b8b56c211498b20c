"""Tables and points of made-up studies."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from interp_plugin.comparison.costs import StudyColumn
from interp_plugin.comparison.tables import GUIDE, StudyCell, metric_cells
from interp_plugin.report.model import Column, Point, Points, Report, Row, Section, Table

METHODS = (
    "information kept", "information kept (closed form)", "gradient norm of the state",
    "integrated gradients, absolute", "integrated gradients, L2", "saliency L2", "SmoothGrad L2", "attention rollout",
    "value zeroing", "leave-one-out", "LIME, absolute", "random",
)  # fmt: skip
SIGNED = ("integrated gradients [PAD]", "input x gradient", "DeepLift", "occlusion [MASK]", "KernelSHAP")
METRICS = (
    StudyColumn("comprehensiveness (mask)", True, "DeYoung et al. 2020, section 5"),
    StudyColumn("sufficiency (mask)", False, "DeYoung et al. 2020, section 5"),
    StudyColumn("infidelity", False, "Yeh et al. 2019, definition 2.1"),
    StudyColumn("seconds", False, "wall clock"),
    StudyColumn("forward passes", False, "sample passes"),
)
HOSTILE = (
    "<script>alert(1)</script>",
    "a | b *c* `d`",
    "$x^2$ \\frac",
    "\x1b[31mred",
    "日本語 نص",
    "]]>&amp;",
)


def cell(
    mean: float, width: float = 0.03, n: int = 200, best: bool = False, p: float | None = 0.001
) -> StudyCell:
    return StudyCell(mean, mean - width, mean + width, n, best, None if best else p)


def made_table(
    groups: Mapping[str, Mapping[str, Sequence[StudyCell | None]]],
    columns: Sequence[StudyColumn] = METRICS,
    title: str = "class",
    notes: tuple[str, ...] = (),
) -> Table:
    """The table of a study of these methods: group -> method -> a cell for each column."""
    cells = [
        cell for methods in groups.values() for row in methods.values() for cell in row if cell is not None
    ]
    most = max((cell.n for cell in cells), default=0)
    found = {}
    for group, methods in groups.items():
        shown = [
            metric_cells(column, [row[c] for row in methods.values()], most)
            for c, column in enumerate(columns)
        ]
        found[f"{group} methods"] = tuple(
            Row(method, tuple(column[place] for column in shown)) for place, method in enumerate(methods)
        )
    heads = tuple(Column(c.name, c.higher_is_better, c.source) for c in columns)
    return Table(title, "method", heads, found, notes)


def made_report(
    *tables: Table, title: str = "A study", charts: Sequence[Points] = (), **settings: object
) -> Report:
    """The report of a study with these tables."""
    sections = [Section(table.title, tables=(table,)) for table in tables]
    sections += [Section(chart.title, charts=(chart,)) for chart in charts]
    return Report(title, tuple(sections), GUIDE, scale=("worse", "better"), settings=settings)


def study_cells(
    unsigned: Sequence[str] = METHODS,
    signed: Sequence[str] = SIGNED,
    columns: Sequence[StudyColumn] = METRICS,
    seed: int = 0,
) -> dict[str, dict[str, list[StudyCell | None]]]:
    """Cells with bests, ties, gaps, fewer texts, and costs that span decades."""
    draw = random.Random(seed)
    groups: dict[str, dict[str, list[StudyCell | None]]] = {}
    for group, methods in (("unsigned", unsigned), ("signed", signed)):
        found = {method: [_made(draw, column) for column in columns] for method in methods}
        for c, column in enumerate(columns):
            cells = [(row[c].mean, method) for method, row in found.items() if row[c] is not None]  # type: ignore[union-attr]
            if cells:
                _, best = (max if column.higher_is_better else min)(cells)
                found[best][c] = StudyCell(**{**vars(found[best][c]), "best": True, "p": None})
        groups[group] = found
    return groups


def study_table(
    unsigned: Sequence[str] = METHODS,
    signed: Sequence[str] = SIGNED,
    title: str = "class",
    columns: Sequence[StudyColumn] = METRICS,
    seed: int = 0,
) -> Table:
    """The table of :func:`study_cells`."""
    notes = (
        "200 texts; special tokens are not ranked.",
        "Target: the predicted class; bins 5, 10, 20, 50 %.",
    )
    return made_table(study_cells(unsigned, signed, columns, seed), columns, title, notes)


def _made(draw: random.Random, column: StudyColumn) -> StudyCell | None:
    if draw.random() < 0.05:
        return None
    p = draw.choice([0.6, 0.001, 1e-9])
    if column.name == "seconds":
        mean = 10 ** draw.uniform(-2.5, 1)
        return StudyCell(mean, 0.9 * mean, 1.1 * mean, 200, False, p)
    if column.name == "forward passes":
        mean = float(draw.choice([1, 2, 50, 164]))
        return StudyCell(mean, mean, mean, 200, False, p)
    n = 180 if draw.random() < 0.05 else 200
    return cell(draw.uniform(0.05, 0.6), draw.uniform(0.02, 0.04), n, p=p)


def study_points(
    cells: Mapping[str, Mapping[str, Sequence[StudyCell | None]]], quality: int = 0, cost: int = 3
) -> tuple[Point, ...]:
    """Quality against seconds, the Pareto front found by comparing all pairs."""
    points = []
    for group, methods in cells.items():
        pairs = {m: (row[cost], row[quality]) for m, row in methods.items()}
        known = {m: (s, q) for m, (s, q) in pairs.items() if s is not None and q is not None}
        for method, (seconds, found) in known.items():
            beaten = any(
                s.mean <= seconds.mean and q.mean >= found.mean and (s, q) != (seconds, found)
                for s, q in known.values()
            )
            points.append(Point(method, group, seconds.mean, found.mean, found.low, found.high, not beaten))
    return tuple(points)
