"""Bad input gives a clear error, ValueError or TypeError, and changes nothing."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_conformance import FAST, IDS, MLP, LSTMClassifier, X, normal, seeded, untouched
from torch import Tensor, nn

from interp_plugin import InformationLoss, LayerInformationLoss, NeuronInformationLoss, Solver
from interp_plugin.method.perturbation import ExampleError, SelectorError

TOKENS = normal(2, 3, 4)  # 2 examples of 3 tokens of 4 elements


class Net(nn.Module):
    """An embedding, a hidden layer and a head, with one layer that never fires."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 4)
        self.hidden = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)
        self.unused = nn.Linear(4, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.hidden(self.embedding(ids)).tanh().mean(1))


class Twice(nn.Module):
    """One module used for both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return (self.embedding(ids) * self.embedding(ids.flip(1)).tanh()).sum(1)


NET, TWICE = seeded(Net), seeded(Twice)


def refuses(
    error: type[Exception], parts: list[str], call: Callable[[], Any], model: nn.Module | None = None
) -> None:
    """The call raises ``error`` with all parts in its message, in one sentence, and the model stays as it was."""
    with untouched(model or MLP), pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) in (error, ExampleError)
    assert all(part in message for part in parts), message
    assert "\n" not in message


def attribute(inputs: Any = X, forward: Any = MLP, **arguments: Any) -> Any:
    return InformationLoss(forward).attribute(inputs, **{"solver": FAST, **arguments})


def nan_at(tensor: Tensor, example: int, value: float = torch.nan) -> Tensor:
    spoiled = tensor.clone()
    spoiled[example, 0] = value
    return spoiled


# Inputs


@pytest.mark.parametrize("dtype", [torch.long, torch.int32, torch.bool])
def test_integer_inputs_are_refused_with_a_hint_at_the_layer_class(dtype: torch.dtype) -> None:
    refuses(TypeError, [str(dtype), "floating point", "LayerInformationLoss"], lambda: attribute(X.to(dtype)))


@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (0,), (2, 0, 4)])
def test_an_empty_batch_or_sequence(shape: tuple[int, ...]) -> None:
    refuses(ValueError, [str(shape), "empty", "at least one"], lambda: attribute(torch.zeros(shape)))


def test_an_empty_sequence_of_ids() -> None:
    ids = torch.zeros(2, 0, dtype=torch.long)
    call = lambda: LayerInformationLoss(NET, NET.embedding).attribute(ids, solver=FAST)  # noqa: E731
    refuses(ValueError, ["(2, 0)", "empty"], call, NET)


def test_inputs_without_a_batch_dimension() -> None:
    refuses(ValueError, ["(5,)", "(B, ...)", "unsqueeze(0)"], lambda: attribute(X[0]))


def test_inputs_whose_batch_sizes_differ() -> None:
    refuses(ValueError, ["[4, 3]", "must agree"], lambda: attribute((X, X[:3]), lambda x, y: x))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_an_input_that_is_not_finite_is_named(value: float) -> None:
    refuses(ValueError, ["inputs of example 2", "NaN or infinite"], lambda: attribute(nan_at(X, 2, value)))


@pytest.mark.parametrize("layer", ["hidden", "head"])
def test_weights_that_are_not_finite(layer: str) -> None:
    model = seeded(Net)
    model.get_submodule(layer).weight.data[0, 0] = torch.nan
    method = LayerInformationLoss(model, model.embedding)
    with pytest.raises(
        ValueError, match="NaN or infinite values are in the state of example 0 before any noise"
    ):
        method.attribute(IDS, solver=FAST)


def test_infinite_weights_that_saturate_are_found_in_the_gradient() -> None:
    model = seeded(Net)
    model.hidden.weight.data[0, 0] = torch.inf
    with pytest.raises(ValueError, match="example 0 in the closed form; check its weights"):
        LayerInformationLoss(model, model.embedding).attribute(IDS, solver=FAST)


def test_an_embedding_that_is_not_finite() -> None:
    model = seeded(Net)
    model.embedding.weight.data[6] = torch.nan  # the second sentence's first word
    with pytest.raises(ValueError, match="inputs of example 1"):
        LayerInformationLoss(model, model.embedding).attribute(IDS, solver=FAST)


def test_a_model_that_fails_only_under_noise_names_example_and_step() -> None:
    inputs = torch.stack([torch.full((5,), 50.0), torch.full((5,), 1.1)])
    refuses(
        ValueError, ["example 1", "refinement", "NaN or infinite"],
        lambda: attribute(inputs, lambda x: (x - 1).sqrt(), max_sigma=5.0, rate=10.0),
    )  # fmt: skip


def test_a_gradient_that_is_not_finite_names_example_and_step() -> None:
    inputs = X.abs()
    inputs[3, 0] = 0.0  # sqrt has no slope there
    refuses(ValueError, ["example 3", "closed form"], lambda: attribute(inputs, lambda x: x.sqrt().sum(1)))


def test_constant_inputs_have_a_scale_too() -> None:
    constant = torch.full((2, 5), 0.3)
    assert attribute(constant).isfinite().all()
    assert attribute(constant).equal(attribute(constant, input_std=0.3))


# Layers


def test_a_layer_that_never_fires() -> None:
    for noise, state, name in ((NET.unused, None, "noise"), (NET.embedding, NET.unused, "state")):
        method = LayerInformationLoss(NET, noise, state)
        parts = [f"{name} layer fired 0 times", "exactly once", "pick a module"]
        refuses(ValueError, parts, lambda method=method: method.attribute(IDS, solver=FAST), NET)


def test_a_layer_that_fires_twice() -> None:
    noise = LayerInformationLoss(TWICE, TWICE.embedding)
    refuses(ValueError, ["noise layer fired 2 times"], lambda: noise.attribute(IDS, solver=FAST), TWICE)
    state = NeuronInformationLoss(lambda x: MLP(MLP(x)[:, :1] + x), MLP[0])
    refuses(ValueError, ["state layer fired 2 times"], lambda: state.attribute(X, 0, solver=FAST))


def test_a_layer_without_a_batch() -> None:
    model = seeded(lambda: nn.Embedding(3, 4))  # of positions
    method = LayerInformationLoss(lambda x: x + model(torch.arange(3)), model)
    refuses(
        ValueError, ["noise layer", "(3, 4)", "2 examples", "batch"],
        lambda: method.attribute(TOKENS, solver=FAST), model,
    )  # fmt: skip


def test_a_layer_that_gives_no_tensor() -> None:
    class Words(nn.Module):
        def forward(self, x: Tensor) -> dict[str, list[float]]:
            return {"words": x.tolist()}

    words = Words()
    method = LayerInformationLoss(lambda x: torch.tensor(words(x)["words"]), words)
    refuses(TypeError, ["noise layer is a dict", "tensor"], lambda: method.attribute(X, solver=FAST), words)


def test_a_state_layer_that_is_a_name() -> None:
    refuses(TypeError, ["'hidden', a str", "get_submodule"], lambda: InformationLoss(NET, "hidden"), NET)


# States


@pytest.mark.parametrize("forward", [lambda x: x[:1], lambda x: x.mean(0, keepdim=True)])
def test_a_model_that_does_not_keep_the_batch(forward: Any) -> None:
    """With one example its output looks right, until many noisy ones are run together."""
    refuses(ValueError, ["noisy inputs", "must be the batch"], lambda: attribute(X[:1], forward))


def test_a_state_that_ignores_the_input_keeps_nothing_and_is_flagged() -> None:
    method = InformationLoss(lambda x: torch.ones(len(x), 3) + 0 * x[:, :1])
    with pytest.warns(UserWarning, match="does not depend on its input"):
        fit = method.fit(X, max_sigma=2.0, solver=FAST)
    assert torch.equal(fit.sigma, torch.full((4, 5), 2.0)) or torch.allclose(fit.sigma, torch.tensor(2.0))
    assert (fit.kept() == 0).all() and fit.at_cap.all()
    assert (fit.distortion == 0).all() and (fit.standard_error == 0).all()
    assert fit.regime_index.isfinite().all() and fit.loss().isfinite().all()


def test_a_state_without_any_graph_to_the_input_is_the_same_case() -> None:
    with pytest.warns(UserWarning, match="does not depend on its input"):
        kept = attribute(forward=lambda x: torch.ones(len(x), 3), score="kept")
    assert (kept == 0).all()


def test_a_state_read_before_the_noise_enters_is_the_same_case() -> None:
    method = LayerInformationLoss(NET, NET.hidden, state_layer=NET.embedding)
    with pytest.warns(UserWarning, match="does not depend on its input"):
        kept = method.attribute(IDS, score="kept", solver=FAST)
    assert (kept == 0).all()


def test_a_batch_with_one_such_example_names_it_and_fits_the_others() -> None:
    live = torch.tensor([[1.0], [0.0], [1.0], [1.0]])
    method = InformationLoss(lambda x, live: 1 + MLP(x) * live)
    with pytest.warns(UserWarning, match="example 1 does not depend"):
        kept = method.attribute(X, None, live, score="kept", solver=FAST)
    assert (kept[1] == 0).all() and (kept[[0, 2, 3]].sum(1) > 0).all()


@pytest.mark.parametrize(
    "forward",
    [
        lambda x: MLP(x).detach(),
        lambda x: MLP(x.detach()),
        lambda x: torch.from_numpy(MLP(x).detach().numpy()),
        lambda x: (100 * x).argmax(1, keepdim=True).float() + 1,
        lambda x: (10 * MLP(x)).round(),
        lambda x: MLP((10 * x).round()),
    ],
    ids=["detach", "detached input", "numpy", "argmax", "rounded", "rounded input"],
)
def test_a_state_that_moves_but_has_no_gradient(forward: Any) -> None:
    refuses(
        ValueError, ["moves with its input", "no gradient", "before that step"],
        lambda: attribute(forward=forward, state_std=1.0),
    )  # fmt: skip


@pytest.mark.parametrize("forward", [lambda x: MLP(x).argmax(1), lambda x: MLP(x) > 0])
def test_an_integer_state(forward: Any) -> None:
    refuses(TypeError, ["model's output", "floating point"], lambda: attribute(forward=forward))


def test_a_state_without_a_batch_dimension() -> None:
    refuses(ValueError, ["model's output", "()", "batch"], lambda: attribute(forward=lambda x: MLP(x).sum()))
    refuses(ValueError, ["(3,)", "4 examples"], lambda: attribute(forward=lambda x: MLP(x).sum(0)))


def test_a_selector_that_loses_the_batch_or_is_no_tensor() -> None:
    refuses(ValueError, ["selected state", "batch"], lambda: attribute(neuron_selector=lambda s: s.sum()))
    refuses(TypeError, ["selected state", "list"], lambda: attribute(neuron_selector=lambda s: s.tolist()))


def test_a_state_of_zeros_has_unit_1_with_a_warning() -> None:
    zeros = torch.zeros(2, 5)
    known = {"state_std": 1.0, "input_std": 1.0}
    with pytest.warns(UserWarning, match="state of example 0 is 0 throughout.*state_std"):
        found = attribute(zeros, lambda x: x, input_std=1.0)
    assert found.isfinite().all() and found.equal(attribute(zeros, lambda x: x, **known))


def test_a_state_std_of_zeros_leaves_nothing_to_measure() -> None:
    refuses(ValueError, ["state of example 0", "zero state_std"], lambda: attribute(state_std=0.0))


# Arguments


@pytest.mark.parametrize("rate", [0, 0.0, -0.1, torch.nan, torch.inf])
def test_a_rate_that_is_not_positive(rate: float) -> None:
    refuses(ValueError, [f"rate is {rate}", "positive"], lambda: attribute(rate=rate))


def test_masks_that_do_not_broadcast() -> None:
    mask = torch.ones(2, 2)
    refuses(
        ValueError,
        ["token_mask", "(2, 2)", "(2, 3)"],
        lambda: attribute(TOKENS, forward=flat, token_mask=mask),
    )


def flat(x: Tensor) -> Tensor:
    return x.square().flatten(1)


def test_every_token_masked_names_the_example() -> None:
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    refuses(
        ValueError, ["example 1", "every token is masked", "unmasked"],
        lambda: attribute(TOKENS, forward=flat, token_mask=mask),
    )  # fmt: skip


@pytest.mark.parametrize(
    "mask",
    [torch.zeros(2, 3, dtype=torch.long), torch.zeros(3, 3, 4, dtype=torch.long), torch.zeros(2, 3, 4)],
    ids=["missing dimension", "other batch", "not integers"],
)
def test_a_feature_mask_that_does_not_fit(mask: Tensor) -> None:
    refuses(
        ValueError, ["feature_mask", str(tuple(mask.shape)), str(mask.dtype), "(2, 3, 4)"],
        lambda: attribute(TOKENS, forward=flat, feature_mask=mask),
    )  # fmt: skip


def test_a_feature_mask_for_one_of_two_inputs() -> None:
    mask = torch.zeros(1, 3, 4, dtype=torch.long)
    refuses(
        ValueError, ["1 tensors for 2 inputs"],
        lambda: attribute((TOKENS, TOKENS), forward=lambda x, y: flat(x + y), feature_mask=mask),
    )  # fmt: skip


@pytest.mark.parametrize("std", [torch.ones(2), torch.ones(5, 3), torch.ones(1, 1, 3)])
def test_a_state_std_that_does_not_broadcast(std: Tensor) -> None:
    refuses(
        ValueError, ["state_std", str(tuple(std.shape)), "(4, 3)", "estimate_state_std"],
        lambda: attribute(state_std=std),
    )  # fmt: skip


@pytest.mark.parametrize("std", [-1.0, torch.nan, torch.inf, torch.tensor([1.0, -1.0, 1.0])])
def test_a_state_std_that_is_no_standard_deviation(std: Any) -> None:
    refuses(ValueError, ["state_std", "negative, NaN or infinite"], lambda: attribute(state_std=std))


@pytest.mark.parametrize("cap", [torch.ones(3), torch.ones(4, 5)])
def test_a_max_sigma_that_does_not_broadcast(cap: Tensor) -> None:
    refuses(ValueError, ["max_sigma", str(tuple(cap.shape)), "4 examples"], lambda: attribute(max_sigma=cap))


@pytest.mark.parametrize("cap", [0.0, -1.0, torch.nan, torch.inf])
def test_a_max_sigma_that_is_not_positive(cap: float) -> None:
    refuses(ValueError, ["max_sigma of example 0", "positive finite"], lambda: attribute(max_sigma=cap))


def test_a_target_together_with_a_state_layer() -> None:
    method = InformationLoss(MLP, state_layer=MLP[0])
    refuses(ValueError, ["target=1", "Linear", "neuron_selector"], lambda: method.attribute(X, target=1))


@pytest.mark.parametrize("target", [(9, 9), [0, 1], torch.tensor([0, 1]), "first"])
def test_a_bad_target_is_captums_assertion(target: Any) -> None:
    with untouched(MLP), pytest.raises(AssertionError):
        attribute(target=target)


def test_a_target_out_of_range_is_an_error() -> None:
    with untouched(MLP), pytest.raises((AssertionError, IndexError)):
        attribute(target=7)


@pytest.mark.parametrize("selector", [9, (9,), (0, 0), -9])
def test_a_selector_out_of_range(selector: Any) -> None:
    method = NeuronInformationLoss(MLP, MLP[0])
    refuses(
        SelectorError, [f"neuron_selector {selector!r}", "(4, 6)", "callable"],
        lambda: method.attribute(X, selector, solver=FAST),
    )  # fmt: skip


def test_a_selector_of_no_elements() -> None:
    method = NeuronInformationLoss(MLP, MLP[0])
    refuses(ValueError, ["state"], lambda: method.attribute(X, (slice(9, 12),), solver=FAST))


@pytest.mark.parametrize("score", ["kep", None, "Loss", ""])
def test_an_unknown_score_lists_the_known(score: Any) -> None:
    refuses(
        ValueError, [repr(score), "'loss'", "'kept'", "'sigma'", "'signed'"], lambda: attribute(score=score)
    )


@pytest.mark.parametrize("rows", [0, -3])
def test_an_internal_batch_of_no_rows(rows: int) -> None:
    parts = [f"internal_batch_size is {rows}", "positive", "None"]
    refuses(ValueError, parts, lambda: attribute(internal_batch_size=rows))


@pytest.mark.parametrize(
    "settings, parts",
    [
        ({"draws": 1}, ["draws is 1", "at least 4"]),
        ({"draws": 0}, ["draws is 0"]),
        ({"iterations": -1}, ["iterations is -1", "closed form"]),
        ({"tolerance": 0.0}, ["tolerance is 0", "at most 1"]),
        ({"tolerance": 2.0}, ["tolerance is 2", "factor of 2.7"]),
        ({"tolerance": torch.nan}, ["tolerance is nan"]),
        ({"seed": -1}, ["seed is -1", "non-negative"]),
    ],
)
def test_a_solver_that_cannot_work(settings: dict[str, Any], parts: list[str]) -> None:
    refuses(ValueError, parts, lambda: Solver(**settings))


# Training mode


def warnings_of(call: Callable[[], Any]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    messages = [str(warning.message) for warning in caught]
    return [m for m in messages if "smaller rate" not in m and "did not converge" not in m]  # of the numbers


def with_dropout(p: float) -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Linear(5, 6), nn.Dropout(p), nn.Linear(6, 3), nn.Dropout(p)))


def test_dropout_in_training_mode_warns_once_and_stays_on() -> None:
    model = with_dropout(0.1).train()
    (message,) = warnings_of(lambda: attribute(forward=model))
    assert "training mode" in message and "dropout" in message and "model.eval()" in message
    assert all(module.training for module in model.modules())


def test_dropout_in_training_mode_warns_from_every_class() -> None:
    model = with_dropout(0.1).train()
    methods = (LayerInformationLoss(model, model[0]), NeuronInformationLoss(model, model[2]))
    first, second = methods
    assert len(warnings_of(lambda: first.attribute(X, solver=FAST))) == 1
    assert len(warnings_of(lambda: second.attribute(X, 0, solver=FAST))) == 1


def test_dropout_in_training_mode_warns_through_a_function() -> None:
    model = with_dropout(0.1).train()
    (message,) = warnings_of(lambda: attribute(forward=lambda x: model(x)))
    assert "training mode" in message
    assert not warnings_of(lambda: attribute(forward=lambda x: MLP(x)))


def test_a_forward_that_refers_to_an_unset_variable_is_accepted() -> None:
    def forward(x: Tensor) -> Tensor:
        return MLP(x) if len(x) else late(x)

    attribute(forward=forward)
    late = MLP  # looking up the forward's names used to raise "Cell is empty"


def test_the_warning_points_at_the_users_line() -> None:
    model = with_dropout(0.1).train()
    with pytest.warns(UserWarning, match="training mode") as caught:
        InformationLoss(model).attribute(X, solver=FAST)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.LSTM(4, 6, num_layers=2, dropout=0.1, batch_first=True),
        lambda: Attention(4, 2, dropout=0.1, batch_first=True),
    ],
    ids=["LSTM", "attention"],
)
def test_dropout_inside_a_layer_warns_too(make: Any) -> None:
    model = seeded(make).train()
    method = InformationLoss(lambda x: model(x)[0], state_layer=model)
    assert len(warnings_of(lambda: method.fit(TOKENS, solver=FAST))) == 1


class Attention(nn.MultiheadAttention):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x, x, x)


@pytest.mark.parametrize("model", [with_dropout(0.1), with_dropout(0.0).train(), seeded(LSTMClassifier)])
def test_without_dropout_there_is_no_warning(model: nn.Module) -> None:
    if isinstance(model, LSTMClassifier):
        method = LayerInformationLoss(model.train(), model.embedding)
        assert not warnings_of(lambda: method.attribute(IDS, solver=FAST))
    else:
        assert not warnings_of(lambda: attribute(forward=model))


def test_an_error_of_one_example_carries_its_number() -> None:
    """So that callers who know examples by another name need not read the message."""
    inputs = torch.ones(3, 2, 4)
    inputs[1, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="inputs of example 1 ") as caught:
        InformationLoss(lambda x: x.flatten(1)).attribute(inputs)
    assert isinstance(caught.value, ExampleError) and caught.value.example == 1
    assert "inputs of the second text before" in str(caught.value.named("the second text"))
