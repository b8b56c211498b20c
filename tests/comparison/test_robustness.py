"""Infidelity and sensitivity against Captum called directly; agreement with other seeds, models, weights."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import captum.metrics
import pytest
import torch
from scipy.stats import spearmanr
from tiny_bag import SIZE, inputs_of, state_of, trial_of
from tiny_models import tiny
from tiny_plain import cnn, lstm
from torch import Tensor, nn

from interp_plugin import huggingface
from interp_plugin.comparison.interface import Answer, Inputs, Method, Trial, seeded
from interp_plugin.comparison.metrics import METRICS
from interp_plugin.comparison.robustness import (
    EMBEDDINGS,
    infidelity,
    max_sensitivity,
    moved,
    perturbation,
    randomised,
    rank_correlation,
    seed_stability,
    spread,
    stages,
    two_models,
    weight_randomisation,
)
from interp_plugin.huggingface import HuggingFaceModel
from interp_plugin.text.models import TextModel
from interp_plugin.text.states import State

TEXT = "a funny film with a dull ending"


@cache
def sentence() -> Inputs:
    model = HuggingFaceModel(*huggingface.load(huggingface.default_model_path()))
    return Inputs(model, model.encode(TEXT))


def slope(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """The norm of the gradient; for a state, whose gradient is 0, that of its distance one step away."""
    step = 0.0 if state is None else 0.1 * inputs.embeddings.std()
    points = (inputs.embeddings + step).requires_grad_()
    [gradient] = torch.autograd.grad(Answer(inputs, target, state)(points).sum(), points)
    return gradient[0].norm(dim=-1)


def chance(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    return torch.rand(inputs.length)


SLOPE, CHANCE = Method("slope", slope), Method("chance", chance, draws=True)


def asked(method: Method, inputs: Inputs, state: State | None = None) -> Trial:
    target = 1 if state is None else None
    return Trial(inputs, target, state, method, method(inputs, target, state))


def third_layer() -> State:
    return State(3, sentence().model.layers[3])


# -- infidelity


@pytest.mark.parametrize("kind", ["mask", "noise"])
@pytest.mark.parametrize("state", [None, third_layer()])
def test_infidelity_is_captums_as_a_share_of_the_squared_change(kind, state) -> None:  # type: ignore[no-untyped-def]
    trial = asked(SLOPE, sentence(), state)
    answer, whole, changes = trial.answer, sentence().embeddings, []

    def forward(embeddings: Tensor) -> Tensor:
        with torch.no_grad():
            return answer.scaled(answer(embeddings))

    def recorded(embeddings: Tensor) -> tuple[Tensor, Tensor]:
        factor, perturbed = perturbation(sentence(), kind)(embeddings)
        changes.append(forward(whole) - forward(perturbed))
        return factor, perturbed

    scores = torch.where(sentence().players, trial.scores, 0.0)
    with seeded(sentence().seed):
        direct = captum.metrics.infidelity(
            forward, recorded, whole, spread(scores, whole.shape[2]), n_perturb_samples=20, normalize=True
        )
    share = float(direct) / float(torch.cat(changes).square().mean())
    assert infidelity(trial, kind, draws=20) == pytest.approx(share, rel=1e-4)


def test_scores_that_add_up_to_the_states_distance_have_no_infidelity() -> None:
    """Words that are masked move a bag's state by the sum of their own sizes."""
    inputs = inputs_of([1.0, -2.0, 0.5, 3.0, 0.7])
    sizes = inputs.embeddings[0].square().sum(1)
    metric = METRICS["infidelity (mask)"]
    assert metric(trial_of(inputs, sizes, state_of(inputs))) == pytest.approx(0.0, abs=1e-6)
    assert metric(trial_of(inputs, 70 * sizes, state_of(inputs))) == pytest.approx(0.0, abs=1e-6)
    assert metric(trial_of(inputs, sizes.max() - sizes, state_of(inputs))) > 0.1  # type: ignore[operator]


def test_scores_of_zero_have_infidelity_1() -> None:
    inputs = inputs_of([1.0, -2.0, 0.5])
    assert METRICS["infidelity (mask)"](trial_of(inputs, [0.0, 0.0, 0.0])) == pytest.approx(1.0)


def test_infidelity_perturbs_half_of_the_players_and_nothing_else() -> None:
    factor, perturbed = perturbation(sentence(), "noise")(sentence().embeddings.expand(30, -1, -1))
    spoilt = (perturbed != sentence().embeddings).any(-1)
    assert torch.equal(factor, spoilt.unsqueeze(-1).expand_as(factor).float())
    assert spoilt.sum(1).tolist() == [4] * 30  # of 7
    assert not spoilt[:, ~sentence().players].any()


def test_equal_shares_sum_to_the_score() -> None:
    scores = torch.tensor([1.0, -3.0, 0.5])
    assert torch.allclose(spread(scores, 7).sum(-1), scores)


# -- sensitivity


def test_max_sensitivity_equals_captums_for_the_same_function_of_embeddings() -> None:
    inputs = sentence()
    answer = Answer(inputs, 1)

    def direct(points: tuple[Tensor] | Tensor) -> tuple[Tensor] | Tensor:
        given = points[0] if isinstance(points, tuple) else points
        with torch.enable_grad():
            leaves = torch.where(inputs.players.unsqueeze(1), given, inputs.embeddings)  # special tokens stay
            leaves = leaves.detach().requires_grad_()
            [gradient] = torch.autograd.grad(answer(leaves).sum(), leaves)
        norms = gradient.norm(dim=-1) * inputs.players
        return (norms,) if isinstance(points, tuple) else norms

    with seeded(inputs.seed):
        expected = captum.metrics.sensitivity_max(
            direct,
            inputs.embeddings,
            perturb_radius=0.1 * float(inputs.embeddings.std()),
            n_perturb_samples=4,
        )
    found = max_sensitivity(asked(SLOPE, inputs), samples=4)
    assert found == pytest.approx(float(expected), rel=1e-3)
    assert found > 0


def test_scores_that_ignore_the_embeddings_have_no_sensitivity() -> None:
    assert METRICS["max-sensitivity"](asked(CHANCE, sentence())) == 0
    assert METRICS["max-sensitivity"](asked(CHANCE, sentence(), third_layer())) == 0


FAMILIES = [
    ("bert", "BertForSequenceClassification"),
    ("roberta", "RobertaForSequenceClassification"),
    ("albert", "AlbertForSequenceClassification"),
    ("modernbert", "ModernBertForSequenceClassification"),
    ("t5", "T5ForSequenceClassification"),
    ("bart", "BartForSequenceClassification"),
    ("gpt2", "GPT2ForSequenceClassification"),
    ("gemma", "GemmaForSequenceClassification"),
]


def family(name: str, kind: str) -> Inputs:
    model = tiny(name, kind)
    return Inputs(model, model.encode("the film was good"))


@pytest.mark.parametrize("name, kind", FAMILIES)
def test_moved_words_are_their_embeddings_and_the_offset(name: str, kind: str) -> None:
    inputs = family(name, kind)
    offsets = 0.3 * torch.randn(inputs.embeddings.shape[1:], generator=torch.Generator().manual_seed(0))
    offsets[~inputs.players] = 0
    expected = Answer(inputs, 1).of_embeddings(inputs.embeddings + offsets)
    with moved(inputs, offsets) as other:
        assert torch.allclose(other.embeddings, inputs.embeddings + offsets, atol=1e-6)
        every = torch.ones(1, inputs.length, dtype=torch.bool)
        assert torch.allclose(Answer(other, 1).of_kept(every, "attention"), expected, atol=1e-5)
    again = replace(inputs).embeddings
    assert torch.equal(again, inputs.embeddings)


def test_an_offset_moves_with_its_word_under_deletion_and_vanishes_under_a_mask() -> None:
    inputs = inputs_of([1.0, -2.0, 0.5])
    offsets = torch.zeros(3, SIZE)
    offsets[:, 0] = torch.tensor([10.0, 20.0, 30.0])
    kept = torch.tensor([[True, True, True], [False, True, True], [False, False, True]])
    with moved(inputs, offsets) as other:
        for removal in ("delete", "mask", "attention"):
            found = Answer(other, 1).of_kept(kept, removal)  # type: ignore[arg-type]
            assert found.tolist() == pytest.approx([59.5, 48.5, 30.5])


def test_special_tokens_are_not_moved() -> None:
    with moved(sentence(), torch.ones(sentence().embeddings.shape[1:])) as other:
        change = other.embeddings - sentence().embeddings
    assert torch.allclose(change[0], sentence().players.float().unsqueeze(1).expand_as(change[0]), atol=1e-6)


def test_no_word_stays_moved_after_an_error() -> None:
    inputs = inputs_of([1.0, -2.0])
    with pytest.raises(RuntimeError), moved(inputs, torch.ones(2, SIZE)):
        raise RuntimeError
    module = inputs.model.module
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


# -- seeds and models


def test_deterministic_methods_agree_with_themselves() -> None:
    assert METRICS["seed stability"](asked(SLOPE, sentence())) == pytest.approx(1)
    assert METRICS["seed stability"](asked(SLOPE, sentence(), third_layer())) == pytest.approx(1)


def test_seed_stability_is_spearmans_correlation_over_the_players() -> None:
    trial = asked(CHANCE, sentence())
    players = sentence().players
    found = []
    for seed in (1, 2, 3):
        torch.manual_seed(seed)
        found.append(spearmanr(trial.scores[players], torch.rand(sentence().length)[players]).statistic)
    assert seed_stability(trial, others=3) == pytest.approx(sum(found) / 3)


def test_scores_that_are_all_ties_have_no_rank_correlation() -> None:
    assert METRICS["seed stability"](trial_of(inputs_of([1.0, 2.0]), [3.0, 3.0])) is None


def test_a_ranking_is_lost_where_the_other_scores_are_all_ties() -> None:
    assert rank_correlation(torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3)) == 0.0


def test_a_model_agrees_with_its_copy_also_of_a_calibrated_state() -> None:
    inputs = sentence()
    copy = randomised(inputs.model, [])
    std = torch.linspace(0.1, 3, 192)
    for state in (None, State(3, inputs.model.layers[3], None, std)):
        assert two_models(copy)(asked(SLOPE, inputs, state)) == pytest.approx(1)


def test_two_models_is_spearmans_correlation_of_the_scores_for_each() -> None:
    inputs = family("bert", "BertForSequenceClassification")
    torch.manual_seed(7)
    other = randomised(inputs.model, list(dict(inputs.model.module.named_parameters())), seed=7)
    theirs = SLOPE(Inputs(other, other.encode(inputs.encoding.text)), 1, None)
    trial = asked(SLOPE, inputs)
    expected = spearmanr(trial.scores[inputs.players], theirs[inputs.players]).statistic
    assert two_models(other)(trial) == pytest.approx(expected)


def test_models_that_cut_texts_differently_are_refused() -> None:
    with pytest.raises(ValueError, match="give two models with the same tokenizer"):
        two_models(tiny("gpt2", "GPT2ForSequenceClassification"))(asked(SLOPE, sentence()))


# -- random weights


def upper(found: dict[Any, tuple[str, ...]], last: list[Any]) -> list[str]:
    """The names of the parameters of some stages, from the top down."""
    return [name for stage, names in found.items() if stage in last for name in names]


def plain(model: TextModel) -> Inputs:
    return Inputs(model, model.encode("the cat sat on a mat"))


@pytest.mark.parametrize("name, kind", FAMILIES)
def test_every_parameter_belongs_to_one_stage(name: str, kind: str) -> None:
    inputs = family(name, kind)
    found = stages(inputs)
    names = [parameter for stage in found.values() for parameter in stage]
    assert sorted(names) == sorted(dict(inputs.model.module.named_parameters()))
    assert next(iter(found)) == "head"
    assert list(found)[-1] == EMBEDDINGS


@pytest.mark.parametrize("inputs", [plain(lstm()), plain(cnn())])
def test_what_runs_before_a_layers_output_belongs_to_the_layer(inputs: Inputs) -> None:
    found = stages(inputs)
    of_layers = {name for stage in found if stage not in ("head", EMBEDDINGS) for name in found[stage]}
    words = ("lstm.", "convolution.", "head.")  # the plain LSTM's head is a layer of its own
    assert of_layers
    assert all(name.startswith(words) for name in of_layers)
    assert found[EMBEDDINGS] == ("embedding.weight",)


@pytest.mark.parametrize("name, kind", [pair for pair in FAMILIES if pair[0] != "albert"])
def test_random_weights_from_a_layer_up_leave_the_states_below_as_they_were(name: str, kind: str) -> None:
    inputs = family(name, kind)
    found = stages(inputs)
    names = list(found)
    for place, stage in enumerate(names[:-2]):
        other = randomised(inputs.model, upper(found, names[: place + 1]))
        below = [label for label in inputs.model.layers if names.index(label) > place]
        for label in inputs.model.layers:
            same = torch.equal(state_at(inputs.model, label, inputs), state_at(other, label, inputs))
            assert same == (label in below), (stage, label)


def state_at(model: TextModel, label: object, inputs: Inputs) -> Tensor:
    from interp_plugin.method.perturbation import NoisyModel

    def forward(given: tuple[Tensor, ...], rows: Tensor) -> Tensor:
        return model(*given)

    return NoisyModel(forward, inputs.arguments).read([model.layers[label]])[0]  # type: ignore[index]


def test_random_weights_have_the_mean_and_spread_of_the_trained_ones() -> None:
    model = sentence().model
    name = "bert.encoder.layer.1.intermediate.dense.weight"
    old = dict(model.module.named_parameters())[name].detach()
    before = old.clone()
    other = randomised(model, [name])
    new = dict(other.module.named_parameters())[name].detach()
    assert torch.equal(old, before)
    assert float(new.mean()) == pytest.approx(
        float(old.mean()), abs=4 * float(old.std()) / old.numel() ** 0.5
    )
    assert float(new.std()) == pytest.approx(float(old.std()), rel=0.02)
    assert abs(float(torch.corrcoef(torch.stack([old.flatten(), new.flatten()]))[0, 1])) < 0.02


def test_what_is_not_drawn_is_shared_and_not_copied() -> None:
    model = sentence().model
    found = stages(sentence())
    other = dict(randomised(model, found["head"]).module.named_parameters())
    for name, parameter in model.module.named_parameters():
        assert (other[name] is parameter) == (name not in found["head"])


@pytest.mark.parametrize("state", [None, third_layer()])
def test_weight_randomisation_is_spearmans_correlation_with_weights_random_from_the_top(
    state: State | None,
) -> None:
    trial, found = asked(SLOPE, sentence(), state), stages(sentence())
    assert list(found) == ["head", 4, 3, 2, 1, "embeddings"]
    for name, last in (("weight randomisation", 5), ("weight randomisation (all)", 6)):
        other = randomised(sentence().model, upper(found, list(found)[:last]))
        expected = two_models(other)(trial)
        assert METRICS[name](trial) == pytest.approx(abs(expected))  # type: ignore[arg-type]


def test_a_method_that_ignores_the_weights_keeps_its_ranking() -> None:
    from_left = Method("from left", lambda inputs, *question: -torch.arange(inputs.length).float())
    assert METRICS["weight randomisation (all)"](asked(from_left, sentence())) == pytest.approx(1)


def test_random_models_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import interp_plugin.comparison.robustness as module

    made: list[int] = []
    monkeypatch.setattr(module, "randomised", lambda *given: made.append(1) or randomised(*given))
    model = cnn()
    for text in ("the cat sat", "it was good"):
        weight_randomisation(asked(SLOPE, Inputs(model, model.encode(text))))
    assert len(made) == 1


def test_a_parameter_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="has no parameter 'nothing'"):
        randomised(sentence().model, ["nothing"])


def test_random_models_are_freed_with_their_model() -> None:
    import gc
    import weakref

    inputs = plain(cnn())
    weight_randomisation(asked(SLOPE, inputs))
    gone = weakref.ref(inputs.model.module)
    del inputs
    gc.collect()
    assert gone() is None


def unchanged(module: nn.Module) -> list[object]:
    return [(p.requires_grad, p.grad, p._version) for p in module.parameters()]


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if metric.task is None])
def test_a_metric_leaves_model_and_random_state_as_they_were(name: str) -> None:
    inputs, metric = sentence(), METRICS[name]
    state = third_layer() if not metric.can_judge(None) else None
    rationale = torch.zeros(inputs.length, dtype=torch.bool)
    rationale[2:4] = True
    trial = replace(asked(SLOPE, inputs, state), rationale=rationale)
    before, drawn = unchanged(inputs.model.module), torch.get_rng_state()
    assert metric(trial) is not None
    assert unchanged(inputs.model.module) == before
    assert torch.equal(torch.get_rng_state(), drawn)
    assert not any(p._forward_hooks or p._forward_pre_hooks for p in inputs.model.module.modules())
    assert metric(trial) == metric(trial)
