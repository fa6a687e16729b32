"""The steps that benchmarks time: an ensemble's, its members' with weights of their own, and generation alone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from peak_memory import Peak, look_before, measure_peak
from torch import nn

import superweight_ensembles as swe
from superweight_ensembles.experiment import Recipe
from superweight_ensembles.training import (
    Execution,
    TrainConfig,
    TrainState,
    build_fabric,
    build_optimizer,
    build_schedule,
    compiled_calls,
    faster_channels_last,
    joint_backward,
    uses_bfloat16,
)

Batch = tuple[torch.Tensor, torch.Tensor]
Step = Callable[[torch.Tensor, torch.Tensor], object]
JointStep = Callable[[torch.Tensor, torch.Tensor], dict[str, torch.Tensor]]


def recipe_ensemble(recipe: Recipe, config: TrainConfig) -> swe.SuperWeightEnsemble:
    """A recipe's ensemble on the device and in the memory format that it is trained in."""
    members = recipe.build_members()
    ensemble = swe.SuperWeightEnsemble(members, plan=recipe.plan(members), rng=recipe.bank_generator())
    return ensemble.to(build_fabric(config).device).to(memory_format=trained_format(config))


def recipe_members(recipe: Recipe, config: TrainConfig) -> nn.ModuleList:
    """A recipe's members with weights of their own, likewise."""
    modules = nn.ModuleList(recipe.build_members().values())
    return modules.to(build_fabric(config).device).to(memory_format=trained_format(config))


def trained_format(config: TrainConfig) -> torch.memory_format:
    faster = faster_channels_last(build_fabric(config).device, uses_bfloat16(config))
    return torch.channels_last if faster else torch.contiguous_format


def joint_step(
    ensemble: swe.SuperWeightEnsemble, config: TrainConfig, compiled: bool = False
) -> tuple[JointStep, torch.optim.Optimizer]:
    """A joint step over the shared bank, as the library trains; it answers the members' losses."""
    optimizer = build_optimizer(ensemble, config)
    execution = Execution(compiled=compiled_calls(dict(ensemble.members.items())) if compiled else {})

    def step(images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        optimizer.zero_grad(set_to_none=True)
        losses = joint_backward(ensemble, images, labels, nn.functional.cross_entropy, execution=execution)
        optimizer.step()
        return losses

    return step, optimizer


def training_state(
    ensemble: swe.SuperWeightEnsemble, config: TrainConfig, optimizer: torch.optim.Optimizer, **options: Any
) -> TrainState:
    """The state of a training of one long epoch, which its hooks and checkpoints read."""
    return TrainState(
        ensemble=ensemble, members=ensemble.member_names, config=config, optimizer=optimizer,
        schedule=build_schedule(optimizer, config, 10**6), fabric=build_fabric(config), **options,
    )  # fmt: skip


def apart_step(members: Iterable[nn.Module], config: TrainConfig) -> tuple[Step, torch.optim.Optimizer]:
    """The members as plain modules, one after the other, and one optimiser over all their parameters."""
    modules = nn.ModuleList(members)
    weights = [parameter for parameter in modules.parameters() if parameter.ndim >= 2]
    others = [parameter for parameter in modules.parameters() if parameter.ndim < 2]
    optimizer = torch.optim.SGD(
        [{"params": weights, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=config.learning_rate,
        momentum=config.momentum,
        nesterov=config.nesterov,
        fused=True,
    )

    def step(images: torch.Tensor, labels: torch.Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        for module in modules:
            nn.functional.cross_entropy(module(images), labels).backward()
        optimizer.step()

    return step, optimizer


def generation_step(ensemble: swe.SuperWeightEnsemble) -> Callable[[], None]:
    """Generating every weight and going back through the bank, with gradients of ones."""

    def step() -> None:
        weights = [weight for generated in ensemble.generate().values() for weight in generated.values()]
        torch.autograd.backward(weights, [torch.ones_like(weight) for weight in weights])
        ensemble.zero_grad(set_to_none=True)

    return step


def step_peak(
    small: nn.Module,
    build: Callable[[], tuple[Step, torch.optim.Optimizer, Batch]],
    config: TrainConfig,
    live: bool = True,
) -> Peak:
    """Peak memory of a training step; call it in a fresh process.

    Args:
        small: A network that brings in the code, before the resident set is looked at.
        build: Makes the step, its optimiser and its batch.
        config: Names device and precision.
        live: Whether live bytes are counted, too.
    """
    logging.getLogger("superweight_ensembles").setLevel(logging.ERROR)
    fabric = build_fabric(config)
    with fabric.autocast():
        warming = swe.SuperWeightEnsemble({"small": small}, budget=9.9).to(fabric.device)
        joint_step(warming, config)[0](*(part.to(fabric.device) for part in random_batch(2, 8)))
    del small, warming
    before = look_before()
    step, optimizer, batch = build()

    def whole_step() -> None:
        with fabric.autocast():
            step(*batch)

    whole_step()
    return measure_peak(whole_step, optimizer, before, live)


def recipe_batch(recipe: Recipe, config: TrainConfig, batch_size: int, image_size: int | None = None) -> Batch:
    """A random batch such as a recipe trains on, on the device and in the memory format of a training.

    Args:
        recipe: Its data tell classes, channels and size of an image; 3 x 32 x 32 where only their files do.
        config: Tells device and format.
        batch_size: B.
        image_size: In place of the data's.
    """
    classes, channels = recipe.classes_and_channels()
    known = recipe.image_shape
    size = image_size or (32 if known is None else known[1])
    device = build_fabric(config).device
    images, labels = (part.to(device) for part in random_batch(batch_size, size, classes or 10, channels or 3))
    return images.contiguous(memory_format=trained_format(config)), labels


def random_batch(batch_size: int, image_size: int, num_classes: int = 10, channels: int = 3) -> Batch:
    """Images (B, C, H, W) and labels (B,), the same ones each time."""
    source = torch.Generator().manual_seed(0)
    images = torch.randn((batch_size, channels, image_size, image_size), generator=source)
    return images, torch.randint(0, num_classes, (batch_size,), generator=source)
