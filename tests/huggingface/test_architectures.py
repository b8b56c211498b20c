"""Every family of models: its layers are found, batches equal single texts, and heads are at the head site."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tiny_models import CASES, DEPTH, FAMILIES, LIMIT, exists, gpt2_tokenizer, model_of, tiny
from torch import Tensor, nn
from transformers import BertConfig, BertForPreTraining, BertModel, BertPreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from interp_plugin.huggingface import HuggingFaceModel, architectures
from interp_plugin.method.perturbation import LayerCall, first_tensor

TEXTS = ["The film was good .", "A dull story , not good and not funny", "film"]


def case(family: str, name: str) -> Any:
    missing = pytest.mark.skipif(not exists(name), reason=f"this version of transformers has no {name}")
    return pytest.param(family, name, marks=missing, id=f"{family}-{name}")


ALL = [case(family, name) for family, name in CASES]
BARE = [case(family, entry.classes[0]) for family, entry in FAMILIES.items()]
LANGUAGE = [
    case(family, name)
    for family, name in CASES
    if name.endswith(("ForCausalLM", "LMHeadModel", "Generation"))
]


@contextmanager
def watched(calls: Mapping[Any, LayerCall]) -> Iterator[dict[Any, Tensor]]:
    """The output of each layer at its call, by label."""
    seen: dict[Any, Tensor] = {}
    handles = []
    for label, target in calls.items():
        count = iter(range(1000))

        def hook(module: nn.Module, args: Any, output: Any, label: Any = label, count: Any = count) -> None:
            if next(count) == calls[label].call:
                seen[label] = first_tensor(output).detach().clone()

        handles.append(target.layer.register_forward_hook(hook))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def run(model: HuggingFaceModel, encodings: list[Any]) -> tuple[dict[Any, Tensor], Tensor]:
    """Every layer's output, "output" among them, and the token mask."""
    arguments, mask = model.collate(encodings)
    with watched(model.layers) as seen:
        logits = model(*arguments)
    return {**seen, "output": logits}, mask


def tokens_of(
    model: HuggingFaceModel, label: Any, values: Tensor, mask: Tensor, row: int, encoding: Any
) -> Tensor:
    """One text's part of a batch of states: without its padding."""
    if label == "output" and model.task == "sequence classes":
        return values[row]
    if model.axis[label] == "decoder":
        return values[row, : len(encoding.extra["decoder_input_ids"])]
    return values[row, mask[row]]


@pytest.mark.parametrize("family, name", ALL)
def test_a_text_has_the_same_states_in_a_padded_batch_and_alone(family: str, name: str) -> None:
    model = tiny(family, name)
    together = [model.encode(text) for text in TEXTS]
    batch, mask = run(model, together)
    assert mask.sum(1).tolist() == [len(encoding.ids) for encoding in together]
    for row, encoding in enumerate(together):
        single, whole = run(model, [encoding])
        assert set(single) == {*model.layers, "output"}
        for label, values in batch.items():
            assert values.isfinite().all()  # at padding, too: NaN is refused everywhere
            alone = tokens_of(model, label, single[label], whole, 0, encoding)
            padded = tokens_of(model, label, values, mask, row, encoding)
            torch.testing.assert_close(padded, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family, name", BARE)
def test_the_layers_are_the_hidden_states(family: str, name: str) -> None:
    model = tiny(family, name)
    arguments, _ = model.collate([model.encode(TEXTS[0])])
    with watched(model.layers) as seen, torch.no_grad():
        inputs = dict(zip(model._names, arguments))
        output = model.model(**inputs, output_hidden_states=True, use_cache=False) if model._has_decoder else (
            model.model(**inputs, output_hidden_states=True)
        )  # fmt: skip
    prefixes = {"encoder.": "encoder_", "decoder.": "decoder_"} if model._has_decoder else {"": ""}
    for prefix, field in prefixes.items():
        states = getattr(output, f"{field}hidden_states")
        labels = [label for label in model.layers if str(label).startswith(prefix)]
        assert len(states) == len(labels) + 1  # the first is the embeddings'
        for label, state in list(zip(labels, states[1:]))[:-1]:
            torch.testing.assert_close(seen[label], state, rtol=0, atol=0)
        if not FAMILIES[family].final_norm:
            torch.testing.assert_close(seen[labels[-1]], states[-1], rtol=0, atol=0)


@pytest.mark.parametrize("family, name", ALL)
def test_layers_are_labelled_in_forward_order_with_their_axis(family: str, name: str) -> None:
    model = tiny(family, name)
    if "decoder_input_ids" in model._names:
        expected: list[Any] = [f"encoder.{n}" for n in range(1, DEPTH + 1)]
        expected += [f"decoder.{n}" for n in range(1, DEPTH + 2)]
        assert model.axis["output"] == "decoder"
    else:
        expected = list(range(1, DEPTH + 1))
        assert set(model.axis.values()) == {"input"}
    assert list(model.layers) == expected
    blocks = {
        label for label in model.axis if "hidden_states." in str(label)
    }  # a pre-norm block's own output
    assert set(model.axis) - blocks == {*expected, "output"}
    assert all(model.axis[label] == "decoder" for label in expected if str(label).startswith("decoder"))


@pytest.mark.parametrize("family, name", ALL)
def test_every_layer_and_the_output_depend_on_the_word_embeddings(family: str, name: str) -> None:
    model = tiny(family, name)
    arguments, mask = model.collate([model.encode(TEXTS[0]), model.encode(TEXTS[2])])
    source: list[Tensor] = []

    def leaf(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        if source:  # the decoder's turn, where encoder and decoder share one module
            return None
        source.append(output.detach().requires_grad_())
        return source[0]

    states: list[Tensor] = []
    handles = [model.embedding.layer.register_forward_hook(leaf)]
    for call in model.layers.values():
        handles.append(call.layer.register_forward_hook(lambda m, a, out: states.append(first_tensor(out))))
    states.append(model(*arguments))
    for handle in handles:
        handle.remove()
    assert source[0].shape[:2] == mask.shape
    for state in states:
        (gradient,) = torch.autograd.grad(state.float().square().sum(), source[0], retain_graph=True)
        assert gradient.isfinite().all()
        assert gradient.abs().sum(-1)[mask].max() > 0


TASKS = {
    "Model": ("none", 16),
    "ForSequenceClassification": ("sequence classes", None),
    "ForTokenClassification": ("token classes", 2),
    "ForMaskedLM": ("token classes", 420),
    "ForCausalLM": ("next token", 420),
    "LMHeadModel": ("next token", 420),
    "ForConditionalGeneration": ("next token", 420),
}


@pytest.mark.parametrize("family, name", ALL)
def test_the_task_determines_the_shape_of_the_output(family: str, name: str) -> None:
    model = tiny(family, name)
    task, width = next(TASKS[end] for end in reversed(TASKS) if name.endswith(end))
    assert model.task == task
    arguments, mask = model.collate([model.encode(text) for text in TEXTS])
    output = model(*arguments)
    if task == "sequence classes":
        assert output.shape == (3, model.model.config.num_labels)
    else:
        length = arguments[-1].shape[1] if model.axis["output"] == "decoder" else mask.shape[1]
        assert output.shape == (3, length, width)


@pytest.mark.parametrize("family, name", ALL)
def test_calling_gives_the_models_output(family: str, name: str) -> None:
    model = tiny(family, name)
    arguments, _ = model.collate([model.encode(TEXTS[0])])
    keywords = dict(zip(model._names, arguments))
    if model.task == "sequence classes" and "decoder_input_ids" in keywords:
        del keywords["decoder_input_ids"]  # the model shifts the text itself
    with torch.no_grad():
        own = model.model(**keywords)
    torch.testing.assert_close(
        model(*arguments), own.logits if hasattr(own, "logits") else own.last_hidden_state
    )


# Where the second head's values come from: their rows are set to 0.
VALUES = {
    "bert": ("attention.self.value", slice(8, 16)),
    "deberta-v2": ("attention.self.value_proj", slice(8, 16)),
    "distilbert": ("attention.v_lin", slice(8, 16)),
    "albert": ("albert_layers.0.attention.value", slice(8, 16)),
    "modernbert": ("attn.Wqkv", slice(40, 48)),
    "llama": ("self_attn.v_proj", slice(8, 16)),
    "gemma3": ("self_attn.v_proj", slice(8, 16)),
    "gpt2": ("attn.c_attn", slice(40, 48)),
    "bart": ("self_attn.v_proj", slice(8, 16)),
    "t5": ("layer.0.SelfAttention.v", slice(8, 16)),
}


@pytest.mark.parametrize("family", VALUES)
def test_heads_stand_side_by_side_at_the_head_site(family: str) -> None:
    settings = {"num_key_value_heads": 2} if family in ("llama", "gemma3") else {}
    model = tiny(family, FAMILIES[family].classes[0], **settings)
    path, rows = VALUES[family]
    for label, block in model.layers.items():
        found = model.head_site(label)
        assert found is not None
        site, number, width = found
        assert (number, width) == (2, 8)
        values = block.layer.get_submodule(path)
        with torch.no_grad():
            weight = values.weight.T if family == "gpt2" else values.weight
            weight[rows] = 0
            if values.bias is not None:
                values.bias[rows] = 0
        heads = at_site(model, site)
        assert heads.shape[-1] == 16
        assert heads[..., 8:].abs().max() == 0
        assert heads[..., :8].abs().max() > 0


def at_site(model: HuggingFaceModel, call: LayerCall) -> Tensor:
    arguments, _ = model.collate([model.encode(TEXTS[0])])
    seen: list[Tensor] = []

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        seen.append(first_tensor(output) if call.side == "output" else args[0])

    handle = call.layer.register_forward_hook(hook)
    with torch.no_grad():
        model(*arguments)
    handle.remove()
    return seen[call.call]


@pytest.mark.parametrize("family, name", BARE)
def test_heads_are_known_in_every_family(family: str, name: str) -> None:
    model = tiny(family, name)
    found = [model.head_site(label) for label in model.layers]
    assert {site and site[1:] for site in found} == {FAMILIES[family].heads}


def test_albert_runs_its_one_block_as_often_as_it_has_layers() -> None:
    model = tiny("albert", "AlbertModel")
    assert len({id(call.layer) for call in model.layers.values()}) == 1
    assert [call.call for call in model.layers.values()] == [0, 1]


def test_albert_with_two_groups_runs_each_in_turn() -> None:
    model = tiny("albert", "AlbertModel", num_hidden_layers=5, num_hidden_groups=2)
    assert [call.call for call in model.layers.values()] == [0, 1, 2, 0, 1]
    arguments, _ = model.collate([model.encode(TEXTS[0])])
    with watched(model.layers) as seen, torch.no_grad():
        output = model.model(**dict(zip(model._names, arguments)), output_hidden_states=True)
    for label, state in zip(model.layers, output.hidden_states[1:]):
        torch.testing.assert_close(seen[label], state, rtol=0, atol=0)


@pytest.mark.parametrize("family, name", [("t5", "T5Model"), ("bart", "BartModel")])
def test_noise_enters_where_the_encoder_embeds(family: str, name: str) -> None:
    model = tiny(family, name)
    encoding = model.encode(TEXTS[1])
    arguments, _ = model.collate([encoding])
    arguments = (*arguments[:-1], arguments[-1][:, :3])  # a decoder's text of another length
    with watched({"embedding": model.embedding}) as seen, torch.no_grad():
        model(*arguments)
    assert seen["embedding"].shape == (1, len(encoding.ids), 16)


@pytest.mark.parametrize("family, name", ALL)
def test_a_text_as_long_as_the_limit_runs_and_a_longer_one_is_truncated(family: str, name: str) -> None:
    model = tiny(family, name)
    if family == "t5":  # relative positions: only the tokenizer may know a limit
        assert model.limit > 10**9
        model.tokenizer.model_max_length = LIMIT
    assert model.limit == LIMIT
    longer = "film " * 60
    with pytest.raises(ValueError, match=f"tokens: the model takes at most {LIMIT}; .* truncation=True"):
        model.encode(longer)
    encoding = model.encode(longer, truncation=True)
    assert len(encoding.ids) == LIMIT
    whole = model.tokenizer(longer, verbose=False)["input_ids"]
    if whole[-1] == model.tokenizer.eos_token_id or whole[-1] == model.tokenizer.sep_token_id:
        assert encoding.ids[-1] == whole[-1]  # the end token stays
    assert encoding.ids[0] == whole[0]
    arguments, _ = model.collate([encoding])
    assert model(*arguments).isfinite().all()


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma"])
def test_a_decoders_classifier_reads_each_texts_last_token_without_a_padding_token(
    family: str,
) -> None:
    name = next(name for name in FAMILIES[family].classes if "Sequence" in name)
    model = tiny(family, name, pad_token_id=None)
    encodings = [model.encode(text) for text in TEXTS]
    arguments, _ = model.collate(encodings)
    for row, encoding in enumerate(encodings):
        with torch.no_grad():
            own = model.model(input_ids=torch.tensor([encoding.ids])).logits[0]
        torch.testing.assert_close(model(*arguments)[row], own, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family, name", BARE)
def test_half_precision_runs(family: str, name: str, dtype: torch.dtype) -> None:
    model = tiny(family, name)
    model.model.to(dtype)
    arguments, _ = model.collate([model.encode(text) for text in TEXTS])
    output = model(*arguments)
    assert output.dtype == dtype
    assert output.isfinite().all()


@pytest.mark.parametrize("family, name", BARE)
def test_using_a_model_leaves_it_as_it_was(family: str, name: str) -> None:
    plain = model_of(family, name)
    config, state = plain.config.to_dict(), {key: value.clone() for key, value in plain.state_dict().items()}
    random = torch.random.get_rng_state()
    model = HuggingFaceModel(plain, FAMILIES[family].tokenizer())
    arguments, _ = model.collate([model.encode(text) for text in TEXTS])
    model(*arguments)
    assert plain.config.to_dict() == config
    assert all(torch.equal(value, state[key]) for key, value in plain.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in plain.modules())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert not plain.training


def test_the_configuration_may_request_tuples() -> None:
    model = tiny("bert", "BertForSequenceClassification", return_dict=False)
    arguments, _ = model.collate([model.encode("film")])
    assert model(*arguments).shape == (1, 2)


class Judge(BertPreTrainedModel):  # type: ignore[misc]
    """A classifier with a name that does not tell its task."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config)
        self.out = nn.Linear(config.hidden_size, 3)
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SequenceClassifierOutput:
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return SequenceClassifierOutput(logits=self.out(hidden[:, 0]))


def small_bert() -> BertConfig:
    return BertConfig(**{**FAMILIES["bert"].settings, "vocab_size": 420})


def test_a_custom_head_is_tested_once() -> None:
    random = torch.random.get_rng_state()
    judge = Judge(small_bert()).train()
    torch.random.set_rng_state(random)
    model = HuggingFaceModel(judge, FAMILIES["bert"].tokenizer())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert model.task == "sequence classes"
    arguments, _ = model.collate([model.encode("film"), model.encode("a film")])
    assert model(*arguments).shape == (2, 3)


def test_a_head_that_gives_no_logits_is_refused() -> None:
    with pytest.raises(ValueError, match=r"BertForPreTraining returns no logits .* base_model"):
        HuggingFaceModel(BertForPreTraining(small_bert()), FAMILIES["bert"].tokenizer())


def test_a_model_without_word_embeddings_is_refused() -> None:
    model = model_of("gpt2", "GPT2Model")
    model.get_input_embeddings = lambda: None  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="GPT2Model has no word embeddings"):
        HuggingFaceModel(model, gpt2_tokenizer())


def test_a_model_without_blocks_is_refused() -> None:
    model = model_of("bert", "BertModel")
    model.encoder.layer = nn.Sequential(*model.encoder.layer)
    with pytest.raises(ValueError, match="has no ModuleList of 2 blocks"):
        HuggingFaceModel(model, FAMILIES["bert"].tokenizer())


def test_blocks_are_those_beside_the_word_embeddings() -> None:
    model = model_of("llama", "LlamaForCausalLM")
    pictures = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])  # as a vision tower has, and it comes first
    wrapped = nn.Module()
    wrapped.vision, wrapped.language = pictures, model.model
    wrapped.config = model.config
    wrapped.get_input_embeddings = model.get_input_embeddings
    wrapped.forward = model.forward
    assert architectures.transformer_layers(wrapped) == list(model.model.layers)


def test_unpadded_modernbert_is_refused() -> None:
    model = model_of("modernbert", "ModernBertModel")
    model.layers[0].attn.rotary_emb = type("ModernBertUnpaddedRotaryEmbedding", (nn.Module,), {})()
    with pytest.raises(ValueError, match=r"the batch dimension must stay; .*attn_implementation='sdpa'"):
        HuggingFaceModel(model, FAMILIES["modernbert"].tokenizer())


def test_parts_that_a_model_compiles_run_uncompiled_only_inside_a_call() -> None:
    """As ModernBERT does on a GPU, before transformers 5."""
    model = tiny("bert", "BertModel")
    compiled = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    block = model.layers[1].layer
    block.intermediate.forward = torch.compile(block.intermediate.forward, backend=backend)
    arguments, _ = model.collate([model.encode("film")])
    try:
        model(*arguments)
        assert not compiled
        model.model(arguments[0])
        assert compiled
    finally:
        torch.compiler.reset()


@pytest.mark.parametrize("label", [0, 3, "encoder.1", "output"])
def test_heads_of_a_layer_that_is_not_there_name_those_that_are(label: Any) -> None:
    with pytest.raises(ValueError, match="the model has 1, 2"):
        tiny("bert", "BertModel").head_site(label)
