"""What the figures read from a run's results: arms, points of subsets, the Pareto front."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.report.figures.style import arm_color, arm_label, arm_marker

RESULTS_FORMAT = 1

Results = Mapping[str, Any]
Point = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One arm of a run, with its look."""

    name: str
    label: str
    color: str
    marker: str
    content: Mapping[str, Any]

    @property
    def ensemble(self) -> Point:
        """(FLOPs per image, accuracy in per cent) of the full ensemble."""
        return _point(self.content["ensemble"])

    @property
    def members(self) -> dict[str, Point]:
        """(FLOPs per image, accuracy in per cent) of each member alone, by name."""
        return {member["name"]: _point(member) for member in self.content["members"]}

    @property
    def subsets(self) -> list[Point]:
        """(FLOPs per image, accuracy in per cent) of every non-empty subset."""
        return [_point(subset) for subset in self.content["subsets"]]

    @property
    def num_parameters(self) -> int:
        return int(self.content["num_parameters"])


def read_arms(results: Results) -> list[Arm]:
    """The arms of a run, drawn in this order; the shared arm last, so that it lies on top.

    Raises:
        SuperWeightError: Results of another format, or without an arm.
    """
    if results.get("format") != RESULTS_FORMAT:
        raise SuperWeightError(
            f'the results must hold "format": {RESULTS_FORMAT}; got {results.get("format")!r}: evaluate the run again'
        )
    contents = results.get("arms")
    if not contents:
        raise SuperWeightError(
            f"the results of run {results.get('name')!r} hold no arm to draw: evaluate the run first"
        )
    others = [content["name"] for content in contents if content["name"] not in ("shared", "independent")]
    arms = []
    for content in contents:
        name = content["name"]
        place = others.index(name) if name in others else 0
        look = {"color": arm_color(name, place), "marker": arm_marker(name, place), "label": arm_label(name)}
        arms.append(Arm(name=name, content=content, **look))
    return sorted(arms, key=lambda arm: arm.name == "shared")


def arm_named(arms: Sequence[Arm], name: str) -> Arm | None:
    return next((arm for arm in arms if arm.name == name), None)


def pareto_front(points: Iterable[Point]) -> list[Point]:
    """The points that no other one beats at no more cost, cheapest first.

    Example:
        >>> pareto_front([(1, 50), (2, 40), (3, 60), (3, 55)])
        [(1, 50), (3, 60)]
    """
    front: list[Point] = []
    for cost, gain in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or gain > front[-1][1]:
            front.append((cost, gain))
    return front


def _point(entry: Mapping[str, Any]) -> Point:
    return float(entry["flops"]), 100 * float(entry["metrics"]["accuracy"])


# FOLDED report.figures.measured_arms: What the figures read from a comparison: arms measured over seeds, their looks,
# fronts and series.

COMPARISON_FORMAT = 1

Comparison = Mapping[str, Any]

_LOOKS = {
    "shared": (arm_color("shared", 0), "o"),
    "variant": ("#56B4E9", "o"),
    "independent": (arm_color("independent", 0), "s"),
    "single": ("#9A9A9A", "s"),
    "narrower": ("#8C6D31", ">"),
    "batchensemble": ("#D55E00", "^"),
    "packed": ("#009E73", "D"),
    "mimo": ("#CC79A7", "v"),
    "masksembles": ("#E69F00", "P"),
}
_OTHER = ("#882255", "X")


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredArm:
    """One arm of a comparison. Accuracies are in per cent.

    Attributes:
        name: Unique in the comparison.
        label: For people.
        kind: Of the ensemble; it decides the look.
        num_parameters: Trainable scalars.
        flops: An image.
        mean: Accuracy over the seeds.
        std: Of the accuracy over the seeds; 0 for one seed.
        seeds: Accuracy of each seed.
        subsets: (FLOPs, accuracy) of each subset of members that every seed has, means over the seeds.
        series: Key of the arms that a line joins, or none.
        group: Heading under which the arm stands in the ablation, or none.
    """

    name: str
    label: str
    kind: str
    num_parameters: float
    flops: float
    mean: float
    std: float
    seeds: tuple[float, ...]
    subsets: tuple[Point, ...]
    series: str | None
    group: str | None

    @property
    def color(self) -> str:
        return _LOOKS.get(self.kind, _OTHER)[0]

    @property
    def marker(self) -> str:
        return _LOOKS.get(self.kind, _OTHER)[1]

    @property
    def front(self) -> list[Point]:
        """The subsets that no other one beats at no more FLOPs."""
        return pareto_front(self.subsets)

    @property
    def spread(self) -> tuple[float, ...]:
        """Everything drawn of the accuracy: seeds, mean, and a deviation to either side."""
        return (*self.seeds, self.mean - self.std, self.mean + self.std)


def read_measured(comparison: Comparison) -> list[MeasuredArm]:
    """The arms of a comparison, in its order.

    Raises:
        SuperWeightError: A comparison of another format, without an arm, or with an arm that no seed has run.
    """
    if comparison.get("format") != COMPARISON_FORMAT:
        raise SuperWeightError(
            f'the comparison must hold "format": {COMPARISON_FORMAT}; got {comparison.get("format")!r}: compare again'
        )
    contents = comparison.get("arms")
    if not contents:
        raise SuperWeightError(f"the comparison {comparison.get('name')!r} holds no arm to draw: run one first")
    return [_arm(content, str(comparison.get("name"))) for content in contents]


def series_lines(arms: Sequence[MeasuredArm]) -> dict[str, list[Point]]:
    """(Parameters, accuracy) of the arms of each series, by size; the shared bank itself belongs to the budgets."""
    found: dict[str, list[Point]] = {}
    for arm in arms:
        series = arm.series or ("budget" if arm.kind == "shared" else None)
        if series:
            found.setdefault(series, []).append((arm.num_parameters, arm.mean))
    return {series: sorted(points) for series, points in found.items() if len(points) > 1}


def grouped(arms: Sequence[MeasuredArm]) -> list[tuple[str, list[MeasuredArm]]]:
    """Arms by heading, in order of first appearance; those without one first, under an empty one."""
    places = {group: place for place, group in enumerate(dict.fromkeys(["", *(arm.group or "" for arm in arms)]))}
    ordered = sorted(arms, key=lambda arm: places[arm.group or ""])
    return [(group, list(own)) for group, own in groupby(ordered, key=lambda arm: arm.group or "")]


def num_seeds(arms: Sequence[MeasuredArm]) -> str:
    """How many seeds the arms have, in words: ``3 seeds``, or ``1 to 3 seeds``."""
    counts = sorted({len(arm.seeds) for arm in arms})
    if len(counts) > 1:
        return f"{counts[0]} to {counts[-1]} seeds"
    return f"{counts[0]} seed{'' if counts[0] == 1 else 's'}"


def _arm(content: Mapping[str, Any], comparison: str) -> MeasuredArm:
    runs = content.get("runs")
    if not runs:
        raise SuperWeightError(
            f"arm {content.get('name')!r} of comparison {comparison!r} holds no run: train it with one seed at least"
        )
    accuracy = content["summary"]["accuracy"]
    return MeasuredArm(
        name=str(content["name"]),
        label=str(content.get("label") or content["name"]),
        kind=str(content.get("kind", "")),
        num_parameters=float(content["num_parameters"]),
        flops=float(content["flops"]),
        mean=100 * float(accuracy["mean"]),
        std=100 * float(accuracy["std"] or 0) if len(runs) > 1 else 0.0,
        seeds=tuple(100 * float(run["metrics"]["accuracy"]) for run in runs),
        subsets=_mean_subsets(runs),
        series=content.get("series"),
        group=content.get("group"),
    )


def _mean_subsets(runs: Sequence[Mapping[str, Any]]) -> tuple[Point, ...]:
    """A subset's FLOPs and accuracy, means over the seeds, for the subsets that every seed has."""
    found: dict[tuple[str, ...], list[Point]] = {}
    for run in runs:
        for subset in run.get("subsets") or ():
            point = (float(subset["flops"]), 100 * float(subset["metrics"]["accuracy"]))
            found.setdefault(tuple(subset["members"]), []).append(point)
    means = []
    for points in found.values():
        if len(points) == len(runs):
            flops, percents = zip(*points)
            means.append((sum(flops) / len(runs), sum(percents) / len(runs)))
    return tuple(means)
