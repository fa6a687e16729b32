"""A training step of networks whose widths are learned, against the same networks with fixed layers of the same widths.

    python benchmarks/adaptive_step.py --out benchmarks/results/adaptive_step.json

Both are trained as the library does: the rates are read with the losses, and followed when the step is done. The
learning rate is so small that no width changes meanwhile. Steps alternate, so that a machine that slows down does so
for both; ratios are medians over adjacent steps.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor, nn
from training_steps import timed, trained_format

import superweight_ensembles as swe
from superweight_ensembles.models import build_member
from superweight_ensembles.models.adaptive import make_adaptive, multilayer_perceptron
from superweight_ensembles.storage import provenance, write_json
from superweight_ensembles.training import (
    LearnedWidths,
    TrainConfig,
    TrainState,
    build_fabric,
    build_optimizer,
    build_schedule,
    joint_backward,
)

RESIDUAL = (("stages.*.conv1", "stages.*.conv2"),)
FEED_FORWARD = (("blocks.*.mlp.fc1", "blocks.*.mlp.fc2"),)


@dataclass(frozen=True, slots=True)
class Case:
    """A network, the widths that are learned, and its batch."""

    name: str
    build: Callable[[], nn.Module]
    pairs: tuple[tuple[str, str], ...]
    shape: tuple[int, int, int]
    batch_size: int
    precision: str


def small_vit() -> nn.Module:
    return build_member(
        "timm/vit_tiny_patch16_224", num_classes=10, img_size=32, patch_size=4, embed_dim=192, depth=6, num_heads=3
    )


CASES = (
    Case(
        "perceptron, 232 neurons",
        lambda: multilayer_perceptron([232], 2, 2),
        (("hidden0", "head"),),
        (2, 1, 1),
        128,
        "float32",
    ),
    Case(
        "perceptron, 3 x 1,024 neurons",
        lambda: multilayer_perceptron([1024] * 3, 10, 3, 1024),
        tuple((f"hidden{i}", ("hidden1", "hidden2", "head")[i]) for i in range(3)),
        (3, 32, 32),
        128,
        "float32",
    ),
    Case("WRN 16-2, 16 x 16", lambda: swe.wide_resnet(16, 2, 10), RESIDUAL, (3, 16, 16), 128, "bfloat16"),
    Case("WRN 16-2, 32 x 32", lambda: swe.wide_resnet(16, 2, 10), RESIDUAL, (3, 32, 32), 128, "float32"),
    Case("ViT, 6 blocks of 192", small_vit, FEED_FORWARD, (3, 32, 32), 128, "bfloat16"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    arms = []
    for case in CASES:
        arms.append(measure(case, options))
        low, high = arms[-1]["ratio_quartiles"]
        print(
            f"{case.name}, {case.precision}, batch {case.batch_size}: learned {arms[-1]['learned_ms']:.2f} ms, fixed "
            f"{arms[-1]['fixed_ms']:.2f} ms, ratio {arms[-1]['ratio']:.3f} ({low:.3f} to {high:.3f})",
            flush=True,
        )
    content = {"benchmark": "adaptive_step", "provenance": provenance(), "threads": torch.get_num_threads()}
    write_json(options.out, {**content, "arms": arms})


def measure(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    config = TrainConfig(precision=case.precision, device=options.device, learning_rate=1e-9)
    fabric = build_fabric(config)
    torch.manual_seed(0)
    fixed = case.build()
    learned = make_adaptive(copy.deepcopy(fixed), case.pairs, example=torch.zeros(2, *case.shape))
    source = torch.Generator().manual_seed(0)
    images = torch.randn((case.batch_size, *case.shape), generator=source).to(fabric.device)
    images = images.contiguous(memory_format=trained_format(config))
    labels = torch.randint(0, 2, (case.batch_size,), generator=source).to(fabric.device)
    steps = {name: step_of(module, config) for name, module in (("learned", learned), ("fixed", fixed))}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(options.rounds + 5):
        for name in steps if number % 2 else reversed(steps):
            with fabric.autocast():
                seconds = timed(partial(steps[name], images, labels), fabric.device)
            if number >= 5:
                times[name].append(seconds)
    ratios = [a / b for a, b in zip(times["learned"], times["fixed"])]
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "name": case.name,
        "batch_size": case.batch_size,
        "precision": case.precision,
        "device": str(fabric.device),
        "rounds": options.rounds,
        "learned_ms": 1e3 * statistics.median(times["learned"]),
        "fixed_ms": 1e3 * statistics.median(times["fixed"]),
        "ratio": statistics.median(ratios),
        "ratio_quartiles": [quartiles[0], quartiles[2]],
    }


def step_of(module: nn.Module, config: TrainConfig) -> Callable[[Tensor, Tensor], None]:
    """A step as the library trains: one read, and widths that follow their rates."""
    members = {"member": module}
    ensemble = swe.SuperWeightEnsemble(members, plan=swe.independent_plan(members))
    ensemble.to(build_fabric(config).device).to(memory_format=trained_format(config))
    optimizer = build_optimizer(ensemble, config)
    widths = LearnedWidths()
    state = TrainState(
        ensemble=ensemble, members=("member",), config=config, optimizer=optimizer,
        schedule=build_schedule(optimizer, config, 1), fabric=build_fabric(config), hooks=(widths,),
    )  # fmt: skip
    widths.start(state)

    def step(images: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        (loss,) = joint_backward(ensemble, images, labels, nn.functional.cross_entropy).values()
        wanted = widths.scalars(state)
        _, *rates = torch.cat([loss.detach().double()[None], *([] if wanted is None else [wanted.double()])]).tolist()
        optimizer.step()
        widths.after_step(state, rates)

    return step


if __name__ == "__main__":
    main()
