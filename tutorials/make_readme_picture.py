"""Draw the README's picture: what ``interp-plugin explain`` prints, as SVG.

python tutorials/make_readme_picture.py [--output tutorials/explain.svg]
"""

from __future__ import annotations

import argparse
import io
import re
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console

from interp_plugin import huggingface
from interp_plugin.method.solver import Solver
from interp_plugin.text.explainer import TextExplainer

MAX_PASSES = 5000  # the last layer needs them
TEXT = "a funny film with more than enough charm to make it memorable"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("explain.svg"))
    output = parser.parse_args().output

    console = Console(
        record=True, width=90, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    with huggingface.quiet():
        model, tokenizer = huggingface.load(huggingface.default_model_path())
    TextExplainer(model, tokenizer).explain(TEXT, solver=Solver(max_passes=MAX_PASSES)).show(
        console, details=False
    )
    # no web fonts: a picture must not call home; a fixed id: the same numbers give the same file
    style = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    console.save_svg(
        str(output),
        title=f'interp-plugin explain "{TEXT}" --max-passes {MAX_PASSES}',
        code_format=style,
        unique_id="explain",
    )  # fmt: skip


if __name__ == "__main__":
    main()
