"""What a study is asked about each text: which class, and which tokens people hold to be the reason."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from interp_plugin.text.explainer import Text, TextExplainer
from interp_plugin.text.models import Encoding, TextModel, shown

Target = Literal["predicted", "label"]


@dataclass(frozen=True)
class Asked:
    """A text of a study.

    Attributes:
        encoding: the text, tokenised.
        label: number of its true class; None: not known.
        target: number of the class to explain; None: the one that the model predicts.
        rationale: the tokens that people hold to be the reason, (T,), bool; None: not known.
    """

    encoding: Encoding
    label: int | None = None
    target: int | None = None
    rationale: Tensor | None = None

    def digest(self, about_class: bool) -> str:
        """A name for what a method is asked and judged by: equal for equal questions."""
        encoding = self.encoding
        facts = {
            "text": [encoding.text, encoding.pair],
            "tokens": [encoding.ids, encoding.offsets, dict(encoding.extra)],
            "rationale": None if self.rationale is None else self.rationale.tolist(),
            "target": self.target if about_class else None,
        }
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:20]


def asked(
    explainer: TextExplainer,
    texts: Text | Sequence[Text],
    labels: Iterable[Any] | None = None,
    rationales: Iterable[Any] | None = None,
    target: Target = "predicted",
    truncation: bool = False,
) -> list[Asked]:
    """The texts of a study, checked.

    Args:
        texts: one or more texts or pairs.
        labels: the true class of each, by number or name.
        rationales: of each text, spans of characters or a mask (:func:`tokens_of`); None: not known.
        target: whether the predicted class or the label is explained.
        truncation: cut off what the model cannot take.

    Raises:
        ValueError: too few or too many labels or rationales, or one that does not fit its text.
    """
    if target not in ("predicted", "label"):
        raise ValueError(f"target is {target!r}; choose 'predicted' or 'label'")
    if target == "label" and labels is None:
        raise ValueError("target is 'label', and there are no labels; give one for each text, or 'predicted'")
    encodings = explainer.encode(texts, truncation)
    classes = _for_each("labels", labels, len(encodings))
    reasons = _for_each("rationales", rationales, len(encodings))
    found = []
    for index, (encoding, label, reason) in enumerate(zip(encodings, classes, reasons)):
        try:
            number = None if label is None else _class(explainer.model, label)
            if target == "label" and number is None:
                raise ValueError("target is 'label', and it has none; give it one, or leave the text out")
            rationale = None if reason is None else tokens_of(reason, encoding)
        except ValueError as error:
            raise ValueError(f"text {index}, {shown(encoding.text)}: {error}") from error
        found.append(Asked(encoding, number, number if target == "label" else None, rationale))
    return found


def tokens_of(rationale: Any, encoding: Encoding) -> Tensor:
    """The tokens of a rationale, (T,), bool.

    Args:
        rationale: spans of characters, (first, one after the last), in a pair (0 or 1, first, one after the
            last); or a mask (0 or 1) of the text's words, as blanks divide them, of its tokens, or of its
            tokens without special ones.  Or either of them in JSON.

    Raises:
        ValueError: it is neither, or does not fit the text.

    Examples::
        >>> encoding = Encoding("a film", None, ("[CLS]", "a", "film", "[SEP]"), (None, (0, 0, 1), (0, 2, 6), None), ())
        >>> tokens_of([(2, 6)], encoding).int().tolist(), tokens_of([0, 1], encoding).int().tolist()
        ([0, 0, 1, 0], [0, 0, 1, 0])
    """
    parts = _listed(rationale)
    if all(isinstance(part, (bool, int, float)) and part in (0, 1) for part in parts) and parts:
        return _of_mask([bool(part) for part in parts], encoding)
    chosen = torch.zeros(len(encoding.offsets), dtype=torch.bool)
    for part in parts:
        segment, start, stop = _span(part, encoding)
        for place, offset in enumerate(encoding.offsets):
            if offset is not None and offset[0] == segment and offset[1] < stop and start < offset[2]:
                chosen[place] = True
    return chosen


def _listed(rationale: Any) -> list[Any]:
    try:
        plain = json.loads(rationale) if isinstance(rationale, str) else rationale
        return list(plain.tolist() if hasattr(plain, "tolist") else plain)
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(
            f"its rationale is {rationale!r}; give a list of spans of characters, or a mask of words or tokens"
        ) from error


def _of_mask(mask: list[bool], encoding: Encoding) -> Tensor:
    words = [] if encoding.pair else [found.span() for found in re.finditer(r"\S+", encoding.text)]
    real = torch.tensor([offset is not None for offset in encoding.offsets])
    if len(mask) == len(words):
        return tokens_of([span for span, chosen in zip(words, mask) if chosen], encoding)
    given = torch.tensor(mask)
    if len(mask) == len(real):
        return given
    if len(mask) == int(real.sum()):
        return torch.zeros_like(real).masked_scatter(real, given)
    raise ValueError(
        f"its rationale is a mask of {len(mask)}, and the text has {len(words)} words, {len(real)} tokens and "
        f"{int(real.sum())} without special ones; give one number for each of those, or spans of characters"
    )


def _span(part: Any, encoding: Encoding) -> tuple[int, int, int]:
    """Text, first character and the one after the last."""
    numbers = list(part) if isinstance(part, Sequence) and not isinstance(part, str) else []
    segment, start, stop = [0, *numbers] if len(numbers) == 2 else numbers if len(numbers) == 3 else (0, 0, 0)
    texts = (encoding.text, encoding.pair)
    if segment not in (0, 1) or not 0 <= start < stop <= len(texts[segment] or ""):
        raise ValueError(
            f"its rationale holds {part!r}, which is no part of it; give (first, one after the last) in characters, or "
            "a mask of words or tokens"
        )
    return segment, start, stop


def _class(model: TextModel, label: Any) -> int:
    """Number of a class; a number in a string, as in a table of text, is one where no class is called so."""
    if isinstance(label, str):
        try:
            return model.class_index(label)
        except ValueError:
            if not label.strip().isdecimal():
                raise
            label = int(label)
    if not hasattr(label, "__index__"):
        raise ValueError(f"its label is {label!r}; give the number or the name of a class, or None")
    return model.class_index(int(label))


def _for_each(name: str, values: Iterable[Any] | None, count: int) -> list[Any]:
    if values is None:
        return [None] * count
    found = list(values)
    if len(found) != count:
        raise ValueError(
            f"{name} has {len(found)} for {count} texts; give one for each, None where it is not known"
        )
    return found
