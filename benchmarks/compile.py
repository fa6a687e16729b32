"""A training step of the cifar10-small ensemble: members run by torch.compile against the same members as they are.

    OMP_NUM_THREADS=2 python benchmarks/compile.py --out benchmarks/results/compile.json

Both arms take joint steps over equal banks on the same batch, in turn. The ratio is the median over pairs of adjacent
steps; the first step, which compiles, is timed apart.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from typing import Any

import harness
import torch
from training_steps import joint_step, recipe_batch, recipe_ensemble, trained_format

from superweight_ensembles.experiment import Recipe, load_recipe
from superweight_ensembles.training import TrainConfig, build_fabric


def main() -> None:
    parser = harness.new_parser(
        __doc__, recipe="recipes/cifar10-small.yaml", rounds=20, batch_size=128, image_size=None, device="auto",
        precisions="float32,bfloat16",
    )  # fmt: skip
    parser.add_argument("--set", nargs="+", default=[], dest="overrides", help="key.path=value, of the recipe")
    options = harness.read_options(parser)
    recipe = load_recipe(options.recipe, options.overrides)
    arms = [measure(recipe, precision, options) for precision in options.precisions.split(",")]
    harness.write_results(options.out, "compile", arms=arms)
    harness.show(arms)


def measure(recipe: Recipe, precision: str, options: argparse.Namespace) -> dict[str, Any]:
    config = TrainConfig(precision=precision, device=options.device)
    fabric = build_fabric(config)
    batch = recipe_batch(recipe, config, options.batch_size, options.image_size)
    steps = {
        name: partial(joint_step(recipe_ensemble(recipe, config).train(), config, name == "compiled")[0], *batch)
        for name in ("eager", "compiled")
    }
    losses: dict[str, dict[str, float]] = {}
    first_s: dict[str, float] = {}
    for name, step in steps.items():
        begin = time.perf_counter()
        with fabric.autocast():
            losses[name] = {member: float(loss) for member, loss in step().items()}
        first_s[name] = time.perf_counter() - begin
    times = harness.alternate(steps, options.rounds, warm_up=0, device=fabric.device, within=fabric.autocast)
    return {
        "precision": precision,
        "channels_last": trained_format(config) == torch.channels_last,
        "device": str(fabric.device),
        "recipe": recipe.name,
        "batch_size": options.batch_size,
        "image_size": batch[0].shape[-1],
        "rounds": options.rounds,
        **harness.compared(times, "compiled", "eager"),
        "compilation_s": first_s["compiled"] - first_s["eager"],
        "loss_difference": max(abs(losses["compiled"][name] - value) for name, value in losses["eager"].items()),
    }


if __name__ == "__main__":
    main()
