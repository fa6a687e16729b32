"""The figure of growth.json: how time and memory grow, beside what they should on paper."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from pydantic import Field

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.report.figures import style
from superweight_ensembles.storage import Name, Positive

_TICKS = 4
_ROWS = {  # series of growth.json: (label, what a unit of the axis is of a unit of the file)
    "step_ms": ("step (ms)", 1.0),
    "generation_ms": ("generation (ms)", 1.0),
    "peak_bytes": ("peak memory (MB)", 1e-6),
    "plan_s": ("plan (ms)", 1e3),
    "plan_and_build_s": ("plan and build (ms)", 1e3),
}


Numbers = Annotated[tuple[Positive, ...], Field(max_length=1000)]


@dataclass(frozen=True, kw_only=True)
class Series:
    """What one quantity did over a sweep; ``on_paper`` holds multiples of the first point."""

    measured: Annotated[Numbers, Field(min_length=1)]
    own: Numbers = ()
    on_paper: Numbers
    slope: float | None


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is drawn of a sweep, which changes one thing."""

    name: Name
    label: Name
    values: Annotated[Numbers, Field(min_length=1)]
    series: dict[Name, Series]

    def __post_init__(self) -> None:
        if missing := [key for key in _ROWS if key not in self.series]:
            raise SuperWeightError(f"needs the series {', '.join(missing)}")


@dataclass(frozen=True, kw_only=True)
class Growth:
    """What is drawn of growth.json, which benchmarks/growth.py writes."""

    format: int = 1
    sweeps: Annotated[tuple[Sweep, ...], Field(max_length=16)]


@style.plain_text
def growth_curves(growth: Growth) -> Figure:
    """Step time, generation time, peak memory and planning time, a row each; a column a sweep; both axes logarithmic.

    Dots on a line are measured, of the bank and, where there are any, of the members' own weights; the dashed line
    starts at the first dot of the bank and grows as it should on paper. The number in a corner is the slope of the
    bank's upper half; 1 is linear. Artists carry a ``gid``: ``members step_ms measured``, ``... own``,
    ``... on paper``, ``... slope``.
    """
    sweeps = growth.sweeps
    if not sweeps:
        raise SuperWeightError("the growth file holds no sweep to draw: measure one first")
    figure = style.new_figure(
        max(style.PAGE_INCHES * len(sweeps) / 4, 2.6), 1.2 * len(_ROWS) + 1.0,
        title="How time and memory grow, a column a thing that grows, logarithmic axes. "
        "Slope of the bank's upper half: 1 in proportion, 0 not at all",
    )  # fmt: skip
    panels = figure.subplots(len(_ROWS), len(sweeps), sharex="col", sharey="row", squeeze=False)
    for row, (key, (label, unit)) in enumerate(_ROWS.items()):
        drawn = [height for sweep, axes in zip(sweeps, panels[row]) for height in _draw(axes, sweep, key, unit)]
        for column, axes in enumerate(panels[row]):
            style.style_axes(axes, ylabel=label if column == 0 else "")
            axes.tick_params(labelleft=column == 0)
        _limit(panels[row][0], "y", drawn, room=1.6)
    for sweep, axes in zip(sweeps, panels[-1]):
        axes.set_xlabel(sweep.label, fontsize=style.TEXT_POINTS, color=style.INK)
        _limit(axes, "x", sweep.values, room=1.25)
    figure.align_ylabels(panels[:, 0])
    names = {"measured": "shared bank", "own": "the same members, own weights", "on paper": "the bank on paper"}
    handles = [Line2D([], [], **_look(name), label=label) for name, label in names.items()]
    style.outside_legend(figure, handles, loc="outside lower center", columns=4)
    return figure


def _draw(axes: Axes, sweep: Sweep, key: str, unit: float) -> list[float]:
    """Draw a panel in the units of its axes; returns every height in it."""
    series = sweep.series[key]
    lines: Mapping[str, Sequence[float]] = {
        "measured": series.measured,
        "own": series.own,
        "on paper": [series.measured[0] * growth for growth in series.on_paper],
    }
    heights = []
    for name, numbers in lines.items():
        points = [(x, unit * y) for x, y in zip(sweep.values, numbers)]
        if points:
            axes.plot(*zip(*points), **_look(name), gid=f"{sweep.name} {key} {name}")
        heights += [height for _, height in points]
    if series.slope is not None:
        axes.annotate(
            f"slope {round(series.slope, 2) + 0:.2f}",  # adding 0 makes -0.00 of a tiny slope 0.00
            (0, 1),
            xycoords="axes fraction",
            xytext=(4, -2),
            textcoords="offset points",
            ha="left",
            va="top",
            fontsize=style.SMALL_POINTS,
            color=style.INK,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
            gid=f"{sweep.name} {key} slope",
        )
    return heights


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
        ticks = style.log_ticks(low, high)
        if math.log10(high / low) > 2.5:
            ticks = [tick for tick in ticks if math.log10(tick).is_integer()]
        ticks = ticks[:: math.ceil(len(ticks) / _TICKS)]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda tick, _: style.quantity(tick)))


def _look(name: str) -> dict[str, Any]:
    if name == "on paper":
        return {"color": style.MUTED, "linestyle": (0, (3, 1.5)), "linewidth": 1.0, "zorder": 2.5}
    arm = "shared" if name == "measured" else "independent"
    return {
        "color": style.arm_color(arm, 0),
        "marker": style.arm_marker(arm, 0),
        "markersize": 4 if arm == "shared" else 3,
        "markeredgecolor": "white",
        "markeredgewidth": 0.4,
        "linewidth": 1.3 if arm == "shared" else 0.8,
        "zorder": 4 if arm == "shared" else 3,
    }
