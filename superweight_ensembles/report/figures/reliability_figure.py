"""Whether confidence can be believed: accuracy by confidence, and how often each confidence occurs."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from superweight_ensembles.report.figures.arms import Arm, Results, read_arms
from superweight_ensembles.report.figures.style import (
    COLUMN_INCHES,
    MUTED,
    new_figure,
    outside_legend,
    plain_text,
    style_axes,
)


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
