"""A training step of networks whose widths are learned, against the same networks with fixed layers of the same widths.

    python benchmarks/adaptive_step.py --out benchmarks/results/adaptive_step.json

Both are trained as the library does: the rates are read with the losses, and followed when the step is done. The
learning rate is so small that no width changes meanwhile. Steps alternate, so that a machine that slows down does so
for both; ratios are medians over adjacent steps.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import harness
import torch
from torch import Tensor, nn
from training_steps import trained_format, training_state

import superweight_ensembles as swe
from superweight_ensembles.models import build_member
from superweight_ensembles.models.adaptive import make_adaptive, multilayer_perceptron
from superweight_ensembles.training import (
    LearnedWidths,
    TrainConfig,
    build_fabric,
    build_optimizer,
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
    options = harness.read_options(harness.new_parser(__doc__, rounds=40, device="auto", threads=None))
    arms = []
    for case in CASES:
        arms.append(measure(case, options))
        harness.show(arms[-1:])
    harness.write_results(options.out, "adaptive_step", threads=torch.get_num_threads(), arms=arms)


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
    calls = {
        name: partial(step_of(module, config), images, labels)
        for name, module in (("learned", learned), ("fixed", fixed))
    }
    times = harness.alternate(
        calls, options.rounds, warm_up=5, device=fabric.device, within=fabric.autocast, swapped=True
    )
    return {
        "name": case.name,
        "batch_size": case.batch_size,
        "precision": case.precision,
        "device": str(fabric.device),
        "rounds": options.rounds,
        **harness.compared(times, "learned", "fixed"),
    }


def step_of(module: nn.Module, config: TrainConfig) -> Callable[[Tensor, Tensor], None]:
    """A step as the library trains: one read, and widths that follow their rates."""
    members = {"member": module}
    ensemble = swe.SuperWeightEnsemble(members, plan=swe.independent_plan(members))
    ensemble.to(build_fabric(config).device).to(memory_format=trained_format(config))
    optimizer = build_optimizer(ensemble, config)
    widths = LearnedWidths()
    state = training_state(ensemble, config, optimizer, hooks=(widths,))
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
