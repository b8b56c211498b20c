"""All metrics: their names, and their values for models of all kinds."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_bert import save_classifier
from tiny_plain import cnn, lstm
from torch import Tensor

from interp_plugin import huggingface
from interp_plugin.comparison.interface import REMOVALS, Answer, Inputs, Method, Metric, Trial, chosen
from interp_plugin.comparison.metrics import METRICS
from interp_plugin.huggingface import HuggingFaceModel
from interp_plugin.text.models import TextModel
from interp_plugin.text.states import State


def leave_one_out(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    gone = torch.eye(inputs.length, inputs.embeddings.shape[1]).unsqueeze(-1)
    spoilt = inputs.embeddings * (1 - gone.to(inputs.embeddings))
    return -Answer(inputs, target, state).of_embeddings(spoilt)


METHOD = Method("leave one out", leave_one_out)


@cache
def bert(folder: Path) -> HuggingFaceModel:
    return HuggingFaceModel(*huggingface.load(str(save_classifier(folder))))


def asked(model: TextModel, text: str, label: Any = None) -> Trial:
    inputs = Inputs(model, model.encode(text))
    state = None if label is None else State(label, model.layers[label])
    target = 1 if label is None else None
    rationale = torch.zeros(inputs.length, dtype=torch.bool)
    rationale[2] = True
    return Trial(inputs, target, state, METHOD, METHOD(inputs, target, state), rationale)


@pytest.mark.parametrize(
    "name, label",
    [
        (name, label)
        for name, metric in METRICS.items()
        for label in (None, 1, 2)
        if metric.task is None  # test_next_tokens.py has those of language models
        and metric.judges in ("both", "class" if label is None else "state")
    ],
)
def test_every_metric_gives_a_number_for_a_bert(name: str, label: int | None, tmp_path_factory) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.getbasetemp() / "bert"
    folder.mkdir(exist_ok=True)
    trial = asked(bert(folder), "not a bad film the good", label)
    value = METRICS[name](trial)
    assert value is not None
    assert value == value  # not NaN


def supported(trial: Trial) -> list[Metric]:
    """The metrics that evaluate such a trial and remove tokens only in ways that the model supports."""
    every, refused = torch.ones(1, trial.inputs.length, dtype=torch.bool), set()
    for removal in REMOVALS:
        try:
            list(trial.inputs.without(every, removal))
        except ValueError:
            refused.add(removal)
    fitting = [m for m in METRICS.values() if m.can_judge(trial.state) and m.task is None]
    return [m for m in fitting if m.removal not in refused]


@pytest.mark.parametrize("label", [None, "lstm"])
def test_every_applicable_metric_gives_a_number_for_an_lstm_without_a_mask(label: str | None) -> None:
    trial = asked(lstm(), "the cat sat on a mat", label)
    fit = supported(trial)
    assert {metric.removal for metric in fit} <= {None, "delete"}
    assert len(fit) >= 9
    for metric in fit:
        assert metric(trial) is not None, metric.name


@pytest.mark.parametrize("label", [None, "features"])
def test_every_metric_gives_a_number_for_a_network_with_a_mask(label: str | None) -> None:
    trial = asked(cnn(mask_id=1), "the cat sat on a mat", label)
    fit = supported(trial)
    assert {metric.removal for metric in fit} >= {None, "mask", "attention"}
    for metric in fit:
        assert metric(trial) is not None, metric.name


def test_metrics_are_chosen_by_name_or_given() -> None:
    mine = Metric("length", lambda trial: float(trial.inputs.length), True, "made up")
    assert [metric.name for metric in chosen(METRICS, ["AUPRC", mine])] == ["AUPRC", "length"]


def test_an_unknown_metric_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'comprehension' is not known; choose from 'comprehensiveness"):
        chosen(METRICS, ["comprehension"])


def test_two_metrics_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="metric 'AUPRC' is given 2 times"):
        chosen(METRICS, ["AUPRC", "AUPRC"])


def test_every_metric_has_its_own_name_and_a_source() -> None:
    assert all(name == metric.name and metric.source for name, metric in METRICS.items())


@pytest.mark.parametrize(
    "name, higher",
    [
        ("comprehensiveness (mask)", True), ("sufficiency (delete)", False), ("log-odds", False),
        ("state erasure (attention)", True), ("state sufficiency (mask)", False),
        ("soft comprehensiveness", True), ("soft sufficiency", False), ("infidelity (mask)", False),
        ("max-sensitivity", False), ("weight randomisation", False), ("seed stability", True), ("AUPRC", True),
    ],
)  # fmt: skip
def test_metrics_declare_which_direction_is_better(name: str, higher: bool) -> None:
    assert METRICS[name].higher_is_better is higher
