"""How time and memory of a step grow with members, targets, templates and batch, beside what they should on paper.

    python benchmarks/growth.py --out benchmarks/results/growth
    python benchmarks/draw.py benchmarks/results/growth --out figures/growth

Four sweeps, each changing one thing: members (WRN 16-1, all alike), targets (in one residual MLP, deep and narrow),
templates a slot (the same MLP), images a step. Steps of the bank and of the same members with their own weights
alternate; the peak memory of each is measured in a process of its own. Slopes are those of the logarithms over the
upper half of a sweep: 1 is linear.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import harness
import numpy as np
from growth_point import Setting, measure_point

GROWTH_FORMAT = 1
SWEEPS = {"members": "members", "targets": "targets", "templates": "templates a slot", "batch_size": "images a step"}
VALUES = {
    "members": [1, 2, 4, 8, 16],
    "targets": [10, 50, 200, 800, 2000],
    "templates": [1, 2, 4, 8],
    "batch_size": [8, 16, 32, 64, 128, 256],
}
# What is drawn and fitted: of the point, of the own weights' point, and what it should grow as.
SERIES = {
    "step_ms": ("bank_ms", "own_ms", "flops"),
    "generation_ms": ("generation_ms", None, "generation_products"),
    "peak_bytes": ("bank_peak_bytes", "own_peak_bytes", "peak_bytes"),
    "plan_s": ("plan_s", None, "targets"),
    "plan_and_build_s": ("plan_and_build_s", None, "targets"),
}


def main() -> None:
    parser = harness.new_parser(
        __doc__, fixed_members=2, fixed_targets=200, fixed_templates=2, fixed_batch_size=32, image_size=16, width=64,
        seconds=3.0, threads=0,
    )  # fmt: skip
    for name, values in VALUES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, nargs="*", default=values, help="none: left out")
    options = harness.read_options(parser)
    logging.getLogger("superweight_ensembles").setLevel(logging.ERROR)
    sweeps = [measure_sweep(name, options) for name in SWEEPS if getattr(options, name)]
    harness.write_results(options.out / "growth.json", "growth", format=GROWTH_FORMAT, sweeps=sweeps)
    for sweep in sweeps:
        print(sweep["label"])
        harness.show(sweep["points"])
        harness.show({"series": key, **series} for key, series in sweep["series"].items())


def measure_sweep(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One sweep: its points, and for each series growth, slope, and growth on paper."""
    values = sorted(getattr(options, name))
    deep = name in ("targets", "templates")
    fixed = {
        "network": "mlp" if deep else "wrn16-1",
        "members": 1 if deep else options.fixed_members,
        "targets": options.fixed_targets if deep else 0,
        "templates": options.fixed_templates,
        "batch_size": options.fixed_batch_size,
        "image_size": options.image_size,
        "width": options.width if deep else 0,
        "threads": options.threads,
    }
    points = []
    for value in values:
        begin = time.perf_counter()
        setting = Setting(**{**fixed, name: value})
        points.append({"value": value, **measure_point(setting, options.seconds)})
        print(f"{SWEEPS[name]} {value}: measured in {time.perf_counter() - begin:.1f} s", flush=True)
    return {
        "name": name,
        "label": SWEEPS[name],
        "values": values,
        "fixed": {key: value for key, value in asdict(setting).items() if key != name},
        "points": points,
        "series": {key: make_series(values, points, *fields) for key, fields in SERIES.items()},
    }


def make_series(
    values: Sequence[int], points: Sequence[dict[str, Any]], measured: str, own: str | None, paper: str
) -> dict[str, Any]:
    """What one quantity did over a sweep; ``on_paper`` and ``growth`` are multiples of the first point."""
    found = [float(point[measured]) for point in points]
    expected = [float(point["on_paper"][paper]) for point in points]
    series: dict[str, Any] = {
        "measured": found,
        "growth": [number / found[0] for number in found],
        "on_paper": [number / expected[0] for number in expected],
        "slope": upper_slope(values, found),
        "slope_on_paper": upper_slope(values, expected),
    }
    if own is not None:
        series["own"] = [float(point[own]) for point in points]
        series["own_slope"] = upper_slope(values, series["own"])
    return series


def upper_slope(values: Sequence[float], found: Sequence[float]) -> float | None:
    """The exponent with which a quantity grows over the upper half of a sweep, by least squares; None for one point."""
    start = (len(values) - 1) // 2
    if len(values) - start < 2:
        return None
    return float(np.polyfit(np.log(values[start:]), np.log(found[start:]), 1)[0])


if __name__ == "__main__":
    main()
