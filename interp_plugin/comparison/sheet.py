"""The sheet of a study: every number there is, and what is still missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from interp_plugin.comparison.journal import Entry

if TYPE_CHECKING:
    from interp_plugin.comparison.study import Example

_NOT_ASKED, _MISSING, _KNOWN, _FAILED = range(4)
Cell = tuple[int, int, int]
"""A text, a question and a method, by number."""


class Sheet:
    """Numbers of N texts, Q questions, M methods and K metrics; texts that are the same share theirs.

    Args:
        asked: the texts.
        questions: their names, "class" for the class.
        methods, metrics: their names.
        applies: which metric judges which method's answers to which question, (Q, M, K), bool.
        keep_scores: keep the scores of tokens too.

    Attributes:
        values: (N, Q, M, K), NaN where there is no number.
        scores_at: where the journal has the scores, (N, Q, M), -1 where it has not.
        targets: number of the class that was explained, (N,), -1 where that is not known yet.
        errors: text, question, method -> metric ("" for the method itself) -> why it has no number.
        scores: text, question, method -> (T,), float32.
    """

    def __init__(
        self,
        asked: Sequence[Example],
        questions: Sequence[str],
        methods: Sequence[str],
        metrics: Sequence[str],
        applies: NDArray[np.bool_],
        keep_scores: bool = False,
    ) -> None:
        shape = (len(asked), len(questions), len(methods), len(metrics))
        self.values = np.full(shape, np.nan)
        self.scores_at = np.full(shape[:3], -1)
        self.targets = np.array([-1 if text.target is None else text.target for text in asked])
        self.errors: dict[Cell, Mapping[str, str]] = {}
        self.scores: dict[Cell, NDArray[np.float32]] = {}
        self._state = np.broadcast_to(np.where(applies, _MISSING, _NOT_ASKED), shape).astype(np.int8)
        self._keep_scores = keep_scores
        self._questions, self._methods, self._metrics = (
            {name: number for number, name in enumerate(names)} for names in (questions, methods, metrics)
        )
        self.digests = [[text.digest(name == "class") for name in questions] for text in asked]
        self._texts: dict[tuple[int, str], list[int]] = {}
        for number, digests in enumerate(self.digests):
            for question, digest in enumerate(digests):
                self._texts.setdefault((question, digest), []).append(number)

    def put(self, entry: Entry, at: int = -1) -> int:
        """Fill in an entry, which begins ``at`` in the journal; returns for how many of the texts it stands."""
        question, method = self._questions.get(entry.question), self._methods.get(entry.method)
        if question is None or method is None:
            return 0
        texts = self._texts.get((question, entry.text), [])
        for text in texts:
            cell = (text, question, method)
            self._put(cell, entry)
            if entry.target is not None:
                self.targets[text] = entry.target
            if entry.scores:
                self.scores_at[cell] = at
                if self._keep_scores:
                    self.scores[cell] = np.array(entry.scores, np.float32)
        return len(texts)

    def _put(self, cell: Cell, entry: Entry) -> None:
        state, values = self._state[cell], self.values[cell]  # (K,), views
        errors = dict(self.errors.pop(cell, {}))
        if "" in errors and entry.scores:  # it failed once, and works now
            state[state == _FAILED] = _MISSING
            errors = {}
        if "" in entry.errors:
            state[state != _NOT_ASKED] = _FAILED
        for name, value in {**dict.fromkeys(entry.errors, np.nan), **entry.values}.items():
            metric = self._metrics.get(name)
            if metric is not None and state[metric] != _NOT_ASKED:
                values[metric] = np.nan if value is None else value
                state[metric] = _KNOWN if name in entry.values else _FAILED
        errors = {name: why for name, why in errors.items() if name not in entry.values}
        errors |= {name: why for name, why in entry.errors.items() if not name or name in self._metrics}
        if errors:
            self.errors[cell] = errors

    def missing(self) -> Iterator[tuple[Cell, list[int]]]:
        """What is to be done: text, question and method, and the metrics that are missing."""
        for cell in np.ndindex(*self.scores_at.shape):
            metrics = np.flatnonzero(self._state[cell] == _MISSING)
            if len(metrics):
                yield cell, metrics.tolist()

    def count_missing(self) -> int:
        """How many of those there are."""
        return int((self._state == _MISSING).any(-1).sum())

    def forget_failures(self) -> None:
        """Whatever failed is missing again."""
        self._state[self._state == _FAILED] = _MISSING
        self.errors.clear()

    def has_worked(self, question: int, method: int, metric: int | None = None) -> bool:
        """Whether the method answered that question about any text, and the metric judged the answer."""
        states = self._state[:, question, method, slice(None) if metric is None else metric]
        return bool((states == _KNOWN).any())

    def leave_out(self, question: int, method: int, metric: int | None = None) -> int:
        """Ask the method that question no more, or judge no more by that metric; returns how many trials it saves."""
        states = self._state[:, question, method]  # (N, K), a view
        before = (states == _MISSING).any(1).sum()
        states[:, slice(None) if metric is None else metric] = _NOT_ASKED
        return int(before - (states == _MISSING).any(1).sum())
