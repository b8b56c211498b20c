"""Quantities of a corpus against NumPy and SciPy on small parts made by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats
from tiny_corpus import made_up

from interp_plugin import CorpusResult
from interp_plugin.corpus.quantities import bootstrap, chain, ratio
from interp_plugin.corpus.reading import Failure
from interp_plugin.corpus.words import word_counts
from interp_plugin.statistics import holm

K, CAP = 10, 0.8
LAYERS = (1, 2, 3)


def drawn(n: int = 9, seed: int = 0) -> list[np.ndarray]:
    """Sigmas of n sentences of 2 to 6 tokens at three layers, (3, T) each, one of them at the cap."""
    generator = np.random.default_rng(seed)
    found = [generator.uniform(0.05, CAP, (3, generator.integers(2, 7))) for _ in range(n)]
    found[0][:, 0] = CAP
    return found


def words(sigmas: list[np.ndarray]) -> list[list[tuple[str, str | None]]]:
    return [[(f"w{i}", None) for i in range(s.shape[1])] for s in sigmas]


def result_of(folder: Path, sigmas: list[np.ndarray], **options: Any) -> CorpusResult:
    settings = {"layers": LAYERS, "size": K, "cap": CAP, **options}
    return made_up(folder, words(sigmas), [s.tolist() for s in sigmas], **settings)


def kept(sigmas: list[np.ndarray]) -> np.ndarray:
    """Nats of each sentence, (N, L)."""
    return np.stack([nats(s).sum(1) for s in sigmas])


def nats(sigma: np.ndarray) -> np.ndarray:
    """K / 2 log(1 + tau^2 / sigma^2), less that at the cap; the made-up tau is a tenth of the cap."""
    std = CAP / 10
    return K / 2 * (np.log(1 + (std / sigma) ** 2) - np.log(1 + (std / CAP) ** 2))


def lost(sigma: np.ndarray) -> np.ndarray:
    return K / 2 * math.log(2 * math.pi * math.e) + K * np.log(sigma)


def line(table: Any, **wanted: Any) -> Any:
    for name, value in wanted.items():
        table = table[table[name] == value]
    assert len(table) == 1
    return table.iloc[0]


# -- layers


def test_means_of_the_corpus_equal_numpys(tmp_path: Path) -> None:
    sigmas = drawn()
    table = result_of(tmp_path, sigmas).layers()
    tokens = np.array([s.shape[1] for s in sigmas])
    whole = np.stack([lost(s).sum(1) for s in sigmas])
    for quantity, values in (("kept", kept(sigmas)), ("loss", whole)):
        for place, layer in enumerate(LAYERS):
            x = values[:, place]
            expected = {
                "sentence": x.mean(),
                "token": x.sum() / tokens.sum(),
                "token of a sentence": (x / tokens).mean(),
                "dimension": x.sum() / tokens.sum() / K,
            }
            for per, mean in expected.items():
                found = line(table, layer=layer, quantity=quantity, per=per)
                assert found["mean"] == pytest.approx(mean, rel=1e-5)
            found = line(table, layer=layer, quantity=quantity, per="sentence")
            assert found["standard_error"] == pytest.approx(x.std(ddof=1) / math.sqrt(len(x)), rel=1e-5)


def test_the_interval_equals_scipys_bootstrap(tmp_path: Path) -> None:
    sigmas = drawn(40)
    found = line(
        result_of(tmp_path, sigmas).layers(resamples=20_000), layer=2, quantity="kept", per="sentence"
    )
    sample = (kept(sigmas)[:, 1],)
    truth = stats.bootstrap(sample, np.mean, n_resamples=20_000, method="percentile", vectorized=True)
    low, high = truth.confidence_interval
    assert [found["low"], found["high"]] == pytest.approx([low, high], abs=0.03 * (high - low))


def test_nats_are_those_of_the_explanation_and_its_words(tmp_path: Path) -> None:
    result = result_of(tmp_path, drawn(), errors=0.05, noise=0.1)
    for kind in ("kept", "loss"):
        whole = [item.total(kind) for item in result.explanation()]  # type: ignore[arg-type]
        found, error = result.sentences.totals[kind], result.sentences.errors[kind]
        np.testing.assert_allclose(found, [values.numpy() for values, _ in whole], rtol=1e-6)
        np.testing.assert_allclose(error, [errors.numpy() for _, errors in whole], rtol=1e-6)
    table = result.explanation([4]).to_pandas("word")
    assert table[table["layer"] == 3]["kept"].sum() == pytest.approx(result.sentences.totals["kept"][4, 2])


def test_the_table_has_a_line_for_each_sentence_and_layer(tmp_path: Path) -> None:
    sigmas = drawn()
    table = result_of(tmp_path, sigmas).table()
    assert len(table) == 27
    found = line(table, row=5, layer=2)
    assert found["kept"] == pytest.approx(kept(sigmas)[5, 1], rel=1e-5)
    assert (found["tokens"], found["n_backward"], bool(found["converged"])) == (sigmas[5].shape[1], 20, True)


def test_rows_that_failed_are_left_out(tmp_path: Path) -> None:
    sigmas = drawn(3)
    result = result_of(tmp_path, sigmas, failures=[Failure(3, "ValueError: empty", "")])
    assert (result.texts, result.failures()[0].row) == (3, 3)
    assert line(result.layers(), layer=1, quantity="kept", per="sentence")["sentences"] == 3
    with pytest.raises(ValueError, match=r"rows \[3\] have no results"):
        result.explanation([1, 3])


def test_one_sentence_has_no_error_and_no_interval(tmp_path: Path) -> None:
    found = line(result_of(tmp_path, drawn(1)).layers(), layer=1, quantity="kept", per="token")
    assert math.isfinite(found["mean"])
    assert np.isnan([found["standard_error"], found["low"], found["high"]]).all()


def test_numbers_do_not_depend_on_how_much_is_read_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = result_of(tmp_path / "whole", drawn(30), window=30)
    monkeypatch.setattr("interp_plugin.corpus.parts.GROUP", 7)
    monkeypatch.setattr("interp_plugin.corpus.parts.BATCH", 10)
    pieces = result_of(tmp_path / "pieces", drawn(30), window=30)
    for name in ("layers", "table", "monotonicity", "word_classes"):
        pd.testing.assert_frame_equal(getattr(pieces, name)(), getattr(whole, name)())
    assert pieces.explanation([3, 29]) == whole.explanation([3, 29])


# -- depth


def test_growth_is_scipys_paired_test_and_only_real_growth_is_a_violation(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    sigmas = []
    for _ in range(30):  # the second layer keeps clearly less, the third a little more than the second
        first = generator.uniform(0.2, 0.5, (1, 4))
        second = first * generator.uniform(1.35, 1.45, (1, 4))
        sigmas.append(np.concatenate([first, second, second * generator.uniform(0.9, 1.02, (1, 4))]))
    table = result_of(tmp_path, sigmas).monotonicity()
    whole = kept(sigmas)
    tests = [stats.ttest_rel(whole[:, i + 1], whole[:, i], alternative="greater") for i in (0, 1)]
    assert list(table["p"]) == pytest.approx([test.pvalue for test in tests], rel=1e-3, abs=1e-30)
    assert list(table["growth"]) == pytest.approx(np.diff(whole.mean(0)), rel=1e-4)
    assert list(table["violation"]) == [False, True]
    assert list(table["share"]) == [0.0, (whole[:, 2] > whole[:, 1]).mean()]
    assert ((table["low"] < table["growth"]) & (table["growth"] < table["high"])).all()


def test_chance_is_no_violation(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    sigmas = [generator.uniform(0.2, 0.5, (3, 4)) for _ in range(40)]
    assert not result_of(tmp_path, sigmas).monotonicity()["violation"].any()


def test_decoder_layers_are_compared_with_the_encoder() -> None:
    assert chain(["1", "2", "output"]) == [("1", "2"), ("2", "output")]
    assert chain(["encoder.6", "decoder.1", "decoder.2"]) == [
        ("encoder.6", "decoder.1"),
        ("encoder.6", "decoder.2"),
    ]
    assert chain(["decoder.1", "decoder.2", "output"]) == []


# -- two studies


def test_differences_are_paired_by_sentence(tmp_path: Path) -> None:
    ours, theirs = drawn(20), drawn(20)
    generator = np.random.default_rng(5)
    theirs = [s * generator.uniform(0.7, 1.0, s.shape) for s in ours]
    table = result_of(tmp_path / "a", ours, window=3).compare(result_of(tmp_path / "b", theirs, window=7))
    for place, layer in enumerate(LAYERS):
        found = line(table, layer=layer, quantity="kept", per="sentence")
        a, b = kept(ours)[:, place], kept(theirs)[:, place]
        test = stats.ttest_rel(a, b)
        assert found["difference"] == pytest.approx((a - b).mean(), rel=1e-4)
        assert found["standard_error"] == pytest.approx((a - b).std(ddof=1) / math.sqrt(20), rel=1e-3)
        assert found["p"] == pytest.approx(test.pvalue, rel=1e-2)
        assert found["low"] < found["difference"] < found["high"]
        per_token = line(table, layer=layer, quantity="kept", per="token")
        tokens = sum(s.shape[1] for s in ours)
        assert per_token["difference"] == pytest.approx((a - b).sum() / tokens, rel=1e-4)


def test_a_study_does_not_differ_from_itself(tmp_path: Path) -> None:
    result = result_of(tmp_path, drawn())
    table = result.compare(result)
    assert (table["difference"] == 0).all() and (table["p_holm"] == 1).all()


def test_texts_that_failed_in_one_study_are_left_out_of_the_difference(tmp_path: Path) -> None:
    sigmas = drawn(6)
    part = result_of(tmp_path / "b", sigmas[:5], failures=[Failure(5, "NaN", "")], window=8)
    table = result_of(tmp_path / "a", sigmas, window=8).compare(part)
    assert (table["sentences"] == 5).all()


def test_studies_of_other_texts_draws_or_layers_do_not_compare(tmp_path: Path) -> None:
    sigmas = drawn(4)
    ours = result_of(tmp_path / "a", sigmas)
    with pytest.raises(ValueError, match="seed is 0 in one study and 1 in the other"):
        ours.compare(result_of(tmp_path / "b", sigmas, seed=1))
    with pytest.raises(ValueError, match="no layer in common"):
        ours.compare(result_of(tmp_path / "c", sigmas, layers=("a", "b", "c")))
    with pytest.raises(ValueError, match="row 0 and 3 more have other texts"):
        ours.compare(result_of(tmp_path / "d", drawn(4, seed=9)))


# -- classes of words

SENTENCES = [
    [("[CLS]", None), ("The", "DET"), ("film", "NOUN"), (",", "."), ("[SEP]", None)],
    [("[CLS]", None), ("a", "DET"), ("good", "ADJ"), ("film", "NOUN"), ("[SEP]", None)],
    [("[CLS]", None), ("film", "NOUN"), ("[SEP]", None)],
]
KINDS = [["s", "t", "o", "p", "s"], ["s", "t", "o", "o", "s"], ["s", "o", "s"]]
NAMES = {"s": "special token", "t": "stop word", "o": "other word", "p": "punctuation"}


def spoken(folder: Path) -> tuple[CorpusResult, list[np.ndarray]]:
    """Three sentences with tags, and sigma of their tokens, (2, T) each."""
    generator = np.random.default_rng(3)
    sigmas = [generator.uniform(0.05, CAP, (2, len(s))) for s in SENTENCES]
    result = made_up(folder, SENTENCES, [s.tolist() for s in sigmas], size=K, cap=CAP, window=2)
    return result, sigmas


def test_kinds_of_words_have_the_means_of_their_tokens(tmp_path: Path) -> None:
    result, sigmas = spoken(tmp_path)
    table = result.word_classes()
    for layer in (0, 1):
        total = sum(nats(s[layer]).sum() for s in sigmas)
        for letter, name in NAMES.items():
            some = np.array(
                [s[layer][i] for s, kinds in zip(sigmas, KINDS) for i, k in enumerate(kinds) if k == letter]
            )
            values = nats(some)
            found = line(table, layer=layer + 1, **{"class": name})
            assert found["kept"] == pytest.approx(np.mean(values), rel=1e-5)
            assert found["tokens"] == len(values)
            assert found["share"] == pytest.approx(np.sum(values) / total, rel=1e-5)
            assert found["loss"] == pytest.approx(lost(some).mean(), rel=1e-5)


def test_the_error_of_a_class_is_that_of_a_ratio_over_sentences(tmp_path: Path) -> None:
    result, sigmas = spoken(tmp_path)
    x = np.array([nats(s[0])[[k == "o" for k in kinds]].sum() for s, kinds in zip(sigmas, KINDS)])
    c = np.array([kinds.count("o") for kinds in KINDS], dtype=float)
    residual = x - x.sum() / c.sum() * c
    truth = math.sqrt((residual**2).sum() * 3 / 2) / c.sum()
    assert line(result.word_classes(), layer=1, **{"class": "other word"})["standard_error"] == pytest.approx(
        truth, rel=1e-4
    )


def test_a_class_of_one_sentence_has_no_error(tmp_path: Path) -> None:
    found = line(spoken(tmp_path)[0].word_classes(), layer=1, **{"class": "punctuation"})
    assert found["sentences"] == 1 and math.isnan(found["standard_error"])


@pytest.mark.parametrize(
    "arguments, counts",
    [
        ({"lexicon": {"FILM": "thing", "good": "praise"}},
         {"thing": 3, "praise": 1, "other": 3, "special token": 6}),
        ({"by": "tag"}, {"DET": 2, "NOUN": 3, "ADJ": 1, ".": 1, "special token": 6}),
        ({"by": "frequency"}, {"seen once": 3, "seen 2 to 9 times": 3, "punctuation": 1, "special token": 6}),
        ({"stop_words": ["film"]}, {"stop word": 3, "other word": 3, "punctuation": 1, "special token": 6}),
    ],
)  # fmt: skip
def test_words_are_classified_by_lexicon_tag_frequency_or_other_stop_words(
    tmp_path: Path, arguments: dict[str, Any], counts: dict[str, int]
) -> None:
    result, _ = spoken(tmp_path)
    if "lexicon" in arguments:
        arguments = {**arguments, "by": "lexicon"}
    table = result.word_classes(**arguments)
    some = table[table["layer"] == 2]
    assert dict(zip(some["class"], some["tokens"])) == counts


def test_words_are_counted_once_in_the_corpus_and_not_in_each_layer(tmp_path: Path) -> None:
    result, _ = spoken(tmp_path)
    assert word_counts(result.parts, 2) == {"the": 1, "film": 3, ",": 1, "a": 1, "good": 1}


def test_a_lexicon_is_only_accepted_with_by_lexicon(tmp_path: Path) -> None:
    result, _ = spoken(tmp_path)
    with pytest.raises(ValueError, match="lexicon is missing"):
        result.word_classes("lexicon")
    with pytest.raises(ValueError, match="lexicon is given"):
        result.word_classes("kind", lexicon={"film": "thing"})
    with pytest.raises(ValueError, match="by is 'colour': choose from kind"):
        result.word_classes("colour")  # type: ignore[arg-type]


# -- knowledge points


def test_knowledge_points_follow_cheng_et_al(tmp_path: Path) -> None:
    result, sigmas = spoken(tmp_path)
    threshold = 0.05
    table = result.knowledge(threshold)
    for layer in (0, 1):
        front, rear = (
            [s[layer][[(k == "o") == fore for k in kinds]] for s, kinds in zip(sigmas, KINDS)]
            for fore in (True, False)
        )
        bar = lost(np.concatenate(rear)).mean() - threshold * K
        points = np.array([[(lost(some) < bar).sum() for some in pair] for pair in zip(front, rear)])
        fore, mean = [nats(some) for some in front], nats(np.concatenate(rear)).mean()
        found = line(table, layer=layer + 1)
        assert found["background"] == pytest.approx(mean, rel=1e-5)
        assert found["foreground_points"] == pytest.approx(points[:, 0].mean())
        assert found["background_points"] == pytest.approx(points[:, 1].mean())
        shares = [f / (f + b) for f, b in points if f + b]
        assert found["foreground_share"] == pytest.approx(np.mean(shares))
        contrast = np.concatenate(fore).mean() - mean
        assert found["concentration"] == pytest.approx(contrast, rel=1e-4)
        assert found["concentration_ratio"] == pytest.approx(np.concatenate(fore).mean() / mean, rel=1e-4)
        assert (found["foreground_tokens"], found["background_tokens"]) == (4, 9)


def test_the_foreground_may_be_any_classes(tmp_path: Path) -> None:
    result, _ = spoken(tmp_path)
    found = result.knowledge(by="tag", foreground=["NOUN", "ADJ"])
    assert set(found["foreground_tokens"]) == {4}
    with pytest.raises(ValueError, match=r"foreground is .*verb.*some, but not all, must"):
        result.knowledge(foreground=["verb"])


# -- statistics


@given(
    arrays.arrays(float, (12, 2), elements=st.floats(-5, 5)),
    arrays.arrays(float, 12, elements=st.floats(2, 4)),
)
def test_a_ratios_error_is_about_that_of_the_jackknife(values: np.ndarray, weights: np.ndarray) -> None:
    mean, error = ratio(values, weights)
    np.testing.assert_allclose(mean, values.sum(0) / weights.sum(), atol=1e-12)
    without = (values.sum(0) - values) / (weights.sum() - weights)[:, None]
    jackknife = np.sqrt(11 / 12 * np.square(without - without.mean(0)).sum(0))
    np.testing.assert_allclose(error, jackknife, rtol=0.25, atol=1e-6)


def test_resamples_are_shared_so_that_pairs_stay_paired() -> None:
    values = np.random.default_rng(0).normal(size=(50, 1))
    low, high = bootstrap(np.concatenate([values, values, values + 1], axis=1), np.ones(50))
    assert low[0] == low[1] and low[2] == pytest.approx(low[0] + 1)
    assert (low < high).all()


def test_the_interval_contains_the_mean_19_times_in_20() -> None:
    generator = np.random.default_rng(0)
    inside = 0
    for seed in range(300):
        low, high = bootstrap(generator.normal(2, 1, (60, 1)), np.ones(60), resamples=300, seed=seed)
        inside += bool(low[0] < 2 < high[0])
    assert 0.91 < inside / 300 < 0.98


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holms_correction_follows_its_definition(p: list[float]) -> None:
    corrected = holm(np.array(p))
    order = sorted(range(len(p)), key=p.__getitem__)
    highest = 0.0
    for step, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - step) * p[place]))
        assert corrected[place] == pytest.approx(highest)


@pytest.mark.parametrize("words", [["the", "[SEP]"], ["film"]])
def test_a_page_of_a_corpus_without_foreground_or_background_has_no_knowledge_points(
    tmp_path: Path, words: list[str]
) -> None:
    result = made_up(tmp_path, [[(word, None) for word in words]], [[[0.5] * len(words)] * 2])
    page = str(result.to_html())
    assert "Means over the corpus" in page
    assert "Foreground and background" not in page
