"""Accuracy against compute: every subset, the best ones joined, each member by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.transforms import Bbox, blended_transform_factory

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.report.figures.labels import PointLabel, place_labels
from superweight_ensembles.report.figures.points import Arm, Point, Results, arm_named, pareto_front, read_arms
from superweight_ensembles.report.figures.style import (
    COLUMN_INCHES,
    INK,
    MUTED,
    SMALL_POINTS,
    accuracy_axis,
    arm_color,
    draw_markers,
    flops_axis,
    new_figure,
    outside_legend,
    parameters_axis,
    plain_text,
    quantity,
    run_color,
    run_marker,
    style_axes,
)


@plain_text
def accuracy_flops(results: Results) -> Figure:
    """Test accuracy (per cent) against FLOPs per image (log), for each arm of a run.

    Small dots are all subsets of members, large markers the members alone, the star all members; the line
    joins the subsets that no cheaper or equally costly one beats. Artists carry a ``gid`` to restyle them by:
    ``shared subsets``, ``shared front``, ``shared members``, ``shared ensemble``, ``label``.

    Args:
        results: Parsed ``results.json`` of a run.

    Raises:
        SuperWeightError: Results of another format, or without an arm.
    """
    arms = read_arms(results)
    figure = new_figure(COLUMN_INCHES, 3.2)
    axes = figure.add_subplot()
    points = [point for arm in arms for point in (*arm.subsets, arm.ensemble, *arm.members.values())]
    xlabel = flops_axis(axes, [flops for flops, _ in points])
    accuracy_axis(axes, [percent for _, percent in points])
    style_axes(axes, xlabel=xlabel, ylabel="test accuracy (%)")
    for twins in _twins(arms):  # a thin line from a member to itself in another arm: one name does for both
        axes.plot(*zip(*twins), color=MUTED, linewidth=0.6, linestyle=(0, (1, 1.5)), zorder=1.5, gid="same member")
    for below, arm in enumerate(arms):
        draw_arm(axes, arm, larger=len(arms) - 1 - below)  # what lies below is larger: equal results stay visible
    _flops_legend(figure, arms)
    place_labels(
        axes,
        _member_labels(arms),
        markers=[point for arm in arms for point in (*arm.members.values(), arm.ensemble)],
        dots=[point for arm in arms for point in arm.subsets],
        lines=[pareto_front(arm.subsets) for arm in arms] + _twins(arms),
    )
    return figure


def draw_arm(axes: Axes, arm: Arm, larger: int = 0) -> None:
    """Subsets, front, members and full ensemble of one arm."""
    subsets = arm.subsets
    faint = 0.45 if len(subsets) <= 63 else 0.28
    xs, ys = zip(*subsets)
    axes.scatter(xs, ys, s=5, color=arm.color, alpha=faint, linewidths=0, marker=arm.marker, gid=f"{arm.name} subsets")
    axes.plot(
        *zip(*pareto_front(subsets)),
        color=arm.color,
        linewidth=1.3,
        marker=".",
        markersize=4,
        zorder=3,
        gid=f"{arm.name} front",
    )
    draw_markers(
        axes, arm.members.values(), color=arm.color, marker=arm.marker, size=26 + 20 * larger, zorder=4 - 0.1 * larger,
        gid=f"{arm.name} members",
    )  # fmt: skip
    draw_markers(
        axes,
        [arm.ensemble],
        color=arm.color,
        marker="*",
        size=120 + 60 * larger,
        zorder=5 - 0.1 * larger,
        gid=f"{arm.name} ensemble",
    )


def _twins(arms: Sequence[Arm]) -> list[list[Point]]:
    """The points of each member in the arms that have it."""
    names = dict.fromkeys(name for arm in arms for name in arm.members)
    return [sorted(arm.members[name] for arm in arms if name in arm.members) for name in names]


def _member_labels(arms: Sequence[Arm]) -> list[PointLabel]:
    """One label a member, at the shared arm; again only where another arm's member costs other FLOPs."""
    labels = []
    named: dict[str, list[Point]] = {}
    for arm in reversed(arms):
        for name, (flops, percent) in arm.members.items():
            if all(abs(flops / other - 1) > 0.1 for other, _ in named.get(name, [])):
                labels.append(PointLabel(text=name, x=flops, y=percent))
            named.setdefault(name, []).append((flops, percent))
    return labels


def _flops_legend(figure: Figure, arms: Sequence[Arm]) -> None:
    handles = [
        Line2D([], [], color=arm.color, marker=arm.marker, markersize=5, linewidth=1.3, label=arm.label)
        for arm in reversed(arms)
    ]
    color = arms[-1].color if len(arms) == 1 else MUTED
    handles += [
        Line2D([], [], color=color, marker="*", markersize=9, linewidth=0, label="all members"),
        Line2D([], [], color=color, marker=".", markersize=4, linewidth=0, label="a subset"),
    ]
    outside_legend(figure, handles, loc="outside upper center", columns=4)


# FOLDED report.figures.parameters_figure: Accuracy against size: what the shared bank saves beside the members apart.

_BAND = 0.30
_ARROW_HEIGHT = 0.055


@plain_text
def accuracy_parameters(results: Results) -> Figure:
    """Test accuracy (per cent) against trainable parameters: the ensembles, and each independent member.

    An arrow states what the shared bank saves beside the members apart. Without an independent arm the
    members apart are a vertical line. Artists carry a ``gid``: ``shared ensemble``, ``independent members``,
    ``saving``, ``label``.

    Args:
        results: Parsed ``results.json`` of a run.

    Raises:
        SuperWeightError: Results of another format, or without an arm.
    """
    arms = read_arms(results)
    stars = {arm.name: (float(arm.num_parameters), arm.ensemble[1]) for arm in arms}
    singles = _independent_members(arm_named(arms, "independent"))
    shared = arm_named(arms, "shared")
    apart = float(shared.content["independent_parameters"]) if shared else 0.0
    figure = new_figure(COLUMN_INCHES, 3.0)
    axes = figure.add_subplot()
    drawn = [*stars.values(), *singles.values()]
    counts = [count for count, _ in drawn] + ([apart] if apart else [])
    xlabel = parameters_axis(axes, counts)
    accuracy_axis(axes, [percent for _, percent in drawn], below=_BAND if apart else 0.0)
    style_axes(axes, xlabel=xlabel, ylabel="test accuracy (%)")
    if singles:
        draw_markers(axes, singles.values(), color=arm_color("independent", 0), marker="s", gid="independent members")
    for arm in arms:
        draw_markers(
            axes, [stars[arm.name]], color=arm.color, marker="*", size=140, zorder=5, gid=f"{arm.name} ensemble"
        )
    _parameters_legend(figure, arms, bool(singles))
    taken = []
    if shared:
        independent = stars.get("independent")
        taken = _saving(axes, stars["shared"], (apart, independent[1] if independent else None))
    place_labels(
        axes,
        [PointLabel(text=name, x=count, y=percent) for name, (count, percent) in singles.items()],
        markers=drawn,
        boxes=taken,
    )
    return figure


def _independent_members(arm: Arm | None) -> dict[str, Point]:
    """(Parameters, accuracy in per cent) of each member apart."""
    if arm is None:
        return {}
    return {
        member["name"]: (float(member["num_parameters"]), 100 * float(member["metrics"]["accuracy"]))
        for member in arm.content["members"]
    }


def _saving(axes: Axes, shared: Point, apart: tuple[float, float | None]) -> list[Bbox]:
    """An arrow under the data from the members apart to the shared bank; returns the pixels it takes."""
    across = blended_transform_factory(axes.transData, axes.transAxes)
    count, percent = apart
    dotted = {"linewidth": 0.7, "linestyle": (0, (1, 1.5)), "zorder": 1.5}
    bottom, top = axes.get_ylim()
    for x, y, color in (
        (shared[0], shared[1], arm_color("shared", 0)),
        (count, top if percent is None else percent, arm_color("independent", 0)),
    ):
        height = (y - bottom) / (top - bottom)
        axes.plot([x, x], [_ARROW_HEIGHT - 0.03, height], transform=across, color=color, **dotted)  # type: ignore[arg-type]
    change = 100 * (shared[0] / count - 1)
    sign = "\N{MINUS SIGN}" if change < 0 else "+"
    size = f"{abs(change):.0f}" if abs(change) >= 9.5 else f"{abs(change):.1f}"
    text = f"{sign}{size} % parameters" if abs(change) >= 0.05 else "as many parameters"
    if abs(change) >= 0.05:
        arrow = {"arrowstyle": "-|>", "color": INK, "linewidth": 0.9, "mutation_scale": 8, "shrinkA": 0, "shrinkB": 0}
        axes.annotate(
            "",
            xy=(shared[0], _ARROW_HEIGHT),
            xytext=(count, _ARROW_HEIGHT),
            xycoords=across,
            textcoords=across,
            arrowprops=arrow,
            gid="saving arrow",
        )
    note = axes.text(
        0.5,
        _ARROW_HEIGHT + 0.03,
        text,
        transform=axes.transAxes,
        ha="center",
        va="bottom",
        fontsize=SMALL_POINTS,
        color=INK,
        zorder=6,
        gid="saving",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85},
    )
    note.set_in_layout(False)
    _center_inside(axes, note, (shared[0], count))
    box = note.get_window_extent()
    frame = axes.get_window_extent()
    return [Bbox.from_extents(frame.x0, frame.y0, frame.x1, box.y1)]


def _center_inside(axes: Axes, note: Text, ends: Point) -> None:
    """Centre a text over its arrow, moved as little as keeps it inside the axes."""
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    frame = axes.get_window_extent()
    middle = sum(float(axes.transData.transform((x, axes.get_ylim()[0]))[0]) for x in ends) / 2
    half = note.get_window_extent().width / 2 / frame.width
    place = (middle - frame.x0) / frame.width
    note.set_x(min(max(place, half + 0.01), 0.99 - half))


def _parameters_legend(figure: Figure, arms: list[Arm], singles: bool) -> None:
    handles = [
        Line2D([], [], color=arm.color, marker="*", markersize=9, linewidth=0, label=_ensemble_label(arm))
        for arm in reversed(arms)
    ]
    if singles:
        grey = arm_color("independent", 0)
        handles.append(
            Line2D([], [], color=grey, marker="s", markersize=5, linewidth=0, label="one member"),
        )
    else:
        handles.append(
            Line2D(
                [], [], color=arm_color("independent", 0), linestyle=(0, (1, 1.5)), linewidth=0.9, label="members apart"
            )
        )
    outside_legend(figure, handles, loc="outside upper center", columns=3)


def _ensemble_label(arm: Arm) -> str:
    return {"shared": "shared ensemble", "independent": "independent ensemble"}.get(arm.name, arm.label)


# FOLDED report.figures.comparison_figures: Several runs in one picture: accuracy against compute, and against size.


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
