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
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "tests"))

import harness
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
    trained_format,
)

import superweight_ensembles as swe
from superweight_ensembles.experiment import Recipe, load_recipe
from superweight_ensembles.training import TrainConfig, build_fabric, build_optimizer

PAIR = """members=[{name: wrn28-2, model: wide_resnet, depth: 28, width: 2},
 {name: wrn16-2, model: wide_resnet, depth: 16, width: 2}]"""


def main() -> None:
    parser = harness.new_parser(
        __doc__, recipes=["recipes/cifar10-small.yaml:128"], rounds=25, precisions=["float32", "bfloat16"],
        image_size=None, device="auto", threads=None,
    )  # fmt: skip
    parser.add_argument("--set", nargs="+", default=[], dest="overrides", help="key.path=value, of the recipes")
    options = harness.read_options(parser)
    settings: list[tuple[Recipe, int, str, bool]] = []
    for given in options.recipes:
        file, _, batch = given.rpartition(":")
        recipe = load_recipe(file, options.overrides)
        settings += [(recipe, int(batch), precision, False) for precision in options.precisions]
    if not options.overrides and "float32" in options.precisions:
        # What the published code was timed on: WRN 28-2 and 16-2, 0.83, batch 32, float32.
        settings.append((load_recipe("recipes/cifar10-small.yaml", [PAIR]), 32, "float32", True))
    arms = []
    for setting in settings:
        arms.append(measure(*setting, options))
        harness.show(arms[-1:])
    harness.write_results(options.out, "step_time", arms=arms)


def measure(
    recipe: Recipe, batch_size: int, precision: str, literal: bool, options: argparse.Namespace
) -> dict[str, Any]:
    config = TrainConfig(precision=precision, device=options.device)
    fabric = build_fabric(config)
    ensemble = recipe_ensemble(recipe, config)
    batch = recipe_batch(recipe, config, batch_size, options.image_size)
    steps: dict[str, Step] = {
        "bank": joint_step(ensemble, config)[0],
        "own": apart_step(recipe_members(recipe, config), config)[0],
    }
    if literal:
        steps["literal"] = literal_step(recipe_ensemble(recipe, config), config)
    calls = {name: partial(step, *batch) for name, step in steps.items()}
    times = harness.alternate(
        {**calls, "generation": generation_step(ensemble)},
        options.rounds, device=fabric.device, within=fabric.autocast,
    )  # fmt: skip
    found = harness.compared(times, "bank", "own")
    generation_ms = 1e3 * statistics.median(times["generation"])
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
        **found,
        "literal_ms": 1e3 * statistics.median(times["literal"]) if literal else None,
        "literal_ratio": harness.adjacent_ratio(times["literal"], times["own"])[0] if literal else None,
        "generation_ms": generation_ms,
        "generation_share": generation_ms / found["bank_ms"],
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
