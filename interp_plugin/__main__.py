"""Entry point of the ``interp-plugin`` script and of ``python -m interp_plugin``."""

import sys


def main() -> None:
    """Run the command line; it needs the packages of the extra ``cli``."""
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
