"""A padded batch against single texts: targets, positions, and which elements count."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from tiny_models import tiny
from torch import Tensor

from interp_plugin.huggingface import HuggingFaceModel
from interp_plugin.method.problem import Terms
from interp_plugin.method.solver import Solver
from interp_plugin.text.batch import Batch
from interp_plugin.text.states import State

TEXTS = ["The film was good .", "A dull story , not good and not funny", "film"]
TARGETS: list[Any] = [" bad and dull", " good", 7]


@cache
def model(family: str) -> HuggingFaceModel:
    return tiny(*{"gpt2": ("gpt2", "GPT2LMHeadModel"), "t5": ("t5", "T5ForConditionalGeneration")}[family])


def batch_of(family: str) -> Batch:
    reader = model(family)
    encodings = [reader.encode(words, target=target) for words, target in zip(TEXTS, TARGETS)]
    assert len({len(e.ids) for e in encodings}) == 3
    assert max(len(e.target) for e in encodings) > 2
    return Batch(reader, encodings, reader.embedding, [None, *reader.layers.values()])


def last_state(family: str) -> State:
    label = list(model(family).layers)[-1]
    return State(label, model(family).layers[label])


def logits_alone(family: str, row: int) -> Tensor:
    """Of one text, (places, vocabulary), by the transformers model itself."""
    reader = model(family)
    encoding = reader.encode(TEXTS[row], target=TARGETS[row])
    given = {name: torch.tensor([values]) for name, values in encoding.extra.items()}
    with torch.no_grad():
        return reader.model(input_ids=torch.tensor([encoding.ids]), **given).logits[0]


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_the_output_is_the_log_probability_of_each_target_token_in_order(family: str) -> None:
    batch = batch_of(family)
    for row, encoding in enumerate(batch.encodings):
        scores = logits_alone(family, row).log_softmax(-1)
        expected = [scores[p, t].item() for p, t in zip(encoding.target_positions, encoding.target)]
        count = len(encoding.target)
        assert batch.whole(None)[row, :count].tolist() == pytest.approx(expected, rel=1e-4)
        places = batch.places(State("output", None))
        assert places is not None and places[row].tolist() == [i < count for i in range(places.shape[1])]


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_real_places_are_those_of_the_sequence_that_a_layer_runs_over(family: str) -> None:
    batch = batch_of(family)
    for label, site in model(family).layers.items():
        decoder = model(family).axis[label] == "decoder"
        lengths = [len(e.extra["decoder_input_ids"] if decoder else e.ids) for e in batch.encodings]
        places = batch.places(State(label, site))
        assert places is not None
        assert places.tolist() == [[i < n for i in range(max(lengths))] for n in lengths]


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_layers_are_watched_where_a_given_target_is_predicted_and_else_at_all_real_places(
    family: str,
) -> None:
    batch = batch_of(family)
    state = last_state(family)
    real = batch.places(state)
    assert real is not None
    before = real.clone()
    batch.encodings[1] = batch.encodings[1].unasked
    mask = batch.predicting(state, real)
    for row in (0, 2):
        assert mask[row].nonzero()[:, 0].tolist() == sorted(batch.encodings[row].target_positions)
    assert torch.equal(mask[1], before[1])
    assert torch.equal(real, before)


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_places_that_do_not_count_are_not_in_the_state(family: str) -> None:
    """Noise of a batch is that of each text alone: padding of either sequence adds no element to M or v."""
    state = last_state(family)
    solver, terms = Solver(iterations=0), Terms(1e-3, 1e4, None)
    batch = batch_of(family)
    [together] = batch.fit([state], [batch.places(state)], terms, solver)
    for row, encoding in enumerate(batch.encodings):
        alone = Batch(model(family), [encoding], model(family).embedding, [state.site])
        [fit] = alone.fit([state], [None], terms, solver)
        length = len(encoding.ids)
        torch.testing.assert_close(together.sigma[row, :length], fit.sigma[0], rtol=1e-3, atol=0)
        part = batch.at([row])  # as padded as before
        [again] = part.fit([state], [part.places(state)], terms, solver)
        torch.testing.assert_close(again.sigma[0, :length], fit.sigma[0], rtol=1e-3, atol=0)
