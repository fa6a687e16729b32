"""Tasks that are harder and harder: the widths that networks learn, from several starts, beside fixed widths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.report.figures.style import (
    INK,
    MUTED,
    PAGE_INCHES,
    TEXT_POINTS,
    accuracy_axis,
    counts_axis,
    draw_markers,
    new_figure,
    outside_legend,
    plain_text,
    run_color,
    run_marker,
    style_axes,
)

LEARNED_WIDTHS_FORMAT = 1
_FIXED = "#4D4D4D"
_DASHES = (0, (4, 2))

Cell = Mapping[str, Any]


@plain_text
def learned_widths(measured: Mapping[str, Any]) -> Figure:
    """A column a task. Above: hidden neurons by epoch (both log), a line a seed, a colour a start. Below: test accuracy
    (per cent) by hidden neurons, of fixed widths (mean over seeds, bars are deviations) and of each learned one.

    A dashed line is the width that the published configurations carry. Artists carry a ``gid``: ``RATE width``,
    ``published``, ``fixed``, ``fixed deviation``, ``RATE accuracy``.

    Args:
        measured: Parsed ``learned_widths.json`` of benchmarks/learned_widths.py.

    Raises:
        SuperWeightError: A file of another format, or without a cell.
    """
    if measured.get("format") != LEARNED_WIDTHS_FORMAT:
        raise SuperWeightError(
            f'the file of learned widths must hold "format": {LEARNED_WIDTHS_FORMAT}; got {measured.get("format")!r}: '
            "measure again"
        )
    cells: Sequence[Cell] = measured["cells"]
    if not cells:
        raise SuperWeightError("the file of learned widths holds no cell to draw: measure one first")
    tasks = list(dict.fromkeys(cell["task"] for cell in cells))
    rates = list(dict.fromkeys(one["rate"] for cell in cells for one in cell["learned"]))
    figure = new_figure(PAGE_INCHES, 4.6)
    panels = figure.subplots(2, len(tasks), sharey="row", squeeze=False)
    widths = [size for cell in cells for one in cell["learned"] for _, size in one["history"]]
    for column, task in enumerate(tasks):
        found = [cell for cell in cells if cell["task"] == task]
        above, below = panels[0, column], panels[1, column]
        style_axes(above, xlabel="epoch", ylabel="" if column else "hidden neurons")
        above.set_title(task.replace("_", " "), fontsize=TEXT_POINTS, color=INK)
        published = measured.get("published_widths", {}).get(task)
        _draw_histories(above, found, rates, published)
        counts_axis(above, "y", [*widths, *measured.get("published_widths", {}).values()])
        counts_axis(above, "x", [epoch for cell in found for one in cell["learned"] for epoch, _ in one["history"]])
        style_axes(below, xlabel="hidden neurons", ylabel="" if column else "test accuracy (%)")
        _draw_accuracies(below, found, rates)
        counts_axis(below, "x", [one["width"] for cell in cells for kind in ("learned", "fixed") for one in cell[kind]])
    accuracy_axis(
        panels[1, 0],
        [100 * one["test"]["accuracy"] for cell in cells for kind in ("learned", "fixed") for one in cell[kind]],
    )
    outside_legend(figure, _handles(cells, rates, measured), loc="outside upper center", columns=4)
    return figure


def _draw_histories(axes: Axes, cells: Sequence[Cell], rates: Sequence[float], published: int | None) -> None:
    if published is not None:
        axes.axhline(published, color=INK, linewidth=0.9, linestyle=_DASHES, zorder=2, gid="published")
    for cell in cells:
        for one in cell["learned"]:
            color = run_color(rates.index(one["rate"]))
            axes.plot(*zip(*one["history"]), color=color, linewidth=0.9, zorder=3, gid=f"{one['rate']:g} width")


def _draw_accuracies(axes: Axes, cells: Sequence[Cell], rates: Sequence[float]) -> None:
    by_width: dict[int, list[float]] = {}
    for cell in cells:
        for one in cell["fixed"]:
            by_width.setdefault(one["width"], []).append(100 * one["test"]["accuracy"])
    means = [(width, fmean(found)) for width, found in sorted(by_width.items())]
    axes.plot(*zip(*means), color=_FIXED, marker="s", markersize=3.5, linewidth=1.0, zorder=3, gid="fixed")
    for width, found in by_width.items():
        if len(found) > 1:
            mean, deviation = fmean(found), stdev(found)
            ends = [mean - deviation, mean + deviation]
            axes.plot([width, width], ends, color=_FIXED, linewidth=1.0, zorder=2.9, gid="fixed deviation")
    for place, rate in reversed(list(enumerate(rates))):
        points = [
            (one["width"], 100 * one["test"]["accuracy"])
            for cell in cells
            for one in cell["learned"]
            if one["rate"] == rate
        ]
        if points:
            look: dict[str, Any] = {"color": run_color(place), "marker": run_marker(place)}
            draw_markers(axes, points, **look, gid=f"{rate:g} accuracy", zorder=5 - place / 10)


def _handles(cells: Sequence[Cell], rates: Sequence[float], measured: Mapping[str, Any]) -> list[Line2D]:
    starts = {one["rate"]: one["start"] for cell in cells for one in cell["learned"]}
    handles = [
        Line2D(
            [], [], color=run_color(place), marker=run_marker(place), markersize=5, markeredgecolor="white",
            markeredgewidth=0.5, linewidth=0.9, label=f"learned, from {starts[rate]:,} neurons",
        )
        for place, rate in enumerate(rates)
    ]  # fmt: skip
    handles.append(Line2D([], [], color=_FIXED, marker="s", markersize=3.5, linewidth=1.0, label="fixed width"))
    if measured.get("published_widths"):
        handles.append(Line2D([], [], color=INK, linewidth=0.9, linestyle=_DASHES, label="published width"))
    networks = Counter((cell["task"], one["rate"]) for cell in cells for one in cell["learned"])
    counts = sorted(set(networks.values()))
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    meaning = "one seed" if counts == [1] else f"{seeds} seeds, bar: deviation"
    handles.append(Line2D([], [], color=MUTED, marker="o", markersize=4, linewidth=0, label=meaning))
    return handles
