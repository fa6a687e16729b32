"""What each group of targets gets under one budget: templates for its slots, a flat bank, or plain weights.

SuperWeights need at least one template a slot. Where a budget is too small for that, every group is offered a share in
proportion to its layers' sizes, but never more than its minimum: groups whose share reaches their minimum become
SuperWeights, the others read flat banks made of the rest. So the sharing changes little as a budget passes the minimum.
At a quarter of a network's parameters, a bank for each group of one shape trained better than one bank for all; at a
tenth it trained as well, and at a twentieth and below worse (benchmarks/npas.py).

Source: Teterwak et al., WACV 2024 (templates a slot, in the published code's two phases); Plummer et al., ICLR 2022,
section 3 (shares in proportion to sizes); the mixture is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count

from superweight_ensembles.errors import SuperWeightError, check_number, unknown_name
from superweight_ensembles.plan.clusters import TargetGroup, mixed_kernels
from superweight_ensembles.plan.sharing_plan import (
    BUDGET_COUNTS,
    RETIRED_CHANNEL,
    Cluster,
    PlannedCluster,
    PlannedSlot,
    PlannedTarget,
)
from superweight_ensembles.plan.slots import EMBEDDING_SIZE, CoefficientForm, Shape, coefficient_count, ordered_shapes
from superweight_ensembles.plan.ssn import SsnGroup, SsnOptions, bank_within, least_cost
from superweight_ensembles.plan.targets import MOST_SLOTS_OF_KERNELS, MOST_TEMPLATES

GENERATORS = ("auto", "superweight", "ssn")
COEFFICIENT_KINDS = ("own", "tied", "embedding")
_SEPARATE_BANKS = 0.075  # numbers a weight: above it, one flat bank a group trains better, below it one for all
_MOSTLY_BANK = 0.9  # share of a budget: if coefficients of tiles leave the bank less, tiles have none


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotNeed:
    """Costs of a slot, as the allocator sees them."""

    size: int  # numbers in one template
    num_users: int  # targets that compose from this slot
    num_coefficients: int  # coefficient scalars that each template brings along
    num_fixed: int = 0  # coefficient scalars that the slot has in any case

    def template_cost(self, count_all: bool) -> int:
        """Trainable scalars that one more template costs."""
        return self.size + (self.num_coefficients if count_all else 0)


def minimum_cost(needs: Sequence[SlotNeed], count_all: bool = True) -> int:
    """Trainable scalars with one template a slot: the minimum of a budget."""
    fixed = sum(need.num_fixed for need in needs) if count_all else 0
    return fixed + sum(need.template_cost(count_all) for need in needs)


def allocate(needs: Sequence[SlotNeed], budget: int, *, cap: int = 8, count_all: bool = True) -> tuple[int, ...]:
    """Number of templates of each slot, ``cap`` at most, for a budget of ``minimum_cost(needs)`` or more.

    Source: Teterwak et al., WACV 2024

    Example:
        >>> slots = [
        ...     SlotNeed(size=10, num_users=3, num_coefficients=3),
        ...     SlotNeed(size=30, num_users=3, num_coefficients=3),
        ... ]
        >>> allocate(slots, 92, cap=3)
        (2, 2)
    """
    counts = [1] * len(needs)
    costs = [need.template_cost(count_all) for need in needs]
    left = budget - minimum_cost(needs, count_all)
    assert left >= 0, "the caller compares the budget with minimum_cost"
    # First a second template to every slot with more than one user, then a third to every slot with more than two, and
    # so on; then the same whatever the number of users.
    for limits in ([min(cap, need.num_users) for need in needs], [cap] * len(needs)):
        for sweep in range(1, cap):
            for index, cost in enumerate(costs):
                if counts[index] == sweep < limits[index] and cost <= left:
                    counts[index] += 1
                    left -= cost
            if max(counts, default=0) <= sweep:
                break  # no slot has as many as a later sweep asks for
    return tuple(counts)


@dataclass(frozen=True, kw_only=True)
class BudgetPolicy:
    """How a budget may be spent on groups of targets: options of :func:`plan_sharing`, checked."""

    generator: str = "superweight"
    ssn: SsnOptions | None = None
    cap: int = 8
    coefficients: str = "own"
    reserve_untied: bool = False
    budget_counts: str = "all"

    def __post_init__(self) -> None:
        if not isinstance(self.generator, str):
            raise SuperWeightError(
                f"generator is one of {', '.join(GENERATORS)} (a torch.Generator goes as rng=); "
                f"got {self.generator!r:.60}"
            )
        if self.generator not in GENERATORS:
            raise unknown_name("generator", self.generator, GENERATORS)
        if self.ssn is not None and not isinstance(self.ssn, SsnOptions):
            raise SuperWeightError(f"ssn must be SsnOptions; got {self.ssn!r:.80}")
        check_number("cap", self.cap, whole=True, least=1, most=MOST_TEMPLATES)
        if self.coefficients == "channel":
            raise SuperWeightError(f"coefficients {RETIRED_CHANNEL}")
        if self.coefficients not in COEFFICIENT_KINDS:
            raise unknown_name("coefficients", self.coefficients, COEFFICIENT_KINDS)
        if self.reserve_untied and self.coefficients != "tied":
            raise SuperWeightError(f"reserve_untied does nothing with coefficients {self.coefficients!r}: leave it out")
        if self.budget_counts not in BUDGET_COUNTS:
            raise SuperWeightError(f"budget_counts must be 'all' or 'templates'; got {self.budget_counts!r}")

    @property
    def count_all(self) -> bool:
        """Whether coefficients count too, or templates alone."""
        return self.budget_counts == "all"

    @property
    def coefficient_form(self) -> CoefficientForm:
        """Form of the coefficients of SuperWeights; tied ones are vectors too."""
        return "embedding" if self.coefficients == "embedding" else "vector"

    def superweight_minimum(self, group: TargetGroup) -> int:
        """Cost of a group with one template a slot."""
        return minimum_cost(_slot_needs(_draft_cluster(group, self), self), self.count_all)

    def ssn_options(self, shapes: tuple[Shape, ...], budget: int) -> SsnOptions:
        """How layers of these shapes read a bank: as asked for, else by default, or tiled where ``auto`` must save."""
        if self.ssn is not None:
            return self.ssn
        mixed, tiled = SsnOptions(), SsnOptions(upsample="repeat")
        if self.generator == "ssn":
            return mixed
        if budget < least_cost(shapes, mixed, self.count_all):
            return tiled
        size, _ = bank_within(shapes, budget, mixed, self.count_all)
        return mixed if size >= _MOSTLY_BANK * budget or budget >= sum(map(math.prod, shapes)) else tiled

    def least(self, groups: Sequence[TargetGroup]) -> int:
        """Least cost of the groups together."""
        if self.generator == "superweight":
            return sum(self.superweight_minimum(group) for group in groups)
        if self.generator == "auto":
            shapes = tuple(shape for group in groups for shape in group.shapes)
            flat = least_cost(shapes, self.ssn_options(shapes, 0), self.count_all) if shapes else 0
            if any(mixed_kernels(group) for group in groups):
                return flat
            return min(flat, sum(self.superweight_minimum(group) for group in groups))
        return sum(self.least_bank(group) for group in groups)

    def least_bank(self, group: TargetGroup) -> int:
        """Least cost of a group of a Shapeshifter Network; a single layer may be a plain weight."""
        fewest = least_cost(group.shapes, self.ssn_options(group.shapes, 0), self.count_all)
        return min(fewest, group.num_weights) if _may_be_plain(group) else fewest

    def bank_cost(self, bank: PlannedCluster) -> int:
        """Cost of a group of a Shapeshifter Network, as this policy counts."""
        return bank.num_templates + (bank.num_coefficients if self.count_all else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """Clusters, in the order of their groups, and groups of one layer that keep a plain weight of their member."""

    clusters: tuple[PlannedCluster, ...]
    plain: tuple[TargetGroup, ...] = ()


def allocate_generators(groups: Sequence[TargetGroup], budget: int, policy: BudgetPolicy) -> Generated:
    """Turn groups into clusters of a plan, for a budget of ``policy.least(groups)`` or more."""
    if policy.generator == "ssn":
        return _flat_banks(groups, budget, policy)
    minima = [math.inf if mixed_kernels(group) else policy.superweight_minimum(group) for group in groups]
    if policy.generator == "superweight" or budget >= sum(minima):
        return Generated(clusters=_superweights(groups, budget, policy))
    return _mixed(groups, minima, budget, policy)


def _mixed(groups: Sequence[TargetGroup], minima: Sequence[float], budget: int, policy: BudgetPolicy) -> Generated:
    """SuperWeights for the groups whose share reaches their minimum, flat banks for the others."""
    # A share stops at its group's minimum, unless some group cannot be SuperWeights: then shares have no upper bound.
    most = minima if math.inf not in minima else [math.inf] * len(groups)
    shares = proportional_shares([group.num_weights for group in groups], [0] * len(groups), most, budget)
    chosen = [group for group, share, minimum in zip(groups, shares, minima) if share >= minimum]
    rest = [group for group in groups if group not in chosen]
    left = budget - sum(share for share, minimum in zip(shares, minima) if share >= minimum)
    if left < policy.least(rest):
        return Generated(clusters=(_bank(_joined(groups, groups), budget, policy),))
    separate = max(
        sum(policy.least_bank(group) for group in rest), _SEPARATE_BANKS * sum(one.num_weights for one in rest)
    )
    flat = _flat_banks(rest if left >= separate else [_joined(rest, groups)], left, policy)
    spent = sum(policy.bank_cost(bank) for bank in flat.clusters) + sum(group.num_weights for group in flat.plain)
    place = {target.label: index for index, group in enumerate(groups) for target in group.targets}
    made = [*_superweights(chosen, budget - spent, policy), *flat.clusters]
    made.sort(key=lambda cluster: place[cluster.targets[0].label])
    return Generated(clusters=tuple(made), plain=flat.plain)


def _superweights(groups: Sequence[TargetGroup], budget: int, policy: BudgetPolicy) -> tuple[Cluster, ...]:
    drafts = [_draft_cluster(group, policy) for group in groups]
    needs = [need for draft in drafts for need in _slot_needs(draft, policy)]
    counts = iter(allocate(needs, budget, cap=policy.cap, count_all=policy.count_all))
    return tuple(
        replace(draft, slots=tuple(replace(slot, num_templates=next(counts)) for slot in draft.slots))
        for draft in drafts
    )


def _draft_cluster(group: TargetGroup, policy: BudgetPolicy) -> Cluster:
    """A cluster with one template a slot; targets ordered by slot, so that their vectors stand side by side."""
    kinds, kernels = {target.kind for target in group.targets}, {target.kernel for target in group.targets}
    flat = len(kinds) > 1 and all(math.prod(kernel) == 1 for kernel in kernels)
    most = 0 if flat else max(map(len, kernels))
    own = {target: target.shape[:2] + (() if flat else _padded(target.kernel, most)) for target in group.targets}
    shapes = ordered_shapes(own.values())
    if len(kernels) > 1 and not flat and len(shapes) > MOST_SLOTS_OF_KERNELS:
        raise SuperWeightError(
            f"cluster {group.name!r} has {len(shapes)} shapes of several kernels; at most "
            f"{MOST_SLOTS_OF_KERNELS} are taken: use more clusters, or kernels 'apart'"
        )
    slot_of = {shape: index for index, shape in enumerate(shapes)}
    leaders = group.leaders if group.leaders is not None else range(len(group.targets))
    used: list[dict[int, int]] = [{} for _ in shapes]
    planned = []
    for target, leader in sorted(zip(group.targets, leaders), key=lambda pair: slot_of[own[pair[0]]]):
        slot = slot_of[own[target]]
        vectors = tuple(used[index].setdefault(leader, len(used[index])) for index in range(slot + 1))
        ones = len(target.shape) - len(own[target])
        planned.append(
            PlannedTarget(
                member=target.member, names=target.names, part=target.part, slot=slot, vectors=vectors, ones=ones
            )
        )
    return Cluster(
        name=group.name,
        kind=kinds.pop() if len(kinds) == 1 else "matrix" if flat else "dense",
        slots=tuple(
            PlannedSlot(shape=shape, num_vectors=len(found), num_templates=1) for shape, found in zip(shapes, used)
        ),
        targets=tuple(planned),
        coefficients=policy.coefficient_form,
        embedding_size=EMBEDDING_SIZE if policy.coefficient_form == "embedding" else 0,
    )


def _padded(kernel: Shape, dimensions: int) -> Shape:
    """A kernel in more dimensions: (3,) becomes (1, 3), the middle row of (3, 3), and a matrix (1, 1), its centre."""
    return (1,) * (dimensions - len(kernel)) + kernel


def _slot_needs(draft: Cluster, policy: BudgetPolicy) -> list[SlotNeed]:
    """Costs of each slot of a cluster; with ``reserve_untied``, as if no coefficients were tied."""
    needs = []
    for index, (slot, block) in enumerate(zip(draft.slots, draft.blocks)):
        users = sum(target.slot >= index for target in draft.targets)
        vectors = users if policy.reserve_untied else slot.num_vectors
        fixed, first = (coefficient_count(number, vectors, draft.embedding_size) for number in (0, 1))
        needs.append(SlotNeed(size=block.size, num_users=users, num_coefficients=first - fixed, num_fixed=fixed))
    return needs


def _flat_banks(groups: Sequence[TargetGroup], budget: int, policy: BudgetPolicy) -> Generated:
    """A bank for each group; a group of one layer is a plain weight where its share is as large as the layer."""
    most = [group.num_weights if _may_be_plain(group) else math.inf for group in groups]
    least = [policy.least_bank(group) for group in groups]
    shares = proportional_shares([group.num_weights for group in groups], least, most, budget)
    is_plain = [share >= size for share, size in zip(shares, most)]
    left = budget - sum(share for share, plain in zip(shares, is_plain) if plain)
    banks: dict[int, SsnGroup] = {}
    waiting = sorted((index for index, plain in enumerate(is_plain) if not plain), key=lambda index: shares[index])
    for index in waiting:  # the largest, at the end, gets what rounding left
        banks[index] = _bank(groups[index], left if index == waiting[-1] else shares[index], policy)
        left -= policy.bank_cost(banks[index])
    return Generated(
        clusters=tuple(banks[index] for index in sorted(banks)),
        plain=tuple(group for group, plain in zip(groups, is_plain) if plain),
    )


def _may_be_plain(group: TargetGroup) -> bool:
    """Whether a group is one whole tensor, which can stay a plain weight."""
    return len(group.targets) == 1 and group.targets[0].part is None


def _bank(group: TargetGroup, budget: int, policy: BudgetPolicy) -> SsnGroup:
    options = policy.ssn_options(group.shapes, budget)
    size, mask_window = bank_within(group.shapes, budget, options, policy.count_all)
    return SsnGroup(name=group.name, bank_size=size, mask_window=mask_window, options=options, targets=group.targets)


def _joined(some: Sequence[TargetGroup], groups: Sequence[TargetGroup]) -> TargetGroup:
    """One group of all targets, with a name that no group has; a group that is alone is returned as it is."""
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
    """Split a budget in proportion to sizes, each share within its bounds; all least ones must fit together.

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
