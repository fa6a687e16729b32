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

import harness
import torch
from process_pair import become_rank, free_port

from superweight_ensembles.experiment import Recipe, evaluate_run, parse_recipe, train_run

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
    parser = harness.new_parser(__doc__, kills=100, seed=0)
    parser.add_argument("--processes", type=int, choices=(1, 2), default=1)
    options = harness.read_options(parser)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(options.processes, options.kills, random.Random(options.seed), Path(scratch))
    harness.write_results(options.out, "kill_resume", recipe=CONTENT, **found)
    harness.show([found])
    sys.exit(found["identical"] != found["kills"])


def measure(num_processes: int, kills: int, chance: random.Random, scratch: Path) -> dict[str, Any]:
    """Kill and resume, so many times; of two processes one is killed, and the run resumed on any mesh."""
    together = "one" if num_processes == 1 else "members"
    seconds = []
    for number in range(3):
        start = time.perf_counter()
        assert not any(_ended(_begun(scratch / f"whole-{number}", together))), "an undisturbed run must train"
        seconds.append(time.perf_counter() - start)
    if num_processes == 1:
        expected = outcome(scratch / "whole-0")
        assert outcome(scratch / "whole-1") == expected, "undisturbed runs must be alike"
    else:
        assert not any(_ended(_begun(scratch / "alone", "one"))), "an undisturbed run must train"
        numbers = _numbers(scratch / "alone")
    length = sorted(seconds)[1]
    trials: list[dict[str, Any]] = []
    while len(trials) < kills:
        folder = scratch / "killed"
        shutil.rmtree(folder, ignore_errors=True)
        mesh = "one" if num_processes == 1 else chance.choice(("members", "rows", "one"))
        processes = _begun(folder, together)
        rank, moment = chance.randrange(num_processes), chance.uniform(0, length)
        time.sleep(moment)
        processes[rank].kill()
        if _ended(processes)[rank] >= 0:
            continue  # it had ended before the signal came
        stage, writing = _standing(folder)
        resumed = not any(_ended(_begun(folder, mesh)))
        trial: dict[str, Any] = {"seconds": moment, "stage": stage, "writing": writing}
        if num_processes == 1:
            trial["identical"] = resumed and outcome(folder) == expected
        else:
            furthest = _distance(_numbers(folder), numbers) if resumed else None
            trial |= {"rank": rank, "resumed_on": mesh, "largest_loss_difference": furthest}
            trial["identical"] = furthest is not None and furthest < _ROUNDED
        trials.append(trial)
    of_two = {"bound": _ROUNDED, "meshes": dict(Counter(trial["resumed_on"] for trial in trials))}
    return {
        "kills": len(trials),
        "identical": sum(trial["identical"] for trial in trials),
        "during_writing": sum(trial["writing"] for trial in trials),
        "stages": dict(Counter(trial["stage"] for trial in trials)),
        "seconds_of_a_run": length,
        "trials": trials,
        **(of_two if num_processes == 2 else {}),
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


def _begun(folder: Path, mesh: str) -> list[BaseProcess]:
    """One process that trains, resuming what is there, and evaluates; or two that train together on a mesh."""
    context = multiprocessing.get_context("forkserver")  # autograd's threads do not outlive a fork of this process
    context.set_forkserver_preload(["superweight_ensembles.experiment"])
    axes = {"members": 2, "rows": 1} if mesh == "members" else "rows"
    content = CONTENT if mesh == "one" else {**CONTENT, "training": {**CONTENT["training"], "mesh": axes}}
    port = None if mesh == "one" else free_port()
    ranks = range(1 if port is None else 2)
    processes = [context.Process(target=_run, args=(parse_recipe(content), folder, rank, port)) for rank in ranks]
    for process in processes:
        process.start()
    return list(processes)


def _run(recipe: Recipe, folder: Path, rank: int, port: int | None) -> None:
    torch.set_num_threads(1)
    if port is not None:
        become_rank(rank, port)
    train_run(recipe, folder, resume=True)
    if port is None and not (folder / "results.json").is_file():
        evaluate_run(folder)


def _ended(processes: list[BaseProcess]) -> list[int]:
    """Exit codes, below 0 where a signal has ended a process."""
    for process in processes:
        process.join()
    return [process.exitcode or 0 for process in processes]


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
