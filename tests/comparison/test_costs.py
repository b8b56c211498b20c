"""Passes, seconds and memory that a computation takes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny
from tiny_plain import cnn, lstm

from interp_plugin.comparison.costs import measured
from interp_plugin.comparison.interface import Answer, Inputs
from interp_plugin.comparison.methods import METHODS
from interp_plugin.method.problem import Terms
from interp_plugin.method.solver import Solver
from interp_plugin.text.batch import Batch
from interp_plugin.text.models import OUTPUT, TextModel
from interp_plugin.text.states import State

BERT = tiny("bert", "BertForSequenceClassification", num_labels=2)
TEXT = "a film was good the"
MODELS = {
    "bert": BERT,
    "a score head on a decoder": tiny("gpt2", "GPT2ForSequenceClassification", num_labels=2),
    "one block many times": tiny("albert", "AlbertForSequenceClassification", num_labels=2),
    "lstm": lstm(mask_id=7),
    "cnn": cnn(mask_id=7),
}
WORDS = {"lstm": "the film was good", "cnn": "the film was good"}


def hooks(model: TextModel) -> int:
    return sum(
        len(part._forward_hooks) + len(part._forward_pre_hooks) + len(part._forward_hooks_with_kwargs)
        for part in model.module.modules()
    )


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(
    "name, forward, backward",
    [
        ("saliency (L2)", 1, 1),
        ("integrated gradients (zero, signed)", 50, 50),
        ("gradient SHAP", 50, 50),
        ("SmoothGrad (L2)", 50, 50),
        ("DeepLift", 2, 2),  # the text and its baseline
        ("LIME", 200, 0),
        ("KernelSHAP", 200, 0),
        ("random", 0, 0),
    ],
)
def test_passes_are_the_rows_that_each_method_is_known_to_take(
    kind: str, name: str, forward: int, backward: int
) -> None:
    model = MODELS[kind]
    before = hooks(model)
    inputs = Inputs(model, model.encode(WORDS.get(kind, TEXT)))
    with measured(model) as cost:
        METHODS[name](inputs, 1, None)
    assert (cost.forward, cost.backward) == (forward, backward)
    assert hooks(model) == before


def test_passes_of_methods_for_transformers_are_as_documented() -> None:
    inputs = Inputs(BERT, BERT.encode(TEXT))
    words = int(inputs.players.sum())
    for name, passes in {
        "GIM": (1, 1),
        "AttnLRP": (1, 1),
        "DecompX": (inputs.length + 2, 0),  # a row for each token, one for biases, one for the text
        "Noiser": (1 + 100 * words, 0),  # 10 draws at each of 10 scales
    }.items():
        with measured(BERT) as cost:
            METHODS[name](inputs, 1, None)
        assert (cost.forward, cost.backward) == passes


def test_each_masked_word_costs_a_pass_and_the_text_costs_one() -> None:
    inputs = Inputs(BERT, BERT.encode(TEXT))
    words = int(inputs.players.sum())
    for name, passes in (("feature ablation", 1 + words), ("Shapley value sampling", 1 + 25 * words)):
        with measured(BERT) as cost:
            METHODS[name](inputs, 1, None)
        assert (cost.forward, cost.backward) == (passes, 0)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("iterations", [0, None])
@pytest.mark.parametrize("watched", ["output", "first", "last"])
def test_passes_of_the_solver_are_those_it_reports(kind: str, iterations: int | None, watched: str) -> None:
    model = MODELS[kind]
    labels = [*model.layers]
    label = {"output": OUTPUT, "first": labels[0], "last": labels[-1]}[watched]
    state = State(label, None if label == OUTPUT else model.layers[label])
    solver = Solver(iterations=iterations, draws=8)
    with measured(model) as cost:
        batch = Batch(model, [model.encode(WORDS.get(kind, TEXT))], model.embedding, [state.site])
        [fit] = batch.fit([state], [batch.places(state)], Terms(0.1, 1.0, None), solver)
    assert cost.forward == int(fit.n_forward)
    assert cost.backward == int(fit.n_backward)


def test_states_that_share_a_forward_have_a_gradient_each() -> None:
    states = [State(label, site) for label, site in BERT.layers.items()]
    with measured(BERT) as cost:
        batch = Batch(BERT, [BERT.encode(TEXT)], BERT.embedding, [state.site for state in states])
        batch.fit(
            states, [batch.places(state) for state in states], Terms(0.1, 1.0, None), Solver(iterations=0)
        )
    probes = 8
    assert (cost.forward, cost.backward) == (1 + probes, 2 * probes)


def test_every_row_of_a_batch_is_a_pass() -> None:
    arguments, _ = BERT.collate([BERT.encode(TEXT)] * 5)
    with measured(BERT) as cost:
        BERT(*arguments).sum()
        BERT.attentions(*arguments)
    assert (cost.forward, cost.backward) == (10, 0)


def test_looking_up_embeddings_is_not_a_pass() -> None:
    with measured(BERT) as cost:
        inputs = Inputs(BERT, BERT.encode(TEXT))
        inputs.embedded(inputs.ids)
    assert cost.forward == 0


def test_a_graph_that_outlives_the_block_is_counted_no_further() -> None:
    inputs = Inputs(BERT, BERT.encode(TEXT))
    points = inputs.embeddings.clone().requires_grad_()
    with measured(BERT) as cost:
        value = Answer(inputs, 1)(points).sum()
    torch.autograd.grad(value, points)
    assert (cost.forward, cost.backward) == (1, 0)


def test_a_call_that_raises_is_measured_and_leaves_no_hook() -> None:
    before = hooks(BERT)
    with pytest.raises(RuntimeError, match="stop"), measured(BERT) as cost:
        BERT(*Inputs(BERT, BERT.encode(TEXT)).arguments)
        raise RuntimeError("stop")
    assert cost.forward == 1
    assert cost.seconds > 0
    assert hooks(BERT) == before


def test_a_forward_that_fails_does_not_spoil_the_count_of_the_next() -> None:
    inputs = Inputs(BERT, BERT.encode(TEXT))
    wrong: Any = torch.full_like(inputs.ids, 10**6)
    with measured(BERT) as cost:
        with pytest.raises(IndexError):
            BERT(wrong, *inputs.arguments[1:])
        BERT(*inputs.arguments)
    assert cost.forward == 1


def test_seconds_are_wall_time() -> None:
    with measured(BERT) as cost:
        time.sleep(0.05)
    assert 0.05 <= cost.seconds < 0.5


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak")
def test_the_peak_is_what_is_used_on_top_even_if_it_is_free_at_the_end() -> None:
    with measured(BERT) as cost:
        large = torch.ones(64, 2**18)  # 64 MiB
        del large
    assert cost.peak_mib is not None
    assert 60 < cost.peak_mib < 80
    with measured(BERT) as cost:
        pass
    assert cost.peak_mib is not None
    assert cost.peak_mib < 5  # an earlier peak is forgotten


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak")
def test_memory_that_the_allocator_kept_from_an_earlier_call_counts_again() -> None:
    for _ in range(2):
        with measured(BERT) as cost:
            small = [
                torch.ones(12_000) for _ in range(800)
            ]  # of 47 KiB, which glibc does not give back by itself
            last = torch.ones(1)
            del small
        assert cost.peak_mib is not None
        assert cost.peak_mib > 25
        assert last == 1


def test_a_peak_that_cannot_be_measured_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("interp_plugin.comparison.costs._PROCESS", tmp_path)
    with measured(BERT) as cost:
        pass
    assert cost.peak_mib is None
    (tmp_path / "clear_refs").mkdir()  # not to be written
    with measured(BERT) as cost:
        pass
    assert cost.peak_mib is None
