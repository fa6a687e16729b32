"""What a shared bank does to an ensemble's uncertainty: both arms of a recipe, paired by seed.

    python benchmarks/uncertainty.py recipes/cifar10-uncertainty.yaml --data-root cifar --others tiny-imagenet \
        --out benchmarks/results/uncertainty.json

Each seed trains the shared bank and the members apart, and evaluates both on the test images as they are, corrupted,
and beside those of another data set. Kept are the values of each seed and arm, and of each value the mean and deviation
of the paired differences, shared minus independent.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import harness

from superweight_ensembles.anytime import Shift
from superweight_ensembles.experiment import ArmResults, Recipe, evaluate_run, train_run


def main() -> None:
    parser = harness.recipe_parser(__doc__)
    parser.add_argument("--others", type=Path, help="a folder with train/CLASS/* and test/CLASS/* of other things")
    options = harness.read_options(parser)
    overrides = list(options.overrides)
    if options.others is not None:
        overrides.append(f"uncertainty.others.folder={json.dumps(str(options.others))}")
    recipes = [
        harness.folder_recipe(options.recipe, [*overrides, f"seed={seed}"], options.data_root)
        for seed in range(options.seeds)
    ]
    with ProcessPoolExecutor(options.jobs) as pool:
        seeds = list(pool.map(measure, recipes))
    told = harness.told_recipe(recipes[0], "seed")
    others = (told.get("uncertainty") or {}).get("others") or {}
    if "folder" in others:
        others["folder"] = Path(others["folder"]).name
    keys = list(seeds[0]["shared"])
    difference = {key: harness.spread([one["shared"][key] - one["independent"][key] for one in seeds]) for key in keys}
    mean = {arm: {key: harness.spread([one[arm][key] for one in seeds]) for key in keys} for arm in seeds[0]}
    harness.write_results(options.out, "uncertainty", recipe=told, seeds=seeds, difference=difference, mean=mean)
    harness.show(
        {"value": key, **{arm: found[key]["mean"] for arm, found in mean.items()}, "difference": difference[key]}
        for key in keys
    )


def measure(recipe: Recipe) -> dict[str, dict[str, float]]:
    """The numbers of both arms of one seed."""
    with tempfile.TemporaryDirectory() as folder:
        train_run(recipe, Path(folder) / "run")
        results = evaluate_run(Path(folder) / "run")
    return {arm.name: numbers(arm) for arm in results.arms}


def numbers(arm: ArmResults) -> dict[str, float]:
    metrics, known, shift = arm.ensemble.metrics, arm.uncertainty, arm.shift or Shift()
    assert known is not None, "evaluated now"
    found = {
        "accuracy": metrics.accuracy,
        "nll": metrics.nll,
        "ece": metrics.ece,
        "member accuracy": statistics.fmean(member.metrics.accuracy for member in arm.members),
        "entropy": known.entropy,
        "mutual information": known.mutual_information,
        "disagreement": known.disagreement,
        "risk over coverage": known.risk_coverage_area,
    }
    if shift.tempered is not None:
        found |= {"tempered nll": shift.tempered.metrics.nll, "tempered ece": shift.tempered.metrics.ece}
    for severity in sorted({one.severity for one in shift.corrupted}):
        own = [one.metrics for one in shift.corrupted if one.severity == severity]
        for key in ("accuracy", "nll", "ece"):
            found[f"corrupted {severity} {key}"] = statistics.fmean(getattr(one, key) for one in own)
    for one in () if shift.others is None else shift.others.detections:
        found[f"others auroc {one.score}"], found[f"others fpr95 {one.score}"] = one.auroc, one.fpr95
    return found


if __name__ == "__main__":
    main()
