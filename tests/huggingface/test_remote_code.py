"""Code that comes with a model is only run on request, whatever is on standard input."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_bert import save_classifier
from typer.testing import CliRunner

from interp_plugin import huggingface
from interp_plugin.cli import app

PACKAGE = Path(__file__).parent.parent.parent / "interp_plugin"
CODE = """
from pathlib import Path
from transformers import BertConfig, BertForSequenceClassification

Path({marker!r}).write_text("run")

class OwnConfig(BertConfig):
    model_type = "own"

class OwnModel(BertForSequenceClassification):
    config_class = OwnConfig
"""


def with_code(folder: Path, marker: Path, file: str = "config.json") -> Path:
    """A classifier with a configuration that names a class in a file, which creates a file when it is run."""
    save_classifier(folder)
    (folder / "own.py").write_text(CODE.format(marker=str(marker)), encoding="utf-8")
    config = json.loads((folder / file).read_text(encoding="utf-8"))
    if file == "config.json":
        config |= {
            "model_type": "own",
            "architectures": ["OwnModel"],
            "auto_map": {
                "AutoConfig": "own.OwnConfig",
                "AutoModelForSequenceClassification": "own.OwnModel",
            },
        }
    else:
        config |= {
            "tokenizer_class": "OwnTokenizer",
            "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]},
        }
    (folder / file).write_text(json.dumps(config), encoding="utf-8")
    return folder


def called(*arguments: str) -> Any:
    """Run the command with a standard input that answers yes to every question."""
    return CliRunner().invoke(app, arguments, input="y\n" * 3)


@pytest.fixture
def texts(tmp_path: Path) -> str:
    path = tmp_path / "texts.txt"
    path.write_text("a good film\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("command", ["explain", "corpus", "compare"])
def test_code_of_a_model_is_refused_in_one_sentence_and_not_run(
    tmp_path: Path, texts: str, command: str
) -> None:
    marker = tmp_path / "marker"
    folder = with_code(tmp_path / "model", marker)
    source = ["--file", texts] if command == "explain" else [texts]
    output = ["--output", str(tmp_path / "out")] if command == "corpus" else []
    done = called(command, *source, *output, "--model", str(folder))
    assert done.exit_code == 2
    assert done.stdout == ""
    assert "which were not run; read them, and if you trust them give --trust-remote-code" in done.stderr
    assert not marker.exists()


def test_texts_on_standard_input_are_not_taken_as_an_answer(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    done = called("explain", "--model", str(with_code(tmp_path / "model", marker)))
    assert (done.exit_code, marker.exists()) == (2, False)
    # there is a tokenizer that needs no code
    folder = with_code(tmp_path / "tokenizer", marker, "tokenizer_config.json")
    done = called("explain", "--model", str(folder), "--layers", "1", "--tolerance", "0.2", "--json")
    assert [text["text"] for text in json.loads(done.stdout)["texts"]] == ["y"] * 3
    assert not marker.exists()


def test_code_of_the_base_model_of_an_adapter_is_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    base, adapter = with_code(tmp_path / "base", marker), tmp_path / "adapter"
    adapter.mkdir()
    about = {"base_model_name_or_path": str(base), "task_type": "SEQ_CLS", "peft_type": "LORA"}
    (adapter / "adapter_config.json").write_text(json.dumps(about), encoding="utf-8")
    with pytest.raises(ValueError, match="which were not run"):
        huggingface.load(adapter)
    assert not marker.exists()


def test_code_that_is_trusted_is_run_and_its_model_explained(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    folder = with_code(tmp_path / "model", marker)
    arguments = [
        "explain",
        "a good film",
        "--model",
        str(folder),
        "--trust-remote-code",
        "--layers",
        "1",
        "--json",
    ]
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(
        [sys.executable, "-m", "interp_plugin", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert marker.read_text(encoding="utf-8") == "run"
    assert json.loads(done.stdout)["texts"][0]["predicted"] in ("bad", "good")


def test_every_call_that_could_run_code_of_a_model_sets_trust_remote_code() -> None:
    """Except for PEFT's own, which only loads weights."""
    found = 0
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            if not name.endswith((".from_pretrained", "load_dataset", "pipeline")) or name in (
                "PeftModel.from_pretrained", "nn.Embedding.from_pretrained", "make_pipeline",
            ):  # fmt: skip
                continue
            found += 1
            spread = any(
                keyword.arg is None and "options" in ast.unparse(keyword.value) for keyword in node.keywords
            )
            assert spread or "trust_remote_code" in {keyword.arg for keyword in node.keywords}, (path, name)
    assert found >= 5
