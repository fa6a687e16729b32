"""An ensemble moves to a plan with more coefficient vectors in the middle of its training."""

from __future__ import annotations

from dataclasses import replace
from operator import itemgetter

import torch
from torch import Tensor, nn

from superweight_ensembles.ensemble.ensemble import SuperWeightEnsemble
from superweight_ensembles.ensemble.generation import slot_key
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.models import exchange_parameter
from superweight_ensembles.plan import Cluster, SharingPlan


@torch.no_grad()
def adopt_plan(
    ensemble: SuperWeightEnsemble, plan: SharingPlan, optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Move an ensemble to a plan that un-ties some of its coefficients (:func:`untie_coefficients`).

    Every generated weight keeps its value: a new vector starts as a copy of the one that it leaves. The optimiser goes
    on with the new parameters in the groups of the old ones; rows that stay keep their moments, new rows start with the
    moments of the vector that they leave. Schedules are not touched; gradients of what is split are dropped.

    Args:
        ensemble: Changed in place.
        plan: Differs from the ensemble's plan only in coefficient vectors of SuperWeights, each of them split from one
            old vector.
        optimizer: Of the ensemble's parameters; None outside of training.

    Raises:
        SuperWeightError: A plan that differs in anything else; an optimiser that does not hold the coefficients.

    Source: Teterwak et al., WACV 2024
    Differs from paper: the published code gives new vectors no moments, and trains the last of them alone.
    """
    if not isinstance(plan, SharingPlan):
        raise SuperWeightError(f"plan must be a SharingPlan; got {plan!r:.80}")
    if plan.spent > plan.budget:
        raise SuperWeightError(f"the plan costs {plan.spent:,}, more than its budget of {plan.budget:,}")
    if _without_vectors(plan) != _without_vectors(ensemble.plan):
        raise SuperWeightError(
            "the plan differs from the ensemble's in more than coefficient vectors: build a new ensemble"
        )
    bank = ensemble.bank
    moves: dict[str, Tensor] = {}
    for (index, old), new in zip(ensemble.plan.superweight_clusters.items(), plan.superweight_clusters.values()):
        for slot in range(len(old.slots)):
            origins = _origins(old, new, slot)
            if origins != list(range(old.slots[slot].num_vectors)):
                moves[slot_key(index, slot)] = torch.tensor(
                    origins, device=bank.coefficients[slot_key(index, slot)].device
                )
    held = {id(parameter) for group in (optimizer.param_groups if optimizer else []) for parameter in group["params"]}
    for key in moves:
        if optimizer is not None and bank.coefficients[key].requires_grad and id(bank.coefficients[key]) not in held:
            raise SuperWeightError("the optimizer does not hold this ensemble's coefficients")
    for key, rows in moves.items():
        before = bank.coefficients[key]
        after = nn.Parameter(before[rows], requires_grad=before.requires_grad)
        bank.coefficients[key] = after
        if optimizer is not None:
            exchange_parameter(optimizer, before, after, itemgetter(rows))
    bank.set_plan(plan)
    ensemble.plan = plan


def _origins(old: Cluster, new: Cluster, slot: int) -> list[int]:
    """For each new vector of a slot, the old one whose users it serves."""
    found: dict[int, set[int]] = {}
    for before, after in zip(old.targets, new.targets):
        if before.slot >= slot:
            found.setdefault(after.vectors[slot], set()).add(before.vectors[slot])
    if any(len(sources) > 1 for sources in found.values()):
        raise SuperWeightError(
            f"cluster {new.name!r}: the plan ties coefficients that were apart; only un-tying keeps values"
        )
    return [next(iter(found[vector])) for vector in range(new.slots[slot].num_vectors)]


def _without_vectors(plan: SharingPlan) -> SharingPlan:
    return replace(
        plan,
        clusters=tuple(
            replace(
                cluster,
                slots=tuple(replace(slot, num_vectors=1) for slot in cluster.slots),
                targets=tuple(replace(target, vectors=()) for target in cluster.targets),
            )
            if isinstance(cluster, Cluster)
            else cluster
            for cluster in plan.clusters
        ),
    )
