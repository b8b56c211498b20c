"""Scores against rationales: scikit-learn, and spans worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import auc, f1_score, precision_recall_curve
from tiny_bag import inputs_of, trial_of

from interp_plugin.comparison.interface import Trial
from interp_plugin.comparison.metrics import METRICS, auprc, iou_f1, spans, token_f1


def bits(text: str) -> torch.Tensor:
    return torch.tensor([sign == "x" for sign in text])


def judged(scores: list[float], rationale: str) -> Trial:
    return replace(trial_of(inputs_of([1.0] * len(scores)), scores), rationale=bits(rationale))


def test_auprc_is_one_when_the_rationale_comes_first() -> None:
    assert METRICS["AUPRC"](judged([0.1, 0.9, 0.8, 0.2], ".xx.")) == 1.0
    assert METRICS["AUPRC"](judged([0.9, 0.1, 0.2, 0.8], ".xx.")) == pytest.approx((1 / 3 + 2 / 4) / 2)


def test_auprc_is_close_to_the_area_under_scikit_learns_curve() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, rationale = torch.rand(500, generator=generator), torch.rand(500, generator=generator) < 0.3
    precision, recall, _ = precision_recall_curve(rationale.numpy(), scores.numpy())
    assert auprc(scores, rationale) == pytest.approx(auc(recall, precision), abs=0.01)


masks = st.integers(2, 12).flatmap(
    lambda n: st.tuples(*[st.lists(st.booleans(), min_size=n, max_size=n).filter(any)] * 2)
)


@given(masks)
def test_token_f1_is_scikit_learns(pair: tuple[list[bool], list[bool]]) -> None:
    chosen, rationale = map(torch.tensor, pair)
    assert token_f1(chosen, rationale) == pytest.approx(f1_score(rationale, chosen))


def test_the_number_of_chosen_tokens_is_that_of_the_rationale() -> None:
    assert METRICS["token-F1"](judged([0.9, 0.8, 0.1, 0.7, 0.2], "x..x.")) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "chosen, rationale, expected",
    [
        ("xx..", "xx..", 1.0),
        (".xxx....", "xxxx....", 1.0),  # 3 of 4
        (".x......", "xxxx....", 0.0),  # 1 of 4
        ("xx......", "xxxx....", 1.0),  # 2 of 4: half is enough
        ("xx.x", "xx..", 2 / 3),  # one of two spans is found: precision 1/2, recall 1
        ("x..x", ".xx.", 0.0),
        ("xxxxxxxx", "xx....xx", 0.0),  # 2 of 8 with either
    ],
)
def test_spans_are_found_from_half_of_their_union(chosen: str, rationale: str, expected: float) -> None:
    assert iou_f1(bits(chosen), bits(rationale)) == pytest.approx(expected)


@given(masks)
def test_iou_f1_lies_between_none_and_all(pair: tuple[list[bool], list[bool]]) -> None:
    chosen, rationale = map(torch.tensor, pair)
    assert 0 <= iou_f1(chosen, rationale) <= 1
    assert iou_f1(rationale, rationale) == 1
    assert sum(end - start for start, end in spans(chosen)) == chosen.sum()


@pytest.mark.parametrize("rationale", ["....", "xxxx"])
def test_a_rationale_of_no_or_all_tokens_is_not_evaluated(rationale: str) -> None:
    for name in ("AUPRC", "token-F1", "IOU-F1"):
        assert METRICS[name](judged([0.9, 0.1, 0.2, 0.8], rationale)) is None


def test_without_a_rationale_nothing_is_evaluated() -> None:
    assert METRICS["AUPRC"](trial_of(inputs_of([1.0, 2.0]), [1.0, 2.0])) is None


def test_a_rationale_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(3,\) for 4 tokens"):
        METRICS["IOU-F1"](judged([0.9, 0.1, 0.2, 0.8], ".x."))
