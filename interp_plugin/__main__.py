"""``python -m interp_plugin``: the command line, where the script is not on the path."""

from interp_plugin.cli import app

if __name__ == "__main__":
    app(prog_name="interp-plugin")
