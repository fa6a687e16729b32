"""What a search saw and changed: cosines of layers with the sets found, and the clusters of several plans side by side.

Shapes: N targets.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from string import ascii_lowercase, ascii_uppercase
from textwrap import wrap
from types import MappingProxyType
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.transforms import ScaledTranslation, blended_transform_factory
from numpy.typing import NDArray

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.experiment import SearchedCluster, SearchRecord
from superweight_ensembles.plan import Cluster, GeneratedTensor, SharingPlan
from superweight_ensembles.report.figures import style
from superweight_ensembles.report.figures.layers import HATCHES, cluster_looks, depth_key, layers_by_depth

_COLORS = "RdBu_r"
_SILENT: dict[str, Any] = {"facecolor": "#F4F4F4", "edgecolor": "#D6D6D6", "hatch": "//////", "linewidth": 0}
_FRAME: dict[str, Any] = {
    "fill": False, "edgecolor": style.INK, "linewidth": 1.1, "joinstyle": "miter", "clip_on": False, "zorder": 3,
}  # fmt: skip
_STRIP_INCHES = 0.045
_LABELLED_AT_MOST = 25
_FEWEST_CELLS = 6
_LEAST_PITCH = 6.0
_CHARACTER_INCHES = 0.060
_COMPARED = {"k_means": "cosine similarity of learned coefficients,\nless their mean"}
_LETTERS = ascii_lowercase + ascii_uppercase + "αβγδεζηθικλμνξπρστυφχψω"
_LETTERS_AT_MOST = 3
_MANY_SHADES = 5
_SPARSE = 1.3
_ALONE = "#D3D3D3"
_CELL_WIDTH, _CELL_HEIGHT = 0.92, 0.86
_ROW_INCHES, _LEAST_ROW_INCHES = 0.17, 0.108
_MOST_INCHES = 7.2

Place = tuple[str, str]  # (member, layer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A cluster of the first plan, its targets sorted by found set, the anchor's own first in each set."""

    name: str
    labels: tuple[str, ...]  # member and layer of each target, shortened
    members: tuple[str, ...]  # of each target
    anchors: tuple[bool, ...]  # whether a target is the anchor member's own
    similarity: NDArray[np.float64]  # (N, N) cosines; NaN where there was no gradient
    sets: tuple[tuple[int, int], ...]  # (first row, number of rows) of each found set
    leaders: tuple[tuple[int, int], ...]  # (row, row of the anchor's target that it follows)

    @property
    def num_targets(self) -> int:
        return len(self.labels)

    @property
    def silent(self) -> list[tuple[int, int]]:
        """(First row, number of rows) of neighbouring targets without a gradient."""
        rows = np.flatnonzero(np.isnan(self.similarity).all(axis=1)).tolist()
        groups = groupby(enumerate(rows), key=lambda pair: pair[1] - pair[0])
        return [(own[0][1], len(own)) for own in (list(group) for _, group in groups)]


def read_panels(search: SearchRecord) -> list[Panel]:
    """The clusters that a search began with, in its order."""
    if not search.clusters:
        raise SuperWeightError("the search holds no cluster to draw: search in an ensemble that shares something")
    known = [search.anchor or "", *(search.representatives or ())]
    names = {label: style.split_label(label, known) for cluster in search.clusters for label in cluster.targets}
    members = style.short_members(member for member, _ in names.values())
    layers = style.short_layers(layer for _, layer in names.values())
    labels = {label: f"{members[member]} {layers[layer]}" for label, (member, layer) in names.items()}
    return [_panel(cluster, names, labels) for cluster in search.clusters]


def _panel(cluster: SearchedCluster, names: Mapping[str, tuple[str, str]], labels: Mapping[str, str]) -> Panel:
    targets, found, num = cluster.targets, cluster.sets, len(cluster.targets)
    rows = [(None,) * num if row is None else row for row in cluster.similarity]
    lengths = {len(found), len(cluster.leaders), len(rows), *(len(row) for row in rows)}
    if not num or lengths != {num} or not all(leader < num for leader in cluster.leaders):
        raise SuperWeightError(
            f"the search, cluster {cluster.name!r}: similarity, sets and leaders must each have one entry "
            f"for each of its {num} targets: search again"
        )
    similarity = np.array([[math.nan if value is None else value for value in row] for row in rows])
    first_seen = {number: index for index, number in reversed(list(enumerate(found)))}
    order = sorted(range(num), key=lambda index: (first_seen[found[index]], index))
    row_of = {index: row for row, index in enumerate(order)}
    leaders = [(row_of[index], row_of[leader]) for index, leader in enumerate(cluster.leaders) if leader != index]
    sets, start = [], 0
    for _, group in groupby(order, key=lambda index: found[index]):
        sets.append((start, len(list(group))))
        start += sets[-1][1]
    return Panel(
        name=cluster.name,
        labels=tuple(labels[targets[index]] for index in order),
        members=tuple(names[targets[index]][0] for index in order),
        anchors=tuple(index < cluster.anchors for index in order),
        similarity=similarity[np.ix_(order, order)],
        sets=tuple(sets),
        leaders=tuple(leaders),
    )


@style.styled
def similarity_matrix(search: SearchRecord) -> Figure:
    """Cosine between the gradients of every two targets of a cluster, and the sets that the cluster was split into."""
    panels = read_panels(search)
    members = list(dict.fromkeys(member for panel in panels for member in panel.members))
    colors = {member: style.series_color(index) for index, member in enumerate(members)}
    columns, width, side = _grid(panels)
    rows = -(-len(panels) // columns)
    tall = max(min(panel.num_targets / _FEWEST_CELLS, 1.0) for panel in panels)
    title = "What the search saw: how alike layers are, and the sets that it made of each cluster"
    figure = style.new_figure(width, rows * (side + 0.45) + 1.1, title=title)
    layout = figure.get_layout_engine()
    assert isinstance(layout, ConstrainedLayoutEngine)
    layout.set(w_pad=0.06, h_pad=0.06)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for axes, panel in zip(grid, panels):
        _draw_panel(axes, panel, colors, side, tall)
    _draw_colorbar(figure, list(grid), search)
    _draw_legend(figure, panels, colors, members[0] if search.anchor is None else search.anchor)
    _fit_height(figure, list(grid[: len(panels)]), rows, tall)
    return figure


def _grid(panels: Sequence[Panel]) -> tuple[int, float, float]:
    """Number of columns, width of the figure and side of a matrix in inches; panels leave room for the labels."""
    labelled = [panel for panel in panels if panel.num_targets <= _LABELLED_AT_MOST]
    rows = max((max(panel.num_targets, _FEWEST_CELLS) for panel in labelled), default=0)
    characters = max((len(label) for panel in labelled for label in panel.labels), default=4)
    beside = 0.25 + _CHARACTER_INCHES * characters
    most = 2 if len(panels) == 4 else min(3, len(panels))
    for columns in range(most, 1, -1):
        side = style.figure_width(style.PAGE_INCHES) / columns - beside
        if side >= 1.2 and 72 * side >= _LEAST_PITCH * rows:
            return columns, style.PAGE_INCHES, side
    side = max(style.COLUMN_INCHES - beside, min(style.figure_width(style.PAGE_INCHES) - beside, 0.13 * max(rows, 22)))
    return 1, beside + side, side


def _fit_height(figure: Figure, grid: Sequence[Axes], rows: int, tall: float) -> None:
    """Make panels ``tall`` times as high as they are wide: only the layout knows how much their labels take."""
    for _ in range(2):
        figure.draw_without_rendering()
        slots = [axes.get_position(original=True) for axes in grid]
        width, height = figure.get_size_inches()
        missing = min(tall * slot.width * width - slot.height * height for slot in slots)
        figure.set_size_inches(width, height + rows * missing)


def _draw_panel(axes: Axes, panel: Panel, colors: Mapping[str, str], side: float, tall: float) -> None:
    num = panel.num_targets
    pitch = 72 * side / max(num, _FEWEST_CELLS)
    shown = np.ma.masked_invalid(panel.similarity)
    axes.imshow(shown, cmap=_COLORS, vmin=-1, vmax=1, interpolation="nearest", zorder=1, gid="similarity")
    axes.set_anchor("NW")
    extent = max(num, _FEWEST_CELLS)  # cells of a small cluster do not fill the panel
    axes.set_xlim(-0.5, extent - 0.5)
    axes.set_ylim(extent * tall - 0.5, -0.5)
    for start, length in panel.silent:
        for left, top, width, height in ((start, 0, length, num), (0, start, num, length)):
            style.add_box(axes, left - 0.5, top - 0.5, width, height, **_SILENT, zorder=1.5, gid="silent")
    for start, length in panel.sets:
        style.add_box(axes, start - 0.5, start - 0.5, length, length, **_FRAME, gid="set")
    if panel.leaders:
        ys, xs = zip(*panel.leaders)
        size = min(max(0.32 * pitch, 1.2), 3.2) ** 2
        axes.scatter(xs, ys, s=size, color=style.INK, edgecolors="white", linewidths=0.4, zorder=4, gid="leader")
    _draw_members(axes, panel, colors)
    _draw_ticks(axes, panel, pitch)
    name = "\n".join(wrap(panel.name, max(16, int(side / 0.06))))
    title = f"{name}\n{style.counted(num, 'layer')}, {style.counted(len(panel.sets), 'set')}"
    axes.set_title(title)
    style.hide_spines(axes)


def _draw_members(axes: Axes, panel: Panel, colors: Mapping[str, str]) -> None:
    """Draw a strip beside the rows that tells members apart; the anchor's own rows are twice as wide."""
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Figure)
    inches = figure.dpi_scale_trans + ScaledTranslation(0, 0, axes.transAxes)  # type: ignore[arg-type]
    beside = blended_transform_factory(inches, axes.transData)
    strip = {"transform": beside, "linewidth": 0, "clip_on": False, "zorder": 2, "gid": "member"}
    for row, (member, anchor) in enumerate(zip(panel.members, panel.anchors)):
        width = _STRIP_INCHES * (1 if anchor else 0.5)
        style.add_box(axes, -0.03 - width, row - 0.5, width, 1, facecolor=colors[member], **strip)


def _draw_ticks(axes: Axes, panel: Panel, pitch: float) -> None:
    axes.set_xticks([])
    axes.tick_params(pad=8, labelcolor=style.INK)
    if panel.num_targets > _LABELLED_AT_MOST:
        rows = [0, *range(9, panel.num_targets, 10)]
        axes.set_yticks(rows, [str(row + 1) for row in rows], fontsize=style.SMALL_POINTS, color=style.MUTED)
        return
    axes.set_yticks(range(panel.num_targets), panel.labels, fontsize=min(style.SMALL_POINTS, 0.93 * pitch))
    for label, anchor in zip(axes.get_yticklabels(), panel.anchors):
        label.set_fontweight("bold" if anchor else "normal")


def _draw_colorbar(figure: Figure, grid: Sequence[Axes], search: SearchRecord) -> None:
    shown = ScalarMappable(norm=Normalize(-1, 1), cmap=_COLORS)
    look: dict[str, Any] = {"location": "bottom", "shrink": 0.8, "aspect": 40, "ticks": (-1, -0.5, 0, 0.5, 1)}
    bar = figure.colorbar(shown, ax=list(grid), pad=0.14 / float(figure.get_figheight()), **look)
    text = _COMPARED.get(search.similarity, f"cosine similarity of {search.similarity}s")
    if search.threshold is not None:
        bar.ax.axvline(search.threshold, color=style.INK, linewidth=1.2, gid="threshold")
        text += f"\nsets are merged above {_number(search.threshold)} (black line)"
        if search.threshold_given is not None and search.threshold_given != search.threshold:
            text += f", lowered from {_number(search.threshold_given)}"
    bar.set_label(text, fontsize=style.SMALL_POINTS)
    bar.ax.tick_params(labelsize=style.SMALL_POINTS, color=style.MUTED, labelcolor=style.INK, length=2, width=0.6)
    bar.outline.set_visible(False)


def _draw_legend(figure: Figure, panels: Sequence[Panel], colors: Mapping[str, str], anchor: str) -> None:
    short = style.short_members(colors, limit=24)
    handles: list[Patch | Line2D] = [
        Patch(facecolor=color, label=f"{short[member]} (anchor)" if member == anchor else short[member])
        for member, color in colors.items()
    ]
    handles.append(Patch(facecolor="none", edgecolor=style.INK, linewidth=1.1, label="found set"))
    if any(any(panel.anchors) and panel.num_targets <= _LABELLED_AT_MOST for panel in panels):
        handles.append(Patch(facecolor="none", edgecolor="none", label="bold: layers of the anchor"))
    if any(panel.leaders for panel in panels):
        handles.append(style.key("the row follows this layer of the anchor", style.INK, "o", 3))
    if any(panel.silent for panel in panels):
        handles.append(Patch(label="not compared: the layer follows", **_SILENT))
    style.outside_legend(figure, handles, loc="outside lower center", columns=4)


def _number(value: float) -> str:
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """Fill of a cluster that shares, and the name of the first plan's cluster that it comes from."""

    color: str
    hatch: str
    family: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Rows of layers."""

    labels: tuple[str, ...]  # from the top; numbers where the members name their layers differently
    row_of: Mapping[Place, int]
    named: bool  # whether the labels are names


def place_rows(plans: Sequence[SharingPlan]) -> Rows:
    """Rows by layer name if members agree on most names, else each member's layers one under the other."""
    names: dict[str, dict[str, None]] = {member: {} for member in plans[0].member_names}
    for plan in plans:
        for member, layers in layers_by_depth(plan).items():
            names[member].update(dict.fromkeys(layer.target.name for layer in layers))
    own = {member: sorted(found, key=depth_key) for member, found in names.items()}
    every = sorted({name for found in own.values() for name in found}, key=depth_key)
    longest = max((len(found) for found in own.values()), default=0)
    if len(every) <= _SPARSE * longest:
        short = style.short_layers(every, limit=20)
        place = {name: row for row, name in enumerate(every)}
        row_of = {(member, name): place[name] for member, found in own.items() for name in found}
        return Rows(labels=tuple(short[name] for name in every), row_of=row_of, named=True)
    row_of = {(member, name): row for member, found in own.items() for row, name in enumerate(found)}
    return Rows(labels=tuple(str(row + 1) for row in range(longest)), row_of=row_of, named=False)


def place_of(target: GeneratedTensor) -> Place:
    return target.member, target.name


def family_looks(plans: Sequence[SharingPlan]) -> list[dict[int, Look]]:
    """Looks of each plan's sharing clusters by index: parts of a cluster of the first plan are shades of its colour."""
    roots: list[tuple[str, str, str, frozenset[Place]]] = []
    parts: dict[int, dict[frozenset[Place], None]] = {}
    families: list[dict[int, int]] = []
    first = plans[0]
    for look in cluster_looks(first):
        shared = [index for index in look.clusters if len(first.clusters[index].targets) > 1]
        roots += [(first.clusters[index].name, look.color, look.hatch, _places(first, index)) for index in shared]
    for number, plan in enumerate(plans):
        families.append({})
        order = _by_depth(plan)
        for index in order:
            own = _places(plan, index)
            common = [len(own & root[3]) for root in roots]
            if not any(common):  # a cluster without a family founds one
                roots.append((plan.clusters[index].name, style.series_color(len(roots)), "", own))
                common.append(1)
            family = common.index(max(common))  # most layers in common
            families[-1][index] = family
            if number and own != roots[family][3]:
                parts.setdefault(family, {}).setdefault(own)
    return [
        {
            index: _look(roots[family], list(parts.get(family, {})), _places(plan, index))
            for index, family in own.items()
        }
        for plan, own in zip(plans, families)
    ]


def _look(root: tuple[str, str, str, frozenset[Place]], parts: list[frozenset[Place]], own: frozenset[Place]) -> Look:
    name, color, hatch, whole = root
    if own == whole or own not in parts:
        return Look(color=color, hatch=hatch, family=name)
    place = parts.index(own)
    rounds, column = divmod(place, _MANY_SHADES)
    shades = min(len(parts), _MANY_SHADES)
    further = HATCHES[(HATCHES.index(hatch) + rounds) % len(HATCHES)]
    return Look(color=style.shade(color, column, shades), hatch=further, family=name)


def _places(plan: SharingPlan, index: int) -> frozenset[Place]:
    return frozenset(place_of(target) for target in plan.clusters[index].targets)


def _by_depth(plan: SharingPlan) -> list[int]:
    """Sharing clusters, by the place of their first layer in the first member that has one."""
    seen = [layer.cluster_index for own in layers_by_depth(plan).values() for layer in own]
    return [index for index in dict.fromkeys(seen) if len(plan.clusters[index].targets) > 1]


def plan_letters(plans: Sequence[SharingPlan]) -> list[dict[Place, str]]:
    """Letters of tied coefficients in each plan; a cluster that stays keeps its letters where its ties stay."""
    found: list[dict[Place, str]] = []
    clusters: set[frozenset[Place]] = set()
    for plan in plans:
        before = found[-1] if found else {}
        found.append({})
        for cluster in plan.superweight_clusters.values():
            places = frozenset(place_of(target) for target in cluster.targets)
            found[-1].update(tie_letters(cluster, before if places in clusters else {}))
        clusters = {_places(plan, index) for index in range(len(plan.clusters))}
    return found


def tie_letters(cluster: Cluster, before: Mapping[Place, str] = MappingProxyType({})) -> dict[Place, str]:
    """Letters of targets with tied coefficients: two targets have one in common exactly where they are tied."""
    targets = sorted(cluster.targets, key=lambda target: depth_key(target.name))
    vectors = [target.vectors for target in targets]
    whole = [own for own in dict.fromkeys(vectors) if not any(_begins(own, other) for other in vectors)]
    # Targets are tied where their vectors are equal in all slots that both compose: one's vectors begin the other's. A
    # narrow layer can be tied to several wide ones that are not tied to each other, and has all their letters.
    groups = [
        [place_of(target) for target in targets if target.vectors == longest or _begins(target.vectors, longest)]
        for longest in whole
    ]
    kept = "".join(before.get(place_of(target), "") for target in targets)
    free = iter([letter for letter in _LETTERS if letter not in kept] + [f"({n})" for n in range(1, len(groups) + 1)])
    letters: dict[Place, str] = {}
    taken: set[str] = set()
    for group in (own for own in groups if len(own) > 1):
        # Targets that are still tied keep their letters.
        old = Counter("".join(before.get(place, "") for place in group))
        letter = next((known for known, _ in old.most_common() if known in _LETTERS and known not in taken), "")
        letter = letter or next(free)
        taken.add(letter)
        for place in group:
            letters[place] = letters.get(place, "") + letter
    return letters


def _begins(short: Sequence[int], long: Sequence[int]) -> bool:
    return len(short) < len(long) and tuple(long[: len(short)]) == tuple(short)


@style.styled
def sharing_change(plans: Mapping[str, SharingPlan]) -> Figure:
    """Clusters of several plans of the same members, one panel a plan: a column a member, a row a layer."""
    contents = list(plans.values())
    if not contents:
        raise SuperWeightError("a figure of changes needs at least one sharing plan; none was given")
    first = next(iter(plans))
    for name, plan in plans.items():
        if plan.member_names != contents[0].member_names:
            raise SuperWeightError(
                f"plan {name!r} is of the members {', '.join(plan.member_names)}, but plan {first!r} of "
                f"{', '.join(contents[0].member_names)}: give plans of the same members in the same order"
            )
    if not any(plan.clusters for plan in contents):
        raise SuperWeightError(f"nothing is shared in {' or '.join(repr(name) for name in plans)}: no change to draw")
    rows = place_rows(contents)
    looks = family_looks(contents)
    num = len(rows.labels)
    pitch = min(max(_MOST_INCHES / num, _LEAST_ROW_INCHES), _ROW_INCHES)
    members = style.short_members(contents[0].member_names, limit=16)
    wide = style.figure_width(style.PAGE_INCHES) - 0.25 - 0.06 * max(len(label) for label in rows.labels)
    upright = wide / (len(contents) * (len(members) + 0.3)) > 0.062 * max(len(name) for name in members.values())
    header = 0.15 if upright else 0.07 * max(len(name) for name in members.values())
    letters = plan_letters(contents)
    missing = len(rows.row_of) < num * len(members)
    handles, note = _handles(contents, looks, rows), _note(looks, any(letters), missing)
    titles = [_title(name, plan, wide / len(contents)) for name, plan in plans.items()]
    lines = max(title.count("\n") for title in titles) + 1
    below = 0.14 * note.count("\n") + 0.17 * -(-len(handles) // 3)
    figure = style.new_figure(
        style.PAGE_INCHES, num * pitch + header + 0.14 * lines + 0.54 + below,
        title="What the search changed: a column a member, a row a layer, a colour a cluster",
    )  # fmt: skip
    grid = figure.subplots(1, len(contents), sharey=True, squeeze=False)[0]
    for axes, plan, own, ties, title in zip(grid, contents, looks, letters, titles):
        _draw_plan(axes, plan, own, ties, rows, pitch)
        axes.set_xticks(range(len(members)), list(members.values()), rotation=0 if upright else 90)
        axes.set_title(title)
    ticks = range(num) if rows.named else [0, *range(4, num, 5)]
    grid[0].set_yticks(ticks, [rows.labels[row] for row in ticks], fontsize=min(style.SMALL_POINTS, 0.9 * 72 * pitch))
    if not rows.named:
        grid[0].set_ylabel("layer", fontsize=style.SMALL_POINTS)
    legend, _ = style.outside_legend(figure, handles, loc="outside lower center", columns=3)
    legend.set_title(note)
    legend.get_title().set_multialignment("center")
    return figure


def _title(name: str, plan: SharingPlan, inches: float) -> str:
    superweights = plan.superweight_clusters.values()
    vectors = sum(slot.num_vectors for cluster in superweights for slot in cluster.slots)
    lines = wrap(name, max(12, int(inches / 0.061)))
    if superweights or not plan.ssn_groups:
        lines += [style.counted(len(superweights), "cluster"), style.counted(vectors, "coefficient vector")]
    if plan.ssn_groups:
        lines.append(style.counted(len(plan.ssn_groups), "flat bank"))
    return "\n".join(lines)


def _draw_plan(
    axes: Axes, plan: SharingPlan, looks: Mapping[int, Look], letters: Mapping[Place, str], rows: Rows, pitch: float
) -> None:
    columns = {member: column for column, member in enumerate(plan.member_names)}
    alone = Look(color=_ALONE, hatch="", family="")
    empty = {"fill": False, "edgecolor": style.MUTED, "linewidth": 0.5, "zorder": 1, "gid": "own"}
    cells: dict[Place, dict[str, Any]] = {}
    for index, cluster in enumerate(plan.clusters):
        look = looks.get(index, alone)
        fill = {"facecolor": look.color, "hatch": look.hatch, "edgecolor": "white", "linewidth": 0, "zorder": 2}
        fill["gid"] = "alone" if look is alone else "layer"
        for place in map(place_of, cluster.targets):
            cells[place] = fill
            if place in letters:
                spot = (columns[place[0]], rows.row_of[place])
                _write_letters(axes, spot, letters[place], look, pitch)
    for place, fill in {**cells, **{place: empty for place in rows.row_of if place not in cells}}.items():
        x, y = columns[place[0]] - _CELL_WIDTH / 2, rows.row_of[place] - _CELL_HEIGHT / 2
        style.add_box(axes, x, y, _CELL_WIDTH, _CELL_HEIGHT, **fill)
    axes.set_xlim(-0.6, len(columns) - 0.4)
    axes.set_ylim(len(rows.labels) - 0.45, -0.55)
    axes.tick_params(labelcolor=style.INK, labelsize=style.SMALL_POINTS, pad=2)
    axes.tick_params(axis="x", labeltop=True, labelbottom=False)
    style.hide_spines(axes)


def _write_letters(axes: Axes, spot: tuple[int, int], letters: str, look: Look, pitch: float) -> None:
    axes.text(
        *spot, letters if len(letters) <= _LETTERS_AT_MOST else letters[: _LETTERS_AT_MOST - 1] + "+", ha="center",
        va="center_baseline", fontsize=min(style.SMALL_POINTS, 0.86 * 72 * pitch),
        color="white" if style.is_dark(look.color) else style.INK, zorder=3, gid="tied",
        bbox={"facecolor": look.color, "edgecolor": "none", "pad": 0.0} if look.hatch else None,
    )  # fmt: skip


def _handles(plans: Sequence[SharingPlan], looks: Sequence[Mapping[int, Look]], rows: Rows) -> list[Patch]:
    """Legend of the families by their first cluster, and of grey and empty cells, where there are any."""
    families: dict[str, Look] = {}
    for look in (look for own in looks for look in own.values()):
        families.setdefault(look.family, look)
    handles = [
        Patch(facecolor=look.color, hatch=look.hatch, edgecolor="white", linewidth=0.4, label=name)
        for name, look in families.items()
    ]
    if any(len(cluster.targets) == 1 for plan in plans for cluster in plan.clusters):
        handles.append(Patch(facecolor=_ALONE, label="alone in its cluster"))
    if any(sum(len(cluster.targets) for cluster in plan.clusters) < len(rows.row_of) for plan in plans):
        handles.append(
            Patch(facecolor="none", edgecolor=style.MUTED, linewidth=0.5, label="its member's own, in no cluster")
        )
    return handles


def _note(looks: Sequence[Mapping[int, Look]], tied: bool, missing: bool) -> str:
    """Caption on shades, letters and gaps, where there are any."""
    families = [Counter(look.family for look in own.values()) for own in looks]
    notes = []
    if any(count > 1 for own in families for count in own.values()):
        notes.append("shades of a colour: the clusters into which one was split")
    if tied:
        notes.append("equal letters in a cluster: tied coefficients; no letter: coefficients of its own")
    if missing:
        notes.append("a gap: the member has no such layer")
    return "\n".join(notes)
