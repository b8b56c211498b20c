"""Study: attribution methods side by side on one model and one set of texts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from interp_plugin.comparison.asked import Asked, Target, asked
from interp_plugin.comparison.findings import CLASS
from interp_plugin.comparison.journal import Journal
from interp_plugin.comparison.judged import Method, Metric
from interp_plugin.comparison.result import Contestant, Failure, StudyResult, StudyText
from interp_plugin.comparison.running import COSTS, Question, Running
from interp_plugin.comparison.sheet import Sheet
from interp_plugin.fingerprint import versions, weights_digest
from interp_plugin.method.problem import warn_of_training
from interp_plugin.rendering.study import StudyColumn
from interp_plugin.text.calibration import Calibration
from interp_plugin.text.explainer import Layers, Text, TextExplainer
from interp_plugin.text.models import Label, TextModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Study:
    """Compares attribution methods on a model: every method answers every question about every text.

    The questions are why the model gives a text its class, and what the states of layers hold of it.

    Args:
        model: a classifier of Hugging Face, or a :class:`TextModel`; any model of text where only
            layers are asked about.
        tokenizer: the model's, for a model of Hugging Face.
        methods: names out of ``METHODS``, or :class:`Method` objects; None: all that suit the model.
        metrics: names out of ``METRICS``, or :class:`Metric` objects; None: all that suit the model.
        layers: whose states are asked about: "all", a label, or several, as in ``TextExplainer.explain``.
        explain_class: whether the class is asked about.
        with_special: whether special tokens are ranked and removed like others.
        calibration: the unit of the states; None: each text is its own yardstick.
        seed: of methods that draw.

    Raises:
        ValueError: nothing to ask, a layer or name that is not there, a model without classes.

    Examples::
        >>> from interp_plugin import huggingface
        >>> from interp_plugin.comparison import Study
        >>> model, tokenizer = huggingface.load(huggingface.default_model_path())
        >>> study = Study(model, tokenizer, ["saliency (L2)", "random"], ["comprehensiveness (mask)"])
        >>> result = study.run(["a good film", "not a bad film"], show_progress=False)
        >>> result.table("class", "comprehensiveness (mask)")["n"].tolist()
        [2, 2]
    """

    def __init__(
        self,
        model: PreTrainedModel | TextModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        methods: Iterable[str | Method] | str | Method | None = None,
        metrics: Iterable[str | Metric] | str | Metric | None = None,
        layers: Layers = (),
        explain_class: bool = True,
        with_special: bool = False,
        calibration: Calibration | None = None,
        seed: int = 0,
    ) -> None:
        from interp_plugin.comparison import methods as known_methods
        from interp_plugin.comparison import metrics as known_metrics

        self._explainer = TextExplainer(model, tokenizer, calibration=calibration)
        self.model = self._explainer.model
        self.questions = tuple(self._questions(layers, explain_class))
        self.with_special = with_special
        self.calibration = calibration
        self.seed = seed
        self._all_methods, self._all_metrics = methods is None, metrics is None
        some = known_methods.METHODS.values() if methods is None else known_methods.chosen(methods)
        self.methods = tuple(self._suited("method", list(some), methods is None))
        metrics = [metrics] if isinstance(metrics, (str, Metric)) else metrics
        judges = known_metrics.METRICS.values() if metrics is None else known_metrics.chosen(metrics)
        self.metrics = tuple(self._suited("metric", list(judges), metrics is None))

    def run(
        self,
        texts: Text | Sequence[Text],
        labels: Iterable[Any] | None = None,
        rationales: Iterable[Any] | None = None,
        target: Target = "predicted",
        output: str | os.PathLike[str] | None = None,
        *,
        truncation: bool = False,
        retry_failed: bool = False,
        keep_scores: bool = False,
        show_progress: bool = True,
    ) -> StudyResult:
        """Ask every method everything, and judge the answers.

        With ``output`` each trial is on the disk before the next begins.  A run that was killed goes on
        from there; so does one with further texts, methods or metrics, which computes only what is missing.
        Two methods of the same name, sign and source are taken for the same one.

        Args:
            texts: one or more texts, or pairs of texts.
            labels: the class of each, by number or name; None where it is not known.
            rationales: of each text, what people hold to be the reason: spans of characters, or a mask of words or
                tokens; None where it is not known.
            target: the class to explain: the one that the model predicts, or the label.
            output: folder of the journal, which need not be there; None keeps the results in memory only.
            truncation: cut off what the model cannot take; otherwise too long a text is an error.
            retry_failed: try once more what failed in an earlier run.
            keep_scores: keep the scores of all tokens in the result, which grows with them.
            show_progress: a progress bar.

        Raises:
            ValueError: a method or metric that cannot be asked about the first text, labels or rationales that do
                not fit, a folder that holds another study, is in use or damaged.
            OSError: the disk is full; what was done is safe.
        """
        warn_of_training(self.model.module, stacklevel=3)
        chosen = asked(self._explainer, texts, labels, rationales, target, truncation)
        settings = self.settings()
        columns = (*self.metrics, *COSTS)
        sheet = Sheet(
            chosen,
            [question.name for question in self.questions],
            [method.name for method in self.methods],
            [column.name for column in columns],
            self._applies(),
            keep_scores,
        )
        with self._journal(output, settings) as journal:
            for start, entry in journal.entries() if journal else ():
                sheet.put(entry, start)
            if retry_failed:
                sheet.forget_failures()
            with tqdm(total=sheet.count_missing(), desc="trials", disable=not show_progress) as bar:
                running = Running(
                    self.model,
                    chosen,
                    self.questions,
                    self.methods,
                    self.metrics,
                    self.seed,
                    self.with_special,
                    sheet,
                    journal,
                    optional_methods=self._all_methods,
                    optional_metrics=self._all_metrics,
                    progress=bar.update,
                )
                running.go()
        return self._result(chosen, sheet, settings, target, running.left_out)

    def settings(self) -> dict[str, Any]:
        """What all numbers of the study depend on, besides texts, methods and metrics."""
        device = next(self.model.embedding.layer.parameters()).device
        return {
            "model": self.model.name,
            "weights": weights_digest(self.model.module),
            "device": device.type,
            "seed": self.seed,
            "special tokens": self.with_special,
            "calibration": None if self.calibration is None else self.calibration.digest,
            "versions": versions(),
        }

    def _questions(self, layers: Layers, explain_class: bool) -> Iterator[Question]:
        labels: Any = layers
        wanted = isinstance(labels, (str, int)) or len(labels) > 0
        if not explain_class and not wanted:
            raise ValueError(
                "explain_class is false and layers is empty: there is nothing to ask; give one of them"
            )
        if explain_class:
            if self.model.task != "sequence classes":
                raise ValueError(
                    f"{self.model.name} has no classes of texts to explain; give layers, and explain_class=False"
                )
            yield Question(CLASS, None)
        for state in self._explainer.states(layers) if wanted else ():
            yield Question(question_name(state.label), state)

    def _suited(self, kind: str, parts: Sequence[Any], optional: bool) -> Iterator[Any]:
        """Methods or metrics that apply to any of the questions."""
        for part in parts:
            applies = part.can_explain if kind == "method" else part.can_judge
            if any(applies(question.state) for question in self.questions):
                yield part
            elif not optional:
                about = "a class" if self.questions[0].state is None else "a state"
                raise ValueError(
                    f"{kind} {part.name!r} is not about {about}, and that is all that is asked; leave it out, or ask "
                    "about the other with layers or explain_class"
                )
        for column in COSTS:
            if any(part.name == column.name for part in parts):
                raise ValueError(f"{kind} {column.name!r} has the name of a cost; give it another one")

    def _applies(self) -> NDArray[np.bool_]:
        """(Q, M, K); costs apply wherever the method does."""
        explains = np.array([[m.can_explain(q.state) for m in self.methods] for q in self.questions])
        judges = np.array(
            [[*(k.can_judge(q.state) for k in self.metrics), *(True for _ in COSTS)] for q in self.questions]
        )
        applies: NDArray[np.bool_] = explains[:, :, None] & judges[:, None, :]
        return applies

    def _journal(self, output: Any, settings: Mapping[str, Any]) -> Any:
        if output is None:
            return nullcontext()
        methods = {m.name: {"signed": m.signed, "source": m.source} for m in self.methods}
        metrics = {m.name: {"higher_is_better": m.higher_is_better, "source": m.source} for m in self.metrics}
        return Journal(output, settings, {"method": methods, "metric": metrics})

    def _result(
        self,
        chosen: Sequence[Asked],
        sheet: Sheet,
        settings: Mapping[str, Any],
        target: Target,
        left_out: Mapping[str, str],
    ) -> StudyResult:
        names = [question.name for question in self.questions]
        methods = [method.name for method in self.methods]
        metrics = (*(StudyColumn(m.name, m.higher_is_better, m.source) for m in self.metrics), *COSTS)
        failures = (
            Failure(text, names[question], methods[method], metric, reason)
            for (text, question, method), reasons in sorted(sheet.errors.items())
            for metric, reason in reasons.items()
        )
        return StudyResult(
            texts=tuple(self._text(*pair) for pair in zip(chosen, sheet.targets.tolist(), strict=True)),
            questions=tuple(names),
            methods=tuple(Contestant(m.name, m.signed, m.source) for m in self.methods),
            metrics=metrics,
            cells=sheet.values,
            settings={**settings, "target": target},
            failures=tuple(failures),
            left_out=dict(left_out),
            scores={(i, names[q], methods[m]): scores for (i, q, m), scores in sheet.scores.items()},
        )

    def _text(self, one: Asked, target: int) -> StudyText:
        name = self.model.class_name
        return StudyText(
            text=one.encoding.text,
            pair=one.encoding.pair,
            tokens=len(one.encoding.ids),
            label=None if one.label is None else name(one.label),
            target=None if target < 0 else name(target),
            digest=one.digest(about_class=True),
        )


def question_name(label: Label) -> str:
    """What a layer's state is called in tables.

    Examples::
        >>> question_name(3), question_name("decoder.1"), question_name("output")
        ('layer 3', 'layer decoder.1', 'output')
    """
    return "output" if label == "output" else f"layer {label}"
