"""The command line: ``interp-plugin explain``, ``compare`` and ``corpus``."""

from __future__ import annotations

import codecs
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from interp_plugin import __version__
from interp_plugin.cli import compare, corpus, explain
from interp_plugin.report.numbers import printable

__all__ = ["app"]

_UsageError: Any = typer.BadParameter.__base__  # from the click that this version of Typer uses


@contextmanager
def _printable_errors() -> Iterator[None]:
    """Make usage errors printable: they repeat arguments, such as names of files that the shell's pattern matched."""
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


def _print_version(is_requested: bool) -> None:
    if is_requested:
        typer.echo(__version__)
        raise typer.Exit


IN_ASCII = {
    "\xb1": "+-",
    "\u2026": "...",
    "\u2264": "<=",
    "\u2265": ">=",
    "\u2212": "-",
    "\xd7": "x",
    "\xb7": ".",
}


def _replaced(error: UnicodeError) -> tuple[str, int]:
    """Replace characters that a terminal's encoding lacks by similar ones or by their escape codes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    found = (IN_ASCII.get(c, c.encode("ascii", "backslashreplace").decode()) for c in missing)
    return "".join(found), error.end


def _print_anything() -> None:
    """Let standard output and error accept all characters in any encoding (ASCII terminals, cron, old Windows)."""
    codecs.register_error("interp_plugin_replaced", _replaced)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="interp_plugin_replaced")


@app.callback()
def main(
    show_version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """How much noise can each token bear before a layer notices?  Information kept, per token and layer."""
    _print_anything()


app.command(epilog=explain.EXAMPLES)(explain.explain)
app.command(epilog=compare.EXAMPLES)(compare.compare)
app.command(epilog=corpus.EXAMPLES)(corpus.corpus)
