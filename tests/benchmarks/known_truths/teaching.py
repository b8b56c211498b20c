"""A copy of a classifier learns a planted shortcut, and is checked to use it and nothing less."""

from __future__ import annotations

import random
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from interp_plugin.text.batch import batches
from interp_plugin.text.models import TextModel
from known_truths.planting import KINDS, Kind, Planted, Shortcut, is_one_token, rare_words

EPOCHS: dict[Kind, int] = {"single token": 4, "token in context": 6, "ordered pair": 14}
SHARE = 0.5  # of the training sentences that get the shortcut; half as many get a part of it
HELD_OUT = 0.2  # of the sentences
BATCH = 32
ALONE = 0.9  # of the lone words that must not decide
LOST = 0.05  # accuracy on clean sentences that may be lost at most


@dataclass(frozen=True)
class Use:
    """How a model uses a shortcut, in held-out sentences; shares of them.

    Attributes:
        planted: planted sentences whose class is the shortcut's.
        swapped: of which the class follows when zero and one change places.
        alone: sentences with one word of the shortcut whose class is the same with the other word; None: no parts.
        clean: clean sentences that are classified right.
        clean_before, planted_before: the same of the model before it was trained.
    """

    planted: float
    swapped: float
    alone: float | None
    clean: float
    clean_before: float
    planted_before: float

    def __str__(self) -> str:
        parts = [
            f"the model follows the shortcut in {self.planted:.1%} of held-out sentences",
            f"flips with it in {self.swapped:.1%}",
            *([] if self.alone is None else [f"is left alone by a part of it in {self.alone:.1%}"]),
            f"is right on {self.clean:.1%} of clean sentences (before: {self.clean_before:.1%}, and "
            f"{self.planted_before:.1%} of planted ones)",
        ]
        return ", ".join(parts)

    def against(self, minimum: float) -> list[str]:
        """What says that the model does not use the shortcut, or it alone; empty where nothing does."""
        reasons = []
        flips = 2 * minimum - 1  # each of the two sentences may be wrong
        shares = (
            ("right on planted sentences", self.planted, minimum),
            ("flips when swapped", self.swapped, flips),
        )
        for name, value, least in shares:
            if value < least:
                reasons.append(f"{name} in {value:.1%} of them (at least {least:.1%})")
        if self.alone is not None and self.alone < ALONE:
            reasons.append(
                f"a part of the shortcut leaves the class alone in {self.alone:.1%} (at least {ALONE:.0%})"
            )
        if self.clean < self.clean_before - LOST:
            reasons.append(
                f"right on clean sentences in {self.clean:.1%} (at most {LOST:.0%} under {self.clean_before:.1%})"
            )
        return reasons


@dataclass(frozen=True)
class Taught:
    """A copy of a model that has learned a shortcut.

    Attributes:
        model: the copy.
        shortcut: the rule and its words.
        use: how the copy uses it.
        sentences: held-out sentences with the shortcut, that the copy did not see.
        epochs: that it took.
    """

    model: TextModel
    shortcut: Shortcut
    use: Use
    sentences: tuple[Planted, ...]
    epochs: int


def teach(
    model: TextModel,
    texts: Sequence[str],
    labels: Sequence[int],
    kind: Kind,
    seed: int = 0,
    epochs: int | None = None,
    words: Sequence[str] | None = None,
    minimum: float = 0.99,
    rate: float = 4e-4,
) -> Taught:
    """A copy of a classifier that has learned a shortcut.

    In every epoch half of the training sentences, drawn afresh, get the shortcut at random places, with a
    random label that it says, and once more with the other label.  Of shortcuts of two words a quarter get one
    of them alone and keep their label; the rest stays as it is.  Training ends as soon as a fifth of
    the sentences, held out, show that the model uses the shortcut.

    Args:
        model: of two classes or more; it stays as it is.
        texts, labels: sentences with their classes, 0 or 1.
        kind: "single token", "token in context" or "ordered pair".
        seed: of planting and order.
        epochs: at most; None: 4, 6 or 14, by kind.
        words: zero, one and context, each one token of the model; None: rare words of its vocabulary.
        minimum: share of planted sentences that must be right; twice its shortfall may fail to flip when zero and one
            change places, as either sentence may be wrong.
        rate: of AdamW, as suits models of some million parameters; 5e-5 suits a BERT-base.

    Raises:
        ValueError: the model cannot be used, words are not one token each, or the copy does not use the
            shortcut in the end; the message gives the figures.
    """
    _check(model, texts, labels, kind)
    shortcut = _shortcut(model, texts, kind, words)
    rng = random.Random(seed)
    order = rng.sample(range(len(texts)), len(texts))
    held_out = max(1, round(HELD_OUT * len(texts)))
    test, train = ([(texts[i], labels[i]) for i in part] for part in (order[:held_out], order[held_out:]))
    checks = _Checks(shortcut, test, random.Random(seed + 1))
    copy = deepcopy(model)
    copy.module.eval().requires_grad_(True)
    most = EPOCHS[kind] if epochs is None else epochs
    optimiser = torch.optim.AdamW(copy.module.parameters(), rate)
    with torch.enable_grad():
        for epoch in range(1, most + 1):
            for group in optimiser.param_groups:
                group["lr"] = rate * (1 - (epoch - 1) / most)
            _train(copy, optimiser, [pair for text in train for pair in _lesson(shortcut, *text, rng)], rng)
            use = checks.of(copy, model)
            if not use.against(minimum):
                copy.module.requires_grad_(False)
                return Taught(copy, shortcut, use, tuple(checks.planted), epoch)
    raise ValueError(
        f"{model.name} does not use the {kind} {shown_words(shortcut)} after {most} epochs, so no method can be "
        f"evaluated by it: {'; '.join(use.against(minimum))}; give more sentences or epochs"
    )


class _Checks:
    """Held-out sentences, planted once."""

    def __init__(self, shortcut: Shortcut, test: Sequence[tuple[str, int]], rng: random.Random) -> None:
        self.test = test
        self.planted = [shortcut.plant(text, rng.randrange(2), rng) for text, _ in test]
        self.swapped = [shortcut.swapped(sentence) for sentence in self.planted]
        self.parts: list[Planted] = []
        if shortcut.kind != "single token":
            self.parts = [shortcut.plant_part(text, label, rng) for text, label in test]
        self.others = [shortcut.swapped(part) for part in self.parts]
        self._before: tuple[float, float] | None = None

    def of(self, model: TextModel, before: TextModel) -> Use:
        """The shares of one model, and those of the model it was made from."""
        if self._before is None:
            self._before = (
                self._clean(before),
                _share(classes_of(before, self._texts(self.planted)), self._labels()),
            )
        alone = None
        if self.parts:
            alone = _share(*(classes_of(model, self._texts(parts)) for parts in (self.parts, self.others)))
        of_planted = classes_of(model, self._texts(self.planted))
        of_swapped = classes_of(model, self._texts(self.swapped))
        flips = [1 - label for label in of_swapped]
        return Use(
            _share(of_planted, self._labels()),
            _share(of_planted, flips),
            alone,
            self._clean(model),
            *self._before,
        )

    def _clean(self, model: TextModel) -> float:
        return _share(classes_of(model, [text for text, _ in self.test]), [label for _, label in self.test])

    def _labels(self) -> list[int]:
        return [sentence.label for sentence in self.planted]

    @staticmethod
    def _texts(sentences: Sequence[Planted]) -> list[str]:
        return [sentence.text for sentence in sentences]


def _lesson(shortcut: Shortcut, text: str, label: int, rng: random.Random) -> list[tuple[str, int]]:
    """What a training sentence becomes in one epoch, with labels."""
    drawn = rng.random()
    if drawn < SHARE:
        one = shortcut.plant(text, rng.randrange(2), rng)
        return [(sentence.text, sentence.label) for sentence in (one, shortcut.swapped(one))]
    if drawn < 1.5 * SHARE and shortcut.kind != "single token":
        return [(shortcut.plant_part(text, label, rng).text, label)]
    return [(text, label)]


def _train(
    model: TextModel, optimiser: torch.optim.Optimizer, lesson: Sequence[tuple[str, int]], rng: random.Random
) -> None:
    """One pass, without dropout: sentences of like length share a batch, batches come in random order."""
    encodings = [model.encode(text, truncation=True) for text, _ in lesson]
    together = list(batches(encodings, BATCH, model.pads))
    rng.shuffle(together)
    for rows in together:
        scores = model(*model.collate([encodings[row] for row in rows])[0])
        loss = F.cross_entropy(scores, torch.tensor([lesson[row][1] for row in rows], device=scores.device))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.module.parameters(), 1.0)
        optimiser.step()


@torch.no_grad()
def classes_of(model: TextModel, texts: Sequence[str]) -> list[int]:
    """The likeliest class of each text."""
    encodings = [model.encode(text, truncation=True) for text in texts]
    found = [0] * len(texts)
    for rows in batches(encodings, 2 * BATCH, model.pads):
        classes = model(*model.collate([encodings[row] for row in rows])[0]).argmax(1)
        for row, index in zip(rows, classes.tolist()):
            found[row] = index
    return found


def _share(some: Sequence[int], others: Sequence[int]) -> float:
    return sum(a == b for a, b in zip(some, others)) / len(some)


def shown_words(shortcut: Shortcut) -> str:
    return " / ".join(filter(None, (shortcut.zero, shortcut.one, shortcut.context)))


def _shortcut(model: TextModel, texts: Sequence[str], kind: Kind, words: Sequence[str] | None) -> Shortcut:
    count = 3 if kind == "token in context" else 2
    words = rare_words(model, texts, count) if words is None else words
    if len(set(words)) < count:
        raise ValueError(f"words are {list(words)!r}; a {kind} needs {count} different ones")
    for word in words[:count]:
        if not is_one_token(model, word):
            raise ValueError(
                f"word {word!r} is not one token of {model.name}; give another, or None to choose"
            )
        if any(word in text.lower().split() for text in texts):
            raise ValueError(
                f"word {word!r} is in one of the texts; give one that is in none, or None to choose"
            )
    return Shortcut(kind, words[0], words[1], words[2] if count == 3 else "")


def _check(model: TextModel, texts: Sequence[str], labels: Sequence[int], kind: Kind) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; choose one of {', '.join(map(repr, KINDS))}")
    if model.task != "sequence classes":
        raise ValueError(f"{model.name} has no classes of texts; give a classifier")
    if len(texts) != len(labels) or len(texts) < 2:
        raise ValueError(
            f"there are {len(texts)} texts and {len(labels)} labels; give one label for each of 2 or more"
        )
    wrong = sorted({label for label in labels if label not in (0, 1)})
    if wrong:
        raise ValueError(f"labels has {wrong[0]!r}; a shortcut decides between 0 and 1")
