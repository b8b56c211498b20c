"""Encodings of texts, pairs and targets, with the offsets of every token."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import FAMILIES, LIMIT, SlowTokenizer, exists, gpt2_tokenizer, model_of, tiny
from transformers import BertConfig, BertModel

from interp_plugin.huggingface import HuggingFaceModel, tokenization
from interp_plugin.huggingface.tokenization import PER_TOKEN, align, fold
from interp_plugin.text.models import CHARACTERS, Encoding

TOKENIZERS = [
    name for name in FAMILIES if name in ("bert", "roberta", "xlm-roberta", "t5", "gpt2", "llama", "gemma")
]
TEXT = "The film was  unbelievable: 😀 é!"


def bare(family: str) -> HuggingFaceModel:
    return tiny(family, FAMILIES[family].classes[0])


@pytest.fixture(scope="module")
def slow() -> HuggingFaceModel:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=420, **FAMILIES["bert"].settings)
    return HuggingFaceModel(BertModel(config).eval(), SlowTokenizer())


@pytest.fixture(scope="module")
def gpt2() -> HuggingFaceModel:
    return tiny("gpt2", "GPT2LMHeadModel")


@pytest.fixture(scope="module")
def llama() -> HuggingFaceModel:
    return tiny("llama", "LlamaForCausalLM")


@pytest.fixture(scope="module")
def bart() -> HuggingFaceModel:
    return tiny("bart", "BartForConditionalGeneration")


def spans(encoding: Encoding) -> list[tuple[int, int, int]]:
    return [span for span in encoding.offsets if span is not None]


def letters(text: str) -> str:
    return fold(text.replace("##", "").replace("▁", ""))


# -- tokens and their offsets


@pytest.mark.parametrize("family", TOKENIZERS)
def test_tokens_are_the_text_at_their_offsets(family: str) -> None:
    encoding = bare(family).encode(TEXT)
    for token, span in zip(encoding.tokens, encoding.offsets):
        if span is None:
            assert token in ("[CLS]", "[SEP]", "<s>", "</s>")
        elif token not in ("[UNK]", "<unk>"):
            assert letters(token) in (
                "",
                letters(TEXT[span[1] : span[2]]),
            )  # "▁" may share the next one's place
    places = spans(encoding)
    assert {segment for segment, _, _ in places} == {0}
    assert all(0 <= start <= end <= len(TEXT) for _, start, end in places)
    covered = {i for _, start, end in places for i in range(start, end)}
    assert all(i in covered or char.isspace() for i, char in enumerate(TEXT))


@pytest.mark.parametrize("family", ["roberta", "gpt2", "llama", "gemma"])
def test_bytes_of_one_character_share_its_offsets_and_show_it(family: str) -> None:
    encoding = bare(family).encode("a 😀")
    faces = [(token, span) for token, span in zip(encoding.tokens, encoding.offsets) if token == "😀"]
    assert faces == [("😀", (0, 2, 3))] * 4


def test_byte_level_tokens_are_readable() -> None:
    encoding = bare("gpt2").encode("The film was unbelievable")
    assert encoding.tokens == ("The", " film", " was", " un", "believable")
    assert encoding.offsets == ((0, 0, 3), (0, 4, 8), (0, 9, 12), (0, 13, 15), (0, 15, 25))


def test_offsets_are_the_tokenizers_own_with_or_without_the_space() -> None:
    model = HuggingFaceModel(model_of("gpt2", "GPT2Model"), gpt2_tokenizer(trim=False))
    assert model.encode("The film").offsets == ((0, 0, 3), (0, 3, 8))


@pytest.mark.parametrize("family", TOKENIZERS)
def test_a_pair_is_two_segments(family: str) -> None:
    model = bare(family)
    encoding = model.encode("The film", "it was good")
    texts = ("The film", "it was good")
    for token, span in zip(encoding.tokens, encoding.offsets):
        if span is not None and token not in ("[UNK]", "<unk>"):
            assert letters(token) in ("", letters(texts[span[0]][span[1] : span[2]]))
    order = [segment for segment, _, _ in spans(encoding)]
    assert order == sorted(order)
    assert set(order) == {0, 1}
    assert list(encoding.ids) == model.tokenizer("The film", "it was good")["input_ids"]
    assert (encoding.text, encoding.pair) == texts


def test_a_pair_has_two_token_types() -> None:
    encoding = bare("bert").encode("The film", "good")
    assert encoding.tokens == ("[CLS]", "the", "film", "[SEP]", "good", "[SEP]")
    assert encoding.extra == {"token_type_ids": (0, 0, 0, 0, 1, 1)}


def test_token_types_reach_the_model() -> None:
    model = tiny("bert", "BertForSequenceClassification")
    encoding = model.encode("The film", "good")
    with torch.no_grad():
        own = model.model(**model.tokenizer("The film", "good", return_tensors="pt")).logits
    torch.testing.assert_close(model(*model.collate([encoding])[0]), own)


@pytest.mark.parametrize("family", TOKENIZERS)
def test_token_ids_are_encoded_like_the_text_that_they_are_of(family: str) -> None:
    model = bare(family)
    by_text = model.encode("The film \N{SNOWMAN} was unbelievable")  # with a word that some do not know
    by_ids = model.encode(list(by_text.ids))
    assert by_ids.ids == by_text.ids
    assert [offset is None for offset in by_ids.offsets] == [offset is None for offset in by_text.offsets]
    assert by_ids.extra == by_text.extra
    arguments, _ = model.collate([by_ids])
    assert torch.equal(model(*arguments), model(*model.collate([by_text])[0]))


def test_a_token_id_that_the_model_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="token id 1000000 is not one of the model's"):
        bare("bert").encode([5, 1000000])


def test_a_special_token_in_the_text_is_part_of_the_text() -> None:
    encoding = bare("bert").encode("The [MASK] was good")
    assert encoding.tokens[2] == "[MASK]"
    assert encoding.offsets[2] == (0, 4, 10)


# -- tokenizers without offsets


def test_a_slow_tokenizers_tokens_are_found_in_the_text(slow: HuggingFaceModel) -> None:
    text = "The Film wás unbelievable 😀 good"
    encoding = slow.encode(text)
    assert encoding.tokens == (
        "[CLS]", "the", "film", "was", "un", "##be", "##liev", "##able", "[UNK]", "good", "[SEP]",
    )  # fmt: skip
    shown = [text[start:end] for _, start, end in spans(encoding)]
    assert shown == ["The", "Film", "wás", "un", "be", "liev", "able", "", "good"]


def test_a_slow_tokenizers_pair_is_two_segments(slow: HuggingFaceModel) -> None:
    encoding = slow.encode("the film", "The Film")
    assert encoding.offsets == (None, (0, 0, 3), (0, 4, 8), None, (1, 0, 3), (1, 4, 8), None)
    assert encoding.extra == {"token_type_ids": (0, 0, 0, 0, 1, 1, 1)}


def test_a_slow_tokenizers_text_is_cut_off(slow: HuggingFaceModel) -> None:
    encoding = slow.encode("film " * 60, "good", truncation=True)
    assert len(encoding.ids) == LIMIT
    assert encoding.tokens[-3:] == ("[SEP]", "good", "[SEP]")
    assert slow(*slow.collate([encoding])[0]).isfinite().all()


def test_a_tokenizer_that_mixes_special_tokens_into_a_text_is_refused() -> None:
    class Mixing(SlowTokenizer):
        def build_inputs_with_special_tokens(
            self, token_ids_0: list[int], token_ids_1: Any = None
        ) -> list[int]:
            return [token for content in token_ids_0 for token in (self.words["[CLS]"], content)]

    config = BertConfig(vocab_size=420, **FAMILIES["bert"].settings)
    with pytest.raises(ValueError, match="only adds special tokens around a text"):
        HuggingFaceModel(BertModel(config), Mixing()).encode("the film")


@given(st.text(max_size=30), st.lists(st.text(max_size=4), max_size=12))
def test_aligned_spans_are_in_the_text_and_in_order(text: str, tokens: list[str]) -> None:
    found = align(text, tokens)
    assert len(found) == len(tokens)
    before = (0, 0)
    for token, (start, end) in zip(tokens, found):
        assert 0 <= start <= end <= len(text)
        assert start >= before[0] and end >= before[1]
        if start < end:
            forms = {fold(token), fold(token.lstrip("#▁Ġ@").replace("@@", "").replace("</w>", ""))}
            assert any(form in fold(text[start:end]) for form in forms)
        before = start, end


@given(
    st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="#@▁Ġ<>/w"), max_size=40),
    st.data(),
)
def test_the_pieces_of_a_text_are_found_where_they_were_cut(text: str, data: st.DataObject) -> None:
    words = [(i, char) for i, char in enumerate(text) if fold(char)]
    tokens, places = [], []
    while words:
        size = data.draw(st.integers(1, 4))
        piece, words = words[:size], words[size:]
        plain = "".join(char for _, char in piece)
        mark = data.draw(st.sampled_from(["", "##", "▁", "Ġ"]))
        tokens.append(
            mark + data.draw(st.sampled_from([plain, unicodedata.normalize("NFKD", plain).casefold()]))
        )
        places.append((piece[0][0], piece[-1][0] + 1))
    assert align(text, tokens) == places


# -- refusals


@pytest.mark.parametrize("family", TOKENIZERS)
@pytest.mark.parametrize("text", ["", " ", "\n\t "])
def test_an_empty_text_is_refused(family: str, text: str) -> None:
    if FAMILIES[family].tokenizer()(text, add_special_tokens=False)["input_ids"]:
        return  # this tokenizer has tokens for blanks
    for name in FAMILIES[family].classes:
        with pytest.raises(ValueError, match="has no tokens but special ones"):
            tiny(family, name).encode(text)
        with pytest.raises(ValueError, match=r"pair .* has no tokens but special ones"):
            tiny(family, name).encode("film", text)


@pytest.mark.parametrize(
    "family, text", [("bert", "[SEP] [CLS]"), ("gpt2", "<|endoftext|>"), ("llama", "<s></s>"), ("t5", "</s>")]
)
def test_a_text_of_special_tokens_only_is_refused(family: str, text: str) -> None:
    with pytest.raises(ValueError, match="has no tokens but special ones"):
        bare(family).encode(text)


def test_an_unknown_word_is_a_token() -> None:
    assert bare("bert").encode("😀").tokens == ("[CLS]", "[UNK]", "[SEP]")


@pytest.mark.parametrize("text", [None, 3, b"film", ["film"]])
def test_a_text_that_is_no_string_is_refused(text: Any) -> None:
    with pytest.raises(TypeError, match=r"text is a .*: it must be a str"):
        bare("bert").encode(text)
    if text is not None:
        with pytest.raises(TypeError, match=r"pair is a .*: it must be a str"):
            bare("bert").encode("film", text)


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(ValueError, match="at character 2: half a surrogate pair"):
        bare("bert").encode("a \ud83d")


def test_a_tokenizer_of_another_model_is_refused() -> None:
    model = HuggingFaceModel(model_of("bert", "BertModel", vocab_size=20), FAMILIES["bert"].tokenizer())
    with pytest.raises(ValueError, match=r"do not fit: the text has token id .* ids below 20"):
        model.encode("The film was good")


def test_a_tokenizer_without_the_end_token_of_a_classifier_is_refused() -> None:
    model = HuggingFaceModel(model_of("bart", "BartForSequenceClassification"), gpt2_tokenizer())
    with pytest.raises(ValueError, match="predicts at the end token, id 2"):
        model.encode("The film was good")


def test_what_is_no_model_or_no_tokenizer_is_refused() -> None:
    with pytest.raises(TypeError, match=r"model is a Linear: .* huggingface\.load"):
        HuggingFaceModel(torch.nn.Linear(2, 2), gpt2_tokenizer())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"tokenizer is a Tokenizer: .* PreTrainedTokenizerFast"):
        HuggingFaceModel(model_of("gpt2", "GPT2Model"), gpt2_tokenizer().backend_tokenizer)


def test_truncation_takes_from_the_longer_text_on_the_tokenizers_side() -> None:
    model = bare("bert")
    long, short = "the film was " * 20, "it was good"
    right = model.encode(long, short, truncation=True)
    model.tokenizer.truncation_side = "left"
    left = model.encode(long, short, truncation=True)
    for encoding in (right, left):
        assert len(encoding.ids) == LIMIT
        assert [encoding.tokens[i] for i in (0, -1)] == ["[CLS]", "[SEP]"]
        assert [s for s in spans(encoding) if s[0] == 1] == [(1, 0, 2), (1, 3, 6), (1, 7, 11)]
    assert spans(right)[0] == (0, 0, 3)
    assert spans(left)[0][1] > 100


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5", "bart"])
def test_a_text_far_beyond_the_limit_is_refused_before_it_is_tokenized(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = bare(family)
    long = "film " * (min(PER_TOKEN * model.limit, CHARACTERS) // 5 + 1)
    monkeypatch.setattr(tokenization, "split", lambda *arguments, **options: pytest.fail("it was tokenized"))
    for texts in ((long, None), ("film", long)):
        with pytest.raises(
            ValueError, match=rf"has {len(long)} characters: .*, or cut it off with truncation=True"
        ):
            model.encode(*texts)
    with pytest.raises(ValueError, match=rf"text has {2 * CHARACTERS} characters"):
        model.encode("x" * 2 * CHARACTERS)


def test_a_target_far_beyond_the_limit_is_refused(gpt2: HuggingFaceModel) -> None:
    long = " film" * (PER_TOKEN * LIMIT)
    for target in (long, (long, (0, 3))):
        with pytest.raises(ValueError, match=r"target has \d+ characters: .*shorten it$"):
            gpt2.encode("The", target=target, truncation=True)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_text_far_beyond_the_limit_is_cut_to_the_same_tokens_and_places(
    family: str, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = bare(family)
    monkeypatch.setattr(model.tokenizer, "truncation_side", side)
    long = " ".join(f"film{number % 7} was" for number in range(2_000))
    pair = None if family == "gpt2" else long[:9_000]
    whole = model.encode(long, pair, truncation=True)
    monkeypatch.setattr("interp_plugin.huggingface.tokenization.PER_TOKEN", 100)
    assert len(long) > 100 * model.limit
    assert model.encode(long, pair, truncation=True) == whole


def test_truncation_changes_no_short_text() -> None:
    model = bare("bert")
    assert model.encode("The film", truncation=True) == model.encode("The film")


# -- language models


def test_a_continuation_follows_the_text_and_its_last_token_is_only_predicted(
    gpt2: HuggingFaceModel,
) -> None:
    encoding = gpt2.encode("The film was", target=" good and funny")
    whole = gpt2.tokenizer("The film was good and funny")["input_ids"]
    context = gpt2.tokenizer("The film was")["input_ids"]
    assert [*encoding.ids, encoding.target[-1]] == whole
    assert list(encoding.target) == whole[len(context) :]
    assert encoding.target_positions == tuple(range(len(context) - 1, len(whole) - 1))
    assert encoding.pair == " good and funny"
    for token, (segment, start, end) in zip(encoding.tokens, spans(encoding)):
        assert token.strip() == ("The film was", " good and funny")[segment][start:end]
    assert [segment for segment, _, _ in spans(encoding)].count(1) == len(encoding.target) - 1


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma"])
def test_the_output_at_target_positions_predicts_the_target(family: str) -> None:
    """Against transformers' own loss: the mean of - log p over the labels."""
    model = tiny(
        family, next(n for n in FAMILIES[family].classes if n.endswith(("LMHeadModel", "ForCausalLM")))
    )
    encoding = model.encode("The film was", target=" good and funny")
    with torch.no_grad():
        scores = model(*model.collate([encoding])[0])[0].log_softmax(-1)
        whole = torch.tensor([[*encoding.ids, encoding.target[-1]]])
        labels = whole.clone()
        labels[:, : len(whole[0]) - len(encoding.target)] = -100
        loss = model.model(input_ids=whole, labels=labels).loss
    mine = -scores[list(encoding.target_positions), list(encoding.target)].mean()
    torch.testing.assert_close(mine, loss, rtol=1e-5, atol=1e-5)


def test_a_span_of_a_continuation_targets_its_tokens_only(gpt2: HuggingFaceModel) -> None:
    continuation = " good and funny"
    encoding = gpt2.encode("The film was", target=(continuation, (6, 9)))
    assert [gpt2.class_name(index) for index in encoding.target] == [" and"]
    assert encoding.tokens[-1] == " good"  # nothing after the target's tokens needs to be read
    assert encoding.target_positions == (len(encoding.ids) - 1,)


def test_a_span_inside_a_token_targets_that_token(gpt2: HuggingFaceModel) -> None:
    inside = gpt2.encode("The film was", target=(" good and", (2, 3)))
    assert inside.target == gpt2.encode("The film was", target=" good").target


def test_a_target_token_id_is_predicted_at_the_last_position(gpt2: HuggingFaceModel) -> None:
    encoding = gpt2.encode("The film was", target=7)
    assert encoding.target == (7,)
    assert encoding.target_positions == (len(encoding.ids) - 1,)
    assert encoding.ids == gpt2.encode("The film was").ids
    assert gpt2.encode("The film was").target == ()


def test_a_space_at_the_end_of_the_text_is_moved_to_the_continuation(gpt2: HuggingFaceModel) -> None:
    for text, continuation in (("The film was ", "good"), ("The film was", " good")):
        encoding = gpt2.encode(text, target=continuation)
        assert encoding.tokens == ("The", " film", " was")
        assert [gpt2.class_name(index) for index in encoding.target] == [" good"]


def test_a_token_that_would_reach_over_the_boundary_is_cut_there(gpt2: HuggingFaceModel) -> None:
    assert gpt2.tokenizer.tokenize(" unbelievable")[-1] == "believable"
    encoding = gpt2.encode("The film was unbeli", target="evable")
    assert "".join(encoding.tokens).startswith("The film was unbeli")
    assert "".join(gpt2.class_name(index) for index in encoding.target) == "evable"


@pytest.mark.parametrize("target", ["good", " good"])
def test_a_start_token_is_only_added_before_the_text(llama: HuggingFaceModel, target: str) -> None:
    encoding = llama.encode("The film was", target=target + " and funny")
    assert encoding.ids.count(1) == 1
    assert encoding.ids[0] == 1
    assert 1 not in encoding.target


def test_an_end_token_after_the_text_is_left_out_for_language_models() -> None:
    tokenizer = FAMILIES["roberta"].tokenizer()  # it adds <s> and </s>
    model = HuggingFaceModel(model_of("gpt2", "GPT2LMHeadModel"), tokenizer)
    assert model.encode("The film").tokens == ("<s>", "The", " film")
    encoding = model.encode("The film", target=" was good")
    assert encoding.tokens == ("<s>", "The", " film", " was")
    assert [model.class_name(index) for index in encoding.target] == [" was", " good"]


def test_a_slow_tokenizer_continues_a_text_too() -> None:
    model = HuggingFaceModel(model_of("gpt2", "GPT2LMHeadModel"), SlowTokenizer())
    encoding = model.encode("The film", target=" was 😀 good")
    assert encoding.tokens == ("[CLS]", "the", "film", "was", "[UNK]")
    assert [model.class_name(index) for index in encoding.target] == ["was", "[UNK]", "good"]


def test_a_long_text_is_cut_off_before_its_continuation(gpt2: HuggingFaceModel) -> None:
    text, target = "The film was good and " * 12, " dull"
    with pytest.raises(ValueError, match=r"text before its target has .* truncation=True"):
        gpt2.encode(text, target=target)
    encoding = gpt2.encode(text, target=target, truncation=True)
    assert len(encoding.ids) == LIMIT
    assert encoding.target == gpt2.encode("film", target=target).target
    assert encoding.target_positions[-1] == LIMIT - 1


def test_a_target_longer_than_the_model_takes_is_refused(gpt2: HuggingFaceModel) -> None:
    with pytest.raises(ValueError, match=f"target has .* at most {LIMIT}; shorten it$"):
        gpt2.encode("The", target=" film" * 60, truncation=True)


@pytest.mark.parametrize(
    "target, error, message",
    [
        ("", ValueError, "target '' has no tokens"),
        (420, ValueError, "target 420 is no token id: the model has ids 0 to 419"),
        (-1, ValueError, "target -1 is no token id"),
        (True, TypeError, "target is a bool"),
        (1.5, TypeError, r"target 1\.5 is a float"),
        ((" good", (0, 9)), ValueError, r"0 <= start < stop <= 5"),
        ((" good", (3, 3)), ValueError, r"0 <= start < stop <= 5"),
        ((" good", 3), TypeError, "is a tuple"),
        ((3, (0, 1)), TypeError, "is a tuple"),
        (" \ud83d", ValueError, "half a surrogate pair"),
    ],
)
@pytest.mark.parametrize("name", ["gpt2", "bart"])
def test_an_invalid_target_is_refused_with_the_reason(
    name: str, target: Any, error: type[Exception], message: str, request: pytest.FixtureRequest
) -> None:
    with pytest.raises(error, match=message):
        request.getfixturevalue(name).encode("The film was", target=target)


def test_a_pair_and_a_continuation_do_not_go_together(gpt2: HuggingFaceModel) -> None:
    with pytest.raises(ValueError, match="both follow the text"):
        gpt2.encode("The film", "it was", target=" good")


# -- encoder-decoders


def test_a_decoders_text_is_shifted_right(bart: HuggingFaceModel) -> None:
    labels = bart.tokenizer(" good and funny")["input_ids"]  # <s> ... </s>
    encoding = bart.encode("The film was", target=" good and funny")
    assert encoding.extra["decoder_input_ids"] == (2, *labels[:-2])
    assert list(encoding.target) == labels[1:-1]
    assert encoding.target_positions == tuple(range(1, len(labels) - 1))
    assert list(encoding.ids) == bart.tokenizer("The film was")["input_ids"]
    assert encoding.pair == " good and funny"


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_the_decoder_predicts_the_target_at_its_positions(family: str) -> None:
    """Against transformers' own loss over the labels, of which the target is the text's part."""
    model = tiny(family, FAMILIES[family].classes[1])
    encoding = model.encode("The film was", target=" good and funny")
    labels = torch.tensor([model.tokenizer(text_target=" good and funny")["input_ids"]])
    for position in range(labels.shape[1]):
        if position not in encoding.target_positions:
            labels[0, position] = -100
    with torch.no_grad():
        scores = model(*model.collate([encoding])[0])[0].log_softmax(-1)
        decoder = torch.tensor([[model.model.config.decoder_start_token_id, *labels[0, :-1].clamp(min=0)]])
        decoder[0, 1] = encoding.extra["decoder_input_ids"][1]
        loss = model.model(
            input_ids=torch.tensor([encoding.ids]), decoder_input_ids=decoder, labels=labels
        ).loss
    mine = -scores[list(encoding.target_positions), list(encoding.target)].mean()
    torch.testing.assert_close(mine, loss, rtol=1e-5, atol=1e-5)


def test_a_span_of_a_decoders_text(bart: HuggingFaceModel) -> None:
    encoding = bart.encode("The film was", target=(" good and funny", (6, 9)))
    assert [bart.class_name(index) for index in encoding.target] == [" and"]
    assert encoding.target_positions == (len(encoding.extra["decoder_input_ids"]) - 1,)


def test_without_a_target_the_decoder_has_only_its_start_token(bart: HuggingFaceModel) -> None:
    assert bart.encode("The film").extra["decoder_input_ids"] == (2,)
    assert bart.encode("The film", target=5).target_positions == (0,)


def test_a_decoder_that_begins_with_a_forced_token_has_read_it() -> None:
    model = tiny("bart", "BartForConditionalGeneration")
    model.model.generation_config.forced_bos_token_id = 0
    encoding = model.encode("The film", target=5)
    assert encoding.extra["decoder_input_ids"] == (2, 0)
    assert encoding.target_positions == (1,)


def test_a_decoder_without_a_start_token_is_refused() -> None:
    model = tiny("t5", "T5ForConditionalGeneration", decoder_start_token_id=None)
    if model.model.generation_config is not None:
        model.model.generation_config.decoder_start_token_id = None
    with pytest.raises(ValueError, match="has no start token for its decoder"):
        model.encode("The film")


def test_decoder_texts_are_padded_on_the_right(bart: HuggingFaceModel) -> None:
    encodings = [bart.encode("The film was", target=target) for target in (" good", " good and funny")]
    arguments, _ = bart.collate(encodings)
    lengths = [len(encoding.extra["decoder_input_ids"]) for encoding in encodings]
    assert arguments[-1].shape == (2, max(lengths))
    for row, (encoding, length) in enumerate(zip(encodings, lengths)):
        assert tuple(arguments[-1][row, :length].tolist()) == encoding.extra["decoder_input_ids"]
        alone = bart(*bart.collate([encoding])[0])[0]
        torch.testing.assert_close(bart(*arguments)[row, :length], alone, rtol=1e-5, atol=1e-5)


# -- classes


def test_a_class_has_a_label_and_an_index() -> None:
    model = tiny("bert", "BertForSequenceClassification", id2label={0: "bad", 1: "good", 2: "so"})
    assert [model.class_index(target) for target in ("good", "GOOD", 1)] == [1, 1, 1]
    assert model.class_name(2) == "so"
    for target in (3, -1, "fine"):
        with pytest.raises(
            ValueError, match=f"target {target!r} is no class of the model: it has 'bad', 'good', 'so'"
        ):
            model.class_index(target)
    for wrong in (True, 1.0, None):
        with pytest.raises(TypeError, match="it must be a label or an index"):
            model.class_index(wrong)  # type: ignore[arg-type]


def test_labels_that_differ_in_case_are_distinguished() -> None:
    model = tiny("bert", "BertForSequenceClassification", id2label={0: "us", 1: "US"})
    assert [model.class_index(target) for target in ("us", "US")] == [0, 1]
    with pytest.raises(ValueError, match=r"'Us' may be class 0 \('us'\) or 1 \('US'\); give the number"):
        model.class_index("Us")


@pytest.mark.parametrize("family, name", [("gpt2", "GPT2LMHeadModel"), ("roberta", "RobertaForMaskedLM")])
def test_the_classes_of_a_language_model_are_its_tokens(family: str, name: str) -> None:
    model = tiny(family, name)
    index = model.class_index(" film")
    assert model.class_name(index) == " film"
    assert model.class_index("Ġfilm") == index  # as the vocabulary writes it
    assert model.class_index(index) == index
    with pytest.raises(ValueError, match="must be one token of the vocabulary"):
        model.class_index(" film was")


def test_an_id_without_a_token_has_a_name() -> None:
    assert tiny("gpt2", "GPT2LMHeadModel").class_name(419) == "<id 419>"


def test_the_prediction_is_the_likeliest_class() -> None:
    scores = torch.tensor([0.0, 3.0]).log1p()
    settings: dict[str, Any] = {"id2label": {0: "no", 1: "yes"}}
    one = tiny("bert", "BertForSequenceClassification", **settings)
    assert one.predicted(scores) == ("yes", pytest.approx(0.8))
    many = tiny(
        "bert", "BertForSequenceClassification", problem_type="multi_label_classification", **settings
    )
    assert many.predicted(scores) == ("yes", pytest.approx(float(scores[1].sigmoid())))


def test_there_is_no_prediction_without_classes_of_the_whole() -> None:
    regression = tiny("bert", "BertForSequenceClassification", num_labels=1)
    assert regression.predicted(torch.zeros(1)) is None
    two = tiny("bert", "BertForSequenceClassification", problem_type="regression")
    assert two.predicted(torch.zeros(2)) is None
    assert tiny("bert", "BertForTokenClassification").predicted(torch.zeros(5, 2)) is None
    assert bare("bert").predicted(torch.zeros(16)) is None


# -- batches


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_is_masked_on_the_right_and_positions_count_tokens(side: str) -> None:
    gpt2 = tiny("gpt2", "GPT2LMHeadModel")
    gpt2.tokenizer.padding_side = side
    (ids, attention, positions), mask = gpt2.collate([gpt2.encode("The film was"), gpt2.encode("film")])
    assert ids.shape == attention.shape == positions.shape == mask.shape
    assert mask.dtype == torch.bool
    assert torch.equal(attention.bool(), mask)
    assert positions[0].tolist() == [0, 1, 2]
    assert mask[1].tolist() == [True] * int(mask[1].sum()) + [False] * (mask.shape[1] - int(mask[1].sum()))
    assert positions[1][mask[1]].tolist() == list(range(int(mask[1].sum())))


def test_a_padding_token_that_the_model_cannot_embed_is_not_used() -> None:
    tokenizer = gpt2_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<new>"})
    model = HuggingFaceModel(model_of("gpt2", "GPT2Model", vocab_size=340), tokenizer)
    assert tokenizer.pad_token_id == 340
    arguments, _ = model.collate([model.encode("The film was"), model.encode("film")])
    assert model(*arguments).isfinite().all()


def test_an_empty_batch_is_refused(gpt2: HuggingFaceModel) -> None:
    with pytest.raises(ValueError, match="0 encodings"):
        gpt2.collate([])


def test_a_call_without_all_arguments_names_them(gpt2: HuggingFaceModel) -> None:
    with pytest.raises(
        TypeError, match="2 arguments are given: the model takes input_ids, attention_mask, position_ids"
    ):
        gpt2(torch.zeros(1, 1), torch.zeros(1, 1))


def test_the_name_is_the_path_or_the_class(gpt2: HuggingFaceModel) -> None:
    assert gpt2.name == "GPT2LMHeadModel"
    assert gpt2.device == torch.device("cpu")


# -- output


@pytest.fixture
def messages() -> Iterator[list[str]]:
    """The log of transformers."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    listener, logger = Listener(logging.WARNING), logging.getLogger("transformers")
    logger.addHandler(listener)
    yield said
    logger.removeHandler(listener)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "family, name", [(f, n) for f, e in FAMILIES.items() for n in e.classes if exists(n)]
)
def test_encoding_and_running_print_nothing(
    family: str, name: str, messages: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    plain, tokenizer = model_of(family, name), FAMILIES[family].tokenizer()
    tokenizer.model_max_length = LIMIT
    messages.clear()
    capfd.readouterr()
    model = HuggingFaceModel(plain, tokenizer)
    model.encode("The film", "good")
    arguments, _ = model.collate([model.encode("film " * 60, truncation=True), model.encode("The film")])
    model(*arguments)
    assert messages == []
    assert capfd.readouterr() == ("", "")


@settings(max_examples=40, deadline=None)
@given(
    st.text(min_size=1, max_size=25),
    st.text(min_size=1, max_size=15),
    st.sampled_from(["gpt2", "llama", "gemma"]),
)
def test_any_text_and_continuation_keep_their_characters(text: str, after: str, family: str) -> None:
    model = CACHED.setdefault(
        family,
        tiny(family, next(n for n in FAMILIES[family].classes if n.endswith(("LMHeadModel", "CausalLM")))),
    )
    model.tokenizer.model_max_length = 10_000
    model.model.config.max_position_embeddings = 10_000
    try:
        encoding = model.encode(text, target=after)
    except ValueError as error:
        assert "no tokens" in str(error) or "surrogate" in str(error)
        return
    lengths = (len(text), len(after))
    assert all(0 <= start <= end <= lengths[segment] for segment, start, end in spans(encoding))
    order = [segment for segment, _, _ in spans(encoding)]
    assert order == sorted(order)
    assert len(encoding.ids) == len(encoding.tokens) == len(encoding.offsets)
    assert encoding.target_positions[-1] == len(encoding.ids) - 1
    inside = [index for index, span in zip(encoding.ids, encoding.offsets) if span and span[0] == 1]
    assert tuple(inside) == encoding.target[:-1]


CACHED: dict[str, HuggingFaceModel] = {}
