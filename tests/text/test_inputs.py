"""Texts that are split into words, and further arguments of the model's forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import transformers
from tiny_models import SlowTokenizer, bert_tokenizer, gpt2_tokenizer, tiny, xlmr_tokenizer
from tiny_plain import lstm

from interp_plugin.attribution import LayerInformationLoss
from interp_plugin.huggingface import HuggingFaceModel
from interp_plugin.method.solver import Solver
from interp_plugin.text.explainer import TextExplainer
from interp_plugin.text.explanation import Explanation

FAST = Solver(iterations=1)
WORDS = ["Mr.", "New York", "don't", "films", "!"]
SIZES = {"vocab_size": 420, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def explainer(kind: str, tokenizer: Any = None, **settings: Any) -> TextExplainer:
    """A model of transformers with random weights, by the beginning of its class's name."""
    torch.manual_seed(0)
    sizes = {**SIZES, "intermediate_size": 32, "max_position_embeddings": 40, **settings}
    config = getattr(transformers, f"{kind}Config")(**sizes)
    model = getattr(transformers, f"{kind}Model")(config).eval()
    return TextExplainer(HuggingFaceModel(model, tokenizer or bert_tokenizer()))


# -- words


@pytest.mark.parametrize(
    "family, name", [("bert", "BertModel"), ("xlm-roberta", "XLMRobertaModel"), ("llama", "LlamaModel")]
)
def test_words_are_those_of_the_caller(family: str, name: str) -> None:
    """Words that splitting at blanks and punctuation would change."""
    model = tiny(family, name)
    [item] = TextExplainer(model).explain([WORDS], 1, solver=FAST, is_split_into_words=True)
    scores = item.scores(granularity="word")
    units = [unit for unit, offset in zip(scores.units, scores.offsets) if offset is not None]
    assert units == WORDS and item.text == " ".join(WORDS)
    ids = model.tokenizer(WORDS, is_split_into_words=True)["input_ids"]
    assert list(TextExplainer(model).encode([WORDS], is_split_into_words=True)[0].ids) == ids
    plain = TextExplainer(model).explain(" ".join(WORDS), 1, solver=FAST)[0].scores(granularity="word")
    assert "York" in plain.units and "York" not in units


def test_a_slow_tokenizer_reads_words() -> None:
    words = ["good", "films !", "unbelievable"]
    found = explainer("Bert", SlowTokenizer()).explain(words, 1, solver=FAST, is_split_into_words=True)
    assert [unit for unit in found[0].scores(granularity="word").units if "[" not in unit] == words


def test_one_text_a_list_of_texts_and_pairs_of_words() -> None:
    model = explainer("Bert")
    one = model.explain(WORDS, 1, solver=FAST, is_split_into_words=True)
    several = model.explain([WORDS, ["a", "film"]], 1, solver=FAST, is_split_into_words=True)
    assert [item.text for item in several] == [" ".join(WORDS), "a film"]
    assert torch.allclose(one[0].rows[0].sigma, several[0].rows[0].sigma, rtol=1e-4)
    [pair] = model.explain((WORDS, ["a film", "?"]), 1, solver=FAST, is_split_into_words=True)
    assert (pair.text, pair.pair) == (" ".join(WORDS), "a film ?")
    assert pair.scores(granularity="word").units[-3:-1] == ("a film", "?")


def test_words_are_units_of_noise_and_survive_saving(tmp_path: Any) -> None:
    explanation = explainer("Bert").explain(
        [WORDS], 1, units="word", fixed="special", solver=FAST, is_split_into_words=True
    )
    [row] = explanation[0].rows
    assert len(row.sigma.unique()) == len(WORDS) + 1
    explanation.save(tmp_path / "words.parquet")
    loaded = Explanation.load(tmp_path / "words.parquet")
    assert loaded == explanation and loaded[0].scores(granularity="word").units[2] == "New York"


def test_words_before_a_target_of_a_language_model() -> None:
    model = TextExplainer(tiny("llama", "LlamaForCausalLM"))
    [words] = model.explain([["The", "film"]], "output", " was", solver=FAST, is_split_into_words=True)
    [text] = model.explain("The film", "output", " was", solver=FAST)
    assert words.tokens == text.tokens and torch.allclose(words.rows[0].sigma, text.rows[0].sigma)


def test_long_words_are_truncated_on_request() -> None:
    model = explainer("Bert")
    with pytest.raises(ValueError, match="the model takes at most 40"):
        model.explain([["film"] * 60], 1, is_split_into_words=True)
    [item] = model.explain([["film"] * 60], 1, truncation=True, solver=FAST, is_split_into_words=True)
    assert len(item.tokens) == 40


@pytest.mark.parametrize(
    "texts, tokenizer, message",
    [
        ([["a", " "]], bert_tokenizer, "word ' ' is blank"),
        ("a film", bert_tokenizer, "it must be a list of words"),
        ([["a", 3]], bert_tokenizer, "it must be a list of words"),
        ([["The", "film"]], gpt2_tokenizer, "load it with add_prefix_space=True"),
    ],
)
def test_words_that_cannot_be_read(texts: Any, tokenizer: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        explainer("Bert", tokenizer()).explain(texts, 1, is_split_into_words=True)


# -- further arguments


def sigma_by_hand(module: Any, ids: Sequence[int], **given: Any) -> torch.Tensor:
    """Of the first block, with one further argument of the forward, (T,)."""
    [(name, value)] = given.items()
    loss = LayerInformationLoss(
        lambda ids, value: module(ids, **{name: value}),
        module.embeddings.word_embeddings,
        module.encoder.layer[0],
    )
    extra = (torch.tensor([value]),)
    return loss.fit(torch.tensor([list(ids)]), additional_forward_args=extra, solver=FAST).sigma[0]


def test_given_token_types_reach_the_model() -> None:
    model = explainer("Bert", type_vocab_size=2)
    types = [0, 0, 1, 1, 0]
    [encoding] = model.encode("a good film")
    assert len(encoding.ids) == len(types)
    [item] = model.explain("a good film", 1, solver=FAST, forward_args={"token_type_ids": types})
    sigma = sigma_by_hand(model.model.module, encoding.ids, token_type_ids=types)
    assert torch.allclose(item.rows[0].sigma, sigma, rtol=1e-3)
    [plain] = model.explain("a good film", 1, solver=FAST)
    assert not torch.allclose(item.rows[0].sigma, plain.rows[0].sigma, rtol=1e-2)


def test_languages_of_an_xlm() -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 420, "emb_dim": 16, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 40}
    config = transformers.XLMConfig(**sizes, n_langs=3, use_lang_emb=True)
    model = TextExplainer(HuggingFaceModel(transformers.XLMModel(config).eval(), xlmr_tokenizer()))
    texts = ["a good film", "not bad"]
    together = model.explain(texts, 1, solver=FAST, forward_args={"langs": [1, 2]})
    for language, text, item in zip((1, 2), texts, together, strict=True):
        for value in (language, [language] * len(item.tokens)):
            [alone] = model.explain(text, 1, solver=FAST, forward_args={"langs": value})
            assert torch.allclose(item.rows[0].sigma, alone.rows[0].sigma, rtol=1e-3)
    [other] = model.explain("not bad", 1, solver=FAST, forward_args={"langs": 1})
    assert not torch.allclose(together[1].rows[0].sigma, other.rows[0].sigma, rtol=1e-3)


def test_a_calibration_takes_words_and_arguments() -> None:
    model = explainer("Bert", type_vocab_size=2)
    texts = [WORDS, ["a", "good", "film"]]
    plain = model.calibrate(texts, 1, show_progress=False, is_split_into_words=True)
    given = {"token_type_ids": [[1] * len(words) for words in texts]}
    other = model.calibrate(texts, 1, show_progress=False, is_split_into_words=True, forward_args=given)
    assert plain.of("1").shape == other.of("1").shape and not plain.of("1").equal(other.of("1"))


def test_boxes_of_words_are_those_of_their_tokens() -> None:
    model = explainer("LayoutLM", max_2d_position_embeddings=64)
    words = ["invoice", "12", "film"]
    boxes = [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]
    [encoding] = model.encode(words, is_split_into_words=True)
    spread = [[0] * 4]
    for offset in encoding.offsets[1:-1]:
        assert offset is not None
        spread.append(boxes[[start for _, start, _ in encoding.words if start <= offset[1]].__len__() - 1])
    spread.append([0] * 4)
    texts = [words, ["a", "film"]]
    both = model.explain(
        texts, 1, solver=FAST, is_split_into_words=True, forward_args={"bbox": [boxes, boxes[:2]]}
    )
    [single] = model.explain(
        words, 1, solver=FAST, is_split_into_words=True, forward_args={"bbox": torch.tensor(spread)}
    )
    sigma = sigma_by_hand(model.model.module, encoding.ids, bbox=spread)
    assert torch.allclose(single.rows[0].sigma, sigma, rtol=1e-3)
    assert torch.allclose(both[0].rows[0].sigma, single.rows[0].sigma, rtol=1e-3)


def test_arguments_go_with_choices_continuations_and_erased_tokens() -> None:
    choosing = TextExplainer(tiny("bert", "BertForMultipleChoice"))
    given = ("film", ["good", "funny"])
    [encoding] = choosing.encode(given)
    types = {"token_type_ids": list(encoding.extra["token_type_ids"])}
    [same] = choosing.explain(given, 1, solver=FAST, forward_args=types)
    [plain] = choosing.explain(given, 1, solver=FAST)
    assert torch.equal(same.rows[0].sigma, plain.rows[0].sigma)
    model = TextExplainer(tiny("gpt2", "GPT2LMHeadModel"))
    grid = model.explain("The film", 1, continuation=" was", solver=FAST, forward_args={"token_type_ids": 7})
    other = model.explain("The film", 1, continuation=" was", solver=FAST)
    assert grid[0].rows[0].sigma.isfinite().all()
    assert not torch.allclose(grid[0].rows[0].sigma, other[0].rows[0].sigma)
    erased = model.explain("The film", "output", " was", score="erased", forward_args={"token_type_ids": 7})
    assert erased[0].rows[0].erased.isfinite().all()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "given, message",
    [
        ({"colour": 1}, "'colour' is no argument that BertModel takes with a text; it takes"),
        ({"input_ids": [1]}, "'input_ids' is no argument"),
        (
            {"token_type_ids": [0, 1, 0]},
            r"is \[0, 1, 0\]: it must have a value for each text \(2\), or be one",
        ),
        ({"token_type_ids": "ab"}, r"is 'ab': it must have a value for each text \(2\)"),
        ({"token_type_ids": ["a", "b"]}, "token_type_ids is 'a'; give a number"),
        ({"token_type_ids": 0.5}, "token_type_ids is 0.5; it counts from 0: give whole numbers"),
        ({"token_type_ids": [[0], [0]]}, "token_type_ids has 1 values for 4 tokens; give one for each"),
        ({"token_type_ids": 9}, "token_type_ids has 9, and BertModel has rows 0 to 1 for it"),
        (
            {"position_ids": -1},
            "position_ids has -1, and BertModel has rows 0 to ",
        ),  # was: torch's IndexError
        (["token_type_ids"], "give a dictionary of arguments by name"),
    ],
)
def test_arguments_that_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        explainer("Bert").explain(["a film", "not bad"], 1, forward_args=given)


def test_a_text_accepts_the_batch_of_one_of_its_tokenizer() -> None:
    model = explainer("Bert", type_vocab_size=2)
    types = torch.tensor([[0, 1, 1, 0]])
    [batch] = model.explain("a film", 1, solver=FAST, forward_args={"token_type_ids": types})
    [row] = model.explain("a film", 1, solver=FAST, forward_args={"token_type_ids": types[0]})
    assert torch.equal(batch.rows[0].sigma, row.rows[0].sigma)


def test_values_for_one_text_in_a_list_are_refused_with_the_right_form() -> None:
    """The command line always has a list of texts; "must have a value for each of 1 texts" was not helpful."""
    with pytest.raises(ValueError, match=r"each text \(1\), \[\[0, 0\]\] for one text"):
        explainer("Bert").explain(["a film"], 1, forward_args={"token_type_ids": [0, 0]})


def test_a_plain_model_takes_no_further_arguments() -> None:
    with pytest.raises(ValueError, match="is none; leave them out"):
        TextExplainer(lstm()).explain("a film", forward_args={"langs": 1})
