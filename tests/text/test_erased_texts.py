"""Texts explained with score="erased": rows, files, tables, pages and the command line."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from tiny_models import tiny
from tiny_plain import lstm
from typer.testing import CliRunner

from interp_plugin import (
    CorpusStudy,
    Explanation,
    LayerInformationErased,
    TextExplainer,
    log_odds,
)
from interp_plugin.cli import app
from interp_plugin.method.erasure import every_erasure, multilinear

TEXTS = ["not a bad film , though the plot is thin", "a film with more than enough charm and wit"]


@pytest.fixture(scope="module")
def explanation(default: TextExplainer) -> Explanation:
    return default.explain(TEXTS, ["all", "output"], score="erased", passes=60)


def test_the_words_that_carry_the_class_have_the_highest_scores(explanation: Explanation) -> None:
    first, second = (item.scores() for item in explanation)
    assert {first.units[place] for place in first.values[-1].topk(2).indices} == {"bad", "thin"}
    assert second.units[int(second.values[-1].argmax())] in ("charm", "wit", "enough")
    assert first.kind == "erased" and not first.values[:, [0, -1]].any()  # special tokens are never erased


def test_the_scores_of_a_class_equal_captums_for_its_log_odds(default: TextExplainer) -> None:
    [item] = default.explain(TEXTS[:1], "output", target="negative", score="erased", passes=60)
    model: Any = default.model.module
    [encoding] = default.encode(TEXTS[:1])
    ids = torch.tensor([encoding.ids])
    special = torch.tensor([offset is None for offset in encoding.offsets])
    baselines = torch.where(special, ids, default.model.mask_id)
    method = LayerInformationErased(
        lambda ids: log_odds(model(ids).logits, 0), model.base_model.embeddings.word_embeddings
    )
    scores = method.attribute(ids, baselines, passes=60, return_input_shape=False)
    torch.testing.assert_close(item.rows[0].erased, scores[0], rtol=1e-3, atol=1e-3)


def test_without_a_target_the_predicted_class_of_each_text_is_explained(default: TextExplainer) -> None:
    both = default.explain(TEXTS, "output", score="erased", passes=40)
    for text, item, target in zip(TEXTS, both, ["negative", "positive"]):
        [alone] = default.explain(text, "output", target=target, score="erased", passes=40)
        torch.testing.assert_close(item.rows[0].erased, alone.rows[0].erased, rtol=1e-3, atol=1e-3)


def test_a_file_restores_every_bit(explanation: Explanation, tmp_path: Path) -> None:
    explanation.save(tmp_path / "a.parquet")
    assert Explanation.load(tmp_path / "a.parquet") == explanation


def test_another_kind_of_score_is_refused_with_the_way_to_get_it(
    explanation: Explanation, default: TextExplainer
) -> None:
    for kind in ("kept", "loss", "sigma"):
        with pytest.raises(ValueError, match="explain them with score='kept'"):
            explanation[0].scores(kind)
    with pytest.raises(ValueError, match="explain them with score='kept'"):
        explanation[0].total()
    with pytest.raises(ValueError, match="explain them with score='erased'"):
        default.explain("a film", layers=1)[0].scores("erased")
    with pytest.raises(ValueError, match="score is 'signed'; choose 'kept' or 'erased'"):
        default.explain("a film", score="signed")  # type: ignore[arg-type]


@pytest.mark.parametrize("unused", [{"side": "keep"}, {"ways": ["attention"]}])
def test_settings_of_erasures_are_refused_where_noise_is_learned(
    default: TextExplainer, unused: dict[str, Any]
) -> None:
    with pytest.raises(
        ValueError, match="how tokens are erased, and noise is learned here; give score='erased'"
    ):
        default.explain(TEXTS, 1, **unused)
    with pytest.raises(
        ValueError, match="how tokens are erased, and noise is learned here; give score='erased'"
    ):
        CorpusStudy(default.model, **unused)


def test_word_scores_are_sums_or_means_of_their_pieces(explanation: Explanation) -> None:
    item = explanation[0]
    tokens, words = item.scores(), item.scores(granularity="word")
    assert words.values.sum() == pytest.approx(float(tokens.values.sum()), abs=1e-4)
    assert (item.scores(granularity="sentence", aggregate="mean").values[:, 1] > 0).all()


def test_pieces_of_a_word_that_are_erased_together_have_one_error(
    default: TextExplainer, tmp_path: Path
) -> None:
    text = "an incomprehensible and charmless film with more than enough melodrama"
    found = default.explain(text, score="erased", units="word", passes=40)
    found.save(tmp_path / "film.parquet")
    for item in (found[0], Explanation.load(tmp_path / "film.parquet")[0]):
        row, words = item.row("output"), item.scores(granularity="word").of("incomprehensible")
        [(_, start, end)] = words.offsets
        pieces = [i for i, offset in enumerate(item.offsets) if offset and start <= offset[1] < end]
        assert len(pieces) > 1 and row.standard_error[pieces[0]] > 0
        assert words.standard_error.item() == pytest.approx(float(row.standard_error[pieces].sum()))
        assert words.values.item() == pytest.approx(float(row.erased[pieces].sum()))


def test_tables_pages_and_records_show_the_sign(explanation: Explanation) -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    explanation.show(console)
    assert "Lost when the token is erased" in console.export_text()
    page = explanation.to_html()
    assert 'class="n' in page and "it speaks against it" in page and "not converged" not in page
    table = explanation.to_pandas()
    assert set(table.layer) == {1, 2, 3, 4, "output"} and (table.erased < 0).any()
    [record, _] = explanation.to_captum("output")
    assert record.word_attributions.min() < 0 and record.word_attributions.abs().max() <= 1
    for kind in ("layers", "tokens"):
        assert explanation.plot(kind).axes
    with pytest.raises(ValueError, match="tokens were erased"):
        explanation.plot("flow")


def test_the_command_line_erases(tmp_path: Path) -> None:
    call = ["explain", TEXTS[0], "--score", "erased", "--ways", "mask,attention", "--json"]
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [row["layer"] for row in found["texts"][0]["rows"]] == ["output"]
    assert found["settings"]["erased"] == "damage by mask and attention, 100 passes"
    wrong = CliRunner().invoke(app, ["explain", TEXTS[0], "--score", "erased", "--ways", "blur"])
    assert wrong.exit_code == 2 and "'blur'" in wrong.output


def test_each_position_is_a_row(default: TextExplainer) -> None:
    [item] = default.explain("a good film", 1, positions=[0, 2], score="erased")
    assert [row.position for row in item.rows] == [0, 2]
    assert item.rows[0].erased.shape == (len(item.tokens),)


MODELS = {
    "GPT-2": lambda: tiny("gpt2", "GPT2LMHeadModel"),
    "T5": lambda: tiny("t5", "T5ForConditionalGeneration"),
    "BERT": lambda: tiny("bert", "BertForSequenceClassification"),
    "tagger": lambda: tiny("bert", "BertForTokenClassification"),
    "LSTM": lstm,
}


@pytest.mark.parametrize("name", MODELS)
def test_a_text_has_the_same_scores_alone_and_in_a_batch(name: str) -> None:
    explainer = TextExplainer(MODELS[name]())
    target = "film" if explainer.model.task == "next token" else None
    texts = [" ".join(["good", "bad"] * count) for count in (2, 5)]
    layers = [next(iter(explainer.model.layers)), "output"]
    both = explainer.explain(texts, layers, target, score="erased", passes=40)
    for text, item in zip(texts, both):
        [alone] = explainer.explain(text, layers, target, score="erased", passes=40)
        for row, own in zip(item.rows, alone.rows):
            torch.testing.assert_close(row.erased, own.erased, rtol=1e-3, atol=1e-4)
        assert any(row.erased.any() for row in item.rows)


@pytest.mark.parametrize("name", ["GPT-2", "BERT"])
def test_deletion_equals_the_model_on_the_shorter_text(name: str) -> None:
    explainer = TextExplainer(MODELS[name]())
    model: Any = explainer.model
    target = 70 if model.task == "next token" else None  # the id of a token
    encoding = model.encode("a good", target=target)
    players = [place for place, offset in enumerate(encoding.offsets) if offset is not None]
    [item] = explainer.explain("a good", "output", target, score="erased", ways="delete")
    row, ids = item.rows[0], torch.tensor([encoding.ids])

    def answer(gone: set[int]) -> float:
        kept = [place for place in range(len(encoding.ids)) if place not in gone]
        with torch.no_grad():
            scores = model.module(ids[:, kept]).logits
            if target is None:
                return float(log_odds(scores, int(model.module(ids).logits.argmax())))
        return float(scores[0, -1].log_softmax(-1)[encoding.target[0]])

    gone = [{players[i] for i in bits.nonzero()[0]} for bits in every_erasure(len(players))]
    nothing_left = len(gone[-1]) == len(encoding.ids)  # the mean of the table stands for its tokens
    damages = np.array([answer(set()) - answer(each) for each in gone[:-1]] + [0.0])
    p = row.erasure_probability[players].double().numpy()
    if nothing_left:
        damages[-1] = (row.damage - multilinear(damages, p)[1]) / np.prod(p)
    else:
        damages[-1] = answer(set()) - answer(gone[-1])
    np.testing.assert_allclose(row.erased[players], multilinear(damages, p)[0], rtol=1e-2, atol=1e-4)
