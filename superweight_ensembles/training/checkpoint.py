"""A training run between two epochs, as a folder of safetensors and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.optim.lr_scheduler import LRScheduler

from superweight_ensembles.adoption import adopt_plan
from superweight_ensembles.ensemble import SuperWeightEnsemble
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.saving import read_plan, read_tensors
from superweight_ensembles.storage.files import read_json, write_json
from superweight_ensembles.storage.folders import whole_folder
from superweight_ensembles.training.config import TrainConfig

CHECKPOINT_FORMAT = 2


def save_checkpoint(
    folder: Path,
    ensemble: SuperWeightEnsemble,
    optimizer: torch.optim.Optimizer,
    schedule: LRScheduler,
    config: TrainConfig,
    settings: Mapping[str, Any],
    progress: dict[str, Any],
) -> None:
    """Write everything that training goes on from; the folder before it is replaced as a whole."""
    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    state = optimizer.state_dict()
    for index, entries in state["state"].items():
        for key, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{key}"] = value.contiguous()
            else:
                numbers.setdefault(str(index), {})[key] = value
    with whole_folder(folder) as draft:
        ensemble.save(draft / "ensemble")
        save_file(tensors, str(draft / "optimizer.safetensors"))
        write_json(
            draft / "state.json",
            {
                "format": CHECKPOINT_FORMAT,
                "optimizer": {"numbers": numbers, "groups": state["param_groups"]},
                "schedule": schedule.state_dict(),
                "config": asdict(config),
                "settings": dict(settings),
                "progress": progress,
            },
        )


def load_checkpoint(
    folder: Path,
    ensemble: SuperWeightEnsemble,
    optimizer: torch.optim.Optimizer,
    schedule: LRScheduler,
    config: TrainConfig,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Put a run back where :func:`save_checkpoint` left it; returns the progress that was saved.

    A checkpoint of a run that un-tied coefficients has a plan with fewer ties, which the ensemble then adopts.

    Raises:
        SuperWeightError: The checkpoint is damaged, or of another version, plan or config (names the first key).
    """
    content = read_json(folder / "state.json")
    if content.get("format") != CHECKPOINT_FORMAT:
        raise SuperWeightError(
            f"{folder} is a checkpoint of format {content.get('format')!r}; this version reads {CHECKPOINT_FORMAT}"
        )
    for key, value in json.loads(json.dumps({**asdict(config), **settings})).items():
        # A key that is newer than the checkpoint had its default: that is how training went before there was a choice.
        found = {**asdict(TrainConfig()), **content.get("config", {}), **content.get("settings", {})}.get(key)
        if found != value:
            raise SuperWeightError(
                f"{folder} was made with {key}={found!r}, now {value!r}: resume with the config that it began with"
            )
    plan = read_plan(folder / "ensemble")
    if plan != ensemble.plan:
        if settings.get("untie") is None:
            raise SuperWeightError(f"{folder} was made with another sharing plan: resume with the recipe it began with")
        try:
            adopt_plan(ensemble, plan, optimizer)
        except SuperWeightError as error:
            raise SuperWeightError(f"{folder} was made with another sharing plan: {error}") from None
    read_tensors(ensemble, folder / "ensemble")
    try:
        _restore(folder, content, optimizer, schedule)
        return dict(content["progress"])
    except (KeyError, TypeError, ValueError, AttributeError, SafetensorError, OSError) as error:
        raise SuperWeightError(f"the checkpoint {folder} is damaged: {error!r}") from None


def _restore(folder: Path, content: dict[str, Any], optimizer: torch.optim.Optimizer, schedule: LRScheduler) -> None:
    state: dict[int, dict[str, Any]] = {
        int(index): dict(entries) for index, entries in content["optimizer"]["numbers"].items()
    }
    for name, tensor in load_file(str(folder / "optimizer.safetensors")).items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": content["optimizer"]["groups"]})
    for parameter, entries in optimizer.state.items():
        for key, value in entries.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                # in the parameter's memory format: fused optimisers walk through both in the order of memory
                entries[key] = torch.empty_like(parameter).copy_(value)
    schedule.load_state_dict(content["schedule"])
