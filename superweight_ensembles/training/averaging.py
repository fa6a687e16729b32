"""The mean of the weights over the last steps of a training.

Source: Izmailov et al., Averaging Weights Leads to Wider Optima and Better Generalization, UAI 2018 (equal weights,
batch norm estimated again); Polyak and Juditsky, SIAM Journal on Control and Optimization 1992.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from superweight_ensembles.data import Inputs
from superweight_ensembles.errors import SuperWeightError, check_number, names_options
from superweight_ensembles.plan import SharingPlan
from superweight_ensembles.training.batches import prepared_batch
from superweight_ensembles.training.distributed import synchronised
from superweight_ensembles.training.hooks import Hook, TrainState
from superweight_ensembles.training.member_ranks import gather_members

_LOG = logging.getLogger(__name__)


@names_options
class AveragedWeights(Hook):
    """The training ends with the mean of its weights over the last steps; batch norm is estimated again for them.

    The bank and the members' own parameters are averaged after each step. Until the end, steps and validation go on
    with the weights as they are. Where shapes change (un-tied coefficients, learned widths), the mean begins anew.

    Args:
        start: Share of the training done when the mean begins, 0 to below 1.
        decay: Decay of a moving mean, 0 to below 1, at each step; all steps count alike where None.

    Raises:
        SuperWeightError: A number out of range; when the training starts: a mean that begins after the last step.

    Example:
        >>> import superweight_ensembles as swe
        >>> data = swe.load_data("synthetic", num_train=128)
        >>> ensemble = swe.SuperWeightEnsemble([swe.wide_resnet(10, 1, data.num_classes)], budget=1.0)
        >>> config = swe.TrainConfig(epochs=4, batch_size=len(data.train))
        >>> result = swe.train(ensemble, data, config, hooks=[swe.AveragedWeights(start=0.5)])
        >>> result.history[-1]["averaged_steps"]
        2
    """

    def __init__(self, *, start: float = 0.75, decay: float | None = None) -> None:
        for what, value in (("start", start), ("decay", 0.0 if decay is None else decay)):
            check_number(f"the {what} of averaged weights", value, least=0, below=1)
        self.start_at = start
        self.decay = decay
        self._average = get_swa_multi_avg_fn() if decay is None else get_ema_multi_avg_fn(decay)
        self._mean: dict[str, Tensor] = {}
        self._num_steps = 0

    def settings(self) -> dict[str, Any]:
        return {"start": self.start_at, "decay": self.decay}

    def start(self, state: TrainState) -> None:
        self._mean, self._num_steps = {}, 0
        steps = state.config.epochs * state.steps_per_epoch
        if self._begins(state) >= steps:
            raise SuperWeightError(
                f"averaged weights begin after {self.start_at:g} of {steps} steps, when none is left: lower start"
            )

    def after_step(self, state: TrainState, scalars: Sequence[float]) -> None:
        if state.step < self._begins(state):
            return
        now = {name: value.detach() for name, value in state.ensemble.named_parameters() if value.requires_grad}
        shapes, before = ({name: one.shape for name, one in held.items()} for held in (now, self._mean))
        if shapes != before:
            self._mean, self._num_steps = {name: value.clone() for name, value in now.items()}, 1
            return
        self._average([self._mean[name] for name in now], list(now.values()), self._num_steps)
        self._num_steps += 1

    def after_epoch(self, state: TrainState) -> Mapping[str, Any]:
        return self.take(state) if state.is_last_epoch else {}

    @torch.no_grad()
    def take(self, state: TrainState) -> Mapping[str, Any]:
        """Give the ensemble the mean; returns entries of the epoch's record, none where no mean has begun."""
        if not self._mean:
            _LOG.warning("the training ends before its averaged weights begin: its last weights stay")
            return {}
        for name, value in state.ensemble.named_parameters():
            if name in self._mean:
                value.copy_(self._mean[name])
        _estimate_norms(state)
        return {"averaged_steps": self._num_steps}

    def gather(self, state: TrainState) -> None:
        for member in state.members:
            own = [value for name, value in self._mean.items() if name.startswith(f"members.{member}.")]
            state.processes.broadcast_(own, state.mesh.source_of(member))

    def state_dict(self) -> Mapping[str, Any]:
        return {**self._mean, "num_steps": self._num_steps}

    def load_state_dict(self, content: Mapping[str, Any]) -> None:
        self._mean = {name: value for name, value in content.items() if name != "num_steps"}
        self._num_steps = content["num_steps"]

    def reshape(self, state: TrainState, plan: SharingPlan) -> None:
        self._mean = {name: value.to(state.fabric.device) for name, value in self._mean.items()}

    def _begins(self, state: TrainState) -> int:
        """The first step, from 0, whose weights count."""
        return round(self.start_at * state.config.epochs * state.steps_per_epoch)


def _estimate_norms(state: TrainState) -> None:
    """Estimate batch norm statistics anew: the mean over the augmented batches of an epoch."""
    norms = {name: _norms_of(state.ensemble.members[name]) for name in state.own_members}
    if not any(norms.values()) and not state.is_split:
        return
    momenta = {module: module.momentum for found in norms.values() for module in found}
    for module in momenta:
        module.reset_running_stats()
        module.momentum = None  # torch's sign for a plain mean over batches
    state.ensemble.train()
    weights = state.ensemble.bank.generate(state.own_members)
    with synchronised(state.rows) if state.config.sync_batch_norm else nullcontext(), state.fabric.autocast():
        for name, inputs in _inputs(state):
            if norms[name]:
                state.ensemble.run_member(name, inputs, weights[name])
    for module, momentum in momenta.items():
        module.momentum = momentum
    gather_members(state)


def _norms_of(member: nn.Module) -> list[_BatchNorm]:
    return [module for module in member.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]


def _inputs(state: TrainState) -> Iterator[tuple[str, Inputs]]:
    """Each member's batches of an epoch."""
    for loader in state.loaders:
        if callable(set_epoch := getattr(loader, "set_epoch", None)):
            set_epoch(state.epoch)
    for batches in zip(*state.own_loaders):
        ready = [
            prepared_batch(batch, state.fabric.device, state.channels_last, labelled=False)[0] for batch in batches
        ]
        for index, name in enumerate(state.own_members):
            yield name, ready[index if len(ready) > 1 else 0]
