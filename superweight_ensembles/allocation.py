"""How many templates each slot gets under a parameter budget.

Source: Teterwak et al., WACV 2024; the two phases are the published code's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotNeed:
    """What the allocator knows of a slot.

    Attributes:
        size: Numbers in one template.
        num_users: Targets that compose from this slot.
        num_coefficients: Coefficient scalars that each template brings along.
        num_fixed: Coefficient scalars that the slot has in any case.
    """

    size: int
    num_users: int
    num_coefficients: int
    num_fixed: int = 0


def template_cost(need: SlotNeed, count_coefficients: bool) -> int:
    """Trainable scalars that one more template costs."""
    return need.size + (need.num_coefficients if count_coefficients else 0)


def minimum_cost(needs: Sequence[SlotNeed], count_coefficients: bool = True) -> int:
    """Trainable scalars with one template a slot, below which nothing fits."""
    fixed = sum(need.num_fixed for need in needs) if count_coefficients else 0
    return fixed + sum(template_cost(need, count_coefficients) for need in needs)


def allocate(
    needs: Sequence[SlotNeed], budget: int, *, cap: int = 8, count_coefficients: bool = True
) -> tuple[int, ...]:
    """Spend a budget on templates: one a slot, then sweep after sweep one more wherever it still fits.

    Phase 1 gives a (t+1)-th template to slots with more than t users; phase 2 gives up to ``cap`` to every slot.

    Args:
        needs: The slots, in cluster order.
        budget: Trainable scalars to spend; at least ``minimum_cost(needs)`` (the plan checks this).
        cap: Templates a slot at most.
        count_coefficients: Count a template's coefficients as well (the honest rule), or the template alone
            (the published one).

    Returns:
        Templates of each slot.

    Example:
        >>> slots = [
        ...     SlotNeed(size=10, num_users=2, num_coefficients=2),
        ...     SlotNeed(size=30, num_users=1, num_coefficients=1),
        ... ]
        >>> allocate(slots, 56)
        (2, 1)
        >>> allocate(slots, 90)
        (2, 2)
    """
    counts = [1] * len(needs)
    left = budget - minimum_cost(needs, count_coefficients)
    assert left >= 0, "the caller compares the budget with minimum_cost"
    for only_shared in (True, False):
        for sweep in range(1, cap):
            for index, need in enumerate(needs):
                cost = template_cost(need, count_coefficients)
                if counts[index] == sweep and cost <= left and (not only_shared or need.num_users > sweep):
                    counts[index] += 1
                    left -= cost
    return tuple(counts)
