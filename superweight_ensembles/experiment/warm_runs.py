"""The stage of a run in which its shared arm starts from trained members.

RUN/shared/warm_start/       the ensemble as it started
RUN/shared/warm_start.json   the trained members that it started from, and how near it came; written last
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from superweight_ensembles.anytime.metrics import probability_metrics
from superweight_ensembles.anytime.predictions import Predictions
from superweight_ensembles.ensemble.ensemble import SuperWeightEnsemble
from superweight_ensembles.ensemble.saving import check_ensemble_files, read_ensemble_tensors
from superweight_ensembles.ensemble.warm_starting import warm_start
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.experiment.recipe import Recipe
from superweight_ensembles.experiment.result_files import check_content
from superweight_ensembles.storage.files import read_json, write_json

WARM_START_FILE = "warm_start.json"
_WARM_START_FOLDER = "warm_start"
_BASELINE = Path("independent") / "ensemble"


def check_trained_members(recipe: Recipe, members: dict[str, nn.Module], folder: Path, *, overwrite: bool) -> None:
    """Refuse, before anything is trained, a saved ensemble that a run cannot start from.

    Args:
        recipe: Of the run.
        members: That it builds.
        folder: Of the run.
        overwrite: Whether what stands there is about to be replaced.

    Raises:
        SuperWeightError: ``sharing.init_from`` is missing, damaged, of other members, or about to be replaced.
    """
    given = recipe.sharing.init_from
    if given is None or ((folder / "shared" / WARM_START_FILE).is_file() and not overwrite):
        return
    if overwrite and Path(given).resolve().is_relative_to(folder.resolve()):
        raise SuperWeightError(
            f"sharing.init_from: {given} is in {folder}, which --overwrite replaces: give another --out"
        )
    check_init_from(recipe, members)


def check_init_from(recipe: Recipe, members: dict[str, nn.Module]) -> None:
    """Read the trained members that a recipe names by their folder, if it does.

    Raises:
        SuperWeightError: The folder is missing, damaged, or of other members.
    """
    if recipe.sharing.init_from is not None:
        _trained(Path(recipe.sharing.init_from), members)


def start_warm(recipe: Recipe, ensemble: SuperWeightEnsemble, members: dict[str, nn.Module], folder: Path) -> None:
    """Give the shared arm its start from trained members: found once, and read again by a run that is resumed."""
    own = folder / "shared"
    if not (own / WARM_START_FILE).is_file():
        given = recipe.sharing.init_from
        found = warm_start(ensemble, _trained(folder / _BASELINE if given is None else Path(given), members))
        own.mkdir(exist_ok=True)
        ensemble.save(own / _WARM_START_FOLDER)
        write_json(own / WARM_START_FILE, {"init_from": given or "independent", **found.to_dict()})
    check_ensemble_files(own / _WARM_START_FOLDER)
    read_ensemble_tensors(ensemble, own / _WARM_START_FOLDER)


def warm_results(folder: Path, predictions_of: Callable[[SuperWeightEnsemble], Predictions]) -> dict[str, Any] | None:
    """How near an arm started, and how well it did before any training of its own; None where it started at random.

    Args:
        folder: Of the arm.
        predictions_of: Runs an ensemble on the test images.
    """
    file = folder / WARM_START_FILE
    if not file.is_file():
        return None
    table = predictions_of(SuperWeightEnsemble.load(folder / _WARM_START_FOLDER))
    members = zip(table.members, table.probabilities)
    return {
        **check_content(read_json(file), file, "warm start"),
        "ensemble": probability_metrics(table.probabilities.mean(0), table.labels).to_dict(),
        "members": [
            {"name": name, "metrics": probability_metrics(rows, table.labels).to_dict()} for name, rows in members
        ],
    }


def _trained(folder: Path, members: dict[str, nn.Module]) -> SuperWeightEnsemble:
    try:
        return SuperWeightEnsemble.load(folder, members)
    except SuperWeightError as error:
        raise SuperWeightError(f"sharing.init: no start from {folder}: {error}") from None
