"""``interp-plugin corpus``, on a model made by the test; in separate processes where several share a corpus."""

from __future__ import annotations

import json
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from interp_plugin import CorpusResult, huggingface
from interp_plugin.cli import app
from interp_plugin.corpus.study import CorpusStudy

SENTENCES = ("a good film", "not a bad film", "the bold film", "a bad bad film", "not good")


@pytest.fixture
def films(tmp_path: Path) -> Path:
    path = tmp_path / "films.txt"
    path.write_text("".join(f"{text}\n" for text in SENTENCES), encoding="utf-8")
    return path


def run(*arguments: object) -> Any:
    runner = CliRunner(env={"COLUMNS": "160", "RANK": "0", "WORLD_SIZE": "1"})
    return runner.invoke(app, ["corpus", *map(str, arguments)])


def found(*arguments: object) -> Any:
    """The output of --json."""
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(*arguments: object) -> str:
    """The error message, a single sentence."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    return str(result.stderr)


def test_the_numbers_are_those_of_the_study(folder: str, films: Path, tmp_path: Path) -> None:
    arguments = ("--output", tmp_path / "out", "--model", folder, "--layers", "1,2", "--window", 2)
    printed = found(films.as_uri(), *arguments)
    study = CorpusStudy(*huggingface.load(folder), layers=[1, 2])
    expected = study.run(SENTENCES, tmp_path / "api", show_progress=False).layers()
    assert printed["texts"] == len(SENTENCES)
    kept = [line["mean"] for line in printed["layers"] if line["quantity"] == "kept"]
    assert kept == pytest.approx(expected[expected["quantity"] == "kept"]["mean"].tolist(), rel=1e-4)


def test_tables_for_people(folder: str, films: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    result = run(films, "--output", tmp_path / "out", "--model", folder, "--html", page)
    assert result.exit_code == 0, result.output
    assert "Over 5 texts" in result.stdout
    assert "layer 2 keeps most" in result.stdout and "kept per" in result.stdout
    assert "<html" in page.read_text(encoding="utf-8")


def test_a_model_compared_with_itself_has_no_differences(folder: str, films: Path, tmp_path: Path) -> None:
    arguments = (films, "--output", tmp_path / "out", "--model", folder, "--layers", "1", "--compare", folder)
    differences = found(*arguments)["differences"]
    assert {line["difference"] for line in differences} == {0.0}
    assert "paired by text" in run(*arguments).stdout


def test_one_model_is_in_memory_at_a_time(
    folder: str, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[weakref.ref[Any]] = []
    load = huggingface.load

    def watched(*arguments: Any, **options: Any) -> Any:
        assert not [model for model in loaded if model() is not None]
        model, tokenizer = load(*arguments, **options)
        loaded.append(weakref.ref(model))
        return model, tokenizer

    monkeypatch.setattr(huggingface, "load", watched)
    sample = tmp_path / "sample.txt"
    sample.write_text("a film\nnot a good film\n", encoding="utf-8")
    common = (films, "--output", tmp_path / "out", "--model", folder, "--layers", "1", "--compare", folder)
    found(*common, "--calibrate", sample)
    assert len(loaded) == 4, "each once for its calibration, and once to be studied"


def test_rows_that_cannot_be_read_are_recorded_and_the_others_are_scored(folder: str, tmp_path: Path) -> None:
    """One of each kind among a hundred: not UTF-8, empty, far too long, a column missing."""
    rows = [json.dumps({"text": SENTENCES[i % len(SENTENCES)]}).encode() for i in range(100)]
    rows[10] = b'{"text": "\xff\xfe"}'
    rows[30] = b'{"text": ""}'
    rows[50] = json.dumps({"text": "film " * 20_000}).encode()
    rows[70] = b'{"words": "a good film"}'
    path = tmp_path / "films.jsonl"
    path.write_bytes(b"\n".join(rows) + b"\n")
    arguments = (
        path,
        "--output",
        tmp_path / "out",
        "--model",
        folder,
        "--layers",
        "1",
        "--text-column",
        "text",
    )
    printed = found(*arguments)
    assert printed["texts"] == 96
    reasons = {failure["row"]: failure["reason"] for failure in printed["failures"]}
    assert reasons.keys() == {10, 30, 50, 70}
    assert "UTF-8" in reasons[10]
    assert "holds ''" in reasons[30]
    assert "at most" in reasons[50]
    assert "no column 'text'" in reasons[70]
    assert "row 10 left out" in run(*arguments).stderr
    assert "and 1 more rows left out" in run(*arguments).stderr
    assert "max_errors is 3" in refused(*arguments, "--max-errors", 3)


def test_records_that_cannot_be_read_are_counted_and_named_like_others(folder: str, tmp_path: Path) -> None:
    path = tmp_path / "films.jsonl"
    numbers = "9" * 5_000
    path.write_text(
        f'{{"text": "a good film"}}\n{{"text": "x", "n": {numbers}}}\n{{"text": "{"film " * 10_000}"}}\n',
        encoding="utf-8",
    )
    for _ in range(2):
        result = run(path, "--output", tmp_path / "out", "--model", folder, "--layers", "1")
        assert result.exit_code == 0, result.output
        assert "Over 1 texts" in result.stdout
        assert "row 1 left out: ValueError: films.jsonl, line 2: not JSON that can be read" in result.stderr
        assert (
            "row 2 left out: ValueError: text has 50000 characters: the model takes at most 16 tokens"
            in result.stderr
        )


def test_a_column_by_number(folder: str, tmp_path: Path) -> None:
    path = tmp_path / "films.tsv"
    path.write_text("a good film\t1\na bad film\t0\n", encoding="utf-8")
    printed = found(
        path, "--output", tmp_path / "out", "--model", folder, "--text-column", 0, "--layers", "1"
    )
    assert printed["texts"] == 2


def test_unusable_arguments_are_refused_in_one_sentence(folder: str, films: Path, tmp_path: Path) -> None:
    out = ("--output", tmp_path / "out", "--model", folder)
    assert "there is no file" in refused(tmp_path / "none.txt", *out)
    assert "is a file" in refused(films, "--output", films, "--model", folder)
    assert "layer" in refused(films, *out, "--layers", "9")
    assert "cannot load model" in refused(films, *out, "--compare", tmp_path / "no-model")
    assert not list(tmp_path.glob("out/*.parquet")), "nothing was scored before the other model was missed"
    found(films, *out, "--layers", "1")
    assert "other settings: layers" in refused(films, *out, "--layers", "2")


def test_a_missing_column_leaves_no_folder(folder: str, tmp_path: Path) -> None:
    path = tmp_path / "films.csv"
    path.write_text("id;comment\n1;a good film\n", encoding="utf-8")
    sentence = refused(path, "--output", tmp_path / "out", "--model", folder, "--text-column", "review")
    assert "no column 'review' in films.csv, line 2: there are columns 'id', 'comment'" in sentence
    assert sentence.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_limit_is_raised_in_the_same_folder(folder: str, films: Path, tmp_path: Path) -> None:
    arguments = (films, "--output", tmp_path / "out", "--model", folder, "--layers", "1")
    assert found(*arguments, "--limit", 2)["texts"] == 2
    assert found(*arguments)["texts"] == len(SENTENCES)


def test_erased_words_of_a_corpus(folder: str, films: Path, tmp_path: Path) -> None:
    arguments = (films, "--output", tmp_path / "out", "--model", folder, "--score", "erased")
    printed = found(*arguments, "--passes", 24)
    assert printed["settings"]["erased"] == "damage by mask, 24 passes"
    assert {line["layer"] for line in printed["layers"]} == {"output"}
    assert {line["class"] for line in printed["word_classes"]} == {"stop word", "other word"}
    assert "--score erased learns no sigma" in refused(*arguments, "--train-amortised", tmp_path / "head")


def test_processes_of_torchrun_share_a_corpus(folder: str, films: Path, tmp_path: Path) -> None:
    """Two processes, windows of one text, and the rows of one process alone."""
    arguments = [
        "corpus",
        str(films),
        "--model",
        folder,
        "--layers",
        "1,2",
        "--window",
        "1",
        "--calibrate",
        str(films),
    ]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    program = [sys.executable, "-c", "from interp_plugin.cli import app; app()"]
    shared = subprocess.run(
        [*torchrun, "--no-python", *program, *arguments, "--output", str(tmp_path / "two"), "--json"],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert shared.returncode == 0, shared.stderr
    # with as many threads as each of those, by OMP_NUM_THREADS: with another number, the last bits may differ
    alone = found(*arguments[1:], "--output", tmp_path / "one")
    together = json.loads(shared.stdout)
    assert together["texts"] == alone["texts"] == len(SENTENCES)
    tables = [CorpusResult.load(tmp_path / name).table() for name in ("one", "two")]
    assert tables[0].equals(tables[1])
