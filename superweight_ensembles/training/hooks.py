"""The state of a training, and hooks, which extend what a training does.

Un-tying, learned widths and distillation are hooks, each in its own file; ``swe.train(..., hooks=[...])`` takes yours.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, asdict, dataclass, field, is_dataclass
from typing import Annotated, Any, ClassVar

import torch
from lightning_fabric import Fabric
from pydantic import ConfigDict, Field
from torch import Tensor, nn

from superweight_ensembles.data import ImageData
from superweight_ensembles.ensemble import SuperWeightEnsemble
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.plan import SharingPlan
from superweight_ensembles.storage import Amount, Count, Name, Share
from superweight_ensembles.training.batches import Batches, SizedBatches, fingerprint_of
from superweight_ensembles.training.config import TrainConfig
from superweight_ensembles.training.distributed import Mesh, Processes, build_mesh, current_processes
from superweight_ensembles.training.optim import Schedule

Objective = Callable[[nn.Module, Any, Any], Tensor]
Penalty = Callable[[nn.Module], Tensor]


class Hook:
    """Base class of extensions of a training. A subclass overrides the methods it needs; the others do nothing.

    A step calls :meth:`penalty`, then :meth:`scalars` after the backward pass, then, if the step is taken,
    :meth:`after_step`; an epoch calls :meth:`after_epoch`, then :meth:`after_validation`. ``state`` has the ensemble,
    the optimizer, ``losses``, ``learning_rate``, ``step`` and ``epoch``; ``state.stop(reason)`` ends the training. All
    that a hook remembers from step to step must be in its :meth:`state_dict`, so that a resumed training ends as one
    that was never stopped.

    Example:
        >>> import superweight_ensembles as swe
        >>> class CountSteps(swe.Hook):
        ...     def __init__(self):
        ...         self.steps = 0
        ...     def after_step(self, state, scalars):
        ...         self.steps += 1
        ...     def after_epoch(self, state):
        ...         return {"steps": self.steps}
        ...     def state_dict(self):
        ...         return {"steps": self.steps}
        ...     def load_state_dict(self, content):
        ...         self.steps = content["steps"]
        >>> data = swe.load_data("synthetic", num_train=128)
        >>> ensemble = swe.SuperWeightEnsemble([swe.wide_resnet(10, 1, data.num_classes)], budget=1.0)
        >>> config = swe.TrainConfig(epochs=1, batch_size=len(data.train) // 2)
        >>> swe.train(ensemble, data, config, hooks=[CountSteps()]).history[0]["steps"]
        2
    """

    watches: ClassVar[bool] = False
    """Whether the hook only observes: a training may be resumed with or without such a hook."""

    @property
    def name(self) -> str:
        """Key of the hook in checkpoints; two hooks of one training need two names."""
        return type(self).__name__

    def settings(self) -> dict[str, Any]:
        """Plain data that must be the same when a training is resumed; by default, the fields of a dataclass."""
        return asdict(self) if is_dataclass(self) and not isinstance(self, type) else {}

    def start(self, state: TrainState) -> None:
        """Called once, before the first step and before anything is written; refuses what cannot be trained."""

    def end(self, state: TrainState) -> None:
        """Called once after the training, also where it was stopped or has failed."""

    def penalty(self, state: TrainState) -> Penalty | None:
        """A function from a member, its weights in place, to a differentiable scalar that is added to its loss."""
        return None

    def scalars(self, state: TrainState) -> Tensor | None:
        """Numbers (n,) on the training device that :meth:`after_step` needs on the host; a step copies all at once."""
        return None

    def after_step(self, state: TrainState, scalars: Sequence[float]) -> None:
        """Called after each step of the optimiser that is taken, with the numbers of :meth:`scalars` on the host."""

    def after_epoch(self, state: TrainState) -> Mapping[str, Any]:
        """Called after the last step of an epoch, before it is validated; returns entries of the epoch's record."""
        return {}

    def after_validation(self, state: TrainState, record: Mapping[str, Any]) -> None:
        """Called with the epoch's whole record (see :class:`TrainResult`), validation included, before it is saved."""

    def gather(self, state: TrainState) -> None:
        """Called, with several member ranks, when each member's numbers are sent from the ranks that run it to all.

        That is before a checkpoint and after an epoch; a hook sends what it keeps for single members in the same way.
        """

    def state_dict(self) -> Mapping[str, Any]:
        """What the hook remembers: tensors and plain data by name. Called before each checkpoint and the first step."""
        return {}

    def load_state_dict(self, content: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave. Called before the tensors of the ensemble are read."""

    def reshape(self, state: TrainState, plan: SharingPlan) -> None:
        """Give the ensemble the shape of a checkpoint whose plan is ``plan``; for hooks that change shapes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Scores of one predictor on validation rows, by its task."""

    accuracy: Share | None = None  # fraction of rows, places or labels that are right; None for regression
    nll: float | None = None  # mean negative log likelihood, in nats; None for regression
    mse: Amount | None = None  # mean squared error; of regression only


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """Scores of the members and of their mean on validation rows, after an epoch."""

    members: dict[Name, Quality]
    ensemble: Quality


@dataclass(slots=True, kw_only=True)
class Progress:
    """How far a training is."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    history: list[dict[str, Any]] = field(default_factory=list)  # one record a whole epoch
    step: Count = 0  # steps done of the current epoch
    loss_sums: dict[str, float] = field(default_factory=dict)  # by member, over that epoch's taken steps
    num_summed: Count = 0  # number of those steps
    learning_rate: Amount = 0.0  # at the start of the current epoch
    seconds: Amount = 0.0  # spent on the current epoch so far
    num_skipped: Count = 0  # steps whose numbers were not finite, over all epochs
    micro_batches: Annotated[int, Field(ge=1, lt=2**31)] = 1  # parts that a step's batch is run in
    stopped: str | None = None  # why a hook has ended the training


@dataclass(slots=True, kw_only=True)
class TrainState:
    """A training: what it works with, and how far it is. Hooks see all of it.

    Attributes:
        ensemble: Trained in place.
        members: Names of the members that are trained.
        config: Settings of the training.
        optimizer: Optimiser of the ensemble's parameters.
        schedule: Learning rate schedule, stepped once a batch.
        fabric: Device and precision.
        hooks: Hooks in the order in which they are called.
        data: Data that :func:`train` was given; None outside of it.
        loaders: One loader for all members, or one for each.
        validation: Batches to validate on, if any.
        channels_last: Whether images are in that memory format.
        processes: Processes of the job.
        mesh: Place of this process among them. The argument ``placement`` lists the members of each member rank; with
            None, one rank has all.
        num_rows: Rows of the batch of this step, over all processes.
        losses: Each member's loss in the last step that was taken, over all processes.
        objective: Objective in the place of the task's loss, if any.
        progress: How far the training is.
        answers_agree: Whether members on several processes are known to answer in one shape.
        moment_owners: The only rank that keeps the optimizer's state of a bank parameter, by the parameter's name.
        settings: Settings, besides the config, that a training must be resumed with: the members, and the hooks'
            settings as they were when the training began, by hook and name.
    """

    ensemble: SuperWeightEnsemble
    members: tuple[str, ...]
    config: TrainConfig
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    fabric: Fabric
    hooks: tuple[Hook, ...] = ()
    data: ImageData | SizedBatches | None = None
    loaders: Sequence[SizedBatches] = ()
    validation: Batches | None = None
    channels_last: bool = False
    processes: Processes = field(default_factory=current_processes)
    placement: InitVar[Sequence[Sequence[str]] | None] = None
    mesh: Mesh = field(init=False)
    num_rows: int = 0
    losses: dict[str, float] = field(default_factory=dict)
    objective: Objective | None = None
    progress: Progress = field(default_factory=Progress)
    answers_agree: bool = False
    moment_owners: Mapping[str, int] = field(default_factory=dict)
    settings: dict[str, Any] = field(init=False)
    _fingerprint: dict[str, str] | None = field(default=None, init=False, repr=False)

    def __post_init__(self, placement: Sequence[Sequence[str]] | None) -> None:
        self.mesh = build_mesh(self.processes, [self.members] if placement is None else placement)
        bound = [hook for hook in self.hooks if not hook.watches]
        self.settings = {"members": list(self.members), "hooks": [hook.name for hook in bound]}
        for hook in bound:  # once: a teacher's settings hold a checksum of all its numbers
            own = check_plain_data(hook.name, hook.settings())
            self.settings |= {f"{hook.name}.{key}": value for key, value in own.items()}

    def data_fingerprint(self) -> dict[str, str]:
        """Sizes and checksums that identify the data, computed once; empty outside of a training."""
        if self._fingerprint is None:
            given = {"training": self.data, "validation": self.validation}
            self._fingerprint = self.data.fingerprint() if isinstance(self.data, ImageData) else {}
            for name, loader in given.items():
                if not isinstance(loader, ImageData):
                    self._fingerprint |= fingerprint_of(name, loader, self.rows.size)
        return self._fingerprint

    @property
    def rows(self) -> Processes:
        """Processes that run the same members as this one, on other rows."""
        return self.mesh.rows

    @property
    def peers(self) -> Processes:
        """Processes that have the same rows as this one, for other members."""
        return self.mesh.peers

    @property
    def is_split(self) -> bool:
        """Whether other processes run other members."""
        return self.mesh.is_split

    @property
    def own_members(self) -> tuple[str, ...]:
        """Trained members that this process runs."""
        return self.mesh.members

    @property
    def own_loaders(self) -> Sequence[SizedBatches]:
        """One loader for all members, or one for each that this process runs."""
        if len(self.loaders) < len(self.members):
            return self.loaders
        return [loader for name, loader in zip(self.members, self.loaders) if name in self.own_members]

    @property
    def epoch(self) -> int:
        """The epoch that is trained, from 1."""
        return len(self.progress.history) + 1

    @property
    def steps_per_epoch(self) -> int:
        return len(self.loaders[0]) if self.loaders else 1

    @property
    def step(self) -> int:
        """The step's number over all epochs, from 0; in :meth:`Hook.after_step`, that of the step just taken."""
        return len(self.progress.history) * self.steps_per_epoch + self.progress.step

    @property
    def learning_rate(self) -> float:
        """Learning rate of the optimizer's first group in this step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def stop(self, reason: str) -> None:
        """End the training, on all processes, with the current epoch, which is validated and saved as any other is."""
        self.progress.stopped = str(reason)

    @property
    def is_last_epoch(self) -> bool:
        """Whether the training ends with the epoch that is trained, as far as is known."""
        return self.epoch >= self.config.epochs or self.progress.stopped is not None

    @property
    def fraction_done(self) -> float:
        """How much of the training is done, 0 to 1."""
        return self.step / (self.config.epochs * self.steps_per_epoch)

    def penalty(self) -> Penalty | None:
        """What all hooks together add to a member's loss in this step; None for nothing."""
        found = [one for hook in self.hooks if (one := hook.penalty(self)) is not None]
        if len(found) < 2:
            return next(iter(found), None)
        return lambda member: torch.stack([one(member) for one in found]).sum()


def check_plain_data(name: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Refuse settings, or what a hook remembers, that JSON cannot hold."""
    for key, value in content.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise SuperWeightError(
                f"hook {name!r}: {key!r} is no plain data ({error!s:.100}): give numbers, texts, lists, dictionaries "
                "or, for what is remembered, tensors"
            ) from None
    return dict(content)


def checked_entries(hook: Hook, entries: object, record: Mapping[str, Any]) -> dict[str, Any]:
    """Check what a hook adds to an epoch's record: plain data, under names of its own."""
    if entries is None:
        return {}
    if not isinstance(entries, Mapping):
        raise SuperWeightError(f"hook {hook.name!r}: after_epoch returns entries by name; got {entries!r:.80}")
    taken = next((key for key in entries if key in record), None)
    if taken is not None:
        raise SuperWeightError(f"hook {hook.name!r}: after_epoch returns {taken!r}, which the record has already")
    return check_plain_data(hook.name, entries)


def check_hooks(hooks: Sequence[Hook]) -> tuple[Hook, ...]:
    """Refuse what is no hook, and two hooks of one name."""
    if isinstance(hooks, Hook) or not isinstance(hooks, Sequence):
        raise SuperWeightError(f"hooks= takes a list of hooks; got {type(hooks).__name__}")
    for hook in hooks:
        if not isinstance(hook, Hook):
            given = hook.__name__ if isinstance(hook, type) else type(hook).__name__
            raise SuperWeightError(f"hooks= takes objects of subclasses of swe.Hook; got {given}")
        if "." in hook.name:
            raise SuperWeightError(
                f"hook {hook.name!r}: a name must have no dot, which separates names from keys in checkpoints"
            )
    names = [hook.name for hook in hooks if not hook.watches]  # keys in checkpoints
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise SuperWeightError(f"two hooks are named {repeated!r}: give each a name of its own")
    return tuple(hooks)
