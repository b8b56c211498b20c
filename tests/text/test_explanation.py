"""Explanation: derived scores, indexing, tables and files."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from rich.console import Console
from torch import Tensor

from interp_plugin.report import explanations as filled
from interp_plugin.report import figures, html, terminal
from interp_plugin.text import storage
from interp_plugin.text.explanation import Explanation, Row, Settings, TextExplanation, example
from interp_plugin.text.scores import Offset

SETTINGS = Settings(
    model="bert",
    noise_layer="embeddings.word_embeddings",
    rate=0.1,
    seed=0,
    tolerance=0.02,
    draws=28,
    iterations=None,
    state_std=False,
    versions={"torch": "2.13.0", "interp_plugin": "0.1.0"},
)


def a_row(
    sigma: list[float] | Tensor,
    error: list[float] | Tensor | None = None,
    layer: int | str = 1,
    position: int | None = None,
    common: float = 0.0,
    cap: float = 1.0,
    std: float = 1.0,
) -> Row:
    sigma = torch.as_tensor(sigma)
    error = torch.zeros_like(sigma) if error is None else torch.as_tensor(error)
    return Row(layer, position, sigma, error, common, cap, std, 1.02, 0.049, True, 144, 160)


def a_text(
    *rows: Row, text: str = "", offsets: tuple[Offset | None, ...] | None = None, size: int = 4
) -> TextExplanation:
    n_tokens = len(rows[0].sigma)
    return TextExplanation(
        text=text,
        pair=None,
        tokens=tuple(f"<{i}>" for i in range(n_tokens)),
        offsets=(None,) * n_tokens if offsets is None else offsets,
        size=size,
        predicted=None,
        probability=None,
        target=None,
        rows=rows,
    )


def an_explanation(*items: TextExplanation, **changes: Any) -> Explanation:
    return Explanation(items, dataclasses.replace(SETTINGS, **changes), 2.0)


def realistic(n_texts: int, n_layers: int, n_tokens: int) -> Explanation:
    """Random words and numbers, as varied as a solver's."""
    chance = random.Random(0)
    torch.manual_seed(0)
    vocabulary = ["the", "film", "good", "not", "plot", "actor", "scene", "of", "wonderful", "music", "is"]
    items = []
    for _ in range(n_texts):
        words = chance.choices(vocabulary, k=n_tokens - 2)
        ends = np.cumsum([len(word) + 1 for word in words]).tolist()
        offsets = [(0, end - 1 - len(word), end - 1) for word, end in zip(words, ends)]
        rows = [
            a_row(
                torch.exp(0.5 * torch.randn(n_tokens) - 4),
                torch.rand(n_tokens) * 0.02 + 0.01,
                layer,
                common=chance.random() * 0.01,
                cap=float(torch.tensor(0.43)),
            )
            for layer in range(1, n_layers + 1)
        ]
        rows = [
            dataclasses.replace(
                row, regime_index=1 + chance.random() / 10, distortion=0.05 - chance.random() / 300
            )
            for row in rows
        ]
        item = a_text(*rows, text=" ".join(words), offsets=(None, *offsets, None), size=384)
        tokens = ("[CLS]", *words, "[SEP]")
        items.append(
            dataclasses.replace(
                item, tokens=tokens, predicted="positive", probability=chance.random(), target="positive"
            )
        )
    return an_explanation(*items)


@st.composite
def explanations(draw: st.DrawFn) -> Explanation:
    """Any valid explanation: unusual texts, random spans, NaN, inf and subnormal numbers, layers of both types."""
    number = st.floats(width=32)
    wide = st.floats()
    items = []
    for _ in range(draw(st.integers(0, 3))):
        text, pair = draw(st.text()), draw(st.none() | st.text())
        there = [(segment, len(each)) for segment, each in enumerate((text, pair)) if each is not None]

        def span(place: tuple[int, int]) -> st.SearchStrategy[Offset]:
            ends = st.lists(st.integers(0, place[1]), min_size=2, max_size=2).map(sorted)
            return ends.map(lambda two: (place[0], two[0], two[1]))

        offsets = draw(st.lists(st.none() | st.sampled_from(there).flatmap(span), max_size=6))
        n_tokens = len(offsets)
        states = st.tuples(st.integers(-(2**31), 2**31) | st.text(), st.none() | st.integers(0, 5))
        values = st.lists(number, min_size=n_tokens, max_size=n_tokens).map(torch.tensor)
        rows = [
            Row(
                layer=layer,
                position=position,
                sigma=draw(values),
                standard_error=draw(values),
                common_error=draw(wide),
                max_sigma=draw(wide),
                input_std=draw(wide),
                regime_index=draw(wide),
                distortion=draw(wide),
                converged=draw(st.booleans()),
                n_forward=draw(st.integers(0, 2**40)),
                n_backward=draw(st.integers(0, 9)),
            )
            for layer, position in draw(st.lists(states, min_size=1, max_size=3, unique=True))
        ]
        items.append(
            TextExplanation(
                text=text,
                pair=pair,
                tokens=tuple(draw(st.lists(st.text(), min_size=n_tokens, max_size=n_tokens))),
                offsets=tuple(offsets),
                size=draw(st.integers(1, 10_000)),
                predicted=draw(st.none() | st.text()),
                probability=draw(st.none() | wide),
                target=draw(st.none() | st.text()),
                rows=tuple(rows),
            )
        )
    return Explanation(tuple(items), SETTINGS, draw(wide))


# Scores


def nats(sigma: float, size: int = 4, cap: float = 1.0, std: float = 1.0) -> float:
    """K / 2 log(1 + tau^2 / sigma^2), less that at the cap."""
    return size / 2 * (math.log(1 + (std / sigma) ** 2) - math.log(1 + (std / cap) ** 2))


def slope(sigma: float, size: int = 4, std: float = 1.0) -> float:
    """Of it by log sigma, without its sign."""
    return size * std**2 / (std**2 + sigma**2)


def test_kept_and_loss_are_the_nats_of_their_definitions() -> None:
    item = a_text(a_row([0.5, 0.1, 1.0], [0.1, 0.2, 0.0]), size=4)
    kept, loss, sigma = (item.scores(kind) for kind in ("kept", "loss", "sigma"))
    for t, value in enumerate(torch.tensor([0.5, 0.1, 1.0]).tolist()):
        assert kept.values[0, t].item() == pytest.approx(nats(value))
        assert loss.values[0, t].item() == pytest.approx(2 * math.log(2 * math.pi * math.e * value**2))
        assert sigma.values[0, t].item() == pytest.approx(value)
    torch.testing.assert_close(loss.standard_error, torch.tensor([[0.4, 0.8, 0.0]], dtype=torch.float64))
    expected = [0.1 * slope(0.5), 0.2 * slope(0.1), 0.0]
    torch.testing.assert_close(kept.standard_error, torch.tensor([expected], dtype=torch.float64))
    torch.testing.assert_close(sigma.standard_error, loss.standard_error / 4)


@pytest.mark.parametrize("cap", [0.1, 0.3, 0.7, 1e-3])
def test_a_token_at_the_cap_keeps_exactly_nothing(cap: float) -> None:
    item = a_text(a_row([cap, 2 * cap], cap=cap), size=768)
    assert item.scores("kept").values.tolist() == [[0.0, 0.0]]


def test_a_unit_adds_nats_and_takes_the_geometric_mean_of_sigma() -> None:
    item = a_text(a_row([0.5, 0.125, 0.5]), text="ab c", offsets=((0, 0, 1), (0, 1, 2), (0, 3, 4)))
    assert item.scores("sigma", "word").values[0].tolist() == pytest.approx([0.25, 0.5])
    assert item.scores("kept", "word").values[0].tolist() == pytest.approx(
        [nats(0.5) + nats(0.125), nats(0.5)]
    )
    assert item.scores("kept", "word").units == ("ab", "c")
    assert item.scores("kept", "word").offsets == ((0, 0, 2), (0, 3, 4))


WORDS: dict[str, Any] = {"text": "abc d", "offsets": ((0, 0, 1), (0, 1, 2), (0, 2, 3), (0, 4, 5))}


def test_a_unit_takes_the_mean_over_its_tokens_or_the_one_that_is_kept_most() -> None:
    sigma = [0.5, 0.125, 0.3, 0.4]
    item = a_text(a_row(sigma, [0.1, 0.2, 0.15, 0.05], common=0.1), **WORDS)
    mean, most = (item.scores("kept", "word", how).values[0].tolist() for how in ("mean", "max"))  # type: ignore[arg-type]
    assert mean == pytest.approx([sum(map(nats, sigma[:3])) / 3, nats(0.4)])
    assert most == pytest.approx([nats(0.125), nats(0.4)])
    assert item.scores("sigma", "word", "max").values[0].tolist() == pytest.approx([0.125, 0.4])
    assert item.scores("loss", "word", "max").values[0, 0] == item.scores("loss").values[0, 1]
    assert item.scores("kept", "word", "mean").aggregate == "mean"


@pytest.mark.parametrize("kind", ["kept", "loss"])
def test_the_error_of_a_mean_or_a_maximum_is_that_of_the_whole_covariance_matrix(kind: Any) -> None:
    error = torch.tensor([0.1, 0.2, 0.15, 0.05], dtype=torch.float64)
    sigma = [0.9, 0.125, 1.3, 0.4]
    item = a_text(a_row(sigma, error, common=0.1, cap=10.0), **WORDS)
    covariance = ((4 * 0.1) ** 2 - error.square().sum()) / 12 * torch.ones(4, 4, dtype=torch.float64)
    covariance[range(4), range(4)] = error.square()
    slopes = torch.tensor([slope(each) if kind == "kept" else 4.0 for each in sigma], dtype=torch.float64)
    for aggregate, first in (("mean", [1 / 3, 1 / 3, 1 / 3, 0.0]), ("max", [0.0, 1.0, 0.0, 0.0])):
        weights = torch.tensor([first, [0.0, 0, 0, 1]], dtype=torch.float64) * slopes
        expected = (weights @ covariance @ weights.T).diagonal().sqrt()
        found = item.scores(kind, "word", aggregate).standard_error[0]  # type: ignore[arg-type]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_a_word_is_not_the_darkest_just_because_it_has_many_pieces() -> None:
    """Three pieces of which each is kept no more than any other token: their sum is the largest, their mean is not."""
    sigma = [0.2, 0.22, 0.21, 0.15]
    item = a_text(a_row(sigma, [0.01] * 4, common=0.005), **WORDS)
    assert item.scores("kept", "word").values[0].argmax() == 0
    explanation = an_explanation(item)
    [record] = explanation.to_captum(granularity="word")
    assert record.word_attributions.argmax() == 1
    assert explanation.plot("tokens", granularity="word").axes[0].patches[1].get_height() == pytest.approx(
        nats(0.15)
    )
    page = explanation.to_html(granularity="word")
    assert '<span class="s32" data-unit="1">' in page
    assert record.attr_score == pytest.approx(sum(map(nats, sigma)))


def test_an_unknown_way_to_aggregate_is_refused() -> None:
    with pytest.raises(ValueError, match="aggregate is 'median': choose from sum, mean, max"):
        example()[0].scores("kept", "word", "median")  # type: ignore[arg-type]


def test_scores_are_found_by_word_and_by_layer() -> None:
    offsets: tuple[Offset | None, ...] = ((0, 0, 1), (0, 2, 3), (0, 4, 5), (0, 6, 7))
    rows = [
        a_row([0.1, 0.2, 0.3, 0.4], [0.01, 0.02, 0.03, 0.04], layer, position)
        for layer, position in ((1, None), ("output", 0), ("output", 2))
    ]
    scores = a_text(*rows, text="a b a c", offsets=offsets).scores("sigma", "word")
    twice = scores.of("a")
    assert twice.units == ("a", "a") and twice.offsets == ((0, 0, 1), (0, 4, 5))
    for found, all_of_them in (
        (twice.values, scores.values),
        (twice.standard_error, scores.standard_error),
        (twice.tied, scores.tied),
    ):
        assert torch.equal(found, all_of_them[:, [0, 2]])
    assert scores.of("c", "b").units == ("b", "c")  # in the order of the text
    assert scores.at("output").rows == (("output", 0), ("output", 2))
    assert scores.of("c").at(1).values.tolist() == [pytest.approx([0.4])]
    with pytest.raises(KeyError, match=r"there is no word 'd': choose from 'a', 'b', 'a', 'c'"):
        scores.of("a", "d")
    with pytest.raises(KeyError, match=r"layer 2 was not explained: choose from 1, 'output'"):
        scores.at(2)


@pytest.mark.parametrize("kind", ["kept", "loss", "sigma"])
@pytest.mark.parametrize("common", [0.0, 0.03, 0.08])
def test_the_error_of_a_unit_is_that_of_the_whole_covariance_matrix(kind: Any, common: float) -> None:
    error = torch.tensor([0.1, 0.2, 0.0, 0.15, 0.05], dtype=torch.float64)
    offsets = ((0, 0, 1), (0, 1, 2), (0, 2, 3), (0, 4, 5), (0, 5, 6))
    sigma = [0.1, 0.9, 0.3, 2.0, 0.6]
    item = a_text(a_row(sigma, error, common=common, cap=10.0), text="abc de", offsets=offsets)
    free = (error > 0).double()
    covariance = ((5 * common) ** 2 - error.square().sum()) / 12 * torch.outer(free, free)  # (T, T)
    covariance[range(5), range(5)] = error.square()
    weights = torch.tensor([[1.0, 1, 1, 0, 0], [0, 0, 0, 1, 1]], dtype=torch.float64)
    if kind == "sigma":
        weights /= weights.sum(1, keepdim=True)
    if kind != "sigma":
        weights *= 4 if kind == "loss" else torch.tensor([slope(each) for each in sigma])
    expected = (weights @ covariance @ weights.T).diagonal().clamp(min=0).sqrt()
    torch.testing.assert_close(item.scores(kind, "word").standard_error[0], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("granularity", ["token", "word", "sentence"])
def test_a_unit_of_the_whole_text_has_the_error_of_the_total(granularity: Any) -> None:
    text = a_text(
        a_row([0.1, 0.2, 0.4], [0.1, 0.2, 0.15], common=0.12),
        text="abc",
        offsets=tuple((0, i, i + 1) for i in range(3)),
    )
    nats, error = text.total("loss")
    scores = text.scores("loss", granularity)
    torch.testing.assert_close(scores.values.sum(1), nats)
    torch.testing.assert_close(error, torch.tensor([4 * 3 * 0.12], dtype=torch.float64))
    if granularity != "token":
        torch.testing.assert_close(scores.standard_error[0], error)


def test_a_token_with_nan_does_not_affect_the_others() -> None:
    item = a_text(a_row([math.nan, 0.5, 0.0], [math.nan, 0.1, 0.1]))
    values, error = item.scores("kept").values[0], item.scores("kept").standard_error[0]
    assert values[1].item() == pytest.approx(nats(0.5))
    assert error.tolist()[1:] == pytest.approx([0.1 * slope(0.5), 0.4])
    assert values.isnan().tolist() == [True, False, False]
    assert values[2].item() == math.inf


def tied(sigma: list[float], error: list[float], common: float = 0.0, kind: Any = "kept") -> list[bool]:
    # errors that are independent: the variance of their mean is the sum of theirs over T^2
    independent = math.sqrt(sum(e**2 for e in error)) / len(error)
    flags: list[bool] = (
        a_text(a_row(sigma, error, common=common or independent)).scores(kind).tied[0].tolist()
    )
    return flags


def test_units_within_two_errors_of_the_difference_are_tied_to_the_next_in_rank() -> None:
    # log sigma in steps of 1.0 and 0.25; the error of a difference is 0.1 * sqrt(2) = 0.141
    sigma = [math.exp(-2), math.exp(-4), math.exp(-3), math.exp(-2.25)]
    assert tied(sigma, [0.1] * 4) == [False, False, False, True]
    assert tied(sigma, [0.1] * 4, kind="loss") == [False, False, False, True]
    assert tied(sigma, [0.1] * 4, kind="sigma") == [False, False, False, True]
    assert tied(sigma, [0.08] * 4) == [False] * 4
    assert tied(sigma, [0.6] * 4) == [False, True, True, True]


def test_an_error_that_two_units_share_does_not_tie_them() -> None:
    sigma = [math.exp(-2.25), math.exp(-2)]
    assert tied(sigma, [0.1, 0.1]) == [True, False]
    assert tied(sigma, [0.1, 0.1], common=0.0999) == [False, False]


def test_two_tokens_at_the_cap_are_tied() -> None:
    assert tied([1.0, 0.1, 1.0], [0.0, 0.0, 0.0]) == [True, False, False]


@given(explanations())
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_sums_agree_at_every_granularity(explanation: Explanation) -> None:
    for item in explanation:
        for kind in ("kept", "loss"):
            total = item.total(kind)[0]  # type: ignore[arg-type]
            for granularity in ("token", "word", "sentence"):
                scores = item.scores(kind, granularity)  # type: ignore[arg-type]
                torch.testing.assert_close(scores.values.sum(1), total, equal_nan=True)


def test_an_unknown_kind_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match="kind is 'gain': choose from kept, loss, sigma"):
        example()[0].scores("gain")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="kind is 'sigma': the total of a text is 'kept' or 'loss'"):
        example()[0].total("sigma")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="granularity is 'letter'"):
        example().to_dict("letter")  # type: ignore[arg-type]


# A sequence of texts


def positions() -> Explanation:
    rows = [a_row([0.1, 0.2], layer="3", position=p) for p in (0, 1)]
    return an_explanation(a_text(*rows, a_row([0.3, 0.4], layer=3)))


def test_it_is_a_sequence_of_texts() -> None:
    explanation = example()
    assert len(explanation) == 2
    assert [item.text for item in explanation] == ["a film", "good"]
    assert explanation[-1] is explanation.items[1]
    assert explanation[0] in explanation
    assert isinstance(explanation[:1], Explanation)
    assert [item.text for item in reversed(explanation)] == ["good", "a film"]


def test_a_text_and_a_layer_give_its_row_or_its_rows() -> None:
    explanation = positions()
    assert explanation[0, 3] is explanation[0].rows[2]
    assert explanation[0, "3"] == explanation[0].rows[:2]
    assert explanation[0].row("3", 1) is explanation[0].rows[1]
    assert explanation[0].row(3) is explanation[0].rows[2]
    assert explanation[0].layers == ("3", 3)


@pytest.mark.parametrize(
    "take, error, message",
    [
        (lambda e: e[1], IndexError, "text 1 does not exist: the explanation has 1"),
        (lambda e: e[0, 4], KeyError, "layer 4 was not explained: choose from '3', 3"),
        (lambda e: e[0, 3, 1], TypeError, "has 3 parts"),
        (lambda e: e["a"], TypeError, "index 'a' is a str: give a text's number"),
        (lambda e: e[0].row("3"), KeyError, "no row at position None: choose from 0, 1"),
        (lambda e: e[0].row("3", 9), KeyError, "no row at position 9: choose from 0, 1"),
    ],
)
def test_unknown_texts_and_layers_are_an_error_that_lists_the_known_ones(
    take: Callable[[Explanation], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        take(positions())


def test_a_slice_takes_its_share_of_the_seconds() -> None:
    assert example()[:1].seconds == example().seconds / 2
    assert example()[5:].seconds == 0


def test_merging_the_parts_gives_the_whole() -> None:
    whole = realistic(4, 2, 6)
    assert Explanation.merge(whole[:1], whole[1:]) == whole
    assert Explanation.merge(whole) == whole


def test_merging_lists_all_versions() -> None:
    newer = an_explanation(*example(), versions={"torch": "2.14.0", "captum": "0.9.0"})
    both = Explanation.merge(an_explanation(*example()), newer, newer)
    assert both.settings.versions == {
        "torch": "2.13.0, 2.14.0",
        "interp_plugin": "0.1.0",
        "captum": "0.9.0",
    }


def test_merging_a_list_of_explanations_is_refused_with_the_right_call() -> None:
    """AttributeError: 'list' object has no attribute 'settings'."""
    with pytest.raises(TypeError, match=r"merge is given a list; give explanations, merge\(\*several\)"):
        Explanation.merge([])  # type: ignore[arg-type]


def test_merging_other_settings_or_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rate is 0.1 in one explanation and 0.2 in another"):
        Explanation.merge(an_explanation(*example()), an_explanation(*example(), rate=0.2))
    with pytest.raises(ValueError, match="nothing to merge"):
        Explanation.merge()


@pytest.mark.parametrize(
    "build, error, message",
    [
        (lambda: a_row(torch.ones(2, 2)), ValueError, r"sigma is \(2, 2\)"),
        (lambda: a_row([1.0, 2.0], [0.1]), ValueError, r"standard_error \(1,\)"),
        (lambda: a_row([1.0], layer=1.5), TypeError, "layer is 1.5, a float"),  # type: ignore[arg-type]
        (lambda: a_text(a_row([1.0]), a_row([1.0, 2.0], layer=2)), ValueError, "layer 2 has 2 sigmas"),
        (lambda: a_text(a_row([1.0]), a_row([1.0])), ValueError, "layer 1 has two rows at position None"),
        (lambda: a_text(a_row([1.0]), offsets=()), ValueError, "1 tokens and 0 offsets"),
        (lambda: a_text(a_row([1.0]), text="a", offsets=((0, 0, 2),)), ValueError, r"offset \(0, 0, 2\)"),
        (lambda: a_text(a_row([1.0]), text="a", offsets=((1, 0, 1),)), ValueError, r"within 1 text"),
        (lambda: dataclasses.replace(example()[0], rows=()), ValueError, "'a film' has no rows"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(
    build: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        build()


def test_a_row_keeps_plain_numbers() -> None:
    row = a_row(torch.ones(2, dtype=torch.float64, requires_grad=True))
    assert row.sigma.dtype == torch.float32
    assert not row.sigma.requires_grad


def test_rows_are_equal_by_value_and_nan_equals_nan() -> None:
    assert a_row([math.nan, 1.0]) == a_row([math.nan, 1.0])
    assert a_row([0.5, 1.0]) != a_row([0.5, 2.0])
    assert a_row([0.5], layer=1) != a_row([0.5], layer="1")
    assert a_row([0.5]) != 3


# Plain values and tables


@given(explanations(), st.sampled_from(["token", "word", "sentence"]))
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_the_dict_is_strict_json(explanation: Explanation, granularity: Any) -> None:
    values = explanation.to_dict(granularity)
    assert json.loads(json.dumps(values, allow_nan=False)) == values


def test_the_dict_has_the_keys_that_the_report_reads() -> None:
    values = example().to_dict("sentence")
    assert list(values) == ["settings", "seconds", "granularity", "aggregate", "texts"]
    assert values["settings"]["rate"] == 0.1
    [text, _] = values["texts"]
    assert text["units"] == ["[CLS]", "a film", "[SEP]"]
    assert text["offsets"] == [None, [0, 0, 6], None]
    assert {key for key in text if key not in ("units", "offsets", "rows")} == {
        *("text", "pair", "predicted", "probability", "target"),
    }
    assert [row["layer"] for row in text["rows"]] == [1, "output"]
    for row in text["rows"]:
        errors = ("standard_error", "loss_standard_error", "sigma_standard_error")
        assert {len(row[key]) for key in ("sigma", "loss", "kept", *errors, "tied")} == {3}
        assert row["total"] in example()[0].total()[0]
        assert row["tied"] == [True, False, False]
        assert row["total_standard_error"] in example()[0].total()[1]
        assert {
            "position",
            "max_sigma",
            "input_std",
            "regime_index",
            "distortion",
            "converged",
            "n_forward",
            "n_backward",
        } < set(row)


def test_the_table_has_a_line_for_each_text_row_and_unit() -> None:
    explanation = example()
    table = explanation.to_pandas()
    assert len(table) == 2 * (4 + 3)
    line = table[(table["text_index"] == 0) & (table["layer"] == "output") & (table["unit"] == "film")].iloc[
        0
    ]
    scores = explanation[0].scores("kept")
    assert line["kept"] == scores.values[1, 2].item()
    assert line["standard_error"] == scores.standard_error[1, 2].item()
    assert (line["text"], line["segment"], line["start"], line["end"]) == ("a film", 0, 2, 6)
    assert not line["converged"]
    assert table["start"].isna().sum() == 8
    assert str(table["start"].dtype) == "Int64"
    assert table["position"].isna().all()


def test_the_table_of_words_has_the_same_sums() -> None:
    explanation = realistic(3, 2, 8)
    tokens, words = (
        explanation.to_pandas(g).groupby(["text_index", "layer"])["loss"].sum() for g in ("token", "word")
    )  # type: ignore[arg-type]
    np.testing.assert_allclose(tokens, words)


def test_the_table_of_nothing_has_its_columns() -> None:
    table = example()[:0].to_pandas()
    assert len(table) == 0
    assert list(table) == list(example().to_pandas())


def test_numbers_that_are_not_finite_stay_so_in_the_table() -> None:
    table = an_explanation(a_text(a_row([math.nan, 0.0, 1.0]))).to_pandas()
    assert np.isnan(table["kept"][0])
    assert table["kept"][1] == math.inf


# Files


def bits(tensor: Tensor) -> bytes:
    return tensor.numpy().tobytes()


@given(explanations())
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture], deadline=None)
def test_loading_restores_every_bit(tmp_path: Path, explanation: Explanation) -> None:
    explanation.save(tmp_path / "a.parquet")
    loaded = Explanation.load(tmp_path / "a.parquet")
    assert loaded == explanation
    for ours, theirs in zip(explanation, loaded, strict=True):
        for row, copy in zip(ours.rows, theirs.rows, strict=True):
            assert type(copy.layer) is type(row.layer)
            assert bits(copy.sigma) == bits(row.sigma)
            assert bits(copy.standard_error) == bits(row.standard_error)


def test_paths_may_be_strings_and_loaded_tensors_are_writable(tmp_path: Path) -> None:
    example().save(str(tmp_path / "a.parquet"))
    loaded = Explanation.load(str(tmp_path / "a.parquet"))
    loaded[0].rows[0].sigma[0] = 2.0
    assert loaded != example()


def test_other_tools_read_a_table_with_a_line_for_each_row(tmp_path: Path) -> None:
    import pandas as pd

    example().save(tmp_path / "a.parquet")
    table = pd.read_parquet(tmp_path / "a.parquet")
    assert len(table) == 4
    assert table["layer"].tolist() == ["1", "output"] * 2
    np.testing.assert_array_equal(table["sigma"][0], example()[0].rows[0].sigma)


@pytest.mark.parametrize("shape, share", [((32, 12, 20), 1 / 5), ((1, 6, 14), 0.6)])
def test_a_file_is_small_beside_its_json(tmp_path: Path, shape: tuple[int, int, int], share: float) -> None:
    """A Parquet file with these columns has 4 kB before the first number: a single text cannot reach 1/5."""
    explanation = realistic(*shape)
    explanation.save(tmp_path / "a.parquet")
    assert os.path.getsize(tmp_path / "a.parquet") < share * len(json.dumps(explanation.to_dict()))


def test_a_failed_save_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.parquet"
    example().save(path)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        example()[:1].save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.parquet"]


def test_a_saved_file_has_the_usual_permissions(tmp_path: Path) -> None:
    example().save(tmp_path / "a.parquet")
    (tmp_path / "b").touch()
    assert (tmp_path / "a.parquet").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_a_name_in_another_format_is_refused(tmp_path: Path) -> None:
    """A Parquet file was written anyway."""
    for name in ("a.xlsx", "a.json"):
        with pytest.raises(ValueError, match=r"ends in \.(xlsx|json), and a Parquet file"):
            example().save(tmp_path / name)
    example().save(tmp_path / "run.1")
    assert os.listdir(tmp_path) == ["run.1"]


def test_a_picture_under_the_name_of_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ends in \.svg, and a PNG file"):
        example().save_pictures(tmp_path / "film.svg")
    assert not list(tmp_path.iterdir())
    assert [path.name for path in example()[:1].save_pictures(tmp_path / "film.PNG")] == ["film.PNG"]


def test_a_file_that_is_no_explanation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_text("hello, this is some text")
    with pytest.raises(ValueError, match="holds no Explanation, or a damaged one: give a file"):
        Explanation.load(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="holds no Explanation"):
        Explanation.load(path)
    parquet.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(ValueError, match="holds no Explanation"):
        Explanation.load(path)
    with pytest.raises(FileNotFoundError):
        Explanation.load(tmp_path / "b.parquet")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "no"
    for write in (example().save, example().to_html):
        with pytest.raises(FileNotFoundError) as caught:
            write(folder / "a.file")
        assert caught.value.filename == str(folder)


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_cut_or_damaged_file_is_refused(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "a.parquet"
    example().save(path)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.parquet"):
        Explanation.load(path)


def test_a_file_of_a_newer_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as newer:
        newer.setattr(storage, "FORMAT", 5)
        example().save(tmp_path / "a.parquet")
    with pytest.raises(
        ValueError, match="has format 5, and this version reads up to 4: pip install --upgrade"
    ):
        Explanation.load(tmp_path / "a.parquet")


def test_a_file_of_an_older_format_is_refused_by_its_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        older.setattr(storage, "FORMAT", 3)
        older.setattr(storage, "sealed", lambda content, blank: content)
        example().save(tmp_path / "a.parquet")
    with pytest.raises(
        ValueError, match=r"a.parquet' has format 3, which an older version.*explain the texts again"
    ):
        Explanation.load(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    "missing, use",
    [
        ("pyarrow", lambda path: example().save(path)),
        ("pyarrow", Explanation.load),
        ("pandas", lambda path: example().to_pandas()),
    ],
)
def test_a_missing_library_is_named_with_the_command_that_installs_it(
    missing: str, use: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=rf"{missing}.*pip install .interp-plugin\[table\]"):
        use(tmp_path / "a.parquet")


# Pictures


def test_pictures_are_drawn_from_the_dict(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    for module, function in (
        (terminal, "show"),
        (html, "page"),
        (figures, "plot"),
        (filled, "captum_records"),
    ):
        monkeypatch.setattr(module, function, lambda *args, **kwargs: calls.append((*args, *kwargs.values())))
    values = example().to_dict("word", "mean")
    example().show(granularity="word", details=False)
    example().to_html(granularity="word")
    example().plot("tokens", 1, 2, "word")
    example().to_captum("output", "word")
    report = filled.report(values)
    assert calls == [(report, None, False), (report,), (values, "tokens", 1, 2), (values, "output")]


@pytest.mark.parametrize("draw", ["show", "to_html", "plot", "to_captum"])
@pytest.mark.parametrize("aggregate", ["sum", "mean", "max"])
def test_pictures_use_the_requested_aggregate(
    draw: str, aggregate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[object, ...]] = []
    whole = Explanation.to_dict
    monkeypatch.setattr(Explanation, "to_dict", lambda self, *how: asked.append(how) or whole(self, *how))
    options = {"console": Console(quiet=True)} if draw == "show" else {}
    getattr(example(), draw)(granularity="word", aggregate=aggregate, **options)
    assert asked == [("word", aggregate)]


def test_the_page_is_returned_or_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html, "page", lambda report: f"<p>é{len(report.sections)}</p>")
    assert example().to_html() == "<p>é2</p>"
    path = tmp_path / "a.html"
    assert example().to_html(str(path)) == path
    assert path.read_text(encoding="utf-8") == "<p>é2</p>"


def test_a_notebook_shows_the_frame_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html, "frame", lambda report: f"<iframe>{len(report.sections)}")
    assert example()._repr_html_() == "<iframe>2"
