"""Accuracy against compute: every subset, the best ones joined, each member by name."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from superweight_ensembles.report.figures.arms import Arm, Point, Results, pareto_front, read_arms
from superweight_ensembles.report.figures.labels import PointLabel, place_labels
from superweight_ensembles.report.figures.scales import accuracy_axis, flops_axis
from superweight_ensembles.report.figures.style import (
    COLUMN_INCHES,
    MUTED,
    draw_markers,
    new_figure,
    outside_legend,
    plain_text,
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
    _legend(figure, arms)
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


def _legend(figure: Figure, arms: Sequence[Arm]) -> None:
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
