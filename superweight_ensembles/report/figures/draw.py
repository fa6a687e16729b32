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
    """The figures of a run, by the names of the functions that draw them: six, and those that the results have more."""
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
    """Draw the figures of a run: six, ``anytime_curves`` and ``uncertainty_curves`` where the results hold any, and
    ``width_history`` where widths were learned.

    Args:
        results: What evaluation found of the run.
        plan: Its sharing plan.
        folder: Where the files go; it is made if it does not exist.
        options: Formats, width and style.

    Returns:
        The files, named as the functions that draw them.

    Raises:
        SuperWeightError: Results without an arm.
    """
    with options.applied():
        return save_figures(run_figures(results, plan), folder, options)


def draw_comparison(results: Sequence[RunResults], folder: Path, options: FigureOptions = DEFAULTS) -> list[Path]:
    """Draw several runs in one picture each: ``compare_flops`` and ``compare_parameters``.

    Raises:
        SuperWeightError: No run, or results without an arm.
    """
    with options.applied():
        figures = {"compare_flops": compare_flops(results), "compare_parameters": compare_parameters(results)}
        return save_figures(figures, folder, options)


def search_figures(search: SearchRecord, plans: Mapping[str, SharingPlan]) -> dict[str, Figure]:
    """The figures of a search for clusters, by name."""
    return {"similarity_matrix": similarity_matrix(search), "sharing_change": sharing_change(plans)}


def draw_search(
    search: SearchRecord, plans: Mapping[str, SharingPlan], folder: Path, options: FigureOptions = DEFAULTS
) -> list[Path]:
    """Draw a search for clusters: ``similarity_matrix`` and ``sharing_change``.

    Args:
        search: What the search saw.
        plans: Before, after, and after un-tying, by what their panels are called.
        folder: Where the files go; it is made if it does not exist.
        options: Formats, width and style.

    Raises:
        SuperWeightError: A search without a cluster; no plan, or plans of different members.
    """
    with options.applied():
        return save_figures(search_figures(search, plans), folder, options)


def draw_arms(comparison: Comparison, folder: Path, options: FigureOptions = DEFAULTS) -> list[Path]:
    """Draw the arms of a comparison: ``arms_parameters``, ``arms_flops``; ``arms_anytime`` where some have exits,
    ``ablation_bars`` where some are in groups.

    Raises:
        SuperWeightError: A comparison without an arm, or with an arm that no seed has run.
    """
    with options.applied():
        figures = {"arms_parameters": arms_parameters(comparison), "arms_flops": arms_flops(comparison)}
        if any(arm.has_exits for arm in comparison.arms):
            figures["arms_anytime"] = arms_anytime(comparison)
        if any(arm.group for arm in comparison.arms):
            figures["ablation_bars"] = ablation_bars(comparison)
        return save_figures(figures, folder, options)


@styled
def save_figures(figures: Mapping[str, Figure], folder: Path, options: FigureOptions = DEFAULTS) -> list[Path]:
    """Write figures as files of these names into a folder, which is made if it does not exist.

    The width is that of figures drawn while ``options.applied()``.
    """
    with accessing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    paths = []
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
