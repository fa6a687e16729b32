"""Arms times seeds: trained seed by seed, arm by arm, so that a machine that slows down does so for all.

OUT/recipe.yaml              what is compared
OUT/compare.json             against what, with which seeds
OUT/ARM/seed-N/              a run folder (arms of this library), or log and results of the arm
OUT/comparison.json          means, spreads, paired differences, and every single result
OUT/figures/*.png
"""

from __future__ import annotations

import re
import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from superweight_ensembles.data import ImageData
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.experiment.arms import Arm, Variant, build_arms
from superweight_ensembles.experiment.estimators import run_estimator_arm
from superweight_ensembles.experiment.recipe import Recipe, parse_recipe
from superweight_ensembles.experiment.results import check_content
from superweight_ensembles.experiment.run import check_output_folder, evaluate_run, read_run, train_run
from superweight_ensembles.experiment.uncertainty import UNCERTAINTY_ARMS, check_installed
from superweight_ensembles.storage import (
    check_no_links,
    empty_folder,
    locked_folder,
    provenance,
    read_json,
    write_json,
    write_text,
)
from superweight_ensembles.training import CHECKPOINT_FOLDER, TrainProgress

# FOLDED experiment.summary: Means, spreads and paired differences over seeds.

METRICS = ("accuracy", "nll", "ece", "brier")


def summarise(arms: Sequence[Arm], results: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One entry an arm: every seed's numbers, their mean and spread, and the first arm's minus its own, seed by seed.

    Args:
        arms: The one that differences are taken from first.
        results: By arm, an entry a seed: ``seed`` and what results.json holds of an arm.
    """
    runs = {arm.name: [_run_summary(result) for result in results[arm.name]] for arm in arms}
    first = runs[arms[0].name]
    entries = []
    for arm in arms:
        own = runs[arm.name]
        numbers = [_quantities(run) for run in own]
        theirs = [_quantities(run) for run in first[: len(own)]]
        known = [name for name in numbers[0] if all(run[name] is not None for run in numbers)]
        both = [name for name in known if all(run.get(name) is not None for run in theirs)]
        entries.append(
            {
                "name": arm.name,
                "kind": arm.kind,
                "label": arm.label,
                **({"group": arm.group} if arm.group else {}),
                **({"series": arm.series} if arm.series else {}),
                "architecture": results[arm.name][0].get("architecture"),
                "num_parameters": results[arm.name][0]["num_parameters"],
                "flops": results[arm.name][0]["ensemble"]["flops"],
                "runs": own,
                "summary": {name: spread([run[name] for run in numbers]) for name in known},
                "difference": {
                    name: spread([ours[name] - run[name] for ours, run in zip(theirs, numbers)]) for name in both
                },
            }
        )
    return entries


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, standard deviation over seeds (0 for one), and their number.

    Example:
        >>> spread([1.0, 3.0])
        {'mean': 2.0, 'std': 1.4142135623730951, 'n': 2}
    """
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else 0.0,
        "n": len(values),
    }


def _run_summary(result: dict[str, Any]) -> dict[str, Any]:
    members = {member["name"]: member["metrics"]["accuracy"] for member in result["members"]}
    return {
        "seed": result["seed"],
        "metrics": result["ensemble"]["metrics"],
        "members": members,
        "mean_member_accuracy": statistics.fmean(members.values()),
        "diversity": result["diversity"],
        "training_seconds": result["training"]["seconds"],
        "subsets": result["subsets"] if len(members) > 1 else [],
    }


def _quantities(run: dict[str, Any]) -> dict[str, Any]:
    """Every number of a run that is summarised."""
    return {
        **{name: run["metrics"][name] for name in METRICS},
        "diversity": run["diversity"],
        "mean_member_accuracy": run["mean_member_accuracy"],
        "training_seconds": run["training_seconds"],
        **{f"member {name}": accuracy for name, accuracy in run["members"].items()},
    }


COMPARISON_FORMAT = 1
ProgressOf = Callable[[str], Callable[[TrainProgress], None]]


def compare_arms(
    recipe: Recipe,
    folder: Path,
    *,
    against: Sequence[str] = ("independent",),
    variants: Sequence[Variant] = (),
    overrides: Sequence[str] = (),
    num_seeds: int = 3,
    resume: bool = False,
    overwrite: bool = False,
    progress_of: ProgressOf | None = None,
) -> dict[str, Any]:
    """Train and evaluate a recipe's shared ensemble beside other arms, and summarise.

    All arms of a seed see the same images in the same order with the same augmentation.

    Args:
        recipe: Of the shared ensemble; its first seed is the recipe's.
        folder: Made here.
        against: Of ``independent``, ``single`` (the largest member alone), ``narrower`` (the same, narrowed or widened
            to as many parameters as the shared ensemble has, at most), and torch-uncertainty's ``batchensemble``,
            ``packed``, ``mimo``, ``masksembles``, each with as many parameters as the shared ensemble or as near as it
            can come; ``NAME:SEEDS`` for an arm that takes fewer of the seeds.
        variants: The shared ensemble under other settings.
        overrides: ``ARM:key.path=value``: settings of one arm alone, such as the learning rate that suits it.
        num_seeds: Seeds, from the recipe's upwards.
        resume: Go on in a folder that the same comparison began; what is there is kept, and arms, variants and seeds
            may be added.
        overwrite: Replace the folder.
        progress_of: Gives each arm and seed the callback that :func:`train` calls.

    Returns:
        The content of comparison.json.

    Raises:
        SuperWeightError: An unknown arm, torch-uncertainty missing (says the pip command), a folder that is there.
    """
    if num_seeds < 1:
        raise SuperWeightError(f"a comparison needs at least one seed; got {num_seeds}")
    arms = build_arms(recipe, against, variants, overrides)
    for arm in arms:
        if arm.kind in UNCERTAINTY_ARMS:
            check_installed(arm.kind)
    check_no_links(folder)
    data = recipe.load_data()
    if not len(data.test):
        raise SuperWeightError(f"{data.name} has no test images to compare on")
    check_output_folder(
        folder, recipe, kind="comparison", marks=("recipe.yaml", "compare.json"), contents=lambda: _contents(folder),
        resume=resume, overwrite=overwrite,
    )  # fmt: skip
    with locked_folder(folder):
        if overwrite:
            empty_folder(folder)
        return _compare(recipe, folder, arms, data, against, variants, overrides, num_seeds, progress_of)


def _compare(
    recipe: Recipe,
    folder: Path,
    arms: Sequence[Arm],
    data: ImageData,
    against: Sequence[str],
    variants: Sequence[Variant],
    overrides: Sequence[str],
    num_seeds: int,
    progress_of: ProgressOf | None,
) -> dict[str, Any]:
    write_text(folder / "recipe.yaml", recipe.to_yaml())
    seeds = list(range(recipe.seed, recipe.seed + num_seeds))
    plan = {
        "format": COMPARISON_FORMAT,
        "against": list(against),
        "variants": [asdict(variant) for variant in variants],
        "overrides": list(overrides),
        "seeds": seeds,
    }
    write_json(folder / "compare.json", plan)
    results: dict[str, list[dict[str, Any]]] = {arm.name: [] for arm in arms}
    for seed in seeds:
        for arm in arms:
            if arm.num_seeds is not None and seed - recipe.seed >= arm.num_seeds:
                continue
            progress = progress_of(f"{arm.name}, seed {seed}") if progress_of is not None else None
            results[arm.name].append(_run(arm, seed, folder / _folder_name(arm.name) / f"seed-{seed}", progress))
    comparison = {
        "format": COMPARISON_FORMAT,
        "name": recipe.name,
        "provenance": provenance(),
        "recipe": recipe.model_dump(mode="json", exclude_none=True),
        "dataset": {
            "name": data.name,
            "num_train": len(data.train),
            "num_validation": len(data.validation),
            "num_test": len(data.test),
            "image_shape": list(data.image_shape),
        },
        "seeds": seeds,
        "overrides": list(overrides),
        "arms": summarise(arms, results),
    }
    write_json(folder / "comparison.json", comparison)
    return comparison


def read_comparison(folder: Path) -> dict[str, Any]:
    """The content of a comparison's comparison.json.

    Raises:
        SuperWeightError: The comparison is not there, not finished, or of another version.
    """
    if not (folder / "comparison.json").is_file():
        raise SuperWeightError(f"{folder} holds no finished comparison: superweights compare RECIPE --out {folder}")
    check_no_links(folder)
    content = read_json(folder / "comparison.json")
    if content.get("format") != COMPARISON_FORMAT:
        raise SuperWeightError(
            f"{folder / 'comparison.json'} has format {content.get('format')!r}; this version reads {COMPARISON_FORMAT}"
        )
    return check_content(content, folder / "comparison.json", "comparison")


def with_seed(recipe: Recipe, seed: int) -> Recipe:
    """The same recipe with another seed, of the training as well."""
    content = recipe.to_content()
    content["training"]["seed"] += seed - recipe.seed
    return parse_recipe({**content, "seed": seed})


def _run(arm: Arm, seed: int, folder: Path, progress: Callable[[TrainProgress], None] | None) -> dict[str, Any]:
    """One arm and seed, or what is there of it already."""
    recipe = with_seed(arm.recipe, seed)
    done = folder / "results.json"
    if arm.kind in UNCERTAINTY_ARMS:
        if not done.is_file():
            found = run_estimator_arm(arm.kind, recipe, arm.num_parameters, folder, progress)
            write_json(done, {"arms": [found]})
            shutil.rmtree(folder / CHECKPOINT_FOLDER, ignore_errors=True)
    elif done.is_file():
        if read_run(folder) != recipe:
            raise SuperWeightError(f"{folder} was trained with another recipe: give the arm another name")
    else:
        train_run(recipe, folder, resume=folder.exists(), progress_of=None if progress is None else lambda _: progress)
        evaluate_run(folder)
    return {"seed": seed, **check_content(read_json(done), done, "seed")["arms"][0]}


def _folder_name(arm: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", arm)


def _contents(folder: Path) -> set[str]:
    """Every name in a comparison's folder that is its own: its files, and folders with nothing but seeds in them."""
    arms = {
        path.name
        for path in folder.iterdir()
        if path.is_dir() and all(re.fullmatch(r"seed-\d+", inner.name) for inner in path.iterdir())
    }
    return {"recipe.yaml", "compare.json", "comparison.json", "figures", *arms}
