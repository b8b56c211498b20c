"""DecompX: parts that add up, against the paper's equations written as loops and the authors' own code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from by_formula import by_formula
from scipy.special import erf
from tiny_models import tiny
from tiny_plain import lstm

from interp_plugin import huggingface
from interp_plugin.comparison.interface import Answer, Inputs
from interp_plugin.comparison.methods import METHODS
from interp_plugin.comparison.propagation import decomposed
from interp_plugin.huggingface import HuggingFaceModel
from interp_plugin.text.states import State

DECOMPX = METHODS["DecompX"]
# The code that the authors published (github.com/mohsenfayyaz/DecompX, aggregation "vector"), with transformers 4.52.4.
# It shares the bias of attention out after the residual is added, the paper (eq. 5) before: here that bias is zero.
THEIRS = [
    [3.8698e-01, 3.3091e-01],
    [2.2021e-03, 5.4630e-04],
    [1.7470e-02, 4.8919e-03],
    [1.3873e-06, 6.4269e-07],
    [3.5626e-07, 9.2488e-08],
    [6.4943e-05, 1.5869e-05],
]
Array = np.ndarray[Any, Any]


def of(parameter: torch.Tensor) -> Array:
    return parameter.detach().double().numpy()


def shared(parts: Array, bias: Array) -> Array:
    """The bias among the parts of one position, (T, K) (eq. 5 and 6)."""
    dots = np.array([abs(bias @ part) for part in parts])
    return np.stack([part + dot / dots.sum() * bias for part, dot in zip(parts, dots)])


def normed(parts: Array, norm: Any) -> Array:
    """Eq. 8 at one position, (T, K)."""
    std = np.sqrt(parts.sum(0).var() + norm.eps)
    return shared(np.stack([(part - part.mean()) / std * of(norm.weight) for part in parts]), of(norm.bias))


def gelu(x: Array) -> Array:
    return np.asarray(x * (1 + erf(x / np.sqrt(2))) / 2)


def attended(parts: Array, part: Any) -> Array:
    """Of every position (first axis) the parts of what attention adds to it, (T, T, K) (eq. 2 to 6)."""
    own, out = part.self, part.output.dense
    whole = parts.sum(1)
    query, key = (whole @ of(p.weight).T + of(p.bias) for p in (own.query, own.key))
    mixed = np.zeros_like(parts)
    for head in range(2):
        columns = slice(8 * head, 8 * head + 8)
        scores = query[:, columns] @ key[:, columns].T / np.sqrt(8)
        weights = np.exp(scores - scores.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        through = of(own.value.weight)[columns].T @ of(out.weight)[:, columns].T  # W_Att of this head
        for i in range(len(parts)):
            for j in range(len(parts)):
                mixed[i] += weights[i, j] * parts[j] @ through
    bias = of(own.value.bias) @ of(out.weight).T + of(out.bias)
    return np.stack([shared(at, bias) for at in mixed])


def by_loops(inputs: Inputs) -> tuple[list[Array], Array]:
    """Parts of each block's output, (T places, T tokens, K), and of the scores, (T tokens, C)."""
    bert: Any = inputs.model.module
    with torch.no_grad():
        hidden = of(bert.bert.embeddings(inputs.ids))[0]
    parts = np.zeros((len(hidden), *hidden.shape))
    parts[np.arange(len(hidden)), np.arange(len(hidden))] = hidden
    states = []
    for layer in bert.bert.encoder.layer:
        first, second = layer.intermediate.dense, layer.output.dense
        added = attended(parts, layer.attention)
        parts = np.stack([normed(at, layer.attention.output.LayerNorm) for at in parts + added])
        blocks = []
        for at in parts:
            inner = shared(at @ of(first.weight).T, of(first.bias))
            zeta = inner.sum(0)
            inner = inner * (gelu(zeta) / zeta)
            blocks.append(
                normed(at + shared(inner @ of(second.weight).T, of(second.bias)), layer.output.LayerNorm)
            )
        parts = np.stack(blocks)
        states.append(parts)
    pooled = shared(parts[0] @ of(bert.bert.pooler.dense.weight).T, of(bert.bert.pooler.dense.bias))
    pooled = pooled * (np.tanh(pooled.sum(0)) / pooled.sum(0))
    return states, shared(pooled @ of(bert.classifier.weight).T, of(bert.classifier.bias))


def test_the_parts_are_those_of_the_papers_equations() -> None:
    inputs = by_formula()
    states, scores = by_loops(inputs)
    assert np.allclose(decomposed(inputs, None), scores, atol=1e-5)
    assert np.allclose(DECOMPX(inputs, 1, None), scores[:, 1] - scores[:, 0], atol=1e-5)
    for label, truth in enumerate(states, 1):
        state = State(label, inputs.model.layers[label])
        assert np.allclose(decomposed(inputs, state), truth.swapaxes(0, 1), atol=1e-4)
        whole = truth.sum(1)
        along = (truth * whole[:, None]).mean((0, 2)) / (whole**2).mean()
        assert np.allclose(DECOMPX(inputs, None, state), along, atol=1e-5)


def test_the_parts_of_the_scores_are_those_of_the_authors_code() -> None:
    inputs = by_formula(zero=("value.bias", "attention.output.dense.bias"))
    assert torch.allclose(decomposed(inputs, None), torch.tensor(THEIRS), rtol=1e-3, atol=1e-7)


def test_the_parts_add_up_to_the_answer_of_a_trained_model() -> None:
    model = HuggingFaceModel(*huggingface.load(huggingface.default_model_path()))
    inputs = Inputs(model, model.encode("a funny film with more than enough charm, not a bad one"))
    for target in (0, 1):
        answer = Answer(inputs, target).of_arguments(*inputs.arguments)
        assert float(DECOMPX(inputs, target, None).sum()) == pytest.approx(float(answer), abs=1e-4)
    with torch.no_grad():
        hidden = model.model(inputs.ids, output_hidden_states=True).hidden_states
    for label in model.layers:
        assert torch.allclose(
            decomposed(inputs, State(label, model.layers[label])).sum(0), hidden[int(label)][0], atol=1e-4
        )
        # a text is its own yardstick: the shares of its state add up to 1, and with v they are in its units
        state = State(label, model.layers[label])
        assert float(DECOMPX(inputs, None, state).sum()) == pytest.approx(1, abs=1e-4)
        v = torch.linspace(0.5, 2, hidden[0].shape[-1])
        calibrated = DECOMPX(inputs, None, State(label, model.layers[label], None, v))
        assert float(calibrated.sum()) == pytest.approx(
            float((hidden[int(label)] / v).square().mean()), rel=1e-3
        )


def test_of_many_classes_the_log_odds_are_split_at_the_text() -> None:
    model = tiny("bert", "BertForSequenceClassification", num_labels=3, initializer_range=0.5)
    inputs = Inputs(model, model.encode("The film was good"))
    parts = decomposed(inputs, None).requires_grad_()
    scores = parts.sum(0)
    (scores[2] - scores[:2].logsumexp(0)).backward()
    assert torch.allclose(DECOMPX(inputs, 2, None), (parts * parts.grad).sum(1).detach(), atol=1e-5)  # type: ignore[operator]


@pytest.mark.parametrize("family", ["roberta", "distilbert", "electra", "albert"])
def test_other_encoders_add_up_too(family: str) -> None:
    kind = {"roberta": "Roberta", "distilbert": "DistilBert", "electra": "Electra", "albert": "Albert"}[
        family
    ]
    model = tiny(family, f"{kind}ForSequenceClassification", num_labels=2, initializer_range=0.5)
    with torch.no_grad():
        for name, parameter in model.module.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
    inputs = Inputs(model, model.encode("The film was good"))
    answer = float(Answer(inputs, 1).of_arguments(*inputs.arguments))
    assert float(DECOMPX(inputs, 1, None).sum()) == pytest.approx(answer, abs=1e-3)


def test_what_is_not_decomposed_is_refused() -> None:
    """Gates multiply activations, attention by steps is not one operation, DeBERTa's positions are no tokens."""
    llama = by_formula("llama")
    eager = by_formula()
    eager.model.module.set_attn_implementation("eager")  # type: ignore[operator]
    deberta = tiny("deberta-v2", "DebertaV2ForSequenceClassification", num_labels=2)
    for inputs in (llama, eager, Inputs(deberta, deberta.encode("The film was good"))):
        with pytest.raises(ValueError, match="it has operations that are not decomposed"):
            DECOMPX(inputs, 1, None)
    plain = lstm()
    with pytest.raises(ValueError, match="not a transformer with a single stack"):
        DECOMPX(Inputs(plain, plain.encode("a film")), 1, None)
