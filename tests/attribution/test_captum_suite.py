"""Captum's generated suite, with our classes in place of integrated gradients and nothing added to the arguments.

The suite's logic is that of ``tests/attr/test_targets.py`` and ``tests/attr/test_hook_removal.py`` of Captum, which its
package does not ship; its cases are ``captum.testing.attr.helpers.test_config.config``.
"""

from __future__ import annotations

import copy
import unittest
from typing import Any

import pytest
import torch
from captum._utils.common import _format_additional_forward_args
from captum.attr import (
    IntegratedGradients,
    LayerIntegratedGradients,
    NeuronIntegratedGradients,
    NoiseTunnel,
)
from captum.attr._models.base import _set_deep_layer_value
from captum.testing.attr.helpers.gen_test_utils import get_target_layer, parse_test_config
from captum.testing.attr.helpers.test_config import config
from captum.testing.helpers.basic import assertTensorTuplesAlmostEqual, set_all_random_seeds
from captum.testing.helpers.basic_models import BasicModel_MultiLayer
from torch import Tensor, nn

from interp_plugin import InformationLoss, LayerInformationLoss, NeuronInformationLoss

OURS = {
    IntegratedGradients: InformationLoss,
    LayerIntegratedGradients: LayerInformationLoss,
    NeuronIntegratedGradients: NeuronInformationLoss,
}
SUITE = unittest.TestCase()
pytestmark = pytest.mark.filterwarnings(
    "ignore:what noise is added to is 0",
    "ignore:the state of example",
    "ignore:.*does not depend on its input",
)


class Case:
    """Return a copy of a case of the suite, so that tests do not affect each other."""

    def __init__(self, case: dict[str, Any], theirs: type) -> None:
        _, self.model, self.arguments, self.layer, self.tunnel, _ = parse_test_config(copy.deepcopy(case))
        self.name, self.theirs = case["name"], theirs
        self.delta = case.get("target_delta", 0.0001)
        self.arguments.pop("baselines", None)  # our method has no baselines

    def method(self) -> Any:
        where = () if self.layer is None else (get_target_layer(self.model, self.layer),)
        method = OURS[self.theirs](self.model, *where)
        return NoiseTunnel(method) if self.tunnel else method

    def run(self, **changes: Any) -> tuple[Tensor, ...]:
        set_all_random_seeds(1234)
        return as_tuple(self.method().attribute(**{**self.arguments, **changes}))


def as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def cases(*theirs: type, many_targets: bool = False) -> dict[str, Any]:
    """Cases of some of Captum's classes; ours refuses several layers at once with a clear error."""
    found = [
        Case(case, one)
        for case in config
        for one in case["algorithms"]
        if one in theirs and not isinstance(case.get("layer"), list)
    ]
    if many_targets:
        found = [case for case in found if isinstance(case.arguments.get("target"), (list, Tensor))]
    return {"argvalues": found, "ids": [f"{case.name}-{case.theirs.__name__}" for case in found]}


PRIMARY_AND_LAYER = cases(IntegratedGradients, LayerIntegratedGradients)
ALL = cases(*OURS)
TARGETS = cases(*OURS, many_targets=True)


def test_there_are_26_cases() -> None:
    assert len(PRIMARY_AND_LAYER["argvalues"]) == 26


@pytest.mark.parametrize("case", **ALL)
def test_every_case_runs_and_is_finite_and_of_the_shape_that_captum_gives(case: Case) -> None:
    found = case.run()
    where = () if case.layer is None else (get_target_layer(case.model, case.layer),)
    reference = case.theirs(case.model, *where)
    plain = {k: v for k, v in case.arguments.items() if not k.startswith("nt_") and k != "stdevs"}
    expected = as_tuple(reference.attribute(**plain, n_steps=2))
    assert [each.shape for each in found] == [each.shape for each in expected[: len(found)]]
    assert all(each.isfinite().all() and each.dtype == torch.float32 for each in found)


def alone(case: Case, i: int, count: int) -> dict[str, Any]:
    """The arguments of one example, as ``test_targets`` makes them."""
    targets, inputs = case.arguments["target"], case.arguments["inputs"]
    found = {
        "target": targets[i] if len(targets) == count else targets,
        "inputs": inputs[i : i + 1] if isinstance(inputs, Tensor) else tuple(x[i : i + 1] for x in inputs),
    }
    if "additional_forward_args" in case.arguments:
        given = _format_additional_forward_args(case.arguments["additional_forward_args"])
        found["additional_forward_args"] = tuple(
            each[i : i + 1] if isinstance(each, Tensor) else each for each in given
        )
    return found


@pytest.mark.parametrize("case", **TARGETS)
def test_targets(case: Case) -> None:
    together = case.run()
    targets, count = case.arguments["target"], len(together[0])
    for i in range(count):
        changes = alone(case, i, count)
        asked = [changes["target"]] + ([targets[i : i + 1]] if len(targets) == count else [])
        for target in asked:
            single = case.run(**{**changes, "target": target})
            part = tuple(each[i : i + 1] for each in together)
            assertTensorTuplesAlmostEqual(SUITE, part, single, delta=case.delta, mode="max")


@pytest.mark.parametrize("more", [{}, {"additional_forward_args": (None, True), "target": (1, 0)}])
def test_several_numbers_are_a_state_for_us_and_an_error_for_captum(more: dict[str, Any]) -> None:
    """``test_simple_target_missing_error`` and ``test_multi_target_error``: a state may have several elements."""
    with pytest.raises(AssertionError):
        IntegratedGradients(BasicModel_MultiLayer()).attribute(torch.zeros((1, 3)), **more)
    assert InformationLoss(BasicModel_MultiLayer()).attribute(torch.zeros((1, 3)), **more).isfinite().all()


class ErrorModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        raise AssertionError("Raising error on execution")


@pytest.mark.parametrize("mode", ["normal", "incorrect_target_or_neuron", "invalid_module"])
@pytest.mark.parametrize("case", **ALL)
def test_hook_removal(case: Case, mode: str) -> None:
    if mode == "invalid_module" and case.layer is None:
        pytest.skip("no layer to break")
    own = copy.copy(case)
    own.model, wrong = copy.deepcopy(case.model), {}
    if mode == "invalid_module":
        _set_deep_layer_value(own.model, case.layer, ErrorModule())
    if mode == "incorrect_target_or_neuron":
        wrong = {name: (9999,) * 20 for name in ("target", "neuron_selector") if name in case.arguments}
    if mode == "normal":
        own.run()
    else:
        with pytest.raises((AssertionError, ValueError) if "neuron_selector" in wrong else AssertionError):
            own.run(**wrong)
    for module in own.model.modules():
        assert not module._forward_hooks and not module._backward_hooks and not module._forward_pre_hooks
