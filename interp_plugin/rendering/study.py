"""Report of a method comparison study: Markdown, one HTML page, figures, tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class StudyCell:
    """One metric of one method: the mean over ``n`` texts and its 95 % interval, in the metric's unit."""

    mean: float
    low: float
    high: float
    n: int
    best: bool
    """Of its group."""
    p: float | None
    """Of the paired difference to the group's best, Holm-corrected; None for the best itself."""


@dataclass(frozen=True)
class StudyColumn:
    """A metric: its name, its direction and where it comes from."""

    name: str
    higher_is_better: bool
    source: str


@dataclass(frozen=True)
class StudyTable:
    """One question: methods x metrics, signed and unsigned methods apart."""

    title: str
    """The question: class, or layer 3."""
    columns: tuple[StudyColumn, ...]
    groups: Mapping[str, Mapping[str, tuple[StudyCell | None, ...]]]
    """Per group (unsigned, signed), per method a cell for each column; None where there is nothing to judge."""
    notes: tuple[str, ...]
    """What a reader must know: special tokens in or out, number of texts, target, bins, what a dash means."""


@dataclass(frozen=True)
class StudyPoint:
    """One method in the figure of quality against cost."""

    method: str
    group: str
    cost: float
    """Seconds per text."""
    quality: float
    low: float
    high: float
    on_front: bool
