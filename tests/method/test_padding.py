"""Batches of texts of different lengths: padding is left out if the model does not depend on it."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from interp_plugin import InformationLoss, LayerInformationLoss, Solver
from interp_plugin.method.perturbation import FULL, alike, lengths_of

FAST = Solver(draws=8, iterations=3)
LENGTHS = [3, 12, 4, 11, 7]
MASK = torch.arange(12) < torch.tensor(LENGTHS).unsqueeze(1)
IDS = torch.randint(1, 30, MASK.shape, generator=torch.Generator().manual_seed(3)) * MASK


class Encoder(nn.Module):
    """Embeds, attends and pools; counts the positions that it is run on."""

    def __init__(self, feels_padding: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(30, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.feels_padding = feels_padding
        self.shapes: list[tuple[int, int]] = []
        self.eval()

    def embedded(self, x: Tensor, mask: Tensor) -> Tensor:
        self.shapes.append((x.shape[0], x.shape[1]))
        states = self.layer(x, src_key_padding_mask=~mask.bool())
        real = torch.ones_like(mask) if self.feels_padding else mask
        return (states * real.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)

    def forward(self, ids: Tensor, mask: Tensor, *more: Any) -> Tensor:
        return self.embedded(self.embedding(ids), mask)

    @property
    def positions(self) -> int:
        return sum(rows * length for rows, length in self.shapes)


def fit(model: Encoder, ids: Tensor = IDS, mask: Tensor = MASK, **given: Any) -> Any:
    state_layer = given.pop("state_layer", None)
    call = {"additional_forward_args": (mask.long(),), "token_mask": mask, "state_std": 1.0, "solver": FAST}
    return LayerInformationLoss(model, model.embedding, state_layer).fit(ids, **{**call, **given})


@pytest.mark.parametrize("of_layer", [False, True])
def test_a_ragged_batch_is_its_single_texts_and_runs_little_padding(of_layer: bool) -> None:
    model = Encoder()
    state_layer = model.layer if of_layer else None
    batch = fit(model, state_layer=state_layer)
    # the first run has full length, and shorter lengths are tested against it
    assert model.shapes[:3] == [(5, 12), (1, 12), (1, 7)]
    assert model.positions < 0.8 * batch.n_forward.sum() * 12
    assert sum(rows for rows, _ in model.shapes) == batch.n_forward.sum()
    assert {length for _, length in model.shapes} == {12, 7, 4, 3}
    for row, length in enumerate(LENGTHS):
        alone = fit(model, IDS[row : row + 1, :length], MASK[row : row + 1, :length], state_layer=state_layer)
        torch.testing.assert_close(batch.sigma[row, :length], alone.sigma[0], rtol=1e-4, atol=0)
        torch.testing.assert_close(batch.distortion[row], alone.distortion[0], rtol=1e-4, atol=0)
        assert batch.n_backward[row] == alone.n_backward[0]
        assert batch.at_cap[row, length:].all()


def test_noise_in_embeddings_leaves_padding_out_too() -> None:
    model = Encoder()
    embeddings = model.embedding(IDS).detach()
    call = {"additional_forward_args": (~MASK,), "token_mask": MASK, "max_sigma": 9.0, "solver": FAST}
    method = InformationLoss(lambda x, padding: model.embedded(x, ~padding))  # the model knows the padding
    batch = method.attribute(embeddings, **call)
    assert {length for _, length in model.shapes} == {12, 7, 4, 3}
    for row, length in enumerate(LENGTHS):
        one = slice(row, row + 1)
        call["additional_forward_args"], call["token_mask"] = (~MASK[one, :length],), MASK[one, :length]
        alone = method.attribute(embeddings[one, :length], **call)
        torch.testing.assert_close(batch[one, :length], alone, rtol=1e-4, atol=1e-4)


def to_the_right(x: Tensor) -> Tensor:
    """The rows with their padding before the tokens, as tokenizers of decoders pad."""
    return torch.stack([row.roll(12 - length, 0) for row, length in zip(x, LENGTHS)])


@pytest.mark.parametrize("of_layer, selector", [(False, None), (True, None), (True, (slice(None), slice(3)))])
def test_padding_before_the_tokens_is_padding_after_them(of_layer: bool, selector: Any) -> None:
    """Noise draws belong to positions, counted from the first token."""
    model = Encoder()
    given = {"state_layer": model.layer if of_layer else None, "neuron_selector": selector}
    after = fit(model, **given)
    before = fit(model, to_the_right(IDS), to_the_right(MASK), **given)
    assert torch.equal(before.token_mask, to_the_right(MASK))
    for name in ("sigma", "standard_error", "residual"):
        expected = to_the_right(getattr(after, name))
        torch.testing.assert_close(getattr(before, name), expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(before.n_backward, after.n_backward)
    torch.testing.assert_close(before.sigma.log(), to_the_right(after.sigma).log(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("score", ["loss", "kept", "signed"])
def test_scores_of_embeddings_are_in_place_whichever_side_is_padded(score: Any) -> None:
    model = Encoder()
    method, embeddings = InformationLoss(model.embedded), model.embedding(IDS).detach()
    call = {"target": 1, "score": score, "solver": FAST, "input_std": 1.0}
    after = method.attribute(embeddings, additional_forward_args=(MASK.long(),), **call)
    mask = to_the_right(MASK).long()
    before = method.attribute(to_the_right(embeddings), additional_forward_args=(mask,), **call)
    torch.testing.assert_close(before, to_the_right(after), rtol=1e-4, atol=1e-4)


def test_a_selector_or_unit_of_single_positions_is_of_the_models_own() -> None:
    model, ids, mask = Encoder(), to_the_right(IDS), to_the_right(MASK)
    last = fit(model, ids, mask, state_layer=model.layer, neuron_selector=-1)
    called = fit(model, ids, mask, state_layer=model.layer, neuron_selector=lambda state: state[:, -1])
    assert torch.equal(last.sigma, called.sigma)
    x, two = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([[0, 0, 1, 1]])
    unit = torch.tensor([1.0, 2.0, 4.0, 16.0]).unsqueeze(1)
    [sigma] = InformationLoss(lambda x: 9 * x).fit(x, token_mask=two, state_std=unit, max_sigma=99.0).sigma
    torch.testing.assert_close(sigma[3] / sigma[2], torch.tensor(4.0))


@pytest.mark.parametrize(
    "given",
    [
        {"additional_forward_args": (MASK.long(), torch.zeros(5, 12, 12))},
        {"additional_forward_args": (MASK.long(), torch.arange(12))},
        {"additional_forward_args": (MASK.long(), [0] * 12)},
        {"additional_forward_args": (torch.ones_like(MASK),)},
        {"feature_mask": torch.arange(12).unsqueeze(-1).expand(12, 8).unsqueeze(0)},
    ],
    ids=["square argument", "positions", "list", "not told", "feature mask"],
)
def test_models_that_may_depend_on_the_padded_length_run_at_it(given: dict[str, Any]) -> None:
    model = Encoder()
    fit(model, **given)
    assert {length for _, length in model.shapes} == {12}


def test_a_model_that_depends_on_its_padding_runs_with_it() -> None:
    model = Encoder(feels_padding=True)
    found = fit(model)
    assert model.shapes[2] == (1, 7)  # was tested
    assert {length for _, length in model.shapes[3:]} == {12}
    model.shapes.clear()
    untold = fit(model, additional_forward_args=(MASK.long(), [0] * 12))
    assert torch.equal(found.sigma, untold.sigma)
    assert (found.n_forward - untold.n_forward).tolist() == [0, 0, 0, 0, 2]


def same_as_whole(forward: Callable[..., Tensor], lengths: list[int], **given: Any) -> set[int]:
    """Lengths that ``forward``, (ids, mask) -> state, is run at; its fit must be that of the padded batch."""
    seen = set()

    def watched(ids: Tensor, mask: Tensor, *untold: Any) -> Tensor:
        seen.add(ids.shape[1])
        return forward(ids, mask)

    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    ids = torch.randint(1, 30, mask.shape, generator=torch.Generator().manual_seed(0)) * mask
    call = {"token_mask": mask, "state_std": 0.1, "max_sigma": 50.0, "solver": FAST, **given}
    method = LayerInformationLoss(watched, EMBEDDING)
    cut = method.fit(ids, additional_forward_args=(mask.long(),), **call)
    lengths_run = set(seen)
    whole = method.fit(ids, additional_forward_args=(mask.long(), [0]), **call)
    torch.testing.assert_close(cut.sigma, whole.sigma, rtol=1e-4, atol=0)
    return lengths_run


torch.manual_seed(0)
EMBEDDING = nn.Embedding(30, 8)
LAYER = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
CONVOLUTION, HEAD = nn.Conv1d(8, 16, 2, stride=2), nn.Linear(16, 40)


def pairs_of_tokens(ids: Tensor, mask: Tensor) -> Tensor:
    """At an odd length the last token has no pair and would be ignored."""
    states = CONVOLUTION((EMBEDDING(ids) * mask.unsqueeze(-1)).transpose(1, 2)).transpose(1, 2).tanh()
    real = mask[:, : 2 * states.shape[1]].reshape(len(mask), -1, 2).amax(2).unsqueeze(-1)
    return HEAD((states * real).sum(1) / real.sum(1))


def test_only_tested_lengths_are_run() -> None:
    assert same_as_whole(pairs_of_tokens, [12, 11, 11, 11, 4]) == {12, 4}


def blocks_of_four(ids: Tensor, mask: Tensor) -> Tensor:
    x = EMBEDDING(ids) * mask.unsqueeze(-1)
    return x.reshape(len(x), x.shape[1] // 4, 4, 8).tanh().sum((1, 2))


def test_lengths_stay_when_examples_leave_the_batch() -> None:
    assert same_as_whole(blocks_of_four, [16, 8, 7]) == {16, 8}


def attended(ids: Tensor, mask: Tensor) -> Tensor:
    return LAYER(EMBEDDING(ids), src_key_padding_mask=mask == 0)


def test_cut_arguments_are_contiguous() -> None:
    def viewed(ids: Tensor, mask: Tensor) -> Tensor:
        states = attended(ids, mask)
        return (states.reshape(-1, 8) * mask.view(-1, 1)).view(states.shape).sum(1)

    assert same_as_whole(viewed, [12, 4]) == {12, 4}


def test_a_state_that_squeezes_single_rows_is_run_at_full_length() -> None:
    def squeezed(ids: Tensor, mask: Tensor) -> Tensor:
        return (attended(ids, mask) * mask.unsqueeze(-1)).sum((1, 2)).unsqueeze(1).squeeze()

    assert 12 in same_as_whole(squeezed, [12, 4])
    assert 12 in same_as_whole(squeezed, [12, 5, 5])


def test_a_selector_may_squeeze() -> None:
    given = {"neuron_selector": lambda state: state[:, 0, 0].squeeze()}
    assert 12 in same_as_whole(attended, [12, 4], **given)


def test_a_state_padded_at_some_lengths_only_is_whole() -> None:
    def at_powers_of_two(ids: Tensor, mask: Tensor) -> Tensor:
        states = attended(ids, mask)
        size = 2 ** math.ceil(math.log2(ids.shape[1]))
        return nn.functional.pad(states, (0, 0, 0, size - ids.shape[1]))

    lengths = same_as_whole(at_powers_of_two, [16, 10, 4])
    assert 16 in lengths


def test_a_model_that_cannot_run_shorter_runs_whole() -> None:
    class Fixed(Encoder):
        def forward(self, ids: Tensor, mask: Tensor, *more: Any) -> Tensor:
            if ids.shape[1] != 12:
                raise RuntimeError("12 tokens, please")
            return super().forward(ids, mask)

    assert fit(Fixed()).converged.shape == (5,)


def test_padding_before_the_text_stays() -> None:
    model = Encoder()
    fit(model, IDS.flip(1), MASK.flip(1))
    assert {length for _, length in model.shapes} == {12}


def test_an_error_names_the_example_of_the_batch() -> None:
    class Breaks(Encoder):
        def embedded(self, x: Tensor, mask: Tensor) -> Tensor:
            state = super().embedded(x, mask)
            broken = state.clone()
            broken[mask.sum(1) == 4] *= torch.nan
            return broken if x.requires_grad else state

    with pytest.raises(ValueError, match=r"infinite values for example 2\b"):
        fit(Breaks())


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12))
def test_alike_puts_every_example_in_one_group_of_similar_lengths(lengths: list[int]) -> None:
    found = alike(lengths)
    assert sorted(index for of in found for index in of) == list(range(len(lengths)))
    for of in found:
        own = [lengths[index] for index in of]
        assert max(own) == own[0] and min(own) >= FULL * own[0]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 4), st.integers(9, 30))
def test_alike_limits_the_examples_and_tokens_of_a_group(lengths: list[int], size: int, tokens: int) -> None:
    found = alike(lengths, 1.0, size, tokens)
    for of in found:
        assert len({lengths[index] for index in of}) == 1
        assert len(of) <= size and len(of) * lengths[of[0]] <= tokens
    for of, following in pairwise(found):
        if lengths[of[0]] == lengths[following[0]]:
            assert len(of) == size or (len(of) + 1) * lengths[of[0]] > tokens


@given(st.lists(st.integers(0, 6), min_size=1, max_size=5))
def test_lengths_are_only_known_for_padding_at_the_end(lengths: list[int]) -> None:
    mask = torch.arange(6) < torch.tensor(lengths).unsqueeze(1)
    assert (found := lengths_of(mask)) is not None and found.tolist() == lengths
    flipped: Callable[[], Tensor | None] = lambda: lengths_of(mask.flip(1))  # noqa: E731
    assert (flipped() is None) == any(0 < length < 6 for length in lengths)
