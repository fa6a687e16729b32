"""Accuracy against cost when members stop early: stream and cascade, in FLOPs and on the clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.report.figures.arms import Arm, Results, read_arms
from superweight_ensembles.report.figures.scales import accuracy_axis, flops_axis, latency_axis
from superweight_ensembles.report.figures.style import (
    INK,
    MUTED,
    PAGE_INCHES,
    SMALL_POINTS,
    draw_markers,
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
