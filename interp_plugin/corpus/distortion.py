"""Distortion: for each text and layer the rate at which its distortion is a given one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from interp_plugin.text.batch import State
from interp_plugin.text.explanation import Row, TextExplanation
from interp_plugin.text.models import Encoding, TextModel
from interp_plugin.text.scoring import Plan, score

CLOSE = 0.02  # of log D: sigma goes with its root, so this is 1 % of it
TRIES = 8
FARTHEST = 1e3  # times the first rate: a D that saturates below the wanted one is never reached


def at_distortion(
    model: TextModel, encodings: Sequence[Encoding], plan: Plan, distortion: float
) -> list[tuple[TextExplanation, tuple[float, ...]]]:
    """The explanation of every text of one batch at equal distortion, and the rate of each of its rows.

    Where D is quadratic in sigma, D = rate / 2 (the regime index is 1), so the search starts there, all texts and
    layers together; then each goes its own way, by secants in log rate and log D.  A row whose D is not within 2 %
    after 8 fits has ``converged`` false.  Passes are those of all its fits.

    Args:
        model, encodings, plan: as of :func:`scoring.score`; the plan's rate is not looked at.
        distortion: D, dimensionless, > 0.
    """
    first = 2 * distortion
    start = replace(plan, rate=first)
    found: list[tuple[TextExplanation, tuple[float, ...]]] = []
    for encoding, text in zip(encodings, score(model, encodings, start)):
        pairs = [
            search(_refit(model, encoding, start, state), row, first, distortion)
            for state, row in zip(plan.states, text.rows)
        ]
        rows, rates = zip(*pairs)
        found.append((replace(text, rows=rows), rates))
    return found


def search(fit: Callable[[float], Row], row: Row, rate: float, distortion: float) -> tuple[Row, float]:
    """The fit whose distortion is the given one, and its rate.

    Args:
        fit: the fit at a rate.
        row, rate: the first one, done already.
        distortion: the wanted D.

    Examples::
        >>> import torch
        >>> def fit(rate: float) -> Row:
        ...     return Row(1, None, torch.ones(1), torch.zeros(1), 0.0, 2.0, 0.2, 1.0, rate**0.8, True, 10, 10)
        >>> row, rate = search(fit, fit(1.0), 1.0, 0.5)
        >>> round(rate, 4), row.n_forward
        (0.4204, 30)
    """
    known = [(math.log(rate), row)]
    while not _close(row, distortion) and row.distortion > 0 and len(known) < TRIES:
        following = _next(known, math.log(distortion))
        if abs(following - known[0][0]) > math.log(FARTHEST):
            break
        row = fit(math.exp(following))
        known.append((following, row))
    usable = [pair for pair in known if pair[1].distortion > 0] or known[:1]
    at, best = min(usable, key=lambda pair: _away(pair[1], distortion))
    whole = replace(
        best,
        converged=best.converged and _close(best, distortion),
        n_forward=sum(r.n_forward for _, r in known),
        n_backward=sum(r.n_backward for _, r in known),
    )
    return whole, math.exp(at)


def _refit(model: TextModel, encoding: Encoding, plan: Plan, state: State) -> Callable[[float], Row]:
    def fit(rate: float) -> Row:
        [text] = score(model, [encoding], replace(plan, states=(state,), rate=rate))
        return text.rows[0]

    return fit


def _next(known: Sequence[tuple[float, Row]], wanted: float) -> float:
    """The next log rate: on the line through the two best, inside the bracket where there is one."""
    points = [(x, math.log(row.distortion) - wanted) for x, row in known if row.distortion > 0]
    points.sort(key=lambda point: abs(point[1]))
    (x, y), slope = points[0], 1.0
    if len(points) > 1 and points[1][0] != x:
        slope = (points[1][1] - y) / (points[1][0] - x)
    slope = min(max(slope, 0.2), 5.0)  # D grows with the rate, but its noise may say otherwise
    guess = x - y / slope
    below = [x for x, y in points if y < 0]
    above = [x for x, y in points if y > 0]
    if below and above and not min(max(below), min(above)) < guess < max(max(below), min(above)):
        return (max(below) + min(above)) / 2
    return guess


def _away(row: Row, distortion: float) -> float:
    return abs(math.log(row.distortion / distortion)) if row.distortion > 0 else math.inf


def _close(row: Row, distortion: float) -> bool:
    return _away(row, distortion) <= CLOSE
