"""Where the name of a point goes: beside it, over nothing else.

Shapes: N boxes or leaders, P points, in pixels. A box is (left, bottom, right, top).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from superweight_ensembles.report.figures.style import INK, MUTED, write_beside

_RADII_POINTS = (5.0, 8.0, 12.0, 17.0, 23.0, 30.0, 38.0, 47.0, 57.0, 68.0, 80.0, 95.0, 112.0, 130.0)
_DIRECTIONS = 24
_LEADER_POINTS = 9.0
_GAP_POINTS = 2.0
_END_POINTS = 9.0
_SWEEPS = 4

Points = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PointLabel:
    """A text that belongs to a point in data coordinates."""

    text: str
    x: float
    y: float
    color: str = INK


def label_ends(axes: Axes, labels: Sequence[PointLabel]) -> list[Annotation]:
    """Write each label to the right of its point, moved up or down where two would touch; axis limits must be final."""
    if not labels:
        return []
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Figure)
    ordered = sorted(labels, key=lambda label: label.y)
    last = max(label.x for label in ordered)
    beside = axes.get_yaxis_transform()
    written = [
        _write(axes, label, (1.0, label.y), (_END_POINTS, 0), xycoords=beside)
        if label.x == last  # farthest right: beside the axes
        else _write(axes, label, (label.x, label.y), (_END_POINTS, 0))
        for label in ordered
    ]
    figure.draw_without_rendering()
    pixels, frame = figure.dpi / 72, axes.get_window_extent()
    points = _to_pixels(axes, [(label.x, label.y) for label in ordered])
    sizes = np.array([annotation.get_window_extent().height + _GAP_POINTS * pixels for annotation in written])
    places = spread_out(points[:, 1], sizes, frame)
    for annotation, label, (x, y), place in zip(written, ordered, points, places):
        annotation.set_position((_END_POINTS, float(place - y) / pixels))
        left = frame.x1 if label.x == last else x
        if left - x > _LEADER_POINTS * pixels or abs(place - y) > _GAP_POINTS * pixels:
            ends = np.array([[x + 4 * pixels, y], [left + (_END_POINTS - 1) * pixels, place]])
            places_in_axes = axes.transAxes.inverted().transform(ends).T
            _draw_leader(axes, *places_in_axes, transform=axes.transAxes, clip_on=False)
    return [written[ordered.index(label)] for label in labels]


def _write(
    axes: Axes, label: PointLabel, point: tuple[float, float], offset: tuple[float, float], **look: Any
) -> Annotation:
    """Write the text of a label, with a pale rim, at an offset from a point."""
    rim = [withStroke(linewidth=1.6, foreground="white", alpha=0.85)]
    look |= {"va": "center", "annotation_clip": False, "zorder": 6, "gid": "label", "color": label.color}
    return write_beside(axes, label.text, point, offset, path_effects=rim, **look)


def _draw_leader(axes: Axes, xs: Points, ys: Points, **look: Any) -> None:
    """Draw a thin line from a point to its label."""
    (line,) = axes.plot(xs, ys, color=MUTED, linewidth=0.5, zorder=2.5, gid="leader", **look)
    line.set_in_layout(False)


def spread_out(heights: Points, sizes: Points, frame: Bbox) -> Points:
    """Centres of texts, from the lowest, as near to these heights as they can be without touching each other.

    Example:
        >>> frame = Bbox([[0, 0], [1, 100]])
        >>> spread_out(np.array([50.0, 52.0]), np.array([10.0, 10.0]), frame).tolist()
        [46.0, 56.0]
    """
    blocks: list[tuple[float, list[int]]] = []  # lower edge, texts
    for index, height in enumerate(heights):
        own = [index]
        low = float(height - sizes[index] / 2)
        while blocks and blocks[-1][0] + sum(sizes[other] for other in blocks[-1][1]) > low:
            own = blocks.pop()[1] + own
            offsets = np.cumsum([0.0, *(sizes[other] for other in own[:-1])]) + sizes[own] / 2
            low = float(np.mean(heights[own] - offsets))
        total = float(sum(sizes[other] for other in own))
        blocks.append((max(min(low, frame.y1 - total), frame.y0), own))
    places = np.zeros(len(heights))
    for low, own in blocks:
        for other in own:
            places[other] = low + sizes[other] / 2
            low += float(sizes[other])
    return places


@dataclass(frozen=True, slots=True)
class _Room:
    """Obstacles in the axes, in pixels."""

    inside: Bbox
    markers: Points
    dots: Points
    lines: Points
    boxes: Points
    pixels: float


def place_labels(
    axes: Axes,
    labels: Sequence[PointLabel],
    *,
    markers: Sequence[tuple[float, float]] = (),
    dots: Sequence[tuple[float, float]] = (),
    lines: Sequence[Sequence[tuple[float, float]]] = (),
    boxes: Sequence[Bbox] = (),  # in pixels
) -> list[Annotation]:
    """Write each label near its point; call it last, as it lays the figure out, with final limits, to measure texts."""
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Figure)
    annotations = [_write(axes, one, (one.x, one.y), (0, 0), ha="center") for one in labels]
    for annotation in annotations:
        annotation.set_in_layout(False)
    figure.draw_without_rendering()
    pixels = figure.dpi / 72
    room = _Room(
        inside=axes.get_window_extent(),
        markers=_to_pixels(axes, markers),
        dots=_to_pixels(axes, dots),
        lines=_along(axes, lines, 2 * pixels),
        boxes=np.array([box.extents for box in boxes], dtype=float).reshape(-1, 4),
        pixels=pixels,
    )
    anchors = _to_pixels(axes, [(label.x, label.y) for label in labels])
    sizes = np.array([annotation.get_window_extent().size for annotation in annotations], dtype=float).reshape(-1, 2)
    # No label may cover a marker or a box; none should cover dots or cross lines.
    centers = _choose(room, anchors, sizes)
    for annotation, anchor, center, size in zip(annotations, anchors, centers, sizes):
        offset = center - anchor
        annotation.set_position((float(offset[0] / pixels), float(offset[1] / pixels)))
        outside = np.maximum(np.abs(offset) - size / 2, 0)
        if float(np.hypot(*outside)) > _LEADER_POINTS * pixels:
            end = np.clip(anchor, center - size / 2, center + size / 2)
            direction = (end - anchor) / max(float(np.hypot(*(end - anchor))), 1e-9)
            ends = np.stack([anchor + 3.5 * pixels * direction, end - 0.5 * pixels * direction])
            _draw_leader(axes, *axes.transData.inverted().transform(ends).T, scalex=False, scaley=False)
    return annotations


@dataclass(frozen=True, slots=True)
class _Options:
    """Possible places of one label: N centres and boxes, what each costs by itself, and the point it belongs to."""

    anchor: Points
    centers: Points
    boxes: Points
    costs: Points


def _choose(room: _Room, anchors: Points, sizes: Points) -> Points:
    """The cheapest of a few greedy placements, each followed by sweeps in which every label may move again."""
    options = [_options(room, anchor, size) for anchor, size in zip(anchors, sizes)]
    crowded = sorted(range(len(options)), key=lambda index: -float(np.min(options[index].costs)))
    across = sorted(range(len(options)), key=lambda index: float(anchors[index][0]))
    orders = [crowded, crowded[::-1], across, across[::-1]]
    _, picks = min((_settle(options, order) for order in orders), key=lambda settled: settled[0])
    return np.array([option.centers[pick] for option, pick in zip(options, picks)]).reshape(-1, 2)


def _settle(options: Sequence[_Options], order: Sequence[int]) -> tuple[float, list[int]]:
    """Total cost of the placement that starts in this order, and the option chosen for each label."""
    chosen: dict[int, int] = {}
    spent: dict[int, float] = {}
    for _ in range(_SWEEPS):
        before = dict(chosen)
        for index in order:
            costs = options[index].costs.copy()
            for other, pick in chosen.items():
                if other != index:
                    costs += _clashes(options[index], options[other], pick)
            chosen[index] = int(np.argmin(costs))
            spent[index] = float(np.min(costs))
        if chosen == before:
            break
    return sum(spent.values()), [chosen[index] for index in range(len(options))]


def _clashes(options: _Options, other: _Options, pick: int) -> Points:
    """What each option costs beside another label's choice: covered texts, crossed or covered leaders."""
    center, box = other.centers[pick], other.boxes[pick]
    leader = leader_samples(other.anchor, center[None])[0]
    return (
        1e5 * overlap(options.boxes, box)
        + 300.0 * crosses(options.anchor, options.centers, other.anchor, center)
        + 400.0 * pierces(options.anchor, options.centers, box)
        + 400.0 * (num_inside(options.boxes, leader) > 0)
    )


def _options(room: _Room, anchor: Points, size: Points) -> _Options:
    centers, radii = _candidates(room, anchor, size)
    return _Options(
        anchor=anchor,
        centers=centers,
        boxes=boxes_at(centers, size, _GAP_POINTS * room.pixels / 2),
        costs=_own_costs(room, anchor, centers, radii, size),
    )


def _candidates(room: _Room, anchor: Points, size: Points) -> tuple[Points, Points]:
    """Centres of the label's box around its point, and how far (pixels) each stands off."""
    angles = np.arange(_DIRECTIONS) * (2 * math.pi / _DIRECTIONS)
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    side = np.clip(directions * 1.6, -1, 1) * size / 2
    radii = np.array(_RADII_POINTS) * room.pixels
    centers = anchor + side[None] + directions[None] * radii[:, None, None]
    return centers.reshape(-1, 2), np.repeat(radii, _DIRECTIONS)


def _own_costs(room: _Room, anchor: Points, centers: Points, radii: Points, size: Points) -> Points:
    boxes = boxes_at(centers, size, 0.0)
    wide = boxes_at(centers, size, 3.2 * room.pixels)
    others = room.markers[np.hypot(*(room.markers - anchor).T) > 1.0] if len(room.markers) else room.markers
    cost = 0.28 * radii / room.pixels
    cost += (
        2e3 * num_inside(wide, others)
        + 4.0 * np.minimum(num_inside(boxes, room.dots), 12)
        + 10.0 * num_inside(boxes, room.lines)
    )
    for box in room.boxes:
        cost += 2e4 * overlap(boxes, box)
    inside = room.inside
    out = (boxes[:, 0] < inside.x0) | (boxes[:, 2] > inside.x1) | (boxes[:, 1] < inside.y0) | (boxes[:, 3] > inside.y1)
    cost += 1e6 * out
    leaders = leader_samples(anchor, centers)
    for marker in others:
        near = np.min(np.hypot(*(leaders - marker).transpose(2, 0, 1)), axis=1)
        cost += 60.0 * (near < 4.5 * room.pixels)
        cost += 25.0 * (distance(boxes, marker) < distance(boxes, anchor))
    if len(room.lines):
        cost += 6.0 * num_on_lines(leaders, room.lines, 2.5 * room.pixels)
    # Beside the point reads better than over it, and over it better than across a corner.
    relative = np.abs(centers - anchor) / (size / 2)
    return cost + 1.5 * (relative[:, 0] < 1) + 1.0 * ((relative[:, 0] >= 1) & (relative[:, 1] >= 1))


def _to_pixels(axes: Axes, points: Sequence[tuple[float, float]]) -> Points:
    if not len(points):
        return np.zeros((0, 2))
    return np.asarray(axes.transData.transform(np.asarray(points, dtype=float)), dtype=float)


def _along(axes: Axes, lines: Sequence[Sequence[tuple[float, float]]], step: float) -> Points:
    """Points every ``step`` pixels on the polylines."""
    found = [np.zeros((0, 2))]
    for line in lines:
        corners = _to_pixels(axes, line)
        for start, end in pairwise(corners):
            count = max(2, int(np.hypot(*(end - start)) / step))
            found.append(start + (end - start) * np.linspace(0, 1, count)[:, None])
    return np.concatenate(found)


def boxes_at(centers: Points, size: Points, margin: float) -> Points:
    """Boxes (left, bottom, right, top) of one size around centres."""
    return np.concatenate([centers - size / 2 - margin, centers + size / 2 + margin], axis=1)


def overlap(boxes: Points, box: Points) -> Points:
    """1 where a box (left, bottom, right, top) meets the other one, else 0."""
    apart = (boxes[:, 0] >= box[2]) | (boxes[:, 2] <= box[0]) | (boxes[:, 1] >= box[3]) | (boxes[:, 3] <= box[1])
    return np.where(apart, 0.0, 1.0)


def num_inside(boxes: Points, points: Points) -> Points:
    """How many of the points lie in each box."""
    if not len(points):
        return np.zeros(len(boxes))
    x, y = points[None, :, 0], points[None, :, 1]
    left, bottom, right, top = (boxes[:, side, None] for side in range(4))
    return np.sum((x > left) & (x < right) & (y > bottom) & (y < top), axis=1).astype(float)


def leader_samples(anchor: Points, centers: Points) -> Points:
    """Points along each leader: (options, samples, 2)."""
    steps = np.linspace(0.12, 0.95, 14)[None, :, None]
    return anchor + (centers[:, None, :] - anchor) * steps


def distance(boxes: Points, point: Points) -> Points:
    """From a point to each box, in pixels."""
    apart = np.maximum(np.maximum(boxes[:, :2] - point, point - boxes[:, 2:]), 0)
    return np.hypot(apart[:, 0], apart[:, 1])


def num_on_lines(leaders: Points, lines: Points, reach: float) -> Points:
    """How many samples of each leader lie on a line, given as points ``reach`` pixels apart or nearer."""
    apart = leaders[:, 2:, None, :] - lines[None, None]
    near = np.min(apart[..., 0] ** 2 + apart[..., 1] ** 2, axis=2) < reach**2
    return np.sum(near, axis=1).astype(float)


def pierces(anchor: Points, centers: Points, box: Points) -> Points:
    """1 where the leader to a centre runs through the box, else 0."""
    samples = leader_samples(anchor, centers)
    x, y = samples[..., 0], samples[..., 1]
    return np.any((x > box[0]) & (x < box[2]) & (y > box[1]) & (y < box[3]), axis=1).astype(float)


def crosses(start: Points, ends: Points, other_start: Points, other_end: Points) -> Points:
    """1 where the segment from ``start`` to an end crosses the other segment."""

    def side(a: Points, b: Points, c: Points) -> Points:
        return (b[..., 0] - a[..., 0]) * (c[..., 1] - a[..., 1]) - (b[..., 1] - a[..., 1]) * (c[..., 0] - a[..., 0])

    first = side(start, ends, other_start) * side(start, ends, other_end)
    second = side(other_start, other_end, start) * side(other_start, other_end, ends)
    return ((first < 0) & (second < 0)).astype(float)
