"""The methods of a comparison study, against closed forms, brute force and transformers itself."""

from __future__ import annotations

import random
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import tiny
from tiny_plain import WORDS, lstm, tokenizer
from torch import Tensor, nn

from interp_plugin.comparison.captum_methods import BASELINES, Game, baseline_of
from interp_plugin.comparison.interface import Answer, Inputs, Method, chosen
from interp_plugin.comparison.methods import METHODS
from interp_plugin.comparison.metrics import METRICS
from interp_plugin.comparison.propagation import rollout
from interp_plugin.huggingface import HuggingFaceModel
from interp_plugin.text.models import PlainModel
from interp_plugin.text.states import State

SENTENCE = "the cat sat on a mat"
BERT = tiny("bert", "BertForSequenceClassification", num_labels=2, initializer_range=0.5)
TEXT = "a film was good the"


class Linear(nn.Module):
    """The sum of its words' embeddings, each weighted by its place, read by one direction."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(WORDS), 8)
        self.places = nn.Parameter(torch.tensor([1.0, -2.0, 0.5, 4.0, 3.0, -1.0]))
        self.direction = nn.Parameter(torch.randn(8))

    def forward(self, ids: Tensor) -> Tensor:
        vectors = self.embedding(ids)
        score = (vectors @ self.direction) @ self.places[: ids.shape[1]]
        return torch.stack([torch.zeros_like(score), score], 1)


def linear() -> tuple[PlainModel, Linear]:
    torch.manual_seed(0)
    net = Linear().eval()
    return PlainModel(
        net, tokenizer, net.embedding, {}, ["no", "yes"], mask_id=WORDS.index("it"), pad_id=7
    ), net


MODEL, NET = linear()
INPUTS = Inputs(MODEL, MODEL.encode(SENTENCE))
PLACES = NET.places.detach()


def contributions(baseline: Tensor | float) -> Tensor:
    """What each word adds to the linear model's answer, compared with a baseline embedding."""
    with torch.no_grad():
        return ((NET.embedding(INPUTS.ids)[0] - baseline) @ NET.direction) * NET.places


def scores(name: str, inputs: Inputs = INPUTS, target: int | None = 1, state: State | None = None) -> Tensor:
    return METHODS[name](inputs, None if state else target, state)


def word(name: str) -> Tensor:
    return NET.embedding.weight.detach()[WORDS.index(name)]


@pytest.mark.parametrize("name", ["feature ablation", "DeepLift", "Shapley value sampling"])
def test_a_linear_models_masked_words_are_worth_what_they_add(name: str) -> None:
    assert torch.allclose(scores(name), contributions(word("it")), atol=1e-4)


def test_kernel_shap_is_exact_for_a_linear_model() -> None:
    assert torch.allclose(scores("KernelSHAP"), contributions(word("it")), atol=1e-3)


@pytest.mark.parametrize("kind", BASELINES)
def test_integrated_gradients_of_a_linear_model_are_what_its_words_add(kind: str) -> None:
    table = NET.embedding.weight.detach()
    baseline = {"zero": table[0] * 0, "[PAD]": table[7], "[MASK]": word("it"), "mean": table.mean(0)}[kind]
    truth = contributions(baseline)
    assert torch.allclose(scores(f"integrated gradients ({kind}, signed)"), truth, atol=1e-4)
    assert torch.allclose(scores(f"integrated gradients ({kind}, absolute)"), truth.abs(), atol=1e-4)


def test_input_times_gradient_of_a_linear_model_is_what_its_words_add() -> None:
    assert torch.allclose(scores("input x gradient (signed)"), contributions(0.0), atol=1e-4)
    assert torch.allclose(scores("input x gradient (absolute)"), contributions(0.0).abs(), atol=1e-4)


def test_gradient_norms_of_a_linear_model_are_its_weights() -> None:
    norm = NET.direction.detach().norm() * PLACES.abs()
    assert torch.allclose(scores("saliency (L2)"), norm, atol=1e-4)
    assert torch.allclose(scores("SmoothGrad (L2)"), norm, atol=1e-4)
    square = NET.direction.detach().square().norm() * PLACES.square()
    assert torch.allclose(scores("SmoothGrad squared (L2)"), square, atol=1e-3)


def test_the_gradient_norm_of_the_scores_is_in_units_of_their_root_mean_square() -> None:
    [[_, score]] = MODEL(*INPUTS.arguments)
    v = (score.square() / 2).sqrt().detach()  # the other score is 0
    truth = NET.direction.detach().norm() * PLACES.abs() / v / 2**0.5
    assert torch.allclose(scores("gradient norm of the state"), truth, rtol=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        "information kept",
        "information kept (rate 1)",
        "information kept (target)",
        "information kept (closed form)",
    ],
)
def test_a_linear_models_noise_is_inverse_to_its_weights(name: str) -> None:
    nats = 8 * precision(scores(name), 8).log()
    assert torch.allclose(nats - nats[0], 8 * (PLACES.abs() / PLACES[0].abs()).log(), atol=0.6)


def precision(kept: Tensor, size: int) -> Tensor:
    """tau / sigma of nats kept of tokens of ``size`` elements, with the cap at 10 tau."""
    return (1.01 * (2 * kept / size).exp() - 1).sqrt()


class Normalised(nn.Module):
    """The sum of its words' embeddings, each of length 1 whatever noise makes of it, read by one direction."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(WORDS), 8)
        self.direction = nn.Parameter(torch.tensor([4.0] + 7 * [0.0]))

    def forward(self, ids: Tensor) -> Tensor:
        score = nn.functional.normalize(self.embedding(ids), dim=-1).sum(1) @ self.direction + 2.0
        return torch.stack([torch.zeros_like(score), score], 1)


def for_and_against() -> Inputs:
    """Three words: one for the class, one against it with the same slope, and one without effect."""
    net = Normalised().eval()
    vector = torch.tensor([1.0, 1.0] + 6 * [0.0])
    others = (
        9 * torch.eye(8)[2:6]
    )  # without direction; they raise the cap on sigma, 10 of the table's deviations
    net.embedding.weight.data = torch.stack([vector, -vector, vector.flip(0), *others, *-others, 0 * vector])
    model = PlainModel(net, tokenizer, net.embedding, {}, ["no", "yes"])
    return Inputs(model, model.encode(" ".join(WORDS[:3])))


def test_the_log_probability_keeps_more_of_evidence_for_the_class_than_against_it() -> None:
    inputs = for_and_against()
    speaks_for, against, _ = scores("information kept (target)", inputs).tolist()
    assert speaks_for == pytest.approx(against, abs=0.4)
    speaks_for, against, _ = scores("information kept (log-probability)", inputs).tolist()
    assert speaks_for > against + 2


@pytest.mark.parametrize("name", ["erased", "erased (keep)", "noise path"])
def test_evidence_against_the_class_scores_below_zero(name: str) -> None:
    inputs = for_and_against()
    found, opposite = scores(name, inputs), scores(name, inputs, target=0)
    assert found[0] > 0 > found[1] and opposite[0] < 0 < opposite[1]


def test_erasing_in_a_linear_model_takes_what_the_words_add() -> None:
    torch.testing.assert_close(scores("erased"), contributions(word("it")), rtol=0, atol=0.05)


def test_occlusion_by_windows_is_the_mean_over_those_that_hold_the_token() -> None:
    added = contributions(word("it"))
    windows = added.unfold(0, 3, 1).sum(1)  # (4,)
    truth = [windows[max(0, i - 2) : i + 1].mean() for i in range(6)]
    assert torch.allclose(scores("occlusion (3 tokens)"), torch.stack(truth), atol=1e-4)


def test_lime_ranks_a_linear_models_words_as_they_add() -> None:
    found, truth = scores("LIME"), contributions(word("it"))
    assert found.argsort().tolist() == truth.argsort().tolist()
    assert np.corrcoef(found, truth)[0, 1] > 0.98


def test_gradient_shap_of_a_linear_model_lies_between_its_baselines() -> None:
    table = NET.embedding.weight.detach()
    truths = torch.stack([contributions(b) for b in (table[0] * 0, table[7], word("it"), table.mean(0))])
    found = scores("gradient SHAP")
    assert (found >= truths.amin(0) - 1e-4).all()
    assert (found <= truths.amax(0) + 1e-4).all()


def test_leaving_one_out_is_reading_the_shorter_text() -> None:
    answer = Answer(inputs := Inputs(BERT, BERT.encode(TEXT)), 1)
    whole = answer.of_arguments(*inputs.arguments)[0]
    words = TEXT.split()
    assert inputs.length == len(words) + 2
    for place in range(len(words)):
        shorter = Inputs(BERT, BERT.encode(" ".join(words[:place] + words[place + 1 :])))
        value = Answer(shorter, 1).of_arguments(*shorter.arguments)[0]
        assert torch.allclose(scores("leave-one-out", inputs)[place + 1], whole - value, atol=1e-5)


def shapley(game: Game, count: int) -> list[float]:
    """By all coalitions."""

    def value(coalition: tuple[int, ...]) -> float:
        present = torch.zeros(1, count)
        present[0, list(coalition)] = 1
        return float(game(present))

    found = []
    for player in range(count):
        others = [other for other in range(count) if other != player]
        subsets = [some for size in range(count) for some in combinations(others, size)]
        found.append(sum((value((*s, player)) - value(s)) / count / comb(count - 1, len(s)) for s in subsets))
    return found


@pytest.mark.parametrize("name, tolerance", [("Shapley value sampling", 0.15), ("KernelSHAP", 0.1)])
@pytest.mark.parametrize("state", [None, State(2, BERT.layers[2])])
def test_shapley_values_are_those_of_all_coalitions(name: str, tolerance: float, state: State | None) -> None:
    inputs = Inputs(BERT, BERT.encode("the film was good"))
    truth = torch.tensor(shapley(Game(inputs, None if state else 1, state), 4))
    found = scores(name, inputs, state=state)[1:-1]
    assert (found - truth).norm() < tolerance * truth.norm()
    assert torch.allclose(found.sum(), truth.sum(), rtol=1e-2)  # efficiency


def test_the_shapley_value_of_a_single_word_is_the_whole_change() -> None:
    inputs = Inputs(BERT, BERT.encode("film"))
    everything = scores("feature ablation", inputs)
    for name in ("KernelSHAP", "Shapley value sampling", "occlusion (3 tokens)"):
        assert torch.allclose(scores(name, inputs), everything, atol=1e-5)


@pytest.mark.parametrize("kind", BASELINES)
@pytest.mark.parametrize("state", [None, State(1, BERT.layers[1])])
def test_integrated_gradients_add_up_to_the_answers_difference(kind: Any, state: State | None) -> None:
    model = tiny("bert", "BertForSequenceClassification", num_labels=2)  # smooth enough for 50 steps
    state = None if state is None else State(1, model.layers[1])
    inputs = Inputs(model, model.encode(TEXT))
    answer = Answer(inputs, None if state else 1, state)
    with torch.no_grad():
        gap = answer(inputs.embeddings) - answer(baseline_of(inputs, kind))
    found = scores(f"integrated gradients ({kind}, signed)", inputs, state=state)
    assert torch.allclose(found.sum(), gap, rtol=1e-2)
    assert not found[~inputs.players].any()  # special tokens are in the baseline, too


def test_attention_rollout_is_the_product_of_transformers_own_weights() -> None:
    inputs = Inputs(BERT, BERT.encode(TEXT))
    eager = tiny("bert", "BertForSequenceClassification", num_labels=2, initializer_range=0.5).model
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = eager(**BERT.tokenizer(TEXT, return_tensors="pt"), output_attentions=True).attentions
    first, second = (0.5 * a[0].mean(0).numpy() + 0.5 * np.eye(inputs.length) for a in attentions)
    whole = second @ first
    assert np.allclose(scores("attention rollout", inputs), whole[0], atol=1e-5)  # [CLS] is read
    for label, truth in ((1, first), (2, whole)):
        found = scores("attention rollout", inputs, state=State(label, BERT.layers[label]))
        assert np.allclose(found, truth.mean(0), atol=1e-5)


def turned(layer: Any, before: Tensor) -> Tensor:
    """How far BERT's layer turns each place (row) without each token's value (column), rows sum to 1."""
    part = layer.attention.self
    queries, keys, values = (
        linear(before[0]).reshape(-1, 2, 8).transpose(0, 1) for linear in (part.query, part.key, part.value)
    )  # (heads, T, width)
    weights = (queries @ keys.transpose(1, 2) / 8**0.5).softmax(-1)

    def output(values: Tensor) -> Tensor:
        mixed = (weights @ values).transpose(0, 1).reshape(1, -1, 16)
        out: Tensor = layer.feed_forward_chunk(layer.attention.output(mixed, before))[0]
        return out

    distances = []
    for token in range(before.shape[1]):
        zeroed = values.clone()
        zeroed[:, token] = 0
        distances.append(1 - torch.cosine_similarity(output(zeroed), output(values), dim=-1))
    found = torch.stack(distances, 1)
    return found / found.sum(1, keepdim=True)


def test_value_zeroing_is_the_layer_computed_by_hand_without_a_value() -> None:
    inputs = Inputs(BERT, BERT.encode(TEXT))
    model: Any = BERT.model
    with torch.no_grad():
        hidden = model.bert(inputs.ids, output_hidden_states=True).hidden_states
        mixing = [turned(layer, before) for layer, before in zip(model.bert.encoder.layer, hidden)]
    assert torch.allclose(scores("value zeroing", inputs), (mixing[1] @ mixing[0])[0], atol=1e-4)
    found = scores("value zeroing", inputs, state=State(1, BERT.layers[1]))
    assert torch.allclose(found, mixing[0].mean(0), atol=1e-4)


def test_a_decoder_is_read_at_its_last_token() -> None:
    model = tiny("gpt2", "GPT2ForSequenceClassification", num_labels=2)
    inputs = Inputs(model, model.encode("The film was good"))
    weights = model.attentions(*inputs.arguments)
    mixing = [(w[0].mean(0) + torch.eye(inputs.length)) / 2 for w in weights]
    assert torch.allclose(scores("attention rollout", inputs), rollout(mixing)[-1], atol=1e-6)


def test_nothing_later_is_mixed_into_a_decoders_first_place() -> None:
    model = tiny("gpt2", "GPT2ForSequenceClassification", num_labels=2)
    inputs = Inputs(model, model.encode("The film"))
    [row] = scores("value zeroing", inputs, state=State(1, model.layers[1])).unsqueeze(0)
    assert row[0] > row[1:].max()


@pytest.mark.parametrize("family", ["bert", "gpt2", "modernbert", "albert"])
def test_attention_weights_are_the_models_own_and_leave_no_trace(family: str) -> None:
    name = {"bert": "Bert", "gpt2": "GPT2", "modernbert": "ModernBert", "albert": "Albert"}[family]
    model = tiny(family, f"{name}ForSequenceClassification", num_labels=2)
    arguments, _ = model.collate([model.encode("The film was good"), model.encode("good")])
    before = traces(model)
    found = model.attentions(*arguments)
    assert traces(model) == before
    assert len(found) == len(model.layers)
    ends = torch.ones(found[0].shape[:-1])
    assert all(torch.allclose(weights.sum(-1), ends, atol=1e-5) for weights in found)
    base: Any = model.model.base_model
    base.set_attn_implementation("eager")  # and transformers' own recording still works
    theirs = base(arguments[0], attention_mask=arguments[1], output_attentions=True).attentions
    real = arguments[1][:, None, :, None].bool()  # attention of padding is undefined
    for mine, other in zip(found, theirs):
        assert torch.allclose(mine * real, other * real, atol=1e-5)


def traces(model: HuggingFaceModel | PlainModel) -> list[Any]:
    """State that a method must not change."""
    parts = list(model.module.modules())
    config = getattr(model.module, "config", None)
    return [
        [sorted(vars(part)) for part in parts],
        [
            len(hooks)
            for part in parts
            for hooks in (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks)
        ],
        [part.training for part in parts],
        [(p.requires_grad, p.grad is None, p.detach().sum().item()) for p in model.module.parameters()],
        getattr(config, "_attn_implementation", None),
        torch.get_rng_state().sum().item(),
        np.random.get_state()[1].sum(),  # type: ignore[index,union-attr]
        random.getstate(),
        torch.is_grad_enabled(),
    ]


@pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))
def test_every_method_gives_a_finite_score_for_each_token_and_touches_nothing(method: Method) -> None:
    before = traces(BERT)
    for target, state in ((1, None), (None, State(1, BERT.layers[1], None, torch.full((16,), 0.7)))):
        if not method.can_explain(state):
            continue
        found = [method(Inputs(BERT, BERT.encode(TEXT), seed), target, state) for seed in (5, 5, 6)]
        assert found[0].shape == (7,)
        assert found[0].isfinite().all()
        assert torch.equal(found[0], found[1])
        # at rate 1 a class score's tokens are at the cap, or by rounding one is not: [CLS] never is
        inner = found[0] if method.name.endswith("(rate 1)") else found[0][1:-1]
        assert inner.unique().numel() > 1
        exact = (
            "gradient norm of the state",
            "information kept (closed form)",
            "erased",
        )  # for few scores or tokens
        if not method.name.startswith(exact):
            assert method.draws != torch.equal(found[0], found[2])
    assert traces(BERT) == before


@pytest.mark.parametrize(
    "family", ["RobertaForSequenceClassification", "DistilBertForSequenceClassification"]
)
def test_every_method_supports_other_encoders(family: str) -> None:
    model = tiny(family.split("For")[0].lower(), family, num_labels=3)
    for method in METHODS.values():
        for target, state in ((2, None), (None, State(2, model.layers[2]))):
            if method.can_explain(state):
                method(Inputs(model, model.encode("The film was good")), target, state)


TRANSFORMERS_ONLY = {
    "attention rollout": "does not return attention weights",
    "value zeroing": "does not return attention weights",
    "GIM": "the rules found no attention",
    "AttnLRP": "the rules found no attention",
    "DecompX": "is not a transformer with a single stack",
    "erased (and hidden)": "no argument of the model is an attention mask",
    "leave-one-out (attention)": "takes no attention mask",
}


def test_a_plain_model_supports_all_methods_except_attention() -> None:
    model = lstm(mask_id=7)
    inputs = Inputs(model, model.encode("the film was good"))
    before = traces(model)
    for name, method in METHODS.items():
        for target, state in ((2, None), (None, State("lstm", model.layers["lstm"]))):
            if not method.can_explain(state):
                continue
            if name in TRANSFORMERS_ONLY:
                with pytest.raises(ValueError, match=TRANSFORMERS_ONLY[name]):
                    method(inputs, target, state)
            else:
                assert method(inputs, target, state).isfinite().all()
    assert traces(model) == before


@pytest.mark.parametrize("name", ["DeepLift", "integrated gradients ([MASK], L2)", "LIME"])
def test_a_model_without_a_mask_token_is_refused(name: str) -> None:
    model = lstm()
    with pytest.raises(ValueError, match="Lstm has no mask token"):
        scores(name, Inputs(model, model.encode("the film was good")))


def test_an_encoder_decoders_attention_is_not_a_single_stack() -> None:
    model = tiny("bart", "BartForSequenceClassification", num_labels=2)
    inputs = Inputs(model, model.encode("The film was good"))
    for name in ("attention rollout", "value zeroing", "DecompX"):
        with pytest.raises(ValueError, match=r"not a single stack|not a transformer with a single stack"):
            scores(name, inputs)


def test_special_tokens_are_not_players_by_default() -> None:
    encoding = BERT.encode(TEXT)
    for name in ("feature ablation", "Shapley value sampling", "LIME"):
        assert not scores(name, Inputs(BERT, encoding))[[0, -1]].any()
        assert scores(name, Inputs(BERT, encoding, with_special=True))[[0, -1]].all()


def test_the_gradient_norm_of_neurons_in_their_units_is_that_of_the_whole_jacobian() -> None:
    inputs, unit = Inputs(BERT, BERT.encode(TEXT)), torch.linspace(0.1, 3, 16)
    unit[5] = 0  # never moved: does not count
    model: Any = BERT.model

    def neurons(embeddings: Tensor) -> Tensor:
        states: Tensor = model.bert(inputs_embeds=embeddings).last_hidden_state
        return states[..., [3, 12]] / unit[[3, 12]]

    jacobian = torch.autograd.functional.jacobian(neurons, inputs.embeddings)  # (1, T, 2, 1, T, 16)
    truth = jacobian.square().sum((0, 1, 2, 3, 5)).div(2 * inputs.length).sqrt()
    state = State(2, BERT.layers[2], [3, 12, 5], unit)
    assert torch.allclose(scores("gradient norm of the state", inputs, state=state), truth, rtol=1e-3)


def test_the_closed_form_ranks_as_the_gradient_norm_of_few_elements() -> None:
    inputs, state = Inputs(BERT, BERT.encode(TEXT)), State(2, BERT.layers[2], [3], torch.linspace(0.1, 3, 16))
    names = ("information kept (closed form)", "gradient norm of the state")
    kept, norm = (scores(name, inputs, state=state) for name in names)
    found = precision(kept, 16)
    assert torch.allclose(found / found[1], norm / norm[1], rtol=1e-3)


def test_a_method_is_chosen_by_name_or_given() -> None:
    mine = Method("mine", lambda inputs, target, state: torch.zeros(inputs.length))
    assert [m.name for m in chosen(METHODS, ["LIME", mine])] == ["LIME", "mine"]
    assert chosen(METHODS, None) == list(METHODS.values())
    assert chosen(METHODS, "LIME") == [METHODS["LIME"]]
    with pytest.raises(ValueError, match=r"method 'lime' is not known; choose from 'LIME'$"):
        chosen(METHODS, ["lime"])  # all 44 names used to be listed
    with pytest.raises(
        ValueError, match="method 'gradients' is not known; choose from 'integrated gradients"
    ):
        chosen(METHODS, ["gradients"])
    with pytest.raises(ValueError, match="'mine' is given 2 times"):
        chosen(METHODS, [mine, mine])
    with pytest.raises(ValueError, match="methods is empty"):
        chosen(METHODS, [])
    with pytest.raises(TypeError, match="method 3 is a int"):
        chosen(METHODS, [3])  # type: ignore[list-item]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("LIME", ["LIME"]),
        ("GIM,LIME, GIM", ["GIM", "LIME"]),
        ("integrated gradients ([PAD], L2),random", ["integrated gradients ([PAD], L2)", "random"]),
        ("input x*([", None),
        ("LIME, Smooth*", ["LIME", "SmoothGrad (L2)", "SmoothGrad squared (L2)"]),
    ],
)
def test_a_string_may_name_several_with_stars_and_brackets_for_themselves(
    text: str, expected: list[str] | None
) -> None:
    if expected is None:
        with pytest.raises(ValueError, match="matches none"):
            chosen(METHODS, text)
    else:
        assert [method.name for method in chosen(METHODS, text)] == expected


def test_every_known_name_survives_being_listed() -> None:
    for known in (METHODS, METRICS):
        assert chosen(known, ",".join(known)) == list(known.values())  # type: ignore[type-var]


def test_external_scores_have_one_for_each_token() -> None:
    known = {TEXT: [1, 2, 3, 4, 5, 6, 7], "film": [3.0]}
    method = Method("theirs", lambda inputs, *question: known[inputs.encoding.text])
    assert method(Inputs(BERT, BERT.encode(TEXT)), 1, None).tolist() == [1, 2, 3, 4, 5, 6, 7]
    with pytest.raises(ValueError, match=r"'theirs' gives scores of shape \(1,\) for 3 tokens"):
        method(Inputs(BERT, BERT.encode("film")), 1, None)


def test_every_method_has_a_source() -> None:
    assert all(method.source for method in METHODS.values())
    assert [name for name, method in METHODS.items() if method.name != name] == []
