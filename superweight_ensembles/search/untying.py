"""Tied coefficients are un-tied where the gradients of their uses conflict.

Source: Teterwak et al., WACV 2024
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from superweight_ensembles.data import ImageData
from superweight_ensembles.ensemble import (
    SuperWeightBank,
    SuperWeightEnsemble,
    adopt_plan,
    decompose,
    slot_key,
)
from superweight_ensembles.errors import SuperWeightError, check_number, names_options
from superweight_ensembles.plan import Cluster, PlannedTarget, SharingPlan
from superweight_ensembles.search.gradients import (
    TargetTensors,
    check_search,
    check_trained,
    merged_sets,
    weight_gradients,
)
from superweight_ensembles.training import Batches, Hook, Objective, TrainState
from superweight_ensembles.training.distributed import current_processes

_LOG = logging.getLogger(__name__)


@names_options
@dataclass(frozen=True, kw_only=True)
class Untying(Hook):
    """A hook that un-ties coefficients once, on training images without augmentation (:func:`untie_coefficients`).

    Attributes:
        epoch: Epoch after which coefficients are un-tied; before the last one.
        threshold: Cosine above which two uses stay tied.
        max_batches: Number of training batches to take gradients on; all where None. Batches of your own are read as
            they are.

    Source: Teterwak et al., WACV 2024
    """

    epoch: int
    threshold: float = 0.9
    max_batches: int | None = None

    def __post_init__(self) -> None:
        check_number("epoch of Untying", self.epoch, whole=True, least=1)
        check_search(threshold=self.threshold, max_batches=self.max_batches)

    def start(self, state: TrainState) -> None:
        if self.epoch >= state.config.epochs:
            raise SuperWeightError(
                f"coefficients must be un-tied before the last epoch, or none would train; got epoch {self.epoch} "
                f"of {state.config.epochs}"
            )
        if not _tied_members(state.ensemble.plan):
            raise SuperWeightError("Untying has nothing to un-tie: no coefficients of the plan are tied")

    def after_epoch(self, state: TrainState) -> Mapping[str, Any]:
        """Move the ensemble and its optimiser to a plan without the ties that conflict."""
        if state.epoch == self.epoch:
            loader: Batches = state.loaders[0]
            if isinstance(state.data, ImageData):
                loader = state.data.loader(
                    "train", state.config.batch_size, device=state.fabric.device, shard=state.processes.shard
                )
            plan = untie_coefficients(
                state.ensemble,
                loader,
                threshold=self.threshold,
                max_batches=self.max_batches,
                objective=state.objective,
            )
            adopt_plan(state.ensemble, plan, state.optimizer)
        return {}

    def reshape(self, state: TrainState, plan: SharingPlan) -> None:
        if plan != state.ensemble.plan:
            adopt_plan(state.ensemble, plan, state.optimizer)


def untie_coefficients(
    ensemble: SuperWeightEnsemble,
    loader: Batches,
    *,
    threshold: float = 0.9,
    max_batches: int | None = None,
    objective: Objective | None = None,
) -> SharingPlan:
    """Give uses of a tied coefficient vector a vector of their own where their gradients conflict.

    Each use of each tied vector has a gradient of its own, <dL/dSuperWeight, template> for each template. Uses are
    merged while the cosine of two exceeds the threshold; the first set keeps the vector, each other set gets a new one.
    A use without any gradient conflicts with nothing and keeps the vector. Move the ensemble to the plan with
    :func:`adopt_plan`; the hook :class:`Untying` does both in a training. Groups that read a flat bank have no ties,
    and stay as they are.

    Args:
        ensemble: Ensemble that was trained for some epochs; it is not changed.
        loader: Batches of training images and labels; the paper reads the whole training set. In a process group, call
            this on every rank, each with its own share of the batches: all find one plan.
        threshold: Cosine above which two uses stay tied, -1 to 1.
        max_batches: Number of batches that are read at most; all where None.
        objective: Loss of a member, as :func:`superweight_ensembles.train` takes it; the task's where None.

    Returns:
        The ensemble's plan with more vectors; the same plan where nothing is tied or nothing conflicts.

    Raises:
        SuperWeightError: An untrained ensemble, a threshold outside [-1, 1], a loader without samples, gradients that
            are not finite or all zero, new vectors that the budget has no room for (states how many scalars), or
            ranks that find different plans.

    Source: Teterwak et al., WACV 2024
    Differs from paper: gradients are taken use by use (``.grad`` of a tied vector has summed them already); one new
    vector a set, and vectors that were never tied stay as they are.
    """
    if not isinstance(ensemble, SuperWeightEnsemble):
        raise SuperWeightError(f"untie_coefficients() takes a SuperWeightEnsemble; got {type(ensemble).__name__}")
    check_search(threshold=threshold)
    plan = ensemble.plan
    tied = _tied_members(plan)
    if not tied:
        return plan
    check_trained(ensemble)
    gradients = weight_gradients(
        ensemble, loader, [name for name in plan.member_names if name in tied], max_batches=max_batches,
        objective=objective,
    )  # fmt: skip
    clusters = tuple(
        _untie(ensemble.bank, index, cluster, gradients, threshold) if isinstance(cluster, Cluster) else cluster
        for index, cluster in enumerate(plan.clusters)
    )
    untied = replace(plan, clusters=clusters)
    current_processes().assert_equal_across_ranks(untied.fingerprint, "the sharing plan without ties")
    new = untied.num_coefficients - plan.num_coefficients
    left = plan.budget - plan.num_parameters
    if untied.spent > plan.budget:
        raise SuperWeightError(
            f"un-tying needs {new:,} more coefficients and the budget has {left:,} left: make the plan with "
            "reserve_untied=True, raise the budget, or lower the threshold"
        )
    _LOG.info("un-tied: %d more coefficient vectors, %d scalars", _num_vectors(untied) - _num_vectors(plan), new)
    return untied


def use_gradients(
    bank: SuperWeightBank, index: int, slot: int, targets: list[PlannedTarget], gradients: TargetTensors
) -> Tensor:
    """Gradient of each use of a coefficient vector, in the form of its slot: (uses, numbers in a vector)."""
    cluster = bank.plan.superweight_clusters[index]
    key, blocks = slot_key(index, slot), cluster.blocks
    made = torch.stack(
        [
            decompose(blocks[: target.slot + 1], target.of(gradients[target.member, target.name]))[slot]
            for target in targets
        ]
    )
    templates = bank.templates[key].detach().to(made)
    found = made @ templates.T
    return found @ bank.mixers[key].detach().to(found)[:, :-1] if cluster.coefficients == "embedding" else found


def _untie(bank: SuperWeightBank, index: int, cluster: Cluster, gradients: TargetTensors, threshold: float) -> Cluster:
    vectors = [list(target.vectors) for target in cluster.targets]
    slots = []
    for slot, planned in enumerate(cluster.slots):
        count = planned.num_vectors
        for vector in range(planned.num_vectors):
            uses = [place for place, found in enumerate(vectors) if slot < len(found) and found[slot] == vector]
            if len(uses) < 2:
                continue
            found = use_gradients(bank, index, slot, [cluster.targets[place] for place in uses], gradients)
            numbers = {0: vector}
            for place, number in zip(uses, _conflict_sets(found, threshold)):
                if number not in numbers:
                    numbers[number] = count
                    count += 1
                vectors[place][slot] = numbers[number]
        slots.append(replace(planned, num_vectors=count))
    targets = tuple(replace(target, vectors=tuple(found)) for target, found in zip(cluster.targets, vectors))
    return replace(cluster, slots=tuple(slots), targets=targets)


def _conflict_sets(gradients: Tensor, threshold: float) -> list[int]:
    """Sets of uses (n, numbers) that agree; uses without a gradient are in the first set."""
    silent = (gradients == 0).all(1).tolist()
    heard = [place for place, nothing in enumerate(silent) if not nothing]
    unit = torch.nn.functional.normalize(gradients[heard].double(), dim=1)
    sets = dict(zip(heard, merged_sets((unit @ unit.T).clamp(-1, 1), threshold)))
    return [sets.get(place, 0) for place in range(len(gradients))]


def _tied_members(plan: SharingPlan) -> set[str]:
    """The members that use a coefficient vector with several users."""
    tied = set()
    for cluster in plan.superweight_clusters.values():
        users = Counter(vector for target in cluster.targets for vector in enumerate(target.vectors))
        tied |= {one.member for one in cluster.targets if any(users[vector] > 1 for vector in enumerate(one.vectors))}
    return tied


def _num_vectors(plan: SharingPlan) -> int:
    return sum(slot.num_vectors for cluster in plan.superweight_clusters.values() for slot in cluster.slots)
