"""Many ways to an ensemble in one picture, over seeds: against size, against compute, and one choice a row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, count
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Annotation, Text
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.experiment import Comparison, SeedSummary
from superweight_ensembles.report.figures import style
from superweight_ensembles.report.figures.drawn_arms import Point, SeedsArm, num_seeds, read_measured
from superweight_ensembles.report.figures.labels import PointLabel, label_ends, place_labels
from superweight_ensembles.report.findings import changed

Values = NDArray[np.float64]

_FEW, _SHORT = 6, 20
_LABEL_CHARACTERS, _BAR_LABEL_CHARACTERS = 28, 44
_LEADERS_AT_MOST = 4
_FAR, _COARSE = 3.0, 0.35  # an axis breaks if its lower part is this many times the upper; then the lower part's share
_ROW_INCHES, _LINE_INCHES, _HEADING_ROWS = 0.21, 0.13, 1.25


def series_lines(arms: Sequence[SeedsArm]) -> dict[str, list[Point]]:
    """(Parameters, accuracy) of the arms of each series, by size; the shared bank itself belongs to the budgets."""
    found: dict[str, list[Point]] = {}
    for arm in arms:
        series = arm.source.series or ("budget" if arm.kind == "shared" else None)
        if series:
            found.setdefault(series, []).append((arm.num_parameters, arm.percent))
    return {series: sorted(points) for series, points in found.items() if len(points) > 1}


def grouped(arms: Sequence[SeedsArm]) -> list[tuple[str, list[SeedsArm]]]:
    """Arms by heading, in order of first appearance, best first; before them, as given, those without a heading."""
    groups: dict[str, list[SeedsArm]] = {"": []}
    for arm in arms:
        groups.setdefault(arm.source.group or "", []).append(arm)
    return [(group, sorted(own, key=lambda arm: -arm.percent) if group else own) for group, own in groups.items()]


@style.styled
def arms_parameters(comparison: Comparison) -> Figure:
    """Test accuracy (per cent, mean over seeds) of each arm against its trainable parameters."""
    arms = read_measured(comparison)
    lines = {f"{name} series": (points, style.LOOKS["series"]) for name, points in series_lines(arms).items()}
    title = f"Test accuracy and size of each ensemble, {_data_words(comparison)}"
    return _draw_arms(arms, [arm.num_parameters for arm in arms], _sizes_axis, lines, title)


@style.styled
def arms_flops(comparison: Comparison) -> Figure:
    """Test accuracy (per cent, mean over seeds) of each arm against FLOPs per image (log)."""
    arms = read_measured(comparison)
    many = sum(arm.kind == "variant" for arm in arms) > _FEW
    lines: dict[str, tuple[Sequence[Point], Mapping[str, Any]]] = {}
    for arm in sorted((arm for arm in arms if arm.subsets), key=lambda arm: arm.kind != "variant"):
        pale = {"color": style.mix(arm.color, "white", 0.6), "linewidth": 0.6, "markersize": 2}
        look = pale if many and arm.kind == "variant" else {"color": arm.color}
        lines[f"{arm.name} front"] = (arm.front, {"linestyle": "-", "marker": ".", **look})
    title = f"Test accuracy and compute of each ensemble, {_data_words(comparison)}"
    return _draw_arms(arms, [arm.ensemble[0] for arm in arms], style.flops_axis, lines, title)


def _data_words(comparison: Comparison) -> str:
    return f"{comparison.dataset.name}, {comparison.dataset.num_test:,} test images"


def _sizes_axis(axes: Axes, counts: Sequence[float]) -> str:
    """Parameters, logarithmic beyond a factor of four; else linear over these sizes, without zero: these are points."""
    low, high = min(counts), max(counts)
    label = style.parameters_axis(axes, counts, logarithmic=high > 4 * low)
    if axes.get_xscale() == "linear" and high > low:
        axes.set_xlim(low - 0.15 * (high - low), high + 0.06 * (high - low))
    return label


def _draw_arms(
    arms: Sequence[SeedsArm],
    xs: Sequence[float],
    scale: style.Scale,
    lines: Mapping[str, tuple[Sequence[Point], Mapping[str, Any]]],
    title: str,
) -> Figure:
    """Draw arms with every label at its point; without room, without the variants' labels; else with numbers."""
    few = len(arms) <= _FEW and max(len(arm.label) for arm in arms) <= _SHORT
    drawn = [point for line, _ in lines.values() for point in line]
    percents = [percent for arm in arms for percent in arm.spread] + [percent for _, percent in drawn]
    upper = [percent for arm in arms if arm.kind in ("shared", "independent") for percent in arm.spread]
    knee = min([*upper, *(percent for _, percent in drawn)], default=min(percents))
    labels = [style.balanced(arm.label, _LABEL_CHARACTERS) for arm in arms]
    numbers = [str(place) for place in range(1, len(arms) + 1)]
    choices = [(labels, False), (numbers, True)]
    if 1 < sum(arm.kind == "variant" for arm in arms) < len(arms):
        choices.insert(1, (["" if arm.kind == "variant" else label for arm, label in zip(arms, labels)], False))
    for texts, numbered in choices:
        handles = _handles(arms, lines, texts, numbered)
        height = 3.3 if few else 3.8 + 0.17 * max(len(handles) - 4, 0) / 2
        figure, axes = style.accuracy_axes(
            (style.PAGE_INCHES, height), scale, [*xs, *(x for x, _ in drawn)], percents, title=title
        )
        _break_axis(axes, knee, min(percents), max(percents))
        for gid, (points, look) in lines.items():
            axes.plot(*zip(*points), **{"linewidth": 1.1, "markersize": 4, **look}, zorder=2, gid=gid)
        for arm, x in zip(arms, xs):
            _draw_spread(axes, arm, x, upright=True)
            order = 4 + 0.5 * (arm.kind == "shared") - 0.4 * (arm.kind == "variant")
            _draw_mean(axes, arm, (x, arm.percent), size=40 if arm.kind == "shared" else 26, zorder=order)
        style.outside_legend(figure, handles, loc="outside lower center", columns=4)
        named = [
            PointLabel(text=text, x=x, y=arm.percent, color=style.readable(arm.color))
            for text, arm, x in zip(texts, arms, xs)
            if text
        ]
        last = max(xs)
        beside = label_ends(axes, [label for label in named if label.x == last])
        bars = [[(x, end) for end in arm.deviation] for arm, x in zip(arms, xs)]
        written = place_labels(
            axes,
            [label for label in named if label.x < last],
            markers=[(x, arm.percent) for arm, x in zip(arms, xs)],
            dots=[(x, percent) for arm, x in zip(arms, xs) for percent in arm.seeds] + drawn,
            lines=[points for points, _ in lines.values()],
            boxes=[Bbox(axes.transData.transform(bar)).padded(1.0) for bar in bars],
        )
        if _legible(axes, written, beside):
            break
    return figure


def _break_axis(axes: Axes, knee: float, low: float, high: float) -> None:
    """Draw what lies far below the knee on a coarser scale, so that it does not press the rest together."""
    if knee - low <= _FAR * (high - knee) or high == knee:
        return
    knee -= 0.08 * (high - knee)
    slope = (high - knee) * _COARSE / (1 - _COARSE) / (knee - low)

    def to_axis(percents: Values) -> Values:
        above = np.asarray(percents, dtype=float) - knee
        return np.where(above < 0, slope * above, above)

    def to_percent(places: Values) -> Values:
        above = np.asarray(places, dtype=float)
        return np.where(above < 0, above / slope, above) + knee

    axes.set_yscale("function", functions=(to_axis, to_percent))
    margin = 0.07 * (high - knee)
    axes.set_ylim(low - margin / slope, high + margin)
    fine, coarse = (MaxNLocator(most, steps=[1, 2, 5, 10]) for most in (4, 3))
    ticks = [tick for tick in coarse.tick_values(low, knee) if low <= tick < knee - 0.5 * margin / slope]
    ticks += [tick for tick in fine.tick_values(knee, high) if knee < tick <= high + margin]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.axhline(knee, color=style.MUTED, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1.5, gid="break")
    spot = {"xycoords": axes.get_yaxis_transform(), "va": "top", "color": style.readable(style.MUTED)}
    style.write_beside(axes, f"below {knee:.1f} %: scale {1 / slope:.0f} times coarser", (0, knee), (4, -3), **spot)


def _draw_mean(axes: Axes, arm: SeedsArm, point: Point, *, size: float, **look: Any) -> None:
    """The marker of an arm; it is open where there is one seed."""
    gid = f"{arm.name} mean"
    style.draw_markers(axes, [point], color=arm.color, marker=arm.marker, size=size, gid=gid, **look)
    if len(arm.seeds) == 1:
        axes.collections[-1].set(facecolor="white", edgecolor=arm.color, linewidth=1.1)


def _draw_spread(axes: Axes, arm: SeedsArm, place: float, *, upright: bool) -> None:
    """The seeds and their deviation, above each other at this x or side by side at this y; nothing for one seed."""
    if len(arm.seeds) < 2:
        return
    ends, places = arm.deviation, [place] * len(arm.seeds)
    xs, ys, bar = (places, arm.seeds, (places[:2], ends)) if upright else (arm.seeds, places, (ends, places[:2]))
    size, width = (9, 1.3) if upright else (10, 1.4)
    pale = style.mix(arm.color, "white", 0.55)
    axes.scatter(xs, ys, s=size, color=pale, linewidths=0, zorder=3.2, gid=f"{arm.name} seeds")
    axes.plot(*bar, color=arm.color, linewidth=width, zorder=3, gid=f"{arm.name} deviation")


def _handles(arms: Sequence[SeedsArm], lines: Iterable[str], texts: Sequence[str], numbered: bool) -> list[Line2D]:
    """Legend of marks and lines; of the arms, too, where they have numbers, or no label."""
    handles = [
        style.key(style.balanced(f"{text}  {arm.label}", 2 * _LABEL_CHARACTERS), arm.color, arm.marker)
        for arm, text in zip(arms, texts if numbered else [])
    ]
    variant = next((arm for arm, text in zip(arms, texts) if not text), None)
    if variant:
        handles.append(style.key("the bank, other settings", variant.color, variant.marker))
    handles += _seed_handles(arms, 1.3)
    if any(gid.endswith("front") for gid in lines):
        handles.append(style.key("best subsets of members", style.MUTED, ".", 4, 1.1))
    if "budget series" in lines:
        handles.append(style.key("the bank at other budgets", **style.LOOKS["series"]))
    return handles


def _seed_handles(arms: Sequence[SeedsArm], linewidth: float) -> list[Line2D]:
    counts = [len(arm.seeds) for arm in arms]
    handles = []
    if several := [arm for arm in arms if len(arm.seeds) > 1]:
        mean = f"mean of {num_seeds(several)}, bar: standard deviation"
        handles.append(style.key(mean, style.MUTED, "o", linewidth=linewidth))
        handles.append(style.key("a seed", "#C9C9C9", "."))
    if 1 in counts:
        handles.append(style.key("one seed, spread unknown", style.MUTED, "o", markerfacecolor="white"))
    return handles


def _legible(axes: Axes, labels: Sequence[Annotation], beside: Sequence[Annotation]) -> bool:
    """Whether no label covers another one or leaves the axes, and few stand off from their points."""
    if len(axes.findobj(lambda artist: artist.get_gid() == "leader")) > _LEADERS_AT_MOST + len(beside):
        return False
    frame = axes.get_window_extent().padded(1)
    own, others = ([Text.get_window_extent(label) for label in some] for some in (labels, beside))
    inside = all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in own)
    inside &= all(frame.y0 <= box.y0 and box.y1 <= frame.y1 for box in (*own, *others))
    return inside and not any(first.overlaps(second) for first, second in combinations([*own, *others], 2))


@style.styled
def arms_anytime(comparison: Comparison) -> Figure:
    """Test accuracy (per cent) of each arm's cascade against mean FLOPs per image (log): stopping early."""
    arms = read_measured(comparison)
    curves = {one.name: _mean_cascade(one.runs) for one in comparison.arms if one.has_exits}
    if not curves:
        raise SuperWeightError(
            f"no arm of comparison {comparison.name!r} has exits: give its recipe an anytime section"
        )
    alone = [arm for arm in arms if arm.name not in curves]  # networks with one answer: a marker without a line
    costs = [cost for xs, _, _ in curves.values() for cost in xs] + [arm.ensemble[0] for arm in alone]
    percents = [percent for arm in alone for percent in arm.spread]
    # Only the two main arms have bands: bands of all arms would hide both.
    banded = [arm.name for arm in arms if arm.kind in ("shared", "independent")]
    for name, (_, mean, std) in curves.items():
        percents += [*mean, *(mean - std), *(mean + std)] if name in banded else [*mean]
    figure, axes = style.accuracy_axes(
        (style.PAGE_INCHES, 3.9), style.flops_axis, costs, percents, title=_anytime_title(comparison)
    )
    axes.set_xlabel(f"mean {axes.get_xlabel()}, easy images stop early (logarithmic)")
    ends = []
    variants = count(1)
    for arm in arms:
        if arm.kind == "variant":
            arm = replace(arm, **style.run_look(next(variants)))
        if arm.name in curves:
            xs, mean, std = curves[arm.name]
            main = arm.kind in ("shared", "independent")
            width, order = (2.2 if main else 1.1), 3 + (arm.kind == "shared") + 0.5 * main
            axes.plot(
                xs, mean, color=arm.color, marker=arm.marker, linewidth=width, markersize=3 + main, zorder=order,
                gid=f"{arm.name} cascade",
            )  # fmt: skip
            if arm.name in banded:
                look, gid = style.LOOKS["band"], f"{arm.name} band"
                axes.fill_between(xs, mean - std, mean + std, color=arm.color, zorder=2, gid=gid, **look)
            x, y, deviation = xs[-1], mean[-1], std[-1]
        else:
            (x, y), deviation = arm.ensemble, arm.std
            _draw_spread(axes, arm, x, upright=True)
            _draw_mean(axes, arm, (x, y), size=30)
        found = f"{y:.1f} ± {deviation:.1f}" if len(arm.seeds) > 1 else f"{y:.1f}"
        text = f"{arm.label}, {style.quantity(arm.num_parameters)}: {found}"
        ends.append(PointLabel(text=text, x=float(x), y=float(y), color=style.readable(arm.color)))
    note = f"at the lines' ends: trainable parameters: accuracy with all members (%); {num_seeds(arms)}, ± and band: "
    handles = [style.key(note + "standard deviation", style.INK)]
    style.outside_legend(figure, handles, loc="outside lower center", columns=3)
    label_ends(axes, ends)
    return figure


def _anytime_title(comparison: Comparison) -> str:
    first = comparison.arms[0]
    other = next((arm for arm in comparison.arms if arm.kind == "independent"), None)
    where = f"on {_data_words(comparison)}"
    if first.kind != "shared" or other is None or "area" not in other.difference:
        return f"Test accuracy when answers may stop early, {where}"
    gain = other.difference["area"]  # of mean accuracy over the logarithm of the FLOPs, paired by seed
    points = f"{100 * abs(gain.mean):.1f}" + (f" ± {100 * gain.std:.1f}" if gain.n > 1 else "")
    saved = changed(first.num_parameters, other.num_parameters)
    side = "higher" if gain.mean >= 0 else "lower"
    return (
        f"One bank for all members: {saved} parameters than members apart, accuracy {points} points {side} "
        f"over the whole range of compute, {where}"
    )


def _mean_cascade(runs: Sequence[SeedSummary]) -> tuple[Values, Values, Values]:
    """FLOPs, mean accuracy and deviation (per cent) of a cascade over the seeds."""
    curves = [np.array(sorted((point.flops, 100 * point.accuracy) for point in run.cascade or ())).T for run in runs]
    costs = curves[0][0]
    # Thresholds from validation images spend a little more or less on test images, seed by seed: accuracies are read at
    # the same costs, between the points, on the logarithm of the cost.
    rows = np.array([np.interp(np.log(costs), np.log(curve[0]), curve[1]) for curve in curves])
    return costs, rows.mean(0), rows.std(0, ddof=1) if len(runs) > 1 else np.zeros_like(costs)


@style.styled
def ablation_bars(comparison: Comparison) -> Figure:
    """Test accuracy (per cent, mean over seeds), one row an arm, best first under the headings of its group."""
    arms = read_measured(comparison)
    reference = next((arm for arm in arms if arm.kind == "independent"), None)
    labels = {arm.name: style.balanced(arm.label, _BAR_LABEL_CHARACTERS) for arm in arms}
    rows, headings, bottom = _place_rows(grouped(arms), labels)
    title = f"What each choice changes: one choice a row, best first, {_data_words(comparison)}"
    figure = style.new_figure(style.PAGE_INCHES, 0.9 + _ROW_INCHES * bottom, title=title)
    axes = figure.add_subplot()
    _limit_accuracies(axes, [percent for arm in arms for percent in arm.spread])
    axes.set_ylim(bottom - 0.4, -0.7)
    style.style_axes(axes, xlabel="test accuracy (%)", grid="x")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    handles: list[Line2D | Patch] = [*_seed_handles(arms, 1.4)]
    if reference:
        axes.axvline(reference.percent, color=style.APART, linewidth=0.9, zorder=1.5, gid="reference")
        if reference.std:
            axes.axvspan(
                *reference.deviation, color=style.APART, alpha=0.12, linewidth=0, zorder=1.2, gid="reference band"
            )
        band: dict[str, Any] = {"facecolor": to_rgba(style.APART, 0.15), "edgecolor": style.APART, "linewidth": 0.9}
        handles.append(Patch(label="members apart: mean and deviation", **band))
    for arm in arms:
        row = rows[arm.name]
        _draw_spread(axes, arm, row, upright=False)
        _draw_mean(axes, arm, (arm.percent, row), size=28)
        text = f"{arm.percent:.2f} ± {arm.std:.2f} %" if len(arm.seeds) > 1 else f"{arm.percent:.2f} %"
        look = {"xycoords": axes.get_yaxis_transform(), "va": "center_baseline", "annotation_clip": False}
        style.write_beside(axes, text, (1, row), (6, 0), gid=f"{arm.name} value", **look)
    style.outside_legend(figure, handles, loc="outside lower center", columns=3)
    _name_rows(figure, axes, {rows[name]: label for name, label in labels.items()}, headings)
    return figure


def _place_rows(
    groups: Sequence[tuple[str, Sequence[SeedsArm]]], labels: Mapping[str, str]
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


def _limit_accuracies(axes: Axes, percents: Sequence[float]) -> None:
    low, high = min(percents), max(percents)
    margin = 0.06 * max(high - low, 0.5)
    missing = max(0.0, 0.5 - (high - low)) / 2
    axes.set_xlim(max(low - missing - margin, -1.0), min(high + missing + margin, 100.0 + margin))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 2.5, 5, 10]))


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
