"""Figures of runs, searches and comparisons, drawn from their results alone."""

from superweight_ensembles.report.figures.accuracy import (
    accuracy_flops,
    accuracy_parameters,
    compare_flops,
    compare_parameters,
)
from superweight_ensembles.report.figures.anytime_figures import anytime_curves, reliability_diagram
from superweight_ensembles.report.figures.budget import budget_split, shared_segments
from superweight_ensembles.report.figures.change import (
    family_looks,
    place_rows,
    plan_letters,
    sharing_change,
    tie_letters,
)
from superweight_ensembles.report.figures.draw import (
    DRAWN_BENCHMARKS,
    draw_arms,
    draw_comparison,
    draw_growth,
    draw_learned_widths,
    draw_npas,
    draw_run,
    draw_search,
)
from superweight_ensembles.report.figures.growth_figure import growth_curves
from superweight_ensembles.report.figures.layers import cluster_looks, layers_by_depth
from superweight_ensembles.report.figures.learned_widths_figure import learned_widths
from superweight_ensembles.report.figures.measured import ablation_bars, arms_flops, arms_parameters
from superweight_ensembles.report.figures.npas_figure import npas_budgets
from superweight_ensembles.report.figures.points import pareto_front, read_arms, read_measured
from superweight_ensembles.report.figures.sharing import place_cells, sharing_map
from superweight_ensembles.report.figures.similarity import read_panels, similarity_matrix
from superweight_ensembles.report.figures.training_figures import training_curves, width_history, widths_learned

__all__ = [
    "DRAWN_BENCHMARKS",
    "ablation_bars",
    "accuracy_flops",
    "accuracy_parameters",
    "anytime_curves",
    "arms_flops",
    "arms_parameters",
    "budget_split",
    "cluster_looks",
    "compare_flops",
    "compare_parameters",
    "draw_arms",
    "draw_comparison",
    "draw_growth",
    "draw_learned_widths",
    "draw_npas",
    "draw_run",
    "draw_search",
    "family_looks",
    "growth_curves",
    "layers_by_depth",
    "learned_widths",
    "npas_budgets",
    "pareto_front",
    "place_cells",
    "place_rows",
    "plan_letters",
    "read_arms",
    "read_measured",
    "read_panels",
    "reliability_diagram",
    "shared_segments",
    "sharing_change",
    "sharing_map",
    "similarity_matrix",
    "tie_letters",
    "training_curves",
    "width_history",
    "widths_learned",
]
