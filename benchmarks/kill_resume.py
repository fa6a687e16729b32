"""Runs killed by SIGKILL at random moments, resumed, and held against one that was never stopped, bit by bit.

    python benchmarks/kill_resume.py --kills 100 --out benchmarks/results/kill_resume.json
    python benchmarks/kill_resume.py --processes 2 --kills 20 --out benchmarks/results/kill_ranks.json

Each trial trains a small run (a search, training, un-tying, training to the end, evaluation) in a process of its own,
kills it after a time that is uniform over the length of an undisturbed run, and has another process resume it. Trials
are forked from a server that has imported everything, so that a moment falls into the run and not into imports. A
checkpoint is written every other step. Where the killed process left a half-written checkpoint, the trial counts as one
that hit the writing.

Of two processes, on member ranks, one at random is killed, and the other ends by itself; the run is resumed on a mesh
at random, by one process or two, and held against one process that was never stopped: the same plans and records, and
losses that rounding in another order has moved apart.
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
from process_pair import become_rank, free_port

from superweight_ensembles.experiment import Recipe, evaluate_run, parse_recipe, train_run
from superweight_ensembles.storage import provenance, write_json

_ROUNDED = 1e-2  # relative, of losses: what other sums make of a training in float32
CONTENT: dict[str, Any] = {
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
    parser.add_argument("--processes", type=int, choices=(1, 2), default=1)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recipe = parse_recipe(CONTENT)
    ended = "identical" if arguments.processes == 1 else "as one process"
    with tempfile.TemporaryDirectory() as scratch:
        chance = random.Random(arguments.seed)
        take = measure if arguments.processes == 1 else measure_ranks
        found = take(recipe, arguments.kills, chance, Path(scratch))
    write_json(arguments.out, {"provenance": provenance(), "recipe": CONTENT, **found})
    print(f"{found['identical']} of {found['kills']} killed runs ended {ended}; {found['during_writing']} kills fell "
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
    return summary(trials, length)


def measure_ranks(recipe: Recipe, kills: int, chance: random.Random, scratch: Path) -> dict[str, Any]:
    """The same with two processes, of which one is killed, resumed on any mesh."""
    assert _ended(_begun(recipe, scratch / "whole")) == 0, "an undisturbed run must train"
    expected = _numbers(scratch / "whole")
    start = time.perf_counter()
    for process in _begun_on(recipe, scratch / "two", "members"):
        assert _ended(process) == 0, "an undisturbed run must train"
    length = time.perf_counter() - start
    trials: list[dict[str, Any]] = []
    while len(trials) < kills:
        folder, mesh = scratch / "killed", chance.choice(("members", "rows", "one"))
        shutil.rmtree(folder, ignore_errors=True)
        processes = _begun_on(recipe, folder, "members")
        rank, moment = chance.randrange(2), chance.uniform(0, length)
        time.sleep(moment)
        processes[rank].kill()
        codes = [_ended(process) for process in processes]
        if codes[rank] >= 0:
            continue  # it had ended before the signal came
        stage, writing = _standing(folder)
        again = [_begun(recipe, folder)] if mesh == "one" else _begun_on(recipe, folder, mesh)
        codes = [_ended(process) for process in again]
        whole = not any(codes)
        furthest = _distance(_numbers(folder), expected) if whole else None
        trials.append(
            {
                "seconds": moment, "rank": rank, "stage": stage, "writing": writing, "resumed_on": mesh,
                "largest_loss_difference": furthest, "identical": furthest is not None and furthest < _ROUNDED,
            }
        )  # fmt: skip
        print(trials[-1], flush=True)
    return {**summary(trials, length), "bound": _ROUNDED, "meshes": dict(Counter(one["resumed_on"] for one in trials))}


def summary(trials: list[dict[str, Any]], length: float) -> dict[str, Any]:
    return {
        "kills": len(trials),
        "identical": sum(trial["identical"] for trial in trials),
        "during_writing": sum(trial["writing"] for trial in trials),
        "stages": dict(Counter(trial["stage"] for trial in trials)),
        "seconds_of_a_run": length,
        "trials": trials,
    }


def _numbers(folder: Path) -> dict[str, Any]:
    """Losses by epoch, and what must be equal: plans, epochs, steps that were left out."""
    history = json.loads((folder / "shared" / "training.json").read_text())["history"]
    return {
        "losses": [loss for record in history for loss in record["train_loss"].values()],
        "equal": [
            *((record["epoch"], record["skipped_steps"]) for record in history),
            *((folder / name).read_text() for name in ("plan.json", "search/plan.json", "shared/ensemble/plan.json")),
        ],
    }


def _distance(found: dict[str, Any], expected: dict[str, Any]) -> float:
    if found["equal"] != expected["equal"]:
        return float("inf")
    return max(abs(a - b) / abs(b) for a, b in zip(found["losses"], expected["losses"]))


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


def _begun_on(recipe: Recipe, folder: Path, mesh: str) -> list[BaseProcess]:
    """Two processes that do so together."""
    axes = {"members": 2, "rows": 1} if mesh == "members" else "rows"
    recipe = parse_recipe({**CONTENT, "training": {**CONTENT["training"], "mesh": axes}})
    context = multiprocessing.get_context("forkserver")
    port = free_port()
    processes = [context.Process(target=_run_rank, args=(recipe, folder, rank, port)) for rank in range(2)]
    for process in processes:
        process.start()
    return list(processes)


def _run_rank(recipe: Recipe, folder: Path, rank: int, port: int) -> None:
    become_rank(rank, port)
    train_run(recipe, folder, resume=True)


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
