"""Further colours from a few: for a series of any length, and shades of one colour that can be told apart."""

from __future__ import annotations

from matplotlib.colors import to_hex, to_rgb

from superweight_ensembles.report.figures.style import INK

_SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


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


def series_color(index: int) -> str:
    """Colour of an element of a series; each further round over the palette is paler."""
    rounds, place = divmod(index, len(_SERIES))
    return mix(_SERIES[place], "white", 0.5 * (rounds % 2))


def is_dark(color: str) -> bool:
    """Whether white text reads better on it than black."""
    return _luminance(color) < 0.55


def readable(color: str) -> str:
    """The colour, dark enough to write text in it on white."""
    return mix(color, INK, 0.15 if is_dark(color) else 0.45)


def _luminance(color: str) -> float:
    return sum(weight * part for weight, part in zip((0.3, 0.59, 0.11), to_rgb(color)))
