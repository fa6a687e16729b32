"""A training step of the cifar10-small ensemble: members run by torch.compile against the same members as they are.

    OMP_NUM_THREADS=2 python benchmarks/compile.py --out benchmarks/results/compile.json

Both arms take joint steps over equal banks on the same batch; steps alternate, so that a machine that slows down does
so for both. The ratio is the median over pairs of adjacent steps; the first step, which compiles, is timed apart.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import nn

import superweight_ensembles as swe
from superweight_ensembles.files import write_json
from superweight_ensembles.provenance import provenance
from superweight_ensembles.recipe import Recipe, load_recipe
from superweight_ensembles.training import TrainConfig, joint_backward
from superweight_ensembles.training.compilation import compiled_calls
from superweight_ensembles.training.fabric import build_fabric
from superweight_ensembles.training.optimization import build_optimizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="recipes/cifar10-small.yaml")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precisions", default="float32,bfloat16")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    recipe, made_by = load_recipe(options.recipe), provenance()
    arms = [measure(recipe, precision, options) for precision in options.precisions.split(",")]
    write_json(options.out, {"benchmark": "compile", "provenance": made_by, "arms": arms})
    for arm in arms:
        print(
            f"{arm['precision']}: compiled {arm['compiled_ms']:.0f} ms, eager {arm['eager_ms']:.0f} ms, ratio "
            f"{arm['ratio']:.3f} ({arm['ratio_quartiles'][0]:.3f} to {arm['ratio_quartiles'][1]:.3f}); "
            f"compiled in {arm['compilation_s']:.0f} s, losses within {arm['loss_difference']:.1e}"
        )


def measure(recipe: Recipe, precision: str, options: argparse.Namespace) -> dict[str, Any]:
    config = TrainConfig(precision=precision, device=options.device)
    fabric = build_fabric(config)
    channels_last = precision == "bfloat16" or fabric.device.type == "cpu"
    shape = (options.batch_size, 3, options.image_size, options.image_size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(fabric.device)
    labels = torch.randint(0, 10, shape[:1], generator=torch.Generator().manual_seed(0)).to(fabric.device)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    steps = {name: joint_step(recipe, config, channels_last, name == "compiled") for name in ("eager", "compiled")}
    first = {name: timed(partial(step, images, labels), fabric) for name, step in steps.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(options.rounds):
        for name, step in steps.items():
            times[name].append(timed(partial(step, images, labels), fabric)[0])
    ratios = [a / b for a, b in zip(times["compiled"], times["eager"])]
    quartiles = statistics.quantiles(ratios, n=4)
    losses = {name: losses for name, (_, losses) in first.items()}
    return {
        "precision": precision,
        "channels_last": channels_last,
        "device": str(fabric.device),
        "recipe": recipe.name,
        "batch_size": options.batch_size,
        "image_size": options.image_size,
        "rounds": options.rounds,
        "compiled_ms": 1e3 * statistics.median(times["compiled"]),
        "eager_ms": 1e3 * statistics.median(times["eager"]),
        "ratio": statistics.median(ratios),
        "ratio_quartiles": [quartiles[0], quartiles[2]],
        "compilation_s": first["compiled"][0] - first["eager"][0],
        "loss_difference": max(abs(losses["compiled"][name] - value) for name, value in losses["eager"].items()),
    }


def joint_step(
    recipe: Recipe, config: TrainConfig, channels_last: bool, compiled: bool
) -> Callable[[torch.Tensor, torch.Tensor], dict[str, float]]:
    """A joint step over a bank of its own, as the library trains; answers the members' losses."""
    members = recipe.build_members()
    ensemble = swe.SuperWeightEnsemble(members, plan=recipe.plan(members), generator=recipe.bank_generator())
    ensemble.to(build_fabric(config).device).train()
    if channels_last:
        ensemble.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(ensemble, config)
    calls = compiled_calls(dict(ensemble.members.items())) if compiled else None

    def step(images: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
        optimizer.zero_grad(set_to_none=True)
        losses = joint_backward(ensemble, images, labels, nn.functional.cross_entropy, compiled=calls)
        optimizer.step()
        return {name: float(loss) for name, loss in losses.items()}

    return step


def timed(step: Callable[[], dict[str, float]], fabric: Any) -> tuple[float, dict[str, float]]:
    """Seconds of a step, the device's work included, and its losses."""
    if fabric.device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    with fabric.autocast():
        losses = step()
    if fabric.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, losses


if __name__ == "__main__":
    main()
