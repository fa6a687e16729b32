"""The stage of a run that finds who shares with whom.

RUN/search/plan.json     the plan before it
RUN/search/search.json   what it saw: similarities, sets
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from superweight_ensembles.data.image_data import ImageData
from superweight_ensembles.ensemble.ensemble import SuperWeightEnsemble
from superweight_ensembles.experiment.recipe import Recipe
from superweight_ensembles.plan.plan import SharingPlan
from superweight_ensembles.search.clusters import SearchResult, find_sharing
from superweight_ensembles.search.depths import searched_members
from superweight_ensembles.search.groups import LearnedGroups, find_groups
from superweight_ensembles.storage.files import write_json, write_text
from superweight_ensembles.training.distributed.group import Processes
from superweight_ensembles.training.epochs import TrainProgress
from superweight_ensembles.training.loop import train


def searched_plan(
    recipe: Recipe,
    members: dict[str, nn.Module],
    plan: SharingPlan,
    data: ImageData,
    folder: Path,
    progress: Callable[[TrainProgress], None] | None,
    processes: Processes,
) -> SharingPlan:
    """Train a first plan for some epochs and split its clusters, or learn groups; the weights are thrown away."""
    ensemble = SuperWeightEnsemble(members, plan=plan, rng=recipe.bank_generator())
    learns = recipe.sharing.search == "k_means"
    searched = ensemble.member_names if learns else searched_members(ensemble)
    config = recipe.search_training()
    train(ensemble, data, config, members=searched, out=folder, resume=True, callback=progress)
    found = _learned(recipe, ensemble) if learns else _split(recipe, ensemble, data, processes)

    def write() -> None:
        write_text(folder / "plan.json", plan.to_json())
        write_json(folder / "search.json", found.to_dict())

    processes.first(write)
    return found.plan


def _learned(recipe: Recipe, ensemble: SuperWeightEnsemble) -> LearnedGroups:
    sharing = recipe.sharing
    assert sharing.num_groups is not None, "checked with the recipe"
    return find_groups(
        ensemble, sharing.num_groups, budget=sharing.budget, generator="ssn", ssn=sharing.ssn, seed=recipe.seed
    )


def _split(recipe: Recipe, ensemble: SuperWeightEnsemble, data: ImageData, processes: Processes) -> SearchResult:
    device = next(ensemble.parameters()).device
    return find_sharing(
        ensemble,
        data.loader("train", recipe.training.batch_size, device=device, shard=processes.shard),
        threshold=recipe.sharing.threshold,
        coefficients=recipe.sharing.coefficient_kind,
        similarity=recipe.sharing.search,
        max_batches=recipe.sharing.search_batches,
        reserve_untied=recipe.sharing.untie_epoch is not None,
    )
