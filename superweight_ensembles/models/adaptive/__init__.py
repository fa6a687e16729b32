"""Adaptive Width Neural Networks: hidden layers that learn how many neurons they have, and can be truncated.

Source: Errica et al., Adaptive Width Neural Networks, arXiv 2501.15889.
"""

from superweight_ensembles.models.adaptive.network import adaptive_mlp, make_adaptive, multilayer_perceptron
from superweight_ensembles.models.adaptive.priors import WidthLoss
from superweight_ensembles.models.adaptive.resizing import (
    Place,
    adaptive_widths,
    adopt_widths,
    drop_importance,
    follow_rates,
    freeze_widths,
    learned_places,
    resize_widths,
    restore_widths,
    set_width,
)
from superweight_ensembles.models.adaptive.truncation import check_fractions, truncate, truncated_exits
from superweight_ensembles.models.adaptive.width import (
    BOUNDS,
    DISTRIBUTIONS,
    QUANTILE,
    SCALES,
    AdaptiveWidth,
    rate_of,
    width_of,
)

__all__ = [
    "BOUNDS",
    "DISTRIBUTIONS",
    "QUANTILE",
    "SCALES",
    "AdaptiveWidth",
    "Place",
    "WidthLoss",
    "adaptive_mlp",
    "adaptive_widths",
    "adopt_widths",
    "check_fractions",
    "drop_importance",
    "follow_rates",
    "freeze_widths",
    "learned_places",
    "make_adaptive",
    "multilayer_perceptron",
    "rate_of",
    "resize_widths",
    "restore_widths",
    "set_width",
    "truncate",
    "truncated_exits",
    "width_of",
]
