"""Language models: what a layer's state is, what the output is asked, generated text, chats, segments."""

from __future__ import annotations

import warnings

import pytest
import torch
from tiny_models import tiny

from interp_plugin.attribution import LayerInformationLoss
from interp_plugin.method.perturbation import LayerCall
from interp_plugin.method.solver import Solver
from interp_plugin.text.explainer import TextExplainer

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


def test_one_element_with_most_of_the_squares_is_warned_of_by_name() -> None:
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


def test_a_calibration_keeps_a_blocks_output_and_what_is_read_of_it_apart() -> None:
    explainer = TextExplainer(tiny("gpt2", "GPT2LMHeadModel"))
    calibration = explainer.calibrate([TEXT, "A dull story"], [1, "hidden_states.1"], show_progress=False)
    assert set(calibration.state_std) >= {"1.normed", "1"}
    assert not torch.allclose(calibration.of("1.normed"), calibration.of("1"))


def captum_kept(model: object, text: str, forward: object) -> torch.Tensor:
    """What the Captum class learns of a function of the model's scores."""
    arguments, _ = model.collate([model.encode(text)])
    method = LayerInformationLoss(lambda *a: forward(model(*a)[:, -1]), model.embedding)
    return method.fit(arguments[0], additional_forward_args=arguments[1:], solver=FAST).sigma[0]


def test_a_target_instead_of_another_is_the_difference_of_their_log_probabilities() -> None:
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
def test_the_watched_function_is_the_one_asked_for(function: str) -> None:
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
