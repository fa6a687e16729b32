"""How every figure looks, without pyplot state: palette, sizes, legends, axes of accuracy and cost, short names."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from textwrap import TextWrapper
from typing import Any, Literal

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.legend import Legend
from matplotlib.patches import Rectangle
from matplotlib.text import Annotation, Text
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, MaxNLocator, NullLocator

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
_SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("o", "^", "D", "v", "P", "X", "s")
_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_STEPS = ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0))
_ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"
_LONGEST_NAME = 40

Scale = Callable[[Axes, Sequence[float]], str]  # makes the x axis one of these values and returns its label


def arm_color(name: str, index: int = 0) -> str:
    """Colour of an arm: the same one in every figure; ``index`` is its place among the run's arms."""
    return _ARM_COLORS.get(name, _SERIES[1:][index % 5])


def arm_marker(name: str, index: int = 0) -> str:
    return _ARM_MARKERS.get(name, _MARKERS[1:6][index % 5])


def arm_label(name: str) -> str:
    return _ARM_NAMES.get(name, name)


def run_color(index: int) -> str:
    """Colour of a run's shared arm in a comparison; the first one is that of the shared arm everywhere."""
    return _SERIES[index % len(_SERIES)]


def run_marker(index: int) -> str:
    return _MARKERS[index % len(_MARKERS)]


def series_color(index: int) -> str:
    """Colour of an element of a series; each further round over the palette is paler."""
    rounds, place = divmod(index, len(_SERIES))
    return mix(_SERIES[place], "white", 0.5 * (rounds % 2))


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, sized in inches, that lays itself out."""
    return Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout=_ShortNames(), facecolor="white")


class _ShortNames(ConstrainedLayoutEngine):
    """The constrained layout of texts whose names are no longer than there is room for in any figure."""

    def execute(self, fig: Figure) -> None:
        for axes in fig.axes:
            for axis in (axes.xaxis, axes.yaxis):
                formatter = axis.get_major_formatter()
                if isinstance(formatter, FuncFormatter) and not isinstance(formatter.func, _Shortened):
                    formatter.func = _Shortened(formatter.func)  # as ticks with labels have
        for text in fig.findobj(Text):
            if isinstance(text, Text) and len(text.get_text()) > _LONGEST_NAME:
                text.set_text(short_names(text.get_text()))
        super().execute(fig)


class _Shortened:
    """What a formatter of ticks says, with short names."""

    def __init__(self, says: Callable[..., str]) -> None:
        self._says = says

    def __call__(self, *tick: Any) -> str:
        return short_names(self._says(*tick))


def short_names(text: str) -> str:
    """The text with the middle of every name cut out that is longer than 40 characters.

    Example:
        >>> short_names("a" * 30 + "b" * 30 + ", depth 10")
        'aaaaaaaaaaaaaaaaaaaa…bbbbbbbbbbbbbbbbbb, depth 10'
    """
    return re.sub(rf"\S{{{_LONGEST_NAME + 1},}}", lambda found: _cut(found[0], _LONGEST_NAME, tail=19), text)


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


def add_box(axes: Axes, left: float, bottom: float, width: float, height: float, **look: Any) -> Rectangle:
    """A rectangle in data coordinates, if ``look`` has no ``transform``."""
    box = Rectangle((left, bottom), width, height, **look)
    axes.add_patch(box)
    return box


def write_beside(
    axes: Axes, text: str, point: tuple[float, float], offset: tuple[float, float], **look: Any
) -> Annotation:
    """A small text that stands off from its point, by an offset in points."""
    look = {"ha": "left", "fontsize": SMALL_POINTS, "color": INK, **look}
    return axes.annotate(text, point, xytext=offset, textcoords="offset points", **look)


def hide_spines(axes: Axes, *, ticks: bool = True) -> None:
    """No frame, and no tick marks where ``ticks`` is false."""
    for spine in axes.spines.values():
        spine.set_visible(False)
    if not ticks:
        axes.tick_params(length=0)


def outside_legend(
    figure: Figure,
    handles: Sequence[Artist],
    *,
    loc: Literal["outside upper center", "outside lower center"],
    columns: int,
) -> tuple[Legend, int]:
    """A legend above or below the axes, in as many columns as the figure has room for, and how many rows it has."""
    while True:
        legend = figure.legend(
            handles=list(handles), loc=loc, ncols=columns, fontsize=SMALL_POINTS, frameon=False, handlelength=1.6,
            handleheight=0.9, handletextpad=0.5, columnspacing=1.3, labelspacing=0.35, labelcolor=INK,
        )  # fmt: skip
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return legend, -(-len(handles) // columns)
        legend.remove()
        columns -= 1


def mix(color: str, other: str, share: float) -> str:
    """A colour with a share of another one in it.

    Example:
        >>> mix("#000000", "white", 0.5)
        '#808080'
    """
    red, green, blue = ((1 - share) * own + share * new for own, new in zip(to_rgb(color), to_rgb(other)))
    return to_hex((red, green, blue))


def shade(color: str, index: int, count: int) -> str:
    """Shade ``index`` of ``count``, from dark to light; the only one is the colour itself."""
    if count <= 1:
        return color
    light = _luminance(color)  # a dark colour has room above it, a light one below
    top, bottom = (min(max(room / 0.4, 0.0), 1.0) for room in (light - 0.2, 0.9 - light))
    place = top - (top + bottom) * index / (count - 1)
    return mix(color, INK, 0.5 * place) if place > 0 else mix(color, "white", -0.8 * place)


def is_dark(color: str, below: float = 0.55) -> bool:
    """Whether white text reads better on it than black."""
    return _luminance(color) < below


def readable(color: str) -> str:
    """The colour, dark enough to write text in it on white."""
    return mix(color, INK, 0.15 if is_dark(color) else 0.45)


def _luminance(color: str) -> float:
    return sum(weight * part for weight, part in zip((0.3, 0.59, 0.11), to_rgb(color)))


def quantity(number: float) -> str:
    """A count in three digits with its unit.

    Example:
        >>> [quantity(number) for number in (12, 1500, 1_036_085, 41e9)]
        ['12', '1.5 k', '1.04 M', '41 G']
    """
    for size, unit in _UNITS:
        if abs(number) >= size * 0.9995:
            return f"{_digits(number / size)} {unit}"
    return _digits(number)


def accuracy_axis(axes: Axes, percents: Iterable[float], *, below: float = 0.0) -> None:
    """Limit the y axis to accuracies in per cent, with ``below`` of their range free under them; never an empty range,
    little above 100 %."""
    values = list(percents)
    low, high = min(values), max(values)
    missing = max(0.0, 0.5 - (high - low)) / 2
    low, high = low - missing, min(high + missing, max(high, 100.0))
    span = high - low
    top = min(high + 0.07 * span, 100.0 + 0.04 * span)
    axes.set_ylim(max(low - (0.07 + below) * span, -(0.03 + below) * 100), top)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))


def accuracy_axes(
    size: tuple[float, float], scale: Scale, xs: Sequence[float], percents: Iterable[float], *, below: float = 0.0
) -> tuple[Figure, Axes]:
    """A figure of test accuracy against a cost, over these values."""
    figure = new_figure(*size)
    axes = figure.add_subplot()
    xlabel = scale(axes, xs)
    accuracy_axis(axes, percents, below=below)
    style_axes(axes, xlabel=xlabel, ylabel="test accuracy (%)")
    return figure, axes


def flops_axis(axes: Axes, flops: Sequence[float]) -> str:
    """Make the x axis logarithmic over these FLOPs and return its label."""
    return _magnitude_axis(axes, flops, "FLOPs per image", "{}FLOPs per image", logarithmic=True)


def latency_axis(axes: Axes, milliseconds: Sequence[float]) -> str:
    """Make the x axis logarithmic over these times and return its label."""
    label = "milliseconds per image"
    return _magnitude_axis(axes, milliseconds, label, label, logarithmic=True)


def parameters_axis(axes: Axes, counts: Sequence[float], *, logarithmic: bool | None = None) -> str:
    """Make the x axis one of parameter counts, logarithmic beyond a factor of 20, and return its label."""
    if logarithmic is None:
        logarithmic = max(counts) > 20 * min(counts)
    return _magnitude_axis(axes, counts, "trainable parameters", "trainable parameters ({})", logarithmic=logarithmic)


def counts_axis(axes: Axes, which: Literal["x", "y"], counts: Iterable[float]) -> None:
    """Make an axis logarithmic over these counts, with whole numbers as ticks."""
    values = list(counts)
    low, high = min(values) / 1.15, max(values) * 1.15
    getattr(axes, f"set_{which}scale")("log")
    getattr(axes, f"set_{which}lim")(low, high)
    axis = axes.xaxis if which == "x" else axes.yaxis
    ticks = log_ticks(low, high)
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FixedFormatter([f"{tick:,.0f}" for tick in ticks]))
    axis.set_minor_locator(NullLocator())


def _magnitude_axis(axes: Axes, values: Sequence[float], plain: str, with_unit: str, *, logarithmic: bool) -> str:
    low, high = min(values), max(values)
    if logarithmic:
        margin = max((high / low) ** 0.07, 1.12 if high > low * 1.01 else 2.0)
        low, high = low / margin, high * margin
        axes.set_xscale("log")
        ticks = log_ticks(low, high)
    else:
        low, high = 0.0, high * 1.08
        ticks = [tick for tick in MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high) if tick <= high]
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    size, unit = next(((size, unit) for size, unit in _UNITS if max(ticks) >= size), (1.0, ""))
    one_unit = bool(unit) and min(tick for tick in ticks if tick > 0) >= size / 20
    if one_unit:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: _digits(tick / size)))
        return with_unit.format(unit)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: quantity(tick)))
    return plain


def log_ticks(low: float, high: float) -> list[float]:
    """From three to seven round numbers inside the limits."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in _STEPS:
        ticks = [step * 10.0**decade for decade in decades for step in steps if low <= step * 10.0**decade <= high]
        if len(ticks) >= 3:
            return ticks[:: math.ceil(len(ticks) / 7)]
    return [tick for tick in MaxNLocator(nbins=4).tick_values(low, high) if low <= tick <= high]


def _digits(number: float) -> str:
    text = f"{number:.3g}"
    return f"{float(text):.0f}" if "e" in text else text


def short_members(names: Iterable[str], limit: int = 12) -> dict[str, str]:
    """Each name with its middle cut out; all in full where two would become one.

    Example:
        >>> short_members(["wrn16-2", "convnextv2_tiny_in22k_384"])
        {'wrn16-2': 'wrn16-2', 'convnextv2_tiny_in22k_384': 'convne…k_384'}
    """
    given = list(dict.fromkeys(names))
    cut = {name: _cut(name, limit, tail=(limit - 1) // 2) for name in given}
    return cut if len(set(cut.values())) == len(given) else {name: name for name in given}


def short_layers(names: Iterable[str], limit: int = 16) -> dict[str, str]:
    """Parameter names without ``weight``, without a first part that all nested layers have, and without a long middle.

    Example:
        >>> short_layers(["stem.weight", "stages.0.0.conv1.weight", "stages.0.1.conv2.weight"])
        {'stem.weight': 'stem', 'stages.0.0.conv1.weight': '0.0.conv1', 'stages.0.1.conv2.weight': '0.1.conv2'}
    """
    given = list(dict.fromkeys(names))
    parts = {name: name.removesuffix(".weight").split(".") for name in given}
    nested = [own for own in parts.values() if len(own) > 2]
    if nested and len({own[0] for own in nested}) == 1:
        parts = {name: own[1:] if len(own) > 2 else own for name, own in parts.items()}
    cut = {name: _cut(".".join(own), limit, tail=limit - 5) for name, own in parts.items()}
    if len(set(cut.values())) < len(given):
        cut = {name: ".".join(own) for name, own in parts.items()}
    return cut if len(set(cut.values())) == len(given) else {name: name for name in given}


def split_label(label: str, members: Sequence[str]) -> tuple[str, str]:
    """Member and parameter name of a target's label; of an unknown member the name ends at the first point.

    Example:
        >>> split_label("resnet50.a1.conv1.weight", ["resnet50.a1"]), split_label("r18.conv1.weight", [])
        (('resnet50.a1', 'conv1.weight'), ('r18', 'conv1.weight'))
    """
    known = [member for member in members if label.startswith(f"{member}.")]
    member = max(known, key=len) if known else label.split(".")[0]
    return member, label[len(member) + 1 :]


def counted(count: int, noun: str) -> str:
    """A number and its noun.

    Example:
        >>> counted(1, "layer"), counted(3, "set")
        ('1 layer', '3 sets')
    """
    return f"{count} {noun}{'' if count == 1 else 's'}"


def balanced(text: str, limit: int) -> str:
    """The text on as few lines as ``limit`` characters allow, all about as long; no word is broken.

    Example:
        >>> balanced("packed ensembles of four networks", 24).split("\\n")
        ['packed ensembles', 'of four networks']
    """
    lines = [
        TextWrapper(width, break_long_words=False, break_on_hyphens=False).wrap(text) for width in range(1, limit + 1)
    ]
    return "\n".join(next(own for own in lines if len(own) == len(lines[-1])))


def _cut(name: str, limit: int, *, tail: int) -> str:
    if len(name) <= limit:
        return name
    return name[: limit - tail - 1] + _ELLIPSIS + name[-tail:]
