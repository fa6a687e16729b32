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
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from training_steps import joint_step, recipe_batch, recipe_ensemble, timed, trained_format

from superweight_ensembles.experiment import Recipe, load_recipe
from superweight_ensembles.storage import provenance, write_json
from superweight_ensembles.training import TrainConfig, build_fabric


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="recipes/cifar10-small.yaml")
    parser.add_argument("--set", nargs="+", default=[], dest="overrides", help="key.path=value, of the recipe")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--image-size", type=int, help="the data's where left out")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precisions", default="float32,bfloat16")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    recipe, made_by = load_recipe(options.recipe, options.overrides), provenance()
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
    batch = recipe_batch(recipe, config, options.batch_size, options.image_size)
    steps = {
        name: joint_step(recipe_ensemble(recipe, config).train(), config, name == "compiled")[0]
        for name in ("eager", "compiled")
    }
    losses: dict[str, dict[str, float]] = {}
    first_s: dict[str, float] = {}
    for name, step in steps.items():
        begin = time.perf_counter()
        with fabric.autocast():
            losses[name] = {member: float(loss) for member, loss in step(*batch).items()}
        first_s[name] = time.perf_counter() - begin
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(options.rounds):
        for name, step in steps.items():
            with fabric.autocast():
                times[name].append(timed(partial(step, *batch), fabric.device))
    ratios = [a / b for a, b in zip(times["compiled"], times["eager"])]
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "precision": precision,
        "channels_last": trained_format(config) == torch.channels_last,
        "device": str(fabric.device),
        "recipe": recipe.name,
        "batch_size": options.batch_size,
        "image_size": batch[0].shape[-1],
        "rounds": options.rounds,
        "compiled_ms": 1e3 * statistics.median(times["compiled"]),
        "eager_ms": 1e3 * statistics.median(times["eager"]),
        "ratio": statistics.median(ratios),
        "ratio_quartiles": [quartiles[0], quartiles[2]],
        "compilation_s": first_s["compiled"] - first_s["eager"],
        "loss_difference": max(abs(losses["compiled"][name] - value) for name, value in losses["eager"].items()),
    }


if __name__ == "__main__":
    main()
