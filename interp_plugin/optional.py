"""Packages that an extra brings: imported where they are used, with an error that names the extra."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

PACKAGES = {"sklearn": "scikit-learn"}  # by module, where pip has another name


def load(module: str, purpose: str, extra: str) -> ModuleType:
    """Import an optional module.

    Args:
        module: dotted name of what is imported.
        purpose: what needs it, the subject of the error's sentence.
        extra: of this package, which brings it.

    Raises:
        ImportError: it is not installed, or cannot be imported.

    Examples::
        >>> load("json", "reading JSON", "cli").__name__
        'json'
        >>> load("no_such_module", "a page", "cli")
        Traceback (most recent call last):
        ImportError: a page needs no_such_module, which is not installed: pip install "interp-plugin[cli]"
    """
    try:
        return import_module(module)
    except ImportError as error:
        top = module.partition(".")[0]
        missing = isinstance(error, ModuleNotFoundError) and error.name == top
        why = "is not installed" if missing else f"cannot be imported ({error})"
        raise ImportError(
            f'{purpose} needs {PACKAGES.get(top, top)}, which {why}: pip install "interp-plugin[{extra}]"'
        ) from error
