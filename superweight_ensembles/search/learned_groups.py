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
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.plan import (
    BudgetPolicy,
    SharingPlan,
    SsnGroup,
    SsnOptions,
    TargetGroup,
    check_num_groups,
    check_seed,
    plan_groups,
)
from superweight_ensembles.search.gradient_clusters import SEARCH_FORMAT
from superweight_ensembles.training.distributed import current_processes

LEARNING = SsnOptions(combine="softmax", upsample="inter", templates=4)


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedGroups:
    """A plan whose groups were learned, and why it is as it is.

    Attributes:
        plan: What :func:`learn_groups` returns.
        group: Of the plan before it, which all layers shared.
        features: (layers, K) coefficients, or (layers, E) embeddings.
        labels: For each layer of the group, its new one.
    """

    plan: SharingPlan
    group: SsnGroup
    features: Tensor
    labels: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """As search.json holds it: similarities are cosines of what was clustered, less its mean."""
        centred = self.features - self.features.mean(0)
        cosines = torch.nn.functional.cosine_similarity(centred[:, None], centred[None], dim=2)
        return {
            "format": SEARCH_FORMAT,
            "similarity": "k_means",
            "plan": self.plan.fingerprint,
            "clusters": [
                {
                    "name": self.group.name,
                    "targets": [target.label for target in self.group.targets],
                    "anchors": len(self.labels),
                    "similarity": [[round(value, 4) for value in row] for row in cosines.tolist()],
                    "sets": list(self.labels),
                    "leaders": list(range(len(self.labels))),
                }
            ],
        }


def learn_groups(
    ensemble: SuperWeightEnsemble,
    num_groups: int,
    *,
    budget: float | None = None,
    generator: str = "ssn",
    ssn: SsnOptions | None = None,
    seed: int = 0,
) -> SharingPlan:
    """Group layers by k-means of the coefficients, or embeddings, with which they mix shared templates.

    Train an ensemble for some epochs first, of which all layers mix the same templates: ``generator="ssn",
    clusters="one", ssn=SsnOptions(combine="softmax", upsample="inter", templates=4)``. Its weights are
    of no further use: build a new ensemble on the plan.

    Args:
        ensemble: Trained; of one group with shared templates.
        num_groups: To find.
        budget: As :func:`plan_sharing` takes it; that of the ensemble's plan where None.
        generator: ``ssn`` or ``auto``, as :func:`plan_sharing` takes it.
        ssn: How layers read their group's bank in the new plan; the defaults where None.
        seed: Of k-means.

    Raises:
        SuperWeightError: An ensemble of another kind or that was never trained, more groups than layers, or than
            different coefficients; a budget below the minimum.

    Source: Plummer et al., ICLR 2022, section 3.3: 15 epochs with 4 templates.

    Example:
        >>> import superweight_ensembles as swe
        >>> data = swe.load_data("synthetic")
        >>> members = {"wrn": swe.wide_resnet(10, 1, data.num_classes)}
        >>> reading = swe.plan.SsnOptions(combine="softmax", upsample="inter", templates=4)
        >>> first = swe.SuperWeightEnsemble(members, budget=0.1, generator="ssn", clusters="one", ssn=reading)
        >>> _ = swe.train(first, data, swe.TrainConfig(epochs=1, batch_size=64))
        >>> [cluster.generator for cluster in swe.learn_groups(first, 2).clusters]
        ['ssn', 'ssn']
    """
    return find_groups(ensemble, num_groups, budget=budget, generator=generator, ssn=ssn, seed=seed).plan


def find_groups(
    ensemble: SuperWeightEnsemble,
    num_groups: int,
    *,
    budget: float | None = None,
    generator: str = "ssn",
    ssn: SsnOptions | None = None,
    seed: int = 0,
) -> LearnedGroups:
    """:func:`learn_groups` with its evidence."""
    index, group = _shared_group(ensemble)
    if generator not in ("ssn", "auto"):
        raise SuperWeightError(
            f"learned groups mix kinds of layers: generator must be 'ssn' or 'auto'; got {generator!r}"
        )
    check_seed(seed, "seed")
    check_num_groups(num_groups, True, len(group.targets), "k-means")
    features = _features(ensemble, index, group)
    labels = _clustered(features, num_groups, seed)
    plan = ensemble.plan
    found = plan_groups(
        plan.members,
        _groups(group, labels),
        plan.budget if budget is None else budget,
        BudgetPolicy(generator=generator, ssn=ssn, cap=plan.cap, budget_counts=plan.budget_counts),
    )
    current_processes().assert_equal_across_ranks(found.fingerprint, "the sharing plan that the search found")
    return LearnedGroups(plan=found, group=group, features=features, labels=labels)


def _shared_group(ensemble: SuperWeightEnsemble) -> tuple[int, SsnGroup]:
    if not isinstance(ensemble, SuperWeightEnsemble):
        raise SuperWeightError(f"groups are learned from a SuperWeightEnsemble; got {type(ensemble).__name__}")
    groups = ensemble.plan.ssn_groups
    index, group = next(iter(groups.items()), (0, None))
    if (
        group is None
        or len(ensemble.plan.clusters) != 1
        or not group.options.templates
        or group.options.combine == "avg"
    ):
        raise SuperWeightError(
            "groups are learned from layers that all mix the same templates: plan with generator='ssn', "
            "clusters='one', ssn=SsnOptions(combine='softmax', upsample='inter', templates=4)"
        )
    if ensemble.bank.is_untouched:
        raise SuperWeightError("the ensemble is untrained, and its coefficients say nothing: train it for some epochs")
    return index, group


@torch.no_grad()
def _features(ensemble: SuperWeightEnsemble, index: int, group: SsnGroup) -> Tensor:
    """What k-means sees of each layer: embeddings, positive shares, or coefficients of length one."""
    ((key, places),) = vectors_by_key(index, group.window_specs).items()
    assert places == list(range(len(group.targets))), "every layer reads every template"
    held = ensemble.bank.coefficients[key].detach().double().cpu()
    if not held.isfinite().all():
        raise SuperWeightError("the ensemble's coefficients are not finite: its training went wrong")
    if group.options.combine == "emb":
        return held
    if group.options.combine == "softmax":
        return held.softmax(1)
    return held / held.norm(dim=1, keepdim=True).clamp_min(1e-12)  # a layer's deviation is no matter of mixing


def _clustered(features: Tensor, num_groups: int, seed: int) -> tuple[int, ...]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # said below, in words
        found = KMeans(num_groups, n_init=10, random_state=seed).fit_predict(features.numpy())
    order = {label: place for place, label in enumerate(dict.fromkeys(found.tolist()))}
    if len(order) < num_groups:
        raise SuperWeightError(
            f"num_groups is {num_groups}, but only {len(order)} different mixtures of templates were learned: train "
            "longer, or ask for fewer"
        )
    return tuple(order[label] for label in found.tolist())


def _groups(group: SsnGroup, labels: tuple[int, ...]) -> list[TargetGroup]:
    count = max(labels) + 1
    return [
        TargetGroup(
            name=f"learned {number + 1}/{count}",
            targets=tuple(target for target, label in zip(group.targets, labels) if label == number),
        )
        for number in range(count)
    ]
