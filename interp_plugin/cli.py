"""The command line: ``interp-plugin explain``."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from interp_plugin import __version__

if TYPE_CHECKING:
    from interp_plugin.explanation import Explanation

Granularity = Literal["token", "word", "sentence"]
Dtype = Literal["float32", "bfloat16", "float16"]

app = typer.Typer(
    name="interp-plugin",
    help="How much noise can each token bear before a layer notices?  Information kept, per token and layer.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
)

EXAMPLES = """
Examples:

    interp-plugin explain "a funny film with more than enough charm"

    interp-plugin explain "not a bad film" "not bad" --layers 1,3-4,output --html films.html --png films.png

    interp-plugin explain --file reviews.txt --model ./my-classifier --save reviews.parquet

    echo "not a bad film" | interp-plugin explain --granularity word --json

    interp-plugin explain "The capital of France is" --model ./my-gpt2 --layers output --target " Paris"
"""


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def main(
    show_version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """How much noise can each token bear before a layer notices?  Information kept, per token and layer."""


@app.command(epilog=EXAMPLES)
def explain(
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT...",
            help="Texts to explain; none: standard input, a text a line.",
            show_default=False,
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(help="File with a text a line, UTF-8; - is standard input.", show_default=False),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Folder or Hugging Face id of a model.", show_default="the one that ships"),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or id of its tokenizer.", show_default="the model's")
    ] = None,
    layers: Annotated[
        str,
        typer.Option(help="all, or numbers, ranges and names, as in 1,3-4,output or encoder.2,decoder.1."),
    ] = "all",
    target: Annotated[
        str | None,
        typer.Option(
            help="Which output: a class; for a language model the continuation.  Hidden layers of a language model are "
            "then watched where it is predicted.",
            show_default="all classes; the model's own next token",
        ),
    ] = None,
    granularity: Annotated[Granularity, typer.Option(help="What a score is of.")] = "token",
    positions: Annotated[
        str | None,
        typer.Option(
            help="Watch a layer at single tokens: numbers, as in 0,-1, or each.",
            show_default="all tokens together",
        ),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page to this file.", show_default=False)] = None,
    png: Annotated[
        Path | None,
        typer.Option(
            help="Write a picture of layers x tokens; a number is added for each of several texts.",
            show_default=False,
        ),
    ] = None,
    save: Annotated[
        Path | None, typer.Option(help="Write a Parquet file, for Explanation.load.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            help="File with a text a line: the states' spread over them is the unit, so that layers compare.",
            show_default="each text is its own unit",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")] = "cpu",
    dtype: Annotated[Dtype, typer.Option(help="Of the weights; scores are float32.")] = "float32",
    batch_size: Annotated[int, typer.Option(min=1, help="Texts at most in a batch.")] = 16,
    truncation: Annotated[
        bool, typer.Option("--truncation", help="Cut off what the model cannot take.")
    ] = False,
    rate: Annotated[float, typer.Option(help="Weight of entropy against distortion, > 0.")] = 0.1,
    tolerance: Annotated[
        float | None, typer.Option(help="Standard error of log sigma to reach.", show_default="the solver's")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
) -> None:
    """Print how much of each token every layer keeps, in nats."""
    # transformers takes seconds to import: --help need not wait for it
    from interp_plugin import huggingface
    from interp_plugin.solver import Solver
    from interp_plugin.text import TextExplainer

    progress = sys.stderr.isatty()
    try:
        wanted = _texts(texts, file)
        chosen, places = parse_layers(layers), parse_positions(positions)
        solver = Solver(seed=seed) if tolerance is None else Solver(seed=seed, tolerance=tolerance)
        for path in filter(None, (html, png, save)):
            _check_folder(path)
        with huggingface.quiet():
            source = huggingface.default_model_path() if model is None else model
            explainer = TextExplainer(*huggingface.load(source, tokenizer, device=device, dtype=dtype))
            if calibrate is not None:
                explainer.calibrate(_lines(calibrate), chosen, batch_size=batch_size, show_progress=progress)
            explanation = explainer.explain(
                wanted, chosen, target, places, rate=rate, solver=solver, batch_size=batch_size, truncation=truncation,
                show_progress=progress,
            )  # fmt: skip
        written = _write(explanation, granularity, html, png, save)
    except (ValueError, ImportError, OSError) as error:
        _fail(str(error))
    if as_json:
        typer.echo(json.dumps(explanation.to_dict(granularity), allow_nan=False))
    else:
        explanation.show(granularity=granularity)
    for path in written:
        typer.echo(f"wrote {path}", err=True)


def parse_layers(layers: str) -> Literal["all"] | list[int | str]:
    """Layers from "all", or from numbers, ranges and names with commas.

    Raises:
        ValueError: nothing between two commas, or a range that runs backwards.

    Example::

        >>> parse_layers("1,3-5,output")
        [1, 3, 4, 5, 'output']
    """
    if layers.strip() == "all":
        return "all"
    labels: list[int | str] = []
    for part in map(str.strip, layers.split(",")):
        match = re.fullmatch(r"(\d{1,4})(?:\s*-\s*(\d{1,4}))?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not part or first > last:
            raise ValueError(
                f"layers {layers!r} cannot be read: write all, or numbers, ranges and names as in 1,3-4,output"
            )
        labels.extend(range(first, last + 1) if match else [part])
    return labels


def parse_positions(positions: str | None) -> Literal["each"] | list[int] | None:
    """Token positions from "each", or from numbers with commas; negative ones count from the end.

    Raises:
        ValueError: anything else.

    Example::

        >>> parse_positions("0,-1")
        [0, -1]
    """
    if positions is None:
        return None
    if positions.strip() == "each":
        return "each"
    try:
        return [int(part) for part in positions.split(",")]
    except ValueError as error:
        raise ValueError(
            f"positions {positions!r} cannot be read: write each, or numbers as in 0,-1"
        ) from error


def _texts(texts: list[str] | None, file: Path | None) -> list[str]:
    """The texts of the command line, of a file, or of standard input."""
    if texts and file is not None:
        raise ValueError(f"texts are given twice, on the command line and in {str(file)!r}; leave one out")
    if texts:
        return texts
    if file is None and sys.stdin.isatty():
        raise ValueError("there is no text: give one in quotes, --file, or a text a line on standard input")
    return _lines(Path("-") if file is None else file)


def _lines(path: Path) -> list[str]:
    """The lines of a file (- is standard input) that hold something."""
    try:
        read = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
        lines = read.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(path)!r} is not UTF-8 text ({error}); convert it first") from error
    found = [line for line in lines if line.strip()]
    if not found:
        raise ValueError(
            f"{'standard input' if str(path) == '-' else str(path)!r} holds no text; write one a line"
        )
    return found


def _check_folder(path: Path) -> None:
    """Hours of work are not lost to a folder that is not there."""
    if not path.parent.is_dir():
        raise ValueError(
            f"cannot write {str(path)!r}: there is no folder {str(path.parent)!r}; make it first"
        )


def _write(
    explanation: Explanation, granularity: Granularity, html: Path | None, png: Path | None, save: Path | None
) -> list[Path]:
    """Write what was asked for; returns the files."""
    written = []
    if save is not None:
        explanation.save(save)
        written.append(save)
    if html is not None:
        explanation.to_html(html, granularity=granularity)
        written.append(html)
    if png is not None:
        for text in range(len(explanation)):
            path = png if len(explanation) == 1 else png.with_stem(f"{png.stem}-{text + 1}")
            explanation.plot("layers", text=text, granularity=granularity).savefig(path)
            written.append(path)
    return written


def _fail(message: str) -> NoReturn:
    typer.echo(f"Error: {message}", err=True)
    raise typer.Exit(2)
