"""The report of a study in all its media."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from studies import (
    HOSTILE,
    METHODS,
    METRICS,
    SIGNED,
    cell,
    made_report,
    made_table,
    study_cells,
    study_points,
    study_table,
)
from test_html import Page

from interp_plugin.comparison.costs import StudyColumn
from interp_plugin.comparison.tables import StudyCell, metric_cells
from interp_plugin.report import html, terminal
from interp_plugin.report.figures import draw_metric, draw_points
from interp_plugin.report.markdown import escaped, markdown
from interp_plugin.report.model import Point, Points, Row, Table

HIGH = StudyColumn("comprehensiveness", True, "DeYoung et al. 2020")
LOW = StudyColumn("sufficiency", False, "DeYoung et al. 2020")


NOTES = ("Special tokens are not ranked.",)


def small(**groups: dict[str, tuple[StudyCell | None, ...]]) -> Table:
    return made_table(groups, (HIGH, LOW), "layer 3", NOTES)


CELLS: dict[str, dict[str, tuple[StudyCell | None, ...]]] = {
    "unsigned": {
        "ours": (cell(0.46, best=True), cell(0.2, p=0.05)),
        "theirs": (cell(0.45, p=0.3), cell(0.1, best=True)),
        "random": (cell(0.1, p=0.0499), None),
    },
    "signed": {"gradient": (cell(0.6, best=True), cell(0.3, n=150, best=True))},
}
SMALL = small(**CELLS)


def rounded(cells: list[StudyCell | None]) -> list[tuple[str, str] | None]:
    """A column's means and intervals as they are written."""
    return [None if made is None else (made.text, made.spread) for made in metric_cells(HIGH, cells, 9)]


def points(quality: int = 0, cost: int = 1, name: str = "comprehensiveness", better: bool = True) -> Points:
    return Points(f"{name}, {quality}", name, better, study_points(CELLS, quality, cost))


def test_a_method_has_a_cell_for_each_column() -> None:
    with pytest.raises(ValueError, match="'ours' has 1 cells for 2 columns of 'layer 3'"):
        Table("layer 3", "method", SMALL.columns, {"": (Row("ours", (None,)),)})


# -- numbers


def test_the_decimals_of_means_follow_from_half_their_interval() -> None:
    wide, narrow = (
        StudyCell(12.345, 11.1, 13.6, 9, False, None),
        StudyCell(0.12345, 0.1221, 0.1249, 9, False, None),
    )
    assert rounded([wide]) == [("12.3", "[11.1, 13.6]")]
    assert rounded([narrow]) == [("0.1235", "[0.1221, 0.1249]")]


def test_a_column_has_one_number_of_decimals_unless_it_spans_decades() -> None:
    assert [pair and pair[0] for pair in rounded([cell(0.5), cell(0.111), cell(3.0)])] == [
        "0.500",
        "0.111",
        "3.000",
    ]
    fast, slow = StudyCell(0.0034, 0.0031, 0.0037, 9, False, None), StudyCell(3.4, 3.1, 3.7, 9, False, None)
    assert [pair and pair[0] for pair in rounded([fast, slow])] == ["0.00340", "3.40"]


def test_what_all_texts_share_has_no_interval_and_no_needless_decimals() -> None:
    assert rounded([StudyCell(50.0, 50.0, 50.0, 9, False, None)]) == [("50", "")]
    assert rounded([StudyCell(0.125, 0.125, 0.125, 9, False, None)]) == [("0.125", "")]


@pytest.mark.parametrize("missing", [None, cell(math.nan), cell(math.inf)])
def test_missing_values_are_not_written_as_numbers(missing: StudyCell | None) -> None:
    assert rounded([missing, cell(0.5)]) == [None, ("0.500", "[0.470, 0.530]")]


@given(st.floats(-1e9, 1e9), st.floats(0, 1e6))
@settings(max_examples=200, deadline=None)
def test_rounding_moves_a_mean_by_less_than_a_tenth_of_its_interval(mean: float, half: float) -> None:
    [pair] = rounded([StudyCell(mean, mean - half, mean + half, 9, False, None)])
    assert pair is not None
    shift = abs(float(pair[0]) - mean)
    assert shift <= 0.1 * half + 1e-2 * abs(mean)


# -- Markdown


def rows_of(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[part.strip() for part in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_markdown_has_a_table_for_each_group_with_directions_bests_and_ties() -> None:
    assert rows_of(markdown(made_report(SMALL))) == [
        ["unsigned methods", "comprehensiveness ↑", "sufficiency ↓"],
        [":--", "--:", "--:"],
        ["ours", "**0.460** [0.430, 0.490]", "0.200 [0.170, 0.230] ≈"],
        ["theirs", "0.450 [0.420, 0.480] ≈", "**0.100** [0.070, 0.130]"],
        ["random", "0.100 [0.070, 0.130]", "-"],
        ["signed methods", "comprehensiveness ↑", "sufficiency ↓"],
        [":--", "--:", "--:"],
        ["gradient", "**0.600** [0.570, 0.630]", "**0.300** [0.270, 0.330] n 150"],
    ]


def test_markdown_has_question_notes_marks_and_sources() -> None:
    text = markdown(made_report(SMALL, title="SST-2"), title=True)
    assert text.startswith("# SST-2\n\n")
    for claim in (
        "## layer 3", "- Special tokens are not ranked.", "↓: lower is better", "p ≥ 0.05", "compared separately",
        "- comprehensiveness ↑: DeYoung et al. 2020",
    ):  # fmt: skip
        assert claim in text


def test_names_are_not_markup_in_markdown() -> None:
    shown = rows_of(markdown(made_report(study_table(HOSTILE, SIGNED))))
    assert all(len(row) == 1 + len(METRICS) for row in shown)
    text = markdown(made_report(study_table(HOSTILE, ())))
    assert "<script" not in text.replace("\\<script", "")
    assert "\x1b" not in text


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_escaping_leaves_one_line_without_live_marks(text: str) -> None:
    shown = escaped(text)
    assert len(shown.splitlines()) <= 1
    assert not re.search(r"(?<!\\)(?:\\\\)*[|<`*_\[]", shown)


def test_a_question_without_answers_is_listed_and_not_drawn() -> None:
    nothing = Table("class", "method", (), {}, ())
    assert "There is nothing to show." in markdown(made_report(nothing))
    assert "There is nothing to show." in " ".join(Page(html.page(made_report(nothing))).texts("p"))
    assert "There is nothing to show." in printed([nothing])


# -- terminal


def printed(tables: list[Table], width: int = 80) -> str:
    file = io.StringIO()
    terminal.show(made_report(*tables), Console(file=file, width=width))
    return file.getvalue()


@pytest.mark.parametrize("width", [40, 80, 120])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    columns = [StudyColumn(f"{metric.name} {i}", True, "") for i in range(4) for metric in METRICS]
    text = printed([study_table([*HOSTILE[:4], *METHODS], SIGNED, columns=columns)], width)
    assert max(map(len, text.splitlines())) <= width
    for metric in columns:  # headings are wrapped: their words are in several lines
        assert set(metric.name.split()) <= set(text.split()), metric


def test_best_and_ties_are_marked_where_nothing_is_bold() -> None:
    text = " ".join(printed([SMALL], 100).split())
    assert "ours 0.460 ±0.030 * 0.200 ±0.030 ≈" in text
    assert "random 0.100 ±0.030 -" in text
    assert "gradient 0.600 ±0.030 * 0.300 ±0.030 n 150 *" in text
    assert "Special tokens are not ranked." in text


def test_a_method_named_like_markup_or_an_escape_is_printed_as_it_is() -> None:
    text = printed([small(unsigned={"[bold]x": (cell(1.0), None), "\x1b[31m": (cell(2.0), None)})])
    assert "[bold]x" in text
    assert "\\x1b[31m" in text
    assert "\x1b" not in text


# -- page


def page_of(*tables: Table, **options: Any) -> str:
    return html.page(made_report(*tables, charts=[points()], **options))


def test_the_page_holds_every_value_interval_and_mark() -> None:
    shown = Page(page_of(SMALL))
    assert shown.texts("th", scope="col")[:3] == ["method", "comprehensiveness ↑", "sufficiency ↓"]
    assert shown.texts("th", scope="rowgroup") == ["unsigned methods", "signed methods"]
    assert shown.texts("th", scope="row") == ["ours", "theirs", "random", "gradient"]
    assert [words for words in shown.texts("td") if words] == [
        "0.460 [0.430, 0.490]", "0.200 ≈ [0.170, 0.230]", "0.450 ≈ [0.420, 0.480]", "0.100 [0.070, 0.130]",
        "0.100 [0.070, 0.130]", "-", "0.600 [0.570, 0.630]", "0.300 [0.270, 0.330] n 150",
    ]  # fmt: skip
    assert shown.texts("strong") == ["0.460", "0.100", "0.600", "0.300"]
    assert "Special tokens are not ranked." in shown.texts("li")
    assert shown.texts("dd") == ["DeYoung et al. 2020"] * 2


def test_dark_is_better_for_every_direction_of_a_metric() -> None:
    table = small(unsigned={"ours": (cell(0.9), cell(0.9)), "theirs": (cell(0.1), cell(0.1))})
    shown = Page(page_of(table))
    classes = [attributes.get("class") for _, attributes in shown.all("td") if "data-value" in attributes]
    assert classes == ["s32", "s0", "s0", "s32"]


def test_costs_are_not_shaded_and_the_best_of_a_group_of_one_is_dark() -> None:
    seconds = StudyColumn("seconds", False, "wall clock")
    lonely = {"signed": {"gradient": (cell(0.6, best=True), cell(0.3, best=True))}}
    [row] = made_table(lonely, (HIGH, seconds)).rows
    assert [shown.shade for shown in row.cells if shown] == [1.0, None]


def test_cells_have_the_values_that_the_script_sorts_by() -> None:
    shown = Page(page_of(SMALL))
    assert [a.get("data-better") for _, a in shown.all("th", scope="col")] == [None, "higher", "lower"]
    values = [float(a["data-value"] or "") for _, a in shown.all("td") if "data-value" in a]
    assert values == [0.46, 0.2, 0.45, 0.1, 0.1, 0.6, 0.3]


def test_the_policy_allows_the_pages_own_script_alone() -> None:
    source = page_of(SMALL)
    [script] = re.findall(r"<script>(.*?)</script>", source, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    [policy] = [
        a["content"] for _, a in Page(source).all("meta", **{"http-equiv": "Content-Security-Policy"})
    ]
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_hostile_names_stay_text() -> None:
    table = study_table(HOSTILE, HOSTILE[:2], title="<b>")
    chart = Points("<b>", HOSTILE[0], True, study_points(study_cells(HOSTILE, HOSTILE[:2])))
    source = html.page(made_report(table, table, title=HOSTILE[0], charts=[chart], **{"<i>": "</dl>"}))
    shown = Page(source)
    assert len(shown.all("script")) == 1
    assert not shown.all("b") and not shown.all("i")
    assert [name.replace("\\x1b", "\x1b") for name in shown.texts("th", scope="row")[: len(HOSTILE)]] == [
        " ".join(name.split()) for name in HOSTILE
    ]
    assert "\x1b" not in source


def test_nothing_is_loaded_from_elsewhere() -> None:
    source = page_of(SMALL, **{"model": "http://example.org"})
    namespaces = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r"https?://[^\s\"<]+", source)) - namespaces == {"http://example.org"}
    assert not re.search(r"\bsrc=|@import|url\((?!#)", source)
    assert set(re.findall(r'href="(.)', source)) <= {"#"}


def test_the_figure_is_in_the_page_in_its_colours_and_its_names_are_text() -> None:
    source = page_of(SMALL)
    [svg] = re.findall(r"<svg.*?</svg>", source, flags=re.DOTALL)
    assert "var(--unsigned)" in svg
    assert "var(--signed)" in svg
    assert "#2171b5" not in svg  # which dark mode could not change
    assert all(name in re.sub("<[^>]*>", "", svg) for name in ("ours", "theirs", "gradient"))


def test_ids_of_two_figures_do_not_collide() -> None:
    charts = [points(0, 1), points(1, 0)]
    ids = re.findall(r'\bid="([^"]*)"', html.page(made_report(SMALL, charts=charts)))
    assert len(set(ids)) == len(ids)


def test_the_same_study_is_the_same_page() -> None:
    assert page_of(SMALL) == page_of(SMALL)


# -- figures


def drawn_texts(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


def test_the_front_joins_the_undominated_methods() -> None:
    some = (
        Point("cheap", "unsigned", 0.01, 0.3, 0.2, 0.4, True),
        Point("good", "unsigned", 1.0, 0.6, 0.5, 0.7, True),
        Point("neither", "unsigned", 0.5, 0.2, 0.1, 0.3, False),
    )
    [axes] = draw_points(Points("", "comprehensiveness", True, some)).axes
    [front] = [line for line in axes.lines if str(line.get_label()).startswith("Pareto front")]
    assert front.get_drawstyle() == "steps-post"
    assert list(zip(*front.get_data(), strict=True))[:2] == [(0.01, 0.3), (1.0, 0.6)]


@pytest.mark.filterwarnings("error")
def test_a_single_method_has_a_picture() -> None:
    [axes] = draw_points(Points("", "x", True, (Point("one", "unsigned", 0.01, 0.3, 0.3, 0.3, True),))).axes
    low, high = axes.get_xlim()
    assert low < 0.01 < high


def test_groups_differ_in_more_than_colour() -> None:
    [axes] = draw_points(Points("", "x", True, study_points(study_cells()))).axes
    marks = {line.get_label(): line for line in axes.lines if str(line.get_label()).endswith(" methods")}
    unsigned, signed = marks["unsigned methods"], marks["signed methods"]
    assert unsigned.get_marker() != signed.get_marker()
    assert unsigned.get_markerfacecolor() == unsigned.get_color()
    assert signed.get_markerfacecolor() != signed.get_color()


def test_the_axis_is_reversed_and_labelled_if_lower_is_better() -> None:
    [axes] = draw_points(Points("", "infidelity", False, study_points(study_cells()))).axes
    low, high = axes.get_ylim()
    assert low > high
    assert axes.get_ylabel() == "infidelity ↓\nlower is better: the axis is inverted"


def test_methods_without_a_cost_are_named_under_the_picture() -> None:
    lonely = Point("from elsewhere", "signed", math.nan, 0.4, 0.3, 0.5, False)
    [axes] = draw_points(Points("", "x", True, (*study_points(study_cells()), lonely))).axes
    assert axes.get_xlabel().endswith("\nwithout seconds, so not drawn: from elsewhere")
    with pytest.raises(ValueError, match="none of 1 points has a finite quality and a cost above 0"):
        draw_points(Points("", "x", True, (lonely,)))


def test_every_point_has_a_number_and_the_list_beside_the_picture_its_name() -> None:
    some = study_points(study_cells())
    figure = draw_points(Points("", "x", True, some))
    numbers = [text.get_text() for text in figure.axes[0].texts]
    assert numbers == [str(number) for number in range(1, len(some) + 1)]
    ranked = sorted(some, key=lambda point: -point.quality)
    listed = [text.get_text() for text in figure.legends[0].get_texts()]
    assert [f"{number} {point.method}" for number, point in enumerate(ranked, 1)] == [
        name for name in listed if name[0].isdigit()
    ]


def test_bars_are_sorted_best_first_in_a_panel_for_each_group() -> None:
    for column, order in (("comprehensiveness", [0.46, 0.45, 0.1]), ("sufficiency", [0.1, 0.2])):
        unsigned, signed = draw_metric(SMALL, column).axes
        assert [bar.get_width() for bar in unsigned.patches] == pytest.approx(order)
        assert (unsigned.get_title(loc="left"), signed.get_title(loc="left")) == (
            "unsigned methods",
            "signed methods",
        )
        assert {bar.get_hatch() for bar in unsigned.patches} != {bar.get_hatch() for bar in signed.patches}
    assert any("≈: not significantly different" in text for text in drawn_texts(draw_metric(SMALL)))


def test_whiskers_are_the_intervals_ends() -> None:
    table = small(unsigned={"ours": (StudyCell(0.5, 0.2, 0.6, 9, True, None), None)})
    [axes] = draw_metric(table).axes
    [whisker] = [c for c in axes.collections if hasattr(c, "get_segments")]
    [ends] = whisker.get_segments()  # type: ignore[attr-defined]
    assert sorted(ends[:, 0]) == pytest.approx([0.2, 0.6])


@pytest.mark.parametrize("column", ["speed", 2, -3])
def test_an_unknown_column_is_refused_with_those_that_exist(column: str | int) -> None:
    with pytest.raises(ValueError, match="there are 'comprehensiveness', 'sufficiency'"):
        draw_metric(SMALL, column)


def test_a_column_without_values_is_refused() -> None:
    with pytest.raises(ValueError, match="no method has a value of 'sufficiency'"):
        draw_metric(small(unsigned={"ours": (cell(0.5), None)}), "sufficiency")


def test_hostile_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    table = study_table(HOSTILE, HOSTILE[:2], title="$x")
    chart = Points("$x", "$y^", True, study_points(study_cells(HOSTILE, HOSTILE[:2])))
    for figure in (draw_points(chart), draw_metric(table)):
        figure.savefig(tmp_path / "x.png")
        assert any(words.endswith("$x^2$ \\frac") for words in drawn_texts(figure))


def test_figures_are_not_registered_with_pyplot() -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests/support')\n"
        "from studies import *; from interp_plugin.report.figures import *\n"
        "draw_points(Points('', 'x', True, study_points(study_cells()))); draw_metric(study_table())\n"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout == "False\n"
