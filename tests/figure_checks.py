"""What tests of figures share: finding artists, reading legends, holding texts apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.text import Text


def with_gid(figure: Figure, gid: str) -> list[Any]:
    return figure.findobj(lambda artist: artist.get_gid() == gid)


def legend_texts(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def drawn_boxes(texts: Iterable[Artist]) -> list[Any]:
    """Extents in pixels of a figure laid out, of the texts alone: leaders and arrows left out."""
    return [Text.get_window_extent(text) for text in texts if isinstance(text, Text)]


def assert_apart(boxes: Sequence[Any]) -> None:
    for first, second in combinations(boxes, 2):
        apart = first.x1 <= second.x0 or second.x1 <= first.x0 or first.y1 <= second.y0 or second.y1 <= first.y0
        assert apart, (first, second)
