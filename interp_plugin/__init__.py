"""How much of each input word survives in a model's hidden state, in nats, as Captum attributions."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp_plugin import huggingface
    from interp_plugin.amortised.estimator import AmortisedEstimator
    from interp_plugin.attribution import (
        InformationErased,
        InformationLoss,
        InformationLossLLMAttribution,
        LayerInformationErased,
        LayerInformationLoss,
        NeuronInformationLoss,
    )
    from interp_plugin.corpus.result import CorpusResult
    from interp_plugin.corpus.study import CorpusStudy
    from interp_plugin.interpreter import Interpreter, calculate_regularization
    from interp_plugin.method.erasure import ErasureFit, log_odds
    from interp_plugin.method.perturbation import LayerCall
    from interp_plugin.method.solver import NoiseFit, Solver
    from interp_plugin.text.explainer import TextExplainer
    from interp_plugin.text.explanation import Explanation
    from interp_plugin.text.models import PlainModel
    from interp_plugin.text.states import Calibration

__version__ = "0.1.0"

__all__ = [
    "AmortisedEstimator",
    "Calibration",
    "CorpusResult",
    "CorpusStudy",
    "ErasureFit",
    "Explanation",
    "InformationErased",
    "InformationLoss",
    "InformationLossLLMAttribution",
    "Interpreter",
    "LayerCall",
    "LayerInformationErased",
    "LayerInformationLoss",
    "NeuronInformationLoss",
    "NoiseFit",
    "PlainModel",
    "Solver",
    "TextExplainer",
    "calculate_regularization",
    "huggingface",
    "log_odds",
]

_HOMES = {
    "amortised.estimator": ("AmortisedEstimator",),
    "attribution": (
        "InformationErased",
        "InformationLoss",
        "InformationLossLLMAttribution",
        "LayerInformationErased",
        "LayerInformationLoss",
        "NeuronInformationLoss",
    ),
    "corpus.result": ("CorpusResult",),
    "corpus.study": ("CorpusStudy",),
    "huggingface": ("huggingface",),
    "interpreter": ("Interpreter", "calculate_regularization"),
    "method.erasure": ("ErasureFit", "log_odds"),
    "method.perturbation": ("LayerCall",),
    "method.solver": ("NoiseFit", "Solver"),
    "text.states": ("Calibration",),
    "text.explainer": ("TextExplainer",),
    "text.explanation": ("Explanation",),
    "text.models": ("PlainModel",),
}


if not TYPE_CHECKING:  # hidden from type checkers, which would otherwise accept any attribute

    def __getattr__(name: str) -> Any:
        """Import a public name on first access (PEP 562), so that ``--help`` does not wait for torch."""
        for home, names in _HOMES.items():
            if name in names:
                module = import_module(f"{__name__}.{home}")
                return module if name == home else getattr(module, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
