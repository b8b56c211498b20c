"""Texts, questions and answers of a comparison study."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_plain import cnn, lstm, tokenizer
from torch import Tensor, nn

from interp_plugin import huggingface
from interp_plugin.comparison.interface import Answer, Inputs, Method, Metric, Trial, seeded
from interp_plugin.huggingface import HuggingFaceModel
from interp_plugin.text.models import OUTPUT, PlainModel
from interp_plugin.text.states import State

MODEL = HuggingFaceModel(*huggingface.load(huggingface.default_model_path()))
TEXT = "a good film , not a bad one"
INPUTS = Inputs(MODEL, MODEL.encode(TEXT))
WORDS = INPUTS.length - 2


def logits(text: str, **settings: Tensor) -> Tensor:
    """By transformers alone."""
    fed = dict(MODEL.tokenizer(text, return_tensors="pt")) | settings
    with torch.no_grad():
        return torch.as_tensor(MODEL.model(**fed).logits[0])


def all_but(*removed: int) -> Tensor:
    """(1, T); places count from the first word."""
    kept = torch.ones(1, INPUTS.length, dtype=torch.bool)
    kept[0, [place + 1 for place in removed]] = False
    return kept


def test_the_answer_about_a_class_is_its_log_odds() -> None:
    scores = logits(TEXT)
    answer = Answer(INPUTS, 1).of_arguments(*INPUTS.arguments)
    assert torch.allclose(answer, scores[1] - scores[0], atol=1e-5)
    assert torch.allclose(answer.sigmoid(), scores.softmax(0)[1], atol=1e-6)


def test_log_odds_are_against_all_other_classes() -> None:
    model = lstm()
    inputs = Inputs(model, model.encode("it was good"))
    shares = model(*inputs.arguments)[0].softmax(0)
    for target, share in enumerate(shares):
        assert torch.allclose(
            Answer(inputs, target).of_arguments(*inputs.arguments)[0].sigmoid(), share, atol=1e-6
        )


@settings(deadline=None)  # the first example loads the model
@given(st.sets(st.integers(0, WORDS - 1)))
def test_a_word_removed_by_a_mask_is_the_mask_token(removed: set[int]) -> None:
    words = TEXT.split()
    for place in removed:
        words[place] = "[MASK]"
    scores = logits(" ".join(words))
    assert torch.allclose(
        Answer(INPUTS, 1).of_kept(all_but(*removed), "mask"), scores[1] - scores[0], atol=1e-4
    )


@settings(deadline=None)  # the first example loads the model
@given(st.sets(st.integers(0, WORDS - 1), max_size=WORDS - 1))
def test_deletion_closes_the_gap_in_the_positions(removed: set[int]) -> None:
    scores = logits(" ".join(word for place, word in enumerate(TEXT.split()) if place not in removed))
    assert torch.allclose(
        Answer(INPUTS, 1).of_kept(all_but(*removed), "delete"), scores[1] - scores[0], atol=1e-4
    )


def test_a_word_hidden_from_attention_keeps_its_position() -> None:
    kept = all_but(1, 5)
    scores = logits(TEXT, attention_mask=kept.long())
    assert torch.allclose(Answer(INPUTS, 1).of_kept(kept, "attention"), scores[1] - scores[0], atol=1e-4)


@pytest.mark.parametrize("removal", ["mask", "delete", "attention"])
def test_many_variants_are_answered_as_one_by_one(removal: str) -> None:
    torch.manual_seed(0)
    kept = (torch.rand(70, INPUTS.length) < 0.5) | ~INPUTS.players
    answer = Answer(INPUTS, 0)
    together = answer.of_kept(kept, removal)
    for row in (0, 33, 69):
        assert torch.allclose(together[row], answer.of_kept(kept[row : row + 1], removal), atol=1e-4)


def test_variants_of_a_model_that_cannot_pad_are_run_one_by_one() -> None:
    model = lstm()
    inputs = Inputs(model, model.encode("the film was bad"))
    kept = torch.tensor([[True, False, True, True], [False, True, False, False]])
    expected = [Answer(Inputs(model, model.encode(text)), 2) for text in ("the was bad", "film")]
    for value, single in zip(Answer(inputs, 2).of_kept(kept, "delete"), expected):
        assert torch.allclose(value, single.of_arguments(*single.inputs.arguments), atol=1e-5)


def test_the_answer_about_a_state_is_minus_its_distance_in_units_of_its_spread() -> None:
    hidden = {}
    layer = MODEL.layers[2]
    handle = layer.layer.register_forward_hook(
        lambda module, args, out: hidden.setdefault("s", []).append(out)
    )
    logits(TEXT)
    logits(TEXT.replace("good", "[MASK]"))
    handle.remove()
    whole, other = (s[0] if isinstance(s, tuple) else s for s in hidden["s"])
    squares = (other - whole).square()
    own = Answer(INPUTS, state=State(2, layer)).of_kept(all_but(1), "mask")
    assert torch.allclose(own, -squares.mean() / whole.square().mean(), rtol=1e-4)
    std = torch.rand(whole.shape[-1]) + 0.5
    given = Answer(INPUTS, state=State(2, layer, state_std=std)).of_kept(all_but(1), "mask")
    assert torch.allclose(given, -(squares / std**2).mean(), rtol=1e-4)
    some = Answer(INPUTS, state=State(2, layer, [3, 5], std)).of_kept(all_but(1), "mask")
    assert torch.allclose(some, -(squares[..., [3, 5]] / std[[3, 5]] ** 2).mean(), rtol=1e-4)


def test_embeddings_give_the_answer_of_their_ids_and_carry_gradients() -> None:
    for answer in (Answer(INPUTS, 1), Answer(INPUTS, state=State(3, MODEL.layers[3]))):
        variant = (torch.where(all_but(1, 4), INPUTS.ids, MODEL.mask_id), *INPUTS.arguments[1:])
        from_ids = answer.of_arguments(*variant)
        changed = INPUTS.embeddings.clone()
        mask = MODEL.embedding.layer(torch.tensor([MODEL.mask_id]))
        changed[0, [2, 5]] = mask.detach()
        changed.requires_grad_()
        value = answer(changed.expand(3, -1, -1))
        assert torch.allclose(value, from_ids.expand(3), atol=1e-5)
        [gradient] = torch.autograd.grad(value.sum(), changed)
        assert gradient.abs().sum() > 0
    assert all(parameter.grad is None for parameter in MODEL.module.parameters())


@pytest.mark.parametrize(
    "removal, inputs, message",
    [
        ("erase", INPUTS, "removal is 'erase'; choose one of 'mask', 'delete', 'attention'"),
        ("mask", Inputs(lstm(), lstm().encode("a film")), "no mask token .* use removal 'delete'"),
        ("attention", Inputs(lstm(), lstm().encode("a film")), "takes no attention mask"),
        ("delete", Inputs(cnn(), cnn().encode("a film")), "no token of the text would be left"),
    ],
)
def test_an_impossible_removal_is_refused_with_the_possible_ones(
    removal: str, inputs: Inputs, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Answer(inputs, 1).of_kept(torch.zeros(1, inputs.length, dtype=torch.bool), removal)


@pytest.mark.parametrize("v", [None, 0.7])
def test_a_state_without_deleted_tokens_is_that_of_those_that_stay(v: float | None) -> None:
    """By transformers alone: each remaining token's vector in the shorter text and in the whole one."""
    label = 2
    std = None if v is None else torch.linspace(v, 2 * v, INPUTS.embeddings.shape[-1])
    answer = Answer(INPUTS, state=State(label, MODEL.layers[label], None, std))
    kept = torch.cat([all_but(0), all_but(1, 3), torch.ones(1, INPUTS.length, dtype=torch.bool)])
    truth = []
    with torch.no_grad():
        [whole] = MODEL.model(INPUTS.ids, output_hidden_states=True).hidden_states[label]
        scale = whole.square().mean().sqrt() if std is None else std
        for row in kept:
            [shorter] = MODEL.model(INPUTS.ids[:, row], output_hidden_states=True).hidden_states[label]
            truth.append(-((shorter - whole[row]) / scale).square().mean())
    assert min(truth) < -1e-3
    assert torch.allclose(answer.of_kept(kept, "delete"), torch.stack(truth), atol=1e-5)


def test_a_pooled_state_has_no_positions() -> None:
    model = cnn()
    inputs = Inputs(model, model.encode("the film was good"))
    kept = torch.tensor([[True, False, True, True]])
    found = Answer(inputs, state=State(OUTPUT, None)).of_kept(kept, "delete")
    with torch.no_grad():
        whole = model(*inputs.arguments)
        shorter = model(*model.collate([model.encode("the was good")])[0])
    assert torch.allclose(found, -(shorter - whole).square().mean() / whole.square().mean(), atol=1e-6)


class Pairs(nn.Module):
    """Reads the means of neighbouring words."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.pool, self.head = nn.Embedding(12, 4), nn.AvgPool1d(2), nn.Linear(4, 2)
        self.pairs = nn.Identity()

    def forward(self, ids: Tensor) -> Tensor:
        pairs = self.pairs(self.pool(self.embedding(ids).transpose(1, 2)).transpose(1, 2))
        scores: Tensor = self.head(pairs.mean(1))
        return scores


def test_a_state_whose_positions_are_not_tokens_does_not_support_deletion() -> None:
    net = Pairs().eval()
    model = PlainModel(net, tokenizer, net.embedding, {"pairs": net.pairs}, ("no", "yes"))
    inputs = Inputs(model, model.encode("the film was good"))
    with pytest.raises(ValueError, match=r"2 positions for 4 tokens.*use removal 'mask' or 'attention'"):
        Answer(inputs, state=State("pairs", net.pairs)).of_kept(torch.ones(1, 4).bool(), "delete")


def test_a_question_is_a_class_or_a_state() -> None:
    for target, state in ((None, None), (1, State(1, MODEL.layers[1]))):
        with pytest.raises(ValueError, match="give one of them"):
            Answer(INPUTS, target, state)


def test_special_tokens_are_ranked_only_on_request() -> None:
    scores = torch.arange(INPUTS.length).float()
    for with_special, expected in ((False, range(WORDS, 0, -1)), (True, range(WORDS + 1, -1, -1))):
        inputs = replace(INPUTS, with_special=with_special)
        assert Trial(inputs, 1, None, Method("x", lambda *q: scores), scores).order() == list(expected)


def test_a_method_draws_from_the_seed_of_the_text_and_not_from_global_ones() -> None:
    noise = Method(
        "noise", lambda inputs, *question: torch.rand(inputs.length) + np.random.rand(), draws=True
    )
    torch.manual_seed(7)
    np.random.seed(7)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = noise(INPUTS, 1, None)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    trial = Trial(INPUTS, 1, None, noise, first)
    assert torch.equal(trial.again(), first)
    assert not torch.equal(trial.again(seed=1), first)


def test_global_seeds_come_back_when_a_method_fails() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError), seeded(0):
        torch.rand(1)
        raise RuntimeError
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "scores, message", [(torch.zeros(3), "shape \\(3,\\)"), (torch.full((INPUTS.length,), torch.nan), "NaN")]
)
def test_scores_that_cannot_be_ranked_are_refused(scores: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Method("broken", lambda *question: scores)(INPUTS, 1, None)


def test_a_trial_reads_the_same_state_of_another_model() -> None:
    other = HuggingFaceModel(*huggingface.load(huggingface.default_model_path()))

    def norms(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
        assert state is not None
        assert any(module is state.site.layer for module in inputs.model.module.modules())
        return torch.zeros(inputs.length)

    trial = Trial(INPUTS, None, State(2, MODEL.layers[2]), Method("norms", norms), torch.zeros(INPUTS.length))
    assert trial.again(model=other).shape == (INPUTS.length,)


def test_methods_and_metrics_declare_what_they_apply_to() -> None:
    state = State(1, MODEL.layers[1])
    for explains, of_class, of_state in (
        ("class", True, False),
        ("state", False, True),
        ("both", True, True),
    ):
        method = Method("x", lambda *question: INPUTS.ids[0], explains=explains)
        metric = Metric("x", lambda trial: 0.0, True, "", explains)
        assert method.can_explain(None) == metric.can_judge(None) == of_class
        assert method.can_explain(state) == metric.can_judge(state) == of_state
