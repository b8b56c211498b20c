"""CorpusStudy: explains every text of a corpus of any size, and goes on where it was stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from interp_plugin.corpus.agreement import HeldOut, warn_of_drift
from interp_plugin.corpus.engines import begun
from interp_plugin.corpus.reading import Reader, Source
from interp_plugin.corpus.result import CorpusResult
from interp_plugin.corpus.scoring import Scorer
from interp_plugin.data import Column
from interp_plugin.files import weights_digest
from interp_plugin.method.erasure import PASSES, Erasure, Side, Way, check_ways
from interp_plugin.method.perturbation import Site
from interp_plugin.method.problem import warn_of_training
from interp_plugin.method.solver import Solver
from interp_plugin.text.calibration import Calibration
from interp_plugin.text.explainer import TextExplainer
from interp_plugin.text.inputs import Layers
from interp_plugin.text.models import OUTPUT, Label, TextModel
from interp_plugin.text.scoring import ErasureFinder, Finder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
        """Refuse to work for a model or settings that it was not trained for."""
        ...


class CorpusStudy:
    """Information kept by the layers of a model over a corpus of any size, or the words that a class or layer rests on.

    The corpus is read as a stream: at no time is more than a window of it in memory.  Every window of ``window`` rows
    becomes one Parquet file in the output folder, whole or not at all; run again with the same folder, a study that
    was stopped, however that was, goes on after the windows that are whole and computes the others.

    Args:
        model, tokenizer, noise_layer: as of :class:`~interp_plugin.TextExplainer`.
        layers: "all", one label or several; they are kept in forward order.
        rate: lambda, of all texts and layers.
        calibration: the unit of distortion of each layer; None: each text is its own yardstick, and layers compare
            only roughly.
        solver, max_sigma, input_std: as of :meth:`~interp_plugin.TextExplainer.explain`.
        batch_size: texts at most in a batch.
        truncation: cut off what the model cannot take; otherwise too long a text is recorded as failed.
        amortised: an :class:`~interp_plugin.AmortisedEstimator` that predicts the numbers; the solver then checks only
            one text in a hundred (more near the beginning), and :meth:`CorpusResult.check` says how far the two are
            apart.  Its layers are those of "all", and its calibration the one of None.
        score, side, ways, passes: as of :meth:`~interp_plugin.TextExplainer.explain`: "kept" learns noise, "erased"
            learns erasures, of the predicted class where the layer is "output".

    Raises:
        ValueError: as of :class:`~interp_plugin.TextExplainer`; an estimator that was trained for another model or
            other settings, or with score="erased".

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
                "amortised is a head, which predicts sigma, and score='erased' asks for erasures; leave one of the two "
                "out"
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
        """Score what is not scored yet, and return the whole study.

        Args:
            texts: texts, pairs of texts, mappings, a DataFrame or Series, or what ``data.records(path)`` returns; any
                iterable, read once and in the same order at every run.  A run with the first rows of a corpus is
                extended by one with more.
            output_dir: a folder for the parts; made where it is not there.
            max_errors: more texts than this that fail stop the run; None: however many.  Those of finished windows
                count.
            window: rows of the corpus in a part: a killed run loses no more, and texts are sorted by length within it.
            show_progress: a bar with the rate and the time left.
            rank, world_size: this process and how many share the corpus; each takes every ``world_size``-th window.
            text_column, pair_column, tag_column: of rows that have columns.  Text: None is the usual name, or the only
                column of words.  Tag: one string for the text, or one for each word between spaces; see
                :meth:`CorpusResult.word_classes`.

        Returns:
            The study; with several processes what is there so far, so one of them must load it at the end.

        Raises:
            ValueError: the folder holds a study with other settings or of other texts, or another process writes to
                it; it is the URI of an object store; too many texts failed; there are no texts at all; no row has a
                column that was named, or the column of texts cannot be told.
            TypeError: texts is one string or path.
            OSError: the folder cannot be written to, or the disk is full; finished parts stay.
            RuntimeError: the model fails on all of the first texts, so that it is not the texts.
        """
        _check_positive("window", window)
        _check_positive("world_size", world_size)
        if rank not in range(world_size):
            raise ValueError(f"rank is {rank}, and world_size {world_size}; give 0 to {world_size - 1}")
        warn_of_training(self.model.module, stacklevel=3)
        reader, scorer = Reader(text_column, pair_column, tag_column), self.scorer(window)
        with begun(texts, reader, scorer, output_dir, max_errors, show_progress, rank, world_size) as (
            run,
            read,
        ):
            for each in read:
                if not run.is_done(each, mine=each.number % world_size == rank):
                    run.score(each)
        if world_size > 1 and not run.folder.windows():  # the others have not finished any yet
            return CorpusResult(run.folder.path, (), scorer.settings)
        result = CorpusResult.load(output_dir, partial=world_size > 1)
        if self.amortised is not None and world_size == 1:
            warn_of_drift(result.check())
        return result

    def settings(self, window: int) -> dict[str, Any]:
        """What the numbers of a part depend on, ready for JSON."""
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

    def scorer(self, window: int) -> Scorer:
        """A scorer of windows of so many rows."""
        finder = self.amortised or self.erasures
        return Scorer(self.model, self.plan, self.settings(window), self.batch_size, self.truncation, finder)


def _check_positive(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}; give a positive number")
