"""Method comparison studies: compare attribution methods on one model and one data set, with statistics and costs."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp_plugin.comparison.interface import Method, Metric
    from interp_plugin.comparison.methods import METHODS
    from interp_plugin.comparison.metrics import METRICS
    from interp_plugin.comparison.result import StudyResult
    from interp_plugin.comparison.study import Study

__all__ = ["METHODS", "METRICS", "Method", "Metric", "Study", "StudyResult"]

_HOMES = {
    "interface": ("Method", "Metric"),
    "methods": ("METHODS",),
    "metrics": ("METRICS",),
    "result": ("StudyResult",),
    "study": ("Study",),
}


if not TYPE_CHECKING:  # a type checker would otherwise accept any attribute name

    def __getattr__(name: str) -> Any:
        """Import a public name on first use (PEP 562)."""
        for home, names in _HOMES.items():
            if name in names:
                return getattr(import_module(f"{__name__}.{home}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
