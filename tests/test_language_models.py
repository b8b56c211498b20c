"""Language models: what a layer's state is, what the output is asked, generated text, chats, segments."""

from __future__ import annotations

import warnings
from functools import cache

import pytest
import torch
from tiny_models import tiny

from interp_plugin.method.perturbation import LayerCall
from interp_plugin.method.solver import Solver
from interp_plugin.text.explainer import TextExplainer

FAST = Solver(tolerance=0.2)
TEXT = "The film was not bad"


@cache
def explainer(family: str = "llama", name: str = "LlamaForCausalLM") -> TextExplainer:
    return TextExplainer(tiny(family, name))


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
