"""Studies of language models: next tokens, against plain calls of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny
from torch import Tensor

from interp_plugin import TextExplainer, data
from interp_plugin.comparison import METHODS, METRICS, Method, Study
from interp_plugin.comparison.interface import Answer, Inputs, Trial
from interp_plugin.comparison.metrics import BINS, bin_counts
from interp_plugin.huggingface import HuggingFaceModel
from interp_plugin.text.models import state_sites
from interp_plugin.text.states import State

TEXT, TARGET, FOIL = "The film was not good and", " bold", " dull"
FAMILIES = {
    "llama": "LlamaForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}  # with a start token, and without


@cache
def model(family: str = "llama") -> HuggingFaceModel:
    return tiny(family, FAMILIES[family])


@cache
def asked(family: str = "llama", target: Any = TARGET, foil: Any = FOIL) -> Inputs:
    explainer = TextExplainer(model(family))
    [encoding] = explainer.encode(TEXT, target=target, instead_of=foil)
    return Inputs(model(family), encoding)


def answer(inputs: Inputs) -> Answer:
    return Answer(inputs, inputs.encoding.target[0])


@torch.no_grad()
def logs(family: str, ids: Sequence[int], mask: Sequence[int] | None = None) -> Tensor:
    """Log-probabilities of what follows, (V,), of ids alone in a batch."""
    given = torch.tensor([list(ids)])
    options = {} if mask is None else {"attention_mask": torch.tensor([list(mask)])}
    places = torch.arange(len(ids)).unsqueeze(0)
    return model(family).model(given, position_ids=places, **options).logits[0, -1].log_softmax(-1)


def contrast(inputs: Inputs, found: Tensor) -> float:
    [target], [foil] = inputs.encoding.target, inputs.encoding.foils
    return float(found[target] - found[foil])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_answer_is_the_log_probability_less_that_of_the_foil(family: str) -> None:
    inputs = asked(family)
    found = answer(inputs).of_arguments(*inputs.arguments)
    assert float(found) == pytest.approx(contrast(inputs, logs(family, inputs.encoding.ids)), abs=1e-4)
    alone = Inputs(inputs.model, replace(inputs.encoding, foils=()))
    expected = logs(family, inputs.encoding.ids)[inputs.encoding.target[0]]
    assert float(answer(alone).of_arguments(*inputs.arguments)) == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_neither_the_first_special_token_nor_the_predicting_token_is_removed(family: str) -> None:
    inputs = asked(family)
    players = inputs.players.tolist()
    assert players[-1] is False
    assert players[0] is (family == "gpt2")
    assert all(players[1:-1])


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_different_lengths_are_read_at_their_own_last_token(family: str) -> None:
    inputs = asked(family)
    ids, length = inputs.encoding.ids, inputs.length
    kept = torch.ones(length, length, dtype=torch.bool).tril()  # row i keeps i + 1 tokens, ...
    kept[:, -1] = True  # ... and the last one
    found = answer(inputs).of_kept(kept, "delete")
    for row, value in zip(kept.tolist(), found.tolist()):
        left = [token for token, stays in zip(ids, row) if stays]
        assert value == pytest.approx(contrast(inputs, logs(family, left)), abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_hidden_from_attention_keep_their_positions(family: str) -> None:
    inputs = asked(family)
    kept = ~torch.eye(inputs.length, dtype=torch.bool)[1:-1]  # the first is hidden below
    found = answer(inputs).of_kept(kept, "attention")
    for row, value in zip(kept.int().tolist(), found.tolist()):
        expected = contrast(inputs, logs(family, inputs.encoding.ids, row))
        assert value == pytest.approx(expected, abs=1e-4)


def test_a_decoder_without_a_first_special_token_can_hide_its_first_token() -> None:
    inputs = asked("gpt2")
    kept = torch.ones(1, inputs.length, dtype=torch.bool)
    kept[0, 0] = False
    hidden = answer(inputs).of_kept(kept, "attention")
    shifted = contrast(inputs, logs("gpt2", inputs.encoding.ids, kept[0].int().tolist()))
    assert hidden.isfinite().all()
    assert float(hidden) == pytest.approx(shifted, abs=1e-4)


def test_of_several_target_tokens_the_sum_is_explained_and_none_is_removed() -> None:
    inputs = asked(target=" bold and", foil=None)
    encoding = inputs.encoding
    count = len(encoding.target)
    assert count > 1
    assert not inputs.players[encoding.target_positions[0] :].any()
    kept = torch.ones(2, inputs.length, dtype=torch.bool)
    kept[1, 1:3] = False
    expected = []
    for row in kept.tolist():
        left = [token for token, stays in zip(encoding.ids, row) if stays]
        prompt = len(left) - count + 1
        expected.append(
            sum(float(logs("llama", left[: prompt + k])[token]) for k, token in enumerate(encoding.target))
        )
    assert answer(inputs).of_kept(kept, "delete").tolist() == pytest.approx(expected, abs=1e-4)


def test_a_state_is_watched_where_the_token_is_predicted_also_when_others_are_deleted() -> None:
    inputs = asked()
    state = inputs.at_target(State(1, state_sites(inputs.model)[1]))
    kept = torch.ones(2, inputs.length, dtype=torch.bool)
    kept[0, 1:4], kept[1, 2] = False, False

    def vector(ids: Sequence[int]) -> Tensor:
        """What the second block reads of the last token."""
        with torch.no_grad():
            hidden = inputs.model.model(torch.tensor([list(ids)]), output_hidden_states=True).hidden_states[1]
            norm: Tensor = inputs.model.model.model.layers[1].input_layernorm(hidden)[0, -1]
        return norm

    whole = vector(inputs.encoding.ids)
    for row, value in zip(kept.tolist(), Answer(inputs, state=state).of_kept(kept, "delete").tolist()):
        left = vector([token for token, stays in zip(inputs.encoding.ids, row) if stays])
        distance = (left - whole).square().mean() / whole.square().mean()
        assert value == pytest.approx(-float(distance), rel=1e-3)


def test_erased_scores_are_those_of_an_explanation_with_its_last_token_fixed() -> None:
    inputs, last = asked(), len(TEXT) - len("and")
    found = METHODS["erased"](inputs, inputs.encoding.target[0], None)
    explained = TextExplainer(inputs.model).explain(
        TEXT,
        "output",
        target=TARGET,
        instead_of=FOIL,
        score="erased",
        ways=("delete",),
        fixed=(last, len(TEXT)),
    )
    assert torch.allclose(found, explained[0].rows[0].erased, atol=1e-4)
    assert found[-1] == found[0] == 0


@pytest.mark.parametrize(
    "removal, name", [("delete", "leave-one-out"), ("attention", "leave-one-out (attention)")]
)
def test_leaving_one_out_is_the_change_of_the_answer(removal: Any, name: str) -> None:
    inputs = asked()
    scores = METHODS[name](inputs, inputs.encoding.target[0], None)
    kept = torch.ones(2, inputs.length, dtype=torch.bool)
    kept[1, 3] = False
    whole, left = answer(inputs).of_kept(kept, removal).tolist()
    assert float(scores[3]) == pytest.approx(whole - left, abs=1e-5)


def test_integrated_gradients_sum_to_the_change_of_the_answer() -> None:
    inputs = asked()
    scores = METHODS["integrated gradients (mean, signed)"](inputs, inputs.encoding.target[0], None)
    table = inputs.model.model.get_input_embeddings().weight.detach()
    points = torch.where(inputs.players[:, None], table.mean(0), inputs.embeddings)
    explained = answer(inputs)
    change = explained.of_embeddings(inputs.embeddings) - explained.of_embeddings(points)
    assert float(scores.sum()) == pytest.approx(float(change), rel=0.05)


@pytest.mark.parametrize("removal", ["delete", "attention"])
def test_contrastive_comprehensiveness_is_the_mean_loss_in_nats(removal: Any) -> None:
    inputs = asked()
    scores = torch.arange(float(inputs.length))
    method = Method("later", lambda *question: scores)
    trial = Trial(inputs, inputs.encoding.target[0], None, method, scores)
    order, losses = trial.order(), []
    for count in bin_counts(len(order), BINS):
        gone = order[:count]
        if removal == "delete":
            found = logs("llama", [t for place, t in enumerate(inputs.encoding.ids) if place not in gone])
        else:
            mask = [int(place not in gone) for place in range(inputs.length)]
            found = logs("llama", inputs.encoding.ids, mask)
        losses.append(contrast(inputs, logs("llama", inputs.encoding.ids)) - contrast(inputs, found))
    value = METRICS[f"contrastive comprehensiveness ({removal})"](trial)
    assert value == pytest.approx(sum(losses) / len(losses), abs=1e-4)
    alone = replace(inputs, encoding=replace(inputs.encoding, foils=()))
    assert METRICS[f"contrastive comprehensiveness ({removal})"](replace(trial, inputs=alone)) is None


def test_comprehensiveness_is_in_probabilities_of_the_two_where_there_is_a_foil() -> None:
    inputs = asked()
    both = answer(inputs)
    share = both.scaled(both.of_arguments(*inputs.arguments))
    pair = logs("llama", inputs.encoding.ids)[[inputs.encoding.target[0], inputs.encoding.foils[0]]].exp()
    assert float(share) == pytest.approx(float(pair[0] / pair.sum()), abs=1e-4)


QUESTIONS = {"methods": ["random", "leave-one-out"], "metrics": ["comprehensiveness (delete)"]}


def test_without_targets_a_study_explains_the_models_own_next_token() -> None:
    texts = [TEXT, "The actors were"]
    result = Study(model(), **QUESTIONS).run(texts, show_progress=False)
    assert result.names["question"] == ["next token"]
    for text, found in zip(texts, result.texts):
        ids = model().encode(text).ids
        assert found.target == model().class_name(int(logs("llama", ids).argmax()))
    assert result.settings["target"] == "predicted"
    assert result.group(0, 1) == "signed"


def test_a_study_takes_targets_and_foils_for_each_text_and_is_continued(tmp_path: Path) -> None:
    study = Study(model(), layers=1, **QUESTIONS)
    asked_for: dict[str, Any] = {
        "target": [" bold", None],
        "instead_of": [" dull", None],
        "show_progress": False,
    }
    result = study.run([TEXT, "The actors were"], output=tmp_path, **asked_for)
    assert "instead of" in str(result.texts[0].target)
    again = study.run([TEXT, "The actors were"], output=tmp_path, **asked_for)
    assert again == result
    other = study.run([TEXT, "The actors were"], target=" dull", output=tmp_path, show_progress=False)
    assert other.texts[0].digest != result.texts[0].digest


def test_states_of_a_language_model_are_read_at_the_predicting_position_with_a_note() -> None:
    settings = {"methods": ["information kept (closed form)"], "metrics": ["state erasure (delete)"]}
    result = Study(model(), layers=1, explain_class=False, **settings).run(TEXT, show_progress=False)
    assert result.cells[0, 0, 0, 0] > 0
    assert any("where the next token is predicted" in note for note in result.tables()[0].notes)


def test_records_with_targets_are_read_and_empty_ones_are_the_models_own(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text(
        f'text,target,instead_of,label\n"{TEXT}", bold, dull,1\nThe actors were,,,0\n', encoding="utf-8"
    )
    texts = data.read_texts(path)
    assert texts.targets == (" bold", None)
    assert texts.foils == (" dull", None)
    result = Study(model(), **QUESTIONS).run(texts, show_progress=False)
    assert "instead of" in str(result.texts[0].target)
    assert result.settings["target"] == "given"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"target": [" bold"]}, "target lists 1 for 2 texts"),
        ({"target": "label"}, "predicts tokens, not classes"),
        ({"labels": [0, 1]}, "predicts tokens, not classes"),
        ({"instead_of": " dull"}, "instead_of is . dull. and there is no target"),
        ({"target": " bold", "instead_of": " bold"}, "must differ"),
    ],
)
def test_invalid_questions_about_next_tokens_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Study(model(), **QUESTIONS).run([TEXT, TEXT], show_progress=False, **options)


def test_a_classifier_has_no_foils_and_no_contrastive_metrics() -> None:
    classifier = tiny("gpt2", "GPT2ForSequenceClassification", num_labels=2)
    with pytest.raises(ValueError, match="is not a language model"):
        Study(classifier, **QUESTIONS).run(TEXT, instead_of=" dull", show_progress=False)
    with pytest.raises(ValueError, match="is for models with the task 'next token'"):
        Study(classifier, methods="random", metrics="contrastive sufficiency (delete)")
    assert not [m for m in Study(classifier, methods="random").metrics if m.name.startswith("contrastive")]


def test_foils_of_data_without_targets_are_not_dropped(tmp_path: Path) -> None:
    """A file with the column instead_of alone was explained as if it had none."""
    path = tmp_path / "prompts.csv"
    path.write_text(f"text,instead_of\n{TEXT},{FOIL}\n")
    with pytest.raises(ValueError, match="instead_of is ' dull' and there is no target"):
        Study(model(), methods="random", metrics="quick").run(data.read_texts(path))


def test_targets_of_data_that_a_classifier_cannot_use_are_named(tmp_path: Path) -> None:
    """The report did not mention that the columns target and instead_of were not used."""
    path = tmp_path / "prompts.csv"
    path.write_text(f"text,target\n{TEXT},{TARGET}\n")
    classifier = tiny("bert", "BertForSequenceClassification")
    result = Study(classifier, methods="random", metrics="quick").run(data.read_texts(path))
    assert any("Targets of the data are not used" in note for note in result.notes)
