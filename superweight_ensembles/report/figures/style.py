"""How every figure looks: one palette, one set of sizes, one light grid, and no pyplot state."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend

plain_text = matplotlib.rc_context({"text.parse_math": False})  # of a function that draws: a $ in a name is a $

COLUMN_INCHES = 4.0
PAGE_INCHES = 7.0
DOTS_PER_INCH = 200
TEXT_POINTS = 8.5
SMALL_POINTS = 7.5

INK = "#262626"
MUTED = "#8C8C8C"
GRID = "#E6E6E6"

_ARM_COLORS = {"shared": "#0072B2", "independent": "#4D4D4D"}
_ARM_MARKERS = {"shared": "o", "independent": "s"}
_ARM_NAMES = {"shared": "shared bank", "independent": "independent"}
_OTHER_COLORS = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_OTHER_MARKERS = ("^", "D", "v", "P", "X")


def arm_color(name: str, index: int) -> str:
    """Colour of an arm: the same one in every figure; ``index`` is its place among the run's arms."""
    return _ARM_COLORS.get(name, _OTHER_COLORS[index % len(_OTHER_COLORS)])


def arm_marker(name: str, index: int) -> str:
    return _ARM_MARKERS.get(name, _OTHER_MARKERS[index % len(_OTHER_MARKERS)])


def arm_label(name: str) -> str:
    return _ARM_NAMES.get(name, name)


def run_color(index: int) -> str:
    """Colour of a run's shared arm in a comparison; the first one is that of the shared arm everywhere."""
    colors = (_ARM_COLORS["shared"], *_OTHER_COLORS)
    return colors[index % len(colors)]


def run_marker(index: int) -> str:
    markers = ("o", "^", "D", "v", "P", "X", "s")
    return markers[index % len(markers)]


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, sized in inches, that lays itself out."""
    return Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained", facecolor="white")


def style_axes(axes: Axes, *, xlabel: str = "", ylabel: str = "", grid: str = "both") -> None:
    """Labels, two spines, and a light grid behind the data; ``grid`` is ``both``, ``x``, ``y`` or empty."""
    axes.set_xlabel(xlabel, fontsize=TEXT_POINTS, color=INK)
    axes.set_ylabel(ylabel, fontsize=TEXT_POINTS, color=INK)
    axes.tick_params(labelsize=SMALL_POINTS, color=MUTED, labelcolor=INK, length=3, width=0.6)
    axes.tick_params(which="minor", length=0, labelbottom=False, labelleft=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set(color=MUTED, linewidth=0.6)
    axes.set_axisbelow(True)
    if grid in ("both", "x"):
        axes.grid(True, axis="x", color=GRID, linewidth=0.6)
    if grid in ("both", "y"):
        axes.grid(True, axis="y", color=GRID, linewidth=0.6)


def draw_markers(
    axes: Axes,
    points: Iterable[tuple[float, float]],
    *,
    color: str,
    marker: str,
    gid: str,
    size: float = 26.0,
    zorder: float = 4.0,
) -> None:
    """Points with a white rim, so that neighbours stay apart; ``size`` in square points."""
    xs, ys = zip(*points)
    axes.scatter(xs, ys, s=size, color=color, marker=marker, edgecolors="white", linewidths=0.6, zorder=zorder, gid=gid)


def outside_legend(
    figure: Figure,
    handles: Sequence[Artist],
    *,
    loc: Literal["outside upper center", "outside lower center"],
    columns: int,
) -> Legend:
    """A legend above (``outside upper center``) or below the axes, in as many columns as the figure has room for."""
    return fitted_legend(figure, handles, loc=loc, columns=columns)[0]


def fitted_legend(
    figure: Figure,
    handles: Sequence[Artist],
    *,
    loc: Literal["outside upper center", "outside lower center"],
    columns: int,
) -> tuple[Legend, int]:
    """:func:`outside_legend`, and how many rows it has."""
    while True:
        legend = figure.legend(
            handles=list(handles),
            loc=loc,
            ncols=columns,
            fontsize=SMALL_POINTS,
            frameon=False,
            handlelength=1.6,
            handleheight=0.9,
            handletextpad=0.5,
            columnspacing=1.3,
            labelspacing=0.35,
            labelcolor=INK,
        )
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return legend, -(-len(handles) // columns)
        legend.remove()
        columns -= 1
