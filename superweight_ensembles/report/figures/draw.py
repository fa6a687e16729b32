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
from superweight_ensembles.report.figures.catalog import (
    ARMS_FIGURES,
    RUN_FIGURES,
    RUNS_FIGURES,
    SEARCH_FIGURES,
    draw_all,
)
from superweight_ensembles.report.figures.style import DEFAULTS, DOTS_PER_INCH, FigureOptions, recolor, styled
from superweight_ensembles.storage import accessing, write_bytes

_SAME_BYTES: dict[Any, Any] = {"svg.hashsalt": "superweight-ensembles", "svg.fonttype": "path", "pdf.fonttype": 42}
_UNDATED = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}


def run_figures(results: RunResults, plan: SharingPlan) -> dict[str, Figure]:
    """Figures of a run, by the names of the functions that draw them: six, and more where the results hold more."""
    return draw_all(RUN_FIGURES, results, plan)


def draw_run(results: RunResults, plan: SharingPlan, folder: Path, options: FigureOptions = DEFAULTS) -> list[Path]:
    """Draw the figures of a run into files named as the functions that draw them."""
    with options.applied():
        return save_figures(run_figures(results, plan), folder, options)


def draw_comparison(results: Sequence[RunResults], folder: Path, options: FigureOptions = DEFAULTS) -> list[Path]:
    """Draw several runs in one picture each: ``compare_flops`` and ``compare_parameters``."""
    with options.applied():
        return save_figures(draw_all(RUNS_FIGURES, results), folder, options)


def search_figures(search: SearchRecord, plans: Mapping[str, SharingPlan]) -> dict[str, Figure]:
    """Figures of a search for clusters, by name; the keys of ``plans`` are the titles of panels."""
    return draw_all(SEARCH_FIGURES, search, plans)


def draw_search(
    search: SearchRecord, plans: Mapping[str, SharingPlan], folder: Path, options: FigureOptions = DEFAULTS
) -> list[Path]:
    """Draw a search for clusters: ``similarity_matrix`` and ``sharing_change``."""
    with options.applied():
        return save_figures(search_figures(search, plans), folder, options)


def draw_arms(comparison: Comparison, folder: Path, options: FigureOptions = DEFAULTS) -> list[Path]:
    """Draw the arms of a comparison against size and compute, and more where they have exits or groups."""
    with options.applied():
        return save_figures(draw_all(ARMS_FIGURES, comparison), folder, options)


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
