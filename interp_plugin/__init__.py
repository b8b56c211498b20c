"""How much of each input word survives in a model's hidden state, in nats, as Captum attributions."""

from interp_plugin.attribution import (
    InformationLoss,
    InformationLossLLMAttribution,
    LayerInformationLoss,
    NeuronInformationLoss,
)
from interp_plugin.explanation import Explanation
from interp_plugin.interpreter import Interpreter, calculate_regularization
from interp_plugin.solver import NoiseFit, Solver
from interp_plugin.text import TextExplainer

__version__ = "0.1.0"

__all__ = [
    "Explanation",
    "InformationLoss",
    "InformationLossLLMAttribution",
    "Interpreter",
    "LayerInformationLoss",
    "NeuronInformationLoss",
    "NoiseFit",
    "Solver",
    "TextExplainer",
    "calculate_regularization",
]
