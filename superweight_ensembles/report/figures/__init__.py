"""Figures of runs, searches and comparisons, drawn from their results alone.

Artists carry a ``gid`` (``shared front``, ``label``), by which they can be restyled: docs/figures.md lists them.
"""

from superweight_ensembles.report.figures import style
from superweight_ensembles.report.figures.accuracy import (
    accuracy_flops,
    accuracy_parameters,
    compare_flops,
    compare_parameters,
)
from superweight_ensembles.report.figures.draw import (
    draw_arms,
    draw_comparison,
    draw_run,
    draw_search,
    run_figures,
    save_figures,
    search_figures,
)
from superweight_ensembles.report.figures.drawn_arms import pareto_front, read_arms, read_measured
from superweight_ensembles.report.figures.layers import cluster_looks, layers_by_depth
from superweight_ensembles.report.figures.measured import ablation_bars, arms_anytime, arms_flops, arms_parameters
from superweight_ensembles.report.figures.run_curves import (
    anytime_curves,
    mean_loss,
    reliability_diagram,
    training_curves,
    uncertainty_curves,
    width_history,
    widths_learned,
)
from superweight_ensembles.report.figures.search_figures import (
    family_looks,
    place_rows,
    plan_letters,
    read_panels,
    sharing_change,
    similarity_matrix,
    tie_letters,
)
from superweight_ensembles.report.figures.sharing import budget_split, place_cells, shared_segments, sharing_map
from superweight_ensembles.report.figures.style import FigureOptions

__all__ = [
    "FigureOptions",
    "ablation_bars",
    "accuracy_flops",
    "accuracy_parameters",
    "anytime_curves",
    "arms_anytime",
    "arms_flops",
    "arms_parameters",
    "budget_split",
    "cluster_looks",
    "compare_flops",
    "compare_parameters",
    "draw_arms",
    "draw_comparison",
    "draw_run",
    "draw_search",
    "family_looks",
    "layers_by_depth",
    "mean_loss",
    "pareto_front",
    "place_cells",
    "place_rows",
    "plan_letters",
    "read_arms",
    "read_measured",
    "read_panels",
    "reliability_diagram",
    "run_figures",
    "save_figures",
    "search_figures",
    "shared_segments",
    "sharing_change",
    "sharing_map",
    "similarity_matrix",
    "style",
    "tie_letters",
    "training_curves",
    "uncertainty_curves",
    "width_history",
    "widths_learned",
]
