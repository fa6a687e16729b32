"""The figure of budgets: every finished cell stands in it, at its budget."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest
from command_line import draw_benchmark
from figure_checks import assert_apart, drawn_boxes, legend_texts, with_gid
from matplotlib.figure import Figure
from npas_figure import Npas, npas_budgets

import superweight_ensembles as swe
from superweight_ensembles.storage import content_as

BUDGETS = [0.02, 0.05, 0.1, 0.25, 0.5, 0.83, 1.0, 2.0, 4.0]
LABELS = {
    "auto": "automatic",
    "superweight": "SuperWeights",
    "ssn-random": "SSN, random groups",
    "ssn-shape": "SSN, groups by shape",
    "ssn-learned": "SSN, learned groups",
    "narrower": "a narrower network",
    "full": "the whole network",
}


def accuracy(arm: str, budget: float | None, seed: int) -> float:
    """Made up: more with the budget, arms and seeds a little apart."""
    level = 0.66 if budget is None else 0.6 + 0.05 * np.log10(budget)
    return float(level + 0.006 * list(LABELS).index(arm) + 0.004 * seed * (-1) ** seed)


def make_cells(arm: str, seeds: int) -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = []
    for budget in [None] if arm == "full" else BUDGETS:
        for seed in range(seeds):
            cell = {"arm": arm, "budget": budget, "seed": seed}
            if arm == "superweight" and budget is not None and budget < 0.5:
                cells.append({**cell, "status": "skipped", "reason": "below the minimum"})
            elif arm != "narrower" or budget is None or budget <= 1:
                cells.append({**cell, "status": "done", "accuracy": accuracy(arm, budget, seed)})
    return cells


def make_npas(*arms: str, seeds: int = 3) -> dict[str, Any]:
    return {
        "format": 1,
        "benchmark": "npas",
        "arms": [{"name": arm, "label": LABELS[arm]} for arm in arms],
        "cells": [cell for arm in arms for cell in make_cells(arm, seeds)],
    }


CASES = {
    "every arm": make_npas(*LABELS),
    "one seed": make_npas("superweight", "narrower", "full", seeds=1),
    "no whole network": make_npas("auto", "narrower", seeds=2),
}
each_case = pytest.mark.parametrize("case", CASES)


def as_type(content: dict[str, Any]) -> Npas:
    return content_as(Npas, content, Path("npas.json"), "measure again")


@cache
def drawn(case: str) -> Figure:
    """The figure of a case, laid out; tests read it and change nothing."""
    figure = npas_budgets(as_type(CASES[case]))
    figure.draw_without_rendering()
    return figure


def seeds_of(case: str, arm: str, budget: float | None) -> list[float]:
    return [
        100 * cell["accuracy"]
        for cell in CASES[case]["cells"]
        if (cell["arm"], cell["budget"], cell["status"]) == (arm, budget, "done")
    ]


@each_case
def test_every_finished_cell_is_drawn_at_its_budget(case: str) -> None:
    figure = drawn(case)
    for arm in (arm["name"] for arm in CASES[case]["arms"] if arm["name"] != "full"):
        measured = {budget: seeds_of(case, arm, budget) for budget in BUDGETS if seeds_of(case, arm, budget)}
        (line,) = with_gid(figure, f"{arm} mean")
        assert line.get_xdata().tolist() == pytest.approx(list(measured), rel=0.09)  # a little aside
        assert line.get_ydata().tolist() == pytest.approx([fmean(seeds) for seeds in measured.values()])
        deviations = with_gid(figure, f"{arm} deviation")
        dots = with_gid(figure, f"{arm} seeds")
        if case == "one seed":
            assert deviations == dots == []
            continue
        for bar, scatter, seeds in zip(deviations, dots, measured.values(), strict=True):
            low, high = bar.get_ydata()
            assert (low, high) == pytest.approx((fmean(seeds) - stdev(seeds), fmean(seeds) + stdev(seeds)))
            assert scatter.get_offsets()[:, 1].tolist() == pytest.approx(seeds)


def test_a_skipped_cell_is_no_point() -> None:
    (line,) = with_gid(drawn("every arm"), "superweight mean")
    assert len(line.get_xdata()) == 5  # 0.5, 0.83, 1, 2, 4


def test_neighbouring_arms_stand_apart_and_nearer_to_their_own_budget() -> None:
    lines = [with_gid(drawn("every arm"), f"{arm} mean")[0] for arm in LABELS if arm != "full"]
    places = sorted(x for line in lines for x in line.get_xdata())
    assert len(set(places)) == len(places)
    for x in (x for line in lines for x in line.get_xdata()):
        assert min(abs(np.log(x / budget)) for budget in BUDGETS) < np.log(1 / 0.83) / 2


@each_case
def test_the_whole_network_is_a_line_across(case: str) -> None:
    figure = drawn(case)
    seeds = seeds_of(case, "full", None)
    lines, bands = with_gid(figure, "whole"), with_gid(figure, "whole band")
    panels = len(figure.axes)
    assert [line.get_ydata()[0] for line in lines] == ([pytest.approx(fmean(seeds))] * panels if seeds else [])
    assert len(bands) == panels * (len(seeds) > 1)
    for band in bands:
        box = band.get_extents().transformed(band.axes.transData.inverted())
        assert (box.y0, box.y1) == pytest.approx((fmean(seeds) - stdev(seeds), fmean(seeds) + stdev(seeds)))


@each_case
def test_axes_are_named_and_the_budgets_are_ticks(case: str) -> None:
    axes, *others = drawn(case).axes
    assert len(others) == (case == "every arm")
    assert axes.get_xscale() == "log" and axes.get_ylabel() == "test accuracy (%)"
    assert axes.get_xlabel() == "budget: parameters / those of the whole network"
    budgets = sorted({cell["budget"] for cell in CASES[case]["cells"] if cell["budget"] and cell["status"] == "done"})
    assert axes.get_xticks().tolist() == budgets
    assert [text.get_text() for text in axes.get_xticklabels()] == [f"{budget:g}" for budget in budgets]


@each_case
def test_texts_stand_apart_and_everything_is_inside(case: str) -> None:
    figure = drawn(case)
    for axes in figure.axes:
        texts = [*axes.get_xticklabels(), axes.xaxis.label, *axes.get_yticklabels(), axes.yaxis.label]
        assert_apart(drawn_boxes([text for text in texts if text.get_text() and text.get_visible()]))
    (legend,) = figure.legends
    assert not any(legend.get_window_extent().overlaps(axes.get_window_extent()) for axes in figure.axes)
    assert legend.get_window_extent().x0 >= -1 and legend.get_window_extent().x1 <= figure.bbox.width + 1
    for line in (line for axes in figure.axes for line in axes.lines):
        points = np.column_stack([np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)])
        assert line.get_gid() == "whole" or all(line.axes.viewLim.contains(*point) for point in points)


def test_the_legend_says_what_everything_is() -> None:
    assert legend_texts(drawn("every arm")) == [*LABELS.values(), "mean of 3 seeds, bar: deviation", "a seed"]
    assert legend_texts(drawn("one seed"))[-1] == "one seed"


def test_arms_can_be_told_apart_without_colour() -> None:
    lines = [with_gid(drawn("every arm"), f"{arm} mean")[0] for arm in LABELS if arm != "full"]
    assert len({line.get_marker() for line in lines}) == len({line.get_color() for line in lines}) == 6


def test_the_command_draws_the_folder_of_a_budgets_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "npas.json").write_text(json.dumps(CASES["one seed"]))
    assert draw_benchmark(monkeypatch, tmp_path) == 0
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["npas_budgets.png"]
    (tmp_path / "npas.json").write_text(json.dumps({**make_npas("auto"), "cells": [
        {"arm": "auto", "budget": 0.1, "seed": 0, "status": "done"}
    ]}))  # fmt: skip
    capsys.readouterr()
    assert draw_benchmark(monkeypatch, tmp_path) == 2
    assert "a cell that is done needs its accuracy): measure again" in capsys.readouterr().err.replace("\n", " ")


def test_a_file_that_holds_no_cells_is_refused() -> None:
    with pytest.raises(swe.SuperWeightError, match='must hold "format": 1; got None: measure again'):
        npas_budgets(as_type({**make_npas("auto"), "format": None}))
    with pytest.raises(swe.SuperWeightError, match="no finished cell at a budget to draw: measure one first"):
        npas_budgets(as_type(make_npas("full")))
