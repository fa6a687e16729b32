"""How a budget is spent on templates."""

import reference
import torch
from hypothesis import given
from hypothesis import strategies as st

from superweight_ensembles import plan_sharing, wide_resnet
from superweight_ensembles.plan import SlotNeed, allocate, minimum_cost

needs_of = st.lists(
    st.tuples(st.integers(1, 50), st.integers(1, 12)).flatmap(
        # Tied coefficients: no more vectors than users.
        lambda drawn: st.builds(
            SlotNeed, size=st.just(drawn[0]), num_users=st.just(drawn[1]), num_coefficients=st.integers(1, drawn[1])
        )
    ),
    min_size=1,
    max_size=8,
)
cases = st.tuples(needs_of, st.integers(0, 2000), st.integers(1, 9), st.booleans())


def costs_of(needs, honest):
    return [need.size + (need.num_coefficients if honest else 0) for need in needs]


@given(cases)
def test_allocation_is_the_references_and_spends_what_it_can(case):
    needs, excess, cap, honest = case
    costs, users = costs_of(needs, honest), [need.num_users for need in needs]
    budget = sum(costs) + excess
    assert minimum_cost(needs, honest) == sum(costs)
    counts = allocate(needs, budget, cap=cap, count_all=honest)
    assert list(counts) == reference.allocate(costs, users, budget, cap)
    assert counts == allocate(needs, budget, cap=cap, count_all=honest)
    left = budget - sum(count * cost for count, cost in zip(counts, costs, strict=True))
    assert left >= 0
    assert all(1 <= count <= cap for count in counts)
    assert all(cost > left for count, cost in zip(counts, costs) if count < cap)
    # A slot with more templates than users means that phase 1 is over: no shared slot that could still be paid waits.
    beyond = [cost for num, count, cost in zip(users, counts, costs) if count > num]
    short = [cost for num, count, cost in zip(users, counts, costs) if count < min(cap, num)]
    assert not beyond or not short or min(short) > max(beyond)


def test_sweeps_by_hand():
    small, large = (SlotNeed(size=size, num_users=4, num_coefficients=1) for size in (10, 40))
    few = SlotNeed(size=10, num_users=2, num_coefficients=1)

    def spent(excess):
        return allocate([large, small, few], 40 + 10 + 10 + excess, count_all=False)

    assert spent(20) == (1, 2, 2)  # a second template to each slot in turn that it pays
    assert spent(50) == (2, 2, 1)  # 40 + 10 in turn


def test_phases_by_hand():
    shared, alone = (
        SlotNeed(size=10, num_users=3, num_coefficients=3),
        SlotNeed(size=10, num_users=1, num_coefficients=1),
    )
    # Phase 1 gives the shared slot its 2nd and 3rd; phase 2 gives the lone one its 2nd and 3rd, then both a 4th.
    spent = [allocate([alone, shared], 20 + 10 * extra, count_all=False) for extra in range(7)]
    assert spent == [(1, 1), (1, 2), (1, 3), (2, 3), (3, 3), (4, 3), (4, 4)]


def test_minimum_counts_coefficients_or_not():
    needs = [SlotNeed(size=10, num_users=4, num_coefficients=3), SlotNeed(size=5, num_users=1, num_coefficients=1)]
    assert minimum_cost(needs) == 10 + 3 + 5 + 1
    assert minimum_cost(needs, count_all=False) == 10 + 5


def test_published_numbers():
    with torch.device("meta"):
        members = {f"wrn{d}-{w}": wide_resnet(d, w, 100) for d, w in ((28, 7), (28, 4), (16, 7), (16, 4))}
    options = {"budget_counts": "templates", "bins": 4, "cap": 8}
    plan = plan_sharing(members, budget=18_000_000, **options)
    assert plan.minimum_templates == 4_422_656
    assert plan.num_templates == 17_997_568
    assert plan.independent_parameters == 35_006_544
    least = plan_sharing(members, budget=4_422_656, **options)
    assert least.num_templates == least.minimum_templates == 4_422_656
    costs, users = [], []
    for cluster in plan.clusters:
        shapes = reference.distinct_shapes(slot.shape for slot in cluster.slots)
        costs += [reference.slot_size(shapes, slot) for slot in range(len(shapes))]
        users += [sum(target.slot >= slot for target in cluster.targets) for slot in range(len(shapes))]
    expected = reference.allocate(costs, users, 18_000_000, cap=8)
    assert [slot.num_templates for cluster in plan.clusters for slot in cluster.slots] == expected
    assert sum(count * cost for count, cost in zip(expected, costs)) == 17_997_568
