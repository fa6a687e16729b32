"""How every figure looks, without pyplot state: options, palette, sizes, captions, legends, axes, short names."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from textwrap import TextWrapper
from typing import Any, Literal

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import Collection
from matplotlib.colors import ListedColormap, to_hex, to_rgb, to_rgba
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation, Text
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.storage import read_text

COLUMN_INCHES = 4.0
PAGE_INCHES = 7.0
DOTS_PER_INCH = 200
TEXT_POINTS = 8.5
SMALL_POINTS = 7.5

INK = "#262626"
MUTED = "#8C8C8C"
GRID = "#E6E6E6"

# Settings in functions that draw. Ticks, which Matplotlib makes late, have their look from style_axes.
styled = matplotlib.rc_context({
    "text.parse_math": False,  # a $ in a name is a $
    "text.color": INK, "font.size": SMALL_POINTS,
    "axes.labelsize": TEXT_POINTS, "axes.labelcolor": INK, "axes.titlesize": SMALL_POINTS, "axes.titlelocation": "left",
    "axes.edgecolor": MUTED, "axes.linewidth": 0.6, "axes.spines.top": False, "axes.spines.right": False,
    "legend.fontsize": SMALL_POINTS, "legend.title_fontsize": SMALL_POINTS, "legend.frameon": False,
    "legend.handlelength": 1.6, "legend.handleheight": 0.9, "legend.handletextpad": 0.5,
    "legend.columnspacing": 1.3, "legend.labelspacing": 0.35,
})  # fmt: skip

ARM_LOOKS = {
    "shared": ("#0072B2", "o"),
    "variant": ("#56B4E9", "o"),
    "independent": ("#4D4D4D", "s"),
    "single": ("#9A9A9A", "s"),
    "narrower": ("#8C6D31", ">"),
    "batchensemble": ("#D55E00", "^"),
    "packed": ("#009E73", "D"),
    "mimo": ("#CC79A7", "v"),
    "masksembles": ("#E69F00", "P"),
    "exits": ("#6F4E37", "<"),
    "slimmable": ("#882255", "d"),
}
_OTHER_LOOK = ("#332288", "X")
APART = ARM_LOOKS["independent"][0]
# What means the same looks the same in every figure.
LOOKS: dict[str, dict[str, Any]] = {
    "error": {"linewidth": 3, "alpha": 0.25, "solid_capstyle": "butt", "zorder": 1.8},
    "front": {"linewidth": 1.3, "marker": ".", "markersize": 4, "zorder": 3},
    "stream": {"linewidth": 1.0, "linestyle": (0, (3, 2)), "alpha": 0.8},
    "cascade": {"linewidth": 1.4, "marker": ".", "markersize": 5},
    "truncated": {"linewidth": 1.4, "linestyle": (0, (1, 1.2)), "marker": ".", "markersize": 5},
    "exits": {"linewidth": 0, "marker": "x", "markersize": 4},
    "width": {"linewidth": 1.2, "marker": "o", "markersize": 3, "markerfacecolor": "white", "zorder": 3},
    "series": {"linewidth": 1.1, "linestyle": (0, (3, 1.5)), "color": "#56B4E9"},
    "tied": {"linewidth": 0.5, "alpha": 0.75, "zorder": 3, "color": INK},
    "slot": {"linewidth": 0.6, "zorder": 2.2, "color": "white"},
    "budget": {"linewidth": 1.1, "linestyle": (0, (4, 2)), "zorder": 1.5, "color": INK},
    "diagonal": {"linewidth": 0.8, "linestyle": (0, (4, 2)), "zorder": 1.5, "color": MUTED},
    "band": {"linewidth": 0, "alpha": 0.13},
}
_SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("o", "^", "D", "v", "P", "X", "s")
_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_STEPS = ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0))
_ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"
_LONGEST_NAME = 40

FORMATS = ("png", "pdf", "svg")
_WIDTHS = {"column": COLUMN_INCHES, "page": PAGE_INCHES}
_DARK = {"figure.facecolor": "#161616", "axes.facecolor": "#161616", "text.color": "#F4F4F4"}
# Settings that figures take from a style: by name, and by the start of their names.
_TAKEN = ("figure.facecolor", "axes.facecolor", "axes.prop_cycle", "text.color")
_TAKEN_STARTS = ("font.family", "font.serif", "font.sans-serif", "font.monospace", "font.style", "font.weight", "grid.")

Scale = Callable[[Axes, Sequence[float]], str]  # fits the x axis to these values and returns its label


def arm_color(name: str, index: int = 0) -> str:
    """Colour of an arm: the same one in every figure; ``index`` counts arms that have no look in ARM_LOOKS."""
    return ARM_LOOKS[name][0] if name in ARM_LOOKS else _SERIES[1:][index % 5]


def arm_marker(name: str, index: int = 0) -> str:
    return ARM_LOOKS[name][1] if name in ARM_LOOKS else _MARKERS[1:6][index % 5]


def arm_look(kind: str) -> dict[str, Any]:
    """Colour and marker of an arm by its name in a run, or its kind in a comparison."""
    return dict(zip(("color", "marker"), ARM_LOOKS.get(kind, _OTHER_LOOK)))


def run_look(index: int) -> dict[str, Any]:
    """Colour and marker of a run in a comparison; the first colour is that of the shared arm everywhere."""
    return {"color": run_color(index), "marker": run_marker(index)}


def run_color(index: int) -> str:
    return _SERIES[index % len(_SERIES)]


def run_marker(index: int) -> str:
    return _MARKERS[index % len(_MARKERS)]


def series_color(index: int) -> str:
    """Colour of an element of a series; each further round over the palette is paler."""
    rounds, place = divmod(index, len(_SERIES))
    return mix(_SERIES[place], "white", 0.5 * (rounds % 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class FigureOptions:
    """Formats, width and style of figures; the defaults are those of the figures that the library's pages show.

    Example:
        >>> FigureOptions(formats=("pdf",), width="column", style="dark").inches
        4.0
    """

    # png (200 dots an inch), pdf (text stays text, its fonts inside), svg (text as paths, alike on every machine); the
    # same results give the same bytes.
    formats: tuple[str, ...] = ("png",)
    width: float | str | None = None  # inches, 3 to 20, or "column" (4), "page" (7); None: each figure's own
    style: str = "light"  # or "dark", a style of Matplotlib by name, or the path of an .mplstyle file

    def __post_init__(self) -> None:
        if not self.formats or set(self.formats) - set(FORMATS) or len(set(self.formats)) < len(self.formats):
            raise SuperWeightError(
                f"figure formats {', '.join(self.formats) or 'none'}: give any of {', '.join(FORMATS)}, each once"
            )
        _ = self.inches, self.settings

    @property
    def inches(self) -> float | None:
        """Width of every figure, or None."""
        if self.width is None or self.width in _WIDTHS:
            return None if self.width is None else _WIDTHS[str(self.width)]
        try:
            inches = float(self.width)
        except ValueError:
            inches = math.nan
        if not 3 <= inches <= 20:
            raise SuperWeightError(f"figure width {self.width}: give column, page, or inches from 3 to 20")
        return inches

    @property
    def settings(self) -> dict[Any, Any]:
        """Matplotlib's settings that figures take from the style."""
        if self.style in ("light", "dark"):
            return dict(_DARK) if self.style == "dark" else {}
        given: Any = matplotlib.style.library.get(self.style) or _read_style(self.style)
        return {key: given[key] for key in given if key in _TAKEN or key.startswith(_TAKEN_STARTS)}

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Context in which every figure is drawn under these options."""
        token = _OPTIONS.set(self)
        try:
            with matplotlib.rc_context(self.settings):
                yield
        finally:
            _OPTIONS.reset(token)


def _read_style(style: str) -> matplotlib.RcParams:
    path = Path(style)
    if not path.is_file():
        raise SuperWeightError(
            f"figure style {style!r} is no style of Matplotlib, and no file: give light, dark, the path of an "
            ".mplstyle file, or a name from matplotlib.style.available, such as ggplot"
        )
    for number, line in enumerate(read_text(path).splitlines(), 1):
        key = line.split("#")[0].split(":")[0].strip()
        if key and key not in matplotlib.rcParams:
            raise SuperWeightError(f"{path}, line {number}: {key!r} is no setting of Matplotlib: mend or remove it")
    try:
        return matplotlib.rc_params_from_file(path, fail_on_error=True, use_default_template=False)
    except Exception as error:  # each validator raises its own
        reason = str(error).splitlines()[0]
        raise SuperWeightError(f"{path} is no style file of Matplotlib: {reason}: mend that value") from error


DEFAULTS = FigureOptions()
_OPTIONS: ContextVar[FigureOptions] = ContextVar("figure options", default=DEFAULTS)


def figure_width(own: float) -> float:
    """Width in inches of a figure that would itself be ``own`` wide, under the options applied."""
    return _OPTIONS.get().inches or own


def new_figure(width: float, height: float, *, title: str = "", caption: str = "") -> Figure:
    """Empty figure that lays itself out, its size in inches; title and caption come on top of the height."""
    figure = Figure(figsize=(figure_width(width), height), dpi=DOTS_PER_INCH, facecolor="white")
    top, bottom = (
        _write_margin(figure, text, points, name)
        for text, points, name in ((title, TEXT_POINTS, "title"), (caption, SMALL_POINTS - 0.5, "caption"))
    )
    figure.set_layout_engine(_Layout(top, bottom))
    set_plot_height(figure, height)
    return figure


def set_plot_height(figure: Figure, inches: float) -> None:
    """Make a figure this high, its title and caption not counted."""
    engine = figure.get_layout_engine()
    assert isinstance(engine, _Layout)
    figure.set_figheight(inches + engine.top + engine.bottom)


def _write_margin(figure: Figure, text: str, points: float, name: str) -> float:
    """A text wrapped to the width of the figure, at its top or bottom; returns the inches that it takes."""
    if not text:
        return 0.0
    at_top = name == "title"
    written = figure.text(
        0.08 / figure.get_figwidth(), 1.0 if at_top else 0.0, short_names(text), fontsize=points, color=INK, gid=name,
        va="top" if at_top else "bottom", weight="bold" if at_top else None, linespacing=1.25,
    )  # fmt: skip
    written.set_in_layout(False)
    a_letter = written.get_window_extent().width / figure.dpi / len(written.get_text())
    lines = TextWrapper(int(0.97 * (figure.get_figwidth() - 0.16) / a_letter)).wrap(written.get_text())
    written.set_text("\n".join(lines))
    return written.get_window_extent().height / figure.dpi + 0.1


class _Layout(ConstrainedLayoutEngine):
    """The constrained layout between title and caption, which also shortens long names."""

    def __init__(self, top: float, bottom: float) -> None:
        super().__init__()
        self.top, self.bottom = top, bottom

    def execute(self, fig: Figure) -> None:
        for axes in fig.axes:
            for axis in (axes.xaxis, axes.yaxis):
                formatter = axis.get_major_formatter()
                if isinstance(formatter, FuncFormatter) and getattr(formatter.func, "func", None) is not _short_tick:
                    formatter.func = partial(_short_tick, formatter.func)  # labels set by hand are a partial, too
        for text in fig.findobj(Text):
            if isinstance(text, Text) and len(text.get_text()) > _LONGEST_NAME:
                text.set_text(short_names(text.get_text()))
        height = fig.get_figheight()
        rect = (0.0, self.bottom / height, 1.0, 1 - (self.top + self.bottom) / height)
        for text in fig.texts:
            if text.get_gid() in ("title", "caption"):
                text.set_y(1 - 0.06 / height if text.get_gid() == "title" else 0.05 / height)
        for legend in fig.legends:
            legend.set_bbox_to_anchor(None)  # the layout gives a legend with an anchor no room
        self.set(rect=rect)
        super().execute(fig)
        for legend in fig.legends:
            legend.set_bbox_to_anchor(rect, fig.transFigure)


def recolor(figure: Figure) -> None:
    """Give a finished figure the colours of the options applied."""
    settings = _OPTIONS.get().settings
    ink = to_rgb(settings.get("text.color", "black"))
    around = to_rgb(settings.get("figure.facecolor", "white"))
    paper = to_rgb(settings.get("axes.facecolor", around))
    cycle = settings["axes.prop_cycle"].by_key().get("color", []) if "axes.prop_cycle" in settings else []
    series: dict[tuple[float, ...], tuple[float, ...]] = {to_rgb(own): to_rgb(new) for own, new in zip(_SERIES, cycle)}

    def new(color: Any) -> tuple[float, ...]:
        *parts, alpha = to_rgba(color)
        if tuple(parts) in series:
            return (*series[tuple(parts)], alpha)
        # A colour is white, black and a hue, mixed: white becomes the style's background, black its text.
        low, high = min(parts), max(parts)
        return (*(low * p + (1 - high) * i + part - low for part, p, i in zip(parts, paper, ink)), alpha)

    figure.draw_without_rendering()  # which makes the ticks
    for artist in dict.fromkeys(figure.findobj()):
        if isinstance(artist, Text) and (halo := artist.get_path_effects()):
            artist.set_path_effects([withStroke(linewidth=1.6, foreground=new("white"), alpha=0.85) for _ in halo])
        if isinstance(artist, Annotation) and artist.arrow_patch is not None:
            artist.arrow_patch.set(facecolor=new(artist.arrow_patch.get_facecolor()), edgecolor=new(INK))
        if isinstance(artist, Text) and (box := artist.get_bbox_patch()) is not None:
            box.set(facecolor=new(box.get_facecolor()), linewidth=0)
        if isinstance(artist, ScalarMappable) and artist.get_array() is not None:
            colors = artist.get_cmap()([place / 255 for place in range(256)])
            artist.set_cmap(ListedColormap([new(color) for color in colors]))
            continue
        if isinstance(artist, Line2D):  # markers first: automatic ones follow the line
            _recolor_one(artist, "markerfacecolor", new)
            _recolor_one(artist, "markeredgecolor", new)
        for look in ("color",) if isinstance(artist, (Text, Line2D)) else ("facecolor", "edgecolor"):
            _recolor_one(artist, look, new)
    figure.set_facecolor(around)
    for axes in figure.axes:
        axes.set_facecolor(paper)
        for line in (*axes.get_xgridlines(), *axes.get_ygridlines()):
            looks = {"color": "color", "linestyle": "linestyle", "linewidth": "linewidth", "alpha": "alpha"}
            line.set(**{look: settings[f"grid.{key}"] for look, key in looks.items() if f"grid.{key}" in settings})


def _recolor_one(artist: Artist, look: str, new: Callable[[Any], tuple[float, ...]]) -> None:
    get = getattr(artist, f"get_{look}", None)
    if get is None or (isinstance(found := get(), str) and found in ("none", "face", "auto")):
        return
    many = isinstance(artist, Collection)
    getattr(artist, f"set_{look}")([new(color) for color in found] if many else new(found))


def _short_tick(says: Callable[..., str], *tick: Any) -> str:
    """Text of a tick by a formatter, with short names."""
    return short_names(says(*tick))


def short_names(text: str) -> str:
    """The text with the middle of every name cut out that is longer than 40 characters.

    Example:
        >>> short_names("a" * 30 + "b" * 30 + ", depth 10")
        'aaaaaaaaaaaaaaaaaaaa…bbbbbbbbbbbbbbbbbb, depth 10'
    """
    return re.sub(rf"\S{{{_LONGEST_NAME + 1},}}", lambda found: _cut(found[0], _LONGEST_NAME, tail=19), text)


def style_axes(axes: Axes, *, xlabel: str = "", ylabel: str = "", grid: Literal["both", "x", "y"] = "both") -> None:
    """Labels, ticks, and a light grid behind the data."""
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.tick_params(labelsize=SMALL_POINTS, color=MUTED, labelcolor=INK, length=3, width=0.6)
    axes.tick_params(which="minor", length=0, labelbottom=False, labelleft=False)
    axes.set_axisbelow(True)
    axes.grid(True, axis=grid, color=GRID, linewidth=0.6)


def draw_line(axes: Axes, points: Iterable[tuple[float, float]], look: str, *, gid: str, **more: Any) -> None:
    """A line through points, in one of :data:`LOOKS`."""
    axes.plot(*np.array([*points], dtype=float).reshape(-1, 2).T, gid=gid, **{**LOOKS[look], **more})


def draw_markers(
    axes: Axes,
    points: Iterable[tuple[float, float]],
    *,
    color: str,
    marker: str,
    gid: str,
    size: float = 26.0,
    zorder: float = 4.0,
    hollow: bool = False,
) -> None:
    """Points with a white rim, so that neighbours stay apart, or hollow, for one seed; ``size`` in square points."""
    xs, ys = zip(*points)
    face, edge, width = ("white", color, 1.1) if hollow else (color, "white", 0.6)
    look: dict[str, Any] = {"facecolors": face, "edgecolors": edge, "linewidths": width, "marker": marker}
    axes.scatter(xs, ys, s=size, zorder=zorder, gid=gid, **look)


def add_box(axes: Axes, left: float, bottom: float, width: float, height: float, **look: Any) -> Rectangle:
    """A rectangle in data coordinates, if ``look`` has no ``transform``."""
    box = Rectangle((left, bottom), width, height, **look)
    axes.add_patch(box)
    return box


def write_beside(
    axes: Axes, text: str, point: tuple[float, float], offset: tuple[float, float], **look: Any
) -> Annotation:
    """A small text that stands off from its point, by an offset in points."""
    return axes.annotate(text, point, xytext=offset, textcoords="offset points", **look)


def hide_spines(axes: Axes) -> None:
    """Hide the frame and the tick marks."""
    axes.spines[:].set_visible(False)
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
        legend = figure.legend(handles=list(handles), loc=loc, ncols=columns)
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return legend, -(-len(handles) // columns)
        legend.remove()
        columns -= 1


def key(label: str, color: str, marker: str = "", size: float = 5, linewidth: float = 0.0, **look: Any) -> Line2D:
    """Legend entry of a line or a marker."""
    return Line2D([], [], color=color, marker=marker, markersize=size, linewidth=linewidth, label=label, **look)


def mix(color: str, other: str, share: float) -> str:
    """Colour with a share of another one in it.

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
    light = _luminance(color)  # a dark colour has room for lighter shades, a light one for darker
    top, bottom = (min(max(room / 0.4, 0.0), 1.0) for room in (light - 0.2, 0.9 - light))
    place = top - (top + bottom) * index / (count - 1)
    return mix(color, INK, 0.5 * place) if place > 0 else mix(color, "white", -0.8 * place)


def is_dark(color: str, below: float = 0.55) -> bool:
    """Whether white text reads better on a colour than black."""
    return _luminance(color) < below


def readable(color: str) -> str:
    """The colour, dark enough to write text in it on white."""
    return mix(color, INK, 0.15 if is_dark(color) else 0.45)


def _luminance(color: str) -> float:
    return sum(weight * part for weight, part in zip((0.3, 0.59, 0.11), to_rgb(color)))


def quantity(number: float) -> str:
    """Count in three digits with its unit.

    Example:
        >>> [quantity(number) for number in (12, 1500, 1_036_085, 41e9)]
        ['12', '1.5 k', '1.04 M', '41 G']
    """
    for size, unit in _UNITS:
        if abs(number) >= size * 0.9995:
            return f"{_digits(number / size)} {unit}"
    return _digits(number)


def accuracy_axis(axes: Axes, percents: Iterable[float], *, below: float = 0.0) -> None:
    """Limit the y axis to accuracies in per cent, with ``below`` of their range free under them."""
    values = list(percents)
    low, high = min(values), max(values)
    missing = max(0.0, 0.5 - (high - low)) / 2  # never an empty range, and little above 100 %
    low, high = low - missing, min(high + missing, max(high, 100.0))
    span = high - low
    top = min(high + 0.07 * span, 100.0 + 0.04 * span)
    axes.set_ylim(max(low - (0.07 + below) * span, -(0.03 + below) * 100), top)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))


def accuracy_axes(
    size: tuple[float, float],
    scale: Scale,
    xs: Sequence[float],
    percents: Iterable[float],
    *,
    below: float = 0.0,
    title: str = "",
    caption: str = "",
) -> tuple[Figure, Axes]:
    """A figure of test accuracy against a cost, over these values."""
    figure = new_figure(*size, title=title, caption=caption)
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
    axes.set(**{f"{which}scale": "log", f"{which}lim": (low, high)})
    ticks = log_ticks(low, high)
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_ticks(ticks, [f"{tick:,.0f}" for tick in ticks])
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
    size, unit = next(((size, unit) for size, unit in _UNITS if max(ticks) >= size), (1.0, ""))
    one_unit = bool(unit) and min(tick for tick in ticks if tick > 0) >= size / 20
    axes.set_xticks(ticks, [_digits(tick / size) if one_unit else quantity(tick) for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    return with_unit.format(unit) if one_unit else plain


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
    return _distinct({name: _cut(name, limit, tail=(limit - 1) // 2) for name in names})


def short_layers(names: Iterable[str], limit: int = 16) -> dict[str, str]:
    """Parameter names without ``weight``, a first part that all nested layers have, and a long middle.

    Example:
        >>> short_layers(["stem.weight", "stages.0.0.conv1.weight", "stages.0.1.conv2.weight"])
        {'stem.weight': 'stem', 'stages.0.0.conv1.weight': '0.0.conv1', 'stages.0.1.conv2.weight': '0.1.conv2'}
    """
    parts = {name: name.removesuffix(".weight").split(".") for name in names}
    nested = [own for own in parts.values() if len(own) > 2]
    if nested and len({own[0] for own in nested}) == 1:
        parts = {name: own[1:] if len(own) > 2 else own for name, own in parts.items()}
    whole = {name: ".".join(own) for name, own in parts.items()}
    return _distinct({name: _cut(own, limit, tail=limit - 5) for name, own in whole.items()}, whole)


def _distinct(*choices: dict[str, str]) -> dict[str, str]:
    """The first choice of short names that are all different, or else the names themselves."""
    names = dict(zip(choices[0], choices[0]))
    return next((short for short in choices if len(set(short.values())) == len(short)), names)


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
    """Number and its noun.

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
