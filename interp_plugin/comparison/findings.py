"""What a comparison study found: one number for each text, question, method and metric."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from interp_plugin.comparison.journal import differences
from interp_plugin.rendering.study import StudyColumn
from interp_plugin.statistics import Means, holm, means, signed_rank

CLASS = "class"  # the question that is about no state
Group = Literal["unsigned", "signed"]
GROUPS: tuple[Group, ...] = ("unsigned", "signed")


@dataclass(frozen=True)
class Contestant:
    """A method, as far as tables need to know it.

    Attributes:
        name: in tables.
        signed: whether scores below 0 say that a token speaks against the class.
        source: the paper, or Captum's class.
    """

    name: str
    signed: bool
    source: str


@dataclass(frozen=True)
class StudyText:
    """A text of a study.

    Attributes:
        text, pair: itself, and its second text.
        tokens: how many it has, special ones included.
        label: its true class; None: not known.
        target: the class that was explained; None: no class was.
        digest: equal for texts that were asked about in the same way.
    """

    text: str
    pair: str | None
    tokens: int
    label: str | None
    target: str | None
    digest: str


@dataclass(frozen=True)
class Failure:
    """Why a number is missing that was asked for.

    Attributes:
        text: its number.
        question, method: what was asked, and whom.
        metric: which one failed; "" where the method itself did.
        reason: what it said.
    """

    text: int
    question: str
    method: str
    metric: str
    reason: str


Self = TypeVar("Self", bound="Findings")


@dataclass(frozen=True, eq=False)
class Findings:
    """Texts x questions x methods x metrics.

    Attributes:
        texts: N of them.
        questions: Q names: "class", "layer 1", ...
        methods: M of them.
        metrics: K of them, costs last.
        cells: the numbers, (N, Q, M, K), float64; NaN where there is none.
        settings: what they depend on.
        failures: what was tried in vain.
        left_out: methods and metrics that do not suit the model -> why.
        scores: of the tokens, by text, question and method, where the study was told to keep them.
    """

    texts: tuple[StudyText, ...]
    questions: tuple[str, ...]
    methods: tuple[Contestant, ...]
    metrics: tuple[StudyColumn, ...]
    cells: NDArray[np.float64]
    settings: Mapping[str, Any]
    failures: tuple[Failure, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    scores: Mapping[tuple[int, str, str], NDArray[np.float32]] = field(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        """Whether all is the same but the scores of tokens."""
        if not isinstance(other, Findings):
            return NotImplemented
        names = [f.name for f in fields(self) if f.name not in ("cells", "scores")]
        return np.array_equal(self.cells, other.cells, equal_nan=True) and all(
            getattr(self, name) == getattr(other, name) for name in names
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def names(self) -> dict[str, list[str]]:
        """Of questions, methods and metrics."""
        return {
            "question": list(self.questions),
            "method": [method.name for method in self.methods],
            "metric": [metric.name for metric in self.metrics],
        }

    def number(self, kind: Literal["question", "method", "metric"], name: str) -> int:
        """The place of a name.

        Raises:
            ValueError: there is no such name.
        """
        known = self.names[kind]
        if name not in known:
            raise ValueError(
                f"{kind} {name!r} is not in the study; choose from {', '.join(map(repr, known)) or 'none'}"
            )
        return known.index(name)

    @cached_property
    def summary(self) -> Means:
        """Means over the texts and their intervals, (Q, M, K) each."""
        found = means(self.cells.reshape(len(self.cells), -1))
        shape = self.cells.shape[1:]
        return Means(*(getattr(found, f.name).reshape(shape) for f in fields(found)))

    def group(self, question: int, method: int) -> Group:
        """Signed methods say more of a class, and are compared among themselves; a state has no for and against."""
        about_class = self.questions[question] == CLASS
        return "signed" if about_class and self.methods[method].signed else "unsigned"

    def groups(self) -> Iterator[tuple[int, int, Group, list[int]]]:
        """Question, metric and group, and those methods of the group that have any number there."""
        for q in range(len(self.questions)):
            for k in range(len(self.metrics)):
                for group in GROUPS:
                    known = [m for m in range(len(self.methods)) if self.group(q, m) == group]
                    known = [m for m in known if self.summary.n[q, m, k]]
                    if known:
                        yield q, k, group, known

    def best(self, question: int, metric: int, methods: Sequence[int]) -> int:
        """Which of the methods has the best mean."""
        sign = 1 if self.metrics[metric].higher_is_better else -1
        return max(methods, key=lambda method: sign * self.summary.mean[question, method, metric])

    def against(self, question: int, metric: int, methods: Sequence[int], best: int) -> dict[int, float]:
        """p of each other method's paired difference to the best, Holm-corrected; NaN where no text has both."""
        others = [method for method in methods if method != best]
        values = self.cells[:, question, :, metric]
        ps = holm([signed_rank(values[:, best] - values[:, method]) for method in others])
        return dict(zip(others, ps.tolist(), strict=True))

    def part(
        self: Self,
        questions: Iterable[str] | None = None,
        methods: Iterable[str] | None = None,
        metrics: Iterable[str] | None = None,
        texts: slice | Iterable[int] | None = None,
    ) -> Self:
        """Some of it, in the order given; None: all.

        Raises:
            ValueError: a name or a text that is not there.
        """
        q = _places(questions, self.questions, lambda name: self.number("question", name))
        m = _places(methods, self.methods, lambda name: self.number("method", name))
        k = _places(metrics, self.metrics, lambda name: self.number("metric", name))
        n = list(range(len(self.texts)))[texts] if isinstance(texts, slice) else self._texts(texts)
        asked, used, judged = (
            [self.questions[i] for i in q],
            [self.methods[i] for i in m],
            [self.metrics[i] for i in k],
        )
        names = {metric.name for metric in judged} | {""}
        users = {method.name for method in used}
        new = {old: place for place, old in enumerate(n)}
        failures = (
            replace(f, text=new[f.text])
            for f in self.failures
            if f.text in new and f.question in asked and f.method in users and f.metric in names
        )
        return replace(
            self,
            texts=tuple(self.texts[i] for i in n),
            questions=tuple(asked),
            methods=tuple(used),
            metrics=tuple(judged),
            cells=self.cells[np.ix_(n, q, m, k)],
            failures=tuple(failures),
            scores={
                (new[text], question, method): scores
                for (text, question, method), scores in self.scores.items()
                if text in new and question in asked and method in users
            },
        )

    def _texts(self, texts: Iterable[int] | None) -> list[int]:
        count = len(self.texts)
        wanted = list(range(count)) if texts is None else list(texts)
        for text in wanted:
            if not -count <= text < count:
                raise ValueError(f"text {text} is not in the study, which has {count}, counted from 0")
        return [text % count for text in wanted]


def merged(parts: Sequence[Self]) -> Self:
    """Findings of several studies as one; texts that were asked about in the same way are the same.

    Raises:
        ValueError: nothing to merge, other settings, one name for two things, two numbers for one cell.
    """
    if not parts:
        raise ValueError("there is nothing to merge: give at least one StudyResult")
    for part in parts[1:]:
        found = differences(parts[0].settings, part.settings)
        if found:
            raise ValueError(
                f"the results are of different studies ({'; '.join(found)}), so their numbers do not compare: merge "
                "only what was made with the same settings"
            )
    texts = _union([_told_apart(part.texts) for part in parts], "text")
    questions = _union([{name: name for name in part.questions} for part in parts], "question")
    methods = _union([{m.name: m for m in part.methods} for part in parts], "method")
    metrics = _union([{m.name: m for m in part.metrics} for part in parts], "metric")
    cells = np.full((len(texts), len(questions), len(methods), len(metrics)), np.nan)
    failures: dict[Failure, None] = {}
    scores: dict[tuple[int, str, str], NDArray[np.float32]] = {}
    for part in parts:
        rows = [list(texts).index(key) for key in _told_apart(part.texts)]
        places = np.ix_(
            rows,
            [list(questions).index(name) for name in part.questions],
            [list(methods).index(m.name) for m in part.methods],
            [list(metrics).index(m.name) for m in part.metrics],
        )
        there, here = cells[places], part.cells
        _check_same(part, there, here)
        cells[places] = np.where(np.isnan(here), there, here)
        failures |= dict.fromkeys(replace(f, text=rows[f.text]) for f in part.failures)
        scores |= {(rows[text], *names): found for (text, *names), found in part.scores.items()}  # type: ignore[misc]
    return replace(
        parts[0],
        texts=tuple(texts.values()),
        questions=tuple(questions.values()),
        methods=tuple(methods.values()),
        metrics=tuple(metrics.values()),
        cells=cells,
        failures=tuple(failures),
        left_out={name: why for part in parts for name, why in part.left_out.items()},
        scores=scores,
    )


def _places(wanted: Iterable[str] | None, known: Sequence[Any], number: Callable[[str], int]) -> list[int]:
    return list(range(len(known))) if wanted is None else [number(name) for name in wanted]


def _told_apart(texts: Sequence[StudyText]) -> dict[tuple[str, int], StudyText]:
    """Texts by their digests; the same one twice has a number besides."""
    found: dict[tuple[str, int], StudyText] = {}
    seen: dict[str, int] = {}
    for text in texts:
        found[text.digest, seen.setdefault(text.digest, 0)] = text
        seen[text.digest] += 1
    return found


Key = TypeVar("Key")
Value = TypeVar("Value")


def _union(parts: Sequence[Mapping[Key, Value]], kind: str) -> dict[Key, Value]:
    """All of them, in order of first sight."""
    found: dict[Key, Value] = {}
    for part in parts:
        for key, value in part.items():
            if kind != "text" and found.setdefault(key, value) != value:
                raise ValueError(
                    f"{kind} {key!r} is {found[key]!r} in one result and {value!r} in another; rename one of them"
                )
            found.setdefault(key, value)
    return found


def _check_same(part: Findings, there: NDArray[np.float64], here: NDArray[np.float64]) -> None:
    twice = ~np.isnan(there) & ~np.isnan(here) & (there != here)
    if twice.any():
        text, question, method, metric = (int(places[0]) for places in np.nonzero(twice))
        raise ValueError(
            f"two results have {part.metrics[metric].name!r} of {part.methods[method].name!r} for "
            f"{part.questions[question]!r} of text {part.texts[text].text!r}, and not the same; select other texts, "
            "methods or metrics of one of them"
        )
