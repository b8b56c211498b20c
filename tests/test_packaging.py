"""The README's commands and examples, the metadata, and the cost of imports."""

from __future__ import annotations

import ast
import configparser
import doctest
import graphlib
import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterable
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

import pytest

import interp_plugin

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "interp_plugin"
FOLDERS = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
PARTS = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"} | FOLDERS
HEAVY = {
    "transformers", "tokenizers", "pandas", "pyarrow", "matplotlib", "rich", "jinja2", "IPython", "typer",
    "scipy", "sklearn", "datasets", "shap", "quantus", "inseq", "interpreto",
}  # fmt: skip
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(name: str) -> str:
    """The command below a comment of the README."""
    [found] = re.findall(rf"^# {name} it.*\n(.*)", README, flags=re.MULTILINE)
    return str(found)


def metadata() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


@pytest.mark.parametrize("name, last", [("try", "interp-plugin explain"), ("test", ".venv/bin/pytest")])
def test_the_set_up_commands_are_one_line_and_use_the_constraints(name: str, last: str) -> None:
    command = block(name)
    create, install, then = command.split(" && ")
    assert create == "python3 -m venv .venv"
    assert "-c constraints.txt" in install
    assert last in then


def test_ci_runs_the_readme_commands_and_no_others() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "readme try" in script
    assert "readme test" in script
    assert "pip install" not in script
    assert "/pytest" not in script


@pytest.fixture
def reviews(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder in which the README's blocks are run, with a model and reviews."""
    monkeypatch.chdir(tmp_path)
    Path("my").mkdir()
    Path("my/model").symlink_to(PACKAGE / "default_model")
    Path("reviews.csv").write_text("review,stars\na funny film,5\nnot a bad film,4\n", encoding="utf-8")


@pytest.mark.usefixtures("reviews")
def test_the_python_blocks_of_the_readme_run_in_their_order() -> None:
    names: dict[str, Any] = {}
    for source in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL):
        exec(source, names)
    assert "film" in Path("film.html").read_text(encoding="utf-8")
    assert names["before"].shape == names["after"].shape == (1, 6)
    assert names["fit"].kept().shape == (1, 6) and names["sigma"].shape == (6,)
    assert "layer" in Path("corpus.html").read_text(encoding="utf-8")


@pytest.mark.usefixtures("reviews")
def test_the_command_of_the_readme_explains_the_readers_own_file() -> None:
    [command] = re.findall(r"```bash\ninterp-plugin (.*?)\n```", README)
    done = subprocess.run(
        [sys.executable, "-m", "interp_plugin", *shlex.split(command)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "sample passes" in done.stdout  # the known difference, as in the README
    assert "not a bad film" in Path("reviews.html").read_text(encoding="utf-8")


def test_the_page_on_the_numbers_is_correct() -> None:
    page = ROOT / "tutorials" / "how_to_read_the_numbers.md"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the page says that there is one
        found = doctest.testfile(str(page), module_relative=False, encoding="utf-8")
    assert found.attempted > 10
    assert not found.failed


def test_the_readme_picture_exists() -> None:
    [picture] = re.findall(r"!\[[^]]*]\(([^)]*)\)", README)
    assert "<svg" in (ROOT / picture).read_text(encoding="utf-8")


def test_the_version_is_written_in_one_place() -> None:
    assert metadata()["metadata"]["version"] == "attr: interp_plugin.__version__"
    assert version("interp-plugin") == interp_plugin.__version__


def test_the_entry_point_is_the_one_of_python_m() -> None:
    from interp_plugin.__main__ import main

    [entry] = entry_points(group="console_scripts", name="interp-plugin")
    assert entry.load() is main


WITHOUT = """
from importlib.machinery import PathFinder
found = PathFinder.find_spec
def hiding(finder, name, *given, **named):
    return None if name.partition(".")[0] in {packages!r} else found(name, *given, **named)
PathFinder.find_spec = classmethod(hiding)
"""


def without(packages: set[str], code: str) -> subprocess.CompletedProcess[str]:
    """A Python process in which the packages cannot be imported."""
    script = WITHOUT.format(packages=packages) + code
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)


def test_the_core_dependencies_are_enough_to_explain() -> None:
    extras = {"typer", "rich", "pandas", "pyarrow", "matplotlib"}
    done = without(
        extras,
        "from interp_plugin import TextExplainer, huggingface\n"
        "model, tokenizer = huggingface.load(huggingface.default_model_path())\n"
        "explanation = TextExplainer(model, tokenizer).explain('a good film', layers=1)\n"
        "print(explanation[0].scores().values.shape)\n"
        "explanation.show()\n",
    )
    assert "torch.Size([1, 5])" in done.stdout
    assert done.stderr.strip().endswith(
        'needs rich, which is not installed: pip install "interp-plugin[cli]"'
    )


def test_the_command_line_without_its_packages_is_one_line() -> None:
    done = without({"typer"}, "from interp_plugin.__main__ import main\nmain()")
    assert done.returncode == 1
    assert done.stderr == (
        'the command line needs typer, which is not installed: pip install "interp-plugin[cli]"\n'
    )


def test_every_requirement_has_an_exact_version_in_the_constraints() -> None:
    pinned = re.findall(
        r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    options = metadata()
    extras = {name: wanted for name, wanted in options["options.extras_require"].items() if name != "interop"}
    for requirement in (options["options"]["install_requires"] + "".join(extras.values())).split():
        assert re.split(r"[\[<>=]", requirement)[0] in {*pinned, "interp-plugin"}


def test_dependencies_have_no_upper_bounds() -> None:
    assert not re.search(r"[<~]|==", metadata()["options"]["install_requires"])


def test_every_file_of_the_package_is_in_the_wheel() -> None:
    parser = metadata()
    assert parser["options"]["packages"] == "find:"
    data = parser["options.package_data"]
    for path in PACKAGE.rglob("*"):
        if path.is_dir() or "__pycache__" in path.parts:
            continue
        if path.suffix == ".py":
            assert (path.parent / "__init__.py").exists(), path
        else:
            patterns = [
                pattern
                for package, some in data.items()
                for pattern in (ROOT / package.replace(".", "/") / line for line in some.split())
            ]
            assert any(path.match(str(pattern)) for pattern in patterns), path


def loaded_by(statement: str) -> set[str]:
    """What a statement imports on top of torch and Captum, which itself imports matplotlib."""
    code = (
        f"import sys, torch, captum.attr; before = set(sys.modules); {statement}; "
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return set(done.stdout.split())


def test_import_prints_nothing_and_loads_nothing_that_is_not_used() -> None:
    loaded = loaded_by("from interp_plugin import *; TextExplainer")
    assert "interp_plugin" in loaded
    assert not loaded & HEAVY


def test_import_of_the_package_alone_does_not_load_torch() -> None:
    code = "import interp_plugin, sys; print('torch' in sys.modules, dir(interp_plugin).count('Solver'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("False 1\n", "")


def imported(nodes: Iterable[ast.AST]) -> set[str]:
    """Dotted names of all that import statements name."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_heavy_packages_are_imported_where_they_are_used() -> None:
    """For example, importing pyplot chooses a window system."""
    for path in PACKAGE.rglob("*.py"):
        at_once = imported(ast.parse(path.read_text(encoding="utf-8")).body)
        allowed = {"typer"} if path.parent.name == "cli" else set()
        assert not {name.split(".")[0] for name in at_once} & HEAVY - allowed, path


def test_every_public_name_exists_and_no_others() -> None:
    for name in interp_plugin.__all__:
        value = getattr(interp_plugin, name)
        assert name == "huggingface" or value.__module__.startswith("interp_plugin.")
    with pytest.raises(AttributeError, match="no attribute 'IntegratedGradients'"):
        interp_plugin.IntegratedGradients  # noqa: B018


# Which part of the package may import which; a part is a folder, a module of the top level, or one of LEAVES.
# CONTRIBUTING.md describes the same.
LEAVES = {"text.models"}  # modules of a folder that parts below the folder need
MAY_IMPORT = {
    "": {
        "amortised",
        "attribution",
        "corpus",
        "huggingface",
        "interpreter",
        "method",
        "text",
        "text.models",
    },
    "__main__": {"cli", "optional"},
    "amortised": {"corpus", "files", "method", "statistics", "text", "text.models"},
    "attribution": {"method"},
    "cli": {
        "",
        "amortised",
        "comparison",
        "corpus",
        "data",
        "files",
        "huggingface",
        "method",
        "report",
        "text",
        "text.models",
    },
    "comparison": {
        "attribution",
        "data",
        "files",
        "method",
        "optional",
        "report",
        "statistics",
        "text",
        "text.models",
    },
    "corpus": {
        "data",
        "files",
        "method",
        "optional",
        "report",
        "statistics",
        "text",
        "text.models",
    },
    "data": {"files", "optional", "text.models"},
    "files": {"optional"},
    "huggingface": {"method", "optional", "text.models"},
    "interop": {"attribution", "huggingface", "method", "text"},
    "interpreter": {"attribution", "method", "report"},
    "method": set(),
    "optional": set(),
    "report": set(),
    "statistics": {"optional"},
    "text": {"data", "files", "huggingface", "method", "optional", "report", "text.models"},
    "text.models": {"method"},
}


def part_of(name: str) -> str:
    """The part that a dotted name lies in; "" is the package itself."""
    leaf = ".".join(name.split(".")[1:3])
    if leaf in LEAVES:
        return leaf
    part = ".".join(name.split(".")[1:2])
    return part if part in PARTS else ""


def test_imports_point_downwards() -> None:
    for path in PACKAGE.rglob("*.py"):
        here = part_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
        names = imported(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        there = {part_of(name) for name in names if name.split(".")[0] == "interp_plugin"}
        assert there - {here} <= MAY_IMPORT[here], path


def test_the_allowed_imports_have_no_circle() -> None:
    order = graphlib.TopologicalSorter(MAY_IMPORT).static_order()
    assert set(order) == set(MAY_IMPORT)
