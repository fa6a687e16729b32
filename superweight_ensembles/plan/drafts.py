"""Clusters of SuperWeights before the allocator has served them."""

from __future__ import annotations

from superweight_ensembles.plan.allocation import SlotNeed
from superweight_ensembles.plan.clusters import TargetGroup
from superweight_ensembles.plan.coefficients import EMBEDDING_SIZE, CoefficientForm, fixed_numbers, numbers_per_template
from superweight_ensembles.plan.plan import Cluster, PlannedSlot, PlannedTarget
from superweight_ensembles.plan.slots import ordered_shapes


def draft_cluster(group: TargetGroup, form: CoefficientForm) -> Cluster:
    """A cluster with one template a slot; targets ordered by slot so that their vectors stand side by side."""
    shapes = ordered_shapes(target.shape for target in group.targets)
    slot_of = {shape: index for index, shape in enumerate(shapes)}
    leaders = group.leaders if group.leaders is not None else range(len(group.targets))
    used: list[dict[int, int]] = [{} for _ in shapes]
    planned = []
    for target, leader in sorted(zip(group.targets, leaders), key=lambda pair: slot_of[pair[0].shape]):
        slot = slot_of[target.shape]
        vectors = tuple(used[index].setdefault(leader, len(used[index])) for index in range(slot + 1))
        planned.append(PlannedTarget(member=target.member, names=target.names, slot=slot, vectors=vectors))
    return Cluster(
        name=group.name,
        kind=group.targets[0].kind,
        slots=tuple(
            PlannedSlot(shape=shape, num_vectors=len(found), num_templates=1) for shape, found in zip(shapes, used)
        ),
        targets=tuple(planned),
        coefficients=form,
        embedding_size=EMBEDDING_SIZE if form == "embedding" else 0,
    )


def slot_needs(draft: Cluster, reserve_untied: bool) -> list[SlotNeed]:
    """What each slot of a cluster asks of the budget; with ``reserve_untied``, as if no coefficients were tied."""
    needs = []
    for index, (slot, block) in enumerate(zip(draft.slots, draft.blocks)):
        users = sum(target.slot >= index for target in draft.targets)
        vectors = users if reserve_untied else slot.num_vectors
        needs.append(
            SlotNeed(
                size=block.size,
                num_users=users,
                num_coefficients=numbers_per_template(draft.coefficients, block, vectors, draft.embedding_size),
                num_fixed=fixed_numbers(draft.coefficients, vectors, draft.embedding_size),
            )
        )
    return needs
