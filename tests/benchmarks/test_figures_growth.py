"""The figure of growth: every measured number stands in it, beside what it should be on paper."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import draw_benchmark, superweights
from figure_checks import assert_apart, drawn_boxes, legend_texts, with_gid
from growth_figure import Growth, growth_curves
from matplotlib.figure import Figure

import superweight_ensembles as swe
from superweight_ensembles.storage import content_as

ROWS = ["step", "generation", "peak memory", "plan", "plan and build"]
LABELS = {"members": "members", "targets": "targets", "templates": "templates a slot", "batch_size": "images a step"}


def make_sweep(name: str, values: Sequence[int], exponent: float = 1.0) -> dict[str, Any]:
    """A sweep in which everything grows by a power of what is varied, and own weights cost nine tenths."""
    series = {}
    firsts = {"step_ms": 25.0, "generation_ms": 2.0, "peak_bytes": 11.5e6, "plan_s": 5e-4, "plan_and_build_s": 0.01}
    for place, (key, first) in enumerate(firsts.items()):
        growth = [(value / values[0]) ** exponent for value in values]
        measured = [first * factor for factor in growth]
        series[key] = {
            "measured": measured,
            "growth": growth,
            "on_paper": [value / values[0] for value in values],
            "slope": exponent + place if len(values) > 1 else None,
            "slope_on_paper": 1.0,
        }
        if key in ("step_ms", "peak_bytes"):
            series[key] |= {"own": [0.9 * number for number in measured], "own_slope": exponent}
    return {"name": name, "label": LABELS[name], "values": list(values), "series": series}


def make_growth(*sweeps: dict[str, Any]) -> dict[str, Any]:
    return {"format": 1, "benchmark": "growth", "sweeps": list(sweeps)}


FOUR = make_growth(
    make_sweep("members", [1, 2, 4, 8, 16]),
    make_sweep("targets", [10, 50, 200, 800, 2000], exponent=1.3),
    make_sweep("templates", [1, 2, 4, 8], exponent=0.2),
    make_sweep("batch_size", [8, 16, 32, 64, 128, 256], exponent=-0.1),
)
CASES = {
    "four sweeps": FOUR,
    "one sweep": make_growth(make_sweep("targets", [10, 2000])),
    "one point": make_growth(make_sweep("members", [4]), make_sweep("templates", [1, 2])),
}
each_case = pytest.mark.parametrize("case", CASES)


def as_type(content: dict[str, Any]) -> Growth:
    return content_as(Growth, content, Path("growth.json"), "measure again")


@cache
def drawn(case: str) -> Figure:
    """The figure of a case, laid out; tests read it and change nothing."""
    figure = growth_curves(as_type(CASES[case]))
    figure.draw_without_rendering()
    return figure


@each_case
def test_every_number_is_drawn(case: str) -> None:
    figure = drawn(case)
    cells = with_gid(figure, "slopes")[0].get_celld()
    for column, sweep in enumerate(CASES[case]["sweeps"]):
        series = sweep["series"]["step_ms"]
        (measured,) = with_gid(figure, f"{sweep['name']} measured")
        assert measured.get_xdata().tolist() == sweep["values"]
        assert measured.get_ydata().tolist() == pytest.approx(series["measured"])
        (paper,) = with_gid(figure, f"{sweep['name']} on paper")
        assert paper.get_ydata().tolist() == pytest.approx([series["measured"][0] * own for own in series["on_paper"]])
        (own,) = with_gid(figure, f"{sweep['name']} own")
        assert own.get_ydata().tolist() == pytest.approx(series["own"])
        for line in (measured, paper, own):
            points = np.column_stack([line.get_xdata(), line.get_ydata()])
            assert all(line.axes.viewLim.contains(*point) for point in points)
        assert cells[0, column].get_text().get_text() == sweep["label"]
        for row, one in enumerate(sweep["series"].values(), 1):
            expected = "one point" if one["slope"] is None else f"{one['slope']:.2f} (1.00)"
            assert cells[row, column].get_text().get_text() == expected


@each_case
def test_panels_and_rows_are_named(case: str) -> None:
    figure = drawn(case)
    *panels, _ = figure.axes
    cells = with_gid(figure, "slopes")[0].get_celld()
    assert [cells[row, -1].get_text().get_text() for row in range(1, 6)] == ROWS
    assert [axes.get_ylabel() for axes in panels] == ["step (ms)"] + [""] * (len(panels) - 1)
    assert [axes.get_xlabel() for axes in panels] == [sweep["label"] for sweep in CASES[case]["sweeps"]]
    assert {(axes.get_xscale(), axes.get_yscale()) for axes in panels} == {("log", "log")}
    assert legend_texts(figure) == ["shared bank", "the same members, own weights", "the bank on paper"]


@each_case
def test_texts_stand_apart_and_inside(case: str) -> None:
    figure = drawn(case)
    *panels, table = figure.axes
    below = [text for axes in panels for text in (*axes.get_xticklabels(), axes.xaxis.label)]
    beside = [*panels[0].get_yticklabels(), panels[0].yaxis.label]
    cells = [cell.get_text() for cell in with_gid(figure, "slopes")[0].get_celld().values()]
    boxes = drawn_boxes([text for text in (*below, *beside, *cells) if text.get_text()])
    assert_apart(boxes)
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.width + 1 for box in boxes)
    assert all(axes.get_window_extent().height > 0.2 * figure.bbox.height for axes in panels)
    (legend,) = figure.legends
    frames = [axes.get_window_extent() for axes in (*panels, table)]
    assert all(not legend.get_window_extent().overlaps(frame) for frame in frames)
    assert legend.get_window_extent().x0 >= -1


def test_the_command_draws_the_folder_of_a_growth_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "growth.json").write_text(json.dumps(FOUR))
    assert draw_benchmark(monkeypatch, tmp_path) == 0
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["growth_curves.png"]


@pytest.mark.parametrize("value", [-5, [None], {"a": [[]]}, float("nan")], ids=lambda value: f"{value!r:.9}")
@pytest.mark.parametrize("path", ["values", "series.step_ms.measured", "series.plan_s", "label"])
def test_a_file_that_was_edited(
    path: str, value: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(json.dumps(FOUR))
    *way, last = path.split(".")
    spot = content["sweeps"][0]
    for part in way:
        spot = spot[part]
    spot[last] = value
    (tmp_path / "growth.json").write_text(json.dumps(content))
    assert draw_benchmark(monkeypatch, tmp_path) == 2
    assert f"growth.json is damaged (sweeps.0.{path}" in capsys.readouterr().err
    assert not (tmp_path / "figures").exists()


def test_missing_series_and_other_folders_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert draw_benchmark(monkeypatch, tmp_path) == 2
    assert "holds none of growth.json, npas.json, learned_widths.json" in capsys.readouterr().err
    content = json.loads(json.dumps(FOUR))
    del content["sweeps"][1]["series"]["plan_s"]
    (tmp_path / "growth.json").write_text(json.dumps(content))
    assert draw_benchmark(monkeypatch, tmp_path) == 2
    assert "growth.json is damaged (sweeps.1: needs the series plan_s): measure again" in capsys.readouterr().err


def test_plot_names_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "growth.json").write_text(json.dumps(FOUR))
    assert superweights(monkeypatch, "plot", tmp_path) == 2
    shown = capsys.readouterr().err.replace("\n", " ")
    assert f"is of a benchmark, not of a run: python benchmarks/draw.py {tmp_path} draws it" in shown
    assert not (tmp_path / "figures").exists()


def test_a_file_that_holds_no_growth_is_refused() -> None:
    with pytest.raises(swe.SuperWeightError, match='must hold "format": 1; got None: measure again'):
        growth_curves(as_type({"sweeps": FOUR["sweeps"]}))
    with pytest.raises(swe.SuperWeightError, match="holds no sweep to draw"):
        growth_curves(as_type(make_growth()))
