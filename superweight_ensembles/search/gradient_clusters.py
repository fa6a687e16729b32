"""Cluster search: targets whose gradients conflict get templates of their own.

In each cluster the targets of the deepest, widest member merge while their cosine exceeds the threshold; a target of
another depth joins the one that it is most like; a member as deep as one placed before follows it, layer by layer.

Source: Teterwak et al., WACV 2024
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from superweight_ensembles.ensemble import SuperWeightEnsemble
from superweight_ensembles.errors import SuperWeightError, names_options
from superweight_ensembles.plan import (
    BudgetPolicy,
    Cluster,
    PlannedTarget,
    SharingPlan,
    Target,
    TargetGroup,
    groups_minimum,
    plan_groups,
    resolve_budget,
)
from superweight_ensembles.search.gradients import (
    check_search,
    check_trained,
    cropped_cosines,
    merged_sets,
    weight_gradients,
)
from superweight_ensembles.storage import Count, Name, as_content
from superweight_ensembles.training import Batches, Objective
from superweight_ensembles.training.distributed import current_processes

SEARCH_FORMAT = 1
THRESHOLD_STEP = 0.05
_Number = Annotated[float, Field(ge=-1e30, le=1e30)]
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ClusterSearch:
    """Options of a search that splits clusters of SuperWeights by similarity.

    Attributes:
        threshold: Cosine above which two targets share templates, -1 to 1.
        coefficients: ``tied``: a target that joined another uses its coefficients; other kinds as in
            :func:`plan_sharing`.
        reserve_untied: Whether to leave enough of the budget unspent for tied coefficients to be un-tied later; None:
            if they are tied.

    Raises:
        SuperWeightError: A threshold outside [-1, 1], an unknown kind of coefficients, a reserve for coefficients that
            are not tied.
    """

    similarity: ClassVar[str]
    threshold: float = 0.1
    coefficients: str = "tied"
    reserve_untied: bool | None = None

    def __post_init__(self) -> None:
        check_search(threshold=self.threshold)
        BudgetPolicy(coefficients=self.coefficients, reserve_untied=bool(self.reserve_untied))


@names_options
@dataclass(frozen=True, kw_only=True)
class GradientSearch(ClusterSearch):
    """Split clusters where the gradients of targets conflict, as published.

    Attributes:
        max_batches: Number of batches that are read at most; all where None.
        objective: Loss of a member, as :func:`superweight_ensembles.train` takes it; the task's where None.
    """

    similarity = "gradient"
    max_batches: int | None = None
    objective: Objective | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_search(max_batches=self.max_batches)


@names_options
@dataclass(frozen=True, kw_only=True)
class WeightSearch(ClusterSearch):
    """Split clusters where the generated weights themselves are unlike, for comparison with :class:`GradientSearch`."""

    similarity = "weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchedCluster:
    """Record of a search in one first cluster."""

    name: Name
    targets: Annotated[tuple[Name, ...], Field(max_length=4096)]  # the anchor's targets first
    anchors: Count  # number of the anchor's targets
    # cosines of those that were compared, a row a target; None for the others
    similarity: tuple[tuple[_Number | None, ...] | None, ...]
    sets: tuple[Count, ...]  # for each target, the final cluster, numbered within this first one
    leaders: tuple[Count, ...]  # for each target, the place of the anchor's target that it goes with


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRecord:
    """Record of a search, and the fingerprint of the plan that it made; k-means has no threshold and no anchor."""

    format: int = SEARCH_FORMAT
    similarity: Annotated[Name, Field(default="gradient")]
    threshold_given: _Number | None = None
    threshold: _Number | None = None
    anchor: Name | None = None
    representatives: tuple[Name, ...] | None = None
    plan: str
    clusters: Annotated[tuple[SearchedCluster, ...], Field(max_length=1000)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterEvidence:
    """What a search saw of one first cluster, and how it split it."""

    cluster: Cluster
    targets: tuple[PlannedTarget, ...]  # the anchor's (the deepest member's), those of the other depths, the followers
    num_anchors: int
    similarity: Tensor  # (n, n) cosines of the first n targets, those that were compared; the rest are followers
    sets: tuple[int, ...]  # for each target, the final cluster, numbered within this first one
    leaders: tuple[int, ...]  # for each target, the place of the anchor's target that it goes with

    def record(self) -> SearchedCluster:
        """What search.json holds of it."""
        count, followers = len(self.targets), len(self.targets) - len(self.similarity)
        cosines = [(*(round(value, 4) for value in row), *[None] * followers) for row in self.similarity.tolist()]
        return SearchedCluster(
            name=self.cluster.name,
            targets=tuple(target.label for target in self.targets),
            anchors=self.num_anchors,
            similarity=(*cosines, *((None,) * count for _ in range(followers))),
            sets=self.sets,
            leaders=self.leaders,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitClusters:
    """A plan whose clusters were split, and the similarities that it was found from."""

    plan: SharingPlan  # of the same members, with the cap and the counting of the ensemble's plan
    threshold: float  # cosine at which the plan fitted the budget; lower than the one given where it had to be
    threshold_given: float
    similarity: str  # "gradient" or "weight"
    representatives: tuple[str, ...]  # the members that were compared, one a depth, the deepest first
    evidence: tuple[ClusterEvidence, ...]  # one record a first cluster

    def to_dict(self) -> dict[str, Any]:
        """Content of search.json."""
        return dict(
            as_content(
                SearchRecord(
                    similarity=self.similarity,
                    threshold_given=self.threshold_given,
                    threshold=self.threshold,
                    anchor=self.representatives[0],
                    representatives=self.representatives,
                    plan=self.plan.fingerprint,
                    clusters=tuple(evidence.record() for evidence in self.evidence),
                )
            )
        )


def split_clusters(
    ensemble: SuperWeightEnsemble, loader: Batches | None, method: ClusterSearch, budget: float | None
) -> SplitClusters:
    """Split the clusters of a plan by similarity; the threshold falls until the plan fits the budget."""
    _check_ensemble(ensemble, method)
    plan, clusters = ensemble.plan, ensemble.plan.superweight_clusters
    tied = method.coefficients == "tied"
    limit = plan.budget if budget is None else resolve_budget(budget, plan.independent_parameters)
    depths = find_depths(ensemble)
    cosines = _cosines(ensemble, loader, method, depths)
    policy = BudgetPolicy(
        cap=plan.cap,
        coefficients=method.coefficients,
        reserve_untied=tied if method.reserve_untied is None else method.reserve_untied,
        budget_counts=plan.budget_counts,
    )
    at, least = method.threshold, None
    while True:
        evidence = tuple(_decide(index, cluster, cosines[index], depths, at) for index, cluster in clusters.items())
        groups = [group for one in evidence for group in _groups(one, plan.member_names, tied)]
        minimum = groups_minimum(plan.members, groups, policy)
        least = minimum if least is None else min(least, minimum)
        if minimum <= limit:
            break
        if not any(any(one.sets) for one in evidence):
            raise SuperWeightError(
                f"a budget of {limit:,} parameters is below the minimum at every threshold, {least:,} "
                f"({least / plan.independent_parameters:.3f} of the members apart): raise it or use fewer bins"
            )
        at = round(at - THRESHOLD_STEP, 10)
    if at < method.threshold:
        _LOG.info("the threshold fell from %g to %g: above, the plan does not fit the budget", method.threshold, at)
    found = plan_groups(plan.members, groups, limit, policy)
    current_processes().assert_equal_across_ranks(found.fingerprint, "the sharing plan that the search found")
    return SplitClusters(
        plan=found,
        threshold=at,
        threshold_given=method.threshold,
        similarity=method.similarity,
        representatives=depths.representatives,
        evidence=evidence,
    )


def _check_ensemble(ensemble: SuperWeightEnsemble, method: ClusterSearch) -> None:
    if not ensemble.plan.clusters:
        raise SuperWeightError("the ensemble shares nothing: a search splits the clusters that a plan has")
    check_searchable(ensemble.plan)
    check_trained(ensemble)
    slots = [slot for cluster in ensemble.plan.superweight_clusters.values() for slot in cluster.slots]
    if isinstance(method, WeightSearch) and all(slot.num_vectors == 1 for slot in slots):
        raise SuperWeightError(
            "all coefficients are tied, so all weights of a cluster are alike: "
            "compare weights of an ensemble with coefficients 'own'"
        )


def _cosines(
    ensemble: SuperWeightEnsemble, loader: Batches | None, method: ClusterSearch, depths: Depths
) -> dict[int, Tensor]:
    """Cosines of the compared targets, the anchor's first, by cluster index."""
    if isinstance(method, GradientSearch):
        assert loader is not None, "checked by search_sharing"
        tensors = weight_gradients(
            ensemble, loader, depths.searched, max_batches=method.max_batches, objective=method.objective
        )
    else:
        with torch.no_grad():
            weights = ensemble.bank.generate(depths.searched)
        tensors = {(member, name): weight for member, own in weights.items() for name, weight in own.items()}
    found = {}
    for index in ensemble.plan.superweight_clusters:
        compared = [target for member in depths.compared(index) for target in depths.targets[member][index]]
        found[index] = cropped_cosines([target.of(tensors[target.member, target.name]) for target in compared])
    return found


def _decide(index: int, cluster: Cluster, cosines: Tensor, depths: Depths, threshold: float) -> ClusterEvidence:
    """Sets and leaders of one first cluster at a threshold."""
    compared = depths.compared(index)
    anchors = len(depths.targets[compared[0]][index])
    anchor_sets = merged_sets(cosines[:anchors, :anchors], threshold)
    nearest = cosines[:, :anchors].argmax(1).tolist()
    targets = [target for member in compared for target in depths.targets[member][index]]
    leader_of = dict(zip(targets, [*range(anchors), *nearest[anchors:]]))
    for member in depths.order:
        if member not in compared:
            followers = zip(depths.targets[member][index], depths.counterparts(member, index))
            leader_of.update({target: leader_of[like] for target, like in followers})
    leaders = tuple(leader_of.values())
    return ClusterEvidence(
        cluster=cluster,
        targets=tuple(leader_of),
        num_anchors=anchors,
        similarity=cosines,
        sets=tuple(anchor_sets[leader] for leader in leaders),
        leaders=leaders,
    )


def _groups(evidence: ClusterEvidence, members: Sequence[str], tied: bool) -> list[TargetGroup]:
    """The final clusters that a first one is split into; targets member after member, as everywhere."""
    cluster, count = evidence.cluster, max(evidence.sets) + 1
    order = sorted(range(len(evidence.targets)), key=lambda place: members.index(evidence.targets[place].member))
    groups = []
    for number in range(count):
        places = [place for place in order if evidence.sets[place] == number]
        local = {place: index for index, place in enumerate(places)}
        targets = [evidence.targets[place] for place in places]
        groups.append(
            TargetGroup(
                name=f"{cluster.name} set {number + 1}/{count}" if count > 1 else cluster.name,
                targets=tuple(
                    Target(
                        member=one.member,
                        names=one.names,
                        part=one.part,
                        shape=cluster.shape_of(one),
                        kind=cluster.kind_of(one),
                    )
                    for one in targets
                ),
                leaders=tuple(local[evidence.leaders[place]] for place in places) if tied else None,
            )
        )
    return groups


@dataclass(frozen=True, slots=True, kw_only=True)
class Depths:
    """Members by depth."""

    representatives: tuple[str, ...]  # one member a depth, the deepest first: the widest, or the first of these
    representative_of: dict[str, str]  # for each member that shares anything, the one that stands for its depth
    order: tuple[str, ...]  # the members that share, the deepest and widest first
    targets: dict[str, tuple[tuple[PlannedTarget, ...], ...]]  # by member and cluster, in the order of construction
    places: dict[PlannedTarget, float]  # how far down its member a target stands, 0 to 1

    @property
    def searched(self) -> tuple[str, ...]:
        """The members that are compared in any cluster, the deepest first."""
        num_clusters = len(next(iter(self.targets.values())))
        compared = {member for index in range(num_clusters) for member in self.compared(index)}
        return tuple(member for member in self.order if member in compared)

    def compared(self, index: int) -> tuple[str, ...]:
        """The members whose targets in a cluster are compared, the anchor first."""
        there = [name for name in self.order if self.targets[name][index]]
        # Where no representative has a target there, the deepest member that has one is compared.
        return tuple(name for name in there if name in self.representatives) or (there[0],)

    def counterparts(self, member: str, index: int) -> list[PlannedTarget]:
        """For each target of a member that is not compared in a cluster: the compared target that it follows."""
        compared = self.compared(index)
        leader = self.representative_of[member]
        # Its representative leads, or the anchor where the representative has no target there.
        own, others = self.targets[member][index], self.targets[leader if leader in compared else compared[0]][index]
        if len(own) == len(others):
            return list(others)  # index by index; else the target at the nearest place
        return [min(others, key=lambda other: abs(self.places[other] - self.places[target])) for target in own]


def find_depths(ensemble: SuperWeightEnsemble) -> Depths:
    plan = ensemble.plan
    check_searchable(plan)
    clusters = plan.superweight_clusters.values()
    order = {name: _construction_order(ensemble, name) for name in plan.member_names}
    targets = {
        name: tuple(tuple(target for target in order[name] if target in set(cluster.targets)) for cluster in clusters)
        for name in plan.member_names
    }
    kernels = [(cluster.kind, cluster.kernels) for cluster in clusters]
    # Two members are equally deep if most layers of both have one kernel, and each first cluster of that kernel holds
    # as many targets of one as of the other.
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


def searched_members(ensemble: SuperWeightEnsemble) -> tuple[str, ...]:
    """The members whose weights a search compares, the deepest first: those to train before it."""
    return find_depths(ensemble).searched


def check_searchable(plan: SharingPlan) -> None:
    """Refuse a plan with groups that read a flat bank, or clusters of several kernels; names the first."""
    for group in plan.ssn_groups.values():
        raise SuperWeightError(
            f"a search splits clusters of SuperWeights, and {group.name!r} reads a flat bank: plan with "
            "generator='superweight', and a budget that it can meet"
        )
    for cluster in plan.superweight_clusters.values():
        if len(cluster.kernels) > 1:
            raise SuperWeightError(
                f"a search compares layers of one kernel, and {cluster.name!r} has several: plan with kernels='apart'"
            )
