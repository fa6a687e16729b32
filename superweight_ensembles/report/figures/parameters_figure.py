"""Accuracy against size: what the shared bank saves beside the members apart."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.transforms import Bbox, blended_transform_factory

from superweight_ensembles.report.figures.arms import Arm, Point, Results, arm_named, read_arms
from superweight_ensembles.report.figures.labels import PointLabel, place_labels
from superweight_ensembles.report.figures.scales import accuracy_axis, parameters_axis
from superweight_ensembles.report.figures.style import (
    COLUMN_INCHES,
    INK,
    SMALL_POINTS,
    arm_color,
    draw_markers,
    new_figure,
    outside_legend,
    plain_text,
    style_axes,
)

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
    _legend(figure, arms, bool(singles))
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


def _legend(figure: Figure, arms: list[Arm], singles: bool) -> None:
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
