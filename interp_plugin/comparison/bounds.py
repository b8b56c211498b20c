"""The least and the most that any order of tokens could reach, and where a method's order lies between."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from interp_plugin.comparison.erasure import aopc, can_remove, kept_without, lost
from interp_plugin.comparison.inputs import Removal
from interp_plugin.comparison.judged import Metric, Trial

EXACT = 8
"""Up to so many players every order is looked at."""
LONGEST = 20
"""Texts of more players are not judged."""
WIDTH = 5
"""Orders that the beam search follows."""
_REMEMBERED = 10_000  # texts


def order_bounds(
    loss: Callable[[Tensor], Tensor], count: int, width: int | None = None
) -> tuple[float, float]:
    """The lowest and the highest AOPC of all orders in which tokens can go, one by one until none is left.

    What is lost depends on which tokens are gone and not on their order, so orders that meet in the same
    set are one from there on: all count! orders need 2^count values.

    Args:
        loss: of sets of tokens that are gone, (R, count), bool -> (R,).
        count: the tokens.
        width: sets of each size that are followed up (beam search: the bounds may then be too narrow);
            None: all of them.

    Returns:
        The lowest and the highest mean of the losses along an order.

    Examples::
        >>> order_bounds(lambda gone: gone.double() @ torch.tensor([1.0, 3.0]).double(), 2)
        (2.5, 3.5)
    """
    lowest = highest = {0: 0.0}  # the set that is gone, as bits: the sum of what was lost on the way
    for _ in range(count):
        low, high = _one_more(lowest, count, min), _one_more(highest, count, max)
        sets = sorted(low.keys() | high.keys())
        gone = (torch.tensor(sets).unsqueeze(1) >> torch.arange(count) & 1).bool()  # (R, count)
        values = dict(zip(sets, loss(gone).tolist()))
        lowest = _best(low, values, width, -1)
        highest = _best(high, values, width, 1)
    return min(lowest.values()) / count, max(highest.values()) / count


class Bounds:
    """The bounds of texts, each looked for once: they are the same for every method.

    Args:
        removal: how tokens go.
        exact: up to so many players every order is looked at.
        longest: above so many there are no bounds.
        width: of the beam search between.
    """

    def __init__(
        self, removal: Removal = "mask", exact: int = EXACT, longest: int = LONGEST, width: int = WIDTH
    ) -> None:
        if not 1 <= exact <= 20 or not 1 <= longest <= 62 or width < 1:
            raise ValueError(
                f"exact is {exact}, longest {longest}, width {width}; give 1 to 20, 1 to 62, and 1 or more"
            )
        self.removal, self.exact, self.longest, self.width = removal, exact, longest, width
        self._known: OrderedDict[tuple[Any, ...], tuple[float, float]] = OrderedDict()

    def of(self, trial: Trial) -> tuple[float, float] | None:
        """The lowest and the highest AOPC for this text and question; None: it is too long or too short."""
        places = trial.inputs.players.nonzero()[:, 0]
        everything = kept_without(places.tolist(), [len(places)], trial.inputs.length)
        if len(places) > self.longest or not can_remove(trial, everything, self.removal):
            return None

        def loss(gone: Tensor) -> Tensor:
            kept = torch.ones(len(gone), trial.inputs.length, dtype=torch.bool)
            kept[:, places] = ~gone
            return lost(trial, kept, self.removal)

        key = self._key(trial, float(loss(torch.ones(1, len(places), dtype=torch.bool))))
        if key not in self._known:
            width = None if len(places) <= self.exact else self.width
            self._known[key] = order_bounds(loss, len(places), width)
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return self._known[key]

    @staticmethod
    def _key(trial: Trial, all_lost: float) -> tuple[Any, ...]:
        """Text and question; what is lost with all tokens stands for the model, whose weights may change."""
        encoding, state = trial.inputs.encoding, trial.state
        watched = None if state is None else (state.label, str(state.neurons))
        return (encoding.ids, str(encoding.extra), trial.inputs.with_special, trial.target, watched, all_lost)


def normalised(name: str, bounds: Bounds, *, keep: bool = False) -> Metric:
    """The whole-curve AOPC as a share of the way from the lowest to the highest that any order reaches.

    Where the bounds come from beam search an order can lie a little outside of them, below 0 or above 1.
    Taking the least important token first is what sufficiency does, so both have the same bounds.

    Args:
        name: in tables.
        bounds: of the texts; share one among metrics.
        keep: sufficiency; lower is better.
    """

    def measure(trial: Trial) -> float | None:
        ends = bounds.of(trial)
        if ends is None or ends[0] == ends[1]:
            return None
        order = trial.order()
        kept = kept_without(order[::-1] if keep else order, range(1, len(order) + 1), trial.inputs.length)
        reached = aopc(trial, kept, bounds.removal)
        return None if reached is None else (reached - ends[0]) / (ends[1] - ends[0])

    source = "Edin et al. 2025 (Normalized AOPC)"
    return Metric(
        name, measure, higher_is_better=not keep, source=source, judges="class", removal=bounds.removal
    )


def _one_more(
    sums: Mapping[int, float], count: int, choose: Callable[[float, float], float]
) -> dict[int, float]:
    """Every set with one more token, and the sum of the best way there."""
    found: dict[int, float] = {}
    for gone, total in sums.items():
        for token in range(count):
            if not gone >> token & 1:
                more = gone | 1 << token
                found[more] = choose(found.get(more, total), total)
    return found


def _best(
    sums: Mapping[int, float], values: Mapping[int, float], width: int | None, sign: int
) -> dict[int, float]:
    """The sums with what is lost now, and of them the ``width`` highest (sign 1) or lowest (-1)."""
    now = {gone: total + values[gone] for gone, total in sums.items()}
    if width is None or len(now) <= width:
        return now
    return dict(heapq.nlargest(width, now.items(), key=lambda item: sign * item[1]))
