"""CorpusStudy: what each layer of a model keeps of a corpus of any size, resumed where it was stopped."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Mapping, Sized
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from tqdm.auto import tqdm

from interp_plugin import data
from interp_plugin.calibration import Calibration
from interp_plugin.corpus.parts import About, Folder, Part
from interp_plugin.corpus.result import CorpusResult
from interp_plugin.corpus.scorer import Scored, Scorer
from interp_plugin.corpus.stream import Failure, Reader, Source, Window, windows
from interp_plugin.problem import warn_of_training
from interp_plugin.scoring import warn_of_deaf_states
from interp_plugin.solver import Solver
from interp_plugin.state import Site
from interp_plugin.text import Layers, TextExplainer
from interp_plugin.tokens import OUTPUT, TextModel, shown

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class CorpusStudy:
    """Information kept by the layers of a model over a corpus of any size.

    The corpus is streamed: at no time is more than a window of it in memory.  Every window of ``window`` rows becomes
    one Parquet file in the output folder, whole or not at all; run again with the same folder, a study that was
    stopped, however that was, goes on after the windows that are whole and computes the others.

    Args:
        model, tokenizer, noise_layer: as of :class:`~interp_plugin.TextExplainer`.
        layers: "all", one label or several; they are kept in forward order.
        rate: lambda, of all texts and layers; not looked at where a distortion is given.
        distortion: D that every text and layer must have: for each the rate is found at which it does, and
            recorded.  It takes about three times the passes, and texts are not batched.  None: equal rates.
        calibration: the unit of distortion of each layer; None: each text is its own yardstick, and layers compare
            only roughly.
        solver, max_sigma: as of :meth:`~interp_plugin.TextExplainer.explain`.
        batch_size: texts at most in a batch.
        truncation: cut off what the model cannot take; otherwise too long a text is recorded as failed.

    Raises:
        ValueError: as of :class:`~interp_plugin.TextExplainer`; a distortion that is not positive.

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
        distortion: float | None = None,
        calibration: Calibration | None = None,
        solver: Solver | None = None,
        noise_layer: Site | str | None = None,
        max_sigma: float | None = None,
        batch_size: int = 16,
        truncation: bool = False,
    ) -> None:
        if distortion is not None and not (math.isfinite(distortion) and distortion > 0):
            raise ValueError(
                f"distortion is {distortion}; give a positive number, such as 0.05 (half of the usual rate), or None"
            )
        _check_positive("batch_size", batch_size)
        explainer = TextExplainer(model, tokenizer, noise_layer, calibration)
        if distortion is not None:
            rate = 2 * distortion
        plan = explainer.plan(layers, rate=rate, max_sigma=max_sigma, solver=solver)
        order = [*explainer.model.layers, OUTPUT]
        self.model = explainer.model
        states = sorted(plan.states, key=lambda state: order.index(state.label))
        self.plan = replace(plan, states=tuple(states))
        self.distortion, self.batch_size, self.truncation = distortion, batch_size, truncation
        self._settings = asdict(explainer.settings(plan))

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
        text_column: data.Column | None = None,
        pair_column: data.Column | None = None,
        tag_column: data.Column | None = None,
    ) -> CorpusResult:
        """Score what is not scored yet, and look at the whole.

        Args:
            texts: texts, pairs of texts, mappings, or what ``data.records(path)`` gives; any iterable, read once and
                in the same order at every run.
            output_dir: a folder for the parts; made where it is not there.
            max_errors: more texts than this that fail stop the run; None: however many.  Those of finished windows
                count.
            window: rows of the corpus in a part: what a killed run loses at most, and what is sorted by length.
            show_progress: a bar with the rate and the time left.
            rank, world_size: this process and how many share the corpus; each takes every ``world_size``-th window.
            text_column, pair_column, tag_column: of rows that have columns.  Text: None is the usual name, or the only
                column of words.  Tag: one string for the text, or one for each word between spaces; see
                :meth:`CorpusResult.word_classes`.

        Returns:
            The study; with several processes what is there so far, so that one of them must load it at the end.

        Raises:
            ValueError: the folder holds a study with other settings or of other texts; too many texts failed; there
                are no texts at all.
            OSError: the folder cannot be written to, or the disk is full; finished parts stay.
            RuntimeError: the first texts all fail, so that it is not the texts.
        """
        _check_positive("window", window)
        _check_positive("world_size", world_size)
        if rank not in range(world_size):
            raise ValueError(f"rank is {rank}, and world_size {world_size}; give 0 to {world_size - 1}")
        warn_of_training(self.model.module, stacklevel=3)
        run = _Run(self, Folder(output_dir), window, max_errors)
        total = len(texts) if isinstance(texts, Sized) else None
        reader = Reader(text_column, pair_column, tag_column)
        with tqdm(total=total, desc="texts", unit=" texts", smoothing=0, disable=not show_progress) as bar:
            for each in windows(texts, window, reader):
                run.visit(each, each.number % world_size == rank, bar)
        run.finish()
        return CorpusResult.load(output_dir, partial=world_size > 1)

    def settings(self, window: int) -> dict[str, Any]:
        """What the numbers of a part depend on, as JSON has it."""
        states, config = self.plan.states, getattr(self.model.module, "config", None)
        settings = {
            **self._settings,
            "rate": None if self.distortion is not None else self.plan.rate,
            "distortion": self.distortion,
            "layers": [state.label for state in states],
            "max_sigma": self.plan.max_sigma,
            "truncation": self.truncation,
            "window": window,
            "revision": getattr(config, "_commit_hash", None),
            "weights": weights_digest(self.model.module),
        }
        plain: dict[str, Any] = json.loads(json.dumps(settings))
        return plain

    def scorer(self) -> Scorer:
        """What scores the texts of a window."""
        return Scorer(self.model, self.plan, self.distortion, self.batch_size, self.truncation)


class _Run:
    """One process's way through the corpus."""

    def __init__(self, study: CorpusStudy, folder: Folder, size: int, max_errors: int | None) -> None:
        self.folder, self.size, self.max_errors = folder, size, max_errors
        self.settings, self.scorer = study.settings(size), study.scorer()
        self.failures = 0
        self.windows = 0
        self.warned = False
        folder.prepare()
        first = next((part for number in folder.windows() if (part := folder.part(number))), None)
        if first is not None:
            self._check_settings(first)

    def visit(self, window: Window, mine: bool, bar: tqdm[Any]) -> None:
        """Score a window unless that is done, or another's to do."""
        self.windows += 1
        part = self.folder.part(window.number) if mine else None
        if part is not None:
            self._check_settings(part)
            self._check_texts(part, window)
            self._count(part.failures)
        if part is not None or not mine:
            # or the rate would count what cost nothing; a bar that is switched off has no beginning
            bar.initial = getattr(bar, "initial", 0) + len(window.entries)
            bar.update(len(window.entries))
            return
        self._count(window.failures)
        bar.update(len(window.failures))

        def done(texts: int, failed: list[Failure]) -> None:
            bar.update(texts)
            self._count(failed)

        start = time.perf_counter()
        scored, failed = self.scorer(window.items, done)
        seconds = time.perf_counter() - start
        failures = sorted([*window.failures, *failed], key=lambda failure: failure.row)
        self.folder.write(self._about(window, len(scored), len(failures), seconds), scored, failures)
        self._warn(scored)

    def finish(self) -> None:
        """Check that the corpus had any rows, and no fewer than before."""
        if not self.windows:
            raise ValueError("there are no texts: the corpus must hold at least one")
        beyond = [number for number in self.folder.windows() if number >= self.windows]
        if beyond:
            raise ValueError(
                f"{str(self.folder.path)!r} has {len(beyond)} parts of rows from {beyond[0] * self.size} on, where "
                "these texts end before: it holds a study of other texts; give another folder"
            )

    def _about(self, window: Window, texts: int, failures: int, seconds: float) -> About:
        return About(
            window=window.number,
            first_row=window.number * self.size,
            rows=len(window.entries),
            last=window.last,
            digest=window.digest,
            ids=self._ids(window),
            texts=texts,
            failures=failures,
            settings=self.settings,
            seconds=seconds,
        )

    def _ids(self, window: Window) -> str:
        """A name for the tokens of the first text that has any."""
        for item in window.items:
            for encoding in self.scorer.encoded([item])[0].values():
                return hashlib.sha256(json.dumps(encoding.ids).encode()).hexdigest()[:16]
        return ""

    def _check_settings(self, part: Part) -> None:
        found = [
            f"{name} is {ours!r} now and {theirs!r} there"
            for name, ours, theirs in differences(self.settings, part.about.settings)
        ]
        if found:
            raise ValueError(
                f"{str(self.folder.path)!r} holds a study with other settings: {', '.join(found)}; give the same "
                "settings, or another folder"
            )

    def _check_texts(self, part: Part, window: Window) -> None:
        about, rows = (
            part.about,
            f"rows {part.about.first_row} to {part.about.first_row + part.about.rows - 1}",
        )
        if about.digest != window.digest:
            raise ValueError(
                f"{str(self.folder.path)!r} holds a study of other texts: {rows} differ, or their tags do; give the "
                "same texts in the same order, or another folder"
            )
        if about.last != window.last:
            raise ValueError(
                f"{str(self.folder.path)!r} holds a study of other texts: its corpus "
                f"{'ends' if about.last else 'goes on'} after {rows}; give the same texts, or another folder"
            )
        if about.ids != self._ids(window):
            raise ValueError(
                f"{str(self.folder.path)!r} holds a study with another tokenizer: {rows} have other tokens; give the "
                "same tokenizer, or another folder"
            )

    def _count(self, failures: list[Failure]) -> None:
        self.failures += len(failures)
        if self.max_errors is not None and self.failures > self.max_errors:
            last = failures[-1]
            raise ValueError(
                f"{self.failures} texts failed and max_errors is {self.max_errors}; the last is row {last.row}, "
                f"{shown(last.beginning)}: {last.reason}; mend the texts, or allow more"
            )

    def _warn(self, scored: list[Scored]) -> None:
        deaf = [each.found for each in scored if any(row.distortion == 0 for row in each.found.rows)]
        if deaf and not self.warned:
            self.warned = True
            warn_of_deaf_states(deaf)


def differences(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], before: str = ""
) -> list[tuple[str, Any, Any]]:
    """Names and values of the settings that differ.

    Examples::
        >>> differences({"rate": 0.1, "versions": {"torch": "2"}}, {"rate": 0.1, "versions": {"torch": "3"}})
        [('versions.torch', '2', '3')]
    """
    found: list[tuple[str, Any, Any]] = []
    for name in dict.fromkeys([*ours, *theirs]):
        here, there = ours.get(name), theirs.get(name)
        if isinstance(here, Mapping) and isinstance(there, Mapping):
            found += differences(here, there, before=f"{before}{name}.")
        elif here != there:
            found.append((before + name, here, there))
    return found


def weights_digest(module: nn.Module) -> str:
    """A name for the very weights of a model: equal for equal parameters and buffers of equal types.

    Examples::
        >>> layer = nn.Linear(2, 1)
        >>> before = weights_digest(layer)
        >>> _ = nn.init.zeros_(layer.weight)
        >>> before == weights_digest(layer)
        False
    """
    found = hashlib.sha256()
    for name, value in module.state_dict().items():
        if isinstance(value, torch.Tensor):
            found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]


def _check_positive(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}; give a positive number")
