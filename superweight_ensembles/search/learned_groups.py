"""Groups of a Shapeshifter Network that are learned: layers that mix shared templates alike read one bank.

Source: Plummer et al., ICLR 2022, section 3.3
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from superweight_ensembles.ensemble import SuperWeightEnsemble, vectors_by_key
from superweight_ensembles.errors import SuperWeightError, check_number, names_options
from superweight_ensembles.plan import (
    BudgetPolicy,
    SharingPlan,
    SsnGroup,
    SsnOptions,
    Target,
    TargetGroup,
    check_num_groups,
    plan_groups,
)
from superweight_ensembles.search.gradient_clusters import SearchedCluster, SearchRecord
from superweight_ensembles.search.gradients import check_trained
from superweight_ensembles.storage import as_content
from superweight_ensembles.training.distributed import current_processes

LEARNING = SsnOptions(combine="softmax", upsample="inter", templates=4)


@names_options
@dataclass(frozen=True, slots=True, kw_only=True)
class KMeansSearch:
    """Group the layers of a Shapeshifter Network by k-means of the coefficients with which they mix shared templates.

    Attributes:
        num_groups: Number of groups to find.
        seed: Seed of k-means.
        generator: ``ssn`` or ``auto``, as :func:`plan_sharing` takes it.
        ssn: How layers read their group's bank in the new plan; the defaults where None.

    Raises:
        SuperWeightError: Another generator, or an invalid seed.
    """

    num_groups: int
    seed: int = 0
    generator: str = "ssn"
    ssn: SsnOptions | None = None

    def __post_init__(self) -> None:
        if self.generator not in ("ssn", "auto"):
            raise SuperWeightError(
                f"learned groups mix kinds of layers: generator must be 'ssn' or 'auto'; got {self.generator!r}"
            )
        check_number("seed", self.seed, whole=True, least=0, most=2**32 - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedGroups:
    """A plan whose groups were learned, and the coefficients that it was found from."""

    plan: SharingPlan  # of the same members, with the counting of the ensemble's plan
    group: SsnGroup  # the one of all layers in the plan before
    features: Tensor  # (layers, K) coefficients, or (layers, E) embeddings
    labels: tuple[int, ...]  # for each layer of the group, its new one

    def to_dict(self) -> dict[str, Any]:
        """Content of search.json: similarities are cosines of the features, less their mean."""
        centred = self.features - self.features.mean(0)
        cosines = torch.nn.functional.cosine_similarity(centred[:, None], centred[None], dim=2)
        cluster = SearchedCluster(
            name=self.group.name,
            targets=tuple(target.label for target in self.group.targets),
            anchors=len(self.labels),
            similarity=tuple(tuple(round(value, 4) for value in row) for row in cosines.tolist()),
            sets=self.labels,
            leaders=tuple(range(len(self.labels))),
        )
        return dict(as_content(SearchRecord(similarity="k_means", plan=self.plan.fingerprint, clusters=(cluster,))))


def group_layers(ensemble: SuperWeightEnsemble, method: KMeansSearch, budget: float | None) -> LearnedGroups:
    """Group layers by k-means of the coefficients, or embeddings, with which they mix shared templates."""
    group = _shared_group(ensemble)
    check_num_groups(method.num_groups, True, len(group.targets), "k-means")
    features = _features(ensemble, group)
    labels = _clustered(features, method.num_groups, method.seed)
    plan = ensemble.plan
    found = plan_groups(
        plan.members,
        _groups(group, labels),
        plan.budget if budget is None else budget,
        BudgetPolicy(generator=method.generator, ssn=method.ssn, cap=plan.cap, budget_counts=plan.budget_counts),
    )
    current_processes().assert_equal_across_ranks(found.fingerprint, "the sharing plan that the search found")
    return LearnedGroups(plan=found, group=group, features=features, labels=labels)


def _shared_group(ensemble: SuperWeightEnsemble) -> SsnGroup:
    """The one group of a plan, whose layers all mix the same templates."""
    groups = [*ensemble.plan.ssn_groups.values()]
    mixing = [group for group in groups if group.options.templates and group.options.combine != "avg"]
    if len(mixing) != 1 or len(ensemble.plan.clusters) != 1:
        raise SuperWeightError(
            "groups are learned from layers that all mix the same templates: plan with generator='ssn', "
            "clusters='one', ssn=SsnOptions(combine='softmax', upsample='inter', templates=4)"
        )
    check_trained(ensemble, "coefficients say nothing")
    return mixing[0]


@torch.no_grad()
def _features(ensemble: SuperWeightEnsemble, group: SsnGroup) -> Tensor:
    """One row a layer for k-means: embeddings, positive shares, or coefficients of length one."""
    ((key, places),) = vectors_by_key(0, group.window_specs).items()
    assert places == list(range(len(group.targets))), "every layer reads every template"
    held = ensemble.bank.coefficients[key].detach().double().cpu()
    if not held.isfinite().all():
        raise SuperWeightError("the ensemble's coefficients are not finite: its training went wrong")
    if group.options.combine == "emb":
        return held
    if group.options.combine == "softmax":
        return held.softmax(1)
    return held / held.norm(dim=1, keepdim=True).clamp_min(1e-12)  # the length is the layer's scale, not its mixture


def _clustered(features: Tensor, num_groups: int, seed: int) -> tuple[int, ...]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # becomes the error below
        found = KMeans(num_groups, n_init=10, random_state=seed).fit_predict(features.numpy())
    order = {label: place for place, label in enumerate(dict.fromkeys(found.tolist()))}
    if len(order) < num_groups:
        raise SuperWeightError(
            f"num_groups is {num_groups}, but only {len(order)} different mixtures of templates were learned: train "
            "longer, or ask for fewer"
        )
    return tuple(order[label] for label in found.tolist())


def _groups(group: SsnGroup, labels: tuple[int, ...]) -> list[TargetGroup]:
    targets: dict[int, list[Target]] = {number: [] for number in range(max(labels) + 1)}
    for target, label in zip(group.targets, labels):
        targets[label].append(target)
    return [
        TargetGroup(name=f"learned {number + 1}/{len(targets)}", targets=tuple(found))
        for number, found in targets.items()
    ]
