"""Pair every tutorial with a notebook, executed, with its outputs.

    pip install -e ".[tutorials]"
    python tutorials/make_notebooks.py [02 09 ...]

The scripts are the originals; notebooks are written from them, and only where all their assertions hold.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import jupytext
import nbformat
from make_pictures import HERE, scripts
from nbclient import NotebookClient

LIMIT = 300_000  # bytes of a notebook
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook of a script, after a run of its own kernel beside the repository's root."""
    notebook = jupytext.read(path)
    notebook.metadata["kernelspec"] = KERNEL
    client = NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(HERE.parent)}})
    client.execute()
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"  # random ids, times and counts would change in every run
        cell.metadata.pop("execution", None)
        outputs = [output for output in cell.get("outputs", []) if output.get("name") != "stderr"]
        if cell.cell_type == "code":
            cell["outputs"] = outputs
    return notebook


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("numbers", nargs="*", help="of the tutorials, two digits each")
    # the kernel is this Python, whatever other kernels are registered
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    for path in scripts(parser.parse_args().numbers):
        start = time.perf_counter()
        text = nbformat.writes(executed(path)) + "\n"
        if len(text.encode()) > LIMIT:
            raise SystemExit(
                f"{path.stem}.ipynb has {len(text.encode())} bytes, more than {LIMIT}: print or draw less"
            )
        path.with_suffix(".ipynb").write_text(text, encoding="utf-8")
        print(f"{path.stem}: {time.perf_counter() - start:.0f} s, {len(text.encode()) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
