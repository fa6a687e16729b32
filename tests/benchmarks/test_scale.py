"""The arithmetic of benchmarks/mesh.py: what has a closed form, what must be conserved, and what must not grow."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superweight_ensembles.training.distributed import placed

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import mesh  # noqa: E402
from mesh import Layout, Link, Member, Network, Workload, simulate  # noqa: E402

FREE = Link(latency_s=0.0, bytes_per_s=math.inf)
SLOW = Link(latency_s=1e-3, bytes_per_s=1e6)
NOWHERE = Network(name="free", inside=FREE, between=FREE, per_machine=8)
FLAT = Network(name="flat", inside=SLOW, between=SLOW, per_machine=1)
MACHINES = Network(name="machines", inside=Link(latency_s=1e-5, bytes_per_s=1e9), between=SLOW, per_machine=8)


def member(name: str, step_s: float = 0.5, image_s: float = 0.25, parameters: int = 1000, own: int = 100) -> Member:
    return Member(
        name=name,
        step_s=step_s,
        image_s=image_s,
        parameters=parameters,
        own_parameters=own,
        norm_channels=(8, 16),
        activation_bytes=10.0,
    )


PAIR = Workload(members=(member("a"), member("b")), bank_parameters=1500, generation_s=0.0)
WORKLOADS = st.builds(
    lambda sizes, bank: Workload(
        members=tuple(
            member(f"m{i}", step_s=0.001 * s, image_s=0.002 * s, parameters=50 * s, own=s) for i, s in enumerate(sizes)
        ),
        bank_parameters=bank,
        generation_s=1e-6,
    ),
    st.lists(st.integers(1, 60), min_size=1, max_size=6),
    st.integers(0, 20_000),
)


# Collectives.


def test_ring_and_tree_have_their_closed_forms() -> None:
    assert SLOW.ring_s(4000, 4) == pytest.approx(6 * (1e-3 + 1000 / 1e6))
    assert SLOW.tree_s(4000, 5) == pytest.approx(2 * (3 * 1e-3 + 4000 / 1e6))
    assert SLOW.all_gather_s(500, 4) == pytest.approx(2 * 1e-3 + 3 * 500 / 1e6)
    assert mesh.sent_bytes(1000, 2) == 1000
    assert mesh.sent_bytes(1000, 4) == 1500


def test_large_tensors_go_by_ring_and_small_ones_by_tree() -> None:
    assert SLOW.all_reduce_s(1e7, 64) == SLOW.ring_s(1e7, 64) < SLOW.tree_s(1e7, 64)
    assert SLOW.all_reduce_s(64, 64) == SLOW.tree_s(64, 64) < SLOW.ring_s(64, 64)


def test_one_rank_exchanges_nothing() -> None:
    for network in (FLAT, MACHINES):
        assert network.all_reduce_s(1e6, 1) == network.all_gather_s(1e6, 1) == 0
    assert mesh.sent_bytes(1e6, 1) == mesh.norm_bytes(64, 1) == 0


def test_machines_are_joined_by_a_part_of_the_tensor_each() -> None:
    inside = MACHINES.inside.all_reduce_s(8000, 8)
    assert MACHINES.all_reduce_s(8000, 8) == inside
    assert MACHINES.all_reduce_s(8000, 32) == pytest.approx(inside + SLOW.all_reduce_s(1000, 4))


@given(st.floats(0, 1e8), st.floats(0, 1e8), st.integers(1, 10), st.integers(1, 10))
def test_more_bytes_or_ranks_never_take_less_time(one: float, two: float, few: int, many: int) -> None:
    small, large = sorted((one, two))
    fewer, more = sorted((2**few, 2**many))
    for network in (FLAT, MACHINES):
        assert network.all_reduce_s(small, fewer) <= network.all_reduce_s(large, more) * (1 + 1e-9)
        assert network.all_gather_s(small, fewer) <= network.all_gather_s(large, more) * (1 + 1e-9)


@given(st.floats(1e-6, 1e-2), st.floats(1e6, 1e10))
def test_a_link_is_found_again_in_its_own_times(latency_s: float, bytes_per_s: float) -> None:
    link = Link(latency_s=latency_s, bytes_per_s=bytes_per_s)
    sizes = [10.0**power for power in range(2, 8)]
    found = mesh.fitted_link(sizes, [link.ring_s(size, 2) for size in sizes])
    assert found.bytes_per_s == pytest.approx(bytes_per_s, rel=1e-3)
    assert found.latency_s == pytest.approx(latency_s, rel=1e-3, abs=1e-9)


# Placement.


@given(st.dictionaries(st.text(max_size=3), st.floats(0.0, 100), min_size=1, max_size=8), st.integers(1, 8))
def test_every_member_has_one_rank_and_no_rank_is_idle(costs: dict[str, float], ranks: int) -> None:
    ranks = min(ranks, len(costs))
    found = placed(costs, ranks)
    assert sorted(name for names in found for name in names) == sorted(costs)
    assert all(found)
    # Graham 1969: within 4/3 of what no placement can beat
    longest = max(sum(costs[name] for name in names) for names in found)
    assert longest <= (4 / 3) * max(sum(costs.values()), max(costs.values()) * ranks, _pairs(costs, ranks)) + 1e-9


def _pairs(costs: dict[str, float], ranks: int) -> float:
    """A bound that holds where there are more members than ranks: two of them share one."""
    ordered = sorted(costs.values(), reverse=True)
    return ordered[ranks - 1] + ordered[ranks] if len(ordered) > ranks else 0.0


# Steps.


def test_one_device_computes_and_exchanges_nothing() -> None:
    step = simulate(PAIR, Layout(data=1, members=1, shared=True), 8, FLAT)
    assert step.seconds == step.compute_s == 2 * (0.5 + 8 * 0.25)
    assert step.gradient_bytes == step.norm_bytes == step.exchange_s == 0
    # bank and own parameters with gradient and momentum, generated weights once, the activations of one member
    assert step.memory_bytes == 4 * (3 * (1500 + 200) + 1800) + 8 * 10


def test_rows_on_two_devices_have_their_closed_form() -> None:
    step = simulate(PAIR, Layout(data=2, members=1, shared=True, norm_images=0), 8, FLAT)
    compute = 2 * (0.5 + 4 * 0.25)
    assert step.seconds == pytest.approx(compute + SLOW.all_reduce_s(800, 2) + SLOW.all_reduce_s(6000, 2))
    assert step.gradient_bytes == 4 * PAIR.shared_parameters


def test_members_on_two_devices_exchange_the_bank_alone() -> None:
    step = simulate(PAIR, Layout(data=1, members=2, shared=True), 8, FLAT)
    assert step.placement == (("a",), ("b",))
    assert step.seconds == pytest.approx(0.5 + 8 * 0.25 + SLOW.all_reduce_s(6000, 2))
    assert step.gradient_bytes == 4 * 1500 and step.norm_bytes == 0
    apart = simulate(PAIR, Layout(data=1, members=2, shared=False), 8, FLAT)
    assert apart.gradient_bytes == apart.exchange_s == 0


def test_bytes_of_a_bank_beside_members_apart_are_the_budget() -> None:
    layouts = [Layout(data=16, members=1, shared=shared, norm_images=0) for shared in (True, False)]
    bank, apart = (simulate(PAIR, layout, 64, FLAT) for layout in layouts)
    assert bank.gradient_bytes / apart.gradient_bytes == pytest.approx(1700 / 2000)


def test_norms_wait_for_as_many_devices_as_make_up_their_images() -> None:
    def norm_s(norm_images: int | None) -> float:
        return simulate(PAIR, Layout(data=8, members=1, shared=True, norm_images=norm_images), 64, FLAT).norm_s

    def of(ranks: int) -> float:
        return 2 * sum(mesh.norm_exchange_s(channels, ranks, FLAT) for channels in (8, 16))

    assert norm_s(0) == norm_s(8) == 0
    assert norm_s(16) == pytest.approx(of(2))
    assert norm_s(None) == norm_s(64) == pytest.approx(of(8))


def test_overlapped_exchange_hides_behind_backward_but_for_its_end() -> None:
    layout = Layout(data=2, members=1, shared=False, norm_images=0, overlapped=True)
    step = simulate(PAIR, layout, 8, FLAT)
    assert step.seconds == pytest.approx(2 * (0.5 + 4 * 0.25) + SLOW.all_reduce_s(4000, 2))
    after = simulate(PAIR, replace(layout, overlapped=False), 8, FLAT)
    assert after.seconds == pytest.approx(2 * (0.5 + 4 * 0.25) + SLOW.all_reduce_s(8000, 2))


@given(WORKLOADS, st.integers(0, 6), st.integers(1, 6), st.booleans(), st.booleans())
def test_a_free_network_leaves_what_the_slowest_rank_computes(
    workload: Workload, power: int, ranks: int, shared: bool, overlapped: bool
) -> None:
    layout = Layout(data=2**power, members=min(ranks, len(workload.members)), shared=shared, overlapped=overlapped)
    step = simulate(workload, layout, 256, NOWHERE)
    images = 256 / layout.data
    every = sum(one.seconds(images) + shared * workload.generation_s * one.generated for one in workload.members)
    assert step.seconds == pytest.approx(step.compute_s)
    assert every / layout.members <= step.seconds * (1 + 1e-9)
    assert step.seconds <= every * (1 + 1e-9)


@given(WORKLOADS, st.integers(0, 8), st.integers(1, 6), st.booleans())
def test_a_step_takes_its_parts_and_never_less_where_the_network_is_slower(
    workload: Workload, power: int, ranks: int, shared: bool
) -> None:
    layout = Layout(data=2**power, members=min(ranks, len(workload.members)), shared=shared)
    slow, fast = simulate(workload, layout, 512, FLAT), simulate(workload, layout, 512, NOWHERE)
    assert slow.seconds == pytest.approx(slow.compute_s + slow.norm_s + slow.exchange_s)
    assert slow.exchange_s >= -1e-12
    assert slow.seconds >= fast.seconds * (1 - 1e-9)
    assert slow.gradient_bytes == fast.gradient_bytes


@given(WORKLOADS, st.integers(0, 8), st.integers(1, 6), st.booleans())
def test_overlapping_never_costs(workload: Workload, power: int, ranks: int, shared: bool) -> None:
    layout = Layout(data=2**power, members=min(ranks, len(workload.members)), shared=shared, norm_images=0)
    after, during = (
        simulate(workload, replace(layout, overlapped=overlapped), 512, Network(
            name="bytes alone", inside=Link(latency_s=0.0, bytes_per_s=1e6),
            between=Link(latency_s=0.0, bytes_per_s=1e6), per_machine=1,
        ))
        for overlapped in (False, True)
    )  # fmt: skip
    assert during.seconds <= after.seconds * (1 + 1e-9)


def test_meshes_fill_the_devices() -> None:
    assert mesh.meshes(8, 4) == ((8, 1), (4, 2), (2, 4))
    assert all(data * ranks == 24 for data, ranks in mesh.meshes(24, 6))


def test_the_last_size_that_wins() -> None:
    assert mesh.largest_batch_below(lambda size: size < 20, 64) == 16
    assert mesh.largest_batch_below(lambda size: False, 64) == 0
    assert mesh.largest_batch_below(lambda size: True, 64) == 64


def test_the_committed_result_says_what_is_simulated() -> None:
    found = json.loads((ROOT / "benchmarks/results/scale.json").read_text(encoding="utf-8"))
    assert found["paper"]["note"].startswith("simulated")
    for table in found["paper"]["tables"]:
        for row in table["rows"]:
            of = {name: arm["gradient_bytes"] for name, arm in row["arms"].items()}
            assert of["bank, rows"] / of["own, rows"] == pytest.approx(table["budget_fraction"])


def test_the_committed_check_is_as_close_as_the_page_says() -> None:
    found = json.loads((ROOT / "benchmarks/results/scale.json").read_text(encoding="utf-8"))
    measured = json.loads((ROOT / "benchmarks/results/many_processes.json").read_text(encoding="utf-8"))
    assert found["measured_commit"] == measured["provenance"]["commit"]
    for check, seen in zip(found["check"], measured["recipes"], strict=True):
        assert check["largest_error"] < 0.3505 and check["largest_bytes_error"] < 0.0205
        assert {arm["arm"]: arm["measured_ms"] for arm in check["arms"]}.items() <= {
            name: arm["ms"] for name, arm in seen["arms"].items()
        }.items()
