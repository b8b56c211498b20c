"""``interp-plugin compare``, on a model made by the test; in a separate process only where one is killed."""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny
from typer.testing import CliRunner

from interp_plugin.cli import app
from interp_plugin.cli.compare import QUICK_TEXTS
from interp_plugin.data import Texts

SENTENCES = ("a good film", "not a bad film", "the bold film", "a bad bad film")
LABELS = ("good", "good", "good", "bad")
TWO = ("--methods", "random,saliency (L2)", "--metrics", "comprehensiveness (mask),sufficiency (mask)")


@pytest.fixture
def films(tmp_path: Path) -> str:
    """Four sentences and their labels, with a header."""
    path = tmp_path / "films.tsv"
    lines = ("sentence\tlabel", *(f"{text}\t{label}" for text, label in zip(SENTENCES, LABELS, strict=True)))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def run(*arguments: str) -> Any:
    runner = CliRunner(env={"COLUMNS": "80"})
    return runner.invoke(app, ["compare", *arguments])


def compared(*arguments: str) -> Any:
    """The output of --json."""
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(*arguments: str) -> str:
    """The error message, a single sentence."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    *before, sentence = result.stderr.splitlines()
    assert sentence.startswith("Error: ")
    assert all(" methods, " in line for line in before)  # the estimated costs
    return str(sentence)


def columns_of(table: Any) -> list[str]:
    return [column["name"] for column in table["columns"]]


COSTS = ["seconds", "forward passes", "backward passes", "peak MiB"]


# -- output


def test_tables_of_the_methods_and_metrics_are_printed(folder: str, films: str) -> None:
    result = run(films, "--model", folder, *TWO)
    assert result.exit_code == 0, result.output
    words = " ".join(result.stdout.split())
    for expected in (
        "unsigned methods",
        "random",
        "saliency (L2)",
        "seconds ↓",
        "4 texts",
        "higher is better",
    ):
        assert expected in words
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_json_holds_every_cell_with_its_interval(folder: str, films: str) -> None:
    data = compared(films, "--model", folder, *TWO)
    [table] = data["tables"]
    assert table["title"] == "class"
    assert columns_of(table)[:2] == ["comprehensiveness (mask)", "sufficiency (mask)"]
    assert set(columns_of(table)[2:]) <= set(COSTS)
    rows = table["groups"]["unsigned"]
    assert list(rows) == ["saliency (L2)", "random"] or list(rows) == ["random", "saliency (L2)"]
    for cell in rows["random"][:2]:
        assert cell["low"] <= cell["mean"] <= cell["high"]
        assert cell["n"] == 4
    assert data["texts"] == 4
    assert data["settings"]["seed"] == 0
    assert data["settings"]["target"] == "predicted"


def test_signed_methods_are_a_group_of_their_own(folder: str, films: str) -> None:
    methods = ("--methods", "random,leave-one-out", "--metrics", "comprehensiveness (mask)")
    [table] = compared(films, "--model", folder, *methods)["tables"]
    assert {group: list(rows) for group, rows in table["groups"].items()} == {
        "unsigned": ["random"],
        "signed": ["leave-one-out"],
    }


def test_layers_are_questions_and_the_class_can_be_left_out(folder: str, films: str) -> None:
    arguments = ("--methods", "random", "--metrics", "state erasure (mask)", "--layers", "all", "--no-class")
    tables = compared(films, "--model", folder, *arguments)["tables"]
    assert [table["title"] for table in tables] == ["layer 1", "layer 2"]


def test_a_calibration_is_the_unit_of_the_states(folder: str, films: str, tmp_path: Path) -> None:
    import torch

    from interp_plugin import Calibration

    arguments = ("--methods", "random", "--metrics", "state erasure (mask)", "--layers", "1", "--no-class")
    texts, saved = tmp_path / "texts.txt", tmp_path / "v.safetensors"
    texts.write_text("\n".join(SENTENCES), encoding="utf-8")
    by_texts = compared(films, "--model", folder, *arguments, "--calibrate", str(texts))
    name = by_texts["settings"]["model"]
    Calibration(name, 4, {"1": torch.full((8,), 2.0)}).save(saved)
    two = compared(films, "--model", folder, *arguments, "--calibrate", str(saved))
    Calibration(name, 4, {"1": torch.full((8,), 1.0)}).save(saved)
    one = compared(films, "--model", folder, *arguments, "--calibrate", str(saved))

    def erasure(data: Any) -> float:
        return float(data["tables"][0]["groups"]["unsigned"]["random"][0]["mean"])

    assert erasure(one) == pytest.approx(4 * erasure(two), rel=1e-4)  # distances are in squares of v
    assert by_texts["settings"]["calibration"] != one["settings"]["calibration"]


def test_without_choices_four_methods_and_two_metrics_run_on_a_sample(
    folder: str, films: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert QUICK_TEXTS == 50
    monkeypatch.setattr("interp_plugin.cli.compare.QUICK_TEXTS", 3)
    result = run(films, "--model", folder, "--json")
    assert result.exit_code == 0, result.output
    [table] = json.loads(result.stdout)["tables"]
    assert sum(map(len, table["groups"].values())) == 4
    assert columns_of(table)[:2] == ["comprehensiveness (delete)", "sufficiency (delete)"]
    lines = result.stderr.splitlines()
    assert re.fullmatch(r"3 texts, 4 methods, 2 metrics: about \d+ (s|min)", lines[0])
    assert re.match(r"with --full: 4 texts, 4\d methods, \d\d metrics: about \d+ (s|min|h)", lines[1])
    assert re.match(r"2 of 12 trials after \d+ (s|min), about \d+ (s|min) left", lines[2])
    assert lines[-1].startswith("12 of 12 trials after ")


def test_an_empty_text_and_unknown_labels_are_named_and_do_not_stop_the_run(
    folder: str, tmp_path: Path
) -> None:
    path = tmp_path / "films.csv"
    path.write_text("text,label\na good film,5 stars\n,good\nnot a bad film,good\n", encoding="utf-8")
    data = compared(str(path), "--model", folder, *TWO)
    assert data["texts"] == 2
    notes = " ".join(data["notes"])
    assert "left out, as they have no text: 1 (films.csv, line 3" in notes
    assert "1 of 2 labels treated as not known, as the model has no such class" in notes
    assert "'5 stars'" in notes
    assert set(data["notes"]) <= set(data["tables"][0]["notes"])


def test_list_works_without_an_input() -> None:
    from interp_plugin.comparison import METHODS, METRICS

    result = run("--list")
    assert result.exit_code == 0, result.output
    words = " ".join(result.stdout.split())
    assert "random" in words
    assert "ERASER" in words
    listed = compared("--list")
    assert [method["name"] for method in listed["methods"]] == list(METHODS)
    assert {metric["name"]: metric["higher_is_better"] for metric in listed["metrics"]} == {
        name: metric.higher_is_better for name, metric in METRICS.items()
    }


def test_help_shows_every_option_and_whole_examples() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for option in (
        "split", "text-column", "pair-column", "label-column", "rationale-column", "target-column",
        "instead-of-column", "limit", "sample", "model",
        "tokenizer", "methods", "metrics", "full", "layers", "no-class", "special-tokens", "target", "calibrate",
        "truncation", "output", "retry-failed", "html", "markdown", "json", "device", "dtype", "seed", "list",
    ):  # fmt: skip
        assert f"--{option} " in result.stdout
    examples = [line.strip() for line in result.stdout.splitlines() if "    interp-plugin compare" in line]
    assert len(examples) == 6
    assert all(line.count('"') % 2 == 0 and len(line) > 20 for line in examples)


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys\n"
        "from interp_plugin.cli import app\n"
        "try: app(['compare', '--help'])\n"
        "finally: assert not {'torch', 'captum', 'transformers', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=True)


# -- sources of texts


def test_limit_takes_the_first(folder: str, films: str, tmp_path: Path) -> None:
    assert compared(films, "--model", folder, *TWO, "--limit", "2")["texts"] == 2
    assert compared(films, "--model", folder, *TWO, "--limit", "3", "--sample", "1")["texts"] == 1


def test_a_sample_keeps_order_labels_and_seed() -> None:
    texts = Texts(tuple("abcdefgh"), tuple("ABCDEFGH"))
    drawn = [texts.sample(3, seed) for seed in range(5)]
    for some in drawn:
        assert len(some.texts) == 3
        assert sorted(some.texts) == list(some.texts)
        assert some.labels == tuple(text.upper() for text in some.texts)
        assert some.rationales is None
    assert len({some.texts for some in drawn}) > 1
    assert texts.sample(3, 0) == drawn[0]
    assert texts.sample(9, 0) is texts


def test_columns_are_numbers_where_a_file_has_no_header(folder: str, tmp_path: Path) -> None:
    path = tmp_path / "films.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(zip(LABELS, SENTENCES, strict=True))
    arguments = ("--text-column", "1", "--label-column", "0", "--target", "label")
    data = compared(str(path), "--model", folder, *TWO, *arguments)
    assert data["texts"] == 4
    assert data["settings"]["target"] == "label"


def test_rationales_bring_plausibility(folder: str, tmp_path: Path) -> None:
    path = tmp_path / "films.jsonl"
    masks = [[int(word in ("good", "bad", "bold")) for word in text.split()] for text in SENTENCES]
    rows = [{"text": text, "why": mask} for text, mask in zip(SENTENCES, masks, strict=True)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    arguments = ("--methods", "random", "--metrics", "AUPRC")
    [table] = compared(str(path), "--model", folder, *arguments, "--rationale-column", "why")["tables"]
    assert columns_of(table)[0] == "AUPRC"
    assert 0 < table["groups"]["unsigned"]["random"][0]["mean"] <= 1
    [table] = compared(str(path), "--model", folder, *arguments)["tables"]
    assert "AUPRC" not in columns_of(table)


def test_a_language_model_uses_the_columns_of_next_tokens(tmp_path: Path) -> None:
    lm, path = tiny("gpt2", "GPT2LMHeadModel"), tmp_path / "prompts.jsonl"
    lm.model.save_pretrained(tmp_path / "llm")
    lm.tokenizer.save_pretrained(tmp_path / "llm")
    rows = [
        {"text": "The film was not good and", "target": " bold", "instead_of": " bad", "next": " dull"},
        {"text": "The actors were", "next": " good", "target": None},
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    arguments = (str(path), "--model", str(tmp_path / "llm"), "--methods", "leave-one-out*")
    metrics = "contrastive compre* (delete),comprehensiveness (attention),state erasure (delete)"
    tables = compared(*arguments, "--metrics", metrics, "--layers", "1")["tables"]
    assert [table["title"] for table in tables] == ["next token", "layer 1"]
    signed = tables[0]["groups"]["signed"]
    assert list(signed) == ["leave-one-out", "leave-one-out (attention)"]
    found = dict(zip(columns_of(tables[0]), signed["leave-one-out"], strict=True))
    assert found["contrastive comprehensiveness (delete)"]["n"] == 1  # the other has no foil
    assert found["comprehensiveness (attention)"]["n"] == 2
    assert "predicts tokens, not classes" in refused(*arguments, "--target", "label")
    [other] = compared(*arguments, "--metrics", "suff* (delete)", "--target-column", "next")["tables"]
    assert other["groups"]["signed"]["leave-one-out"][0]["n"] == 2


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "there is no INPUT"),
        (["FILMS", "--no-class"], "--no-class leaves nothing to explain"),
        (["FILMS", "--text-column", "words"], "there is no column 'words'"),
        (["FILMS", "--label-column", "gold"], "columns 'sentence', 'label'"),
        (["/no/such.tsv"], "there is no file '/no/such.tsv'"),
        (["FILMS", "--methods", "saliency"], "method 'saliency' is not known"),
        (["FILMS", "--methods", "x*"], "method 'x*' matches none; choose from 'information kept'"),
        (["FILMS", "--methods", "random,,LIME"], "has an empty name"),
        (["FILMS", "--metrics", "accuracy"], "metric 'accuracy' is not known"),
        (["FILMS", "--layers", "4-2"], "layers '4-2' cannot be read"),
        (["FILMS", "--layers", "9"], "9"),
        (["FILMS", "--model", "/no/such/model"], "cannot load model '/no/such/model'"),
        (["FILMS", "--device", "abacus"], "device 'abacus' cannot be used"),
        (["FILMS", "--output", "FILMS"], "is a file; give a folder"),
        (["FILMS", "--html", "/no/such/folder/x.html"], "no file can be created in"),
        (["FILMS", "--calibrate", "/no/such/file"], "cannot read '/no/such/file'"),
        (["FILMS", "--methods", "random", "--metrics", "state erasure (mask)"], "does not apply to classes"),
    ],
)
def test_bad_input_exits_with_2_and_one_sentence_on_stderr(
    folder: str, films: str, arguments: list[str], message: str
) -> None:
    given = [films if argument == "FILMS" else argument for argument in arguments]
    sentence = refused(*given, *([] if "--model" in given else ["--model", folder]))
    assert message in sentence
    assert "Traceback" not in sentence


def test_without_its_packages_it_is_refused_before_any_work(
    films: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("interp_plugin.cli.options.find_spec", lambda name: None)
    assert 'pip install "interp-plugin[compare]"' in refused(films, "--model", "/no/such/model")


# -- files


def test_the_folder_holds_report_table_and_picture(folder: str, films: str, tmp_path: Path) -> None:
    output = tmp_path / "study"
    result = run(films, "--model", folder, *TWO, "--output", str(output))
    assert result.exit_code == 0, result.output
    names = ("result.parquet", "report.md", "report.html", "front.png")
    written = [line for line in result.stderr.splitlines() if line.startswith("wrote ")]
    assert written == [f"wrote {output / name}" for name in names]
    assert "with --full" not in result.stderr  # it would be the same
    assert "| saliency (L2) |" in (output / "report.md").read_text(encoding="utf-8")
    assert "<svg" in (output / "report.html").read_text(encoding="utf-8")
    assert (output / "front.png").read_bytes().startswith(b"\x89PNG")


def test_pages_and_markdown_are_written_to_the_given_paths(folder: str, films: str, tmp_path: Path) -> None:
    html, markdown = tmp_path / "x.html", tmp_path / "x.md"
    result = run(films, "--model", folder, *TWO, "--html", str(html), "--markdown", str(markdown))
    assert result.exit_code == 0, result.output
    assert "<bdi>random</bdi>" in html.read_text(encoding="utf-8")
    assert "| random |" in markdown.read_text(encoding="utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["films.tsv", "x.html", "x.md"]


def test_two_questions_have_two_pictures(folder: str, films: str, tmp_path: Path) -> None:
    metrics = ("--metrics", "comprehensiveness (mask),state erasure (mask)", "--layers", "1")
    run(films, "--model", folder, "--methods", "random", *metrics, "--output", str(tmp_path / "study"))
    assert sorted(path.name for path in (tmp_path / "study").glob("*.png")) == [
        "front-class.png",
        "front-layer-1.png",
    ]


def entries(output: Path) -> list[Any]:
    """The journal's entries."""
    path = output / "journal.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    found = [json.loads(line) for line in lines]
    return [entry for entry in found if "text" in entry]


def test_only_an_added_method_is_computed(folder: str, films: str, tmp_path: Path) -> None:
    output = tmp_path / "study"
    common = (films, "--model", folder, "--metrics", "comprehensiveness (mask)", "--output", str(output))
    compared(*common, "--methods", "random")
    before = entries(output)
    [table] = compared(*common, "--methods", "random,saliency (L2)")["tables"]
    after = entries(output)
    assert after[: len(before)] == before
    assert [entry["method"] for entry in after[len(before) :]] == ["saliency (L2)"] * 4
    assert set(table["groups"]["unsigned"]) == {"random", "saliency (L2)"}


def test_other_settings_in_the_same_folder_are_refused(folder: str, films: str, tmp_path: Path) -> None:
    arguments = (films, "--model", folder, *TWO, "--output", str(tmp_path / "study"))
    compared(*arguments)
    assert "holds another study (seed is 0 there and 1 here)" in refused(*arguments, "--seed", "1")


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_a_killed_run_is_continued_and_repeats_nothing(folder: str, tmp_path: Path) -> None:
    words = ("a", "not", "bad", "good", "film", "bold", "the")
    texts = [" ".join(some) for some in itertools.islice(itertools.product(words, repeat=6), 12)]
    source, killed, whole = tmp_path / "texts.txt", tmp_path / "killed", tmp_path / "whole"
    source.write_text("\n".join(texts), encoding="utf-8")
    metrics = ("--metrics", "comprehensiveness (mask),sufficiency (mask)")
    common = (str(source), "--model", folder, "--methods", "random,LIME", *metrics)
    command = [sys.executable, "-c", "from interp_plugin.cli import app; app()", "compare", *common]
    with subprocess.Popen(
        [*command, "--output", str(killed)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as running:
        while running.poll() is None and len(entries(killed)) < 3:
            time.sleep(0.005)
        running.send_signal(signal.SIGKILL)
    done = len(entries(killed))
    assert 3 <= done < 24  # it was killed in the middle

    continued, undisturbed = (compared(*common, "--output", str(output)) for output in (killed, whole))
    trials = [(entry["text"], entry["method"]) for entry in entries(killed)]
    assert len(trials) == len(set(trials)) == 24

    def judged(data: Any) -> Any:
        """Results without costs, which depend on the machine."""
        [table] = data["tables"]
        return {method: cells[:2] for rows in table["groups"].values() for method, cells in rows.items()}

    assert judged(continued) == judged(undisturbed)
