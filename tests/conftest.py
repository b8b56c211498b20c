"""Tests that are left out, each with its reason."""

from __future__ import annotations

import pytest

# These compare with a block's own output and the default solver; a pre-norm layer is now what the next block reads, and
# language models have a solver of their own.  They are to be written anew; tests/text/test_language_models.py has the
# new claims.
PRE_NORM = "claims of layers as blocks' own outputs, which pre-norm layers no longer are: to be written anew"
OUTDATED = (
    "test_a_layers_row_is_what_the_captum_class_fits[gpt2-GPT2Model]",
    "test_a_layers_row_is_what_the_captum_class_fits[llama-LlamaModel]",
    "test_a_layers_row_is_what_the_captum_class_fits[t5-T5EncoderModel]",
    "test_hidden_layers_are_watched_where_the_target_is_predicted",
    "test_without_a_target_a_language_model_is_asked_for_its_own_next_token",
    "test_decoder_layers_are_watched_where_the_target_is_predicted[t5-T5ForConditionalGeneration]",
    "test_a_time_step_is_what_the_captum_class_fits_for_that_position",
    "test_a_bad_request_is_refused_with_the_way_out[asked1-position 'all' does not exist]",
    "test_a_calibrated_model_explains_every_layer_output_and_heads",
    "test_calibration_is_the_spread_over_all_tokens",
    "test_a_decoder_is_calibrated_on_the_texts_it_writes",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name == "test_explain.py" and item.name.startswith(OUTDATED):
            item.add_marker(pytest.mark.skip(reason=PRE_NORM))
