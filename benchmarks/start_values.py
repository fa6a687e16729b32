"""Which start values of templates and coefficients train best: the rules that the papers leave open.

    python benchmarks/start_values.py --folder IMAGES --out benchmarks/results/start_values.json

The cifar10-small ensemble on an image folder of 32 x 32 images, average-pooled to 16 x 16, in a short run. A rule says
the deviation of a slot's templates (that of its widest or of its narrowest user, times a factor) and the norm of the
coefficient vectors: ``exact`` gives every target the deviation of its own layer's initialiser, ``unit`` is norm one.
Where a norm follows, templates of half the variance learn as if at twice the rate, so the baseline has that row too.
Quality is on the validation split; test data are not read.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from typing import Any

import harness
import torch

import superweight_ensembles as swe
from superweight_ensembles.data import ImageData, MemorySplit
from superweight_ensembles.ensemble import (
    Deviations,
    orthogonal_templates,
    orthonormal_runs,
    own_deviations,
    slot_key,
    user_deviations,
)
from superweight_ensembles.experiment import Recipe, load_recipe

Rule = tuple[str, str, float]
RULES: dict[str, Rule | None] = {
    "independent": None,
    "independent, 2 x learning rate": None,
    "widest, exact": ("widest", "exact", 1.0),
    "widest, unit": ("widest", "unit", 1.0),
    "narrowest, exact": ("narrowest", "exact", 1.0),
    "narrowest, unit": ("narrowest", "unit", 1.0),
    "widest / sqrt 2, exact": ("widest", "exact", 2**-0.5),
}


def main() -> None:
    parser = harness.new_parser(__doc__, images=12_800, epochs=6, seeds=2, budget=0.83, threads=None)
    parser.add_argument("--folder", required=True, help="train/CLASS/* and test/CLASS/*, 32 x 32 pixels")
    parser.add_argument("--rule", dest="rules", action="append", choices=list(RULES), help="only this one; repeatable")
    options = harness.read_options(parser)
    runs: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        recipe = load_recipe("recipes/cifar10-small.yaml", overrides(options, seed))
        data = first_images(recipe.load_data(), options.images)
        for rule in options.rules or RULES:
            factor = 2.0 if "2 x learning rate" in rule else 1.0
            config = dataclasses.replace(recipe.training, learning_rate=factor * recipe.training.learning_rate)
            runs.append({"seed": seed, "rule": rule, **one_run(recipe, data, RULES[rule], config)})
            harness.show(runs[-1:])
            harness.write_results(
                options.out, "start_values",
                images=options.images, image_shape=list(data.image_shape),
                recipe=recipe.model_dump(mode="json", exclude={"data"}), summary=summarise(runs), runs=runs,
            )  # fmt: skip


def overrides(options: argparse.Namespace, seed: int) -> list[str]:
    return [
        "data.name=image_folder",
        f"data.folder={options.folder}",
        "data.pool=2",
        "training.cutout=0",
        "training.crop_padding=2",
        f"training.epochs={options.epochs}",
        f"training.validate_every={options.epochs}",
        f"sharing.budget={options.budget}",
        f"seed={seed}",
    ]


def first_images(data: ImageData, count: int) -> ImageData:
    """A random part of the training split, the same for every arm."""
    assert isinstance(data.train, MemorySplit), "the images fit in memory"
    chosen = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(1))[:count]
    return dataclasses.replace(data, train=MemorySplit(data.train.images[chosen], data.train.labels[chosen]))


def one_run(recipe: Recipe, data: ImageData, rule: Rule | None, config: swe.TrainConfig) -> dict[str, Any]:
    members = recipe.build_members(data)
    if rule is None:
        ensemble = swe.SuperWeightEnsemble(members, plan=swe.independent_plan(members))
    else:
        ensemble = swe.SuperWeightEnsemble(members, plan=recipe.plan(members))
        redraw(ensemble, own_deviations(ensemble.plan, members), rule, recipe.bank_generator())
    result = swe.train(ensemble, data, config)
    last = result.history[-1]
    return {
        "train_loss_by_epoch": [sum(record["train_loss"].values()) for record in result.history],
        "validation_accuracy": last["validation"]["ensemble"]["accuracy"],
        "validation_nll": last["validation"]["ensemble"]["nll"],
        "member_accuracy": {name: values["accuracy"] for name, values in last["validation"]["members"].items()},
        "seconds": result.seconds,
    }


@torch.no_grad()
def redraw(
    ensemble: swe.SuperWeightEnsemble,
    deviations: Deviations,
    rule: Rule,
    generator: torch.Generator,
) -> None:
    """Draw the bank of an ensemble again by another rule."""
    user, norm, factor = rule
    choose = {"widest": min, "narrowest": max}[user]
    for index, cluster in ensemble.plan.superweight_clusters.items():
        for slot, (planned, block) in enumerate(zip(cluster.slots, cluster.blocks)):
            users = user_deviations(cluster, slot, deviations)
            reference = factor * choose(users)
            gains = torch.tensor(users) / reference if norm == "exact" else torch.ones(len(users))
            key = slot_key(index, slot)
            templates = reference * orthogonal_templates(planned.num_templates, block.size, generator)
            ensemble.bank.templates[key].copy_(templates)
            rows = orthonormal_runs(planned.num_vectors, planned.num_templates, generator)
            ensemble.bank.coefficients[key].copy_(gains[:, None] * rows)


def summarise(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "rule": rule,
            "n": len(mine),
            "final_train_loss": statistics.fmean(run["train_loss_by_epoch"][-1] for run in mine),
            "validation_accuracy": statistics.fmean(run["validation_accuracy"] for run in mine),
            "mean_member_accuracy": statistics.fmean(
                accuracy for run in mine for accuracy in run["member_accuracy"].values()
            ),
        }
        for (rule,), mine in harness.grouped(runs, "rule").items()
    ]


if __name__ == "__main__":
    main()
