"""Joint training of all members, epoch by epoch."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from superweight_ensembles.data import ImageData, ImageLoader, Preprocessing, Targets
from superweight_ensembles.ensemble import (
    SuperWeightEnsemble,
    Task,
    check_classes,
    check_unchanged,
    first_parameter,
)
from superweight_ensembles.errors import SuperWeightError, TrainingStopped, names_options, stop_now, unknown_name
from superweight_ensembles.models import kept_modes
from superweight_ensembles.storage import check_savable, html_table
from superweight_ensembles.training.averaging import AveragedWeights
from superweight_ensembles.training.batches import (
    Batches,
    SizedBatches,
    training_batches,
)
from superweight_ensembles.training.checkpoint import (
    Records,
    best_epoch,
    holds_run,
)
from superweight_ensembles.training.config import TrainConfig
from superweight_ensembles.training.device import (
    LossScale,
    build_fabric,
    compiled_calls,
    precision_of,
    scaler_of,
    set_memory_format,
)
from superweight_ensembles.training.distillation import Distillation
from superweight_ensembles.training.distributed import check_mesh, current_processes
from superweight_ensembles.training.hooks import Hook, Progress, TrainState, check_hooks, checked_entries
from superweight_ensembles.training.joint import Execution, JointLoss, Objective
from superweight_ensembles.training.member_ranks import answers_of_all, gather_members, mesh_of, moment_owners
from superweight_ensembles.training.optim import build_optimizer, build_schedule
from superweight_ensembles.training.randomness import own_randomness, seed_all, set_random_states
from superweight_ensembles.training.recomputation import recomputed_blocks
from superweight_ensembles.training.step import TrainStep
from superweight_ensembles.training.tracking import ProgressBar, describe_epoch
from superweight_ensembles.training.validation import try_validation, validate
from superweight_ensembles.training.widths import LearnedWidths

_RANKS_APART = 2**33 + 1
_EPOCHS_SHOWN = 10  # of a result, in a notebook
_LOG = logging.getLogger(__name__)


class StopRequests:
    """Which signal has asked to stop, if any; a second one stops at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note signals until the context ends, but for those that the program handles itself."""
        before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():  # no other thread can set handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                held = signal.getsignal(number)
                if held in (signal.SIG_DFL, signal.default_int_handler, stop_now):
                    before[number] = held
                    signal.signal(number, self._note)
        try:
            yield
        finally:
            for noted, held in before.items():
                signal.signal(noted, held)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            stop_now(number, frame)
        self.signal = number


@dataclass(frozen=True, slots=True)
class TaskLoss:
    """A task's default loss of an answer (B, ...) and its targets."""

    task: Task
    label_smoothing: float = 0.0

    def __call__(self, answer: Tensor, targets: Targets) -> Tensor:
        return self.task.loss(answer, self.task.targets(targets, answer), self.label_smoothing)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainProgress:
    """Where a run stands, for a progress bar: after every step, and with ``record`` after every epoch."""

    epoch: int
    step: int
    steps_per_epoch: int
    epochs: int
    record: dict[str, Any] | None = None


@dataclass(slots=True, kw_only=True)
class _Loop:
    """The epochs of a training: where it goes on, what it saves, and how it is stopped."""

    state: TrainState
    step: TrainStep
    records: Records | None
    callback: Callable[[TrainProgress], None] | None
    requests: StopRequests = field(default_factory=StopRequests, init=False)

    def run(self, *, resume: bool) -> None:
        """Train to the end, from the newest checkpoint where ``resume`` asks for it."""
        state = self.state
        random = self._resume() if resume else None
        if isinstance(state.config.micro_batches, int):
            state.progress.micro_batches = state.config.micro_batches
        if self.records is not None:
            if not self._is_over:
                self.records.try_saving()
            self.records.open_log()
        # where nothing can be saved, a signal does what it always does
        with nullcontext() if self.records is None else self.requests.listening():
            while not self._is_over:
                self._steps(random)
                random = None
                self._close_epoch()
                self._stop_if_asked(max(state.processes.gather_objects(self.requests.signal or 0)), saved=True)

    @property
    def _is_over(self) -> bool:
        return self.state.epoch > self.state.config.epochs or self.state.progress.stopped is not None

    def _resume(self) -> Mapping[str, Tensor] | None:
        """Go back to the newest checkpoint; returns the random states there, None without a checkpoint."""
        assert self.records is not None, "there is a folder to resume from"
        state, random = self.state, self.records.load()
        if random is None:
            _LOG.warning("nothing to resume in %s: training from the start", self.records.folder)
            return None
        _LOG.info("resumed after epoch %d of %d, step %d", state.epoch - 1, state.config.epochs, state.progress.step)
        return random

    def _steps(self, random: Mapping[str, Tensor] | None) -> None:
        """Take the steps of an epoch that are left."""
        state, progress, config = self.state, self.state.progress, self.state.config
        start = time.perf_counter() - progress.seconds
        # by row rank: processes that need the same rows get them, also from a user's own loader that shuffles
        seed_all(config.seed * 100_003 + state.epoch + state.rows.rank * _RANKS_APART)
        if not progress.step:
            progress.learning_rate = float(state.schedule.get_last_lr()[0])
        state.ensemble.train()
        steps = state.steps_per_epoch
        for batches in islice(self._batches(progress.step, random), steps - progress.step):
            asked = self.step(batches, self.requests.signal or 0)
            progress.seconds = time.perf_counter() - start
            self._report(state.epoch)
            within = config.checkpoint_steps and not progress.step % config.checkpoint_steps and progress.step < steps
            if within and self.records is not None:
                self.records.save()
            # several processes go by the signal exchanged in the step; one alone need not wait for the next step
            self._stop_if_asked(asked if state.processes.size > 1 else self.requests.signal or 0)
        if progress.step < steps:
            raise SuperWeightError(
                f"the training data end after {progress.step} of the {steps} batches that their length says"
            )

    def _batches(self, first: int, random: Mapping[str, Tensor] | None) -> Iterator[tuple[Any, ...]]:
        """Batches of an epoch from ``first`` on, one for each loader; generators are put back to ``random``."""
        state, loaders = self.state, self.state.loaders
        for loader in loaders:
            if isinstance(loader, ImageLoader):
                loader.set_epoch(state.epoch, first_batch=first)
            elif callable(set_epoch := getattr(loader, "set_epoch", None)):
                set_epoch(state.epoch)
        if first == state.steps_per_epoch:
            return iter(())
        batches = iter(zip(*state.own_loaders))
        if first and not all(isinstance(loader, ImageLoader) for loader in loaders):
            for _ in islice(batches, first):  # those before the checkpoint, read again
                pass
        if first and random:
            set_random_states(random, state.fabric.device)
        return batches

    def _close_epoch(self) -> None:
        """Call the hooks, validate where it is due, and record the epoch."""
        state, progress, config, epoch = self.state, self.state.progress, self.state.config, self.state.epoch
        start = time.perf_counter() - progress.seconds
        if not progress.num_summed:
            raise SuperWeightError(f"every step of epoch {epoch} was left out: lower learning_rate")
        gather_members(state)
        self._agree_on_stopping()
        of_hooks = [hook.after_epoch(state) for hook in state.hooks]
        was_last = state.is_last_epoch
        due = was_last or epoch % config.validate_every == 0
        found = None
        if due and state.validation is not None:
            found = validate(state, state.validation)
        record = {
            "epoch": epoch,
            "lr": progress.learning_rate,
            "train_loss": {name: loss / progress.num_summed for name, loss in progress.loss_sums.items()},
            "skipped_steps": state.steps_per_epoch - progress.num_summed,
            "validation": found,
            "seconds": time.perf_counter() - start,
        }
        for hook, entries in zip(state.hooks, of_hooks):
            record.update(checked_entries(hook, entries, record))
        for hook in state.hooks:
            hook.after_validation(state, record)
        self._agree_on_stopping()
        if state.is_last_epoch and not was_last:
            self._end_here(record)
        state.progress = Progress(
            history=[*progress.history, record],
            num_skipped=progress.num_skipped,
            micro_batches=progress.micro_batches,
            stopped=progress.stopped,
        )
        if self.records is not None:
            self.records.append(record)  # before the checkpoint: a log that is ahead of it is cut when a run resumes
            self.records.save()
        self._report(epoch, record)

    def _agree_on_stopping(self) -> None:
        """Stop all processes where a hook of one has asked for it."""
        asked = self.state.processes.gather_objects(self.state.progress.stopped or "")
        self.state.progress.stopped = next(filter(None, asked), None)

    def _end_here(self, record: dict[str, Any]) -> None:
        """Make this epoch the last: averaged weights are taken and validated."""
        state = self.state
        _LOG.info("stopped after epoch %d: %s", state.epoch, state.progress.stopped)
        taken = [hook.take(state) for hook in state.hooks if isinstance(hook, AveragedWeights)]
        for entries in filter(None, taken):
            record.update(entries)
        if state.validation is not None and (any(taken) or record["validation"] is None):
            record["validation"] = validate(state, state.validation)

    def _stop_if_asked(self, number: int, saved: bool = False) -> None:
        """Save and stop where a signal has reached this process or another."""
        if not number:
            return
        assert self.records is not None, "signals are heard where there is a folder"
        if not saved:
            self.records.save()
        step, epoch = self.state.progress.step, self.state.epoch
        where = f"step {step} of epoch {epoch}" if step else f"epoch {epoch - 1}"
        raise TrainingStopped(
            f"stopped by {signal.Signals(number).name} after {where}, which is saved in {self.records.folder}",
            number,
            saved=True,
        )

    def _report(self, epoch: int, record: dict[str, Any] | None = None) -> None:
        if self.callback is None:
            return
        steps = self.state.steps_per_epoch
        step = steps if record is not None else self.state.progress.step
        self.callback(
            TrainProgress(epoch=epoch, step=step, steps_per_epoch=steps, epochs=self.state.config.epochs, record=record)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """Result of a training.

    Attributes:
        history: One record an epoch: epoch, lr, train_loss by member, skipped_steps, validation (None where not
            validated), seconds; widths by member and path where members learn some.
        seconds: Time of training and validation, over all epochs.
        precision: Number format that was used, also where the config says ``auto``.
        channels_last: Whether images were channels-last, also where the config says ``auto``.
        device: Device of the training.
        best_epoch: Epoch of the highest validation accuracy of the members' mean, or of the lowest squared error; None
            without validation.
        micro_batches: Parts of a step's batch at the end, also where the config says ``auto``.
        stopped: Why a hook has ended the training before its last epoch; None where none has.
    """

    history: list[dict[str, Any]]
    seconds: float
    precision: str
    channels_last: bool
    device: str
    best_epoch: int | None
    micro_batches: int
    stopped: str | None = None

    def _repr_html_(self) -> str:
        last = self.history[-_EPOCHS_SHOWN:]
        rows = [describe_epoch(record).split(": ", 1) for record in last]
        title = f"{len(self.history)} epochs in {self.seconds:,.1f} s on {self.device}, {self.precision}"
        title += f", the last {len(last)} shown" if len(last) < len(self.history) else ""
        return html_table([("", "members' mean loss, validation"), *rows], title)


@names_options
def train(
    ensemble: SuperWeightEnsemble,
    data: ImageData | SizedBatches,
    config: TrainConfig | None = None,
    *,
    validation: Batches | None = None,
    members: Collection[str] | None = None,
    objective: Objective | None = None,
    hooks: Sequence[Hook] = (),
    out: str | Path | None = None,
    resume: bool = False,
    callback: Callable[[TrainProgress], None] | None = None,
) -> TrainResult:
    """Train all members jointly: the loss is the sum of their losses on one batch, by the ensemble's task.

    The data order, the augmentation and dropout are functions of seed and epoch, and a checkpoint holds the states of
    all generators, so a run that is resumed ends like one that was never stopped, on the CPU bit by bit. A loader of
    your own must give the same batches again after the same seeds and ``set_epoch``, where it has one. With ``out``, a
    SIGTERM or Ctrl-C ends the step, saves, and raises :class:`TrainingStopped`; a second one stops at once.

    Started by torchrun, or in a process group, all processes call it alike: each has its rows of every batch, gradients
    are summed, batch norm sees the whole batch, and only the first process writes. An iterable of your own must give
    each process its own batches, the same number to all.

    Args:
        ensemble: Trained in place; left in eval mode on the training device.
        data: From :func:`load_data`, or any sized iterable of (inputs, targets) batches, such as a DataLoader: tensors
            with one row a sample, or dictionaries and tuples of such. A batch may be one mapping with ``labels``, as
            Hugging Face's are.
        config: Settings of the training; the defaults where None.
        validation: Batches to validate on, where ``data`` is an iterable; ``ImageData`` brings its own. One of them is
            tried before the first step.
        members: Names of the members that are trained; parameters that only other members use stay as they are.
        objective: Function that replaces the task's loss: it takes a member (its weights in place), and inputs and
            targets as the batch has them, calls the member itself, as often as it likes, and returns a scalar loss.
        hooks: Hooks of the training: :class:`Distillation`, :class:`AveragedWeights`,
            :class:`superweight_ensembles.search.Untying`, those of :mod:`superweight_ensembles.training` (early
            stopping, logs, learned widths with priors), or your own subclasses of :class:`Hook`.
        out: Folder for log.jsonl, TensorBoard events and checkpoints/: the last two and that of the best epoch; nothing
            is written where None.
        resume: Go on from the newest checkpoint in ``out`` that is whole; from the start where there is none.
        callback: Called after every step and every epoch. Without one, and without a
            :class:`superweight_ensembles.training.ProgressBar`, terminals and notebooks show a bar.

    Raises:
        SuperWeightError: Fewer samples than a batch, targets that do not fit the task, or the members' classes or
            types, a member that fails on a batch, a device that is not there, ``recompute`` where no member repeats a
            block, a loss or gradient that is not finite (names the step, members and targets), no memory left (names
            the member and what to lower), ``resume`` without ``out``, a teacher of other classes, a checkpoint of
            another config or of other hooks, a state that cannot be saved, an ``out`` that holds an older run and comes
            without ``resume``, that another process writes to, or that cannot be written to (checkpoints there stay).
        TrainingStopped: A signal; everything is saved.

    Example:
        >>> import superweight_ensembles as swe
        >>> data = swe.load_data("synthetic")
        >>> members = {"a": swe.wide_resnet(10, 1, data.num_classes), "b": swe.wide_resnet(16, 1, data.num_classes)}
        >>> ensemble = swe.SuperWeightEnsemble(members, budget=0.9)
        >>> result = swe.train(ensemble, data, swe.TrainConfig(epochs=1, batch_size=64))
        >>> result.history[0]["epoch"], sorted(result.history[0]["train_loss"])
        (1, ['a', 'b'])
    """
    config = config or TrainConfig()
    if not isinstance(ensemble, SuperWeightEnsemble):
        raise SuperWeightError(f"train() takes a SuperWeightEnsemble; got {type(ensemble).__name__}")
    if resume and out is None:
        raise SuperWeightError("resume=True needs out=, the folder of the run")
    trained = _trained_members(ensemble, members)
    hooks = _with_defaults(check_hooks(hooks), callback)
    teaching = next((hook for hook in hooks if isinstance(hook, Distillation)), None)
    _check_objective(objective, config, teaching)
    _check_task(ensemble.task, config, teaching)
    modules = {name: ensemble.members[name] for name in trained}
    recomputed = recomputed_blocks(modules) if config.recompute else {}
    compiled = compiled_calls(modules) if config.compile else {}
    fabric = build_fabric(config)
    if (scaler := scaler_of(fabric)) is not None:
        if first_parameter({"": ensemble}).dtype != torch.float32:
            raise SuperWeightError("precision 'float16' trains members of float32: call ensemble.float() before")
        hooks = (*hooks, LossScale(scaler))
    processes = current_processes()
    check_mesh(config.mesh, len(trained), processes.size)
    if config.micro_batches == "auto" and processes.size > 1:
        raise SuperWeightError(
            "micro_batches 'auto' works in one process only, since all must take the same parts: give a number"
        )
    folder = None if out is None else Path(out)
    if folder is not None and not resume and processes.on_rank_zero(lambda: holds_run(folder)):
        raise SuperWeightError(f"{folder} holds a run already: resume=True goes on, another out= begins anew")
    if any(parameter.is_meta for parameter in ensemble.parameters()):
        raise SuperWeightError("the ensemble is on the meta device and has no numbers to train: build it on another")
    if isinstance(data, ImageData):
        ensemble.images = Preprocessing.of(data)
    ensemble.to(fabric.device)
    mesh = mesh_of(ensemble, trained, data, config, processes)
    if config.compile and config.sync_batch_norm and mesh.rows.size > 1:
        raise SuperWeightError(
            "compiled members are slower with batch norm over several processes, which breaks them up at every norm: "
            "leave compile out, or set sync_batch_norm to false"
        )
    channels_last = set_memory_format(ensemble, config, fabric)
    loaders, validation = training_batches(data, validation, config, fabric.device, trained, mesh.rows.shard)
    optimizer = build_optimizer(ensemble, config)
    state = TrainState(
        ensemble=ensemble,
        members=trained,
        config=config,
        optimizer=optimizer,
        schedule=build_schedule(optimizer, config, len(loaders[0])),
        fabric=fabric,
        hooks=hooks,
        data=data,
        loaders=loaders,
        validation=validation,
        channels_last=channels_last,
        processes=processes,
        placement=mesh.placement,
        objective=objective,
    )
    _agree(state)
    state.moment_owners = moment_owners(state)
    loss = JointLoss(
        loss_function=None if objective is not None else TaskLoss(ensemble.task, config.label_smoothing),
        objective=objective,
        num_terms=ensemble.task.num_terms if objective is None else None,
        ensemble_weight=config.ensemble_loss,
        distillation=teaching,
        gather=partial(answers_of_all, state) if mesh.is_split else None,
    )
    execution = Execution(backward=fabric.backward, recomputed=recomputed, compiled=compiled)
    threads = torch.get_num_threads()
    with ExitStack() as ending:
        ending.enter_context(kept_modes(ensemble))
        ending.callback(torch.set_num_threads, threads)
        torch.set_num_threads(config.num_threads or threads)
        ending.enter_context(torch.inference_mode(False))
        ending.enter_context(torch.enable_grad())
        ending.enter_context(own_randomness(fabric.device))
        for hook in hooks:
            ending.callback(hook.end, state)
            hook.start(state)
        try_validation(state)
        check_unchanged(ensemble)
        records = None
        if folder is None:
            try:
                check_savable(ensemble, "what is trained here")
            except SuperWeightError as error:  # said ahead of the training, not after it
                _LOG.warning("%s", error)
        else:
            records = Records(folder, state)
            ending.callback(records.close)
        step = TrainStep(state, loss, execution)
        _Loop(state=state, step=step, records=records, callback=callback).run(resume=resume)
    ensemble.eval()
    history = state.progress.history
    return TrainResult(
        history=history,
        seconds=sum(record["seconds"] for record in history),
        precision=precision_of(config),
        channels_last=state.channels_last,
        device=str(fabric.device),
        best_epoch=best_epoch(history),
        micro_batches=state.progress.micro_batches,
        stopped=state.progress.stopped,
    )


def _with_defaults(hooks: Sequence[Hook], callback: object) -> tuple[Hook, ...]:
    """The hooks, without a distillation that is off, with learned widths, and with a bar where one would be seen."""
    found = [hook for hook in hooks if not (isinstance(hook, Distillation) and not hook.weight)]
    if sum(isinstance(hook, Distillation) for hook in found) > 1:
        raise SuperWeightError("a member learns from one teacher: give one Distillation")
    for kind, is_due in ((LearnedWidths, True), (ProgressBar, callback is None and ProgressBar.is_seen())):
        if is_due and not any(isinstance(hook, kind) for hook in found):
            found.append(kind())
    return tuple(found)


def _agree(state: TrainState) -> None:
    """Check that all processes train the same, and give all the start values of the first."""
    processes = state.processes
    decided = {key: value for key, value in asdict(state.config).items() if key not in ("num_threads", "num_workers")}
    processes.assert_equal_across_ranks({**decided, **state.settings}, "the training's settings")
    processes.assert_equal_across_ranks(state.ensemble.plan.fingerprint, "the sharing plan")
    processes.assert_equal_across_ranks(state.steps_per_epoch, "the number of batches an epoch")
    processes.broadcast_([*state.ensemble.parameters(), *state.ensemble.buffers()])


def _check_objective(objective: Objective | None, config: TrainConfig, teaching: Distillation | None) -> None:
    """Refuse options that the user's own objective replaces."""
    if objective is None:
        return
    for given, message in (
        (config.label_smoothing, "label_smoothing is for the cross-entropy: let the objective smooth the labels"),
        (config.ensemble_loss, "ensemble_loss needs the members' logits: it cannot go with an objective"),
        (teaching is not None, "distillation needs the members' logits: it cannot go with an objective"),
        (config.compile, "compile replaces a member's call: it cannot go with an objective, which calls it itself"),
    ):
        if given:
            raise SuperWeightError(message)


def _check_task(task: Task, config: TrainConfig, teaching: Distillation | None) -> None:
    """Refuse options for classes where members answer something else."""
    if teaching is not None:
        check_classes(task, "distillation")
    if config.ensemble_loss:
        check_classes(task, "ensemble_loss")
    if config.label_smoothing and task.name not in ("classification", "segmentation"):
        check_classes(task, "label_smoothing")


def _trained_members(ensemble: SuperWeightEnsemble, members: Collection[str] | None) -> tuple[str, ...]:
    if members is None:
        return ensemble.member_names
    if isinstance(members, str) or not members or len(set(members)) < len(members):
        raise SuperWeightError(f"members must be names, each once, at least one; got {members!r}")
    for name in members:
        if name not in ensemble.member_names:
            raise unknown_name("member", name, ensemble.member_names)
    return tuple(members)
