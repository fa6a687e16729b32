"""Figures of runs: each function returns a matplotlib ``Figure``, made without pyplot and without a display."""

from superweight_ensembles.figures.budget_figure import budget_split
from superweight_ensembles.figures.comparison_figures import compare_flops, compare_parameters
from superweight_ensembles.figures.draw import draw_comparison, draw_run
from superweight_ensembles.figures.flops_figure import accuracy_flops
from superweight_ensembles.figures.parameters_figure import accuracy_parameters
from superweight_ensembles.figures.reliability_figure import reliability_diagram
from superweight_ensembles.figures.sharing_figure import sharing_map
from superweight_ensembles.figures.training_figure import training_curves

__all__ = [
    "accuracy_flops",
    "accuracy_parameters",
    "budget_split",
    "compare_flops",
    "compare_parameters",
    "draw_comparison",
    "draw_run",
    "reliability_diagram",
    "sharing_map",
    "training_curves",
]
