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
from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path
from matplotlib.patheffects import withStroke

from superweight_ensembles.plan import Cluster, SharingPlan, SsnGroup, window_words
from superweight_ensembles.report.figures import style
from superweight_ensembles.report.figures.layers import ClusterLook, Layer, cluster_looks, layers_by_depth

ROW = 1.0
GAP = 0.62
_TINT = 0.22
_BETWEEN = 0.006  # gap between two layers, as a share of the longest row
_LINE = 0.2  # height of a line of text, as a share of a row
_PALE = 0.62
_PALE_SWATCH = style.mix(style.INK, "white", 0.8)
_OWN = "#7F7F7F"
_GREYS = ("#6B6B6B", "#9A9A9A")
_BAR, _STEP = 0.62, 0.42
_INCHES_A_ROW = 0.42


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Layer on the map: its place along the row, the row's base, and its slots' tops as fractions of its weights."""

    layer: Layer
    left: float
    right: float
    base: float
    tops: tuple[float, ...]
    read: float | None = None  # share of its weights that it reads, from a bank too small for it; else None

    @property
    def middle(self) -> float:
        return (self.left + self.right) / 2

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
    """Cells by member, rows from the top down: as wide as the square root of their weights, the longest row 1 long."""
    layers = layers_by_depth(plan)
    roots = {member: [math.sqrt(layer.num_weights) for layer in own] for member, own in layers.items()}
    between = min(_BETWEEN, 0.3 / max(len(own) for own in layers.values()))
    unit = min((1 - between * (len(own) - 1)) / sum(own) for own in roots.values() if own)
    cells: dict[str, list[Cell]] = {}
    for row, (member, own) in enumerate(layers.items()):
        cells[member], left = [], 0.0
        for layer, root in zip(own, roots[member]):
            reading = layer.reading
            cells[member].append(
                Cell(
                    layer=layer,
                    left=left,
                    right=left + unit * root,
                    base=-row * (ROW + GAP),
                    tops=tuple(math.prod(shape) / layer.num_weights for shape in layer.shapes),
                    read=reading.resolution / layer.num_weights if reading and reading.is_enlarged else None,
                )
            )
            left = cells[member][-1].right + between
    return cells


def find_runs(cells: Sequence[Cell]) -> list[Run]:
    runs = []
    for index, group in groupby(cells, key=lambda cell: cell.layer.cluster_index):
        own = list(group)
        runs.append(Run(cluster_index=index, left=own[0].left, right=own[-1].right, base=own[0].base))
    return runs


def find_ribbons(cells: dict[str, list[Cell]]) -> Iterator[tuple[Run, Run]]:
    """Pairs of runs to join: those of a cluster in one member, and in the next member below that has the cluster."""
    rows = [find_runs(own) for own in cells.values()]
    for index in sorted({run.cluster_index for row in rows for run in row}):
        having = [[run for run in row if run.cluster_index == index] for row in rows]
        for upper, lower in pairwise([own for own in having if own]):
            most = max(len(upper), len(lower))  # a run that meets several is divided among them by their lengths
            pairs = [(step * len(upper) // most, step * len(lower) // most) for step in range(most)]
            above = _divide(upper, [pair[0] for pair in pairs], [lower[pair[1]] for pair in pairs])
            below = _divide(lower, [pair[1] for pair in pairs], [upper[pair[0]] for pair in pairs])
            yield from zip(above, below)


def _divide(runs: Sequence[Run], uses: Sequence[int], others: Sequence[Run]) -> list[Run]:
    """Part of a run that goes to the other run, for each use of it."""
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
    """Path of a band from the base of the upper run to the top of the lower one, inside the gap above the lower one."""
    high, low = lower.base + ROW + GAP, lower.base + ROW
    middle = (high + low) / 2
    down = [(upper.left, high), (upper.left, middle), (lower.left, middle), (lower.left, low)]
    up = [(lower.right, low), (lower.right, middle), (upper.right, middle), (upper.right, high)]
    curve = [Path.CURVE4] * 3
    return Path([*down, *up, down[0]], [Path.MOVETO, *curve, Path.LINETO, *curve, Path.CLOSEPOLY])


def tied_groups(cells: dict[str, list[Cell]]) -> list[tuple[int, list[Cell]]]:
    """Groups of layers that read one coefficient vector: (slot, cells in map order); each once, at its highest slot."""
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


@style.styled
def sharing_map(plan: SharingPlan) -> Figure:
    """One row a member, its generated layers from first to last, coloured by the cluster that generates them."""
    if not plan.clusters:
        figure = style.new_figure(style.PAGE_INCHES, 0.6, title="Who shares with whom")
        text = "nothing is shared: every weight is its member's own"
        figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=style.TEXT_POINTS, color=style.MUTED)
        return figure
    looks = cluster_looks(plan)
    look_of = {index: look for look in looks for index in look.clusters}
    entries = _legend_entries(plan, looks)
    rows = len(plan.members)
    cells = place_cells(plan)
    ribbons = list(find_ribbons(cells))
    sizes = [cell.layer.num_weights for own in cells.values() for cell in own]
    caption = _caption(plan, min(sizes), max(sizes), passing=any(_passes(*ribbon) for ribbon in ribbons))
    figure = style.new_figure(style.PAGE_INCHES, 1.0, title="Who shares with whom", caption=caption)
    axes = figure.add_subplot()
    _draw_ribbons(axes, look_of, ribbons)
    for own in cells.values():
        _draw_row(axes, look_of, own)
    if _draw_ties(axes, cells):
        entries.append(style.key("tied coefficients", style.INK, "o", 2.5, 0.7))
    _finish(axes, plan, cells)
    _, legend_rows = style.outside_legend(figure, entries, loc="outside lower center", columns=2)
    style.set_plot_height(figure, 0.5 + 0.72 * rows + 0.17 * legend_rows)
    _write_shares(figure, axes, look_of, cells)
    return figure


def _caption(plan: SharingPlan, low: int, high: int, *, passing: bool) -> str:
    notes = [
        f"A box is a generated layer, as wide as the square root of its weights ({style.quantity(low)} to "
        f"{style.quantity(high)}), first to last; boxes of one colour come from one cluster, which bands join"
    ]
    if passing:
        notes[0] += ", dashed past a member without it"
    if any(len(cluster.slots) > 1 for cluster in plan.superweight_clusters.values()):
        notes.append("White lines divide width slots, by weights")
    if any(reading.is_enlarged for group in plan.ssn_groups.values() for reading in group.window_specs):
        notes.append("Per cent: of its weights that a layer reads; the pale rest is enlarged from them")
    return ". ".join(notes) + "."


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
    """Words for templates, and for banks with how many windows of them are read."""
    templates = sum(slot.num_templates for one in clusters if isinstance(one, Cluster) for slot in one.slots)
    groups = [one for one in clusters if isinstance(one, SsnGroup)]
    parts = [style.counted(templates, "template")] if len(groups) < len(clusters) else []
    if len(groups) == 1:
        parts.append(f"bank of {style.quantity(groups[0].bank_size)}, {window_words(groups[0])}")
    elif groups:
        parts.append(f"{len(groups)} banks, {style.quantity(sum(group.bank_size for group in groups))} in all")
    return ", ".join(parts)


def _passes(upper: Run, lower: Run) -> bool:
    """Whether a member stands between the two."""
    return upper.base - lower.base > 1.5 * (ROW + GAP)


def _draw_ribbons(axes: Axes, look_of: Mapping[int, ClusterLook], ribbons: Sequence[tuple[Run, Run]]) -> None:
    """Draw the bands between members; those that pass a member are dashed lines."""
    for upper, lower in ribbons:
        color = look_of[upper.cluster_index].color
        if _passes(upper, lower):
            ends = [(upper.left + upper.right) / 2, (lower.left + lower.right) / 2], [upper.base, lower.base + ROW]
            rim = [withStroke(linewidth=2.6, foreground="white")]
            dashed: dict[str, Any] = {"linestyle": (0, (3, 1.5)), "linewidth": 1.1, "zorder": 2.6, "path_effects": rim}
            axes.plot(*ends, color=color, gid="passing", **dashed)
            continue
        # Opaque, so that two colours do not make a third where bands cross.
        look = {"facecolor": style.mix(color, "white", 1 - _TINT), "edgecolor": "white", "linewidth": 0.6}
        axes.add_patch(PathPatch(ribbon_path(upper, lower), **look, zorder=1, gid="ribbon"))


def _draw_row(axes: Axes, look_of: Mapping[int, ClusterLook], cells: Sequence[Cell]) -> None:
    """Draw runs as tinted blocks, layers as bars on them, slots as lines in the bars."""
    for run in find_runs(cells):
        tint = style.mix(look_of[run.cluster_index].color, "white", 1 - _TINT)
        style.add_box(axes, run.left, run.base, run.right - run.left, ROW, facecolor=tint, linewidth=0, zorder=1.4)
    for cell in cells:
        cluster = look_of[cell.layer.cluster_index]
        wide, filled = cell.right - cell.left, cell.tops[-1] if cell.read is None else cell.read
        if cell.read is not None:
            pale = {"facecolor": style.mix(cluster.color, "white", _PALE), "edgecolor": cluster.color, "linewidth": 0.6}
            height = cell.tops[-1] - cell.read
            style.add_box(axes, cell.left, cell.base + cell.read, wide, height, **pale, zorder=1.9, gid="enlarged")
        look = {"facecolor": cluster.color, "hatch": cluster.hatch, "edgecolor": "white", "linewidth": 0, "zorder": 2}
        style.add_box(axes, cell.left, cell.base, wide, filled, gid="layer", **look)
        for height in _apart(cell.tops[:-1], cell.tops[-1]):
            ends = [(cell.left, cell.base + height), (cell.right, cell.base + height)]
            style.draw_line(axes, ends, "slot", gid="slot")


def _write_shares(
    figure: Figure, axes: Axes, look_of: Mapping[int, ClusterLook], cells: Mapping[str, Sequence[Cell]]
) -> None:
    """Write how much of each enlarged layer is read into its bar, where that has room for it."""
    figure.draw_without_rendering()
    pixels = axes.get_window_extent().width / (axes.get_xlim()[1] - axes.get_xlim()[0])
    for cell in (cell for own in cells.values() for cell in own):
        if cell.read is None:
            continue
        inside = cell.read > _LINE
        dark = inside and style.is_dark(look_of[cell.layer.cluster_index].color)
        height = cell.base + 0.03 * ROW + (0.0 if inside else cell.read)
        text = axes.text(
            (cell.left + cell.right) / 2, height, f"{100 * cell.read:.2g} %", ha="center", va="bottom", zorder=2.5,
            fontsize=style.SMALL_POINTS - 1, color="white" if dark else style.INK, gid="share",
        )  # fmt: skip
        text.set_in_layout(False)
        if text.get_window_extent().width > (cell.right - cell.left) * pixels:
            text.remove()


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
        for ends in pairwise(spots):
            style.draw_line(axes, ends, "tied", gid="tied")
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
    style.hide_spines(axes)


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
    """Parts of the shared bar, left to right; those that the budget counts come before the others."""
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
    # They sum to the budget; where it counts templates alone, to the budget, coefficients and members' own.
    return [*spent, unspent, *(rest if templates_alone else [])]


@style.styled
def budget_split(plan: SharingPlan) -> Figure:
    """Bars of trainable parameters: the shared ensemble by use, the independent members one by one."""
    shared = [one for one in shared_segments(plan) if one.count]
    apart = [
        Segment(label=style.short_names(member.name), count=member.num_parameters, color=_GREYS[index % 2])
        for index, member in enumerate(plan.members)
    ]
    bars = ((shared, "shared bank", "shared", "part"), (apart, "independent members", "independent", "member"))
    rows, names, row = [], [], 0.0
    for segments, name, *_ in bars:
        rows += [row, *(row - 0.3 - _STEP * (place + 0.7) for place in range(len(segments)))]
        names += [name, *(segment.label for segment in segments)]
        row = rows[-1] - 0.85
    kind = "templates" if plan.budget_counts == "templates" else "parameters"
    share = 100 * plan.budget / plan.independent_parameters
    figure = style.new_figure(
        style.PAGE_INCHES, 0.5 + _INCHES_A_ROW * (0.5 - rows[-1] + 0.4), title="Where the parameters are",
        caption=f"Each bar's parts stand under it. Dashed: the budget, {style.quantity(plan.budget)} {kind}, "
        f"{share:.0f} % of the members apart.",
    )  # fmt: skip
    axes = figure.add_subplot()
    totals = [sum(segment.count for segment in segments) for segments in (shared, apart)]
    xlabel = style.parameters_axis(axes, [*totals, plan.budget], logarithmic=False)
    axes.set_xlim(right=1.06 * axes.get_xlim()[1])
    axes.set_ylim(rows[-1] - 0.4, 0.5)
    axes.set_yticks(rows, names)
    style.style_axes(axes, xlabel=xlabel, grid="x")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    style.draw_line(axes, [(plan.budget, end) for end in axes.get_ylim()], "budget", gid="budget")
    for (segments, _, whole, part), total in zip(bars, totals):
        _draw_bar(axes, segments, rows[0], whole)
        _beside(axes, total, rows[0])
        _draw_steps(axes, segments, rows[1 : 1 + len(segments)], part)
        rows = rows[1 + len(segments) :]
    return figure


def _draw_bar(axes: Axes, segments: Sequence[Segment], row: float, gid: str) -> None:
    left = 0.0
    for segment in segments:
        style.add_box(axes, left, row - _BAR / 2, segment.count, _BAR, **segment.look, zorder=2, gid=gid)
        left += segment.count


def _draw_steps(axes: Axes, segments: Sequence[Segment], rows: Sequence[float], gid: str) -> None:
    """Draw a thin bar for each part of a bar, where that part is; however small, its edge can be seen."""
    left, height = 0.0, _STEP * 0.62
    for segment, row in zip(segments, rows):
        edge = style.MUTED if segment.color == "white" else segment.color
        look = segment.look if segment.hatch else {"facecolor": segment.color, "edgecolor": edge, "linewidth": 0.9}
        style.add_box(axes, left, row - height / 2, segment.count, height, **look, zorder=2, gid=gid)
        left += segment.count
        _beside(axes, segment.count, row, left)


def _beside(axes: Axes, count: float, row: float, right: float | None = None) -> None:
    """Write a count at the right end of its bar."""
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.9}
    place = (count if right is None else right, row)
    style.write_beside(axes, style.quantity(count), place, (3, 0), va="center", zorder=4, bbox=box).set_in_layout(False)
