"""Tables and points of made-up studies, as large or as hostile as a test wants them."""

from __future__ import annotations

import random
from collections.abc import Sequence

from interp_plugin.rendering.study import StudyCell, StudyColumn, StudyPoint, StudyTable

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


def study_table(
    unsigned: Sequence[str] = METHODS,
    signed: Sequence[str] = SIGNED,
    title: str = "class",
    columns: Sequence[StudyColumn] = METRICS,
    seed: int = 0,
) -> StudyTable:
    """A table with bests, ties, gaps, fewer texts, and costs that span decades."""
    draw = random.Random(seed)
    groups: dict[str, dict[str, tuple[StudyCell | None, ...]]] = {}
    for group, methods in (("unsigned", unsigned), ("signed", signed)):
        found = {method: [_made(draw, column) for column in columns] for method in methods}
        for c, column in enumerate(columns):
            cells = [(row[c].mean, method) for method, row in found.items() if row[c] is not None]  # type: ignore[union-attr]
            if cells:
                _, best = (max if column.higher_is_better else min)(cells)
                found[best][c] = StudyCell(**{**vars(found[best][c]), "best": True, "p": None})
        groups[group] = {method: tuple(row) for method, row in found.items()}
    notes = (
        "200 texts; special tokens are not ranked.",
        "Target: the predicted class; bins 5, 10, 20, 50 %.",
    )
    return StudyTable(title, tuple(columns), groups, notes)


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


def study_points(table: StudyTable, quality: int = 0, cost: int = 3) -> list[StudyPoint]:
    """Quality against seconds, the front found by comparing all pairs."""
    points = []
    for group, methods in table.groups.items():
        pairs = {m: (row[cost], row[quality]) for m, row in methods.items()}
        known = {m: (s, q) for m, (s, q) in pairs.items() if s is not None and q is not None}
        for method, (seconds, found) in known.items():
            beaten = any(
                s.mean <= seconds.mean and q.mean >= found.mean and (s, q) != (seconds, found)
                for s, q in known.values()
            )
            points.append(
                StudyPoint(method, group, seconds.mean, found.mean, found.low, found.high, not beaten)
            )
    return points
