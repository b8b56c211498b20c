"""What a model's outputs stand for: labels, or tokens of its vocabulary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from interp_plugin.huggingface import tokenization
from interp_plugin.tokens import as_int

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Labels:
    """The classes of a classifier.

    Examples::
        >>> labels = Labels(("negative", "positive"))
        >>> labels.index("Positive"), labels.name(0)
        (1, 'negative')
    """

    names: tuple[str, ...]

    def index(self, target: int | str) -> int:
        """Index of a label; of an index, itself, if there is such a class."""
        target = checked(target)
        if isinstance(target, int):
            found = [target] if 0 <= target < len(self.names) else []
        else:
            found = [i for i, name in enumerate(self.names) if name == target] or [
                i for i, name in enumerate(self.names) if name.casefold() == target.casefold()
            ]
        if len(found) != 1:
            raise ValueError(
                f"target {target!r} is no class of the model: it has {listed(self.names)}; choose a label or its index"
            )
        return found[0]

    def name(self, index: int) -> str:
        """The label."""
        return self.names[self.index(index)]


@dataclass(frozen=True)
class Vocabulary:
    """The tokens that a language model chooses from.

    Args:
        size: how many ids the model has.
    """

    tokenizer: PreTrainedTokenizerBase
    size: int

    def index(self, target: int | str) -> int:
        """Id of a string that is one token; of an id, itself, if there is such a token."""
        target = checked(target)
        if isinstance(target, str):
            return self._id(target)
        if not 0 <= target < self.size:
            raise ValueError(
                f"target {target} is no token id: the model has ids 0 to {self.size - 1}; choose one of them"
            )
        return target

    def name(self, index: int) -> str:
        """The token, readable."""
        pieces = tokenization.Pieces((self.index(index),), ((0, 0, 0),))
        return tokenization.readable(self.tokenizer, pieces, ("", None))[0]

    def _id(self, target: str) -> int:
        ids = tokenization.split(self.tokenizer, target, special=False).ids
        if len(ids) == 1 and ids[0] != self.tokenizer.unk_token_id:
            return ids[0]
        written = self.tokenizer.get_vocab().get(target)
        if written is None:
            raise ValueError(
                f"target {target!r} is {len(ids)} tokens, or unknown: it must be one token of the vocabulary; give a "
                "shorter string or a token id"
            )
        return int(written)


def checked(target: Any) -> int | str:
    """``target`` if it names a class; a number of NumPy or torch as an int."""
    target = as_int(target)
    if isinstance(target, bool) or not isinstance(target, (int, str)):
        raise TypeError(
            f"target is a {type(target).__name__}: it must be a label or an index; give one of them"
        )
    return target


def label_names(config: Any, count: int = 0) -> tuple[str, ...]:
    """Names of at least ``count`` classes; a class that the configuration does not name is "LABEL_" and its number.

    Args:
        config: has ``id2label``, number -> name; numbers may be strings, as in JSON.

    Raises:
        ValueError: a key that is no number.

    Examples::
        >>> from types import SimpleNamespace
        >>> label_names(SimpleNamespace(id2label={"1": "good"}), 3)
        ('LABEL_0', 'good', 'LABEL_2')
    """
    given = getattr(config, "id2label", None) or {}
    pairs = given.items() if isinstance(given, Mapping) else enumerate(given)
    try:
        names = {int(number): str(name) for number, name in pairs}
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"config.id2label is {given!r}: its keys must be the numbers of the classes; turn it round if names and "
            "numbers are swapped"
        ) from error
    count = max([count, *(number + 1 for number in names)])
    return tuple(names.get(number, f"LABEL_{number}") for number in range(count))


def listed(names: Sequence[int | str], most: int = 20) -> str:
    """The names in one line, the first ``most`` of them."""
    shown = ", ".join(map(repr, names[:most]))
    return shown if len(names) <= most else f"{shown}, ... ({len(names)} in all)"


def likeliest(logits: Tensor, exclusive: bool = True) -> tuple[int, float]:
    """Index and probability of the largest of the logits, (C,); not ``exclusive``: each has its own probability.

    Examples::
        >>> import torch
        >>> likeliest(torch.tensor([1.0, 4.0]).log())
        (1, 0.800000011920929)
    """
    scores = logits.detach().float()
    probability, index = (scores.softmax(-1) if exclusive else scores.sigmoid()).max(-1)
    return int(index), float(probability)
