"""The figure of learned widths: every history, every fixed width and every accuracy stands in it."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
from command_line import draw_benchmark
from figure_checks import assert_apart, drawn_boxes, legend_texts, with_gid
from learned_widths_figure import LearnedWidths, learned_widths
from matplotlib.figure import Figure

import superweight_ensembles as swe
from superweight_ensembles.storage import content_as

FIXED = (8, 24, 256)
STARTS = {0.01: 232, 0.001: 2304, 0.1: 25}


def make_cell(task: str, level: int, seed: int, rates: tuple[float, ...]) -> dict[str, Any]:
    learned = []
    for rate in rates:
        width = 30 * (level + 1) + 3 * seed + round(1 / rate) % 7
        history = [[1, STARTS[rate]], [10, (STARTS[rate] + width) // 2], [500, width]]
        test = {"accuracy": 0.99 - 0.01 * level - 0.001 * seed}
        learned.append({"rate": rate, "start": STARTS[rate], "width": width, "test": test, "history": history})
    fixed = [{"width": size, "test": {"accuracy": 0.6 + 0.0015 * size - 0.01 * seed}} for size in FIXED]
    return {"task": task, "seed": seed, "learned": learned, "fixed": fixed}


def make_measured(*tasks: str, seeds: int) -> dict[str, Any]:
    cells = [
        make_cell(task, level, seed, tuple(STARTS) if seed < 2 else (0.01,))
        for level, task in enumerate(tasks)
        for seed in range(seeds)
    ]
    published = {"spiral": 66} if "spiral" in tasks else {}
    return {"format": 1, "benchmark": "learned_widths", "published_widths": published, "cells": cells}


CASES = {
    "three tasks": make_measured("double_moon", "spiral", "spiral_hard", seeds=4),
    "one task, one seed": make_measured("double_moon", seeds=1),
}
each_case = pytest.mark.parametrize("case", CASES)


def as_type(content: dict[str, Any]) -> LearnedWidths:
    return content_as(LearnedWidths, content, Path("learned_widths.json"), "measure again")


@cache
def drawn(case: str) -> Figure:
    """The figure of a case, laid out; tests read it and change nothing."""
    figure = learned_widths(as_type(CASES[case]))
    figure.draw_without_rendering()
    return figure


@each_case
def test_every_history_and_every_accuracy_is_drawn(case: str) -> None:
    figure, cells = drawn(case), CASES[case]["cells"]
    for rate in STARTS:
        own = [one for cell in cells for one in cell["learned"] if one["rate"] == rate]
        lines = [list(map(list, zip(*line.get_data()))) for line in with_gid(figure, f"{rate:g} width")]
        assert lines == [one["history"] for one in own]
        points = [point for dots in with_gid(figure, f"{rate:g} accuracy") for point in dots.get_offsets().tolist()]
        assert points == [pytest.approx([one["width"], 100 * one["test"]["accuracy"]]) for one in own]


@each_case
def test_fixed_widths_are_means_and_deviations_over_seeds(case: str) -> None:
    cells = CASES[case]["cells"]
    tasks = list(dict.fromkeys(cell["task"] for cell in cells))
    bars = iter(with_gid(drawn(case), "fixed deviation"))
    for task, line in zip(tasks, with_gid(drawn(case), "fixed"), strict=True):
        assert line.get_xdata().tolist() == list(FIXED)
        for index, mean in enumerate(line.get_ydata()):
            seeds = [100 * cell["fixed"][index]["test"]["accuracy"] for cell in cells if cell["task"] == task]
            assert mean == pytest.approx(fmean(seeds))
            if len(seeds) > 1:
                expected = (fmean(seeds) - stdev(seeds), fmean(seeds) + stdev(seeds))
                assert tuple(next(bars).get_ydata()) == pytest.approx(expected)
    assert next(bars, None) is None


def test_published_widths_stand_where_there_are_any() -> None:
    (line,) = with_gid(drawn("three tasks"), "published")
    assert line.get_ydata()[0] == 66
    assert "published width" in legend_texts(drawn("three tasks"))
    assert with_gid(drawn("one task, one seed"), "published") == []
    assert "published width" not in legend_texts(drawn("one task, one seed"))
    assert "2 to 4 seeds, bar: deviation" in legend_texts(drawn("three tasks"))
    assert {"one seed", "learned, from 2,304 neurons, a line a seed"} < set(legend_texts(drawn("one task, one seed")))


@each_case
def test_texts_stand_apart_and_everything_is_inside(case: str) -> None:
    figure = drawn(case)
    (legend,) = figure.legends
    for axes in figure.axes:
        texts = [*axes.get_xticklabels(), axes.xaxis.label, *axes.get_yticklabels(), axes.yaxis.label, axes.title]
        assert_apart(drawn_boxes([text for text in texts if text.get_text() and text.get_visible()]))
        assert not legend.get_window_extent().overlaps(axes.get_window_extent())
        for line in axes.lines:
            inside = [axes.viewLim.contains(*point) for point in zip(*line.get_data())]
            assert line.get_gid() == "published" or all(inside)


def test_the_command_draws_the_folder_of_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "learned_widths.json"
    file.write_text(json.dumps(CASES["one task, one seed"]))
    assert draw_benchmark(monkeypatch, tmp_path) == 0
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["learned_widths.png"]
    damaged = json.loads(file.read_text())
    damaged["cells"][0]["learned"][0]["history"] = [[1]]
    file.write_text(json.dumps(damaged))
    capsys.readouterr()
    assert draw_benchmark(monkeypatch, tmp_path) == 2
    assert "is damaged (cells.0.learned.0.history.0" in capsys.readouterr().err.replace("\n", " ")


def test_a_file_that_holds_no_cells_is_refused() -> None:
    with pytest.raises(swe.SuperWeightError, match='must hold "format": 1; got 2: measure again'):
        learned_widths(as_type({**CASES["three tasks"], "format": 2}))
    with pytest.raises(swe.SuperWeightError, match="no cell to draw: measure one first"):
        learned_widths(as_type(make_measured(seeds=0)))
