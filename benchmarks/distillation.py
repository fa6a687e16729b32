"""Does a teacher help small members of a small bank? Digits, with and without, the same batches and start values.

    python benchmarks/distillation.py --out benchmarks/results/distillation.json

A seed trains the teacher (WRN 16-2, all its own weights), then the same students (WRN 16-1 and 10-1 from a bank of half
of what they own apart) once an arm: from the labels alone, from the teacher, and from their own mean. Test images are
read at the end of a training alone, no setting was chosen by them, and every arm that was run is in the file.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import Any

import harness
import torch

import superweight_ensembles as swe
from superweight_ensembles.anytime import Evaluation
from superweight_ensembles.data import ImageData
from superweight_ensembles.training import Teacher

ARMS = {
    "labels alone": (None, 0.0),
    "teacher, w 0.5": ("teacher", 0.5),
    "teacher, w 0.9": ("teacher", 0.9),
    "own mean, w 0.5": ("ensemble", 0.5),
}


def main() -> None:
    options = harness.read_options(harness.new_parser(__doc__, epochs=10, seeds=3, budget=0.5))
    torch.set_num_threads(1)
    runs = []
    for seed in range(options.seeds):
        runs += seed_runs(seed, options)
    arms = [summary(name, runs) for name in ("teacher itself", *ARMS)]
    settings = {"epochs": options.epochs, "seeds": options.seeds, "budget": options.budget, "temperature": 4.0}
    harness.write_results(options.out, "distillation", **settings, arms=arms, runs=runs)
    harness.show(arms)


def seed_runs(seed: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every arm of one seed, the teacher first."""
    data = swe.load_data("digits", seed=seed)
    config = swe.TrainConfig(
        epochs=options.epochs, batch_size=64, learning_rate=0.1, schedule="one_cycle", crop_padding=1,
        precision="float32", num_threads=1, validate_every=options.epochs, seed=seed,
    )  # fmt: skip
    teacher = ensemble_of({"wrn16-2": (16, 2)}, None, seed)
    runs = [one_run("teacher itself", teacher, data, config, [])]
    for name, (kind, weight) in ARMS.items():
        students = ensemble_of({"wrn16-1": (16, 1), "wrn10-1": (10, 1)}, options.budget, seed)
        taught_by: Teacher | None = teacher if kind == "teacher" else "ensemble" if kind == "ensemble" else None
        hooks = [] if taught_by is None else [swe.Distillation(taught_by, weight=weight)]
        runs.append(one_run(name, students, data, config, hooks))
    return [{"seed": seed, **run} for run in runs]


def ensemble_of(shapes: dict[str, tuple[int, int]], budget: float | None, seed: int) -> swe.SuperWeightEnsemble:
    """WideResNets of these depths and widths with equal start values for a seed; with weights of their own for None."""
    torch.manual_seed(seed)
    members = {name: swe.wide_resnet(*shape, 10, in_channels=1) for name, shape in shapes.items()}
    generator = torch.Generator().manual_seed(seed)
    if budget is None:
        return swe.SuperWeightEnsemble(members, plan=swe.independent_plan(members), rng=generator)
    return swe.SuperWeightEnsemble(members, budget=budget, rng=generator)


def one_run(
    name: str,
    ensemble: swe.SuperWeightEnsemble,
    data: ImageData,
    config: swe.TrainConfig,
    hooks: Sequence[swe.Hook],
) -> dict[str, Any]:
    begin = time.perf_counter()
    swe.train(ensemble, data, config, hooks=hooks)
    seconds = time.perf_counter() - begin
    found = swe.evaluate(ensemble, data.loader("test", 256))
    return {
        "arm": name,
        "num_parameters": ensemble.num_parameters,
        "ensemble": {key: getattr(found.ensemble.metrics, key) for key in ("accuracy", "nll", "ece")},
        "confidence_minus_accuracy": sure_by(found),
        "members": {member.name: member.metrics.accuracy for member in found.members},
        "seconds": seconds,
    }


def sure_by(found: Evaluation) -> float:
    """Mean confidence of the ensemble minus its accuracy: above 0 it is over-confident."""
    total = sum(one.count * (one.confidence or 0) for one in found.reliability)
    return total / found.num_samples - found.ensemble.metrics.accuracy


def summary(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and spread over seeds, and paired against the labels alone."""
    mine = [run for run in runs if run["arm"] == name]
    base = [run for run in runs if run["arm"] == "labels alone"]
    measures = {
        "accuracy": lambda run: run["ensemble"]["accuracy"],
        "nll": lambda run: run["ensemble"]["nll"],
        "ece": lambda run: run["ensemble"]["ece"],
        "confidence_minus_accuracy": lambda run: run["confidence_minus_accuracy"],
        "member_accuracy": lambda run: statistics.mean(run["members"].values()),
        "seconds": lambda run: run["seconds"],
    }
    arm: dict[str, Any] = {"arm": name, "n": len(mine), "num_parameters": mine[0]["num_parameters"]}
    for key, measure in measures.items():
        arm[key] = harness.spread([measure(run) for run in mine])
        arm[f"{key}_minus_labels"] = harness.spread([measure(a) - measure(b) for a, b in zip(mine, base)])
    return arm


if __name__ == "__main__":
    main()
