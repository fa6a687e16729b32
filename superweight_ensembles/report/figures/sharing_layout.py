"""Geometry of the sharing map: where each layer, run and ribbon stands."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

from matplotlib.path import Path

from superweight_ensembles.plan.plan import SharingPlan
from superweight_ensembles.report.figures.layer_order import Layer, layers_by_depth

ROW = 1.0
GAP = 0.62


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A layer on the map: its place along the row, the row's base, and its slots' tops as fractions of a row.

    ``read`` is as high as what the layer reads of a bank that is too small for it; None where it reads enough.
    """

    layer: Layer
    left: float
    right: float
    base: float
    tops: tuple[float, ...]
    read: float | None = None

    @property
    def middle(self) -> float:
        return (self.left + self.right) / 2

    @property
    def share_read(self) -> float:
        """Weights that the layer reads, of those that it has."""
        reading = self.layer.reading
        return 1.0 if reading is None else reading.resolution / math.prod(self.layer.shapes[-1])

    def slot_middle(self, slot: int) -> float:
        """Height of the middle of a slot's segment."""
        below = self.tops[slot - 1] if slot else 0.0
        return self.base + (below + self.tops[slot]) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Neighbouring layers of one member in one cluster."""

    cluster_index: int
    left: float
    right: float
    base: float


def place_cells(plan: SharingPlan) -> dict[str, list[Cell]]:
    """Cells by member: rows from the top down, each stretched to the same length, heights the log of the weights."""
    layers = layers_by_depth(plan)
    low, high = weight_range(plan)
    low = min(low, *(reading.resolution for group in plan.ssn_groups.values() for reading in group.readings), high)
    start = math.log10(low) - 0.22 * max(math.log10(high / low), 0.5)
    scale = 1 / (math.log10(high) - start)

    def height(numbers: int) -> float:
        return 0.94 * ROW * (math.log10(numbers) - start) * scale

    def read(layer: Layer) -> float | None:
        return height(layer.reading.resolution) if layer.reading is not None and layer.reading.is_enlarged else None

    return {
        member: [
            Cell(
                layer=layer,
                left=index / len(own),
                right=(index + 1) / len(own),
                base=-row * (ROW + GAP),
                tops=tuple(height(math.prod(shape)) for shape in layer.shapes),
                read=read(layer),
            )
            for index, layer in enumerate(own)
        ]
        for row, (member, own) in enumerate(layers.items())
    }


def weight_range(plan: SharingPlan) -> tuple[int, int]:
    """Fewest and most weights of a width slot's shape, or of a layer that reads a flat bank."""
    slots = [slot.shape for cluster in plan.superweight_clusters.values() for slot in cluster.slots]
    layers = [shape for group in plan.ssn_groups.values() for shape in group.shapes]
    sizes = [math.prod(shape) for shape in (*slots, *layers)]
    return min(sizes), max(sizes)


def find_runs(cells: Sequence[Cell]) -> list[Run]:
    runs = []
    for index, group in groupby(cells, key=lambda cell: cell.layer.cluster_index):
        own = list(group)
        runs.append(Run(cluster_index=index, left=own[0].left, right=own[-1].right, base=own[0].base))
    return runs


def find_ribbons(cells: dict[str, list[Cell]]) -> Iterator[tuple[Run, Run]]:
    """Pairs of stretches to join: a cluster in one member, and in the next member down that has it.

    A run that meets several runs is divided among them by their lengths.
    """
    rows = [find_runs(own) for own in cells.values()]
    for index in sorted({run.cluster_index for row in rows for run in row}):
        having = [[run for run in row if run.cluster_index == index] for row in rows]
        for upper, lower in pairwise([own for own in having if own]):
            most = max(len(upper), len(lower))
            pairs = [(step * len(upper) // most, step * len(lower) // most) for step in range(most)]
            above = _divide(upper, [pair[0] for pair in pairs], [lower[pair[1]] for pair in pairs])
            below = _divide(lower, [pair[1] for pair in pairs], [upper[pair[0]] for pair in pairs])
            yield from zip(above, below)


def _divide(runs: Sequence[Run], uses: Sequence[int], others: Sequence[Run]) -> list[Run]:
    """For each use of a run the part of it that goes to the other run."""
    totals = dict.fromkeys(uses, 0.0)
    for use, other in zip(uses, others):
        totals[use] += other.right - other.left
    edges = {use: runs[use].left for use in uses}
    parts = []
    for use, other in zip(uses, others):
        length = (runs[use].right - runs[use].left) * (other.right - other.left) / totals[use]
        parts.append(replace(runs[use], left=edges[use], right=edges[use] + length))
        edges[use] += length
    return parts


def ribbon_path(upper: Run, lower: Run) -> Path:
    """A band from the base of the upper run to the top of the lower one."""
    high, low = upper.base, lower.base + ROW
    middle = (high + low) / 2
    corners = [
        (Path.MOVETO, (upper.left, high)),
        (Path.CURVE4, (upper.left, middle)),
        (Path.CURVE4, (lower.left, middle)),
        (Path.CURVE4, (lower.left, low)),
        (Path.LINETO, (lower.right, low)),
        (Path.CURVE4, (lower.right, middle)),
        (Path.CURVE4, (upper.right, middle)),
        (Path.CURVE4, (upper.right, high)),
        (Path.CLOSEPOLY, (upper.left, high)),
    ]
    return Path([point for _, point in corners], [code for code, _ in corners])


def tied_groups(cells: dict[str, list[Cell]]) -> list[tuple[int, list[Cell]]]:
    """Layers that read the same coefficient vector: (slot, cells in map order), the highest slot once a group."""
    users: dict[tuple[int, int, int], list[Cell]] = {}
    for own in cells.values():
        for cell in own:
            for slot, vector in enumerate(cell.layer.vectors):
                users.setdefault((cell.layer.cluster_index, slot, vector), []).append(cell)
    groups: dict[tuple[int, ...], tuple[int, list[Cell]]] = {}
    for (_, slot, _), group in users.items():
        if len(group) > 1:
            key = tuple(id(cell) for cell in group)
            if key not in groups or groups[key][0] < slot:
                groups[key] = (slot, group)
    return list(groups.values())
