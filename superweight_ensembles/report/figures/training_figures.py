"""How the training went: loss of the arms, and validation accuracy of ensemble and members."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.report.figures.points import Arm, Results, read_arms
from superweight_ensembles.report.figures.style import (
    COLUMN_INCHES,
    INK,
    MUTED,
    accuracy_axis,
    counts_axis,
    new_figure,
    outside_legend,
    plain_text,
    quantity,
    run_color,
    run_marker,
    style_axes,
)


@plain_text
def training_curves(results: Results) -> Figure:
    """Training loss (nats, mean over members) and validation accuracy (per cent) by epoch, for each arm.

    In the lower panel the bold line is the ensemble, thin lines are the members; the panel is left out where no
    epoch was validated, and its range passes over the first fifth of the epochs, so that the end can be read.
    Artists carry a ``gid``: ``shared loss``, ``shared ensemble``, ``shared member``.

    Args:
        results: Parsed ``results.json`` of a run.

    Raises:
        SuperWeightError: Results of another format, or without an arm.
    """
    arms = read_arms(results)
    validated = any(epoch["validation"] for arm in arms for epoch in arm.content["history"])
    figure = new_figure(COLUMN_INCHES, 4.2 if validated else 2.5)
    panels = figure.subplots(2 if validated else 1, 1, sharex=True, squeeze=False)[:, 0]
    _draw_loss(panels[0], arms)
    if validated:
        _draw_accuracy(panels[1], arms)
    epochs = [int(epoch["epoch"]) for arm in arms for epoch in arm.content["history"]] or [1]
    room = 0.02 * (max(epochs) - min(epochs)) or 0.5
    panels[-1].set_xlim(min(epochs) - room, max(epochs) + room)
    panels[-1].set_xlabel("epoch", fontsize=panels[0].yaxis.label.get_fontsize(), color=INK)
    panels[-1].xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, min_n_ticks=1))
    _legend(figure, arms, validated)
    return figure


def _draw_loss(axes: Axes, arms: list[Arm]) -> None:
    drawn: list[float] = []
    for arm in arms:
        history = arm.content["history"]
        losses = [_mean(epoch["train_loss"]) for epoch in history]
        drawn += [loss for loss in losses if loss > 0]
        _line(axes, arm, [epoch["epoch"] for epoch in history], losses, width=1.5, gid=f"{arm.name} loss")
    style_axes(axes, ylabel="training loss (nats)")
    if drawn and max(drawn) > 10 * min(drawn):
        axes.set_yscale("log")
        few_decades = max(drawn) < 300 * min(drawn)
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few_decades else (1.0,)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif drawn:
        axes.set_ylim(bottom=0)


def _draw_accuracy(axes: Axes, arms: list[Arm]) -> None:
    drawn: list[float] = []
    settled: list[float] = []
    for arm in arms:
        history = [epoch for epoch in arm.content["history"] if epoch["validation"]]
        epochs = [epoch["epoch"] for epoch in history]
        ensemble = [100 * float(epoch["validation"]["ensemble"]["accuracy"]) for epoch in history]
        for name in dict.fromkeys(name for epoch in history for name in epoch["validation"]["members"]):
            points = [
                (epoch["epoch"], 100 * float(epoch["validation"]["members"][name]["accuracy"]))
                for epoch in history
                if name in epoch["validation"]["members"]
            ]
            xs, ys = zip(*points)
            drawn += ys
            settled += ys[len(ys) // 5 :]
            _line(axes, arm, list(xs), list(ys), width=0.6, gid=f"{arm.name} member", alpha=0.5)
        drawn += ensemble
        settled += ensemble[len(ensemble) // 5 :]
        _line(axes, arm, epochs, ensemble, width=1.8, gid=f"{arm.name} ensemble", zorder=4)
    style_axes(axes, ylabel="validation accuracy (%)")
    accuracy_axis(axes, settled or drawn)


def _line(
    axes: Axes,
    arm: Arm,
    xs: list[float],
    ys: list[float],
    *,
    width: float,
    gid: str,
    alpha: float = 1.0,
    zorder: float = 3,
) -> None:
    """A curve; its points are marked where they are too few to make one."""
    marker = arm.marker if len(xs) <= 2 else None
    axes.plot(
        xs, ys, color=arm.color, linewidth=width, alpha=alpha, zorder=zorder, gid=gid, marker=marker, markersize=3.5
    )


def _mean(losses: Mapping[str, Any]) -> float:
    values = [float(loss) for loss in losses.values() if loss is not None]
    return sum(values) / len(values) if values else float("nan")


def _legend(figure: Figure, arms: list[Arm], validated: bool) -> None:
    handles = [Line2D([], [], color=arm.color, linewidth=1.8, label=arm.label) for arm in reversed(arms)]
    if validated:
        handles.append(Line2D([], [], color=MUTED, linewidth=0.8, label="one member"))
    outside_legend(figure, handles, loc="outside upper center", columns=3)


# FOLDED report.figures.width_figure: How learned widths changed while they were learned.

Record = Mapping[str, Any]


def widths_learned(results: Results) -> list[Record]:
    """The epochs in which widths were learned, each with ``epoch`` and ``widths``; none where no run learned any.

    They are those of the run's own stage, or else of an arm whose widths changed in its training.
    """
    if results.get("widths"):
        return list(results["widths"])
    for arm in results["arms"]:
        history = [epoch for epoch in arm["history"] if epoch.get("widths")]
        if any(epoch["widths"] != history[0]["widths"] for epoch in history):
            return history
    return []


@plain_text
def width_history(results: Results) -> Figure:
    """Hidden neurons (log) by epoch, a line a learned width, in its member's colour.

    The legend says how many neurons each member's widths had together after the first epoch and after the last.
    Artists carry a ``gid``: ``MEMBER width``.

    Args:
        results: Parsed ``results.json`` of a run.

    Raises:
        SuperWeightError: Results without widths that were learned.
    """
    history = widths_learned(results)
    if not history:
        raise SuperWeightError("the results hold no widths that were learned")
    members = list(dict.fromkeys(name for record in history for name in record["widths"]))
    figure = new_figure(COLUMN_INCHES, 2.9)
    axes = figure.add_subplot()
    style_axes(axes, xlabel="epoch", ylabel="hidden neurons")
    handles = []
    for index, member in enumerate(members):
        look: dict[str, Any] = {"color": run_color(index), "marker": run_marker(index), "markersize": 3.5}
        paths = list(dict.fromkeys(path for record in history for path in record["widths"].get(member, {})))
        for path in paths:
            points = [
                (record["epoch"], record["widths"][member][path]) for record in history if member in record["widths"]
            ]
            axes.plot(
                *zip(*points),
                linewidth=1.2,
                zorder=3,
                gid=f"{member} width",
                markevery=_few(len(points), index),
                **look,
            )
        first, last = (sum(record["widths"].get(member, {}).values()) for record in (history[0], history[-1]))
        label = f"{member}: {quantity(first)} to {quantity(last)} neurons"
        handles.append(Line2D([], [], label=label if len(paths) == 1 else f"{label} in {len(paths)} widths", **look))
    sizes = [size for record in history for widths in record["widths"].values() for size in widths.values()]
    counts_axis(axes, "y", sizes)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, min_n_ticks=1))
    outside_legend(figure, handles, loc="outside upper center", columns=1)
    return figure


def _few(count: int, index: int) -> Sequence[int]:
    """Which points of a line are marked, so that members can be told apart without colour."""
    step = max(count // 5, 1)
    return list(range(index % step, count, step))
