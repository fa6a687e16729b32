"""Joint training of all members, epoch by epoch."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from superweight_ensembles.data.image_data import ImageData
from superweight_ensembles.ensemble.ensemble import SuperWeightEnsemble
from superweight_ensembles.errors import SuperWeightError, unknown_name
from superweight_ensembles.models.adaptive.loss import WidthLoss
from superweight_ensembles.search.untying import Untying, has_ties
from superweight_ensembles.training.checkpoint import Subject, best_epoch
from superweight_ensembles.training.compilation import compiled_calls
from superweight_ensembles.training.config import TrainConfig
from superweight_ensembles.training.distillation import Teacher, distillation_of
from superweight_ensembles.training.distributed.group import Processes, current_processes
from superweight_ensembles.training.epochs import Training, TrainProgress
from superweight_ensembles.training.fabric import build_fabric, uses_bfloat16
from superweight_ensembles.training.joint import Objective, joint_backward
from superweight_ensembles.training.learned_widths import LearnedWidths
from superweight_ensembles.training.member_batches import Batches, SizedBatches, training_batches
from superweight_ensembles.training.memory_format import set_memory_format
from superweight_ensembles.training.optimization import build_optimizer, build_schedule
from superweight_ensembles.training.random_states import own_randomness
from superweight_ensembles.training.recomputation import recomputed_blocks
from superweight_ensembles.training.records import Records
from superweight_ensembles.training.step import TrainStep


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What a run did.

    Attributes:
        history: One record an epoch: epoch, lr, train_loss by member, skipped_steps, validation (None where not
            validated), seconds; widths by member and path where members learn some.
        seconds: Of training and validation, over all epochs.
        precision: What ``auto`` came to.
        channels_last: What ``auto`` came to.
        device: Where it ran.
        best_epoch: That of the highest validation accuracy of the members' mean; None without validation.
        micro_batches: What ``auto`` came to.
    """

    history: list[dict[str, Any]]
    seconds: float
    precision: str
    channels_last: bool
    device: str
    best_epoch: int | None
    micro_batches: int


def train(
    ensemble: SuperWeightEnsemble,
    data: ImageData | SizedBatches,
    config: TrainConfig | None = None,
    *,
    validation: Batches | None = None,
    members: Collection[str] | None = None,
    untie: Untying | None = None,
    objective: Objective | None = None,
    teacher: Teacher | None = None,
    width_loss: WidthLoss | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    callback: Callable[[TrainProgress], None] | None = None,
) -> TrainResult:
    """Train all members jointly: the loss is the sum of their cross-entropies on one batch.

    The data order, the augmentation and dropout are functions of seed and epoch, and a checkpoint holds the states of
    all generators, so a run that is resumed ends like one that was never stopped, on the CPU bit by bit. A loader of
    your own must give the same batches again after the same seeds and ``set_epoch``, where it has one. With ``out``, a
    SIGTERM or Ctrl-C ends the step, saves, and raises :class:`TrainingStopped`; a second one stops at once.

    Started by torchrun, or in a process group, all processes call it alike: each has its rows of every batch, gradients
    are summed, batch norm sees the whole batch, and the first process alone writes. An iterable of your own must give
    each process batches of its own, as many as the others.

    Args:
        ensemble: Trained in place; left in eval mode on the training device.
        data: From :func:`load_data`, or any sized iterable of (images, labels) batches, such as a DataLoader.
        config: How; the defaults where None.
        validation: Batches to validate on, where ``data`` is an iterable; ``ImageData`` brings its own.
        members: Train these alone, by name; what only the others use stays as it is.
        untie: Un-tie coefficients after an epoch (:func:`untie_coefficients`), on training images without augmentation;
            an iterable of your own is read as it is.
        objective: In the place of the cross-entropy: of a member (its weights in place), images (B, ...) and labels
            (B,) to a scalar loss.
        teacher: What members learn from besides the labels, with ``config.distillation``: a network that answers
            logits (B, K) for the same images; a SuperWeightEnsemble, or a network that answers (M, B, K), for the mean
            of their softmax; or ``"ensemble"`` for the mean of the members themselves on each batch. Its numbers stay
            as they are; it ends on the training device. To resume, give the same again: it is not saved.
        width_loss: Priors of the weights and rates of members with learned widths, which follow their rates after every
            step with it or without.
        out: Folder for log.jsonl, TensorBoard events and checkpoints/: the last two and that of the best epoch; nothing
            is written where None.
        resume: Go on from the newest checkpoint in ``out`` that is whole; from the start where there is none.
        callback: Called after every step and every epoch.

    Raises:
        SuperWeightError: Fewer samples than a batch, batches that are no (images, class indices), a device that is not
            there, ``recompute`` where no member repeats a block, a loss or gradient that is not finite (names the step,
            members and targets), no memory left (names the member and what to lower), ``resume`` without ``out``, a
            teacher without ``distillation`` or of other classes, a checkpoint of another config or teacher, ``out``
            with an older run and without ``resume``, or where another process is at work, or that cannot be written to:
            the checkpoints there stay.
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
    _check_untying(ensemble, untie, config)
    distillation = distillation_of(config, teacher, ensemble, trained)
    settings = {
        "members": list(trained),
        "untie": None if untie is None else asdict(untie),
        "teacher": None if distillation is None else distillation.name,
        "width_loss": None if width_loss is None else asdict(width_loss),
    }
    if objective is not None and config.label_smoothing:
        raise SuperWeightError("label_smoothing is for the cross-entropy: let the objective smooth the labels")
    if objective is not None and config.ensemble_loss:
        raise SuperWeightError("ensemble_loss is of the members' logits: it cannot go with an objective")
    if objective is not None and config.distillation:
        raise SuperWeightError("distillation is of the members' logits: it cannot go with an objective")
    if objective is not None and config.compile:
        raise SuperWeightError("compile is of a member's call: it cannot go with an objective")
    modules = {name: ensemble.members[name] for name in trained}
    recomputed = recomputed_blocks(modules) if config.recompute else None
    compiled = compiled_calls(modules) if config.compile else None
    fabric = build_fabric(config)
    processes = current_processes()
    _check_job(processes, config)
    folder = None if out is None else Path(out)
    if folder is not None and not resume and processes.first(lambda: (folder / "log.jsonl").exists()):
        raise SuperWeightError(f"{folder} holds a run already: resume=True goes on, another out= begins anew")
    ensemble.to(fabric.device)
    channels_last = set_memory_format(ensemble, data, config, fabric, trained)
    loaders, validation = training_batches(data, validation, config, fabric.device, trained, processes.shard)
    _agree(processes, ensemble, config, settings, len(loaders[0]))
    optimizer = build_optimizer(ensemble, config)
    backward = partial(
        joint_backward,
        ensemble,
        loss_function=None if objective is not None else nn.CrossEntropyLoss(label_smoothing=config.label_smoothing),
        backward=fabric.backward,
        members=trained,
        objective=objective,
        ensemble_weight=config.ensemble_loss,
        distillation=distillation,
        recomputed=recomputed,
        compiled=compiled,
    )
    widths = LearnedWidths(ensemble, trained, optimizer, config, len(loaders[0]), width_loss)
    schedule = build_schedule(optimizer, config, len(loaders[0]))
    threads = torch.get_num_threads()
    with ExitStack() as ending:
        ending.callback(torch.set_num_threads, threads)
        torch.set_num_threads(config.num_threads or threads)
        ending.enter_context(own_randomness(fabric.device))
        if distillation is not None and distillation.teacher is not None:
            ending.enter_context(distillation.teacher.placed(fabric.device))
        records = None
        if folder is not None:
            subject = Subject(
                ensemble=ensemble, optimizer=optimizer, schedule=schedule, config=config, settings=settings
            )
            records = Records(folder, subject, processes)
            ending.callback(records.close)
        training = Training(
            ensemble=ensemble,
            members=trained,
            data=data,
            loaders=loaders,
            validation=validation,
            config=config,
            fabric=fabric,
            optimizer=optimizer,
            schedule=schedule,
            step=TrainStep(
                ensemble,
                trained,
                backward,
                optimizer,
                schedule,
                fabric,
                config,
                channels_last,
                processes,
                widths,
                distillation,
            ),
            widths=widths,
            untie=untie,
            records=records,
            callback=callback,
            processes=processes,
        )
        training.run(resume=resume)
    ensemble.eval()
    history = training.progress.history
    return TrainResult(
        history=history,
        seconds=sum(record["seconds"] for record in history),
        precision="bfloat16" if uses_bfloat16(config) else "float32",
        channels_last=channels_last,
        device=str(fabric.device),
        best_epoch=best_epoch(history),
        micro_batches=training.progress.micro_batches,
    )


def _check_job(processes: Processes, config: TrainConfig) -> None:
    """Refuse what several processes cannot do."""
    if processes.size == 1:
        return
    if config.micro_batches == "auto":
        raise SuperWeightError(
            "micro_batches 'auto' is of one process, since all must take the same parts: give a number"
        )
    if config.compile and config.sync_batch_norm:
        raise SuperWeightError(
            "compiled members are slower with batch norm over several processes, which parts them at every norm: "
            "leave compile out, or set sync_batch_norm to false"
        )


def _agree(
    processes: Processes, ensemble: SuperWeightEnsemble, config: TrainConfig, settings: dict[str, Any], steps: int
) -> None:
    """See to it that all processes train the same, from the same start values.

    Raises:
        SuperWeightError: They were told to train different things (says which differ).
    """
    decided = {key: value for key, value in asdict(config).items() if key not in ("num_threads", "num_workers")}
    processes.same({**decided, **settings}, "the training's settings")
    processes.same(ensemble.plan.fingerprint, "the sharing plan")
    processes.same(steps, "the number of batches an epoch")
    processes.copy_first_([*ensemble.parameters(), *ensemble.buffers()])


def _trained_members(ensemble: SuperWeightEnsemble, members: Collection[str] | None) -> tuple[str, ...]:
    if members is None:
        return ensemble.member_names
    if isinstance(members, str) or not members or len(set(members)) < len(members):
        raise SuperWeightError(f"members must be names, each once, at least one; got {members!r}")
    for name in members:
        if name not in ensemble.member_names:
            raise unknown_name("member", name, ensemble.member_names)
    return tuple(members)


def _check_untying(ensemble: SuperWeightEnsemble, untie: Untying | None, config: TrainConfig) -> None:
    if untie is None:
        return
    if not isinstance(untie, Untying):
        raise SuperWeightError(f"untie= takes Untying(epoch=...); got {untie!r}")
    if untie.epoch >= config.epochs:
        raise SuperWeightError(
            f"coefficients must be un-tied before the last epoch, or none would train; got epoch {untie.epoch} "
            f"of {config.epochs}"
        )
    if not has_ties(ensemble.plan):
        raise SuperWeightError("untie= has nothing to un-tie: no coefficients of the plan are tied")
