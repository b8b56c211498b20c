"""Calls in the style of Captum's methods: order of arguments, settings, masks and wrappers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import NoiseTunnel
from captum.metrics import sensitivity_max
from test_conformance import BERT, FAST, IDS, MLP, X, normal, seeded, untouched
from torch import Tensor, nn

from interp_plugin import InformationLoss, LayerCall, LayerInformationLoss, NeuronInformationLoss
from interp_plugin.attribution import inferred_token_mask, parameter_names
from interp_plugin.method.perturbation import SelectorError

WORDS = BERT.bert.embeddings.word_embeddings


# The attention mask among the model's arguments


def with_mask(ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    return BERT(ids, attention_mask=attention_mask).logits


def with_types(
    ids: Tensor, token_type_ids: Tensor, position_ids: Tensor | None, attention_mask: Tensor
) -> Tensor:
    return BERT(
        ids, token_type_ids=token_type_ids, position_ids=position_ids, attention_mask=attention_mask
    ).logits


def unnamed(*given: Tensor) -> Tensor:
    return with_mask(*given)


RAGGED = torch.tensor([[3, 14, 15, 9, 2, 6], [6, 5, 0, 0, 0, 0]])
MASK = (RAGGED > 0).long()
TYPES = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0]])


@pytest.mark.parametrize(
    "forward, arguments, alone",
    [
        (with_mask, MASK, torch.ones(1, 2)),
        (with_mask, MASK.float(), torch.ones(1, 2)),
        (unnamed, (MASK.bool(),), torch.ones(1, 2)),
        (with_types, (TYPES, None, MASK), (TYPES[1:, :2], None, torch.ones(1, 2))),
    ],
    ids=["named", "float", "unnamed", "with token types"],
)
@pytest.mark.parametrize("target, layer", [(1, None), (None, BERT.bert.encoder.layer[0])])
def test_a_short_text_in_a_padded_batch_gives_what_it_gives_alone(
    forward: Any, arguments: Any, alone: Any, target: int | None, layer: nn.Module | None
) -> None:
    method = LayerInformationLoss(forward, WORDS, layer)
    batch = method.fit(RAGGED, target, arguments, solver=FAST)
    single = method.fit(RAGGED[1:, :2], target, alone, solver=FAST)
    torch.testing.assert_close(batch.loss()[1:, :2], single.loss(), rtol=1e-4, atol=0)
    told = method.fit(RAGGED, target, arguments, token_mask=MASK, solver=FAST)
    assert torch.equal(batch.sigma, told.sigma)


def test_embeddings_as_inputs_come_with_their_mask_too() -> None:
    def forward(embeddings: Tensor, mask: Tensor) -> Tensor:
        return BERT(inputs_embeds=embeddings, attention_mask=mask).logits

    x = normal(2, 6, 8)
    method = InformationLoss(forward)
    batch = method.fit(x, 1, MASK, solver=FAST)
    single = method.fit(x[1:, :2], 1, MASK[1:, :2], solver=FAST)
    torch.testing.assert_close(batch.sigma[1:, :2], single.sigma, rtol=1e-4, atol=0)


def test_a_given_token_mask_takes_precedence_over_the_models() -> None:
    method = LayerInformationLoss(with_mask, WORDS)
    every = method.fit(RAGGED, 1, MASK, token_mask=torch.ones(2, 6), solver=FAST)
    assert (every.sigma > 0).all()


def named(name: str) -> Callable[..., Any]:
    return eval(f"lambda ids, {name}: ids")  # a function whose second parameter has this name


@pytest.mark.parametrize("name", ["attention_mask", "mask", "input_mask", "attn_mask", "x"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_masks_are_recognised_by_name_or_padding(name: str, side: str) -> None:
    ids, mask = (RAGGED, MASK) if side == "right" else (RAGGED.flip(1), MASK.flip(1))
    found = inferred_token_mask(named(name), [ids], [mask])
    assert found is not None
    assert torch.equal(found, mask.bool())


def test_a_padding_mask_of_torch_is_true_for_padding() -> None:
    for name in ("key_padding_mask", "src_key_padding_mask"):
        found = inferred_token_mask(named(name), [RAGGED], [MASK == 0])
        assert found is not None
        assert torch.equal(found, MASK.bool())


@pytest.mark.parametrize(
    "name, argument",
    [
        ("token_type_ids", TYPES),
        ("token_type_ids", MASK),  # looks like a mask
        ("segment_ids", MASK),
        ("labels", MASK),
        ("global_attention_mask", MASK),
        ("decoder_attention_mask", MASK),
        ("special_tokens_mask", MASK),
        ("x", TYPES),  # token types without a name
        ("x", MASK.flip(1)),  # not padding: the ids at masked places differ
        ("x", MASK.float()),
        ("x", torch.tensor([[1, 1, 0, 1, 1, 1], [1, 1, 0, 0, 0, 0]])),  # a hole
        ("x", 1 - MASK),  # True for padding: needs a name that says so
        ("attention_mask", 2 * MASK),
        ("attention_mask", (1 - MASK) * -1e4),
        ("attention_mask", MASK[:, :4]),
        ("attention_mask", MASK * 0),  # no token is left
        ("attention_mask", torch.ones(2, 6)),  # nothing to leave out
    ],
)
def test_other_arguments_are_not_taken_for_padding_masks(name: str, argument: Tensor) -> None:
    assert inferred_token_mask(named(name), [RAGGED], [argument]) is None


def test_argument_names_are_those_of_the_model_inside_wrappers() -> None:
    names = parameter_names(BERT)
    assert names[:2] == ["input_ids", "attention_mask"]
    assert parameter_names(nn.DataParallel(BERT)) == names
    assert parameter_names(torch.compile(BERT, backend="eager")) == names
    assert parameter_names(unnamed) == []


# Orders and settings of other methods


METHOD = InformationLoss(MLP)


@pytest.mark.parametrize(
    "given, line",
    [
        ((0, 1), r"attribute\(inputs, target=1\)"),
        ((None, 1), r"attribute\(inputs, target=1\)"),
        ((0, np.int64(1)), "target="),
        ((0, [1, 0, 2, 1]), r"target=\[1, 0, 2, 1\]"),
        ((0.0,), "target="),
        ((torch.zeros_like(X),), "target="),
        ((torch.zeros_like(X), torch.tensor([1, 0, 2, 1])), "target="),
        ((torch.zeros(4, 5, dtype=torch.long), 1), r"attribute\(inputs, target=1\)"),
        (((torch.zeros_like(X),), 1), r"attribute\(inputs, target=1\)"),
    ],
    ids=str,
)
def test_baselines_second_and_the_target_third_are_refused_with_the_line_to_write(
    given: Any, line: str
) -> None:
    with pytest.raises(TypeError, match=f"integrated gradients.*write .*{line}"), untouched(MLP):
        METHOD.attribute(X, *given)
    with pytest.raises(TypeError, match=r"write fit\(inputs"):
        METHOD.fit(X, *given)


def test_our_argument_order_is_accepted() -> None:
    def scaled(x: Tensor, scale: Any) -> Tensor:
        return MLP(x) * scale

    method, expected = InformationLoss(scaled), METHOD.attribute(X, 1, solver=FAST)
    for given in ((1, (2,)), (1, torch.tensor([2.0])), (1, torch.ones(4, 1) * 2)):
        torch.testing.assert_close(method.attribute(X, *given, solver=FAST), expected)
    named = method.attribute(X, target=1, additional_forward_args=2, solver=FAST)
    torch.testing.assert_close(named, expected)


def test_a_baseline_after_the_neuron_is_refused() -> None:
    with pytest.raises(TypeError, match=r"inputs, neuron_selector, baselines.*write attribute\(inputs, 2\)"):
        NeuronInformationLoss(MLP, MLP[0]).attribute(X, 2, 0.0)


@pytest.mark.parametrize(
    "setting, way",
    [
        ({"baselines": 0}, "leave it out"),
        ({"n_steps": 50}, "solver"),
        ({"method": "gausslegendre"}, "leave it out"),
        ({"return_convergence_delta": True}, "fit"),
        ({"stdevs": 0.1}, "NoiseTunnel"),
        ({"nt_samples": 5}, "NoiseTunnel"),
        ({"sliding_window_shapes": (1,)}, "feature_mask"),
        ({"perturbations_per_eval": 8}, "internal_batch_size"),
        ({"n_samples": 25}, "solver"),
        ({"attribute_to_layer_input": True}, "LayerInformationLoss"),
    ],
    ids=str,
)
def test_a_setting_of_other_methods_is_named_with_the_line_to_write(
    setting: dict[str, Any], way: str
) -> None:
    [name] = setting
    for call in (METHOD.attribute, METHOD.fit):
        with pytest.raises(
            TypeError, match=f"{name}=.* means nothing .*{way}.* write .*target=1, rate=0.2"
        ) as caught:
            call(X, target=1, rate=0.2, **setting)
        assert "\n" not in str(caught.value)


def test_several_settings_are_named_at_once() -> None:
    with pytest.raises(TypeError, match=r"n_steps=20, method='riemann_trapezoid' are settings"):
        LayerInformationLoss(with_mask, WORDS).attribute(
            IDS, target=1, n_steps=20, method="riemann_trapezoid"
        )
    with pytest.raises(TypeError, match="NeuronInformationLoss"):
        NeuronInformationLoss(MLP, MLP[0]).attribute(X, 2, n_steps=20)
    with pytest.raises(TypeError, match="baselines"):
        NoiseTunnel(METHOD).attribute(X, target=1, baselines=X * 0, nt_samples=2)
    with pytest.raises(TypeError, match="unexpected keyword argument 'steps'"):
        METHOD.attribute(X, steps=3)


@pytest.mark.parametrize("name", ["attribute", "fit"])
def test_a_target_beside_the_neuron_is_refused_with_the_line_to_write(name: str) -> None:
    call = getattr(NeuronInformationLoss(MLP, MLP[0]), name)
    with pytest.raises(
        TypeError,
        match=rf"^target=1 .*neuron_selector picks the state.* write {name}\(inputs, 2, rate=0.2\)$",
    ):
        call(X, 2, target=1, rate=0.2)
    with pytest.raises(TypeError, match=r"write attribute\(inputs, 1\)$"):
        METHOD.attribute(X, 1, n_steps=20)


@pytest.mark.parametrize("name", ["attribute", "fit"])
def test_a_warning_is_shown_at_the_users_line(name: str) -> None:
    model = nn.Sequential(nn.Dropout(0.1), seeded(lambda: nn.Linear(5, 2))).train()
    with pytest.warns(UserWarning, match="training mode") as caught:
        getattr(InformationLoss(model), name)(X, solver=FAST)
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="training mode") as caught:
        NoiseTunnel(InformationLoss(model)).attribute(X, nt_samples=1, solver=FAST)
    assert caught[0].filename == __file__


def test_settings_without_effect_are_accepted() -> None:
    found = METHOD.attribute(X, target=1, baselines=None, return_convergence_delta=False, solver=FAST)
    assert torch.equal(found, METHOD.attribute(X, 1, solver=FAST))


def test_the_signature_stays_readable_and_captum_finds_what_it_wraps() -> None:
    for method in (InformationLoss, LayerInformationLoss, NeuronInformationLoss):
        parameters = list(inspect.signature(method.attribute).parameters)
        assert parameters[:2] == ["self", "inputs"] and "baselines" not in parameters
        assert callable(method.attribute.__wrapped__)


def test_attribute_to_layer_input_moves_the_noise_to_the_layers_input() -> None:
    block = BERT.bert.encoder.layer[0]
    method = LayerInformationLoss(with_mask, block)
    before = LayerInformationLoss(with_mask, BERT.bert.embeddings)  # its output is what the block is given
    scale = 10 * BERT.bert.embeddings(IDS).std(dim=(1, 2), unbiased=False).detach()
    given = {"target": 1, "max_sigma": scale, "solver": FAST}
    expected = before.attribute(IDS, **given)
    found = method.attribute(IDS, attribute_to_layer_input=True, **given)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert method.layer is block  # and the method is unchanged
    assert torch.equal(
        method.attribute(IDS, attribute_to_layer_input=False, **given), method.attribute(IDS, **given)
    )
    of_call = LayerInformationLoss(with_mask, LayerCall(block)).attribute(
        IDS, attribute_to_layer_input=True, **given
    )
    assert torch.equal(of_call, found)


def test_attribute_to_neuron_input_reads_the_neurons_before_the_layer() -> None:
    method = NeuronInformationLoss(MLP, MLP[1])  # a tanh
    found = method.attribute(X, 2, attribute_to_neuron_input=True, solver=FAST)
    assert torch.equal(found, NeuronInformationLoss(MLP, MLP[0]).attribute(X, 2, solver=FAST))


# Wrappers that repeat the examples


EACH = {
    "token_mask": torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]]),
    "max_sigma": torch.tensor([3.0, 5.0, 4.0, 6.0]),
    "state_std": torch.tensor([[1.0, 2.0, 1.0], [0.5, 0.5, 2.0], [1.0, 1.0, 1.0], [3.0, 1.0, 2.0]]),
}


@pytest.mark.parametrize("names", [["token_mask"], ["max_sigma"], ["state_std"], list(EACH)], ids=str)
def test_noise_tunnel_repeats_per_example_arguments(names: list[str]) -> None:
    each = {name: EACH[name] for name in names}
    plain = METHOD.attribute(X, solver=FAST, **each)
    given = {"nt_samples": 3, "stdevs": 0.0, "solver": FAST}
    torch.testing.assert_close(NoiseTunnel(METHOD).attribute(X, **given, **each), plain, rtol=1e-4, atol=1e-4)
    parts = NoiseTunnel(METHOD).attribute(X, nt_samples_batch_size=2, **given, **each)
    torch.testing.assert_close(parts, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("names", [["token_mask"], ["max_sigma"], ["state_std"], list(EACH)], ids=str)
def test_sensitivity_max_is_zero_at_radius_zero_with_per_example_settings(names: list[str]) -> None:
    each = {name: EACH[name] for name in names}
    found = sensitivity_max(
        METHOD.attribute, X, perturb_radius=0.0, n_perturb_samples=3, norm_ord=2, solver=FAST, **each
    )
    assert found.shape == (4,)
    assert found.max() < 1e-4


def test_a_feature_mask_per_example_works_with_both() -> None:
    mask = torch.tensor([[0, 0, 1, 1, 2], [0, 1, 1, 2, 2], [0, 1, 2, 2, 2], [0, 0, 0, 1, 2]])
    plain = METHOD.attribute(X, feature_mask=mask, solver=FAST)
    smooth = NoiseTunnel(METHOD).attribute(X, nt_samples=2, stdevs=0.0, feature_mask=mask, solver=FAST)
    torch.testing.assert_close(smooth, plain, rtol=1e-4, atol=1e-4)
    moved = sensitivity_max(
        METHOD.attribute, X, perturb_radius=0.0, n_perturb_samples=2, feature_mask=mask, solver=FAST
    )
    assert moved.max() < 1e-4


@pytest.mark.parametrize("selector", [9, (9,), (0, 0)])
def test_a_bad_neuron_selector_is_an_assertion_error_as_captums_is(selector: Any) -> None:
    with pytest.raises(AssertionError) as caught:
        NeuronInformationLoss(MLP, MLP[0]).attribute(X, selector, solver=FAST)
    assert isinstance(caught.value, (SelectorError, ValueError))


def test_attribute_to_layer_input_refuses_a_layer_that_runs_twice() -> None:
    block = seeded(lambda: nn.Linear(5, 5))
    method = LayerInformationLoss(lambda x: block(block(x)), block)
    with pytest.raises(ValueError, match="fired 2 times"):
        method.attribute(X, attribute_to_layer_input=True)
