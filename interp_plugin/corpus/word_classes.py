"""Word classes: what the layers keep of special tokens, stop words, punctuation, rare words and any other kind."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from interp_plugin.corpus.estimates import Z
from interp_plugin.corpus.parts import Part, lines
from interp_plugin.corpus.quantities import BATCH, ENTROPY, NATS, batches_of, floats, kept_of_tokens
from interp_plugin.text.models import Label

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

By = Literal["kind", "lexicon", "tag", "frequency"]
SPECIAL, PUNCTUATION, STOP, WORD = "special token", "punctuation", "stop word", "other word"
OTHER, UNTAGGED = "other", "untagged"
BANDS = 6  # decades of counts; the last is open
_WORDS = ("words", "word_of", "tags")
_SUMS = ("x", "c", "xx", "xc", "cc", "loss", "sentences")
COLUMNS = ("row", *NATS, *_WORDS)

Classify = Callable[[str, str | None], str]
"""The class of a word, from the word and its tag."""


@dataclass
class Sums:
    """Sums over the sentences for each layer and class, so that ratios and their errors need no sentence again.

    x is the nats kept of a class's tokens in a sentence, and c how many they are.

    Attributes:
        layers: their labels.
        numbers: of the classes, which grow as they are met.
        sums: of x, c and their products, of the nats lost, and of the sentences that have a token of the class, each
            (L, C).
        total: sentences, with and without the class.
    """

    layers: Sequence[Label]
    numbers: dict[str, int] = field(default_factory=dict)
    sums: dict[str, Floats] = field(default_factory=dict)
    total: int = 0

    @property
    def classes(self) -> list[str]:
        """Their names, by number."""
        return list(self.numbers)

    def number(self, name: str) -> int:
        """Of a class, made where it is new."""
        if name not in self.numbers:
            self.numbers[name] = len(self.numbers)
            for key in _SUMS:
                old = self.sums.get(key, np.zeros((len(self.layers), 0)))
                self.sums[key] = np.concatenate([old, np.zeros((len(self.layers), 1))], axis=1)
        return self.numbers[name]

    def add(self, kept: Floats, loss: Floats, counts: Floats) -> None:
        """Some sentences: nats of each class (S, L, C) and tokens (S, C)."""
        c = counts[:, None, :]
        for key, values in {
            "x": kept, "c": c, "xx": kept * kept, "xc": kept * c, "cc": c * c, "loss": loss, "sentences": c > 0,
        }.items():  # fmt: skip
            self.sums[key] += values.sum(0)
        self.total += len(kept)

    def mean(self) -> tuple[Floats, Floats]:
        """Nats kept of a token of each class, and its standard error over sentences, (L, C) each."""
        s, n = self.sums, self.total
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = s["x"] / s["c"]
            squares = np.maximum(s["xx"] - 2 * mean * s["xc"] + mean**2 * s["cc"], 0.0)
            error = np.sqrt(squares * n / (n - 1)) / s["c"] if n > 1 else np.full_like(mean, np.nan)
        return mean, np.where(s["sentences"] > 1, error, np.nan)


def sums_of(parts: Sequence[Part], layers: Sequence[Label], classify: Classify) -> Sums:
    """Sums over all sentences, a few thousand lines at a time."""
    found = Sums(layers)
    for batch in batches_of(parts, layers, COLUMNS):
        kept, loss, counts = by_class(batch, layers, classify, found)
        found.add(kept, loss, counts)
    return found


def by_class(
    batch: pa.RecordBatch, layers: Sequence[Label], classify: Classify, sums: Sums
) -> tuple[Floats, Floats, Floats]:
    """Nats kept and lost of each class in each sentence (S, L, C), and its tokens (S, C)."""
    codes, sentences, kept, lost = tokens_of(batch, layers, classify, sums)
    count, n = len(sums.classes), batch.num_rows // len(layers)
    place = sentences * count + codes
    counts: Floats = np.bincount(place, minlength=n * count).reshape(n, count).astype(float)

    def by_sentence(nats: Floats) -> Floats:
        return np.stack([np.bincount(place, row, n * count).reshape(n, count) for row in nats], axis=1)

    return by_sentence(kept), by_sentence(lost), counts


def tokens_of(
    batch: pa.RecordBatch, layers: Sequence[Label], classify: Classify, sums: Sums
) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats, Floats]:
    """Of each token its class and sentence, (T,) each, and its nats kept and lost, (L, T) each."""
    count = len(layers)
    kept, lengths = kept_of_tokens(batch)
    of_line = np.repeat(np.arange(len(lengths)), lengths)
    # lines go text by text, layer by layer; tokens are wanted layer by layer
    order = np.argsort(of_line % count, kind="stable")
    firsts = lengths[::count]
    sentences = np.repeat(np.arange(len(firsts)), firsts)
    columns = [batch.column(name)[slice(None, None, count)] for name in _WORDS]
    codes = np.fromiter(_codes(columns, classify, sums), dtype=np.int64, count=int(firsts.sum()))
    size = np.repeat(batch.column("size").to_numpy().astype(float), lengths)
    lost = size * (ENTROPY + np.log(floats(batch.column("sigma"))))
    return codes, sentences, kept[order].reshape(count, -1), lost[order].reshape(count, -1)


def _codes(columns: Sequence[pa.Array], classify: Classify, sums: Sums) -> Iterable[int]:
    """The number of the class of each token, text by text."""
    for words, word_of, tags in zip(*(column.to_pylist() for column in columns)):
        of_word = [sums.number(classify(word, tag)) for word, tag in zip(words, tags or [None] * len(words))]
        for word in word_of:
            yield sums.number(SPECIAL) if word is None else of_word[word]


def table(sums: Sums, order: Sequence[str] | None = None) -> pd.DataFrame:
    """A line for each layer and class; see ``CorpusResult.word_classes``."""
    import pandas as pd

    mean, error = sums.mean()
    if order is None:
        order = [*sorted(name for name in sums.classes if name != SPECIAL), SPECIAL]
    classes = [name for name in order if name in sums.classes]
    places = [sums.classes.index(name) for name in classes]
    share = sums.sums["x"] / np.maximum(sums.sums["x"].sum(1, keepdims=True), 1e-300)
    listed = [
        {
            "layer": label,
            "class": name,
            "tokens": int(sums.sums["c"][row, place]),
            "sentences": int(sums.sums["sentences"][row, place]),
            "kept": mean[row, place],
            "standard_error": error[row, place],
            "low": mean[row, place] - Z * error[row, place],
            "high": mean[row, place] + Z * error[row, place],
            "loss": sums.sums["loss"][row, place] / sums.sums["c"][row, place],
            "share": share[row, place],
        }
        for row, label in enumerate(sums.layers)
        for name, place in zip(classes, places)
    ]
    return pd.DataFrame(listed)


def classifier(
    by: By,
    parts: Sequence[Part],
    n_layers: int,
    lexicon: Mapping[str, str] | None = None,
    stop_words: Collection[str] | None = None,
) -> tuple[Classify, list[str] | None]:
    """How words are told apart, and the order of the classes; None: that of their names.

    Raises:
        ValueError: another way, or a lexicon where none belongs.
    """
    if by not in get_args(By):
        raise ValueError(f"by is {by!r}: choose from {', '.join(get_args(By))}")
    if (lexicon is None) == (by == "lexicon"):
        raise ValueError(
            f"by is {by!r} and lexicon is {'missing' if lexicon is None else 'given'}; the two go together"
        )
    if by == "tag":
        return lambda word, tag: tag or UNTAGGED, None
    if lexicon is not None:
        known = {word.lower(): str(name) for word, name in lexicon.items()}
        order = [*dict.fromkeys(known.values()), OTHER, SPECIAL]
        return lambda word, tag: known.get(word.lower(), OTHER), order
    if by == "frequency":
        counts = word_counts(parts, n_layers)
        return (
            lambda word, tag: PUNCTUATION if is_punctuation(word) else _band(counts[word.lower()]),
            [_band(1), _band(2), *(_band(10**power) for power in range(1, BANDS)), PUNCTUATION, SPECIAL],
        )
    return by_kind(stop_words), [SPECIAL, PUNCTUATION, STOP, WORD]


def by_kind(stop_words: Collection[str] | None = None) -> Classify:
    """Punctuation, stop words (None: scikit-learn's English ones) and other words.

    Examples::
        >>> classify = by_kind()
        >>> [classify(word, None) for word in ("The", "film", ",")]
        ['stop word', 'other word', 'punctuation']
    """
    stops = english_stop_words() if stop_words is None else {word.lower() for word in stop_words}

    def classify(word: str, tag: str | None) -> str:
        if is_punctuation(word):
            return PUNCTUATION
        return STOP if word.lower() in stops else WORD

    return classify


def english_stop_words() -> frozenset[str]:
    """scikit-learn's.

    Raises:
        ImportError: scikit-learn is missing.
    """
    try:
        from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
    except ImportError as error:
        raise ImportError(
            "stop words come from scikit-learn, which is not installed: pip install interp-plugin[compare], or give "
            "stop_words"
        ) from error
    found: frozenset[str] = ENGLISH_STOP_WORDS
    return found


@lru_cache(2**16)
def is_punctuation(word: str) -> bool:
    """Whether a word is made of punctuation and of ASCII's symbols alone.

    Examples::
        >>> [is_punctuation(word) for word in (",", "``", "...", "n't", "€", "😀")]
        [True, True, True, False, False, False]
    """
    return all(
        unicodedata.category(c)[0] == "P" or (c.isascii() and unicodedata.category(c)[0] == "S") for c in word
    )


def word_counts(parts: Sequence[Part], n_layers: int) -> Counter[str]:
    """How often each word, in small letters, is in the corpus: one pass over the parts."""
    counts: Counter[str] = Counter()
    step = max(1, BATCH // n_layers) * n_layers
    for part in parts:
        for batch in lines(part, ["words"], step):
            for words in batch.column("words")[slice(None, None, n_layers)].to_pylist():
                counts.update(map(str.lower, words))
    return counts


def _band(count: int) -> str:
    """The decade of a count.

    Examples::
        >>> [_band(n) for n in (1, 2, 10, 123456)]
        ['seen once', 'seen 2 to 9 times', 'seen 10 to 99 times', 'seen 100000 times or more']
    """
    if count == 1:
        return "seen once"
    power = min(len(str(count)) - 1, BANDS - 1)
    if power == BANDS - 1:
        return f"seen {10**power} times or more"
    return f"seen {max(2, 10**power)} to {10 ** (power + 1) - 1} times"
