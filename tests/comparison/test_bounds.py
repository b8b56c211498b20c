"""Bounds on what an order of tokens can reach, against all permutations."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bag import inputs_of, sigmoid, trial_of
from torch import Tensor

from interp_plugin.comparison.interface import Trial
from interp_plugin.comparison.metrics import METRICS, Bounds, normalised, order_bounds


def any_loss(count: int, seed: int) -> Tensor:
    """A random value for every set of tokens, as bits, so that it is neither monotone nor additive."""
    return torch.rand(2**count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of_sets(table: Tensor, gone: Tensor) -> Tensor:
    return table[(gone.long() << torch.arange(gone.shape[1])).sum(1)]


def by_permutations(table: Tensor, count: int) -> tuple[float, float]:
    means = []
    for order in permutations(range(count)):
        gone, total = 0, 0.0
        for token in order:
            gone |= 1 << token
            total += float(table[gone])
        means.append(total / count)
    return min(means), max(means)


@pytest.mark.parametrize("count", [1, 2, 4, 6])
def test_all_sets_give_the_same_bounds_as_all_permutations(count: int) -> None:
    table = any_loss(count, seed=count)
    found = order_bounds(lambda gone: of_sets(table, gone), count)
    assert found == pytest.approx(by_permutations(table, count))


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 6), st.integers(0, 999), st.integers(1, 4))
def test_beam_search_stays_within_the_exact_bounds(count: int, seed: int, width: int) -> None:
    table = any_loss(count, seed)
    low, high = order_bounds(lambda gone: of_sets(table, gone), count)
    lower, higher = order_bounds(lambda gone: of_sets(table, gone), count, width)
    assert low <= lower <= higher <= high


@given(st.lists(st.floats(0.1, 5), min_size=2, max_size=12), st.integers(1, 3))
def test_the_narrowest_beam_is_exact_where_losses_add_up(worths: list[float], width: int) -> None:
    weights = torch.tensor(worths, dtype=torch.float64)
    count = len(worths)
    found = order_bounds(lambda gone: gone.double() @ weights, count, width)

    def curve(order: list[float]) -> float:
        return sum(sum(order[:k]) for k in range(1, count + 1)) / count

    assert found == pytest.approx((curve(sorted(worths)), curve(sorted(worths)[::-1])))


WORTHS = [1.0, -2.0, 0.5, 3.0, 0.1]


def all_orders() -> dict[tuple[int, ...], float]:
    """AOPC of every order of the bag's words."""
    whole, found = sigmoid(sum(WORTHS)), {}
    for order in permutations(range(len(WORTHS))):
        left = [sum(WORTHS[i] for i in order[count:]) for count in range(1, len(WORTHS) + 1)]
        found[order] = sum(whole - sigmoid(value) for value in left) / len(WORTHS)
    return found


def trial_in(order: tuple[int, ...]) -> Trial:
    scores = torch.zeros(len(WORTHS))
    scores[list(order)] = torch.arange(len(WORTHS), 0, -1).float()
    return trial_of(inputs_of(WORTHS), scores)


def test_normalised_is_the_place_between_the_worst_and_the_best_of_all_orders() -> None:
    curves = all_orders()
    low, high = min(curves.values()), max(curves.values())
    comprehensiveness, sufficiency = (
        METRICS["normalised comprehensiveness"], METRICS["normalised sufficiency"]
    )  # fmt: skip
    for order in list(curves)[::17]:
        share = (curves[order] - low) / (high - low)
        assert comprehensiveness(trial_in(order)) == pytest.approx(share, abs=1e-5)
        share = (curves[order[::-1]] - low) / (high - low)
        assert sufficiency(trial_in(order)) == pytest.approx(share, abs=1e-5)


def test_the_best_order_of_all_reaches_one_and_the_worst_zero() -> None:
    curves = all_orders()
    bounds = Bounds()
    best, worst = max(curves, key=lambda order: curves[order]), min(curves, key=lambda order: curves[order])
    assert normalised(trial_in(best), bounds) == pytest.approx(1.0, abs=1e-5)
    assert normalised(trial_in(worst), bounds) == pytest.approx(0.0, abs=1e-5)


def test_bounds_are_computed_once_and_again_when_the_weights_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import interp_plugin.comparison.metrics as module

    calls: list[int] = []

    def counted(*given: object) -> tuple[float, float]:
        calls.append(1)
        return order_bounds(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "order_bounds", counted)
    bounds, inputs = Bounds(), inputs_of(WORTHS)
    first = bounds.of(trial_of(inputs, [1.0, 2, 3, 4, 5]))
    assert bounds.of(trial_of(inputs, [5.0, 4, 3, 2, 1])) == first
    assert len(calls) == 1
    inputs.model.module.head.weight.data *= 0.5  # type: ignore[union-attr,operator]
    assert bounds.of(trial_of(inputs, [1.0, 2, 3, 4, 5])) != first
    assert len(calls) == 2


def test_a_text_over_the_longest_length_is_not_evaluated() -> None:
    trial = trial_of(inputs_of(WORTHS), WORTHS)
    assert normalised(trial, Bounds(longest=4)) is None
    assert normalised(trial, Bounds(longest=5)) is not None


def test_a_model_that_ignores_its_words_is_not_evaluated() -> None:
    assert METRICS["normalised sufficiency"](trial_of(inputs_of([0.0, 0.0, 0.0]), [1.0, 2.0, 3.0])) is None
