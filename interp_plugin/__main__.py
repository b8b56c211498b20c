"""The script ``interp-plugin``, and ``python -m interp_plugin`` where it is not on the path."""

import sys


def main() -> None:
    """Run the command line, whose packages an extra brings."""
    from interp_plugin.optional import load

    try:
        load("typer", "the command line", "cli")
        load("rich", "the command line", "cli")
    except ImportError as error:
        sys.exit(str(error))
    from interp_plugin.cli import app

    app(prog_name="interp-plugin")


if __name__ == "__main__":
    main()
