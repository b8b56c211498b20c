"""Tokens grouped into words and sentences."""

# ruff: noqa: RUF001 (full-width punctuation is what is tested)

from __future__ import annotations

import time
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from interp_plugin.text.scores import Granularity, Offset, group, sentence_spans, word_spans

TEXTS = st.text(
    st.one_of(st.sampled_from(" \n\t.,!?'\"()。！-€é\u0301\u200d\ufe0f👩💻あab1"), st.characters())
)
SPANS = {"word": word_spans, "sentence": sentence_spans}


def words(text: str) -> list[str]:
    return [text[start:end] for start, end in word_spans(text)]


def sentences(text: str) -> list[str]:
    return [text[start:end] for start, end in sentence_spans(text)]


def names(
    texts: list[str | None], offsets: list[Offset | None], granularity: Granularity = "word"
) -> list[str]:
    tokens = [f"<{i}>" for i in range(len(offsets))]
    return [unit.name for unit in group(texts, tokens, offsets, granularity)]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a good film", ["a", "good", "film"]),
        ("don't, state-of-the-art.", ["don't", ",", "state-of-the-art", "."]),
        ('("Really?!")', ['("', "Really", '?!")']),
        ("wait ... what", ["wait", "...", "what"]),
        ("$5 + 3€ = 50%", ["$5", "+", "3€", "=", "50", "%"]),
        (" \t\n", []),
        ("", []),
        ("¿Qué tal?", ["¿", "Qué", "tal", "?"]),
        ("Это «хорошо».", ["Это", "«", "хорошо", "»."]),
        ("مرحبا، يا عالم؟", ["مرحبا", "،", "يا", "عالم", "؟"]),
        ("यह अच्छा है।", ["यह", "अच्छा", "है", "।"]),
        ("很好。", ["很好", "。"]),
    ],
)
def test_words_are_chunks_without_the_punctuation_at_their_ends(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@pytest.mark.parametrize("whole", ["e\u0301te\u0301", "👩‍💻", "🏴‍☠️", "👍🏽", "🇫🇷", "1️⃣", "#️⃣", "‼️", "می‌خواهم"])
def test_marks_and_joined_emoji_stay_whole(whole: str) -> None:
    assert words(f"a {whole} b") == ["a", whole, "b"]


def test_a_mark_goes_with_the_punctuation_before_it() -> None:
    assert words("‼️wow‼️") == ["‼️", "wow", "‼️"]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("One. Two! Three? Four…  Five", ["One.", "Two!", "Three?", "Four…", "Five"]),
        ('He said "Stop." (Or not?) Yes', ['He said "Stop."', "(Or not?)", "Yes"]),
        ("It costs 3.50 at example.com now", ["It costs 3.50 at example.com now"]),
        ("A title\n\nA line\nand its rest", ["A title", "A line\nand its rest"]),
        ("Windows\r\n \r\nlines", ["Windows", "lines"]),
        ("你好。「再见！」谢谢", ["你好。", "「再见！」", "谢谢"]),
        ("什么？！ 好", ["什么？！", "好"]),
        ("यह अच्छा है। वह भी।", ["यह अच्छा है।", "वह भी।"]),
        (" ", []),
        ("", []),
    ],
)
def test_sentences_end_at_their_marks_and_at_blank_lines(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


def test_word_pieces_share_the_unit_of_their_word() -> None:
    offsets: list[Offset | None] = [None, (0, 0, 2), (0, 2, 5), (0, 5, 9), (0, 9, 10), None]
    assert names(["filming it?"], offsets) == ["<0>", "filming", "it", "<5>"]
    assert names(["filming it?"], offsets, "sentence") == ["<0>", "filming it?", "<5>"]
    assert names(["filming it?"], offsets, "token") == [f"<{i}>" for i in range(6)]


def test_a_token_that_starts_with_a_space_belongs_to_the_word_after_it() -> None:
    units = group(["a film"], ["a", "Ġfilm"], [(0, 0, 1), (0, 1, 6)], "word")
    assert [(unit.name, unit.offset, unit.tokens) for unit in units] == [
        ("a", (0, 0, 1), (0,)),
        ("film", (0, 2, 6), (1,)),
    ]


def test_bytes_of_one_emoji_share_a_unit() -> None:
    assert [
        unit.tokens for unit in group(["hi 😀"], list("abcd"), [(0, 0, 2), *[(0, 2, 4)] * 3], "word")
    ] == [
        (0,),
        (1, 2, 3),
    ]


def test_tokens_without_a_visible_character_join_the_next_unit_and_at_the_end_the_last() -> None:
    offsets: list[Offset | None] = [(0, 0, 0), (0, 0, 1), (0, 1, 2), (0, 2, 3), (0, 3, 3)]
    units = group([" a "], list("abcde"), offsets, "word")
    assert [(unit.name, unit.tokens) for unit in units] == [("a", (0, 1, 2, 3, 4))]


@pytest.mark.parametrize("text", ["", "  "])
@pytest.mark.parametrize("granularity", ["word", "sentence"])
def test_a_text_of_spaces_is_one_unit(text: str, granularity: Granularity) -> None:
    [unit] = group([text], ["▁", "▁"], [(0, 0, 0), (0, 0, len(text))], granularity)
    assert (unit.name, unit.offset, unit.tokens) == (text, (0, 0, len(text)), (0, 1))


def test_text_and_pair_never_share_a_unit() -> None:
    units = group(["a", "a"], ["a", "a"], [(0, 0, 1), (1, 0, 1)], "sentence")
    assert [unit.offset for unit in units] == [(0, 0, 1), (1, 0, 1)]


def test_words_that_lost_their_tokens_to_truncation_are_left_out() -> None:
    assert names(["one two three"], [(0, 0, 3), (0, 4, 7)]) == ["one", "two"]


def test_an_unknown_granularity_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match="'letter': choose from token, word, sentence"):
        group(["a"], ["a"], [(0, 0, 1)], "letter")  # type: ignore[arg-type]


@given(TEXTS)
@example("\u0301 \u200d.")
@pytest.mark.parametrize("granularity", ["word", "sentence"])
def test_spans_are_in_order_and_cover_all_but_space(granularity: str, text: str) -> None:
    spans = SPANS[granularity](text)
    covered = [i for start, end in spans for i in range(start, end)]
    assert covered == sorted(set(covered))
    assert {i for i, c in enumerate(text) if not c.isspace()} <= set(covered)
    for start, end in spans:
        assert text[start:end] == text[start:end].strip() != ""


@given(TEXTS)
def test_a_word_with_punctuation_at_an_end_holds_nothing_else(text: str) -> None:
    for word in words(text):
        categories = {unicodedata.category(c) for c in word}
        if "P" in (unicodedata.category(word[0])[0], unicodedata.category(word[-1])[0]):
            assert all(category[0] in "PM" or category == "Cf" for category in categories)


@st.composite
def tokenized(draw: st.DrawFn) -> tuple[list[str | None], list[Offset | None]]:
    """A text, perhaps a pair, and random spans over them in random order."""
    texts: list[str | None] = [draw(TEXTS), draw(st.none() | TEXTS)]
    there = [(segment, len(text)) for segment, text in enumerate(texts) if text is not None]

    def span(place: tuple[int, int]) -> st.SearchStrategy[Offset]:
        ends = st.lists(st.integers(0, place[1]), min_size=2, max_size=2).map(sorted)
        return ends.map(lambda pair: (place[0], pair[0], pair[1]))

    return texts, draw(st.lists(st.none() | st.sampled_from(there).flatmap(span), max_size=12))


@given(tokenized())
@pytest.mark.parametrize("granularity", ["token", "word", "sentence"])
def test_every_token_is_in_exactly_one_unit_of_its_own_segment(
    granularity: Granularity, case: tuple[list[str | None], list[Offset | None]]
) -> None:
    texts, offsets = case
    tokens = [f"<{i}>" for i in range(len(offsets))]
    units = group(texts, tokens, offsets, granularity)
    assert sorted(i for unit in units for i in unit.tokens) == list(range(len(offsets)))
    for unit in units:
        if unit.offset is None:
            assert len(unit.tokens) == 1
            assert unit.name == tokens[unit.tokens[0]]
        else:
            segment, start, end = unit.offset
            assert {offsets[i][0] for i in unit.tokens} == {segment}  # type: ignore[index]
            if granularity != "token":
                assert unit.name == (texts[segment] or "")[start:end]


@given(tokenized())
@pytest.mark.parametrize("granularity", ["word", "sentence"])
def test_a_token_that_starts_on_a_visible_character_is_in_the_unit_around_it(
    granularity: Granularity, case: tuple[list[str | None], list[Offset | None]]
) -> None:
    texts, offsets = case
    for unit in group(texts, [""] * len(offsets), offsets, granularity):
        for i in unit.tokens:
            offset = offsets[i]
            if offset and unit.offset and (texts[offset[0]] or "")[offset[1] :][:1].strip():
                assert unit.offset[1] <= offset[1] < unit.offset[2]


@pytest.mark.parametrize(
    "text", ["!" * 100_000 + "x", " " * 100_000, "\n" * 100_000, "a. " * 30_000, "。" * 100_000]
)
def test_long_texts_take_linear_time(text: str) -> None:
    start = time.perf_counter()
    word_spans(text), sentence_spans(text)
    assert time.perf_counter() - start < 5
