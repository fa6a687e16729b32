"""Which targets share templates, before any training: depth bins, exact shapes, or a mapping by hand.

Source: Teterwak et al., WACV 2024 (depth bins).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby
from typing import Union

from superweight_ensembles.errors import SuperWeightError, check_number, unknown_name
from superweight_ensembles.plan.slots import Shape, spelled
from superweight_ensembles.plan.targets import Kernels, Target, matches

ClusterRule = Union[str, Mapping[str, Sequence[str]]]
CLUSTER_RULES = ("depth_bins", "shape", "type", "one", "random", "none")
_KEYS: dict[str, Callable[[Target, Kernels], object]] = {  # what the targets of a cluster have in common, by rule
    "shape": lambda target, kernels: (target.family(kernels), target.shape[:2]),
    "type": lambda target, kernels: target.kind,
    "one": lambda target, kernels: "all",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetGroup:
    """Targets, of any member, that share templates."""

    name: str  # for people
    targets: tuple[Target, ...]  # member after member
    leaders: tuple[int, ...] | None = None  # index of the target whose coefficients each uses; None: its own
    kernels: Kernels = "apart"  # whether one cluster of SuperWeights may hold several

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Shapes of the targets."""
        return tuple(target.shape for target in self.targets)

    @property
    def num_weights(self) -> int:
        """Numbers in all targets."""
        return sum(map(math.prod, self.shapes))


def group_targets(
    targets: Sequence[Target],
    rule: ClusterRule,  # as plan_sharing takes it; targets that no glob names stay their member's own
    *,
    bins: int = 4,
    num_groups: int | None = None,
    seed: int = 0,
    kernels: Kernels = "apart",
) -> tuple[TargetGroup, ...]:
    """Partition targets, given member after member in construction order, into clusters.

    Source: Teterwak et al., WACV 2024 (depth bins); Plummer et al., ICLR 2022 (one, type, shape, random).
    """
    check_num_groups(num_groups, rule == "random", len(targets), f"clusters {rule!r:.40}")
    check_number("group_seed", seed, whole=True, least=0, most=2**32 - 1)
    if rule != "random" and seed != 0:
        raise SuperWeightError(f"group_seed does nothing with clusters {rule!r:.40}: leave it out")
    if rule != "depth_bins" and bins != 4:
        raise SuperWeightError(f"bins does nothing with clusters {rule!r}: leave it out")
    if isinstance(rule, Mapping):
        groups = _by_hand(targets, rule)
    elif rule == "depth_bins":
        check_number("bins", bins, whole=True, least=1, most=10_000)
        groups = _depth_bins(targets, bins, kernels)
    elif rule == "random":
        assert num_groups is not None, "checked"
        groups = _at_random(targets, num_groups, seed)
    elif rule == "none":
        groups = []
    elif isinstance(rule, str) and rule in _KEYS:
        alike: dict[object, list[Target]] = {}
        for target in targets:
            alike.setdefault(_KEYS[rule](target, kernels), []).append(target)
        groups = [TargetGroup(name=_group_name(rule, group), targets=tuple(group)) for group in alike.values()]
    else:
        raise unknown_name("cluster rule", str(rule), CLUSTER_RULES)
    return tuple(replace(group, kernels=kernels) for group in groups)


def depth_runs(length: int, bins: int) -> tuple[int, ...]:
    """Lengths of contiguous runs that split ``length`` layers into at most ``bins``, the first ones longer.

    Example:
        >>> depth_runs(25, 4), depth_runs(13, 4), depth_runs(2, 4)
        ((7, 6, 6, 6), (4, 3, 3, 3), (1, 1))
    """
    short, longer = divmod(length, bins)
    return tuple(size for size in (short + (index < longer) for index in range(bins)) if size)


def _group_name(rule: str, group: Sequence[Target]) -> str:
    if rule != "shape":
        return group[0].kind if rule == "type" else "all"
    if len(_spellings(group)) == 1:
        return f"{group[0].kind} {spelled(group[0].shape)}"
    return f"{_label(group)} {spelled(group[0].shape[:2])}"


def _depth_bins(targets: Sequence[Target], bins: int, kernels: Kernels) -> list[TargetGroup]:
    by_member: dict[str, list[list[Target]]] = {}  # tensor by tensor: the parts of one stay together
    for _, parts in groupby(targets, key=lambda target: (target.member, target.name)):
        tensor = list(parts)
        by_member.setdefault(tensor[0].member, []).append(tensor)
    families: dict[object, list[Target]] = {}
    for target in sorted(targets, key=lambda target: (target.kind, target.kernel)):
        families.setdefault(target.family(kernels), []).append(target)
    groups: list[TargetGroup] = []
    for family, alike in families.items():
        runs = {
            member: [tensor for tensor in own if tensor[0].family(kernels) == family]
            for member, own in by_member.items()
        }
        first = next(member for member, run in runs.items() if run)
        num_bins = max(1, round(bins * len(runs[first]) / len(by_member[first])))
        binned: list[list[Target]] = [[] for _ in range(num_bins)]
        for run in runs.values():
            start = 0
            for index, size in enumerate(depth_runs(len(run), num_bins)):
                binned[index] += chain.from_iterable(run[start : start + size])
                start += size
        groups += [
            TargetGroup(name=f"{_label(alike)} bin {index + 1}/{num_bins}", targets=tuple(members))
            for index, members in enumerate(binned)
            if members
        ]
    return groups


def _at_random(targets: Sequence[Target], num_groups: int, seed: int) -> list[TargetGroup]:
    """Random groups whose numbers of layers differ by one at most."""
    order = list(range(len(targets)))
    random.Random(seed).shuffle(order)
    return [
        TargetGroup(
            name=f"random {index + 1}/{num_groups}",
            targets=tuple(targets[place] for place in sorted(order[index::num_groups])),
        )
        for index in range(num_groups)
    ]


def _by_hand(targets: Sequence[Target], rule: Mapping[str, Sequence[str]]) -> list[TargetGroup]:
    if not rule:
        raise SuperWeightError("clusters given by hand name no cluster: write 'none' to share nothing")
    owner: dict[Target, str] = {}
    groups = []
    for name, patterns in rule.items():
        if not patterns or isinstance(patterns, str) or not all(isinstance(pattern, str) for pattern in patterns):
            raise SuperWeightError(f"cluster {name!r} must be a list of globs; got {patterns!r}")
        chosen: set[Target] = set()
        for pattern in patterns:
            hits = {
                target
                for target in targets
                if matches([*target.names, *(f"{target.member}.{alias}" for alias in target.names)], pattern)
            }
            if not hits:
                raise SuperWeightError(f"cluster {name!r}: {pattern!r} names no target (write 'member.layer.weight')")
            chosen |= hits
        own = tuple(target for target in targets if target in chosen)
        for target in own:
            if target in owner:
                raise SuperWeightError(f"target {target.label} is in two clusters, {owner[target]!r} and {name!r}")
            owner[target] = name
        groups.append(TargetGroup(name=name, targets=own))
    return groups


def check_num_groups(num_groups: int | None, reads: bool, num_layers: int, what: str) -> None:
    """Refuse a number of groups that is missing, does nothing, or is larger than the number of layers."""
    if not reads:
        if num_groups is not None:
            raise SuperWeightError(f"num_groups does nothing with {what}: leave it out")
        return
    check_number(f"num_groups of {what}", num_groups, whole=True, least=1)
    assert num_groups is not None
    if num_groups > num_layers:
        raise SuperWeightError(f"num_groups is {num_groups}, but there are {num_layers} layers to group: ask for fewer")


def mixed_kernels(group: TargetGroup) -> tuple[str, ...]:
    """Kinds and kernels of a group that cannot be SuperWeights of one cluster; empty where they can."""
    families = {target.family(group.kernels) for target in group.targets}
    return tuple(_spellings(group.targets)) if len(families) > 1 else ()


def _label(targets: Sequence[Target]) -> str:
    """Name of the kind and kernel that targets have in common."""
    spellings, kinds = _spellings(targets), {target.kind for target in targets}
    if len(spellings) == 1:
        return spellings[0]
    if all(math.prod(target.kernel) == 1 for target in targets):
        return "matrix"
    return kinds.pop() if len(kinds) == 1 else "dense"


def _spellings(targets: Iterable[Target]) -> list[str]:
    """Kinds and kernels of targets, as layers store them."""
    return sorted({f"{target.kind} {spelled(target.kernel)}".strip() for target in targets})
