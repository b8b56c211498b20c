"""Values: what the report of a study draws, plain numbers and names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


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


@dataclass(frozen=True)
class StudyColumn:
    """A metric.

    Attributes:
        name: in tables.
        higher_is_better: what its numbers say.
        source: where it comes from, paper and equation.
    """

    name: str
    higher_is_better: bool
    source: str


@dataclass(frozen=True)
class StudyTable:
    """One question: methods x metrics, signed and unsigned methods apart.

    Attributes:
        title: the question: "class", or "layer 3".
        columns: its C metrics.
        groups: group ("unsigned", "signed") -> method -> C cells; None where there is nothing to judge.
        notes: what a reader must know: special tokens in or out, number of texts, target, bins.

    Raises:
        ValueError: a method with more or fewer cells than there are columns.
    """

    title: str
    columns: tuple[StudyColumn, ...]
    groups: Mapping[str, Mapping[str, tuple[StudyCell | None, ...]]]
    notes: tuple[str, ...]

    def __post_init__(self) -> None:
        for methods in self.groups.values():
            for method, cells in methods.items():
                if len(cells) != len(self.columns):
                    raise ValueError(
                        f"method {method!r} has {len(cells)} cells for {len(self.columns)} columns of {self.title!r}; "
                        "give one for each, None where there is no value"
                    )


@dataclass(frozen=True)
class StudyPoint:
    """One method in the figure of quality against cost.

    Attributes:
        method, group: its name, and "unsigned" or "signed".
        cost: seconds per text.
        quality: a metric's mean.
        low, high: ends of the mean's 95 % interval.
        on_front: whether no method of its group is both cheaper and better.
    """

    method: str
    group: str
    cost: float
    quality: float
    low: float
    high: float
    on_front: bool
