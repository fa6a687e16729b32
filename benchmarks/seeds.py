"""A recipe's shared ensemble against the same members apart, over several seeds: mean, spread, paired differences.

    python benchmarks/seeds.py recipes/digits.yaml --seeds 5 --out benchmarks/results/digits_seeds.json

Both arms of a seed start from the same members and see the same batches. Accuracies are on test data that no
decision of the run has seen.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from superweight_ensembles.comparison.summary import METRICS, spread
from superweight_ensembles.files import write_json
from superweight_ensembles.provenance import provenance
from superweight_ensembles.recipe import load_recipe
from superweight_ensembles.runs import evaluate_run, train_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    made_by = provenance()
    runs = [one_seed(options.recipe, seed, options.overrides) for seed in range(options.seeds)]
    summary = {arm: summarise([run[arm] for run in runs]) for arm in ("shared", "independent")}
    paired = {
        metric: spread([run["shared"]["ensemble"][metric] - run["independent"]["ensemble"][metric] for run in runs])
        for metric in METRICS
    }
    members = spread(
        [run["shared"]["mean_member_accuracy"] - run["independent"]["mean_member_accuracy"] for run in runs]
    )
    write_json(
        options.out,
        {
            "benchmark": "seeds",
            "provenance": made_by,
            "recipe": load_recipe(options.recipe, options.overrides).model_dump(mode="json"),
            "summary": summary,
            "paired_difference": {**paired, "mean_member_accuracy": members},
            "runs": runs,
        },
    )
    for arm, values in summary.items():
        print(arm, {name: f"{value['mean']:.4f} +- {value['std']:.4f}" for name, value in values.items()})
    print(
        "shared - independent", {name: f"{value['mean']:+.4f} +- {value['std']:.4f}" for name, value in paired.items()}
    )


def one_seed(recipe_path: str, seed: int, overrides: list[str]) -> dict[str, Any]:
    recipe = load_recipe(recipe_path, [*overrides, f"seed={seed}"])
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        train_run(recipe, run)
        results = evaluate_run(run)
    found: dict[str, Any] = {"seed": seed}
    for arm in results["arms"]:
        accuracies = [member["metrics"]["accuracy"] for member in arm["members"]]
        found[arm["name"]] = {
            "num_parameters": arm["num_parameters"],
            "ensemble": arm["ensemble"]["metrics"],
            "members": {member["name"]: member["metrics"]["accuracy"] for member in arm["members"]},
            "mean_member_accuracy": statistics.fmean(accuracies),
            "training_seconds": arm["training"]["seconds"],
        }
    return found


def summarise(runs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    summary = {metric: spread([run["ensemble"][metric] for run in runs]) for metric in METRICS}
    summary["mean_member_accuracy"] = spread([run["mean_member_accuracy"] for run in runs])
    return summary


if __name__ == "__main__":
    main()
