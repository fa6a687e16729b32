"""Depth bins, equal shapes, and clusters by hand."""

from collections import Counter

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from refusals import assert_refused

from superweight_ensembles import wide_resnet
from superweight_ensembles.plan import Target, depth_runs, find_targets, group_targets


def targets_of(members):
    """Targets of members that are given as lists of kernel sizes (0 is a linear layer)."""
    return [
        Target(
            member=f"m{m}",
            names=(f"layer{position}.weight",),
            shape=(4, 4) + (kernel, kernel) * (kernel > 0),
            kind="conv2d" if kernel else "linear",
        )
        for m, kernels in enumerate(members)
        for position, kernel in enumerate(kernels)
    ]


def positions(groups):
    """Clusters as sets of (member, position)."""
    return {
        frozenset((int(target.member[1:]), int(target.name[5:].split(".")[0])) for target in group.targets)
        for group in groups
    }


def sizes(groups, member, kernel):
    return [
        Counter(target.member for target in group.targets)[member]
        for group in groups
        if group.targets[0].kernel == kernel
    ]


def wide(**members):
    with torch.device("meta"):
        nets = {name: wide_resnet(depth, width, 100) for name, (depth, width) in members.items()}
    return [target for name, net in nets.items() for target in find_targets(net, name)]


@pytest.mark.parametrize(
    ("members", "kernel", "expected"),
    [
        (wide(wrn28=(28, 7), wrn16=(16, 4)), (1, 1), {"wrn28": [3], "wrn16": [3]}),
        (wide(wrn28=(28, 7), wrn16=(16, 4)), (3, 3), {"wrn28": [7, 6, 6, 6], "wrn16": [4, 3, 3, 3]}),
        # The first member decides. WRN-10: seven 3x3 of ten, round(4 * 7 / 10) = 3 bins, for the deeper member too.
        (wide(wrn10=(10, 1), wrn28=(28, 1)), (3, 3), {"wrn10": [3, 2, 2], "wrn28": [9, 8, 8]}),
        # Fewer targets than bins fill the first ones, and of the first member leave no empty cluster.
        (targets_of([[3] * 8, [3, 3]]), (3, 3), {"m0": [2, 2, 2, 2], "m1": [1, 1, 0, 0]}),
        (targets_of([[3, 3]]), (3, 3), {"m0": [1, 1]}),
        # Member 1 alone has linear layers, half of its own: round(4 * 4 / 8) = 2 bins of them.
        (targets_of([[3] * 4, [3] * 4 + [0] * 4]), (), {"m0": [0, 0], "m1": [2, 2]}),
        # Kernels are matched by value, not by position.
        (targets_of([[1, 3, 3, 3], [3, 3, 3, 1]]), (1, 1), {"m0": [1], "m1": [1]}),
    ],
)
def test_sizes_of_depth_bins(members, kernel, expected):
    groups = group_targets(members, "depth_bins", bins=4)
    assert {member: sizes(groups, member, kernel) for member in expected} == expected
    assert all(group.targets for group in groups)


def test_kinds_of_one_kernel_stay_apart():
    plain, depthwise = (
        Target(member="m0", names=(f"{kind}.weight",), shape=(4, 4, 3, 3), kind=kind)
        for kind in ("conv2d", "depthwise conv2d")
    )
    groups = group_targets([plain, depthwise], "depth_bins", bins=1)
    assert {group.targets for group in groups} == {(plain,), (depthwise,)}


@given(
    st.lists(st.lists(st.sampled_from([0, 1, 3]), min_size=1, max_size=12), min_size=1, max_size=4), st.integers(1, 6)
)
def test_depth_bins_equal_the_reference(members, bins):
    groups = group_targets(targets_of(members), "depth_bins", bins=bins)
    assert positions(groups) == reference.depth_bins(members, bins)
    assert len({group.name for group in groups}) == len(groups)


@given(st.integers(0, 40), st.integers(1, 9))
def test_depth_runs_differ_by_one_and_longer_come_first(length, bins):
    runs = depth_runs(length, bins)
    assert sum(runs) == length
    assert list(runs) == sorted(runs, reverse=True)
    assert len(runs) == min(length, bins)
    assert not runs or runs[0] - runs[-1] <= 1


def test_by_shape():
    targets = wide(narrow=(10, 1), wide=(10, 2))
    groups = group_targets(targets, "shape")
    assert sorted(target.label for group in groups for target in group.targets) == sorted(t.label for t in targets)
    assert [len({target.shape for target in group.targets}) for group in groups] == [1] * len(groups)
    assert len(groups) == len({target.shape for target in targets})


def test_one_group_and_groups_by_type():
    targets = targets_of([[3, 0, 1], [0, 3]])
    assert positions(group_targets(targets, "one")) == {frozenset({(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)})}
    by_type = {frozenset({(0, 0), (0, 2), (1, 1)}), frozenset({(0, 1), (1, 0)})}
    assert positions(group_targets(targets, "type")) == by_type
    assert group_targets(targets, "none") == ()


@given(st.integers(1, 9), st.integers(0, 5))
def test_random_groups_cover_every_layer_once_and_evenly(num_groups, seed):
    targets = targets_of([[3, 0, 1, 3, 3], [0, 3, 3, 1]])
    groups = group_targets(targets, "random", num_groups=num_groups, seed=seed)
    assert sorted(target.label for group in groups for target in group.targets) == sorted(t.label for t in targets)
    assert {len(group.targets) for group in groups} <= {9 // num_groups, -(-9 // num_groups)}
    assert len(groups) == num_groups


def test_by_hand():
    targets = targets_of([[3, 3, 1], [3, 1]])
    rule = {"early": ["m0.layer0.weight", "m1.layer0.*"], "points": ["layer2.weight", "m1.layer1.weight"]}
    groups = group_targets(targets, rule)
    assert [(group.name, len(group.targets)) for group in groups] == [("early", 2), ("points", 2)]
    # m0.layer1.weight is named by no glob and stays its member's own.
    assert positions(groups) == {frozenset({(0, 0), (1, 0)}), frozenset({(0, 2), (1, 1)})}


def test_by_hand_keeps_construction_order_and_names_a_target_once():
    targets = targets_of([[3, 3, 3]])
    (group,) = group_targets(targets, {"all": ["layer2*", "layer0*", "*"]})
    assert group.targets == tuple(targets)


def test_by_hand_finds_a_tied_target_by_its_second_name():
    target = Target(member="m0", names=("a.weight", "b.weight"), shape=(4, 4), kind="linear")
    (group,) = group_targets([target], {"tied": ["m0.b.weight"]})
    assert group.targets == (target,)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"x": ["layer9.weight"]}, r"cluster 'x': 'layer9\.weight' names no target"),
        ({"x": "layer0.weight"}, r"cluster 'x' must be a list of globs; got 'layer0\.weight'"),
        ({"x": ["*layer0*"], "y": ["m0.*"]}, r"target m0\.layer0\.weight is in two clusters, 'x' and 'y'"),
        ("depth_bin", "unknown cluster rule 'depth_bin': did you mean 'depth_bins'"),
        ("zzzz", "unknown cluster rule 'zzzz': Known: depth_bins, none, one, random, shape, type"),
    ],
)
def test_bad_rules(rule, message):
    assert_refused(message, group_targets, targets_of([[3, 3], [3, 1]]), rule)


@pytest.mark.parametrize("bins", [0, -1, 2.0, "4", True, None])
def test_bad_bins(bins):
    assert_refused(
        r"bins must be a whole number, from 1 to [\d,]+; got", group_targets, targets_of([[3]]), "depth_bins", bins=bins
    )
