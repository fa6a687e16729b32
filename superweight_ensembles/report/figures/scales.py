"""Axes of the quantities that the figures show: accuracy in per cent, FLOPs, parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, MaxNLocator, NullLocator

_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_STEPS = ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0))


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
    """Limit the y axis to accuracies given in per cent; never an empty range, little above 100 %.

    Args:
        axes: Axes to limit.
        percents: Everything drawn, in per cent.
        below: Free space to keep under the data, as a fraction of its range.
    """
    values = list(percents)
    low, high = min(values), max(values)
    missing = max(0.0, 0.5 - (high - low)) / 2
    low, high = low - missing, min(high + missing, max(high, 100.0))
    span = high - low
    top = min(high + 0.07 * span, 100.0 + 0.04 * span)
    axes.set_ylim(max(low - (0.07 + below) * span, -(0.03 + below) * 100), top)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))


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
