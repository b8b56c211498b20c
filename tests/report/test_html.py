"""The HTML page of an explanation: content and security."""

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

from interp_plugin import report
from interp_plugin.report import explanations as filled
from interp_plugin.report import html as renderer
from interp_plugin.report import numbers
from interp_plugin.report.numbers import printable

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


def source_of(what: dict[str, Any], title: str | None = None) -> str:
    return renderer.page(filled.report(what, title))


def page(*texts: dict[str, Any], **options: Any) -> Page:
    return Page(source_of(explanation(*texts, **options)))


TWO = text(["good", "film"], [row([8.0, 4.0]) | {"tied": [False, True]}, row([3.0, 6.0], "output")])


def main_cells(shown: Page) -> list[tuple[str, Mapping[str, str | None]]]:
    """The cells of the tables that shade the text: those of the details have values to sort by."""
    return [
        (" ".join(words.split()), a)
        for words, a in shown.all("td")
        if "data-value" not in a and words not in ("yes", "no", "0.1")
    ]


def test_the_page_starts_with_the_answer() -> None:
    shown = page(TWO)
    assert shown.texts("p")[0] == "Predicted positive, 0.99. The output keeps most of: film."
    assert shown.texts("p", **{"class": "status"}) == [
        "Sure: both rows converged; standard errors are at most 4.3 % of a row's highest value."
    ]


def test_the_table_has_a_caption_headers_and_every_value_with_its_error() -> None:
    shown = page(TWO)
    assert shown.texts("caption")[0] == "Nats that each layer keeps of each token"
    assert shown.texts("th", scope="col")[:3] == ["layer", "good", "film"]
    assert shown.texts("th", scope="row")[:2] == ["layer 1", "output"]
    assert [words for words, _ in main_cells(shown)] == [
        "8.00 ±0.26", "4.00 ≈ ±0.26", "3.00 ±0.26", "6.00 ±0.26"
    ]  # fmt: skip


def test_special_tokens_come_last_without_a_shade() -> None:
    one = text(["good", "film"], [row([9.0, 8.0, 4.0])], offsets=[None, [0, 0, 4], [0, 5, 9]])
    one["units"] = ["[CLS]", "good", "film"]
    shown = page(one)
    assert shown.texts("th", scope="col")[:4] == ["layer", "good", "film", "[CLS]"]
    assert [a.get("class") for _, a in main_cells(shown)] == ["s32", "s16", "special"]
    assert [(words, a["data-unit"]) for words, a in shown.all("bdi", **{"class": "special"})] == [
        ("[CLS]", "2")
    ]


def test_uncertain_values_are_hatched() -> None:
    noisy = row([8.0, 4.0])
    noisy["standard_error"] = [0.1, 5.0]
    shown = page(text(["good", "film"], [noisy]))
    assert [a["class"] for _, a in main_cells(shown)] == ["s32", "s16 hazy"]


def test_cells_have_the_same_shades_as_the_other_pictures() -> None:
    source = source_of(explanation(TWO))
    classes = [attributes["class"] for _, attributes in main_cells(Page(source))]
    assert classes == ["s32", "s16", "s16", "s32"]
    for step, share in ((0, 0.0), (32, 1.0)):
        back, front = ("#" + bytes(rgb).hex() for rgb in numbers.shade(share))
        assert f".s{step}{{background-color:{back};color:{front}}}" in source


def test_the_sentence_is_shaded_by_the_last_row_until_the_script_runs() -> None:
    shown = page(TWO)
    units = [(words, a["class"]) for words, a in shown.all("span") if "data-unit" in a]
    assert units == [("good", "s16"), ("film", "s32")]
    assert shown.texts("output") == ["output"]
    [(_, slider)] = shown.all("input")
    assert slider["max"] == slider["value"] == "1"
    assert "hidden" in slider  # a control without effect is not shown


def test_the_script_is_given_loss_and_sigma_with_its_error() -> None:
    [numbers] = page(TWO).texts("script", type="application/json")
    found = json.loads(numbers)
    assert found["lost"][0] == pytest.approx(TWO["rows"][0]["loss"], rel=1e-3)
    assert found["sigma"][1] == pytest.approx(TWO["rows"][1]["sigma"], rel=1e-3)
    assert found["sigmaError"][0][0] == pytest.approx(TWO["rows"][0]["sigma"][0] * 0.26 / 312, rel=0.05)


def test_how_to_read_the_page_is_folded_away() -> None:
    [guide] = page(TWO, granularity="word").texts("details", id="guide")
    for claim in (
        "in nats",
        "high = the layer still holds this word",
        "Shades go from 0",
        "E is the",
        "≈: within two",
    ):
        assert claim in guide
    assert "≈" not in page(text(["a"])).texts("details", id="guide")[0]


def test_without_state_std_the_report_has_a_warning() -> None:
    assert any("the unit is the size" in words for words in page(TWO, state_std=False).texts("li"))
    assert not any("the unit is the size" in words for words in page(TWO).texts("li"))


def test_a_layer_that_did_not_converge_is_marked() -> None:
    shown = page(text(["a"], [row([1.0]) | {"converged": False}]))
    assert shown.texts("strong") == ["not converged"]
    assert "--max-passes" in shown.texts("p", **{"class": "status warns"})[0]


def test_settings_versions_and_cost_are_on_the_page() -> None:
    shown = page(TWO)
    details = shown.texts("details")[-1]
    for part in ("rate 0.1", "seed 7", "state std yes", "draws 16", "iterations -", "torch 2.13.0"):
        assert part in details
    assert "1.2 s, 512 forward and 256 backward sample passes" in shown.texts("footer")[0]


def test_what_is_known_of_the_output_is_shown_and_nothing_else() -> None:
    unknown = page(TWO | {"predicted": None, "probability": None, "target": "bad"})
    answer = unknown.texts("p", **{"class": "answer"})[0]
    assert answer.startswith("Target: bad. The output keeps most of: film. This has no direction")
    assert unknown.texts("h1") == ["Information kept, without direction: good film"]


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


def test_the_contents_are_the_shaded_texts() -> None:
    shown = page(TWO, text(["bad"], pair="very"))
    assert [a["aria-label"] for _, a in shown.all("a")] == [
        "Text 1 of 2: good film",
        "Text 2 of 2: bad | very",
    ]
    assert shown.texts("a") == ["1", "2"]
    assert len(shown.texts("span", dir="auto")) == 2


def test_rows_with_positions_and_missing_values_are_drawn() -> None:
    shown = page(text(["a", "b"], [row([None, 1.0], 3, 0), row([None, None], 3, 1, error=0.0)]))
    assert shown.texts("th", scope="row")[:2] == ["layer 3 @0 a", "layer 3 @1 b"]
    assert [words for words, _ in main_cells(shown)][:4] == ["- ±0.26", "1.00 ±0.26", "- ±0.0", "- ±0.0"]


def test_a_line_break_between_units_is_layout_and_one_inside_a_unit_is_data() -> None:
    one = text(["a"], text="a\nb\n") | {"units": ["a", "b\n"], "offsets": [[0, 0, 1], [0, 2, 4]]}
    one["rows"] = [row([2.0, 1.0])]
    shown = page(one)
    assert [words for words, a in shown.all("span") if "data-unit" in a] == ["a", "b\\n"]
    assert len(shown.all("br")) == 1


def test_an_empty_explanation_makes_a_page() -> None:
    assert page().texts("h1") == ["Information kept: 0 texts"]
    assert "No layer was requested." in page(text(["a"], [])).texts("p")


def test_the_title_can_be_chosen() -> None:
    shown = Page(source_of(explanation(TWO), title="<i>mine</i>\n"))
    assert shown.texts("title") == shown.texts("h1") == ["<i>mine</i>\\n"]


# --- the sentence


def test_a_sentence_is_cut_into_units_segments_and_what_lies_between() -> None:
    one = text(["a"], text="Is it?  cut off", pair="yes") | {
        "units": ["[CLS]", "is", "it", "[SEP]", "yes", "[SEP]"],
        "offsets": [None, [0, 0, 2], [0, 3, 5], None, [1, 0, 3], None],
    }
    shown = [[(piece.text, piece.column) for piece in line] for line in filled.lines(one)]
    assert shown == [
        [("[CLS]", 3), ("Is", 0), (" ", None), ("it", 1), ("?  cut off", None), ("[SEP]", 4)],
        [("yes", 2), ("[SEP]", 5)],
    ]


def test_tokens_that_share_a_character_are_all_shown() -> None:
    one = text(["a"], text="😀!") | {
        "units": ["\\xf0", "\\x9f", "!"],
        "offsets": [[0, 0, 1], [0, 0, 1], [0, 1, 2]],
    }
    [line] = filled.lines(one)
    assert [(piece.text, piece.column) for piece in line] == [("😀", 0), ("\\x9f", 1), ("!", 2)]


# --- security


def hostile() -> dict[str, Any]:
    evil = HOSTILE[0]
    rows = [row(falling(len(HOSTILE)), name) for name in (evil, HOSTILE[1], HOSTILE[5])]
    what = explanation(text(list(HOSTILE), rows, predicted=evil, target=evil), text([evil]), granularity=evil)
    what["settings"] |= {evil: evil, "versions": {evil: evil}}
    return what


def test_hostile_data_adds_no_element_and_no_attribute() -> None:
    shown = Page(source_of(hostile()))
    assert {name for name, _, _ in shown.elements} == {name for name, _, _ in page(TWO, TWO).elements} | {
        "bdi"
    }
    assert len(shown.all("script")) == 3  # data of two texts, and ours
    assert not any(key.startswith("on") for _, attributes, _ in shown.elements for key in attributes)


def test_hostile_tokens_are_shown_as_they_are() -> None:
    shown = Page(source_of(hostile()))
    assert [words for words, _ in shown.all("th", scope="col")][1 : len(HOSTILE) + 1] == [
        printable(token) for token in HOSTILE
    ]


def test_no_control_character_reaches_the_page() -> None:
    assert all(c.isprintable() or c == "\n" for c in source_of(hostile()))


def test_the_page_names_nothing_to_load() -> None:
    source = source_of(explanation(TWO))
    assert not re.search(r"https?:|//\w|@import|url\(|\bimport\b|fetch\(|XMLHttp", source)
    assert not any(key in ("src", "href", "srcset") for _, a, _ in Page(source).elements for key in a)


def test_the_policy_of_the_page_allows_only_its_own_script() -> None:
    shown = page(TWO)
    [policy] = [
        a["content"] for _, a in shown.all("meta") if a.get("http-equiv") == "Content-Security-Policy"
    ]
    script = shown.all("script")[-1][0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(), min_size=1, max_size=4))
def test_any_token_can_be_the_heading_of_a_column(units: list[str]) -> None:
    shown = page(text(units))
    heads = [words for words, _ in shown.all("th", scope="col")][1:]
    assert heads[: len(units)] == [printable(unit) for unit in units]
    assert "".join(words for words, a in shown.all("span") if "data-unit" in a) in printable(
        "".join(unit.lstrip() or unit for unit in units)  # the space before a token is not shaded
    )


def test_twelve_layers_of_128_tokens_stay_under_300_kilobytes() -> None:
    units = [f"##token{i}" for i in range(128)]
    rows = [row(falling(128, 987.6), layer) | {"tied": [True] * 128} for layer in range(1, 13)]
    assert len(source_of(explanation(text(units, rows))).encode()) < 300_000


# --- in a notebook, and in the package


def test_the_notebook_frame_holds_the_whole_page_and_is_isolated() -> None:
    shown = Page(renderer.frame(filled.report(hostile())))
    [(_, frame)] = shown.all("iframe")
    assert len(shown.elements) == 1
    assert frame["srcdoc"] == source_of(hostile())
    assert (
        frame["sandbox"] == "allow-scripts allow-downloads"
    )  # without allow-same-origin it cannot reach the notebook
    assert html.escape(frame["title"] or "") == "Information kept: 2 texts"


def test_every_file_of_the_page_is_shipped() -> None:
    parser = configparser.ConfigParser()
    parser.read(Path(__file__).parents[2] / "setup.cfg", encoding="utf-8")
    patterns = parser["options.package_data"]["interp_plugin.report"].split()
    folder = Path(report.__file__).parent
    files = {path.name for path in folder.iterdir() if path.is_file() and path.suffix != ".py"}
    assert files >= {"page.html", "page.css", "page.js"}
    assert files <= {path.name for pattern in patterns for path in folder.glob(pattern)}
