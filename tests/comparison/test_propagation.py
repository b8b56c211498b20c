"""GIM and AttnLRP: against a forward written out with the papers' equations, and the authors' packages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from by_formula import by_formula
from tiny_models import tiny
from torch import Tensor

from interp_plugin.comparison.captum_methods import baseline_of
from interp_plugin.comparison.interface import Answer, Inputs
from interp_plugin.comparison.methods import METHODS
from interp_plugin.comparison.propagation import _PRODUCTS, _gradient, _plain, _rules, following, slope
from interp_plugin.text.states import State

GIM, LRP = METHODS["GIM"], METHODS["AttnLRP"]
# lxt 2.1 with transformers 4.52.4, efficient AttnLRP of the difference of the two logits: gradient x embedding
LXT = {
    "bert": [-0.152607262, 0.040203586, -0.012624171, -0.000289445, 0.000773890, -0.011489608],
    "llama": [0.011585551, -0.040049881, 0.080733523, 1.489892721, -2.724711895],
}


class Product(torch.autograd.Function):
    """A matrix product; each factor gets half of its gradient."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return a @ b

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        return gradient @ b.mT / 2, a.mT @ gradient / 2


class Softmax(torch.autograd.Function):
    """Of the last dimension; backward with the Jacobian at ``x / temperature``, diag(s) - s s'."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward((x / temperature).softmax(-1))
        return x.softmax(-1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        [s] = ctx.saved_tensors
        jacobian = s.diag_embed() - s.unsqueeze(-1) * s.unsqueeze(-2)
        return (jacobian @ gradient.unsqueeze(-1)).squeeze(-1), None


class Slope(torch.autograd.Function):
    """An element-wise function whose gradient is f(x) / x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(function(x) / x)
        return function(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.saved_tensors[0], None


@dataclass
class ByHand:
    """BERT's forward on embeddings, (T, K), in float64, with the backward pass of GIM or AttnLRP."""

    inputs: Inputs
    temperature: float
    identity: bool
    softmaxes: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def gradient(self, state: int | None = None) -> tuple[Tensor, Tensor]:
        """Of the difference of logits, or of a block's output times itself; and the number itself."""
        self.points = self.inputs.embeddings[0].double().requires_grad_()
        states, logits = self.run(self.points)
        if state is None:
            answer = logits[1] - logits[0]
        else:
            own = states[state - 1].detach()
            answer = (states[state - 1] * own).mean() / own.square().mean()
        self.answer = answer
        [gradient] = torch.autograd.grad(answer, self.points, retain_graph=True)
        return gradient, answer.detach()

    def run(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        bert: Any = self.inputs.model.module
        embeddings, states = bert.bert.embeddings, []
        x = x + embeddings.position_embeddings.weight[: len(x)] + embeddings.token_type_embeddings.weight[0]
        x = self.norm(x, embeddings.LayerNorm)
        for layer in bert.bert.encoder.layer:
            x = self.norm(x + self.attention(x, layer.attention), layer.attention.output.LayerNorm)
            inner = self.function(linear(x, layer.intermediate.dense), torch.nn.functional.gelu)
            x = self.norm(x + linear(inner, layer.output.dense), layer.output.LayerNorm)
            states.append(x)
        pooled = self.function(linear(x[0], bert.bert.pooler.dense), torch.tanh)
        return states, linear(pooled, bert.classifier)

    def attention(self, x: Tensor, part: Any) -> Tensor:
        q, k, v = (
            linear(x, projection).reshape(len(x), 2, -1).transpose(0, 1)
            for projection in (part.self.query, part.self.key, part.self.value)
        )
        scores = Product.apply(q, k.mT) / q.shape[-1] ** 0.5  # type: ignore[no-untyped-call]
        weights = Softmax.apply(scores, self.temperature)  # type: ignore[no-untyped-call]
        self.softmaxes.append((scores, weights))
        mixed = Product.apply(weights, v)  # type: ignore[no-untyped-call]
        return linear(mixed.transpose(0, 1).reshape(len(x), -1), part.output.dense)

    def norm(self, x: Tensor, part: Any) -> Tensor:
        std = (x.var(-1, correction=0, keepdim=True) + part.eps).sqrt().detach()
        return (x - x.mean(-1, keepdim=True)) / std * part.weight.double() + part.bias.double()

    def function(self, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        return Slope.apply(x, function) if self.identity else function(x)  # type: ignore[no-any-return,no-untyped-call]


def linear(x: Tensor, part: Any) -> Tensor:
    return torch.nn.functional.linear(x, part.weight.double(), part.bias.double())


@pytest.mark.parametrize("state", [None, 1, 2])
def test_gim_is_the_gradient_of_the_papers_equations_times_the_difference_from_a_mask(
    state: int | None,
) -> None:
    inputs = by_formula()
    gradient, _ = ByHand(inputs, temperature=2, identity=False).gradient(state)
    truth = (gradient * (inputs.embeddings - baseline_of(inputs, "[MASK]"))[0]).sum(-1)
    watched = None if state is None else State(state, inputs.model.layers[state])
    found = GIM(inputs, 1 if state is None else None, watched)
    assert torch.allclose(found.double(), truth, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("state", [None, 1, 2])
def test_attn_lrp_is_the_relevance_of_the_papers_equations(state: int | None) -> None:
    inputs = by_formula()
    gradient, _ = ByHand(inputs, temperature=1, identity=True).gradient(state)
    truth = (gradient * inputs.embeddings[0]).sum(-1)
    watched = None if state is None else State(state, inputs.model.layers[state])
    found = LRP(inputs, 1 if state is None else None, watched)
    assert torch.allclose(found.double(), truth, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_attn_lrp_equals_lxt(family: str) -> None:
    found = LRP(by_formula(family), 1, None)
    assert torch.allclose(found, torch.tensor(LXT[family]), atol=2e-6, rtol=1e-4)


def test_relevance_adds_up_to_the_answer_except_for_softmaxes() -> None:
    """A model without biases: all that is lost is the softmaxes' (AttnLRP, proposition 3.1)."""
    inputs = by_formula(zero=("bias", "position_embeddings.weight", "token_type_embeddings.weight"))
    hand = ByHand(inputs, temperature=1, identity=True)
    _, answer = hand.gradient()
    absorbed = torch.tensor(0.0, dtype=torch.float64)
    for scores, weights in hand.softmaxes:
        before, after = torch.autograd.grad(hand.answer, (weights, scores), retain_graph=True)
        absorbed += (weights * before).sum() - (scores * after).sum()
    assert absorbed.abs() > 1e-3  # otherwise the test would be trivial
    relevance = LRP(inputs, 1, None).double().sum()
    assert float(relevance + absorbed.detach()) == pytest.approx(float(answer), abs=1e-5)


@pytest.mark.parametrize("name", ["GIM", "AttnLRP"])
def test_attention_by_steps_and_fused_attention_give_the_same(name: str) -> None:
    for family, kind in (("bert", "Bert"), ("llama", "Llama"), ("gpt2", "GPT2")):
        model = tiny(family, f"{kind}ForSequenceClassification", num_labels=2, initializer_range=0.5)
        inputs = Inputs(model, model.encode("The film was good"))
        found = []
        for implementation in ("sdpa", "eager"):
            model.model.set_attn_implementation(implementation)
            found.append(METHODS[name](inputs, 1, None))
        assert found[0].abs().max() > 1e-3
        assert torch.allclose(*found, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_gim_equals_its_package_where_both_apply(implementation: str) -> None:
    """Of fused attention the package halves products, of attention by steps it tempers the softmax."""
    package = pytest.importorskip("gim", reason="gim-explain is not installed")
    inputs = by_formula()
    model: Any = inputs.model
    model.model.set_attn_implementation(implementation)
    points = inputs.embeddings.clone().requires_grad_()
    fused = implementation == "sdpa"
    without = {"softmax_temperature": None} if fused else {"q_scale": None, "k_scale": None, "v_scale": None}
    with package.GIM(model.module, **without):
        answer = Answer(inputs, 1)(points)
    [theirs] = torch.autograd.grad(answer, points)
    rules = _rules(1.0 if fused else 2.0)
    for product in () if fused else _PRODUCTS:
        del rules[product]
    assert torch.allclose(_gradient(inputs, 1, None, rules, _plain), theirs, atol=1e-6)


def test_the_forward_is_the_models_own() -> None:
    for family in ("bert", "llama"):
        inputs = by_formula(family)
        whole = Answer(inputs, 1)(inputs.embeddings)
        for temperature in (1.0, 2.0):
            with following(inputs.model.module, _rules(temperature), _plain):
                ruled = Answer(inputs, 1)(inputs.embeddings)
            assert torch.allclose(whole, ruled, atol=1e-5)


def test_an_activation_written_as_products_is_one_function() -> None:
    """GPT-2's GELU multiplies two activations: no product of attention or of a gate."""
    model = tiny("gpt2", "GPT2ForSequenceClassification", num_labels=2)
    assert model.module.config.activation_function == "gelu_new"
    gelu = model.module.transformer.h[0].mlp.act  # type: ignore[union-attr]
    x = torch.linspace(-2, 2, 8).requires_grad_()
    with following(gelu, _rules(1.0), lambda function, x: x * slope(function, x.detach())):
        y = gelu(x)
    [gradient] = torch.autograd.grad(y.sum(), x)
    assert torch.allclose(gradient * x, y, atol=1e-6)  # relevance passes through unchanged


def test_a_rule_that_meets_an_error_leaves_the_model_as_it_was() -> None:
    inputs = by_formula()
    before = [p.requires_grad for p in inputs.model.module.parameters()]
    with (
        pytest.raises(RuntimeError, match="stop"),
        following(inputs.model.module, _rules(1.0), _plain),
    ):
        raise RuntimeError("stop")
    assert [p.requires_grad for p in inputs.model.module.parameters()] == before
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in inputs.model.module.modules())
    assert torch.softmax(torch.zeros(2), 0).tolist() == [0.5, 0.5]
