"""The layers of many more architectures are their hidden_states, with the tokens in dimension 1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from tiny_models import bert_tokenizer, gpt2_tokenizer, roberta_tokenizer, xlmr_tokenizer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from interp_plugin.huggingface import HuggingFaceModel, architectures
from interp_plugin.method.perturbation import LayerCall, first_tensor
from interp_plugin.method.solver import Solver
from interp_plugin.text.batch import Batch
from interp_plugin.text.explainer import TextExplainer
from interp_plugin.text.models import OUTPUT
from interp_plugin.text.states import State

TEXTS = ["The film was good and not funny .", "The film was good and funny"]  # long enough to share a batch
IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11]])
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
ENCODER = {
    "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 64, "vocab_size": 420, **SPECIAL,
}  # fmt: skip
BOTH = {
    "d_model": 16, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "decoder_start_token_id": 2, "vocab_size": 420, **SPECIAL,
}  # fmt: skip
GPT = {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 64, "vocab_size": 420, **SPECIAL}
T5 = {
    "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 2, "vocab_size": 420,
    "decoder_start_token_id": 0,
}  # fmt: skip
XLM = {"emb_dim": 16, "n_layers": 3, "n_heads": 2, "max_position_embeddings": 64, "vocab_size": 420}
SQUEEZE = {f"{part}_groups": 1 for part in ("q", "k", "v", "post_attention", "intermediate", "output")}
PROPHET = {
    "hidden_size": 16, "num_encoder_layers": 2, "num_decoder_layers": 3, "num_encoder_attention_heads": 2,
    "num_decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 64,
    "vocab_size": 420,
}  # fmt: skip
LED = {"attention_window": 8, "max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64}
PLAIN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ("mpnet", "fnet", "yoso", "ibert", "camembert", "esm", "ernie", "deberta", "mra", "layoutlm", "roc_bert",
         "megatron-bert", "bert-generation", "xlm-roberta-xl", "roberta-prelayernorm", "roformer", "data2vec-text",
         "gpt_neox", "falcon", "phi", "phi3", "olmo", "cohere", "biogpt", "granite", "starcoder2", "persimmon",
         "nomic_bert"),
        ENCODER,
    ),
    "convbert": {**ENCODER, "embedding_size": 16},
    "rembert": {**ENCODER, "input_embedding_size": 16},
    "mobilebert": {**ENCODER, "embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16},
    "nystromformer": {**ENCODER, "num_landmarks": 8, "segment_means_seq_len": 8},
    "big_bird": {**ENCODER, "attention_type": "original_full"},
    "xmod": {**ENCODER, "languages": ["en"], "default_language": "en"},
    "luke": {**ENCODER, "entity_vocab_size": 9, "entity_emb_size": 8},
    "mixtral": {**ENCODER, "num_key_value_heads": 1},
    "opt": {**ENCODER, "word_embed_proj_dim": 16, "ffn_dim": 32},
    "bloom": {"hidden_size": 16, "n_layer": 3, "n_head": 2, "vocab_size": 420},
    "mpt": {"d_model": 16, "n_heads": 2, "n_layers": 3, "vocab_size": 420},
    "xglm": {"d_model": 16, "num_layers": 3, "attention_heads": 2, "ffn_dim": 32, "vocab_size": 420},
    "gpt_neo": {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]},
    "openai-gpt": GPT, "gpt_bigcode": GPT, "ctrl": {**GPT, "dff": 32}, "gptj": {**GPT, "rotary_dim": 4},
    **dict.fromkeys(("pegasus", "marian", "mbart", "m2m_100", "blenderbot", "plbart", "mvp"), BOTH),
    "bigbird_pegasus": {**BOTH, "attention_type": "original_full"},
    "mt5": T5, "umt5": T5, "longt5": {**T5, "local_radius": 4}, "switch_transformers": {**T5, "num_experts": 2},
}  # fmt: skip
Odd = tuple[str, dict[str, Any], Callable[[], Any]]
ODD: dict[str, Odd] = {
    "XLMModel": ("xlm", XLM, xlmr_tokenizer),
    "XLMForSequenceClassification": ("xlm", XLM, xlmr_tokenizer),
    "XLMWithLMHeadModel": ("xlm", XLM, xlmr_tokenizer),
    "FlaubertModel": ("flaubert", XLM, xlmr_tokenizer),
    "CTRLModel": ("ctrl", {**GPT, "dff": 32}, gpt2_tokenizer),
    "CTRLLMHeadModel": ("ctrl", {**GPT, "dff": 32}, gpt2_tokenizer),
    "CTRLForSequenceClassification": ("ctrl", {**GPT, "dff": 32, "pad_token_id": None}, gpt2_tokenizer),
    "LongformerModel": ("longformer", {**ENCODER, "attention_window": 8, "pad_token_id": 1}, roberta_tokenizer),
    "LongformerForSequenceClassification": ("longformer", {**ENCODER, "attention_window": 8}, roberta_tokenizer),
    "LEDModel": ("led", {**BOTH, **LED}, roberta_tokenizer),
    "LEDForConditionalGeneration": ("led", {**BOTH, **LED}, roberta_tokenizer),
    "SqueezeBertModel": ("squeezebert", {**ENCODER, **SQUEEZE, "embedding_size": 16}, bert_tokenizer),
    "ProphetNetModel": ("prophetnet", PROPHET, bert_tokenizer),
    "MambaModel": (
        "mamba", {"hidden_size": 16, "num_hidden_layers": 3, "vocab_size": 420, "state_size": 4}, gpt2_tokenizer
    ),
}  # fmt: skip


def made(kind: str, settings: dict[str, Any], name: str | None = None) -> Any:
    """A model with random weights; the test is skipped where this version of transformers has none."""
    try:
        config = AutoConfig.for_model(kind, **settings)
    except ValueError:
        pytest.skip(f"this version of transformers has no {kind}")
    torch.manual_seed(0)
    return (AutoModel.from_config(config) if name is None else getattr(transformers, name)(config)).eval()


def recorded(calls: dict[Any, LayerCall], run: Callable[[], Any]) -> tuple[dict[Any, Tensor], Any]:
    """The values at every layer while ``run`` runs, and its result."""
    seen: dict[Any, Tensor] = {}
    handles = []
    for label, target in calls.items():

        def hook(module: nn.Module, args: Any, output: Any, label: Any = label) -> None:
            seen[label] = first_tensor(output).detach().clone()

        handles.append(target.layer.register_forward_hook(hook))
    with torch.no_grad():
        output = run()
    for handle in handles:
        handle.remove()
    return seen, output


def check(seen: dict[Any, Tensor], output: Any, shifted: bool = False) -> None:
    """Every layer is one of the hidden_states; the last may have been normalised since."""
    two = any(str(label).startswith("decoder.") for label in seen)
    for side in ("encoder", "decoder") if two else ("",):
        states = getattr(output, f"{side}_hidden_states" if side else "hidden_states")
        layers = [value for label, value in seen.items() if str(label).startswith(side)]
        assert len(states) == len(layers) + 1
        for layer, state in zip(layers[:-1], states if shifted else states[1:]):
            torch.testing.assert_close(layer, state, rtol=0, atol=0)
        assert layers[-1].shape == states[-1].shape


@pytest.mark.parametrize("kind", PLAIN)
def test_the_layers_are_the_hidden_states_in_more_families(kind: str) -> None:
    model = made(kind, PLAIN[kind])
    inputs = {"input_ids": IDS}
    if architectures.is_encoder_decoder(model):
        inputs["decoder_input_ids"] = IDS[:, :5]
    calls = architectures.layer_calls(model)
    check(*recorded(dict(calls), lambda: model(**inputs, output_hidden_states=True)))


@pytest.mark.parametrize("name", [name for name in ODD if name.endswith("Model") and "Head" not in name])
def test_the_states_of_unusual_architectures_are_the_hidden_states(name: str) -> None:
    kind, settings, tokenizer = ODD[name]
    model = HuggingFaceModel(made(kind, settings, name), tokenizer())
    arguments, _ = model.collate([model.encode(TEXTS[1])])
    seen, _ = recorded(dict(model.layers), lambda: model(*arguments))
    with torch.no_grad():
        options = {"use_cache": False} if model._has_decoder else {}
        output = model.model(**dict(zip(model._names, arguments)), output_hidden_states=True, **options)
    check(seen, output, shifted=kind == "mamba")  # whose list begins with the first block's output


@pytest.mark.parametrize("name", ODD)
def test_a_text_has_the_same_state_and_scores_in_a_batch_of_an_unusual_architecture(name: str) -> None:
    kind, settings, tokenizer = ODD[name]
    model = HuggingFaceModel(made(kind, settings, name), tokenizer())
    encodings = [model.encode(text) for text in TEXTS]
    assert len({len(encoding.ids) for encoding in encodings}) == 2
    sites = [*model.layers.values(), None]
    batch = Batch(model, encodings, model.embedding, sites)
    for row, encoding in enumerate(encodings):
        alone = Batch(model, [encoding], model.embedding, sites)
        torch.testing.assert_close(alone.origin[0], batch.origin[row, : len(encoding.ids)], rtol=0, atol=0)
        for label, site in zip((*model.layers, OUTPUT), sites):
            single, padded = alone.whole(site)[0], batch.whole(site)[row]
            if single.ndim > 1:
                assert alone.places(State(label, site)) is not None
                assert batch.places(State(label, site)) is not None
                padded = padded[: len(single)]
            torch.testing.assert_close(single, padded, rtol=1e-5, atol=1e-5)
    explainer, target = TextExplainer(model), " good" if model.task == "next token" else None
    settings = {"layers": ["all", "output"], "target": target, "solver": Solver(iterations=2)}
    together = explainer.explain(TEXTS, **settings)
    for text, item in zip(TEXTS, together):
        for row, one in zip(item.rows, explainer.explain(text, **settings)[0].rows):
            torch.testing.assert_close(row.sigma, one.sigma, rtol=1e-4, atol=0)
    assert not any(module._forward_hooks for module in model.module.modules())


def test_leds_padding_to_the_window_is_not_part_of_the_state() -> None:
    """The same model with another window, which pads by another number of places, has the same scores."""
    kind, settings, tokenizer = ODD["LEDModel"]
    found = []
    for window in (32, 64):
        model = HuggingFaceModel(made(kind, {**settings, "attention_window": window}), tokenizer())
        found.append(
            TextExplainer(model).explain(TEXTS[1], "encoder.1", solver=Solver(iterations=2))[0].rows[0]
        )
    torch.testing.assert_close(found[0].sigma, found[1].sigma, rtol=1e-4, atol=0)
    assert found[0].max_sigma == found[1].max_sigma
    table = made(kind, settings).get_input_embeddings()
    scale = getattr(table, "embed_scale", 1.0)
    assert found[0].max_sigma == pytest.approx(10 * scale * float(table.weight.detach().std()), rel=1e-3)


def test_the_positions_of_a_padded_longformer_are_those_of_its_tokens() -> None:
    kind, settings, tokenizer = ODD["LongformerModel"]
    explainer = TextExplainer(HuggingFaceModel(made(kind, settings, "LongformerModel"), tokenizer()))
    item = explainer.explain(TEXTS[1], 1, positions="each", solver=Solver(iterations=0))[0]
    assert [row.position for row in item.rows] == list(range(len(item.tokens)))
    calibration = explainer.calibrate(TEXTS, 1, show_progress=False)
    states = [explainer.model(*explainer.model.collate([e])[0]) for e in explainer.encode(TEXTS)]
    assert calibration.state_std["1"].shape == states[0].shape[-1:]


def test_blocks_that_no_module_returns_are_refused() -> None:
    with pytest.raises(ValueError, match="keeps the parts of its blocks in 4 lists, and no module returns"):
        HuggingFaceModel(made("flaubert", {**XLM, "pre_norm": True}), xlmr_tokenizer())


def test_a_state_whose_positions_are_not_the_tokens_is_refused() -> None:
    model = HuggingFaceModel(made("bert", ENCODER), bert_tokenizer())

    def longer(module: nn.Module, args: Any, output: Any) -> Any:
        return torch.cat([first_tensor(output)] * 2, 1)

    model.layers[3].layer.register_forward_hook(longer)
    with pytest.raises(
        ValueError, match=r"layer 3 has shape \(1, 10, 16\) for 5 tokens: dimension 1 must run"
    ):
        TextExplainer(model).explain("The film was", 3)


@pytest.mark.parametrize("name", ["ElectraForPreTraining", "BertForPreTraining"])
def test_a_head_with_a_score_for_each_token_is_refused(name: str) -> None:
    kind = "electra" if name.startswith("Electra") else "bert"
    with pytest.raises(ValueError, match=f"{name} returns no logits of shape"):
        HuggingFaceModel(made(kind, ENCODER, name), bert_tokenizer())


def test_xlms_language_model_predicts_masked_tokens_unless_it_is_causal() -> None:
    tasks = [
        HuggingFaceModel(made("xlm", {**XLM, "causal": causal}, "XLMWithLMHeadModel"), xlmr_tokenizer()).task
        for causal in (False, True)
    ]
    assert tasks == ["token classes", "next token"]
