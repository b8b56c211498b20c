"""TextExplainer on models of every family: padding, targets, positions, heads, pairs and what is refused."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from tiny_models import CASES, DEPTH, FAMILIES, LIMIT, SlowTokenizer, exists, model_of, tiny
from torch import Tensor, nn

from interp_plugin import huggingface
from interp_plugin.attribution import LayerInformationLoss
from interp_plugin.huggingface import HuggingFaceModel
from interp_plugin.method.perturbation import LayerCall, first_tensor
from interp_plugin.method.solver import NoiseFit, Solver
from interp_plugin.text import batch as batches
from interp_plugin.text import scoring
from interp_plugin.text.explainer import TextExplainer
from interp_plugin.text.explanation import Explanation, Row, TextExplanation
from interp_plugin.text.states import Calibration

# for small noise, two runs only differ by rounding
QUICK: dict[str, Any] = {"solver": Solver(iterations=1), "rate": 1e-3}
TEXTS = ["The film was good .", "A dull story , not good and not funny", "film"]
# these do not take float64: Gemma 2's softmax, and GPT-2's mask before transformers 5
FLOAT32 = ("gemma2",) if transformers.__version__ >= "5" else ("gemma2", "gpt2")
GENERATORS = ("LMHeadModel", "ForCausalLM", "ForConditionalGeneration")


def case(family: str, name: str) -> Any:
    missing = pytest.mark.skipif(not exists(name), reason=f"this version of transformers has no {name}")
    return pytest.param(family, name, marks=missing, id=f"{family}-{name}")


ALL = [case(family, name) for family, name in CASES]
CAUSAL = [case(family, FAMILIES[family].classes[0]) for family in ("gpt2", "llama", "gemma2", "mistral")]
BARE = [case(family, entry.classes[0]) for family, entry in FAMILIES.items()]


def lively(family: str, name: str, **settings: Any) -> HuggingFaceModel:
    """A float64 model with larger weights: fresh ones hardly mix their tokens, and their next tokens are all alike."""
    model = tiny(family, name, **settings)
    with torch.no_grad():
        for parameter in model.model.parameters():
            if parameter.ndim > 1 and family != "t5":  # T5's are large from the start
                parameter.mul_(8)
    if family not in FLOAT32:
        model.model.double()
    return model


@cache
def explainer(family: str, name: str) -> TextExplainer:
    return TextExplainer(lively(family, name))


def one(explanation: Explanation) -> Row:
    """The only row."""
    [item] = explanation
    [row] = item.rows
    return row


def assert_same(item: TextExplanation, twin: TextExplanation, rtol: float = 1e-4) -> None:
    assert (item.tokens, item.target, item.predicted) == (twin.tokens, twin.target, twin.predicted)
    for row, other in zip(item.rows, twin.rows, strict=True):
        assert (row.layer, row.position) == (other.layer, other.position)
        torch.testing.assert_close(row.sigma, other.sigma, rtol=rtol, atol=0)


def assert_fits(row: Row, fit: NoiseFit) -> None:
    """The row has the result of the Captum class for a single text without padding."""
    torch.testing.assert_close(row.sigma, fit.sigma[0], rtol=1e-4, atol=0)
    assert (row.sigma < row.max_sigma).any()


def ids_of(model: HuggingFaceModel, words: str, **asked: Any) -> Tensor:
    return torch.tensor([model.encode(words, **asked).ids])


def method(
    model: HuggingFaceModel,
    state: nn.Module | LayerCall | None = None,
    forward: Callable[..., Any] | None = None,
) -> LayerInformationLoss:
    """Noise at the word embeddings of the plain model."""
    run = (lambda *ids: model.model(*ids)[0]) if forward is None else forward
    return LayerInformationLoss(run, model.embedding, state)


# -- a text does not depend on the others


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of texts in each batch; all may share one, whatever their lengths."""
    seen: list[int] = []

    def spy(model: Any, encodings: Any, plan: Any, finder: Any = None) -> Any:
        seen.append(len(encodings))
        return score(model, encodings, plan, finder)

    score = scoring.score
    monkeypatch.setattr(scoring, "score", spy)
    monkeypatch.setattr(batches, "FULL", 0)
    return seen


def assert_padding_changes_nothing(
    explainer: TextExplainer, targets: list[Any], shared: list[int], **settings: Any
) -> Explanation:
    asked: dict[str, Any] = {"layers": [*explainer.model.layers, "output"], **QUICK, **settings}
    # scores that are small compared with their summands have fewer digits
    rough = asked["rate"] < 0.1 and next(explainer.model.module.parameters()).dtype == torch.float32
    together = explainer.explain(TEXTS, target=targets, **asked)
    assert shared == [3]
    lengths = {len(item.tokens) for item in together}
    assert len(lengths) == 3
    for words, target, item in zip(TEXTS, targets, together):
        [alone] = explainer.explain(words, target=target, **asked)
        assert_same(item, alone, 1e-3 if rough else 1e-4)
        assert all(
            (row.sigma < row.max_sigma).any() for row in item.rows[:DEPTH]
        )  # a window may hide the first
    return together


@pytest.mark.parametrize("family, name", ALL)
def test_a_text_has_the_same_result_in_a_padded_batch_and_alone(
    family: str, name: str, shared: list[int]
) -> None:
    targets = [" bad", None, 7] if name.endswith(GENERATORS) else [None] * 3
    for item in assert_padding_changes_nothing(explainer(family, name), targets, shared):
        assert all((row.sigma < row.max_sigma).any() for row in item.rows)  # something to compare


@pytest.mark.parametrize("family, name", BARE)
def test_a_text_has_the_same_result_in_float32_at_the_default_rate(
    family: str, name: str, shared: list[int]
) -> None:
    assert_padding_changes_nothing(TextExplainer(tiny(family, name)), [None] * 3, shared, rate=0.1)


@pytest.mark.parametrize("family, name", [("gpt2", "GPT2LMHeadModel"), ("llama", "LlamaForCausalLM")])
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_tokenizers_padding_side_changes_nothing(
    family: str, name: str, side: str, shared: list[int]
) -> None:
    model = lively(family, name)
    model.tokenizer.padding_side = side
    assert_padding_changes_nothing(TextExplainer(model), [" good and funny", 3, None], shared)


def test_texts_with_and_without_a_target_share_a_batch_of_hidden_layers(shared: list[int]) -> None:
    gpt2 = explainer("gpt2", "GPT2LMHeadModel")
    targets = [None, " bad and dull", (" good film", (1, 5))]
    together = gpt2.explain(TEXTS, 1, targets, **QUICK)
    assert shared == [3]
    for words, target, item in zip(TEXTS, targets, together):
        assert_same(item, gpt2.explain(words, 1, target, **QUICK)[0])


@pytest.mark.parametrize("family, name", [("bert", "BertModel"), ("gpt2", "GPT2Model"), ("t5", "T5Model")])
@pytest.mark.parametrize(
    "asked", [{"positions": "each"}, {"heads": [1]}, {"neurons": [0, 5], "positions": -1}]
)
def test_parts_of_a_state_do_not_depend_on_the_other_texts_either(
    family: str, name: str, asked: dict[str, Any], shared: list[int]
) -> None:
    model = explainer(family, name)
    layers = list(model.model.layers)[-1:]
    together = model.explain(TEXTS[1:], layers, **QUICK, **asked)
    assert shared == [2]
    for words, item in zip(TEXTS[1:], together):
        assert_same(item, model.explain(words, layers, **QUICK, **asked)[0])


# -- rows against the Captum class on the plain model


@pytest.mark.parametrize(
    "family, name",
    [("bert", "BertModel"), ("gpt2", "GPT2Model"), ("llama", "LlamaModel"), ("t5", "T5EncoderModel")],
)
def test_a_layers_row_is_what_the_captum_class_fits(family: str, name: str) -> None:
    model = lively(family, name)
    explanation = TextExplainer(model).explain(TEXTS, "hidden_states.2", **QUICK)
    for words, item in zip(TEXTS, explanation):
        fit = method(model, model.layers[2].layer).fit(ids_of(model, words), **QUICK)
        assert_fits(item.rows[0], fit)


@pytest.mark.parametrize("head", [0, 1])
def test_a_head_of_bert_is_its_part_of_the_attentions_output(head: int) -> None:
    model = lively("bert", "BertModel")
    row = one(TextExplainer(model).explain(TEXTS[0], 2, heads=head, **QUICK))
    attention = model.model.encoder.layer[1].attention.self
    part = (slice(None), slice(8 * head, 8 * head + 8))
    fit = method(model, attention).fit(ids_of(model, TEXTS[0]), neuron_selector=part, **QUICK)
    assert_fits(row, fit)


def test_a_head_of_llama_is_its_part_of_what_the_output_projection_is_given() -> None:
    model = lively("llama", "LlamaModel")
    row = one(TextExplainer(model).explain(TEXTS[0], 2, heads=[1], **QUICK))
    given = LayerCall(model.model.layers[1].self_attn.o_proj, side="input")
    part = (slice(None), slice(8, 16))
    assert_fits(row, method(model, given).fit(ids_of(model, TEXTS[0]), neuron_selector=part, **QUICK))


def test_several_heads_are_one_state() -> None:
    model = lively("bert", "BertModel")
    both = one(TextExplainer(model).explain(TEXTS[0], 1, heads=[0, 1], **QUICK))
    attention = model.model.encoder.layer[0].attention.self
    assert_fits(both, method(model, attention).fit(ids_of(model, TEXTS[0]), **QUICK))


def test_neurons_are_places_of_the_last_dimension() -> None:
    model = lively("bert", "BertModel")
    row = one(TextExplainer(model).explain(TEXTS[0], 1, neurons=slice(2, 5), **QUICK))
    part = (slice(None), slice(2, 5))
    layer = model.layers[1].layer
    fit = method(model, layer).fit(ids_of(model, TEXTS[0]), neuron_selector=part, **QUICK)
    assert_fits(row, fit)


def test_a_pair_of_sentences_reaches_the_model_with_its_token_types() -> None:
    model = lively("bert", "BertForSequenceClassification")
    item = TextExplainer(model).explain(("The film", "it was good"), "output", 1, **QUICK)[0]
    given = model.tokenizer("The film", "it was good", return_tensors="pt")

    def forward(ids: Tensor, types: Tensor) -> Tensor:
        return model.model(ids, token_type_ids=types).logits

    fit = method(model, forward=forward).fit(given["input_ids"], 1, (given["token_type_ids"],), **QUICK)
    assert_fits(item.rows[0], fit)
    assert (item.text, item.pair) == ("The film", "it was good")
    assert [offset and offset[0] for offset in item.offsets] == [None, 0, 0, None, 1, 1, 1, None]
    assert item.scores(granularity="word").units == (
        "[CLS]",
        "The",
        "film",
        "[SEP]",
        "it",
        "was",
        "good",
        "[SEP]",
    )


def test_texts_and_pairs_share_a_list() -> None:
    bert = explainer("bert", "BertModel")
    both = bert.explain(["film", ("film", "good")], 1, **QUICK)
    assert [item.pair for item in both] == [None, "good"]
    assert_same(both[1], bert.explain(("film", "good"), 1, **QUICK)[0])


# -- classes


def labelled(name: str) -> HuggingFaceModel:
    return lively("bert", name, id2label={0: "bad", 1: "good", 2: "so so"})


def test_a_label_of_a_token_classifier_is_its_score_at_every_token() -> None:
    model = labelled("BertForTokenClassification")
    item = TextExplainer(model).explain(TEXTS[0], "output", "good", **QUICK)[0]
    fit = method(model).fit(ids_of(model, TEXTS[0]), neuron_selector=(slice(None), 1), **QUICK)
    assert item.target == "good"
    assert_fits(item.rows[0], fit)


def test_a_label_at_positions_is_its_score_at_those_tokens() -> None:
    model = labelled("BertForTokenClassification")
    rows = TextExplainer(model).explain(TEXTS[0], "output", "good", positions=[2, -1], **QUICK)[0].rows
    last = len(rows[0].sigma) - 1
    assert [row.position for row in rows] == [2, last]
    for row in rows:
        fit = method(model).fit(ids_of(model, TEXTS[0]), neuron_selector=(row.position, 1), **QUICK)
        assert_fits(row, fit)


def test_labels_are_found_by_name_in_any_case_and_by_number() -> None:
    model = labelled("BertForSequenceClassification")
    explanation = TextExplainer(model).explain([TEXTS[0]] * 4, "output", ["good", "GOOD", 1, None], **QUICK)
    assert [item.target for item in explanation] == ["good", "good", "good", None]
    by_name, in_case, by_number, everything = (item.rows[0].sigma for item in explanation)
    assert torch.equal(by_name, in_case)
    assert torch.equal(by_name, by_number)
    assert not torch.allclose(by_name, everything, rtol=0.01)


def test_a_masked_token_is_a_class_too() -> None:
    model = lively("bert", "BertForMaskedLM")
    words = "the [MASK] was good"
    item = TextExplainer(model).explain(words, "output", "film", positions=2, **QUICK)[0]
    assert (item.tokens[2], item.target) == ("[MASK]", "film")
    index = model.class_index("film")
    assert_fits(item.rows[0], method(model).fit(ids_of(model, words), neuron_selector=(2, index), **QUICK))


def test_the_prediction_is_the_classifiers_own() -> None:
    model = labelled("BertForSequenceClassification")
    for item in TextExplainer(model).explain(TEXTS, 1, **QUICK):
        with torch.no_grad():
            chances = model.model(ids_of(model, item.text)).logits[0].softmax(0)
        assert item.predicted == ("bad", "good", "so so")[int(chances.argmax())]
        assert item.probability == pytest.approx(float(chances.max()), rel=1e-4)


# -- decoders


@pytest.mark.parametrize("family, name", CAUSAL)
def test_a_decoders_state_keeps_exactly_nothing_of_later_tokens(family: str, name: str) -> None:
    for item in explainer(family, name).explain(TEXTS[:2], 2, positions="each", **QUICK):
        count = len(item.tokens)
        assert [row.position for row in item.rows] == list(range(count))
        kept = item.scores("kept").values
        assert torch.equal(kept, kept.tril())
        assert (kept.diagonal() > 0).all()
        for row in item.rows:
            assert (row.sigma[row.position + 1 :] == row.max_sigma).all()
            assert (row.standard_error[row.position + 1 :] == 0).all()


def test_a_position_of_a_text_with_a_target_sees_nothing_later() -> None:
    row = one(explainer("gpt2", "GPT2LMHeadModel").explain(TEXTS[0], 2, " bad and dull", 3, **QUICK))
    assert row.position == 3
    assert (row.sigma[4:] == row.max_sigma).all()
    assert (row.sigma[:4] < row.max_sigma).any()


TARGETS = [" bad and dull", 7, (" bad and dull", (5, 8))]


@pytest.mark.parametrize("target", TARGETS, ids=["continuation", "token", "span"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family, name", [("gpt2", "GPT2LMHeadModel"), ("llama", "LlamaForCausalLM")])
def test_a_decoders_output_is_the_log_probability_of_its_target(
    family: str, name: str, side: str, target: Any
) -> None:
    model = lively(family, name)
    model.tokenizer.padding_side = side
    explanation = TextExplainer(model).explain(TEXTS, "output", target, **QUICK)
    for words, item in zip(TEXTS, explanation):
        encoding = model.encode(words, target=target)

        def forward(ids: Tensor, encoding: Any = encoding) -> Tensor:
            scores = model.model(ids).logits.log_softmax(-1)
            return scores[:, list(encoding.target_positions), list(encoding.target)]

        assert_fits(item.rows[0], method(model, forward=forward).fit(torch.tensor([encoding.ids]), **QUICK))


@pytest.mark.parametrize("target", TARGETS, ids=["continuation", "token", "span"])
def test_hidden_layers_are_watched_where_the_target_is_predicted(target: Any) -> None:
    model = lively("gpt2", "GPT2LMHeadModel")
    row = one(TextExplainer(model).explain(TEXTS[0], "hidden_states.2", target, **QUICK))
    encoding = model.encode(TEXTS[0], target=target)
    ids, block = torch.tensor([encoding.ids]), model.layers[2].layer
    places = list(encoding.target_positions)
    spread = torch.zeros(1, len(encoding.ids), 1)  # elements without a spread do not count
    spread[:, places] = states_of(model, block, ids)[:, places].square().mean().sqrt().float()
    assert_fits(row, method(model, block).fit(ids, state_std=spread, **QUICK))


def states_of(model: HuggingFaceModel, layer: nn.Module, ids: Tensor) -> Tensor:
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(
        lambda m, args, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad():
        model.model(ids)
    handle.remove()
    return seen[0]


def test_a_continuation_is_the_pair_and_its_last_token_is_only_predicted() -> None:
    item = explainer("gpt2", "GPT2LMHeadModel").explain("The film was", [1, "output"], " good and", **QUICK)[
        0
    ]
    assert item.tokens == ("The", " film", " was", " good")
    assert item.offsets == ((0, 0, 3), (0, 4, 8), (0, 9, 12), (1, 1, 5))
    assert (item.text, item.pair, item.target) == ("The film was", " good and", " good and")
    assert item.predicted is None


def test_the_target_of_a_span_is_that_part() -> None:
    gpt2 = explainer("gpt2", "GPT2LMHeadModel")
    item = gpt2.explain("The film was", [1, "output"], (" good and funny", (1, 5)), **QUICK)[0]
    assert (item.tokens, item.target) == (("The", " film", " was"), " good")
    later = gpt2.explain("The film was", "output", (" good and", (6, 9)), **QUICK)[0]
    assert (later.tokens, later.target) == (("The", " film", " was", " good"), " and")


def test_without_a_target_a_language_models_own_next_token_is_explained() -> None:
    model = lively("llama", "LlamaForCausalLM")
    item = TextExplainer(model).explain(TEXTS[0], [1, "output"], **QUICK)[0]
    with torch.no_grad():
        chances = model.model(ids_of(model, TEXTS[0])).logits[0, -1].softmax(-1)
    assert item.predicted == model.class_name(int(chances.argmax()))
    assert item.probability == pytest.approx(float(chances.max()), rel=1e-4)
    given = TextExplainer(model).explain(TEXTS[0], [1, "output"], int(chances.argmax()), **QUICK)[0]
    for label in (1, "output"):  # layers are watched where the token is predicted, given or not
        torch.testing.assert_close(item.row(label).sigma, given.row(label).sigma, rtol=1e-5, atol=0)
    item = TextExplainer(model).explain(TEXTS[0], [1, "output"], positions="all", **QUICK)[0]
    plain = TextExplainer(model).explain(TEXTS[0], 1, **QUICK)[0]  # layers are watched at all tokens
    error = (item.row(1).standard_error.square() + plain.row(1).standard_error.square()).sqrt()
    assert ((item.row(1).sigma / plain.row(1).sigma).log().abs() < 5 * error).all()


# -- encoder-decoders


ENCODER_DECODERS = [("t5", "T5ForConditionalGeneration"), ("bart", "BartForConditionalGeneration")]


@pytest.mark.parametrize("target", TARGETS, ids=["continuation", "token", "span"])
@pytest.mark.parametrize("family, name", ENCODER_DECODERS)
def test_an_encoder_decoders_output_is_the_log_probability_of_its_target(
    family: str, name: str, target: Any
) -> None:
    model = lively(family, name)
    item = TextExplainer(model).explain(TEXTS[:2], "output", target, **QUICK)[1]
    encoding = model.encode(TEXTS[1], target=target)

    def forward(ids: Tensor, decoder: Tensor) -> Tensor:
        logits = model.model(input_ids=ids, decoder_input_ids=decoder).logits
        return logits.log_softmax(-1)[:, list(encoding.target_positions), list(encoding.target)]

    decoder = torch.tensor([encoding.extra["decoder_input_ids"]])
    fit = method(model, forward=forward).fit(
        torch.tensor([encoding.ids]), additional_forward_args=(decoder,), **QUICK
    )
    torch.testing.assert_close(item.rows[0].sigma, fit.sigma[0], rtol=1e-4, atol=0)
    assert item.tokens == encoding.tokens  # the source's, which get the noise
    assert item.pair == (None if target == 7 else " bad and dull")


@pytest.mark.parametrize("family, name", ENCODER_DECODERS)
def test_decoder_layers_are_watched_where_the_target_is_predicted(family: str, name: str) -> None:
    model = lively(family, name)
    row = one(TextExplainer(model).explain(TEXTS[0], "hidden_states.decoder.2", 7, **QUICK))
    encoding = model.encode(TEXTS[0], target=7)
    decoder = torch.tensor([encoding.extra["decoder_input_ids"]])
    assert decoder.shape == (1, 1)

    def forward(ids: Tensor, decoder: Tensor) -> Any:
        return model.model(input_ids=ids, decoder_input_ids=decoder)

    fit = method(model, model.layers["decoder.2"].layer, forward).fit(
        torch.tensor([encoding.ids]), additional_forward_args=(decoder,), **QUICK
    )
    assert_fits(row, fit)


@pytest.mark.parametrize("family, name", ENCODER_DECODERS)
def test_positions_of_a_decoder_are_those_of_its_own_text(family: str, name: str) -> None:
    item = explainer(family, name).explain(
        TEXTS[0], ["encoder.2", "decoder.1"], " bad and dull", "each", **QUICK
    )[0]
    encoding = explainer(family, name).model.encode(TEXTS[0], target=" bad and dull")
    decoded = len(encoding.extra["decoder_input_ids"])
    assert [row.position for row in item.rows_of("encoder.2")] == list(range(len(item.tokens)))
    assert [row.position for row in item.rows_of("decoder.1")] == list(range(decoded))
    assert decoded != len(item.tokens)
    with pytest.raises(ValueError, match=f"'decoder.1' of text .* has {decoded} tokens"):
        explainer(family, name).explain(TEXTS[0], "decoder.1", " bad and dull", decoded, **QUICK)


def test_a_decoders_first_self_attention_does_not_see_the_text() -> None:
    t5 = explainer("t5", "T5ForConditionalGeneration")
    with pytest.warns(UserWarning, match="noise does not reach the state of 'decoder.1'") as caught:
        explanation = t5.explain(TEXTS, heads=0, target=" bad", **QUICK)
    assert len(caught) == 1
    for item in explanation:
        row = item.row("decoder.1")
        assert (row.sigma == row.max_sigma).all()
        assert all((row.sigma < row.max_sigma).any() for row in item.rows if row.layer != "decoder.1")


# -- positions, heads, layers


def test_each_position_is_a_row_words_by_time_steps() -> None:
    item = explainer("bert", "BertModel").explain(TEXTS[0], [1, 2], positions="each", **QUICK)[0]
    count = len(item.tokens)
    assert [(row.layer, row.position) for row in item.rows] == [(n, i) for n in (1, 2) for i in range(count)]
    assert item.scores().values.shape == (2 * count, count)


def test_a_time_step_is_what_the_captum_class_fits_for_that_position() -> None:
    model = lively("llama", "LlamaModel")
    row = one(TextExplainer(model).explain(TEXTS[0], "hidden_states.2", positions=0, **QUICK))
    ids, layer = ids_of(model, TEXTS[0]), model.layers[2].layer
    assert_fits(row, method(model, layer).fit(ids, neuron_selector=(slice(0, 1),), **QUICK))


def test_negative_positions_count_from_each_texts_end() -> None:
    bert = explainer("bert", "BertModel")
    explanation = bert.explain(TEXTS, 1, positions=[-1, 0, 0], **QUICK)
    for item in explanation:
        assert [row.position for row in item.rows] == [len(item.tokens) - 1, 0]
        with pytest.raises(KeyError, match="no row at position 1"):
            item.row(1, 1)


@pytest.mark.parametrize("place", [3, -4])
def test_a_position_that_does_not_exist_names_the_text(place: int) -> None:
    with pytest.raises(
        ValueError, match=rf"position {place} does not exist in layer 1 of text 'film', .* give -3 to 2"
    ):
        explainer("bert", "BertModel").explain(TEXTS, 1, positions=place, **QUICK)


@pytest.mark.parametrize(
    "asked, message",
    [
        ({"positions": []}, "names no token"),
        ({"positions": "every"}, "position 'every' does not exist"),
        ({"positions": True}, "position True does not exist"),
        ({"positions": slice(0, 2)}, r"position slice\(0, 2, None\) does not exist"),
        ({"heads": 2}, "head 2 does not exist: layer 1 has heads 0 to 1"),
        ({"heads": -1}, "head -1 does not exist"),
        ({"heads": []}, r"heads \[\] is empty"),
        ({"neurons": []}, r"neurons \[\] is empty"),
        ({"neurons": [0, 16]}, r"neurons=\[0, 16\] does not exist in layer 1, whose last dimension has 16"),
        (
            {"layers": 0},
            "layer 0 does not exist: the model has 1, 2",
        ),
        ({"layers": [1, 3]}, "layer 3 does not exist"),
        ({"layers": "output", "target": 0}, "BertModel has no classification head"),
        ({"batch_size": 0}, "a batch size is 0"),
        ({"internal_batch_size": 0}, "a batch size is 0"),
        ({"max_sigma": -1.0}, "max_sigma of text 'film' is -1"),
        ({"rate": float("nan")}, "rate is nan"),
    ],
)
def test_a_bad_request_is_refused_with_the_way_out(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        explainer("bert", "BertModel").explain("film", **{"layers": 1, **QUICK, **asked})


def test_an_unknown_label_lists_those_that_exist() -> None:
    model = TextExplainer(labelled("BertForSequenceClassification"))
    with pytest.raises(ValueError, match="'great' is no class of the model: it has 'bad', 'good', 'so so'"):
        model.explain("film", "output", "great")
    with pytest.raises(ValueError, match="target 'good' picks a part of the output"):
        model.explain(TEXTS, 1, [None, "good", None])


def test_a_layer_named_twice_is_explained_once() -> None:
    item = explainer("bert", "BertModel").explain("film", [2, 1, 2], **QUICK)[0]
    assert item.layers == (2, 1)


def test_one_block_run_several_times_is_several_layers() -> None:
    albert = explainer("albert", "AlbertModel")
    together = albert.explain(TEXTS[0], "all")[0]
    assert together.layers == (1, 2)
    for row in together.rows:
        alone = one(albert.explain(TEXTS[0], row.layer))
        error = (row.standard_error.square() + alone.standard_error.square()).sqrt()
        assert ((row.sigma.log() - alone.sigma.log()).abs() < 5 * error + 1e-5).all()
    first, second = (row.sigma.log() for row in together.rows)
    assert ((first - second).abs() > 0.02).any()


def test_kept_is_counted_against_the_spread_of_the_embedding_table() -> None:
    bert = explainer("bert", "BertModel")
    item = bert.explain(TEXTS[0], 2, **QUICK)[0]
    std = bert.model.module.get_input_embeddings().weight.detach().std()
    expected = 8 * (1 + (std / item.rows[0].sigma) ** 2).log() - 8 * math.log(
        1.01
    )  # K = 16, the cap at 10 std
    torch.testing.assert_close(item.scores().values[0].float(), expected, rtol=1e-3, atol=1e-3)
    assert item.rows[0].input_std == pytest.approx(float(std), rel=1e-4)


def test_kept_depends_on_the_cap_by_a_constant_alone() -> None:
    """Where no token reaches the cap: at half the cap all of them keep K / 2 log(1.04 / 1.01) less."""
    bert = explainer("bert", "BertModel")
    item = bert.explain(TEXTS[0], 2, **QUICK)[0]
    [row] = item.rows
    half = bert.explain(TEXTS[0], 2, max_sigma=row.max_sigma / 2, **QUICK)[0]
    assert (row.sigma < row.max_sigma / 2).all()
    gap = item.scores().values - half.scores().values
    torch.testing.assert_close(gap, torch.full_like(gap, 8 * math.log(1.04 / 1.01)), rtol=1e-3, atol=1e-3)


def test_the_layer_that_holds_the_tables_has_the_spread_of_its_own_output() -> None:
    """Of BERT's embedding block, whose output is normalised, and whose tables have a spread of 0.02: tokens were all at
    the cap."""
    model = explainer("bert", "BertModel")
    given = {"layers": 1, "solver": Solver(iterations=1)}
    block = TextExplainer(model.model, noise_layer="embeddings")
    item = block.explain(TEXTS[0], **given)[0]
    [row] = item.rows
    ids = torch.tensor([model.encode(TEXTS[0])[0].ids])
    with torch.no_grad():
        own = model.model.module.embeddings(ids).std(unbiased=False)
    assert row.input_std == pytest.approx(float(own), rel=1e-4)
    assert row.max_sigma == pytest.approx(10 * float(own), rel=1e-4)
    assert (row.sigma < row.max_sigma).all()
    fit = LayerInformationLoss(model.model.module, model.model.module.embeddings, model.model.layers[1]).fit(
        ids
    )
    assert fit.input_std.item() == pytest.approx(float(own), rel=1e-4)
    # a calibration knows that layer's spread over its texts
    known = block.calibrate(TEXTS, 1, show_progress=False)
    with torch.no_grad():
        each = [model.model.module.embeddings(torch.tensor([e.ids])) for e in model.encode(TEXTS)]
    whole = torch.cat([x[0] for x in each])
    assert known.input_std == pytest.approx(float(whole.std(unbiased=False)), rel=1e-4)
    assert known.noise_layer == "embeddings"
    [row] = block.explain(TEXTS[0], **given)[0].rows
    assert row.input_std == pytest.approx(known.input_std)
    [row] = (
        TextExplainer(model.model, calibration=known).explain(TEXTS[0], **given)[0].rows
    )  # at its own table
    assert row.input_std == pytest.approx(
        float(model.model.module.get_input_embeddings().weight.std()), rel=1e-4
    )
    [row] = block.explain(TEXTS[0], input_std=3.0, **given)[0].rows
    assert (row.input_std, row.max_sigma) == (3.0, 30.0)


def test_the_seed_determines_the_numbers() -> None:
    first, again, other = (
        one(explainer("bert", "BertModel").explain("a film", 1, solver=Solver(iterations=1, seed=seed))).sigma
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# -- texts


def test_a_text_that_is_too_long_is_named_and_can_be_cut_off() -> None:
    bert = explainer("bert", "BertModel")
    longer = "film " * 60
    with pytest.raises(
        ValueError,
        match=f"text 1, 'film film .*…': text has 62 tokens: .* at most {LIMIT}; .* truncation=True",
    ):
        bert.explain(["film", longer], 1)
    with pytest.raises(ValueError, match=r"^text has 62 tokens"):
        bert.explain(longer, 1)
    item = bert.explain(["film", longer], 1, truncation=True, **QUICK)[1]
    assert len(item.tokens) == len(item.rows[0].sigma) == LIMIT
    assert max(offset[2] for offset in item.offsets if offset) == 5 * (LIMIT - 2) - 1


@pytest.mark.parametrize(
    "words, message",
    [
        ("", "text 1, '': text '' has no tokens"),
        (" \n", "has no tokens"),
        ("[SEP] [CLS]", "no tokens but special ones"),
        ("a \ud83d", "half a surrogate pair"),
    ],
)
def test_a_text_that_cannot_be_read_is_named(words: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        explainer("bert", "BertModel").explain(["film", words], 1)


def test_texts_of_another_type_are_refused() -> None:
    with pytest.raises(TypeError, match="texts is a bytes: it must be a str"):
        explainer("bert", "BertModel").explain(b"film", 1)  # type: ignore[arg-type]


def test_the_tuple_of_huggingface_load_must_be_unpacked() -> None:
    model, tokenizer = huggingface.load(huggingface.default_model_path())
    with pytest.raises(TypeError, match=r"model is a tuple; give its parts: TextExplainer\(\*huggingface"):
        TextExplainer((model, tokenizer))  # type: ignore[arg-type]


@pytest.mark.parametrize("words", [3, b"film", ["film"], ("a", "b", "c"), ("a", 3), None])
def test_an_item_that_is_not_a_text_is_named(words: Any) -> None:
    with pytest.raises(TypeError, match=r"text 1 is .*: it must be a str, a tuple or list of two"):
        explainer("bert", "BertModel").explain(["film", words], 1)


def test_a_target_that_cannot_be_read_names_its_text() -> None:
    with pytest.raises(ValueError, match="text 1, 'film': target '' has no tokens"):
        explainer("gpt2", "GPT2LMHeadModel").explain(["film", "film"], 1, [" bad", ""])
    with pytest.raises(TypeError, match="text 0, 'film': target is a bool"):
        explainer("gpt2", "GPT2LMHeadModel").explain(["film", "film"], 1, [True, 3])


def test_a_tokenizer_that_does_not_fit_names_the_text() -> None:
    model = HuggingFaceModel(model_of("bert", "BertModel", vocab_size=20), FAMILIES["bert"].tokenizer())
    with pytest.raises(ValueError, match=r"text 0, 'The film was good \.': tokenizer and model do not fit"):
        TextExplainer(model).explain(TEXTS, 1)


@pytest.mark.parametrize(
    "family, name", [("bert", "BertModel"), ("gpt2", "GPT2LMHeadModel"), ("t5", "T5Model")]
)
@pytest.mark.parametrize("words", ["film", "film film film film", "😀", "good 😀 😀"])
def test_short_repeated_and_strange_texts(family: str, name: str, words: str) -> None:
    model = explainer(family, name)
    item = model.explain(words, [*model.model.layers, "output"], **QUICK)[0]
    for row in item.rows:
        assert len(row.sigma) == len(item.tokens)
        assert row.sigma.isfinite().all() and (row.sigma > 0).all() and (row.sigma <= row.max_sigma).all()


def test_a_word_that_comes_twice_has_a_value_for_each() -> None:
    item = explainer("bert", "BertModel").explain("film good film", 2, positions=1, **QUICK)[0]
    assert item.tokens == ("[CLS]", "film", "good", "film", "[SEP]")
    sigma = item.rows[0].sigma
    assert sigma[1] < sigma[3]  # the vector above the first is first of all about that one


def test_a_tokenizer_without_offsets_has_readable_words() -> None:
    model = HuggingFaceModel(model_of("bert", "BertModel"), SlowTokenizer())
    item = TextExplainer(model).explain("The film wás unbelievable", 1, **QUICK)[0]
    assert item.scores(granularity="word").units == ("[CLS]", "The", "film", "wás", "unbelievable", "[SEP]")


# -- errors name the text


def test_values_that_are_not_finite_name_the_text() -> None:
    model = tiny("bert", "BertModel")
    with torch.no_grad():
        model.model.embeddings.word_embeddings.weight[model.encode("funny").ids[1]] = torch.nan
    for positions in (None, 0):
        with pytest.raises(
            ValueError,
            match="NaN or infinite values are in the inputs of text 'A dull story , not good and not funny'",
        ):
            TextExplainer(model).explain(TEXTS, 1, positions=positions)


def test_a_state_without_a_gradient_names_the_text() -> None:
    model = tiny("bert", "BertModel")
    model.model.encoder.layer[0].register_forward_hook(
        lambda module, args, output: (
            (output[0].detach(), *output[1:]) if isinstance(output, tuple) else output.detach()
        )
    )
    with pytest.raises(ValueError, match="state of text 'film' moves with its input but carries no gradient"):
        TextExplainer(model).explain("film", 2, **QUICK)


def test_an_embedding_may_be_without_gradient() -> None:
    frozen = lively("bert", "BertModel")
    frozen.model.requires_grad_(False)
    embed = frozen.model.embeddings.word_embeddings
    embed.forward = torch.no_grad()(embed.forward)
    row = one(TextExplainer(frozen).explain("film", 1, **QUICK))
    usual = one(TextExplainer(lively("bert", "BertModel")).explain("film", 1, **QUICK))
    torch.testing.assert_close(row.sigma, usual.sigma, rtol=1e-5, atol=0)


def test_training_mode_causes_a_warning_at_the_users_line() -> None:
    model = tiny("bert", "BertModel")
    model.model.train()
    with pytest.warns(UserWarning, match="in training mode") as caught:
        TextExplainer(model).explain("film", 1, solver=Solver(iterations=0))
    assert caught[0].filename == __file__


def test_a_state_before_the_noise_causes_one_warning_for_all_texts() -> None:
    model = lively("bert", "BertModel")
    late = TextExplainer(model, noise_layer="encoder.layer.1")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        explanation = late.explain(TEXTS, [1, 2], **QUICK)
    assert [str(warning.message)[:55] for warning in caught] == [
        "noise does not reach the state of 1 (in text 'The film "
    ]
    assert caught[0].filename == __file__
    assert all((item.row(1).sigma == item.row(1).max_sigma).all() for item in explanation)
    assert all((item.row(2).sigma < item.row(2).max_sigma).all() for item in explanation)


# -- half precision


@pytest.mark.parametrize("family, name", BARE)
def test_half_precision_gives_finite_float32_close_to_single(family: str, name: str) -> None:
    model = lively(family, name)
    layers = list(model.layers)
    exact = TextExplainer(model).explain(TEXTS[:2], layers, **QUICK)
    for dtype in (torch.bfloat16, torch.float16):
        model.model.to(dtype)
        rounded = TextExplainer(model).explain(TEXTS[:2], layers, **QUICK)
        for item, other in zip(exact, rounded):
            for row, its in zip(item.rows, other.rows):
                assert its.sigma.dtype == torch.float32
                assert its.sigma.isfinite().all()
                error = (row.standard_error.square() + its.standard_error.square()).sqrt() + 0.03
                assert ((row.sigma.log() - its.sigma.log()).abs() < 4 * error).all()


def test_the_output_of_a_language_model_in_half_precision() -> None:
    model = lively("llama", "LlamaForCausalLM")
    exact = one(TextExplainer(model).explain(TEXTS[0], "output", " bad", **QUICK))
    model.model.bfloat16()
    rounded = one(TextExplainer(model).explain(TEXTS[0], "output", " bad", **QUICK))
    error = (exact.standard_error.square() + rounded.standard_error.square()).sqrt() + 0.05
    assert ((exact.sigma.log() - rounded.sigma.log()).abs() < 4 * error).all()


# -- the user's model


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize(
    "family, name, target",
    [
        ("bert", "BertForSequenceClassification", 0),
        ("llama", "LlamaForCausalLM", " bad"),
        ("bart", "BartForConditionalGeneration", " bad"),
    ],
)
def test_the_users_model_comes_back_as_it_was(
    family: str, name: str, target: Any, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(family, name)
    model.embedding.layer.train()
    plain, last = model.model, list(model.layers.values())[-1].layer
    before = {key: value.clone() for key, value in plain.state_dict().items()}
    training = [module.training for module in plain.modules()]
    random = torch.random.get_rng_state()
    if fails:
        runs = iter([last.forward])
        monkeypatch.setattr(last, "forward", lambda *args, **kwargs: next(runs)(*args, **kwargs))
        with pytest.raises((StopIteration, RuntimeError)):
            TextExplainer(model).explain(TEXTS, target=target, layers=[*model.layers, "output"], **QUICK)
    else:
        TextExplainer(model).explain(TEXTS, target=target, layers=[*model.layers, "output"], **QUICK)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(torch.equal(value, before[key]) for key, value in plain.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in plain.parameters())
    assert [module.training for module in plain.modules()] == training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in plain.modules())


# -- calibration


@pytest.mark.parametrize(
    "family, name",
    [
        ("bert", "BertForTokenClassification"),
        ("gpt2", "GPT2LMHeadModel"),
        ("llama", "LlamaForSequenceClassification"),
        ("t5", "T5ForConditionalGeneration"),
        ("bart", "BartModel"),
    ],
)
def test_a_calibrated_model_explains_every_layer_output_and_heads(
    family: str, name: str, tmp_path: Path
) -> None:
    model = lively(family, name)
    explainer = TextExplainer(model)
    calibration = explainer.calibrate((words for words in TEXTS), show_progress=False, batch_size=2)
    assert calibration.texts == 3
    heads = [f"{label}.heads" for label in model.layers]
    normed = (
        ".normed" if family in ("gpt2", "llama", "t5") else ""
    )  # what the next block reads has a unit of its own
    assert set(calibration.state_std) == {*(f"{label}{normed}" for label in model.layers), *heads, "output"}
    layers = [*model.layers, "output"]
    explanation = explainer.explain(TEXTS, layers, **QUICK)
    of_heads = explainer.explain(TEXTS, list(model.layers)[:2], heads=[1], **QUICK)
    assert explanation.settings.state_std
    assert all(row.sigma.isfinite().all() for item in explanation for row in item.rows)

    calibration.save(tmp_path / "spread.safetensors")
    again = TextExplainer(model, calibration=Calibration.load(tmp_path / "spread.safetensors"))
    for item, twin in zip(explanation, again.explain(TEXTS, layers, **QUICK)):
        assert_same(item, twin)
    for item, twin in zip(of_heads, again.explain(TEXTS, list(model.layers)[:2], heads=[1], **QUICK)):
        assert_same(item, twin)


def test_calibration_is_the_spread_over_all_tokens() -> None:
    model = lively("gpt2", "GPT2LMHeadModel")
    calibration = TextExplainer(model).calibrate(TEXTS, ["hidden_states.1", "output"], show_progress=False)
    states, best = [], []
    for words in TEXTS:
        ids = ids_of(model, words)
        states.append(states_of(model, model.layers[1].layer, ids)[0])
        with torch.no_grad():
            best.append(model.model(ids).logits[0].log_softmax(-1).amax(-1))
    torch.testing.assert_close(
        calibration.of("1"), torch.cat(states).std(0, unbiased=False).float(), rtol=1e-4, atol=1e-6
    )
    torch.testing.assert_close(
        calibration.of("output"), torch.cat(best).std(unbiased=False).float(), rtol=1e-4, atol=1e-6
    )


def test_a_decoder_is_calibrated_on_the_texts_it_writes() -> None:
    model = lively("t5", "T5ForConditionalGeneration")
    targets = [" bad and dull", " good", 7]
    calibration = TextExplainer(model).calibrate(
        TEXTS, "hidden_states.decoder.2", targets, show_progress=False
    )
    states = []
    for words, target in zip(TEXTS, targets):
        encoding = model.encode(words, target=target)
        decoder = torch.tensor([encoding.extra["decoder_input_ids"]])
        with torch.no_grad():
            hidden = model.model(
                input_ids=torch.tensor([encoding.ids]), decoder_input_ids=decoder, output_hidden_states=True
            ).decoder_hidden_states[2]
        states.append(hidden[0])
    assert len(torch.cat(states)) > len(TEXTS)
    expected = torch.cat(states).std(0, unbiased=False).float()
    torch.testing.assert_close(calibration.of("decoder.2"), expected, rtol=1e-4, atol=1e-6)


def test_a_single_text_is_accepted_for_calibration() -> None:
    bert = TextExplainer(tiny("bert", "BertModel"))
    assert bert.calibrate("a good film", show_progress=False).texts == 1
    assert bert.calibrate(("a good film", "a bad one"), show_progress=False).texts == 1


def test_a_calibration_of_an_older_version_is_refused_by_its_format(tmp_path: Path) -> None:
    new = Calibration("m", 2, {"1": torch.ones(3)}, 0.5, "embeddings")
    new.save(tmp_path / "new")
    loaded = Calibration.load(tmp_path / "new")
    assert (loaded.input_std, loaded.noise_layer, loaded.digest) == (0.5, "embeddings", new.digest)
    about = {"format": "interp_plugin calibration 1", "about": '{"model": "m", "texts": 2}'}
    (tmp_path / "old").write_bytes(safetensors.torch.save({"1": torch.ones(3)}, about))
    with pytest.raises(
        ValueError, match=r"old' is of format 'interp_plugin calibration 1', and .* 3' is needed"
    ):
        Calibration.load(tmp_path / "old")


def test_the_spread_of_the_inputs_is_one_number_for_all_texts() -> None:
    with pytest.raises(TypeError, match="input_std is a Tensor; give one number for all texts"):
        explainer("bert", "BertModel").explain("a film", 1, input_std=torch.ones(1))
    with pytest.raises(ValueError, match="input_std of text 'a film' is -1"):
        explainer("bert", "BertModel").explain("a film", 1, input_std=-1.0)


def test_all_layers_of_a_deep_model_cost_no_more_than_the_passes_of_each_through_the_blocks_below_it() -> (
    None
):
    depth = 12
    model = tiny("bert", "BertModel", num_hidden_layers=depth)
    rows = {"forward": 0, "backward": 0}

    def count(module: nn.Module, args: Any, output: Any) -> None:
        state = first_tensor(output)
        rows["forward"] += len(state)
        if state.requires_grad:
            state.register_hook(lambda gradient: rows.update(backward=rows["backward"] + len(gradient)))

    handles = [layer.layer.register_forward_hook(count) for layer in model.layers.values()]
    found = TextExplainer(model).explain(TEXTS[:1], solver=Solver(draws=8, iterations=2))[0].rows
    for handle in handles:
        handle.remove()
    assert [row.layer for row in found] == list(range(1, depth + 1))
    below = {name: sum(getattr(row, f"n_{name}") * row.layer for row in found) for name in rows}
    assert (
        depth < rows["forward"] <= below["forward"] + depth
    )  # the run without noise goes through all of them
    assert 0 < rows["backward"] <= below["backward"]
