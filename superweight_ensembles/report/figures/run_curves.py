"""Curves of a run: its training, the widths it learned, its accuracy when members stop early, its calibration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, MultipleLocator, NullFormatter

from superweight_ensembles.anytime import AnytimeResult, CurvePoint, ExitPoint, MemberPoint, ReliabilityBin
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.experiment import Epoch, RunResults, WidthEpoch
from superweight_ensembles.report.figures import style
from superweight_ensembles.report.figures.drawn_arms import Point, RunArm, one_seed, read_arms, wilson
from superweight_ensembles.report.figures.labels import PointLabel, place_labels

_MEMBER_LINES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2)), (0, (2, 1)), (0, (8, 2)), (0, (1, 3)))
_LEAST_IMAGES = 10
_NAMED_WIDTHS = 8


@style.styled
def training_curves(results: RunResults) -> Figure:
    """Training loss (nats, mean over members) and validation error (per cent, log) by epoch, for each arm."""
    arms = read_arms(results)
    history = [epoch for arm in arms for epoch in arm.source.history]
    validated = sorted({epoch.epoch for epoch in history if epoch.validation})
    once, count = len(validated) == 1, results.dataset.num_validation
    caption = "One seed."
    if validated:
        when = f"Below, after epoch {validated[0]}, the only one validated. " if once else ""
        caption = f"{when}One seed; {count:,} validation images: one is {100 / count:.2g} %."
    figure = style.new_figure(
        style.COLUMN_INCHES, 4.2 if validated else 2.5, title=f"{results.name}: training", caption=caption
    )
    panels = figure.subplots(2 if validated else 1, 1, sharex=not once, squeeze=False)[:, 0]
    _draw_loss(panels[0], arms)
    epochs = [epoch.epoch for epoch in history] or [1]
    room = 0.02 * (max(epochs) - min(epochs)) or 0.5
    last = panels[0 if once else -1]
    last.set_xlim(min(epochs) - room, max(epochs) + room)
    last.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, min_n_ticks=1))
    handles = [style.key(arm.label, arm.color, linewidth=1.8) for arm in reversed(arms)]
    if validated:
        members = list(dict.fromkeys(name for arm in arms for name in arm.members))
        # The axis is logarithmic: an error of zero is drawn as half an image.
        _draw_errors(panels[1], arms, members, half_an_image=50 / count, once=once)
        if not once:
            handles.append(style.key("ensemble", style.MUTED, linewidth=1.8))
            looks = zip(members, map(_member_line, range(len(members))))
            handles += [style.key(name, style.MUTED, **look) for name, look in looks]
    last.set_xlabel("epoch")
    style.outside_legend(figure, handles, loc="outside upper center", columns=4)
    return figure


def _draw_loss(axes: Axes, arms: Sequence[RunArm]) -> None:
    drawn: list[float] = []
    for arm in arms:
        points = [(epoch.epoch, mean_loss(epoch)) for epoch in arm.source.history]
        drawn += [loss for _, loss in points if loss > 0]
        _line(axes, arm, points, linewidth=1.5, gid=f"{arm.name} loss")
    style.style_axes(axes, ylabel="training loss (nats)")
    if drawn and max(drawn) > 10 * min(drawn):
        _log_axis(axes, drawn)
    elif drawn:
        axes.set_ylim(bottom=0)


def _log_axis(axes: Axes, drawn: Sequence[float]) -> None:
    axes.set_yscale("log")
    ratio = max(drawn) / min(drawn)
    steps = (1.0,) if ratio > 300 else (1.0, 2.0, 5.0) if ratio > 4 else tuple(np.arange(1.0, 10.0, 0.5))
    axes.yaxis.set_major_locator(LogLocator(subs=steps, numticks=8))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _member_line(place: int) -> dict[str, Any]:
    """Line style of a member, in every arm."""
    return {"linestyle": _MEMBER_LINES[place % len(_MEMBER_LINES)], "linewidth": 0.9}


def _draw_errors(
    axes: Axes, arms: Sequence[RunArm], members: Sequence[str], *, half_an_image: float, once: bool
) -> None:
    """Validation errors by epoch; of a single epoch, by member."""
    drawn: list[float] = []

    def draw(arm: RunArm, accuracies: Sequence[tuple[float, float | None]], kind: str, **look: Any) -> None:
        points = [(x, max(100 - 100 * share, half_an_image)) for x, share in accuracies if share is not None]
        drawn.extend(error for _, error in points)
        if once:
            look |= {"marker": arm.marker, "markerfacecolor": "white", "markersize": 5, "linewidth": 0}
        _line(axes, arm, points, gid=f"{arm.name} {kind}", **look)

    for arm in arms:
        history = [(epoch.epoch, epoch.validation) for epoch in arm.source.history if epoch.validation]
        for place, name in enumerate(members):
            own = [
                (place if once else epoch, found.members[name].accuracy)
                for epoch, found in history
                if name in found.members
            ]
            if own:
                draw(arm, own, "member", **_member_line(place))
        ensemble = [(len(members) if once else epoch, found.ensemble.accuracy) for epoch, found in history]
        draw(arm, ensemble, "ensemble", linewidth=1.8, zorder=4)
    style.style_axes(axes, ylabel="validation error (%)")
    if once:
        names = [*style.short_members(members).values(), "ensemble"]
        axes.set_xticks(range(len(names)), names, rotation=0 if len(names) < 6 else 90)
        axes.set_xlim(-0.5, len(names) - 0.5)
    if drawn:
        _log_axis(axes, drawn)


def _line(axes: Axes, arm: RunArm, points: Sequence[tuple[float, float]], **look: Any) -> None:
    """Draw a curve; its points are marked where they are too few to make one."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    few = {"marker": arm.marker, "markersize": 3.5} if len(points) <= 2 else {}
    axes.plot(xs, ys, color=arm.color, **{"zorder": 3, **few, **look})


def mean_loss(epoch: Epoch) -> float:
    """Mean training loss of an epoch over the members that took a step; NaN where none did."""
    losses = [loss for loss in epoch.train_loss.values() if loss is not None]
    return fmean(losses) if losses else math.nan


def widths_learned(results: RunResults) -> Sequence[WidthEpoch | Epoch]:
    """Epochs in which widths were learned; none where no run learned any."""
    if results.widths:
        return results.widths
    for arm in results.arms:
        history = [epoch for epoch in arm.history if epoch.widths]  # of an arm whose widths changed in its training
        if any(epoch.widths != history[0].widths for epoch in history):
            return history
    return ()


@style.styled
def width_history(results: RunResults) -> Figure:
    """Hidden neurons (log) of each layer whose width was learned, by epoch: a panel a member."""
    history = [(epoch.epoch, epoch.widths or {}) for epoch in widths_learned(results)]
    if not history:
        raise SuperWeightError("the results hold no widths that were learned")
    members = list(dict.fromkeys(name for _, widths in history for name in widths))
    columns = min(len(members), 3 if style.figure_width(style.PAGE_INCHES) > 5.5 else 1)
    rows = -(-len(members) // columns)
    figure = style.new_figure(
        style.PAGE_INCHES if columns > 1 else style.COLUMN_INCHES, 2.6 * rows, title=f"{results.name}: learned widths",
        caption="A line a hidden layer, after each epoch in which widths were learned. One seed.",
    )  # fmt: skip
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    sizes = [size for _, widths in history for own in widths.values() for size in own.values()]
    style.counts_axis(panels[0, 0], "y", sizes)
    first, last = history[0][0], history[-1][0]
    panels[0, 0].set_xlim(first - 0.5, last + 0.62 * max(last - first, 1))
    panels[0, 0].xaxis.set_major_locator(FixedLocator(sorted({first, (first + last) // 2, last})))
    for axes in panels.flat[len(members) :]:
        axes.set_visible(False)
    for place, (axes, member) in enumerate(zip(panels.flat, members)):
        at_left, below = place % columns == 0, place + columns >= len(members)
        style.style_axes(axes, xlabel="epoch" * below, ylabel="hidden neurons" * at_left)
        axes.tick_params(labelbottom=below)
        # Neurons of these layers together, after the first epoch and after the last.
        neurons = [style.quantity(sum(history[end][1].get(member, {}).values())) for end in (0, -1)]
        title = f"{style.short_names(member)}: {' to '.join(neurons)}"
        axes.set_title(title)
        _draw_widths(axes, member, [(epoch, widths[member]) for epoch, widths in history if member in widths])
    return figure


def _draw_widths(axes: Axes, member: str, history: Sequence[tuple[int, Mapping[str, int]]]) -> None:
    """Draw a line a layer, with its name at the end of it where they are few."""
    paths = list(dict.fromkeys(path for _, widths in history for path in widths))
    lines = [[(float(epoch), float(widths[path])) for epoch, widths in history if path in widths] for path in paths]
    for place, line in enumerate(lines):
        style.draw_line(axes, line, "width", color=style.series_color(place), gid=f"{member} width")
    if len(paths) > _NAMED_WIDTHS:
        return
    labels = [
        PointLabel(text=name, x=line[-1][0], y=line[-1][1], color=style.readable(style.series_color(place)))
        for place, (name, line) in enumerate(zip(style.short_layers(paths, limit=14).values(), lines))
    ]
    place_labels(axes, labels, markers=[line[-1] for line in lines], lines=lines)


@style.styled
def anytime_curves(results: RunResults) -> Figure:
    """Test accuracy (per cent) against mean cost per image: FLOPs on the left, milliseconds measured on the right."""
    arms = [(arm, arm.source.anytime) for arm in read_arms(results) if arm.source.anytime]
    if not arms:
        raise SuperWeightError(
            f"the results of run {results.name!r} hold no anytime curves: give its recipe an anytime section"
        )
    wide = style.figure_width(style.PAGE_INCHES) > 5.5
    figure = style.new_figure(
        style.PAGE_INCHES, 3.6 if wide else 6.0, title=f"{results.name}: accuracy when members stop early",
        caption=f"{_say_alone(arms)} {one_seed([arm for arm, _ in arms], 'Bands')}",
    )  # fmt: skip
    panels = figure.subplots(1 if wide else 2, 2 if wide else 1, sharey=True, squeeze=False).flat
    drawn = {}
    for axes, cost, make_axis in zip(panels, ("flops", "latency_ms"), (style.flops_axis, style.latency_axis)):
        own_points = [(arm, found, _points(found, cost)) for arm, found in arms]
        points = [point for _, _, named in own_points for own in named.values() for point in own]
        xlabel = make_axis(axes, [x for x, _ in points])
        lines = sum(2 + (found.truncated is not None) for _, found in arms)
        room = (0.05 if wide else 0.065) * lines + 0.05
        bands = [end for arm, _, named in own_points for _, percent in named["cascade"] for end in arm.band(percent)]
        style.accuracy_axis(axes, [*(y for _, y in points), *bands], below=room)
        style.style_axes(axes, xlabel=xlabel, ylabel="test accuracy (%)" if cost == "flops" or not wide else "")
        for arm, _, named in own_points:
            _draw_anytime(axes, arm, named)
        areas = _write_areas(axes, arms, "area" if cost == "flops" else "latency_area")
        drawn[axes] = (own_points, areas)
    handles = [style.key(arm.label, arm.color, linewidth=1.5) for arm, _ in reversed(arms)]
    kinds: dict[str, dict[str, Any]] = {
        "cascade": {"marker": ".", "linewidth": 1.5},
        "stream": {"linestyle": style.LOOKS["stream"]["linestyle"], "linewidth": 1.0},
        "a member alone": {"marker": "D", "size": 4, "markerfacecolor": "white"},
    }
    if any(found.truncated for _, found in arms):
        kinds["cascade with truncations"] = {
            "linestyle": style.LOOKS["truncated"]["linestyle"],
            "linewidth": 1.4,
            "marker": ".",
        }
        kinds["a truncated member alone"] = {"marker": "x", "size": 4}
    handles += [style.key(label, style.MUTED, **look) for label, look in kinds.items()]
    style.outside_legend(figure, handles, loc="outside upper center", columns=5 if len(handles) < 6 else 3)
    figure.draw_without_rendering()
    for axes, (own_points, areas) in drawn.items():
        _name_members(axes, own_points, areas)
    return figure


def _say_alone(arms: Sequence[tuple[RunArm, AnytimeResult]]) -> str:
    """Sentence on members that beat the cascade that costs no more FLOPs, by more than its standard error."""
    better = []
    for arm, found in reversed(arms):
        for member in found.members:
            cheaper = [one.accuracy for one in found.curve("cascade").points if one.flops <= member.flops]
            best = 100 * max(cheaper, default=1.0)
            if 100 * member.accuracy > arm.band(best)[1]:
                better.append(f"{member.name} ({arm.label}, by {100 * member.accuracy - best:.1f} points)")
    if not better:
        return "No member alone beats the cascade at its FLOPs by more than the band."
    return f"Alone better than the cascade at their FLOPs, by more than the band: {', '.join(better)}."


def _name_members(
    axes: Axes, arms: Sequence[tuple[RunArm, AnytimeResult, Mapping[str, list[Point]]]], areas: Text
) -> None:
    """Write the names of members in their arm's colour; once where they cost the same in several arms."""
    labels = []
    costs: dict[str, list[float]] = {}
    for arm, found, kinds in reversed(arms):
        for member, (cost, percent) in zip(found.members, kinds["members"]):
            named = costs.setdefault(member.name, [])
            if all(abs(cost / other - 1) > 0.02 for other in named):
                color = style.readable(arm.color) if len(arms) > 1 else style.INK
                labels.append(PointLabel(text=member.name, x=cost, y=percent, color=color))
            named.append(cost)
    place_labels(
        axes,
        labels,
        markers=[point for _, _, kinds in arms for point in kinds["members"]],
        dots=[point for _, _, kinds in arms for point in kinds.get("truncated", ())],
        lines=[sorted(kinds[name]) for _, _, kinds in arms for name in kinds if name.endswith("cascade")]
        + [_corners(kinds["stream"]) for _, _, kinds in arms],
        boxes=[areas.get_window_extent()],
    )


def _corners(points: Sequence[Point]) -> list[Point]:
    """Corners of steps after each point."""
    return [points[0], *(corner for one, two in pairwise(points) for corner in ((two[0], one[1]), two))]


def _points(found: AnytimeResult, cost: str) -> dict[str, list[Point]]:
    """(Cost, accuracy in per cent) of members, curves and exits, by their kind; exits have no measured time."""
    entries: dict[str, Sequence[MemberPoint | CurvePoint | ExitPoint]] = {"members": found.members}
    entries |= {curve.name: curve.points for curve in found.curves}
    if found.truncated:
        entries["exits"] = found.truncated.exits or ()
        entries["truncated members"] = found.truncated.members
        entries |= {f"truncated {curve.name}": curve.points for curve in found.truncated.curves}
        timed = found.truncated.members if cost == "latency_ms" else found.truncated.exits or ()
        entries["truncated"] = [entry for entry in timed if "@" in entry.name]
    return {
        name: [(float(getattr(entry, cost)), 100 * entry.accuracy) for entry in own if hasattr(entry, cost)]
        for name, own in entries.items()
    }


def _draw_anytime(axes: Axes, arm: RunArm, points: Mapping[str, Sequence[Point]]) -> None:
    top = 3 if arm.name == "shared" else 2
    cascade = sorted(points["cascade"])
    low, high = zip(*(arm.band(percent) for _, percent in cascade))
    costs, band = [cost for cost, _ in cascade], style.LOOKS["band"]
    axes.fill_between(costs, low, high, color=arm.color, zorder=1.2, gid=f"{arm.name} band", **band)
    lines = {"stream": (points["stream"], top), "cascade": (cascade, top + 2)}
    if "truncated" in points:
        lines["truncated"] = (sorted(points["truncated cascade"]), top + 2)
        lines["exits"] = (points["truncated"], top + 1)
    for name, (own, order) in lines.items():
        steps = "steps-post" if name == "stream" else "default"
        gid = f"{arm.name} {name}"
        style.draw_line(axes, own, name, color=arm.color, drawstyle=steps, zorder=order, gid=gid)
    style.draw_markers(
        axes, points["members"], color=arm.color, marker="D", hollow=True, size=15, zorder=top + 3,
        gid=f"{arm.name} members",
    )  # fmt: skip


def _write_areas(axes: Axes, arms: Sequence[tuple[RunArm, AnytimeResult]], area: str) -> Text:
    """Write the areas under the curves as text in the free corner below."""
    lines = ["mean accuracy over log cost (%)"]
    for arm, found in reversed(arms):
        cascade, stream = (100 * getattr(found.curve(name), area) for name in ("cascade", "stream"))
        lines.append(f"{arm.label}: cascade {cascade:.2f}, stream {stream:.2f}")
        if found.truncated:
            lines.append(f"with truncations {100 * getattr(found.truncated.curve('cascade'), area):.2f}")
    return axes.text(
        0.98, 0.02, "\n".join(lines), transform=axes.transAxes, ha="right", va="bottom",
        fontsize=style.SMALL_POINTS - 1, linespacing=1.3, gid="areas",
    )  # fmt: skip


@style.styled
def reliability_diagram(results: RunResults) -> Figure:
    """Accuracy against mean confidence of the full ensembles (per cent), in each of the results' bins."""
    arms = read_arms(results)
    bins = len(arms[0].source.reliability)
    figure = style.new_figure(
        style.COLUMN_INCHES, 4.4, title=f"{results.name}: calibration",
        caption="Dashed: confidence is right; below it, too high. Above, neighbouring bins are joined until they hold "
        f"1 % of the images, ten at least; ECE is over all {bins} bins. Bars: one standard error. One seed.",
    )  # fmt: skip
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    style.draw_line(upper, [(0, 0), (100, 100)], "diagonal", gid="diagonal")
    for place, arm in enumerate(arms):
        _draw_bins(upper, arm)
        _draw_histogram(lower, arm, len(arms) - 1 - place, len(arms))
    style.style_axes(upper, ylabel="accuracy (%)")
    style.style_axes(lower, xlabel="confidence (%)", ylabel="images (log)", grid="y")
    counts = [one.count for arm in arms for one in arm.source.reliability]
    lower.set_yscale("log")
    lower.set_ylim(0.6, 1.5 * max(*counts, 2))
    lower.yaxis.set_major_locator(LogLocator(numticks=5))
    lower.yaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:,.0f}"))
    lower.yaxis.set_minor_formatter(NullFormatter())
    upper.set_xlim(-1, 101)
    upper.set_ylim(-2, 102)
    for axis in (upper.xaxis, upper.yaxis):
        axis.set_major_locator(MultipleLocator(20))
    handles, _ = upper.get_legend_handles_labels()
    style.outside_legend(figure, handles[::-1], loc="outside upper center", columns=2)
    return figure


@style.styled
def uncertainty_curves(results: RunResults) -> Figure:
    """Error (per cent) over the share of images answered, surest first; below, accuracy under corruption."""
    arms = read_arms(results)
    corrupted = any(arm.source.shift is not None and arm.source.shift.corrupted for arm in arms)
    caption = "Above, the error on the images answered when the least sure are left out. One seed."
    if corrupted:
        caption += " Below, accuracy on corrupted test images: bold is the mean over corruptions."
    figure = style.new_figure(
        style.COLUMN_INCHES, 4.4 if corrupted else 2.7, title=f"{results.name}: what it knows", caption=caption
    )
    panels = figure.subplots(2 if corrupted else 1, 1, squeeze=False)[:, 0]
    for arm in arms:
        known = arm.source.uncertainty
        points = [(100 * one.coverage, 100 * one.risk) for one in known.risk_coverage] if known else []
        _line(panels[0], arm, points, linewidth=1.5, gid=f"{arm.name} risk")
    style.style_axes(panels[0], xlabel="images answered, surest first (%)", ylabel="error (%)")
    panels[0].set_xlim(0, 100)
    panels[0].set_ylim(bottom=0)
    if corrupted:
        for arm in arms:
            _draw_corrupted(panels[1], arm)
        style.style_axes(panels[1], xlabel="severity of corruptions", ylabel="accuracy (%)")
        panels[1].xaxis.set_major_locator(MultipleLocator(1))
    handles = [style.key(arm.label, arm.color, linewidth=1.8) for arm in reversed(arms)]
    if corrupted:
        handles.append(style.key("one corruption", style.MUTED, linewidth=0.8))
    style.outside_legend(figure, handles, loc="outside upper center", columns=3)
    return figure


def _draw_corrupted(axes: Axes, arm: RunArm) -> None:
    # Severity 0: the test images as they are.
    clean = (0.0, 100 * arm.source.ensemble.metrics.accuracy)
    found = arm.source.shift.corrupted if arm.source.shift else ()
    if not found:
        return
    for name in dict.fromkeys(one.corruption for one in found):
        own = [(float(one.severity), 100 * one.metrics.accuracy) for one in found if one.corruption == name]
        _line(axes, arm, [clean, *sorted(own)], linewidth=0.6, alpha=0.45, gid=f"{arm.name} corruption")
    means = [
        (float(severity), 100 * fmean(one.metrics.accuracy for one in found if one.severity == severity))
        for severity in sorted({one.severity for one in found})
    ]
    _line(axes, arm, [clean, *means], linewidth=1.8, zorder=4, gid=f"{arm.name} corrupted")


def _draw_bins(axes: Axes, arm: RunArm) -> None:
    bins = joined_bins(arm.source.reliability)
    confidences = [100 * confidence for confidence, _, _ in bins]
    ends = zip(*(wilson(accuracy, count) for _, accuracy, count in bins))
    low, high = ([100 * share for share in own] for own in (ends if bins else ((), ())))
    axes.vlines(confidences, low, high, color=arm.color, alpha=0.5, linewidth=0.9, zorder=2)
    axes.plot(
        confidences, [100 * accuracy for _, accuracy, _ in bins], color=arm.color,
        linestyle="none",  # bins of a few images would make a line zigzag
        marker=arm.marker, markersize=4.5, markerfacecolor="white", markeredgewidth=1.1, zorder=3,
        label=f"{arm.label}, ECE {100 * arm.source.ensemble.metrics.ece:.2f} %", gid=f"{arm.name} bins",
    )  # fmt: skip


def joined_bins(bins: Sequence[ReliabilityBin]) -> list[tuple[float, float, int]]:
    """(Confidence, accuracy, images) of neighbouring bins joined until each holds 1 % of the images, ten at least."""
    least = max(_LEAST_IMAGES, 0.01 * sum(one.count for one in bins))
    groups: list[list[ReliabilityBin]] = [[]]
    for one in bins:
        if sum(own.count for own in groups[-1]) >= least:
            groups.append([])
        groups[-1].append(one)
    if len(groups) > 1 and sum(one.count for one in groups[-1]) < least:
        groups[-2:] = [groups[-2] + groups[-1]]
    joined = []
    for group in groups:
        count = sum(one.count for one in group)
        confidence = sum((one.confidence or 0.0) * one.count for one in group)
        accuracy = sum((one.accuracy or 0.0) * one.count for one in group)
        joined += [(confidence / count, accuracy / count, count)] if count else []
    return joined


def _draw_histogram(axes: Axes, arm: RunArm, place: int, arms: int) -> None:
    """Bars of the arms side by side inside each bin."""
    bins = arm.source.reliability
    widths = [100 * (one.upper - one.lower) for one in bins]
    lefts = [100 * one.lower + width * (0.06 + 0.88 * place / arms) for one, width in zip(bins, widths)]
    look: dict[str, Any] = {"align": "edge", "color": arm.color, "linewidth": 0, "gid": f"{arm.name} histogram"}
    axes.bar(lefts, [one.count for one in bins], width=[0.88 * width / arms for width in widths], **look)
