"""Method comparison studies: attribution methods judged side by side on one model, one data set, one budget."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp_plugin.comparison.judged import Method, Metric
    from interp_plugin.comparison.methods import METHODS
    from interp_plugin.comparison.metrics import METRICS
    from interp_plugin.comparison.result import StudyResult
    from interp_plugin.comparison.study import Study

__all__ = ["METHODS", "METRICS", "Method", "Metric", "Study", "StudyResult"]

_HOMES = {
    "judged": ("Method", "Metric"),
    "methods": ("METHODS",),
    "metrics": ("METRICS",),
    "result": ("StudyResult",),
    "study": ("Study",),
}


if not TYPE_CHECKING:  # a type checker that saw it would believe in any name

    def __getattr__(name: str) -> Any:
        """A public name loads when it is first asked for (PEP 562)."""
        for home, names in _HOMES.items():
            if name in names:
                return getattr(import_module(f"{__name__}.{home}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
