"""A run of a study: what is missing is done, one trial after another, and noted at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from interp_plugin.comparison.asked import Asked
from interp_plugin.comparison.costs import Cost, measured
from interp_plugin.comparison.inputs import Inputs
from interp_plugin.comparison.journal import Entry, Journal
from interp_plugin.comparison.judged import Method, Metric, Trial
from interp_plugin.comparison.sheet import Cell, Sheet
from interp_plugin.method.perturbation import no_fastpath
from interp_plugin.rendering.study import StudyColumn
from interp_plugin.text.batch import State
from interp_plugin.text.models import TextModel, shown

COSTS = (
    StudyColumn("seconds", False, "wall time of one call, after one to warm up"),
    StudyColumn("forward passes", False, "rows through the model"),
    StudyColumn("backward passes", False, "rows that a gradient came back through"),
    StudyColumn("peak MiB", False, "most memory in use above that before the call"),
)
# of Captum and torch, on a model that is not for them
_UNSUITED = (ValueError, TypeError, AssertionError, RuntimeError)


@dataclass(frozen=True)
class Question:
    """What methods are asked about a text.

    Attributes:
        name: "class", or the layer.
        state: the state that is watched; None: the class.
    """

    name: str
    state: State | None


@dataclass
class Running:
    """One run over the texts of a study.

    A method or metric that has not worked for a question yet and fails there was chosen wrongly: that is
    an error at once, or it is left out where nobody chose it.  Later failures are of the text: they are
    noted and the run goes on.

    Attributes:
        model, asked, questions, methods, metrics, seed, with_special: as in Study.
        sheet: what is known and what is missing.
        journal: where every trial is noted; None: nowhere.
        optional_methods, optional_metrics: whether one that does not suit the model may be left out.
        progress: told of how many texts each trial was.
        left_out: what was left out -> why.
    """

    model: TextModel
    asked: Sequence[Asked]
    questions: Sequence[Question]
    methods: Sequence[Method]
    metrics: Sequence[Metric]
    seed: int
    with_special: bool
    sheet: Sheet
    journal: Journal | None
    optional_methods: bool
    optional_metrics: bool
    progress: Callable[[int], object]
    left_out: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._warm: set[str] = set()
        self._inputs: tuple[int, Inputs] | None = None

    def go(self) -> None:
        """Do all that is missing."""
        for cell, missing in self.sheet.missing():
            metrics = [self.metrics[i] for i in missing if i < len(self.metrics)]
            entry = self._trial(cell, metrics)
            if entry is not None:
                at = -1 if self.journal is None else self.journal.append(entry)
                self.progress(self.sheet.put(entry, at))

    def _trial(self, cell: Cell, metrics: Sequence[Metric]) -> Entry | None:
        """One method's answer to one question about one text, and what it is worth; None: it was left out."""
        text, question = cell[0], self.questions[cell[1]]
        method, inputs = self.methods[cell[2]], self._of_text(text)
        target = self._target(text) if question.state is None else None
        entry = Entry(self.sheet.digests[text][cell[1]], question.name, method.name, target=target)
        values: dict[str, float | None] = {}
        errors: dict[str, str] = {}
        scores = self._noted(cell)
        known = scores is not None
        if scores is None:
            try:
                scores, cost = self._ask(method, inputs, target, question.state)
            # a user's method may raise anything, and one text shall not end the run
            except Exception as error:
                return self._failed(cell, entry, error)
            values = _numbers(cost)
        trial = Trial(inputs, target, question.state, method, scores, self.asked[text].rationale)
        for metric in metrics:
            try:
                values[metric.name] = _judge(metric, trial)
            except Exception as error:  # as above
                if self._may_go_on(cell, error, metric):
                    errors[metric.name] = _reason(error)
        if known:
            return replace(entry, values=values, errors=errors) if values or errors else None
        return replace(entry, values=values, errors=errors, scores=tuple(scores.tolist()))

    def _ask(
        self, method: Method, inputs: Inputs, target: int | None, state: State | None
    ) -> tuple[Tensor, Cost]:
        if method.name not in self._warm:
            method(inputs, target, state)
            self._warm.add(method.name)
        with measured(self.model) as cost:
            scores = method(inputs, target, state)
        return scores, cost

    def _noted(self, cell: Cell) -> Tensor | None:
        """The scores, where only metrics are missing."""
        at = int(self.sheet.scores_at[cell])
        return (
            None
            if self.journal is None or at < 0
            else torch.tensor(self.journal.entry_at(at).scores, dtype=torch.float32)
        )

    def _failed(self, cell: Cell, entry: Entry, error: Exception) -> Entry | None:
        if not self._may_go_on(cell, error):
            return None
        return replace(entry, errors={"": _reason(error)})

    def _may_go_on(self, cell: Cell, error: Exception, metric: Metric | None = None) -> bool:
        """Whether a failure is one of this text; otherwise the choice was wrong: it is left out, or an error."""
        text, question, method = cell
        number = None if metric is None else self.metrics.index(metric)
        if self.sheet.has_worked(question, method, number):
            return True
        part = f"method {self.methods[method].name!r}" if metric is None else f"metric {metric.name!r}"
        optional = self.optional_methods if metric is None else self.optional_metrics
        unsuited = isinstance(error, _UNSUITED) and not isinstance(error, torch.OutOfMemoryError)
        if optional and unsuited:
            self.progress(self.sheet.leave_out(question, method, number))
            self.left_out[f"{part}, {self.questions[question].name}"] = _reason(error)
            return False
        of = "" if metric is None else f" of {self.methods[method].name!r}"
        if unsuited:
            raise ValueError(
                f"{part}{of} cannot be asked about {self.questions[question].name!r} of text {text}, "
                f"{shown(self.asked[text].encoding.text)}: {error}"
            ) from error
        raise error

    def _of_text(self, number: int) -> Inputs:
        """The inputs, kept while the text lasts."""
        if self._inputs is None or self._inputs[0] != number:
            inputs = Inputs(self.model, self.asked[number].encoding, self.seed, self.with_special)
            self._inputs = number, inputs
        return self._inputs[1]

    def _target(self, text: int) -> int:
        """Number of the class to explain."""
        if self.sheet.targets[text] < 0:
            with torch.no_grad(), no_fastpath():
                scores = self.model(*self._of_text(text).arguments)
            self.sheet.targets[text] = int(scores[0].argmax())
        return int(self.sheet.targets[text])


def _judge(metric: Metric, trial: Trial) -> float | None:
    value = metric(trial)
    if value is not None and not math.isfinite(value):
        raise ValueError(
            f"metric {metric.name!r} gives {value}; give a finite number, or None where there is none"
        )
    return None if value is None else float(value)


def _numbers(cost: Cost) -> dict[str, float | None]:
    values = (cost.seconds, cost.forward, cost.backward, cost.peak_mib)
    return {column.name: value for column, value in zip(COSTS, values, strict=True)}


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
