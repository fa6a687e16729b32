"""Learned widths: Adaptive Width Neural Networks."""

from superweight_ensembles.adaptive.distribution import AdaptiveWidth
from superweight_ensembles.adaptive.exits import truncated_exits
from superweight_ensembles.adaptive.loss import WidthLoss
from superweight_ensembles.adaptive.network import MultilayerPerceptron, adaptive_mlp, make_adaptive
from superweight_ensembles.adaptive.resizing import adaptive_widths, freeze_widths, resize_widths
from superweight_ensembles.adaptive.truncation import truncate

__all__ = [
    "AdaptiveWidth",
    "MultilayerPerceptron",
    "WidthLoss",
    "adaptive_mlp",
    "adaptive_widths",
    "freeze_widths",
    "make_adaptive",
    "resize_widths",
    "truncate",
    "truncated_exits",
]
