"""What the similarity figure shows of a search: targets by found set, one panel a first cluster. Shapes: N targets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.report.figures.short_names import short_layers, short_members, split_label

SEARCH_FORMAT = 1

Search = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A first cluster, its targets sorted by found set, the anchor's own first in each.

    Attributes:
        name: Of the first cluster.
        labels: Member and layer of each target, shortened.
        members: Member of each target.
        anchors: Whether a target is the anchor member's own.
        similarity: (N, N) cosines; NaN where there was no gradient.
        sets: (first row, number of rows) of each found set.
        leaders: (row, row of the anchor's target that it follows), for all targets that follow another one.
    """

    name: str
    labels: tuple[str, ...]
    members: tuple[str, ...]
    anchors: tuple[bool, ...]
    similarity: NDArray[np.float64]
    sets: tuple[tuple[int, int], ...]
    leaders: tuple[tuple[int, int], ...]

    @property
    def num_targets(self) -> int:
        return len(self.labels)

    @property
    def silent(self) -> list[tuple[int, int]]:
        """(First row, number of rows) of neighbouring targets without a gradient."""
        rows = np.flatnonzero(np.isnan(self.similarity).all(axis=1)).tolist()
        groups = groupby(enumerate(rows), key=lambda pair: pair[1] - pair[0])
        return [(own[0][1], len(own)) for own in (list(group) for _, group in groups)]


def read_panels(search: Search) -> list[Panel]:
    """The first clusters of a search, in its order.

    Raises:
        SuperWeightError: A search of another format, without a cluster, or with lists that contradict each other.
    """
    if search.get("format") != SEARCH_FORMAT:
        raise SuperWeightError(
            f'the search must hold "format": {SEARCH_FORMAT}; got {search.get("format")!r}: search again'
        )
    clusters = search.get("clusters")
    if not clusters:
        raise SuperWeightError("the search holds no cluster to draw: search in an ensemble that shares something")
    known = [str(search.get("anchor", "")), *search.get("representatives", ())]
    names = {label: split_label(label, known) for cluster in clusters for label in cluster["targets"]}
    members = short_members(member for member, _ in names.values())
    layers = short_layers(layer for _, layer in names.values())
    labels = {label: f"{members[member]} {layers[layer]}" for label, (member, layer) in names.items()}
    return [_panel(cluster, names, labels) for cluster in clusters]


def _panel(cluster: Search, names: Mapping[str, tuple[str, str]], labels: Mapping[str, str]) -> Panel:
    targets, similarity = _check(cluster)
    found: Sequence[int] = cluster["sets"]
    first_seen = {number: index for index, number in reversed(list(enumerate(found)))}
    order = sorted(range(len(targets)), key=lambda index: (first_seen[found[index]], index))
    row_of = {index: row for row, index in enumerate(order)}
    sets, start = [], 0
    for _, group in groupby(order, key=lambda index: found[index]):
        length = len(list(group))
        sets.append((start, length))
        start += length
    return Panel(
        name=str(cluster["name"]),
        labels=tuple(labels[targets[index]] for index in order),
        members=tuple(names[targets[index]][0] for index in order),
        anchors=tuple(index < cluster["anchors"] for index in order),
        similarity=similarity[np.ix_(order, order)],
        sets=tuple(sets),
        leaders=tuple(
            (row_of[index], row_of[leader]) for index, leader in enumerate(cluster["leaders"]) if leader != index
        ),
    )


def _check(cluster: Search) -> tuple[Sequence[str], NDArray[np.float64]]:
    """Targets and cosines of a cluster whose lists agree in length."""
    targets = cluster["targets"]
    num = len(targets)
    rows = [[None] * num if row is None else row for row in cluster["similarity"]]
    lengths = {len(cluster["sets"]), len(cluster["leaders"]), len(rows), *(len(row) for row in rows)}
    if not num or lengths != {num} or not all(0 <= leader < num for leader in cluster["leaders"]):
        raise SuperWeightError(
            f"the search, cluster {cluster['name']!r}: similarity, sets and leaders must each have one entry "
            f"for each of its {num} targets: search again"
        )
    values = np.array([[math.nan if value is None else float(value) for value in row] for row in rows])
    return targets, values
