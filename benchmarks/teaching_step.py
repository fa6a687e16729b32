"""What teaching costs in a training step: peak memory and time of each teacher, and of recomputed activations.

    python benchmarks/teaching_step.py --out benchmarks/results/teaching_step.json

``ensemble``, ``others`` and ``prefixes`` keep the activations of all members until the last has answered; ``history``
and labels alone keep those of one member at a time. ``recompute`` runs blocks again in backward instead. Peaks are live
tensor bytes over an epoch, each in a process of its own; times are medians of steps, all arms in turn in each round.
"""

from __future__ import annotations

import argparse
import statistics
import time
from itertools import pairwise
from typing import Any

import harness
import torch
from peak_memory import in_fresh_process, live_growth

import superweight_ensembles as swe
from superweight_ensembles.experiment import load_recipe
from superweight_ensembles.training import EACH_OTHER, Hook, Teacher

ARMS: dict[str, tuple[Teacher | None, bool]] = {
    "labels alone": (None, False),
    "labels alone, recomputed": (None, True),
    **{teacher: (teacher, False) for teacher in EACH_OTHER},
    "ensemble, recomputed": ("ensemble", True),
}


def main() -> None:
    parser = harness.new_parser(
        __doc__, recipe="recipes/cifar10-small.yaml", image_size=32, batch_size=128, rounds=7, threads=0
    )
    options = harness.read_options(parser)
    peaks = {arm: in_fresh_process(peak_of, arm, options) for arm in ARMS}
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for _ in range(options.rounds):
        for arm, found in seconds.items():
            found.append(in_fresh_process(seconds_of, arm, options))
    plain, rounds = peaks["labels alone"], seconds["labels alone"]
    rows: list[dict[str, Any]] = [
        {
            "arm": arm,
            "peak_bytes": peaks[arm],
            "peak_ratio": peaks[arm] / plain,
            "step_s": statistics.median(found),
            "step_ratio": harness.adjacent_ratio(found, rounds)[0],
        }
        for arm, found in seconds.items()
    ]
    settings = {key: value for key, value in vars(options).items() if key != "out"}
    harness.write_results(options.out, "teaching_step", **settings, arms=rows)
    harness.show(rows)


def peak_of(arm: str, options: argparse.Namespace) -> int:
    """Most live bytes during a training of two steps, above those before it; call it in a fresh process."""
    train = training_of(arm, options, steps=2)
    train([])
    return live_growth(lambda: train([]))


def seconds_of(arm: str, options: argparse.Namespace) -> float:
    """The median step of six, without the first; call it in a fresh process."""
    ends: list[float] = []
    training_of(arm, options, steps=6)(ends)
    return statistics.median(after - before for before, after in pairwise(ends))


def training_of(arm: str, options: argparse.Namespace, steps: int) -> Any:
    """A training of one epoch, which takes the list that the ends of its steps are written to."""
    if options.threads:
        torch.set_num_threads(options.threads)
    teacher, recompute = ARMS[arm]
    recipe = load_recipe(options.recipe)
    members = recipe.build_members()
    ensemble = swe.SuperWeightEnsemble(members, plan=recipe.plan(members))
    size = options.image_size
    data = swe.load_data(
        "synthetic", num_classes=recipe.data.num_classes or 10, shape=(3, size, size),
        num_train=steps * options.batch_size, validation_fraction=0.0,
    )  # fmt: skip
    config = swe.TrainConfig(epochs=1, batch_size=options.batch_size, recompute=recompute, learning_rate=0.01)

    def train(ends: list[float]) -> None:
        hooks: list[Hook] = [] if teacher is None else [swe.Distillation(teacher, weight=0.5)]
        swe.train(ensemble, data, config, hooks=hooks, callback=lambda _: ends.append(time.perf_counter()))

    return train


if __name__ == "__main__":
    main()
