"""Statistics of word classes: what each layer keeps of them, or loses with erased ones; and knowledge points."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain, repeat
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from interp_plugin.corpus.parts import Part, batches_of
from interp_plugin.corpus.quantities import ENTROPY, NATS, Z, floats, kept_of_tokens, lengths_of, ratio
from interp_plugin.optional import load
from interp_plugin.text.models import Label

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

By = Literal["kind", "lexicon", "tag", "frequency"]
SPECIAL, PUNCTUATION, STOP, WORD = "special token", "punctuation", "stop word", "other word"
OTHER, UNTAGGED = "other", "untagged"
BANDS = 6  # number of decades of word counts; the last has no upper end
_WORDS = ("words", "word_of", "tags")
_SUMS = ("x", "c", "xx", "xc", "cc", "second", "sentences")
COLUMNS = ("row", *NATS, *_WORDS)
ERASED_COLUMNS = ("row", "sigma", "erased", *_WORDS)

Classify = Callable[[str, str | None], str]
"""A function from a word and its tag to the word's class."""


@dataclass
class Sums:
    """Sums over sentences for each layer and class, from which ratios and their errors are computed.

    For each sentence and class: if noise was learned, x is the nats kept of its tokens, c their number, and second
    the nats lost.  If tokens were erased, x is the score of its words, c their number, and second the sum of the
    scores' absolute values.

    Attributes:
        layers: labels of the layers.
        erased: whether tokens were erased.
        numbers: number of each class; classes are added when they first occur.
        sums: sums of x, c, their products and second, and the number of sentences with the class, (L, C) each.
        total: number of sentences, with and without the class.
    """

    layers: Sequence[Label]
    erased: bool = False
    numbers: dict[str, int] = field(default_factory=dict)
    sums: dict[str, Floats] = field(default_factory=dict)
    total: int = 0

    @property
    def classes(self) -> list[str]:
        """Names of the classes, by number."""
        return list(self.numbers)

    def number(self, name: str) -> int:
        """Return the number of a class, and add the class if it is new."""
        if name not in self.numbers:
            self.numbers[name] = len(self.numbers)
            for key in _SUMS:
                old = self.sums.get(key, np.zeros((len(self.layers), 0)))
                self.sums[key] = np.concatenate([old, np.zeros((len(self.layers), 1))], axis=1)
        return self.numbers[name]

    def add(self, x: Floats, second: Floats, counts: Floats) -> None:
        """Add sentences: x and second of each class, (S, L, C) each, and counts (S, C)."""
        c = counts[:, None, :]
        for key, values in {
            "x": x, "c": c, "xx": x * x, "xc": x * c, "cc": c * c, "second": second, "sentences": c > 0,
        }.items():  # fmt: skip
            self.sums[key] += values.sum(0)
        self.total += len(x)

    def mean(self) -> tuple[Floats, Floats]:
        """Return x per token or word of each class, and its standard error over sentences, (L, C) each."""
        s, n = self.sums, self.total
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = s["x"] / s["c"]
            squares = np.maximum(s["xx"] - 2 * mean * s["xc"] + mean**2 * s["cc"], 0.0)
            error = np.sqrt(squares * n / (n - 1)) / s["c"] if n > 1 else np.full_like(mean, np.nan)
        return mean, np.where(s["sentences"] > 1, error, np.nan)


def sums_of(parts: Sequence[Part], layers: Sequence[Label], classify: Classify, erased: bool = False) -> Sums:
    """Return the sums over all sentences, read a few thousand lines at a time."""
    found = Sums(layers, erased)
    for batch in batches_of(parts, len(layers), ERASED_COLUMNS if erased else COLUMNS):
        found.add(*by_class(batch, layers, classify, found))
    return found


def by_class(
    batch: pa.RecordBatch, layers: Sequence[Label], classify: Classify, sums: Sums
) -> tuple[Floats, Floats, Floats]:
    """Return x and second of each class in each sentence, (S, L, C) each, and its number of tokens or words, (S, C)."""
    codes, sentences, *values = (_erased_words if sums.erased else _tokens)(batch, layers, classify, sums)
    count, n = len(sums.classes), batch.num_rows // len(layers)
    place = sentences * count + codes
    counts: Floats = np.bincount(place, minlength=n * count).reshape(n, count).astype(float)

    def by_sentence(of_unit: Floats) -> Floats:
        return np.stack([np.bincount(place, row, n * count).reshape(n, count) for row in of_unit], axis=1)

    return by_sentence(values[0]), by_sentence(values[1]), counts


def _tokens(
    batch: pa.RecordBatch, layers: Sequence[Label], classify: Classify, sums: Sums
) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats, Floats]:
    """Return each token's class and sentence, (T,) each, and its nats kept and lost, (L, T) each."""
    count, lengths = len(layers), lengths_of(batch)
    firsts = lengths[::count]
    sentences = np.repeat(np.arange(len(firsts)), firsts)
    word_of = batch.column("word_of")[slice(None, None, count)].to_pylist()
    codes = [
        sums.number(SPECIAL) if word is None else of_word[word]
        for of_word, words in zip(_word_codes(batch, count, classify, sums), word_of)
        for word in words
    ]
    size = np.repeat(batch.column("size").to_numpy().astype(float), lengths)
    lost = size * (ENTROPY + np.log(floats(batch.column("sigma"))))
    kept = kept_of_tokens(batch)
    return (
        np.array(codes, dtype=np.int64),
        sentences,
        _by_layer(kept, lengths, count),
        _by_layer(lost, lengths, count),
    )


def _erased_words(
    batch: pa.RecordBatch, layers: Sequence[Label], classify: Classify, sums: Sums
) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats, Floats]:
    """Return each word's class and sentence, (W,) each, its score and the score's absolute value, (L, W) each.

    A word's score is the sum over its tokens; special tokens are never erased and belong to no word.
    """
    count, lengths = len(layers), lengths_of(batch)
    of_texts = list(_word_codes(batch, count, classify, sums))
    sizes = [len(codes) for codes in of_texts]
    before = np.cumsum([0, *sizes])
    word_of = batch.column("word_of")[slice(None, None, count)].flatten()
    known = word_of.is_valid().to_numpy(zero_copy_only=False)
    of_word = (word_of.fill_null(0).to_numpy() + np.repeat(before[:-1], lengths[::count]))[known]
    by_token = _by_layer(floats(batch.column("erased")), lengths, count)[:, known]  # (L, tokens of words)
    scores: Floats = np.stack([np.bincount(of_word, row, int(before[-1])) for row in by_token])
    codes = np.array(list(chain.from_iterable(of_texts)), dtype=np.int64)
    return codes, np.repeat(np.arange(len(sizes)), sizes), scores, np.abs(scores)


def _by_layer(values: Floats, lengths: NDArray[np.int64], count: int) -> Floats:
    """Reorder token values from text by text, then layer by layer, to (L, T)."""
    of_line = np.repeat(np.arange(len(lengths)), lengths)
    return values[np.argsort(of_line % count, kind="stable")].reshape(count, -1)


def _word_codes(batch: pa.RecordBatch, count: int, classify: Classify, sums: Sums) -> Iterator[list[int]]:
    """Yield the class numbers of each text's words."""
    all_words, all_tags = (
        batch.column(name)[slice(None, None, count)].to_pylist() for name in ("words", "tags")
    )
    for words, tags in zip(all_words, all_tags):
        yield [sums.number(classify(word, tag)) for word, tag in zip(words, tags or repeat(None))]


def table(sums: Sums, converged: Floats, order: Sequence[str] | None = None) -> pd.DataFrame:
    """Return a line for each layer and class; see ``CorpusResult.word_classes``.

    Args:
        sums: over the corpus.
        converged: share of converged sentences, (L,).
        order: of the classes; None: alphabetical.
    """
    import pandas as pd

    mean, error = sums.mean()
    if order is None:
        order = [*sorted(name for name in sums.classes if name != SPECIAL), SPECIAL]
    classes = [name for name in order if name in sums.classes]
    places = [sums.classes.index(name) for name in classes]
    whole = sums.sums["second" if sums.erased else "x"]  # shares need values of one sign
    share = whole / np.maximum(whole.sum(1, keepdims=True), 1e-300)
    counted, value, second = ("words", "erased", "magnitude") if sums.erased else ("tokens", "kept", "loss")
    listed = [
        {
            "layer": label,
            "class": name,
            counted: int(sums.sums["c"][row, place]),
            "sentences": int(sums.sums["sentences"][row, place]),
            value: mean[row, place],
            "standard_error": error[row, place],
            "low": mean[row, place] - Z * error[row, place],
            "high": mean[row, place] + Z * error[row, place],
            second: sums.sums["second"][row, place] / sums.sums["c"][row, place],
            "share": share[row, place],
            "converged": converged[row],
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
    """Return the function that classifies words, and the order of the classes; None: alphabetical.

    Raises:
        ValueError: ``by`` is unknown, or a lexicon is missing or unexpected.
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
    """Return a classifier into punctuation, stop words (None: scikit-learn's English ones) and other words.

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
    """Return scikit-learn's English stop words.

    Raises:
        ImportError: scikit-learn is missing.
    """
    texts = load("sklearn.feature_extraction.text", "the default list of stop words", "compare")
    found: frozenset[str] = texts.ENGLISH_STOP_WORDS
    return found


@lru_cache(2**16)
def is_punctuation(word: str) -> bool:
    """Return whether a word consists of punctuation and ASCII symbols only.

    Examples::
        >>> [is_punctuation(word) for word in (",", "``", "...", "n't", "€", "😀")]
        [True, True, True, False, False, False]
    """
    return all(
        unicodedata.category(c)[0] == "P" or (c.isascii() and unicodedata.category(c)[0] == "S") for c in word
    )


def word_counts(parts: Sequence[Part], n_layers: int) -> Counter[str]:
    """Count the occurrences of each lower-case word in the corpus, in one pass over the parts."""
    counts: Counter[str] = Counter()
    for batch in batches_of(parts, n_layers, ["words"]):
        for words in batch.column("words")[slice(None, None, n_layers)].to_pylist():
            counts.update(map(str.lower, words))
    return counts


def _band(count: int) -> str:
    """Return the name of the decade of a count.

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


# -- knowledge points


def knowledge(
    parts: Sequence[Part],
    layers: Sequence[Label],
    classify: Classify,
    foreground: Collection[str],
    threshold: float,
    converged: Floats,
) -> pd.DataFrame:
    """Return a line for each layer, in two passes over the parts; see ``CorpusResult.knowledge``."""
    import pandas as pd

    kept, lost, counts, classes, size = _split(parts, layers, classify, foreground)
    if not (counts.sum(0) > 0).all():
        there = ", ".join(map(repr, classes))
        raise ValueError(
            f"foreground is {sorted(foreground)!r}, and the corpus has {there}: some, but not all, must be in it"
        )
    fore, fore_error = ratio(kept[..., 0], counts[:, 0])
    back, _ = ratio(kept[..., 1], counts[:, 1])
    # the error of a difference of two ratios over the same sentences, both linearised
    residual = [
        (kept[..., i] - mean * counts[:, i : i + 1]) / counts[:, i].mean()
        for i, mean in enumerate((fore, back))
    ]
    _, contrast_error = ratio(residual[0] - residual[1], np.ones(len(counts)))
    bar = ratio(lost[..., 1], counts[:, 1])[0] - threshold * size
    points = np.concatenate(list(_points(parts, layers, classify, foreground, bar)))
    rates = [ratio(points[..., i], np.ones(len(points))) for i in (0, 1)]
    both = points.sum(-1)
    with np.errstate(invalid="ignore"):
        share = points[..., 0] / both  # not defined for sentences without points
    shares = [ratio(s[np.isfinite(s), None], np.ones(int(np.isfinite(s).sum()))) for s in share.T]
    return pd.DataFrame(
        {
            "layer": list(layers),
            "background": back,
            "foreground": fore,
            "foreground_error": fore_error,
            "concentration": fore - back,
            "concentration_error": contrast_error,
            "concentration_low": fore - back - Z * contrast_error,
            "concentration_high": fore - back + Z * contrast_error,
            "concentration_ratio": fore / np.where(back > 0, back, np.nan),
            "threshold": threshold * size,
            "foreground_points": rates[0][0],
            "foreground_points_error": rates[0][1],
            "background_points": rates[1][0],
            "background_points_error": rates[1][1],
            "foreground_share": [mean[0] for mean, _ in shares],
            "foreground_share_error": [error[0] for _, error in shares],
            "foreground_tokens": int(counts[:, 0].sum()),
            "background_tokens": int(counts[:, 1].sum()),
            "converged": converged,
        }
    )


def _split(
    parts: Sequence[Part], layers: Sequence[Label], classify: Classify, foreground: Collection[str]
) -> tuple[Floats, Floats, Floats, list[str], int]:
    """Return the nats kept and lost of foreground and background in each sentence, (N, L, 2) each, the numbers of
    tokens, (N, 2), the classes and K.
    """
    sums, size = Sums(layers), 0
    found: list[list[Floats]] = [[], [], []]
    for batch in batches_of(parts, len(layers), COLUMNS):
        size = batch.column("size")[0].as_py()
        values = by_class(batch, layers, classify, sums)
        fore = _is_foreground(sums, foreground)
        for known, each in zip(found, values):
            known.append(np.stack([each[..., fore].sum(-1), each[..., ~fore].sum(-1)], axis=-1))
    kept, lost, tokens = map(np.concatenate, found)
    return kept, lost, tokens, sums.classes, size


def _points(
    parts: Sequence[Part],
    layers: Sequence[Label],
    classify: Classify,
    foreground: Collection[str],
    bar: Floats,
) -> Iterator[Floats]:
    """Yield the numbers of tokens with less loss than the bar (L,), in foreground and background, (S, L, 2)."""
    sums = Sums(layers)
    for batch in batches_of(parts, len(layers), COLUMNS):
        codes, sentences, _, lost = _tokens(batch, layers, classify, sums)
        place = 2 * sentences + ~_is_foreground(sums, foreground)[codes]
        n = batch.num_rows // len(layers)
        below = [np.bincount(place, row < limit, 2 * n) for row, limit in zip(lost, bar)]
        yield np.stack([each.reshape(n, 2) for each in below], axis=1)


def _is_foreground(sums: Sums, foreground: Collection[str]) -> NDArray[np.bool_]:
    return np.array([name in foreground for name in sums.classes])
