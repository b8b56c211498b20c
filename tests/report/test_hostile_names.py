"""Control characters in names, labels and messages do not reach the terminal."""

from __future__ import annotations

import io
import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny_bert import save_classifier
from tiny_corpus import made_up
from typer.testing import CliRunner

from interp_plugin import Explanation
from interp_plugin.cli import app
from interp_plugin.comparison.result import example as study
from interp_plugin.report.numbers import printable
from interp_plugin.text.explanation import example as explanation

# a title, a cleared screen, a carriage return, C1's control sequence, and text that runs the other way
HOSTILE = "\x1b]0;x\x07\x1b[2J\r\x9b31m\u202egnp\u2066\u200fz"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier in a folder, and with classes, of hostile names."""
    path = save_classifier(tmp_path_factory.mktemp("models") / f"model{HOSTILE}")
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    names = [f"bad{HOSTILE}", f"good{HOSTILE}"]
    config |= {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


def run(*arguments: object) -> Any:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, list(map(str, arguments)))


def assert_tame(printed: str) -> None:
    """Without control characters (C0 but for line ends, and C1) and without marks of direction."""
    kinds = {c: unicodedata.category(c) for c in printed if c != "\n"}
    assert not [c for c, kind in kinds.items() if kind in ("Cc", "Cf")]


def test_every_control_character_and_override_is_written_out() -> None:
    codes = [
        *range(0x20),
        *range(0x7F, 0xA0),
        *range(0x202A, 0x202F),
        *range(0x2066, 0x206A),
        0x200E,
        0x200F,
        0x61C,
    ]
    for code in codes:
        written = printable(f"a{chr(code)}b")
        assert written.isascii() and written.startswith("a\\") and written.endswith("b")
    assert printable("naïve 映画 😀") == "naïve 映画 😀"


def test_names_of_model_classes_and_files_are_written_out(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / f"page{HOSTILE}.html"
    done = run("explain", "a good film", "--model", folder, "--layers", "1", "--html", page)
    assert done.exit_code == 0, done.output
    assert_tame(done.output)
    assert "good\\x1b]0;x" in done.stdout or "bad\\x1b]0;x" in done.stdout
    assert "wrote" in done.stderr and "page\\x1b]0;x\\x07\\x1b[2J\\r\\x9b31m\\u202egnp" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["explain", "a film", "--model", f"/no/{HOSTILE}"],
        ["explain", "--file", f"/no/{HOSTILE}"],
        ["explain", "a film", "--target", HOSTILE],
        ["explain", "a film", "--html", f"/no/{HOSTILE}/x"],
        ["corpus", f"/no/{HOSTILE}.txt", "--output", "out"],
        ["compare", f"/no/{HOSTILE}.txt"],
        ["corpus", "a.txt", f"b{HOSTILE}.txt", "--output", "out"],  # as from a shell pattern
        ["explain", "a film", "--layers", f"1,,{HOSTILE}"],
        ["explain", "a film", f"--{HOSTILE}"],
        [HOSTILE],
        [f"--{HOSTILE}"],
    ],
)
def test_error_messages_are_written_out(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert_tame(done.output)
    assert "u202egnp" in re.sub(r"[\s│]", "", done.stderr), "folded at the width of the terminal or not"


def test_reasons_of_failures_are_written_out(folder: Path, tmp_path: Path) -> None:
    source = tmp_path / f"texts{HOSTILE}.jsonl"
    source.write_text('{"text": "a good film"}\n{"text"\n', encoding="utf-8")
    done = run("corpus", source, "--output", tmp_path / "out", "--model", folder, "--layers", "1")
    assert done.exit_code == 0, done.output
    assert_tame(done.output)
    assert "row 1 left out: ValueError: texts\\x1b]0;x" in done.stderr


def hostile_explanation(console: Console) -> None:
    first = explanation()[0]
    hostile = {
        "tokens": (HOSTILE, *first.tokens[1:]),
        "predicted": HOSTILE,
        "target": HOSTILE,
        "text": HOSTILE,
    }
    rows = tuple(type(row)(**{**vars(row), "layer": f"{HOSTILE}{i}"}) for i, row in enumerate(first.rows))
    items = tuple(type(first)(**{**vars(first), **hostile, "rows": rows}) for _ in range(2))
    Explanation(items, explanation().settings, 1.0).show(console)


def hostile_corpus(console: Console, tmp_path: Path) -> None:
    layers = (f"1{HOSTILE}", f"[red]2{HOSTILE}")
    sigmas = [
        [[0.5, 0.1], [0.05 + i / 1000, 0.01]] for i in range(8)
    ]  # the second keeps more, which causes a warning
    result = made_up(tmp_path, [[("film", None), (HOSTILE, None)]] * 8, sigmas, layers, model=HOSTILE)
    result.show(result, console)


def hostile_study(console: Console) -> None:
    result = study()
    names = {method.name: f"{HOSTILE}{method.name}" for method in result.methods}
    methods = tuple(type(m)(**{**vars(m), "name": names[m.name]}) for m in result.methods)
    type(result)(**{**vars(result), "methods": methods, "left_out": {HOSTILE: HOSTILE}}).show(console)


def test_tables_of_all_three_commands_are_written_out(tmp_path: Path) -> None:
    shows: list[Callable[[Console], None]] = [
        hostile_explanation, lambda console: hostile_corpus(console, tmp_path), hostile_study,
    ]  # fmt: skip
    for show in shows:
        out = io.StringIO()
        show(Console(file=out, width=200, color_system=None))
        assert_tame(out.getvalue())
        assert "u202e" in out.getvalue()
