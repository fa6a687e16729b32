"""Run folders: one recipe trained, evaluated and drawn.

RUN/recipe.yaml        the recipe with every default and override in it
RUN/run.json           what it ran on
RUN/search/            with a search: the plan before it, the log of its training, search.json (similarities, sets)
RUN/plan.json          the sharing plan that the shared arm is built on
RUN/ARM/ensemble/      the trained ensemble of an arm (shared, independent), with the plan that it ended with; once
                       evaluated with an anytime section, its calibrated cascade (anytime.json) as well
RUN/ARM/log.jsonl      one record an epoch; RUN/ARM/tensorboard/ the same for TensorBoard
RUN/ARM/checkpoint/    where training goes on after an interruption
RUN/results.json       what evaluation found
RUN/figures/*.png
RUN/report.html        all of it on one page
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from superweight_ensembles.anytime.calibration import MIN_SAMPLES
from superweight_ensembles.anytime.curves import measure_curves
from superweight_ensembles.anytime.predictor import AnytimePredictor
from superweight_ensembles.anytime.saving import write_policy
from superweight_ensembles.data import ImageData, ImageLoader
from superweight_ensembles.ensemble import SuperWeightEnsemble
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.evaluation import Predictions, evaluate_predictions, predict
from superweight_ensembles.own_folder import check_own_folder
from superweight_ensembles.plan import SharingPlan
from superweight_ensembles.planning import independent_plan
from superweight_ensembles.provenance import provenance
from superweight_ensembles.recipe import Recipe, load_recipe
from superweight_ensembles.result_files import check_content
from superweight_ensembles.saving import read_plan
from superweight_ensembles.search import Untying, find_sharing, searched_members
from superweight_ensembles.storage.contained import check_no_links
from superweight_ensembles.storage.files import read_json, write_json, write_text
from superweight_ensembles.training import TrainProgress, train
from superweight_ensembles.training.fabric import build_fabric
from superweight_ensembles.training.member_batches import training_loader

RUN_FORMAT = 1
_KEPT = {"checkpoint", ".checkpoint.old", "ensemble"}
_RUN_FILES = {
    "recipe.yaml", "run.json", "plan.json", "results.json", "report.html", "figures", "search", "export", "shared",
    "independent",
}  # fmt: skip
ProgressOf = Callable[[str], Callable[[TrainProgress], None]]


def train_run(
    recipe: Recipe,
    folder: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress_of: ProgressOf | None = None,
) -> None:
    """Train every arm of a recipe into a run folder; nothing is written before data, members and plan stand.

    Args:
        recipe: What to train.
        folder: Made here.
        resume: Go on in a folder that this recipe began; arms that are done stay as they are.
        overwrite: Replace a run folder that is there.
        progress_of: Gives each arm, by name, the callback that :func:`train` calls.

    Raises:
        SuperWeightError: The folder is there already and neither option says what to do; it holds another recipe,
            or something that is no run.
    """
    check_no_links(folder)
    check_own_folder(
        folder, recipe, kind="run", marks=("recipe.yaml", "run.json"), contents=lambda: _RUN_FILES, resume=resume,
        overwrite=overwrite,
    )  # fmt: skip
    build_fabric(recipe.training)
    members = recipe.build_members()
    plan = recipe.plan(members)
    data = recipe.load_data()
    training_loader(data, recipe.training)
    if recipe.anytime is not None:
        _check_held_out(data)
    if overwrite and folder.exists():
        shutil.rmtree(folder)
    begun = not folder.exists()
    if begun:
        folder.mkdir(parents=True)
        write_text(folder / "recipe.yaml", recipe.to_yaml())
        write_json(folder / "run.json", {"format": RUN_FORMAT, "name": recipe.name, "provenance": provenance()})

    def progress(stage: str) -> Callable[[TrainProgress], None] | None:
        return progress_of(stage) if progress_of is not None else None

    try:
        if not (folder / "plan.json").is_file():
            if recipe.sharing.search != "none":
                plan = _search(recipe, members, plan, data, folder / "search", progress("search"))
            write_text(folder / "plan.json", plan.to_json())
        shutil.rmtree(folder / "search" / "checkpoint", ignore_errors=True)
        for arm in arms_of(recipe):
            if (folder / arm / "training.json").is_file():
                continue
            shared = arm == "shared"
            arm_plan = read_plan(folder) if shared else independent_plan(members)
            ensemble = SuperWeightEnsemble(members, plan=arm_plan, generator=recipe.bank_generator())
            _train_arm(recipe, ensemble, data, folder / arm, progress(arm), untie=recipe.untying() if shared else None)
    except SuperWeightError:
        searched = (folder / "search" / "search.json").is_file()
        if begun and not searched and not any(path.name in _KEPT for path in folder.glob("*/*")):
            shutil.rmtree(folder)  # nothing was reached that could be gone on from
        raise


def evaluate_run(folder: Path) -> dict[str, Any]:
    """Evaluate every arm of a trained run on the test data and write results.json; returns its content."""
    recipe = read_run(folder)
    data = recipe.load_data()
    if not len(data.test):
        raise SuperWeightError(f"{data.name} has no test images to evaluate on")
    fabric = build_fabric(recipe.training)
    arms = []
    for arm in arms_of(recipe):
        ensemble = SuperWeightEnsemble.load(trained_arm(folder, arm)).to(fabric.device).eval()
        tested = predict(ensemble, _loader(recipe, data, "test", fabric.device))
        notes = folder / arm / "training.json"
        training = check_content(read_json(notes), notes, "training")
        anytime = {} if recipe.anytime is None else _measure_anytime(recipe, ensemble, data, tested, folder / arm)
        arms.append(
            {
                "name": arm,
                "num_parameters": ensemble.num_parameters,
                "independent_parameters": ensemble.independent_parameters,
                "budget": ensemble.plan.budget,
                **evaluate_predictions(ensemble, tested).to_dict(),
                **anytime,
                "training": {key: value for key, value in training.items() if key != "history"},
                "history": training["history"],
            }
        )
    results = {
        "format": RUN_FORMAT,
        "name": recipe.name,
        "seed": recipe.seed,
        "provenance": provenance(),
        "dataset": {
            "name": data.name,
            "num_train": len(data.train),
            "num_validation": len(data.validation),
            "num_test": len(data.test),
            "classes": list(data.classes),
            "image_shape": list(data.image_shape),
        },
        "recipe": recipe.model_dump(mode="json"),
        "arms": arms,
    }
    write_json(folder / "results.json", results)
    return results


def read_run(folder: Path) -> Recipe:
    """The recipe of a run folder.

    Raises:
        SuperWeightError: No run folder.
    """
    if not (folder / "recipe.yaml").is_file():
        raise SuperWeightError(f"{folder} is no run folder: superweights train RECIPE --out {folder} makes one")
    check_no_links(folder)
    return load_recipe(folder / "recipe.yaml")


def read_results(folder: Path) -> tuple[dict[str, Any], SharingPlan]:
    """The results of an evaluated run, and the plan that its shared ensemble ended with."""
    read_run(folder)
    if not (folder / "results.json").is_file():
        raise SuperWeightError(f"{folder} has no results yet: superweights evaluate {folder} writes them")
    results = check_content(read_json(folder / "results.json"), folder / "results.json", "results")
    return results, _final_plan(folder)


def read_search(folder: Path) -> tuple[dict[str, Any], dict[str, SharingPlan]] | None:
    """What the search of a trained run saw, and its plans, first to last, by what they are; None without a search."""
    if not (folder / "search" / "search.json").is_file():
        return None
    plans = {
        "before the search": read_plan(folder / "search"),
        "found": read_plan(folder),
    }
    last = _final_plan(folder)
    if last != plans["found"]:
        plans["un-tied"] = last
    file = folder / "search" / "search.json"
    return check_content(read_json(file), file, "search"), plans


def arms_of(recipe: Recipe) -> tuple[str, ...]:
    return ("shared", "independent") if recipe.baseline == "independent" else ("shared",)


def trained_arm(folder: Path, arm: str) -> Path:
    """The folder of an arm's trained ensemble."""
    if not (folder / arm / "training.json").is_file():
        raise SuperWeightError(
            f"arm {arm!r} of {folder} is not trained to its end: "
            f"superweights train {folder / 'recipe.yaml'} --out {folder} --resume"
        )
    return folder / arm / "ensemble"


def _final_plan(folder: Path) -> SharingPlan:
    """The plan that the shared ensemble ended with; results that were moved without ensembles have the first alone."""
    ended = folder / "shared" / "ensemble"
    return read_plan(ended if (ended / "plan.json").is_file() else folder)


def _search(
    recipe: Recipe,
    members: dict[str, nn.Module],
    plan: SharingPlan,
    data: ImageData,
    folder: Path,
    progress: Callable[[TrainProgress], None] | None,
) -> SharingPlan:
    """Train a first plan for some epochs and split its clusters; the weights are thrown away."""
    ensemble = SuperWeightEnsemble(members, plan=plan, generator=recipe.bank_generator())
    searched = searched_members(ensemble)
    config = recipe.search_training()
    train(ensemble, data, config, members=searched, out=folder, resume=True, callback=progress)
    device = next(ensemble.parameters()).device
    found = find_sharing(
        ensemble,
        data.loader("train", recipe.training.batch_size, device=device),
        threshold=recipe.sharing.threshold,
        coefficients=recipe.sharing.coefficient_kind,
        similarity=recipe.sharing.search,
        max_batches=recipe.sharing.search_batches,
        reserve_untied=recipe.sharing.untie_epoch is not None,
    )
    write_text(folder / "plan.json", plan.to_json())
    write_json(folder / "search.json", found.to_dict())
    return found.plan


def _train_arm(
    recipe: Recipe,
    ensemble: SuperWeightEnsemble,
    data: ImageData,
    folder: Path,
    progress: Callable[[TrainProgress], None] | None,
    untie: Untying | None,
) -> None:
    result = train(ensemble, data, recipe.training, untie=untie, out=folder, resume=True, callback=progress)
    ensemble.cpu().save(folder / "ensemble")
    write_json(folder / "training.json", asdict(result))
    shutil.rmtree(folder / "checkpoint")


def _measure_anytime(
    recipe: Recipe, ensemble: SuperWeightEnsemble, data: ImageData, tested: Predictions, folder: Path
) -> dict[str, Any]:
    """The ``anytime`` entry of an arm's results; the calibrated policy goes beside the ensemble."""
    settings = recipe.anytime
    assert settings is not None
    _check_held_out(data)
    device = next(ensemble.parameters()).device
    held = predict(ensemble, _loader(recipe, data, "validation", device))
    greedy = {"loader": held} if settings.order == "greedy" else {}
    predictor = AnytimePredictor(ensemble, settings.order, input_shape=data.image_shape, **greedy)
    test = _loader(recipe, data, "test", device)
    found = measure_curves(predictor, held, test, tested=tested, **settings.curve_options())
    write_policy(folder / "ensemble", predictor.order, data.image_shape, predictor.policy)
    return {"anytime": found}


def _loader(recipe: Recipe, data: ImageData, split: str, device: torch.device) -> ImageLoader:
    return data.loader(split, recipe.evaluation.batch_size, device=device)


def _check_held_out(data: ImageData) -> None:
    """Refuse an anytime section without data to fit thresholds on.

    Raises:
        SuperWeightError: Fewer than 100 validation images.
    """
    if len(data.validation) < MIN_SAMPLES:
        raise SuperWeightError(
            f"anytime: thresholds are fitted on at least {MIN_SAMPLES} validation images; {data.name} has "
            f"{len(data.validation)}: raise data.validation_fraction, or leave the section out"
        )
