"""Which generator each group of targets gets under one budget: SuperWeights, a flat bank, or ordinary weights.

SuperWeights need one template a slot. Where a budget is below that, every group is offered numbers in proportion to its
layers' sizes, but never more than that minimum: groups that reach it are SuperWeights, the others read flat banks of
the rest. So the sharing changes little as a budget passes the minimum. A bank for each group of one shape trained
better than one bank for all at a quarter of a network's parameters, as well at a tenth, and worse at a twentieth and
below (benchmarks/npas.py).

Source: Plummer et al., ICLR 2022, section 3 (shares in proportion to sizes); the mixture is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count

from superweight_ensembles.plan.allocation import SlotNeed, allocate, minimum_cost
from superweight_ensembles.plan.clusters import TargetGroup, mixed_kernels
from superweight_ensembles.plan.sharing_plan import Cluster, PlannedCluster, PlannedSlot, PlannedTarget
from superweight_ensembles.plan.slots import (
    EMBEDDING_SIZE,
    CoefficientForm,
    Shape,
    fixed_numbers,
    numbers_per_template,
    ordered_shapes,
)
from superweight_ensembles.plan.ssn import SsnGroup, SsnOptions, SsnTarget, bank_within, group_cost, least_cost

# FOLDED plan.drafts: Clusters of SuperWeights before the allocator has served them.


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


GENERATORS = ("auto", "superweight", "ssn")
_APART = 0.075  # numbers a weight: above, a flat bank for each group trains better, below it one for all
_MOSTLY_BANK = 0.9  # of a budget: where coefficients of tiles would take more than the rest, tiles have none


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """How a budget may be spent on groups.

    Attributes:
        generator: Of :data:`GENERATORS`.
        ssn: How layers read a flat bank; what suits the budget where None.
        form: In which SuperWeights hold their coefficients.
        cap: Templates a slot at most.
        allocation: Which slots get theirs first.
        everything: Whether coefficients count as well, or templates alone.
        reserve_untied: Whether tied coefficients may be un-tied later.
    """

    generator: str = "superweight"
    ssn: SsnOptions | None = None
    form: CoefficientForm = "vector"
    cap: int = 8
    allocation: str = "sweeps"
    everything: bool = True
    reserve_untied: bool = False

    def superweight_minimum(self, group: TargetGroup) -> int:
        """What the group costs with one template a slot."""
        return minimum_cost(slot_needs(draft_cluster(group, self.form), self.reserve_untied), self.everything)

    def reading(self, shapes: tuple[Shape, ...], budget: int) -> SsnOptions:
        """How layers of these shapes read a bank: as asked for, else in the way that costs a small budget least."""
        if self.ssn is not None:
            return self.ssn
        mixed, tiled = SsnOptions(), SsnOptions(upsample="repeat")
        if self.generator == "ssn":
            return mixed
        if budget < least_cost(shapes, mixed, self.everything):
            return tiled
        size, _ = bank_within(shapes, budget, mixed, self.everything)
        return mixed if size >= _MOSTLY_BANK * budget or budget >= sum(map(math.prod, shapes)) else tiled

    def least(self, groups: Sequence[TargetGroup]) -> int:
        """The least that the groups cost together."""
        if self.generator == "superweight":
            return sum(self.superweight_minimum(group) for group in groups)
        if self.generator == "auto":
            shapes = tuple(shape for group in groups for shape in _shapes(group))
            flat = least_cost(shapes, self.reading(shapes, 0), self.everything) if shapes else 0
            if any(mixed_kernels(group) for group in groups):
                return flat
            return min(flat, sum(self.superweight_minimum(group) for group in groups))
        return sum(self.least_bank(group) for group in groups)

    def least_bank(self, group: TargetGroup) -> int:
        """The least that a group of a Shapeshifter Network costs; a single layer may be an ordinary weight."""
        shapes = _shapes(group)
        fewest = least_cost(shapes, self.reading(shapes, 0), self.everything)
        return min(fewest, _size(group)) if len(group.targets) == 1 else fewest


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """What a budget bought.

    Attributes:
        clusters: In the order of their groups.
        ordinary: Groups of one layer that keep an ordinary weight, their member's own.
    """

    clusters: tuple[PlannedCluster, ...]
    ordinary: tuple[TargetGroup, ...] = ()


def spend(groups: Sequence[TargetGroup], budget: int, how: Spending) -> Generated:
    """Turn groups into clusters of a plan.

    Args:
        groups: Targets that share.
        budget: Trainable scalars for them, at least ``how.least(groups)`` (the caller compares them).
        how: What they may become.
    """
    if how.generator == "ssn":
        banks, ordinary = _flat_banks(groups, budget, how)
        return Generated(clusters=banks, ordinary=ordinary)
    minima = [math.inf if mixed_kernels(group) else how.superweight_minimum(group) for group in groups]
    if how.generator == "superweight" or budget >= sum(minima):
        return Generated(clusters=_superweights(groups, budget, how))
    return _mixed(groups, minima, budget, how)


def _mixed(groups: Sequence[TargetGroup], minima: Sequence[float], budget: int, how: Spending) -> Generated:
    """SuperWeights for the groups whose share reaches their minimum, flat banks for the others."""
    # Groups that cannot be SuperWeights take what is theirs; without such, SuperWeights stop at their minimum.
    most = minima if math.inf not in minima else [math.inf] * len(groups)
    shares = proportional_shares([_size(group) for group in groups], [0] * len(groups), most, budget)
    chosen = [group for group, share, minimum in zip(groups, shares, minima) if share >= minimum]
    rest = [group for group in groups if group not in chosen]
    left = budget - sum(share for share, minimum in zip(shares, minima) if share >= minimum)
    if left < how.least(rest):
        return Generated(clusters=(_bank(_joined(groups, groups), budget, how),))
    apart = max(sum(how.least_bank(group) for group in rest), _APART * sum(_size(group) for group in rest))
    banks, ordinary = _flat_banks(rest if left >= apart else [_joined(rest, groups)], left, how)
    spent = sum(_cost(bank, how) for bank in banks) + sum(_size(group) for group in ordinary)
    place = {target.label: index for index, group in enumerate(groups) for target in group.targets}
    made: list[PlannedCluster] = [*_superweights(chosen, budget - spent, how), *banks]
    made.sort(key=lambda cluster: place[cluster.targets[0].label])
    return Generated(clusters=tuple(made), ordinary=ordinary)


def _flat_banks(
    groups: Sequence[TargetGroup], budget: int, how: Spending
) -> tuple[tuple[SsnGroup, ...], tuple[TargetGroup, ...]]:
    """A bank a group; and the groups of one layer whose share is as large: ordinary weights, their member's own."""
    most = [_size(group) if len(group.targets) == 1 else math.inf for group in groups]
    least = [how.least_bank(group) for group in groups]
    shares = proportional_shares([_size(group) for group in groups], least, most, budget)
    ordinary = [share >= size for share, size in zip(shares, most)]
    left = budget - sum(share for share, there in zip(shares, ordinary) if there)
    banks: dict[int, SsnGroup] = {}
    waiting = sorted((index for index, there in enumerate(ordinary) if not there), key=lambda index: shares[index])
    for index in waiting:  # what rounding left is for the largest
        banks[index] = _bank(groups[index], left if index == waiting[-1] else shares[index], how)
        left -= _cost(banks[index], how)
    own = tuple(group for group, there in zip(groups, ordinary) if there)
    return tuple(banks[index] for index in sorted(banks)), own


def _joined(some: Sequence[TargetGroup], groups: Sequence[TargetGroup]) -> TargetGroup:
    """All targets of some groups as one, with a name that none of the groups has; one that is alone keeps its own."""
    if len(some) == 1:
        return some[0]
    taken = {group.name for group in groups}
    names = (f"flat bank {number}" if number else "flat bank" for number in count())
    return TargetGroup(
        name=next(name for name in names if name not in taken),
        targets=tuple(target for group in some for target in group.targets),
    )


def proportional_shares(
    sizes: Sequence[float], least: Sequence[float], most: Sequence[float], budget: int
) -> tuple[int, ...]:
    """Split a budget in proportion to sizes, each share within its bounds.

    Args:
        sizes: Of what shares.
        least: That each needs; together no more than the budget.
        most: That each takes.
        budget: To split.

    Example:
        >>> proportional_shares([100, 100, 200], [0, 30, 0], [math.inf, math.inf, 40], 100)
        (30, 30, 40)
    """

    def shares(factor: float) -> list[int]:
        return [int(min(max(math.floor(factor * size), low), high)) for size, low, high in zip(sizes, least, most)]

    low, high = 0.0, 2.0 * budget + 1.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(shares(middle)) <= budget else (low, middle)
    return tuple(shares(low))


def _superweights(groups: Sequence[TargetGroup], budget: int, how: Spending) -> tuple[Cluster, ...]:
    drafts = [draft_cluster(group, how.form) for group in groups]
    needs = [need for draft in drafts for need in slot_needs(draft, how.reserve_untied)]
    counts = iter(allocate(needs, budget, cap=how.cap, count_coefficients=how.everything, order=how.allocation))
    return tuple(
        replace(draft, slots=tuple(replace(slot, num_templates=next(counts)) for slot in draft.slots))
        for draft in drafts
    )


def _bank(group: TargetGroup, budget: int, how: Spending) -> SsnGroup:
    options = how.reading(_shapes(group), budget)
    size, mask_window = bank_within(_shapes(group), budget, options, how.everything)
    return SsnGroup(
        name=group.name,
        bank_size=size,
        mask_window=mask_window,
        options=options,
        targets=tuple(
            SsnTarget(member=target.member, names=target.names, kind=target.kind, shape=target.shape)
            for target in group.targets
        ),
    )


def _cost(bank: SsnGroup, how: Spending) -> int:
    return group_cost(bank.shapes, bank.bank_size, bank.options, bank.mask_window, how.everything)


def _shapes(group: TargetGroup) -> tuple[Shape, ...]:
    return tuple(target.shape for target in group.targets)


def _size(group: TargetGroup) -> int:
    return sum(math.prod(target.shape) for target in group.targets)
