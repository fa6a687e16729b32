"""Accuracy at any compute, where a run has measured it: areas under the curves, and their points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from superweight_ensembles.report.elements import NOTHING, Html, join, scrolled, tag
from superweight_ensembles.report.findings import Results

_COLUMNS = {
    "members_used": ("members", 1.0, 2),
    "members": ("members", 1.0, 2),
    "flops": ("MFLOPs", 1e-6, 2),
    "latency_ms": ("latency ms", 1.0, 2),
    "accuracy": ("accuracy %", 100.0, 2),
    "nll": ("NLL", 1.0, 4),
    "ece": ("ECE %", 100.0, 2),
    "brier": ("Brier", 1.0, 4),
}
_AREAS = {"area": "over FLOPs", "latency_area": "over time"}
_INTRODUCTION = (
    "What the ensemble answers when it may stop early. Stream: the mean of the members so far, after each. Cascade: "
    "images that are sure enough leave before the next member; thresholds come from validation images."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One way to answer at any compute, as an arm measured it; every key may be missing."""

    arm: str
    name: str
    areas: Mapping[str, Any]
    points: tuple[Mapping[str, Any], ...]


def read_curves(results: Results) -> list[Curve]:
    """The curves of all arms, and the policy that each arm keeps; what an arm does not hold is left out."""
    curves = []
    for arm in results["arms"]:
        anytime = _mapping(arm.get("anytime"))
        for curve in map(_mapping, _list(anytime.get("curves"))):
            points = tuple(point for point in _list(curve.get("points")) if isinstance(point, Mapping))
            name = str(curve.get("name", "unnamed"))
            curves.append(Curve(arm=str(arm["name"]), name=name, areas=curve, points=points))
        kept = _mapping(anytime.get("calibrated"))
        if kept:
            curves.append(Curve(arm=str(arm["name"]), name="policy kept", areas={}, points=(kept,)))
    return curves


def anytime_section(curves: Sequence[Curve], drawn: str = "") -> Html:
    """The figure, a table of areas, a curve of an arm a row, and one of points, a curve a group of rows."""
    held = [key for key in _AREAS if any(_is_number(curve.areas.get(key)) for curve in curves)]
    rows = [
        tag(
            "tr",
            tag("th", curve.name, scope="row"),
            tag("td", curve.arm, class_="left"),
            [tag("td", _number(curve.areas.get(key), 100.0, 2)) for key in held],
        )
        for curve in curves
        if any(key in curve.areas for key in held)
    ]
    areas = tag(
        "table",
        tag("caption", "Mean accuracy, in per cent, over the logarithm of the cost: the area under each curve"),
        tag("thead", tag("tr", _left("curve"), _left("arm"), [_heading(_AREAS[key]) for key in held])),
        tag("tbody", rows),
        class_="lines",
    )
    points = [curve for curve in curves if curve.points]
    return join(
        [
            tag("p", _INTRODUCTION),
            drawn,
            tag("h3", "Areas under the curves") if rows else "",
            scrolled(areas, label="Areas under the anytime curves", class_="sheet") if rows else "",
            tag("h3", "Points of the curves") if points else "",
            scrolled(_points(points), label="Points of the anytime curves", class_="sheet") if points else "",
        ]
    )


def _points(curves: Sequence[Curve]) -> Html:
    columns = [key for key in _COLUMNS if any(point.get(key) is not None for curve in curves for point in curve.points)]
    head = tag("tr", _left("curve"), _left("arm"), [_heading(_COLUMNS[key][0]) for key in columns])
    groups = []
    for curve in curves:
        name = tag("th", curve.name, scope="rowgroup", rowspan=len(curve.points))
        lines = [
            tag(
                "tr",
                name if index == 0 else "",
                tag("td", curve.arm if index == 0 else "", class_="left"),
                [tag("td", _number(point.get(key), *_COLUMNS[key][1:])) for key in columns],
            )
            for index, point in enumerate(curve.points)
        ]
        groups.append(tag("tbody", lines))
    return tag("table", tag("caption", "Means of a test image"), tag("thead", head), groups)


def _left(name: str) -> Html:
    return tag("th", name, scope="col", class_="left")


def _heading(name: str) -> Html:
    return tag("th", name, scope="col")


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(value: object, scale: float, decimals: int) -> str:
    """A number as its column has it, names one after the other, a dash for nothing."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{scale * value:,.{decimals}f}"
    if isinstance(value, list):
        return " + ".join(str(name) for name in value)
    return NOTHING if value is None else str(value)
