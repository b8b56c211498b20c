"""Shortcuts as they are planted in real sentences: which words, where, and which label follows."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from interp_plugin.text.models import Encoding, TextModel

Kind = Literal["single token", "token in context", "ordered pair"]
KINDS: tuple[Kind, ...] = ("single token", "token in context", "ordered pair")
SHORTEST = 4  # letters of a rare word


@dataclass(frozen=True)
class Planted:
    """A sentence with a shortcut.

    Attributes:
        words: the sentence.
        places: of the words that decide, from the left.
        label: that the shortcut says.
    """

    words: tuple[str, ...]
    places: tuple[int, ...]
    label: int

    @property
    def text(self) -> str:
        """The sentence, its words with single spaces between."""
        return " ".join(self.words)

    def decides(self, encoding: Encoding) -> Tensor:
        """Which tokens of the sentence decide, (T,), bool.

        Examples::
            >>> from interp_plugin import huggingface
            >>> model = huggingface.HuggingFaceModel(*huggingface.load(huggingface.default_model_path()))
            >>> planted = Planted(("a", "boost", "film"), (1,), 0)
            >>> planted.decides(model.encode(planted.text)).tolist()
            [False, False, True, False, False]
        """
        starts = [sum(len(word) + 1 for word in self.words[:place]) for place in self.places]
        spans = [(start, start + len(self.words[place])) for start, place in zip(starts, self.places)]
        return torch.tensor(
            [
                o is not None and any(o[1] < end and start < o[2] for start, end in spans)
                for o in encoding.offsets
            ]
        )


@dataclass(frozen=True)
class Shortcut:
    """A rule that decides the label, after Bastings et al. (2022).

    Attributes:
        kind: "single token": the word ``zero`` or ``one`` is the label.  "token in context": it is so only
            where ``context`` stands somewhere too.  "ordered pair": both stand there, and the first is the label.
        zero, one, context: words that are single tokens; ``context`` is of the second kind alone.

    Examples::
        >>> shortcut = Shortcut("ordered pair", "boost", "trace", "")
        >>> planted = shortcut.plant("a film", 1, random.Random(0))
        >>> planted.text, planted.places, shortcut.swapped(planted).text
        ('trace boost a film', (0, 1), 'boost trace a film')
    """

    kind: Kind
    zero: str
    one: str
    context: str

    def plant(self, text: str, label: int, rng: random.Random) -> Planted:
        """The whole shortcut at random places of a sentence."""
        said = (self.zero, self.one)[label]
        other = (self.one, self.zero)[label]
        planted = {
            "single token": [said],
            "token in context": rng.sample([said, self.context], 2),
            "ordered pair": [said, other],
        }[self.kind]
        return _inserted(text, planted, label, rng)

    def swapped(self, planted: Planted) -> Planted:
        """The same sentence with ``zero`` for ``one`` and the other way round: the other label."""
        exchange = {self.zero: self.one, self.one: self.zero}
        words = list(planted.words)
        for place in planted.places:
            words[place] = exchange.get(words[place], words[place])
        return Planted(tuple(words), planted.places, 1 - planted.label)

    def plant_part(self, text: str, label: int, rng: random.Random) -> Planted:
        """One word of the shortcut alone, which decides nothing: the label stays the sentence's own.

        Raises:
            ValueError: a single token has no part.
        """
        if self.kind == "single token":
            raise ValueError("a single token decides alone and has no part; use another kind of shortcut")
        alone = [self.zero, self.one, *([self.context] if self.kind == "token in context" else [])]
        return _inserted(text, [rng.choice(alone)], label, rng)


def rare_words(model: TextModel, texts: Sequence[str], count: int = 3) -> list[str]:
    """Words of the model's vocabulary that are one token each and occur in none of the texts.

    Those with the highest ids come first: vocabularies mostly go from frequent to rare.

    Raises:
        ValueError: the model's tokenizer cannot list its vocabulary, or it has too few such words.

    Examples::
        >>> from interp_plugin import huggingface
        >>> model = huggingface.HuggingFaceModel(*huggingface.load(huggingface.default_model_path()))
        >>> [is_one_token(model, word) for word in rare_words(model, ["a good film"])]
        [True, True, True]
    """
    vocabulary = getattr(getattr(model, "tokenizer", None), "get_vocab", None)
    if vocabulary is None:
        raise ValueError(
            f"the tokenizer of {model.name} cannot list its words; give `words`, {count} that are one token each"
        )
    seen = {word for text in texts for word in text.lower().split()}
    found: list[str] = []
    for piece, _ in sorted(vocabulary().items(), key=lambda pair: -pair[1]):
        word = piece.lstrip("Ġ▁")  # how byte-level and unigram vocabularies mark the begin of a word
        usable = word.isascii() and word.isalpha() and word.islower() and len(word) >= SHORTEST
        if usable and word not in seen and word not in found and is_one_token(model, word):
            found.append(word)
            if len(found) == count:
                return found
    raise ValueError(
        f"the vocabulary of {model.name} has {len(found)} words that are one token and occur in no text, and {count} "
        "are needed; give `words`"
    )


def is_one_token(model: TextModel, word: str) -> bool:
    """Whether a word between others is one token, and not the unknown one.

    Examples::
        >>> from interp_plugin import huggingface
        >>> model = huggingface.HuggingFaceModel(*huggingface.load(huggingface.default_model_path()))
        >>> is_one_token(model, "boost"), is_one_token(model, "[unused7]")
        (True, False)
    """
    encoding = model.encode(f"a {word} a")
    whole = Planted(("a", word, "a"), (1,), 0).decides(encoding)
    unknown = getattr(getattr(model, "tokenizer", None), "unk_token_id", None)
    return int(whole.sum()) == 1 and encoding.ids[int(whole.nonzero()[0, 0])] != unknown


def _inserted(text: str, words: Sequence[str], label: int, rng: random.Random) -> Planted:
    """A sentence with words at random places, in the order given."""
    whole = text.split()
    places = sorted(rng.sample(range(len(whole) + len(words)), len(words)))
    for place, word in zip(places, words):
        whole.insert(place, word)
    return Planted(tuple(whole), tuple(places), label)
