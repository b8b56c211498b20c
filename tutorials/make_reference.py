"""Write the API reference, a page for each public module, from the docstrings.

    pip install -e ".[docs]"
    python tutorials/make_reference.py docs

A warning is an error, and so is a public name that is on no page.
"""

from __future__ import annotations

import argparse
import re
import warnings
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import jinja2
import pdoc

from interp_plugin import InformationLoss, InformationLossLLMAttribution

METHODS = (InformationLoss, InformationLossLLMAttribution)
MODULES = (
    "interp_plugin",  # and interp_plugin.huggingface, which is one of its public names
    "interp_plugin.text.explanation",
    "interp_plugin.comparison",
    "interp_plugin.data",
    "interp_plugin.interop",
    "interp_plugin.report",
)


def loaded(name: str) -> ModuleType:
    """A module with the public names that it loads only when they are asked for: pdoc looks but does not ask."""
    module = import_module(name)
    for public in getattr(module, "__all__", ()):
        setattr(module, public, getattr(module, public))
    return module


@jinja2.pass_context
def to_markdown(context: Any, docstring: str) -> str:
    """The docstring, with what pdoc does not know: "Examples::", "::" before code, "~" before a dotted name."""
    docstring = re.sub(r"^Examples?::\n+", "Example:\n", docstring, flags=re.MULTILINE)
    docstring = re.sub(r"::$", ":", docstring, flags=re.MULTILINE).replace("`~", "`")
    return str(pdoc.docstrings.convert(docstring, "google", context["module"].source_file))


def write(folder: Path) -> None:
    modules = [loaded(name) for name in MODULES]
    for base in {
        base for method in METHODS for base in method.__mro__ if base.__module__.startswith("captum.")
    }:
        pdoc.doc_ast.walk_tree(base).var_docstrings.clear()  # Captum's "attribute" would hide our docstring
    pdoc.render.configure(docformat="google", show_source=False)
    pdoc.render.env.filters["to_markdown"] = to_markdown
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pdoc.pdoc(*MODULES, output_directory=folder)
    for module in modules:
        page = folder.joinpath(*module.__name__.split(".")).with_suffix(".html").read_text(encoding="utf-8")
        for public in getattr(module, "__all__", ()):
            if f'id="{public}"' not in page and f"{public}.html" not in page:
                raise SystemExit(
                    f"{module.__name__}.{public} is missing from the reference: write its docstring"
                )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the pages go; index.html is the first")
    write(parser.parse_args().folder)


if __name__ == "__main__":
    main()
