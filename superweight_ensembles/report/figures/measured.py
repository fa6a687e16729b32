"""Many ways to an ensemble in one picture: accuracy over seeds, against size and against compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Annotation, Text
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from superweight_ensembles.report.figures.labels import PointLabel, place_labels
from superweight_ensembles.report.figures.points import (
    MeasuredArm,
    Point,
    grouped,
    num_seeds,
    read_measured,
    series_lines,
)
from superweight_ensembles.report.figures.style import (
    COLUMN_INCHES,
    INK,
    MUTED,
    PAGE_INCHES,
    SMALL_POINTS,
    accuracy_axis,
    arm_color,
    balanced,
    draw_markers,
    flops_axis,
    mix,
    new_figure,
    outside_legend,
    parameters_axis,
    plain_text,
    readable,
    style_axes,
)

_FEW, _SHORT = 6, 20
_LABEL_CHARACTERS = 28
_LEADERS_AT_MOST = 4
_SERIES = ("#56B4E9", (0, (3, 1.5)))

Scale = Callable[[Axes, Sequence[float]], str]


@plain_text
def arms_parameters(comparison: Mapping[str, Any]) -> Figure:
    """Test accuracy (per cent, mean over seeds) of each arm against its trainable parameters.

    Bars are standard deviations over seeds, faint dots the seeds. A line joins the shared bank at several budgets,
    and the arms of any other series. Artists carry a ``gid``: ``NAME mean``, ``NAME deviation``, ``NAME seeds``,
    ``SERIES series``, ``label``.

    Args:
        comparison: Parsed ``comparison.json``.

    Raises:
        SuperWeightError: A comparison of another format, without an arm, or with an arm that no seed has run.
    """
    arms = read_measured(comparison)
    lines = {f"{name} series": points for name, points in series_lines(arms).items()}
    looks = dict.fromkeys(lines, _SERIES)
    return _draw(arms, [arm.num_parameters for arm in arms], parameters_axis, lines, looks)


@plain_text
def arms_flops(comparison: Mapping[str, Any]) -> Figure:
    """Test accuracy (per cent, mean over seeds) of each arm against FLOPs per image (log).

    Lines join the best subsets of members, chosen by their mean over the seeds, where an arm has subsets. Artists
    carry a ``gid``: ``NAME mean``, ``NAME deviation``, ``NAME seeds``, ``NAME front``, ``label``.

    Args:
        comparison: Parsed ``comparison.json``.

    Raises:
        SuperWeightError: A comparison of another format, without an arm, or with an arm that no seed has run.
    """
    arms = read_measured(comparison)
    lines = {f"{arm.name} front": arm.front for arm in arms if arm.subsets}
    looks = {f"{arm.name} front": (arm.color, "-") for arm in arms}
    return _draw(arms, [arm.flops for arm in arms], flops_axis, lines, looks)


def _draw(
    arms: Sequence[MeasuredArm],
    xs: Sequence[float],
    scale: Scale,
    lines: Mapping[str, Sequence[Point]],
    looks: Mapping[str, tuple[str, Any]],
) -> Figure:
    """With every arm's label at its point; where they have no room, without the variants'; else with numbers."""
    labels = [balanced(arm.label, _LABEL_CHARACTERS) for arm in arms]
    numbers = [str(place) for place in range(1, len(arms) + 1)]
    choices = [(labels, False), (numbers, True)]
    if 1 < sum(arm.kind == "variant" for arm in arms) < len(arms):
        choices.insert(1, (["" if arm.kind == "variant" else label for arm, label in zip(arms, labels)], False))
    for texts, numbered in choices:
        figure, legible = _draw_labelled(arms, xs, scale, lines, looks, texts, numbered)
        if legible:
            break
    return figure


def _draw_labelled(
    arms: Sequence[MeasuredArm],
    xs: Sequence[float],
    scale: Scale,
    lines: Mapping[str, Sequence[Point]],
    looks: Mapping[str, tuple[str, Any]],
    texts: Sequence[str],
    numbered: bool,
) -> tuple[Figure, bool]:
    """The figure with these labels, empty ones left out, and whether they can be read."""
    few = len(arms) <= _FEW and max(len(arm.label) for arm in arms) <= _SHORT
    handles = _handles(arms, lines, texts, numbered)
    height = 3.2 if few else 4.0 + 0.17 * max(len(handles) - 4, 0) / 2
    figure = new_figure(COLUMN_INCHES if few else PAGE_INCHES, height)
    axes = figure.add_subplot()
    drawn = [point for line in lines.values() for point in line]
    xlabel = scale(axes, [*xs, *(x for x, _ in drawn)])
    if few and axes.get_xscale() == "linear":  # room for a label to the right of the largest arm
        axes.set_xlim(right=1.22 * axes.get_xlim()[1])
    accuracy_axis(axes, [percent for arm in arms for percent in arm.spread] + [percent for _, percent in drawn])
    style_axes(axes, xlabel=xlabel, ylabel="test accuracy (%)")
    for gid, points in lines.items():
        color, style = looks[gid]
        dot = "." if gid.endswith("front") else ""
        axes.plot(
            *zip(*points), color=color, linestyle=style, linewidth=1.1, marker=dot, markersize=4, zorder=2, gid=gid
        )
    bars = [_draw_arm(axes, arm, x) for arm, x in zip(arms, xs)]
    outside_legend(figure, handles, loc="outside upper center", columns=4)
    figure.draw_without_rendering()
    labels = place_labels(
        axes,
        [
            PointLabel(text=text, x=x, y=arm.mean, color=readable(arm.color))
            for text, arm, x in zip(texts, arms, xs)
            if text
        ],
        markers=[(x, arm.mean) for arm, x in zip(arms, xs)],
        dots=[(x, percent) for arm, x in zip(arms, xs) for percent in arm.seeds] + drawn,
        lines=list(lines.values()),
        boxes=[Bbox(axes.transData.transform(bar)).padded(1.0) for bar in bars],
    )
    return figure, _legible(axes, labels)


def _draw_arm(axes: Axes, arm: MeasuredArm, x: float) -> list[Point]:
    """Seeds, deviation and mean; returns the bar of the deviation."""
    bar = [(x, arm.mean - arm.std), (x, arm.mean + arm.std)]
    if len(arm.seeds) > 1:
        axes.scatter(
            [x] * len(arm.seeds), arm.seeds, s=9, color=mix(arm.color, "white", 0.55), linewidths=0, zorder=3.2,
            gid=f"{arm.name} seeds",
        )  # fmt: skip
        axes.plot(*zip(*bar), color=arm.color, linewidth=1.3, zorder=3, gid=f"{arm.name} deviation")
    main = arm.kind == "shared"
    draw_markers(
        axes,
        [(x, arm.mean)],
        color=arm.color,
        marker=arm.marker,
        size=40 if main else 26,
        zorder=4 + 0.5 * main - 0.4 * (arm.kind == "variant"),
        gid=f"{arm.name} mean",
    )
    return bar


def _handles(
    arms: Sequence[MeasuredArm], lines: Mapping[str, Any], texts: Sequence[str], numbered: bool
) -> list[Line2D]:
    """What marks and lines mean; the arms too where they have numbers, or no label."""
    handles = []
    for arm, text in zip(arms, texts if numbered else []):
        label = balanced(f"{text}  {arm.label}", 2 * _LABEL_CHARACTERS)
        handles.append(Line2D([], [], color=arm.color, marker=arm.marker, markersize=5, linewidth=0, label=label))
    variant = next((arm for arm, text in zip(arms, texts) if not text), None)
    if variant:
        look = {"color": variant.color, "marker": variant.marker, "markersize": 5, "linewidth": 0}
        handles.append(Line2D([], [], label="the bank, other settings", **look))  # type: ignore[arg-type]
    repeated = any(len(arm.seeds) > 1 for arm in arms)
    mean = f"mean of {num_seeds(arms)}, bar: standard deviation" if repeated else "one seed"
    handles.append(Line2D([], [], color=MUTED, marker="o", markersize=5, linewidth=1.3 * repeated, label=mean))
    if repeated:
        handles.append(Line2D([], [], color="#C9C9C9", marker=".", markersize=5, linewidth=0, label="a seed"))
    if any(gid.endswith("front") for gid in lines):
        handles.append(Line2D([], [], color=MUTED, marker=".", markersize=4, linewidth=1.1, label="best subsets"))
    if "budget series" in lines:
        color, style = _SERIES
        handles.append(Line2D([], [], color=color, linestyle=style, linewidth=1.1, label="the bank at other budgets"))
    return handles


def _legible(axes: Axes, labels: Sequence[Annotation]) -> bool:
    """Whether no label covers another one or leaves the axes, and few stand off from their points."""
    if len(axes.findobj(lambda artist: artist.get_gid() == "leader")) > _LEADERS_AT_MOST:
        return False
    frame = axes.get_window_extent()
    boxes = [Text.get_window_extent(label) for label in labels]
    inside = all(
        frame.x0 - 1 <= box.x0 and box.x1 <= frame.x1 + 1 and frame.y0 - 1 <= box.y0 and box.y1 <= frame.y1 + 1
        for box in boxes
    )
    return inside and not any(first.overlaps(second) for first, second in combinations(boxes, 2))


# FOLDED report.figures.ablation_figure: One choice changed at a time: the accuracy of each arm, a row each, beside
# the members apart.

_ROW_INCHES, _LINE_INCHES, _HEADING_ROWS = 0.21, 0.13, 1.25
_BAR_LABEL_CHARACTERS = 44


@plain_text
def ablation_bars(comparison: Mapping[str, Any]) -> Figure:
    """Test accuracy (per cent, mean over seeds), one row an arm, under the headings of the arms' groups.

    Bars are standard deviations over seeds, faint dots the seeds; the vertical line and the band are the mean and the
    deviation of the independent members. Artists carry a ``gid``: ``NAME mean``, ``NAME deviation``, ``NAME seeds``,
    ``NAME value``, ``heading``, ``reference``, ``reference band``.

    Args:
        comparison: Parsed ``comparison.json``.

    Raises:
        SuperWeightError: A comparison of another format, without an arm, or with an arm that no seed has run.
    """
    arms = read_measured(comparison)
    reference = next((arm for arm in arms if arm.kind == "independent"), None)
    labels = {arm.name: balanced(arm.label, _BAR_LABEL_CHARACTERS) for arm in arms}
    rows, headings, bottom = _place(grouped(arms), labels)
    figure = new_figure(PAGE_INCHES, 0.9 + _ROW_INCHES * bottom)
    axes = figure.add_subplot()
    _limit(axes, [percent for arm in arms for percent in arm.spread])
    axes.set_ylim(bottom - 0.4, -0.7)
    style_axes(axes, xlabel="test accuracy (%)", grid="x")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    if reference:
        color = arm_color("independent", 0)
        axes.axvline(reference.mean, color=color, linewidth=0.9, zorder=1.5, gid="reference")
        if reference.std:
            low, high = reference.mean - reference.std, reference.mean + reference.std
            axes.axvspan(low, high, color=color, alpha=0.12, linewidth=0, zorder=1.2, gid="reference band")
    for arm in arms:
        _draw_row(axes, arm, rows[arm.name])
    outside_legend(figure, _bar_handles(arms, reference), loc="outside lower center", columns=3)
    _name_rows(figure, axes, {rows[name]: label for name, label in labels.items()}, headings)
    return figure


def _place(
    groups: Sequence[tuple[str, Sequence[MeasuredArm]]], labels: Mapping[str, str]
) -> tuple[dict[str, float], dict[float, str], float]:
    """Rows of the arms by name, headings by row, and how many rows there are."""
    rows: dict[str, float] = {}
    headings: dict[float, str] = {}
    bottom = 0.0
    for group, arms in groups:
        if group:
            bottom += (_HEADING_ROWS - 1) * bool(rows)
            headings[bottom] = group
            bottom += 1
        for arm in arms:
            more = labels[arm.name].count("\n") * _LINE_INCHES / _ROW_INCHES
            rows[arm.name] = bottom + more / 2
            bottom += 1 + more
    return rows, headings, bottom


def _limit(axes: Axes, percents: Sequence[float]) -> None:
    low, high = min(percents), max(percents)
    margin = 0.06 * max(high - low, 0.5)
    missing = max(0.0, 0.5 - (high - low)) / 2
    axes.set_xlim(max(low - missing - margin, -1.0), min(high + missing + margin, 100.0 + margin))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 2.5, 5, 10]))


def _draw_row(axes: Axes, arm: MeasuredArm, row: float) -> None:
    if len(arm.seeds) > 1:
        axes.scatter(
            arm.seeds, [row] * len(arm.seeds), s=10, color=mix(arm.color, "white", 0.55), linewidths=0, zorder=3.2,
            gid=f"{arm.name} seeds",
        )  # fmt: skip
        ends = [arm.mean - arm.std, arm.mean + arm.std]
        axes.plot(ends, [row, row], color=arm.color, linewidth=1.4, zorder=3, gid=f"{arm.name} deviation")
    draw_markers(axes, [(arm.mean, row)], color=arm.color, marker=arm.marker, size=28, gid=f"{arm.name} mean")
    value = f"{arm.mean:.2f} ± {arm.std:.2f}" if len(arm.seeds) > 1 else f"{arm.mean:.2f}"
    axes.annotate(
        value,
        (1, row),
        xycoords=axes.get_yaxis_transform(),
        xytext=(6, 0),
        textcoords="offset points",
        ha="left",
        va="center_baseline",
        fontsize=SMALL_POINTS,
        color=INK,
        annotation_clip=False,
        gid=f"{arm.name} value",
    )


def _name_rows(figure: Figure, axes: Axes, labels: Mapping[float, str], headings: Mapping[float, str]) -> None:
    """Names and headings beside the rows, all from one left edge."""
    every = {**labels, **headings}
    axes.set_yticks(list(every), list(every.values()))
    texts = axes.get_yticklabels()
    for row, text in zip(every, texts):
        text.set_multialignment("left")
        if row in headings:
            text.set(fontweight="bold", gid="heading")
    figure.draw_without_rendering()
    widest = max(text.get_window_extent().width for text in texts)
    axes.tick_params(axis="y", pad=widest * 72 / figure.dpi + 8)
    for text in texts:
        text.set_horizontalalignment("left")


def _bar_handles(arms: Sequence[MeasuredArm], reference: MeasuredArm | None) -> list[Line2D | Patch]:
    repeated = any(len(arm.seeds) > 1 for arm in arms)
    mean = f"mean of {num_seeds(arms)}, bar: standard deviation" if repeated else "one seed"
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=MUTED, marker="o", markersize=5, linewidth=1.4 * repeated, label=mean)
    ]
    if repeated:
        handles.append(Line2D([], [], color="#C9C9C9", marker=".", markersize=5, linewidth=0, label="a seed"))
    if reference:
        color = arm_color("independent", 0)
        band = {"facecolor": to_rgba(color, 0.15), "edgecolor": color, "linewidth": 0.9}
        handles.append(Patch(label="members apart: mean and deviation", **band))  # type: ignore[arg-type]
    return handles
