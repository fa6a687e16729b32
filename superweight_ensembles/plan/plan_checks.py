"""What a sharing plan must hold so that it can be built: numbers within bounds that do not contradict each other."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.plan.allocation import ALLOCATION_ORDERS
from superweight_ensembles.plan.generated_tensor import MOST_PARAMETERS

if TYPE_CHECKING:
    from superweight_ensembles.plan.group import SsnGroup
    from superweight_ensembles.plan.plan import Cluster, SharingPlan


def check_consistent(plan: SharingPlan, where: str) -> None:
    """Refuse a plan whose numbers contradict each other, in time that grows with its text.

    Args:
        plan: As it was read.
        where: It was read from, for messages.

    Raises:
        SuperWeightError: Names the field or the cluster.
    """

    def refuse(spot: str, why: str) -> SuperWeightError:
        return SuperWeightError(f"{where}, {spot}: {why}")

    if plan.budget_counts not in ("all", "templates"):
        raise refuse("budget_counts", f"must be 'all' or 'templates', not {plan.budget_counts!r:.80}")
    if plan.allocation not in ALLOCATION_ORDERS:
        raise refuse("allocation", f"must be one of {', '.join(ALLOCATION_ORDERS)}, not {plan.allocation!r:.80}")
    if len(set(plan.member_names)) != len(plan.members) or not plan.members:
        raise refuse("members", "needs at least one, each with a name of its own")
    if any(not 0 <= member.num_private <= member.num_parameters for member in plan.members):
        raise refuse("members", "counts must hold 0 <= num_private <= num_parameters")
    shared = dict.fromkeys(plan.member_names, 0)
    seen: set[tuple[str, str]] = set()
    named: set[str] = set()
    for cluster in plan.clusters:
        if cluster.name in named:
            raise refuse("clusters", f"two are named {cluster.name!r:.80}")
        named.add(cluster.name)
        if cluster.generator == "ssn":
            problem = _problem_of_group(cluster)
        else:
            problem = _problem_of_slots(cluster) or _problem_of_vectors(cluster)
        problem = problem or _problem_of_targets(cluster, shared, seen)
        if problem:
            raise refuse(f"cluster {cluster.name!r:.80}", problem)
        for target, shape in zip(cluster.targets, cluster.shapes):
            shared[target.member] += math.prod(shape)
    for member in plan.members:
        if member.num_private + shared[member.name] != member.num_parameters:
            raise refuse("members", f"{member.name!r:.80}: num_private and its targets do not add up to num_parameters")
    most = max(plan.num_parameters, plan.independent_parameters)
    if most > MOST_PARAMETERS:
        raise refuse("clusters", f"claim {most:,} parameters; at most {MOST_PARAMETERS:,} are taken")
    if plan.spent > plan.budget:
        raise refuse("budget", f"{plan.budget:,} is less than the plan costs, {plan.spent:,}")
    if any(slot.num_templates > plan.cap for cluster in plan.superweight_clusters.values() for slot in cluster.slots):
        raise refuse("cap", f"a slot holds more than {plan.cap} templates")


def _problem_of_slots(cluster: Cluster) -> str:
    if not cluster.slots or not cluster.targets:
        return "needs slots and targets"
    if any(len(slot.shape) < 2 or min(slot.shape) < 1 for slot in cluster.slots):
        return "slot shapes are (out, in, *kernel), all positive"
    if (cluster.embedding_size < 1) if cluster.coefficients == "embedding" else cluster.embedding_size != 0:
        return "embedding_size is positive with coefficients 'embedding', and 0 with the others"
    if len({slot.shape[2:] for slot in cluster.slots}) > 1:
        return "all slots must have one kernel"
    used: list[set[int]] = [set() for _ in cluster.slots]
    for target in cluster.targets:
        for found, vector in zip(used, target.vectors):
            found.add(vector)
    for index, (slot, block, found) in enumerate(zip(cluster.slots, cluster.blocks, used)):
        if block.size < 1 or slot.num_templates < 1:
            return f"slot {index} must add numbers and hold templates"
        if len(found) != slot.num_vectors or not found or min(found) != 0 or max(found) != slot.num_vectors - 1:
            return f"slot {index}: its {slot.num_vectors} coefficient vectors do not match their users"
    return ""


def _problem_of_group(group: SsnGroup) -> str:
    if not group.targets:
        return "needs targets"
    if any(len(shape) < 2 or min(shape) < 1 or math.prod(shape) > MOST_PARAMETERS for shape in group.shapes):
        return f"shapes are (out, in, *kernel), all positive, of {MOST_PARAMETERS:,} numbers at most"
    if group.bank_size < group.minimum_templates:
        return f"a bank of {group.bank_size:,} numbers is smaller than its layers can read, {group.minimum_templates:,}"
    if (group.mask_window < 1) if group.options.upsample == "mask" else group.mask_window != 0:
        return "mask_window is positive with upsample 'mask', and 0 with the others"
    if group.options.mask_window not in (0, group.mask_window):
        return f"mask_window is {group.mask_window}, but its options say {group.options.mask_window}"
    return ""


def _problem_of_vectors(cluster: Cluster) -> str:
    for target in cluster.targets:
        if not 0 <= target.slot < len(cluster.slots) or len(target.vectors) != target.slot + 1:
            return f"{target.label:.200} needs one coefficient vector for each slot up to its own"
    return ""


def _problem_of_targets(cluster: Cluster | SsnGroup, members: dict[str, int], seen: set[tuple[str, str]]) -> str:
    for target in cluster.targets:
        if target.member not in members or not target.names:
            return f"a target of member {target.member!r:.80} without a member or a name"
        names = {(target.member, name) for name in target.names}
        if seen & names:
            return f"{target.label:.200} stands there twice"
        seen |= names
    return ""
