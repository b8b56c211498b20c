"""The command line: ``interp-plugin explain``, ``compare`` and ``corpus``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from interp_plugin import __version__
from interp_plugin.cli import compare, corpus, explain
from interp_plugin.report.numbers import printable

__all__ = ["app"]

_UsageError: Any = typer.BadParameter.__base__  # of the click that this version of Typer uses


@contextmanager
def _printable_errors() -> Iterator[None]:
    """Usage errors repeat what was given, such as the name of a file that a pattern of the shell found."""
    try:
        yield
    except _UsageError as error:
        error.message = printable(error.message)
        raise


class _Commands(TyperGroup):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        with _printable_errors():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        with _printable_errors():
            return super().invoke(ctx)


app = typer.Typer(
    name="interp-plugin",
    cls=_Commands,
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
