"""Agreement of a head's predictions with the solver, on held-out texts and on those of a corpus that it checks."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from interp_plugin.corpus.parts import SOLVED, Part, batches_of
from interp_plugin.corpus.quantities import NATS, nats_kept
from interp_plugin.statistics import holm
from interp_plugin.text.models import Label

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Compared = tuple[
        Floats, Floats, Floats, Floats
    ]  # log sigma and its error, predicted, then solved, (T,) each

WIDE = 2.0  # standard errors
LEVEL = 0.01  # of the test of drift
MARGIN = 1.1  # times the held-out error: a smaller increase would not matter
FLOOR = 1e-8  # of a mean square: texts with all tokens at the cap are predicted without any error


@dataclass(frozen=True)
class Agreement:
    """Predicted against solved log sigma of N texts at L layers, (N, L) each.

    Attributes:
        square: mean over the tokens of the squared difference.
        noise: that part of it which is the solver's: mean of its squared standard errors.
        shift: mean over the tokens of predicted less solved.
        spearman: rank correlation over the tokens; NaN where all are equal.
        covered: share of the tokens that differ by at most two standard errors of the difference.
    """

    square: Floats
    noise: Floats
    shift: Floats
    spearman: Floats
    covered: Floats

    @classmethod
    def of(cls, texts: Sequence[Sequence[Compared]]) -> Agreement:
        """From the values to compare, of each text and layer."""
        found = np.array([[_agreement(*layer) for layer in text] for text in texts], dtype=float)
        return cls(*np.moveaxis(found.reshape(len(texts), -1, 5), 2, 0))

    @property
    def error(self) -> Floats:
        """r.m.s. difference over the texts, (L,)."""
        found: Floats = np.sqrt(self.square.mean(0))
        return found

    def summary(self) -> dict[str, Floats]:
        """r.m.s. difference, r.m.s. noise, and the means of the others that a table shows, (L,) each."""
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
    from scipy.stats import rankdata

    off = predicted - solved
    ranks = [rankdata(values) - (len(values) + 1) / 2 for values in (predicted, solved)]
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
    """How far a head's predictions are from the solver on texts that it did not learn from; L layers, L of each.

    Attributes:
        texts: how many.
        error: r.m.s. error of log sigma; the solver's own is part of it.
        noise: r.m.s. standard error of the solver there.
        mean_error: r.m.s. error of the mean of log sigma over a text's tokens.
        spearman: rank correlation over the tokens, mean over the texts.
        covered: share of the tokens within two standard errors, mean over the texts.
        log_mean, log_std: over the texts, of the log of a text's mean squared error.
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
        """The summary over the texts."""
        columns = {
            **found.summary(),
            "mean_error": np.sqrt(np.square(found.shift).mean(0)),
            "log_mean": found.logs.mean(0),
            "log_std": found.logs.std(0, ddof=1),
        }
        return cls(len(found.square), **{name: tuple(column.tolist()) for name, column in columns.items()})

    @classmethod
    def restored(cls, plain: Mapping[str, Any]) -> HeldOut:
        """From its fields as JSON gives them: lists for tuples."""
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()
        }
        return cls(**fields)


def table(parts: Sequence[Part], layers: Sequence[Label], held_out: Mapping[str, Any]) -> pd.DataFrame:
    """Predictions against the solver on the texts that it checked; see ``CorpusResult.check``.

    Args:
        parts: of a study that was amortised.
        layers: their labels.
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
        p = _p_of_drift(found, known)
        nats = np.array(shifts)  # (N, L)
        spread = nats.std(0, ddof=1) / math.sqrt(len(texts)) if len(texts) > 1 else nothing
        columns |= {
            **found.summary(),
            "shift": nats.mean(0),
            "shift_error": spread,
            "p": p,
            "p_holm": holm(p),
        }
        columns["drift"] = columns["p_holm"] < LEVEL
    return pd.DataFrame(columns)


def warn_of_drift(found: pd.DataFrame, stacklevel: int = 2) -> None:
    """Say that the head is further off than where it was held out, if it is.

    Args:
        found: of :func:`table`.
        stacklevel: of the warning.
    """
    drifted = found[found["drift"]]
    if len(drifted):
        layers = ", ".join(
            f"{line.layer!r} ({line.error:.2g} against {line.held_out:.2g})" for line in drifted.itertuples()
        )
        warnings.warn(
            "the head's error of log sigma is larger on this corpus than on the texts held out when it was trained, "
            f"at layer {layers}: these texts are unlike those, so train a head on some of them, or score them exactly",
            stacklevel=stacklevel + 1,
        )


def _p_of_drift(found: Agreement, known: HeldOut) -> Floats:
    """Welch's test, one-sided, that texts' errors are larger here by more than a margin, (L,).

    Logarithms make the few texts with large errors count no more than others.  A solver that is less certain here than
    it was there makes larger differences, which are no fault of the head.
    """
    from scipy import stats

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


def _read(parts: Sequence[Part], layers: Sequence[Label]) -> tuple[list[list[Compared]], list[list[float]]]:
    """log sigma and its error, predicted and solved, of every text and layer that has both; and the nats kept of a
    token, predicted less solved, mean over the tokens.
    """
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
    """Nats kept of a token, predicted less solved, mean over the tokens of a line."""
    predicted, solved = (
        nats_kept(line["size"], line["max_sigma"], line["input_std"], np.array(line[name], dtype=float))
        for name in ("sigma", SOLVED[0])
    )
    return float((predicted - solved).mean())


def _logs(line: Mapping[str, Any]) -> Compared:
    names = ("sigma", "standard_error", *SOLVED)
    sigma, error, solved, solved_error = (np.array(line[name], dtype=float) for name in names)
    return np.log(sigma), error, np.log(solved), solved_error


def _mean(columns: Floats) -> Floats:
    """Over the texts, of those that have a value."""
    known = ~np.isnan(columns)
    with np.errstate(invalid="ignore"):
        found: Floats = np.where(known, columns, 0).sum(0) / known.sum(0)
    return found
