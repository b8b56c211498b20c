"""The command line: ``interp-plugin explain``, ``compare`` and ``corpus``."""

from __future__ import annotations

from typing import Annotated

import typer

from interp_plugin import __version__
from interp_plugin.cli import compare, corpus, explain

__all__ = ["app"]

app = typer.Typer(
    name="interp-plugin",
    help="How much noise can each token bear before a layer notices?  Information kept, per token and layer.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
)


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


app.command(epilog=explain.EXAMPLES)(explain.explain)
app.command(epilog=compare.EXAMPLES)(compare.compare)
app.command(epilog=corpus.EXAMPLES)(corpus.corpus)
