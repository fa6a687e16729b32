"""A training step of the cifar10-small ensemble: bank against the same members with their own weights.

    python benchmarks/step_time.py --out benchmarks/results/step_time.json
    python benchmarks/step_time.py --device cuda --recipe recipes/cifar10-depth-width.yaml --out step_time_cuda.json

Both arms run member by member on the same batch, with the same optimiser; steps alternate, so that a machine that
slows down does so for both. The ratio is the median over pairs of adjacent steps.
"""

from __future__ import annotations

import argparse
import os
import statistics
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import nn
from training_steps import Step, apart_step, generation_step, joint_step, timed

import superweight_ensembles as swe
from superweight_ensembles.files import write_json
from superweight_ensembles.provenance import provenance
from superweight_ensembles.recipe import Recipe, load_recipe
from superweight_ensembles.training import TrainConfig
from superweight_ensembles.training.fabric import build_fabric


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="recipes/cifar10-small.yaml")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    recipe = load_recipe(options.recipe)
    made_by = provenance()
    arms = [measure(recipe, precision, options) for precision in ("float32", "bfloat16")]
    write_json(options.out, {"benchmark": "step_time", "provenance": made_by, "arms": arms})
    for arm in arms:
        print(
            f"{arm['precision']}: bank {arm['bank_ms']:.1f} ms, own weights {arm['own_ms']:.1f} ms, ratio "
            f"{arm['ratio']:.3f} ({arm['ratio_quartiles'][0]:.3f} to {arm['ratio_quartiles'][1]:.3f}); generation "
            f"{arm['generation_ms']:.1f} ms forward and backward, {100 * arm['generation_share']:.1f} % of the step"
        )


def measure(recipe: Recipe, precision: str, options: argparse.Namespace) -> dict[str, Any]:
    config = TrainConfig(precision=precision, device=options.device)
    fabric = build_fabric(config)
    channels_last = precision == "bfloat16"
    bank, ensemble = bank_step(recipe, config, channels_last)
    own = own_step(recipe, config, channels_last)
    shape = (options.batch_size, 3, options.image_size, options.image_size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(fabric.device)
    labels = torch.randint(0, 10, shape[:1], generator=torch.Generator().manual_seed(0)).to(fabric.device)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    times: dict[str, list[float]] = {"bank": [], "own": [], "generation": []}
    generation = generation_step(ensemble)
    for round_number in range(options.rounds + 3):
        for name, step in (("bank", lambda: bank(images, labels)), ("own", lambda: own(images, labels)),
                           ("generation", generation)):  # fmt: skip
            with fabric.autocast():
                seconds = timed(step, fabric.device)
            if round_number >= 3:
                times[name].append(seconds)
    ratios = sorted(a / b for a, b in zip(times["bank"], times["own"]))
    quartiles = statistics.quantiles(ratios, n=4)
    medians = {name: 1e3 * statistics.median(values) for name, values in times.items()}
    return {
        "precision": precision,
        "channels_last": channels_last,
        "device": str(fabric.device),
        "recipe": recipe.name,
        "batch_size": options.batch_size,
        "image_size": options.image_size,
        "rounds": options.rounds,
        "bank_ms": medians["bank"],
        "own_ms": medians["own"],
        "ratio": statistics.median(ratios),
        "ratio_quartiles": [quartiles[0], quartiles[2]],
        "generation_ms": medians["generation"],
        "generation_share": medians["generation"] / medians["bank"],
        "num_parameters": ensemble.num_parameters,
        "independent_parameters": ensemble.independent_parameters,
    }


def bank_step(recipe: Recipe, config: TrainConfig, channels_last: bool) -> tuple[Step, swe.SuperWeightEnsemble]:
    """A joint step over the shared bank, as the library trains."""
    members = recipe.build_members()
    ensemble = swe.SuperWeightEnsemble(members, plan=recipe.plan(members), generator=recipe.bank_generator())
    ensemble.to(build_fabric(config).device)
    if channels_last:
        ensemble.to(memory_format=torch.channels_last)
    return joint_step(ensemble, config)[0], ensemble


def own_step(recipe: Recipe, config: TrainConfig, channels_last: bool) -> Step:
    """The same members as plain modules, one after the other, and one optimiser over all their parameters."""
    modules = nn.ModuleList(recipe.build_members().values()).to(build_fabric(config).device)
    if channels_last:
        modules.to(memory_format=torch.channels_last)
    return apart_step(modules, config)[0]


if __name__ == "__main__":
    main()
