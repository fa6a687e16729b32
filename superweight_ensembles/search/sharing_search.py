"""One search for who shares with whom, by the method that its options name."""

from __future__ import annotations

from superweight_ensembles.ensemble import SuperWeightEnsemble
from superweight_ensembles.errors import SuperWeightError, names_options, unknown_name
from superweight_ensembles.search.gradient_clusters import (
    GradientSearch,
    SplitClusters,
    WeightSearch,
    split_clusters,
)
from superweight_ensembles.search.learned_groups import KMeansSearch, LearnedGroups, group_layers
from superweight_ensembles.training import Batches

SearchMethod = GradientSearch | WeightSearch | KMeansSearch
SearchResult = SplitClusters | LearnedGroups


@names_options
def search_sharing(
    ensemble: SuperWeightEnsemble,
    loader: Batches | None = None,
    *,
    method: str | SearchMethod = "gradient",
    budget: float | None = None,
) -> SearchResult:
    """Find a better plan of the same members in an ensemble that was trained for some epochs.

    ``gradient`` and ``weight`` split clusters of SuperWeights: in each, targets whose gradients, or weights, have a
    cosine above a threshold go on sharing templates, the others part. Train with ``coefficients="tied"`` before
    ``gradient``, so that all targets of a cluster hold the same numbers and only their gradients differ. If the plan
    needs more than the budget with one template a slot, the threshold falls by 0.05 until it fits. ``k_means`` groups
    layers of a Shapeshifter Network by the coefficients with which they mix templates that all of them share:
    ``generator="ssn", clusters="one", ssn=SsnOptions(combine="softmax", upsample="inter", templates=4)``.

    The ensemble's weights are of no further use: build a new ensemble on the plan and train it.

    Args:
        ensemble: Trained ensemble; it is not changed.
        loader: Batches of training images and labels, for ``gradient`` alone; the same batches give the same plan. In
            a process group, call this on every rank, each with its own share of the batches: all find one plan.
        method: ``gradient`` or ``weight`` for :class:`GradientSearch` or :class:`WeightSearch` with its defaults; or a
            :class:`GradientSearch`, :class:`WeightSearch` or :class:`KMeansSearch` (which has no defaults).
        budget: Budget as :func:`plan_sharing` takes it; that of the ensemble's plan where None.

    Returns:
        A plan with the cap and the counting of the ensemble's, ``.plan``, and what it was found from.

    Raises:
        SuperWeightError: An unknown method, a loader that is missing or not used; an ensemble that was never
            trained, that shares nothing, or whose generator the method does not search; a loader without samples;
            gradients that are not finite (names the target) or all zero (names the member); more groups than layers or
            than different coefficients; a budget below the minimum (states it); ranks that find different plans.

    Source: Teterwak et al., WACV 2024 (``gradient``); Plummer et al., ICLR 2022, section 3.3 (``k_means``: 15 epochs
    with 4 templates).
    Differs from paper: whole sets are merged; the deepest and widest members are found, not assumed to come first; the
    budget is compared with the minimum of every slot, not the largest layer; a search that cannot fit ends in an error.

    Example:
        >>> import superweight_ensembles as swe
        >>> data = swe.load_data("synthetic")
        >>> members = {"a": swe.wide_resnet(10, 1, data.num_classes), "b": swe.wide_resnet(16, 1, data.num_classes)}
        >>> ensemble = swe.SuperWeightEnsemble(members, budget=0.9, coefficients="tied")
        >>> _ = swe.train(ensemble, data, swe.TrainConfig(epochs=1, batch_size=64))
        >>> method = swe.search.GradientSearch(threshold=0.2, max_batches=2)
        >>> found = swe.search_sharing(ensemble, data.loader("train", 64), method=method)
        >>> final = swe.SuperWeightEnsemble(members, plan=found.plan)
        >>> final.num_parameters <= 0.9 * final.independent_parameters
        True
    """
    if not isinstance(ensemble, SuperWeightEnsemble):
        raise SuperWeightError(f"a search takes a SuperWeightEnsemble; got {type(ensemble).__name__}")
    chosen = method if isinstance(method, SearchMethod) else _by_name(method)
    if isinstance(chosen, GradientSearch):
        if loader is None:
            raise SuperWeightError("method 'gradient' needs loader=, batches of training images and labels")
    elif loader is not None:
        raise SuperWeightError(
            f"loader does nothing with {type(chosen).__name__}, which reads no batches: leave it out"
        )
    if isinstance(chosen, KMeansSearch):
        return group_layers(ensemble, chosen, budget)
    return split_clusters(ensemble, loader, chosen, budget)


def _by_name(method: str) -> SearchMethod:
    """The method with a name, with its defaults."""
    if method == "gradient":
        return GradientSearch()
    if method == "weight":
        return WeightSearch()
    if method == "k_means":
        raise SuperWeightError("method 'k_means' needs num_groups: method=swe.search.KMeansSearch(num_groups=4)")
    raise unknown_name("method", method, ("gradient", "weight", "k_means"))
