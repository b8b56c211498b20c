"""Study: compare attribution methods on one model and one set of texts."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from interp_plugin.comparison.costs import COSTS, Cost, StudyColumn, measured, seconds_per_pass
from interp_plugin.comparison.interface import Inputs, Method, Metric, Trial, chosen
from interp_plugin.comparison.journal import Cell, Entry, Journal, StudyState
from interp_plugin.comparison.methods import METHODS, quick
from interp_plugin.comparison.metrics import METRICS, rationale_tokens
from interp_plugin.comparison.metrics import QUICK as QUICK_METRICS
from interp_plugin.comparison.result import Failure, MethodInfo, StudyResult, StudyText
from interp_plugin.comparison.tables import CLASS, NEXT
from interp_plugin.data import Texts, in_memory
from interp_plugin.files import versions, weights_digest
from interp_plugin.method.perturbation import no_fastpath
from interp_plugin.method.problem import warn_of_training
from interp_plugin.text.explainer import TextExplainer
from interp_plugin.text.inputs import Layers, Text, class_number, for_each
from interp_plugin.text.models import Encoding, Label, TextModel, is_cut_already, plain_values, shown
from interp_plugin.text.scoring import target_name, with_next_tokens
from interp_plugin.text.states import Calibration, State

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PREDICTING = "where the next token is predicted"  # the states of a language model that are explained
QUICK: Literal["quick"] = "quick"
# errors that Captum and torch raise if a method does not support a model
_UNSUPPORTED = (ValueError, TypeError, AssertionError, RuntimeError)


@dataclass(frozen=True)
class Question:
    """What methods explain for each text.

    Attributes:
        name: "class", "next token", or the layer.
        state: the watched state; None: the class or next token.
    """

    name: str
    state: State | None


@dataclass(frozen=True)
class Example:
    """A text of a study.

    Attributes:
        encoding: the tokenised text, with its target for a language model; without one, the model's own prediction is
            explained.
        label: number of its true class; None: not known.
        target: number of the class to explain; None: the predicted class.
        rationale: the tokens that annotators marked as the reason, (T,), bool; None: not known.
    """

    encoding: Encoding
    label: int | None = None
    target: int | None = None
    rationale: Tensor | None = None

    def digest(self, about_class: bool) -> str:
        """Return a digest of everything that a method's scores and their evaluation depend on."""
        encoding = self.encoding
        facts = {
            "text": [encoding.text, encoding.pair],
            "tokens": [encoding.ids, encoding.offsets, dict(encoding.extra)],
            "rationale": None if self.rationale is None else self.rationale.tolist(),
            "target": self.target if about_class else None,
        }
        if encoding.target:
            facts["next"] = [encoding.target, encoding.target_positions, encoding.foils]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:20]


class Study:
    """Compare attribution methods on a model: every method explains every text, every metric evaluates the scores.

    For a classifier, methods explain the class of a text and the states of layers.  For a language model, they explain
    its next token, and the states at the positions that predict it: for a decoder the last token, which is never
    removed.

    Args:
        model: a Hugging Face classifier or language model, or a :class:`TextModel`; any text model if only layers are
            explained.
        tokenizer: the tokenizer of a Hugging Face model.
        methods: names in ``METHODS`` ("S*, LIME": * matches any characters), or :class:`Method` objects; None: all that
            support the model; "quick": four of them (``methods.quick``).
        metrics: names in ``METRICS``, or :class:`Metric` objects, in the same way; None: all that support the model;
            "quick": two for the class and two for states (``metrics.QUICK``).
        layers: the layers whose states are explained: "all", a label, or several, as in ``TextExplainer.explain``.
        explain_class: whether the class, or next token, is explained.
        with_special: whether special tokens are ranked and removed like other tokens.
        calibration: the unit of the states; None: the root mean square of each text's state.
        seed: seed for methods that draw random numbers.

    Raises:
        ValueError: there is nothing to explain, a layer or name is unknown, or the model has no classes.

    Examples::
        >>> from interp_plugin import huggingface
        >>> from interp_plugin.comparison import Study
        >>> model, tokenizer = huggingface.load(huggingface.default_model_path())
        >>> study = Study(model, tokenizer, ["saliency (L2)", "random"], ["comprehensiveness (mask)"])
        >>> result = study.run(["a good film", "not a bad film"], show_progress=False)
        >>> result.table("class", "comprehensiveness (mask)")["n"].tolist()
        [2, 2]

    Explain why a language model's next token is " Mary" rather than " John"::

        study.run(["When Mary and John left, John thanked"], target=" Mary", instead_of=" John")
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
        self._explainer = TextExplainer(model, tokenizer, calibration=calibration)
        self.model = self._explainer.model
        self.questions = tuple(self._questions(layers, explain_class))
        self.with_special = with_special
        self.calibration = calibration
        self.seed = seed
        # methods and metrics that the user did not name are left out if they do not support the model
        self._optional = {"method": methods in (None, QUICK), "metric": metrics in (None, QUICK)}
        requested = chosen(METHODS, quick(self.model) if methods == QUICK else methods)
        self.methods: tuple[Method, ...] = tuple(self._applicable("method", requested))
        measures = chosen(METRICS, QUICK_METRICS if metrics == QUICK else metrics)
        self.metrics: tuple[Metric, ...] = tuple(self._applicable("metric", measures))

    def run(
        self,
        texts: Text | Sequence[Text] | Texts,
        labels: Iterable[Any] | None = None,
        rationales: Iterable[Any] | None = None,
        target: Any = "predicted",
        output: str | os.PathLike[str] | None = None,
        *,
        instead_of: Any = None,
        truncation: bool = False,
        skip_invalid: bool = False,
        retry_failed: bool = False,
        keep_scores: bool = False,
        show_progress: bool | Literal["lines"] = True,
    ) -> StudyResult:
        """Run every method on every text and evaluate the scores with every metric.

        With ``output``, each trial is written to the disk before the next one begins.  A run that was killed continues
        from there; a run with more texts, methods or metrics computes only the missing results.
        Two methods with the same name, sign and source are considered the same method.

        Args:
            texts: one or more texts or pairs of texts; or the result of ``data.read_texts``, with its labels,
                rationales, and, for a language model, targets and what they are compared with.
            labels: the class of each text, by number or name; None where it is not known.
            rationales: for each text the tokens that annotators marked as the reason: character spans, or a mask
                of words or tokens; None where they are not known.
            target: the class to explain: "predicted", the class that the model predicts, or "label".  For a language
                model the next token or tokens, as in ``TextExplainer.explain``: one for all texts, or a list with one
                for each text, with a leading space if the token has one; "predicted" or None: the model's own.
            instead_of: for a language model, what the target is compared with, in the same form.
            output: folder of the journal (a checkpoint log), which need not exist; None: keep the results in
                memory only.
            truncation: truncate texts that are too long for the model; otherwise such a text is an error.
            skip_invalid: leave out texts that cannot be used (empty, too long, without the label to explain, with a
                rationale that does not fit), and treat labels that are not classes of the model as not known; the
                ``notes`` of the result count and name them.  Otherwise they are errors.
            retry_failed: run again what failed in an earlier run.
            keep_scores: keep the scores of all tokens in the result, in memory.
            show_progress: show a progress bar; "lines": print ten lines instead, for logs.

        Raises:
            ValueError: a method or metric fails on the first text, labels or rationales do not fit, or the folder
                holds another study, is in use or damaged.
            OSError: the disk is full; earlier results are safe.
        """
        warn_of_training(self.model.module, stacklevel=3)
        unused: tuple[str, ...] = ()
        if isinstance(texts, Texts):
            unused = tuple(self._not_used(texts))
            rationales = texts.rationales if rationales is None else rationales
            if self.model.task != "next token":
                labels = texts.labels if labels is None else labels
            elif isinstance(target, str) and target == "predicted" and (texts.targets or texts.foils):
                target = list(texts.targets or [None] * len(texts.texts))
                instead_of = list(texts.foils or ()) or instead_of
        some, notes = examples(
            self._explainer, texts, labels, rationales, target, truncation, skip_invalid, instead_of
        )
        is_given = not isinstance(target, str) or target not in ("predicted", "label")
        settings = self.settings()
        state = StudyState(
            some,
            [question.name for question in self.questions],
            [method.name for method in self.methods],
            [*(metric.name for metric in self.metrics), *(column.name for column in COSTS)],
            self._applies(),
            keep_scores,
        )
        with self._journal(output, settings) as journal:
            for start, entry in journal.entries() if journal else ():
                state.put(entry, start)
            if retry_failed:
                state.forget_failures()
            total = state.count_missing()
            lines = show_progress == "lines"
            with (
                _ProgressLines(total)
                if lines
                else tqdm(total=total, desc="trials", disable=not show_progress) as bar
            ):
                left_out = _Run(self, some, state, journal, bar.update).run_missing()
        result = self._result(some, state, {**settings, "target": "given" if is_given else target})
        return replace(result, left_out=left_out, notes=(*unused, *notes))

    def _not_used(self, texts: Texts) -> Iterator[str]:
        """Yield notes on the records of a file that the study does not use."""
        if texts.left_out:
            first = "; ".join(texts.left_out[:3])
            yield f"Records left out, as they have no text: {len(texts.left_out)} ({first})."
        if self.model.task != "next token" and (texts.targets or texts.foils):
            yield f"Targets of the data are not used: {self.model.name} predicts classes, not next tokens."

    def price(self, texts: Text | Sequence[Text] | Texts) -> str:
        """Describe the size of a run and its approximate duration."""
        whole = _listed(texts)
        return (
            f"{len(whole)} texts, {len(self.methods)} methods, {len(self.metrics)} metrics: about "
            f"{in_words(self.estimated_seconds(whole))}"
        )

    def estimated_seconds(self, texts: Text | Sequence[Text] | Texts) -> float:
        """Estimate the time of a run roughly, from typical numbers of passes and the measured time of one pass.

        Args:
            texts: the texts of the run; about a hundred of them are tokenised.

        Examples::
            >>> from interp_plugin import huggingface
            >>> model = huggingface.load(huggingface.default_model_path())
            >>> few, many = (Study(*model, methods, "quick") for methods in ("quick", None))
            >>> few.estimated_seconds(["a good film"]) < many.estimated_seconds(["a good film"])
            True
        """
        whole = _listed(texts)
        few = whole[:: max(1, len(whole) // 100)]
        some, _ = examples(self._explainer, few, truncation=True, skip_invalid=True)
        middle = sorted(some, key=lambda example: len(example.encoding.ids))[len(some) // 2]
        inputs = self._inputs(middle)
        tokens = int(inputs.players.sum())
        passes = 0.0
        for question in self.questions:
            metrics = [metric for metric in self.metrics if metric.can_judge(question.state)]
            for method in self.methods:
                if method.can_explain(question.state):
                    own = method.passes + method.passes_per_token * tokens
                    passes += own
                    for metric in metrics:
                        passes += metric.passes + metric.passes_per_token * tokens + metric.calls * own
        return len(whole) * passes * seconds_per_pass(inputs)

    def settings(self) -> dict[str, Any]:
        """Return what all results of the study depend on, besides texts, methods and metrics."""
        device = next(self.model.embedding.layer.parameters()).device
        return {
            "model": self.model.name,
            "weights": weights_digest(self.model.module),
            "device": device.type,
            "seed": self.seed,
            "special tokens": self.with_special,
            "calibration": None if self.calibration is None else self.calibration.digest,
            **({"states": PREDICTING} if self.model.task == "next token" else {}),
            "versions": versions(),
        }

    def _inputs(self, example: Example) -> Inputs:
        """Return a text as model inputs; for a language model with a target, by default the model's own next token."""
        encoding = example.encoding
        if self.model.task == "next token" and not encoding.target:
            [encoding], _ = with_next_tokens(self.model, [encoding])
        return Inputs(self.model, encoding, self.seed, self.with_special)

    def _questions(self, layers: Layers, explain_class: bool) -> Iterator[Question]:
        labels: Any = layers
        has_layers = isinstance(labels, (str, int)) or len(labels) > 0
        if not explain_class and not has_layers:
            raise ValueError(
                "explain_class is false and layers is empty: there is nothing to explain; give one of them"
            )
        if explain_class:
            if self.model.task not in ("sequence classes", "next token"):
                raise ValueError(
                    f"{self.model.name} does not classify texts, so there is no class to explain; give layers, and "
                    "explain_class=False"
                )
            yield Question(CLASS if self.model.task == "sequence classes" else NEXT, None)
        for state in self._explainer.states(layers) if has_layers else ():
            yield Question(question_name(state.label), state)

    def _applicable(self, kind: str, parts: Sequence[Any]) -> Iterator[Any]:
        """Yield the methods or metrics that apply to any of the questions.

        Raises:
            ValueError: one that the user named applies to none.
        """
        optional = self._optional[kind]
        for part in parts:
            applies = part.can_explain if kind == "method" else part.can_judge
            supports_task = part.task in (None, self.model.task)
            if supports_task and any(applies(question.state) for question in self.questions):
                yield part
            elif not optional and not supports_task:
                raise ValueError(
                    f"{kind} {part.name!r} is for models with the task {part.task!r}, but the task of "
                    f"{self.model.name} is {self.model.task!r}; leave it out"
                )
            elif not optional:
                about = "classes" if self.questions[0].state is None else "states"
                raise ValueError(
                    f"{kind} {part.name!r} does not apply to {about}, and the study is only about {about}; leave it "
                    "out, or change layers or explain_class"
                )
        for column in COSTS:
            if any(part.name == column.name for part in parts):
                raise ValueError(
                    f"{kind} {column.name!r} has the name of a cost column; give it another name"
                )

    def _applies(self) -> NDArray[np.bool_]:
        """Return which metric evaluates which method for which question, (Q, M, K); costs apply if the method does."""
        explains = np.array([[m.can_explain(q.state) for m in self.methods] for q in self.questions])
        evaluates = np.array(
            [[*(k.can_judge(q.state) for k in self.metrics), *(True for _ in COSTS)] for q in self.questions]
        )
        applies: NDArray[np.bool_] = explains[:, :, None] & evaluates[:, None, :]
        return applies

    def _journal(self, output: Any, settings: Mapping[str, Any]) -> Any:
        if output is None:
            return nullcontext()
        methods = {m.name: {"signed": m.signed, "source": m.source} for m in self.methods}
        metrics = {m.name: {"higher_is_better": m.higher_is_better, "source": m.source} for m in self.metrics}
        return Journal.held(output, settings, {"method": methods, "metric": metrics})

    def _result(
        self, chosen: Sequence[Example], state: StudyState, settings: Mapping[str, Any]
    ) -> StudyResult:
        names = [question.name for question in self.questions]
        methods = [method.name for method in self.methods]
        metrics = (StudyColumn(m.name, m.higher_is_better, m.source) for m in self.metrics)
        failures = (
            Failure(text, names[question], methods[method], metric, reason)
            for (text, question, method), reasons in sorted(state.errors.items())
            for metric, reason in reasons.items()
        )
        return StudyResult(
            texts=tuple(self._text(*pair) for pair in zip(chosen, state.targets.tolist(), strict=True)),
            questions=tuple(names),
            methods=tuple(MethodInfo(m.name, m.signed, m.source) for m in self.methods),
            metrics=(*metrics, *COSTS),
            cells=state.values,
            settings=settings,
            failures=tuple(failures),
            scores={(i, names[q], methods[m]): scores for (i, q, m), scores in state.scores.items()},
        )

    def _text(self, example: Example, target: int) -> StudyText:
        name, encoding = self.model.class_name, example.encoding
        known = target_name(self.model, encoding) if encoding.target else None
        return StudyText(
            text=encoding.text,
            pair=encoding.pair,
            tokens=len(encoding.ids),
            label=None if example.label is None else name(example.label),
            target=known if known or target < 0 else name(target),
            digest=example.digest(about_class=True),
        )


@dataclass
class _Run:
    """One run of a study over its texts.

    A method or metric that fails for a question before it has worked for any text is taken as not supporting the model:
    it raises an error at once, or is left out if the user did not request it by name.  Later failures are recorded for
    their text, and the run continues.

    Attributes:
        study: methods, metrics and questions.
        examples: the texts.
        state: which results are known and which are missing.
        journal: the checkpoint log of all trials; None: no log.
        progress: called with the number of texts that a trial completes.
    """

    study: Study
    examples: Sequence[Example]
    state: StudyState
    journal: Journal | None
    progress: Callable[[int], object]
    left_out: dict[str, str] = field(default_factory=dict)
    _warm: set[str] = field(default_factory=set)  # methods that have been called once
    _inputs: tuple[int, Inputs] | None = None

    def run_missing(self) -> dict[str, str]:
        """Compute all missing results; return what was left out -> why."""
        metrics = self.study.metrics
        for cell, missing in self.state.missing():
            entry = self._trial(cell, [metrics[i] for i in missing if i < len(metrics)])
            if entry is not None:
                at = -1 if self.journal is None else self.journal.append(entry)
                self.progress(self.state.put(entry, at))
        return self.left_out

    def _trial(self, cell: Cell, metrics: Sequence[Metric]) -> Entry | None:
        """Compute one method's scores for one question about one text, and the metrics' values; None if left out."""
        text, question = cell[0], self.study.questions[cell[1]]
        method, inputs = self.study.methods[cell[2]], self._inputs_of(text)
        target = self._target(text) if question.state is None else None
        state = None if question.state is None else inputs.at_target(question.state)
        entry = Entry(self.state.digests[text][cell[1]], question.name, method.name, target=target)
        values: dict[str, float | None] = {}
        errors: dict[str, str] = {}
        scores = self._saved_scores(cell)
        saved = scores is not None
        if scores is None:
            try:
                scores, cost = self._measured_scores(method, inputs, target, state)
            # a user's method may raise any exception, and a failure on one text must not end the run
            except Exception as error:
                if not self._is_of_this_text(cell, error):
                    return None
                return replace(entry, errors={"": _reason(error)})
            values = {column.name: value for column, value in zip(COSTS, vars(cost).values(), strict=True)}
        trial = Trial(inputs, target, state, method, scores, self.examples[text].rationale)
        for metric in metrics:
            try:
                values[metric.name] = _value(metric, trial)
            except Exception as error:  # as above
                if self._is_of_this_text(cell, error, metric):
                    errors[metric.name] = _reason(error)
        new = () if saved else tuple(scores.tolist())
        return replace(entry, values=values, errors=errors, scores=new) if values or errors else None

    def _measured_scores(
        self, method: Method, inputs: Inputs, target: int | None, state: State | None
    ) -> tuple[Tensor, Cost]:
        """Compute the method's scores and their cost, after a warm-up call that is not measured."""
        if method.name not in self._warm:
            method(inputs, target, state)
            self._warm.add(method.name)
        with measured(self.study.model) as cost:
            scores = method(inputs, target, state)
        return scores, cost

    def _saved_scores(self, cell: Cell) -> Tensor | None:
        """Read the scores from the journal if only metrics are missing; None if there are none."""
        at = int(self.state.scores_at[cell])
        if self.journal is None or at < 0:
            return None
        return torch.tensor(self.journal.entry_at(at).scores, dtype=torch.float32)

    def _is_of_this_text(self, cell: Cell, error: Exception, metric: Metric | None = None) -> bool:
        """Return whether a failure is recorded for this text; otherwise the method or metric is left out.

        Raises:
            ValueError: the method or metric does not support the model, and was requested by name.
        """
        text, question, method = cell
        number = None if metric is None else self.study.metrics.index(metric)
        if self.state.has_worked(question, method, number):
            return True
        name, question_name = self.study.methods[method].name, self.study.questions[question].name
        part = f"method {name!r}" if metric is None else f"metric {metric.name!r}"
        optional = self.study._optional["method" if metric is None else "metric"]
        unsupported = isinstance(error, _UNSUPPORTED) and not isinstance(error, torch.OutOfMemoryError)
        if optional and unsupported:
            self.progress(self.state.leave_out(question, method, number))
            self.left_out[f"{part}, {question_name}"] = _reason(error)
            return False
        of = "" if metric is None else f" of {name!r}"
        if unsupported:
            raise ValueError(
                f"{part}{of} cannot be used for {question_name!r} of text {text}, "
                f"{shown(self.examples[text].encoding.text)}: {error}"
            ) from error
        raise error

    def _inputs_of(self, text: int) -> Inputs:
        """Return the text as model inputs, shared by all its trials."""
        if self._inputs is None or self._inputs[0] != text:
            self._inputs = text, self.study._inputs(self.examples[text])
        return self._inputs[1]

    def _target(self, text: int) -> int:
        """Return the number of the class, or the id of the first next token, to explain."""
        own = self._inputs_of(text).encoding.target
        if own:
            self.state.targets[text] = own[0]
        elif self.state.targets[text] < 0:
            with torch.no_grad(), no_fastpath():
                scores = self.study.model(*self._inputs_of(text).arguments)
            self.state.targets[text] = int(scores[0].argmax())
        return int(self.state.targets[text])


def examples(
    explainer: TextExplainer,
    texts: Text | Sequence[Text] | Texts,
    labels: Iterable[Any] | None = None,
    rationales: Iterable[Any] | None = None,
    target: Any = "predicted",
    truncation: bool = False,
    skip_invalid: bool = False,
    instead_of: Any = None,
) -> tuple[list[Example], tuple[str, ...]]:
    """Tokenise and check the texts of a study, and return them with notes on what was left out.

    Args:
        explainer: the explainer of the model.
        texts: one or more texts or pairs.
        labels: the true class of each text, by number or name.
        rationales: for each text, character spans or a mask (``metrics.rationale_tokens``); None: not known.
        target, truncation, skip_invalid, instead_of: as in :meth:`Study.run`.

    Raises:
        ValueError: the number of labels or rationales differs from that of the texts; without ``skip_invalid`` a text
            cannot be used; with it, no text can be used.
    """
    whole = _listed(texts)
    model, by_label = explainer.model, isinstance(target, str) and target == "label"
    targets, foils = _next_tokens(model, target, instead_of, labels, len(whole))
    encodings: Sequence[Encoding | None] = [None] * len(whole)
    if not skip_invalid:
        encodings = explainer.encode(whole, truncation, target=targets, instead_of=foils)
    classes = _for_each("labels", labels, len(whole))
    reasons = _for_each("rationales", rationales, len(whole))
    found: list[Example] = []
    invalid: list[str] = []
    no_classes: list[str] = []
    for index, (text, encoding, label, reason) in enumerate(zip(whole, encodings, classes, reasons)):
        try:
            if encoding is None:
                [encoding] = explainer.encode(
                    [text], truncation, target=[targets[index]], instead_of=[foils[index]]
                )
            number = _class_of(model, label, no_classes if skip_invalid and not by_label else None)
            if by_label and number is None:
                raise ValueError("target is 'label', but it has no label; give it one, or leave the text out")
            rationale = None if reason is None else rationale_tokens(reason, encoding)
        except (ValueError, TypeError) as error:
            if not skip_invalid:
                raise ValueError(f"text {index}, {shown(str(text))}: {error}") from error
            reason = str(error).removeprefix("text 0 is ").rstrip(".")  # encoded alone, the text is number 0
            invalid.append(f"text {index}, {shown(str(text))}: {reason}")
            continue
        found.append(Example(encoding, number, number if by_label else None, rationale))
    if not found:
        raise ValueError(
            f"none of the {len(whole)} texts can be used: {invalid[0] if invalid else 'give at least one'}"
        )
    notes = []
    if invalid:
        notes.append(f"{len(invalid)} of {len(whole)} texts left out: {_first(invalid)}.")
    if no_classes:
        notes.append(
            f"{len(no_classes)} of {len(whole)} labels treated as not known, as the model has no such class: "
            f"{_first(list(dict.fromkeys(no_classes)))}."
        )
    return found, tuple(notes)


def _listed(texts: Text | Sequence[Text] | Texts) -> list[Text]:
    """Return the texts as a list, also if there is a single text."""
    found: Any = in_memory(list(texts.texts) if isinstance(texts, Texts) else texts)
    one = isinstance(found, (str, tuple)) or is_cut_already(found)
    return list(plain_values([found] if one else found))


def _next_tokens(
    model: TextModel, target: Any, instead_of: Any, labels: Any, count: int
) -> tuple[list[Any], list[Any]]:
    """Return each text's target for a language model, and what it is compared with; None for other models."""
    named = target if isinstance(target, str) else None
    if model.task == "next token":
        if named == "label" or labels is not None:
            raise ValueError(
                f"{model.name} predicts tokens, not classes, so labels do not apply; give the next tokens as targets, "
                "or no target for its own"
            )
        targets = for_each(None if named == "predicted" else target, count)
        return targets, for_each(instead_of, count)
    if named not in ("predicted", "label"):
        raise ValueError(f"target is {target!r}; choose 'predicted' or 'label'")
    if named == "label" and labels is None:
        raise ValueError("target is 'label', but there are no labels; give one for each text, or 'predicted'")
    if instead_of is not None:
        raise ValueError(f"instead_of is given, but {model.name} is not a language model; leave it out")
    return [None] * count, [None] * count


def _class_of(model: TextModel, label: Any, unknown: list[str] | None) -> int | None:
    """Return the class number of a label; add an unknown class to ``unknown``, or raise if ``unknown`` is None."""
    try:
        return None if label is None else class_number(model, label)
    except (ValueError, TypeError) as error:
        if unknown is None:
            raise
        unknown.append(str(error))
        return None


def _first(reasons: Sequence[str], most: int = 3) -> str:
    others = len(reasons) - most
    return "; ".join(reasons[:most]) + (f"; and {others} more" if others > 0 else "")


class _ProgressLines:
    """Print a line with the remaining time on standard error after each tenth of the work."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.tenths, self.start = total, 0, 0, time.monotonic()

    def __enter__(self) -> _ProgressLines:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def update(self, count: int) -> None:
        self.done += count
        tenths = 10 * self.done // self.total if self.total else 10
        if tenths > self.tenths:
            self.tenths = tenths
            passed = time.monotonic() - self.start
            left = passed / self.done * (self.total - self.done)
            print(
                f"{self.done} of {self.total} trials after {in_words(passed)}"
                + (f", about {in_words(left)} left" if left else ""),
                file=sys.stderr,
                flush=True,
            )


def in_words(seconds: float) -> str:
    """Format a duration in seconds, minutes or hours.

    Examples::
        >>> in_words(0.4), in_words(75), in_words(4000), in_words(200_000)
        ('1 s', '75 s', '67 min', '56 h')
    """
    if seconds < 120:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 7200 else f"{round(seconds / 3600)} h"


def _for_each(name: str, values: Iterable[Any] | None, count: int) -> list[Any]:
    if values is None:
        return [None] * count
    found = list(values)
    if len(found) != count:
        raise ValueError(
            f"{name} has {len(found)} entries for {count} texts; give one for each, None where it is not known"
        )
    return found


def question_name(label: Label) -> str:
    """Return the name of a layer's state in tables.

    Examples::
        >>> question_name(3), question_name("decoder.1"), question_name("output")
        ('layer 3', 'layer decoder.1', 'output')
    """
    return "output" if label == "output" else f"layer {label}"


def _value(metric: Metric, trial: Trial) -> float | None:
    value = metric(trial)
    if value is not None and not math.isfinite(value):
        raise ValueError(
            f"metric {metric.name!r} returned {value}; return a finite number, or None if there is none"
        )
    return None if value is None else float(value)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
