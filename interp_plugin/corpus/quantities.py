"""Quantities: what the layers lose and keep of the sentences of a corpus, and how that goes with depth."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from interp_plugin.corpus.estimates import bootstrap, p_values, ratio
from interp_plugin.corpus.parts import Part, lines
from interp_plugin.statistics import holm
from interp_plugin.text.models import Label

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Integers = NDArray[np.int64]

ENTROPY = 0.5 * math.log(2 * math.pi * math.e)  # of a unit Gaussian, a dimension
BATCH = 4096  # lines in memory at a time
NO_NUMBERS = "the study has no numbers: every text of its corpus failed, see failures(), or none is done yet"
PER = ("sentence", "token", "token of a sentence", "dimension")
_FACTS = ("regime_index", "distortion", "rate", "converged", "n_forward", "n_backward")
NATS = ("size", "max_sigma", "input_std", "sigma")
"""Columns of a line that the nats kept of its tokens come of."""
_COLUMNS = ("row", "text", "pair", *NATS, "standard_error", "common_error", *_FACTS)


@dataclass(frozen=True)
class Sentences:
    """A float for each sentence and layer; N sentences, L layers.

    Attributes:
        layers: L labels in forward order.
        rows: of the corpus, (N,).
        keys: of the texts, (N,): equal for equal texts.
        tokens: T of each, (N,).
        size: K, elements of a token's embedding.
        kept, loss: nats of all tokens of a sentence, (N, L).
        kept_error, loss_error: their standard errors, (N, L), from the noise draws.
        facts: "regime_index", "distortion", "rate", "converged", "n_forward", "n_backward", (N, L) each.
    """

    layers: tuple[Label, ...]
    rows: Integers
    keys: NDArray[np.uint64]
    tokens: Floats
    size: int
    kept: Floats
    loss: Floats
    kept_error: Floats
    loss_error: Floats
    facts: Mapping[str, Floats]

    @classmethod
    def read(cls, parts: Iterable[Part], layers: Sequence[Label]) -> Sentences:
        """From the parts, a few thousand lines at a time.

        Raises:
            ValueError: not one sentence is there.
        """
        found = [cls._of(batch, layers) for batch in batches_of(parts, layers, _COLUMNS)]
        if not found:
            raise ValueError(NO_NUMBERS)

        def joined(name: str) -> Any:
            return np.concatenate([getattr(each, name) for each in found])

        return cls(
            layers=tuple(layers),
            rows=joined("rows"),
            keys=joined("keys"),
            tokens=joined("tokens"),
            size=found[0].size,
            kept=joined("kept"),
            loss=joined("loss"),
            kept_error=joined("kept_error"),
            loss_error=joined("loss_error"),
            facts={name: np.concatenate([each.facts[name] for each in found]) for name in _FACTS},
        )

    @classmethod
    def _of(cls, batch: pa.RecordBatch, layers: Sequence[Label]) -> Sentences:
        count = len(layers)
        column = {name: batch.column(name) for name in _COLUMNS}
        kept, lengths = kept_of_tokens(batch)
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        size = column["size"].to_numpy()
        log_sigma = np.add.reduceat(np.log(floats(column["sigma"])), starts)

        def shaped(values: Any) -> Floats:
            return np.asarray(values, dtype=float).reshape(-1, count)

        facts = {name: shaped(column[name].to_numpy(zero_copy_only=False)) for name in _FACTS}
        firsts = slice(None, None, count)
        words = zip(column["text"][firsts].to_pylist(), column["pair"][firsts].to_pylist())
        return cls(
            tuple(layers),
            column["row"].to_numpy()[firsts],
            np.array([_key(*pair) for pair in words], dtype=np.uint64),
            lengths[firsts].astype(float),
            int(size[0]),
            shaped(np.add.reduceat(kept, starts)),
            shaped(lengths * size * ENTROPY + size * log_sigma),
            shaped(_error_of_kept(batch, lengths, starts)),
            shaped(lengths * size * column["common_error"].to_numpy()),
            facts,
        )

    def of(self, label: Label) -> int:
        """The number of a layer.

        Raises:
            ValueError: it is not in the study.
        """
        if label not in self.layers:
            raise ValueError(f"layer {label!r} is not in the study: choose from {self.layers}")
        return self.layers.index(label)

    def weights(self, per: str) -> tuple[Floats, Floats]:
        """What a sentence's nats are divided by before the sum over sentences, and what the sum is, (N,) each."""
        ones = np.ones_like(self.tokens)
        return {
            "sentence": (ones, ones),
            "token": (ones, self.tokens),
            "token of a sentence": (self.tokens, ones),
            "dimension": (ones, self.tokens * self.size),
        }[per]


def batches_of(
    parts: Iterable[Part], layers: Sequence[Label], columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """Lines of all parts, so many at a time, those of a text together."""
    step = max(1, BATCH // len(layers)) * len(layers)
    for part in parts:
        yield from lines(part, columns, step)


def floats(column: pa.ListArray) -> Floats:
    """The numbers of a column of lists, one after another."""
    found: Floats = column.flatten().to_numpy(zero_copy_only=False).astype(float)
    return found


def kept_of_tokens(batch: pa.RecordBatch) -> tuple[Floats, Integers]:
    """Nats kept of each token of each line, one after another, and how many tokens each line has."""
    import pyarrow.compute as pc

    sigma = batch.column("sigma")
    lengths: Integers = pc.list_value_length(sigma).to_numpy().astype(np.int64)
    size, cap, std = (np.repeat(batch.column(name).to_numpy(), lengths) for name in NATS[:3])
    return nats_kept(size, cap, std, floats(sigma)), lengths


def nats_kept(size: Any, cap: Any, std: Any, sigma: Floats) -> Floats:
    """K / 2 log(1 + tau^2 / sigma^2), less the same at the cap, where it is 0; arrays that broadcast."""
    passed = np.log1p(np.square(std / sigma)) - np.log1p(np.square(std / cap))
    found: Floats = size / 2 * np.maximum(passed, 0.0)
    return found


def _error_of_kept(batch: pa.RecordBatch, lengths: Integers, starts: Integers) -> Floats:
    """Standard error of the nats kept of each line's tokens together, as `Known` of the scores has it."""
    size, _, std = (np.repeat(batch.column(name).to_numpy(), lengths) for name in NATS[:3])
    variance = np.square(floats(batch.column("standard_error")))
    slope = size / (1 + np.square(floats(batch.column("sigma")) / std))  # of kept by log sigma
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


def curves(sentences: Sentences, resamples: int, seed: int) -> pd.DataFrame:
    """Means over the corpus for each layer, with errors and intervals; see ``CorpusResult.layers``."""
    import pandas as pd

    listed: list[dict[str, Any]] = []
    for per in PER:
        within, across = sentences.weights(per)
        columns = {"kept": sentences.kept, "loss": sentences.loss}
        if per == "sentence":
            columns.update(sentences.facts)
        values = np.concatenate(list(columns.values()), axis=1) / within[:, None]
        mean, error = ratio(values, across)
        low, high = bootstrap(values, across, resamples, seed)
        solver = {
            name: ratio(error / within[:, None], across)[0]
            for name, error in (("kept", sentences.kept_error), ("loss", sentences.loss_error))
        }
        for place, (name, label) in enumerate((c, layer) for c in columns for layer in sentences.layers):
            listed.append(
                {
                    "layer": label,
                    "quantity": name,
                    "per": per,
                    "mean": mean[place],
                    "standard_error": error[place],
                    "low": low[place],
                    "high": high[place],
                    "solver_error": solver[name][sentences.of(label)] if name in solver else np.nan,
                    "sentences": len(sentences.rows),
                }
            )
    return pd.DataFrame(listed)


def growth(sentences: Sentences, resamples: int, seed: int) -> pd.DataFrame:
    """Where a layer keeps more than the one it is computed from; see ``CorpusResult.monotonicity``."""
    import pandas as pd

    pairs = chain(sentences.layers)
    names = ("layer", "after", "growth", "standard_error", "low", "high", "share", "p", "p_holm", "violation")
    if not pairs:
        return pd.DataFrame({name: [] for name in names})
    columns = [(sentences.of(a), sentences.of(b)) for a, b in pairs]
    change = np.stack([sentences.kept[:, b] - sentences.kept[:, a] for a, b in columns], axis=1)
    ones = np.ones(len(change))
    mean, error = ratio(change, ones)
    low, high = bootstrap(change, ones, resamples, seed)
    p = p_values(mean, error, len(change), one_sided=True)
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
        }
    )[list(names)]


def chain(layers: Sequence[Label]) -> list[tuple[Label, Label]]:
    """Pairs of layers of which the second is computed from the first alone.

    A decoder's block reads the encoder's last state too, so it follows from the encoder, and not from the block before.

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
    """Ours less theirs, sentence by sentence; see ``CorpusResult.compare``."""
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
            f"row {rows[other][0]} and {int(other.sum()) - 1} more are other texts in the other study; compare studies "
            "of the same texts"
        )
    left, right = ([s.of(label) for label in labels] for s in (ours, theirs))
    found: list[pd.DataFrame] = []
    for per in PER:
        columns = []
        for name in ("kept", "loss"):
            # each ratio is linearised about its own mean, so that the two may have other numbers of tokens
            pair = [
                _linear(getattr(s, name)[chosen_rows][:, chosen], *(w[chosen_rows] for w in s.weights(per)))
                for s, chosen_rows, chosen in ((ours, here, left), (theirs, there, right))
            ]
            columns.append(pair[0] - pair[1])
        values = np.concatenate(columns, axis=1)  # (N, 2 L), whose mean is the difference
        ones = np.ones(len(values))
        mean, error = ratio(values, ones)
        low, high = bootstrap(values, ones, resamples, seed)
        p = p_values(mean, error, len(values))
        half = len(labels)
        table = pd.DataFrame(
            {
                "layer": labels * 2,
                "quantity": ["kept"] * half + ["loss"] * half,
                "per": per,
                "difference": mean,
                "standard_error": error,
                "low": low,
                "high": high,
                "p": p,
                "p_holm": np.concatenate([holm(p[:half]), holm(p[half:])]),
                "sentences": len(values),
            }
        )
        found.append(table)
    return pd.concat(found, ignore_index=True)


def _linear(nats: Floats, within: Floats, across: Floats) -> Floats:
    """For each sentence a number whose mean is the ratio, and whose spread is the ratio's, (N, L)."""
    values = nats / within[:, None]
    mean, _ = ratio(values, across)
    found: Floats = mean + (values - mean * across[:, None]) / across.mean()
    return found


def _key(text: str, pair: str | None) -> int:
    words = repr((text, pair)).encode("utf-8", "backslashreplace")
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little")
