"""How time and memory grow with members, targets, templates and batch, beside what they should on paper."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.report.figures.style import (
    INK,
    MUTED,
    PAGE_INCHES,
    SMALL_POINTS,
    TEXT_POINTS,
    arm_color,
    arm_marker,
    log_ticks,
    new_figure,
    outside_legend,
    plain_text,
    quantity,
    style_axes,
)

GROWTH_FORMAT = 1
_TICKS = 4
_ROWS = {  # series of growth.json: (label, what a unit of the axis is of a unit of the file)
    "step_ms": ("step (ms)", 1.0),
    "generation_ms": ("generation (ms)", 1.0),
    "peak_bytes": ("peak memory (MB)", 1e-6),
    "plan_s": ("plan (ms)", 1e3),
    "plan_and_build_s": ("plan and build (ms)", 1e3),
}
_LINES = ("measured", "own", "on paper")


@plain_text
def growth_curves(growth: Mapping[str, Any]) -> Figure:
    """Step time, generation time, peak memory and planning time, a row each; a column a sweep; both axes logarithmic.

    Dots on a line are measured, of the bank and, where there are any, of the members' own weights; the dashed line
    starts at the first dot of the bank and grows as it should on paper. The number in a corner is the slope of the
    bank's upper half; 1 is linear. Artists carry a ``gid``: ``members step_ms measured``, ``... own``,
    ``... on paper``, ``... slope``.

    Args:
        growth: Parsed ``growth.json``.

    Raises:
        SuperWeightError: A file of another format, or without a sweep.
    """
    sweeps = _sweeps(growth)
    figure = new_figure(max(PAGE_INCHES * len(sweeps) / 4, 2.6), 1.2 * len(_ROWS) + 0.8)
    panels = figure.subplots(len(_ROWS), len(sweeps), sharex="col", sharey="row", squeeze=False)
    for row, (key, (label, unit)) in enumerate(_ROWS.items()):
        drawn = [
            number
            for sweep, axes in zip(sweeps, panels[row])
            for number in _draw(axes, sweep["name"], key, _scaled(sweep, key, unit), sweep["series"][key]["slope"])
        ]
        for column, axes in enumerate(panels[row]):
            style_axes(axes, ylabel=label if column == 0 else "")
            axes.tick_params(labelleft=column == 0)
        _limit(panels[row][0], "y", drawn, room=1.6)
    for sweep, axes in zip(sweeps, panels[-1]):
        axes.set_xlabel(sweep["label"], fontsize=TEXT_POINTS, color=INK)
        _limit(axes, "x", [float(value) for value in sweep["values"]], room=1.25)
    figure.align_ylabels(panels[:, 0])
    outside_legend(figure, _handles(), loc="outside upper center", columns=4)
    return figure


def _sweeps(growth: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if growth.get("format") != GROWTH_FORMAT:
        raise SuperWeightError(
            f'the growth file must hold "format": {GROWTH_FORMAT}; got {growth.get("format")!r}: measure again'
        )
    if not growth.get("sweeps"):
        raise SuperWeightError("the growth file holds no sweep to draw: measure one first")
    return list(growth["sweeps"])


def _scaled(sweep: Mapping[str, Any], key: str, unit: float) -> dict[str, list[tuple[float, float]]]:
    """The points of each line of a panel, in the units of the axes."""
    series = sweep["series"][key]
    first = series["measured"][0]
    lines = {
        "measured": series["measured"],
        "own": series.get("own", []),
        "on paper": [first * growth for growth in series["on_paper"]],
    }
    return {name: [(float(x), unit * y) for x, y in zip(sweep["values"], ys)] for name, ys in lines.items()}


def _draw(
    axes: Axes, sweep: str, key: str, lines: Mapping[str, Sequence[tuple[float, float]]], slope: float | None
) -> list[float]:
    """Draw a panel; returns every height in it."""
    for name in _LINES:
        if lines[name]:
            axes.plot(*zip(*lines[name]), **_look(name), gid=f"{sweep} {key} {name}")
    if slope is not None:
        axes.annotate(
            f"slope {round(slope, 2) + 0:.2f}",  # adding 0 makes -0.00 of a tiny slope 0.00
            (0, 1),
            xycoords="axes fraction",
            xytext=(4, -2),
            textcoords="offset points",
            ha="left",
            va="top",
            fontsize=SMALL_POINTS,
            color=INK,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
            gid=f"{sweep} {key} slope",
        )
    return [height for points in lines.values() for _, height in points]


def _limit(axes: Axes, which: str, values: Sequence[float], room: float) -> None:
    """A logarithmic axis over these values, its ticks plain numbers."""
    low, high = min(values) / room, max(values) * room
    axis = axes.xaxis if which == "x" else axes.yaxis
    if which == "x":
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        ticks = list(values[:: math.ceil(len(values) / _TICKS)])
    else:
        axes.set_yscale("log")
        axes.set_ylim(low, high * 1.6)
        ticks = log_ticks(low, high)
        if math.log10(high / low) > 2.5:
            ticks = [tick for tick in ticks if math.log10(tick).is_integer()]
        ticks = ticks[:: math.ceil(len(ticks) / _TICKS)]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda tick, _: quantity(tick)))


def _look(name: str) -> dict[str, Any]:
    if name == "on paper":
        return {"color": MUTED, "linestyle": (0, (3, 1.5)), "linewidth": 1.0, "zorder": 2.5}
    arm = "shared" if name == "measured" else "independent"
    return {
        "color": arm_color(arm, 0),
        "marker": arm_marker(arm, 0),
        "markersize": 4 if arm == "shared" else 3,
        "markeredgecolor": "white",
        "markeredgewidth": 0.4,
        "linewidth": 1.3 if arm == "shared" else 0.8,
        "zorder": 4 if arm == "shared" else 3,
    }


def _handles() -> list[Line2D]:
    names = {"measured": "shared bank", "own": "the same members, own weights", "on paper": "the bank on paper"}
    return [Line2D([], [], **_look(name), label=label) for name, label in names.items()]
