"""Parameter groups, optimiser and learning rate schedule of a training run."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import lr_scheduler

from superweight_ensembles.ensemble import SuperWeightEnsemble
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.models.adaptive import AdaptiveWidth
from superweight_ensembles.training.config import TrainConfig


def parameter_groups(
    ensemble: SuperWeightEnsemble,
    weight_decay: float,
    coefficient_rate: float | None = None,
    width_rate: float | None = None,
) -> list[dict[str, Any]]:
    """Decayed: templates, banks, the members' own weights of two or more dimensions. Not: coefficients, norms, biases.

    Nor what a member's ``no_weight_decay()`` names, as timm's models do (position embeddings, class tokens).
    Coefficients are a group of their own where ``coefficient_rate`` gives them a learning rate, and so are the rates of
    learned widths where ``width_rate`` does.

    Differs from paper: the published run decays norms too.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    combining = (ensemble.bank.coefficients, ensemble.bank.mixers)
    coefficients = {id(parameter) for part in combining for parameter in part.parameters()}
    widths = {id(module.rho) for module in ensemble.modules() if isinstance(module, AdaptiveWidth)}
    rated: list[dict[str, Any]] = []
    own: dict[int, list[nn.Parameter]] = {}  # the parameters of its group, by parameter
    for held, rate in ((coefficients, coefficient_rate), (widths, width_rate)):
        if rate is not None:
            group: list[nn.Parameter] = []
            rated.append({"params": group, "weight_decay": 0.0, "lr": rate})
            own.update(dict.fromkeys(held, group))
    templates = {id(parameter) for parameter in ensemble.bank.templates.parameters()}
    free_ones = set(coefficients)
    for member in ensemble.members.values():
        named = getattr(member, "no_weight_decay", None)
        names = set(named()) if callable(named) else set()
        free_ones |= {id(parameter) for name, parameter in member.named_parameters() if name in names}
    for parameter in ensemble.parameters():
        if parameter.requires_grad:
            if id(parameter) in own:
                own[id(parameter)].append(parameter)
            elif id(parameter) in free_ones or (parameter.ndim < 2 and id(parameter) not in templates):
                plain.append(parameter)
            else:
                decayed.append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
        *rated,
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(ensemble: SuperWeightEnsemble, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD or AdamW over :func:`parameter_groups`, fused: one pass over memory, four times as fast on the CPU.

    Raises:
        SuperWeightError: Nothing is trainable.
    """
    own_rates = (
        None if multiple == 1 else config.learning_rate * multiple
        for multiple in (config.coefficient_rate, config.width_rate)
    )
    groups = parameter_groups(ensemble, config.weight_decay, *own_rates)
    if not groups:
        raise SuperWeightError("the ensemble has no trainable parameter: every parameter is frozen")
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
    nesterov = config.nesterov and config.momentum > 0
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=nesterov, fused=True)


def num_moments(config: TrainConfig) -> int:
    """Tensors of a parameter's shape that the optimiser keeps for each: its state, but for AdamW's step counters."""
    if config.optimizer == "adamw":
        return 2
    return 1 if config.momentum > 0 else 0


def build_schedule(
    optimizer: torch.optim.Optimizer, config: TrainConfig, steps_per_epoch: int
) -> lr_scheduler.LRScheduler:
    """A schedule that is stepped once a batch."""
    steps = config.epochs * steps_per_epoch
    if config.schedule == "step":
        milestones = [epoch * steps_per_epoch for epoch in config.milestones]
        return lr_scheduler.MultiStepLR(optimizer, milestones, gamma=config.gamma)
    if config.schedule == "cosine":
        return lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    if config.schedule == "one_cycle":
        peaks = [group["lr"] for group in optimizer.param_groups]
        return lr_scheduler.OneCycleLR(optimizer, max_lr=peaks, total_steps=steps + 1, cycle_momentum=False)
    return lr_scheduler.ConstantLR(optimizer, factor=1.0)
