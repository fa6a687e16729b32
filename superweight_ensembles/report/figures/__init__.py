"""Figures of runs, searches and comparisons, drawn from their results alone."""

from superweight_ensembles.report.figures.anytime_curves import anytime_curves
from superweight_ensembles.report.figures.budget import shared_segments
from superweight_ensembles.report.figures.change import family_looks, place_rows, plan_letters, tie_letters
from superweight_ensembles.report.figures.draw import (
    DRAWN_BENCHMARKS,
    draw_arms,
    draw_comparison,
    draw_run,
    draw_search,
)
from superweight_ensembles.report.figures.layers import cluster_looks, layers_by_depth
from superweight_ensembles.report.figures.points import pareto_front, read_arms, read_measured
from superweight_ensembles.report.figures.sharing import place_cells
from superweight_ensembles.report.figures.similarity import read_panels
from superweight_ensembles.report.figures.training_curves import width_history, widths_learned

__all__ = [
    "DRAWN_BENCHMARKS",
    "anytime_curves",
    "cluster_looks",
    "draw_arms",
    "draw_comparison",
    "draw_run",
    "draw_search",
    "family_looks",
    "layers_by_depth",
    "pareto_front",
    "place_cells",
    "place_rows",
    "plan_letters",
    "read_arms",
    "read_measured",
    "read_panels",
    "shared_segments",
    "tie_letters",
    "width_history",
    "widths_learned",
]
