"""The command line, on models made by the tests; in a separate process only where it matters."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_models
from tiny_bert import save_classifier
from typer.testing import CliRunner

from interp_plugin import Explanation
from interp_plugin.cli import app
from interp_plugin.cli.options import parse_layers, parse_positions

COMMAND = [sys.executable, "-m", "interp_plugin"]
ENVIRONMENT = {**os.environ, "COLUMNS": "80"}


@pytest.fixture(scope="module")
def unnamed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same with classes "1" and "0", in this order."""
    path = save_classifier(tmp_path_factory.mktemp("unnamed"))
    config = json.loads((path / "config.json").read_text())
    config |= {"id2label": {"0": "1", "1": "0"}, "label2id": {"1": 0, "0": 1}}
    (path / "config.json").write_text(json.dumps(config))
    return str(path)


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("gpt2")
    model = tiny_models.tiny("gpt2", "GPT2LMHeadModel")
    model.model.save_pretrained(path)
    model.tokenizer.save_pretrained(path)
    return str(path)


def run(*arguments: str, given: str | bytes | None = None) -> Any:
    return CliRunner(env={"COLUMNS": "80"}).invoke(app, arguments, input=given)


def explained(*arguments: str, given: str | bytes | None = None) -> Any:
    """The output of --json."""
    result = run("explain", *arguments, "--tolerance", "0.2", "--json", given=given)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(*arguments: str, given: str | bytes | None = None) -> str:
    """The error message, a single sentence."""
    result = run("explain", *arguments, given=given)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    return str(result.stderr)


def texts_of(data: Any) -> list[str]:
    return [text["text"] for text in data["texts"]]


def rows_of(data: Any, text: int = 0) -> list[tuple[int | str, int | None]]:
    return [(row["layer"], row["position"]) for row in data["texts"][text]["rows"]]


# -- output


def test_explain_prints_class_tokens_layers_and_cost(folder: str) -> None:
    result = run("explain", "not a [bold] film", "--model", folder)
    assert result.exit_code == 0, result.output
    for expected in (
        "Predicted ",
        "Layer 2 keeps most of",
        "film",
        "bold",
        "layer 1",
        "layer 2",
        "Nats",
        "converged",
    ):
        assert expected in result.stdout
    assert "sample passes" not in result.stdout and "±" not in result.stdout
    detailed = run("explain", "not a [bold] film", "--model", folder, "--details")
    assert "sample passes" in detailed.stdout and "±" in detailed.stdout
    assert result.stderr == ""


def test_json_is_strict_and_complete(folder: str) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    result = run("explain", "not a bad film", "--model", folder, "--layers", "2", "--seed", "3", "--json")
    data = json.loads(result.stdout, parse_constant=refuse)
    assert data["settings"]["seed"] == 3
    [text] = data["texts"]
    assert text["units"] == ["[CLS]", "not", "a", "bad", "film", "[SEP]"]
    [row] = text["rows"]
    assert row["layer"] == 2
    assert len(row["kept"]) == len(row["standard_error"]) == 6


def test_the_default_model_explains_a_sentence() -> None:
    result = run("explain", "a funny film", "--layers", "1,4", "--tolerance", "0.1")
    assert result.exit_code == 0, result.output
    assert "layer 4" in result.stdout


def test_version_is_that_of_the_metadata() -> None:
    assert run("--version").stdout.strip() == version("interp-plugin")


def test_without_a_command_the_help_is_shown() -> None:
    result = run()
    assert result.exit_code in (0, 2)  # depends on the version of typer
    assert "explain" in result.output


def test_the_module_is_the_command() -> None:
    shown = subprocess.run(
        [*COMMAND, "--help"], env=ENVIRONMENT, capture_output=True, text=True, check=True
    ).stdout
    assert "Usage: interp-plugin [OPTIONS] COMMAND" in shown


def test_help_shows_every_option_and_examples() -> None:
    result = run("explain", "--help")
    assert result.exit_code == 0
    for option in (
        "file", "label-column", "pairs", "model", "tokenizer", "layers", "target", "granularity", "aggregate",
        "positions", "html",
        "png", "save", "json", "calibrate", "device", "dtype", "batch-size", "truncation", "rate", "tolerance", "seed",
    ):  # fmt: skip
        assert f"--{option} " in result.stdout
    examples = [line.strip() for line in result.stdout.splitlines() if "interp-plugin explain" in line]
    assert len(examples) == 11  # with the usage; no name is split over two lines
    assert all(line.count('"') % 2 == 0 for line in examples)


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys\n"
        "from interp_plugin.cli import app\n"
        "try: app(['explain', '--help'])\n"
        "finally: assert not {'torch', 'captum', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=True)


# -- sources of texts


def test_texts_are_read_from_the_lines_of_a_file_and_empty_lines_are_skipped(
    folder: str, tmp_path: Path
) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes(b"\xef\xbb\xbfa film\r\n\r\n  \nnot a\x0bbad film")
    data = explained("--file", str(path), "--model", folder, "--layers", "1")
    assert texts_of(data) == ["a film", "not a\x0bbad film"]


@pytest.mark.parametrize("arguments", [[], ["--file", "-"]])
def test_texts_are_read_from_standard_input(folder: str, arguments: list[str]) -> None:
    data = explained(*arguments, "--model", folder, "--layers", "1", given="a film\n\nnot a film\n")
    assert texts_of(data) == ["a film", "not a film"]


def test_several_texts_have_separate_headings(folder: str) -> None:
    result = run("explain", "a film", "not a film", "--model", folder, "--layers", "1", given="unread")
    assert result.stdout.index("Text 1 of 2: a film") < result.stdout.index("Text 2 of 2: not a film")


def test_pairs_are_two_sentences_with_a_tab_between(folder: str) -> None:
    data = explained("--pairs", "--model", folder, "--layers", "1", given="a film\tgood\nnot a film\tbad\n")
    assert [(text["text"], text["pair"]) for text in data["texts"]] == [
        ("a film", "good"),
        ("not a film", "bad"),
    ]


def test_without_pairs_a_tab_is_a_space(folder: str) -> None:
    [text] = explained("a\tfilm", "--model", folder, "--layers", "1")["texts"]
    assert text["pair"] is None
    assert text["units"] == ["[CLS]", "a", "film", "[SEP]"]


@pytest.mark.parametrize(
    "arguments, given, message",
    [
        (["a film", "--file", "x.txt"], None, "texts are given twice"),
        (["--file", "/no/such/file"], None, "cannot read '/no/such/file': No such file"),
        (["--file", "/"], None, "cannot read '/': Is a directory"),
        ([], "", "'standard input' holds no texts"),
        ([], "\n \n", "'standard input' holds no texts"),
        (
            [],
            b"caf\xe9",
            "standard input, line 1: not UTF-8 text; if it is Latin-1, give the encoding latin-1",
        ),
        (["--calibrate", "/no/such/file", "a film"], None, "cannot read '/no/such/file'"),
        (["--pairs", "a film"], None, "has 0 tabs"),
        (["--pairs", "a\tb\tc"], None, "has 2 tabs"),
    ],
)
def test_texts_that_cannot_be_read_are_refused(
    arguments: list[str], given: str | bytes | None, message: str
) -> None:
    assert message in refused(*arguments, given=given)


# -- states


@pytest.mark.parametrize(
    "layers, expected",
    [("1-2", [1, 2]), ("2,1", [2, 1]), ("all,output", [1, 2, "output"]), ("output", ["output"])],
)
def test_layers_are_chosen(folder: str, layers: str, expected: list[int | str]) -> None:
    data = explained("a film", "--model", folder, "--layers", layers)
    assert rows_of(data) == [(layer, None) for layer in expected]


@pytest.mark.parametrize("target, name", [("good", "good"), ("1", "good"), ("0", "bad")])
def test_a_class_is_a_target_by_name_or_number_and_is_read_at_the_output(
    folder: str, target: str, name: str
) -> None:
    data = explained("a film", "--model", folder, "--target", target)
    assert rows_of(data) == [("output", None)]
    assert data["texts"][0]["target"] == name


def test_a_class_named_like_a_number_takes_precedence_over_the_number(unnamed: str) -> None:
    data = explained("a film", "--model", unnamed, "--target", "1", "--seed", "1")
    assert data["texts"][0]["target"] == "1"
    by_number = explained("a film", "--model", unnamed, "--target", "0", "--seed", "1")
    assert by_number["texts"][0]["target"] == "0"


def test_a_continuation_is_the_target_of_a_language_model(language_model: str) -> None:
    data = explained("The film", "--model", language_model, "--target", " was 1", "--layers", "1,output")
    [text] = data["texts"]
    assert (text["pair"], text["target"]) == (" was 1", " was 1")
    assert rows_of(data) == [(1, None), ("output", None)]


@pytest.mark.parametrize("other", ["--target", "--instead-of"])
def test_a_continuation_with_a_target_is_refused(language_model: str, other: str) -> None:
    arguments = ("The film", "--model", language_model, "--continuation", " was", other, " bad")
    assert "give one of them" in refused(*arguments)


@pytest.mark.parametrize("positions, expected", [("each", [0, 1, 2, 3]), ("0,-1", [0, 3]), ("-2", [2])])
def test_positions_are_rows(folder: str, positions: str, expected: list[int]) -> None:
    data = explained("a film", "--model", folder, "--layers", "2", "--positions", positions)
    assert rows_of(data) == [(2, position) for position in expected]


@pytest.mark.parametrize(
    "granularity, units",
    [
        ("token", ["[CLS]", "a", "film", "##s", "/", "not", "bad", "[SEP]"]),
        ("word", ["[CLS]", "a", "films", "/", "not", "bad", "[SEP]"]),
        ("sentence", ["[CLS]", "a films/ not bad", "[SEP]"]),
    ],
)
def test_granularity_joins_tokens_everywhere(folder: str, granularity: str, units: list[str]) -> None:
    data = explained("a films/ not bad", "--model", folder, "--layers", "1", "--granularity", granularity)
    assert data["granularity"] == granularity
    assert data["texts"][0]["units"] == units


def test_the_nats_of_a_word_are_the_mean_over_its_pieces_by_default(folder: str) -> None:
    arguments = ("a films/ not bad", "--model", folder, "--layers", "1")
    [pieces] = explained(*arguments)["texts"][0]["rows"]
    two = pieces["kept"][2:4]
    more = ("--granularity", "word", "--aggregate")
    for how, expected in (("mean", sum(two) / 2), ("sum", sum(two)), ("max", max(two))):
        data = explained(*arguments, *more, how)
        assert data["aggregate"] == how
        [row] = data["texts"][0]["rows"]
        assert row["kept"][2] == pytest.approx(expected)
        assert row["total"] == pytest.approx(pieces["total"])
    assert explained(*arguments, *more[:2])["texts"] == explained(*arguments, *more, "mean")["texts"]


def test_calibration_is_one_unit_for_all_texts(folder: str, tmp_path: Path) -> None:
    sample = tmp_path / "sample.txt"
    sample.write_text("a good film\nnot a bad film\nthe film\n")
    arguments = ("a film", "--model", folder, "--layers", "all,output")
    alone, calibrated = explained(*arguments), explained(*arguments, "--calibrate", str(sample))
    assert not alone["settings"]["state_std"]
    assert calibrated["settings"]["state_std"]
    assert alone["texts"][0]["rows"][0]["kept"] != calibrated["texts"][0]["rows"][0]["kept"]


def test_truncation_cuts_off_what_the_model_cannot_take(folder: str) -> None:
    data = explained("film " * 20, "--model", folder, "--layers", "1", "--truncation")
    assert len(data["texts"][0]["units"]) == 16


def test_a_smaller_tolerance_takes_more_passes_and_leaves_smaller_errors(folder: str) -> None:
    def of(tolerance: str) -> Any:
        result = run(
            "explain", "a bad film", "--model", folder, "--layers", "1", "--tolerance", tolerance, "--json"
        )
        return json.loads(result.stdout)["texts"][0]["rows"][0]

    assert max(of("0.02")["standard_error"]) < max(of("0.2")["standard_error"])


def test_a_seed_gives_the_same_numbers_again_and_another_gives_others(folder: str) -> None:
    first, again, other = (
        explained("a film", "--model", folder, "--layers", "1", "--seed", seed)["texts"]
        for seed in ("1", "1", "2")
    )
    assert first == again != other


def test_rate_dtype_and_batch_size_reach_the_explainer(folder: str) -> None:
    arguments = ("a film", "not a film", "--model", folder, "--layers", "1")
    plain = explained(*arguments)
    assert explained(*arguments, "--rate", "0.2")["settings"]["rate"] == 0.2
    assert explained(*arguments, "--dtype", "bfloat16")["texts"] != plain["texts"]
    alone = explained(*arguments, "--batch-size", "1")["texts"]
    for one, other in zip(alone, plain["texts"], strict=True):
        assert one["rows"][0]["kept"] == pytest.approx(other["rows"][0]["kept"], rel=1e-4, abs=1e-3)


def test_a_separate_tokenizer_is_loaded(folder: str) -> None:
    data = explained("a film", "--model", folder, "--tokenizer", folder, "--layers", "1", "--device", "cpu")
    assert data["texts"][0]["units"] == ["[CLS]", "a", "film", "[SEP]"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["a film", "--layers", "7"], "layer 7 does not exist: the model has"),
        (["a film", "--layers", "two"], "layer 'two' does not exist"),
        (["a film", "--layers", "2-1"], "layers '2-1' cannot be read"),
        (["a film", "--positions", "9"], "position 9 does not exist"),
        (["a film", "--positions", "x"], "positions 'x' cannot be read"),
        (["a film", "--target", "fair"], "target 'fair' is no class of the model"),
        (["a film", "--target", "7"], "target 7 is no class of the model"),
        (["a film", "--target", "good", "--layers", "1"], "do not include the output; give --layers output"),
        (["a film", "--rate", "0"], "rate"),
        (["a film", "--rate", "-1"], "rate"),
        (["a film", "--rate", "nan"], "rate"),
        (["a film", "--tolerance", "0"], "tolerance"),
        (["a film", "--seed", "-1"], "seed is -1"),
        (["", "--layers", "1"], "text '' has no tokens"),
        (["film " * 20], "the model takes at most 16; shorten it, or cut it off with --truncation"),
        (["a film", "--model", "/no/such/model"], "cannot load model '/no/such/model'"),
        (["a film", "--tokenizer", "/no/such/model"], "cannot load model"),
        ([" ", "--words"], "text 0 is []: with --words it must have at least one word"),
        (["a film", "--device", "abacus"], "device 'abacus' cannot be used"),
        (["a film", "--device", "meta"], "device 'meta' cannot be used"),
        (["a film", "--device", "cuda:77"], "device 'cuda:77' cannot be used"),
        (["a film", "--device-map", '{"": ["cpu"]}'], """device "['cpu']" cannot be used"""),
    ],
)
def test_bad_input_exits_with_2_and_one_sentence_on_stderr(
    folder: str, arguments: list[str], message: str
) -> None:
    model = [] if "--model" in arguments else ["--model", folder]
    assert message in refused(*model, *arguments)
    assert message in refused(*model, *arguments, "--json")


@pytest.mark.parametrize(
    "arguments",
    [["--dtype", "int8"], ["--granularity", "letter"], ["--batch-size", "0"], ["--seed", "x"], ["--no-such"]],
)
def test_options_that_cannot_be_read_are_usage_errors(arguments: list[str]) -> None:
    result = run("explain", "a film", *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Usage: " in result.stderr


# -- files


def test_page_picture_and_table_are_written_and_announced(folder: str, tmp_path: Path) -> None:
    html, png, save = (tmp_path / name for name in ("film.html", "film.png", "film.parquet"))
    outputs = ("--html", str(html), "--png", str(png), "--save", str(save))
    result = run("explain", "a film", "--model", folder, "--layers", "1", *outputs, "--json")
    assert result.exit_code == 0, result.output
    assert "a film" in html.read_text(encoding="utf-8")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert Explanation.load(save).to_dict(aggregate="mean") == json.loads(result.stdout)
    assert result.stderr.splitlines() == [f"wrote {path}" for path in (save, html, png)]
    assert sorted(tmp_path.iterdir()) == sorted((html, png, save))


def test_pictures_of_several_texts_are_numbered(folder: str, tmp_path: Path) -> None:
    texts = [f"a film {'film ' * n}" for n in range(10)]
    png = str(tmp_path / "film.png")
    result = run("explain", *texts, "--model", folder, "--layers", "1", "--tolerance", "0.2", "--png", png)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"film-{n:02}.png" for n in range(1, 11)]


@pytest.mark.parametrize("option", ["--html", "--png", "--save"])
def test_a_path_that_cannot_be_written_is_refused_before_any_work(option: str, tmp_path: Path) -> None:
    """Before the model is looked for: there is none."""
    for path, message in ((tmp_path / "no" / "x", "No such file or directory"), (tmp_path, "is a folder")):
        sentence = refused("a film", "--model", "/no/such/model", option, str(path))
        assert f"cannot write {str(path)!r}" in sentence
        assert message in sentence


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert "Permission denied" in refused("a film", "--html", str(tmp_path / "x.html"))


def test_save_without_pyarrow_is_refused_before_any_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("interp_plugin.cli.options.find_spec", lambda name: None)
    sentence = refused("a film", "--model", "/no/such/model", "--save", str(tmp_path / "x"))
    assert 'pip install "interp-plugin[table]"' in sentence


# -- the process


def process(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, "explain", *arguments], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, **{"stdin": subprocess.DEVNULL, **options},
    )  # fmt: skip


def test_texts_are_read_from_a_pipe_and_only_json_is_printed(folder: str) -> None:
    """CliRunner does not capture progress bars and warnings."""
    with process("--model", folder, "--layers", "1", "--json", stdin=subprocess.PIPE) as running:
        out, err = running.communicate("a film\n")
    assert (running.returncode, err) == (0, "")
    assert texts_of(json.loads(out)) == ["a film"]


@pytest.mark.parametrize("arguments", [["--json"], []])
def test_a_closed_pipe_is_not_reported_as_an_error(folder: str, arguments: list[str]) -> None:
    with process("a film", "--model", folder, "--layers", "1", *arguments) as running:
        running.stdout.close()  # type: ignore[union-attr]
        assert running.stderr.read() == ""  # type: ignore[union-attr]


@pytest.mark.skipif(os.name == "nt", reason="no POSIX signals")
def test_an_interrupt_ends_the_command_with_130_and_no_traceback(folder: str) -> None:
    # the parent may ignore it, and children inherit that
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with process("--model", folder, "--file", "-", stdin=subprocess.PIPE, preexec_fn=heard) as running:
        time.sleep(8)  # it waits for its texts; on a busy machine it starts slowly
        running.send_signal(signal.SIGINT)
        out, err = running.communicate()
    assert (running.returncode, out) == (130, "")
    assert "Traceback" not in err


@pytest.mark.skipif(os.name == "nt", reason="no terminals")
def test_progress_is_shown_on_a_terminal_and_not_in_a_pipe(folder: str) -> None:
    import fcntl
    import pty
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [*COMMAND, "explain", "a film", "--model", folder, "--layers", "1", "--json"]
    done = subprocess.run(
        command, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=theirs, check=True
    )
    os.close(theirs)
    with open(ours, "rb", buffering=0) as terminal:
        seen = b"".join(_until_gone(terminal)).decode()
    assert "loading" in seen
    assert "texts: 100%" in seen
    assert texts_of(json.loads(done.stdout)) == ["a film"]


def _until_gone(terminal: Any) -> Iterator[bytes]:
    """The content of a terminal; Linux raises EIO when all writers have closed it."""
    with contextlib.suppress(OSError):
        while part := terminal.read(4096):
            yield part


# -- lists on the command line


@pytest.mark.parametrize(
    "text, expected",
    [
        ("all", ["all"]),
        ("3", [3]),
        ("1,3", [1, 3]),
        ("2-4", [2, 3, 4]),
        (" 1 , 3 - 4 ", [1, 3, 4]),
        ("encoder.1-2,decoder.3,output", ["encoder.1", "encoder.2", "decoder.3", "output"]),
    ],
)
def test_layer_lists_are_read(text: str, expected: list[int | str]) -> None:
    assert parse_layers(text) == expected


@pytest.mark.parametrize("text", ["", ",", "1,", "4-2", "encoder.2-1"])
def test_other_layer_lists_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        parse_layers(text)


@pytest.mark.parametrize("text, expected", [(None, None), ("each", "each"), ("0", [0]), ("0, -1", [0, -1])])
def test_position_lists_are_read(text: str | None, expected: Any) -> None:
    assert parse_positions(text) == expected


@pytest.mark.parametrize("text", ["", "1,", "every", "1-2"])
def test_other_position_lists_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        parse_positions(text)


# -- files as users have them


def test_a_table_is_read_by_its_columns_and_rows_without_a_text_are_named(
    folder: str, tmp_path: Path
) -> None:
    """Used to explain the header and the raw lines."""
    path = tmp_path / "reviews.csv"
    path.write_text('id;comment;stars\n1;a film;5\n2;;1\n3;"not\na film";1\n', encoding="utf-8")
    arguments = ("--file", str(path), "--model", folder, "--layers", "1", "--tolerance", "0.2", "--json")
    result = run("explain", *arguments)
    assert texts_of(json.loads(result.stdout)) == ["a film", "not\na film"]
    assert (
        result.stderr
        == "left out: reviews.csv, line 3 holds '' in column 'comment': it must be a text that is not empty\n"
    )
    missing = refused("--file", str(path), "--text-column", "coment")
    assert "no column 'coment' in reviews.csv, line 2: there are columns 'id', 'comment', 'stars'" in missing


def test_a_table_is_saved_as_csv_and_other_names_are_refused(folder: str, tmp_path: Path) -> None:
    path = tmp_path / "film.csv"
    arguments = ("a film", "--model", folder, "--layers", "1", "--tolerance", "0.2")
    assert run("explain", *arguments, "--save", str(path)).exit_code == 0
    assert path.read_text(encoding="utf-8").startswith("text_index,text,")
    assert "give a name that ends in .parquet (for Explanation.load) or .csv" in refused(
        "a film", "--save", "x.json"
    )
    assert "--png 'x.svg' ends in .svg; give a name that ends in .png" in refused("a film", "--png", "x.svg")


def test_classes_of_a_table_with_missing_ones_are_numbers_and_other_cells_are_refused(
    folder: str, tmp_path: Path
) -> None:
    """They ended in a traceback, and a missing one asked about all classes together."""
    table, path = (
        {"text": ["a film", "not a film", "good"], "label": [1.0, None, 0.0]},
        tmp_path / "x.parquet",
    )
    pq.write_table(pa.table(table), path)
    (tmp_path / "x.csv").write_text("text,label\na film,1.0\nnot a film,\ngood,0.0\n")
    for name in ("x.parquet", "x.csv"):
        arguments = ("--model", folder, "--file", str(tmp_path / name), "--label-column", "label", "--quick")
        result = run("explain", *arguments, "--json")
        assert [item["text"] for item in json.loads(result.stdout)["texts"]] == ["a film", "good"]
        assert "holds no label in column 'label'" in result.stderr
    pq.write_table(pa.table({"text": ["a film"], "label": [True]}), path)
    assert "--label-column holds True, a bool" in refused(
        "--model", folder, "--file", str(path), "--label-column", "label"
    )


def test_a_tolerance_above_1_is_refused() -> None:
    assert "tolerance is 2, a standard error of log sigma" in refused("a film", "--tolerance", "2")


def test_the_output_can_be_printed_on_an_ascii_terminal(folder: str) -> None:
    """Used to end in a UnicodeEncodeError."""
    command = [
        *COMMAND,
        "explain",
        "a film",
        "--model",
        folder,
        "--layers",
        "1",
        "--tolerance",
        "0.2",
        "--details",
    ]
    environment = {**ENVIRONMENT, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert " +-" in done.stdout and done.stdout.isascii()


# -- heads, choices and places


def test_each_class_is_a_row(folder: str) -> None:
    data = explained("a film", "--model", folder, "--target", "each")
    assert rows_of(data) == [("output.bad", None), ("output.good", None)]


def test_choices_follow_their_text(tmp_path: Path) -> None:
    model = tiny_models.tiny("bert", "BertForMultipleChoice")
    model.model.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    arguments = ("--choices", "--model", str(tmp_path), "--target", "each")
    data = explained(*arguments, given="a film\tgood\tbad\n")
    assert rows_of(data) == [("output.good", None), ("output.bad", None)]
    assert data["texts"][0]["predicted"] in ("good", "bad")
    assert "has 0 tabs; write one before each choice" in refused("a film", *arguments)
    assert "give one of them" in refused("a film", "--pairs", *arguments)


@pytest.mark.parametrize("places", ["auto", '{"": "cpu"}'])
def test_a_model_is_spread_over_devices(folder: str, places: str) -> None:
    plain = explained("a film", "--model", folder, "--layers", "1")
    spread = explained("a film", "--model", folder, "--layers", "1", "--device-map", places)
    assert spread["texts"] == plain["texts"]


def test_a_model_in_fewer_bits_needs_bitsandbytes(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    sentence = refused("a film", "--model", folder, "--load-in", "8bit")
    assert "--load-in 8bit" in sentence and 'pip install "interp-plugin[large]"' in sentence
    assert "give one" in refused("a film", "--device", "cuda", "--device-map", "auto")
    assert "is not valid JSON" in refused("a film", "--model", folder, "--device-map", "{cpu")


def test_words_stay_whole_and_arguments_reach_the_forward(folder: str) -> None:
    arguments = ("--model", folder, "--layers", "1")
    data = explained("not a films/ bad", "--words", "--granularity", "word", *arguments)
    assert data["texts"][0]["units"] == ["[CLS]", "not", "a", "films/", "bad", "[SEP]"]
    plain = explained("a film", *arguments)["texts"]
    assert explained("a film", "--forward-args", '{"token_type_ids": 1}', *arguments)["texts"] != plain
    assert "give a dictionary" in refused("a film", "--forward-args", "[1]", *arguments)
    assert "'colour' is no argument" in refused("a film", "--forward-args", '{"colour": 1}', *arguments)


def test_a_label_column_gives_each_text_its_own_target(folder: str, tmp_path: Path) -> None:
    path = tmp_path / "reviews.csv"
    path.write_text("review,stars,verdict\na good film,5,good\na bad film,1,bad\n", encoding="utf-8")
    given = ("--file", str(path), "--model", folder, "--label-column")
    assert [text["target"] for text in explained(*given, "verdict")["texts"]] == ["good", "bad"]
    assert "text 0: target 5 is no class of the model" in refused(*given, "stars")
    assert "'review', 'stars', 'verdict'" in refused(*given, "nothing")
    assert "leave one out" in refused(*given, "verdict", "--target", "good")
    assert "--file" in refused("a good film", "--model", folder, "--label-column", "verdict")


def test_columns_of_standard_input_are_refused(folder: str) -> None:
    """They were ignored."""
    assert "standard input is read line by line" in refused(
        "--text-column", "x", "--model", folder, given="a film\n"
    )


def test_a_saved_table_names_the_target_of_each_text(folder: str, tmp_path: Path) -> None:
    table = tmp_path / "film.csv"
    arguments = ("a good film", "a bad film", "--model", folder, "--target", "bad", "--tolerance", "0.2")
    assert run("explain", *arguments, "--save", str(table)).exit_code == 0
    header, first, *_ = table.read_text(encoding="utf-8").splitlines()
    assert header.endswith(",predicted,target") and first.endswith(",bad")
