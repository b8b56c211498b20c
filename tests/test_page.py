"""What the HTML page of an explanation holds, and what it cannot do."""

from __future__ import annotations

import base64
import configparser
import hashlib
import html
import json
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from explanations import HOSTILE, explanation, falling, row, text
from hypothesis import given, settings
from hypothesis import strategies as st

from interp_plugin import rendering
from interp_plugin.rendering import sentence, shades
from interp_plugin.rendering.labels import printable

VOID = {"meta", "input", "br"}


class Page(HTMLParser):
    """Elements of a page, with their attributes and their text; refuses tags that do not nest."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[int] = []
        self.feed(source)
        self.close()
        assert not self._open, "an element was left open"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert len(dict(attributes)) == len(attributes)
        self.elements.append((tag, dict(attributes), []))
        if tag not in VOID:
            self._open.append(len(self.elements) - 1)

    def handle_endtag(self, tag: str) -> None:
        assert self.elements[self._open.pop()][0] == tag

    def handle_data(self, data: str) -> None:
        for index in self._open:
            self.elements[index][2].append(data)

    def all(self, tag: str, **wanted: str) -> list[tuple[str, Mapping[str, str | None]]]:
        """Text and attributes of the elements of a kind."""
        return [
            ("".join(parts), attributes)
            for name, attributes, parts in self.elements
            if name == tag and wanted.items() <= attributes.items()
        ]

    def texts(self, tag: str, **wanted: str) -> list[str]:
        return [" ".join(shown.split()) for shown, _ in self.all(tag, **wanted)]


def page(*texts: dict[str, Any], **options: Any) -> Page:
    return Page(rendering.to_html(explanation(*texts, **options)))


TWO = text(["good", "film"], [row([8.0, 4.0]) | {"tied": [False, True]}, row([3.0, 6.0], "output")])


def test_the_table_has_a_caption_headers_and_every_value_with_its_error() -> None:
    shown = page(TWO)
    assert shown.texts("caption")[0].startswith("Nats kept ± standard error of each token by each layer")
    assert shown.texts("th", scope="col") == ["layer", "good", "film"]
    assert shown.texts("th", scope="row") == ["layer 1 E 1.07, converged", "output E 1.07, converged"]
    assert shown.texts("td") == ["8.000 ±0.260", "4.000 ±0.260 ≈", "3.000 ±0.260", "6.000 ±0.260"]


def test_cells_wear_the_shades_of_the_other_pictures() -> None:
    source = rendering.to_html(explanation(TWO))
    classes = [attributes["class"] for _, attributes in Page(source).all("td")]
    assert classes == ["s32", "s16", "s16", "s32"]
    for step, share in ((0, 0.0), (32, 1.0)):
        back, front = ("#" + bytes(rgb).hex() for rgb in shades.shade(share))
        assert f".s{step}{{background:{back};color:{front}}}" in source


def test_the_sentence_is_shaded_by_the_last_row_until_the_script_runs() -> None:
    shown = page(TWO)
    units = [(words, a["class"]) for words, a in shown.all("span") if "data-unit" in a]
    assert units == [("good", "s16"), ("film", "s32")]
    assert shown.texts("output") == ["output"]
    [(_, slider)] = shown.all("input")
    assert slider["max"] == slider["value"] == "1"
    assert "hidden" in slider  # a control that does nothing is not shown


def test_the_script_is_given_loss_and_sigma_with_its_error() -> None:
    [numbers] = page(TWO).texts("script", type="application/json")
    found = json.loads(numbers)
    assert found["loss"][0] == pytest.approx(TWO["rows"][0]["loss"], rel=1e-3)
    assert found["sigma"][1] == pytest.approx(TWO["rows"][1]["sigma"], rel=1e-3)
    assert found["sigmaError"][0][0] == pytest.approx(TWO["rows"][0]["sigma"][0] * 0.26 / 312, rel=0.05)


def test_the_legend_says_unit_sign_scale_and_marks() -> None:
    [legend] = page(TWO, granularity="word").texts("p", id="legend")
    for claim in (
        "in nats",
        "high = the layer still holds this word",
        "Shade: from 0",
        "E: regime",
        "≈: within two",
    ):
        assert claim in legend
    assert "≈" not in page(text(["a"])).texts("p", id="legend")[0]


def test_without_state_std_the_reader_is_warned() -> None:
    assert any("its own yardstick" in p for p in page(TWO, state_std=False).texts("p"))
    assert not any("its own yardstick" in p for p in page(TWO).texts("p"))


def test_a_layer_that_did_not_converge_stands_out() -> None:
    shown = page(text(["a"], [row([1.0]) | {"converged": False}]))
    assert shown.texts("strong") == ["not converged"]


def test_settings_versions_and_cost_are_on_the_page() -> None:
    shown = page(TWO)
    [details] = shown.texts("details")
    for part in ("rate 0.1", "seed 7", "state std yes", "draws 16", "iterations -", "torch 2.13.0"):
        assert part in details
    assert "1.23 s, 512 forward and 256 backward sample passes" in shown.texts("footer")[0]


def test_what_is_known_of_the_output_is_shown_and_nothing_else() -> None:
    assert "predicted positive probability 0.987" in " ".join(page(TWO).texts("dl"))
    unknown = page(TWO | {"predicted": None, "probability": None, "target": "bad"}).texts("dl")
    assert unknown[0] == "target bad"


def test_each_of_several_texts_has_its_own_heading_and_ids() -> None:
    shown = page(TWO, text(["bad"], pair="very"))
    assert shown.texts("h2") == ["Text 1 of 2: good film", "Text 2 of 2: bad | very"]
    ids = [a["id"] for _, a, _ in shown.elements if "id" in a]
    assert len(ids) == len(set(ids))
    named = {
        a[key]
        for _, a, _ in shown.elements
        for key in ("for", "aria-labelledby", "aria-describedby")
        if key in a
    }
    assert named <= set(ids)


def test_rows_with_positions_and_missing_values_are_drawn() -> None:
    shown = page(text(["a", "b"], [row([None, 1.0], 3, 0), row([None, None], 3, 1, error=0.0)]))
    assert [label.split(" E")[0] for label in shown.texts("th", scope="row")] == ["layer 3 @0", "layer 3 @1"]
    assert shown.texts("td") == ["- ±0.260", "1.000 ±0.260", "- ±0.0", "- ±0.0"]


def test_a_line_break_between_units_is_layout_and_one_inside_a_unit_is_data() -> None:
    one = text(["a"], text="a\nb\n") | {"units": ["a", "b\n"], "offsets": [[0, 0, 1], [0, 2, 4]]}
    one["rows"] = [row([2.0, 1.0])]
    shown = page(one)
    assert [words for words, a in shown.all("span") if "data-unit" in a] == ["a", "b\\n"]
    assert len(shown.all("br")) == 1


def test_nothing_to_show_is_a_page() -> None:
    assert page().texts("h1") == ["Information kept: 0 texts"]
    assert "No layer was asked for." in page(text(["a"], [])).texts("p")


def test_the_title_can_be_chosen() -> None:
    shown = Page(rendering.to_html(explanation(TWO), title="<i>mine</i>\n"))
    assert shown.texts("title") == shown.texts("h1") == ["<i>mine</i>\\n"]


# --- the sentence


def test_a_sentence_is_cut_into_units_segments_and_what_lies_between() -> None:
    one = text(["a"], text="Is it?  cut off", pair="yes") | {
        "units": ["[CLS]", "is", "it", "[SEP]", "yes", "[SEP]"],
        "offsets": [None, [0, 0, 2], [0, 3, 5], None, [1, 0, 3], None],
    }
    shown = [[(piece.text, piece.unit) for piece in line] for line in sentence.lines(one)]
    assert shown == [
        [("[CLS]", 0), ("Is", 1), (" ", None), ("it", 2), ("?  cut off", None), ("[SEP]", 3)],
        [("yes", 4), ("[SEP]", 5)],
    ]


def test_tokens_that_share_a_character_are_all_shown() -> None:
    one = text(["a"], text="😀!") | {
        "units": ["\\xf0", "\\x9f", "!"],
        "offsets": [[0, 0, 1], [0, 0, 1], [0, 1, 2]],
    }
    [line] = sentence.lines(one)
    assert [(piece.text, piece.unit) for piece in line] == [("😀", 0), ("\\x9f", 1), ("!", 2)]


# --- what the page cannot do


def hostile() -> dict[str, Any]:
    evil = HOSTILE[0]
    rows = [row(falling(len(HOSTILE)), name) for name in (evil, HOSTILE[1], HOSTILE[5])]
    what = explanation(text(list(HOSTILE), rows, predicted=evil, target=evil), text([evil]), granularity=evil)
    what["settings"] |= {evil: evil, "versions": {evil: evil}}
    return what


def test_hostile_data_adds_no_element_and_no_attribute() -> None:
    shown = Page(rendering.to_html(hostile()))
    assert {name for name, _, _ in shown.elements} == {name for name, _, _ in page(TWO, TWO).elements} | {
        "bdi"
    }
    assert len(shown.all("script")) == 3  # numbers of two texts, and ours
    assert not any(key.startswith("on") for _, attributes, _ in shown.elements for key in attributes)


def test_hostile_tokens_are_shown_as_they_are() -> None:
    shown = Page(rendering.to_html(hostile()))
    assert [words for words, _ in shown.all("th", scope="col")][1 : len(HOSTILE) + 1] == [
        printable(token) for token in HOSTILE
    ]


def test_no_control_character_reaches_the_page() -> None:
    assert all(c.isprintable() or c == "\n" for c in rendering.to_html(hostile()))


def test_the_page_names_nothing_to_load() -> None:
    source = rendering.to_html(explanation(TWO))
    assert not re.search(r"https?:|//\w|@import|url\(|\bimport\b|fetch\(|XMLHttp", source)
    assert not any(key in ("src", "href", "srcset") for _, a, _ in Page(source).elements for key in a)


def test_the_policy_of_the_page_allows_its_own_script_only() -> None:
    shown = page(TWO)
    [policy] = [
        a["content"] for _, a in shown.all("meta") if a.get("http-equiv") == "Content-Security-Policy"
    ]
    script = shown.all("script")[-1][0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(), min_size=1, max_size=4))
def test_any_token_is_a_heading_of_its_column(units: list[str]) -> None:
    shown = page(text(units))
    assert [words for words, _ in shown.all("th", scope="col")][1:] == [printable(unit) for unit in units]
    assert "".join(words for words, a in shown.all("span") if "data-unit" in a) in printable("".join(units))


def test_twelve_layers_of_128_tokens_stay_under_300_kilobytes() -> None:
    units = [f"##token{i}" for i in range(128)]
    rows = [row(falling(128, 987.6), layer) | {"tied": [True] * 128} for layer in range(1, 13)]
    assert len(rendering.to_html(explanation(text(units, rows))).encode()) < 300_000


# --- in a notebook, and in the package


def test_the_notebook_frame_holds_the_whole_page_and_is_a_world_of_its_own() -> None:
    shown = Page(rendering.notebook_html(hostile()))
    [(_, frame)] = shown.all("iframe")
    assert len(shown.elements) == 1
    assert frame["srcdoc"] == rendering.to_html(hostile())
    assert frame["sandbox"] == "allow-scripts"  # without allow-same-origin it cannot reach the notebook
    assert html.escape(frame["title"] or "") == "Information kept: 2 texts"


def test_every_file_of_the_page_is_shipped() -> None:
    parser = configparser.ConfigParser()
    parser.read(Path(__file__).parent.parent / "setup.cfg", encoding="utf-8")
    patterns = parser["options.package_data"]["interp_plugin.rendering"].split()
    folder = Path(rendering.__file__).parent
    files = {path.name for path in folder.iterdir() if path.is_file() and path.suffix != ".py"}
    assert files >= {"page.html", "page.css", "page.js", "page.corpus.html", "page.study.html"}
    assert files <= {path.name for pattern in patterns for path in folder.glob(pattern)}
