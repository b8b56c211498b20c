"""What the terminal shows of an explanation."""

from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from interp_plugin import rendering


def explanation(tokens: list[str], n_layers: int, value: float | None = 123.4) -> dict[str, Any]:
    row = [None if value is None else value / (i + 1) for i in range(len(tokens))]
    return {
        "tokens": tokens,
        "layers": list(range(1, n_layers + 1)),
        "kept": [row] * n_layers,
        "standard_error": [[0.26] * len(tokens)] * n_layers,
        "regime_index": [1.068] * n_layers,
        "converged": [True] * n_layers,
        "predicted": "positive",
        "probability": 0.9871,
        "n_forward": 256,
        "n_backward": 128,
        "seconds": 1.234,
    }


def printed(what: dict[str, Any], width: int = 80, colour: bool = False) -> str:
    stream = io.StringIO()
    system = {"force_terminal": True, "color_system": "truecolor"} if colour else {}
    rendering.show(what, Console(file=stream, width=width, **system))
    return stream.getvalue()


def test_the_table_says_value_error_unit_and_sign() -> None:
    text = printed(explanation(["good", "film"], 1))
    flat = " ".join(text.split())
    assert "positive with probability 0.987" in flat
    assert "good 123.4 ±0.3" in flat
    assert "film 61.7 ±0.3" in flat
    assert "in nats" in flat
    assert "high = the layer still holds this token" in flat
    assert "E 1.07" in flat
    assert "converged yes" in flat
    assert "1.23 s, 256 forward and 128 backward sample passes" in flat


def test_a_layer_that_did_not_converge_stands_out() -> None:
    assert "NO" in printed({**explanation(["a"], 2), "converged": [True, False]})


@pytest.mark.parametrize("token", ["[bold]", "[/bold]", "[CLS]", "[red]x", "\\[x]", ":smile:"])
def test_markup_in_a_token_is_shown_as_it_is(token: str) -> None:
    assert token in printed(explanation([token], 1))


def test_escape_sequences_in_data_do_not_reach_the_terminal() -> None:
    text = printed({**explanation(["a\x1b[31m", "b\nc"], 1), "predicted": "x\x1b]0;t\x07"})
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "b\\nc" in text


@pytest.mark.parametrize("n_layers", [1, 4, 6, 12, 48])
@pytest.mark.parametrize("width", [60, 80, 120])
def test_every_layer_is_shown_and_no_line_is_too_wide(n_layers: int, width: int) -> None:
    text = printed(explanation(["[CLS]", "x" * 50, "映画", "[SEP]"], n_layers, 1234.5), width)
    assert max(cell_len(line) for line in text.splitlines()) <= width
    assert "…" not in text
    assert all(f"layer {number}" in text for number in range(1, n_layers + 1))
    assert text.count("±0") == 4 * n_layers


@given(st.lists(st.text(), min_size=1, max_size=5), st.floats(0, 1e6))
def test_any_token_can_be_drawn(tokens: list[str], value: float) -> None:
    text = printed(explanation(tokens, 1, value))
    assert "nan" not in text
    assert max(cell_len(line) for line in text.splitlines()) <= 80


def test_values_that_are_missing_or_zero_are_drawn() -> None:
    assert "- ±0.3" in printed(explanation(["a"], 1, None))
    assert "0.0 ±0.3" in printed(explanation(["a"], 1, 0.0))


def test_a_higher_share_is_a_darker_shade() -> None:
    def light(share: float) -> int:
        return sum(rendering.shade(share)[0])

    assert [light(i / 10) for i in range(11)] == sorted((light(i / 10) for i in range(11)), reverse=True)
    assert rendering.shade(-1.0) == rendering.shade(0.0)
    assert rendering.shade(2.0) == rendering.shade(1.0)


@given(st.floats(0, 1))
def test_text_on_every_shade_has_a_contrast_of_at_least_four_and_a_half(share: float) -> None:
    """WCAG 2.1, success criterion 1.4.3."""

    def luminance(colour: tuple[int, int, int]) -> float:
        linear = [
            c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted(map(luminance, rendering.shade(share)))
    assert (high + 0.05) / (low + 0.05) >= 4.5


DARKEST, LIGHTEST = "48;2;8;48;107m", "48;2;247;251;255m"


def test_each_layer_is_shaded_from_its_lowest_to_its_highest_value() -> None:
    what = explanation(["a", "b"], 2)
    what["kept"] = [[100.0, 50.0], [10.0, 5.0]]
    text = printed(what, colour=True)
    assert text.count(DARKEST) == text.count(LIGHTEST) == 2


def test_differences_within_the_standard_error_are_not_shaded_as_a_pattern() -> None:
    what = explanation(["a", "b"], 1)
    what["kept"], what["standard_error"] = [[101.0, 100.0]], [[1.0, 1.0]]
    assert DARKEST not in printed(what, colour=True)
