"""Curves of a run: its training, the widths it learned, its accuracy when members stop early, its calibration."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, MultipleLocator, NullFormatter

from superweight_ensembles.anytime import AnytimeResult, CurvePoint, ExitPoint, MemberPoint
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.experiment import Epoch, RunResults, WidthEpoch
from superweight_ensembles.report.figures import style
from superweight_ensembles.report.figures.accuracy import DrawnArm, Point, read_arms

_DASHES = (0, (3, 2))
_DOTS = (0, (1, 1.2))


@style.plain_text
def training_curves(results: RunResults) -> Figure:
    """Training loss (nats, mean over members) and validation accuracy (per cent) by epoch, for each arm.

    In the lower panel the bold line is the ensemble, thin lines are the members; the panel is left out where no
    epoch was validated, and its range passes over the first fifth of the epochs, so that the end can be read.
    Artists carry a ``gid``: ``shared loss``, ``shared ensemble``, ``shared member``.
    """
    arms = read_arms(results)
    history = [epoch for arm in arms for epoch in arm.results.history]
    validated = any(epoch.validation for epoch in history)
    figure = style.new_figure(style.COLUMN_INCHES, 4.2 if validated else 2.5)
    panels = figure.subplots(2 if validated else 1, 1, sharex=True, squeeze=False)[:, 0]
    _draw_loss(panels[0], arms)
    if validated:
        _draw_accuracy(panels[1], arms)
    epochs = [epoch.epoch for epoch in history] or [1]
    room = 0.02 * (max(epochs) - min(epochs)) or 0.5
    panels[-1].set_xlim(min(epochs) - room, max(epochs) + room)
    panels[-1].set_xlabel("epoch", fontsize=style.TEXT_POINTS, color=style.INK)
    panels[-1].xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, min_n_ticks=1))
    handles = [Line2D([], [], color=arm.color, linewidth=1.8, label=arm.label) for arm in reversed(arms)]
    if validated:
        handles.append(Line2D([], [], color=style.MUTED, linewidth=0.8, label="one member"))
    style.outside_legend(figure, handles, loc="outside upper center", columns=3)
    return figure


def _draw_loss(axes: Axes, arms: Sequence[DrawnArm]) -> None:
    drawn: list[float] = []
    for arm in arms:
        points = [(epoch.epoch, _mean(epoch.train_loss.values())) for epoch in arm.results.history]
        drawn += [loss for _, loss in points if loss > 0]
        _line(axes, arm, points, linewidth=1.5, gid=f"{arm.name} loss")
    style.style_axes(axes, ylabel="training loss (nats)")
    if drawn and max(drawn) > 10 * min(drawn):
        axes.set_yscale("log")
        few_decades = max(drawn) < 300 * min(drawn)
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few_decades else (1.0,)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif drawn:
        axes.set_ylim(bottom=0)


def _draw_accuracy(axes: Axes, arms: Sequence[DrawnArm]) -> None:
    drawn: list[float] = []
    settled: list[float] = []

    def draw(arm: DrawnArm, points: Sequence[Point], kind: str, **look: float) -> None:
        percents = [percent for _, percent in points]
        drawn.extend(percents)
        settled.extend(percents[len(percents) // 5 :])
        _line(axes, arm, points, gid=f"{arm.name} {kind}", **look)

    for arm in arms:
        history = [(epoch.epoch, epoch.validation) for epoch in arm.results.history if epoch.validation]
        for name in dict.fromkeys(name for _, found in history for name in found.members):
            own = [(epoch, found.members[name].accuracy) for epoch, found in history if name in found.members]
            draw(arm, _percents(own), "member", linewidth=0.6, alpha=0.5)
        draw(
            arm,
            _percents([(epoch, found.ensemble.accuracy) for epoch, found in history]),
            "ensemble",
            linewidth=1.8,
            zorder=4,
        )
    style.style_axes(axes, ylabel="validation accuracy (%)")
    style.accuracy_axis(axes, settled or drawn)


def _percents(points: Sequence[tuple[int, float | None]]) -> list[Point]:
    return [(epoch, 100 * share) for epoch, share in points if share is not None]


def _line(axes: Axes, arm: DrawnArm, points: Sequence[tuple[float, float]], **look: Any) -> None:
    """A curve; its points are marked where they are too few to make one."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    marker = arm.marker if len(points) <= 2 else None
    axes.plot(xs, ys, color=arm.color, marker=marker, markersize=3.5, **{"zorder": 3, **look})


def _mean(losses: Iterable[float | None]) -> float:
    values = [loss for loss in losses if loss is not None]
    return sum(values) / len(values) if values else math.nan


def widths_learned(results: RunResults) -> Sequence[WidthEpoch | Epoch]:
    """The epochs in which widths were learned; none where no run learned any.

    They are those of the run's own stage, or else of an arm whose widths changed in its training.
    """
    if results.widths:
        return results.widths
    for arm in results.arms:
        history = [epoch for epoch in arm.history if epoch.widths]
        if any(epoch.widths != history[0].widths for epoch in history):
            return history
    return ()


@style.plain_text
def width_history(results: RunResults) -> Figure:
    """Hidden neurons (log) by epoch, a line a learned width, in its member's colour.

    The legend says how many neurons each member's widths had together after the first epoch and after the last.
    Artists carry a ``gid``: ``MEMBER width``.
    """
    history = [(epoch.epoch, epoch.widths or {}) for epoch in widths_learned(results)]
    if not history:
        raise SuperWeightError("the results hold no widths that were learned")
    figure = style.new_figure(style.COLUMN_INCHES, 2.9)
    axes = figure.add_subplot()
    style.style_axes(axes, xlabel="epoch", ylabel="hidden neurons")
    handles = []
    for index, member in enumerate(dict.fromkeys(name for _, widths in history for name in widths)):
        look: dict[str, Any] = {"color": style.run_color(index), "marker": style.run_marker(index), "markersize": 3.5}
        paths = list(dict.fromkeys(path for _, widths in history for path in widths.get(member, {})))
        for path in paths:
            points = [(epoch, widths[member][path]) for epoch, widths in history if member in widths]
            step = max(len(points) // 5, 1)
            few = list(range(index % step, len(points), step))  # so that members can be told apart without colour
            axes.plot(*zip(*points), linewidth=1.2, zorder=3, gid=f"{member} width", markevery=few, **look)
        first, last = (sum(history[place][1].get(member, {}).values()) for place in (0, -1))
        label = f"{member}: {style.quantity(first)} to {style.quantity(last)} neurons"
        handles.append(Line2D([], [], label=label if len(paths) == 1 else f"{label} in {len(paths)} widths", **look))
    sizes = [size for _, widths in history for own in widths.values() for size in own.values()]
    style.counts_axis(axes, "y", sizes)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, min_n_ticks=1))
    style.outside_legend(figure, handles, loc="outside upper center", columns=1)
    return figure


@style.plain_text
def anytime_curves(results: RunResults) -> Figure:
    """Test accuracy (per cent) against mean cost per image: FLOPs on the left, milliseconds measured on the right.

    Solid lines are cascades (a point a budget, thresholds from validation data), dashed steps the streams (after each
    member), single markers the members alone. Where members are cut to fewer of their learned neurons, dotted lines are
    the cascades through these exits too, and crosses the exits alone. Under each panel: the area under each curve over
    the logarithm of the cost. Artists carry a ``gid``: ``shared cascade``, ``shared stream``, ``shared members``,
    ``shared truncated``, ``shared exits``, ``areas``.
    """
    arms = [(arm, arm.results.anytime) for arm in read_arms(results) if arm.results.anytime]
    if not arms:
        raise SuperWeightError(
            f"the results of run {results.name!r} hold no anytime curves: give its recipe an anytime section"
        )
    figure = style.new_figure(style.PAGE_INCHES, 3.3)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, cost, make_axis in zip(panels, ("flops", "latency_ms"), (style.flops_axis, style.latency_axis)):
        points = [point for _, found in arms for own in _points(found, cost).values() for point in own]
        xlabel = make_axis(axes, [x for x, _ in points])
        style.accuracy_axis(axes, [y for _, y in points], below=0.09 * len(arms))
        style.style_axes(axes, xlabel=xlabel, ylabel="test accuracy (%)" if cost == "flops" else "")
        for arm, found in arms:
            _draw_anytime(axes, arm, found, cost)
        _write_areas(axes, arms, "area" if cost == "flops" else "latency_area")
    handles = [Line2D([], [], color=arm.color, linewidth=1.5, label=arm.label) for arm, _ in reversed(arms)]
    kinds: dict[str, dict[str, Any]] = {
        "cascade": {"marker": ".", "markersize": 5},
        "stream": {"linestyle": _DASHES, "linewidth": 1.0},
        "a member alone": {"marker": "D", "markersize": 4, "linewidth": 0},
    }
    if any(found.truncated for _, found in arms):
        kinds["cascade with truncations"] = {"linestyle": _DOTS, "linewidth": 1.4, "marker": ".", "markersize": 5}
        kinds["a truncated member alone"] = {"marker": "x", "markersize": 4, "linewidth": 0}
    handles += [Line2D([], [], color=style.MUTED, label=label, **look) for label, look in kinds.items()]
    style.outside_legend(figure, handles, loc="outside upper center", columns=5)
    return figure


def _points(found: AnytimeResult, cost: str) -> dict[str, list[Point]]:
    """(Cost, accuracy in per cent) of members, curves and exits, by what they are; exits have no measured time."""
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


def _draw_anytime(axes: Axes, arm: DrawnArm, found: AnytimeResult, cost: str) -> None:
    points = _points(found, cost)
    top = 3 if arm.name == "shared" else 2
    look: dict[str, Any] = {"linewidth": 1.0, "linestyle": _DASHES, "alpha": 0.8, "zorder": top}
    axes.step(*zip(*points["stream"]), where="post", color=arm.color, gid=f"{arm.name} stream", **look)
    look = {"color": arm.color, "linewidth": 1.4, "marker": ".", "markersize": 5, "zorder": top + 2}
    axes.plot(*zip(*sorted(points["cascade"])), gid=f"{arm.name} cascade", **look)
    gid = f"{arm.name} members"
    style.draw_markers(axes, points["members"], color=arm.color, marker="D", size=16, zorder=top + 1, gid=gid)
    if found.truncated:
        axes.plot(*zip(*sorted(points["truncated cascade"])), linestyle=_DOTS, gid=f"{arm.name} truncated", **look)
        look = {"color": arm.color, "marker": "x", "markersize": 4, "linewidth": 0, "zorder": top + 1}
        axes.plot(*zip(*points["truncated"]), gid=f"{arm.name} exits", **look)


def _write_areas(axes: Axes, arms: Sequence[tuple[DrawnArm, AnytimeResult]], area: str) -> None:
    """The areas as text in the free corner below."""
    lines = ["mean over log cost (%)"]
    for arm, found in reversed(arms):
        cascade, stream = (100 * getattr(found.curve(name), area) for name in ("cascade", "stream"))
        lines.append(f"{arm.label}: cascade {cascade:.2f}, stream {stream:.2f}")
        if found.truncated:
            lines[-1] += f", with truncations {100 * getattr(found.truncated.curve('cascade'), area):.2f}"
    axes.text(
        0.98, 0.02, "\n".join(lines), transform=axes.transAxes, ha="right", va="bottom", color=style.INK,
        fontsize=style.SMALL_POINTS - 1, linespacing=1.3, gid="areas",
    )  # fmt: skip


@style.plain_text
def reliability_diagram(results: RunResults) -> Figure:
    """Accuracy against mean confidence of the full ensembles in bins (per cent), over the share of images a bin.

    On the diagonal confidence is right; below it the ensemble is overconfident. Thin bars are one standard
    error (Wilson). ECE stands in the legend. Artists carry a ``gid``: ``shared bins``, ``shared histogram``.
    """
    arms = read_arms(results)
    figure = style.new_figure(style.COLUMN_INCHES, 4.4)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 100], [0, 100], color=style.MUTED, linewidth=0.8, linestyle=(0, (4, 2)), zorder=1.5, gid="diagonal")
    for arm in arms:
        _draw_bins(upper, arm)
    for place, arm in enumerate(reversed(arms)):
        _draw_histogram(lower, arm, place, len(arms))
    style.style_axes(upper, ylabel="accuracy (%)")
    style.style_axes(lower, xlabel="confidence (%)", ylabel="images (%)", grid="y")
    upper.set_xlim(-1, 101)
    upper.set_ylim(-2, 102)
    for axis in (upper.xaxis, upper.yaxis):
        axis.set_major_locator(MultipleLocator(20))
    handles, _ = upper.get_legend_handles_labels()
    style.outside_legend(figure, handles[::-1], loc="outside upper center", columns=2)
    return figure


@style.plain_text
def uncertainty_curves(results: RunResults) -> Figure:
    """Error (per cent) over the share of images that is answered, surest first; below, accuracy under corruption.

    The lower panel, left out where no image was corrupted, has the mean over corruptions as a thick line and each one
    as a thin line; severity 0 is the test images as they are. Artists carry a ``gid``: ``shared risk``,
    ``shared corrupted``, ``shared corruption``.
    """
    arms = read_arms(results)
    corrupted = any(arm.results.shift is not None and arm.results.shift.corrupted for arm in arms)
    figure = style.new_figure(style.COLUMN_INCHES, 4.4 if corrupted else 2.7)
    panels = figure.subplots(2 if corrupted else 1, 1, squeeze=False)[:, 0]
    for arm in arms:
        known = arm.results.uncertainty
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
    handles = [Line2D([], [], color=arm.color, linewidth=1.8, label=arm.label) for arm in reversed(arms)]
    if corrupted:
        handles.append(Line2D([], [], color=style.MUTED, linewidth=0.8, label="one corruption"))
    style.outside_legend(figure, handles, loc="outside upper center", columns=3)
    return figure


def _draw_corrupted(axes: Axes, arm: DrawnArm) -> None:
    clean = (0.0, 100 * arm.results.ensemble.metrics.accuracy)
    found = arm.results.shift.corrupted if arm.results.shift else ()
    if not found:
        return
    for name in dict.fromkeys(one.corruption for one in found):
        own = [(float(one.severity), 100 * one.metrics.accuracy) for one in found if one.corruption == name]
        _line(axes, arm, [clean, *sorted(own)], linewidth=0.6, alpha=0.45, gid=f"{arm.name} corruption")
    means = [
        (float(severity), 100 * _mean(one.metrics.accuracy for one in found if one.severity == severity))
        for severity in sorted({one.severity for one in found})
    ]
    _line(axes, arm, [clean, *means], linewidth=1.8, zorder=4, gid=f"{arm.name} corrupted")


def _draw_bins(axes: Axes, arm: DrawnArm) -> None:
    bins = [(one.confidence or 0.0, one.accuracy or 0.0, one.count) for one in arm.results.reliability if one.count]
    confidences = [100 * confidence for confidence, _, _ in bins]
    errors = [_wilson(accuracy, count) for _, accuracy, count in bins]
    ends = ([100 * low for low, _ in errors], [100 * high for _, high in errors])
    axes.vlines(confidences, *ends, color=arm.color, alpha=0.4, linewidth=0.8, zorder=2)
    axes.plot(
        confidences, [100 * accuracy for _, accuracy, _ in bins], color=arm.color,
        linestyle="none",  # bins of a few images would make a line zigzag
        marker=arm.marker, markersize=4.5, markeredgecolor="white", markeredgewidth=0.5, zorder=3,
        label=f"{arm.label}, ECE {100 * arm.results.ensemble.metrics.ece:.2f} %", gid=f"{arm.name} bins",
    )  # fmt: skip


def _draw_histogram(axes: Axes, arm: DrawnArm, place: int, arms: int) -> None:
    """Bars of the arms side by side inside each bin."""
    bins = arm.results.reliability
    total = sum(one.count for one in bins) or 1
    widths = [100 * (one.upper - one.lower) for one in bins]
    lefts = [100 * one.lower + width * (0.06 + 0.88 * place / arms) for one, width in zip(bins, widths)]
    heights = [100 * one.count / total for one in bins]
    look: dict[str, Any] = {"align": "edge", "color": arm.color, "linewidth": 0, "gid": f"{arm.name} histogram"}
    axes.bar(lefts, heights, width=[0.88 * width / arms for width in widths], **look)


def _wilson(share: float, count: int) -> tuple[float, float]:
    """One standard error around a share of ``count`` draws."""
    middle = (share + 0.5 / count) / (1 + 1 / count)
    half = math.sqrt(share * (1 - share) / count + 0.25 / count**2) / (1 + 1 / count)
    return middle - half, middle + half
