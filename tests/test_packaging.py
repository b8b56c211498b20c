"""The README's commands and examples, the metadata, and what an import costs."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest

import interp_plugin

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(name: str) -> str:
    """The code between two markers of the README."""
    found = re.findall(rf"<!-- {name} -->\n```\w+\n(.*?)```\n<!-- /{name} -->", README, flags=re.DOTALL)
    assert len(found) == 1
    return str(found[0])


def metadata() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


@pytest.mark.parametrize("name, last", [("try", "interp-plugin explain"), ("test", ".venv/bin/pytest")])
def test_the_set_up_commands_are_one_line_and_use_the_constraints(name: str, last: str) -> None:
    command = block(name).strip()
    assert "\n" not in command
    create, install, then = command.split(" && ")
    assert create == "python3 -m venv .venv"
    assert "-c constraints.txt" in install
    assert last in then


def test_ci_runs_the_readme_commands_and_none_of_its_own() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "readme try" in script
    assert "readme test" in script
    assert "pip install" not in script
    assert "/pytest" not in script


def test_the_captum_example_runs_and_gives_a_score_for_each_token() -> None:
    names: dict[str, object] = {}
    exec(block("example"), names)
    assert names["scores"].shape == (3, 5)  # type: ignore[attr-defined]


def test_the_text_example_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    exec(block("text"), {})
    assert "layer 4" in capsys.readouterr().out


def test_the_readme_picture_is_there() -> None:
    [picture] = re.findall(r"!\[[^]]*]\(([^)]*)\)", README)
    assert "<svg" in (ROOT / picture).read_text(encoding="utf-8")


def test_the_version_is_written_in_one_place() -> None:
    assert metadata()["metadata"]["version"] == "attr: interp_plugin.__version__"
    assert version("interp-plugin") == interp_plugin.__version__


def test_the_entry_point_is_the_typer_app() -> None:
    from interp_plugin.cli import app

    [entry] = entry_points(group="console_scripts", name="interp-plugin")
    assert entry.load() is app


def test_every_requirement_has_an_exact_version_in_the_constraints() -> None:
    pinned = re.findall(
        r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    options = metadata()
    wanted = options["options"]["install_requires"] + "".join(options["options.extras_require"].values())
    for requirement in wanted.split():
        assert re.split(r"[<>=]", requirement)[0] in pinned


def test_dependencies_have_no_upper_bounds() -> None:
    assert not re.search(r"[<~]|==", metadata()["options"]["install_requires"])


def test_import_is_quiet_and_loads_nothing_that_is_not_used() -> None:
    """Captum itself imports matplotlib, so only what comes on top of it counts."""
    code = (
        "import sys, torch, captum.attr; before = set(sys.modules); import interp_plugin; "
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    loaded = set(done.stdout.split())
    assert "interp_plugin" in loaded
    assert not loaded & {"transformers", "matplotlib", "rich", "typer", "pandas", "IPython", "tokenizers"}


def test_matplotlib_pyplot_is_not_imported_by_us() -> None:
    """pyplot chooses a window system when it is imported; it loads where it is used."""
    for path in (ROOT / "interp_plugin").glob("*.py"):
        head = [
            line
            for line in path.read_text(encoding="utf-8").splitlines()
            if re.match(r"(from|import) ", line)
        ]
        assert not any(
            re.match(r"(from|import) (matplotlib|transformers|rich|pandas)", line) for line in head
        )
