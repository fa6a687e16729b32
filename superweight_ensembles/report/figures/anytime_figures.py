"""Accuracy against cost when members stop early: stream and cascade, in FLOPs and on the clock."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MultipleLocator

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.report.figures.points import Arm, Results, read_arms
from superweight_ensembles.report.figures.style import (
    COLUMN_INCHES,
    INK,
    MUTED,
    PAGE_INCHES,
    SMALL_POINTS,
    accuracy_axis,
    draw_markers,
    flops_axis,
    latency_axis,
    new_figure,
    outside_legend,
    plain_text,
    style_axes,
)

_DOTS = (0, (1, 1.2))
_COSTS = (("flops", "area", flops_axis), ("latency_ms", "latency_area", latency_axis))


@plain_text
def anytime_curves(results: Results) -> Figure:
    """Test accuracy (per cent) against mean cost per image: FLOPs on the left, milliseconds measured on the right.

    Solid lines are cascades (a point a budget, thresholds from validation data), dashed steps the streams (after each
    member), single markers the members alone. Where members are cut to fewer of their learned neurons, dotted lines are
    the cascades through these exits too, and crosses the exits alone. Under each panel: the area under each curve over
    the logarithm of the cost. Artists carry a ``gid``: ``shared cascade``, ``shared stream``, ``shared members``,
    ``shared truncated``, ``shared exits``, ``areas``.

    Args:
        results: Parsed ``results.json`` of a run whose recipe has an ``anytime`` section.

    Raises:
        SuperWeightError: Results of another format, without an arm, or without curves.
    """
    arms = [arm for arm in read_arms(results) if "anytime" in arm.content]
    if not arms:
        raise SuperWeightError(
            f"the results of run {results.get('name')!r} hold no anytime curves: give its recipe an anytime section"
        )
    figure = new_figure(PAGE_INCHES, 3.3)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (cost, area, make_axis) in zip(panels, _COSTS):
        every = [entry for arm in arms for entries in _entries(arm).values() for entry in entries]
        points = _points([entry for entry in every if cost in entry], cost)
        xlabel = make_axis(axes, [x for x, _ in points])
        accuracy_axis(axes, [y for _, y in points], below=0.09 * len(arms))
        style_axes(axes, xlabel=xlabel, ylabel="test accuracy (%)" if axes is panels[0] else "")
        for arm in arms:
            _draw(axes, arm, cost)
        _areas(axes, arms, area)
    handles = [Line2D([], [], color=arm.color, linewidth=1.5, label=arm.label) for arm in reversed(arms)]
    kinds: dict[str, dict[str, Any]] = {
        "cascade": {"marker": ".", "markersize": 5},
        "stream": {"linestyle": (0, (3, 2)), "linewidth": 1.0},
        "a member alone": {"marker": "D", "markersize": 4, "linewidth": 0},
    }
    if any("truncated" in arm.content["anytime"] for arm in arms):
        kinds["cascade with truncations"] = {"linestyle": _DOTS, "linewidth": 1.4, "marker": ".", "markersize": 5}
        kinds["a truncated member alone"] = {"marker": "x", "markersize": 4, "linewidth": 0}
    for label, look in kinds.items():
        handles.append(Line2D([], [], color=MUTED, label=label, **look))
    outside_legend(figure, handles, loc="outside upper center", columns=5)
    return figure


def _draw(axes: Axes, arm: Arm, cost: str) -> None:
    entries = _entries(arm)
    stream = _points(entries["stream"], cost)
    top = 3 if arm.name == "shared" else 2
    axes.step(
        *zip(*stream), where="post", color=arm.color, linewidth=1.0, linestyle=(0, (3, 2)), alpha=0.8, zorder=top,
        gid=f"{arm.name} stream",
    )  # fmt: skip
    axes.plot(
        *zip(*sorted(_points(entries["cascade"], cost))), color=arm.color, linewidth=1.4, marker=".", markersize=5,
        zorder=top + 2, gid=f"{arm.name} cascade",
    )  # fmt: skip
    draw_markers(
        axes, _points(entries["members"], cost), color=arm.color, marker="D", size=16, zorder=top + 1,
        gid=f"{arm.name} members",
    )  # fmt: skip
    if "truncated" not in arm.content["anytime"]:
        return
    axes.plot(
        *zip(*sorted(_points(entries["truncated cascade"], cost))), color=arm.color, linewidth=1.4, linestyle=_DOTS,
        marker=".", markersize=5, zorder=top + 2, gid=f"{arm.name} truncated",
    )  # fmt: skip
    alone = entries["exits"] if cost == "flops" else entries["truncated members"]
    axes.plot(
        *zip(*_points([entry for entry in alone if "@" in entry["name"]], cost)), color=arm.color, marker="x",
        markersize=4, linewidth=0, zorder=top + 1, gid=f"{arm.name} exits",
    )  # fmt: skip


def _areas(axes: Axes, arms: Sequence[Arm], area: str) -> None:
    """The areas as text in the free corner below."""
    lines = []
    for arm in reversed(arms):
        curves = {curve["name"]: 100 * float(curve[area]) for curve in arm.content["anytime"]["curves"]}
        lines.append(f"{arm.label}: cascade {curves['cascade']:.2f}, stream {curves['stream']:.2f}")
        if truncated := arm.content["anytime"].get("truncated"):
            curves = {curve["name"]: 100 * float(curve[area]) for curve in truncated["curves"]}
            lines[-1] += f", with truncations {curves['cascade']:.2f}"
    axes.text(
        0.98, 0.02, "\n".join(["mean over log cost (%)", *lines]), transform=axes.transAxes, ha="right", va="bottom",
        fontsize=SMALL_POINTS - 1, color=INK, linespacing=1.3, gid="areas",
    )  # fmt: skip


def _entries(arm: Arm) -> dict[str, list[Mapping[str, Any]]]:
    content = arm.content["anytime"]
    found = {"members": content["members"], **{curve["name"]: curve["points"] for curve in content["curves"]}}
    if truncated := content.get("truncated"):
        found["exits"], found["truncated members"] = truncated["exits"], truncated["members"]
        found |= {f"truncated {curve['name']}": curve["points"] for curve in truncated["curves"]}
    return found


def _points(entries: Sequence[Mapping[str, Any]], cost: str) -> list[tuple[float, float]]:
    return [(float(entry[cost]), 100 * float(entry["accuracy"])) for entry in entries]


# FOLDED report.figures.reliability_figure: Whether confidence can be believed: accuracy by confidence, and how often
# each confidence occurs.


@plain_text
def reliability_diagram(results: Results) -> Figure:
    """Accuracy against mean confidence of the full ensembles in bins (per cent), over the share of images a bin.

    On the diagonal confidence is right; below it the ensemble is overconfident. Thin bars are one standard
    error (Wilson). ECE stands in the legend. Artists carry a ``gid``: ``shared bins``, ``shared histogram``.

    Args:
        results: Parsed ``results.json`` of a run.

    Raises:
        SuperWeightError: Results of another format, or without an arm.
    """
    arms = read_arms(results)
    figure = new_figure(COLUMN_INCHES, 4.4)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 100], [0, 100], color=MUTED, linewidth=0.8, linestyle=(0, (4, 2)), zorder=1.5, gid="diagonal")
    for arm in arms:
        _draw_bins(upper, arm)
    for place, arm in enumerate(reversed(arms)):
        _draw_histogram(lower, arm, place, len(arms))
    style_axes(upper, ylabel="accuracy (%)")
    style_axes(lower, xlabel="confidence (%)", ylabel="images (%)", grid="y")
    upper.set_xlim(-1, 101)
    upper.set_ylim(-2, 102)
    for axis in (upper.xaxis, upper.yaxis):
        axis.set_major_locator(MultipleLocator(20))
    handles, _ = upper.get_legend_handles_labels()
    outside_legend(figure, handles[::-1], loc="outside upper center", columns=2)
    return figure


def _draw_bins(axes: Axes, arm: Arm) -> None:
    bins = [entry for entry in arm.content["reliability"] if entry["count"]]
    confidences = [100 * float(entry["confidence"]) for entry in bins]
    accuracies = [100 * float(entry["accuracy"]) for entry in bins]
    errors = [_wilson(float(entry["accuracy"]), int(entry["count"])) for entry in bins]
    axes.vlines(
        confidences,
        [100 * low for low, _ in errors],
        [100 * high for _, high in errors],
        color=arm.color,
        alpha=0.4,
        linewidth=0.8,
        zorder=2,
    )
    ece = 100 * float(arm.content["ensemble"]["metrics"]["ece"])
    axes.plot(
        confidences,
        accuracies,
        color=arm.color,
        linestyle="none",  # bins of a few images would make a line zigzag
        marker=arm.marker,
        markersize=4.5,
        markeredgecolor="white",
        markeredgewidth=0.5,
        zorder=3,
        label=f"{arm.label}, ECE {ece:.2f} %",
        gid=f"{arm.name} bins",
    )


def _draw_histogram(axes: Axes, arm: Arm, place: int, arms: int) -> None:
    """Bars of the arms side by side inside each bin."""
    bins = arm.content["reliability"]
    total = sum(int(entry["count"]) for entry in bins) or 1
    widths = [100 * (float(entry["upper"]) - float(entry["lower"])) for entry in bins]
    lefts = [100 * float(entry["lower"]) + width * (0.06 + 0.88 * place / arms) for entry, width in zip(bins, widths)]
    axes.bar(
        lefts,
        [100 * int(entry["count"]) / total for entry in bins],
        width=[0.88 * width / arms for width in widths],
        align="edge",
        color=arm.color,
        linewidth=0,
        gid=f"{arm.name} histogram",
    )


def _wilson(share: float, count: int) -> tuple[float, float]:
    """One standard error around a share of ``count`` draws."""
    middle = (share + 0.5 / count) / (1 + 1 / count)
    half = math.sqrt(share * (1 - share) / count + 0.25 / count**2) / (1 + 1 / count)
    return middle - half, middle + half
