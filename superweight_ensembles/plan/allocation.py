"""How many templates each slot gets under a parameter budget.

Source: Teterwak et al., WACV 2024; the two phases are the published code's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotNeed:
    """What the allocator knows of a slot."""

    size: int  # numbers in one template
    num_users: int  # targets that compose from this slot
    num_coefficients: int  # coefficient scalars that each template brings along
    num_fixed: int = 0  # coefficient scalars that the slot has in any case

    def template_cost(self, count_all: bool) -> int:
        """Trainable scalars that one more template costs."""
        return self.size + (self.num_coefficients if count_all else 0)


def minimum_cost(needs: Sequence[SlotNeed], count_all: bool = True) -> int:
    """Trainable scalars with one template a slot, below which nothing fits."""
    fixed = sum(need.num_fixed for need in needs) if count_all else 0
    return fixed + sum(need.template_cost(count_all) for need in needs)


def allocate(needs: Sequence[SlotNeed], budget: int, *, cap: int = 8, count_all: bool = True) -> tuple[int, ...]:
    """Spend a budget on templates: one a slot, then one more at a time wherever it still fits.

    First a second template to every slot with more than one user, then a third to every one with more than two, and so
    on; then the same, sweep by sweep, up to ``cap`` whatever the number of users.

    Args:
        needs: The slots, in cluster order.
        budget: Trainable scalars to spend; at least ``minimum_cost(needs)`` (the plan checks this).
        cap: Templates a slot at most.
        count_all: Count a template's coefficients as well (the honest rule), or the template alone (the published one).

    Returns:
        Templates of each slot.

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
    for limits in ([min(cap, need.num_users) for need in needs], [cap] * len(needs)):
        for sweep in range(1, cap):
            for index, cost in enumerate(costs):
                if counts[index] == sweep < limits[index] and cost <= left:
                    counts[index] += 1
                    left -= cost
            if max(counts, default=0) <= sweep:
                break  # no slot has as many as a later sweep asks for
    return tuple(counts)
