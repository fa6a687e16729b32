"""Figures of runs: each function returns a matplotlib ``Figure``, made without pyplot and without a display."""

from superweight_ensembles.figures.ablation_figure import ablation_bars
from superweight_ensembles.figures.arms_figure import arms_flops, arms_parameters
from superweight_ensembles.figures.budget_figure import budget_split
from superweight_ensembles.figures.change_figure import sharing_change
from superweight_ensembles.figures.comparison_figures import compare_flops, compare_parameters
from superweight_ensembles.figures.draw import (
    DRAWN_BENCHMARKS,
    draw_arms,
    draw_comparison,
    draw_growth,
    draw_learned_widths,
    draw_npas,
    draw_run,
    draw_search,
)
from superweight_ensembles.figures.flops_figure import accuracy_flops
from superweight_ensembles.figures.growth_figure import growth_curves
from superweight_ensembles.figures.learned_widths_figure import learned_widths
from superweight_ensembles.figures.npas_figure import npas_budgets
from superweight_ensembles.figures.parameters_figure import accuracy_parameters
from superweight_ensembles.figures.reliability_figure import reliability_diagram
from superweight_ensembles.figures.sharing_figure import sharing_map
from superweight_ensembles.figures.similarity_figure import similarity_matrix
from superweight_ensembles.figures.training_figure import training_curves

__all__ = [
    "DRAWN_BENCHMARKS",
    "ablation_bars",
    "accuracy_flops",
    "accuracy_parameters",
    "arms_flops",
    "arms_parameters",
    "budget_split",
    "compare_flops",
    "compare_parameters",
    "draw_arms",
    "draw_comparison",
    "draw_growth",
    "draw_learned_widths",
    "draw_npas",
    "draw_run",
    "draw_search",
    "growth_curves",
    "learned_widths",
    "npas_budgets",
    "reliability_diagram",
    "sharing_change",
    "sharing_map",
    "similarity_matrix",
    "training_curves",
]
