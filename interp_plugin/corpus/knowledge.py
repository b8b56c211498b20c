"""Knowledge: which tokens a layer holds well above the background, and how much it holds the foreground above it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from interp_plugin.corpus.estimates import Z, ratio
from interp_plugin.corpus.parts import Part
from interp_plugin.corpus.quantities import batches_of
from interp_plugin.corpus.word_classes import COLUMNS, Classify, Sums, by_class, tokens_of
from interp_plugin.text.models import Label

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


def knowledge(
    parts: Sequence[Part],
    layers: Sequence[Label],
    classify: Classify,
    foreground: Collection[str],
    threshold: float,
) -> pd.DataFrame:
    """A line for each layer; see ``CorpusResult.knowledge``.  Two passes over the parts."""
    import pandas as pd

    kept, lost, counts, classes, size = _nats(parts, layers, classify, foreground)
    if not (counts.sum(0) > 0).all():
        there = ", ".join(map(repr, classes))
        raise ValueError(
            f"foreground is {sorted(foreground)!r}, and the corpus has {there}: some must be in it and some not"
        )
    fore, fore_error = ratio(kept[..., 0], counts[:, 0])
    back, _ = ratio(kept[..., 1], counts[:, 1])
    # the error of a difference of two ratios over the same sentences, linearised as each of them is
    residual = [
        (kept[..., i] - mean * counts[:, i : i + 1]) / counts[:, i].mean()
        for i, mean in enumerate((fore, back))
    ]
    _, contrast_error = ratio(residual[0] - residual[1], np.ones(len(counts)))
    bar = ratio(lost, counts[:, 1])[0] - threshold * size
    points = np.concatenate(list(_points(parts, layers, classify, foreground, bar)))
    rates = [ratio(points[..., i], np.ones(len(points))) for i in (0, 1)]
    both = points.sum(-1)
    with np.errstate(invalid="ignore"):
        share = points[..., 0] / both  # of sentences without any point it is not defined
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
        }
    )


def _nats(
    parts: Sequence[Part], layers: Sequence[Label], classify: Classify, foreground: Collection[str]
) -> tuple[Floats, Floats, Floats, list[str], int]:
    """Nats kept of foreground and background in each sentence (N, L, 2), nats lost of background (N, L), the tokens of
    both (N, 2), classes and K.
    """
    sums, size = Sums(layers), 0
    kept, background, counts = [], [], []
    for batch in batches_of(parts, layers, COLUMNS):
        size = batch.column("size")[0].as_py()
        nats, lost, tokens = by_class(batch, layers, classify, sums)
        fore = _is_foreground(sums, foreground)
        kept.append(np.stack([nats[..., fore].sum(-1), nats[..., ~fore].sum(-1)], axis=-1))
        background.append(lost[..., ~fore].sum(-1))
        counts.append(np.stack([tokens[:, fore].sum(1), tokens[:, ~fore].sum(1)], axis=1))
    nats_kept, nats_lost, tokens = (np.concatenate(each) for each in (kept, background, counts))
    return nats_kept, nats_lost, tokens, sums.classes, size


def _points(
    parts: Sequence[Part],
    layers: Sequence[Label],
    classify: Classify,
    foreground: Collection[str],
    bar: Floats,
) -> Iterator[Floats]:
    """Tokens that lose less than the bar (L,) in foreground and background of each sentence, (S, L, 2)."""
    sums = Sums(layers)
    for batch in batches_of(parts, layers, COLUMNS):
        codes, sentences, _, lost = tokens_of(batch, layers, classify, sums)
        place = 2 * sentences + ~_is_foreground(sums, foreground)[codes]
        n = batch.num_rows // len(layers)
        below = [np.bincount(place, row < limit, 2 * n) for row, limit in zip(lost, bar)]
        yield np.stack([each.reshape(n, 2) for each in below], axis=1)


def _is_foreground(sums: Sums, foreground: Collection[str]) -> NDArray[np.bool_]:
    return np.array([name in foreground for name in sums.classes])
