"""CorpusStudy: explains every text of a corpus of any size; a stopped study can be continued."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from tqdm.auto import tqdm

from interp_plugin.corpus.parts import About, Folder, PartFiles, Scored, part_files
from interp_plugin.corpus.quantities import warn_of_drift
from interp_plugin.corpus.reading import Failure, Item, Reader, Source, Window, windows
from interp_plugin.corpus.result import CorpusResult
from interp_plugin.data import Column
from interp_plugin.files import check_local, differences, ids_digest, weights_digest
from interp_plugin.method.erasure import PASSES, Erasure, Side, Way, check_ways
from interp_plugin.method.perturbation import Site
from interp_plugin.method.problem import warn_of_training
from interp_plugin.method.solver import Solver
from interp_plugin.statistics import HeldOut
from interp_plugin.text.batch import batches, give_back
from interp_plugin.text.explainer import TextExplainer
from interp_plugin.text.explanation import ErasedRow, TextExplanation
from interp_plugin.text.inputs import Layers
from interp_plugin.text.models import OUTPUT, Encoding, Label, TextModel, shown
from interp_plugin.text.scoring import ErasureFinder, Finder, check_unused, score, warn_of_unreached_states
from interp_plugin.text.states import Calibration

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CHECKED_SHARE = 0.01  # of predicted texts that the solver checks
OTHER_DRAWS = 1_000_003  # added to the seed, because a head may have been trained on the study's own draws
CHECKED_EARLY = 4  # more checked texts per factor e in the number of rows, until the share is larger
MOST_FAILURES = 32  # with so many failures before the first success, the texts are not the cause


class Estimator(Finder, Protocol):
    """Predicts the solver's rows: an :class:`~interp_plugin.AmortisedEstimator`."""

    @property
    def digest(self) -> str: ...
    @property
    def held_out(self) -> HeldOut: ...
    @property
    def layers(self) -> Sequence[Label]: ...
    @property
    def calibration(self) -> Calibration | None: ...

    def check(self, model: TextModel, settings: Mapping[str, Any]) -> None:
        """Raise ValueError if the model or the settings are not those of the training."""
        ...


class CorpusStudy:
    """Information kept by the layers of a model over a corpus of any size, or what they lose with erased tokens.

    The corpus is read as a stream: no more than one window is in memory.  Every window of ``window`` rows becomes one
    Parquet file in the output folder, completely or not at all.  A stopped or killed study that is run again with the
    same folder only computes the windows without a complete file.

    Args:
        model, tokenizer, noise_layer: as for :class:`~interp_plugin.TextExplainer`.
        layers: "all", one label or several; they are sorted in forward order.
        rate: lambda, for all texts and layers.
        calibration: the unit of distortion of each layer; None: each text is measured by its own states, and layers
            can only be compared roughly.
        solver, max_sigma, input_std: as for :meth:`~interp_plugin.TextExplainer.explain`.
        batch_size: maximum number of texts in a batch.
        truncation: truncate texts that are too long for the model; otherwise they are recorded as failed.
        amortised: an :class:`~interp_plugin.AmortisedEstimator` that predicts the results; the solver then checks only
            one text in a hundred (more near the beginning), and :meth:`CorpusResult.check` compares the two.  Its
            layers replace "all", and its calibration replaces None.
        score, side, ways, passes: as for :meth:`~interp_plugin.TextExplainer.explain`: "kept" learns noise, "erased"
            learns erasures (for layer "output", of the predicted class).

    Raises:
        ValueError: as for :class:`~interp_plugin.TextExplainer`; the estimator was trained for another model or
            other settings, or is combined with score="erased".

    Examples::
        >>> import tempfile
        >>> from interp_plugin import CorpusStudy, huggingface
        >>> study = CorpusStudy(*huggingface.load(huggingface.default_model_path()), layers=[1, 2])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = study.run(["a good film", "", "not bad"], folder, show_progress=False)
        ...     result.texts, [(failure.row, failure.reason) for failure in result.failures()]
        (2, [(1, 'ValueError: the text is empty')])
    """

    def __init__(
        self,
        model: PreTrainedModel | TextModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        layers: Layers = "all",
        rate: float = 0.1,
        calibration: Calibration | None = None,
        solver: Solver | None = None,
        noise_layer: Site | str | None = None,
        max_sigma: float | None = None,
        batch_size: int = 16,
        truncation: bool = False,
        amortised: Estimator | None = None,
        input_std: float | None = None,
        *,
        score: Literal["kept", "erased"] = "kept",
        side: Side = "damage",
        ways: Sequence[Way] = ("mask",),
        passes: int = PASSES,
    ) -> None:
        if score not in ("kept", "erased"):
            raise ValueError(f"score is {score!r}; choose 'kept' or 'erased'")
        if score == "erased" and amortised is not None:
            raise ValueError(
                "amortised predicts sigma, and score='erased' learns erasures; leave one of the two out"
            )
        _check_positive("batch_size", batch_size)
        if amortised is not None:
            calibration = calibration or amortised.calibration
            layers = list(amortised.layers) if layers in ("all", ["all"]) else layers
        explainer = TextExplainer(model, tokenizer, noise_layer, calibration)
        plan = explainer.plan(layers, rate=rate, max_sigma=max_sigma, input_std=input_std, solver=solver)
        order = [*explainer.model.layers, OUTPUT]
        self.model = explainer.model
        states = sorted(plan.states, key=lambda state: order.index(state.label))
        self.plan = replace(plan, states=tuple(states))
        self.batch_size, self.truncation = batch_size, truncation
        self.amortised = amortised
        self.erasures = None
        settings = explainer.settings(plan)
        if score == "kept":
            check_unused(side, None if tuple(ways) == ("mask",) else ways)
        if score == "erased":
            erasure = Erasure(side, passes, self.plan.solver.seed)
            self.erasures = ErasureFinder(self.model, erasure, check_ways(ways))
            settings = replace(settings, erased=self.erasures.description)
        self._settings = asdict(settings)
        if amortised is not None:
            amortised.check(self.model, self.settings(1))

    def run(
        self,
        texts: Source,
        output_dir: str | os.PathLike[str],
        max_errors: int | None = None,
        window: int = 1024,
        show_progress: bool = True,
        rank: int = 0,
        world_size: int = 1,
        *,
        text_column: Column | None = None,
        pair_column: Column | None = None,
        tag_column: Column | None = None,
    ) -> CorpusResult:
        """Score the unfinished windows, and return the whole study.

        Args:
            texts: texts, pairs of texts, mappings, a DataFrame or Series, or the result of ``data.records(path)``; any
                iterable, with the same order in every run.  A run with more rows extends a run with the first rows of
                the same corpus.
            output_dir: a folder for the parts; created if it does not exist.
            max_errors: maximum number of failed texts, including those of finished windows; None: no limit.
            window: number of rows in a part: the most that a killed run loses; texts of a window are sorted by length.
            show_progress: show a bar with the rate and the remaining time.
            rank, world_size: number of this process, and number of processes that share the corpus; each scores every
                ``world_size``-th window.
            text_column, pair_column, tag_column: columns of the text, second text and tags, for rows with columns.
                text_column None: a usual name, or the only column with words.  A tag is one string for the text, or
                one for each word between spaces; see :meth:`CorpusResult.word_classes`.

        Returns:
            The study; with several processes, the parts finished so far: one process must load it at the end.

        Raises:
            ValueError: the folder holds a study with other settings or of other texts, or another process writes to
                it; the folder is a URI of an object store; too many texts failed; there are no texts; no row has a
                given column, or the column of texts is ambiguous.
            TypeError: texts is a single string or path.
            OSError: the folder cannot be written to, or the disk is full; finished parts are kept.
            RuntimeError: the model fails on all of the first texts, so that the texts are not the cause.
        """
        _check_positive("window", window)
        _check_positive("world_size", world_size)
        if rank not in range(world_size):
            raise ValueError(f"rank is {rank}, and world_size {world_size}; give 0 to {world_size - 1}")
        warn_of_training(self.model.module, stacklevel=3)
        reader, scorer = Reader(text_column, pair_column, tag_column), Scorer(self, window)
        with begun(texts, reader, scorer, output_dir, max_errors, show_progress, rank, world_size) as run:
            for each in run.todo():
                run.score(each)
        if world_size > 1 and not run.folder.windows():  # no process has finished a part yet
            return CorpusResult(run.folder.path, (), scorer.settings)
        result = CorpusResult.load(output_dir, partial=world_size > 1)
        if self.amortised is not None and world_size == 1:
            warn_of_drift(result.check())
        return result

    def settings(self, window: int) -> dict[str, Any]:
        """Return the settings that the results of a part depend on, ready for JSON."""
        states, config = self.plan.states, getattr(self.model.module, "config", None)
        settings = {
            **self._settings,
            "rate": self.plan.rate,
            "layers": [state.label for state in states],
            "max_sigma": self.plan.max_sigma,
            "input_std": self.plan.input_std,
            "truncation": self.truncation,
            "window": window,
            "revision": getattr(config, "_commit_hash", None),
            "weights": weights_digest(self.model.module),
        }
        if self.erasures is not None:
            settings["output_unit"] = "nats" if self.model.task in ("sequence classes", "next token") else "D"
        if self.amortised is not None:
            settings |= {"amortised": self.amortised.digest, "held_out": asdict(self.amortised.held_out)}
        plain: dict[str, Any] = json.loads(json.dumps(settings))
        return plain


def _check_positive(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}; give a positive number")


# -- one process's pass over the corpus


class Run:
    """One process's pass over the corpus, window by window, without the finished ones.

    Args:
        folder: of the study, locked.
        scorer: scores the texts, and has the settings.
        read: the windows of the corpus.
        max_errors: maximum number of failures; None: no limit.
        bar: progress over the texts.
        rank, world_size: as for :meth:`CorpusStudy.run`.

    Raises:
        ValueError: the folder holds a study with other settings.
    """

    def __init__(
        self,
        folder: Folder,
        scorer: Scorer,
        read: Iterator[Window],
        max_errors: int | None,
        bar: tqdm[Any],
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.folder, self.scorer, self.read, self.max_errors, self.bar = folder, scorer, read, max_errors, bar
        self.rank, self.world_size = rank, world_size
        self.failures = 0
        self.windows = 0
        first = next((part for number in folder.windows() if (part := folder.part(number))), None)
        if first is not None:
            self._check_settings(first.about)

    def todo(self) -> Iterator[Window]:
        """Yield the windows that this process must score; the others are only counted.

        Raises:
            ValueError: a part has other texts or settings; too many texts failed.
        """
        for window in self.read:
            self.windows += 1
            if not self._is_done(window):
                yield window

    def _is_done(self, window: Window) -> bool:
        """Return whether a window has a part or belongs to another process.

        A study of the first rows of a corpus can be extended: an incomplete last window is scored again.
        """
        mine = window.number % self.world_size == self.rank
        part = self.folder.part(window.number) if mine else None
        if part is not None:
            about = part.about
            self._check_settings(about)
            fewer = about.last and about.rows < len(window.entries)
            if fewer and window.digest_of(about.rows) == about.digest:
                return False
            self._check_texts(about, window)
            self._count(part.failures)
            self.scorer.has_scored |= about.texts > 0
        elif mine:
            return False
        # leave windows that took no time out of the bar's rate; a disabled bar has no ``initial``
        self.bar.initial = getattr(self.bar, "initial", 0) + len(window.entries)
        self.bar.update(len(window.entries))
        return True

    def score(self, window: Window) -> None:
        """Score a window in this process, and write its part.

        Raises:
            ValueError: too many texts failed.
            OSError: the part cannot be written.
            RuntimeError: as for :class:`Scorer`.
        """

        def done(texts: int, failed: Sequence[Failure]) -> None:
            self.bar.update(texts)
            self._count(failed)

        done(len(window.failures), window.failures)
        self.folder.write(self.scorer.part(window, done=done))

    def take(self, made: PartFiles) -> None:
        """Write a part from another process.

        Raises:
            ValueError: the part has other settings; too many texts failed.
            OSError: the part cannot be written.
        """
        found = self._other_settings(made.about)
        if found:
            raise ValueError(
                f"a worker has other settings: {found}; give all workers the same model and packages"
            )
        self._count(self.folder.write(made).failures)
        self.bar.update(made.about.rows)

    def finish(self) -> None:
        """Check that the corpus had rows, and not fewer than in earlier runs."""
        if not self.windows:
            raise ValueError("there are no texts: the corpus must hold at least one")
        beyond = [number for number in self.folder.windows() if number >= self.windows]
        if beyond:
            first = beyond[0] * self.scorer.settings["window"]
            raise ValueError(
                f"{str(self.folder.path)!r} holds a study of more texts, with {len(beyond)} parts from row {first} on, "
                "where these texts have ended; give all of them, or another folder"
            )

    def _check_settings(self, about: About) -> None:
        found = self._other_settings(about)
        if found:
            raise ValueError(
                f"{str(self.folder.path)!r} holds a study with other settings: {found}; give the same "
                "settings, or another folder"
            )

    def _other_settings(self, about: About) -> str:
        return ", ".join(
            f"{name} is {ours!r} now and {theirs!r} there"
            for name, ours, theirs in differences(self.scorer.settings, about.settings)
        )

    def _check_texts(self, about: About, window: Window) -> None:
        place = repr(str(self.folder.path))
        rows = f"rows {about.first_row} to {about.first_row + about.rows - 1}"
        same = window.digest == about.digest
        more = len(window.entries) < about.rows or (same and window.last and not about.last)
        if more:
            end = about.first_row + len(window.entries)
            raise ValueError(
                f"{place} holds a study of more texts than these {end}: give all of them, or another folder"
            )
        if not same:
            raise ValueError(
                f"{place} holds a study of other texts: {rows} differ, or their tags do; give the "
                "same texts in the same order, or another folder"
            )
        if about.ids != self.scorer.ids(window):
            raise ValueError(
                f"{place} holds a study with another tokenizer: {rows} have other tokens; give the "
                "same tokenizer, or another folder"
            )

    def _count(self, failures: Sequence[Failure]) -> None:
        self.failures += len(failures)
        if self.max_errors is not None and self.failures > self.max_errors:
            last = [f"row {one.row}, {shown(one.beginning)}: {one.reason}" for one in failures[-1:]]
            raise ValueError(
                f"{self.failures} texts failed and max_errors is {self.max_errors}"
                f"{''.join(f'; the last is {one}' for one in last)}; correct the texts, or allow more"
            )


@contextmanager
def begun(
    texts: Source,
    reader: Reader,
    scorer: Scorer,
    output_dir: str | os.PathLike[str],
    max_errors: int | None,
    show_progress: bool,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Run]:
    """Start a run in a locked folder.

    Args:
        texts, output_dir, max_errors, show_progress, rank, world_size: as for :meth:`CorpusStudy.run`.
        reader: converts rows to texts.
        scorer: of the study.

    Raises:
        ValueError, OSError: the first window cannot be read (for example because of wrong columns; no folder is
            created then); the folder cannot be used, as for :meth:`CorpusStudy.run`.
    """
    check_local(output_dir)
    total = len(texts) if isinstance(texts, Sized) else None
    read = windows(texts, scorer.settings["window"], reader)
    with (
        Folder.held(output_dir, scorer.settings, rank, world_size) as folder,
        tqdm(total=total, desc="texts", unit=" texts", smoothing=0, disable=not show_progress) as bar,
    ):
        run = Run(folder, scorer, read, max_errors, bar, rank, world_size)
        yield run
        run.finish()


# -- scoring the texts of a window


def _ignore(texts: int, failed: list[Failure]) -> None:
    """Ignore progress: the default for ``done``."""


class Scorer:
    """Scores texts with one model; a text that cannot be scored does not affect the others.

    Args:
        study: what to compute for each text, and how.
        window: number of rows in a window.

    Attributes:
        settings: the settings that the results depend on.
        has_scored: whether the model has scored any text; until then many failures are an error.
    """

    def __init__(self, study: CorpusStudy, window: int) -> None:
        self.study, self.model, self.plan = study, study.model, study.plan
        self.settings = study.settings(window)
        self.has_scored = False
        self._warned = False

    def part(
        self,
        window: Window,
        scored: Sequence[Scored] = (),
        failed: Sequence[Failure] = (),
        done: Callable[[int, list[Failure]], None] = _ignore,
    ) -> PartFiles:
        """Score a window, and return its part.

        Args:
            window: of the corpus.
            scored, failed: known results of some of its texts.
            done: as for :meth:`__call__`.

        Raises:
            RuntimeError: as for :meth:`__call__`.
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
        """Return a digest of the token ids of the first text of a window that can be encoded."""
        for item in window.items:
            for encoding in self.encoded([item])[0].values():
                return ids_digest(encoding.ids)
        return ""

    def __call__(
        self, items: Sequence[Item], done: Callable[[int, list[Failure]], None] = _ignore
    ) -> tuple[list[Scored], list[Failure]]:
        """Return the scored texts and the failures, both in the order of the rows.

        Args:
            items: the texts.
            done: called after every batch, with the number of its texts and its failures.

        Raises:
            RuntimeError: the model fails on all of the first texts, so that the texts are not the cause; or the device
                is lost.
        """
        encodings, failures = self.encoded(items)
        done(len(failures), failures)
        scored: list[Scored] = []
        kept, refused = list(encodings), 0
        for some in batches(list(encodings.values()), self.study.batch_size, self.model.pads):
            found, failed = self._of_batch({kept[i]: encodings[kept[i]] for i in some})
            scored += found
            failures += failed
            self.has_scored |= bool(found)
            refused += len(failed)
            if not self.has_scored and refused >= MOST_FAILURES:
                raise RuntimeError(
                    f"the model failed on the first {refused} texts, the last because of {failures[-1].reason}; "
                    "correct that and run again"
                )
            done(len(some), failed)
            give_back()
        return sorted(scored, key=lambda s: s.item.row), sorted(failures, key=lambda f: f.row)

    def encoded(self, items: Sequence[Item]) -> tuple[dict[Item, Encoding], list[Failure]]:
        """Return the encodings of the texts, and the failures."""
        encodings: dict[Item, Encoding] = {}
        failures: list[Failure] = []
        for item in items:
            try:
                encodings[item] = self.model.encode(item.text, item.pair, truncation=self.study.truncation)
            except Exception as error:  # a tokenizer may raise any exception
                failures.append(Failure.of(item.row, error, item))
        return encodings, failures

    def _of_batch(self, encodings: Mapping[Item, Encoding]) -> tuple[list[Scored], list[Failure]]:
        """Score a batch; if that fails, score its texts one by one, so that only the bad text fails."""
        try:
            return self._scored(encodings), []
        except Exception as error:  # a model may raise any exception
            _check_device(error)
            if len(encodings) == 1:
                return [], [Failure.of(item.row, error, item) for item in encodings]
        scored: list[Scored] = []
        failures: list[Failure] = []
        for item, encoding in encodings.items():
            found, failed = self._of_batch({item: encoding})
            scored += found
            failures += failed
        return scored, failures

    def _scored(self, encodings: Mapping[Item, Encoding]) -> list[Scored]:
        finder = self.study.amortised or self.study.erasures
        found = score(self.model, list(encodings.values()), self.plan, finder)
        solved = {} if self.study.amortised is None else self._solved(encodings)
        for each in (*found, *solved.values()):
            _check_finite(each)
        return [Scored(item, each, solved.get(item)) for item, each in zip(encodings, found)]

    def _solved(self, encodings: Mapping[Item, Encoding]) -> dict[Item, TextExplanation]:
        """Return the solver's explanations of the texts to check."""
        some = {item: encoding for item, encoding in encodings.items() if is_checked(item.row)}
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
                f"layer {row.layer!r} has {name} that are not finite: the model returns NaN under noise or erasures"
            )


def _check_device(error: Exception) -> None:
    """Raise the error if the device is lost, because every text would fail then."""
    lost = isinstance(error, getattr(torch, "AcceleratorError", ())) or "CUDA error" in str(error)
    if lost and not isinstance(error, torch.OutOfMemoryError):
        raise error


def is_checked(row: int) -> bool:
    """Return whether the solver checks a predicted row: one row in a hundred at random, more near the beginning.

    The choice depends on the row's number alone, so every run, process and engine checks the same rows.

    Examples::
        >>> [row for row in range(20) if is_checked(row)], sum(map(is_checked, range(10_000)))
        ([0, 1, 2, 3, 4, 5, 7, 8, 10, 11, 12, 16], 111)
    """
    digest = hashlib.sha256(f"check {row}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < max(
        CHECKED_SHARE, CHECKED_EARLY / (CHECKED_EARLY + row)
    )
