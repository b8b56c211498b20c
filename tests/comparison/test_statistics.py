"""Statistics of a study against SciPy, hand computations and published examples."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from interp_plugin.statistics import holm, means, paired, signed_rank, t_test

RNG = np.random.default_rng(3)
NAN = float("nan")


@pytest.mark.parametrize("n", [2, 7, 200])
def test_intervals_are_those_of_scipy_with_the_same_draws(n: int) -> None:
    values = RNG.gamma(2, size=n)
    theirs = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=2000, batch=500, rng=np.random.default_rng(5)
    ).confidence_interval
    ours = means(values, resamples=2000, seed=5)
    assert ours.low[0] == pytest.approx(theirs.low)
    assert ours.high[0] == pytest.approx(theirs.high)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    columns = np.random.default_rng(0).normal(1.5, 1, (60, 1000))
    found = means(columns, resamples=999)
    share = np.mean((found.low < 1.5) & (found.high > 1.5))
    assert 0.92 < share < 0.965


def test_a_column_with_holes_counts_as_the_values_that_it_has() -> None:
    values = RNG.normal(size=(20, 3))
    values[[2, 5, 11], 1] = NAN
    together, alone = means(values), means(values[~np.isnan(values[:, 1]), 1])
    assert together.n.tolist() == [20, 17, 20]
    assert (together.mean[1], together.low[1], together.high[1]) == pytest.approx(
        (alone.mean[0], alone.low[0], alone.high[0])
    )


def test_many_columns_give_what_each_gives_alone() -> None:
    values = RNG.normal(size=(12, 300))
    together, alone = means(values), means(values[:, 299])
    assert together.low[299] == pytest.approx(alone.low[0], abs=1e-12)


def test_values_that_are_all_the_same_have_an_interval_of_no_width() -> None:
    found = means(np.full(9, 0.25))
    assert (found.low[0], found.high[0]) == (0.25, 0.25)


def test_one_value_has_a_mean_and_no_interval_and_none_has_neither() -> None:
    found = means([[4.0, NAN], [NAN, NAN]])
    assert found.n.tolist() == [1, 0]
    assert found.mean[0] == 4.0
    assert np.isnan([found.low[0], found.high[0], found.mean[1], found.low[1]]).all()


def test_means_refuse_what_is_no_table() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 2, 2\); they must be"):
        means(np.zeros((2, 2, 2)))


def exact_p(differences: list[float]) -> float:
    """The share of all 2^n signs of the differences with a rank sum at least as far from its mean."""
    ranks = stats.rankdata(np.abs(differences))
    middle = ranks.sum() / 2
    seen = abs(ranks[np.array(differences) > 0].sum() - middle)
    sums = [
        sum(rank for rank, up in zip(ranks, signs) if up)
        for signs in itertools.product([0, 1], repeat=len(ranks))
    ]
    return float(np.mean([abs(total - middle) >= seen - 1e-9 for total in sums]))


@given(st.lists(st.integers(-50, 50).filter(bool), min_size=1, max_size=8, unique_by=abs))
def test_the_signed_rank_test_counts_all_signs(differences: list[int]) -> None:
    values = [float(d) for d in differences]
    assert signed_rank(values) == pytest.approx(exact_p(values))


def test_the_signed_rank_test_gives_the_published_p_of_darwins_plants() -> None:
    """Cross- minus self-fertilised, in eighths of an inch (Fisher 1935); p as in R's and SciPy's documentation."""
    plants = [6, 8, 14, 16, 23, 24, 28, 29, 41, -48, 49, 56, 60, -67, 75]
    assert signed_rank(plants) == pytest.approx(0.041259765625)


def test_zeros_are_ranked_and_left_out_of_the_sums() -> None:
    """Pratt: zeros push the ranks of the others up, which here changes the statistic."""
    differences = np.array([0.0] * 5 + list(np.arange(1.0, 21.0)) + [-3.5, -7.5])
    rank = stats.rankdata(np.abs(differences))
    kept = differences != 0
    up, down = rank[differences > 0].sum(), rank[differences < 0].sum()
    ranks = rank[kept]
    z = (min(up, down) - ranks.sum() / 2) / np.sqrt((ranks**2).sum() / 4)
    assert signed_rank(differences) == pytest.approx(2 * stats.norm.cdf(z), rel=1e-6)


def test_no_difference_at_all_is_p_1_and_no_text_at_all_is_no_p() -> None:
    assert signed_rank([0.0, 0.0]) == 1.0
    assert np.isnan(signed_rank([NAN]))
    [same] = paired(np.zeros((3, 1)))
    assert (same.mean, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)


def test_only_texts_that_both_have_are_compared() -> None:
    found, other = paired([[4.0, 1.0], [NAN, 2.0], [NAN, 3.0], [7.0, NAN]])
    assert (found.n, found.mean, found.p) == (2, 5.5, 0.5)
    assert (other.n, other.mean) == (3, 2.0)


def test_swapping_two_methods_turns_the_difference_around() -> None:
    differences = RNG.normal(1, 1, (30, 1))
    [one], [other] = paired(differences), paired(-differences)
    assert (one.mean, one.low, one.high) == pytest.approx((-other.mean, -other.high, -other.low))
    assert one.p == pytest.approx(other.p)


def test_the_t_test_follows_from_mean_and_standard_error() -> None:
    values = np.random.default_rng(0).normal(0.3, 1.0, (20, 3))
    t = values.mean(0) / (values.std(0, ddof=1) / 20**0.5)
    assert t_test(values, "greater") == pytest.approx(stats.t.sf(t, 19), rel=1e-12)
    assert t_test(values) == pytest.approx(2 * stats.t.sf(abs(t), 19), rel=1e-12)


def test_the_t_test_of_zeros_is_1_and_of_a_constant_0() -> None:
    assert t_test([[0.0, 2.0], [0.0, 2.0], [0.0, 2.0]]).tolist() == [1.0, 0.0]


def test_holm_gives_statsmodels_numbers() -> None:
    """What ``multipletests(p, method="holm")`` of statsmodels 0.15 gave."""
    p = [0.01, 0.02, 0.03, 0.04, 0.05]
    assert holm(p) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])
    assert holm([0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240]) == (
        pytest.approx([0.001, 0.0036, 0.0152, 0.0665, 0.1206, 0.139, 0.139, 0.139, 0.139, 0.324])
    )


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(p: list[float]) -> None:
    """A hypothesis' corrected p is the largest Bonferroni p over all sets of hypotheses that contain it."""
    places = range(len(p))
    sets = [s for r in range(1, len(p) + 1) for s in itertools.combinations(places, r)]
    expected = [max(min(1.0, len(s) * min(p[j] for j in s)) for s in sets if i in s) for i in places]
    assert holm(p) == pytest.approx(expected)


def test_holm_does_not_count_tests_that_were_not_made() -> None:
    assert holm([0.02, NAN, 0.03]) == pytest.approx([0.04, NAN, 0.04], nan_ok=True)
    assert holm([]).shape == (0,)
