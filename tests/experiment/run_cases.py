"""Stops, stages and outcomes that the tests of runs share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import superweight_ensembles as swe
from superweight_ensembles.experiment import Recipe, train_run
from superweight_ensembles.training import TrainProgress


class Stop(Exception):
    """In the place of a kill."""


def refused(message: str) -> Any:
    """A context that ends in an error of the library with this message."""
    return pytest.raises(swe.SuperWeightError, match=message)


def wide_resnets(**sizes: tuple[int, float]) -> list[dict[str, Any]]:
    """Members of a recipe, by their names, depths and widths."""
    return [
        {"name": name, "model": "wide_resnet", "depth": depth, "width": width} for name, (depth, width) in sizes.items()
    ]


def stop_at(stage: str, epoch: int, place: int | str) -> Callable[[str], Callable[[TrainProgress], None]]:
    """Raise at a step of an epoch of a stage, at its ``last`` one, or when its ``record`` is there."""

    def progress_of(name: str) -> Callable[[TrainProgress], None]:
        def look(progress: TrainProgress) -> None:
            step = progress.steps_per_epoch if place == "last" else place
            here = progress.record is not None if place == "record" else progress.step == step
            if (name, progress.epoch) == (stage, epoch) and here:
                raise Stop

        return look

    return progress_of


def stop_run(recipe: Recipe, folder: Path, stage: str, epoch: int, place: int | str, **options: bool) -> None:
    """Train a run up to a place, as :func:`stop_at` names it."""
    with pytest.raises(Stop, match=r"^$"):
        train_run(recipe, folder, progress_of=stop_at(stage, epoch, place), **options)


def stages_of(recipe: Recipe, folder: Path, **options: bool) -> list[str]:
    """Train, and say which stages took a step."""
    seen: list[str] = []
    train_run(recipe, folder, progress_of=lambda name: lambda progress: seen.append(name), **options)
    return list(dict.fromkeys(seen))


def tensors_of(folder: Path) -> bytes:
    """The numbers of an arm's trained ensemble, or of one saved beside it."""
    return (folder / "model.safetensors").read_bytes()


def trained(folder: Path) -> dict[str, Any]:
    """What the training of an arm says, but for the clock."""
    training: dict[str, Any] = json.loads((folder / "training.json").read_text())
    for record in training["history"]:
        del record["seconds"]
    del training["seconds"]
    return training
