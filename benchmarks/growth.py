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
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from growth_point import Setting, measure_point

from superweight_ensembles.storage import provenance, write_json

GROWTH_FORMAT = 1
SWEEPS = {"members": "members", "targets": "targets", "templates": "templates a slot", "batch_size": "images a step"}
# What is drawn and fitted: of the point, of the own weights' point, and what it should grow as.
SERIES = {
    "step_ms": ("bank_ms", "own_ms", "flops"),
    "generation_ms": ("generation_ms", None, "generation_products"),
    "peak_bytes": ("bank_peak_bytes", "own_peak_bytes", "peak_bytes"),
    "plan_s": ("plan_s", None, "targets"),
    "plan_and_build_s": ("plan_and_build_s", None, "targets"),
}


def main() -> None:
    options = read_options()
    logging.getLogger("superweight_ensembles").setLevel(logging.ERROR)
    if options.threads:
        torch.set_num_threads(options.threads)
    made_by = provenance()
    sweeps = [measure_sweep(name, options) for name in SWEEPS if getattr(options, name)]
    options.out.mkdir(parents=True, exist_ok=True)
    content = {"format": GROWTH_FORMAT, "benchmark": "growth", "provenance": made_by, "sweeps": sweeps}
    write_json(options.out / "growth.json", content)
    for sweep in sweeps:
        print_sweep(sweep)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, nargs="*", default=[1, 2, 4, 8, 16])
    parser.add_argument("--targets", type=int, nargs="*", default=[10, 50, 200, 800, 2000])
    parser.add_argument("--templates", type=int, nargs="*", default=[1, 2, 4, 8])
    parser.add_argument("--batch-size", type=int, nargs="*", default=[8, 16, 32, 64, 128, 256])
    parser.add_argument("--fixed-members", type=int, default=2, help="where they are not varied, in WRN 16-1")
    parser.add_argument("--fixed-targets", type=int, default=200, help="of the MLP where they are not varied")
    parser.add_argument("--fixed-templates", type=int, default=2)
    parser.add_argument("--fixed-batch-size", type=int, default=32)
    parser.add_argument("--image-size", type=int, default=16)
    parser.add_argument("--width", type=int, default=64, help="of the MLP")
    parser.add_argument("--seconds", type=float, default=3.0, help="for the steps of a point")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder of growth.json")
    return parser.parse_args()


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
    xs, ys = ([math.log(number) for number in numbers[start:]] for numbers in (values, found))
    if len(xs) < 2:
        return None
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys)) / sum((x - mean_x) ** 2 for x in xs)


def print_sweep(sweep: dict[str, Any]) -> None:
    print(f"\n{sweep['label']} ({', '.join(f'{key} {value}' for key, value in sweep['fixed'].items() if value)})")
    print("         value   bank ms    own ms  ratio   gen. ms  bank MB   own MB  ratio   plan ms  and build ms")
    for point in sweep["points"]:
        print(
            f"{point['value']:14,} {point['bank_ms']:9.1f} {point['own_ms']:9.1f} {point['step_ratio']:6.2f} "
            f"{point['generation_ms']:9.2f} {point['bank_peak_bytes'] / 1e6:8.1f} {point['own_peak_bytes'] / 1e6:8.1f} "
            f"{point['peak_ratio']:6.2f} {1e3 * point['plan_s']:9.1f} {1e3 * point['plan_and_build_s']:13.1f}"
        )
    for key, series in sweep["series"].items():
        if series["slope"] is not None:
            print(f"{key:>18}: slope {series['slope']:.2f}, on paper {series['slope_on_paper']:.2f}")


if __name__ == "__main__":
    main()
