"""Which generator each group of targets gets under one budget: SuperWeights, a flat bank, or ordinary weights.

SuperWeights need one template a slot. Where a budget is below that, every group gets numbers in proportion to its
layers' sizes, but SuperWeights never more than their minimum: groups that reach it are SuperWeights, the others read a
bank smaller than that. So the sharing changes little as a budget passes the minimum.

Source: Plummer et al., ICLR 2022, section 3 (shares in proportion to sizes); the mixture is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from superweight_ensembles.allocation import allocate, minimum_cost
from superweight_ensembles.clusters import TargetGroup, mixed_kernels
from superweight_ensembles.coefficients import CoefficientForm
from superweight_ensembles.drafts import draft_cluster, slot_needs
from superweight_ensembles.plan import Cluster, PlannedCluster
from superweight_ensembles.ssn.bank_size import bank_within, group_cost, least_cost
from superweight_ensembles.ssn.group import SsnGroup, SsnTarget
from superweight_ensembles.ssn.options import SsnOptions

GENERATORS = ("auto", "superweight", "ssn")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """How a budget may be spent on groups.

    Attributes:
        generator: Of :data:`GENERATORS`.
        ssn: Of groups that read a flat bank.
        form: In which SuperWeights hold their coefficients.
        cap: Templates a slot at most.
        allocation: Which slots get theirs first.
        everything: Whether coefficients count as well, or templates alone.
        reserve_untied: Whether tied coefficients may be un-tied later.
    """

    generator: str = "superweight"
    ssn: SsnOptions = field(default_factory=SsnOptions)
    form: CoefficientForm = "vector"
    cap: int = 8
    allocation: str = "sweeps"
    everything: bool = True
    reserve_untied: bool = False

    def superweight_minimum(self, group: TargetGroup) -> int:
        """What the group costs with one template a slot."""
        return minimum_cost(slot_needs(draft_cluster(group, self.form), self.reserve_untied), self.everything)

    def least(self, group: TargetGroup) -> int:
        """The least that the group costs."""
        if self.generator == "superweight":
            return self.superweight_minimum(group)
        fewest = least_cost(_shapes(group), self.ssn, self.everything)
        if self.generator == "ssn" and len(group.targets) == 1:
            return min(fewest, _size(group))
        return fewest if mixed_kernels(group) else min(fewest, self.superweight_minimum(group))


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
        budget: Trainable scalars for them, at least the sum of ``how.least`` (the caller compares them).
        how: What they may become.
    """
    minima = [math.inf if mixed_kernels(group) else how.superweight_minimum(group) for group in groups]
    if how.generator == "superweight" or (how.generator == "auto" and budget >= sum(minima)):
        return Generated(clusters=_superweights(groups, budget, how))
    ssn_alone = how.generator == "ssn"
    if ssn_alone:
        most = [_size(group) if len(group.targets) == 1 else math.inf for group in groups]
    else:
        most = minima if math.inf not in minima else [math.inf] * len(groups)
    shares = proportional_shares(
        [_size(group) for group in groups], [how.least(group) for group in groups], most, budget
    )
    reached = [share >= (most if ssn_alone else minima)[index] for index, share in enumerate(shares)]
    left = budget - sum(share for share, there in zip(shares, reached) if there)
    banks: dict[int, SsnGroup] = {}
    waiting = sorted((index for index, there in enumerate(reached) if not there), key=lambda index: shares[index])
    for index in waiting:  # what rounding left is for the largest, or for templates
        last = index == waiting[-1] and not any(reached)
        banks[index] = _bank(groups[index], left if last else shares[index], how)
        left -= _cost(banks[index], how)
    if ssn_alone:
        return Generated(
            clusters=tuple(banks[index] for index in sorted(banks)),
            ordinary=tuple(group for group, there in zip(groups, reached) if there),
        )
    chosen = [group for group, there in zip(groups, reached) if there]
    pool = left + sum(share for share, there in zip(shares, reached) if there)
    superweights = iter(_superweights(chosen, pool, how)) if chosen else iter(())
    return Generated(
        clusters=tuple(next(superweights) if there else banks[index] for index, there in enumerate(reached))
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
    size, mask_window = bank_within(_shapes(group), budget, how.ssn, how.everything)
    return SsnGroup(
        name=group.name,
        bank_size=size,
        mask_window=mask_window,
        options=how.ssn,
        targets=tuple(
            SsnTarget(member=target.member, names=target.names, kind=target.kind, shape=target.shape)
            for target in group.targets
        ),
    )


def _cost(bank: SsnGroup, how: Spending) -> int:
    return group_cost(bank.shapes, bank.bank_size, bank.options, bank.mask_window, how.everything)


def _shapes(group: TargetGroup) -> tuple[tuple[int, ...], ...]:
    return tuple(target.shape for target in group.targets)


def _size(group: TargetGroup) -> int:
    return sum(math.prod(target.shape) for target in group.targets)
