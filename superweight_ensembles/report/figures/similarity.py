"""Which layers agree: cosines between gradients, one matrix a first cluster, with the sets that the search found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.transforms import ScaledTranslation, blended_transform_factory
from numpy.typing import NDArray

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.report.figures.style import (
    COLUMN_INCHES,
    INK,
    MUTED,
    PAGE_INCHES,
    SMALL_POINTS,
    counted,
    new_figure,
    outside_legend,
    plain_text,
    series_color,
    short_layers,
    short_members,
    split_label,
)

# FOLDED report.figures.similarity_panels: What the similarity figure shows of a search: targets by found set, one
# panel a first cluster. Shapes: N targets.

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


_COLORS = "RdBu_r"
_NO_GRADIENT, _HATCH = "#F4F4F4", "#D6D6D6"
_STRIP_INCHES = 0.045
_LABELLED_AT_MOST = 25
_FEWEST_CELLS = 6
_LEAST_PITCH = 6.0
_CHARACTER_INCHES = 0.060
_COMPARED = {"k_means": "cosine similarity of learned coefficients,\nless their mean"}


@plain_text
def similarity_matrix(search: Mapping[str, Any]) -> Figure:
    """Cosine between the gradients of every two targets of a first cluster, and the sets it was split into.

    Rows and columns are the targets, the found sets together and boxed; the anchor's own targets are bold. Hatched
    targets were not compared: they follow. A dot stands in the column of the anchor's target that a row follows.
    Artists carry a ``gid``: ``similarity``, ``set``, ``silent``, ``leader``, ``member``, ``threshold``.

    Args:
        search: Parsed ``search.json``.

    Raises:
        SuperWeightError: A search of another format, without a cluster, or with lists that contradict each other.
    """
    panels = read_panels(search)
    members = list(dict.fromkeys(member for panel in panels for member in panel.members))
    colors = {member: series_color(index) for index, member in enumerate(members)}
    columns, width, side = _grid(panels)
    rows = -(-len(panels) // columns)
    tall = max(min(panel.num_targets / _FEWEST_CELLS, 1.0) for panel in panels)
    figure = new_figure(width, rows * (side + 0.45) + 1.0)
    layout = figure.get_layout_engine()
    assert isinstance(layout, ConstrainedLayoutEngine)
    layout.set(w_pad=0.06, h_pad=0.06)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for axes, panel in zip(grid, panels):
        _draw_panel(axes, panel, colors, side, tall)
    _draw_colorbar(figure, list(grid), search)
    _draw_legend(figure, panels, colors, str(search.get("anchor", members[0])))
    _fit_height(figure, list(grid[: len(panels)]), rows, tall)
    return figure


def _grid(panels: Sequence[Panel]) -> tuple[int, float, float]:
    """Panels beside each other, as many as leave room for the labels; width of the figure, side of a matrix, inches."""
    labelled = [panel for panel in panels if panel.num_targets <= _LABELLED_AT_MOST]
    rows = max((max(panel.num_targets, _FEWEST_CELLS) for panel in labelled), default=0)
    characters = max((len(label) for panel in labelled for label in panel.labels), default=4)
    beside = 0.25 + _CHARACTER_INCHES * characters
    most = 2 if len(panels) == 4 else min(3, len(panels))
    for columns in range(most, 1, -1):
        side = PAGE_INCHES / columns - beside
        if side >= 1.2 and 72 * side >= _LEAST_PITCH * rows:
            return columns, PAGE_INCHES, side
    side = max(COLUMN_INCHES - beside, min(PAGE_INCHES - beside, 0.13 * max(rows, 22)))
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
    axes.imshow(
        np.ma.masked_invalid(panel.similarity),
        cmap=_COLORS,
        vmin=-1,
        vmax=1,
        interpolation="nearest",
        zorder=1,
        gid="similarity",
    )
    axes.set_anchor("NW")
    extent = max(num, _FEWEST_CELLS)  # cells of a small cluster do not fill the panel
    axes.set_xlim(-0.5, extent - 0.5)
    axes.set_ylim(extent * tall - 0.5, -0.5)
    for start, length in panel.silent:
        for corner, width, height in (((start, 0), length, num), ((0, start), num, length)):
            axes.add_patch(
                Rectangle(
                    (corner[0] - 0.5, corner[1] - 0.5), width, height, facecolor=_NO_GRADIENT, edgecolor=_HATCH,
                    hatch="//////", linewidth=0, zorder=1.5, gid="silent",
                )
            )  # fmt: skip
    for start, length in panel.sets:
        axes.add_patch(
            Rectangle(
                (start - 0.5, start - 0.5), length, length, fill=False, edgecolor=INK, linewidth=1.1, joinstyle="miter",
                clip_on=False, zorder=3, gid="set",
            )
        )  # fmt: skip
    if panel.leaders:
        ys, xs = zip(*panel.leaders)
        size = min(max(0.32 * pitch, 1.2), 3.2) ** 2
        axes.scatter(xs, ys, s=size, color=INK, edgecolors="white", linewidths=0.4, zorder=4, gid="leader")
    _draw_members(axes, panel, colors)
    _draw_ticks(axes, panel, pitch)
    name = "\n".join(wrap(panel.name, max(16, int(side / 0.06))))
    axes.set_title(
        f"{name}\n{counted(num, 'layer')}, {counted(len(panel.sets), 'set')}",
        loc="left",
        fontsize=SMALL_POINTS,
        color=INK,
    )
    for spine in axes.spines.values():
        spine.set_visible(False)


def _draw_members(axes: Axes, panel: Panel, colors: Mapping[str, str]) -> None:
    """A strip beside the rows that says whose they are; the anchor's own rows are twice as wide."""
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Figure)
    inches = figure.dpi_scale_trans + ScaledTranslation(0, 0, axes.transAxes)  # type: ignore[arg-type]
    beside = blended_transform_factory(inches, axes.transData)
    for row, (member, anchor) in enumerate(zip(panel.members, panel.anchors)):
        width = _STRIP_INCHES * (1 if anchor else 0.5)
        axes.add_patch(
            Rectangle(
                (-0.03 - width, row - 0.5), width, 1, transform=beside, facecolor=colors[member], linewidth=0,
                clip_on=False, zorder=2, gid="member",
            )
        )  # fmt: skip


def _draw_ticks(axes: Axes, panel: Panel, pitch: float) -> None:
    axes.set_xticks([])
    axes.tick_params(length=0, pad=8, labelcolor=INK)
    if panel.num_targets > _LABELLED_AT_MOST:
        rows = [0, *range(9, panel.num_targets, 10)]
        axes.set_yticks(rows, [str(row + 1) for row in rows], fontsize=SMALL_POINTS, color=MUTED)
        return
    axes.set_yticks(range(panel.num_targets), panel.labels, fontsize=min(SMALL_POINTS, 0.93 * pitch))
    for label, anchor in zip(axes.get_yticklabels(), panel.anchors):
        label.set_fontweight("bold" if anchor else "normal")


def _draw_colorbar(figure: Figure, grid: Sequence[Axes], search: Search) -> None:
    bar = figure.colorbar(
        ScalarMappable(norm=Normalize(-1, 1), cmap=_COLORS),
        ax=list(grid),
        location="bottom",
        shrink=0.8,
        aspect=40,
        pad=0.14 / float(figure.get_figheight()),
        ticks=(-1, -0.5, 0, 0.5, 1),
    )
    given, used = (search.get(key) for key in ("threshold_given", "threshold"))
    kind = search.get("similarity", "gradient")
    text = _COMPARED.get(kind, f"cosine similarity of {kind}s")
    if used is not None:
        bar.ax.axvline(float(used), color=INK, linewidth=1.2, gid="threshold")
        text += f"\nsets are merged above {_number(used)} (black line)"
        if given is not None and given != used:
            text += f", lowered from {_number(given)}"
    bar.set_label(text, fontsize=SMALL_POINTS, color=INK)
    bar.ax.tick_params(labelsize=SMALL_POINTS, color=MUTED, labelcolor=INK, length=2, width=0.6)
    bar.outline.set_visible(False)


def _draw_legend(figure: Figure, panels: Sequence[Panel], colors: Mapping[str, str], anchor: str) -> None:
    short = short_members(colors, limit=24)
    handles: list[Patch | Line2D] = [
        Patch(facecolor=color, label=f"{short[member]} (anchor)" if member == anchor else short[member])
        for member, color in colors.items()
    ]
    handles.append(Patch(facecolor="none", edgecolor=INK, linewidth=1.1, label="found set"))
    if any(panel.leaders for panel in panels):
        handles.append(
            Line2D([], [], color=INK, marker="o", markersize=3, linewidth=0, label="follows this layer of the anchor")
        )
    if any(panel.silent for panel in panels):
        handles.append(
            Patch(facecolor=_NO_GRADIENT, edgecolor=_HATCH, hatch="//////", linewidth=0, label="not compared")
        )
    outside_legend(figure, handles, loc="outside lower center", columns=5)


def _number(value: float) -> str:
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")
