"""Several runs in one picture: accuracy against compute, and against size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.report.figures.arms import Arm, Point, Results, pareto_front, read_arms
from superweight_ensembles.report.figures.labels import PointLabel, place_labels
from superweight_ensembles.report.figures.scales import accuracy_axis, flops_axis, parameters_axis, quantity
from superweight_ensembles.report.figures.style import (
    COLUMN_INCHES,
    MUTED,
    draw_markers,
    new_figure,
    outside_legend,
    plain_text,
    run_color,
    run_marker,
    style_axes,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One arm of one run. The marker tells the run; the colour too, but independent members are grey."""

    run: str
    arm: Arm
    color: str
    marker: str

    @property
    def gid(self) -> str:
        return f"{self.run} {self.arm.name}"

    @property
    def leads(self) -> bool:
        """Whether it is the arm that stands for its run in legends."""
        return self.color != self.arm.color or self.arm.name == "shared"


@plain_text
def compare_flops(results: Sequence[Results]) -> Figure:
    """Test accuracy (per cent) against FLOPs per image (log): the best subsets of each arm of each run.

    Args:
        results: Parsed ``results.json`` of the runs.

    Raises:
        SuperWeightError: No run, results of another format, or without an arm.
    """
    series = _series(results)
    figure = new_figure(COLUMN_INCHES, 3.1 + 0.1 * len(results))
    axes = figure.add_subplot()
    fronts = [pareto_front(entry.arm.subsets) for entry in series]
    points = [point for front in fronts for point in front] + [entry.arm.ensemble for entry in series]
    xlabel = flops_axis(axes, [flops for flops, _ in points])
    accuracy_axis(axes, [percent for _, percent in points])
    style_axes(axes, xlabel=xlabel, ylabel="test accuracy (%)")
    for order, (entry, front) in enumerate(zip(series, fronts)):
        axes.plot(
            *zip(*front),
            color=entry.color,
            linestyle="-" if entry.leads else (0, (3, 1.5)),
            linewidth=1.3,
            marker=entry.marker,
            markersize=4,
            markeredgecolor="white",
            markeredgewidth=0.4,
            zorder=4 + entry.leads - 0.01 * order,
            gid=f"{entry.gid} front",
        )
        draw_markers(
            axes,
            [entry.arm.ensemble],
            color=entry.color,
            marker="*",
            size=110,
            zorder=6 + entry.leads - 0.01 * order,
            gid=f"{entry.gid} ensemble",
        )
    handles = [
        Line2D([], [], color=entry.color, linewidth=1.3, marker=entry.marker, markersize=5, label=entry.run)
        for entry in series
        if entry.leads
    ]
    for label, color in _other_arms(series):
        handles.append(Line2D([], [], color=color, linewidth=1.3, linestyle=(0, (3, 1.5)), label=label))
    handles.append(Line2D([], [], color=MUTED, marker="*", markersize=9, linewidth=0, label="all members"))
    outside_legend(figure, handles, loc="outside lower center", columns=3)
    return figure


@plain_text
def compare_parameters(results: Sequence[Results]) -> Figure:
    """Test accuracy (per cent) of the full ensembles against their trainable parameters.

    The shared ensemble carries the name of its run; a thin line joins the arms of one run.

    Args:
        results: Parsed ``results.json`` of the runs.

    Raises:
        SuperWeightError: No run, results of another format, or without an arm.
    """
    series = _series(results)
    figure = new_figure(COLUMN_INCHES, 3.0)
    axes = figure.add_subplot()
    points = [(float(entry.arm.num_parameters), entry.arm.ensemble[1]) for entry in series]
    xlabel = parameters_axis(axes, [count for count, _ in points])
    accuracy_axis(axes, [percent for _, percent in points])
    style_axes(axes, xlabel=xlabel, ylabel="test accuracy (%)")
    runs: dict[str, list[Point]] = {}
    for order, (entry, point) in enumerate(zip(series, points)):
        runs.setdefault(entry.run, []).append(point)
        axes.plot(
            *zip(point),
            color=entry.color,
            marker=entry.marker,
            markersize=7,
            markeredgecolor="white",
            markeredgewidth=0.5,
            linewidth=0,
            zorder=4 + entry.leads - 0.01 * order,
            gid=f"{entry.gid} ensemble",
        )
    for own in runs.values():
        axes.plot(*zip(*own), color=MUTED, linewidth=0.6, linestyle=(0, (1, 1.5)), zorder=1.5, gid="same run")
    handles = [Patch(facecolor=color, label=label) for label, color in _other_arms(series)]
    if handles:
        outside_legend(figure, handles, loc="outside upper center", columns=3)
    place_labels(
        axes,
        [
            PointLabel(text=entry.run, x=point[0], y=point[1], color=entry.color)
            for entry, point in zip(series, points)
            if entry.leads
        ],
        markers=points,
        lines=list(runs.values()),
    )
    return figure


def _series(results: Sequence[Results]) -> list[Series]:
    """Arms of the runs, each run's leading one first: the shared arm, or else its first."""
    if not results:
        raise SuperWeightError("a comparison needs at least one run; none was given")
    series = []
    for index, (run, content) in enumerate(zip(_run_names(results), results)):
        for place, arm in enumerate(reversed(read_arms(content))):
            color = run_color(index) if place == 0 else arm.color
            series.append(Series(run=run, arm=arm, color=color, marker=run_marker(index)))
    return series


def _other_arms(series: Sequence[Series]) -> list[tuple[str, str]]:
    """(label, colour) of the arms that lead no run."""
    return list(dict.fromkeys((entry.arm.label, entry.color) for entry in series if not entry.leads))


def _run_names(results: Sequence[Results]) -> list[str]:
    """Names of the runs; where they are equal with their data set, else their size, else a number."""
    names = [str(content.get("name", f"run {index + 1}")) for index, content in enumerate(results)]
    datasets = [str(content.get("dataset", {}).get("name", "")) for content in results]
    sizes = [quantity(read_arms(content)[-1].num_parameters) for content in results]
    numbers = [f"#{index + 1}" for index in range(len(results))]
    for notes in (datasets, sizes, numbers):
        total = Counter(names)
        groups = {name: {note for other, note in zip(names, notes) if other == name} for name in total}
        names = [
            f"{name} {note}" if total[name] > 1 and len(groups[name]) > 1 else name for name, note in zip(names, notes)
        ]
    return names
