"""The command line: ``interp-plugin explain``."""

from __future__ import annotations

import json
import re
from typing import Annotated, Literal, NoReturn

import typer

from interp_plugin import __version__

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

    interp-plugin explain "not a bad film" --layers 1,3-4 --tolerance 0.01

    interp-plugin explain "not a bad film" --model ./my-classifier --json
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
    text: Annotated[str, typer.Argument(help="The text to explain.", show_default=False)],
    model: Annotated[
        str | None,
        typer.Option(
            help="Folder or Hugging Face id of a sequence classifier.", show_default="the one that ships"
        ),
    ] = None,
    layers: Annotated[
        str, typer.Option(help="Which layers: all, or numbers and ranges as in 1,3 or 2-4.")
    ] = "all",
    rate: Annotated[float, typer.Option(help="Weight of entropy against distortion, > 0.")] = 0.1,
    tolerance: Annotated[
        float | None,
        typer.Option(help="Standard error of log sigma to reach.", show_default="the solver's"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Print how much of each token every layer keeps, in nats."""
    # transformers takes seconds to import: --help need not wait for it
    from interp_plugin import huggingface
    from interp_plugin.solver import Solver
    from interp_plugin.text import TextExplainer

    try:
        chosen = parse_layers(layers)
        solver = Solver(seed=seed) if tolerance is None else Solver(seed=seed, tolerance=tolerance)
        with huggingface.quiet():
            parts = huggingface.load(huggingface.default_model_path() if model is None else model)
            explanation = TextExplainer(*parts).explain(text, chosen, rate=rate, solver=solver)
    except ValueError as error:
        _fail(str(error))
    if as_json:
        typer.echo(json.dumps(explanation.to_dict(), allow_nan=False))
    else:
        explanation.show()


def parse_layers(layers: str) -> Literal["all"] | tuple[int, ...]:
    """Layer numbers from "all", or from numbers and ranges with commas.

    Raises:
        ValueError: anything else, or a range that runs backwards.

    Example::

        >>> parse_layers("1,3-5")
        (1, 3, 4, 5)
    """
    if layers.strip() == "all":
        return "all"
    numbers: list[int] = []
    for part in layers.split(","):
        match = re.fullmatch(r"\s*(\d{1,4})\s*(?:-\s*(\d{1,4})\s*)?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise ValueError(
                f"layers {layers!r} cannot be read: write all, or numbers and ranges as in 1,3 or 2-4"
            )
        numbers.extend(range(first, last + 1))
    return tuple(numbers)


def _fail(message: str) -> NoReturn:
    typer.echo(f"Error: {message}", err=True)
    raise typer.Exit(2)
