"""The files of a training: checkpoints, from which it resumes bit by bit, and its log.

A checkpoint is a training between two steps, as a folder:

CHECKPOINT/config.json, plan.json, model.safetensors   the ensemble, as :meth:`SuperWeightEnsemble.load` reads it
CHECKPOINT/optimizer.safetensors                       moments
CHECKPOINT/random.safetensors                          the states of every generator, of each process
CHECKPOINT/hooks.safetensors                           tensors that hooks remember
CHECKPOINT/state.json                                  configuration, optimiser groups, schedule, hooks, data, progress
CHECKPOINT/manifest.json                               size and SHA-256 of each file above
"""

from __future__ import annotations

import json
import logging
import math
import re
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from superweight_ensembles.data import ImageData
from superweight_ensembles.ensemble import read_ensemble_tensors, read_plan, write_ensemble_files
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.plan import SharingPlan
from superweight_ensembles.storage import (
    Amount,
    Count,
    Name,
    PathError,
    accessing,
    adapter_of,
    check_manifest,
    check_savable,
    clear_drafts,
    draft_of,
    locked_folder,
    read_header,
    read_json,
    read_tensors,
    recover_folder,
    whole_folder,
    write_json,
    write_manifest,
    write_tensors,
    write_text,
)
from superweight_ensembles.training.config import RESUMABLE, TrainConfig
from superweight_ensembles.training.hooks import Progress, TrainState, Validation, check_plain_data
from superweight_ensembles.training.member_ranks import drop_moments, gather_members, gather_moments
from superweight_ensembles.training.randomness import random_states
from superweight_ensembles.training.tracking import summary_writer, write_scalars

CHECKPOINT_FOLDER = "checkpoints"
CHECKPOINT_FORMAT = 4
_FILES = (
    "config.json", "plan.json", "model.safetensors", "optimizer.safetensors", "random.safetensors", "hooks.safetensors",
    "state.json",
)  # fmt: skip
_NAME = re.compile(r"epoch-(\d{4,})-step-(\d{6,})")
_KEPT = 2
_MOST_STATE = 2**16  # numbers
_LOG = logging.getLogger(__name__)
RandomStates = Sequence[Mapping[str, Tensor]]


class Checkpoints:
    """The checkpoints in one folder: the last two, and the one of the best epoch so far."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, state: TrainState, remembered: Mapping[str, Mapping[str, Any]], random_states: RandomStates) -> None:
        """Write everything that resuming needs; then remove checkpoints that are no longer needed."""
        path = self.folder / _name(len(state.progress.history), state.progress.step)
        if path.is_dir():
            return
        before = self._named()
        try:
            with whole_folder(path) as draft:
                _write(draft, state, remembered, random_states)
                write_manifest(draft)
        except PathError as error:
            kept = f"{before[-1].name} is whole: make room there and resume" if before else "there is none before it"
            raise SuperWeightError(f"the checkpoint {error}; {kept}") from None
        self._prune(state.progress.history)

    def try_saving(
        self, state: TrainState, remembered: Mapping[str, Mapping[str, Any]], random_states: RandomStates
    ) -> None:
        """Write everything once and keep nothing, so that what cannot be written fails before the first step."""
        draft = draft_of(self.folder / "trial")
        try:
            draft.mkdir(parents=True)
            _write(draft, state, remembered, random_states)
        except (OSError, PathError) as error:  # the draft's name means nothing to the user
            raise PathError(self.folder, "written", getattr(error, "cause", error)) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
            with suppress(OSError):  # it holds other files, or was never made
                self.folder.rmdir()

    def newest(self) -> Path | None:
        """The last checkpoint that is whole; None where there is none at all."""
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

    def keep_best(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Remove all but the best epoch's checkpoint, at the end; remove all where the last epoch is the best."""
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
            gone = draft_of(path)  # renamed first: no half-removed checkpoint keeps its name
            with accessing(path, "removed"):
                path.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)

    def _named(self) -> list[Path]:
        """All checkpoints, in the order of training."""
        found = [(_NAME.fullmatch(path.name), path) for path in self.folder.glob("epoch-*") if path.is_dir()]
        return [path for _, path in sorted((tuple(map(int, match.groups())), path) for match, path in found if match)]


def holds_run(folder: Path) -> bool:
    """Whether a training has begun in a folder."""
    with accessing(folder, "read"):
        return (folder / "log.jsonl").exists()


def best_epoch(history: Sequence[Mapping[str, Any]]) -> int | None:
    """The epoch of the members' best mean on validation rows (accuracy, or squared error); None without validation."""
    scores = {record["epoch"]: record["validation"]["ensemble"] for record in history if record["validation"]}
    found = [(one["accuracy"] if "accuracy" in one else -one["mse"], -epoch) for epoch, one in scores.items()]
    return -max(found)[1] if found else None


def load_checkpoint(folder: Path, state: TrainState) -> list[dict[str, Tensor]]:
    """Put a training back where :meth:`Checkpoints.save` left it; returns the random states of every process."""
    content = read_json(folder / "state.json")
    if content.get("format") != CHECKPOINT_FORMAT:
        raise SuperWeightError(
            f"{folder} is a checkpoint of format {content.get('format')!r:.40}; this version reads {CHECKPOINT_FORMAT}"
        )
    try:
        # A key newer than the checkpoint is taken at its default: training worked that way before the key existed.
        before = {**asdict(TrainConfig()), **content["config"], **content["settings"]}
        now = json.loads(json.dumps({**asdict(state.config), **state.settings}))
        remembered = {hook.name: dict(content["hooks"].get(hook.name, {})) for hook in state.hooks}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SuperWeightError(f"{folder / 'state.json'} is damaged: {error!r:.200}") from None
    for key, value in now.items():
        if key not in RESUMABLE and before.get(key) != value:
            raise SuperWeightError(
                f"{folder} was made with {key}={before.get(key)!r:.80}, now {value!r:.80}: resume with the config that "
                "it began with"
            )
    known = content.get("data")
    # only the first process checks: a user's own loaders may give every process other images
    state.processes.on_rank_zero(lambda: check_same_data(folder, known, state.data_fingerprint(), state.data))
    plan = read_plan(folder)
    # before the tensors are read: hooks give the ensemble the shape it had
    _restore_hooks(folder, state, remembered, plan)
    if plan != state.ensemble.plan:
        raise SuperWeightError(f"{folder} was made with another sharing plan: resume with the recipe it began with")
    read_ensemble_tensors(state.ensemble, folder)
    try:
        state.progress = _progress_of(content, state, folder.name)
        _restore(folder, content, state.optimizer)
        done = len(state.progress.history) * state.steps_per_epoch + state.progress.step
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch warns of a schedule stepped without its optimiser
            for _ in range(done):  # rates are functions of the config and the step: none is read from a file
                state.schedule.step()
        return _read_states(folder)
    except SuperWeightError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, SafetensorError, OSError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SuperWeightError(f"the checkpoint {folder} is damaged: {reason:.200}") from None


def check_same_data(folder: Path, before: Any, now: Mapping[str, str], data: Any) -> None:
    """Refuse to go on with other data: images that were trained on would be held out, and the other way round."""
    if not now:
        return
    if not isinstance(before, dict):
        _LOG.warning("%s does not say what it was trained on: nothing tells whether the data are the same", folder)
        return
    differing = [key for key in dict.fromkeys([*now, *before]) if before.get(key) != now.get(key)]
    if not differing:
        return
    changes = [f"{key} ({before.get(key)!s:.20}, now {now.get(key)})" for key in differing if "number" in key]
    changes += [key for key in differing if "number" not in key and "marks" not in key]
    new = data.unknown_images(before) if isinstance(data, ImageData) else []
    named = f"; not seen before: {', '.join(new[:3])}" + (f" and {len(new) - 3:,} more" if len(new) > 3 else "")
    raise SuperWeightError(
        f"the data are not those of {folder}; what differs: {', '.join(changes) or 'images':.400}"
        f"{named if new else ''}: put them back as they were, or begin anew"
    )


def _restore_hooks(folder: Path, state: TrainState, remembered: dict[str, dict[str, Any]], plan: SharingPlan) -> None:
    path = folder / "hooks.safetensors"
    try:
        for label, tensor in read_tensors(path, read_header(path)).items():
            name, _, key = label.partition(".")
            remembered[name][key] = tensor
        for hook in state.hooks:
            hook.load_state_dict(remembered[hook.name])
            hook.reshape(state, plan)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        said = str(error) if isinstance(error, SuperWeightError) else repr(error)
        raise SuperWeightError(f"{folder}, hooks: {said:.400}") from None


def _name(epochs: int, step: int) -> str:
    """Name of a checkpoint after whole epochs and the steps of the epoch after them."""
    return f"epoch-{epochs:04d}-step-{step:06d}"


def _write(
    folder: Path, state: TrainState, remembered: Mapping[str, Mapping[str, Any]], random_states: RandomStates
) -> None:
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    held, ensemble = state.optimizer.state_dict(), state.ensemble
    for index, entries in held["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{key}"] = value
            else:
                numbers.setdefault(str(index), {})[key] = value
    write_ensemble_files(ensemble, ensemble.plan, dict(ensemble.members.items()), folder)
    write_tensors(folder / "optimizer.safetensors", tensors)
    by_rank = {f"{rank}.{name}": one for rank, named in enumerate(random_states) for name, one in named.items()}
    write_tensors(folder / "random.safetensors", by_rank)
    of_hooks = {
        f"{name}.{key}": value
        for name, content in remembered.items()
        for key, value in content.items()
        if isinstance(value, Tensor)
    }
    write_tensors(folder / "hooks.safetensors", of_hooks)
    plain = {
        name: check_plain_data(name, {key: value for key, value in content.items() if not isinstance(value, Tensor)})
        for name, content in remembered.items()
    }
    write_json(
        folder / "state.json",
        {
            "format": CHECKPOINT_FORMAT,
            "optimizer": numbers,
            "optimizer_groups": [_counters(state.optimizer, group) for group in held["param_groups"]],
            "config": asdict(state.config),
            "settings": state.settings,
            "hooks": plain,
            "data": state.data_fingerprint(),
            "progress": {field.name: getattr(state.progress, field.name) for field in fields(state.progress)},
        },
        indent=None,  # written every epoch, with the records of all epochs before
    )


def _counters(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> dict[str, float | list[float]]:
    """Numbers in an optimiser's group that are not settings, such as a step count; a list marks one from a tensor."""
    settings = {*optimizer.defaults, "params", "weight_decay", "lr", "initial_lr", "lr_scale"}
    held = {key: value for key, value in group.items() if key not in settings}
    found: dict[str, float | list[float]] = {
        key: [float(value)] for key, value in held.items() if isinstance(value, Tensor) and value.numel() == 1
    }
    return found | {key: value for key, value in held.items() if type(value) in (int, float)}


def _restore(folder: Path, content: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Give an optimiser its state back; its settings stay those that it was built with."""
    state: dict[int, dict[str, Any]] = {}
    # Older checkpoints hold the groups and the schedule under this key, too.
    numbers = content["optimizer"].get("numbers", content["optimizer"])
    for index, entries in numbers.items():
        if any(value is not None and type(value) not in (int, float, bool) for value in entries.values()):
            raise ValueError("the optimizer's state holds something that is no number")
        state[int(index)] = dict(entries)
    path = folder / "optimizer.safetensors"
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    header = read_header(path)
    for name, (shape, _) in header.items():
        parameter = parameters[int(name.partition(".")[0])]
        fits = tuple(shape) == tuple(parameter.shape) or math.prod(shape) == 1
        if not fits and math.prod(shape) >= parameter.numel():  # smaller ones are moments summed over some dimensions
            raise ValueError(
                f"{path.name}: {name} has the shape {tuple(shape)}, its parameter {tuple(parameter.shape)}"
            )
    for name, tensor in read_tensors(path, header).items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    for group, counters in zip(groups, content.get("optimizer_groups", ())):
        held = {key: torch.tensor(one[0]) if isinstance(one, list) else one for key, one in counters.items()}
        group.update({**held, **group})
        if _counters(optimizer, group) != counters:
            raise ValueError("the optimizer's groups hold something that is no counter")
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    for index, parameter in enumerate(parameters):
        entries = optimizer.state.get(parameter, {})
        for key, value in entries.items():
            saved = state.get(index, {}).get(key)
            if isinstance(value, Tensor) and isinstance(saved, Tensor) and value.shape == parameter.shape:
                # in the parameter's memory format, as fused optimisers walk through both at once; in the saved type
                entries[key] = torch.empty_like(parameter, dtype=saved.dtype).copy_(saved)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """Fields of every epoch's record; hooks add to it."""

    epoch: Count
    lr: Amount
    train_loss: dict[Name, float]
    skipped_steps: Count
    validation: Validation | None
    seconds: Amount


def _progress_of(content: dict[str, Any], state: TrainState, name: str) -> Progress:
    """The progress in a checkpoint, checked against itself, its name and the training."""
    found = adapter_of(Progress).validate_json(json.dumps(content["progress"]))
    records = adapter_of(tuple[_Record, ...]).validate_python(found.history)
    epochs, step = len(records), found.step
    if [record.epoch for record in records] != list(range(1, epochs + 1)) or epochs > state.config.epochs:
        raise ValueError(f"its epochs are not 1 to {epochs} of {state.config.epochs}")
    if _name(epochs, step) != name or (step and epochs == state.config.epochs):
        raise ValueError(f"it is of step {step} after epoch {epochs}, but its name says otherwise")
    if step > state.steps_per_epoch:
        raise SuperWeightError(
            f"the checkpoint is at step {step} of an epoch of {state.steps_per_epoch}: resume with the data that it "
            "began with"
        )
    return found


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


class RunLog:
    """Appends a record an epoch to ``log.jsonl``, and its numbers to ``tensorboard/`` where that is installed."""

    def __init__(self, folder: Path, history: list[dict[str, Any]]) -> None:
        self._path = folder / "log.jsonl"
        write_text(self._path, "".join(json.dumps(record) + "\n" for record in history))
        make = summary_writer()
        self._events = None if make is None else make(str(folder / "tensorboard"), purge_step=len(history) + 1)

    def append(self, record: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if self._events is not None:
            write_scalars(self._events, record)

    def close(self) -> None:
        if self._events is not None:
            self._events.close()


class Records:
    """The lock, the checkpoints and the log in the folder of a training."""

    def __init__(self, folder: Path, state: TrainState) -> None:
        self.folder = folder
        self._state = state
        self._processes = state.processes
        self._checkpoints = Checkpoints(folder / CHECKPOINT_FOLDER)
        self._log: RunLog | None = None
        self._ending = ExitStack()
        self._processes.on_rank_zero(self._lock)

    def _lock(self) -> None:
        self._ending.enter_context(locked_folder(self.folder))
        if self._checkpoints.folder.is_dir():
            clear_drafts(self._checkpoints.folder)  # half-written when a process was killed

    def load(self) -> Mapping[str, Tensor] | None:
        """Go back to the newest checkpoint; returns the random states of this process."""
        newest = self._processes.on_rank_zero(lambda: getattr(self._checkpoints.newest(), "name", None))
        if newest is None:
            return None
        states = load_checkpoint(self._checkpoints.folder / newest, self._state)
        drop_moments(self._state)
        return states[self._processes.rank] if len(states) == self._processes.size else {}

    def open_log(self) -> None:
        """Write the log anew from the history so far."""
        self._processes.on_rank_zero(self._open_log)

    def _open_log(self) -> None:
        with accessing(self.folder, "written to"):
            self._log = RunLog(self.folder, self._state.progress.history)

    def append(self, record: dict[str, Any]) -> None:
        """Log an epoch."""
        self._processes.on_rank_zero(lambda: self._append(record))

    def _append(self, record: dict[str, Any]) -> None:
        assert self._log is not None, "opened when the training began"
        try:
            with accessing(self.folder, "written to"):
                self._log.append(record)
        except PathError as error:
            raise SuperWeightError(f"{error}; the last checkpoint is whole: resume with it") from None

    def save(self) -> None:
        """Write a checkpoint, with the random states of every process."""
        self._write(self._checkpoints.save)

    def try_saving(self) -> None:
        """Refuse now what :meth:`save` would refuse later."""
        check_savable(self._state.ensemble, "the ensemble")
        self._write(self._checkpoints.try_saving)

    def _write(self, write: Callable[[TrainState, Mapping[str, Mapping[str, Any]], RandomStates], None]) -> None:
        if self._state.is_split and self._state.progress.step:  # else they were gathered when the epoch closed
            gather_members(self._state)
        gather_moments(self._state)
        device, states = self._state.fabric.device, random_states(self._state.fabric.device)
        remembered = {hook.name: hook.state_dict() for hook in self._state.hooks}  # on all ranks: it may change a hook
        by_name = {name: self._processes.all_gather(state.to(device)).cpu() for name, state in states.items()}
        every = [{name: rows[rank] for name, rows in by_name.items()} for rank in range(self._processes.size)]
        self._processes.on_rank_zero(lambda: write(self._state, remembered, every))
        drop_moments(self._state)

    def close(self) -> None:
        if self._log is not None:
            with suppress(OSError):  # what it holds was flushed at the last epoch
                self._log.close()
        self._ending.close()
