"""Trained members compressed into one bank: accuracy after the SVD, after one epoch of fine-tuning, and from scratch.

    python benchmarks/warm_start.py --folder IMAGES --seeds 1 --out benchmarks/results/warm_start.json

The members of cifar10-16px are trained apart as that recipe says, on an image folder of 32 x 32 images (see
benchmarks/hold_out.py). For each budget a bank starts from them by SVD and is tuned for one epoch, and another of the
same plan starts at random and is trained for one epoch with the same settings; both at each learning rate, so that
neither is held to the rate that suits the other. Accuracy is on the test images: the ensemble's, and the members' mean.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import torch

import superweight_ensembles as swe
from superweight_ensembles.anytime import predict, probability_metrics
from superweight_ensembles.data import ImageData
from superweight_ensembles.experiment import Recipe
from superweight_ensembles.plan import plan_sharing


def main() -> None:
    parser = harness.new_parser(
        __doc__, seeds=3, budgets="0.83,0.5", learning_rates="0.05,0.2,0.8", epochs=None, tuning_epochs=1
    )
    parser.add_argument("--folder", type=Path, required=True, help="train/CLASS/* and test/CLASS/*, 32 x 32 pixels")
    options = harness.read_options(parser)
    epochs = f"training.epochs={options.epochs}", f"training.validate_every={options.epochs}"
    overrides = [] if options.epochs is None else list(epochs)
    runs: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        recipe = harness.folder_recipe(
            "recipes/cifar10-16px.yaml", [*overrides, f"seed={seed}"], options.folder, classes=10
        )
        data = recipe.load_data()
        for run in one_seed(recipe, data, options):
            runs.append({"seed": seed, **run})
            harness.show(runs[-1:])
        harness.write_results(
            options.out, "warm_start",
            num_train=len(data.train), num_test=len(data.test), image_shape=list(data.image_shape),
            tuning_epochs=options.tuning_epochs, recipe=recipe.model_dump(mode="json", exclude={"data"}),
            summary=summarise(runs), runs=runs,
        )  # fmt: skip


def one_seed(recipe: Recipe, data: ImageData, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The arms of a seed, one after the other."""
    members = recipe.build_members(data)
    apart = swe.SuperWeightEnsemble(members, plan=swe.independent_plan(members))
    result = swe.train(apart, data, recipe.training)
    apart.cpu()
    yield {"arm": "members apart", "budget": 1.0, "seconds": result.seconds, **measured(apart, data)}
    torch.set_num_threads(recipe.training.num_threads or torch.get_num_threads())
    for budget in map(float, options.budgets.split(",")):
        plan = plan_sharing(members, **{**recipe.sharing.plan_options(), "budget": budget})
        spent = {"budget": budget, "num_parameters": plan.num_parameters}
        untuned = swe.SuperWeightEnsemble(members, plan=plan, rng=recipe.bank_generator())
        start = swe.warm_start(untuned, apart)
        yield {"arm": "after SVD", **spent, "mean_error": start.mean_error, **measured(untuned, data)}
        for rate in map(float, options.learning_rates.split(",")):
            config = dataclasses.replace(
                recipe.training, learning_rate=rate, epochs=options.tuning_epochs, validate_every=options.tuning_epochs
            )
            warm = swe.SuperWeightEnsemble(members, plan=plan, rng=recipe.bank_generator())
            scratch = swe.SuperWeightEnsemble(members, plan=plan, rng=recipe.bank_generator())
            swe.warm_start(warm, apart)
            for arm, ensemble in (("tuned", warm), ("from scratch", scratch)):
                seconds = swe.train(ensemble, data, config).seconds
                yield {"arm": arm, **spent, "learning_rate": rate, "seconds": seconds, **measured(ensemble, data)}


def measured(ensemble: swe.SuperWeightEnsemble, data: ImageData) -> dict[str, Any]:
    """Accuracy of the ensemble and of its members on the test images."""
    table = predict(ensemble, data.loader("test", 256, device=next(ensemble.parameters()).device))
    whole = probability_metrics(table.probabilities.mean(0), table.labels)
    own = [probability_metrics(rows, table.labels).accuracy for rows in table.probabilities]
    return {"accuracy": whole.accuracy, "nll": whole.nll, "mean_member_accuracy": statistics.fmean(own)}


def summarise(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for (arm, budget, rate), mine in harness.grouped(runs, "arm", "budget", "learning_rate").items():
        accuracy = [run["accuracy"] for run in mine]
        rows.append(
            {
                "arm": arm,
                "budget": budget,
                "learning_rate": rate,
                "n": len(mine),
                "accuracy": statistics.fmean(accuracy),
                "accuracy_std": statistics.stdev(accuracy) if len(mine) > 1 else None,
                "mean_member_accuracy": statistics.fmean(run["mean_member_accuracy"] for run in mine),
            }
        )
    return rows


if __name__ == "__main__":
    main()
