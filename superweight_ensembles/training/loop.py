"""Joint training of all members, epoch by epoch."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from einops import reduce
from lightning_fabric import Fabric
from torch import Tensor, nn

from superweight_ensembles.adoption import adopt_plan
from superweight_ensembles.batches import checked_batch
from superweight_ensembles.data import ImageData
from superweight_ensembles.ensemble import SuperWeightEnsemble
from superweight_ensembles.errors import SuperWeightError, unknown_name
from superweight_ensembles.search import Untying, has_ties, untie_coefficients
from superweight_ensembles.storage.folders import recover_folder
from superweight_ensembles.training.checkpoint import load_checkpoint, save_checkpoint
from superweight_ensembles.training.compilation import compiled_calls
from superweight_ensembles.training.config import TrainConfig
from superweight_ensembles.training.fabric import build_fabric, uses_bfloat16
from superweight_ensembles.training.joint import Objective, joint_backward
from superweight_ensembles.training.log import RunLog
from superweight_ensembles.training.member_batches import (
    Batches,
    SizedBatches,
    by_member,
    prepared_batch,
    training_batches,
)
from superweight_ensembles.training.memory_format import is_refusal, set_memory_format
from superweight_ensembles.training.optimization import build_optimizer, build_schedule
from superweight_ensembles.training.recomputation import recomputed_blocks

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainProgress:
    """Where a run stands, for a progress bar: after every step, and with ``record`` after every epoch."""

    epoch: int
    step: int
    steps_per_epoch: int
    epochs: int
    record: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What a run did.

    Attributes:
        history: One record an epoch: epoch, lr, train_loss by member, validation (None where not validated), seconds.
        seconds: Of training and validation, over all epochs.
        precision: What ``auto`` came to.
        channels_last: What ``auto`` came to.
        device: Where it ran.
    """

    history: list[dict[str, Any]]
    seconds: float
    precision: str
    channels_last: bool
    device: str


def train(
    ensemble: SuperWeightEnsemble,
    data: ImageData | SizedBatches,
    config: TrainConfig | None = None,
    *,
    validation: Batches | None = None,
    members: Collection[str] | None = None,
    untie: Untying | None = None,
    objective: Objective | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    callback: Callable[[TrainProgress], None] | None = None,
) -> TrainResult:
    """Train all members jointly: the loss is the sum of their cross-entropies on one batch.

    The data order, the augmentation and dropout are functions of seed and epoch, so a run that is resumed ends like
    one that was never stopped.

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
        out: Folder for log.jsonl, TensorBoard events and the checkpoint of the last epoch; nothing is written
            where None.
        resume: Go on from the checkpoint in ``out``; from the start where there is none.
        callback: Called after every step and every epoch.

    Raises:
        SuperWeightError: Fewer samples than a batch, batches that are no (images, class indices), a device that is
            not there, ``recompute`` where no member repeats a block, a loss that is not finite (names the member and
            the epoch), ``resume`` without ``out``, a checkpoint of another config, ``out`` with an older run and
            without ``resume``.

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
    settings = {"members": list(trained), "untie": None if untie is None else asdict(untie)}
    if objective is not None and config.label_smoothing:
        raise SuperWeightError("label_smoothing is for the cross-entropy: let the objective smooth the labels")
    if objective is not None and config.ensemble_loss:
        raise SuperWeightError("ensemble_loss is of the members' logits: it cannot go with an objective")
    if objective is not None and config.compile:
        raise SuperWeightError("compile is of a member's call: it cannot go with an objective")
    modules = {name: ensemble.members[name] for name in trained}
    recomputed = recomputed_blocks(modules) if config.recompute else None
    compiled = compiled_calls(modules) if config.compile else None
    fabric = build_fabric(config)
    folder = None if out is None else Path(out)
    if folder is not None and not resume and (folder / "log.jsonl").exists():
        raise SuperWeightError(f"{folder} holds a run already: resume=True goes on, another out= begins anew")
    ensemble.to(fabric.device)
    channels_last = set_memory_format(ensemble, data, config, fabric, trained)
    loaders, validation = training_batches(data, validation, config, fabric.device, trained)
    steps_per_epoch = len(loaders[0])
    optimizer = build_optimizer(ensemble, config)
    schedule = build_schedule(optimizer, config, steps_per_epoch)
    history: list[dict[str, Any]] = []
    if folder is not None and resume:
        recover_folder(folder / "checkpoint")
        if (folder / "checkpoint").is_dir():
            history = load_checkpoint(folder / "checkpoint", ensemble, optimizer, schedule, config, settings)["history"]
            _LOG.info("resumed after epoch %d of %d", len(history), config.epochs)
    log = None
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        log = RunLog(folder, history)
    step = partial(
        joint_backward,
        ensemble,
        loss_function=None if objective is not None else nn.CrossEntropyLoss(label_smoothing=config.label_smoothing),
        backward=fabric.backward,
        members=trained,
        objective=objective,
        ensemble_weight=config.ensemble_loss,
        recomputed=recomputed,
        compiled=compiled,
    )
    threads = torch.get_num_threads()
    devices = [fabric.device] if fabric.device.type == "cuda" else []
    with ExitStack() as ending:
        ending.callback(torch.set_num_threads, threads)
        torch.set_num_threads(config.num_threads or threads)
        ending.enter_context(torch.random.fork_rng(devices))
        if log is not None:
            ending.callback(log.close)
        for epoch in range(len(history) + 1, config.epochs + 1):
            start = time.perf_counter()
            torch.manual_seed(config.seed * 100_003 + epoch)
            rate = schedule.get_last_lr()[0]
            losses = _train_epoch(
                ensemble, trained, step, loaders, epoch, fabric, optimizer, schedule, channels_last, config, callback
            )
            if untie is not None and epoch == untie.epoch:
                _untie(ensemble, optimizer, data, loaders[0], config.batch_size, untie)
            due = epoch == config.epochs or epoch % config.validate_every == 0
            history.append(
                {
                    "epoch": epoch,
                    "lr": rate,
                    "train_loss": losses,
                    "validation": _validate(ensemble, trained, validation, fabric)
                    if due and validation is not None
                    else None,
                    "seconds": time.perf_counter() - start,
                }
            )
            if log is not None and folder is not None:
                save_checkpoint(
                    folder / "checkpoint", ensemble, optimizer, schedule, config, settings, {"history": history}
                )
                log.append(history[-1])
            if callback is not None:
                callback(_progress(epoch, steps_per_epoch, steps_per_epoch, config, history[-1]))
    ensemble.eval()
    return TrainResult(
        history=history,
        seconds=sum(record["seconds"] for record in history),
        precision="bfloat16" if uses_bfloat16(config) else "float32",
        channels_last=channels_last,
        device=str(fabric.device),
    )


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


def _untie(
    ensemble: SuperWeightEnsemble,
    optimizer: torch.optim.Optimizer,
    data: ImageData | SizedBatches,
    batches: SizedBatches,
    batch_size: int,
    untie: Untying,
) -> None:
    """Move the ensemble and its optimiser to a plan without the ties that conflict."""
    loader: Batches = batches
    if isinstance(data, ImageData):
        loader = data.loader("train", batch_size, device=next(ensemble.parameters()).device)
    plan = untie_coefficients(ensemble, loader, threshold=untie.threshold, max_batches=untie.max_batches)
    adopt_plan(ensemble, plan, optimizer)


def _train_epoch(
    ensemble: SuperWeightEnsemble,
    members: Sequence[str],
    backward_step: Callable[..., dict[str, Tensor]],
    loaders: Sequence[SizedBatches],
    epoch: int,
    fabric: Fabric,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    channels_last: bool,
    config: TrainConfig,
    callback: Callable[[TrainProgress], None] | None,
) -> dict[str, float]:
    ensemble.train()
    for loader in loaders:
        set_epoch = getattr(loader, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(epoch)
    total: Tensor | None = None
    names: list[str] = []
    steps = len(loaders[0])
    for step, batches in enumerate(zip(*loaders), start=1):
        ready = [prepared_batch(batch, fabric.device, channels_last) for batch in batches]
        optimizer.zero_grad(set_to_none=True)
        try:
            with fabric.autocast():
                losses = backward_step(*ready[0]) if len(ready) == 1 else backward_step(*by_member(members, ready))
        except RuntimeError as error:
            if channels_last and is_refusal(error):
                raise SuperWeightError(
                    "a member takes a view of feature maps that channels-last ones do not have: set channels_last to "
                    "false, or let the member flatten by torch.flatten"
                ) from error
            raise
        optimizer.step()
        schedule.step()
        names, found = list(losses), torch.stack(list(losses.values())).double()
        total = found if total is None else total + found
        if callback is not None:
            callback(_progress(epoch, step, steps, config))
    assert total is not None, "a loader has at least one batch"
    mean = dict(zip(names, (total / steps).tolist()))
    for name, value in mean.items():
        if not math.isfinite(value):
            raise SuperWeightError(
                f"the training loss of member {name!r} is {value} in epoch {epoch}: lower learning_rate"
            )
    return mean


@torch.inference_mode()
def _validate(
    ensemble: SuperWeightEnsemble, members: Sequence[str], batches: Batches, fabric: Fabric
) -> dict[str, Any]:
    """Accuracy and NLL of every member asked for and of their mean, in eval mode."""
    ensemble.eval()
    weights = ensemble.bank.generate(members)
    log_probabilities, truth = [], []
    for batch in batches:
        images, labels = checked_batch(batch)
        images = images.to(fabric.device)
        with fabric.autocast():
            logits = [ensemble.run_member(name, images, weights[name]) for name in members]
        log_probabilities.append(torch.stack(logits).float().log_softmax(2).cpu())
        truth.append(labels.cpu())
    if not truth:
        raise SuperWeightError("validation yields no batch: give an iterable that can be read every epoch")
    every, labels = torch.cat(log_probabilities, dim=1), torch.cat(truth)
    ensemble_log = reduce(every.exp(), "m n k -> n k", "mean").clamp_min(1e-38).log()
    return {
        "members": {name: _quality(every[index], labels) for index, name in enumerate(members)},
        "ensemble": _quality(ensemble_log, labels),
    }


def _quality(log_probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    return {
        "accuracy": float((log_probabilities.argmax(1) == labels).double().mean()),
        "nll": float(nn.functional.nll_loss(log_probabilities, labels)),
    }


def _progress(
    epoch: int, step: int, steps: int, config: TrainConfig, record: dict[str, Any] | None = None
) -> TrainProgress:
    return TrainProgress(epoch=epoch, step=step, steps_per_epoch=steps, epochs=config.epochs, record=record)
