"""Scoring: the texts of a window become a part; a text that cannot be scored becomes a failure and spoils no other."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from interp_plugin.corpus.parts import About, PartFiles, Scored, part_files
from interp_plugin.corpus.reading import Failure, Item, Window
from interp_plugin.files import ids_digest
from interp_plugin.memory import give_back
from interp_plugin.text.batch import batches
from interp_plugin.text.explanation import ErasedRow, TextExplanation
from interp_plugin.text.models import Encoding, TextModel
from interp_plugin.text.scoring import ErasureFinder, Finder, Plan, score, warn_of_unreached_states

CHECKED_SHARE = 0.01  # of predicted texts that the solver checks
OTHER_DRAWS = 1_000_003  # added to the seed: a head may have been trained on the study's own draws
CHECKED_EARLY = 4  # so many texts more with every e-fold of the rows, until the share takes over
MOST_FAILURES = 32  # texts that the model fails on before it has scored any: then it is not the texts


class Scorer:
    """Scores texts with one model; a text that cannot be scored leaves the others alone.

    Args:
        model: that reads them.
        plan: what to compute for each.
        settings: that the numbers depend on; the window's size among them.
        batch_size: texts at most in a batch.
        truncation: cut off what the model cannot take; otherwise too long a text fails.
        finder: finds the rows in the solver's place: a head, of whose texts the solver checks some, or the erasure
            channel; None: the solver.

    Attributes:
        has_scored: whether the model has scored any text; until then many failures are an error.
    """

    def __init__(
        self,
        model: TextModel,
        plan: Plan,
        settings: Mapping[str, Any],
        batch_size: int,
        truncation: bool,
        finder: Finder | None = None,
    ) -> None:
        self.model, self.plan, self.settings = model, plan, settings
        self.batch_size, self.truncation, self.finder = batch_size, truncation, finder
        self.has_scored = False
        self._warned = False

    def part(
        self,
        window: Window,
        scored: Sequence[Scored] = (),
        failed: Sequence[Failure] = (),
        done: Callable[[int, list[Failure]], None] | None = None,
    ) -> PartFiles:
        """The part of a window.

        Args:
            window: of the corpus.
            scored, failed: what is known already of its first texts.
            done: as of calling it.

        Raises:
            RuntimeError: as of calling it.
        """
        start = time.perf_counter()
        known = {each.item.row for each in scored} | {failure.row for failure in failed}
        found, refused = self([item for item in window.items if item.row not in known], done)
        self._warn(found)
        failures = sorted([*window.failures, *failed, *refused], key=lambda failure: failure.row)
        about = About(
            window=window.number,
            first_row=window.number * self.settings["window"],
            rows=len(window.entries),
            last=window.last,
            digest=window.digest,
            ids=self.ids(window),
            texts=len(scored) + len(found),
            failures=len(failures),
            settings=self.settings,
            seconds=time.perf_counter() - start,
        )
        return part_files(about, [*scored, *found], failures)

    def ids(self, window: Window) -> str:
        """A digest of the token ids of the first text of a window that has any."""
        for item in window.items:
            for encoding in self.encoded([item])[0].values():
                return ids_digest(encoding.ids)
        return ""

    def __call__(
        self, items: Sequence[Item], done: Callable[[int, list[Failure]], None] | None = None
    ) -> tuple[list[Scored], list[Failure]]:
        """The scored texts, and those that failed, each in the order of their rows.

        Args:
            items: some texts.
            done: called after every batch, with how many texts are done and which of them failed.

        Raises:
            RuntimeError: the model fails on all of the first texts, so that something else is wrong; or the device is
                lost.
        """
        encodings, failures = self.encoded(items)
        if done is not None and failures:
            done(len(failures), failures)
        scored: list[Scored] = []
        kept, refused = list(encodings), 0
        for some in batches([encodings[item] for item in kept], self.batch_size, self.model.pads):
            chosen = [kept[i] for i in some]
            found, failed = self._of_batch(chosen, [encodings[item] for item in chosen])
            scored += found
            failures += failed
            self.has_scored |= bool(found)
            refused += len(failed)
            if not self.has_scored and refused >= MOST_FAILURES:
                raise RuntimeError(
                    f"the model failed on the first {refused} texts, the last because of {failures[-1].reason}; mend "
                    "that and run again"
                )
            if done is not None:
                done(len(chosen), failed)
            give_back()
        return sorted(scored, key=lambda s: s.item.row), sorted(failures, key=lambda f: f.row)

    def encoded(self, items: Sequence[Item]) -> tuple[dict[Item, Encoding], list[Failure]]:
        """The texts as the model reads them, and those it cannot read."""
        encodings: dict[Item, Encoding] = {}
        failures: list[Failure] = []
        for item in items:
            try:
                encodings[item] = self.model.encode(item.text, item.pair, truncation=self.truncation)
            except Exception as error:  # a tokenizer may raise anything
                failures.append(Failure.of(item.row, error, item))
        return encodings, failures

    def _of_batch(
        self, items: Sequence[Item], encodings: Sequence[Encoding]
    ) -> tuple[list[Scored], list[Failure]]:
        """A batch together; one by one where that fails, so that only the bad text does."""
        try:
            return self._scored(items, encodings), []
        except Exception as error:  # a model may raise anything
            _check_device(error)
            if len(items) == 1:
                return [], [Failure.of(items[0].row, error, items[0])]
        scored: list[Scored] = []
        failures: list[Failure] = []
        for item, encoding in zip(items, encodings):
            found, failed = self._of_batch([item], [encoding])
            scored += found
            failures += failed
        return scored, failures

    def _scored(self, items: Sequence[Item], encodings: Sequence[Encoding]) -> list[Scored]:
        found = score(self.model, encodings, self.plan, self.finder)
        predicted = self.finder is not None and not isinstance(self.finder, ErasureFinder)
        solved = self._solved(items, encodings) if predicted else {}
        for each in (*found, *solved.values()):
            _check_finite(each)
        return [Scored(item, each, solved.get(item)) for item, each in zip(items, found)]

    def _solved(self, items: Sequence[Item], encodings: Sequence[Encoding]) -> dict[Item, TextExplanation]:
        """The solver's explanations of the texts that it checks."""
        some = {item: encoding for item, encoding in zip(items, encodings) if is_checked(item.row)}
        solver = replace(self.plan.solver, seed=self.plan.solver.seed + OTHER_DRAWS)
        plan = replace(self.plan, solver=solver)
        return dict(zip(some, score(self.model, list(some.values()), plan))) if some else {}

    def _warn(self, scored: Sequence[Scored]) -> None:
        unreached = [each.found for each in scored if any(row.distortion == 0 for row in each.found.rows)]
        if unreached and not self._warned:
            self._warned = True
            warn_of_unreached_states(unreached)


def _check_finite(found: TextExplanation) -> None:
    for row in found.rows:
        values, name = (row.erased, "scores") if isinstance(row, ErasedRow) else (row.sigma, "sigmas")
        if not (values.isfinite().all() and row.standard_error.isfinite().all()):
            raise ValueError(
                f"layer {row.layer!r} has {name} that are not finite: the model gives NaN under noise or erasures"
            )


def _check_device(error: Exception) -> None:
    """A lost device fails every text, which is no fault of theirs."""
    lost = isinstance(error, getattr(torch, "AcceleratorError", ())) or "CUDA error" in str(error)
    if lost and not isinstance(error, torch.OutOfMemoryError):
        raise error


def is_checked(row: int) -> bool:
    """Whether the solver checks a predicted row: one in a hundred at random, more often near the beginning.

    It depends on the row's number alone, so every run, process and engine picks the same ones.

    Examples::
        >>> [row for row in range(20) if is_checked(row)], sum(map(is_checked, range(10_000)))
        ([0, 1, 2, 3, 4, 5, 7, 8, 10, 11, 12, 16], 111)
    """
    digest = hashlib.sha256(f"check {row}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < max(
        CHECKED_SHARE, CHECKED_EARLY / (CHECKED_EARLY + row)
    )
