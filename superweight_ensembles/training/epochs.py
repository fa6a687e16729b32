"""A training from epoch to epoch: where it goes on, what it saves, and how it is stopped."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from superweight_ensembles.data.image_data import ImageData
from superweight_ensembles.data.loader import ImageLoader
from superweight_ensembles.ensemble.adoption import adopt_plan
from superweight_ensembles.ensemble.ensemble import SuperWeightEnsemble
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.search.untying import Untying, untie_coefficients
from superweight_ensembles.training.checkpoint import Progress
from superweight_ensembles.training.config import TrainConfig
from superweight_ensembles.training.distributed.group import Processes
from superweight_ensembles.training.interruption import StopRequests, TrainingStopped
from superweight_ensembles.training.learned_widths import LearnedWidths
from superweight_ensembles.training.member_batches import Batches, SizedBatches
from superweight_ensembles.training.random_states import random_states, seed_all, set_random_states
from superweight_ensembles.training.records import Records
from superweight_ensembles.training.step import TrainStep
from superweight_ensembles.training.validation import validate

_RANKS_APART = 2**33 + 1
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainProgress:
    """Where a run stands, for a progress bar: after every step, and with ``record`` after every epoch."""

    epoch: int
    step: int
    steps_per_epoch: int
    epochs: int
    record: dict[str, Any] | None = None


@dataclass(slots=True, kw_only=True)
class Training:
    """A training with everything that it needs, and how far it is."""

    ensemble: SuperWeightEnsemble
    members: tuple[str, ...]
    data: ImageData | SizedBatches
    loaders: Sequence[SizedBatches]
    validation: Batches | None
    config: TrainConfig
    fabric: Fabric
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    step: TrainStep
    widths: LearnedWidths
    untie: Untying | None
    records: Records | None
    callback: Callable[[TrainProgress], None] | None
    processes: Processes
    requests: StopRequests = field(init=False)
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        self.requests = StopRequests(heard=self.records is not None)

    @property
    def epoch(self) -> int:
        """That which is trained, from 1."""
        return len(self.progress.history) + 1

    def run(self, *, resume: bool) -> None:
        """Train to the end, from the newest checkpoint where that is asked for.

        Raises:
            SuperWeightError: As :func:`train` says.
            TrainingStopped: A signal, after the step that it came in.
        """
        states = self._resume() if resume else None
        if isinstance(self.config.micro_batches, int):
            self.progress.micro_batches = self.config.micro_batches
        if self.records is not None:
            self.records.open_log(self.progress.history)
        with self.requests:
            while self.epoch <= self.config.epochs:
                self._steps(states)
                states = None
                self._close_epoch()
                self._stop_if_asked(max(self.processes.gather_objects(self.requests.signal or 0)), saved=True)

    def _resume(self) -> Mapping[str, Tensor] | None:
        """Go back to the newest checkpoint; the random states there, None where there is none."""
        assert self.records is not None, "there is a folder to resume from"
        found = self.records.load()
        if found is None:
            return None
        self.progress, states = found
        if self.progress.step > len(self.loaders[0]):
            raise SuperWeightError(
                f"the checkpoint is at step {self.progress.step} of an epoch of {len(self.loaders[0])}: "
                "resume with the data that it began with"
            )
        _LOG.info("resumed after epoch %d of %d, step %d", self.epoch - 1, self.config.epochs, self.progress.step)
        return states

    def _steps(self, states: Mapping[str, Tensor] | None) -> None:
        """The steps of an epoch, or those of them that are left."""
        progress, config, epoch = self.progress, self.config, self.epoch
        start = time.perf_counter() - progress.seconds
        seed_all(config.seed * 100_003 + epoch + self.processes.rank * _RANKS_APART)
        if not progress.step:
            progress.learning_rate = float(self.schedule.get_last_lr()[0])
        self.ensemble.train()
        steps = len(self.loaders[0])
        for batches in islice(self._batches(epoch, progress.step, states), steps - progress.step):
            asked = self.step(batches, progress, self.requests.signal or 0)
            progress.seconds = time.perf_counter() - start
            self._tell(epoch)
            within = config.checkpoint_steps and not progress.step % config.checkpoint_steps and progress.step < steps
            if within and self.records is not None:
                self._save()
            # of several processes, what all have heard of in the step; one alone need not wait for the next
            self._stop_if_asked(asked if self.processes.size > 1 else self.requests.signal or 0)
        if progress.step < steps:
            raise SuperWeightError(
                f"the training data end after {progress.step} of the {steps} batches that their length says"
            )

    def _batches(self, epoch: int, first: int, states: Mapping[str, Tensor] | None) -> Iterator[tuple[Any, ...]]:
        """Batches of an epoch from the ``first`` on, one for each loader, with the generators as they were then."""
        for loader in self.loaders:
            if isinstance(loader, ImageLoader):
                loader.set_epoch(epoch, first_batch=first)
            elif callable(set_epoch := getattr(loader, "set_epoch", None)):
                set_epoch(epoch)
        if first == len(self.loaders[0]):
            return iter(())
        batches = iter(zip(*self.loaders))
        if first and not all(isinstance(loader, ImageLoader) for loader in self.loaders):
            for _ in islice(batches, first):  # those before the checkpoint, read again
                pass
        if first and states:
            set_random_states(states, self.fabric.device)
        return batches

    def _close_epoch(self) -> None:
        """Un-tie and validate where it is time, and write down the epoch."""
        progress, config, epoch = self.progress, self.config, self.epoch
        start = time.perf_counter() - progress.seconds
        if not progress.num_summed:
            raise SuperWeightError(f"every step of epoch {epoch} was left out: lower learning_rate")
        self.processes.copy_first_(list(self.ensemble.buffers()))  # apart where batch norm is not synchronised
        if self.untie is not None and epoch == self.untie.epoch:
            self._untie(self.untie)
        self.widths.settle()
        due = epoch == config.epochs or epoch % config.validate_every == 0
        found = None
        if due and self.validation is not None:
            found = validate(self.ensemble, self.members, self.validation, self.fabric)
        record = {
            "epoch": epoch,
            "lr": progress.learning_rate,
            "train_loss": {name: loss / progress.num_summed for name, loss in progress.loss_sums.items()},
            "skipped_steps": len(self.loaders[0]) - progress.num_summed,
            "validation": found,
            "seconds": time.perf_counter() - start,
        }
        if sizes := self.widths.sizes():
            record["widths"] = sizes
        self.progress = Progress(
            history=[*progress.history, record],
            num_skipped=progress.num_skipped,
            micro_batches=progress.micro_batches,
        )
        if self.records is not None:
            self.records.append(record)  # before the checkpoint: a log that is ahead of it is cut when a run resumes
            self._save()
        self._tell(epoch, record)

    def _untie(self, untie: Untying) -> None:
        """Move the ensemble and its optimiser to a plan without the ties that conflict."""
        loader: Batches = self.loaders[0]
        if isinstance(self.data, ImageData):
            shard = self.processes.shard
            loader = self.data.loader("train", self.config.batch_size, device=self.fabric.device, shard=shard)
        plan = untie_coefficients(self.ensemble, loader, threshold=untie.threshold, max_batches=untie.max_batches)
        adopt_plan(self.ensemble, plan, self.optimizer)

    def _save(self) -> None:
        assert self.records is not None, "checkpoints are in a folder"
        self.widths.settle()
        self.records.save(self.progress, random_states(self.fabric.device))

    def _stop_if_asked(self, number: int, saved: bool = False) -> None:
        """End here where a signal has come, to this process or to another."""
        if not number:
            return
        if not saved:
            self._save()
        where = f"step {self.progress.step} of epoch {self.epoch}" if self.progress.step else f"epoch {self.epoch - 1}"
        assert self.records is not None, "signals are heard where there is a folder"
        raise TrainingStopped(
            f"stopped by {signal.Signals(number).name} after {where}, which is saved in {self.records.folder}",
            number,
            saved=True,
        )

    def _tell(self, epoch: int, record: dict[str, Any] | None = None) -> None:
        if self.callback is None:
            return
        steps = len(self.loaders[0])
        step = steps if record is not None else self.progress.step
        self.callback(
            TrainProgress(epoch=epoch, step=step, steps_per_epoch=steps, epochs=self.config.epochs, record=record)
        )
