"""The command line, on a model made on the spot."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version

import pytest
from click.testing import Result
from tiny_bert import save_classifier
from typer.testing import CliRunner

from interp_plugin.cli import app, parse_layers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_classifier(tmp_path_factory.mktemp("model")))


def run(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "80", "HF_HUB_OFFLINE": "1"}).invoke(app, list(arguments))


def test_explain_prints_class_tokens_layers_and_cost(folder: str) -> None:
    result = run("explain", "not a [bold] film", "--model", folder)
    assert result.exit_code == 0, result.output
    for expected in (
        "with probability",
        "film",
        "bold",
        "layer 1",
        "layer 2",
        "nats",
        "converged",
        "sample passes",
    ):
        assert expected in result.stdout
    assert result.stderr == ""


def test_json_is_strict_and_alone_on_stdout(folder: str) -> None:
    result = run("explain", "not a bad film", "--model", folder, "--layers", "2", "--seed", "3", "--json")
    assert result.exit_code == 0, result.output

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    data = json.loads(result.stdout, parse_constant=refuse)
    assert data["tokens"] == ["[CLS]", "not", "a", "bad", "film", "[SEP]"]
    assert data["layers"] == [2]
    assert data["seed"] == 3
    assert len(data["kept"]) == len(data["standard_error"]) == len(data["regime_index"]) == 1
    assert len(data["kept"][0]) == 6


def test_nothing_but_the_json_is_printed_by_the_process(folder: str) -> None:
    """Progress bars and warnings go round CliRunner, so this one is a real process."""
    code = "from interp_plugin.cli import app; app()"
    command = [sys.executable, "-c", code, "explain", "a film", "--model", folder, "--layers", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["layers"] == [1]
    assert done.stderr == ""


def test_layers_are_chosen_by_number_and_range(folder: str) -> None:
    result = run("explain", "a film", "--model", folder, "--layers", "1-2", "--json")
    assert json.loads(result.stdout)["layers"] == [1, 2]


def test_a_smaller_tolerance_takes_more_passes_or_smaller_errors(folder: str) -> None:
    def explained(tolerance: str) -> dict[str, list[list[float]]]:
        result = run(
            "explain", "a bad film", "--model", folder, "--layers", "1", "--tolerance", tolerance, "--json"
        )
        data: dict[str, list[list[float]]] = json.loads(result.stdout)
        return data

    assert max(explained("0.02")["standard_error"][0]) < max(explained("0.2")["standard_error"][0])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["a film", "--layers", "7"], "layer 7 does not exist: the model has layers 1 to 2"),
        (["a film", "--layers", "two"], "layers 'two' cannot be read"),
        (["a film", "--rate", "0"], "rate"),
        (["a film", "--rate", "-1"], "rate"),
        (["a film", "--rate", "nan"], "rate"),
        (["a film", "--tolerance", "0"], "tolerance"),
        (["", "--layers", "1"], "text '' has no tokens"),
        (["film " * 20], "the model takes at most 16"),
        (["a film", "--model", "/no/such/model"], "cannot load model '/no/such/model'"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_bad_input_exits_with_2_and_one_sentence_on_stderr(
    folder: str, arguments: list[str], message: str, as_json: bool
) -> None:
    model = [] if "--model" in arguments else ["--model", folder]
    result = run("explain", *model, *arguments, *(["--json"] if as_json else []))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1


def test_version_is_that_of_the_metadata() -> None:
    assert run("--version").stdout.strip() == version("interp-plugin")


def test_help_shows_examples() -> None:
    result = run("explain", "--help")
    assert result.exit_code == 0
    assert 'interp-plugin explain "a funny film' in result.stdout


def test_the_default_model_explains_a_sentence() -> None:
    result = run(
        "explain", "a funny film with more than enough charm", "--layers", "1,4", "--tolerance", "0.1"
    )
    assert result.exit_code == 0, result.output
    assert "layer 4" in result.stdout


@pytest.mark.parametrize(
    "text, expected",
    [("all", "all"), ("3", (3,)), ("1,3", (1, 3)), ("2-4", (2, 3, 4)), (" 1 , 3 - 4 ", (1, 3, 4))],
)
def test_layer_lists_are_read(text: str, expected: str | tuple[int, ...]) -> None:
    assert parse_layers(text) == expected


@pytest.mark.parametrize("text", ["", "x", "1,", "4-2", "1-", "-1", "1..3", "1-99999999999", "ALL"])
def test_other_layer_lists_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        parse_layers(text)
