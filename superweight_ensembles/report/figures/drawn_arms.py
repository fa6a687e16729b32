"""One arm as figures draw it: of a run, which has one seed, or of a comparison, over its seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from superweight_ensembles.anytime import EnsembleResult
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.experiment import ArmResults, ComparedArm, Comparison, RunResults, SeedSummary
from superweight_ensembles.report.figures import style

Point = tuple[float, float]
Source = TypeVar("Source", ArmResults, ComparedArm)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm(Generic[Source]):
    """One arm with its look; points are (FLOPs per image, accuracy in per cent), means over the seeds."""

    source: Source
    label: str
    color: str
    marker: str
    ensemble: Point
    subsets: tuple[Point, ...]
    run: str = ""  # name of its run, in a comparison of runs
    leads: bool = False  # whether it stands for its run in legends

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def gid(self) -> str:
        return f"{self.run} {self.name}".lstrip()

    @property
    def percent(self) -> float:
        """Accuracy of the ensemble."""
        return self.ensemble[1]

    @property
    def num_parameters(self) -> float:
        return float(self.source.num_parameters)

    @property
    def front(self) -> list[Point]:
        """Subsets that no other one beats at no more FLOPs."""
        return pareto_front(self.subsets)

    @property
    def members(self: Arm[ArmResults]) -> dict[str, Point]:
        return {member.name: point_of(member) for member in self.source.members}

    def band(self: Arm[ArmResults], percent: float) -> Point:
        """Accuracy in per cent minus and plus its binomial standard error over the test images."""
        low, high = wilson(percent / 100, self.source.num_samples)
        return 100 * low, 100 * high

    def error_bar(self: Arm[ArmResults], point: Point) -> list[Point]:
        """Ends of the bar of a point."""
        return [(point[0], end) for end in self.band(point[1])]

    @property
    def kind(self: Arm[ComparedArm]) -> str:
        return self.source.kind

    @property
    def seeds(self: Arm[ComparedArm]) -> tuple[float, ...]:
        """Accuracy of each seed."""
        return tuple(100 * run.metrics.accuracy for run in self.source.runs)

    @property
    def std(self: Arm[ComparedArm]) -> float:
        """Deviation of the accuracy over the seeds; one seed has none."""
        return 100 * self.source.summary["accuracy"].std if len(self.source.runs) > 1 else 0.0

    @property
    def deviation(self: Arm[ComparedArm]) -> Point:
        """Accuracy minus and plus its deviation."""
        return self.percent - self.std, self.percent + self.std

    @property
    def spread(self: Arm[ComparedArm]) -> tuple[float, ...]:
        """Accuracies that are drawn: seeds, and a deviation to either side of their mean."""
        return (*self.seeds, *self.deviation)


RunArm = Arm[ArmResults]
SeedsArm = Arm[ComparedArm]


def wilson(share: float, count: int) -> tuple[float, float]:
    """One standard error around a share of ``count`` draws (Wilson: never empty, not even around 0 or 1)."""
    middle = (share + 0.5 / count) / (1 + 1 / count)
    half = math.sqrt(share * (1 - share) / count + 0.25 / count**2) / (1 + 1 / count)
    return middle - half, middle + half


def point_of(result: EnsembleResult) -> Point:
    return float(result.flops), 100 * result.metrics.accuracy


def pareto_front(points: Iterable[Point]) -> list[Point]:
    """The points that no other one beats at no more cost, cheapest first.

    Example:
        >>> pareto_front([(2, 50), (1, 50), (3, 55), (3, 60), (1, 40)])
        [(1, 50), (3, 60)]
    """
    front: list[Point] = []
    for cost, gain in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or gain > front[-1][1]:
            front.append((cost, gain))
    return front


def read_arms(results: RunResults) -> list[RunArm]:
    """The arms of a run, drawn in this order; the shared arm last, so that it lies on top."""
    if not results.arms:
        raise SuperWeightError(f"the results of run {results.name!r} hold no arm to draw: evaluate the run first")
    arms = [
        Arm(
            source=arm,
            label="shared bank" if arm.name == "shared" else arm.name,
            **style.arm_look(arm.name),
            ensemble=point_of(arm.ensemble),
            subsets=tuple(map(point_of, arm.subsets)),
        )
        for arm in results.arms
    ]
    return sorted(arms, key=lambda arm: arm.name == "shared")


def one_seed(arms: Sequence[RunArm], mark: str) -> str:
    """Caption's words on the certainty of a run; ``mark`` is the artist that shows the standard error."""
    counts = sorted({arm.source.num_samples for arm in arms})
    images = " or ".join(f"{count:,}" for count in counts)
    image = f", one of which is {100 / counts[0]:.2g} %" if len(counts) == 1 and counts[0] < 2000 else ""
    return f"One seed, so hollow markers. {mark}: one binomial standard error of {images} test images{image}."


def read_measured(comparison: Comparison) -> list[SeedsArm]:
    """The arms of a comparison, in its order."""
    if not comparison.arms:
        raise SuperWeightError(f"the comparison {comparison.name!r} holds no arm to draw: run one first")
    if missing := next((arm for arm in comparison.arms if not arm.runs), None):
        raise SuperWeightError(
            f"arm {missing.name!r} of comparison {comparison.name!r} holds no run: train it with one seed at least"
        )
    return [
        Arm(
            source=arm,
            label=arm.label or arm.name,
            **style.arm_look(arm.kind),
            ensemble=(float(arm.flops), 100 * arm.summary["accuracy"].mean),
            subsets=_mean_subsets(arm.runs),
        )
        for arm in comparison.arms
    ]


def _mean_subsets(runs: Sequence[SeedSummary]) -> tuple[Point, ...]:
    """Subsets that every seed has, means over the seeds."""
    found: dict[tuple[str, ...], list[Point]] = {}
    for run in runs:
        for subset in run.subsets:
            found.setdefault(subset.members, []).append(point_of(subset))
    every = [tuple(zip(*points)) for points in found.values() if len(points) == len(runs)]
    return tuple((sum(flops) / len(runs), sum(percents) / len(runs)) for flops, percents in every)


def num_seeds(arms: Sequence[SeedsArm]) -> str:
    """Number of seeds of the arms, in words: ``3 seeds``, or ``1 to 3 seeds``."""
    counts = sorted({len(arm.seeds) for arm in arms})
    if len(counts) > 1:
        return f"{counts[0]} to {counts[-1]} seeds"
    return style.counted(counts[0], "seed")
