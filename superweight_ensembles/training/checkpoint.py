"""A training between two steps, as a folder: plan, configuration, safetensors and a manifest of checksums.

CHECKPOINT/config.json, plan.json, model.safetensors   the ensemble, as :meth:`SuperWeightEnsemble.load` reads it
CHECKPOINT/optimizer.safetensors                       moments
CHECKPOINT/random.safetensors                          the states of every generator, of each process
CHECKPOINT/state.json                                  configuration, optimiser groups, schedule, progress
CHECKPOINT/manifest.json                               size and SHA-256 of each of them
"""

from __future__ import annotations

import json
import logging
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from superweight_ensembles.ensemble.adoption import adopt_plan
from superweight_ensembles.ensemble.ensemble import SuperWeightEnsemble
from superweight_ensembles.ensemble.saving import read_ensemble_tensors, read_plan, write_ensemble_files
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.storage.files import draft_of, read_json, write_json
from superweight_ensembles.storage.folders import clear_drafts, recover_folder, whole_folder
from superweight_ensembles.storage.manifest import check_manifest, write_manifest
from superweight_ensembles.storage.tensors import read_header, read_tensors
from superweight_ensembles.training.config import RESUMABLE, TrainConfig
from superweight_ensembles.training.learned_widths import restore_sizes, sizes_of

CHECKPOINT_FORMAT = 3
_FILES = (
    "config.json", "plan.json", "model.safetensors", "optimizer.safetensors", "random.safetensors", "state.json",
)  # fmt: skip
_NAME = re.compile(r"epoch-(\d{4,})-step-(\d{6,})")
_KEPT = 2
_MOST_STATE = 2**16  # numbers
_LOG = logging.getLogger(__name__)
RandomStates = Sequence[Mapping[str, Tensor]]


@dataclass(slots=True, kw_only=True)
class Progress:
    """How far a training is.

    Attributes:
        history: One record a whole epoch.
        step: Steps done of the epoch after those.
        loss_sums: Of each member, over the steps of that epoch that were not left out.
        num_summed: How many those are.
        learning_rate: At the start of that epoch.
        seconds: Of that epoch, so far.
        num_skipped: Steps left out for numbers that are not finite, over all epochs.
        micro_batches: Parts that a step's batch is run in.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    history: list[dict[str, Any]] = field(default_factory=list)
    step: int = 0
    loss_sums: dict[str, float] = field(default_factory=dict)
    num_summed: int = 0
    learning_rate: float = 0.0
    seconds: float = 0.0
    num_skipped: int = 0
    micro_batches: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What a checkpoint is of.

    Attributes:
        ensemble: Trained.
        optimizer: Of its parameters.
        schedule: Of the optimiser.
        config: How it is trained.
        settings: What a training is told besides; a run is resumed with the same.
    """

    ensemble: SuperWeightEnsemble
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler
    config: TrainConfig
    settings: Mapping[str, Any]


class Checkpoints:
    """The checkpoints in one folder: the last two, and that of the best epoch so far."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, subject: Subject, progress: Progress, states: RandomStates) -> None:
        """Write everything that training goes on from; afterwards, those that are no longer needed go.

        Raises:
            SuperWeightError: It cannot be written; the checkpoints before it are as they were.
        """
        path = self.folder / _name(len(progress.history), progress.step)
        if path.is_dir():
            return
        before = self._named()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with whole_folder(path) as draft:
                _write(draft, subject, progress, states)
                write_manifest(draft)
        except (OSError, SafetensorError) as error:
            kept = f"{before[-1].name} is whole: make room there and resume" if before else "there is none before it"
            raise SuperWeightError(f"the checkpoint {path} cannot be written: {error}; {kept}") from None
        self._prune(progress.history)

    def newest(self) -> Path | None:
        """The last one that is whole; None where there is none at all.

        Raises:
            SuperWeightError: There are some, and all are damaged (says how the last one is).
        """
        damage: SuperWeightError | None = None
        if self.folder.is_dir():
            for old in self.folder.glob(".epoch-*.old"):
                recover_folder(old.with_name(old.name[1:].removesuffix(".old")))
        for path in reversed(self._named()):
            try:
                check_manifest(path, _FILES)
            except SuperWeightError as error:
                _LOG.warning("%s; going back to the checkpoint before it", error)
                damage = damage or error
                continue
            return path
        if damage is not None:
            raise SuperWeightError(f"no checkpoint in {self.folder} can be used: {damage}")
        return None

    def clear_drafts(self) -> None:
        """Remove what was being written when a process was killed."""
        if self.folder.is_dir():
            clear_drafts(self.folder)

    def keep_best(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Remove all but the best epoch's, at the end of a training; all, where that is the last epoch."""
        best = best_epoch(history)
        keep = {_name(best, 0)} if best is not None and best < len(history) else set()
        self._remove(path for path in self._named() if path.name not in keep)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _prune(self, history: Sequence[Mapping[str, Any]]) -> None:
        best = best_epoch(history)
        named = self._named()
        self._remove(path for path in named[:-_KEPT] if best is None or path.name != _name(best, 0))

    def _remove(self, paths: Any) -> None:
        for path in list(paths):
            gone = draft_of(path)  # never half a checkpoint under its name
            path.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)

    def _named(self) -> list[Path]:
        """All of them, in the order of training."""
        found = [(_NAME.fullmatch(path.name), path) for path in self.folder.glob("epoch-*") if path.is_dir()]
        return [path for _, path in sorted((tuple(map(int, match.groups())), path) for match, path in found if match)]


def best_epoch(history: Sequence[Mapping[str, Any]]) -> int | None:
    """The epoch at which the mean of the members was most accurate on the validation images; None without any."""
    found = [
        (record["validation"]["ensemble"]["accuracy"], -record["epoch"]) for record in history if record["validation"]
    ]
    return -max(found)[1] if found else None


def load_checkpoint(folder: Path, subject: Subject) -> tuple[Progress, list[dict[str, Tensor]]]:
    """Put a training back where :meth:`Checkpoints.save` left it.

    A checkpoint of a run that un-tied coefficients has a plan with fewer ties, which the ensemble then adopts.

    Returns:
        The progress that was saved, and the random states of each process.

    Raises:
        SuperWeightError: The checkpoint is damaged, or of another version, plan or config (names the first key).
    """
    content = read_json(folder / "state.json")
    if content.get("format") != CHECKPOINT_FORMAT:
        raise SuperWeightError(
            f"{folder} is a checkpoint of format {content.get('format')!r:.40}; this version reads {CHECKPOINT_FORMAT}"
        )
    try:
        # A key that is newer than the checkpoint had its default: so training went before there was a choice.
        before = {**asdict(TrainConfig()), **content["config"], **content["settings"]}
        now = json.loads(json.dumps({**asdict(subject.config), **subject.settings}))
    except (KeyError, TypeError) as error:
        raise SuperWeightError(f"{folder / 'state.json'} is damaged: {error!r}") from None
    for key, value in now.items():
        if key not in RESUMABLE and before.get(key) != value:
            raise SuperWeightError(
                f"{folder} was made with {key}={before.get(key)!r:.80}, now {value!r:.80}: resume with the config that "
                "it began with"
            )
    try:
        restore_sizes(subject.ensemble, subject.optimizer, content.get("widths", {}))
    except (SuperWeightError, AttributeError, TypeError) as error:
        raise SuperWeightError(f"{folder / 'state.json'}, widths: {error}") from None
    plan = read_plan(folder)
    if plan != subject.ensemble.plan:
        if subject.settings.get("untie") is None:
            raise SuperWeightError(f"{folder} was made with another sharing plan: resume with the recipe it began with")
        try:
            adopt_plan(subject.ensemble, plan, subject.optimizer)
        except SuperWeightError as error:
            raise SuperWeightError(f"{folder} was made with another sharing plan: {error}") from None
    read_ensemble_tensors(subject.ensemble, folder)
    try:
        _restore(folder, content, subject.optimizer, subject.schedule)
        progress = TypeAdapter(Progress).validate_json(json.dumps(content["progress"]))
        return progress, _read_states(folder)
    except SuperWeightError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, SafetensorError, OSError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SuperWeightError(f"the checkpoint {folder} is damaged: {reason:.200}") from None


def _name(epochs: int, step: int) -> str:
    """Whole epochs, and steps of the one after them."""
    return f"epoch-{epochs:04d}-step-{step:06d}"


def _write(folder: Path, subject: Subject, progress: Progress, states: RandomStates) -> None:
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    held, ensemble = subject.optimizer.state_dict(), subject.ensemble
    for index, entries in held["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{key}"] = value.contiguous()
            else:
                numbers.setdefault(str(index), {})[key] = value
    write_ensemble_files(ensemble, ensemble.plan, dict(ensemble.members.items()), folder)
    save_file(tensors, str(folder / "optimizer.safetensors"))
    by_rank = {f"{rank}.{name}": state for rank, named in enumerate(states) for name, state in named.items()}
    save_file(by_rank, str(folder / "random.safetensors"))
    write_json(
        folder / "state.json",
        {
            "format": CHECKPOINT_FORMAT,
            "optimizer": {"numbers": numbers, "groups": held["param_groups"]},
            "schedule": subject.schedule.state_dict(),
            "config": asdict(subject.config),
            "settings": dict(subject.settings),
            "progress": asdict(progress),
            "widths": sizes_of(ensemble),
        },
    )


def _restore(folder: Path, content: dict[str, Any], optimizer: torch.optim.Optimizer, schedule: LRScheduler) -> None:
    state: dict[int, dict[str, Any]] = {
        int(index): dict(entries) for index, entries in content["optimizer"]["numbers"].items()
    }
    path = folder / "optimizer.safetensors"
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    header = read_header(path)
    for name, (shape, _) in header.items():
        parameter = parameters[int(name.partition(".")[0])]
        if tuple(shape) != tuple(parameter.shape) and math.prod(shape) != 1:
            raise ValueError(
                f"{path.name}: {name} has the shape {tuple(shape)}, its parameter {tuple(parameter.shape)}"
            )
    for name, tensor in read_tensors(path, header).items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    for group, new in zip(optimizer.param_groups, content["optimizer"]["groups"], strict=True):
        if set(new) != set(group) or len(new["params"]) != len(group["params"]):
            raise ValueError("the optimizer's groups are other ones")
    optimizer.load_state_dict({"state": state, "param_groups": content["optimizer"]["groups"]})
    for parameter, entries in optimizer.state.items():
        for key, value in entries.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                # in the parameter's memory format: fused optimisers walk through both in the order of memory
                entries[key] = torch.empty_like(parameter).copy_(value)
    if set(content["schedule"]) != set(schedule.state_dict()):
        raise ValueError("the schedule is another one")
    schedule.load_state_dict(content["schedule"])


def _read_states(folder: Path) -> list[dict[str, Tensor]]:
    by_rank: dict[int, dict[str, Tensor]] = {}
    path = folder / "random.safetensors"
    header = read_header(path)
    for name, (shape, _) in header.items():
        if math.prod(shape) > _MOST_STATE:
            raise ValueError(f"{path.name}: {name} has the shape {tuple(shape)}, which no generator's state has")
    for key, state in read_tensors(path, header).items():
        rank, _, name = key.partition(".")
        by_rank.setdefault(int(rank), {})[name] = state
    return [by_rank[rank] for rank in range(len(by_rank))]
