"""How learned widths changed while they were learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.report.figures.arms import Results
from superweight_ensembles.report.figures.scales import counts_axis, quantity
from superweight_ensembles.report.figures.style import (
    COLUMN_INCHES,
    new_figure,
    outside_legend,
    plain_text,
    run_color,
    run_marker,
    style_axes,
)

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
