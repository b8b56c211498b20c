"""Amortised: what the solver would find, predicted from one forward by a head that learned from its results."""

from interp_plugin.amortised.estimator import AmortisedEstimator

__all__ = ["AmortisedEstimator"]
