"""Language models: states of layers, targets of the output, generated text, chats, segments."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path

import pytest
import torch
from tiny_models import LIMIT, tiny
from typer.testing import CliRunner

from interp_plugin.attribution import LayerInformationLoss
from interp_plugin.cli import app
from interp_plugin.cli.options import parse_fixed, parse_units
from interp_plugin.method.perturbation import LayerCall
from interp_plugin.method.solver import Solver
from interp_plugin.text.explainer import TextExplainer
from interp_plugin.text.explanation import Explanation
from interp_plugin.text.scores import group

FAST = Solver(tolerance=0.2)
TEXT = "The film was not bad"


def test_the_state_of_a_pre_norm_layer_is_what_the_next_block_reads() -> None:
    model = tiny("llama", "LlamaForCausalLM")
    blocks, final = model.model.model.layers, model.model.model.norm
    assert model.states[1] == LayerCall(blocks[1].input_layernorm)
    assert model.states[2] == LayerCall(final)
    assert model.states["hidden_states.2"] == model.layers[2] == LayerCall(blocks[1])


def test_the_states_of_an_encoder_decoder_follow_its_own_norms() -> None:
    model = tiny("t5", "T5ForConditionalGeneration")
    encoder = model.model.encoder
    assert model.states["encoder.1"] == LayerCall(encoder.block[1].layer[0].layer_norm)
    assert model.states["encoder.2"] == LayerCall(encoder.final_layer_norm)
    assert model.states["decoder.1"] == LayerCall(model.model.decoder.block[1].layer[0].layer_norm)
    assert model.axis["hidden_states.decoder.1"] == "decoder"


@pytest.mark.parametrize(
    ("family", "name"), [("bert", "BertModel"), ("bart", "BartModel"), ("albert", "AlbertModel")]
)
def test_the_state_of_a_post_norm_layer_is_its_output(family: str, name: str) -> None:
    model = tiny(family, name)
    assert all(model.states[label] == site for label, site in model.layers.items())


def test_one_element_with_most_of_the_squares_causes_a_warning_with_its_name() -> None:
    model = tiny("gpt2", "GPT2LMHeadModel")
    explainer = TextExplainer(model)

    def massive(module: object, args: object, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[:, 0, 3] += 1e3
        return output

    block = model.layers[1].layer
    handle = block.register_forward_hook(massive)
    try:
        with pytest.warns(UserWarning, match=r"dimension 3 of token 0 .* layer 'hidden_states.1'.*calibrate"):
            explainer.explain(TEXT, "hidden_states.1", solver=FAST)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            explainer.explain(TEXT, 1, solver=FAST)
    finally:
        handle.remove()


def test_a_calibration_distinguishes_a_blocks_output_from_the_next_blocks_input() -> None:
    explainer = TextExplainer(tiny("gpt2", "GPT2LMHeadModel"))
    calibration = explainer.calibrate([TEXT, "A dull story"], [1, "hidden_states.1"], show_progress=False)
    assert set(calibration.state_std) >= {"1.normed", "1"}
    assert not torch.allclose(calibration.of("1.normed"), calibration.of("1"))


def captum_kept(model: object, text: str, forward: object) -> torch.Tensor:
    """The result of the Captum class for a function of the model's scores."""
    arguments, _ = model.collate([model.encode(text)])
    method = LayerInformationLoss(lambda *a: forward(model(*a)[:, -1]), model.embedding)
    return method.fit(arguments[0], additional_forward_args=arguments[1:], solver=FAST).sigma[0]


def test_a_target_instead_of_another_explains_the_difference_of_log_probabilities() -> None:
    model = tiny("llama", "LlamaForCausalLM")
    text = TextExplainer(model).explain(TEXT, "output", target=7, instead_of=9, solver=FAST)[0]
    expected = captum_kept(model, TEXT, lambda scores: scores[:, 7] - scores[:, 9])
    assert torch.allclose(text.rows[0].sigma, expected, rtol=1e-4)
    assert " instead of " in text.target


def test_texts_with_and_without_instead_of_share_a_batch() -> None:
    explainer = TextExplainer(tiny("llama", "LlamaForCausalLM"))
    together = explainer.explain([TEXT, TEXT], "output", target=7, instead_of=[9, None], solver=FAST)
    for row, foil in zip(together, (9, None)):
        alone = explainer.explain(TEXT, "output", target=7, instead_of=foil, solver=FAST)[0]
        assert torch.allclose(row.rows[0].sigma, alone.rows[0].sigma, rtol=1e-4)


@pytest.mark.parametrize("function", ["logit", "log_probability", "probability", "log_odds", "margin"])
def test_the_requested_function_is_watched(function: str) -> None:
    def of_token(scores: torch.Tensor) -> torch.Tensor:
        p = scores.softmax(-1)[:, 7]
        others = torch.cat([scores[:, :7], scores[:, 8:]], 1)
        return {
            "logit": scores[:, 7], "log_probability": p.log(), "probability": p, "log_odds": p.logit(),
            "margin": scores[:, 7] - others.max(1).values,
        }[function]  # fmt: skip

    model = tiny("llama", "LlamaForCausalLM")
    text = TextExplainer(model).explain(TEXT, "output", target=7, function=function, solver=FAST)[0]
    assert torch.allclose(text.rows[0].sigma, captum_kept(model, TEXT, of_token), rtol=1e-3)


def test_continuations_are_compared_at_the_first_token_in_which_they_differ() -> None:
    model = tiny("gpt2", "GPT2LMHeadModel")
    text = TextExplainer(model).explain(
        TEXT, "output", target=" and good", instead_of=" and funny", solver=FAST
    )[0]
    shared = model.encode(TEXT, target=" and good")
    assert "".join(text.tokens).startswith(TEXT) and len(text.tokens) <= len(shared.ids)
    with pytest.raises(ValueError, match="neither begins with the other"):
        TextExplainer(model).explain(TEXT, "output", target=" and", instead_of=" and")
    with pytest.raises(ValueError, match="no target"):
        TextExplainer(model).explain(TEXT, "output", instead_of=" and")


def test_a_class_instead_of_another() -> None:
    explainer = TextExplainer(tiny("bert", "BertForSequenceClassification"))
    model = explainer.model
    text = explainer.explain(TEXT, "output", target=1, instead_of=0, solver=FAST)[0]
    arguments, _ = model.collate([model.encode(TEXT)])
    classes = model(*arguments)[0]
    method = LayerInformationLoss(
        lambda *a: model(*a) @ torch.eye(len(classes))[1].sub(torch.eye(len(classes))[0]), model.embedding
    )
    fit = method.fit(arguments[0], additional_forward_args=arguments[1:], solver=FAST)
    assert torch.allclose(text.rows[0].sigma, fit.sigma[0], rtol=1e-4)
    assert text.target == f"{model.class_name(1)} instead of {model.class_name(0)}"
    with pytest.raises(ValueError, match="no target for text 0"):
        explainer.explain(TEXT, "output", instead_of=0)


def test_layers_are_watched_where_the_models_own_next_token_is_predicted() -> None:
    explainer = TextExplainer(tiny("llama", "LlamaForCausalLM"))
    own = explainer.explain(TEXT, [1, "output"], solver=FAST)[0]
    last = explainer.explain(TEXT, 1, positions=-1, solver=FAST)[0]
    assert torch.allclose(own.row(1).sigma, last.row(1).sigma, rtol=1e-4)
    everywhere = explainer.explain(TEXT, [1, "output"], positions="all", solver=FAST)[0]
    alone = explainer.explain(TEXT, 1, solver=FAST)[0]
    assert torch.allclose(everywhere.row(1).sigma, alone.row(1).sigma, rtol=0.1)
    assert not torch.allclose(own.row(1).sigma, alone.row(1).sigma, rtol=0.2)


@pytest.mark.parametrize(
    ("family", "name"),
    [("llama", "LlamaForCausalLM"), ("gpt2", "GPT2LMHeadModel"), ("gemma2", "Gemma2ForCausalLM")],
)
def test_scores_at_some_places_are_those_of_the_whole_output(family: str, name: str) -> None:
    model = tiny(family, name)
    arguments, _ = model.collate([model.encode(TEXT), model.encode("A dull story")])
    places = torch.tensor([[1, 0], [2, 1]])
    with torch.no_grad():
        some, whole = model.scores_at(arguments, places), model(*arguments)
    assert torch.allclose(some, whole[torch.arange(2)[:, None], places], rtol=1e-5, atol=1e-6)


CHAT = [
    {"role": "system", "content": "Be good ."},
    {"role": "user", "content": "The film was not bad . Why ?"},
]
TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }} : {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}A : {% endif %}"
)


def test_a_continuation_is_a_grid_whose_rows_are_the_single_calls() -> None:
    explainer = TextExplainer(tiny("llama", "LlamaForCausalLM"))
    model = explainer.model
    text = explainer.explain(TEXT, continuation=" and good", rate=1e-5, solver=FAST)[0]
    start = len(model.encode(TEXT).ids)
    assert [row.position for row in text.rows] == list(range(start, len(text.tokens)))
    kept = text.scores("kept").values
    for index, row in enumerate(text.rows):
        ids = model.steps(TEXT, " and good")[0].ids
        alone = explainer.explain(
            ids[: row.position], "output", target=ids[row.position], rate=1e-5, solver=FAST
        )[0]
        assert torch.allclose(row.sigma[: row.position], alone.rows[0].sigma, rtol=3e-4)
        assert (kept[index, row.position :] == 0).all() and (kept[index, : row.position] > 0).any()


def test_generated_tokens_are_explained_as_they_were_generated() -> None:
    explainer = TextExplainer(tiny("gpt2", "GPT2LMHeadModel"))
    model = explainer.model
    ids = model.generate(TEXT, 3)
    text = explainer.generate(TEXT, 3, solver=FAST)[0]
    assert len(text.rows) == len(ids)
    scores = model(*model.collate([model.encode(TEXT)])[0])[0, -1]
    assert ids[0] == int(scores.argmax())
    single = explainer.explain(TEXT, "output", solver=FAST)[0]
    assert torch.allclose(text.rows[0].sigma[: len(single.tokens)], single.rows[0].sigma, rtol=1e-4)


def test_a_generated_text_is_the_same_in_a_dictionary() -> None:
    """``generate`` returns tensors or, on request or by its configuration, an output with them in ``sequences``."""
    model = tiny("gpt2", "GPT2LMHeadModel")
    expected = model.generate(TEXT, 3)
    assert model.generate(TEXT, 3, return_dict_in_generate=True) == expected
    text = TextExplainer(model).generate(TEXT, generation={"max_new_tokens": 1}, solver=FAST)[0]
    assert [row.position for row in text.rows] == [len(model.encode(TEXT).ids)]
    model.model.generation_config.return_dict_in_generate = True
    assert model.generate(TEXT, 3) == expected


def test_several_generated_texts_are_refused() -> None:
    model = tiny("gpt2", "GPT2LMHeadModel")
    refused = "^num_return_sequences is 2, and one continuation is explained .*; leave it out"
    for more in ({}, {"do_sample": True}, {"num_beams": 2}):
        with pytest.raises(ValueError, match=refused):
            TextExplainer(model).generate(TEXT, 2, generation={"num_return_sequences": 2, **more})
    model.model.generation_config.num_return_sequences = 2
    with pytest.raises(ValueError, match=refused):
        model.generate(TEXT, 2)


def test_an_encoder_decoder_explains_its_generated_tokens_by_the_source() -> None:
    explainer = TextExplainer(tiny("t5", "T5ForConditionalGeneration"))
    text = explainer.explain(TEXT, continuation="not good", solver=FAST)[0]
    whole = explainer.model.encode(TEXT, target="not good")
    assert len(text.rows) == len(whole.target) and text.tokens == whole.tokens
    assert len(explainer.generate(TEXT, 2, generation={"use_cache": False}, solver=FAST)[0].rows) == 2


def test_a_grid_is_written_and_read_again(tmp_path: Path) -> None:
    grid = TextExplainer(tiny("llama", "LlamaForCausalLM")).explain(TEXT, continuation=" and", solver=FAST)
    grid.save(tmp_path / "grid.parquet")
    assert Explanation.load(tmp_path / "grid.parquet") == grid
    assert "and" in grid.to_html()


def test_erased_rows_make_a_grid_too() -> None:
    explainer = TextExplainer(tiny("llama", "LlamaForCausalLM"))
    text = explainer.explain(TEXT, continuation=" and good", score="erased", passes=32)[0]
    assert all((row.erased[row.position :] == 0).all() for row in text.rows)


@pytest.mark.parametrize("name", ["gpt2 GPT2LMHeadModel", "bart BartForConditionalGeneration"])
def test_a_continuation_that_the_model_has_no_positions_for_is_refused_by_its_number_of_tokens(
    name: str,
) -> None:
    explainer = TextExplainer(tiny(*name.split()))
    with pytest.raises(ValueError, match=f"tokens: the model takes at most {LIMIT}; shorten it$"):
        explainer.explain(TEXT, continuation=[5] * 200, solver=FAST)


def test_more_new_tokens_than_there_are_positions_for_are_refused_unless_the_text_ends_before() -> None:
    explainer = TextExplainer(tiny("gpt2", "GPT2LMHeadModel"))
    with pytest.raises(
        ValueError, match=f"max_new_tokens is 200.*: the model takes at most {LIMIT}; give fewer"
    ):
        explainer.generate(TEXT, 200, generation={"min_new_tokens": 200}, solver=FAST)
    [first, *_] = explainer.model.generate(TEXT, 1)
    explainer.model.model.generation_config.eos_token_id = first
    assert explainer.model.generate(TEXT, 200) == (first,)


def test_a_decoders_text_is_shown_also_where_it_is_given_as_ids() -> None:
    explainer = TextExplainer(tiny("bart", "BartForConditionalGeneration"))
    ids = explainer.model.tokenizer(" and good", add_special_tokens=False)["input_ids"]
    assert explainer.explain(TEXT, continuation=ids, solver=FAST)[0].pair == " and good"


def test_token_ids_are_read_as_they_are() -> None:
    explainer = TextExplainer(tiny("gpt2", "GPT2LMHeadModel"))
    ids = explainer.model.encode(TEXT).ids
    by_ids = explainer.explain(torch.tensor(ids), "output", target=" and good", solver=FAST)[0]
    by_text = explainer.explain(TEXT, "output", target=" and good", solver=FAST)[0]
    assert by_ids.tokens == by_text.tokens and by_ids.text == TEXT
    assert torch.allclose(by_ids.rows[0].sigma, by_text.rows[0].sigma)


def chatting() -> TextExplainer:
    model = tiny("llama", "LlamaForCausalLM")
    tokenizer = copy.copy(model.tokenizer)
    tokenizer.chat_template = TEMPLATE
    return TextExplainer(model.model, tokenizer)


def test_a_chat_has_the_special_tokens_of_its_template_once() -> None:
    model = chatting().model
    encoding = model.encode(CHAT)
    rendered = model.tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert encoding.ids == tuple(model.tokenizer(rendered, add_special_tokens=False)["input_ids"])
    assert encoding.ids.count(model.tokenizer.bos_token_id) == len(CHAT)
    assert {part[1] for part in encoding.parts if part} == {"system", "user"}
    of_user = [o for o, part in zip(encoding.offsets, encoding.parts) if part and part[1] == "user"]
    assert encoding.text[of_user[0][1] : of_user[-1][2]].strip() == CHAT[1]["content"]


def test_fixed_parts_keep_nothing_and_the_others_get_the_noise() -> None:
    explainer = chatting()
    text = explainer.explain(CHAT, "output", fixed=["special", "system"], rate=1e-5, solver=FAST)[0]
    parts = explainer.model.encode(CHAT).parts
    free = torch.tensor([part is not None and part[1] == "user" for part in parts])
    kept = text.scores("kept").values[0]
    assert (kept[~free] == 0).all() and (kept[free] > 0).all()
    arguments, _ = explainer.model.collate([explainer.model.encode(CHAT)])
    model = explainer.model
    token = int(model(*arguments)[0, -1].argmax())
    method = LayerInformationLoss(lambda *a: model(*a)[:, -1].log_softmax(-1)[:, token], model.embedding)
    fit = method.fit(
        arguments[0],
        additional_forward_args=arguments[1:],
        token_mask=free.unsqueeze(0),
        rate=1e-5,
        solver=FAST,
    )
    assert torch.allclose(text.rows[0].sigma[free], fit.sigma[0][free], rtol=1e-4)


def test_units_share_one_scale_of_noise() -> None:
    explainer = TextExplainer(tiny("gpt2", "GPT2LMHeadModel"))
    texts = ["The film was not bad . It was good .", "A dull story"]
    for item in explainer.explain(texts, "output", units="sentence", solver=FAST):
        alone = explainer.explain(item.text, "output", units="sentence", solver=FAST)[0]
        assert torch.allclose(item.rows[0].sigma, alone.rows[0].sigma, rtol=1e-4)
        for unit in group((item.text, None), item.tokens, item.offsets, "sentence"):
            assert len({float(item.rows[0].sigma[token]) for token in unit.tokens}) == 1
    by_span = explainer.explain(texts[0], "output", units=[(0, 18), (19, 33)], solver=FAST)[0]
    by_name = explainer.explain(texts[0], "output", units="sentence", solver=FAST)[0]
    assert torch.allclose(by_span.rows[0].sigma, by_name.rows[0].sigma)


def test_units_are_erased_together() -> None:
    explainer = TextExplainer(tiny("gpt2", "GPT2LMHeadModel"))
    model, words = explainer.model, "The film was bad . It was good ."
    encoding = model.encode(words)
    second = [offset[1] >= 18 for offset in encoding.offsets]

    def answer(kept: list[bool]) -> float:
        with torch.no_grad():
            return float(model(*model.collate([encoding.only(kept)])[0])[0, -1].log_softmax(-1)[7])

    text = explainer.explain(words, "output", target=7, score="erased", ways="delete", units="sentence")[0]
    row = text.rows[0]
    scores = text.scores("erased", "sentence").values[0]
    # of two units all four erasures are tried: a score is the mean of what is lost without and with the other one
    p = {unit: float(row.erasure_probability[unit]) for unit in (0, -1)}
    everything = answer([True] * len(second))
    lost = everything - answer(second)
    assert row.erased[0] == row.erased[1] and p[0] > 0 and p[-1] > 0
    assert (float(scores[0]) > 0) == (lost > 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fixed": "system"}, "not a chat"),
        ({"fixed": (0, 99)}, "none can receive noise"),
        ({"units": "line"}, "choose from word, sentence, paragraph, message"),
        ({"units": "message"}, "not a chat"),
        ({"units": [(90, 99)]}, "no tokens"),
        ({"continuation": " and", "target": " good"}, "give one of them"),
        ({"function": "logits"}, "choose from logit, log_probability"),
    ],
)
def test_invalid_requests_are_refused_in_one_sentence(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        TextExplainer(tiny("gpt2", "GPT2LMHeadModel")).explain(TEXT, "output", **options)
    assert "\n" not in str(caught.value)


def test_the_parts_of_a_command_line_are_read() -> None:
    assert parse_fixed("special,user,0-14") == ["special", "user", (0, 14)]
    assert parse_fixed("re:a.b")[0].search("a\nb") and parse_units("sentence") == "sentence"
    with pytest.raises(ValueError, match="not a regular expression"):
        parse_units("re:(")


def test_a_chat_on_the_command_line(tmp_path: Path) -> None:
    explainer = chatting()
    explainer.model.model.save_pretrained(tmp_path / "model")
    explainer.model.tokenizer.save_pretrained(tmp_path / "model")
    file = tmp_path / "chats.jsonl"
    file.write_text(json.dumps(CHAT) + "\n")
    given = [
        "explain",
        "--file",
        str(file),
        "--chats",
        "--model",
        str(tmp_path / "model"),
        "--json",
        "--quick",
    ]
    found = CliRunner().invoke(app, [*given, "--layers", "output", "--fixed", "special,system"])
    assert found.exit_code == 0, found.output
    [row] = json.loads(found.stdout)["texts"][0]["rows"]
    assert len(row["kept"]) == len(explainer.model.encode(CHAT).ids)
    refused = CliRunner().invoke(app, [*given, "--generate", "2", "--target", "x"])
    assert refused.exit_code == 2 and "give one of them" in refused.stderr


def test_special_tokens_in_a_text_are_recognised_and_the_first_is_not_repeated() -> None:
    model = chatting().model
    rendered = model.tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    encoding, chat = model.encode(rendered), model.encode(CHAT)
    assert encoding.ids.count(model.tokenizer.bos_token_id) == len(CHAT)
    assert encoding.ids == chat.ids
    special = [
        offset is None for token, offset in zip(encoding.ids, encoding.offsets) if token == encoding.ids[0]
    ]
    assert all(special)
    words = group((encoding.text, None), encoding.tokens, encoding.offsets, "word")
    assert all(len(unit.tokens) == 1 for unit in words if unit.offset is None)


def test_the_end_token_can_be_the_target() -> None:
    model = tiny("llama", "LlamaForCausalLM")
    assert model.encode(TEXT, target="</s>").target == (model.tokenizer.eos_token_id,)
