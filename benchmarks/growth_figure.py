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
from matplotlib.transforms import Bbox
from pydantic import Field

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.report.figures import style
from superweight_ensembles.storage import Name, Positive

_TICKS = 4
_ROWS = {  # series of growth.json: its name in the table
    "step_ms": "step",
    "generation_ms": "generation",
    "peak_bytes": "peak memory",
    "plan_s": "plan",
    "plan_and_build_s": "plan and build",
}

Numbers = Annotated[tuple[Positive, ...], Field(max_length=1000)]


@dataclass(frozen=True, kw_only=True)
class Series:
    """What one quantity did over a sweep; ``on_paper`` holds multiples of the first point."""

    measured: Annotated[Numbers, Field(min_length=1)]
    own: Numbers = ()
    on_paper: Numbers
    slope: float | None
    slope_on_paper: float


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


@style.styled
def growth_curves(growth: Growth) -> Figure:
    """Step time against each thing that grows, both axes logarithmic, above a table of the slopes of every quantity.

    Dots on a line are measured, of the bank and, where there are any, of the members' own weights; the dashed line
    starts at the first dot of the bank and grows as it should on paper. A slope is that of the bank's upper half, 1
    where it grows in proportion; beside it the one on paper. Artists carry a ``gid``: ``members measured``,
    ``members own``, ``members on paper``, ``slopes``.
    """
    sweeps = growth.sweeps
    if not sweeps:
        raise SuperWeightError("the growth file holds no sweep to draw: measure one first")
    figure = style.new_figure(
        max(style.PAGE_INCHES * len(sweeps) / 4, 3.6), 3.6,
        title="How time and memory grow with the members, targets, templates and images",
        caption="Above: step time, log axes. Below: slope of the bank's upper half (on paper); 1 in proportion, "
        "0 not at all.",
    )  # fmt: skip
    grid = figure.add_gridspec(2, len(sweeps), height_ratios=(1.6, 1))
    panels = [figure.add_subplot(grid[0, column]) for column in range(len(sweeps))]
    drawn = [height for sweep, axes in zip(sweeps, panels) for height in _draw(axes, sweep)]
    for sweep, axes in zip(sweeps, panels):
        style.style_axes(axes, xlabel=sweep.label, ylabel="step (ms)" if axes is panels[0] else "")
        _limit(axes, "x", sweep.values, room=1.25)
        _limit(axes, "y", drawn, room=1.6)
        axes.tick_params(labelleft=axes is panels[0])
    _write_slopes(figure.add_subplot(grid[1, :]), sweeps)
    names = {"measured": "shared bank", "own": "the same members, own weights", "on paper": "the bank on paper"}
    handles = [Line2D([], [], **_look(name), label=label) for name, label in names.items()]
    style.outside_legend(figure, handles, loc="outside lower center", columns=3)
    return figure


def _draw(axes: Axes, sweep: Sweep) -> list[float]:
    """Draw the step time of a sweep; returns every height in the panel."""
    series = sweep.series["step_ms"]
    lines: Mapping[str, Sequence[float]] = {
        "measured": series.measured,
        "own": series.own,
        "on paper": [series.measured[0] * growth for growth in series.on_paper],
    }
    for name, heights in lines.items():
        if heights:
            axes.plot(sweep.values, heights, **_look(name), gid=f"{sweep.name} {name}")
    return [height for heights in lines.values() for height in heights]


def _write_slopes(axes: Axes, sweeps: Sequence[Sweep]) -> None:
    axes.set_axis_off()
    rows = [[_slopes(sweep.series[key]) for sweep in sweeps] for key in _ROWS]
    table = axes.table(
        rows, rowLabels=list(_ROWS.values()), colLabels=[sweep.label for sweep in sweeps], cellLoc="center",
        edges="horizontal", bbox=Bbox.from_bounds(0.12, 0, 0.88, 1), gid="slopes",
    )  # fmt: skip
    table.auto_set_font_size(False)
    table.set_fontsize(style.SMALL_POINTS)
    for cell in table.get_celld().values():
        cell.set(edgecolor=style.GRID, linewidth=0.6)
        cell.get_text().set_color(style.INK)


def _slopes(series: Series) -> str:
    if series.slope is None:
        return "one point"
    measured, paper = (f"{round(slope, 2) + 0:.2f}" for slope in (series.slope, series.slope_on_paper))  # no -0.00
    return f"{measured} ({paper})"


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
