"""Run folders: one recipe trained and evaluated, read again, and its members exported.

RUN/recipe.yaml        the recipe with every default and override in it
RUN/run.json           what it ran on
RUN/data.json          checksums that identify its data
RUN/search/            with a search: the plan before it, the log of its training, search.json (similarities, sets)
RUN/widths/            with learn_widths: the log of that training, and widths.json
RUN/plan.json          the sharing plan that the shared arm is built on
RUN/ARM/ensemble/      the trained ensemble of an arm (shared, independent), with the plan that it ended with; once
                       evaluated with an anytime section, its calibrated cascade (anytime.json) as well
RUN/shared/warm_start/ with sharing.init svd: the shared ensemble as it started, and beside it warm_start.json
RUN/ARM/log.jsonl      one record an epoch; RUN/ARM/tensorboard/ the same, where tensorboard is installed
RUN/ARM/checkpoints/   where training goes on after an interruption: the last two and that of the best epoch; at the
                       end that of the best epoch alone, where it is not the last one: an ensemble to load, too
RUN/ARM/training.json  result of the training; written last
RUN/results.json       what evaluation found
RUN/figures/*.png
RUN/report.html        all of it on one page
RUN/export/            members and cascades as files
RUN/.lock              held by the process that is at work here
"""

from __future__ import annotations

import copy
import json
import logging
import shutil
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from superweight_ensembles.anytime import AnytimePredictor, evaluate_predictions
from superweight_ensembles.data import ImageData, reads_files
from superweight_ensembles.ensemble import SuperWeightEnsemble, read_plan
from superweight_ensembles.errors import SuperWeightError, names_options, unknown_name
from superweight_ensembles.experiment.recipe import (
    INDEPENDENT,
    Recipe,
    check_held_out,
    check_saved_teacher,
    load_recipe,
    parse_recipe,
    set_value,
)
from superweight_ensembles.experiment.run_results import (
    ArmResults,
    DatasetFacts,
    Provenance,
    RunRecord,
    RunResults,
    TrainedArm,
    Training,
    fields_of,
    naming_files,
)
from superweight_ensembles.experiment.stages import (
    ArmPredictions,
    ProgressOf,
    RunContext,
    check_init_from,
    check_trained_members,
    learned_members,
    learned_widths,
    measure_anytime,
    measure_shift,
    predictions_of,
    searched_plan,
    start_warm,
    warm_results,
)
from superweight_ensembles.export import FORMATS, checked_shape, export_cascade, export_member, file_name
from superweight_ensembles.plan import SharingPlan, independent_plan
from superweight_ensembles.search import SearchRecord
from superweight_ensembles.storage import (
    LOCK_FILE,
    accessing,
    as_content,
    check_no_links,
    clear_drafts,
    empty_folder,
    is_draft,
    locked_folder,
    provenance,
    read_as,
    read_json,
    read_text,
    write_json,
    write_text,
)
from superweight_ensembles.training import (
    CHECKPOINT_FOLDER,
    RESUMABLE,
    Checkpoints,
    build_fabric,
    check_same_data,
    train,
    training_loader,
)
from superweight_ensembles.training.distributed import current_processes

_LOG = logging.getLogger(__name__)
_KEPT = {CHECKPOINT_FOLDER, "ensemble"}
_WHERE_DATA_ARE = ("folder", "memory_limit_mb")  # options of data that change no number
_RUN_FILES = {
    "recipe.yaml", "run.json", "data.json", "plan.json", "results.json", "report.html", "figures", "search", "export",
    "shared", "independent", "widths",
}  # fmt: skip


def train_run(
    recipe: Recipe,
    folder: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress_of: ProgressOf | None = None,
) -> None:
    """Train every arm of a recipe into a run folder; nothing is written before data, members and plan are checked.

    Args:
        recipe: Recipe to train.
        folder: Run folder, made here.
        resume: Go on in a folder that this recipe began; arms that are done stay as they are. Settings of how steps are
            computed, not of what they compute (``RESUMABLE``), may differ.
        overwrite: Replace a run folder that exists.
        progress_of: Gives each arm, by name, the callback that :func:`train` calls.

    Raises:
        SuperWeightError: The folder exists already and neither option says what to do; it holds another recipe, was
            begun with other data, or is no run; another process is at work in it.
        TrainingStopped: A signal came; everything is saved.
    """
    build_fabric(recipe.training)
    processes = current_processes()
    with ExitStack() as ending:

        def enter() -> bool:
            check_no_links(folder)
            check_output_folder(
                folder, recipe, kind="run", marks=("recipe.yaml", "run.json"), contents=_RUN_FILES, resume=resume,
                overwrite=overwrite,
            )  # fmt: skip
            there = folder.is_dir()
            if there:
                ending.enter_context(locked_folder(folder))
            if resume and not (folder / "run.json").is_file():
                _LOG.warning("nothing to resume in %s: training from the start", folder)
            return there

        def begin() -> bool:
            if not existed:
                ending.enter_context(locked_folder(folder))
            elif overwrite:
                empty_folder(folder)
            for place in (folder, *(path for path in folder.iterdir() if path.is_dir())):
                clear_drafts(place)
            begun = not (folder / "run.json").is_file()
            write_text(folder / "recipe.yaml", recipe.to_yaml())
            if begun:
                begun_on = RunRecord(name=recipe.name, provenance=Provenance(**provenance()))
                write_json(folder / "run.json", as_content(begun_on))
            note_or_check_data(folder, data)
            return begun

        existed = processes.on_rank_zero(enter)
        members, plan = recipe.prepare()
        processes.on_rank_zero(lambda: check_trained_members(recipe, members, folder, overwrite=overwrite))
        data = recipe.load_data()
        check_data(recipe, data, processes.shard)
        if not processes.on_rank_zero((folder / "shared" / "training.json").is_file):
            check_saved_teacher(recipe)
        begun = processes.on_rank_zero(begin)
        context = RunContext(
            recipe=recipe, members=members, data=data, folder=folder, processes=processes, progress_of=progress_of
        )
        try:
            _train_stages(context, plan)
        except SuperWeightError:
            searched = any((folder / file).is_file() for file in ("search/search.json", "widths/widths.json"))
            reached = searched or any(path.name in _KEPT for path in folder.glob("*/*"))
            if processes.is_first and begun and not reached:
                shutil.rmtree(folder, ignore_errors=True)  # it holds nothing to resume from
            raise


@names_options
def run(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    out: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> RunResults:
    """Train every arm of a recipe into a run folder, and evaluate it: ``superweights train`` and ``evaluate``.

    Args:
        recipe: A file, the name of a recipe that the library carries, the content of a recipe, or a recipe.
        out: Run folder; runs/NAME where None.
        overrides: Values by key, such as ``{"training.epochs": 5}``; not with a :class:`Recipe`.
        resume: Go on in a folder that this recipe began.
        overwrite: Replace a run folder that exists.

    Returns:
        Results of the evaluation, as :func:`results` reads them again.

    Raises:
        SuperWeightError: What :func:`load_recipe`, :func:`train_run` and :func:`evaluate_run` raise.
        TrainingStopped: A signal came; everything is saved.

    Example:
        >>> import tempfile, superweight_ensembles as swe
        >>> members = [{"name": "a", "model": "wide_resnet", "depth": 10, "width": 1}]
        >>> recipe = {"name": "tiny", "data": {"name": "synthetic"}, "members": members, "sharing": {"budget": 1.0}}
        >>> for rate in (0.05, 0.1):
        ...     overrides = {"training.learning_rate": rate, "training.epochs": 1}
        ...     found = swe.run(recipe, out=f"{tempfile.mkdtemp()}/run", overrides=overrides)
        >>> found.arms[0].name
        'shared'
    """
    chosen = _chosen(recipe, overrides or {})
    folder = Path("runs") / chosen.name if out is None else Path(out)
    train_run(chosen, folder, resume=resume, overwrite=overwrite)
    return evaluate_run(folder)


def _chosen(recipe: str | Path | Mapping[str, Any] | Recipe, overrides: Mapping[str, Any]) -> Recipe:
    if isinstance(recipe, Recipe):
        if overrides:
            raise SuperWeightError("overrides are for a file or its content: this is a recipe already")
        return recipe
    if not isinstance(overrides, Mapping):
        raise SuperWeightError(f'overrides are values by key, such as {{"training.epochs": 2}}; got {overrides!r:.80}')
    if not isinstance(recipe, (str, Path, Mapping)):
        raise SuperWeightError(f"a recipe is a file, a name, or what such a file holds; got {recipe!r:.80}")
    written = [f"{key}={json.dumps(value, default=_text)}" for key, value in overrides.items()]
    if not isinstance(recipe, Mapping):
        return load_recipe(recipe, written)
    content = copy.deepcopy(dict(recipe))
    for override in written:
        set_value(content, override, "overrides")
    return parse_recipe(content)


def _text(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise SuperWeightError(
        f"overrides hold plain data: numbers, texts, lists, dictionaries; got {type(value).__name__}"
    )


def results(folder: str | Path) -> RunResults:
    """Read the results of an evaluated run: see :class:`RunResults`.

    Raises:
        SuperWeightError: No run folder, one that was not evaluated, or damaged results.
    """
    if not isinstance(folder, (str, Path)):
        raise SuperWeightError(f"results() takes a run folder; got {folder!r:.80}")
    return read_results(Path(folder))[0]


def planned_run(recipe: Recipe) -> tuple[dict[str, nn.Module], SharingPlan]:
    """Members and plan of a recipe, checked as :func:`train_run` does, without training or reading files of data."""
    members, plan = recipe.prepare()
    check_saved_teacher(recipe)
    check_init_from(recipe, members)
    if not reads_files(recipe.data.name):
        check_data(recipe, recipe.load_data())
    return members, plan


def note_or_check_data(folder: Path, data: ImageData) -> None:
    """Write the data's fingerprint into a new folder, or refuse data that differ from the fingerprint there."""
    known = folder / "data.json"
    if known.is_file():
        check_same_data(folder, read_json(known), data.fingerprint(), data)
    else:
        write_json(known, data.fingerprint())


def check_data(recipe: Recipe, data: ImageData, shard: tuple[int, int] = (0, 1)) -> None:
    """Refuse data that a training of the recipe, or its exits, cannot take."""
    training_loader(data, recipe.training, shard=shard)
    training_loader(data, recipe.shared_training(), shard=shard)
    if recipe.anytime is not None:
        check_held_out(data.name, len(data.validation))


def _train_stages(run: RunContext, plan: SharingPlan) -> None:
    """Learn widths, search and train every arm, as far as that is not done."""
    recipe, folder, first = run.recipe, run.folder, run.processes.on_rank_zero
    if recipe.learn_widths is not None:
        run = replace(run, members=learned_members(run))
        plan = recipe.plan(run.members)
    if not first((folder / "plan.json").is_file):
        if recipe.sharing.search != "none":
            plan = searched_plan(run, plan)
        text = plan.to_json()
        first(lambda: write_text(folder / "plan.json", text))
    first(lambda: shutil.rmtree(folder / "search" / CHECKPOINT_FOLDER, ignore_errors=True))
    plan = SharingPlan.from_json(first(lambda: read_text(folder / "plan.json")), folder / "plan.json")
    for arm in training_order(recipe):
        if not first((folder / arm / "training.json").is_file):
            ensemble = run.ensemble(plan if arm == "shared" else independent_plan(run.members))
            if arm == "shared" and recipe.starts_warm:
                first(partial(start_warm, run, ensemble))  # train() sends it to all
            _train_arm(run, arm, ensemble)
        first(partial(_keep_best, folder / arm))


def _train_arm(run: RunContext, arm: str, ensemble: SuperWeightEnsemble) -> None:
    """Train one arm to its end; only the shared one has a teacher, un-ties and may be fine-tuned."""
    recipe, folder, independent = run.recipe, run.folder, None
    config = recipe.shared_training() if arm == "shared" else recipe.training
    if arm == "shared" and recipe.taught_by(INDEPENDENT):
        independent = trained_arm(folder, INDEPENDENT)
    if recipe.learn_widths is not None:
        config = replace(config, width_rate=1.0)  # the recipe's was for the stage that learned widths
    result = train(
        ensemble, run.data, config, hooks=recipe.hooks(arm, independent), out=folder / arm, resume=run.begun(arm),
        callback=run.progress(arm),
    )  # fmt: skip

    def write() -> None:
        ensemble.cpu().save(folder / arm / "ensemble")
        write_json(folder / arm / "training.json", asdict(result))

    run.processes.on_rank_zero(write)


def _keep_best(folder: Path) -> None:
    """Remove the checkpoints of a trained arm, except its best epoch's."""
    Checkpoints(folder / CHECKPOINT_FOLDER).keep_best(as_content(_training_of(folder).history))


def arms_of(recipe: Recipe) -> tuple[str, ...]:
    return ("shared", "independent") if recipe.baseline == "independent" else ("shared",)


def training_order(recipe: Recipe) -> tuple[str, ...]:
    """The arms in training order: an arm that another starts or learns from comes before it."""
    reverse = recipe.trains_its_start or recipe.taught_by(INDEPENDENT)
    return arms_of(recipe)[::-1] if reverse else arms_of(recipe)


def check_output_folder(
    folder: Path,
    recipe: Recipe,
    *,
    kind: str,
    marks: Sequence[str],  # files by which such a folder is known, in the order in which they are written
    contents: Collection[str],  # all names that such a folder may hold
    resume: bool,
    overwrite: bool,
) -> None:
    """Refuse a folder of something else or of another recipe, or one that exists and no option says what to do."""
    if resume and overwrite:
        raise SuperWeightError("--resume goes on and --overwrite begins anew: use one of them")
    if not folder.exists():
        return
    # A process that was killed as it began may have left its lock, and files that it had not finished.
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
    names = {name for name in there if not is_draft(name) and name != LOCK_FILE}
    if there and not names:
        return
    just_begun = names == {marks[0]}
    if not set(marks) <= names and not just_begun:
        raise SuperWeightError(f"{folder} exists and is no {kind} folder: --out names another")
    if not (resume or overwrite):
        raise SuperWeightError(
            f"{folder} exists already: --resume goes on, --overwrite begins anew, --out names another (resume=True, "
            "overwrite=True, out=)"
        )
    if just_begun and not resume:
        raise SuperWeightError(f"{folder} exists and is no {kind} folder: --out names another")
    if overwrite:
        if foreign := names - set(contents):
            raise SuperWeightError(f"{folder} also holds {min(foreign)}, which is no part of a {kind}: move it away")
    elif difference := first_difference(folder, load_recipe(folder / "recipe.yaml"), recipe):
        raise SuperWeightError(
            f"{folder} was begun with another recipe or other overrides ({difference}): resume with the same, but for "
            f"training.{', '.join(RESUMABLE)} and data.{', '.join(_WHERE_DATA_ARE)}"
        )


def first_difference(folder: Path, before: Recipe, now: Recipe) -> str:
    """The first key in which two recipes of a folder differ, with both values; empty where they train alike."""
    idle: dict[str, Collection[str]] = {"training": RESUMABLE, "fine_tuning": RESUMABLE}
    if (folder / "data.json").is_file():
        idle["data"] = _WHERE_DATA_ARE  # the fingerprint in that file decides whether the data are the same

    def what_counts(recipe: Recipe) -> dict[str, Any]:
        content = recipe.to_content()
        for section in idle.keys() & content.keys():
            content[section] = {key: value for key, value in content[section].items() if key not in idle[section]}
        return content

    return _difference(what_counts(before), what_counts(now))


def _difference(before: Any, now: Any, path: str = "") -> str:
    """The first difference of plain data, with its path; empty where there is none."""
    if before == now:
        return ""
    if isinstance(before, dict) and isinstance(now, dict):
        pairs = {key: (before.get(key), now.get(key)) for key in [*before, *now]}
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = dict(enumerate(zip(before, now)))
    else:
        was, is_now = ("not given" if value is None else f"{value!r:.80}" for value in (before, now))
        return f"{path} was {was}, now {is_now}"
    key = next(key for key, (one, other) in pairs.items() if one != other)
    return _difference(*pairs[key], f"{path}.{key}" if path else str(key))


def evaluate_run(folder: Path) -> RunResults:
    """Evaluate every arm of a trained run on the test data and write results.json; returns its content.

    In a process group, call it on every rank: ranks share the images, and the first alone measures time and writes.
    """
    recipe = read_run(folder)
    device = build_fabric(recipe.training).device
    processes = current_processes()
    with ExitStack() as ending:
        processes.on_rank_zero(lambda: ending.enter_context(locked_folder(folder)))
        data = recipe.load_data()
        if not len(data.test):
            raise SuperWeightError(f"{data.name} has no test images to evaluate on")
        processes.on_rank_zero(lambda: _hold_to_evaluated(folder, data))
        arms: list[ArmResults] = []
        for arm in arms_of(recipe):
            ensemble = SuperWeightEnsemble.load(trained_arm(folder, arm)).to(device).eval()
            answers = predictions_of(recipe, ensemble, data, folder / arm, processes)
            alone = partial(_measure_arm, recipe, ensemble, data, answers, folder / arm)
            processes.on_rank_zero(lambda: arms.append(alone()))  # noqa: B023 - called at once

        def write() -> None:
            results = RunResults(
                name=recipe.name,
                seed=recipe.seed,
                dataset=DatasetFacts.of(data),
                recipe=recipe.model_dump(mode="json"),
                arms=tuple(arms),
                widths=learned_widths(folder),
                provenance=Provenance(**provenance()),
            )
            write_json(folder / "results.json", as_content(results))

        processes.on_rank_zero(write)
        return read_results(folder)[0]


def _hold_to_evaluated(folder: Path, data: ImageData) -> None:
    """Refuse data that are not those of a run; where only pixels differ that were never trained on, warn."""
    try:
        note_or_check_data(folder, data)
    except SuperWeightError:
        before, now = read_json(folder / "data.json"), data.fingerprint()
        decided = [key for key in now if key == "classes" or key.endswith("labels") or key.startswith("number")]
        seen, known, tested = (
            {marks[place : place + 8] for marks in found for place in range(0, len(marks), 8)}
            for found in (
                [str(before.get(f"{split} image marks", "")) for split in ("train", "validation")],
                [str(before.get("test image marks", ""))],
                [now.get("test image marks", "")],
            )
        )
        if any(before.get(key) != now[key] for key in decided) or (tested - known) & seen:
            raise  # other labels, or test images that were trained on
        new = data.unknown_images(before)
        named = f" (such as {', '.join(new[:3])})" if new else ""
        _LOG.warning(
            "images%s are not those that %s was trained with, or this machine decodes them otherwise; their labels are "
            "the same, so it is evaluated on them",
            named, folder,
        )  # fmt: skip


def _measure_arm(
    recipe: Recipe, ensemble: SuperWeightEnsemble, data: ImageData, answers: ArmPredictions, folder: Path
) -> ArmResults:
    trained = _training_of(folder)
    return ArmResults(
        name=folder.name,
        num_parameters=ensemble.num_parameters,
        independent_parameters=ensemble.independent_parameters,
        budget=ensemble.plan.budget,
        **fields_of(evaluate_predictions(ensemble, answers.tested)),
        anytime=None if recipe.anytime is None else measure_anytime(recipe, ensemble, data, answers, folder),
        shift=None if recipe.uncertainty is None else measure_shift(ensemble, answers),
        warm_start=warm_results(folder, answers.started),
        training=Training(**fields_of(trained, Training)),
        history=trained.history,
    )


def read_run(folder: Path) -> Recipe:
    """Read the recipe of a run folder."""
    with accessing(folder, "read"):
        if not (folder / "recipe.yaml").is_file():
            raise SuperWeightError(f"{folder} is no run folder: superweights train RECIPE --out {folder} makes one")
        if (folder / "compare.json").is_file():
            raise SuperWeightError(
                f"{folder} is a comparison: superweights plot draws it; its runs are {folder}/ARM/seed-N, such as "
                f"{folder / 'shared' / 'seed-0'}"
            )
    check_no_links(folder)
    return load_recipe(folder / "recipe.yaml")


def read_results(folder: Path) -> tuple[RunResults, SharingPlan]:
    """Read the results of an evaluated run, and the plan that its shared ensemble ended with."""
    read_run(folder)
    if not (folder / "results.json").is_file():
        raise SuperWeightError(f"{folder} has no results yet: superweights evaluate {folder} writes them")
    results = read_as(RunResults, folder / "results.json", "evaluate the run again")
    return results, _final_plan(folder)


def read_search(folder: Path) -> tuple[SearchRecord, dict[str, SharingPlan]] | None:
    """Read what a run's search saw, and the plans by name, first to last; None without a search."""
    if not (folder / "search" / "search.json").is_file():
        return None
    plans = {"before the search": read_plan(folder / "search"), "found": read_plan(folder)}
    last = _final_plan(folder)
    if last != plans["found"]:
        plans["un-tied"] = last
    return read_as(SearchRecord, folder / "search" / "search.json", "search again"), plans


def trained_arm(folder: Path, arm: str) -> Path:
    """The folder of an arm's trained ensemble."""
    if not (folder / arm / "training.json").is_file():
        raise SuperWeightError(
            f"arm {arm!r} of {folder} is not trained to its end: "
            f"superweights train {folder / 'recipe.yaml'} --out {folder} --resume"
        )
    return folder / arm / "ensemble"


def _training_of(folder: Path) -> TrainedArm:
    """Read the record of an arm's training."""
    return read_as(TrainedArm, folder / "training.json", "train the arm again")


def _final_plan(folder: Path) -> SharingPlan:
    """The plan that the shared ensemble ended with."""
    ended = folder / "shared" / "ensemble"  # missing where results were moved without ensembles
    return read_plan(ended if (ended / "plan.json").is_file() else folder)


def export_run_member(
    run: Path, member: str, *, format: str, arm: str = "shared", out: Path | None = None, overwrite: bool = False
) -> Path:
    """Export one member of a trained run to a file, and return its path."""
    if format not in FORMATS:
        raise unknown_name("export format", format, FORMATS)
    ensemble = SuperWeightEnsemble.load(_arm_folder(run, arm))
    return export_member(
        ensemble.materialize(member),
        out or _default_folder(run, arm) / f"{file_name(member)}{FORMATS[format].suffix}",
        format=format,
        input_shape=_image_shape(run),
        images=ensemble.images,
        overwrite=overwrite,
    )


def export_run_cascade(run: Path, *, arm: str = "shared", out: Path | None = None, overwrite: bool = False) -> Path:
    """Export the calibrated cascade of a trained run to a folder, and return its path."""
    folder = _arm_folder(run, arm)
    predictor = AnytimePredictor.load(folder) if (folder / "anytime.json").is_file() else None
    if predictor is None or predictor.policy is None:
        raise SuperWeightError(
            f"arm {arm!r} of {run} has no calibrated cascade yet: "
            f"superweights evaluate {run} with an anytime: section in its recipe"
        )
    return export_cascade(
        predictor.modules,
        predictor.policy,
        out or _default_folder(run, arm) / "cascade",
        input_shape=predictor.input_shape or _image_shape(run),
        flops=predictor.flops,
        images=predictor.images,
        overwrite=overwrite,
    )


def _arm_folder(run: Path, arm: str) -> Path:
    arms = arms_of(read_run(run))
    if arm not in arms:
        raise unknown_name("arm", arm, arms)
    return trained_arm(run, arm)


def _default_folder(run: Path, arm: str) -> Path:
    return run / "export" if arm == "shared" else run / "export" / file_name(arm)


def _image_shape(run: Path) -> tuple[int, ...]:
    """Shape of the run's images, from its results where there are any."""
    if (run / "results.json").is_file():
        dataset = read_json(run / "results.json").get("dataset")
        shape = dataset.get("image_shape") if isinstance(dataset, dict) else None
        if isinstance(shape, list):
            with naming_files(run / "results.json"):
                return checked_shape(shape)
    return tuple(read_run(run).load_data().image_shape)
