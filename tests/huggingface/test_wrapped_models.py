"""Models inside PEFT, pipelines, DataParallel and CrossEncoder have the states and scores of the model."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_models import FAMILIES, model_of, tiny
from torch import Tensor, nn

from interp_plugin import huggingface
from interp_plugin.huggingface import HuggingFaceModel
from interp_plugin.method.solver import Solver
from interp_plugin.text.batch import Batch
from interp_plugin.text.explainer import TextExplainer
from interp_plugin.text.models import OUTPUT
from interp_plugin.text.states import State

TEXTS = ["The film was good and not funny .", "The film was good and funny"]  # long enough to share a batch
QUICK = Solver(iterations=2)
VIRTUAL = 4
KINDS = {
    "GPT2LMHeadModel": ("gpt2", "CAUSAL_LM"),
    "GPT2ForSequenceClassification": ("gpt2", "SEQ_CLS"),
    "LlamaForCausalLM": ("llama", "CAUSAL_LM"),
    "LlamaForSequenceClassification": ("llama", "SEQ_CLS"),
    "BertForSequenceClassification": ("bert", "SEQ_CLS"),
    "BertForTokenClassification": ("bert", "TOKEN_CLS"),
    "BertModel": ("bert", "FEATURE_EXTRACTION"),
    "T5ForConditionalGeneration": ("t5", "SEQ_2_SEQ_LM"),
}


def adapted(way: str, name: str, base: Any = None) -> Any:
    """A PEFT model with random weights; the test is skipped without PEFT."""
    peft = pytest.importorskip("peft")
    family, task = KINDS[name]
    settings: dict[str, Any] = {"task_type": task}
    if way == "lora":
        config = peft.LoraConfig(**settings, init_lora_weights=False)
    elif way == "prompt":
        config = peft.PromptTuningConfig(**settings, num_virtual_tokens=VIRTUAL)
    elif way == "p-tuning":
        config = peft.PromptEncoderConfig(**settings, num_virtual_tokens=VIRTUAL, encoder_hidden_size=8)
    else:
        config = peft.PrefixTuningConfig(**settings, num_virtual_tokens=VIRTUAL)
    base = model_of(family, name) if base is None else base
    torch.manual_seed(1)
    return peft.get_peft_model(base, config).eval()


def read(model: Any, name: str) -> HuggingFaceModel:
    return HuggingFaceModel(model, FAMILIES[KINDS[name][0]].tokenizer())


WAYS = [
    (way, name)
    for name in KINDS
    for way in ("lora", "prompt", "p-tuning", "prefix")
    if (way, name[:2]) != ("prefix", "T5")
]


@torch.no_grad()
def own_answer(model: HuggingFaceModel, peft_model: Any, arguments: tuple[Tensor, ...]) -> Tensor:
    """The output of the PEFT model."""
    output = peft_model(**dict(zip(model._names, arguments)))
    answer: Tensor = output.logits if hasattr(output, "logits") else output.last_hidden_state
    return answer


@pytest.mark.filterwarnings("error:Position ids", "error:Token type ids")
@pytest.mark.parametrize("way, name", WAYS)
def test_a_peft_models_answer_is_its_own_without_the_virtual_tokens(way: str, name: str) -> None:
    peft_model = adapted(way, name)
    model = read(peft_model, name)
    arguments, mask = model.collate([model.encode(TEXTS[0])])
    own = own_answer(model, peft_model, arguments)
    answer = model(*arguments)
    assert model.task == tiny(*reversed((name, KINDS[name][0]))).task
    if model.task == "sequence classes":
        torch.testing.assert_close(answer, own)
        return
    count = arguments[-1].shape[1] if model.axis[OUTPUT] == "decoder" else mask.shape[1]
    beside = model.axis[OUTPUT] == "decoder" or way in ("lora", "prefix")
    assert own.shape[1] == count + (0 if beside else VIRTUAL)
    torch.testing.assert_close(answer, own[:, own.shape[1] - count :])


@pytest.mark.parametrize("way, name", WAYS)
def test_a_peft_models_states_are_the_same_alone_and_in_a_batch(way: str, name: str) -> None:
    model = read(adapted(way, name), name)
    encodings = [model.encode(text) for text in TEXTS]
    sites = [*model.layers.values(), None]
    batch = Batch(model, encodings, model.embedding, sites)
    for row, encoding in enumerate(encodings):
        alone = Batch(model, [encoding], model.embedding, sites)
        for label, site in zip((*model.layers, OUTPUT), sites):
            single, padded = alone.whole(site)[0], batch.whole(site)[row]
            if single.ndim > 1:
                places = alone.places(State(label, site))
                assert places is not None
                assert places.all()
                padded = padded[: len(single)]
            torch.testing.assert_close(single, padded, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "way, name", [("prompt", "BertForSequenceClassification"), ("p-tuning", "GPT2LMHeadModel")]
)
def test_scores_of_a_prompt_tuned_model_do_not_depend_on_the_batch(way: str, name: str) -> None:
    explainer = TextExplainer(read(adapted(way, name), name))
    target = " good" if explainer.model.task == "next token" else None
    together = explainer.explain(TEXTS, ["all", "output"], target=target, solver=QUICK)
    for text, item in zip(TEXTS, together):
        alone = explainer.explain(text, ["all", "output"], target=target, solver=QUICK)[0]
        for row, one in zip(item.rows, alone.rows):
            torch.testing.assert_close(row.sigma, one.sigma, rtol=1e-4, atol=0)


@pytest.mark.parametrize("way", ["prompt", "p-tuning"])
def test_layers_of_a_prompt_tuned_model_are_the_hidden_states_after_its_virtual_tokens(way: str) -> None:
    peft_model = adapted(way, "GPT2LMHeadModel")
    model = read(peft_model, "GPT2LMHeadModel")
    [encoding] = [model.encode(TEXTS[0])]
    arguments, _ = model.collate([encoding])
    with torch.no_grad():
        states = peft_model(**dict(zip(model._names, arguments)), output_hidden_states=True).hidden_states
    batch = Batch(model, [encoding], model.embedding, list(model.layers.values()))
    torch.testing.assert_close(batch.whole(model.layers[1]), states[1][:, VIRTUAL:], rtol=0, atol=0)
    site, number, width = model.head_site(1) or pytest.fail("heads are known")
    heads = Batch(model, [encoding], model.embedding, [site]).whole(site)
    assert heads.shape == (1, len(encoding.ids), number * width)


def test_the_target_of_a_prompt_tuned_model_is_read_where_it_is_predicted() -> None:
    peft_model = adapted("prompt", "GPT2LMHeadModel")
    model = read(peft_model, "GPT2LMHeadModel")
    encoding = model.encode(TEXTS[0], target=" good")
    batch = Batch(model, [encoding], model.embedding, [None])
    with torch.no_grad():
        logits = peft_model(input_ids=torch.tensor([encoding.ids])).logits[0]
    [place, *_], [token, *_] = encoding.target_positions, encoding.target
    expected = logits[VIRTUAL + place].log_softmax(-1)[token]
    torch.testing.assert_close(batch.whole(None)[0, 0], expected)


def test_positions_heads_and_calibration_of_a_prompt_tuned_model_are_those_of_the_tokens() -> None:
    explainer = TextExplainer(
        read(adapted("prompt", "BertForSequenceClassification"), "BertForSequenceClassification")
    )
    item = explainer.explain(TEXTS[0], 1, positions="each", solver=Solver(iterations=0))[0]
    assert [row.position for row in item.rows] == list(range(len(item.tokens)))
    explainer.explain(TEXTS[0], 1, heads=1, solver=Solver(iterations=0))
    [encoding] = explainer.encode(TEXTS[0])
    calibration = explainer.calibrate(TEXTS[:1], 1, show_progress=False)
    arguments, _ = explainer.model.collate([encoding])
    with torch.no_grad():
        states = explainer.model.module(
            input_ids=arguments[0],
            attention_mask=arguments[1],
            token_type_ids=arguments[2],
            output_hidden_states=True,
        ).hidden_states[1][0, VIRTUAL:]
    torch.testing.assert_close(
        calibration.state_std["1"], states.std(0, unbiased=False), rtol=1e-4, atol=1e-5
    )


def test_virtual_tokens_count_towards_the_models_limit() -> None:
    plain = tiny("gpt2", "GPT2LMHeadModel")
    model = read(adapted("prompt", "GPT2LMHeadModel"), "GPT2LMHeadModel")
    assert model.limit == plain.limit - VIRTUAL
    arguments, _ = model.collate([model.encode("film " * 60, truncation=True)])
    assert model(*arguments).isfinite().all()


def test_attention_to_virtual_tokens_is_refused() -> None:
    model = read(adapted("prompt", "BertModel"), "BertModel")
    with pytest.raises(ValueError, match="attends to the virtual tokens of PeftModelForFeatureExtraction"):
        model.attentions(*model.collate([model.encode("film")])[0])


def test_an_adapter_merged_or_not_gives_the_same_states_and_keeps_the_types_of_a_pair() -> None:
    peft_model = adapted("lora", "BertForSequenceClassification")
    model = read(peft_model, "BertForSequenceClassification")
    assert model.name.endswith(" (LORA)")
    assert "token_type_ids" in model._names
    arguments, _ = model.collate([model.encode("The film", "was good")])
    before = model(*arguments)
    merged = HuggingFaceModel(peft_model.merge_and_unload(), model.tokenizer)
    torch.testing.assert_close(before, merged(*arguments), rtol=1e-5, atol=1e-5)


def saved(way: str, name: str, tmp_path: Path, words: str = "base") -> tuple[Path, Any]:
    """Folder of an adapter whose base model and tokenizer are in another, and the model."""
    family, _ = KINDS[name]
    plain = model_of(family, name)
    plain.save_pretrained(tmp_path / "base")
    FAMILIES[family].tokenizer().save_pretrained(tmp_path / words)
    loaded, _ = huggingface.load(tmp_path / "base", tmp_path / words)
    peft_model = adapted(way, name, loaded)
    peft_model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", peft_model


@pytest.mark.parametrize("way", ["lora", "prompt"])
@pytest.mark.parametrize(
    "name, words",
    [("LlamaForSequenceClassification", "base"), ("BertModel", "adapter"), ("GPT2LMHeadModel", "base")],
)
def test_an_adapters_folder_is_loaded_on_its_base_model(
    way: str, name: str, words: str, tmp_path: Path
) -> None:
    folder, peft_model = saved(way, name, tmp_path, words)
    model = HuggingFaceModel(*huggingface.load(folder))
    arguments, _ = model.collate([model.encode(TEXTS[0])])
    torch.testing.assert_close(model(*arguments), HuggingFaceModel(peft_model, model.tokenizer)(*arguments))
    assert not model.module.training


def test_an_adapter_brings_its_own_head_with_its_number_of_classes(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from transformers import BertForSequenceClassification

    model_of("bert", "BertModel").save_pretrained(tmp_path / "base")
    FAMILIES["bert"].tokenizer().save_pretrained(tmp_path / "base")
    base = BertForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=5)
    peft_model = adapted("lora", "BertForSequenceClassification", base)
    peft_model.save_pretrained(tmp_path / "adapter")
    model = HuggingFaceModel(*huggingface.load(tmp_path / "adapter"))
    arguments, _ = model.collate([model.encode(TEXTS[0])])
    assert model(*arguments).shape == (1, 5)
    torch.testing.assert_close(model(*arguments), HuggingFaceModel(peft_model, model.tokenizer)(*arguments))


def test_an_adapter_on_a_model_without_a_trained_head_is_refused(tmp_path: Path) -> None:
    folder, _ = saved("lora", "BertModel", tmp_path)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "task_type": "SEQ_CLS"}))
    with pytest.raises(ValueError, match=r"no weights for classifier\.bias, classifier\.weight"):
        huggingface.load(folder)


def test_an_adapter_that_names_no_base_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(ValueError, match="cannot load model") as caught:
        huggingface.load(tmp_path)
    assert "names no base_model_name_or_path" in str(caught.value.__cause__)


class CrossEncoder(nn.Module):
    """As that of sentence_transformers: a model and its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer


class SentenceTransformer(nn.Sequential):
    """As that of sentence_transformers."""


def test_the_model_inside_a_wrapper_is_used() -> None:
    from transformers import pipeline

    plain = tiny("bert", "BertForSequenceClassification")
    inside, words = plain.model, plain.tokenizer
    expected = TextExplainer(inside, words).explain(TEXTS[0], "output", solver=QUICK)[0].rows[0].sigma
    wrapped = [
        (pipeline("text-classification", model=inside, tokenizer=words), None),
        (CrossEncoder(inside, words), None),
        (nn.DataParallel(inside), words),
        (torch.compile(inside), words),
    ]
    for model, tokenizer in wrapped:
        explainer = TextExplainer(model, tokenizer)
        assert explainer.model.module is inside
        torch.testing.assert_close(
            explainer.explain(TEXTS[0], "output", solver=QUICK)[0].rows[0].sigma, expected, rtol=0, atol=0
        )


def test_a_sentence_transformer_is_refused_with_the_part_to_give() -> None:
    with pytest.raises(TypeError, match=r"give model\[0\]\.auto_model with model\.tokenizer"):
        TextExplainer(SentenceTransformer(nn.Linear(1, 1)), object())


@pytest.mark.parametrize(
    "names, expected",
    [
        ({"0": "bad", "1": "good"}, ["bad", "good"]),
        ({0: "bad"}, ["bad", "LABEL_1"]),
        (["bad", "good"], ["bad", "good"]),
    ],
)
def test_labels_may_have_strings_for_numbers_or_be_too_few(names: Any, expected: list[str]) -> None:
    model = tiny("bert", "BertForSequenceClassification")
    model.model.config.__dict__["id2label"] = names
    assert [model.class_name(index) for index in (0, 1)] == expected
    assert model.class_index(expected[1]) == 1
    assert model.predicted(torch.tensor([0.0, 9.0]))[0] == expected[1]  # type: ignore[index]
    explanation = TextExplainer(model).explain(TEXTS[0], "output", target=1, solver=QUICK)
    assert explanation[0].target == expected[1]


def test_swapped_labels_are_refused() -> None:
    config = SimpleNamespace(id2label={"bad": 0})
    with pytest.raises(ValueError, match="swap keys and values"):
        huggingface.predicted_class(SimpleNamespace(config=config), torch.tensor([1.0, 2.0]))  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [np.int64(1), torch.tensor(1), np.array(1)])
def test_a_target_may_be_a_number_of_numpy_or_torch(number: Any) -> None:
    classifier, speaker = tiny("bert", "BertForSequenceClassification"), tiny("gpt2", "GPT2LMHeadModel")
    for model in (classifier, speaker):
        found, expected = (
            TextExplainer(model).explain(TEXTS[0], "output", target=target, solver=QUICK)[0]
            for target in (number, 1)
        )
        assert found.target == expected.target
        torch.testing.assert_close(found.rows[0].sigma, expected.rows[0].sigma, rtol=0, atol=0)
    assert classifier.class_index(number) == 1


@pytest.mark.parametrize("make", [np.array, torch.tensor, pd.Series, list])
def test_targets_may_be_an_array_or_a_series(make: Any) -> None:
    explainer = TextExplainer(tiny("bert", "BertForSequenceClassification"))
    explanation = explainer.explain(TEXTS, "output", target=make([1, 0]), solver=QUICK)
    assert [item.target for item in explanation] == ["LABEL_1", "LABEL_0"]
    places = explainer.explain(
        TEXTS[0], 1, positions=make([1, 2]), heads=make([0, 1]), solver=Solver(iterations=0)
    )
    assert [row.position for row in places[0].rows] == [1, 2]


@pytest.mark.parametrize("number", [True, np.bool_(True), torch.tensor(True), 1.0, torch.tensor(1.0)])
def test_a_target_that_is_no_number_is_refused(number: Any) -> None:
    with pytest.raises(TypeError, match="it must be a label or an index"):
        TextExplainer(tiny("bert", "BertForSequenceClassification")).explain(
            TEXTS[0], "output", target=number
        )


@pytest.mark.parametrize("make", [np.array, pd.Series, tuple, list])
def test_texts_may_be_an_array_or_a_series_and_a_list_in_a_list_is_a_pair(make: Any) -> None:
    explainer = TextExplainer(tiny("bert", "BertModel"))
    texts = [*TEXTS, "film"]
    assert [e.text for e in explainer.encode(make(texts) if make is not tuple else texts)] == texts
    pairs = [("a film", "good"), ("a story", "bad")]
    given = [make(pair) for pair in pairs]
    assert [
        (e.text, e.pair) for e in explainer.encode(np.array(pairs) if make is np.array else given)
    ] == pairs


def test_a_list_of_two_strings_is_two_texts() -> None:
    explainer = TextExplainer(tiny("bert", "BertModel"))
    assert [(e.text, e.pair) for e in explainer.encode(["a film", "good"])] == [
        ("a film", None),
        ("good", None),
    ]
    with pytest.raises(TypeError, match=r"text 0 is .*a tuple or list of two for a pair"):
        explainer.encode([["a", "b", "c"]])
