"""Import of optional packages, with an error that names the extra to install."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

PACKAGES = {"sklearn": "scikit-learn"}  # module -> name of the package on PyPI, where they differ


def load(module: str, purpose: str, extra: str) -> ModuleType:
    """Import an optional module.

    Args:
        module: dotted name of the module.
        purpose: what needs the module; the subject of the error message.
        extra: the extra of this package that installs the module.

    Raises:
        ImportError: the module is not installed or cannot be imported.

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
