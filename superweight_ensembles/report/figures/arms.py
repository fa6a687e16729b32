"""What the figures read from a run's results: arms, points of subsets, the Pareto front."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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
