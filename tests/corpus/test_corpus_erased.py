"""Corpus studies of erasures: scores of words with their signs and units."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tiny_corpus import TEXTS, WINDOW, texts
from tiny_plain import cnn

from interp_plugin import CorpusResult, CorpusStudy, TextExplainer

OPTIONS: dict[str, Any] = {"score": "erased", "passes": 24}


def study(**options: Any) -> CorpusStudy:
    return CorpusStudy(cnn(mask_id=0), layers=["features", "output"], **{**OPTIONS, **options})


def run(folder: Path, given: Any = None, **options: Any) -> CorpusResult:
    return study(**options).run(given or texts(), folder, window=WINDOW, show_progress=False)


@pytest.fixture(scope="module")
def erased(tmp_path_factory: pytest.TempPathFactory) -> CorpusResult:
    return run(tmp_path_factory.mktemp("erased"))


def line(table: Any, **wanted: Any) -> Any:
    for name, value in wanted.items():
        table = table[table[name] == value]
    assert len(table) == 1
    return table.iloc[0]


def test_the_scores_equal_those_of_explain_and_are_restored_from_the_parts(erased: CorpusResult) -> None:
    some = texts()[:4]
    explained = TextExplainer(cnn(mask_id=0)).explain(some, ["features", "output"], **OPTIONS)
    found = erased.explanation(range(4))
    assert found.settings.erased == explained.settings.erased == "damage by mask, 24 passes"
    for ours, theirs in zip(found, explained):
        for kind in ("token", "word"):
            a, b = (each.scores("erased", kind) for each in (ours, theirs))  # type: ignore[arg-type]
            np.testing.assert_allclose(a.values, b.values, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(a.standard_error, b.standard_error, rtol=1e-4, atol=1e-5)
        assert [row.n_backward for row in ours.rows] == [row.n_backward for row in theirs.rows]


def test_means_are_of_words_and_signed(erased: CorpusResult) -> None:
    scores = [item.scores("erased", "word") for item in erased.explanation()]
    values = np.concatenate([each.values[1] for each in scores])  # the cnn has no special tokens
    assert (values < 0).any() and (values > 0).any()
    table = erased.layers()
    of_word = line(table, layer="output", quantity="erased", per="word")
    assert of_word["mean"] == pytest.approx(values.mean(), rel=1e-5)
    assert of_word["low"] < of_word["mean"] < of_word["high"]
    of_sentence = line(table, layer="output", quantity="erased", per="sentence")
    assert of_sentence["mean"] == pytest.approx(np.mean([float(e.values[1].sum()) for e in scores]), rel=1e-5)
    assert line(table, layer="features", quantity="damage", per="sentence")["mean"] > 0
    assert erased.units == {"features": "D", "output": "nats"}


def test_classes_of_words_have_the_means_of_their_words(erased: CorpusResult) -> None:
    names, values = [], []
    for item in erased.explanation():
        scores = item.scores("erased", "word")
        names += scores.units
        values += scores.values[1].tolist()
    table = erased.word_classes(by="lexicon", lexicon={"good": "praise", "bad": "blame"})
    for word, name in (("good", "praise"), ("bad", "blame")):
        mine = np.array([value for unit, value in zip(names, values) if unit == word])
        found = line(table, layer="output", **{"class": name})
        assert (found["words"], found["erased"]) == (len(mine), pytest.approx(mine.mean(), rel=1e-4))
        assert found["magnitude"] == pytest.approx(np.abs(mine).mean(), rel=1e-4)
    shares = table[table["layer"] == "output"]["share"]
    assert shares.sum() == pytest.approx(1) and (shares > 0).all()


def test_a_study_is_continued_and_merged_and_other_erasures_are_refused(
    tmp_path: Path, erased: CorpusResult
) -> None:
    first = study().run(texts(), tmp_path, window=WINDOW, show_progress=False, rank=0, world_size=2)
    assert first.texts == TEXTS // 2
    assert run(tmp_path).explanation().items == erased.explanation().items
    with pytest.raises(ValueError, match="erased is 'damage by mask, 30 passes' now and"):
        run(tmp_path, passes=30)
    with pytest.raises(ValueError, match="erased is None now and 'damage by mask, 24 passes' there"):
        run(tmp_path, score="kept")


def test_two_studies_of_erasures_compare_and_one_of_noise_does_not(
    tmp_path: Path, erased: CorpusResult
) -> None:
    same = erased.compare(erased)
    assert set(same["quantity"]) == {"erased"} and (same["difference"] == 0).all()
    noise = run(tmp_path, texts()[:WINDOW], score="kept")
    with pytest.raises(ValueError, match="erased is 'damage by mask, 24 passes' in one study and None"):
        erased.compare(noise)


def test_statistics_of_information_are_refused(erased: CorpusResult) -> None:
    for ask in (erased.monotonicity, erased.knowledge):
        with pytest.raises(ValueError, match="the study was run with score='erased', which does not measure"):
            ask()
    with pytest.raises(ValueError, match="E is known only if the solver computed the results"):
        erased.plot("regime")
    with pytest.raises(ValueError, match="score is 'noise'; choose 'kept' or 'erased'"):
        study(score="noise")


def test_page_terminal_and_figures_name_the_quantity_and_its_units(erased: CorpusResult) -> None:
    page = str(erased.to_html())
    assert "output: nats, layers: D" in page
    assert "nformation kept" not in page
    console = Console(file=io.StringIO(), width=160)
    erased.show(erased, console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "per erased word" in printed and "nats" in printed and "per token" not in printed
    assert "per word" in erased.plot().axes[0].get_ylabel()
    assert "per word" in erased.plot("classes").axes[1].get_ylabel()
