"""Where the budget goes: templates, coefficients, what stays the members' own, and the members apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from superweight_ensembles.plan import SharingPlan
from superweight_ensembles.report.figures.layers import cluster_looks
from superweight_ensembles.report.figures.style import (
    INK,
    MUTED,
    PAGE_INCHES,
    SMALL_POINTS,
    new_figure,
    outside_legend,
    parameters_axis,
    plain_text,
    quantity,
    style_axes,
)

_OWN = "#7F7F7F"
_COEFFICIENTS = "#262626"
_GREYS = ("#6B6B6B", "#9A9A9A")
_BAR, _STEP = 0.62, 0.42
_SHARED_ROW, _APART_ROW, _FIRST_STEP = 0.0, -1.0, -1.72
_INCHES_A_ROW = 0.42
_LEGEND_COLUMNS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A part of a bar: parameters that go to one thing."""

    label: str
    count: int
    color: str
    hatch: str = ""


def shared_segments(plan: SharingPlan) -> list[Segment]:
    """Parts of the shared bar, left to right; what the budget counts comes before what it does not.

    They sum to the budget; where it counts templates alone, to the budget, coefficients and members' own.
    """
    templates = [
        Segment(
            label=look.label,
            count=sum(plan.clusters[index].num_templates for index in look.clusters),
            color=look.color,
            hatch=look.hatch,
        )
        for look in cluster_looks(plan)
    ]
    rest = [
        Segment(label="coefficients", count=plan.num_coefficients, color=_COEFFICIENTS),
        Segment(label="members' own", count=plan.num_private, color=_OWN),
    ]
    templates_alone = plan.budget_counts == "templates"
    counted = templates if templates_alone else templates + rest
    spent = sum(segment.count for segment in counted)
    unspent = Segment(label="unspent", count=max(plan.budget - spent, 0), color="white", hatch="//////")
    return [*counted, unspent, *(rest if templates_alone else [])]


@plain_text
def budget_split(plan: SharingPlan) -> Figure:
    """Stacked bars of trainable parameters: the shared ensemble by use, the independent members one by one.

    The dashed line is the budget. Rectangles carry a ``gid``: ``shared``, ``independent``, and ``member`` for the
    steps under the independent bar that name its parts.

    Args:
        plan: Sharing plan of an ensemble.
    """
    shared = shared_segments(plan)
    apart = [
        Segment(label=member.name, count=member.num_parameters, color=_GREYS[index % 2])
        for index, member in enumerate(plan.members)
    ]
    steps = [_FIRST_STEP - _STEP * index for index in range(len(apart))]
    bottom, top = steps[-1] - 0.4, 0.72
    legend_rows = -(-len(shared) // _LEGEND_COLUMNS)
    figure = new_figure(PAGE_INCHES, 0.5 + _INCHES_A_ROW * (top - bottom) + 0.17 * legend_rows)
    axes = figure.add_subplot()
    totals = [sum(segment.count for segment in segments) for segments in (shared, apart)]
    xlabel = parameters_axis(axes, [*totals, plan.budget], logarithmic=False)
    axes.set_ylim(bottom, top)
    names = ["shared bank", "independent members", *(segment.label for segment in apart)]
    axes.set_yticks([_SHARED_ROW, _APART_ROW, *steps], names)
    style_axes(axes, xlabel=xlabel, grid="x")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    outside_legend(
        figure, [_swatch(segment) for segment in shared], loc="outside lower center", columns=_LEGEND_COLUMNS
    )
    boxes = _draw_bar(axes, shared, _SHARED_ROW, "shared")
    _draw_bar(axes, apart, _APART_ROW, "independent")
    _draw_budget(axes, plan)
    figure.draw_without_rendering()
    for segment, box in zip(shared, boxes):
        _write_inside(axes, segment, box)
    _beside(axes, totals[1], _APART_ROW)
    _draw_steps(axes, apart, steps)
    return figure


def _draw_bar(axes: Axes, segments: Sequence[Segment], row: float, gid: str) -> list[Rectangle]:
    boxes = []
    left = 0.0
    for segment in segments:
        boxes.append(
            Rectangle(
                (left, row - _BAR / 2),
                segment.count,
                _BAR,
                facecolor=segment.color,
                hatch=segment.hatch,
                edgecolor=_edge(segment),
                linewidth=0.4,
                zorder=2,
                gid=gid,
            )
        )
        axes.add_patch(boxes[-1])
        left += segment.count
    return boxes


def _draw_steps(axes: Axes, apart: Sequence[Segment], steps: Sequence[float]) -> None:
    """A thin bar for each independent member, under its part of the stacked bar."""
    left = 0.0
    for segment, row in zip(apart, steps):
        height = _STEP * 0.62
        axes.add_patch(
            Rectangle(
                (left, row - height / 2),
                segment.count,
                height,
                facecolor=segment.color,
                linewidth=0,
                zorder=2,
                gid="member",
            )
        )
        left += segment.count
        _beside(axes, segment.count, row, left)


def _beside(axes: Axes, count: float, row: float, right: float | None = None) -> None:
    """A count at the right end of its bar."""
    axes.annotate(
        quantity(count),
        (count if right is None else right, row),
        xytext=(3, 0),
        textcoords="offset points",
        ha="left",
        va="center",
        fontsize=SMALL_POINTS,
        color=INK,
        zorder=4,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.9},
    ).set_in_layout(False)


def _draw_budget(axes: Axes, plan: SharingPlan) -> None:
    """The line runs behind the independent bar, where it ends, but over the shared bar that it bounds."""
    look = {"color": INK, "linewidth": 1.1, "linestyle": (0, (4, 2))}
    place, top = [plan.budget] * 2, axes.get_ylim()[1]
    axes.plot(place, [_APART_ROW - _BAR / 2 - 0.1, top], zorder=1.5, gid="budget", **look)  # type: ignore[arg-type]
    axes.plot(place, [_SHARED_ROW - _BAR / 2 - 0.08, top], zorder=3, **look)  # type: ignore[arg-type]
    kind = "template budget" if plan.budget_counts == "templates" else "budget"
    left = plan.budget > 0.7 * axes.get_xlim()[1]
    share = 100 * plan.budget / plan.independent_parameters
    axes.annotate(
        f"{kind} {quantity(plan.budget)} ({share:.0f} % of the members apart)",
        (plan.budget, axes.get_ylim()[1]),
        xytext=(-4 if left else 4, -1),
        textcoords="offset points",
        ha="right" if left else "left",
        va="top",
        fontsize=SMALL_POINTS,
        color=INK,
    )


def _write_inside(axes: Axes, segment: Segment, box: Rectangle) -> None:
    """The count into its segment, if it fits and can be read there."""
    if segment.hatch:
        return
    luminance = sum(weight * part for weight, part in zip((0.3, 0.59, 0.11), to_rgb(segment.color)))
    written = axes.text(
        box.get_x() + box.get_width() / 2,
        box.get_y() + box.get_height() / 2,
        quantity(segment.count),
        ha="center",
        va="center",
        fontsize=SMALL_POINTS,
        color="white" if luminance < 0.6 else INK,
        zorder=4,
    )
    written.set_in_layout(False)
    if written.get_window_extent().width > 0.9 * box.get_window_extent().width:
        written.remove()


def _swatch(segment: Segment) -> Patch:
    return Patch(
        facecolor=segment.color,
        hatch=segment.hatch,
        edgecolor=_edge(segment),
        linewidth=0.4,
        label=f"{segment.label}: {quantity(segment.count)}",
    )


def _edge(segment: Segment) -> str:
    return MUTED if segment.color == "white" else "white"
