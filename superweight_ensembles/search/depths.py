"""Which members stand for a depth, and in what order: found from the plan, not from how the members are listed."""

from __future__ import annotations

from dataclasses import dataclass

from superweight_ensembles.ensemble.ensemble import SuperWeightEnsemble
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.plan.plan import PlannedTarget, SharingPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Depths:
    """Members by depth.

    Two members are equally deep if most layers of both have one kernel, and each first cluster of that kernel holds as
    many targets of one as of the other.

    Attributes:
        representatives: One member a depth, the deepest first; of a depth, the widest (the first listed of equals).
        representative_of: Of every member that shares at all: the one that stands for its depth.
        order: All members that share, the deepest and widest first.
        targets: Of every member and cluster index: its targets in the order in which it was built.
        places: Of every target: how far down its member it stands, 0 for the first target to 1 for the last.
    """

    representatives: tuple[str, ...]
    representative_of: dict[str, str]
    order: tuple[str, ...]
    targets: dict[str, tuple[tuple[PlannedTarget, ...], ...]]
    places: dict[PlannedTarget, float]

    def compared(self, index: int) -> tuple[str, ...]:
        """The members whose targets in a cluster are compared, the anchor first.

        The representatives that have any there; where none has, the deepest member that does.
        """
        there = [name for name in self.order if self.targets[name][index]]
        return tuple(name for name in there if name in self.representatives) or (there[0],)

    def counterparts(self, member: str, index: int) -> list[PlannedTarget]:
        """For each target of a member in a cluster that is not compared there: the compared target that it follows.

        That of its representative, or of the anchor where the representative has none; the one of the same index where
        both have as many, else the one that stands most nearly as far down.
        """
        compared = self.compared(index)
        leader = self.representative_of[member]
        own, others = self.targets[member][index], self.targets[leader if leader in compared else compared[0]][index]
        if len(own) == len(others):
            return list(others)
        return [min(others, key=lambda other: abs(self.places[other] - self.places[target])) for target in own]


def check_searchable(plan: SharingPlan) -> None:
    """Refuse a plan with groups that read a flat bank.

    Raises:
        SuperWeightError: Names the first such group.
    """
    for group in plan.ssn_groups.values():
        raise SuperWeightError(
            f"a search splits clusters of SuperWeights, and {group.name!r} reads a flat bank: plan with "
            "generator='superweight', and a budget that it can meet"
        )


def find_depths(ensemble: SuperWeightEnsemble) -> Depths:
    """Derive depths and the order of members from an ensemble of SuperWeights."""
    plan = ensemble.plan
    check_searchable(plan)
    clusters = plan.superweight_clusters.values()
    order = {name: _construction_order(ensemble, name) for name in plan.member_names}
    targets = {
        name: tuple(tuple(target for target in order[name] if target in set(cluster.targets)) for cluster in clusters)
        for name in plan.member_names
    }
    kernels = [(cluster.kind, cluster.kernel) for cluster in clusters]
    depth: dict[str, tuple[tuple[int, int], ...]] = {}
    for name in plan.member_names:
        counts = [len(own) for own in targets[name]]
        frequency = {kernel: sum(n for n, other in zip(counts, kernels) if other == kernel) for kernel in kernels}
        commonest = max(frequency, key=lambda kernel: frequency[kernel], default=None)
        depth[name] = tuple((index, n) for index, n in enumerate(counts) if kernels[index] == commonest)
    sizes = {member.name: member.num_parameters for member in plan.members}
    sharing = [name for name in plan.member_names if order[name]]
    sharing.sort(key=lambda name: (-sum(n for _, n in depth[name]), -len(order[name]), -sizes[name]))
    first: dict[tuple[tuple[int, int], ...], str] = {}
    for name in sharing:
        first.setdefault(depth[name], name)
    return Depths(
        representatives=tuple(first.values()),
        representative_of={name: first[depth[name]] for name in sharing},
        order=tuple(sharing),
        targets=targets,
        places={
            target: index / max(1, len(order[name]) - 1) for name in order for index, target in enumerate(order[name])
        },
    )


def searched_members(ensemble: SuperWeightEnsemble) -> tuple[str, ...]:
    """The members whose weights a search compares, the deepest first: to train before it. The others follow them."""
    depths = find_depths(ensemble)
    compared = {member for index in range(len(ensemble.plan.clusters)) for member in depths.compared(index)}
    return tuple(member for member in depths.order if member in compared)


def _construction_order(ensemble: SuperWeightEnsemble, member: str) -> list[PlannedTarget]:
    """The targets of a member as its parameters are listed (generated ones hold None, but keep their place)."""
    place = {
        f"{path}.{local}" if path else local: (position, rank)
        for position, (path, module) in enumerate(ensemble.members[member].named_modules(remove_duplicate=False))
        for rank, local in enumerate(module._parameters)
    }
    clusters = ensemble.plan.superweight_clusters.values()
    own = [target for cluster in clusters for target in cluster.targets if target.member == member]
    return sorted(own, key=lambda target: place[target.name])
