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
import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

import superweight_ensembles as swe
from superweight_ensembles.anytime import predict, probability_metrics
from superweight_ensembles.data import ImageData
from superweight_ensembles.experiment import Recipe, load_recipe
from superweight_ensembles.plan import plan_sharing
from superweight_ensembles.storage import provenance, write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, help="train/CLASS/* and test/CLASS/*, 32 x 32 pixels")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budgets", default="0.83,0.5")
    parser.add_argument("--learning-rates", default="0.05,0.2,0.8")
    parser.add_argument("--epochs", type=int, help="of the members apart; as the recipe says where not given")
    parser.add_argument("--tuning-epochs", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    runs: list[dict[str, Any]] = []
    made_by = provenance()
    for seed in range(options.seeds):
        recipe = load_recipe("recipes/cifar10-16px.yaml", overrides(options, seed))
        data = recipe.load_data()
        for run in one_seed(recipe, data, options):
            runs.append({"seed": seed, **run})
            print(runs[-1], flush=True)
        content = {
            "benchmark": "warm_start",
            "provenance": made_by,
            "num_train": len(data.train),
            "num_test": len(data.test),
            "image_shape": list(data.image_shape),
            "tuning_epochs": options.tuning_epochs,
            "recipe": recipe.model_dump(mode="json", exclude={"data"}),
            "summary": summarise(runs),
            "runs": runs,
        }
        write_json(options.out, content)


def overrides(options: argparse.Namespace, seed: int) -> list[str]:
    chosen = ["data.name=image_folder", f"data.folder={options.folder}", "data.num_classes=10", f"seed={seed}"]
    if options.epochs is not None:
        chosen += [f"training.epochs={options.epochs}", f"training.validate_every={options.epochs}"]
    return chosen


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
    keys = list(dict.fromkeys((run["arm"], run["budget"], run.get("learning_rate")) for run in runs))
    rows = []
    for arm, budget, rate in keys:
        mine = [run for run in runs if (run["arm"], run["budget"], run.get("learning_rate")) == (arm, budget, rate)]
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
