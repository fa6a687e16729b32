"""What a plan shares: the map of layers by cluster, and the budget by what it is spent on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, PathPatch, Rectangle
from matplotlib.path import Path

from superweight_ensembles.plan import Cluster, SharingPlan, SsnGroup, window_words
from superweight_ensembles.report.figures import style
from superweight_ensembles.report.figures.layers import ClusterLook, Layer, cluster_looks, layers_by_depth

ROW = 1.0
GAP = 0.62
_TINT = 0.22
_WIDE = 0.82  # of its place, a layer
_LINE = 0.2  # of a row, as high as a line of text
_PALE = 0.62
_PALE_SWATCH = style.mix(style.INK, "white", 0.8)
_OWN = "#7F7F7F"
_GREYS = ("#6B6B6B", "#9A9A9A")
_BAR, _STEP = 0.62, 0.42
_SHARED_ROW, _APART_ROW, _FIRST_STEP = 0.0, -1.0, -1.72
_INCHES_A_ROW = 0.42


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
    low = min(low, *(reading.resolution for group in plan.ssn_groups.values() for reading in group.window_specs), high)
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
    down = [(upper.left, high), (upper.left, middle), (lower.left, middle), (lower.left, low)]
    up = [(lower.right, low), (lower.right, middle), (upper.right, middle), (upper.right, high)]
    curve = [Path.CURVE4] * 3
    return Path([*down, *up, down[0]], [Path.MOVETO, *curve, Path.LINETO, *curve, Path.CLOSEPOLY])


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


@style.plain_text
def sharing_map(plan: SharingPlan) -> Figure:
    """One row a member, its generated layers from first to last, coloured by the cluster that generates them.

    Bands join a cluster across members. A layer's height is the logarithm of its number of weights; the lines
    in it are its width slots, the narrow layer's weight at the bottom. Dots joined by a thin line read the same
    coefficient vector. A layer that reads a flat bank smaller than itself is pale above as many weights as it reads.
    Layers stand in natural order of their names, stems first. Artists carry a ``gid``: ``layer``, ``slot``,
    ``enlarged``, ``ribbon``, ``tied``.
    """
    if not plan.clusters:
        figure = style.new_figure(style.PAGE_INCHES, 0.6)
        text = "nothing is shared: every weight is its member's own"
        figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=style.TEXT_POINTS, color=style.MUTED)
        return figure
    looks = cluster_looks(plan)
    look_of = {index: look for look in looks for index in look.clusters}
    entries = _legend_entries(plan, looks)
    rows = len(plan.members)
    figure = style.new_figure(style.PAGE_INCHES, 1.0)  # as high as its rows and its legend, once that is laid out
    axes = figure.add_subplot()
    cells = place_cells(plan)
    _draw_ribbons(axes, look_of, cells)
    for own in cells.values():
        _draw_row(axes, look_of, own)
    if _draw_ties(axes, cells):
        entries.append(
            Line2D([], [], color=style.INK, linewidth=0.7, marker="o", markersize=2.5, label="tied coefficients")
        )
    _finish(axes, plan, cells)
    _, legend_rows = style.outside_legend(figure, entries, loc="outside lower center", columns=2)
    figure.set_figheight(0.75 + 0.72 * rows + 0.17 * legend_rows)
    if _write_shares(figure, axes, look_of, cells):
        axes.set_xlabel(f"{axes.get_xlabel()}; %: of its weights that a layer reads")
    return figure


def _legend_entries(plan: SharingPlan, looks: Sequence[ClusterLook]) -> list[Patch | Line2D]:
    entries: list[Patch | Line2D] = []
    for look in looks:
        clusters = [plan.clusters[index] for index in look.clusters]
        layers = style.counted(sum(len(cluster.targets) for cluster in clusters), "layer")
        alone = all(len(cluster.targets) == 1 for cluster in clusters)
        note = ", not shared" if alone else ""
        entries.append(look.patch(f"{look.label}: {layers}, {_held(clusters)}{note}"))
    if any(reading.is_enlarged for group in plan.ssn_groups.values() for reading in group.window_specs):
        label = "beyond its bank: enlarged"
        entries.append(Patch(facecolor=_PALE_SWATCH, edgecolor=style.MUTED, linewidth=0.4, label=label))
    return entries


def _held(clusters: Sequence[Cluster | SsnGroup]) -> str:
    """Templates, and banks with how many windows of them are read."""
    templates = sum(slot.num_templates for one in clusters if isinstance(one, Cluster) for slot in one.slots)
    groups = [one for one in clusters if isinstance(one, SsnGroup)]
    parts = [style.counted(templates, "template")] if len(groups) < len(clusters) else []
    if len(groups) == 1:
        parts.append(f"bank of {style.quantity(groups[0].bank_size)}, {window_words(groups[0])}")
    elif groups:
        parts.append(f"{len(groups)} banks, {style.quantity(sum(group.bank_size for group in groups))} in all")
    return ", ".join(parts)


def _draw_ribbons(axes: Axes, look_of: Mapping[int, ClusterLook], cells: dict[str, list[Cell]]) -> None:
    for upper, lower in find_ribbons(cells):
        color = look_of[upper.cluster_index].color
        look = {"facecolor": color, "alpha": _TINT, "linewidth": 0, "zorder": 1, "gid": "ribbon"}
        axes.add_patch(PathPatch(ribbon_path(upper, lower), **look))


def _draw_row(axes: Axes, look_of: Mapping[int, ClusterLook], cells: Sequence[Cell]) -> None:
    """Runs as tinted blocks, layers as bars on them, slots as lines in the bars."""
    if not cells:
        return
    base = cells[0].base
    style.add_box(axes, 0, base, 1, ROW, facecolor="white", linewidth=0, zorder=1.2)
    for run in find_runs(cells):
        look = {"facecolor": look_of[run.cluster_index].color, "alpha": _TINT, "linewidth": 0, "zorder": 1.4}
        style.add_box(axes, run.left, base, run.right - run.left, ROW, **look)
    for cell in cells:
        cluster = look_of[cell.layer.cluster_index]
        width = cell.right - cell.left
        left, wide = cell.left + (1 - _WIDE) / 2 * width, _WIDE * width
        if cell.read is not None:
            pale = {"facecolor": style.mix(cluster.color, "white", _PALE), "edgecolor": cluster.color, "linewidth": 0.6}
            height = cell.tops[-1] - cell.read
            style.add_box(axes, left, base + cell.read, wide, height, **pale, zorder=1.9, gid="enlarged")
        look = {"facecolor": cluster.color, "hatch": cluster.hatch, "edgecolor": "white", "linewidth": 0, "zorder": 2}
        style.add_box(axes, left, base, wide, cell.tops[-1] if cell.read is None else cell.read, gid="layer", **look)
        for height in _apart(cell.tops[:-1], cell.tops[-1]):
            axes.plot([left, left + wide], [base + height] * 2, color="white", linewidth=0.6, zorder=2.2, gid="slot")


def _write_shares(
    figure: Figure, axes: Axes, look_of: Mapping[int, ClusterLook], cells: Mapping[str, Sequence[Cell]]
) -> bool:
    """How much of each enlarged layer is read, into its bar, where all of them have room for it; whether they have."""
    enlarged = [cell for own in cells.values() for cell in own if cell.read is not None]
    if not enlarged:
        return False
    figure.draw_without_rendering()
    room = min(cell.right - cell.left for cell in enlarged) * _WIDE * axes.get_window_extent().width
    written = []
    for cell in enlarged:
        inside = cell.read is not None and cell.read > _LINE
        dark = inside and style.is_dark(look_of[cell.layer.cluster_index].color)
        height = cell.base + 0.03 * ROW + (0.0 if inside else cell.read or 0.0)
        text = axes.text(
            cell.middle, height, f"{100 * cell.share_read:.2g} %", ha="center", va="bottom", zorder=2.5, gid="share",
            fontsize=style.SMALL_POINTS - 1, color="white" if dark else style.INK,
        )  # fmt: skip
        text.set_in_layout(False)
        written.append(text)
    if max(text.get_window_extent().width for text in written) > room:
        for text in written:
            text.remove()
        return False
    return True


def _apart(heights: Sequence[float], top: float) -> list[float]:
    """Slot lines that can be told apart, from the bottom up."""
    kept: list[float] = []
    for height in heights:
        if height - (kept[-1] if kept else 0.0) > 0.05 and top - height > 0.035:
            kept.append(height)
    return kept


def _draw_ties(axes: Axes, cells: dict[str, list[Cell]]) -> bool:
    groups = tied_groups(cells)
    for slot, group in groups:
        spots = [(cell.middle, cell.slot_middle(slot)) for cell in group]
        for start, end in pairwise(spots):
            axes.plot(*zip(start, end), color=style.INK, linewidth=0.5, alpha=0.75, zorder=3, gid="tied")
        xs, ys = zip(*spots)
        axes.scatter(xs, ys, s=4, color=style.INK, linewidths=0, zorder=3.2)
    return bool(groups)


def _finish(axes: Axes, plan: SharingPlan, cells: dict[str, list[Cell]]) -> None:
    rows = len(cells)
    axes.set_xlim(-0.002, 1.002)
    axes.set_ylim(-(rows - 1) * (ROW + GAP) - 0.02, ROW + 0.02)
    axes.set_xticks([])
    names = [f"{name}\n{style.counted(len(own), 'layer')}" for name, own in cells.items()]
    middles = [-row * (ROW + GAP) + ROW / 2 for row in range(rows)]
    axes.set_yticks(middles, names, fontsize=style.SMALL_POINTS, color=style.INK)
    style.hide_spines(axes, ticks=False)
    low, high = weight_range(plan)
    notes = [f"height: number of weights, log, {style.quantity(low)} to {style.quantity(high)}"]
    if plan.superweight_clusters:
        notes.append("white lines: width slots")
    xlabel = f"generated layers, first to last\n{'; '.join(notes)}"
    axes.set_xlabel(xlabel, fontsize=style.SMALL_POINTS, color=style.INK)


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A part of a bar: parameters that go to one thing."""

    label: str
    count: int
    color: str
    hatch: str = ""

    @property
    def look(self) -> dict[str, Any]:
        edge = style.MUTED if self.color == "white" else "white"
        return {"facecolor": self.color, "hatch": self.hatch, "edgecolor": edge, "linewidth": 0.4}


def shared_segments(plan: SharingPlan) -> list[Segment]:
    """Parts of the shared bar, left to right; what the budget counts comes before what it does not.

    They sum to the budget; where it counts templates alone, to the budget, coefficients and members' own.
    """
    templates = []
    for look in cluster_looks(plan):
        count = sum(plan.clusters[index].num_templates for index in look.clusters)
        templates.append(Segment(label=look.label, count=count, color=look.color, hatch=look.hatch))
    rest = [
        Segment(label="coefficients", count=plan.num_coefficients, color=style.INK),
        Segment(label="members' own", count=plan.num_private, color=_OWN),
    ]
    templates_alone = plan.budget_counts == "templates"
    spent = templates if templates_alone else templates + rest
    left = max(plan.budget - sum(segment.count for segment in spent), 0)
    unspent = Segment(label="unspent", count=left, color="white", hatch="//////")
    return [*spent, unspent, *(rest if templates_alone else [])]


@style.plain_text
def budget_split(plan: SharingPlan) -> Figure:
    """Stacked bars of trainable parameters: the shared ensemble by use, the independent members one by one.

    The dashed line is the budget. Rectangles carry a ``gid``: ``shared``, ``independent``, and ``member`` for the
    steps under the independent bar that name its parts.
    """
    shared = shared_segments(plan)
    apart = [
        Segment(label=member.name, count=member.num_parameters, color=_GREYS[index % 2])
        for index, member in enumerate(plan.members)
    ]
    steps = [_FIRST_STEP - _STEP * index for index in range(len(apart))]
    bottom, top = steps[-1] - 0.4, 0.72
    legend_rows = -(-len(shared) // 3)
    figure = style.new_figure(style.PAGE_INCHES, 0.5 + _INCHES_A_ROW * (top - bottom) + 0.17 * legend_rows)
    axes = figure.add_subplot()
    totals = [sum(segment.count for segment in segments) for segments in (shared, apart)]
    xlabel = style.parameters_axis(axes, [*totals, plan.budget], logarithmic=False)
    axes.set_ylim(bottom, top)
    names = ["shared bank", "independent members", *(segment.label for segment in apart)]
    axes.set_yticks([_SHARED_ROW, _APART_ROW, *steps], names)
    style.style_axes(axes, xlabel=xlabel, grid="x")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    swatches = [Patch(label=f"{one.label}: {style.quantity(one.count)}", **one.look) for one in shared]
    style.outside_legend(figure, swatches, loc="outside lower center", columns=3)
    boxes = _draw_bar(axes, shared, _SHARED_ROW, "shared")
    _draw_bar(axes, apart, _APART_ROW, "independent")
    _draw_budget(axes, plan)
    figure.draw_without_rendering()
    for segment, box in zip(shared, boxes):
        _write_inside(axes, segment, box)
    _beside(axes, totals[1], _APART_ROW)
    _draw_steps(axes, apart, steps)
    return figure


def _draw_bar(axes: Axes, segments: Sequence[Segment], row: float, gid: str) -> list[Rectangle]:
    boxes = []
    left = 0.0
    for segment in segments:
        boxes.append(style.add_box(axes, left, row - _BAR / 2, segment.count, _BAR, **segment.look, zorder=2, gid=gid))
        left += segment.count
    return boxes


def _draw_steps(axes: Axes, apart: Sequence[Segment], steps: Sequence[float]) -> None:
    """A thin bar for each independent member, under its part of the stacked bar."""
    left, height = 0.0, _STEP * 0.62
    for segment, row in zip(apart, steps):
        look = {"facecolor": segment.color, "linewidth": 0, "zorder": 2, "gid": "member"}
        style.add_box(axes, left, row - height / 2, segment.count, height, **look)
        left += segment.count
        _beside(axes, segment.count, row, left)


def _beside(axes: Axes, count: float, row: float, right: float | None = None) -> None:
    """A count at the right end of its bar."""
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.9}
    place = (count if right is None else right, row)
    style.write_beside(axes, style.quantity(count), place, (3, 0), va="center", zorder=4, bbox=box).set_in_layout(False)


def _draw_budget(axes: Axes, plan: SharingPlan) -> None:
    """The line runs behind the independent bar, where it ends, but over the shared bar that it bounds."""
    look: dict[str, Any] = {"color": style.INK, "linewidth": 1.1, "linestyle": (0, (4, 2))}
    xs, top = [plan.budget] * 2, axes.get_ylim()[1]
    axes.plot(xs, [_APART_ROW - _BAR / 2 - 0.1, top], zorder=1.5, gid="budget", **look)
    axes.plot(xs, [_SHARED_ROW - _BAR / 2 - 0.08, top], zorder=3, **look)
    kind = "template budget" if plan.budget_counts == "templates" else "budget"
    left = plan.budget > 0.7 * axes.get_xlim()[1]
    share = 100 * plan.budget / plan.independent_parameters
    text = f"{kind} {style.quantity(plan.budget)} ({share:.0f} % of the members apart)"
    place = (plan.budget, axes.get_ylim()[1])
    style.write_beside(axes, text, place, (-4 if left else 4, -1), ha="right" if left else "left", va="top")


def _write_inside(axes: Axes, segment: Segment, box: Rectangle) -> None:
    """The count into its segment, if it fits and can be read there."""
    if segment.hatch:
        return
    middle = (box.get_x() + box.get_width() / 2, box.get_y() + box.get_height() / 2)
    color = "white" if style.is_dark(segment.color, below=0.6) else style.INK
    look: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": style.SMALL_POINTS, "color": color, "zorder": 4}
    written = axes.text(*middle, style.quantity(segment.count), **look)
    written.set_in_layout(False)
    if written.get_window_extent().width > 0.9 * box.get_window_extent().width:
        written.remove()
