"""What a run does besides training its arms: widths, sharing and a start from trained members before it, exits after.

Arms themselves are trained in run_folder.py.

RUN/widths/widths.json       the widths and rates that members ended with, and the widths of each epoch; written last
RUN/widths/log.jsonl         one record an epoch, with the widths; and TensorBoard's
RUN/search/plan.json         the plan before the search
RUN/search/search.json       what the search measured: similarities, sets
RUN/shared/warm_start/       the shared ensemble as it started
RUN/shared/warm_start.json   the trained members that it started from, and how near it came; written last
RUN/ARM/ensemble/anytime.json  the calibrated cascade of an arm
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from superweight_ensembles.anytime import (
    AnytimePredictor,
    AnytimeResult,
    CorruptedResult,
    ExitPoint,
    OthersResult,
    Predictions,
    Shift,
    detect_others,
    measure_corrupted,
    measure_curves,
    measure_tempered,
    order_exits,
    predict,
    predict_all,
    probability_metrics,
    without_labels,
    write_policy,
)
from superweight_ensembles.data import Corruption, ImageData, ImageLoader, load_data
from superweight_ensembles.ensemble import (
    SuperWeightEnsemble,
    check_ensemble_files,
    first_parameter,
    read_ensemble_tensors,
    warm_start,
)
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.experiment.recipe import INDEPENDENT, Recipe, check_held_out
from superweight_ensembles.experiment.run_results import (
    LearnedWidth,
    NamedMetrics,
    StartError,
    WarmStartRecord,
    WarmStartResult,
    WidthEpoch,
    WidthRecord,
    fields_of,
)
from superweight_ensembles.models.adaptive import adaptive_widths, adopt_widths, drop_importance, truncated_exits
from superweight_ensembles.plan import SharingPlan, independent_plan
from superweight_ensembles.search import (
    GradientSearch,
    KMeansSearch,
    SearchMethod,
    WeightSearch,
    search_sharing,
    searched_members,
)
from superweight_ensembles.storage import accessing, as_content, read_as, write_json, write_text
from superweight_ensembles.training import CHECKPOINT_FOLDER, LearnedWidths, TrainProgress, train, training_loader
from superweight_ensembles.training.distributed import Processes

WARM_START_FILE = "warm_start.json"
_WARM_START_FOLDER = "warm_start"
_WIDTHS = Path("widths")
_BASELINE = Path(INDEPENDENT) / "ensemble"
_MEMBERS = "members"  # source of a start from members that came with trained weights
_NORM_BATCHES = 50
_FITTED = ("confidence", "temperature", "monotone", "weights")  # options of fitting thresholds
ProgressOf = Callable[[str], Callable[[TrainProgress], None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """What all stages of a run share."""

    recipe: Recipe
    members: dict[str, nn.Module]
    data: ImageData
    folder: Path
    processes: Processes
    progress_of: ProgressOf | None  # gives each stage, by name, its callback

    def begun(self, stage: str) -> bool:
        """Whether the training in the folder of this stage was begun."""
        return self.processes.on_rank_zero((self.folder / stage / "log.jsonl").exists)

    def progress(self, stage: str) -> Callable[[TrainProgress], None] | None:
        return None if self.progress_of is None else self.progress_of(stage)

    def ensemble(self, plan: SharingPlan) -> SuperWeightEnsemble:
        return SuperWeightEnsemble(self.members, plan=plan, rng=self.recipe.bank_generator())


def learned_members(run: RunContext) -> dict[str, nn.Module]:
    """Members of the widths that they learn in this stage, or have learned before, with new start values."""
    recipe, first, own = run.recipe, run.processes.on_rank_zero, run.folder / _WIDTHS
    assert recipe.learn_widths is not None, "there is such a stage"
    if not first((own / "widths.json").is_file):
        ensemble = run.ensemble(independent_plan(run.members))
        result = train(
            ensemble, run.data, recipe.width_training(), hooks=[LearnedWidths(recipe.width_loss)], out=own,
            resume=run.begun(_WIDTHS.name), callback=run.progress(_WIDTHS.name),
        )  # fmt: skip
        record = WidthRecord(
            members={
                name: {
                    path: LearnedWidth(width=width.width, rate=float(width.rate.detach()))
                    for path, width in adaptive_widths(ensemble.members[name]).items()
                }
                for name in ensemble.member_names
            },
            history=tuple(WidthEpoch(epoch=one["epoch"], widths=one["widths"]) for one in result.history),
        )
        first(lambda: write_json(own / "widths.json", as_content(record)))
    first(lambda: shutil.rmtree(own / CHECKPOINT_FOLDER, ignore_errors=True))
    learned = first(lambda: as_content(_read_widths(run.folder)))["members"]
    fresh = recipe.build_members()
    for name, module in fresh.items():
        if adaptive_widths(module):
            sizes = {path: (one["width"], one["rate"]) for path, one in learned.get(name, {}).items()}
            adopt_widths(module, sizes, torch.Generator().manual_seed(recipe.seed))
            if not recipe.learn_widths.keep_importance:
                drop_importance(module)  # leaves plain layers
    return fresh


def learned_widths(folder: Path) -> tuple[WidthEpoch, ...] | None:
    """Widths that members learned in the stage, epoch by epoch; None without such a stage."""
    return _read_widths(folder).history if (folder / _WIDTHS / "widths.json").is_file() else None


def _read_widths(folder: Path) -> WidthRecord:
    return read_as(WidthRecord, folder / _WIDTHS / "widths.json", "learn the widths again")


def searched_plan(run: RunContext, plan: SharingPlan) -> SharingPlan:
    """Train a first plan for some epochs and split its clusters, or learn groups; the weights are thrown away."""
    recipe, folder, ensemble = run.recipe, run.folder / "search", run.ensemble(plan)
    method, loader = _search_method(recipe), None
    searched = ensemble.member_names if isinstance(method, KMeansSearch) else searched_members(ensemble)
    train(
        ensemble, run.data, recipe.search_training(), members=searched, out=folder,
        resume=run.begun("search"), callback=run.progress("search"),
    )  # fmt: skip
    if isinstance(method, GradientSearch):
        device = next(ensemble.parameters()).device
        loader = run.data.loader("train", recipe.training.batch_size, device=device, shard=run.processes.shard)
    found = search_sharing(ensemble, loader, method=method)

    def write() -> None:
        write_text(folder / "plan.json", plan.to_json())
        write_json(folder / "search.json", found.to_dict())

    run.processes.on_rank_zero(write)
    return found.plan


def _search_method(recipe: Recipe) -> SearchMethod:
    sharing = recipe.sharing
    if sharing.search == "k_means":
        assert sharing.num_groups is not None, "checked with the recipe"
        return KMeansSearch(num_groups=sharing.num_groups, ssn=sharing.ssn, seed=recipe.seed)
    options: dict[str, Any] = {
        "threshold": sharing.threshold,
        "coefficients": sharing.coefficient_kind,
        "reserve_untied": sharing.untie_epoch is not None,
    }
    if sharing.search == "weight":
        return WeightSearch(**options)
    return GradientSearch(max_batches=sharing.search_batches, **options)


def check_trained_members(recipe: Recipe, members: dict[str, nn.Module], folder: Path, *, overwrite: bool) -> None:
    """Refuse, before any training, a saved ensemble that a run cannot start from, or is about to replace."""
    given = recipe.sharing.init_from
    if given is None or ((folder / "shared" / WARM_START_FILE).is_file() and not overwrite):
        return
    if overwrite and Path(given).resolve().is_relative_to(folder.resolve()):
        raise SuperWeightError(
            f"sharing.init_from: {given} is in {folder}, which --overwrite replaces: give another --out"
        )
    check_init_from(recipe, members)


def check_init_from(recipe: Recipe, members: dict[str, nn.Module]) -> None:
    """Refuse a saved ensemble in ``sharing.init_from`` that is not one of these members."""
    if recipe.sharing.init_from is not None:
        _trained(Path(recipe.sharing.init_from), members)


def start_warm(run: RunContext, ensemble: SuperWeightEnsemble) -> None:
    """Start the shared arm from trained members: computed once, and read again by a run that is resumed."""
    own, sharing = run.folder / "shared", run.recipe.sharing
    if not (own / WARM_START_FILE).is_file():
        source = _MEMBERS
        trained: Mapping[str, nn.Module] | SuperWeightEnsemble = run.members
        if sharing.init == "svd":
            source = sharing.init_from or INDEPENDENT
            folder = run.folder / _BASELINE if sharing.init_from is None else Path(sharing.init_from)
            trained = _trained(folder, run.members)
        found = warm_start(ensemble, trained)
        with accessing(own):
            own.mkdir(exist_ok=True)
        ensemble.save(own / _WARM_START_FOLDER)
        errors = tuple(
            StartError(member=member, parameter=name, error=error) for (member, name), error in found.errors.items()
        )
        record = WarmStartRecord(init_from=source, mean_error=found.mean_error, errors=errors)
        write_json(own / WARM_START_FILE, as_content(record))
    check_ensemble_files(own / _WARM_START_FOLDER)
    read_ensemble_tensors(ensemble, own / _WARM_START_FOLDER)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmPredictions:
    """Predictions of an arm; processes share the images, and only the first process has all of them."""

    tested: Predictions  # on test images
    held: Predictions | None  # on validation images, where there are some and the recipe asks for exits or uncertainty
    started: Predictions | None  # of the arm before its training, on test images; None where it started at random
    # members and their truncations, and their predictions on validation and test images, where asked for
    truncated: tuple[dict[str, nn.Module], Predictions, Predictions] | None
    corrupted: tuple[CorruptedResult, ...]  # on corrupted test images
    # name of another data set, and predictions on its test images, where asked for
    others: tuple[str, Predictions] | None


def predictions_of(
    recipe: Recipe, ensemble: SuperWeightEnsemble, data: ImageData, folder: Path, processes: Processes
) -> ArmPredictions:
    """Compute every prediction that an arm's evaluation needs; each process runs the members on its rows."""
    device = first_parameter({"": ensemble}).device

    def rows(split: str, whole: ImageData = data) -> ImageLoader:
        return evaluated(recipe, whole, split, device, shard=processes.shard)

    tested = predict(ensemble, rows("test"), processes)
    held = started = truncated = others = None
    corrupted: tuple[CorruptedResult, ...] = ()
    if len(data.validation) and (recipe.anytime or recipe.uncertainty):
        held = predict(ensemble, rows("validation"), processes)
    if (folder / WARM_START_FILE).is_file():
        start = SuperWeightEnsemble.load(folder / _WARM_START_FOLDER).to(device).eval()
        started = predict(start, rows("test"), processes)
    if recipe.anytime is not None:
        check_held_out(data.name, len(data.validation))
        if recipe.anytime.truncations:
            exits = _truncated_exits(recipe, ensemble, data, device)
            answered = partial(predict_all, exits, like=first_parameter(exits), processes=processes)
            truncated = exits, answered(rows("validation")), answered(rows("test"))
    if recipe.uncertainty is not None:
        worse = partial(evaluated, recipe, data, "test", device)
        corrupted = measure_corrupted(ensemble, recipe.uncertainty.made(), worse, processes)
        if recipe.uncertainty.others is not None:
            name, alike = _other_data(recipe, data)
            others = (name, predict(ensemble, without_labels(rows("test", alike)), processes))
    return ArmPredictions(
        tested=tested, held=held, started=started, truncated=truncated, corrupted=corrupted, others=others
    )


def warm_results(folder: Path, table: Predictions | None) -> WarmStartResult | None:
    """How near an arm started, and its metrics before any training of its own; None where it started at random."""
    if table is None:
        return None
    record = read_as(WarmStartRecord, folder / WARM_START_FILE, "train the shared arm again")
    return WarmStartResult(
        **fields_of(record),
        ensemble=probability_metrics(table.probabilities.mean(0), table.labels),
        members=tuple(
            NamedMetrics(name=name, metrics=probability_metrics(rows, table.labels))
            for name, rows in zip(table.members, table.probabilities)
        ),
    )


def _trained(folder: Path, members: dict[str, nn.Module]) -> SuperWeightEnsemble:
    try:
        return SuperWeightEnsemble.load(folder, members)
    except SuperWeightError as error:
        raise SuperWeightError(f"sharing.init: no start from {folder}: {error}") from None


def measure_anytime(
    recipe: Recipe, ensemble: SuperWeightEnsemble, data: ImageData, answers: ArmPredictions, folder: Path
) -> AnytimeResult:
    """Measure the anytime section of an arm's results, and save the calibrated policy beside the ensemble."""
    settings, held = recipe.anytime, answers.held
    assert settings is not None and held is not None, "the caller has looked, and there are validation images"
    device = next(ensemble.parameters()).device
    chosen_on = held if settings.order == "greedy" else None
    # Validation images fit thresholds, test images make figures.
    predictor = AnytimePredictor(ensemble, settings.order, loader=chosen_on, input_shape=data.image_shape)
    test = evaluated(recipe, data, "test", device)
    found = measure_curves(predictor, held, test, tested=answers.tested, **settings.curve_options())
    write_policy(folder / "ensemble", predictor.order, data.image_shape, predictor.policy)
    if answers.truncated is not None:
        found = replace(found, truncated=_measure_truncated(recipe, data, *answers.truncated))
    return found


def measure_shift(ensemble: SuperWeightEnsemble, answers: ArmPredictions) -> Shift:
    """Measure what an arm knows of corrupted test images, and of those of another data set."""
    found = Shift(corrupted=answers.corrupted)
    if answers.held is not None:
        found = replace(found, tempered=measure_tempered(answers.held, answers.tested))  # fitted on ``held`` only
    if answers.others is None:
        return found
    name, table = answers.others
    detections = detect_others(ensemble, answers.tested, table)
    return replace(found, others=OthersResult(name=name, num_samples=len(table.labels), detections=detections))


def _other_data(recipe: Recipe, data: ImageData) -> tuple[str, ImageData]:
    """The other data set of an uncertainty section, normalised as the run's own."""
    settings = recipe.uncertainty
    assert settings is not None and settings.others is not None, "the caller has looked"
    name = settings.others.name
    others = load_data(name, **settings.others.seeded(recipe.seed))
    if others.image_shape != data.image_shape:
        raise SuperWeightError(
            f"uncertainty.others: {name} has images {others.image_shape}, {data.name} {data.image_shape}: give images "
            "of one shape"
        )
    if not len(others.test):
        raise SuperWeightError(f"uncertainty.others: {name} has no test images")
    return name, replace(others, mean=data.mean, std=data.std)


def evaluated(
    recipe: Recipe,
    data: ImageData,
    split: str,
    device: torch.device,
    corruption: Corruption | None = None,
    shard: tuple[int, int] = (0, 1),
) -> ImageLoader:
    """Batches of a split as a recipe evaluates them, or corrupted; each process has batches of the recipe's size."""
    size = recipe.evaluation.batch_size * shard[1]
    return data.loader(split, size, device=device, corruption=corruption, shard=shard)


def _truncated_exits(
    recipe: Recipe, ensemble: SuperWeightEnsemble, data: ImageData, device: torch.device
) -> dict[str, nn.Module]:
    settings = recipe.anytime
    assert settings is not None, "the caller has looked"
    training = training_loader(data, recipe.training, device)  # augmented: plain images have other statistics
    batches = [images for (images, _), _ in zip(training, range(_NORM_BATCHES))]
    return truncated_exits(
        {name: ensemble.materialize(name).eval() for name in ensemble.member_names}, settings.truncations,
        norm_data=batches,
    )  # fmt: skip


def _measure_truncated(
    recipe: Recipe, data: ImageData, exits: dict[str, nn.Module], held: Predictions, tested: Predictions
) -> AnytimeResult:
    """Stream and cascade of the members and their truncations, in the order that validation images choose."""
    settings = recipe.anytime
    assert settings is not None, "the caller has looked"
    every = AnytimePredictor(exits, input_shape=data.image_shape)
    names = every.order
    options = {name: value for name, value in settings.curve_options().items() if name in _FITTED}
    chosen = order_exits(names, every.version_of, held.of(names), held.labels, every.flops, **options)
    predictor = AnytimePredictor(exits, chosen, input_shape=data.image_shape)
    test = evaluated(recipe, data, "test", every.device)
    everything = ("flops", float(sum(predictor.flops.values())))
    found = measure_curves(predictor, held, test, tested=tested, **{**settings.curve_options(), "target": everything})
    alone = tuple(
        ExitPoint(name=name, flops=every.flops[name], accuracy=probability_metrics(own, tested.labels).accuracy)
        for name, own in zip(names, tested.of(names))
    )
    return replace(found, exits=alone)
