"""A hook that gives learned widths as many neurons as their rates ask for, after each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from superweight_ensembles.ensemble import SuperWeightEnsemble
from superweight_ensembles.errors import SuperWeightError, names_options
from superweight_ensembles.models.adaptive import (
    AdaptiveWidth,
    Place,
    WidthLoss,
    follow_rates,
    learned_places,
    set_width,
)
from superweight_ensembles.plan import SharingPlan, independent_plan
from superweight_ensembles.training.hooks import Hook, Penalty, TrainState

Widths = dict[str, dict[str, int]]


@names_options
class LearnedWidths(Hook):
    """Members with learned widths follow their rates after every step; :func:`train` always adds this hook.

    Args:
        loss: Priors of the members' weights and rates, as terms of the training's loss; None for none.

    Raises:
        SuperWeightError: When the training starts: widths that would change while something is shared, or under
            ``compile``; a width loss, or a ``width_rate``, where no width is learned.

    Source: Errica et al., Adaptive Width Neural Networks, arXiv 2501.15889.
    """

    def __init__(self, loss: WidthLoss | None = None) -> None:
        if loss is not None and not isinstance(loss, WidthLoss):
            raise SuperWeightError(f"LearnedWidths takes a WidthLoss; got {type(loss).__name__}")
        self._loss = loss
        self._free: dict[str, tuple[Place, AdaptiveWidth]] = {}
        self._saved: Mapping[str, Any] = {}
        self._ensemble: SuperWeightEnsemble | None = None
        self._changed = False

    def settings(self) -> dict[str, Any]:
        return {"loss": None if self._loss is None else asdict(self._loss)}

    def start(self, state: TrainState) -> None:
        ensemble, config = state.ensemble, state.config
        learned = {
            f"{member}.{name}": found for member in state.members for name, found in _learned(ensemble, member).items()
        }
        for what, given in (("a width loss", self._loss is not None), ("width_rate", config.width_rate != 1)):
            if given and not learned:
                raise SuperWeightError(f"{what} does nothing: no member has a learned width (make_adaptive gives it)")
        self._ensemble, self._changed = ensemble, False
        self._free = {label: found for label, found in learned.items() if not found[1].frozen}
        if self._free and ensemble.plan.clusters:
            raise SuperWeightError(
                f"the width of {next(iter(self._free))} would change while weights are shared: learn widths in an "
                "ensemble of independent_plan(members), then freeze_widths(member) and plan again"
            )
        if self._free and config.compile:
            raise SuperWeightError("compile needs widths that stay as they are: leave it out, or freeze_widths(member)")

    def penalty(self, state: TrainState) -> Penalty | None:
        if self._loss is None:
            return None
        num_samples = state.num_rows * state.steps_per_epoch
        return partial(self._loss, num_samples=num_samples, progress=state.fraction_done)

    def scalars(self, state: TrainState) -> Tensor | None:
        """The rates of the widths that still change, (n,)."""
        if not self._free:
            return None
        rates = torch.stack([width.rate.detach() for _, width in self._free.values()])
        if state.is_split:  # all processes change shapes at once; only the ranks that run a member have its rates
            here = [label.partition(".")[0] in state.own_members for label in self._free]
            rates = rates * torch.tensor(here, device=rates.device)
            state.peers.all_reduce_([rates])
        return rates

    def after_step(self, state: TrainState, scalars: Sequence[float]) -> None:
        """Give each width the neurons that its rate asks for; the step's number seeds the weights of new neurons."""
        if not self._free:
            return
        step = (state.config.seed * 100_003 + state.epoch - 1) * 1_000_003 + state.progress.step

        def generator_of(index: int) -> torch.Generator:
            return torch.Generator().manual_seed((step * 10_007 + index) % 2**63)

        changed = follow_rates(self._free, scalars, state.optimizer, generator_of)
        self._changed = self._changed or bool(changed)

    def after_epoch(self, state: TrainState) -> Mapping[str, Any]:
        """Bring the plan up to date with the members' sizes; the record has the neurons of every width."""
        self._settle()
        sizes = sizes_of(state.ensemble)
        return {"widths": sizes} if sizes else {}

    def state_dict(self) -> Mapping[str, Any]:
        self._settle()
        return {} if self._ensemble is None else sizes_of(self._ensemble)

    def load_state_dict(self, content: Mapping[str, Any]) -> None:
        self._saved = content

    def reshape(self, state: TrainState, plan: SharingPlan) -> None:
        restore_sizes(state.ensemble, state.optimizer, self._saved)

    def _settle(self) -> None:
        if self._changed and self._ensemble is not None:
            _adopt_sizes(self._ensemble)
            self._changed = False


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
    """Give learned widths the sizes in a checkpoint; their weights are read afterwards."""
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
    ensemble.set_plan(independent_plan(dict(ensemble.members.items())))
