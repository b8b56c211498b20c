"""Statistics over texts: means with bootstrap intervals, tests, Holm's correction, and agreement of predictions."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from interp_plugin.optional import load

Floats = NDArray[np.float64]
Compared = tuple[Floats, Floats, Floats, Floats]  # log sigma and its error, predicted, then solved, (T,) each

RESAMPLES = 9999
LEVEL = 0.95
SEED = 0
_BATCH = 500  # resamples computed at a time
_COLUMNS = 256  # columns computed at a time
# of a head's predictions
WIDE = 2.0  # standard errors
MARGIN = 1.1  # times the held-out error: a smaller increase would not matter
FLOOR = 1e-8  # of a mean square: texts with all tokens at the cap are predicted without any error


@dataclass(frozen=True)
class Means:
    """Means of C columns and their bootstrap intervals.

    Attributes:
        mean, low, high: (C,), in the unit of the columns; NaN for a column without values.
        n: number of values in each column, (C,).
    """

    mean: Floats
    low: Floats
    high: Floats
    n: NDArray[np.int64]


@dataclass(frozen=True)
class Paired:
    """Differences of two methods on the same texts.

    Attributes:
        n: number of texts that both methods have.
        mean: mean of the differences, first minus second.
        low, high: bootstrap interval of the mean.
        p: p-value of Wilcoxon's signed-rank test, two-sided; NaN where n is 0.
    """

    n: int
    mean: float
    low: float
    high: float
    p: float


def means(values: ArrayLike, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = SEED) -> Means:
    """Compute means of columns with percentile bootstrap intervals (Efron & Tibshirani 1993, section 13.3).

    Columns with missing values in the same rows share their resamples, so that their intervals can be compared.  The
    interval equals ``scipy.stats.bootstrap(..., method="percentile", batch=500)`` with this seed, which takes six times
    as long for a study of 200 texts and 430 columns.

    Args:
        values: (N, C), or (N,) for one column; NaN: no value.
        resamples: number of resamples of the texts, with replacement.
        level: coverage of the intervals.
        seed: seed of the resamples.

    Returns:
        The means and intervals; the interval of a single value is NaN.

    Examples::
        >>> found = means([1.0, 2.0, float("nan"), 3.0])
        >>> found.n.tolist(), found.mean.tolist(), found.low[0] < 2 < found.high[0]
        ([3], [2.0], np.True_)
    """
    columns = np.asarray(values, np.float64)
    columns = columns[:, None] if columns.ndim == 1 else columns
    if columns.ndim != 2:
        raise ValueError(f"values have shape {columns.shape}; they must be (texts,) or (texts, columns)")
    n = (~np.isnan(columns)).sum(0)
    mean, low, high = np.full((3, columns.shape[1]), np.nan)
    edges = 100 * (np.array([-level, level]) + 1) / 2
    for rows, some in _same_rows(columns):
        known = columns[np.ix_(rows, np.array(some))]  # (n, c)
        mean[some] = known.mean(0)
        if len(rows) > 1:
            drawn = np.concatenate(
                [counts @ known for counts in resample_counts(len(rows), resamples, seed)]
            ) / len(rows)
            low[some], high[some] = np.percentile(drawn, edges, axis=0)
    return Means(mean, low, high, n)


def paired(differences: ArrayLike) -> list[Paired]:
    """Compute mean, interval and test of the differences between two methods on the same texts, for each column.

    Wilcoxon's test ranks differences of 0 together with the others and omits them from the sums (Pratt 1959).  Ties
    get their mean rank.  The distribution is exact whenever SciPy uses the exact one (few texts, no ties).  If all
    differences are 0, p is 1.

    Args:
        differences: first minus second, (N, C); NaN: one of the two has no value for the text.

    Examples::
        >>> [found] = paired([[2.0], [2.5], [3.5], [4.0], [5.0]])
        >>> found.n, found.mean, found.p  # all five differ in one direction: 2 / 2^5
        (5, 3.4, 0.0625)
    """
    columns = np.asarray(differences, np.float64)
    found = means(columns)
    numbers = zip(found.n.tolist(), found.mean.tolist(), found.low.tolist(), found.high.tolist(), columns.T)
    return [Paired(n, mean, low, high, signed_rank(column)) for n, mean, low, high, column in numbers]


def signed_rank(differences: ArrayLike) -> float:
    """Compute the two-sided p-value of Wilcoxon's signed-rank test; see :func:`paired` for zeros and ties.

    Examples::
        >>> signed_rank([0.0, 0.0, float("nan")])
        1.0
    """
    known = np.asarray(differences, np.float64)
    known = known[~np.isnan(known)]
    if not known.any():
        return 1.0 if len(known) else float("nan")
    stats = load("scipy.stats", "a test of differences", "compare")
    return float(stats.wilcoxon(known, zero_method="pratt").pvalue)


def t_test(values: ArrayLike, alternative: Literal["two-sided", "greater"] = "two-sided") -> Floats:
    """Compute the p-value of Student's t-test that the mean of each column is 0, (C,); for a column of zeros it is 1.

    Args:
        values: (N, C).
        alternative: "greater": the alternative is a mean above 0.

    Examples::
        >>> t_test([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]]).round(4).tolist()
        [0.0742, 1.0]
    """
    stats = load("scipy.stats", "a test of differences", "compare")
    columns = np.asarray(values, np.float64)
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.filterwarnings("ignore", "Precision loss occurred")  # if all values are equal
        found = stats.ttest_1samp(columns, 0.0, alternative=alternative)
    p: Floats = np.where((columns == 0).all(0), 1.0, found.pvalue)
    return p


def holm(p_values: ArrayLike) -> Floats:
    """Apply Holm's step-down correction, which controls the family-wise error rate of all tests (Holm 1979).

    Args:
        p_values: (m,); NaN: no test, not counted.

    Returns:
        The corrected p-values, at most 1, in the given order, (m,).

    Examples::
        >>> holm([0.01, 0.04, 0.03]).round(3).tolist()
        [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, np.float64)
    corrected = np.full(p.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    factors = len(order) - np.arange(len(order))
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0)
    return corrected


def resample_counts(n: int, resamples: int, seed: int, batch: int = _BATCH) -> Iterator[Floats]:
    """Yield how often each of n values occurs in each bootstrap resample, (r, n) at a time.

    A matrix product with the counts gives the resampled sums of any number of columns.

    Args:
        n: number of values.
        resamples: number of resamples, with replacement; the r of all parts add up to it.
        seed: seed of the resamples.
        batch: the largest r.

    Examples::
        >>> [counts.sum(1).tolist() for counts in resample_counts(5, 3, seed=0, batch=2)]
        [[5.0, 5.0], [5.0]]
    """
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, batch):
        rows = min(batch, resamples - start)
        drawn = rng.integers(0, n, (rows, n)) + n * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)


def _same_rows(columns: Floats) -> Iterator[tuple[NDArray[np.int64], list[int]]]:
    """Yield rows, and the columns that have values in exactly these rows, up to 256 columns at a time."""
    groups: dict[bytes, list[int]] = {}
    known = ~np.isnan(columns)
    for index in range(columns.shape[1]):
        groups.setdefault(known[:, index].tobytes(), []).append(index)
    for group in groups.values():
        rows = np.flatnonzero(known[:, group[0]])
        if len(rows):
            for start in range(0, len(group), _COLUMNS):
                yield rows, group[start : start + _COLUMNS]


# -- predictions against the solver


@dataclass(frozen=True)
class Agreement:
    """Predicted against solved log sigma of N texts at L layers, (N, L) each.

    Attributes:
        square: mean over the tokens of the squared difference.
        noise: the solver's part of it: mean of its squared standard errors.
        shift: mean over the tokens of predicted minus solved.
        spearman: rank correlation over the tokens; NaN if all are equal.
        covered: share of the tokens that differ by at most two standard errors of the difference.
    """

    square: Floats
    noise: Floats
    shift: Floats
    spearman: Floats
    covered: Floats

    @classmethod
    def of(cls, texts: Sequence[Sequence[Compared]]) -> Agreement:
        """Compute the agreement from the values of each text and layer."""
        found = np.array([[_agreement(*layer) for layer in text] for text in texts], dtype=float)
        return cls(*np.moveaxis(found.reshape(len(texts), -1, 5), 2, 0))

    @property
    def error(self) -> Floats:
        """r.m.s. difference over the texts, (L,)."""
        found: Floats = np.sqrt(self.square.mean(0))
        return found

    def summary(self) -> dict[str, Floats]:
        """Return r.m.s. difference, r.m.s. noise, and the means of the other columns of a table, (L,) each."""
        return {
            "error": self.error,
            "noise": np.sqrt(self.noise.mean(0)),
            "spearman": _mean(self.spearman),
            "covered": self.covered.mean(0),
        }

    @property
    def logs(self) -> Floats:
        """log of the mean square of each text, (N, L)."""
        return np.log(self.square + FLOOR)


def _agreement(
    predicted: Floats, predicted_error: Floats, solved: Floats, solved_error: Floats
) -> tuple[float, float, float, float, float]:
    stats = load("scipy.stats", "the agreement of predictions", "compare")
    off = predicted - solved
    ranks = [stats.rankdata(values) - (len(values) + 1) / 2 for values in (predicted, solved)]
    size = math.sqrt(float(ranks[0] @ ranks[0]) * float(ranks[1] @ ranks[1]))
    rank_correlation = float(ranks[0] @ ranks[1]) / size if size else math.nan
    wide = WIDE * np.sqrt(np.square(predicted_error) + np.square(solved_error))
    return (
        float(np.square(off).mean()),
        float(np.square(solved_error).mean()),
        float(off.mean()),
        rank_correlation,
        float((np.abs(off) <= wide).mean()),
    )


@dataclass(frozen=True)
class HeldOut:
    """Errors of a head's predictions relative to the solver on held-out texts; L layers, L values each.

    Attributes:
        texts: number of texts.
        error: r.m.s. error of log sigma; it includes the solver's own.
        noise: r.m.s. standard error of the solver.
        mean_error: r.m.s. error of the mean of log sigma over a text's tokens.
        spearman: rank correlation over the tokens, mean over the texts.
        covered: share of the tokens within two standard errors, mean over the texts.
        log_mean, log_std: mean and standard deviation over the texts of the log of a text's mean squared error.
    """

    texts: int
    error: tuple[float, ...]
    noise: tuple[float, ...]
    mean_error: tuple[float, ...]
    spearman: tuple[float, ...]
    covered: tuple[float, ...]
    log_mean: tuple[float, ...]
    log_std: tuple[float, ...]

    @classmethod
    def of(cls, found: Agreement) -> HeldOut:
        """Summarise the texts."""
        columns = {
            **found.summary(),
            "mean_error": np.sqrt(np.square(found.shift).mean(0)),
            "log_mean": found.logs.mean(0),
            "log_std": found.logs.std(0, ddof=1),
        }
        return cls(len(found.square), **{name: tuple(column.tolist()) for name, column in columns.items()})

    @classmethod
    def restored(cls, plain: Mapping[str, Any]) -> HeldOut:
        """Create an instance from its fields in JSON, with lists for tuples."""
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()
        }
        return cls(**fields)


def p_of_drift(found: Agreement, known: HeldOut) -> Floats:
    """Compute Welch's one-sided test that the errors are larger here by more than a margin, (L,).

    Logarithms prevent a few texts with large errors from dominating.  The margin allows for a solver that is less
    certain here than on the held-out texts: the head is not the cause of that difference.
    """
    stats = load("scipy.stats", "a test of predictions", "compare")
    if len(found.square) < 2:
        return np.ones(found.square.shape[1])
    square, noise = np.square(known.error) + FLOOR, np.square(known.noise)
    allowed = np.log(1 + np.maximum(found.noise.mean(0) - noise, 0) / square) + 2 * math.log(MARGIN)
    logs = found.logs - allowed
    with np.errstate(divide="ignore", invalid="ignore"):
        p = stats.ttest_ind_from_stats(
            logs.mean(0), logs.std(0, ddof=1), len(logs), np.array(known.log_mean), np.array(known.log_std),
            known.texts, equal_var=False, alternative="greater",
        ).pvalue  # fmt: skip
    return np.where(np.isnan(p), 1.0, p)


def _mean(columns: Floats) -> Floats:
    """Return the mean over the texts that have a value."""
    known = ~np.isnan(columns)
    with np.errstate(invalid="ignore"):
        found: Floats = np.where(known, columns, 0).sum(0) / known.sum(0)
    return found
