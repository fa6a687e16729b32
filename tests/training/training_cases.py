"""Small ensembles, stops and comparisons that the trainings of this folder share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import superweight_ensembles as swe
from superweight_ensembles.training import TrainProgress


class Stop(Exception):
    """In the place of a kill."""


def refused(message: str) -> Any:
    """A context that ends in an error of the library with this message."""
    return pytest.raises(swe.SuperWeightError, match=message)


def deep_and_wide(seed: int = 0, budget: float = 0.9, num_classes: int = 4, **plan: Any) -> swe.SuperWeightEnsemble:
    """Two small WideResNets over one bank; the seed draws all start values."""
    torch.manual_seed(seed)
    members = {"deep": swe.wide_resnet(16, 1, num_classes), "wide": swe.wide_resnet(10, 2, num_classes)}
    return swe.SuperWeightEnsemble(members, budget=budget, rng=torch.Generator().manual_seed(seed), **plan)


class Viewing(nn.Module):
    """Flattens maps of 8 x 8 pixels by ``view``, as many tutorials do; channels-last ones cannot be viewed so."""

    def __init__(self, in_channels: int = 3, num_classes: int = 4) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(in_channels, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.fc = nn.Linear(6 * 8 * 8, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(self.second(self.first(images).relu()).view(len(images), -1))
        return logits


def at(epoch: int, step: int, act: Callable[[], object]) -> Callable[[TrainProgress], None]:
    """A callback that acts after a step, before the record of its epoch."""

    def look(progress: TrainProgress) -> None:
        if (progress.epoch, progress.step, progress.record) == (epoch, step, None):
            act()

    return look


def stop_training(
    ensemble: swe.SuperWeightEnsemble, data: Any, config: swe.TrainConfig, epoch: int, step: int, **options: Any
) -> None:
    """Train up to a step, and stop there as if the process were killed."""

    def stop() -> None:
        raise Stop

    with pytest.raises(Stop, match=r"^$"):
        swe.train(ensemble, data, config, callback=at(epoch, step, stop), **options)


def assert_same(one: nn.Module, other: nn.Module) -> None:
    """Bit by bit."""
    found = other.state_dict()
    assert found.keys() == one.state_dict().keys()
    for name, value in one.state_dict().items():
        assert torch.equal(value, found[name]), name


def gradients_of(ensemble: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of every gradient, by the name of its parameter."""
    return {name: value.grad.clone() for name, value in ensemble.named_parameters() if value.grad is not None}
