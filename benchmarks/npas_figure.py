"""The figure of npas.json: accuracy of each way to fit a network into a budget, beside the whole network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, stdev
from typing import Annotated, Any, Literal

from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator
from pydantic import Field

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.report.figures import style
from superweight_ensembles.storage import Name, Positive, Share

_PLAIN = "narrower"
_FEW = 4  # arms that one panel has room for
_DODGE = 0.0055  # of the axis, between neighbouring arms, so that no deviation hides another
_SPREAD = 0.5  # of the way from a budget to the next, that all arms together take at most

Accuracies = dict[float | None, list[float]]  # in per cent, of each seed, by budget; None for the whole network


@dataclass(frozen=True, kw_only=True)
class NpasArm:
    """A way to fit the network."""

    name: Name
    label: Name


@dataclass(frozen=True, kw_only=True)
class NpasCell:
    """One training; ``budget`` is None for the whole network."""

    arm: Name
    budget: Positive | None
    status: Literal["done", "skipped", "failed"]
    accuracy: Share | None = None

    def __post_init__(self) -> None:
        if self.status == "done" and self.accuracy is None:
            raise SuperWeightError("a cell that is done needs its accuracy")


@dataclass(frozen=True, kw_only=True)
class Npas:
    """What is drawn of npas.json, which benchmarks/npas.py writes."""

    format: int = 1
    arms: Annotated[tuple[NpasArm, ...], Field(max_length=32)]
    cells: Annotated[tuple[NpasCell, ...], Field(max_length=10_000)]

    def measured(self) -> dict[str, Accuracies]:
        """Accuracies of the arms that have any, in the order of the file."""
        found: dict[str, Accuracies] = {arm.name: {} for arm in self.arms}
        for cell in self.cells:
            if cell.accuracy is not None and cell.status == "done" and cell.arm in found:
                found[cell.arm].setdefault(cell.budget, []).append(100 * cell.accuracy)
        return {name: own for name, own in found.items() if own}


@style.styled
def npas_budgets(npas: Npas) -> Figure:
    """Test accuracy (per cent, mean over seeds) against the budget (log), a line an arm.

    Of many arms those of Shapeshifter Networks have a panel of their own, beside the first arm once more.
    Bars are standard deviations over seeds, faint dots the seeds, of neighbouring arms a little apart; an arm that a
    budget is too small for has no point there. The horizontal line and its band are mean and deviation of the whole
    network. Artists carry a ``gid``: ``ARM mean``, ``ARM deviation``, ``ARM seeds``, ``whole``, ``whole band``,
    ``ARM again``.
    """
    labels = {arm.name: arm.label for arm in npas.arms}
    measured = npas.measured()
    if not any(budget is not None for found in measured.values() for budget in found):
        raise SuperWeightError("the budgets file holds no finished cell at a budget to draw: measure one first")
    whole = {name: found[None] for name, found in measured.items() if None in found}
    arms = {name: found for name, found in measured.items() if name not in whole}
    budgets = sorted({budget for found in arms.values() for budget in found if budget is not None})
    parts = _parts(list(arms))
    title = "One network in a budget of parameters: test accuracy of each way to fit it"
    figure = style.new_figure(style.PAGE_INCHES, 4.2, title=title)
    looks = {name: _look(name, list(labels).index(name)) for name in arms}
    panels = figure.subplots(1, len(parts), sharey=True, squeeze=False)[0]
    heights = _heights([*whole.values(), *(seeds for found in arms.values() for seeds in found.values())])
    for number, (axes, part) in enumerate(zip(panels, parts)):
        ylabel = "" if number else "test accuracy (%)"
        style.style_axes(axes, xlabel="budget: parameters / those of the whole network", ylabel=ylabel)
        _budget_axis(axes, budgets, few=len(parts) > 1)
        dodge = _dodge(axes, budgets, len(part))
        for place, name in enumerate(part):
            gid = f"{name} again" if number and name in parts[0] else name
            _draw_arm(axes, gid, arms[name], looks[name], dodge ** (place - (len(part) - 1) / 2))
        for seeds in whole.values():
            _draw_whole(axes, seeds)
    style.accuracy_axis(panels[0], heights)
    handles: list[Line2D | Patch] = [Line2D([], [], label=labels[name], **look) for name, look in looks.items()]
    band = {"facecolor": to_rgba(style.INK, 0.1), "edgecolor": style.INK, "linewidth": 0.9}
    handles += [Patch(label=labels[name], **band) for name in whole]  # type: ignore[arg-type]
    style.outside_legend(figure, [*handles, *_meaning(measured)], loc="outside lower center", columns=4)
    return figure


def _parts(names: Sequence[str]) -> list[list[str]]:
    """The arms of each panel."""
    apart = [name for name in names if name.startswith("ssn")]
    if len(names) <= _FEW or not apart or len(apart) == len(names):
        return [list(names)]
    others = [name for name in names if name not in apart]
    return [others, [others[0], *apart]]


def _budget_axis(axes: Axes, budgets: Sequence[float], *, few: bool) -> None:
    margin = max((budgets[-1] / budgets[0]) ** 0.05, 1.2)
    axes.set_xscale("log")
    axes.set_xlim(budgets[0] / margin, budgets[-1] * margin)
    axes.xaxis.set_major_locator(FixedLocator(budgets))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{budget:g}" for budget in budgets]))
    if few:
        axes.tick_params(axis="x", labelrotation=90, labelsize=style.SMALL_POINTS - 1)
    axes.xaxis.set_minor_locator(NullLocator())


def _heights(cells: Sequence[Sequence[float]]) -> list[float]:
    """Everything drawn of these cells."""
    return [
        height
        for seeds in cells
        for height in (*seeds, fmean(seeds) - _deviation(seeds), fmean(seeds) + _deviation(seeds))
    ]


def _deviation(seeds: Sequence[float]) -> float:
    return stdev(seeds) if len(seeds) > 1 else 0.0


def _dodge(axes: Axes, budgets: Sequence[float], num_arms: int) -> float:
    """Factor from an arm's budget to that of the arm drawn beside it: no arm comes near another budget."""
    low, high = axes.get_xlim()
    nearest = min((right / left for left, right in pairwise(budgets)), default=high / low)
    return min((high / low) ** _DODGE, nearest ** (_SPREAD / max(num_arms - 1, 1)))


def _draw_arm(axes: Axes, name: str, found: Accuracies, look: Mapping[str, Any], aside: float) -> None:
    """Draw an arm, its budgets times a factor that sets it beside the others."""
    points = sorted((budget, seeds) for budget, seeds in found.items() if budget is not None)
    for budget, seeds in points:
        if len(seeds) > 1:
            x, mean, deviation = budget * aside, fmean(seeds), _deviation(seeds)
            axes.scatter(
                [x] * len(seeds), seeds, s=7, color=style.mix(look["color"], "white", 0.55), linewidths=0, zorder=2.8,
                gid=f"{name} seeds",
            )  # fmt: skip
            axes.plot(
                [x, x], [mean - deviation, mean + deviation], color=look["color"], linewidth=1.2, zorder=3,
                gid=f"{name} deviation",
            )  # fmt: skip
    means = [(budget * aside, fmean(seeds)) for budget, seeds in points]
    axes.plot(*zip(*means), **look, zorder=4, gid=f"{name} mean")
    if single := [(budget * aside, seeds[0]) for budget, seeds in points if len(seeds) == 1]:
        open_mark = {"markerfacecolor": "white", "markeredgecolor": look["color"], "markeredgewidth": 1.0}
        axes.plot(*zip(*single), **{**look, **open_mark, "linestyle": "none"}, zorder=4.1, gid=f"{name} one seed")


def _draw_whole(axes: Axes, seeds: Sequence[float]) -> None:
    """A line across, and its band."""
    mean, deviation = fmean(seeds), _deviation(seeds)
    axes.axhline(mean, color=style.INK, linewidth=0.9, zorder=1.5, gid="whole")
    if deviation:
        band = {"color": style.INK, "alpha": 0.1, "linewidth": 0, "zorder": 1.2}
        axes.axhspan(mean - deviation, mean + deviation, gid="whole band", **band)  # type: ignore[arg-type]


def _look(name: str, place: int) -> dict[str, Any]:
    arm = {"auto": "shared", _PLAIN: "independent"}.get(name, name)
    return {
        "color": style.arm_color(arm, place - 1),
        "marker": style.arm_marker(arm, place - 1),
        "linestyle": (0, (3, 1.5)) if name == _PLAIN else "-",
        "markersize": 5,
        "markeredgecolor": "white",
        "markeredgewidth": 0.5,
        "linewidth": 1.2,
    }


def _meaning(measured: Mapping[str, Accuracies]) -> list[Line2D]:
    counts = sorted({len(seeds) for found in measured.values() for seeds in found.values()})
    if counts == [1]:
        return [Line2D([], [], color=style.MUTED, marker="o", markersize=5, linewidth=0, label="one seed")]
    number = f"{counts[0]} seeds" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"
    return [
        Line2D(
            [],
            [],
            color=style.MUTED,
            marker="o",
            markersize=5,
            linewidth=1.2,
            label=f"mean of {number}, bar: deviation",
        ),
        Line2D([], [], color="#C9C9C9", marker=".", markersize=5, linewidth=0, label="a seed"),
    ]
