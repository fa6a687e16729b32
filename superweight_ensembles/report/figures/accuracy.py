"""Accuracy against compute and against size: every subset and member of a run, and several runs in one picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.transforms import Bbox, blended_transform_factory

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.experiment import RunResults
from superweight_ensembles.report.figures import style
from superweight_ensembles.report.figures.drawn_arms import Point, RunArm, one_seed, read_arms
from superweight_ensembles.report.figures.labels import PointLabel, place_labels

_DOTS = (0, (1, 1.5))
_DASHES = (0, (3, 1.5))
_BAND = 0.30
_ARROW_HEIGHT = 0.055
_PAIRED = " All arms answer the same images, so their differences are surer than the bars."


@style.styled
def accuracy_flops(results: RunResults) -> Figure:
    """Test accuracy (per cent) against FLOPs per image (log), for each arm of a run."""
    arms = read_arms(results)
    points = [point for arm in arms for point in (*arm.subsets, arm.ensemble, *arm.members.values())]
    bands = [arm.error_bar(point) for arm in arms for point in (*arm.members.values(), arm.ensemble)]
    flops, percents = zip(*points, *(end for band in bands for end in band))
    figure, axes = style.accuracy_axes(
        (style.COLUMN_INCHES, 3.2), style.flops_axis, flops, percents,
        title=f"{results.name}: accuracy against compute",
        caption=one_seed(arms, "Bars") + _PAIRED * (len(arms) > 1),
    )  # fmt: skip
    for below, arm in enumerate(arms):
        _draw_arm(axes, arm, larger=len(arms) - 1 - below)  # lower markers are larger: equal results stay visible
    handles = [style.key(arm.label, arm.color, arm.marker, 5, markerfacecolor="white") for arm in reversed(arms)]
    color = arms[-1].color if len(arms) == 1 else style.MUTED
    handles += [style.key("all members", color, "*", 9, markerfacecolor="white"), style.key("a subset", color, ".", 4)]
    handles.append(style.key("joined: no cheaper subset is better", color, ".", 4, linewidth=1.3))
    style.outside_legend(figure, handles, loc="outside upper center", columns=3)
    place_labels(
        axes,
        _member_labels(arms),
        markers=[point for arm in arms for point in (*arm.members.values(), arm.ensemble)],
        dots=[point for arm in arms for point in arm.subsets],
        lines=[arm.front for arm in arms] + bands,
    )
    return figure


def draw_errors(axes: Axes, arm: RunArm, points: Iterable[Point]) -> None:
    """A pale bar over each point: the standard error of its accuracy."""
    for point in points:
        style.draw_line(axes, arm.error_bar(point), "error", color=arm.color, gid=f"{arm.name} error")


def _draw_arm(axes: Axes, arm: RunArm, larger: int) -> None:
    """Subsets, front, members and full ensemble of one arm."""
    faint = 0.45 if len(arm.subsets) <= 63 else 0.28
    xs, ys = zip(*arm.subsets)
    axes.scatter(xs, ys, s=5, alpha=faint, linewidths=0, color=arm.color, marker=arm.marker, gid=f"{arm.name} subsets")
    style.draw_line(axes, arm.front, "front", color=arm.color, gid=f"{arm.name} front")
    draw_errors(axes, arm, (*arm.members.values(), arm.ensemble))
    style.draw_markers(
        axes, arm.members.values(), color=arm.color, marker=arm.marker, hollow=True,
        size=22 + 16 * larger, zorder=4 - 0.1 * larger, gid=f"{arm.name} members",
    )  # fmt: skip
    style.draw_markers(
        axes, [arm.ensemble], color=arm.color, marker="*", hollow=True,
        size=110 + 50 * larger, zorder=5 - 0.1 * larger, gid=f"{arm.name} ensemble",
    )  # fmt: skip


def _member_labels(arms: Sequence[RunArm]) -> list[PointLabel]:
    """One label a member, at the shared arm; again only where another arm's member costs other FLOPs."""
    labels = []
    named: dict[str, list[float]] = {}
    for arm in reversed(arms):
        for name, (flops, percent) in arm.members.items():
            if all(abs(flops / other - 1) > 0.1 for other in named.get(name, [])):
                labels.append(PointLabel(text=name, x=flops, y=percent))
            named.setdefault(name, []).append(flops)
    return labels


@style.styled
def accuracy_parameters(results: RunResults) -> Figure:
    """Test accuracy (per cent) against trainable parameters: the ensembles, and each independent member."""
    arms = read_arms(results)
    stars = {arm.name: (arm.num_parameters, arm.percent) for arm in arms}
    independent, shared = results.arm("independent"), results.arm("shared")
    singles = {
        member.name: (float(member.num_parameters), 100 * member.metrics.accuracy)
        for member in (independent.members if independent else ())
    }
    apart = float(shared.independent_parameters) if shared else 0.0
    drawn = [*stars.values(), *singles.values()]
    owners = [*arms, *([arms[0]] * len(singles))]
    bands = [arm.error_bar(point) for arm, point in zip(owners, drawn)]
    counts, percents = zip(*(end for band in bands for end in band))
    below = _BAND if apart else 0.0
    counts += (apart,) if apart else ()
    figure, axes = style.accuracy_axes(
        (style.COLUMN_INCHES, 3.0), style.parameters_axis, counts, percents, below=below,
        title=f"{results.name}: accuracy against size",
        caption=one_seed(arms, "Bars") + _PAIRED * (len(arms) > 1),
    )  # fmt: skip
    for arm, point in zip(owners, drawn):
        draw_errors(axes, arm, [point])
    if singles:
        style.draw_markers(
            axes, singles.values(), color=style.APART, marker="s", gid="independent members", hollow=True
        )
    for arm in arms:
        style.draw_markers(
            axes, [stars[arm.name]], color=arm.color, marker="*", hollow=True, size=130, zorder=5,
            gid=f"{arm.name} ensemble",
        )  # fmt: skip
    names = {"shared": "shared ensemble", "independent": "independent ensemble"}
    hollow: dict[str, Any] = {"markerfacecolor": "white"}
    handles = [style.key(names.get(arm.name, arm.label), arm.color, "*", 9, **hollow) for arm in reversed(arms)]
    if singles:
        handles.append(style.key("one member", style.APART, "s", 5, **hollow))
    else:
        handles.append(style.key("members apart", style.APART, linestyle=_DOTS, linewidth=0.9))
    style.outside_legend(figure, handles, loc="outside upper center", columns=3)
    taken = []
    if shared:
        taken = _draw_saving(axes, stars["shared"], (apart, stars["independent"][1] if independent else None))
    labels = [PointLabel(text=name, x=count, y=percent) for name, (count, percent) in singles.items()]
    place_labels(axes, labels, markers=drawn, lines=bands, boxes=taken)
    return figure


def _draw_saving(axes: Axes, shared: Point, apart: tuple[float, float | None]) -> list[Bbox]:
    """An arrow under the data from the members apart to the shared bank; returns the pixels it takes."""
    across = blended_transform_factory(axes.transData, axes.transAxes)
    count, percent = apart
    bottom, top = axes.get_ylim()
    for x, y, color in (
        (shared[0], shared[1], style.ARM_LOOKS["shared"][0]),
        (count, top if percent is None else percent, style.APART),  # to the top without an independent arm
    ):
        heights = [_ARROW_HEIGHT - 0.03, (y - bottom) / (top - bottom)]
        axes.plot([x, x], heights, transform=across, color=color, linewidth=0.7, linestyle=_DOTS, zorder=1.5)
    change = 100 * (shared[0] / count - 1)
    sign = "\N{MINUS SIGN}" if change < 0 else "+"
    size = f"{abs(change):.0f}" if abs(change) >= 9.5 else f"{abs(change):.1f}"
    text = f"{sign}{size} % parameters" if abs(change) >= 0.05 else "as many parameters"
    if abs(change) >= 0.05:
        arrow = {"arrowstyle": "-|>", "color": style.INK, "linewidth": 0.9, "mutation_scale": 8}
        arrow |= {"shrinkA": 0, "shrinkB": 0}
        ends: dict[str, Any] = {"xy": (shared[0], _ARROW_HEIGHT), "xytext": (count, _ARROW_HEIGHT)}
        axes.annotate("", **ends, xycoords=across, textcoords=across, arrowprops=arrow, gid="saving arrow")
    note = axes.text(
        0.5, _ARROW_HEIGHT + 0.03, text, transform=axes.transAxes, ha="center", va="bottom", zorder=6, gid="saving",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85},
    )  # fmt: skip
    note.set_in_layout(False)
    _center_inside(axes, note, (shared[0], count))
    frame = axes.get_window_extent()
    return [Bbox.from_extents(frame.x0, frame.y0, frame.x1, note.get_window_extent().y1)]


def _center_inside(axes: Axes, note: Text, ends: Point) -> None:
    """Centre a text over its arrow, as nearly as it stays inside the axes."""
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    frame = axes.get_window_extent()
    middle = sum(float(axes.transData.transform((x, axes.get_ylim()[0]))[0]) for x in ends) / 2
    half = note.get_window_extent().width / 2 / frame.width
    place = (middle - frame.x0) / frame.width
    note.set_x(min(max(place, half + 0.01), 0.99 - half))


@style.styled
def compare_flops(results: Sequence[RunResults]) -> Figure:
    """Test accuracy (per cent) against FLOPs per image (log): the best subsets of each arm of each run."""
    arms = _arms_of_runs(results)
    fronts = [arm.front for arm in arms]
    certainty = one_seed(arms, "Bars")
    points = [point for front in fronts for point in front] + [arm.ensemble for arm in arms]
    figure, axes = style.accuracy_axes(
        (style.COLUMN_INCHES, 3.1 + 0.1 * len(results)), style.flops_axis, *zip(*points),
        title="Accuracy against compute", caption=f"Lines join the subsets that no cheaper one beats. {certainty}",
    )  # fmt: skip
    for order, (arm, front) in enumerate(zip(arms, fronts)):
        above = arm.leads - 0.01 * order
        style.draw_line(
            axes, front, "front", color=arm.color, linestyle="-" if arm.leads else _DASHES, marker=arm.marker,
            markeredgecolor="white", markeredgewidth=0.4, zorder=4 + above, gid=f"{arm.gid} front",
        )  # fmt: skip
        draw_errors(axes, arm, [arm.ensemble])
        style.draw_markers(
            axes, [arm.ensemble], color=arm.color, marker="*", hollow=True, size=110, zorder=6 + above,
            gid=f"{arm.gid} ensemble",
        )  # fmt: skip
    handles = [style.key(arm.run, arm.color, arm.marker, 5, linewidth=1.3) for arm in arms if arm.leads]
    for label, color in _other_arms(arms):
        handles.append(style.key(label, color, linewidth=1.3, linestyle=_DASHES))
    handles.append(style.key("all members", style.MUTED, "*", 9))
    style.outside_legend(figure, handles, loc="outside lower center", columns=3)
    return figure


@style.styled
def compare_parameters(results: Sequence[RunResults]) -> Figure:
    """Test accuracy (per cent) of the full ensembles of several runs against their trainable parameters."""
    arms = _arms_of_runs(results)
    points = [(arm.num_parameters, arm.percent) for arm in arms]
    bands = [arm.error_bar(point) for arm, point in zip(arms, points)]
    figure, axes = style.accuracy_axes(
        (style.COLUMN_INCHES, 3.0), style.parameters_axis, *zip(*(end for band in bands for end in band)),
        title="Accuracy against size", caption="A dotted line joins the arms of one run. " + one_seed(arms, "Bars"),
    )  # fmt: skip
    runs: dict[str, list[Point]] = {}
    for order, (arm, point) in enumerate(zip(arms, points)):
        runs.setdefault(arm.run, []).append(point)
        draw_errors(axes, arm, [point])
        style.draw_markers(
            axes, [point], color=arm.color, marker=arm.marker, hollow=True, size=40,
            zorder=4 + arm.leads - 0.01 * order, gid=f"{arm.gid} ensemble",
        )  # fmt: skip
    for own in runs.values():
        axes.plot(*zip(*own), color=style.MUTED, linewidth=0.6, linestyle=_DOTS, zorder=1.5, gid="same run")
    handles = [Patch(facecolor=color, label=label) for label, color in _other_arms(arms)]
    if handles:
        style.outside_legend(figure, handles, loc="outside upper center", columns=3)
    labels = [
        PointLabel(text=arm.run, x=point[0], y=point[1], color=arm.color)
        for arm, point in zip(arms, points)
        if arm.leads
    ]
    place_labels(axes, labels, markers=points, lines=list(runs.values()))
    return figure


def _arms_of_runs(results: Sequence[RunResults]) -> list[RunArm]:
    """Arms of the runs, each run's leading one first: the shared arm, or else its first."""
    if not results:
        raise SuperWeightError("a comparison needs at least one run; none was given")
    arms = []
    for index, (run, content) in enumerate(zip(_run_names(results), results)):
        first, *others = reversed(read_arms(content))
        arms.append(replace(first, run=run, **style.run_look(index), leads=True))
        # The marker tells the run; the colour too, but independent members are grey.
        arms += [replace(arm, run=run, marker=style.run_marker(index)) for arm in others]
    return arms


def _other_arms(arms: Sequence[RunArm]) -> list[tuple[str, str]]:
    """(label, colour) of the arms that lead no run."""
    return list(dict.fromkeys((arm.label, arm.color) for arm in arms if not arm.leads))


def _run_names(results: Sequence[RunResults]) -> list[str]:
    """Names of the runs; equal ones are followed by their data set, else their size, else a number."""
    names = [run.name for run in results]
    datasets = [run.dataset.name for run in results]
    sizes = [style.quantity(read_arms(run)[-1].num_parameters) for run in results]
    numbers = [f"#{index + 1}" for index in range(len(results))]
    for notes in (datasets, sizes, numbers):
        total = Counter(names)
        groups = {name: {note for other, note in zip(names, notes) if other == name} for name in total}
        names = [
            f"{name} {note}" if total[name] > 1 and len(groups[name]) > 1 else name for name, note in zip(names, notes)
        ]
    return names
