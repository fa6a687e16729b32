"""What stopping early is worth on the clock: materialised members, cascade, deadlines.

    superweights train recipes/cifar10-small.yaml --out runs/small && superweights evaluate runs/small
    python benchmarks/anytime.py runs/small --out benchmarks/results/anytime.json

Of a trained run's shared ensemble: (1) each member, materialised, against the module that the registry builds, call by
call in turn; (2) the cascade calibrated for fractions of all members' FLOPs, on validation images, against running all
members, batch by batch in turn on test images: speed-up on the clock beside speed-up in FLOPs, of the plain members and
of their faster forms, and the time in members and outside of them; (3) calls with deadlines drawn evenly from what the
first member takes to 1.2 times what all take: how many end more than 10 % late; (4) all members in the forms that
``accelerate`` finds, and in onnxruntime on a CPU, against the plain ones, call by call in turn. The load of the machine
is kept beside them.
"""

from __future__ import annotations

import os
import random
import statistics
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import harness
import torch
from torch import Tensor, nn

import superweight_ensembles as swe
from superweight_ensembles.anytime import now
from superweight_ensembles.data import ImageData
from superweight_ensembles.experiment import Recipe, read_run, trained_arm
from superweight_ensembles.export import onnx_networks


def main() -> None:
    parser = harness.new_parser(
        __doc__, device="cpu", threads=1, rounds=30, images=1024, batch_sizes=[64, 1], calls=1000
    )
    parser.add_argument("run", type=Path, help="a trained and evaluated run")
    options = harness.read_options(parser)
    load: dict[str, Any] = {"before": os.getloadavg()}
    recipe = read_run(options.run)
    data = recipe.load_data()
    ensemble = swe.SuperWeightEnsemble.load(trained_arm(options.run, "shared")).to(options.device).eval()
    predictor = swe.AnytimePredictor(ensemble, input_shape=data.image_shape)
    held_out = list(data.loader("validation", 256, device=predictor.device))
    result: dict[str, Any] = {
        "load": load,
        "recipe": recipe.name,
        "num_test": len(data.test),
        "num_validation": len(data.validation),
        "flops": predictor.flops,
        "materialized": materialized(recipe, ensemble, data, options.rounds),
        "cascade": [
            {"forms": how, **cascade(one, data, fraction, size, options.images if size > 1 else options.images // 4)}
            for how, one in (("plain", predictor), ("accelerated", predictor.accelerate(held_out)))
            for fraction in (0.5, 0.25)
            for size in options.batch_sizes
        ],
        "deadlines": [deadlines(predictor, data, size, options.calls) for size in (1, 16)],
        "accelerated": [
            entry for size in (1, 64) for entry in accelerated(predictor, data, held_out, size, options.rounds)
        ],
    }
    load["after"] = os.getloadavg()
    harness.write_results(options.out, "anytime", **result)
    for part in ("materialized", "cascade", "deadlines", "accelerated"):
        harness.show(result[part])


def materialized(recipe: Recipe, ensemble: swe.SuperWeightEnsemble, data: ImageData, rounds: int) -> list[Any]:
    """Median over adjacent pairs of calls: materialised over original."""
    originals = {name: module.eval() for name, module in recipe.build_members().items()}
    device = next(ensemble.parameters()).device
    entries = []
    for name in ensemble.member_names:
        pair = {"materialized": ensemble.materialize(name).eval(), "original": originals[name].to(device)}
        for size in (1, 64):
            images = torch.randn(size, *data.image_shape, device=device)
            with torch.inference_mode():
                calls = {kind: partial(network, images) for kind, network in pair.items()}
                found = harness.compared(
                    harness.alternate(calls, rounds, device=device, swapped=True), "materialized", "original"
                )
            ends = found.pop("ratio_quartiles")
            entries.append({"member": name, "batch_size": size, **found, "quartiles": ends})
    return entries


class TimedNetwork(nn.Module):
    """A member, and the seconds that its calls took."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.seconds = 0.0

    def forward(self, images: Tensor) -> Tensor:
        start = now(images)
        logits: Tensor = self.network(images)
        self.seconds += now(images) - start
        return logits


def cascade(predictor: swe.AnytimePredictor, data: ImageData, fraction: float, size: int, count: int) -> dict[str, Any]:
    """The cascade beside all members, on the same batches in turn; accuracies on all test images."""
    device = predictor.device
    predictor.calibrate(data.loader("validation", 256, device=device), flops=fraction)
    batches = first_batches(data, size, count, device)
    seconds = {False: 0.0, True: 0.0}
    flops, ran = 0, [0] * len(predictor.order)
    for early in (False, True):
        predictor(batches[0], early_exit=early)
    for turn, images in enumerate(batches):
        for early in (False, True) if turn % 2 else (True, False):
            start = now(images)
            answer = predictor(images, early_exit=early)
            seconds[early] += now(images) - start
            flops += int(answer.flops.sum()) if early else 0
            if early:
                ran = [count + int((answer.members_used > index).sum()) for index, count in enumerate(ran)]
    timed_members = {name: TimedNetwork(module) for name, module in predictor.modules.items()}
    watched = predictor.with_networks(timed_members)
    start = now(batches[0])
    for images in batches:
        watched(images)
    watched_seconds = now(batches[0]) - start
    right = {False: 0, True: 0}
    for images, labels in data.loader("test", 256, device=device):
        for early in (False, True):
            right[early] += int((predictor(images, early_exit=early).probabilities.argmax(1) == labels).sum())
    timed = sum(len(images) for images in batches)
    # What the images would take if each member that they run took as long an image as it does in full batches.
    members_ms = sum(count * alone / size for count, alone in zip(ran, predictor.measure(size).values())) / timed
    speedup, flops_speedup = seconds[False] / seconds[True], timed * sum(predictor.flops.values()) / flops
    return {
        "fraction": fraction,
        "batch_size": size,
        "images": timed,
        "all_ms": 1e3 * seconds[False] / timed,
        "cascade_ms": 1e3 * seconds[True] / timed,
        "members_ms": members_ms,
        "in_members_ms": 1e3 * sum(one.seconds for one in timed_members.values()) / timed,
        "outside_ms": 1e3 * (watched_seconds - sum(one.seconds for one in timed_members.values())) / timed,
        "speedup": speedup,
        "flops_speedup": flops_speedup,
        "share_of_flops_speedup": speedup / flops_speedup,
        "full_accuracy": right[False] / len(data.test),
        "accuracy": right[True] / len(data.test),
    }


def accelerated(
    predictor: swe.AnytimePredictor, data: ImageData, held_out: Any, size: int, rounds: int
) -> list[dict[str, Any]]:
    """All members, whichever way they are computed: medians of calls in turn, accuracies on all test images."""
    device = predictor.device
    kinds = {
        "float32": predictor.accelerate(held_out, batch_size=size),
        "bfloat16": predictor.accelerate(held_out, batch_size=size, dtype=torch.bfloat16, max_changed=0.02),
    }
    if device.type == "cpu":
        networks = onnx_networks(predictor.modules, input_shape=data.image_shape)
        kinds["onnxruntime"] = predictor.with_networks(networks)
    everyone = {"plain": predictor, **kinds}
    images = first_batches(data, size, size, device)[0]
    calls = {how: partial(one, images, early_exit=False) for how, one in everyone.items()}
    times = harness.alternate(calls, rounds, device=device)
    right = dict.fromkeys(everyone, 0)
    for batch, labels in data.loader("test", 256, device=device):
        for how, one in everyone.items():
            right[how] += int((one(batch, early_exit=False).probabilities.argmax(1) == labels).sum())
    median = {how: statistics.median(own) for how, own in times.items()}
    return [
        {
            "how": how,
            "batch_size": size,
            "plain_ms": 1e3 * median["plain"],
            "ms": 1e3 * median[how],
            "speedup": median["plain"] / median[how],
            "plain_accuracy": right["plain"] / len(data.test),
            "accuracy": right[how] / len(data.test),
            "members": {name: asdict(speed) for name, speed in one.speeds.items()},
        }
        for how, one in kinds.items()
    ]


def deadlines(predictor: swe.AnytimePredictor, data: ImageData, size: int, calls: int) -> dict[str, Any]:
    """How late calls end, and how many members they ran."""
    device = predictor.device
    batches = first_batches(data, size, 32 * size, device)
    costs = list(predictor.measure(size).values())
    low, high = costs[0], 1.2 * sum(costs)
    draw = random.Random(0)
    policy, predictor.policy = predictor.policy, None  # deadlines alone
    over, used = [], 0
    for call in range(calls):
        limit = draw.uniform(low, high)
        answer = predictor(batches[call % len(batches)], deadline_ms=limit)
        over.append(answer.latency_ms / limit - 1)
        used += int(answer.members_used[0])
    predictor.policy = policy
    over.sort()
    return {
        "batch_size": size,
        "calls": calls,
        "deadline_ms": [low, high],
        "late": sum(value > 0.1 for value in over) / calls,
        "missed": sum(value > 0 for value in over) / calls,
        "overshoot_99": over[int(0.99 * calls)],
        "mean_members_used": used / calls,
    }


def first_batches(data: ImageData, size: int, count: int, device: torch.device) -> list[Tensor]:
    found: list[Tensor] = []
    for images, _ in data.loader("test", size, device=device):
        found.append(images)
        if len(found) * size >= count:
            break
    return found


if __name__ == "__main__":
    main()
