"""Statistics of a study: means by layer, growth with depth, differences between studies, checks of predictions."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from interp_plugin.corpus.parts import SOLVED, Part, batches_of
from interp_plugin.statistics import Agreement, Compared, HeldOut, holm, p_of_drift, resample_counts, t_test
from interp_plugin.text.models import Label

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Integers = NDArray[np.int64]

RESAMPLES = 1000
LEVEL = 0.95
DRIFT = 0.01  # significance level of the test of predictions
Z = 1.959963984540054  # 97.5 % quantile of the standard normal distribution
ENTROPY = 0.5 * math.log(2 * math.pi * math.e)  # of a unit Gaussian, per dimension
NO_NUMBERS = "the study has no results: every text of its corpus failed (see failures()), or none is done yet"
PER = ("sentence", "token", "token of a sentence", "dimension")
PER_ERASED = ("sentence", "token", "word", "word of a sentence")
MEDIAN = "median sentence"
NATS = ("size", "max_sigma", "input_std", "sigma")
"""Columns of a line from which the nats kept are computed."""
_FACTS = ("regime_index", "distortion", "rate", "converged", "saturated", "n_forward", "n_backward")
_ERASED_FACTS = ("damage", "n_forward", "n_backward")
_HEAVY_TAILED = ("regime_index", "distortion")  # E divides by D, which may be almost 0
_COLUMNS = ("row", "text", "pair", "standard_error")
_CELLS = 4_000_000  # number of counts in memory at a time


# -- estimates


def ratio(values: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Return sum of values / sum of weights, and its standard error over sentences, (M,) each.

    The error is that of the linearised ratio (Cochran, Sampling Techniques, 1977, section 6.4); with weights of 1
    it is the error of the mean.

    Args:
        values: (N, M), N sentences.
        weights: (N,) or (N, M).

    Examples::
        >>> mean, error = ratio(np.array([[1.0], [3.0]]), np.ones(2))
        >>> mean, error
        (array([2.]), array([1.]))
    """
    weights = weights.reshape(len(weights), -1)
    n, total = len(values), weights.sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = values.sum(0) / total
        squares = np.square(values - mean * weights).sum(0)
        error = np.sqrt(squares * n / (n - 1)) / total if n > 1 else np.full_like(mean, np.nan)
    return mean, error


def bootstrap(
    values: Floats, weights: Floats, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[Floats, Floats]:
    """Return both ends of the 95 % percentile interval of sum of values / sum of weights, (M,) each.

    Sentences are drawn with replacement, the same sentences for all M, so that pairs stay together (Efron, 1979).
    SciPy's bootstrap has no weights.

    Args:
        values: (N, M), N sentences.
        weights: (N,).
        resamples: number of resamples; memory does not grow with it.
        seed: of the draws.
    """
    n, count = values.shape
    if n < 2:
        return np.full(count, np.nan), np.full(count, np.nan)
    batches = resample_counts(n, resamples, seed, max(1, _CELLS // n))
    found = np.concatenate([(counts @ values) / (counts @ weights)[:, None] for counts in batches])
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high


def median(values: Floats) -> tuple[float, float, float]:
    """Return the median of the finite values (N,), and its 95 % interval from the sign test.

    Examples::
        >>> median(np.array([1.0, 2.0, 3.0, 1e37, np.inf]))[0], median(np.arange(100.0))
        (2.5, (49.5, 39.0, 60.0))
    """
    from scipy.stats import binom

    known = np.sort(values[np.isfinite(values)])
    if not len(known):
        return math.nan, math.nan, math.nan
    place = int(binom.ppf((1 - LEVEL) / 2, len(known), 0.5))
    if place < 1:  # too few values for an interval
        return float(np.median(known)), math.nan, math.nan
    return float(np.median(known)), float(known[place - 1]), float(known[len(known) - place])


# -- results of the sentences, read from the parts


@dataclass(frozen=True)
class Sentences:
    """Results for each of N sentences and L layers.

    Attributes:
        layers: L labels in forward order.
        erased: whether tokens were erased; otherwise noise was learned.
        rows: row numbers in the corpus, (N,).
        keys: digests of the texts, (N,).
        tokens: number of tokens of each sentence, (N,); for erasures without special tokens, which are never erased.
        words: number of words of each sentence, (N,); 0 if noise was learned.
        size: K, number of elements of a token's embedding.
        totals: sums over a sentence's tokens, (N, L): "kept" and "loss" in nats, or "erased".
        errors: standard errors of the totals, (N, L), from the noise draws or the masks.
        facts: (N, L) each: "regime_index", "distortion", "rate", "converged", "saturated", "n_forward" and
            "n_backward"; or "damage", "n_forward" and "n_backward".
    """

    layers: tuple[Label, ...]
    erased: bool
    rows: Integers
    keys: NDArray[np.uint64]
    tokens: Floats
    words: Floats
    size: int
    totals: Mapping[str, Floats]
    errors: Mapping[str, Floats]
    facts: Mapping[str, Floats]

    @classmethod
    def read(cls, parts: Iterable[Part], layers: Sequence[Label], erased: bool = False) -> Sentences:
        """Read the parts, a few thousand lines at a time.

        Raises:
            ValueError: there are no sentences.
        """
        columns = (
            (*_COLUMNS, "size", "erased", "words", "word_of", *_ERASED_FACTS)
            if erased
            else (*_COLUMNS, *NATS, "common_error", *_FACTS)
        )
        found = [cls._of(batch, layers, erased) for batch in batches_of(parts, len(layers), columns)]
        if not found:
            raise ValueError(NO_NUMBERS)

        def joined(name: str) -> Any:
            values = [getattr(each, name) for each in found]
            if isinstance(values[0], dict):
                return {key: np.concatenate([each[key] for each in values]) for key in values[0]}
            return np.concatenate(values)

        names = ("rows", "keys", "tokens", "words", "totals", "errors", "facts")
        return cls(tuple(layers), erased, size=found[0].size, **{name: joined(name) for name in names})

    @classmethod
    def _of(cls, batch: pa.RecordBatch, layers: Sequence[Label], erased: bool) -> Sentences:
        count = len(layers)

        def shaped(values: Any) -> Floats:
            return np.asarray(values, dtype=float).reshape(-1, count)

        firsts = slice(None, None, count)
        lengths = _lengths(batch.column("standard_error"))
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        size = batch.column("size").to_numpy()
        tokens, words = lengths[firsts].astype(float), np.zeros(len(lengths[firsts]))
        if erased:
            tokens = _lengths(batch.column("word_of"), known=True)[firsts].astype(float)
            words = _lengths(batch.column("words"))[firsts].astype(float)
            totals = {"erased": np.add.reduceat(floats(batch.column("erased")), starts)}
            variance = np.square(floats(batch.column("standard_error")))
            errors = {"erased": np.sqrt(np.add.reduceat(variance, starts))}
        else:
            log_sigma = np.add.reduceat(np.log(floats(batch.column("sigma"))), starts)
            totals = {
                "kept": np.add.reduceat(kept_of_tokens(batch), starts),
                "loss": lengths * size * ENTROPY + size * log_sigma,
            }
            errors = {
                "kept": _error_of_kept(batch, lengths, starts),
                "loss": lengths * size * batch.column("common_error").to_numpy(),
            }
        names = _ERASED_FACTS if erased else _FACTS
        texts = zip(batch.column("text")[firsts].to_pylist(), batch.column("pair")[firsts].to_pylist())
        return cls(
            layers=tuple(layers),
            erased=erased,
            rows=batch.column("row").to_numpy()[firsts],
            keys=np.array([_key(*pair) for pair in texts], dtype=np.uint64),
            tokens=tokens,
            words=words,
            size=int(size[0]),
            totals={name: shaped(values) for name, values in totals.items()},
            errors={name: shaped(values) for name, values in errors.items()},
            facts={name: shaped(batch.column(name).to_numpy(zero_copy_only=False)) for name in names},
        )

    @property
    def converged(self) -> Floats:
        """Whether each row met the tolerance, (N, L) 0 or 1; NaN if it was predicted, or tokens were erased."""
        if self.erased:
            return np.full_like(self.facts["n_forward"], np.nan)
        predicted = np.isnan(self.facts["regime_index"])
        return np.where(predicted, np.nan, self.facts["converged"])

    def weights(self, per: str) -> tuple[Floats, Floats]:
        """Return the weights within and across sentences, (N,) each.

        A mean is the sum over sentences of total / within, divided by the sum of across.
        """
        ones = np.ones_like(self.tokens)
        return {
            "sentence": (ones, ones),
            "token": (ones, self.tokens),
            "token of a sentence": (self.tokens, ones),
            "dimension": (ones, self.tokens * self.size),
            "word": (ones, self.words),
            "word of a sentence": (np.maximum(self.words, 1), ones),
        }[per]


def floats(column: pa.ListArray) -> Floats:
    """Return the numbers of a column of lists, concatenated."""
    found: Floats = column.flatten().to_numpy(zero_copy_only=False).astype(float)
    return found


def _lengths(column: pa.ListArray, known: bool = False) -> Integers:
    """Return the length of each list of a column; with ``known`` without null values."""
    import pyarrow.compute as pc

    lengths: Integers = pc.list_value_length(column).to_numpy().astype(np.int64)
    if not known:
        return lengths
    valid = column.flatten().is_valid().to_numpy(zero_copy_only=False).astype(np.int64)
    of_line = np.repeat(np.arange(len(lengths)), lengths)
    return np.bincount(of_line, valid, len(lengths)).astype(np.int64)


def lengths_of(batch: pa.RecordBatch) -> Integers:
    """Return the number of tokens of each line."""
    return _lengths(batch.column("sigma"))


def kept_of_tokens(batch: pa.RecordBatch) -> Floats:
    """Return the nats kept of each token, for all lines, concatenated."""
    lengths = lengths_of(batch)
    size, cap, std = (np.repeat(batch.column(name).to_numpy(), lengths) for name in NATS[:3])
    return nats_kept(size, cap, std, floats(batch.column("sigma")))


def nats_kept(size: Any, cap: Any, std: Any, sigma: Floats) -> Floats:
    """Return K / 2 log(1 + tau^2 / sigma^2) minus the same at the cap, at least 0; the arguments broadcast."""
    passed = np.log1p(np.square(std / sigma)) - np.log1p(np.square(std / cap))
    found: Floats = size / 2 * np.maximum(passed, 0.0)
    return found


def _error_of_kept(batch: pa.RecordBatch, lengths: Integers, starts: Integers) -> Floats:
    """Return the standard error of the nats kept of all tokens of each line, by the formula of `scores.Known`."""
    size, _, std = (np.repeat(batch.column(name).to_numpy(), lengths) for name in NATS[:3])
    variance = np.square(floats(batch.column("standard_error")))
    # minus the derivative of kept by log sigma
    slope = size / (1 + np.square(floats(batch.column("sigma")) / std))
    total = np.square(lengths * batch.column("common_error").to_numpy())  # variance of the sum of log sigma

    def summed(values: Floats) -> Floats:
        found: Floats = np.add.reduceat(values, starts)
        return found

    free = (variance > 0).astype(float)
    pairs = summed(free) * (summed(free) - 1)
    shared = np.where(pairs > 0, (total - summed(variance)) / np.maximum(pairs, 1), 0.0)
    between = np.square(summed(free * slope)) - summed(free * np.square(slope))
    found: Floats = np.sqrt(np.maximum(summed(variance * np.square(slope)) + shared * between, 0.0))
    return found


def _key(text: str, pair: str | None) -> int:
    words = repr((text, pair)).encode("utf-8", "backslashreplace")
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little")


# -- tables


def layer_means(sentences: Sentences, resamples: int, seed: int) -> pd.DataFrame:
    """Return means over the corpus for each layer, with errors and intervals; see ``CorpusResult.layers``."""
    import pandas as pd

    found: list[dict[str, Any]] = []
    converged = sentences.converged.mean(0)

    def add(name: str, per: str, place: int, values: Sequence[float], **others: Any) -> None:
        line: dict[str, Any] = {"layer": sentences.layers[place], "quantity": name, "per": per}
        line |= dict(zip(("mean", "standard_error", "low", "high"), map(float, values)))
        line |= {"solver_error": math.nan, "sentences": len(sentences.rows), "converged": converged[place]}
        found.append({**line, **others})

    for per in PER_ERASED if sentences.erased else PER:
        within, across = sentences.weights(per)
        columns = {**sentences.totals, **(sentences.facts if per == "sentence" else {})}
        values = np.concatenate(list(columns.values()), axis=1) / within[:, None]
        means = *ratio(values, across), *bootstrap(values, across, resamples, seed)  # 4 x (quantities x L,)
        solver = {
            name: ratio(errors / within[:, None], across)[0] for name, errors in sentences.errors.items()
        }
        places = ((name, place) for name in columns for place in range(len(sentences.layers)))
        for i, (name, place) in enumerate(places):
            known = _defined(sentences, name, place) if name == "regime_index" else values[:, i]
            if 0 < len(known) < len(values):
                some, ones = known[:, None], np.ones(len(known))
                ends = *ratio(some, ones), *bootstrap(some, ones, resamples, seed)
                add(name, per, place, [end[0] for end in ends], sentences=len(known))
            else:
                error_of_draws = solver[name][place] if name in solver else math.nan
                add(name, per, place, [end[i] for end in means], solver_error=error_of_draws)
    for name in () if sentences.erased else _HEAVY_TAILED:
        for place in range(len(sentences.layers)):
            known = _defined(sentences, name, place)
            middle, low, high = median(known)
            add(name, MEDIAN, place, [middle, math.nan, low, high], sentences=len(known))
    return pd.DataFrame(found)


def _defined(sentences: Sentences, name: str, place: int) -> Floats:
    """Return a fact at a layer for the sentences where it is defined; E needs a state that moved."""
    values = sentences.facts[name][:, place]
    if name == "regime_index":
        values = values[sentences.facts["distortion"][:, place] > 0]
    return values[np.isfinite(values)]


def growth(sentences: Sentences, resamples: int, seed: int) -> pd.DataFrame:
    """Return the growth of kept information from layer to layer; see ``CorpusResult.monotonicity``."""
    import pandas as pd

    pairs = chain(sentences.layers)
    before, after = ([sentences.layers.index(pair[end]) for pair in pairs] for end in (0, 1))
    kept, converged = sentences.totals["kept"], sentences.converged
    change = kept.take(after, axis=1) - kept.take(before, axis=1)
    mean, error = ratio(change, np.ones(len(change)))
    low, high = bootstrap(change, np.ones(len(change)), resamples, seed)
    p = t_test(change, "greater")
    corrected = holm(p)
    return pd.DataFrame(
        {
            "layer": [b for _, b in pairs],
            "after": [a for a, _ in pairs],
            "growth": mean,
            "standard_error": error,
            "low": low,
            "high": high,
            "share": (change > 0).mean(0),
            "p": p,
            "p_holm": corrected,
            "violation": (mean > 0) & (corrected < 0.05),
            "converged": (converged.take(before, axis=1) * converged.take(after, axis=1)).mean(0),
        }
    )


def chain(layers: Sequence[Label]) -> list[tuple[Label, Label]]:
    """Return pairs of layers in which the second is computed from the first alone.

    A decoder's block also reads the encoder's last state, so its pair is with the encoder, not with the block before.

    Examples::
        >>> chain([1, 2, "output"])
        [(1, 2), (2, 'output')]
        >>> chain(["encoder.1", "encoder.2", "decoder.1", "decoder.2", "output"])[1:]
        [('encoder.2', 'decoder.1'), ('encoder.2', 'decoder.2'), ('encoder.2', 'output')]
    """
    encoder = [label for label in layers if str(label).startswith("encoder.")]
    if not any(str(label).startswith("decoder.") for label in layers):
        return list(pairwise(layers))
    found = list(pairwise(encoder))
    after = [label for label in layers if label not in encoder]
    return found + [(encoder[-1], label) for label in after] if encoder else found


def differences(ours: Sentences, theirs: Sentences, resamples: int, seed: int) -> pd.DataFrame:
    """Return our results minus theirs, paired by sentence; see ``CorpusResult.compare``."""
    import pandas as pd

    labels = [label for label in ours.layers if label in theirs.layers]
    if not labels:
        raise ValueError(
            f"the studies have no layer in common: {ours.layers} and {theirs.layers}; run them with the same layers"
        )
    rows, here, there = np.intersect1d(ours.rows, theirs.rows, return_indices=True)
    if not len(rows):
        raise ValueError("the studies have no row in common; compare studies of the same texts")
    other = ours.keys[here] != theirs.keys[there]
    if other.any():
        raise ValueError(
            f"row {rows[other][0]} and {int(other.sum()) - 1} more have other texts in the other study; compare "
            "studies of the same texts"
        )
    left, right = ([s.layers.index(label) for label in labels] for s in (ours, theirs))
    both = ours.converged[here][:, left] * theirs.converged[there][:, right]
    found: list[pd.DataFrame] = []
    for per in PER_ERASED if ours.erased else PER:
        columns = []
        for name in ours.totals:
            # each ratio is linearised about its own mean: the studies may have different numbers of tokens
            pair = [
                _linear(s.totals[name][chosen_rows][:, chosen], *(w[chosen_rows] for w in s.weights(per)))
                for s, chosen_rows, chosen in ((ours, here, left), (theirs, there, right))
            ]
            columns.append(pair[0] - pair[1])
        values = np.concatenate(columns, axis=1)  # (N, quantities x L); their mean is the difference
        ones = np.ones(len(values))
        mean, error = ratio(values, ones)
        low, high = bootstrap(values, ones, resamples, seed)
        p = t_test(values)
        count = len(labels)
        table = pd.DataFrame(
            {
                "layer": labels * len(ours.totals),
                "quantity": np.repeat(list(ours.totals), count),
                "per": per,
                "difference": mean,
                "standard_error": error,
                "low": low,
                "high": high,
                "p": p,
                "p_holm": np.concatenate([holm(some) for some in p.reshape(-1, count)]),
                "sentences": len(values),
                "converged": np.tile(both.mean(0), len(ours.totals)),
            }
        )
        found.append(table)
    return pd.concat(found, ignore_index=True)


def _linear(nats: Floats, within: Floats, across: Floats) -> Floats:
    """Return linearised values of the ratio, (N, L): their mean is the ratio, and so is their standard error."""
    values = nats / within[:, None]
    mean, _ = ratio(values, across)
    found: Floats = mean + (values - mean * across[:, None]) / across.mean()
    return found


# -- predictions against the solver


def agreement(parts: Sequence[Part], layers: Sequence[Label], held_out: Mapping[str, Any]) -> pd.DataFrame:
    """Compare predictions with the solver on the checked texts; see ``CorpusResult.check``.

    Args:
        parts: of an amortised study.
        layers: labels of the layers.
        held_out: the fields of the head's :class:`HeldOut`.
    """
    import pandas as pd

    known = HeldOut.restored(held_out)
    texts, shifts = _read(parts, layers)
    nothing = np.full(len(layers), np.nan)
    unknown = ("error", "noise", "spearman", "covered", "shift", "shift_error", "p", "p_holm")
    columns: dict[str, Any] = {"layer": list(layers), "texts": len(texts), "held_out": known.error}
    columns |= {**dict.fromkeys(unknown, nothing), "drift": False}
    if texts:
        found = Agreement.of(texts)
        p = p_of_drift(found, known)
        nats = np.array(shifts)  # (N, L)
        spread = nats.std(0, ddof=1) / math.sqrt(len(texts)) if len(texts) > 1 else nothing
        columns |= {
            **found.summary(),
            "shift": nats.mean(0),
            "shift_error": spread,
            "p": p,
            "p_holm": holm(p),
        }
        columns["drift"] = columns["p_holm"] < DRIFT
    return pd.DataFrame(columns)


def warn_of_drift(found: pd.DataFrame, stacklevel: int = 2) -> None:
    """Warn if the head's error is larger on this corpus than on the held-out texts of its training.

    Args:
        found: result of :func:`agreement`.
        stacklevel: of the warning.
    """
    drifted = found[found["drift"]]
    if len(drifted):
        layers = ", ".join(
            f"{line.layer!r} ({line.error:.2g} against {line.held_out:.2g})" for line in drifted.itertuples()
        )
        warnings.warn(
            "the head's error of log sigma is larger on this corpus than on the texts held out when it was trained, "
            f"at layer {layers}: these texts differ from those, so train a head on some of them, or use the solver",
            stacklevel=stacklevel + 1,
        )


def _read(parts: Sequence[Part], layers: Sequence[Label]) -> tuple[list[list[Compared]], list[list[float]]]:
    """Return the predictions and solutions of each checked text and layer, and the shift of the nats kept."""
    texts: list[list[Compared]] = []
    shifts: list[list[float]] = []
    for batch in batches_of(parts, len(layers), (*NATS, "standard_error", *SOLVED)):
        some = batch.filter(batch.column(SOLVED[0]).is_valid()).to_pylist()
        for place in range(0, len(some), len(layers)):
            lines = some[place : place + len(layers)]
            texts.append([_logs(line) for line in lines])
            shifts.append([_shift(line) for line in lines])
    return texts, shifts


def _shift(line: Mapping[str, Any]) -> float:
    """Return the nats kept per token of a line, predicted minus solved."""
    predicted, solved = (
        nats_kept(line["size"], line["max_sigma"], line["input_std"], np.array(line[name], dtype=float))
        for name in ("sigma", SOLVED[0])
    )
    return float((predicted - solved).mean())


def _logs(line: Mapping[str, Any]) -> Compared:
    names = ("sigma", "standard_error", *SOLVED)
    sigma, error, solved, solved_error = (np.array(line[name], dtype=float) for name in names)
    return np.log(sigma), error, np.log(solved), solved_error
