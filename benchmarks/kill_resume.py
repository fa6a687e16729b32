"""Runs killed by SIGKILL at random moments, resumed, and held against one that was never stopped, bit by bit.

    python benchmarks/kill_resume.py --kills 100 --out benchmarks/results/kill_resume.json

Each trial trains a small run (a search, training, un-tying, training to the end, evaluation) in a process of its own,
kills it after a time that is uniform over the length of an undisturbed run, and has another process resume it. Trials
are forked from a server that has imported everything, so that a moment falls into the run and not into imports. A
checkpoint is written every other step. Where the killed process left a half-written checkpoint, the trial counts as one
that hit the writing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from superweight_ensembles.experiment import Recipe, evaluate_run, parse_recipe, train_run
from superweight_ensembles.storage import provenance, write_json

CONTENT = {
    "name": "killed",
    "data": {"name": "synthetic", "num_classes": 4, "channels": 3, "num_train": 96, "num_test": 32},
    "members": [
        {"name": "twin", "model": "wide_resnet", "depth": 10, "width": 1},
        {"name": "deep", "model": "wide_resnet", "depth": 16, "width": 1},
        {"name": "wide", "model": "wide_resnet", "depth": 10, "width": 2},
    ],
    "sharing": {
        "budget": 0.95, "search": "gradient", "search_epochs": 2, "threshold": 0.2, "search_batches": 2,
        "untie_epoch": 2, "untie_threshold": 0.8,
    },
    "training": {
        "epochs": 4, "batch_size": 16, "precision": "float32", "device": "cpu", "learning_rate": 0.05, "flip": True,
        "crop_padding": 2, "num_threads": 1, "checkpoint_steps": 2,
    },
    "baseline": "none",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recipe = parse_recipe(CONTENT)
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(recipe, arguments.kills, random.Random(arguments.seed), Path(scratch))
    write_json(arguments.out, {"provenance": provenance(), "recipe": CONTENT, **found})
    print(f"{found['identical']} of {found['kills']} killed runs ended identical; {found['during_writing']} kills fell "
          f"into the writing of a checkpoint; stages: {found['stages']}")  # fmt: skip
    sys.exit(found["identical"] != found["kills"])


def measure(recipe: Recipe, kills: int, chance: random.Random, scratch: Path) -> dict[str, Any]:
    """Kill and resume, so many times."""
    seconds = []
    for number in range(3):
        start = time.perf_counter()
        assert _ended(_begun(recipe, scratch / f"whole-{number}")) == 0, "an undisturbed run must train"
        seconds.append(time.perf_counter() - start)
    expected = outcome(scratch / "whole-0")
    assert outcome(scratch / "whole-1") == expected, "undisturbed runs must be alike"
    length = sorted(seconds)[1]
    trials: list[dict[str, Any]] = []
    while len(trials) < kills:
        folder = scratch / "killed"
        shutil.rmtree(folder, ignore_errors=True)
        process = _begun(recipe, folder)
        moment = chance.uniform(0, length)
        time.sleep(moment)
        process.kill()
        if _ended(process) >= 0:
            continue  # it had ended before the signal came
        stage, writing = _standing(folder)
        resumed = _ended(_begun(recipe, folder))
        identical = resumed == 0 and outcome(folder) == expected
        trials.append({"seconds": moment, "stage": stage, "writing": writing, "identical": identical})
    return {
        "kills": kills,
        "identical": sum(trial["identical"] for trial in trials),
        "during_writing": sum(trial["writing"] for trial in trials),
        "stages": dict(Counter(trial["stage"] for trial in trials)),
        "seconds_of_a_run": length,
        "trials": trials,
    }


def outcome(folder: Path) -> dict[str, Any]:
    """What a run came to, but for the clock."""
    log = (folder / "shared" / "log.jsonl").read_text().splitlines()
    names = ("plan.json", "search/plan.json", "search/search.json", "shared/ensemble/plan.json")
    return {
        "training": _without_the_clock(json.loads((folder / "shared" / "training.json").read_text())),
        "log": _without_the_clock([json.loads(line) for line in log]),
        "tensors": (folder / "shared" / "ensemble" / "model.safetensors").read_bytes(),
        "tested": _without_the_clock(json.loads((folder / "results.json").read_text())["arms"]),
        **{name: (folder / name).read_text() for name in names},
    }


def _without_the_clock(content: Any) -> Any:
    if isinstance(content, dict):
        timed = ("seconds", "latency_ms")
        return {key: _without_the_clock(value) for key, value in content.items() if key not in timed}
    return [_without_the_clock(value) for value in content] if isinstance(content, list) else content


def _begun(recipe: Recipe, folder: Path) -> BaseProcess:
    """A process that trains and evaluates, resuming what is there."""
    context = multiprocessing.get_context("forkserver")  # autograd's threads do not outlive a fork of this process
    context.set_forkserver_preload(["superweight_ensembles.experiment"])
    process = context.Process(target=_run, args=(recipe, folder, torch.get_num_threads()))
    process.start()
    return process


def _run(recipe: Recipe, folder: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    train_run(recipe, folder, resume=True)
    if not (folder / "results.json").is_file():
        evaluate_run(folder)


def _ended(process: BaseProcess) -> int:
    """Its exit code, below 0 where a signal has ended it."""
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _standing(folder: Path) -> tuple[str, bool]:
    """The stage that a killed run had come to, and whether it was writing a checkpoint."""
    writing = any(path.is_dir() for path in folder.glob("*/checkpoints/.epoch-*"))
    if not (folder / "run.json").is_file():
        return "before", writing
    if (folder / "shared" / "training.json").is_file():
        return "evaluation", writing
    if (folder / "plan.json").is_file():
        log = folder / "shared" / "log.jsonl"
        epochs = len(log.read_text().splitlines()) if log.is_file() else 0
        return "before un-tying" if epochs < 2 else "after un-tying", writing
    return "search", writing


if __name__ == "__main__":
    main()
