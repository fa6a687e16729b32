"""The learned widths of a training: their rates are read with the losses of a step, and followed when it is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from superweight_ensembles.ensemble import SuperWeightEnsemble
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.models.adaptive import (
    AdaptiveWidth,
    Place,
    WidthLoss,
    follow_rates,
    learned_places,
    set_width,
)
from superweight_ensembles.plan import independent_plan
from superweight_ensembles.training.config import TrainConfig

Widths = dict[str, dict[str, int]]


class LearnedWidths:
    """The widths of members that still change, or none.

    Args:
        ensemble: Trained in place.
        members: Those that are trained.
        optimizer: Of the ensemble's parameters.
        config: How it is trained.
        num_steps: Steps an epoch.
        loss: Terms of the members' losses; None for none.

    Raises:
        SuperWeightError: Widths that would change while something is shared, or under ``compile``; a loss or a learning
            rate of widths without any.
    """

    def __init__(
        self,
        ensemble: SuperWeightEnsemble,
        members: Sequence[str],
        optimizer: torch.optim.Optimizer,
        config: TrainConfig,
        num_steps: int,
        loss: WidthLoss | None = None,
    ) -> None:
        self._ensemble = ensemble
        self._optimizer = optimizer
        self._config = config
        self._num_steps = num_steps
        self._loss = loss
        learned = {
            f"{member}.{name}": found for member in members for name, found in _learned(ensemble, member).items()
        }
        self._free = {label: found for label, found in learned.items() if not found[1].frozen}
        self._changed = False
        if loss is not None and not learned:
            raise SuperWeightError("width_loss does nothing: no member has a learned width (make_adaptive gives it)")
        if config.width_rate != 1 and not learned:
            raise SuperWeightError("width_rate does nothing: no member has a learned width (make_adaptive gives it)")
        if self._free and ensemble.plan.clusters:
            raise SuperWeightError(
                f"the width of {next(iter(self._free))} would change while weights are shared: learn widths in an "
                "ensemble of independent_plan(members), then freeze_widths(member) and plan again"
            )
        if self._free and config.compile:
            raise SuperWeightError("compile is of members whose widths stay: leave it out, or freeze_widths(member)")

    def rates(self) -> Tensor:
        """(n,), float64: those of the widths that still change."""
        if not self._free:
            return torch.empty(0, dtype=torch.float64, device=next(self._ensemble.parameters(), torch.empty(0)).device)
        return torch.stack([width.rate.detach() for _, width in self._free.values()]).double()

    def follow(self, rates: Sequence[float], epoch: int, step: int) -> None:
        """Give each width the neurons that its rate asks for; the numbers of new ones are functions of the step.

        Args:
            rates: As :meth:`rates` gave them.
            epoch: Of the step.
            step: In its epoch.
        """
        seed = (self._config.seed * 100_003 + epoch) * 1_000_003 + step

        def generator_of(index: int) -> torch.Generator:
            return torch.Generator().manual_seed((seed * 10_007 + index) % 2**63)

        changed = follow_rates(self._free, rates, self._optimizer, generator_of)
        self._changed = self._changed or bool(changed)

    def settle(self) -> None:
        """Have the ensemble's plan tell the members' sizes as they are by now."""
        if self._changed:
            _adopt_sizes(self._ensemble)
            self._changed = False

    def sizes(self) -> Widths:
        """Neurons by member and path, also of frozen widths; empty where no member has any."""
        return sizes_of(self._ensemble)

    def penalty(self, epoch: int, step: int, num_rows: int) -> Callable[[nn.Module], Tensor] | None:
        """What a step adds to each member's loss; None for nothing.

        Args:
            epoch: Of the step, from 0.
            step: In its epoch, from 0.
            num_rows: Of its batch, over all processes: times the steps of an epoch, the samples of the data.
        """
        if self._loss is None:
            return None
        done = epoch * self._num_steps + step
        progress = done / (self._config.epochs * self._num_steps)
        return partial(self._loss, num_samples=num_rows * self._num_steps, progress=progress)


def sizes_of(ensemble: SuperWeightEnsemble) -> Widths:
    """Neurons of every learned width, by member and path."""
    found = {
        member: {name: width.width for name, (_, width) in _learned(ensemble, member).items()}
        for member in ensemble.member_names
    }
    return {member: widths for member, widths in found.items() if widths}


def restore_sizes(
    ensemble: SuperWeightEnsemble, optimizer: torch.optim.Optimizer, sizes: Mapping[str, Mapping[str, int]]
) -> None:
    """Put learned widths back where a checkpoint left them, as yet with any numbers.

    Raises:
        SuperWeightError: Widths that the members do not have, or beyond their bounds.
    """
    if sizes == sizes_of(ensemble):
        return
    for member, widths in sizes.items():
        places = _learned(ensemble, member) if member in ensemble.member_names else {}
        for name, size in widths.items():
            if name not in places:
                raise SuperWeightError(f"no learned width {member}.{name}")
            place, width = places[name]
            if not width.bounds[0] <= size <= width.bounds[1]:
                raise SuperWeightError(f"{member}.{name}: a width of {size} is outside its bounds {width.bounds}")
            if size != width.width:
                set_width(place, size, optimizer)
    _adopt_sizes(ensemble)


def _learned(ensemble: SuperWeightEnsemble, member: str) -> dict[str, tuple[Place, AdaptiveWidth]]:
    return learned_places(ensemble.members[member])


def _adopt_sizes(ensemble: SuperWeightEnsemble) -> None:
    plan = independent_plan(dict(ensemble.members.items()))
    ensemble.plan = plan
    ensemble.bank.set_plan(plan)
