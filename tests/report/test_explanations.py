"""Explanations on the terminal, in figures and in Captum's records."""

from __future__ import annotations

import io
import itertools
import logging
import math
import re
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from explanations import HOSTILE, explanation, falling, row, text
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from interp_plugin import report
from interp_plugin.report import explanations, figures, numbers, terminal
from interp_plugin.report import explanations as filled


def layers(units: list[str], n_layers: int, value: float | None = 123.4) -> dict[str, Any]:
    kept = [None] * len(units) if value is None else falling(len(units), value)
    return explanation(text(units, [row(kept, layer) for layer in range(1, n_layers + 1)]))


def printed(what: dict[str, Any], width: int = 80, colour: bool = False, details: bool = True) -> str:
    stream = io.StringIO()
    system = {"force_terminal": True, "color_system": "truecolor"} if colour else {}
    terminal.show(filled.report(what), Console(file=stream, width=width, **system), details)
    return stream.getvalue()


def flat(what: dict[str, Any], width: int = 80, details: bool = True) -> str:
    return " ".join(printed(what, width, details=details).split())


# --- terminal


def test_the_report_has_the_answer_then_the_text_then_the_table() -> None:
    lines = [line.rstrip() for line in printed(layers(["good", "film"], 1), details=False).splitlines()]
    assert lines[0] == "Predicted positive, 0.99. Layer 1 keeps most of: good."
    assert lines[1] == "good film"
    shown = flat(layers(["good", "film"], 1), details=False)
    assert shown.endswith(
        "good 123.4 film 61.7 Sure: the row converged; standard errors are at most 0.21 % of a row's "
        "highest value."
    )


def test_details_show_errors_unit_sign_and_cost() -> None:
    shown = flat(layers(["good", "film"], 1))
    assert "good 123.4 ±0.3" in shown
    assert "film 61.7 ±0.3" in shown
    assert "in nats" in shown
    assert "high = the layer still holds this token" in shown
    assert "layer 1 185.1 ±0.4 1.07 yes 0.1 256 128" in shown
    assert "rate 0.1, seed 7; 1.2 s, 256 forward and 128 backward sample passes" in shown


def test_special_tokens_are_separate_and_do_not_set_the_scale() -> None:
    one = text(["good", "film"], [row([1000.0, 8.0, 4.0])], offsets=[None, [0, 0, 4], [0, 5, 9]])
    one["units"] = ["[CLS]", "good", "film"]
    table = filled.table(explanation(one), one)
    assert [column.name for column in table.columns] == ["good", "film", "[CLS]"]
    assert [cell.shade for cell in table.rows[0].cells if cell] == [1.0, 0.5, None]
    assert "special [CLS]" in flat(explanation(one))
    assert [(piece.text, piece.column) for piece in filled.lines(one)[0]][:2] == [("[CLS]", 2), ("good", 0)]


def test_one_noisy_token_is_marked_without_fading_the_others() -> None:
    noisy = row([8.0, 4.0])
    noisy["standard_error"] = [0.1, 5.0]
    one = text(["good", "film"], [noisy])
    cells = [cell for cell in filled.table(explanation(one), one).rows[0].cells if cell]
    assert [(cell.shade, cell.uncertain) for cell in cells] == [(1.0, False), (0.5, True)]
    assert "film 4.0 ?" in flat(explanation(one), details=False)


def test_an_unsigned_score_of_a_class_is_labelled_as_without_direction() -> None:
    one = text(["dreadful", "film"], [row([8.0, 4.0], "output")], target="positive")
    shown = filled.report(explanation(one))
    assert shown.title.startswith("Information kept, without direction")
    assert "This has no direction" in shown.sections[0].answer
    assert "direction" not in filled.report(explanation(text(["a"], target="positive"))).title


def test_an_answer_names_words_and_not_their_pieces() -> None:
    one = text(["memorable", "film"], [row([8.0, 7.0, 1.0])])
    one |= {"units": ["memo", "##rable", "film"], "offsets": [[0, 0, 4], [0, 4, 9], [0, 10, 14]]}
    assert filled.answer(explanation(one), one).endswith("Layer 1 keeps most of: memorable, film.")


def test_the_space_before_a_token_is_neither_shaded_nor_part_of_a_word_before() -> None:
    """ " film" was named "good film", and its space was shaded at the end of a line."""
    one = text(["good", "film"], [row([1.0, 8.0])]) | {
        "units": ["good", " film"],
        "offsets": [[0, 0, 4], [0, 4, 9]],
    }
    assert filled.answer(explanation(one), one).endswith("keeps most of: film.")
    assert [(piece.text, piece.column) for piece in filled.lines(one)[0]] == [
        ("good", 0),
        (" ", None),
        ("film", 1),
    ]


def test_what_comes_after_a_predicted_token_is_blank() -> None:
    """As in inseq's tables: 0 nats looked like a result."""
    one = text(["a", "good", "film"], [row([3.0, 0.0, 0.0], "output", 1), row([3.0, 2.0, 0.0], "output", 2)])
    rows = filled.table(explanation(one), one).rows
    assert [[cell and cell.text for cell in row.cells] for row in rows] == [
        ["3.00", "-", "-"],
        ["3.00", "2.00", "-"],
    ]


def test_the_closed_form_alone_is_not_called_unconverged() -> None:
    """The advice for --quick was --max-passes, which has no effect there."""
    one = text(["good", "film"], [row([8.0, 4.0]) | {"converged": False}])
    values = explanation(one)
    values["settings"]["iterations"] = 0
    shown = filled.report(values).sections[0]
    assert shown.status.startswith("The closed form alone:") and "without --quick" in shown.status
    assert shown.tables[0].rows[0].warning == ""


def test_a_layer_that_did_not_converge_is_marked_with_the_option_to_change() -> None:
    unfinished = row([8.0, 4.0], 2, error=8.0) | {"converged": False}
    shown = flat(explanation(text(["a", "b"], [row([8.0, 4.0]), unfinished])), details=False)
    assert "(not" in shown and "converged)" in shown  # folded in its heading
    # errors of .026 of log sigma at 256 passes: (.026 / .02)^2 as many, and half as many more
    assert "Not converged: layer 2;" in shown and "--max-passes 1000 (in Python" in shown


def unfinished(saturated: bool, layer: int = 1, **more: Any) -> dict[str, Any]:
    return row([8.0, 4.0], layer) | {"converged": False, "saturated": saturated, **more}


def test_saturated_rows_suggest_a_lower_rate_and_others_more_passes() -> None:
    """With one noisy row among 53 saturated ones, all were advised to use 20,000 passes, which does not help these."""
    both = text(["a", "b"], [unfinished(True), unfinished(False, 2)])
    shown = filled.report(explanation(both)).sections[0].status
    assert "Not converged: layer 1, layer 2; the state of 1 of these rows saturates" in shown
    assert "--rate 0.01 (in Python rate=0.01); for the others: --max-passes" in shown
    alone = filled.report(explanation(text(["a", "b"], [unfinished(True)]))).sections[0].status
    assert "the state saturates" in alone and "--max-passes" not in alone


def test_a_row_that_saturates_at_a_smaller_rate_suggests_an_even_lower_one() -> None:
    """Solved at .0016 instead of the requested .1, the advice was --rate 0.01, which changes nothing."""
    one = text(["a", "b"], [unfinished(True, rate=0.0015625)])
    assert "--rate 0.0002 (in Python rate=0.0002)" in filled.report(explanation(one)).sections[0].status


def test_a_text_that_is_read_again_begins_a_line_with_its_special_tokens() -> None:
    """[CLS] was at the end of the choice before."""
    one = text(["a"], [row([1.0] * 9)], pair="b\nc") | {
        "units": ["[CLS]", "a", "[SEP]", "b", "[CLS]", "a", "[SEP]", "c", "[SEP]"],
        "offsets": [None, [0, 0, 1], None, [1, 0, 1], None, [0, 0, 1], None, [1, 2, 3], None],
    }
    one["text"] = "a"
    shown = ["".join(piece.text for piece in line).strip() for line in filled.lines(one)]
    assert shown == ["[CLS]a[SEP]", "b", "[CLS]a[SEP]", "c[SEP]"]


def test_choices_stand_in_a_heading_with_bars_between() -> None:
    """It was "it was good\\nit was dull"."""
    values = explanation(text(["a"], text="the film", pair="it was good\nit was dull"))
    assert filled.report(values).title == "Information kept: the film | it was good | it was dull"


def test_a_word_with_scores_of_both_signs_is_named_once() -> None:
    """A text that is read with three choices has each word three times: "needs most: not. Against it speak: not"."""
    one = text(["not", "a", "not"], [row([5.0, 1.0, 4.0])])
    one["rows"][0]["erased"] = [5.0, 0.0, -4.0]
    said = filled.answer(explanation(one), one)
    assert "needs most: not." in said and "Against" not in said


def test_answers_and_choices_of_several_words_are_in_quotes() -> None:
    """They merged with the sentence: "Predicted the film was not, 0.02. Target:  Paris instead of  London."."""
    one = text(["a"], predicted="the film was not", target=" Paris instead of  London")
    assert "Predicted 'the film was not', 0.99. Target: ' Paris' instead of ' London'." in flat(
        explanation(one)
    )


def test_each_of_several_texts_has_a_heading_and_the_passes_are_summed() -> None:
    shown = flat(explanation(text(["good"]), text(["bad"], text="bad\n", pair="very")))
    assert "Text 1 of 2: good" in shown
    assert "Text 2 of 2: bad\\n | very" in shown
    assert "512 forward" in shown


def test_what_is_not_known_of_the_output_is_left_out() -> None:
    unknown = text(["a"], predicted=None, probability=None)
    assert "None" not in printed(explanation(unknown))
    assert "Predicted" not in printed(explanation(unknown))
    assert "Target: negative." in flat(explanation(unknown | {"target": "negative"}))
    assert "Predicted positive, 0.99. Target: negative." in flat(explanation(text(["a"], target="negative")))
    assert "0.9999" in flat(explanation(text(["a"], probability=0.99991)))


def test_every_position_has_a_column() -> None:
    shown = printed(explanation(text(["a"], [row([1.0], 3, p) for p in range(3)])))
    assert all(f"layer 3 @{p}" in shown for p in range(3))
    assert "counted from 0" in shown


def test_tied_units_carry_a_mark_that_the_details_explain() -> None:
    tied = row([8.0, 4.0]) | {"tied": [True, False]}
    shown = flat(explanation(text(["good", "film"], [tied])))
    assert "good 8.00 ±0.26 ≈ film 4.00 ±0.26" in shown
    assert "≈: within two standard errors of the next token in rank" in shown
    assert "≈" not in flat(explanation(text(["good", "film"], [row([8.0, 4.0])])))


def test_values_stay_aligned_when_some_are_tied() -> None:
    tied = row([8.0, 4.0]) | {"tied": [True, False]}
    lines = printed(explanation(text(["good", "film"], [tied]))).splitlines()
    assert (
        len(
            {
                line.index("±")
                for line in lines
                if line.lstrip().startswith(("good ", "film ")) and "±" in line
            }
        )
        == 1
    )


def test_without_state_std_the_report_has_a_warning() -> None:
    assert "the unit is the size of each text" in flat(explanation(text(["a"]), state_std=False))
    assert "the unit is the size" not in flat(explanation(text(["a"])))


def test_the_first_column_and_the_legend_name_the_unit() -> None:
    shown = flat(explanation(text(["a"]), granularity="word"))
    assert "word layer 1" in shown
    assert "holds this word" in shown


@pytest.mark.parametrize("token", ["[bold]", "[/bold]", "[CLS]", "[red]x", "\\[x]", ":smile:"])
def test_markup_in_a_token_is_shown_as_it_is(token: str) -> None:
    assert token in printed(layers([token], 1))
    assert token in printed(explanation(text(["a"], [row([1.0], token)])))


def test_escape_sequences_in_data_do_not_reach_the_terminal() -> None:
    evil = "x\x1b]0;t\x07"
    one = text(["a\x1b[31m", "b\nc"], [row([2.0, 1.0], evil)], predicted=evil, target=evil)
    shown = printed(explanation(one, one, granularity=evil))
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "b\\nc" in shown


@pytest.mark.parametrize("n_layers", [1, 4, 6, 12, 48])
@pytest.mark.parametrize("width", [60, 80, 120])
def test_every_layer_is_shown_and_no_line_is_too_wide(n_layers: int, width: int) -> None:
    shown = printed(layers(["[CLS]", "x" * 50, "映画", "[SEP]"], n_layers, 1234.5), width)
    assert max(cell_len(line) for line in shown.splitlines()) <= width
    assert "…" not in shown[shown.index("token") :]
    assert all(re.search(rf"layer\s+{number}\b", shown) for number in range(1, n_layers + 1))
    assert len(re.findall(r"\d ±0", shown)) >= 4 * n_layers


def test_a_long_layer_name_folds_and_its_values_do_not() -> None:
    name = "transformer.h.11.mlp.output.dense"
    shown = printed(explanation(text(["a"], [row([123.4], name), row([61.7], name)])), 60)
    assert max(cell_len(line) for line in shown.splitlines()) <= 60
    assert "…" not in shown
    assert "123.4 ±0.3" in shown


@given(st.lists(st.text(), min_size=1, max_size=5), st.floats(0, 1e6))
def test_any_token_can_be_printed(tokens: list[str], value: float) -> None:
    shown = printed(layers(tokens, 1, value))
    assert max(cell_len(line) for line in shown.splitlines()) <= 80


def test_values_that_are_missing_or_zero_are_drawn() -> None:
    assert re.search(r"a +- ±0\.26", printed(layers(["a"], 1, None)))
    assert re.search(r"a +0\.00 ±0\.26", printed(layers(["a"], 1, 0.0)))


def test_an_empty_explanation_is_shown() -> None:
    assert "rate 0.1" in printed(explanation())
    assert "positive" in printed(explanation(text(["a"], [])))


# --- shades


def test_a_higher_share_is_a_darker_shade() -> None:
    lights = [sum(numbers.shade(i / 10)[0]) for i in range(11)]
    assert lights == sorted(lights, reverse=True)
    assert numbers.shade(2.0) == numbers.shade(1.0)


def test_shares_below_zero_are_darker_the_lower_in_another_hue() -> None:
    lights = [sum(numbers.shade(-i / 10)[0]) for i in range(1, 11)]
    assert lights == sorted(lights, reverse=True)
    assert numbers.shade(-2.0) == numbers.shade(-1.0)
    for share in (0.3, 1.0):
        (red, _, blue), (other_red, _, other_blue) = numbers.shade(share)[0], numbers.shade(-share)[0]
        assert blue > red and other_red > other_blue


@given(st.floats(-1, 1))
def test_text_on_every_shade_has_a_contrast_of_at_least_four_and_a_half(share: float) -> None:
    """WCAG 2.1, success criterion 1.4.3."""

    def luminance(colour: tuple[int, int, int]) -> float:
        linear = [
            c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted(map(luminance, numbers.shade(share)))
    assert (high + 0.05) / (low + 0.05) >= 4.5


HIGHEST, ZERO = "48;2;158;208;255m", "48;2;29;36;44m"  # on a dark ground
ON_LIGHT = "48;2;8;48;107m"


def test_dark_is_high_on_a_light_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLORFGBG", "0;15")
    shown = printed(explanation(text(["a", "b"], [row([8.0, 4.0])])), colour=True)
    assert ON_LIGHT in shown and HIGHEST not in shown


def test_each_layer_is_shaded_from_zero_to_its_highest_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLORFGBG", raising=False)
    what = explanation(text(["a", "b", "c"], [row([100.0, 50.0, 0.0]), row([10.0, 5.0, 0.0], 2)]))
    shown = printed(what, colour=True)
    assert shown.count(HIGHEST) == shown.count(ZERO) == 3  # once in the text


def test_differences_within_the_standard_error_are_marked_as_uncertain() -> None:
    what = explanation(text(["a", "b"], [row([2.0, 1.0], error=1.0)]))
    assert flat(what, details=False).count("?") == 2


@given(st.lists(st.none() | st.floats(-1e6, 1e6), max_size=6))
def test_shares_lie_between_minus_one_and_one(values: list[float | None]) -> None:
    assert all(share is None or -1.0 <= share <= 1.0 for share in numbers.shares(values))


def test_a_higher_share_is_brighter_on_a_dark_background() -> None:
    lights = [sum(numbers.shade(i / 10, dark=True)[0]) for i in range(11)]
    assert lights == sorted(lights)


# --- rows


def test_totals_use_the_rows_own_error_and_else_add_variances() -> None:
    one = row([1.0, 2.0], error=3.0)
    assert filled.total(one) == pytest.approx((3.0, math.sqrt(18.0)))
    assert filled.total(one | {"total_standard_error": 5.0}) == (3.0, 5.0)
    assert filled.total(one | {"total": 7.0, "total_standard_error": 5.0}) == (7.0, 5.0)
    assert math.isnan(filled.total(row([1.0, None]))[0])


# --- figures


def drawn(figure: Any) -> None:
    """Draw with warnings (a layout that does not fit) as errors, except for glyphs that no font has."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(io.BytesIO(), format="png", dpi=30)


KINDS = ("layers", "tokens", "flow")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_units", [1, 3, 60])
def test_a_figure_of_any_size_is_drawn_without_a_warning(
    kind: Any, n_units: int, caplog: pytest.LogCaptureFixture
) -> None:
    units = [f"unit{i}" for i in range(n_units)]
    with caplog.at_level(logging.WARNING):
        drawn(figures.plot(layers(units, 12), kind))
    assert not caplog.records


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_and_missing_values_are_drawn(kind: Any) -> None:
    kept = falling(len(HOSTILE))
    one = text(list(HOSTILE), [row([None, *kept[1:]], "$x$" * 20), row([None] * len(HOSTILE), 2)])
    drawn(figures.plot(explanation(one, one), kind))


@pytest.mark.parametrize("kind", KINDS)
def test_figures_are_not_registered_with_pyplot(kind: Any) -> None:
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    figures.plot(layers(["a", "b"], 2), kind)
    assert pyplot.get_fignums() == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_notebook_shows_a_figure_where_pyplot_was_never_loaded(kind: Any) -> None:
    from matplotlib import image

    figure = figures.plot(layers(["a", "b"], 2), kind)
    png = figure._repr_png_()  # what IPython calls; without it "<Figure ...>" is shown
    height, width = image.imread(io.BytesIO(png)).shape[:2]
    assert (width, height) == tuple(figure.canvas.get_width_height())


def test_the_map_scales_each_row_as_the_page_does() -> None:
    what = explanation(text(["a", "b"], [row([100.0, 50.0]), row([10.0, 5.0], 2)]))
    axes, bar = figures.plot(what, "layers").axes
    assert np.array_equal(axes.images[0].get_array(), [[1.0, 0.5], [1.0, 0.5]])
    assert axes.images[0].get_clim() == (0.0, 1.0)
    assert "share of the row's" in " ".join(bar.get_ylabel().split())
    assert [label.get_text() for label in axes.get_yticklabels()] == ["layer 1", "layer 2"]


def test_a_figure_of_several_texts_draws_them_all_or_refuses() -> None:
    one = layers(["a", "b"], 2)["texts"][0]
    assert len([axes for axes in figures.plot(explanation(one, one)).axes if axes.images]) == 2
    assert len([axes for axes in figures.plot(explanation(one, one), text=1).axes if axes.images]) == 1
    with pytest.raises(ValueError, match="there are 13 texts, but at most 12 fit"):
        figures.plot(explanation(*[one] * 13))


def test_a_figure_starts_with_the_answer() -> None:
    [part] = figures.plot(layers(["good", "film"], 2), "layers").subfigs
    assert part.get_suptitle().startswith("Predicted positive, 0.99. Layer 2 keeps most of: good.")


def test_the_positions_of_a_layer_make_a_map_of_time_steps() -> None:
    states = [row([2.0, 1.0], layer, position) for layer in (1, 2) for position in (0, 1)]
    axes = figures.plot(explanation(text(["a", "b"], states)), "layers", layer=2).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["layer 2 @0 a", "layer 2 @1 b"]


def test_bars_show_the_chosen_row_with_one_standard_error() -> None:
    what = explanation(text(["a", "b"], [row([2.0, 1.0], error=0.5), row([8.0, 4.0], 2)]))
    [axes] = figures.plot(what, "tokens", layer=1).axes
    assert [bar.get_height() for bar in axes.patches] == [2.0, 1.0]
    segments = axes.collections[0].get_segments()
    assert [segment[:, 1].tolist() for segment in segments] == [[1.5, 2.5], [0.5, 1.5]]
    assert "± 1 standard error" in axes.get_ylabel()
    [last] = figures.plot(what, "tokens").axes
    assert last.patches[0].get_height() == 8.0


def test_tied_bars_carry_the_mark() -> None:
    what = explanation(text(["a", "b"], [row([2.0, 1.0]) | {"tied": [True, False]}]))
    [axes] = figures.plot(what, "tokens").axes
    assert [note.get_text() for note in axes.texts] == ["≈"]
    [part] = axes.figure.get_figure().subfigs
    assert "≈" in part.get_suptitle()


def test_the_flow_has_a_line_of_sums_for_each_text() -> None:
    one = text(["a", "b"], [row([2.0, 1.0]), row([1.0, 0.5], 2)])
    [axes] = figures.plot(explanation(one, text(["c"], [row([4.0], 2)])), "flow").axes
    first, second = axes.lines
    assert first.get_xydata().tolist() == [[0.0, 3.0], [1.0, 1.5]]
    assert second.get_xydata().tolist() == [[1.0, 4.0]]  # layer 2 has the same position for both


def test_a_token_is_not_read_as_a_formula_in_a_figure() -> None:
    axes = figures.plot(layers(["$x^2$"], 1), "layers").axes[0]
    [label] = axes.get_xticklabels()
    assert label.get_text() == "$x^2$"
    assert not label.get_parse_math()


def test_control_characters_are_written_out_in_a_figure() -> None:
    axes = figures.plot(layers(["\U000e0041\x1b"], 1), "layers").axes[0]
    assert axes.get_xticklabels()[0].get_text() == "\\U000e0041\\x1b"


@pytest.mark.parametrize(
    "arguments, says",
    [
        ({"kind": "pie"}, "layers, tokens, flow"),
        ({"text": 2}, "there are 1"),
        ({"layer": 9}, "layer 1, layer 2"),
        ({"kind": "flow", "layer": 9}, "layer 1, layer 2"),
        ({"kind": "tokens", "layer": (1, 4)}, "layer 1, layer 2"),
    ],
)
def test_unknown_names_are_refused_with_the_known_ones(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        figures.plot(layers(["a"], 2), **arguments)


def test_a_layer_with_positions_needs_one_for_bars() -> None:
    what = explanation(text(["a"], [row([1.0], 3, 0), row([2.0], 3, 1)]))
    with pytest.raises(ValueError, match=r"choose one of \(3, 0\), \(3, 1\)"):
        figures.plot(what, "tokens", layer=3)
    [axes] = figures.plot(what, "tokens", layer=(3, 0)).axes
    assert axes.patches[0].get_height() == 1.0


# --- Captum's records


@pytest.fixture
def visualize_text(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Captum's own function, with a stand-in for IPython, which is optional everywhere."""
    from captum.attr import visualization

    monkeypatch.setattr(visualization, "HAS_IPYTHON", True)
    monkeypatch.setattr(visualization, "HTML", str, raising=False)
    monkeypatch.setattr(visualization, "display", lambda html: None, raising=False)
    return lambda records: str(visualization.visualize_text(records))


def test_captum_draws_the_records(visualize_text: Callable[..., str]) -> None:
    what = explanation(
        text(["<s>", "good", "film"], [row([50.0, 100.0, 75.0])]),
        text(["bad"], predicted=None, probability=None, target="negative"),
    )
    html = visualize_text(explanations.captum_records(what))
    assert "positive (0.99)" in html
    assert "225.00" in html
    assert "> &lt;s&gt;" in html
    for light in ("hsl(120, 75%, 75%)", "hsl(120, 75%, 63%)", "hsl(120, 75%, 50%)"):  # half to full green
        assert f"background-color: {light};" in html
    assert "<b>negative</b>" in html
    assert "None" not in html


def test_no_token_or_name_reaches_captums_html_as_markup(visualize_text: Callable[..., str]) -> None:
    evil = "<script>alert(1)</script>"
    one = text(list(HOSTILE), predicted=evil, target=evil)
    html = visualize_text(explanations.captum_records(explanation(one)))
    assert "<script" not in html
    assert "<img" not in html
    assert "\x1b" not in html


def test_records_hold_the_chosen_rows_shares_and_their_sum() -> None:
    what = explanation(text(["a", "b"], [row([2.0, 1.0], error=0.0), row([8.0, 8.0], 2)]))
    [record] = explanations.captum_records(what, layer=1)
    assert record.word_attributions.tolist() == [1.0, 0.5]
    assert record.attr_score == 3.0
    assert record.convergence_score == 1.0
    assert record.pred_class == record.attr_class == "positive"


def test_a_value_that_is_missing_is_refused() -> None:
    with pytest.raises(ValueError, match="'b' by layer 1 is None"):
        explanations.captum_records(explanation(text(["a", "b"], [row([1.0, None])])))


@settings(max_examples=50)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=5), st.floats(0, 1e4))
def test_attributions_handed_to_captum_are_shares_of_one(kept: list[float], error: float) -> None:
    units = [str(i) for i in range(len(kept))]
    [record] = explanations.captum_records(explanation(text(units, [row(kept, error=error)])))
    assert all(0.0 <= value <= 1.0 for value in record.word_attributions.tolist())


# --- imports


def test_drawing_imports_no_other_part_of_the_package_and_nothing_heavy() -> None:
    import ast
    from pathlib import Path

    folder = Path(report.__file__).parent
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in folder.glob("*.py")]
    nodes = itertools.chain.from_iterable(map(ast.walk, trees))
    ours = [
        n.module
        for n in nodes
        if isinstance(n, ast.ImportFrom) and (n.module or "").startswith("interp_plugin")
    ]
    assert ours
    assert all(name.startswith("interp_plugin.report") for name in ours)
    top = [node for tree in trees for node in tree.body]
    loaded = {n.module.split(".")[0] for n in top if isinstance(n, ast.ImportFrom) and n.module}
    loaded |= {alias.name.split(".")[0] for n in top if isinstance(n, ast.Import) for alias in n.names}
    assert loaded <= {*sys.stdlib_module_names, "interp_plugin"}
