"""Loading models, and their predictions."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import pytest
import torch
from tiny_models import tiny
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertModel
from transformers.utils import logging

from interp_plugin import huggingface
from interp_plugin.huggingface import HuggingFaceModel, pretrained
from interp_plugin.method.solver import Solver
from interp_plugin.text.explainer import TextExplainer


def test_load_gives_an_eval_mode_float32_classifier(folder: str) -> None:
    model, tokenizer = huggingface.load(folder)
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert tokenizer("a film")["input_ids"] == [2, 5, 9, 3]


def test_half_precision_weights_are_loaded_in_float32(folder: str, tmp_path: Path) -> None:
    AutoModelForSequenceClassification.from_pretrained(folder).half().save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    model, _ = huggingface.load(tmp_path)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["no/such-model", "/no/such/folder", ""])
def test_an_unknown_model_is_named_in_one_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="cannot load model") as caught:
        huggingface.load(name)
    assert repr(name) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name, reason",
    [
        ("no/such-model", "not in the cache, and HF_HUB_OFFLINE does not allow asking the hub"),
        ("/no/such/folder", "there is no folder '/no/such/folder'"),
        ("./here", "there is no folder './here'"),
        (__file__, "is a file; give the folder that holds it"),
    ],
)
def test_a_failed_load_reports_the_reason(name: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="cannot load model") as caught:
        huggingface.load(name)
    assert reason in str(caught.value)


def test_a_folder_without_a_tokenizer_is_refused(folder: str, tmp_path: Path) -> None:
    """transformers makes a tokenizer of special tokens alone, and every word was [UNK]."""
    AutoModelForSequenceClassification.from_pretrained(folder).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds no tokenizer; save it there"):
        huggingface.load(tmp_path)


def test_a_tokenizer_with_more_tokens_than_the_model_embeds_is_named(folder: str) -> None:
    default = huggingface.default_model_path()
    with pytest.warns(UserWarning, match="has 7000 tokens and the model embeds .*another model"):
        huggingface.load(folder, default)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot load model"):
        huggingface.load(tmp_path)


def test_an_encoder_without_a_trained_head_is_refused(folder: str, tmp_path: Path) -> None:
    save_encoder(folder, tmp_path, "BertForSequenceClassification")
    with pytest.raises(ValueError, match=r"no weights for classifier\.bias, classifier\.weight"):
        huggingface.load(tmp_path)


def save_encoder(folder: str, to: Path, *architectures: str) -> None:
    """The classifier's encoder, in a configuration that names another class."""
    AutoModelForSequenceClassification.from_pretrained(folder).bert.save_pretrained(to)
    AutoTokenizer.from_pretrained(folder).save_pretrained(to)
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**config, "architectures": list(architectures)}))


@pytest.mark.parametrize("architectures", [("BertModel",), (), ("BertForPreTraining",)])
def test_an_encoder_is_loaded_without_a_head(
    folder: str, tmp_path: Path, architectures: tuple[str, ...]
) -> None:
    save_encoder(folder, tmp_path, *architectures)
    model, tokenizer = huggingface.load(tmp_path)
    assert type(model).__name__ == "BertModel"
    assert HuggingFaceModel(model, tokenizer).task == "none"


def test_a_class_that_transformers_does_not_have_is_refused(folder: str, tmp_path: Path) -> None:
    save_encoder(folder, tmp_path, "MyBert")
    with pytest.raises(ValueError, match="cannot load model") as caught:
        huggingface.load(tmp_path)
    assert "MyBert" in str(caught.value.__cause__)


@pytest.mark.parametrize(
    "family, name",
    [
        ("bert", "BertForMaskedLM"),
        ("electra", "ElectraForTokenClassification"),
        ("albert", "AlbertForSequenceClassification"),
        ("gpt2", "GPT2LMHeadModel"),
        ("llama", "LlamaForCausalLM"),
        ("gemma2", "Gemma2ForSequenceClassification"),
        ("t5", "T5ForConditionalGeneration"),
        ("t5", "T5EncoderModel"),
        ("bart", "BartForConditionalGeneration"),
        ("modernbert", "ModernBertForMaskedLM"),
    ],
)
def test_a_saved_model_comes_back_as_its_own_class(family: str, name: str, tmp_path: Path) -> None:
    saved = tiny(family, name)
    saved.model.save_pretrained(tmp_path)
    saved.tokenizer.save_pretrained(tmp_path)
    model = HuggingFaceModel(*huggingface.load(tmp_path))
    assert type(model.model).__name__ == name
    assert model.name == tmp_path.name
    encoding = model.encode("The film was good")
    assert encoding == saved.encode("The film was good")
    torch.testing.assert_close(
        model(*model.collate([encoding])[0]), saved(*saved.collate([encoding])[0]), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", pretrained.DTYPES)
def test_the_dtype_is_chosen(folder: str, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # float16 on a CPU is run in float32, and says so
        model, _ = huggingface.load(folder, dtype=name)  # type: ignore[arg-type]
    chosen = torch.float32 if name == "float16" else pretrained.DTYPES[name]
    assert {parameter.dtype for parameter in model.parameters()} == {chosen}


def test_an_unknown_dtype_names_the_known_ones(folder: str) -> None:
    with pytest.raises(ValueError, match="dtype is 'int8'; choose one of 'float32', 'bfloat16', 'float16'"):
        huggingface.load(folder, dtype="int8")  # type: ignore[arg-type]


def test_the_tokenizer_may_be_elsewhere(folder: str, tmp_path: Path) -> None:
    AutoModelForSequenceClassification.from_pretrained(folder).save_pretrained(tmp_path)
    _, tokenizer = huggingface.load(tmp_path, tokenizer=folder, device="cpu")
    assert tokenizer("a film")["input_ids"] == [2, 5, 9, 3]


@pytest.mark.parametrize(
    "kind, config",
    [
        ("distilbert", {"dim": 8, "n_layers": 3, "n_heads": 2, "hidden_dim": 16}),
        ("gpt2", {"n_embd": 8, "n_layer": 3, "n_head": 2}),
        (
            "roberta",
            {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16},
        ),
        (
            "llama",
            {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16},
        ),
    ],
)
def test_the_blocks_of_other_architectures_are_found(kind: str, config: dict[str, int]) -> None:
    from transformers import AutoConfig

    model = AutoModelForSequenceClassification.from_config(
        AutoConfig.for_model(kind, vocab_size=10, **config)
    )
    layers = huggingface.transformer_layers(model)
    assert len(layers) == 3
    assert len({type(layer) for layer in layers}) == 1


def test_a_model_without_a_list_of_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear has no ModuleList"):
        huggingface.transformer_layers(nn.Linear(2, 2))


def test_the_predicted_class_has_the_largest_logit() -> None:
    config = BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1)
    config.id2label = {0: "no", 1: "yes"}
    name, probability = huggingface.predicted_class(BertModel(config), torch.tensor([0.0, 3.0]).log1p())
    assert name == "yes"
    assert probability == pytest.approx(0.8)


def test_a_regression_head_predicts_no_class(folder: str) -> None:
    with pytest.raises(ValueError, match="a classifier has at least 2"):
        huggingface.predicted_class(huggingface.load(folder)[0], torch.tensor([1.0]))


def test_quiet_restores_verbosity_and_progress_bars() -> None:
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with pytest.raises(RuntimeError), huggingface.quiet():
        assert logging.get_verbosity() == logging.ERROR
        assert not logging.is_progress_bar_enabled()
        raise RuntimeError
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_the_default_model_is_a_sentiment_classifier() -> None:
    model, tokenizer = huggingface.load(huggingface.default_model_path())
    explainer = TextExplainer(model, tokenizer)
    assert sorted(model.config.id2label.values()) == ["negative", "positive"]
    texts = ["a warm , funny and wonderful film", "a dull , stupid and boring mess"]
    explanation = explainer.explain(texts, 1, solver=Solver(iterations=0))
    assert [item.predicted for item in explanation] == ["positive", "negative"]


# -- several devices, fewer bits

PARTS = ("bert.embeddings", "bert.encoder.layer.0", "bert.encoder.layer.1", "bert.pooler", "classifier")


@pytest.mark.parametrize("last", ["cpu", "disk", "auto"])
def test_a_model_that_is_spread_gives_the_same_bits(folder: str, last: str) -> None:
    """On disk: hooks of accelerate load a part's weights when it runs."""
    pytest.importorskip("accelerate")
    places = "auto" if last == "auto" else {**dict.fromkeys(PARTS, "cpu"), PARTS[2]: last}
    solver = Solver(iterations=1)
    spread = TextExplainer(*huggingface.load(folder, device_map=places))
    whole = TextExplainer(*huggingface.load(folder))
    for kind in ("kept", "erased"):
        one, other = (
            each.explain("a film", ["all", "output"], score=kind, solver=solver)[0]
            for each in (spread, whole)
        )
        for row, twin in zip(one.rows, other.rows, strict=True):
            same = row.sigma.equal(twin.sigma) if kind == "kept" else row.erased.equal(twin.erased)  # type: ignore[attr-defined]
            assert same
    if last == "disk":
        assert spread.model.module.hf_device_map[PARTS[2]] == "disk"


@pytest.mark.parametrize(
    "options, missing, message",
    [
        ({"device_map": "auto"}, "accelerate", r"device_map needs accelerate, .*interp-plugin\[large\]"),
        (
            {"load_in": "8bit"},
            "bitsandbytes",
            r"--load-in 8bit .* needs bitsandbytes, .*interp-plugin\[large\]",
        ),
    ],
)
def test_what_spreads_or_quantises_a_model_is_named_where_it_is_missing(
    folder: str, monkeypatch: pytest.MonkeyPatch, options: dict[str, str], missing: str, message: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=message):
        huggingface.load(folder, **options)  # type: ignore[arg-type]


def test_two_places_for_one_model_are_refused(folder: str) -> None:
    with pytest.raises(ValueError, match="both say where the model goes; give one"):
        huggingface.load(folder, device="cpu", device_map="auto")
    with pytest.raises(
        ValueError, match="device 'gpu' cannot be used"
    ):  # was: must hold a model and its tokenizer
        huggingface.load(folder, device_map="gpu")
    with pytest.raises(ValueError, match="device 'gpu' cannot be used"):  # was: RuntimeError of torch
        huggingface.load(folder, device_map={"": "gpu"})
    with pytest.raises(ValueError, match=r"device_map is \{\}; give 'auto'"):  # was: KeyError ''
        huggingface.load(folder, device_map={})
    with pytest.raises(ValueError, match="load_in is '3bit'; choose '8bit' or '4bit'"):
        huggingface.load(folder, load_in="3bit")  # type: ignore[arg-type]


def test_a_device_of_a_part_that_is_not_there_is_refused(folder: str) -> None:
    pytest.importorskip("accelerate")
    with pytest.raises(ValueError, match=r"device_map has 'nope', .* its parts are 'bert', .*'classifier'"):
        huggingface.load(folder, device_map={"": "cpu", "nope": "cpu"})  # was loaded silently


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_a_model_in_fewer_bits_is_explained_as_its_weights_are(tmp_path: Path, bits: str) -> None:
    """On a CPU 4-bit layers used to be without gradients after their first forward."""
    quantised = pytest.importorskip("bitsandbytes")
    model = tiny("llama", "LlamaForCausalLM", hidden_size=64, intermediate_size=128, head_dim=32)
    model.model.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    small, words = huggingface.load(tmp_path, device="cpu", load_in=bits)  # type: ignore[arg-type]
    whole, _ = huggingface.load(tmp_path)
    kinds = {"8bit": quantised.nn.Linear8bitLt, "4bit": quantised.nn.Linear4bit}
    layers = [name for name, module in small.named_modules() if isinstance(module, kinds[bits])]
    assert layers
    for name in layers if bits == "4bit" else []:
        weight = small.get_submodule(name).weight
        exact = quantised.functional.dequantize_4bit(weight.data, weight.quant_state)
        whole.get_submodule(name).weight.data = exact.float()
    one, other = (
        TextExplainer(each, words).explain("The film", 1, solver=Solver(iterations=1))[0]
        for each in (small, whole)
    )
    assert torch.allclose(one.rows[0].sigma, other.rows[0].sigma, rtol=1e-3 if bits == "4bit" else 0.05)
