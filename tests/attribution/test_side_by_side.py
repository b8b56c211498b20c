"""The same Captum call sites, with integrated gradients and with information loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from captum.attr import (
    Attribution,
    IntegratedGradients,
    LayerIntegratedGradients,
    LLMGradientAttribution,
    NoiseTunnel,
    TextTokenInput,
    visualization,
)
from captum.metrics import infidelity, sensitivity_max
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from interp_plugin import InformationLoss, InformationLossLLMAttribution, LayerInformationLoss, huggingface

MODEL, TOKENIZER = huggingface.load(huggingface.default_model_path())
EMBEDDING = MODEL.get_input_embeddings()
ENCODED = TOKENIZER(["a good film", "it is dull"], return_tensors="pt")
IDS, MASK = ENCODED["input_ids"], ENCODED["attention_mask"]
VECTORS = EMBEDDING(IDS).detach()

layer_classes = pytest.mark.parametrize("method", [LayerIntegratedGradients, LayerInformationLoss])
input_classes = pytest.mark.parametrize("method", [IntegratedGradients, InformationLoss])


def from_ids(ids: Tensor, mask: Tensor) -> Tensor:
    return torch.as_tensor(MODEL(ids, attention_mask=mask).logits)


def from_vectors(vectors: Tensor, mask: Tensor) -> Tensor:
    return torch.as_tensor(MODEL(inputs_embeds=vectors, attention_mask=mask).logits)


@layer_classes
def test_token_ids_give_scores_that_sum_over_the_embedding(method: Any) -> None:
    scores = method(from_ids, EMBEDDING).attribute(IDS, target=[1, 0], additional_forward_args=(MASK,))
    assert scores.shape == VECTORS.shape
    assert scores.sum(dim=-1).isfinite().all()


@layer_classes
def test_visualize_text_draws_the_scores(method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visualization, "HAS_IPYTHON", True)
    monkeypatch.setattr(visualization, "display", lambda html: None, raising=False)
    monkeypatch.setattr(visualization, "HTML", str, raising=False)
    scores = method(from_ids, EMBEDDING).attribute(IDS[:1], target=1, additional_forward_args=(MASK[:1],))
    words = scores.sum(dim=-1)[0]
    tokens = TOKENIZER.convert_ids_to_tokens(IDS[0].tolist())
    record = visualization.VisualizationDataRecord(
        words / words.abs().max(), 0.9, 1, 1, 1, words.sum(), tokens, 0.0
    )
    assert all(token in str(visualization.visualize_text([record])) for token in tokens)


@input_classes
def test_noise_tunnel_runs_the_method_on_noisy_inputs(method: Any) -> None:
    settings: dict[str, Any] = {"target": 1, "additional_forward_args": (MASK,)}
    own = method(from_vectors)
    torch.manual_seed(0)
    smooth = NoiseTunnel(own).attribute(VECTORS, nt_samples=3, stdevs=0.05, **settings)
    assert smooth.shape == VECTORS.shape
    assert not torch.equal(smooth, own.attribute(VECTORS, **settings))


@input_classes
def test_infidelity_evaluates_the_scores(method: Any) -> None:
    scores = method(from_vectors).attribute(VECTORS, target=1, additional_forward_args=(MASK,))

    def nudge(inputs: Tensor) -> tuple[Tensor, Tensor]:
        change = 0.02 * torch.randn_like(inputs)
        return change, inputs - change

    torch.manual_seed(0)
    value = infidelity(
        from_vectors, nudge, VECTORS, scores, additional_forward_args=(MASK,), target=1, normalize=True
    )
    assert value.shape == (2,)
    assert (value >= 0).all()


@input_classes
def test_sensitivity_grows_with_the_radius(method: Any) -> None:
    def moved(radius: float) -> Tensor:
        torch.manual_seed(0)
        attribute = method(from_vectors).attribute
        return torch.as_tensor(
            sensitivity_max(
                attribute,
                VECTORS,
                perturb_radius=radius,
                n_perturb_samples=2,
                target=1,
                additional_forward_args=(MASK,),
            )
        )

    assert (moved(0.05) > moved(0.005)).all()


@pytest.mark.parametrize(
    "wrapper, method",
    [
        (LLMGradientAttribution, LayerIntegratedGradients),
        (InformationLossLLMAttribution, LayerIntegratedGradients),
        (InformationLossLLMAttribution, LayerInformationLoss),
    ],
)
def test_a_language_model_gets_output_tokens_by_prompt_tokens(
    wrapper: Any, method: type[Attribution]
) -> None:
    torch.manual_seed(0)
    size = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(TOKENIZER), bos_token_id=None, eos_token_id=None, **size)
    ).eval()
    prompt = TextTokenInput("the film was very", TOKENIZER)
    attribution = wrapper(method(model, model.get_input_embeddings()), TOKENIZER)
    result = attribution.attribute(prompt, target="good and bad")
    assert result.seq_attr.shape == (len(result.input_tokens),)
    assert result.token_attr.shape == (len(result.output_tokens), len(result.input_tokens))
