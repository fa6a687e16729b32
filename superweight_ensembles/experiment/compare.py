"""Arms times seeds: trained seed by seed, arm by arm, so that a machine that slows down does so for all.

OUT/recipe.yaml              what is compared
OUT/compare.json             against what, with which seeds: :class:`ComparisonPlan`
OUT/data.json                checksums that identify its data
OUT/ARM/seed-N/              a run folder (arms of this library), or log and results of the arm
OUT/comparison.json          means, spreads, paired differences, and every single result: :class:`Comparison`
OUT/figures/*.png
"""

from __future__ import annotations

import logging
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from superweight_ensembles.anytime import Evaluation, Metrics, SubsetResult, log_area
from superweight_ensembles.data import ImageData
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.experiment.arms import (
    Arm,
    Baseline,
    ProgressCallback,
    Variant,
    build_arms,
    folder_name,
    train_seed,
)
from superweight_ensembles.experiment.recipe import Recipe, at, parse_recipe
from superweight_ensembles.experiment.run_folder import (
    check_data,
    check_output_folder,
    first_difference,
    note_or_check_data,
    read_run,
)
from superweight_ensembles.experiment.run_results import DatasetFacts, DataSizes, Provenance, Training, fields_of
from superweight_ensembles.experiment.stages import ProgressOf
from superweight_ensembles.storage import (
    Amount,
    Count,
    Name,
    Positive,
    Share,
    accessing,
    as_content,
    check_no_links,
    empty_folder,
    locked_folder,
    provenance,
    read_as,
    write_json,
    write_text,
)
from superweight_ensembles.training import build_fabric

COMPARISON_FORMAT = 1  # of compare.json and comparison.json
_LOG = logging.getLogger(__name__)
METRICS = ("accuracy", "nll", "ece", "brier")
_Size = Annotated[int, Field(gt=0, lt=2**53)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Mean, standard deviation over seeds (0 for one), and their number."""

    mean: float
    std: Amount
    n: Count


def _with_accuracy(summary: dict[str, Spread]) -> dict[str, Spread]:
    if "accuracy" not in summary or not 0 <= summary["accuracy"].mean <= 1:
        raise ValueError("needs the mean of accuracy, from 0 to 1")
    return summary


@dataclass(frozen=True, slots=True, kw_only=True)
class CostPoint:
    """Mean FLOPs of an image, and the accuracy and negative log likelihood (nats) that they give."""

    flops: Positive
    accuracy: Share
    nll: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyCurve:
    """One of the curves in ``anytime``: see :class:`superweight_ensembles.anytime.Curve`."""

    name: Name
    points: Annotated[tuple[CostPoint, ...], Field(min_length=1, max_length=10_000)]


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyAnswers:
    """The part of ``anytime`` that a comparison reads; arms of other kinds may write it as well."""

    curves: Annotated[tuple[EarlyCurve, ...], Field(max_length=100)]  # one of them is named ``cascade``
    tempered: Metrics | None = None  # of all members, at a temperature fitted on validation images

    @property
    def cascade(self) -> tuple[CostPoint, ...] | None:
        return next((curve.points for curve in self.curves if curve.name == "cascade"), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedResult(Evaluation):
    """Result of an arm with one seed."""

    architecture: Annotated[Name | None, Field(default=None)]  # in words; None where a recipe tells it
    num_parameters: _Size  # trainable scalars
    training: Training
    anytime: EarlyAnswers | None = None  # of an arm with exits


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedResults:
    """The part of OUT/ARM/seed-N/results.json that a comparison reads: the first arm."""

    arms: Annotated[tuple[SeedResult, ...], Field(min_length=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedSummary:
    """What a comparison reports of one arm and seed."""

    seed: Count
    metrics: Metrics  # of the ensemble
    members: dict[Name, Share]  # accuracy of each, by name
    mean_member_accuracy: Share
    diversity: float | None  # mean pairwise disagreement over the ensemble's error
    training_seconds: Amount
    # every subset of members, where there are several
    subsets: Annotated[tuple[SubsetResult, ...], Field(max_length=2**14)]
    # points of the cascade's curve, of an arm with exits
    cascade: Annotated[tuple[CostPoint, ...], Field(min_length=1, max_length=10_000)] | None = None
    # of the ensemble of an arm with exits, at a temperature fitted on validation images
    tempered: Metrics | None = None

    @classmethod
    def of(cls, seed: int, result: SeedResult) -> SeedSummary:
        members, anytime = {one.name: one.metrics.accuracy for one in result.members}, result.anytime
        return cls(
            seed=seed,
            metrics=result.ensemble.metrics,
            members=members,
            mean_member_accuracy=statistics.fmean(members.values()),
            diversity=result.diversity,
            training_seconds=result.training.seconds,
            subsets=result.subsets if len(members) > 1 else (),
            cascade=None if anytime is None else anytime.cascade,
            tempered=None if anytime is None else anytime.tempered,
        )

    def area(self, low: float, high: float, chance: float) -> float | None:
        """Mean accuracy of the cascade over the logarithm of the FLOPs in a range; None without a cascade."""
        if self.cascade is None or low >= high:
            return None
        points = [(point.flops, point.accuracy) for point in self.cascade]
        return log_area(points, low, high, before=chance, steps=False)  # chance below the cheapest answer

    @property
    def numbers(self) -> dict[str, float | None]:
        """Every number that is summarised, by name."""
        return {
            **{name: getattr(self.metrics, name) for name in METRICS},
            "diversity": self.diversity,
            "mean_member_accuracy": self.mean_member_accuracy,
            "training_seconds": self.training_seconds,
            **{f"tempered_{name}": getattr(self.tempered, name, None) for name in ("nll", "ece")},
            **{f"member {name}": accuracy for name, accuracy in self.members.items()},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedArm:
    """One arm over its seeds."""

    provenance: Provenance | None = None  # of its runs, where that is not the comparison's
    name: Name
    kind: Name  # "shared", a baseline's name, or "variant"
    label: Name  # in tables and figures
    group: Name | None = None  # heading in figures
    series: Name | None = None  # arms of one series differ in one quantity
    architecture: Annotated[Name | None, Field(default=None)]  # in words; None where a recipe tells it
    num_parameters: _Size  # trainable scalars
    flops: _Size  # of an image
    runs: Annotated[tuple[SeedSummary, ...], Field(max_length=1000)]  # one a seed
    # Every number that all seeds have. ``area``, of arms with exits, is the mean accuracy of the cascade over the
    # logarithm of the FLOPs, from the cheapest to the dearest point of the first arm's curve; chance where it cannot
    # answer yet.
    summary: Annotated[dict[Name, Spread], AfterValidator(_with_accuracy)]
    difference: dict[Name, Spread]  # the first arm's minus its own, paired by seed

    @property
    def has_exits(self) -> bool:
        """Whether every seed has a cascade."""
        return "area" in self.summary and all(run.cascade for run in self.runs)


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedData(DataSizes):
    """The data that all arms are trained and tested on."""

    num_classes: Count | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Result of a comparison; the shared ensemble is its first arm."""

    format: int = COMPARISON_FORMAT
    name: Name
    provenance: Provenance
    recipe: dict[str, Any]
    dataset: ComparedData
    seeds: tuple[Count, ...]
    overrides: tuple[str, ...]
    arms: Annotated[tuple[ComparedArm, ...], Field(max_length=500)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonPlan:
    """Arms and seeds that a comparison was asked for: see :func:`compare_arms`."""

    format: int = COMPARISON_FORMAT
    against: tuple[str, ...]
    variants: tuple[Variant, ...]
    overrides: tuple[str, ...]
    seeds: tuple[Count, ...]


def compare_arms(
    recipe: Recipe,
    folder: Path,
    *,
    against: Sequence[str] = ("independent",),
    variants: Sequence[Variant] = (),
    overrides: Sequence[str] = (),
    baselines: Mapping[str, Baseline] | None = None,
    num_seeds: int = 3,
    resume: bool = False,
    overwrite: bool = False,
    progress_of: ProgressOf | None = None,
) -> Comparison:
    """Train and evaluate a recipe's shared ensemble beside other arms, and summarise.

    All arms of a seed see the same images in the same order with the same augmentation.

    Args:
        recipe: Recipe of the shared ensemble; its seed is the first.
        folder: Folder of the comparison, made here.
        against: Names of baselines: ``independent``, ``single`` (the largest member alone), ``narrower`` (the same,
            narrowed or widened to as many parameters as the shared ensemble has, at most), and those of ``baselines``;
            ``NAME:SEEDS`` for an arm that takes fewer of the seeds.
        variants: The shared ensemble under other settings.
        overrides: ``ARM:key.path=value``: settings of one arm alone, such as the learning rate that suits it.
        baselines: Baselines of your own, by name: each makes an :class:`Arm` of the shared one and its members.
        num_seeds: Number of seeds, from the recipe's upwards.
        resume: Go on in a folder that the same comparison began; finished results are kept, and arms, variants and
            seeds may be added.
        overwrite: Replace the folder.
        progress_of: Gives each arm and seed the callback that :func:`train` calls.

    Returns:
        The content of comparison.json.

    Raises:
        SuperWeightError: An unknown arm, a folder that exists already, an arm that could not be trained, or one that
            would be tested on other images than the others. Nothing is trained or written before these checks.
    """
    if num_seeds < 1:
        raise SuperWeightError(f"a comparison needs at least one seed; got {num_seeds}")
    arms = build_arms(recipe, against, variants, overrides, baselines)
    check_no_links(folder)
    data = recipe.load_data()
    if not len(data.test):
        raise SuperWeightError(f"{data.name} has no test images to compare on")
    check_output_folder(
        folder, recipe, kind="comparison", marks=("recipe.yaml", "compare.json"), contents=_contents(folder),
        resume=resume, overwrite=overwrite,
    )  # fmt: skip
    for arm in arms:
        if (arm.num_seeds or 0) > num_seeds:
            raise SuperWeightError(f"arm '{arm.name}:{arm.num_seeds}' has more seeds than the comparison: {num_seeds}")
    seeds = tuple(range(recipe.seed, recipe.seed + num_seeds))
    if seeds[-1] + recipe.training.seed - recipe.seed >= 2**32 or seeds[-1] >= 2**32:
        raise SuperWeightError(
            f"{num_seeds} seeds from {seeds[0]} upwards go beyond the last one, 2**32 - 1: set a lower seed"
        )
    _check_arms(arms, recipe, data, seeds, folder if resume else None)
    plan = ComparisonPlan(against=tuple(against), variants=tuple(variants), overrides=tuple(overrides), seeds=seeds)
    with locked_folder(folder):
        if resume:
            _warn_of_left_out(folder, plan, [arm.name for arm in arms])
        if overwrite:
            empty_folder(folder)
        write_text(folder / "recipe.yaml", recipe.to_yaml())
        write_json(folder / "compare.json", asdict(plan))
        note_or_check_data(folder, data)
        return _compare(recipe, folder, arms, data, plan, progress_of)


def _check_arms(arms: Sequence[Arm], common: Recipe, data: ImageData, seeds: Sequence[int], begun: Path | None) -> None:
    """Check arms and seeds against this machine, the common data, and the folder of a comparison that is resumed."""
    of_data: dict[str, list[tuple[Arm, Recipe, Path | None]]] = {}
    for arm in arms:
        with at(f"arm {arm.name!r}"):
            if arm.train is train_seed:
                build_fabric(arm.recipe.training)
                build_fabric(arm.recipe.shared_training())
            for seed in seeds[: arm.num_seeds]:
                recipe = with_seed(arm.recipe, seed)
                own = None if begun is None else begun / folder_name(arm.name) / f"seed-{seed}"
                if own is not None:
                    _check_same_recipe(own, recipe)
                if seed == seeds[0] or (own is not None and (own / "data.json").is_file()):
                    key = repr((seed, recipe.data.model_dump()))
                    of_data.setdefault(key, []).append((arm, recipe, own))
    for entries in of_data.values():  # one after the other: two data sets may not fit into memory
        first = entries[0][1]
        loaded = data if (first.seed, first.data) == (common.seed, common.data) else None
        for arm, recipe, own in entries:
            with at(f"arm {arm.name!r}"):
                loaded = recipe.load_data() if loaded is None else loaded
                if recipe.seed == seeds[0]:
                    _check_same_test(loaded, data)
                    check_data(recipe, loaded)
                if own is not None and (own / "data.json").is_file():
                    note_or_check_data(own, loaded)


def _check_same_recipe(folder: Path, recipe: Recipe) -> None:
    """Refuse results of another recipe."""
    if not ((folder / "results.json").is_file() and (folder / "recipe.yaml").is_file()):
        return
    if difference := first_difference(folder, read_run(folder), recipe):
        raise SuperWeightError(f"{folder} was trained with another recipe ({difference}): give the arm another name")


def _check_same_test(data: ImageData, common: ImageData) -> None:
    """Refuse an arm whose test images are not those of the arms that it is compared with."""
    own, others = data.fingerprint(), common.fingerprint()
    keys = [key for key in others if "test" in key.split() and own.get(key) != others[key] and "marks" not in key]
    if keys:
        raise SuperWeightError(
            f"it would be tested on other images than the others ({', '.join(keys)} differ), and differences between "
            "arms say nothing then: give it data with the same test images"
        )


def _warn_of_left_out(folder: Path, plan: ComparisonPlan, arms: Sequence[str]) -> None:
    """Warn where a comparison that is resumed begins anew, or leaves out arms or seeds that it had."""
    if not (folder / "compare.json").is_file():
        _LOG.warning("nothing to resume in %s: comparing from the start", folder)
        return
    before = read_as(ComparisonPlan, folder / "compare.json", "compare again with --overwrite")
    named = [*(name.partition(":")[0] for name in before.against), *(variant.name for variant in before.variants)]
    gone = [name for name in named if name not in arms]
    gone += [f"seed {seed}" for seed in before.seeds if seed not in plan.seeds]
    if gone:
        _LOG.warning("%s: left out now, though compared before: %s", folder, ", ".join(gone))


def _compare(
    recipe: Recipe,
    folder: Path,
    arms: Sequence[Arm],
    data: ImageData,
    plan: ComparisonPlan,
    progress_of: ProgressOf | None,
) -> Comparison:
    results: dict[str, dict[int, SeedResult]] = {arm.name: {} for arm in arms}
    for seed in plan.seeds:
        for arm in arms:
            if arm.num_seeds is None or seed - recipe.seed < arm.num_seeds:
                progress = progress_of(f"{arm.name}, seed {seed}") if progress_of is not None else None
                own = folder / folder_name(arm.name) / f"seed-{seed}"
                results[arm.name][seed] = _run(arm, with_seed(arm.recipe, seed), own, progress)
    comparison = Comparison(
        name=recipe.name,
        provenance=Provenance(**provenance()),
        recipe=recipe.model_dump(mode="json", exclude_none=True),
        dataset=ComparedData(num_classes=data.num_classes, **fields_of(DatasetFacts.of(data), DataSizes)),
        seeds=plan.seeds,
        overrides=plan.overrides,
        arms=summarise(arms, results, 1 / data.num_classes),
    )
    write_json(folder / "comparison.json", as_content(comparison))
    return comparison


def _run(arm: Arm, recipe: Recipe, folder: Path, progress: ProgressCallback | None) -> SeedResult:
    """Train one arm with one seed, unless it has results already, and read these."""
    done = folder / "results.json"
    if not done.is_file():
        arm.train(arm, recipe, folder, progress)
    return read_as(SeedResults, done, "remove its folder and compare again with --resume").arms[0]


def with_seed(recipe: Recipe, seed: int) -> Recipe:
    """The same recipe with another seed, also of the training."""
    content = recipe.to_content()
    content["training"]["seed"] += seed - recipe.seed
    return parse_recipe({**content, "seed": seed})


def summarise(
    arms: Sequence[Arm],
    results: Mapping[str, Mapping[int, SeedResult]],
    chance: float,  # accuracy of a guess
) -> tuple[ComparedArm, ...]:
    """Summarise results, by arm and seed: every number, its mean and spread, and the first arm's minus an arm's own."""
    runs = {arm.name: [SeedSummary.of(*item) for item in results[arm.name].items()] for arm in arms}
    costs = [point.flops for run in runs[arms[0].name] for point in run.cascade or ()]
    low, high = min(costs, default=0.0), max(costs, default=0.0)
    numbers = {
        name: _known_numbers([{**run.numbers, "area": run.area(low, high, chance)} for run in own])
        for name, own in runs.items()
    }
    entries = []
    for arm in arms:
        own, one = runs[arm.name], next(iter(results[arm.name].values()))
        paired = numbers[arms[0].name]
        entries.append(
            ComparedArm(
                name=arm.name,
                kind=arm.kind,
                label=arm.label,
                group=arm.group or None,
                series=arm.series or None,
                architecture=one.architecture,
                num_parameters=one.num_parameters,
                flops=one.ensemble.flops,
                runs=tuple(own),
                summary={name: spread(values) for name, values in numbers[arm.name].items()},
                difference={
                    name: spread([ours - theirs for ours, theirs in zip(paired[name], values)])
                    for name, values in numbers[arm.name].items()
                    if name in paired
                },
            )
        )
    return tuple(entries)


def _known_numbers(runs: Sequence[Mapping[str, float | None]]) -> dict[str, list[float]]:
    """Values, run by run, of every number that all runs have."""
    found = {name: [value for run in runs if (value := run.get(name)) is not None] for name in runs[0]}
    return {name: values for name, values in found.items() if len(values) == len(runs)}


def spread(values: Sequence[float]) -> Spread:
    """Mean, standard deviation over seeds (0 for one), and their number.

    Example:
        >>> spread([1.0, 3.0])
        Spread(mean=2.0, std=1.4142135623730951, n=2)
    """
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return Spread(mean=statistics.fmean(values), std=std, n=len(values))


def read_comparison(folder: Path) -> Comparison:
    """Read the result of a comparison.

    Raises:
        SuperWeightError: The comparison is not there, not finished, or of another version.
    """
    with accessing(folder, "read"):
        if not (folder / "comparison.json").is_file():
            raise SuperWeightError(f"{folder} holds no finished comparison: superweights compare RECIPE --out {folder}")
    check_no_links(folder)
    return read_as(Comparison, folder / "comparison.json", "compare again")


def _contents(folder: Path) -> set[str]:
    """Names of all that belongs to a comparison in its folder: files, and folders of nothing but seeds."""
    arms = {
        path.name
        for path in folder.glob("*")
        if path.is_dir() and all(re.fullmatch(r"seed-\d+", inner.name) for inner in path.iterdir())
    }
    return {"recipe.yaml", "compare.json", "data.json", "comparison.json", "figures", *arms}
