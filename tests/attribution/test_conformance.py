"""Captum's contract: our classes in every place where Captum's integrated gradients work."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from captum.attr import (
    FeatureAblation,
    IntegratedGradients,
    LayerIntegratedGradients,
    NeuronIntegratedGradients,
    NoiseTunnel,
    TextTokenInput,
    configure_interpretable_embedding_layer,
    remove_interpretable_embedding_layer,
)
from captum.metrics import infidelity, sensitivity_max
from captum.testing.attr.helpers.gen_test_utils import get_target_layer, parse_test_config
from captum.testing.attr.helpers.test_config import config
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from interp_plugin import (
    InformationErased,
    InformationLoss,
    InformationLossLLMAttribution,
    LayerInformationLoss,
    NeuronInformationLoss,
    Solver,
)

FAST = Solver(draws=8, iterations=2)
OURS = {
    IntegratedGradients: InformationLoss,
    LayerIntegratedGradients: LayerInformationLoss,
    NeuronIntegratedGradients: NeuronInformationLoss,
}
# the generated models have dead units: some states and some layers' outputs are all zero
SAFE = {"solver": FAST, "state_std": 1.0, "max_sigma": 10.0}


class Case:
    """One of Captum's generated cases with our class in place of integrated gradients."""

    def __init__(self, case: dict[str, Any], theirs: type) -> None:
        _, model, arguments, layer, self.tunnel, _ = parse_test_config(copy.deepcopy(case))
        self.name, self.theirs, self.model, self.layer = case["name"], theirs, model, layer
        arguments.pop("baselines", None)
        self.arguments = {**SAFE, **arguments}

    def method(self) -> Any:
        where = () if self.layer is None else (get_target_layer(self.model, self.layer),)
        method = OURS[self.theirs](self.model, *where)
        return NoiseTunnel(method) if self.tunnel else method

    def example(self, i: int) -> dict[str, Any]:
        """The arguments of example i alone, its target still in a list or tensor."""
        batch = len(as_tuple(self.arguments["inputs"])[0])

        def at(value: Any) -> Any:
            return value[i : i + 1] if isinstance(value, (Tensor, list)) and len(value) == batch else value

        return {
            key: tuple(map(at, value)) if isinstance(value, tuple) and key != "neuron_selector" else at(value)
            for key, value in self.arguments.items()
        }


def cases() -> list[Case]:
    return [Case(case, theirs) for case in config for theirs in case["algorithms"] if theirs in OURS]


def named(cases: list[Case]) -> dict[str, Any]:
    return {"argvalues": cases, "ids": [case.name for case in cases]}


ALL = [case for case in cases() if not isinstance(case.layer, list)]
MANY_TARGETS = [case for case in ALL if isinstance(case.arguments.get("target"), (list, Tensor))]
TUNNELS = [case for case in ALL if case.tunnel]
WITH_LAYER = [case for case in ALL if case.layer is not None]


def as_tuple(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def hooks(model: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


@contextlib.contextmanager
def untouched(model: nn.Module, generators: bool = True) -> Iterator[None]:
    """Assert that the block leaves the model, the grad mode and the global generators as they were.

    NoiseTunnel draws from torch's generator itself.
    """

    def state() -> tuple[Any, ...]:
        flags = [(p.requires_grad, p.grad) for p in model.parameters()]
        training = [module.training for module in model.modules()]
        drawn = (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist())
        return hooks(model), flags, training, torch.is_grad_enabled(), drawn if generators else ()

    before, values = state(), copy.deepcopy(model.state_dict())
    try:
        yield
    finally:
        assert state() == before
        assert all(torch.equal(values[name], value) for name, value in model.state_dict().items())


def seeded(make: Any, seed: int = 0) -> Any:
    """Build a module with ``make`` from a fixed seed, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = make()
    return made.eval() if isinstance(made, nn.Module) else made


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class LSTMClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 4)
        self.lstm = nn.LSTM(4, 6, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.lstm(self.embedding(ids))[0][:, -1])


class TextCNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 4)
        self.conv = nn.Conv1d(4, 6, 3, padding=1)
        self.head = nn.Linear(6, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.conv(self.embedding(ids).transpose(1, 2)).tanh().mean(2))


class TransformerClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 4)
        layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(4, 3)

    def forward(self, ids: Tensor, padding: Tensor | None = None) -> Tensor:
        return self.head(self.encoder(self.embedding(ids), src_key_padding_mask=padding)[:, 0])


def small_bert() -> BertForSequenceClassification:
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=30, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
            max_position_embeddings=16, num_labels=2,
        )
    )  # fmt: skip


def small_mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))


IDS = torch.tensor([[3, 14, 15, 9, 2], [6, 5, 3, 5, 8]])
MLP = seeded(small_mlp)
MLP64 = copy.deepcopy(MLP).double()
BERT = seeded(small_bert)
X = normal(4, 5)


# Captum's generated cases


@pytest.mark.parametrize("case", **named(ALL))
def test_generated_cases_give_what_captum_expects_and_leave_no_trace(case: Case) -> None:
    with untouched(case.model, generators=not case.tunnel):
        result = case.method().attribute(**case.arguments)
    if case.theirs is LayerIntegratedGradients:
        expected = (layer_output(case),)
    else:
        assert isinstance(result, tuple) == isinstance(case.arguments["inputs"], tuple)
        expected = as_tuple(case.arguments["inputs"])
    assert [r.shape for r in as_tuple(result)] == [e.shape for e in expected]
    for part in as_tuple(result):
        assert part.dtype == torch.float32
        assert part.isfinite().all() and part.is_contiguous() and not part.requires_grad


def layer_output(case: Case) -> Tensor:
    seen = []
    layer = get_target_layer(case.model, case.layer)
    handle = layer.register_forward_hook(lambda module, args, output: seen.append(output))
    further = case.arguments.get("additional_forward_args", ())
    case.model(*as_tuple(case.arguments["inputs"]), *further)
    handle.remove()
    return as_tuple(seen[0])[0]


@pytest.mark.parametrize("score", ["loss", "signed"])
@pytest.mark.parametrize("case", **named(MANY_TARGETS))
def test_each_example_of_a_batch_has_its_own_target(case: Case, score: str) -> None:
    case.arguments["score"] = score
    whole = as_tuple(case.method().attribute(**case.arguments))
    targets = case.arguments["target"]
    for i in range(len(whole[0])):
        alone = case.example(i)
        bare = {**alone, "target": targets[i] if len(targets) == len(whole[0]) else targets}
        for arguments in (alone, bare):
            single = as_tuple(case.method().attribute(**arguments))
            for part, part_alone in zip(whole, single):
                torch.testing.assert_close(part[i : i + 1], part_alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", **named(TUNNELS))
def test_noise_tunnel_without_noise_is_the_plain_call(case: Case) -> None:
    plain = {k: v for k, v in case.arguments.items() if not k.startswith("nt_") and k != "stdevs"}
    smooth = as_tuple(case.method().attribute(**case.arguments))
    direct = as_tuple(InformationLoss(case.model).attribute(**plain))
    for one, other in zip(smooth, direct):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", **named(ALL))
def test_a_wrong_target_or_neuron_leaves_no_hook(case: Case) -> None:
    wrong = "target" if "target" in case.arguments else "neuron_selector"
    if callable(case.arguments[wrong]):
        pytest.skip("a callable selects as it likes")
    with untouched(case.model, generators=not case.tunnel), pytest.raises((AssertionError, ValueError)):
        case.method().attribute(**{**case.arguments, wrong: (9999,) * 20})


class Broken(nn.Module):
    def forward(self, *args: Any) -> Tensor:
        raise AssertionError("broken on purpose")


@pytest.mark.parametrize("case", **named(WITH_LAYER))
def test_a_model_that_raises_leaves_no_hook(case: Case) -> None:
    parent, _, name = case.layer.rpartition(".")
    setattr(case.model.get_submodule(parent), name, Broken())
    with untouched(case.model), pytest.raises(AssertionError, match="broken on purpose"):
        case.method().attribute(**case.arguments)


def test_a_list_of_layers_is_refused_with_the_way_out() -> None:
    case = next(case for case in cases() if isinstance(case.layer, list))
    with pytest.raises(TypeError, match="one module"):
        case.method().attribute(**case.arguments)


# Captum's tools around a method


@pytest.mark.parametrize("score", ["loss", "signed"])
def test_sensitivity_is_exactly_zero_at_radius_zero(score: str) -> None:
    """In float64, as rounding in a matrix product depends on the number of rows."""
    method = InformationLoss(MLP64)
    sensitivity = sensitivity_max(
        method.attribute,
        X.double(),
        perturb_radius=0.0,
        n_perturb_samples=3,
        target=1,
        score=score,
        solver=FAST,
    )
    assert (sensitivity == 0).all()


def test_sensitivity_is_rounding_at_radius_zero_in_float32() -> None:
    method = InformationLoss(MLP)
    arguments = {"perturb_radius": 0.0, "n_perturb_samples": 3, "target": 1, "solver": FAST}
    assert (sensitivity_max(method.attribute, X, **arguments) < 1e-4).all()
    assert (sensitivity_max(method.attribute, X, max_examples_per_batch=4, **arguments) == 0).all()


def test_infidelity_takes_the_scores() -> None:
    def perturb(inputs: Tensor) -> tuple[Tensor, Tensor]:
        noise = 0.1 * normal(*inputs.shape)
        return noise, inputs - noise

    scores = InformationLoss(MLP).attribute(X, target=1, score="kept", solver=FAST)
    value = infidelity(MLP, perturb, X, scores, target=1)
    assert value.shape == (4,) and value.isfinite().all()


def test_noise_tunnel_averages_over_noisy_inputs() -> None:
    result = NoiseTunnel(InformationLoss(MLP)).attribute(X, nt_samples=3, stdevs=0.1, target=1, solver=FAST)
    assert result.shape == X.shape and result.isfinite().all()


@pytest.mark.parametrize(
    "make, name", [(small_bert, "bert.embeddings"), (LSTMClassifier, "embedding"), (TextCNN, "embedding")]
)
def test_an_interpretable_embedding_takes_our_embeddings(make: Any, name: str) -> None:
    if make is small_bert and int(transformers.__version__.split(".")[0]) < 5:
        pytest.skip("BERT took token ids alone, as a matrix")
    model = seeded(make)

    def logits(inputs: Tensor) -> Tensor:
        output = model(inputs)
        return output if isinstance(output, Tensor) else output.logits

    by_layer = LayerInformationLoss(logits, model.get_submodule(name)).attribute(
        IDS, max_sigma=0.3, solver=FAST
    )
    interpretable = configure_interpretable_embedding_layer(model, name)
    embedded = interpretable.indices_to_embeddings(IDS)
    by_input = InformationLoss(logits).attribute(embedded, max_sigma=0.3, solver=FAST)
    remove_interpretable_embedding_layer(model, interpretable)
    torch.testing.assert_close(by_input, by_layer, rtol=1e-4, atol=1e-4)


def test_a_copy_follows_its_own_forward_func() -> None:
    method = InformationLoss(MLP)
    plain = method.attribute(X, solver=FAST)
    other = copy.copy(method)
    other.forward_func = lambda x: MLP(3 * x)
    assert not torch.allclose(other.attribute(X, solver=FAST), plain)
    assert torch.equal(method.attribute(X, solver=FAST), plain)


def test_there_is_no_convergence_delta_and_no_future() -> None:
    for method in (
        InformationLoss(MLP),
        LayerInformationLoss(MLP, MLP[0]),
        NeuronInformationLoss(MLP, MLP[0]),
    ):
        assert not method.has_convergence_delta()
        with pytest.raises(NotImplementedError, match=type(method).__name__):
            method.attribute_future()


# The model is left unchanged


def test_no_grad_around_the_call_changes_nothing() -> None:
    expected = InformationLoss(MLP).attribute(X, target=0, solver=FAST)
    with torch.no_grad(), untouched(MLP):
        assert torch.equal(InformationLoss(MLP).attribute(X, target=0, solver=FAST), expected)


def test_inference_mode_tensors_work_or_are_refused() -> None:
    with torch.inference_mode():
        inputs = X * 1
    result = InformationLoss(MLP).attribute(inputs, target=0, solver=FAST)
    assert torch.equal(result, InformationLoss(MLP).attribute(X, target=0, solver=FAST))


def test_frozen_models_give_the_same_scores_and_stay_frozen() -> None:
    frozen = copy.deepcopy(MLP).requires_grad_(False)
    with untouched(frozen):
        result = InformationLoss(frozen).attribute(X, target=0, solver=FAST)
    torch.testing.assert_close(result, InformationLoss(MLP).attribute(X, target=0, solver=FAST))


def test_gradients_of_the_user_are_kept() -> None:
    model = copy.deepcopy(MLP)
    model(X).sum().backward()
    inputs = X.clone().requires_grad_()
    before = [p.grad.clone() for p in model.parameters()]
    InformationLoss(model).attribute(inputs, solver=FAST)
    assert inputs.grad is None and inputs.requires_grad
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before))


class Moody(nn.Module):
    """Raises in its n-th forward, after its first half."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.first, self.second, self.left = nn.Linear(5, 4), nn.Linear(4, 2), n

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        self.left -= 1
        if not self.left:
            raise RuntimeError("not today")
        return self.second(hidden)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_forward_that_raises_midway_leaves_nothing_behind(n: int) -> None:
    model = seeded(lambda: Moody(n))
    with untouched(model), pytest.raises(RuntimeError, match="not today"):
        LayerInformationLoss(model, model.first, state_layer=model.second).attribute(
            X, solver=FAST, internal_batch_size=2
        )


def test_stopping_early_leaves_transformers_hidden_states_working() -> None:
    before = BERT(IDS, output_hidden_states=True).hidden_states
    LayerInformationLoss(BERT, BERT.get_input_embeddings(), BERT.bert.encoder.layer[0]).attribute(
        IDS, solver=FAST
    )
    after = BERT(IDS, output_hidden_states=True).hidden_states
    assert len(after) == len(before) == 3
    assert all(torch.equal(one, other) for one, other in zip(before, after))


def test_layers_after_the_state_do_not_run() -> None:
    runs = []
    handle = BERT.bert.encoder.layer[1].register_forward_hook(lambda *_: runs.append(1))
    LayerInformationLoss(BERT, BERT.get_input_embeddings(), BERT.bert.encoder.layer[0]).attribute(
        IDS, solver=FAST
    )
    handle.remove()
    assert len(runs) == 1  # the clean pass


# Inputs, targets, selectors


def two_inputs(x: Tensor, y: Tensor) -> Tensor:
    return torch.stack([(x * x).sum(1) + y.mean((1, 2)), x[:, 0] * y[:, 0, 0]], 1)


PAIR = (normal(3, 4), normal(3, 2, 4, seed=2))


def test_a_tuple_of_inputs_gives_a_tuple_with_consecutive_tokens() -> None:
    method = InformationLoss(two_inputs)
    first, second = method.attribute(PAIR, score="sigma", solver=FAST)
    tokens = method.attribute(PAIR, score="sigma", solver=FAST, return_input_shape=False)
    assert tokens.shape == (3, 4 + 2)
    assert torch.equal(first, tokens[:, :4]) and torch.equal(second[..., 0], tokens[:, 4:])


def test_a_tuple_of_one_stays_a_tuple() -> None:
    (result,) = InformationLoss(MLP).attribute((X,), solver=FAST)
    assert torch.equal(result, InformationLoss(MLP).attribute(X, solver=FAST))


def test_a_mask_number_in_two_inputs_is_one_token() -> None:
    mask = (torch.tensor([[0, 0, 1, 2]]), torch.tensor([[[1] * 4, [3] * 4]]))
    first, second = InformationLoss(two_inputs).attribute(PAIR, feature_mask=mask, score="sigma", solver=FAST)
    assert torch.equal(first[:, 0], first[:, 1])
    assert torch.equal(first[:, 2:3].expand(3, 4), second[:, 0])
    assert not torch.equal(first[:, 2], second[:, 1, 0])


def test_a_feature_mask_of_the_default_groups_changes_nothing() -> None:
    mask = torch.arange(2).reshape(1, 2, 1).expand(1, 2, 4)
    method = InformationLoss(lambda y: y.square().sum((1, 2), keepdim=True))
    plain = method.attribute(PAIR[1], solver=FAST)
    assert torch.equal(method.attribute(PAIR[1], feature_mask=mask, solver=FAST), plain)


@pytest.mark.parametrize(
    "target", [1, (1,), [1, 1, 1, 1], torch.tensor([1, 1, 1, 1]), torch.tensor(1), torch.tensor([1])]
)
def test_every_way_to_name_an_output_is_the_same(target: Any) -> None:
    expected = InformationLoss(lambda x: MLP(x)[:, 1]).attribute(X, solver=FAST)
    result = InformationLoss(MLP).attribute(X, target=target, solver=FAST)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("target", [(0, 1), [(0, 1)] * 4])
def test_a_tuple_target_indexes_a_deeper_output(target: Any) -> None:
    expected = InformationLoss(lambda x: MLP(x)[:, 1]).attribute(X, solver=FAST)
    deep = InformationLoss(lambda x: MLP(x).unsqueeze(1).expand(-1, 2, -1))
    torch.testing.assert_close(deep.attribute(X, target=target, solver=FAST), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("selector", [2, (2,), (slice(2, 3),), lambda state: state[:, 2]])
def test_every_way_to_name_a_neuron_is_the_same(selector: Any) -> None:
    expected = InformationLoss(lambda x: MLP[0](x)[:, 2]).attribute(X, solver=FAST)
    of_layer = InformationLoss(MLP, state_layer=MLP[0]).attribute(X, neuron_selector=selector, solver=FAST)
    of_neuron = NeuronInformationLoss(MLP, MLP[0]).attribute(X, selector, solver=FAST)
    torch.testing.assert_close(of_layer, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(of_neuron, of_layer)


def test_arguments_of_the_batch_follow_their_examples() -> None:
    shift = normal(4, 5, seed=3)
    method = InformationLoss(lambda x, s, factor: MLP(factor * x + s))
    whole = method.attribute(X, None, (shift, 2.0), solver=FAST)
    single = method.attribute(X[2:3], None, (shift[2:3], 2.0), solver=FAST)
    torch.testing.assert_close(whole[2:3], single, rtol=1e-4, atol=1e-4)


# Kinds of models


@pytest.mark.parametrize("make", [LSTMClassifier, TextCNN, TransformerClassifier])
def test_text_classifiers_of_every_kind_take_ids_or_embeddings(make: type) -> None:
    model = seeded(make)
    with untouched(model):
        by_layer = LayerInformationLoss(model, model.embedding).attribute(
            IDS, target=1, max_sigma=3.0, solver=FAST
        )
    embedded = model.embedding(IDS)
    model.embedding = nn.Identity()
    by_input = InformationLoss(model).attribute(embedded, target=1, max_sigma=3.0, solver=FAST)
    assert by_layer.shape == (2, 5, 4)
    torch.testing.assert_close(by_layer, by_input, rtol=1e-4, atol=1e-4)


def test_an_lstm_layer_whose_output_is_a_tuple_is_a_state() -> None:
    model = seeded(LSTMClassifier)
    result = LayerInformationLoss(model, model.embedding, model.lstm).attribute(IDS, solver=FAST)
    assert result.shape == (2, 5, 4)


def test_an_image_classifier_scores_pixels_or_patches() -> None:
    model = seeded(
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(32, 3))
    )
    images = normal(2, 1, 6, 6)
    patches = (torch.arange(36) // 18).reshape(1, 1, 6, 6)
    result = InformationLoss(model).attribute(
        images, target=0, feature_mask=patches, score="sigma", solver=FAST
    )
    assert result.shape == images.shape and len(result[0].unique()) == 2


@pytest.mark.parametrize("shape", [(1, 1, 4, 4), (2, 1, 4, 4), (4, 4)], ids=str)
def test_a_feature_mask_broadcasts_to_the_input_as_captums_do(shape: tuple[int, ...]) -> None:
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(8, 3)))
    images, patches = normal(2, 3, 4, 4), (torch.arange(16) // 8).reshape(4, 4).expand(shape)
    whole = patches.expand(2, 3, 4, 4)
    for method, options in (
        (FeatureAblation(model), {}),
        (InformationLoss(model), {"solver": FAST}),
        (InformationErased(model), {}),
    ):
        of_patches, of_whole = (
            method.attribute(images, target=0, feature_mask=mask, **options) for mask in (patches, whole)
        )
        assert torch.equal(of_patches, of_whole)


def test_operations_in_place_after_a_layer_do_not_change_its_state_or_noise() -> None:
    """An in-place ReLU overwrites the tensor that the layer before it returned."""
    inplace = seeded(lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)))
    plain = copy.deepcopy(inplace)
    plain[1].inplace = False
    for layers in ((inplace[0], plain[0]), (inplace[1], plain[1])):
        state = [
            InformationLoss(model, layer).attribute(X, solver=FAST)
            for model, layer in zip((inplace, plain), layers)
        ]
        noise = [
            LayerInformationLoss(model, layer).attribute(X, max_sigma=9.0, solver=FAST)
            for model, layer in zip((inplace, plain), layers)
        ]
        assert torch.equal(*state) and torch.equal(*noise)


def test_a_model_that_changes_its_input_in_place_does_not_change_ours() -> None:
    inputs = X.clone()
    result = InformationLoss(lambda x: MLP(x.mul_(2))).attribute(inputs, solver=FAST)
    assert torch.equal(inputs, X)
    assert torch.equal(result, InformationLoss(lambda x: MLP(x * 2)).attribute(X, solver=FAST))


def test_padding_adds_no_distortion_to_a_state_of_a_torch_transformer() -> None:
    """Torch's fast path zeroes padded positions, but only without gradients."""
    model = seeded(TransformerClassifier)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    method = LayerInformationLoss(model, model.embedding, model.encoder)
    arguments = {"additional_forward_args": (padding,), "max_sigma": 3.0, "state_std": 1.0, "solver": FAST}
    fitted = method.fit(IDS, token_mask=~padding, **arguments)
    free = method.fit(IDS, **arguments)
    assert fitted.sigma.isfinite().all() and (free.sigma > 1e-2).all()


@pytest.mark.parametrize(
    "compiled", [torch.jit.script, lambda m: torch.jit.trace(m, X)], ids=["script", "trace"]
)
def test_torchscript_gives_the_same_scores(compiled: Any) -> None:
    expected = InformationLoss(MLP).attribute(X, target=1, solver=FAST)
    result = InformationLoss(compiled(MLP)).attribute(X, target=1, solver=FAST)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


class TwoReaders(nn.Module):
    """Two embeddings with one table."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Embedding(20, 4), nn.Embedding(20, 4)
        self.right.weight = self.left.weight

    def forward(self, ids: Tensor) -> Tensor:
        return (self.left(ids) * self.right(ids.flip(1))).tanh().sum(1)


def test_modules_that_share_an_embedding_are_distinguished() -> None:
    model = seeded(TwoReaders)
    with untouched(model):
        left = LayerInformationLoss(model, model.left).attribute(IDS, solver=FAST)
    right = LayerInformationLoss(model, model.right).attribute(IDS.flip(1), solver=FAST)
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)  # the model is symmetric in the two


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near_float32(dtype: torch.dtype) -> None:
    def scores(model: nn.Module) -> Tensor:
        method = LayerInformationLoss(
            lambda ids: model(ids).logits, model.get_input_embeddings(), model.bert.encoder.layer[0]
        )
        return method.attribute(IDS, score="sigma", return_input_shape=False, state_std=1.0)

    half = scores(seeded(small_bert).to(dtype))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, scores(BERT), rtol=0.1, atol=0)


def test_a_large_state_in_float16_does_not_lose_its_gradient() -> None:
    """The gradient of a mean over 50,000 elements around 100 is below float16's smallest number."""

    def sigma(dtype: torch.dtype) -> Tensor:
        method = InformationLoss(lambda x: (x * torch.arange(100, 600, 100).to(dtype)).repeat(1, 10_000))
        return method.attribute(X[:1].to(dtype), score="sigma", solver=FAST)

    torch.testing.assert_close(sigma(torch.float16), sigma(torch.float32), rtol=0.02, atol=0)


# A batch is its examples


def bert_scores(ids: Tensor, mask: Tensor, **settings: Any) -> Tensor:
    method = LayerInformationLoss(
        lambda i, m: BERT(i, attention_mask=m).logits, BERT.get_input_embeddings(), STATE
    )
    return method.attribute(
        ids,
        None,
        (mask,),
        token_mask=mask,
        score="loss",
        return_input_shape=False,
        **{"solver": FAST, **settings},
    )


STATE = BERT.bert.encoder.layer[1]


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 8), min_size=1, max_size=4), st.integers(0, 2**31))
def test_a_padded_batch_is_its_single_sentences(lengths: list[int], seed: int) -> None:
    solver = Solver(draws=8, iterations=3, seed=seed)
    ids = torch.randint(1, 30, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    ids = ids * mask
    batch = bert_scores(ids, mask.long(), solver=solver)
    for i, length in enumerate(lengths):
        single = bert_scores(ids[i : i + 1, :length], mask[i : i + 1, :length].long(), solver=solver)
        torch.testing.assert_close(batch[i : i + 1, :length], single, rtol=1e-4, atol=1e-4)


def test_a_padded_batch_of_numbers_is_its_single_series() -> None:
    def two_sums(x: Tensor, mask: Tensor) -> Tensor:
        return torch.stack([(x * mask).sum(1), (x * mask).square().sum(1)], 1)

    def scores(x: Tensor, mask: Tensor) -> Tensor:
        return InformationLoss(two_sums).attribute(
            x, None, (mask,), token_mask=mask, max_sigma=5.0, solver=FAST
        )

    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [1, 1, 0, 0, 0]])
    torch.testing.assert_close(scores(X, mask)[:1, :3], scores(X[:1, :3], mask[:1, :3]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("selector", [(slice(None), 0), lambda state: state[:, :, :3]])
def test_a_part_of_a_state_does_not_depend_on_padding(selector: Any) -> None:
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    batch = bert_scores(IDS, mask, neuron_selector=selector)
    single = bert_scores(IDS[:1, :3], mask[:1, :3], neuron_selector=selector)
    torch.testing.assert_close(batch[:1, :3], single, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 3, 7])
def test_internal_batch_size_changes_only_the_memory(rows: int) -> None:
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    sliced = bert_scores(IDS, mask, internal_batch_size=rows)
    torch.testing.assert_close(sliced, bert_scores(IDS, mask), rtol=1e-4, atol=1e-4)


def test_a_seed_is_reproducible_and_seeds_differ() -> None:
    mask = torch.ones_like(IDS)
    first, again, other = (bert_scores(IDS, mask, solver=Solver(8, 2, seed=s)) for s in (5, 5, 6))
    assert torch.equal(first, again) and not torch.equal(first, other)


# Language models


def word_tokenizer() -> PreTrainedTokenizerFast:
    words = ["<unk>", "<s>", "the", "film", "was", "good", "bad", "very"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>")


def small_gpt2() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=2, n_positions=16))


def small_llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=8, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
        )
    )


@pytest.mark.parametrize("make", [small_gpt2, small_llama])
@pytest.mark.parametrize("target", ["good", "very good"])
def test_a_language_models_sequence_score_is_the_mean_over_output_tokens(make: Any, target: str) -> None:
    model, tokenizer = seeded(make), word_tokenizer()
    method = InformationLossLLMAttribution(
        LayerInformationLoss(model, model.get_input_embeddings()), tokenizer
    )
    with untouched(model):
        result = method.attribute(TextTokenInput("the film was", tokenizer), target=target, solver=FAST)
    assert result.token_attr.shape == (len(target.split()), 3)
    assert result.token_attr.isfinite().all()
    torch.testing.assert_close(result.seq_attr, result.token_attr.mean(0))


@pytest.mark.parametrize("score", ["loss", "signed"])
def test_a_language_models_token_score_is_that_of_its_log_probability(score: Any) -> None:
    model, tokenizer = seeded(small_gpt2), word_tokenizer()
    embedding = model.get_input_embeddings()
    prompt = TextTokenInput("the film was", tokenizer)
    result = InformationLossLLMAttribution(LayerInformationLoss(model, embedding), tokenizer).attribute(
        prompt, target="good", score=score, max_sigma=1.0, solver=FAST
    )
    log_probability = LayerInformationLoss(lambda ids: model(ids).logits[:, -1].log_softmax(1), embedding)
    direct = log_probability.attribute(prompt.inp_tensor, target=5, score=score, max_sigma=1.0, solver=FAST)
    torch.testing.assert_close(result.token_attr, direct.sum(-1), rtol=1e-4, atol=1e-4)
