"""Cluster search: targets whose gradients conflict get templates of their own.

Source: Teterwak et al., WACV 2024
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from superweight_ensembles.ensemble import SuperWeightEnsemble
from superweight_ensembles.errors import SuperWeightError, unknown_name
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
    Batches,
    TargetTensors,
    cropped_cosines,
    merged_sets,
    weight_gradients,
)
from superweight_ensembles.training.distributed import current_processes

# FOLDED search.depths: Which members stand for a depth, and in what order: found from the plan, not from how the
# members are listed.


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


SIMILARITIES = ("gradient", "weight")
SEARCH_FORMAT = 1
THRESHOLD_STEP = 0.05
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterEvidence:
    """What a search saw of one first cluster, and what it made of it.

    Attributes:
        cluster: The first cluster.
        targets: The anchor's (the deepest member's) first, then those of the other depths, then the followers.
        num_anchors: Targets of the anchor.
        similarity: (n, n) cosines of the first n targets, those that were compared; the rest are followers.
        sets: For each target, the final cluster, numbered within this first one.
        leaders: For each target, the place of the anchor's target that it goes with.
    """

    cluster: Cluster
    targets: tuple[PlannedTarget, ...]
    num_anchors: int
    similarity: Tensor
    sets: tuple[int, ...]
    leaders: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """A plan that was searched for, and why it is as it is.

    Attributes:
        plan: What :func:`search_clusters` returns.
        threshold: At which the plan fitted the budget; lower than the one given where it had to be.
        threshold_given: As it was asked for.
        similarity: ``gradient`` or ``weight``.
        representatives: The members that were compared, one a depth, the deepest first.
        evidence: One record a first cluster.
    """

    plan: SharingPlan
    threshold: float
    threshold_given: float
    similarity: str
    representatives: tuple[str, ...]
    evidence: tuple[ClusterEvidence, ...]

    def to_dict(self) -> dict[str, Any]:
        """As search.json holds it."""
        return {
            "format": SEARCH_FORMAT,
            "similarity": self.similarity,
            "threshold_given": self.threshold_given,
            "threshold": self.threshold,
            "anchor": self.representatives[0],
            "representatives": list(self.representatives),
            "plan": self.plan.fingerprint,
            "clusters": [_evidence_dict(evidence) for evidence in self.evidence],
        }


def search_clusters(
    ensemble: SuperWeightEnsemble,
    loader: Batches,
    *,
    budget: float | None = None,
    threshold: float = 0.1,
    coefficients: str = "tied",
    similarity: str = "gradient",
    max_batches: int | None = None,
    reserve_untied: bool | None = None,
) -> SharingPlan:
    """Split the clusters of a plan where the gradients of its targets conflict.

    Train an ensemble for some epochs first, best with ``coefficients="tied"``, so that all targets of a cluster hold
    the same numbers and only their gradients differ. In each cluster the targets of the deepest, widest member merge
    while their gradients' cosine exceeds the threshold; a target of another depth joins the one that it is most like,
    and takes its coefficients; a member as deep as one placed before follows it, layer by layer. If the plan needs more
    than the budget with one template a slot, the threshold falls by 0.05 until it fits. The weights are
    of no further use: build a new ensemble on the plan and train it.

    Args:
        ensemble: Trained; its plan's clusters are split, its bank is not changed.
        loader: Batches of training images and labels; the same batches give the same plan. In a process group, call
            this on every rank, each with its own share of the batches: all find one plan.
        budget: As :func:`plan_sharing` takes it; that of the ensemble's plan where None.
        threshold: Cosine above which two targets share templates, -1 to 1.
        coefficients: ``tied``: a target that joined uses the coefficients of the target it joined; ``own``,
            ``embedding``: as in :func:`plan_sharing`.
        similarity: Of ``gradient``s, or of the generated ``weight``s themselves (for comparison).
        max_batches: Read no more than so many; all where None. Similarity of weights reads none.
        reserve_untied: Leave so much of the budget unspent that tied coefficients can be un-tied later: True unless
            given, where they are tied.

    Returns:
        A plan of the same members, with the cap and the counting of the ensemble's plan.

    Raises:
        SuperWeightError: An ensemble that was never trained, shares nothing or reads flat banks, a threshold outside
            [-1, 1], a loader without samples, gradients that are not finite (names the target) or all zero (names the
            member), a budget below the minimum at every threshold (states the least), ranks that find different plans.

    Source: Teterwak et al., WACV 2024
    Differs from paper: whole sets are merged; the deepest and widest members are found, not assumed to come first; the
    budget is held against the minimum of every slot, not the largest layer; a search that cannot fit ends.

    Example:
        >>> import superweight_ensembles as swe
        >>> data = swe.load_data("synthetic")
        >>> members = {"a": swe.wide_resnet(10, 1, data.num_classes), "b": swe.wide_resnet(16, 1, data.num_classes)}
        >>> ensemble = swe.SuperWeightEnsemble(members, budget=0.9, coefficients="tied")
        >>> _ = swe.train(ensemble, data, swe.TrainConfig(epochs=1, batch_size=64))
        >>> plan = swe.search_clusters(ensemble, data.loader("train", 64), max_batches=2)
        >>> final = swe.SuperWeightEnsemble(members, plan=plan)
        >>> final.num_parameters <= 0.9 * final.independent_parameters
        True
    """
    return find_sharing(
        ensemble,
        loader,
        budget=budget,
        threshold=threshold,
        coefficients=coefficients,
        similarity=similarity,
        max_batches=max_batches,
        reserve_untied=reserve_untied,
    ).plan


def find_sharing(
    ensemble: SuperWeightEnsemble,
    loader: Batches,
    *,
    budget: float | None = None,
    threshold: float = 0.1,
    coefficients: str = "tied",
    similarity: str = "gradient",
    max_batches: int | None = None,
    reserve_untied: bool | None = None,
) -> SearchResult:
    """:func:`search_clusters` with its evidence: similarities, sets, leaders and the threshold that fitted."""
    _check(ensemble, threshold, similarity)
    plan = ensemble.plan
    tied = coefficients == "tied"
    policy = BudgetPolicy(
        cap=plan.cap,
        coefficients=coefficients,
        reserve_untied=tied if reserve_untied is None else reserve_untied,
        budget_counts=plan.budget_counts,
    )
    limit = plan.budget if budget is None else resolve_budget(budget, plan.independent_parameters)
    depths = find_depths(ensemble)
    tensors = _tensors(ensemble, loader, searched_members(ensemble), similarity, max_batches)
    seen = [_similarities(index, cluster, depths, tensors) for index, cluster in plan.superweight_clusters.items()]
    if similarity == "weight" and max_batches is not None:
        raise SuperWeightError(
            "max_batches does nothing with similarity 'weight', which reads no batches: leave it out"
        )
    at, least = threshold, None
    while True:
        evidence = tuple(_decide(one, depths, at) for one in seen)
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
    if at < threshold:
        _LOG.info("the threshold fell from %g to %g: above, the plan does not fit the budget", threshold, at)
    found = plan_groups(plan.members, groups, limit, policy)
    current_processes().assert_equal_across_ranks(found.fingerprint, "the sharing plan that the search found")
    return SearchResult(
        plan=found,
        threshold=at,
        threshold_given=threshold,
        similarity=similarity,
        representatives=depths.representatives,
        evidence=evidence,
    )


def _check(ensemble: SuperWeightEnsemble, threshold: float, similarity: str) -> None:
    if not isinstance(ensemble, SuperWeightEnsemble):
        raise SuperWeightError(f"a search takes a SuperWeightEnsemble; got {type(ensemble).__name__}")
    check_threshold(threshold)
    if similarity not in SIMILARITIES:
        raise unknown_name("similarity", similarity, SIMILARITIES)
    if not ensemble.plan.clusters:
        raise SuperWeightError("the ensemble shares nothing: a search splits the clusters that a plan has")
    check_searchable(ensemble.plan)
    if ensemble.bank.is_untouched:
        raise SuperWeightError(
            "the ensemble is untrained, and its gradients say little: train it for some epochs first"
        )
    clusters = ensemble.plan.superweight_clusters.values()
    every = [slot.num_vectors for cluster in clusters for slot in cluster.slots]
    if similarity == "weight" and max(every) == 1:
        raise SuperWeightError(
            "all coefficients are tied, so all weights of a cluster are alike: "
            "compare weights of an ensemble with coefficients 'own'"
        )


def check_threshold(threshold: float) -> None:
    """Refuse what is no cosine."""
    number = isinstance(threshold, (int, float)) and not isinstance(threshold, bool)
    if not number or not -1 <= threshold <= 1:
        raise SuperWeightError(f"threshold is a cosine, -1 to 1; got {threshold!r}")


def _tensors(
    ensemble: SuperWeightEnsemble, loader: Batches, members: Sequence[str], similarity: str, max_batches: int | None
) -> TargetTensors:
    if similarity == "gradient":
        return weight_gradients(ensemble, loader, members, max_batches=max_batches)
    with torch.no_grad():
        weights = ensemble.bank.generate(members)
    return {(member, name): weight for member in members for name, weight in weights[member].items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """A first cluster and the cosines of its targets; ``order`` is of members, the anchor first."""

    index: int
    cluster: Cluster
    order: tuple[str, ...]
    similarity: Tensor


def _similarities(index: int, cluster: Cluster, depths: Depths, tensors: TargetTensors) -> _Seen:
    order = depths.compared(index)
    compared = [target for member in order for target in depths.targets[member][index]]
    cosines = cropped_cosines([tensors[target.member, target.name] for target in compared])
    return _Seen(index=index, cluster=cluster, order=order, similarity=cosines)


def _decide(seen: _Seen, depths: Depths, threshold: float) -> ClusterEvidence:
    """Sets and leaders of one first cluster at a threshold."""
    own = {member: depths.targets[member][seen.index] for member in seen.order}
    anchors = len(own[seen.order[0]])
    anchor_sets = merged_sets(seen.similarity[:anchors, :anchors], threshold)
    nearest = seen.similarity[:, :anchors].argmax(1).tolist()
    leaders = [*range(anchors), *nearest[anchors:]]
    leader_of: dict[PlannedTarget, int] = {}
    targets: list[PlannedTarget] = []
    for member in seen.order:
        for target in own[member]:
            leader_of[target] = leaders[len(targets)]
            targets.append(target)
    for member in depths.order:
        if member in seen.order:
            continue
        for target, like in zip(depths.targets[member][seen.index], depths.counterparts(member, seen.index)):
            leader_of[target] = leader_of[like]
            targets.append(target)
    return ClusterEvidence(
        cluster=seen.cluster,
        targets=tuple(targets),
        num_anchors=anchors,
        similarity=seen.similarity,
        sets=tuple(anchor_sets[leader_of[target]] for target in targets),
        leaders=tuple(leader_of[target] for target in targets),
    )


def _groups(evidence: ClusterEvidence, members: Sequence[str], tied: bool) -> list[TargetGroup]:
    """The final clusters that a first one is split into; targets member after member, as everywhere."""
    count = max(evidence.sets) + 1
    order = sorted(range(len(evidence.targets)), key=lambda place: members.index(evidence.targets[place].member))
    groups = []
    for number in range(count):
        places = [place for place in order if evidence.sets[place] == number]
        local = {place: index for index, place in enumerate(places)}
        name = evidence.cluster.name
        groups.append(
            TargetGroup(
                name=f"{name} set {number + 1}/{count}" if count > 1 else name,
                targets=tuple(_as_target(evidence.cluster, evidence.targets[place]) for place in places),
                leaders=tuple(local[evidence.leaders[place]] for place in places) if tied else None,
            )
        )
    return groups


def _as_target(cluster: Cluster, target: PlannedTarget) -> Target:
    return Target(member=target.member, names=target.names, shape=cluster.shape_of(target), kind=cluster.kind)


def _evidence_dict(evidence: ClusterEvidence) -> dict[str, Any]:
    count = len(evidence.targets)
    compared = len(evidence.similarity)
    cosines: list[list[float | None]] = [
        [*(round(value, 4) for value in row), *[None] * (count - compared)] for row in evidence.similarity.tolist()
    ]
    return {
        "name": evidence.cluster.name,
        "targets": [target.label for target in evidence.targets],
        "anchors": evidence.num_anchors,
        "similarity": [*cosines, *([None] * count for _ in range(count - compared))],
        "sets": list(evidence.sets),
        "leaders": list(evidence.leaders),
    }
