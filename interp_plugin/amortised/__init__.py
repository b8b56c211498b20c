"""The amortised estimator: a head, trained on the solver's results, predicts sigma from one forward pass."""

from interp_plugin.amortised.estimator import AmortisedEstimator

__all__ = ["AmortisedEstimator"]
