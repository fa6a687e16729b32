"""Boxes, leaders and lines in pixels: what a label would cover or cross.

Shapes: N boxes or leaders, P points. A box is (left, bottom, right, top).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]


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
