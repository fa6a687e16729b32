"""Predictions at any compute budget: streams, deadlines, cascades, and the curves that they give."""

from superweight_ensembles.anytime.calibration import Calibration
from superweight_ensembles.anytime.cascade import AnytimeAnswer
from superweight_ensembles.anytime.policy import ExitPolicy
from superweight_ensembles.anytime.predictor import AnytimePredictor, ExitStep

__all__ = ["AnytimeAnswer", "AnytimePredictor", "Calibration", "ExitPolicy", "ExitStep"]
