"""Metrics that take tokens away: against plain loops over texts, and where the truth is a sum of words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata
from tiny_bag import SIZE, inputs_of, sigmoid, state_of, trial_of

from interp_plugin import huggingface
from interp_plugin.comparison.interface import Inputs, Removal
from interp_plugin.comparison.metrics import (
    METRICS,
    bin_counts,
    erasure,
    kept_only,
    kept_without,
    log_odds,
    retention,
    soft_erasure,
    thinned,
)
from interp_plugin.huggingface import HuggingFaceModel
from interp_plugin.text.states import State

TEXT = "a funny film with more than enough charm and a dull ending"
WORDS = TEXT.split()
SCORES = [0.3, 2.0, 0.9, -1.0, 0.2, 0.1, 0.5, 1.5, 0.0, 0.25, 1.9, -0.5]
BINS = (0.05, 0.1, 0.2, 0.5)


@cache
def default() -> HuggingFaceModel:
    return HuggingFaceModel(*huggingface.load(huggingface.default_model_path()))


@cache
def sentence() -> Inputs:
    inputs = Inputs(default(), default().encode(TEXT))
    assert inputs.players.sum() == len(WORDS)
    return inputs


SPECIALS_TOO = [9.0, *SCORES, 9.0]  # those of special tokens do not matter


def probability(words: Sequence[str], hidden: Sequence[int] = ()) -> float:
    """Of class 1, by transformers alone; ``hidden`` words are not attended to."""
    encoded = default().tokenizer(" ".join(words), return_tensors="pt")
    for place in hidden:
        encoded["attention_mask"][0, 1 + place] = 0
    with torch.no_grad():
        return float(default().model(**encoded).logits.double().softmax(-1)[0, 1])


def left(kept: set[int], removal: Removal) -> float:
    """The probability when only these words are left, one forward for each."""
    gone = [place for place in range(len(WORDS)) if place not in kept]
    if removal == "delete":
        return probability([word for place, word in enumerate(WORDS) if place in kept])
    if removal == "mask":
        return probability([word if place in kept else "[MASK]" for place, word in enumerate(WORDS)])
    return probability(WORDS, gone)


ORDER = sorted(range(len(WORDS)), key=lambda place: -SCORES[place])


@pytest.mark.parametrize("removal", ["mask", "delete", "attention"])
def test_comprehensiveness_is_what_a_loop_over_texts_gives(removal: Removal) -> None:
    drops = []
    for share in BINS:
        count = max(1, math.ceil(share * len(WORDS)))
        drops.append(probability(WORDS) - left(set(ORDER[count:]), removal))
    found = METRICS[f"comprehensiveness ({removal})"](trial_of(sentence(), SPECIALS_TOO))
    assert found == pytest.approx(sum(drops) / len(drops), abs=2e-6)


@pytest.mark.parametrize("removal", ["mask", "delete", "attention"])
def test_sufficiency_is_what_a_loop_over_texts_gives(removal: Removal) -> None:
    drops = []
    for share in BINS:
        count = max(1, math.ceil(share * len(WORDS)))
        drops.append(probability(WORDS) - left(set(ORDER[:count]), removal))
    found = METRICS[f"sufficiency ({removal})"](trial_of(sentence(), SPECIALS_TOO))
    assert found == pytest.approx(sum(drops) / len(drops), abs=2e-6)


def test_the_full_curve_takes_one_word_after_another() -> None:
    everything = range(1, len(WORDS) + 1)
    drops = [probability(WORDS) - left(set(ORDER[count:]), "mask") for count in everything]
    found = METRICS["comprehensiveness (full curve)"](trial_of(sentence(), SPECIALS_TOO))
    assert found == pytest.approx(sum(drops) / len(drops), abs=2e-6)
    drops = [probability(WORDS) - left(set(ORDER[:-count]), "mask") for count in everything]
    found = METRICS["sufficiency (full curve)"](trial_of(sentence(), SPECIALS_TOO))
    assert found == pytest.approx(sum(drops) / len(drops), abs=2e-6)


def test_log_odds_is_the_change_of_the_log_probability() -> None:
    gone = math.ceil(0.2 * len(WORDS))
    change = math.log(left(set(ORDER[gone:]), "mask")) - math.log(probability(WORDS))
    assert METRICS["log-odds"](trial_of(sentence(), SPECIALS_TOO)) == pytest.approx(change, abs=1e-5)


@pytest.mark.parametrize("removal", ["mask", "attention"])
@pytest.mark.parametrize("keep", [False, True])
def test_state_erasure_is_the_distance_of_transformers_own_hidden_states(
    removal: Removal, keep: bool
) -> None:
    def hidden(words: Sequence[str], gone: Sequence[int] = ()) -> torch.Tensor:
        encoded = default().tokenizer(" ".join(words), return_tensors="pt")
        for place in gone:
            encoded["attention_mask"][0, 1 + place] = 0
        with torch.no_grad():
            return default().model(**encoded, output_hidden_states=True).hidden_states[2]

    std = torch.linspace(0.5, 2.0, 192)
    clean, moves = hidden(WORDS), []
    for share in BINS:
        count = max(1, math.ceil(share * len(WORDS)))
        gone = ORDER[count:] if keep else ORDER[:count]
        masked = ["[MASK]" if place in gone else word for place, word in enumerate(WORDS)]
        moved = hidden(masked) if removal == "mask" else hidden(WORDS, gone)
        moves.append(float(((moved - clean) / std).square().mean()))
    state = State(2, default().layers[2], None, std)
    name = f"state {'sufficiency' if keep else 'erasure'} ({removal})"
    found = METRICS[name](trial_of(sentence(), SPECIALS_TOO, state))
    assert found == pytest.approx(sum(moves) / len(moves), rel=1e-4)


def test_state_erasure_of_a_bag_of_words_is_the_size_of_the_words_that_go() -> None:
    inputs = inputs_of([1.0, -2.0, 0.5, 3.0])
    vectors = inputs.embeddings[0]
    sizes = (vectors.square().sum(1) / vectors.square().mean() / (4 * SIZE)).tolist()
    trial = trial_of(inputs, [0.1, 0.4, 0.2, 0.3], state_of(inputs))
    a, b, c, d = sizes[1], sizes[3], sizes[2], sizes[0]
    expected = (a + (a + b) + (a + b + c) + (a + b + c + d)) / 4
    assert METRICS["state erasure (full curve)"](trial) == pytest.approx(expected, rel=1e-5)
    expected = (d + (d + c) + (d + c + b) + (d + c + b + a)) / 4
    assert METRICS["state sufficiency (full curve)"](trial) == pytest.approx(expected, rel=1e-5)


def test_bins_are_rounded_up_and_hold_one_token_at_least() -> None:
    assert bin_counts(20) == [1, 2, 4, 10]
    assert bin_counts(1) == [1, 1, 1, 1]
    assert bin_counts(3, [0.34]) == [2]
    assert bin_counts(100, [0.07]) == [7]  # 0.07 * 100 > 7 in floating point


def test_a_state_of_separate_words_does_not_notice_that_others_are_deleted() -> None:
    """Word vectors are independent: deletion does not change the remaining ones, but a mask does."""
    inputs = inputs_of([1.0, 2.0, 0.5])
    trial = trial_of(inputs, [1.0, 2.0, 0.5], state_of(inputs))
    assert METRICS["state erasure (delete)"](trial) == pytest.approx(0, abs=1e-6)
    assert METRICS["state sufficiency (delete)"](trial) == pytest.approx(0, abs=1e-6)
    assert METRICS["state erasure (mask)"](trial) > 0.1  # type: ignore[operator]


values = st.lists(st.floats(0.05, 2), min_size=2, max_size=9, unique=True)


@settings(max_examples=25, deadline=None)
@given(values, st.randoms(use_true_random=False), st.sampled_from([BINS, None]))
def test_no_order_beats_that_of_the_words_values(worths: list[float], random, bins) -> None:  # type: ignore[no-untyped-def]
    inputs = inputs_of(worths)
    other = random.sample(worths, len(worths))
    comprehensiveness = erasure("c", bins=bins)
    sufficiency = erasure("s", bins=bins, keep=True)
    best, any_other = trial_of(inputs, worths), trial_of(inputs, other)
    assert comprehensiveness(best) >= comprehensiveness(any_other) - 1e-6  # type: ignore[operator]
    assert sufficiency(best) <= sufficiency(any_other) + 1e-6  # type: ignore[operator]


@settings(max_examples=25, deadline=None)
@given(values, st.randoms(use_true_random=False))
def test_sufficiency_of_the_whole_curve_is_comprehensiveness_of_the_order_reversed(worths, random) -> None:  # type: ignore[no-untyped-def]
    inputs, scores = inputs_of(worths), torch.tensor(random.sample(range(len(worths)), len(worths))).float()
    found = METRICS["sufficiency (full curve)"](trial_of(inputs, scores))
    assert found == pytest.approx(
        METRICS["comprehensiveness (full curve)"](trial_of(inputs, -scores)), abs=1e-6
    )


@settings(max_examples=10, deadline=None)
@given(values, st.randoms(use_true_random=False))
def test_rank_metrics_ignore_a_monotone_map_of_the_scores(worths, random) -> None:  # type: ignore[no-untyped-def]
    inputs, scores = inputs_of(worths), torch.tensor(random.sample(range(len(worths)), len(worths))).float()
    one, other = trial_of(inputs, scores), trial_of(inputs, (scores - 3).exp())
    for name, metric in METRICS.items():
        if metric.can_judge(None) and ("ness" in name or "sufficiency" in name or name == "log-odds"):
            assert metric(one) == metric(other), name


def test_the_probability_of_a_bag_of_words_falls_by_the_values_that_go() -> None:
    worths = [1.0, -2.0, 0.5, 3.0]
    trial = trial_of(inputs_of(worths), worths)
    whole = sigmoid(2.5)
    one, half = whole - sigmoid(-0.5), whole - sigmoid(-1.5)
    found = erasure("mine", "delete", bins=(0.25, 0.5))(trial)
    assert found == pytest.approx((one + half) / 2, rel=1e-5)


def test_a_text_that_deletion_would_empty_is_not_evaluated() -> None:
    trial = trial_of(inputs_of([1.0, 2.0]), [1.0, 2.0])
    assert erasure("mine", "delete", bins=(0.5, 1.0))(trial) is None
    assert erasure("mine", "delete", bins=(0.5,))(trial) is not None
    assert log_odds(trial, removal="delete", top=1.0) is None


def test_a_text_of_one_word_is_not_evaluated() -> None:
    trial = trial_of(inputs_of([1.0]), [1.0])
    for name in ("comprehensiveness (mask)", "sufficiency (full curve)", "log-odds", "soft sufficiency"):
        assert METRICS[name](trial) is None


def test_a_model_without_a_mask_token_is_refused() -> None:
    inputs = inputs_of([1.0, 2.0])
    inputs.model.mask_id = None  # type: ignore[misc]
    with pytest.raises(ValueError, match="no mask token"):
        METRICS["comprehensiveness (mask)"](trial_of(inputs, [1.0, 2.0]))


def test_rows_of_a_removal_are_nested() -> None:
    order = [3, 0, 2]
    assert kept_without(order, [1, 2], 4).tolist() == [[True, True, True, False], [False, True, True, False]]
    assert kept_only(order, [1, 2], 4).tolist() == [[False, True, False, True], [True, True, False, True]]


@given(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=20))
def test_every_method_retains_half_on_average(scores: list[float]) -> None:
    kept = retention(torch.tensor(scores), torch.ones(len(scores), dtype=torch.bool))
    assert float(kept.mean()) == pytest.approx(0.5)
    assert kept.tolist() == pytest.approx([(rank - 0.5) / len(scores) for rank in rankdata(scores)])


def test_elements_are_kept_with_the_probability_of_their_token() -> None:
    stays = torch.tensor([1.0, 0.25, 0.75, 0.0])
    variants = thinned(torch.ones(1, 4, 50), stays, draws=400, seed=0)
    assert variants.shape == (400, 4, 50)
    assert variants.mean((0, 2)).tolist() == pytest.approx(stays.tolist(), abs=0.015)  # 4 standard errors


def test_soft_erasure_of_a_bag_of_words_is_the_mean_over_its_masks() -> None:
    """Only the first element of a word matters: 2^n masks, each with its probability."""
    worths, ranks = [1.0, -2.0, 0.5], [1 / 6, 5 / 6, 3 / 6]
    inputs = inputs_of(worths)
    expected = dict.fromkeys((False, True), 0.0)
    for keep in expected:
        for mask in range(8):
            stays = [mask >> i & 1 for i in range(3)]
            chances = [r if keep else 1 - r for r in ranks]
            chance = math.prod(c if s else 1 - c for c, s in zip(chances, stays))
            drop = sigmoid(sum(worths)) - sigmoid(sum(w for w, s in zip(worths, stays) if s))
            expected[keep] += chance * drop
    trial = trial_of(inputs, [0.1, 9.0, 0.2])
    for keep, value in expected.items():
        assert soft_erasure(trial, keep, draws=20_000) == pytest.approx(value, abs=0.008)


def test_soft_erasure_uses_the_same_draws_for_all_methods_and_times() -> None:
    metric = METRICS["soft comprehensiveness"]
    assert metric(trial_of(sentence(), SPECIALS_TOO)) == metric(
        trial_of(sentence(), [s * 7 for s in SPECIALS_TOO])
    )


def test_special_tokens_are_not_thinned() -> None:
    players = torch.tensor([False, True, True, False])
    assert retention(torch.tensor([0.0, 1.0, 2.0, 0.0]), players).tolist() == [1.0, 0.25, 0.75, 1.0]
