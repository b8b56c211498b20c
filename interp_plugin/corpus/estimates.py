"""Estimates: means of sentences with their errors and intervals by the bootstrap."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

RESAMPLES = 1000
LEVEL = 0.95
Z = 1.959963984540054  # of a normal, two-sided 95 %
_CELLS = 4_000_000  # of counts in memory at a time


def ratio(values: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Sum of values over sum of weights, and its standard error over sentences, (M,) each.

    The error is that of the linearised ratio (Cochran, Sampling Techniques, 1977, section 6.4); with weights of one
    it is that of the mean.

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
    """Both ends of the 95 % percentile interval of sum of values over sum of weights, (M,) each.

    Sentences are drawn with replacement, the same ones for all M, so that what is paired stays so (Efron, 1979).

    Args:
        values: (N, M), N sentences.
        weights: (N,).
        resamples: how often; memory does not grow with it.
        seed: of the draws.
    """
    n, count = values.shape
    if n < 2:
        return np.full(count, np.nan), np.full(count, np.nan)
    generator = np.random.default_rng(seed)
    step = max(1, _CELLS // n)
    found = np.empty((resamples, count))
    for first in range(0, resamples, step):
        size = min(step, resamples - first)
        drawn = generator.integers(0, n, (size, n)) + n * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n).astype(float)
        found[first : first + size] = (counts @ values) / (counts @ weights)[:, None]
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high


def p_values(means: Floats, errors: Floats, n: int, one_sided: bool = False) -> Floats:
    """Student's t-test that a mean of n is 0, or (one-sided) not above 0.  No error and no mean: 1."""
    from scipy import stats

    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where((means == 0) & (errors == 0), 0.0, means / errors)
    found: Floats = stats.t.sf(t, n - 1) if one_sided else 2 * stats.t.sf(np.abs(t), n - 1)
    return found
