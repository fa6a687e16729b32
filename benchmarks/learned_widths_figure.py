"""The figure of learned_widths.json: widths that networks learn on harder and harder tasks, beside fixed widths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Annotated

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from pydantic import Field

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.report.figures import style
from superweight_ensembles.storage import Name, Positive, Share

_FIXED = "#4D4D4D"
_DASHES = (0, (4, 2))


@dataclass(frozen=True, kw_only=True)
class Tested:
    """Quality on test points."""

    accuracy: Share


@dataclass(frozen=True, kw_only=True)
class FixedWidth:
    """A network of so many hidden neurons."""

    width: Positive
    test: Tested

    @property
    def percent(self) -> float:
        return 100 * self.test.accuracy


@dataclass(frozen=True, kw_only=True)
class LearnedWidth(FixedWidth):
    """A network that learned its width; its history is (epoch, neurons)."""

    rate: Positive
    start: Positive
    history: Annotated[tuple[tuple[Positive, Positive], ...], Field(min_length=1, max_length=10_000)]


@dataclass(frozen=True, kw_only=True)
class WidthsCell:
    """A task and a seed."""

    task: Name
    learned: Annotated[tuple[LearnedWidth, ...], Field(min_length=1, max_length=32)]
    fixed: Annotated[tuple[FixedWidth, ...], Field(min_length=1, max_length=100)]


@dataclass(frozen=True, kw_only=True)
class LearnedWidths:
    """What is drawn of learned_widths.json, which benchmarks/learned_widths.py writes."""

    format: int = 1
    published_widths: dict[Name, Positive] = field(default_factory=dict)
    cells: Annotated[tuple[WidthsCell, ...], Field(max_length=1000)]


@style.styled
def learned_widths(measured: LearnedWidths) -> Figure:
    """A column a task. Above: hidden neurons by epoch (both log), a line a seed, a colour a start. Below: test accuracy
    (per cent) by hidden neurons, of fixed widths (mean over seeds, bars are deviations) and of each learned one.

    A dashed line is the width that the published configurations carry. Artists carry a ``gid``: ``RATE width``,
    ``published``, ``fixed``, ``fixed deviation``, ``RATE accuracy``.
    """
    cells = measured.cells
    if not cells:
        raise SuperWeightError("the file of learned widths holds no cell to draw: measure one first")
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    rates = list(dict.fromkeys(one.rate for cell in cells for one in cell.learned))
    title = "Learned widths, a column a task: neurons over the training, and accuracy beside fixed widths"
    figure = style.new_figure(style.PAGE_INCHES, 5.0, title=title)
    panels = figure.subplots(2, len(tasks), sharey="row", squeeze=False)
    heights = [size for cell in cells for one in cell.learned for _, size in one.history]
    networks = [one for cell in cells for one in (*cell.learned, *cell.fixed)]
    for column, task in enumerate(tasks):
        found = [cell for cell in cells if cell.task == task]
        above, below = panels[0, column], panels[1, column]
        style.style_axes(above, xlabel="epoch (log)", ylabel="" if column else "hidden neurons (log)")
        above.set_title(
            task.replace("_", " "), fontsize=style.TEXT_POINTS, color=style.INK, fontweight="bold", loc="center"
        )
        _draw_histories(above, found, rates, measured.published_widths.get(task))
        style.counts_axis(above, "y", [*heights, *measured.published_widths.values()])
        style.counts_axis(above, "x", [epoch for cell in found for one in cell.learned for epoch, _ in one.history])
        style.style_axes(below, xlabel="hidden neurons (log)", ylabel="" if column else "test accuracy (%)")
        _draw_accuracies(below, found, rates)
        style.counts_axis(below, "x", [one.width for one in networks])
    style.accuracy_axis(panels[1, 0], [one.percent for one in networks])
    style.outside_legend(figure, _handles(measured, rates), loc="outside lower center", columns=3)
    return figure


def _draw_histories(axes: Axes, cells: Sequence[WidthsCell], rates: Sequence[float], published: float | None) -> None:
    if published is not None:
        axes.axhline(published, color=style.INK, linewidth=0.9, linestyle=_DASHES, zorder=2, gid="published")
    for cell in cells:
        for one in cell.learned:
            color = style.run_color(rates.index(one.rate))
            axes.plot(*zip(*one.history), color=color, linewidth=0.9, zorder=3, gid=f"{one.rate:g} width")


def _draw_accuracies(axes: Axes, cells: Sequence[WidthsCell], rates: Sequence[float]) -> None:
    by_width: dict[float, list[float]] = {}
    for cell in cells:
        for one in cell.fixed:
            by_width.setdefault(one.width, []).append(one.percent)
    means = [(width, fmean(found)) for width, found in sorted(by_width.items())]
    axes.plot(*zip(*means), color=_FIXED, marker="s", markersize=3.5, linewidth=1.0, zorder=3, gid="fixed")
    for width, found in by_width.items():
        if len(found) > 1:
            mean, deviation = fmean(found), stdev(found)
            ends = [mean - deviation, mean + deviation]
            axes.plot([width, width], ends, color=_FIXED, linewidth=1.0, zorder=2.9, gid="fixed deviation")
    for place, rate in reversed(list(enumerate(rates))):
        points = [(one.width, one.percent) for cell in cells for one in cell.learned if one.rate == rate]
        if points:
            style.draw_markers(
                axes, points, color=style.run_color(place), marker=style.run_marker(place), gid=f"{rate:g} accuracy",
                zorder=5 - place / 10,
            )  # fmt: skip


def _handles(measured: LearnedWidths, rates: Sequence[float]) -> list[Line2D]:
    starts = {one.rate: one.start for cell in measured.cells for one in cell.learned}
    handles = [
        Line2D(
            [], [], color=style.run_color(place), marker=style.run_marker(place), markersize=5,
            markeredgecolor="white", markeredgewidth=0.5, linewidth=0.9,
            label=f"learned, from {starts[rate]:,.0f} neurons, a line a seed",
        )
        for place, rate in enumerate(rates)
    ]  # fmt: skip
    handles.append(
        Line2D([], [], color=_FIXED, marker="s", markersize=3.5, linewidth=1.0, label="fixed width, mean over seeds")
    )
    if measured.published_widths:
        handles.append(Line2D([], [], color=style.INK, linewidth=0.9, linestyle=_DASHES, label="published width"))
    counts = sorted(set(Counter((cell.task, one.rate) for cell in measured.cells for one in cell.learned).values()))
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    meaning = "one seed" if counts == [1] else f"{seeds} seeds, bar: deviation"
    handles.append(Line2D([], [], color=style.MUTED, marker="o", markersize=4, linewidth=0, label=meaning))
    return handles
