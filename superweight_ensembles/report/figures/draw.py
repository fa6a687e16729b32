"""Figures of a run, or of several, as PNG files."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from superweight_ensembles.plan import SharingPlan
from superweight_ensembles.report.figures.accuracy import (
    accuracy_flops,
    accuracy_parameters,
    compare_flops,
    compare_parameters,
)
from superweight_ensembles.report.figures.anytime_figures import anytime_curves, reliability_diagram
from superweight_ensembles.report.figures.budget import budget_split
from superweight_ensembles.report.figures.change import sharing_change
from superweight_ensembles.report.figures.growth_figure import growth_curves
from superweight_ensembles.report.figures.learned_widths_figure import learned_widths
from superweight_ensembles.report.figures.measured import ablation_bars, arms_flops, arms_parameters
from superweight_ensembles.report.figures.npas_figure import npas_budgets
from superweight_ensembles.report.figures.points import Comparison, Results
from superweight_ensembles.report.figures.sharing import sharing_map
from superweight_ensembles.report.figures.similarity import Search, similarity_matrix
from superweight_ensembles.report.figures.style import DOTS_PER_INCH, plain_text
from superweight_ensembles.report.figures.training_figures import training_curves, width_history, widths_learned
from superweight_ensembles.storage import write_bytes


def draw_run(results: Results, plan: SharingPlan, folder: Path) -> list[Path]:
    """Draw the figures of a run as PNG, 200 dots an inch: six, ``anytime_curves`` where the results hold any, and
    ``width_history`` where widths were learned.

    Args:
        results: Parsed ``results.json`` of the run.
        plan: Its sharing plan.
        folder: Where the files go; it is made if it does not exist.

    Returns:
        The files, named as the functions that draw them.

    Raises:
        SuperWeightError: Results of another format, or without an arm.
    """
    figures = {
        "accuracy_flops": accuracy_flops(results),
        "accuracy_parameters": accuracy_parameters(results),
        "sharing_map": sharing_map(plan),
        "budget_split": budget_split(plan),
        "training_curves": training_curves(results),
        "reliability_diagram": reliability_diagram(results),
    }
    if any("anytime" in arm for arm in results["arms"]):
        figures["anytime_curves"] = anytime_curves(results)
    if widths_learned(results):
        figures["width_history"] = width_history(results)
    return _save(figures, folder)


def draw_comparison(results: Sequence[Results], folder: Path) -> list[Path]:
    """Draw several runs in one picture each, as PNG: ``compare_flops`` and ``compare_parameters``.

    Args:
        results: Parsed ``results.json`` of the runs.
        folder: Where the files go; it is made if it does not exist.

    Raises:
        SuperWeightError: No run, results of another format, or without an arm.
    """
    return _save({"compare_flops": compare_flops(results), "compare_parameters": compare_parameters(results)}, folder)


def draw_search(search: Search, plans: Mapping[str, SharingPlan], folder: Path) -> list[Path]:
    """Draw a search for clusters as PNG: ``similarity_matrix`` and ``sharing_change``.

    Args:
        search: Parsed ``search.json``.
        plans: Before, after, and after un-tying, by what their panels are called.
        folder: Where the files go; it is made if it does not exist.

    Raises:
        SuperWeightError: A search of another format or without a cluster; no plan, or plans of different members.
    """
    return _save({"similarity_matrix": similarity_matrix(search), "sharing_change": sharing_change(plans)}, folder)


def draw_arms(comparison: Comparison, folder: Path) -> list[Path]:
    """Draw the arms of a comparison as PNG: ``arms_parameters``, ``arms_flops``; ``ablation_bars`` if in groups.

    Args:
        comparison: Parsed ``comparison.json``.
        folder: Where the files go; it is made if it does not exist.

    Raises:
        SuperWeightError: A comparison of another format, without an arm, or with an arm that no seed has run.
    """
    figures = {"arms_parameters": arms_parameters(comparison), "arms_flops": arms_flops(comparison)}
    if any(arm.get("group") for arm in comparison["arms"]):
        figures["ablation_bars"] = ablation_bars(comparison)
    return _save(figures, folder)


def draw_growth(growth: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw how time and memory grow as PNG: ``growth_curves``.

    Args:
        growth: Parsed ``growth.json`` of benchmarks/growth.py.
        folder: Where the file goes; it is made if it does not exist.

    Raises:
        SuperWeightError: A file of another format, or without a sweep.
    """
    return _save({"growth_curves": growth_curves(growth)}, folder)


def draw_npas(npas: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw one network at many budgets as PNG: ``npas_budgets``.

    Args:
        npas: Parsed ``npas.json`` of benchmarks/npas.py.
        folder: Where the file goes; it is made if it does not exist.

    Raises:
        SuperWeightError: A file of another format, or without a finished cell at a budget.
    """
    return _save({"npas_budgets": npas_budgets(npas)}, folder)


def draw_learned_widths(measured: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw what widths are learned on tasks as PNG: ``learned_widths``.

    Args:
        measured: Parsed ``learned_widths.json`` of benchmarks/learned_widths.py.
        folder: Where the file goes; it is made if it does not exist.

    Raises:
        SuperWeightError: A file of another format, or without a cell.
    """
    return _save({"learned_widths": learned_widths(measured)}, folder)


# By the name of the file, which is also the kind of its content.
DRAWN_BENCHMARKS: Mapping[str, Callable[[Mapping[str, Any], Path], list[Path]]] = {
    "growth": draw_growth,
    "npas": draw_npas,
    "learned_widths": draw_learned_widths,
}


@plain_text
def _save(figures: Mapping[str, Figure], folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.png")
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", dpi=DOTS_PER_INCH)
        write_bytes(paths[-1], drawn.getvalue())
    return paths
