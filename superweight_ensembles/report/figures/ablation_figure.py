"""One choice changed at a time: the accuracy of each arm, a row each, beside the members apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from superweight_ensembles.report.figures.measured_arms import MeasuredArm, grouped, num_seeds, read_measured
from superweight_ensembles.report.figures.shades import mix
from superweight_ensembles.report.figures.short_names import balanced
from superweight_ensembles.report.figures.style import (
    INK,
    MUTED,
    PAGE_INCHES,
    SMALL_POINTS,
    arm_color,
    draw_markers,
    new_figure,
    outside_legend,
    plain_text,
    style_axes,
)

_ROW_INCHES, _LINE_INCHES, _HEADING_ROWS = 0.21, 0.13, 1.25
_LABEL_CHARACTERS = 44


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
    labels = {arm.name: balanced(arm.label, _LABEL_CHARACTERS) for arm in arms}
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
    outside_legend(figure, _handles(arms, reference), loc="outside lower center", columns=3)
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


def _handles(arms: Sequence[MeasuredArm], reference: MeasuredArm | None) -> list[Line2D | Patch]:
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
