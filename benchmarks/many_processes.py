"""Two processes on one machine: bytes and time of a step beside DistributedDataParallel, and equality with one process.

    python benchmarks/many_processes.py --out benchmarks/results/many_processes.json

Two gloo processes of one thread each, batches split between them, as ``torchrun --nproc-per-node 2`` starts a training.
Arms take turns, step by step, so that a machine that slows down does so for all; a step's time is that of the slower
process, ratios are medians over adjacent steps. Own weights: one DistributedDataParallel a member, without its exchange
of norm statistics, so that gradients alone are counted. ``synchronised``: batch norm over the rows of both processes,
as the library trains; both kinds of ensembles take it from the library. ``members``: each process runs some members on
all rows, the bank's gradient being exchanged, or nothing.

Bytes are what a process hands to collectives (payload) and what crosses the loopback device in a step (both processes),
less what crosses it in a step that does nothing. Other programs use that device too, unless the benchmark has one for
itself (Linux, as root): unshare -n sh -c 'ip link set lo up; exec python benchmarks/many_processes.py --out FILE'

Losses are compared over the first 20 steps, on batches of the digits recipe, at a constant learning rate: two processes
with one, and, as the control, one with itself with the rows of each batch in another order, which changes no sum but
the order in which it is rounded.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import harness
import torch
from equal_losses import BOUND, STEPS, compared, losses_of_two
from peak_memory import look_before, measure_peak
from process_arms import (
    Step,
    ddp_step,
    half,
    library_step,
    network_seconds,
    own_members_step,
    pieces,
    placement,
    two_threads,
)
from process_pair import loopback_bytes, run_pair
from training_steps import recipe_batch

from superweight_ensembles.experiment import Recipe, load_recipe
from superweight_ensembles.plan import count_parameters
from superweight_ensembles.training import TrainConfig, build_fabric
from superweight_ensembles.training.distributed import Processes, current_processes

WARM_UP = 3
RATIOS = {
    "bank_to_ddp": ("bank", "ddp"),
    "bank_to_ddp_synchronised": ("bank synchronised", "ddp synchronised"),
    "two_to_one_of_one_thread": ("bank synchronised", "one process"),
    "two_to_one_of_two_threads": ("bank synchronised", "one process, two threads"),
    "members_to_rows": ("bank members", "bank synchronised"),
    "members_to_one_of_two_threads": ("bank members", "one process, two threads"),
    "members_to_ddp": ("bank members", "ddp"),
    "members_to_ddp_synchronised": ("bank members", "ddp synchronised"),
    "members_bank_to_own": ("bank members", "own members"),
}


def main() -> None:
    parser = harness.new_parser(
        __doc__, recipes=["recipes/cifar10-small.yaml:12", "recipes/timm-members.yaml:8"], batch_size=128,
        image_size=32, losses_of="recipes/digits.yaml", seeds=5,
    )  # fmt: skip
    options = harness.read_options(parser)
    torch.set_num_threads(1)
    found = []
    for given in options.recipes:
        file, _, rounds = given.rpartition(":")
        answers = run_pair(measure, file, int(rounds), options.batch_size, options.image_size)
        found.append({**answers[0], "memory": memory(file, options.batch_size, options.image_size)})
        harness.show(found[-1:])
    of_two = run_pair(losses_of_two, options.losses_of, options.seeds)
    assert of_two[0] == of_two[1], "both processes see the same losses"
    equality = compared(options.losses_of, options.seeds, of_two[0])
    cases = summary(equality)
    harness.show(cases)
    harness.write_results(
        options.out, "many_processes",
        backend="gloo, two processes of one thread on one machine, over the loopback device",
        recipes=found,
        equality={
            "recipe": Path(options.losses_of).stem, "steps": STEPS, "bound": BOUND, "summary": cases, "runs": equality,
        },
    )  # fmt: skip


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Over the seeds of each case."""
    return [
        {
            "precision": precision,
            "learning_rate": rate,
            **{
                arm: {
                    "steps_within": sorted(run[arm]["steps_within"] for run in found),
                    "largest": max(run[arm]["largest"] for run in found),
                    "median_by_step": [
                        statistics.median(values)
                        for values in zip(*(run[arm]["relative_differences"] for run in found))
                    ],
                }
                for arm in ("two_processes", "two_member_ranks", "other_order")
            },
        }
        for (precision, rate), found in harness.grouped(runs, "precision", "learning_rate").items()
    ]


def measure(rank: int, file: str, rounds: int, batch_size: int, image_size: int) -> dict[str, Any]:
    """All arms and pieces of a recipe, in turns, as the first process sees them."""
    recipe = load_recipe(file)
    config = TrainConfig(
        batch_size=batch_size, learning_rate=0.01, schedule="constant", precision="float32", device="cpu"
    )
    build_fabric(config)
    processes = current_processes()
    whole = recipe_batch(recipe, config, batch_size, image_size)
    rows = half(whole, rank)
    placed = placement(recipe, config, image_size)
    apart = dataclasses.replace(config, sync_batch_norm=False)
    seen: dict[str, dict[str, list[float]]] = defaultdict(dict)
    together: dict[str, Step] = {
        "bank synchronised": library_step(recipe, config, rows, processes, seen["rows"]),
        "ddp synchronised": ddp_step(recipe, config, rows, processes, synchronise=True),
        "bank": library_step(recipe, apart, rows, processes, seen["apart"]),
        "ddp": ddp_step(recipe, config, rows, processes, synchronise=False),
        "bank members": library_step(recipe, config, whole, processes, seen["members"], placed),
        "own members": own_members_step(recipe, config, whole, placed[rank]),
        "nothing": lambda: None,
    }
    single = {
        "one process": library_step(recipe, config, whole, Processes(), seen["one"]),
        "one process, two threads": two_threads(library_step(recipe, config, whole, Processes(), seen["one, two"])),
    }
    local = pieces(recipe, config, whole, rank)
    times: dict[str, list[float]] = defaultdict(list)
    payload: dict[str, list[int]] = defaultdict(list)
    loopback: dict[str, list[int]] = defaultdict(list)
    micro: list[dict[str, dict[int, float]]] = []
    for number in range(rounds + WARM_UP):
        counted = number >= WARM_UP
        for name, step in {**together, **single, **local}.items():
            idle = name in single and rank
            spent, sent, crossed = taken(processes, (lambda: None) if idle else step)
            if counted:
                times[name].append(spent)
                payload[name].append(sent)
                loopback[name].append(crossed)
        if counted and number % 2:
            micro.append(network_seconds(processes, repeats=7))
    nothing = statistics.median(loopback["nothing"])
    by_arm: dict[str, dict[str, Any]] = {
        name: {
            "ms": 1e3 * statistics.median(times[name]),
            "quartiles_ms": [1e3 * value for value in harness.quartiles(times[name])],
            "payload_bytes": statistics.median(payload[name]),
            "loopback_bytes": statistics.median(loopback[name]) - nothing,
        }
        for name in (*together, *single)
    }
    sizes = parameters_of(recipe)
    for name in ("ddp", "ddp synchronised"):  # what DistributedDataParallel exchanges goes by it
        by_arm[name]["payload_bytes"] += 4 * sizes["independent_parameters"]
    every = processes.gather_objects(seen)
    return {
        "recipe": recipe.name,
        "members": [member.name for member in recipe.members],
        "precision": "float32",
        "batch_size": batch_size,
        "image_size": image_size,
        "rounds": rounds,
        "placement": [list(names) for names in placed],
        **sizes,
        "arms": by_arm,
        "ratios": {name: ratio_of(times[a], times[b]) for name, (a, b) in RATIOS.items()},
        "bytes": {
            "payload_ratio": by_arm["bank"]["payload_bytes"] / by_arm["ddp"]["payload_bytes"],
            "loopback_ratio": by_arm["bank"]["loopback_bytes"] / by_arm["ddp"]["loopback_bytes"],
            "norm_payload_bytes": by_arm["bank synchronised"]["payload_bytes"] - by_arm["bank"]["payload_bytes"],
            "norm_loopback_bytes": by_arm["bank synchronised"]["loopback_bytes"] - by_arm["bank"]["loopback_bytes"],
        },
        "largest_loss_difference": {
            "rows_to_one": apart_of(every[0]["rows"], every[0]["one"]),
            "members_to_one": max(apart_of(found["members"], every[0]["one"]) for found in every),
        },
        "pieces_ms": {name: 1e3 * statistics.median(times[name]) for name in local},
        "network": {
            kind: [
                {"bytes": size, "seconds": statistics.median(found[kind][size] for found in micro)}
                for size in micro[0][kind]
            ]
            for kind in micro[0]
        },
    }


def memory(file: str, batch_size: int, image_size: int) -> dict[str, Any]:
    """Bytes at the peak of a step, of the fuller process, beside those of one process, by optimizer."""
    arms = ("one process", *(f"bank {arm}{part}" for arm in ("synchronised", "members") for part in ("", ", sharded")))
    by_optimizer = {}
    for optimizer in ("sgd", "adamw"):
        found = {}
        for arm in arms:
            peaks = run_pair(peak_of, file, batch_size, image_size, arm, optimizer)
            found[arm] = {kind: max(peak[kind] for peak in peaks) for kind in peaks[0]}
        one = found["one process"]
        ratios = {arm: {kind: of_arm[kind] / one[kind] for kind in one} for arm, of_arm in found.items()}
        by_optimizer[optimizer] = {"bytes": found, "to_one_process": ratios}
    return by_optimizer


def peak_of(rank: int, file: str, batch_size: int, image_size: int, arm: str, optimizer: str) -> dict[str, int]:
    recipe = load_recipe(file)
    config = TrainConfig(
        batch_size=batch_size, learning_rate=0.01, schedule="constant", precision="float32", device="cpu",
        optimizer=optimizer, shard_moments=arm.endswith("sharded"),
    )  # fmt: skip
    build_fabric(config)
    processes = current_processes()
    whole = recipe_batch(recipe, config, batch_size, image_size)
    before = look_before()
    batch = half(whole, rank) if "synchronised" in arm else whole
    placed = placement(recipe, config, image_size) if "members" in arm else None
    if arm == "one process":
        processes = Processes()  # the other one does the same
    step = library_step(recipe, config, batch, processes, {}, placed)
    step()
    step()
    peak = measure_peak(step, torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))]), before)
    return {"live": peak.live, "resident": peak.resident}


def taken(processes: Processes, step: Step) -> tuple[float, int, int]:
    """Seconds of the slower process, bytes handed to collectives here, and bytes over the loopback device."""
    processes.barrier()
    crossed, sent = loopback_bytes(), processes.bytes_exchanged
    start = time.perf_counter()
    step()
    spent, sent = time.perf_counter() - start, processes.bytes_exchanged - sent
    slower = max(processes.gather_objects(spent))
    return slower, sent, loopback_bytes() - crossed


def parameters_of(recipe: Recipe) -> dict[str, Any]:
    members = recipe.build_members()
    plan = recipe.plan(members)
    whole = sum(map(count_parameters, members.values()))
    return {
        "num_parameters": plan.num_parameters,
        "bank_parameters": plan.num_templates + plan.num_coefficients,
        "independent_parameters": whole,
        "budget_fraction": plan.num_parameters / whole,
    }


def apart_of(found: dict[str, list[float]], one: dict[str, list[float]]) -> float:
    """The largest relative difference of losses over the first steps."""
    return max(
        abs(a - b) / abs(b) for name, losses in found.items() for a, b in zip(losses[:WARM_UP], one[name][:WARM_UP])
    )


def ratio_of(above: list[float], below: list[float]) -> dict[str, Any]:
    ratio, ends = harness.adjacent_ratio(above, below)
    return {"median": ratio, "quartiles": ends}


if __name__ == "__main__":
    main()
