"""Parameter groups, optimiser and learning rate schedule of a training run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim import lr_scheduler

from superweight_ensembles.ensemble import SuperWeightEnsemble
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.models.adaptive import AdaptiveWidth
from superweight_ensembles.training.config import TrainConfig


def parameter_groups(
    ensemble: SuperWeightEnsemble, weight_decay: float, width_rate: float | None = None
) -> list[dict[str, Any]]:
    """Parameter groups with and without weight decay, and one of learned widths' rates with its own learning rate.

    Decayed are templates, banks, and members' own weights of two or more dimensions. Coefficients, norms and biases are
    not, nor is what a member's ``no_weight_decay()`` names, as timm's models do (position embeddings, class tokens).
    The rates of learned widths are a group of their own where ``width_rate`` gives them a learning rate.

    Differs from paper: the published run decays norms too.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    rates: list[nn.Parameter] = []
    free = {id(one) for part in (ensemble.bank.coefficients, ensemble.bank.mixers) for one in part.parameters()}
    widths = {id(module.rho) for module in ensemble.modules() if isinstance(module, AdaptiveWidth)}
    templates = {id(parameter) for parameter in ensemble.bank.templates.parameters()}
    for member in ensemble.members.values():
        named = getattr(member, "no_weight_decay", None)
        names = set(named()) if callable(named) else set()
        free |= {id(parameter) for name, parameter in member.named_parameters() if name in names}
    for parameter in ensemble.parameters():
        if not parameter.requires_grad:
            continue
        if width_rate is not None and id(parameter) in widths:
            rates.append(parameter)
        elif id(parameter) in free or (parameter.ndim < 2 and id(parameter) not in templates):
            plain.append(parameter)
        else:
            decayed.append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
        {"params": rates, "weight_decay": 0.0, "lr": width_rate},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(ensemble: SuperWeightEnsemble, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of a config over :func:`parameter_groups`: torch's SGD and AdamW, all others timm's."""
    width_rate = None if config.width_rate == 1 else config.learning_rate * config.width_rate
    groups = parameter_groups(ensemble, config.weight_decay, width_rate)
    if not groups:
        raise SuperWeightError("the ensemble has no trainable parameter: every parameter is frozen")
    return _optimizer(groups, config)


def _optimizer(groups: list[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    options: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in config.optimizer_options.items()
    }
    fused = not any(parameter.is_complex() for group in groups for parameter in group["params"])  # torch fuses none
    try:
        # fused: one pass over memory, four times as fast on the CPU
        if config.optimizer == "adamw":
            return torch.optim.AdamW(groups, **{"lr": config.learning_rate, "fused": fused, **options})
        if config.optimizer == "sgd":
            nesterov = config.nesterov and config.momentum > 0
            set_here = {"lr": config.learning_rate, "momentum": config.momentum, "nesterov": nesterov, "fused": fused}
            return torch.optim.SGD(groups, **{**set_here, **options})
        from timm.optim import create_optimizer_v2  # seconds, which most runs can do without

        return create_optimizer_v2(groups, config.optimizer, lr=config.learning_rate, **options)
    except (TypeError, ValueError, AssertionError, RuntimeError, ImportError) as error:
        raise SuperWeightError(
            f"optimizer {config.optimizer!r} with {options} cannot be made: {error!s:.200}"
        ) from error


def num_moments(config: TrainConfig) -> float:
    """Numbers in the optimizer's state per number of a matrix, step counters left out."""
    matrix = nn.Parameter(torch.zeros(16, 16))
    optimizer = _optimizer([{"params": [matrix]}], config)
    matrix.grad = torch.zeros_like(matrix)
    optimizer.step()
    held = [value for value in optimizer.state[matrix].values() if isinstance(value, torch.Tensor)]
    return sum(value.numel() for value in held if value.numel() > 1) / matrix.numel()


def build_schedule(optimizer: torch.optim.Optimizer, config: TrainConfig, steps_per_epoch: int) -> Schedule:
    """A schedule that is stepped once a batch: torch's, or timm's for a warm-up, options or names torch lacks."""
    steps = config.epochs * steps_per_epoch
    plain = not (config.warmup_epochs or config.schedule_options)
    options: dict[str, Any] = dict(config.schedule_options)
    try:
        if config.schedule == "one_cycle":
            peaks = [group["lr"] for group in optimizer.param_groups]
            fixed = {"max_lr": peaks, "total_steps": steps + 1, "cycle_momentum": False}
            return lr_scheduler.OneCycleLR(optimizer, **{**options, **fixed})
        if config.schedule == "step" and plain:
            milestones = [epoch * steps_per_epoch for epoch in config.milestones]
            return lr_scheduler.MultiStepLR(optimizer, milestones, gamma=config.gamma)
        if config.schedule == "cosine" and plain:
            return lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        if config.schedule == "constant" and plain:
            return lr_scheduler.ConstantLR(optimizer, factor=1.0)
        return _timm_schedule(optimizer, config, steps_per_epoch, options)
    except (TypeError, ValueError, AssertionError) as error:
        raise SuperWeightError(f"schedule {config.schedule!r} with {options}: {error!s:.200}") from error


class Schedule(Protocol):
    """Sets the learning rates after each step."""

    def step(self) -> None: ...

    def get_last_lr(self) -> Sequence[Any]: ...


class StepwiseSchedule:
    """A timm schedule with torch's interface: a rate for each step, counted here."""

    def __init__(self, optimizer: torch.optim.Optimizer, schedule: Any) -> None:
        self._optimizer, self._schedule, self._steps = optimizer, schedule, 0
        schedule.step_update(0)

    def step(self) -> None:
        self._steps += 1
        self._schedule.step_update(self._steps)

    def get_last_lr(self) -> list[float]:
        return [float(group["lr"]) for group in self._optimizer.param_groups]


def _timm_schedule(
    optimizer: torch.optim.Optimizer, config: TrainConfig, steps_per_epoch: int, options: dict[str, Any]
) -> StepwiseSchedule:
    from timm.scheduler import create_scheduler_v2  # seconds, which most runs can do without

    # in every version of timm, a step schedule without milestones is a constant one
    milestones = config.milestones if config.schedule == "step" else ()
    name = "multistep" if config.schedule in ("step", "constant") else config.schedule
    fixed: dict[str, Any] = {}
    if name == "multistep":  # timm falls a step before its milestones: half a step later, it falls where torch does
        halfway = [milestone + 0.5 / steps_per_epoch for milestone in milestones]
        fixed = {"decay_milestones": halfway, "decay_rate": config.gamma}
    # the schedule begins at its peak where the warm-up ends, and ends with the training
    fixed |= {"warmup_prefix": True, "num_epochs": config.epochs - config.warmup_epochs}
    if name in ("multistep", "wsd", "rsqrt"):  # timm counts these from the start
        fixed |= {"warmup_prefix": False, "num_epochs": config.epochs}
    defaults = {"warmup_lr": config.learning_rate / 100}
    if name == "poly":
        defaults["decay_rate"] = 1.0  # the power; timm's default is meant for other schedules
    schedule, _ = create_scheduler_v2(
        optimizer, name, warmup_epochs=config.warmup_epochs, step_on_epochs=False, updates_per_epoch=steps_per_epoch,
        **{**defaults, **options, **fixed},
    )  # fmt: skip
    if schedule is None:
        raise ValueError("timm has none of this name here")
    return StepwiseSchedule(optimizer, schedule)
