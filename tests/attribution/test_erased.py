"""The learned erasure channel: its estimates against known games, and its attributions in Captum's contract."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import FeatureAblation, LayerIntegratedGradients, NoiseTunnel, TextTokenInput
from captum.metrics import infidelity, sensitivity_max
from captum.testing.attr.helpers.gen_test_utils import get_target_layer
from hypothesis import given, settings
from hypothesis import strategies as st
from test_conformance import (
    BERT,
    IDS,
    Case,
    LSTMClassifier,
    as_tuple,
    cases,
    named,
    normal,
    seeded,
    small_gpt2,
    untouched,
    word_tokenizer,
)
from torch import Tensor

from interp_plugin import InformationErased, InformationLossLLMAttribution, LayerInformationErased, log_odds
from interp_plugin.method.erasure import Erasure, channel, draw_masks, learn_erasure, multilinear

EMBEDDING = BERT.get_input_embeddings()


def own_cases() -> list[Case]:
    """Captum's generated cases except those of neurons, as copies that other tests do not change."""
    return [
        case for case in cases() if not isinstance(case.layer, list) and "Neuron" not in case.theirs.__name__
    ]


def game(damage: Any, n: int, prior: float | Tensor = 0.0, **more: Any) -> Any:
    """Learned from a function of erasures, (R, n) float -> (R,)."""
    priors = torch.as_tensor(prior, dtype=torch.float64).broadcast_to(1, n)
    return learn_erasure(
        torch.ones(1, n, dtype=torch.bool), lambda _, b: damage(b.double()), lambda _: priors, Erasure(**more)
    )


def derivative(damage: Any, p: Tensor, count: int = 200_000) -> Tensor:
    """dDelta/dp_i at p by brute force: each token erased and not, averaged over the others."""
    b = (torch.rand(count, len(p), generator=torch.Generator().manual_seed(1)) < p).double()
    found = []
    for i in range(len(p)):
        with_i, without = b.clone(), b.clone()
        with_i[:, i], without[:, i] = 1, 0
        found.append((damage(with_i) - damage(without)).mean())
    return torch.stack(found)


GAMES = {
    "sum": lambda b: b @ torch.linspace(-1, 2, b.shape[1]).double(),
    "product": lambda b: b[:, 0] * b[:, 1],
    "either": lambda b: 1 - (1 - b[:, 0]) * (1 - b[:, 1]),
    "xor": lambda b: b[:, 0] + b[:, 1] - 2 * b[:, 0] * b[:, 1] + 0.3 * b[:, 2],
}


# The channel


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(0, 2**31), st.sampled_from(["damage", "keep"]))
def test_the_channel_erases_its_share_and_prefers_by_score(n: int, seed: int, side: Any) -> None:
    scores = np.random.default_rng(seed).standard_normal(n)
    p, temperature = channel(scores, side)
    assert p.mean() == pytest.approx(0.3 if side == "damage" else 0.7, abs=1e-6)
    assert (p >= 0.03).all() and (p <= 0.97).all()
    order = p[scores.argsort()]
    assert (np.diff(order) >= 0).all() if side == "damage" else (np.diff(order) <= 0).all()
    if n > 1:  # the stationarity, wherever p is not clamped: all tokens have the same T logit p - s
        inside = (p > 0.031) & (p < 0.969)
        rest = temperature * np.log(p / (1 - p))[inside] - scores[inside]
        assert np.ptp(rest) < 1e-6 if inside.any() else True


def test_masks_are_balanced_in_every_column() -> None:
    p = np.array([0.03, 0.3, 0.5, 0.97])
    masks = np.stack([draw_masks(p, 30, np.random.default_rng(seed)).sum(0) for seed in range(300)])
    assert (abs(masks - 30 * p) < 1).all()
    np.testing.assert_allclose(masks.mean(0), 30 * p, atol=0.15)


@pytest.mark.parametrize("n", [1, 3, 6])
@pytest.mark.parametrize("name", GAMES)
def test_few_tokens_are_enumerated_exactly(name: str, n: int) -> None:
    damage = (lambda b: GAMES["sum"](b)) if n < 3 else GAMES[name]
    fit = game(damage, n)
    p = fit.probability[0].double()
    every = torch.tensor(list(itertools.product([0.0, 1.0], repeat=n))).double()
    weight = (p * every + (1 - p) * (1 - every)).prod(1)
    torch.testing.assert_close(fit.damage[0].double(), weight @ damage(every), rtol=1e-5, atol=1e-6)
    for i in range(n):
        slope = (weight * damage(every) * torch.where(every[:, i] > 0, 1 / p[i], -1 / (1 - p[i]))).sum()
        assert float(fit.score[0, i]) == pytest.approx(float(slope), abs=1e-5)
    assert not fit.standard_error.any() and fit.n_forward.tolist() == [2**n]


def test_the_multilinear_extension_is_linear_in_each_probability() -> None:
    damages, p = np.random.default_rng(0).standard_normal(32), np.full(5, 0.4)
    slopes, value = multilinear(damages, p)
    for i in range(5):
        moved = p.copy()
        moved[i] += 0.1
        assert multilinear(damages, moved)[1] == pytest.approx(value + 0.1 * slopes[i])


@pytest.mark.parametrize("prior", [0.0, 1.0, "truth"])
def test_a_damage_that_adds_up_is_found_exactly(prior: Any) -> None:
    truth = torch.linspace(-1, 2, 12).double()
    fit = game(GAMES["sum"], 12, truth if prior == "truth" else prior)
    torch.testing.assert_close(fit.score[0].double(), truth, rtol=0, atol=2e-3)


@pytest.mark.parametrize("name", GAMES)
def test_scores_are_the_derivative_within_their_standard_errors(name: str) -> None:
    inside = []
    for seed in range(12):
        fit = game(GAMES[name], 12, seed=seed)
        truth = derivative(GAMES[name], fit.probability[0].double(), 4000)
        error = fit.standard_error[0].double().clamp(min=0.02)
        inside.append((fit.score[0] - truth).abs() <= 2 * error)
    assert torch.stack(inside).double().mean() > 0.88


def test_seeds_draw_other_masks_and_a_seed_draws_the_same() -> None:
    found = [game(lambda b: GAMES["xor"](b), 12, seed=seed).score for seed in (0, 0, 1)]
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_damage_and_keep_use_opposite_erasures() -> None:
    damage, keep = (game(GAMES["sum"], 12, side=side).probability[0] for side in ("damage", "keep"))
    assert damage[-1] > 0.8 and damage[0] < 0.1 and keep[-1] < 0.2 and keep[0] > 0.9


def test_an_example_does_not_depend_on_other_examples_or_padding() -> None:
    weights = torch.randn(20, generator=torch.Generator().manual_seed(0)).double()
    damage = lambda _, b: (b.double() * weights[: b.shape[1]]).sum(1).sin()  # noqa: E731
    players = torch.ones(3, 20, dtype=torch.bool)
    players[1, 10:] = False
    players[2, 3:] = False
    prior = lambda rows: weights.expand(len(rows), -1)  # noqa: E731
    together = learn_erasure(players, damage, prior)
    alone = learn_erasure(players[1:2, :10], damage, lambda rows: weights[:10].expand(len(rows), -1))
    assert torch.equal(together.score[1, :10], alone.score[0])
    assert torch.equal(together.standard_error[1, :10], alone.standard_error[0])
    assert not together.score[1, 10:].any() and together.n_forward.tolist() == [92, 92, 8]


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="side is 'both'"):
        Erasure(side="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="passes is 12; give at least 20"):
        Erasure(passes=12)
    with pytest.raises(ValueError, match="example 0 with tokens erased"):
        game(lambda b: b.sum(1) / 0, 8)


# Captum's contract


def test_a_linear_model_is_captums_feature_ablation() -> None:
    weights, x, baseline = normal(12, 3, seed=1), normal(2, 12, 3), normal(12, 3, seed=2)
    forward = lambda x: (x * weights).sum((1, 2))  # noqa: E731
    tokens = torch.arange(12).repeat_interleave(3).reshape(1, 12, 3)
    truth = FeatureAblation(forward).attribute(x, baseline[None], feature_mask=tokens)
    found = InformationErased(forward).attribute(x, baseline, return_input_shape=False)
    torch.testing.assert_close(found, truth[..., 0], rtol=1e-3, atol=1e-3)
    shares = InformationErased(forward).attribute(x, baseline)
    assert shares.shape == x.shape
    torch.testing.assert_close(shares.sum(-1), found)


def test_a_layers_scores_sum_to_what_integrated_gradients_sum_to_where_the_model_is_linear() -> None:
    embed = seeded(lambda: torch.nn.Embedding(30, 4))
    forward = lambda ids: embed(ids).sum(1)  # noqa: E731
    ids = torch.arange(10)[None]
    mine = LayerInformationErased(forward, embed).attribute(ids, 29, target=2, return_input_shape=False)
    theirs = LayerIntegratedGradients(forward, embed).attribute(ids, torch.full_like(ids, 29), target=2)
    torch.testing.assert_close(mine, theirs.sum(-1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("case", **named(own_cases()))
def test_captums_generated_cases_run_and_leave_no_trace(case: Case) -> None:
    arguments = {key: value for key, value in case.arguments.items() if key not in ("solver", "max_sigma")}
    if case.layer is None:
        method: Any = InformationErased(case.model)
    else:
        method = LayerInformationErased(case.model, get_target_layer(case.model, case.layer))
    with untouched(case.model, generators=not case.tunnel):
        found = (NoiseTunnel(method) if case.tunnel else method).attribute(**arguments)
    for part in as_tuple(found):
        assert part.isfinite().all() and part.dtype == torch.float32


def test_a_batch_with_padding_is_its_single_sentences() -> None:
    ids = torch.tensor([[3, 14, 15, 9, 2, 7, 11, 0, 0], [6, 5, 3, 5, 8, 1, 4, 10, 12]])
    mask = torch.tensor([[1] * 7 + [0] * 2, [1] * 9])

    def forward(ids: Tensor, attention_mask: Tensor) -> Tensor:
        return BERT(ids, attention_mask=attention_mask).logits

    method = LayerInformationErased(forward, EMBEDDING)
    for ways in (("mask",), ("mask", "attention"), ("delete",)):
        batch = method.attribute(
            ids, 4, target=1, additional_forward_args=(mask,), ways=ways, return_input_shape=False
        )
        alone = method.attribute(
            ids[:1, :7],
            4,
            target=1,
            additional_forward_args=(mask[:1, :7],),
            ways=ways,
            return_input_shape=False,
        )
        torch.testing.assert_close(batch[:1, :7], alone, rtol=1e-3, atol=1e-4)
        assert not batch[0, 7:].any() and batch[1].abs().sum() > 0


@pytest.mark.parametrize("way", ["attention", "delete"])
def test_hiding_or_deleting_tokens_equals_the_model_without_them(way: Any) -> None:
    ids, mask = torch.tensor([[2, 3, 14, 15, 9, 7]]), torch.ones(1, 6, dtype=torch.long)
    baselines = torch.tensor([[2, 4, 4, 4, 4, 7]])  # the first and last are never erased
    reading = lambda ids, attention_mask: BERT(ids, attention_mask=attention_mask).logits  # noqa: E731
    fit = LayerInformationErased(reading, EMBEDDING).fit(
        ids, baselines, target=0, additional_forward_args=(mask,), ways=(way,)
    )
    damages = []
    with torch.no_grad():
        whole = reading(ids, mask)[0, 0]
        for number in range(16):
            kept = torch.tensor([True, *[not number >> i & 1 for i in range(4)], True])
            if way == "delete":
                answer = reading(ids[:, kept], mask[:, kept])
            else:
                answer = reading(torch.where(kept, ids, baselines), mask * kept)
            damages.append(float(whole - answer[0, 0]))
    slopes, _ = multilinear(np.array(damages), fit.probability[0, 1:5].double().numpy())
    np.testing.assert_allclose(fit.score[0, 1:5], slopes, rtol=1e-3, atol=1e-5)
    assert not fit.score[0, [0, 5]].any() and fit.token_mask[0].tolist() == [False, *[True] * 4, False]


def test_the_damage_of_a_state_of_several_numbers_is_its_distortion() -> None:
    method = LayerInformationErased(lambda ids: BERT(ids).logits, EMBEDDING, BERT.bert.encoder.layer[0])
    with untouched(BERT):
        fit = method.fit(IDS, 4)
    assert (fit.damage > 0).all() and fit.score.shape == IDS.shape


def test_without_a_baseline_the_mean_of_the_table_replaces_erased_tokens() -> None:
    model = seeded(LSTMClassifier)
    found = LayerInformationErased(model, model.embedding).attribute(IDS, target=0, return_input_shape=False)
    mean = model.embedding.weight.detach().mean(0)
    same = LayerInformationErased(model, model.embedding).attribute(
        IDS, mean, target=0, return_input_shape=False
    )
    assert torch.equal(found, same) and (found != 0).any()


def test_captums_metrics_take_the_scores() -> None:
    x, method = normal(2, 8), InformationErased(seeded(lambda: torch.nn.Linear(8, 3)))
    scores = method.attribute(x, target=1)
    perturb = lambda inputs, *_: (0.01 * torch.randn_like(inputs), inputs - 0.01)  # noqa: E731
    assert infidelity(method.forward_func, perturb, x, scores, target=1).shape == (2,)
    same = lambda inputs, *_: inputs  # noqa: E731
    assert sensitivity_max(method.attribute, x, same, target=1).max() < 1e-6  # other numbers of rows


def test_ways_that_do_not_apply_are_refused() -> None:
    method = LayerInformationErased(lambda ids: BERT(ids).logits, EMBEDDING)
    with pytest.raises(ValueError, match="no argument of the model is an attention mask"):
        method.attribute(IDS, 4, target=0, ways=("mask", "attention"))
    with pytest.raises(ValueError, match="ways is 'blur'"):
        method.attribute(IDS, 4, target=0, ways="blur")
    at_layer = LayerInformationErased(lambda ids: BERT(ids).logits, EMBEDDING, BERT.bert.encoder.layer[0])
    ids = torch.cat([IDS[:, :1], IDS], 1)
    keep_first = torch.cat([ids[:, :1], torch.full_like(IDS, 4)], 1)
    with pytest.raises(ValueError, match="with tokens left out the state has shape"):
        at_layer.attribute(ids, keep_first, ways="delete")
    with pytest.raises(ValueError, match=r"baselines of shape .* do not broadcast"):
        method.attribute(IDS, torch.zeros(3, 2, dtype=torch.long), target=0)


def test_baselines_replace_all_tokens_if_none_would_be_left() -> None:
    ids = IDS[:1, :2]
    method = LayerInformationErased(lambda ids: BERT(ids).logits, EMBEDDING)
    fit = method.fit(ids, 4, target=0, ways="delete")
    with torch.no_grad():
        rows = [
            ids,
            ids[:, 1:],
            ids[:, :1],
            torch.full_like(ids, 4),
        ]  # erased: neither, the first, the second, both
        answers = torch.stack([BERT(row).logits[0, 0] for row in rows]).double()
    slopes, _ = multilinear((answers[0] - answers).numpy(), fit.probability[0].double().numpy())
    np.testing.assert_allclose(fit.score[0], slopes, rtol=1e-3, atol=1e-5)


def test_tokens_equal_to_their_baseline_have_score_0() -> None:
    found = LayerInformationErased(lambda ids: BERT(ids).logits, EMBEDDING).attribute(IDS, IDS, target=0)
    assert not found.any()


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(1, 5), st.integers(0, 2**31))
def test_log_odds_are_those_of_the_softmax(classes: int, seed: int) -> None:
    scores = torch.randn(3, classes, generator=torch.Generator().manual_seed(seed)).double()
    if classes == 1:
        assert torch.equal(log_odds(scores, 0), scores[:, 0])
    else:
        torch.testing.assert_close(log_odds(scores, 0).sigmoid(), scores.softmax(1)[:, 0])


def test_the_scores_of_a_language_model_are_losses_of_log_probability() -> None:
    model, tokenizer = seeded(small_gpt2), word_tokenizer()
    embedding, prompt = model.get_input_embeddings(), TextTokenInput("the film was", tokenizer)
    method = InformationLossLLMAttribution(LayerInformationErased(model, embedding), tokenizer)
    with untouched(model):
        result = method.attribute(prompt, target="very good", passes=40)
    log_probability = LayerInformationErased(lambda ids: model(ids).logits[:, -1].log_softmax(1), embedding)
    direct = log_probability.attribute(prompt.inp_tensor, target=7, passes=40)
    torch.testing.assert_close(result.token_attr[:1], direct.sum(-1), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(result.seq_attr, result.token_attr.sum(0), rtol=1e-3, atol=1e-4)
