"""Torch's default type: no number depends on it, whatever type the model has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from test_conformance import BERT, IDS, MLP, MLP64, TransformerClassifier, X, seeded
from torch import Tensor

from interp_plugin import (
    Explanation,
    InformationLoss,
    Interpreter,
    LayerInformationLoss,
    NeuronInformationLoss,
    Solver,
    TextExplainer,
    calculate_regularization,
    huggingface,
)
from interp_plugin.amortised.head import Example, learn
from interp_plugin.comparison.interface import Inputs
from interp_plugin.comparison.methods import METHODS

FAST = Solver(draws=8, iterations=3)
WHOLE = Solver(draws=8, iterations=3, lower_rate=False)
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
ENCODER = seeded(TransformerClassifier)
TEXTS = ["a funny film that works", "dull"]


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


@contextmanager
def default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def of_a_class() -> list[Any]:
    fit = InformationLoss(MLP).fit(X, target=1, max_sigma=7.1, input_std=0.7)
    return [
        fit.sigma,
        fit.standard_error,
        fit.rate,
        fit.distortion,
        fit.max_sigma,
        fit.input_std,
        fit.regime_index,
    ]


def of_scores() -> list[Any]:
    groups = torch.tensor([[0, 0, 1, 2, 2]])
    return [
        *(
            InformationLoss(MLP).attribute(X, 1, score=score, solver=FAST)
            for score in ("kept", "signed", "sigma")
        ),
        InformationLoss(MLP).attribute(X, 1, feature_mask=groups, solver=WHOLE),
        NeuronInformationLoss(MLP, MLP[0]).attribute(X, 2, solver=WHOLE),
    ]


def of_double_precision() -> list[Any]:
    return [InformationLoss(MLP64).fit(X.double(), target=1, solver=WHOLE).sigma]


def of_a_saturated_state() -> list[Any]:
    return [InformationLoss(lambda x: (3 * x).sum(-1).sin()).fit(normal(2, 6, 4), solver=WHOLE).sigma]


def of_layers() -> list[Any]:
    words, layer = BERT.get_input_embeddings(), BERT.bert.encoder.layer[0]
    method = LayerInformationLoss(lambda ids, mask: BERT(ids, mask).logits, words, layer)
    std = method.estimate_state_std([{"inputs": IDS, "additional_forward_args": MASK, "token_mask": MASK}])
    inside = LayerInformationLoss(ENCODER, ENCODER.embedding, ENCODER.encoder.layers[0])
    return [
        std,
        method.attribute(IDS, additional_forward_args=MASK, state_std=std),
        inside.attribute(IDS, additional_forward_args=~MASK.bool(), token_mask=MASK, solver=FAST),
    ]


def of_texts() -> list[Any]:
    model, tokenizer = huggingface.load(huggingface.default_model_path())
    explainer = TextExplainer(model, tokenizer)
    explainer.calibrate(TEXTS, show_progress=False)
    found = explainer.explain(TEXTS, layers=[1, "output"], solver=FAST)
    words = [found[0].scores(score, granularity="word") for score in ("kept", "loss")]
    rows = [row for item in found for row in item.rows]
    return [*(row.sigma for row in rows), *(row.standard_error for row in rows), *(w.values for w in words)]


def of_the_first_interface() -> list[Any]:
    def state(x: Tensor) -> Tensor:
        return x.tanh().sum(0)

    std = calculate_regularization(list(normal(5, 4, 8)), state)
    found = []
    for steps in (None, 5):
        interpreter = Interpreter(normal(4, 8), state, regularization=std)
        interpreter.optimize(steps)
        found.append(torch.from_numpy(interpreter.get_sigma()))
    return found


def of_a_head() -> list[Any]:
    def example(seed: int) -> Example:
        numbers, log_sigma = normal(4, 3, seed=seed), normal(4, 2, seed=seed + 9)
        capped = torch.zeros(4, 2, dtype=torch.bool)
        return Example(normal(4, 6, seed=seed).half(), numbers, log_sigma, capped, log_sigma[0].square())

    head = learn([example(seed) for seed in range(4)], epochs=2, seed=0)
    return [
        *head.state_dict().values(),
        head(normal(1, 4, 6), normal(1, 4, 3), torch.ones(1, 4, dtype=torch.bool)),
    ]


def of_other_methods() -> list[Any]:
    model = huggingface.HuggingFaceModel(*huggingface.load(huggingface.default_model_path()))
    inputs = Inputs(model, model.encode("a funny film"))
    known = {method.name: method for method in METHODS.values()}
    names = [
        "random", "feature ablation", "leave-one-out", "attention rollout", "value zeroing",
        "gradient norm of the state",
    ]  # fmt: skip
    return [known[name](inputs, 1, None) for name in names]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "call",
    [
        of_a_class, of_scores, of_double_precision, of_a_saturated_state, of_layers, of_texts, of_the_first_interface,
        of_a_head, of_other_methods,
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_the_default_type_changes_no_number(call: Callable[[], list[Any]], dtype: torch.dtype) -> None:
    """float64 as the default type crashed, and bfloat16 moved numbers."""
    expected = call()
    with default(dtype):
        found = call()
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_saved_explanation_is_read_in_single_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    model, tokenizer = huggingface.load(huggingface.default_model_path())
    explanation = TextExplainer(model, tokenizer).explain("dull", layers=1, solver=FAST)
    explanation.save(tmp_path / "dull.parquet")
    with default(dtype):
        [row] = Explanation.load(tmp_path / "dull.parquet")[0].rows
    assert row.sigma.dtype == torch.float32
    torch.testing.assert_close(row.sigma, explanation[0].rows[0].sigma, rtol=1e-6, atol=0)
