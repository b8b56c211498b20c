"""Shortcuts planted in real sentences: a model that is known to use them, and which methods point at them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from interp_plugin.comparison.interface import Inputs, Method
from interp_plugin.text.models import TextModel
from known_truths.evaluation import Evaluation, Measure, Question, evaluate
from known_truths.planting import Kind, Planted, Shortcut
from known_truths.teaching import Taught, Use, classes_of, shown_words, teach


@dataclass(frozen=True)
class PlantedResult:
    """How well methods point at a planted shortcut.

    Attributes:
        shortcut, use: the rule, and how the model uses it.
        sentences: that were explained; the class asked about is the shortcut's.
        evaluation: per method and sentence "precision@k" of the k tokens that decide, "ranks first" (whether
            the first is one of them) and "mean rank" (how many one has to take to have them all).
    """

    shortcut: Shortcut
    use: Use
    sentences: tuple[Planted, ...]
    evaluation: Evaluation = field(repr=False)


def planted(
    model: TextModel,
    texts: Sequence[str],
    labels: Sequence[int],
    kind: Kind,
    methods: Sequence[Method],
    seed: int = 0,
    epochs: int | None = None,
    words: Sequence[str] | None = None,
    minimum: float = 0.99,
    evaluated: int = 200,
) -> PlantedResult:
    """Teach a copy of a classifier a shortcut, make sure that it uses it, and see which methods find it.

    After Bastings et al. (2022), "Will You Find These Shortcuts?": what decides is known where the model can be
    shown to follow the shortcut and nothing else.

    Args:
        model, texts, labels, kind, seed, epochs, words, minimum: of :func:`teach`.
        methods: to be evaluated; asked about the class that the shortcut says.
        evaluated: sentences to explain, at most.

    Raises:
        ValueError: as :func:`teach` does.
    """
    return find(teach(model, texts, labels, kind, seed, epochs, words, minimum), methods, evaluated)


def find(taught: Taught, methods: Sequence[Method], evaluated: int = 200) -> PlantedResult:
    """Which methods point at the shortcut; see :func:`planted`.

    Args:
        taught: from :func:`teach`.
        methods: to be evaluated.
        evaluated: sentences to explain, at most; those that the model gets wrong are left out.
    """
    right = [classes_of(taught.model, [p.text])[0] == p.label for p in taught.sentences[:evaluated]]
    sentences = [sentence for sentence, is_right in zip(taught.sentences, right) if is_right]
    questions = []
    for index, sentence in enumerate(sentences):
        inputs = Inputs(taught.model, taught.model.encode(sentence.text), seed=index)
        questions.append(Question(inputs, sentence.label, None, sentence.decides(inputs.encoding)))
    measures = [
        Measure("precision@k", precision, True),
        Measure("ranks first", first, True),
        Measure("mean rank", needed_rank, False),
    ]
    note = f"Words: {shown_words(taught.shortcut)}.  {taught.use}."
    evaluation = evaluate(f"planted {taught.shortcut.kind}", questions, methods, measures, [note])
    return PlantedResult(taught.shortcut, taught.use, tuple(sentences), evaluation)


def precision(scores: Tensor, truth: Tensor) -> float:
    """Share of the k highest scores that are on one of the k tokens that decide.

    Examples::
        >>> precision(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([True, True, False]))
        0.5
    """
    truth = truth.bool()
    return float(truth[_order(scores)[: int(truth.sum())]].float().mean())


def first(scores: Tensor, truth: Tensor) -> float:
    """1 where the highest score is on a token that decides, else 0."""
    return float(truth[_order(scores)[0]])


def needed_rank(scores: Tensor, truth: Tensor) -> float:
    """How many tokens, highest scores first, one has to take to have all that decide.

    Examples::
        >>> needed_rank(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([True, True, False]))
        3.0
    """
    return float(truth.bool()[_order(scores)].nonzero().max()) + 1


def _order(scores: Tensor) -> Tensor:
    """Highest first; ties from left to right."""
    return torch.sort(scores, descending=True, stable=True).indices
