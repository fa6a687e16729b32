"""A training step: the bank against the same members with their own weights, and against generation done literally.

    python benchmarks/step_time.py --out benchmarks/results/step_time.json
    python benchmarks/step_time.py --set sharing.generator=ssn --out benchmarks/results/step_time_ssn.json
    python benchmarks/step_time.py --device cuda --recipes recipes/cifar10-depth-width.yaml:128 --out cuda.json

All arms run member by member on the same batch, with the same optimiser; steps alternate, so that a machine that slows
down does so for all. Ratios are medians over adjacent steps. The literal arm makes each weight by itself, layer by
layer, slot by slot and template by template (tests/reference.py), and holds the graphs of all members at once, as the
published code does; the overhead is what an arm takes more than the members with weights of their own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.append(str(Path(__file__).parents[1] / "tests"))

import reference  # type: ignore[import-not-found]
import torch
from torch import nn
from training_steps import (
    Step,
    apart_step,
    generation_step,
    joint_step,
    recipe_batch,
    recipe_ensemble,
    recipe_members,
    timed,
    trained_format,
)

import superweight_ensembles as swe
from superweight_ensembles.experiment import Recipe, load_recipe
from superweight_ensembles.storage import provenance, write_json
from superweight_ensembles.training import TrainConfig, build_fabric, build_optimizer

PAIR = """members=[{name: wrn28-2, model: wide_resnet, depth: 28, width: 2},
 {name: wrn16-2, model: wide_resnet, depth: 16, width: 2}]"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=["recipes/cifar10-small.yaml:128"], help="FILE:BATCH")
    parser.add_argument("--set", nargs="+", default=[], dest="overrides", help="key.path=value, of the recipes")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--image-size", type=int, help="the data's where left out")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    settings: list[tuple[Recipe, int, str, bool]] = []
    for given in options.recipes:
        file, _, batch = given.rpartition(":")
        settings += [
            (load_recipe(file, options.overrides), int(batch), precision, False) for precision in options.precisions
        ]
    if (
        not options.overrides and "float32" in options.precisions
    ):  # what the published code was timed on: WRN 28-2 and 16-2, 0.83, batch 32, float32
        settings.append((load_recipe("recipes/cifar10-small.yaml", [PAIR]), 32, "float32", True))
    made_by = provenance()
    arms = []
    for setting in settings:
        arms.append(measure(*setting, options))
        print(line(arms[-1]), flush=True)
    write_json(options.out, {"benchmark": "step_time", "provenance": made_by, "arms": arms})


def line(arm: dict[str, Any]) -> str:
    low, high = arm["ratio_quartiles"]
    text = (
        f"{', '.join(arm['members'])}, {arm['precision']}, batch {arm['batch_size']}: bank {arm['bank_ms']:.1f} ms, "
        f"own weights {arm['own_ms']:.1f} ms, ratio {arm['ratio']:.3f} ({low:.3f} to {high:.3f}); generation "
        f"{arm['generation_ms']:.1f} ms forward and backward, {100 * arm['generation_share']:.1f} % of the step"
    )
    if arm["literal_ratio"] is not None:
        text += f"; literal {arm['literal_ms']:.1f} ms, ratio {arm['literal_ratio']:.3f}"
    return text


def measure(
    recipe: Recipe, batch_size: int, precision: str, literal: bool, options: argparse.Namespace
) -> dict[str, Any]:
    config = TrainConfig(precision=precision, device=options.device)
    fabric = build_fabric(config)
    ensemble = recipe_ensemble(recipe, config)
    batch = recipe_batch(recipe, config, batch_size, options.image_size)
    steps = {"bank": joint_step(ensemble, config)[0], "own": apart_step(recipe_members(recipe, config), config)[0]}
    if literal:
        steps["literal"] = literal_step(recipe_ensemble(recipe, config), config)
    calls: dict[str, Callable[[], object]] = {name: partial(step, *batch) for name, step in steps.items()}
    calls["generation"] = generation_step(ensemble)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_number in range(options.rounds + 3):
        for name, call in calls.items():
            with fabric.autocast():
                seconds = timed(call, fabric.device)
            if round_number >= 3:
                times[name].append(seconds)
    ratios = sorted(a / b for a, b in zip(times["bank"], times["own"]))
    quartiles = statistics.quantiles(ratios, n=4)
    medians = {name: 1e3 * statistics.median(values) for name, values in times.items()}
    return {
        "members": list(ensemble.member_names),
        "precision": precision,
        "channels_last": trained_format(config) == torch.channels_last,
        "device": str(fabric.device),
        "recipe": recipe.name,
        "overrides": options.overrides,
        "batch_size": batch_size,
        "image_size": batch[0].shape[-1],
        "rounds": options.rounds,
        "bank_ms": medians["bank"],
        "own_ms": medians["own"],
        "ratio": statistics.median(ratios),
        "ratio_quartiles": [quartiles[0], quartiles[2]],
        "literal_ms": medians.get("literal"),
        "literal_ratio": statistics.median(a / b for a, b in zip(times["literal"], times["own"])) if literal else None,
        "generation_ms": medians["generation"],
        "generation_share": medians["generation"] / medians["bank"],
        "num_parameters": ensemble.num_parameters,
        "independent_parameters": ensemble.independent_parameters,
    }


def literal_step(ensemble: swe.SuperWeightEnsemble, config: TrainConfig) -> Step:
    """The method as it is written down: a Python loop over layers, slots and templates, and one backward pass."""
    optimizer = build_optimizer(ensemble, config)
    bank = ensemble.bank

    def step(images: torch.Tensor, labels: torch.Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        made = reference.generate(bank.plan, dict(bank.templates.items()), dict(bank.coefficients.items()))
        weights: dict[str, dict[str, torch.Tensor]] = {}
        for (member, name), weight in made.items():
            weights.setdefault(member, {})[name] = weight
        logits = [ensemble.run_member(name, images, weights[name]) for name in ensemble.member_names]
        torch.stack([nn.functional.cross_entropy(found, labels) for found in logits]).sum().backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
