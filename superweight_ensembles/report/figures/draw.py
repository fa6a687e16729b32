"""Figures of a run, or of several, as files."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from superweight_ensembles.experiment import Comparison, RunResults, SearchRecord
from superweight_ensembles.plan import SharingPlan
from superweight_ensembles.report.figures.accuracy import (
    accuracy_flops,
    accuracy_parameters,
    compare_flops,
    compare_parameters,
)
from superweight_ensembles.report.figures.measured import (
    ablation_bars,
    arms_anytime,
    arms_flops,
    arms_parameters,
)
from superweight_ensembles.report.figures.run_curves import (
    anytime_curves,
    reliability_diagram,
    training_curves,
    uncertainty_curves,
    width_history,
    widths_learned,
)
from superweight_ensembles.report.figures.search_figures import sharing_change, similarity_matrix
from superweight_ensembles.report.figures.sharing import budget_split, sharing_map
from superweight_ensembles.report.figures.style import DEFAULTS, DOTS_PER_INCH, FigureOptions, recolor, styled
from superweight_ensembles.storage import accessing, write_bytes

_SAME_BYTES: dict[Any, Any] = {"svg.hashsalt": "superweight-ensembles", "svg.fonttype": "path", "pdf.fonttype": 42}
_UNDATED = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}


def run_figures(results: RunResults, plan: SharingPlan) -> dict[str, Figure]:
    """Figures of a run, by the names of the functions that draw them: six, and more where the results hold more."""
    figures = {
        "accuracy_flops": accuracy_flops(results),
        "accuracy_parameters": accuracy_parameters(results),
        "sharing_map": sharing_map(plan),
        "budget_split": budget_split(plan),
        "training_curves": training_curves(results),
        "reliability_diagram": reliability_diagram(results),
    }
    if any(arm.anytime for arm in results.arms):
        figures["anytime_curves"] = anytime_curves(results)
    if any(arm.shift for arm in results.arms):
        figures["uncertainty_curves"] = uncertainty_curves(results)
    if widths_learned(results):
        figures["width_history"] = width_history(results)
    return figures


def draw_run(results: RunResults, plan: SharingPlan, folder: Path, options: FigureOptions = DEFAULTS) -> list[Path]:
    """Draw the figures of a run into files named as the functions that draw them."""
    with options.applied():
        return save_figures(run_figures(results, plan), folder, options)


def draw_comparison(results: Sequence[RunResults], folder: Path, options: FigureOptions = DEFAULTS) -> list[Path]:
    """Draw several runs in one picture each: ``compare_flops`` and ``compare_parameters``."""
    with options.applied():
        figures = {"compare_flops": compare_flops(results), "compare_parameters": compare_parameters(results)}
        return save_figures(figures, folder, options)


def search_figures(search: SearchRecord, plans: Mapping[str, SharingPlan]) -> dict[str, Figure]:
    """Figures of a search for clusters, by name; the keys of ``plans`` are the titles of panels."""
    return {"similarity_matrix": similarity_matrix(search), "sharing_change": sharing_change(plans)}


def draw_search(
    search: SearchRecord, plans: Mapping[str, SharingPlan], folder: Path, options: FigureOptions = DEFAULTS
) -> list[Path]:
    """Draw a search for clusters: ``similarity_matrix`` and ``sharing_change``."""
    with options.applied():
        return save_figures(search_figures(search, plans), folder, options)


def draw_arms(comparison: Comparison, folder: Path, options: FigureOptions = DEFAULTS) -> list[Path]:
    """Draw the arms of a comparison against size and compute, and more where they have exits or groups."""
    with options.applied():
        figures = {"arms_parameters": arms_parameters(comparison), "arms_flops": arms_flops(comparison)}
        if any(arm.has_exits for arm in comparison.arms):
            figures["arms_anytime"] = arms_anytime(comparison)
        if any(arm.group for arm in comparison.arms):
            figures["ablation_bars"] = ablation_bars(comparison)
        return save_figures(figures, folder, options)


@styled
def save_figures(figures: Mapping[str, Figure], folder: Path, options: FigureOptions = DEFAULTS) -> list[Path]:
    """Write figures as files of these names into a folder, which is made if it does not exist."""
    with accessing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    paths = []
    # A figure has its width from the options that were applied when it was drawn.
    with options.applied(), matplotlib.rc_context(_SAME_BYTES):
        for name, figure in figures.items():
            if options.settings:
                recolor(figure)
            for suffix in options.formats:
                paths.append(folder / f"{name}.{suffix}")
                drawn = io.BytesIO()
                figure.savefig(drawn, format=suffix, dpi=DOTS_PER_INCH, metadata=_UNDATED[suffix])
                write_bytes(paths[-1], drawn.getvalue())
    return paths
