"""Heads beside those for classes and next tokens: answers, choices, next sentences, all labels in one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from tiny_models import bert_tokenizer, tiny, xlmr_tokenizer
from torch import Tensor

from interp_plugin.attribution import InformationLoss, LayerInformationLoss
from interp_plugin.method.solver import Solver
from interp_plugin.report.explanations import report
from interp_plugin.text.explainer import TextExplainer

FAST = Solver(iterations=2)
EXACT = Solver(iterations=0)  # of one number: no draws
QUESTION, CONTEXT = "why", "the film was good and funny"
CHOICES = ["it was good", "a dull story", "funny ending !"]
LABELS = {"id2label": {0: "contradiction", 1: "neutral", 2: "entailment"}}


def wide(family: str, name: str, **settings: Any) -> TextExplainer:
    """A model whose weights are large enough that all tokens matter."""
    model = tiny(family, name, **settings)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.model.parameters():
        if parameter.ndim > 1:
            parameter.data = 0.4 * torch.randn(parameter.shape, generator=generator)
    return TextExplainer(model)


def nats(explainer: TextExplainer, given: Any, solver: Solver = FAST, **options: Any) -> Tensor:
    """Information kept, (rows, tokens)."""
    return explainer.explain(given, layers="output", solver=solver, **options)[0].scores().values


def by_hand(explainer: TextExplainer, forward: Any, ids: Any, solver: Solver = FAST) -> Tensor:
    """Information kept by Captum's interface, with a forward of embeddings defined here, (tokens,)."""
    table: Any = explainer.model.embedding.layer
    embedded = table(torch.tensor([ids])).detach()
    std = explainer.plan("output").input_std
    loss = InformationLoss(forward)
    return loss.attribute(embedded, input_std=std, solver=solver, score="kept").sum(-1)[0].double()


# -- answers in the text


@pytest.mark.parametrize(
    "family, name", [("bert", "BertForQuestionAnswering"), ("gpt2", "GPT2ForQuestionAnswering")]
)
def test_the_start_of_an_answer_is_a_log_probability_over_places(family: str, name: str) -> None:
    explainer = wide(family, name)
    given = (QUESTION, CONTEXT) if family == "bert" else CONTEXT
    [encoding] = explainer.encode(given)
    place = next(i for i, token in enumerate(encoding.tokens) if token.strip() == "good")
    more = {key: torch.tensor([value]) for key, value in encoding.extra.items()}

    def forward(embedded: Tensor) -> Tensor:
        types = {key: value.expand(len(embedded), -1) for key, value in more.items()}
        output = explainer.model.module(inputs_embeds=embedded, **types)
        return output.start_logits.log_softmax(-1)[:, place]

    [row] = nats(explainer, given, target=("start", "good"))
    assert row.count_nonzero() > 2
    assert torch.allclose(row, by_hand(explainer, forward, encoding.ids), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "family, name", [("bert", "BertForQuestionAnswering"), ("bart", "BartForQuestionAnswering")]
)
def test_both_ends_of_the_models_own_answer_in_one_call(family: str, name: str) -> None:
    explainer = wide(family, name)
    rows = nats(explainer, (QUESTION, CONTEXT), target="each")
    for row, end in zip(rows, ("start", "end"), strict=True):
        assert torch.allclose(row, nats(explainer, (QUESTION, CONTEXT), target=end)[0], rtol=1e-4, atol=1e-3)
    explanation = explainer.explain((QUESTION, CONTEXT), "output", "each", solver=FAST)
    assert explanation[0].layers == ("output.start", "output.end")


def test_the_answer_is_the_likeliest_span_of_the_context() -> None:
    explainer = wide("bert", "BertForQuestionAnswering")
    [item] = explainer.explain((QUESTION, CONTEXT), "output", solver=FAST)
    arguments, _ = explainer.model.collate(explainer.encode((QUESTION, CONTEXT)))
    with torch.no_grad():
        output = explainer.model.module(**dict(zip(explainer.model._names, arguments)))  # type: ignore[attr-defined]
    start, end = output.start_logits[0].softmax(0), output.end_logits[0].softmax(0)
    inside = [i for i, offset in enumerate(item.offsets) if offset is not None and offset[0] == 1]
    best = max(
        (float(start[a] * end[b]), a, b) for a in inside for b in inside if a <= b < a + 15
    )  # the pipeline's limit
    assert item.probability == pytest.approx(best[0], rel=1e-4)
    first, last = (item.offsets[place] for place in best[1:])
    assert first is not None and last is not None
    assert item.predicted == item.target == CONTEXT[first[1] : last[2]]


def test_an_answer_does_not_depend_on_padding() -> None:
    explainer = wide("bert", "BertForQuestionAnswering")
    texts = [(QUESTION, CONTEXT), (QUESTION, CONTEXT + " ; a bold ending")]
    together = explainer.explain(texts, "output", "start", solver=FAST)
    for text, item in zip(texts, together, strict=True):
        [alone] = explainer.explain(text, "output", "start", solver=FAST)
        assert torch.allclose(item.rows[0].sigma, alone.rows[0].sigma, rtol=1e-3)
        assert item.probability == pytest.approx(alone.probability, rel=1e-4)


def test_an_erased_word_takes_the_log_probability_of_the_answer_with_it() -> None:
    explainer = wide("bert", "BertForQuestionAnswering")
    [encoding] = explainer.encode("film")
    assert len(encoding.ids) == 3  # one word that can be erased
    masked = [encoding.ids[0], explainer.model.mask_id, encoding.ids[2]]
    with torch.no_grad():
        outputs = [explainer.model.module(torch.tensor([ids])) for ids in (encoding.ids, masked)]
    before, after = (
        output.start_logits.log_softmax(1)[0, 1] + output.end_logits.log_softmax(1)[0, 1]
        for output in outputs
    )
    [item] = explainer.explain("film", "output", ("both", "film"), score="erased")
    assert item.rows[0].erased[1] == pytest.approx(float(before - after), abs=1e-4)  # type: ignore[attr-defined]


def test_hidden_layers_of_a_question_answering_model_are_watched_at_all_tokens() -> None:
    explainer = wide("bert", "BertForQuestionAnswering")
    rows = explainer.explain((QUESTION, CONTEXT), [1, "output"], "start", solver=FAST)[0].rows
    alone = explainer.explain((QUESTION, CONTEXT), [1, 2], solver=FAST)[0].rows
    assert torch.allclose(rows[0].sigma, alone[0].sigma, rtol=1e-4)


def xlnet(name: str) -> TextExplainer:
    torch.manual_seed(0)
    config = transformers.XLNetConfig(vocab_size=420, d_model=16, n_layer=2, n_head=2, d_inner=32)
    return TextExplainer(getattr(transformers, name)(config).eval(), xlmr_tokenizer())


def test_answers_of_a_model_with_the_batch_in_the_second_dimension() -> None:
    """Erasures used to be written with the batch first."""
    explainer = xlnet("XLNetForQuestionAnsweringSimple")
    texts = [(QUESTION, CONTEXT), (QUESTION, "not bad"), (CONTEXT, QUESTION)]
    together = explainer.explain(texts, "output", "start", score="erased", passes=40)
    for text, item in zip(texts, together, strict=True):
        [alone] = explainer.explain(text, "output", "start", score="erased", passes=40)
        assert torch.allclose(item.rows[0].erased, alone.rows[0].erased, atol=1e-4)  # type: ignore[attr-defined]


def test_choices_are_not_padded_for_a_model_that_reads_padding() -> None:
    explainer = xlnet("XLNetForMultipleChoice")
    with pytest.raises(ValueError, match="does not mask padding, and the choices have"):
        explainer.explain((QUESTION, CHOICES), "output")
    same = explainer.explain((QUESTION, ["good", "good"]), "output", "each", solver=EXACT)[0]
    assert same.probability == pytest.approx(0.5) and same.layers == ("output.good (0)", "output.good (1)")


def test_a_head_that_searches_for_its_answer_is_refused_with_the_one_to_use() -> None:
    with pytest.raises(
        ValueError, match="returns no start_logits; give the family's ForQuestionAnsweringSimple"
    ):
        xlnet("XLNetForQuestionAnswering").explain((QUESTION, CONTEXT), "output")


@pytest.mark.parametrize(
    "target, options, message",
    [
        ("middle", {}, "target 'middle' is no end of an answer"),
        (("start", "nowhere"), {}, "the answer 'nowhere' is not in the text"),
        (("start", 5), {}, "the answer is 5; give a string, or the characters"),  # was: cannot unpack
        (("start", (3, 900)), {}, r"the answer \(3, 900\) is not in the text"),  # was taken to its end
        ((["start"], "film"), {}, "is no end of an answer"),  # was: unhashable type
        ("start", {"instead_of": "end"}, "leave it out"),
        (None, {"instead_of": "end"}, "leave it out"),
        ("start", {"score": "erased", "ways": ["delete"]}, "would move the answer's positions"),
        ("start", {"layers": 1}, "picks a part of the output"),
    ],
)
def test_invalid_answers_are_refused(target: Any, options: dict[str, Any], message: str) -> None:
    explainer = TextExplainer(tiny("bert", "BertForQuestionAnswering"))
    with pytest.raises(ValueError, match=message):
        explainer.explain((QUESTION, CONTEXT), **{"layers": "output", "target": target, **options})


# -- choices


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "distilbert"])
def test_a_choice_is_scored_by_its_own_sequence(family: str) -> None:
    name = {"bert": "Bert", "roberta": "Roberta", "electra": "Electra", "distilbert": "DistilBert"}[family]
    explainer = wide(family, f"{name}ForMultipleChoice")
    [encoding] = explainer.encode((CONTEXT, CHOICES))
    ends = [encoding.extra["choice"].index(number) for number in range(3)] + [len(encoding.ids)]
    types = encoding.extra.get("token_type_ids")

    def score(embedded: Tensor, number: int) -> Tensor:
        own = slice(ends[number], ends[number + 1])
        more = {} if types is None else {"token_type_ids": torch.tensor([[types[own]]])}
        more = {key: value.expand(len(embedded), -1, -1) for key, value in more.items()}
        return explainer.model.module(inputs_embeds=embedded[:, None, own], **more).logits[:, 0]

    given = (CONTEXT, CHOICES)
    rows = nats(explainer, given, EXACT, target="each")
    for number, row in enumerate(rows):
        expected = by_hand(explainer, lambda x, n=number: score(x, n), encoding.ids, EXACT)
        assert torch.allclose(row, expected, rtol=1e-3, atol=1e-3)
        others = [place for place, choice in enumerate(encoding.extra["choice"]) if choice != number]
        assert row.any() and not row[others].any()
        single = nats(explainer, given, EXACT, target=CHOICES[number])[0]
        assert torch.allclose(row, single, rtol=1e-4, atol=1e-3)

    def against(embedded: Tensor) -> Tensor:
        scores = torch.stack([score(embedded, number) for number in range(3)], 1)
        return scores[:, 0] - scores[:, 1:].logsumexp(1)

    [margin] = nats(explainer, given, EXACT, target=0, function="log_odds")
    expected = by_hand(explainer, against, encoding.ids, EXACT)
    assert torch.allclose(margin, expected, rtol=1e-3, atol=1e-3)


def test_texts_with_different_choices_are_explained_in_one_call() -> None:
    explainer = wide("bert", "BertForMultipleChoice")
    texts = [(CONTEXT, CHOICES), (CONTEXT, CHOICES[:2]), ("not bad", CHOICES), (CONTEXT, CHOICES[::-1])]
    together = explainer.explain(texts, [1, "output"], solver=FAST)
    for text, item in zip(texts, together, strict=True):
        [alone] = explainer.explain(text, [1, "output"], solver=FAST)
        assert item.predicted == alone.predicted in text[1]
        for row, twin in zip(item.rows, alone.rows, strict=True):
            assert torch.allclose(row.sigma, twin.sigma, rtol=1e-3)


def test_two_equal_choices_are_told_apart_by_their_numbers_and_not_contrasted() -> None:
    explainer, given = wide("bert", "BertForMultipleChoice"), (CONTEXT, [*CHOICES[:2], CHOICES[0]])
    with pytest.raises(ValueError, match=r"^target 'it was good' may be class 0 \('it was good'\) or 2 "):
        explainer.explain(given, "output", target=CHOICES[0])
    assert explainer.explain(given, "output", target=2, solver=EXACT)[0].target == CHOICES[0]
    with pytest.raises(ValueError, match="are both class 'it was good'; give two different classes"):
        explainer.explain(given, "output", target=0, instead_of=2)


def test_a_word_that_is_read_with_each_choice_is_a_unit_each_time() -> None:
    [item] = wide("bert", "BertForMultipleChoice").explain((CONTEXT, CHOICES[1:]), 1, solver=FAST)
    units = item.scores(granularity="word").units
    assert [units.count(word) for word in CONTEXT.split()] == [
        2,
        2,
        2,
        2,
        2,
        3,
    ]  # "funny" is in a choice, too


def test_a_page_of_choices_begins_with_the_words_that_support_the_chosen_one() -> None:
    explanation = wide("bert", "BertForMultipleChoice").explain(
        ("film", ["good", "funny"]), "output", "each", solver=FAST
    )
    [section] = report(explanation.to_dict("word")).sections
    chosen = explanation[0].predicted
    assert section.answer.startswith(f"Predicted {chosen}, ")
    assert f"The output '{chosen}' keeps most of: " in section.answer
    assert {word.strip(" .") for word in section.answer.split(": ")[1].split(",")} == {"film", chosen}
    lines = ["".join(piece.text for piece in line if not piece.special) for line in section.lines]
    assert lines == ["film", "good", "film", "funny"]


def test_positions_heads_words_and_erasures_of_choices() -> None:
    explainer = wide("bert", "BertForMultipleChoice")
    given = ("film", ["good", "funny"])
    [encoding] = explainer.encode(given)
    [item] = explainer.explain(given, 1, positions=[0, -1], solver=FAST)
    first, last = (row.sigma < row.max_sigma for row in item.rows)
    own = torch.tensor(encoding.extra["choice"]) == 0
    assert not first[~own].any() and not last[own].any() and first.any() and last.any()
    assert explainer.explain(given, 1, heads=[0], units="word", solver=FAST)[0].rows[0].sigma.isfinite().all()
    with torch.no_grad():
        arguments, _ = explainer.model.collate([encoding])
        places = [i for i, offset in enumerate(encoding.offsets) if offset is not None]
        scores = []
        for place in (None, places[1]):  # with the first choice's word, and without it
            kept = [place is None or i != place for i in range(len(encoding.ids))]
            arguments, _ = explainer.model.collate([encoding.only(kept)])
            scores.append(explainer.model(*arguments)[0])
    deleted = explainer.explain(given, "output", 1, score="erased", ways=["delete"])[0].rows[0]
    assert scores[0][1] == scores[1][1] and scores[0][0] != scores[1][0]  # the other choice alone moves
    assert deleted.erased[places[1]] != 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("family, name", [("bert", "Bert"), ("deberta-v2", "DebertaV2")])
def test_hypotheses_of_zero_shot_classification_are_choices(family: str, name: str) -> None:
    explainer = wide(family, f"{name}ForSequenceClassification", **LABELS)
    [item] = explainer.explain((CONTEXT, CHOICES), "output", "each", solver=FAST)
    logits: list[Tensor] = []
    for choice in CHOICES:
        arguments, _ = explainer.model.collate(explainer.encode((CONTEXT, choice)))
        logits.append(explainer.model(*arguments)[0, 2].detach())
    probabilities = torch.stack(logits).softmax(0)
    assert item.predicted == CHOICES[int(probabilities.argmax())]
    assert item.probability == pytest.approx(float(probabilities.max()), rel=1e-4)
    assert item.layers == tuple(f"output.{choice}" for choice in CHOICES)


@pytest.mark.parametrize(
    "name, given, message",
    [
        ("BertForMultipleChoice", "a film", "chooses among several second texts"),
        ("BertForMultipleChoice", ("a film", "good"), "chooses among several second texts"),
        ("BertForSequenceClassification", ("a film", ["good", "bad"]), "a class 'entailment'"),
        ("BertForTokenClassification", ("a film", ["good", "bad"]), "pair is a list: it must be a str"),
        ("BertForNextSentencePrediction", "a film", "compares two sentences; give a pair"),
    ],
)
def test_second_texts_that_a_head_does_not_read(name: str, given: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        TextExplainer(tiny("bert", name)).explain(given, "output")


# -- next sentences, and all labels


@pytest.mark.parametrize("kind", ["Bert", "MobileBert"])
def test_next_sentence_prediction_has_two_named_classes(kind: str) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 420, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 32, "max_position_embeddings": 40}
    if kind == "MobileBert":
        sizes |= {"embedding_size": 8, "intra_bottleneck_size": 8}
    model = getattr(transformers, f"{kind}ForNextSentencePrediction")(
        getattr(transformers, f"{kind}Config")(**sizes)
    )
    explainer = TextExplainer(model.eval(), bert_tokenizer())
    [item] = explainer.explain((QUESTION, CONTEXT), "output", "each", solver=FAST)
    assert item.layers == ("output.next sentence", "output.other sentence")
    assert item.predicted in ("next sentence", "other sentence")
    [single] = explainer.explain((QUESTION, CONTEXT), "output", "next sentence", solver=FAST)
    assert torch.allclose(item.rows[0].sigma, single.rows[0].sigma, rtol=1e-4)


@pytest.mark.parametrize("family, name", [("bert", "Bert"), ("llama", "Llama")])
def test_each_label_in_one_call_is_that_of_a_call_each(family: str, name: str) -> None:
    settings = {**LABELS, "problem_type": "multi_label_classification"}
    explainer = wide(family, f"{name}ForSequenceClassification", **settings)
    [item] = explainer.explain(CONTEXT, "output", "each", solver=FAST)
    assert item.layers == ("output.contradiction", "output.neutral", "output.entailment")
    for number, row in enumerate(item.rows):
        [single] = explainer.explain(CONTEXT, "output", number, solver=FAST)
        assert torch.allclose(row.sigma, single.rows[0].sigma, rtol=1e-3)


def test_erased_log_odds_of_labels_that_do_not_exclude_each_other_are_their_own() -> None:
    """Used to be log-odds of a softmax over the labels."""
    settings = {**LABELS, "problem_type": "multi_label_classification"}
    explainer = wide("bert", "BertForSequenceClassification", **settings)
    [encoding] = explainer.encode("film")
    masked = [encoding.ids[0], explainer.model.mask_id, encoding.ids[2]]
    with torch.no_grad():
        before, after = (
            explainer.model.module(torch.tensor([ids])).logits[0] for ids in (encoding.ids, masked)
        )
    [item] = explainer.explain("film", "output", "each", score="erased")
    found = [float(row.erased[1]) for row in item.rows]  # type: ignore[attr-defined]
    assert found == pytest.approx((before - after).tolist(), abs=1e-4)


@pytest.mark.parametrize(
    "function, by_hand",
    [
        ("log_probability", lambda scores: torch.nn.functional.logsigmoid(scores[:, 1])),
        ("probability", lambda scores: scores[:, 1].sigmoid()),
        ("log_odds", lambda scores: scores[:, 1]),
        ("margin", lambda scores: scores[:, 1] - scores[:, [0, 2]].amax(1)),
    ],
)
def test_functions_of_labels_that_do_not_exclude_each_other_are_their_own(
    function: str, by_hand: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """Used to be computed after a softmax over the labels."""
    settings = {**LABELS, "problem_type": "multi_label_classification"}
    explainer = wide("bert", "BertForSequenceClassification", **settings)
    model = explainer.model.module
    [item] = explainer.explain(CONTEXT, "output", 1, function=function, solver=FAST)  # type: ignore[arg-type]
    ids = torch.tensor([explainer.encode(CONTEXT)[0].ids])
    method = LayerInformationLoss(lambda ids: by_hand(model(ids).logits), model.get_input_embeddings())
    assert torch.allclose(item.rows[0].sigma, method.fit(ids, solver=FAST).sigma[0], rtol=1e-3)


def test_each_token_label_at_one_position() -> None:
    explainer = wide("bert", "BertForTokenClassification", **LABELS)
    [item] = explainer.explain(CONTEXT, "output", "each", positions=[2], solver=FAST)
    assert [(row.layer, row.position) for row in item.rows] == [
        (f"output.{name}", 2) for name in ("contradiction", "neutral", "entailment")
    ]


def test_each_of_tens_of_thousands_of_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="have no names or are tokens; give one class"):
        TextExplainer(tiny("bert", "BertForMaskedLM")).explain(CONTEXT, "output", "each")


def test_a_calibrated_explainer_has_separate_units_for_classes() -> None:
    explainer = wide("bert", "BertForSequenceClassification", **LABELS)
    explainer.calibrate([CONTEXT, "not bad", "a dull story", "funny"], "output", show_progress=False)
    [item] = explainer.explain(CONTEXT, "output", "each", solver=FAST)
    [single] = explainer.explain(CONTEXT, "output", "neutral", solver=FAST)
    assert torch.allclose(item.rows[1].sigma, single.rows[0].sigma, rtol=1e-4)


def test_a_saved_explanation_of_each_label_is_the_same(tmp_path: Any) -> None:
    explainer = TextExplainer(tiny("bert", "BertForMultipleChoice"))
    explanation = explainer.explain((CONTEXT, CHOICES), "output", "each", solver=FAST)
    explanation.save(tmp_path / "a.parquet")
    assert type(explanation).load(tmp_path / "a.parquet") == explanation
    page = explanation.to_html()
    assert all(choice in page for choice in CHOICES)
