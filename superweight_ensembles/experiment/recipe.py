"""Recipes: YAML files that say everything a run is made of."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from pydantic import Field, StrictInt, ValidationError, model_validator
from torch import nn

from superweight_ensembles.anytime import MIN_SAMPLES, checked_order, flops_of_members
from superweight_ensembles.data import ImageData, load_data
from superweight_ensembles.ensemble import SuperWeightEnsemble
from superweight_ensembles.errors import UNKNOWN_KEY, SuperWeightError, first_problem, unknown_name
from superweight_ensembles.experiment.estimate import TrainingEstimate, estimate_training
from superweight_ensembles.experiment.recipe_sections import (
    AnytimeRecipe,
    AveragingRecipe,
    DataRecipe,
    DistillationRecipe,
    EarlyStoppingRecipe,
    EvaluationRecipe,
    MemberRecipe,
    SharingRecipe,
    Strict,
    UncertaintyRecipe,
    WidthStageRecipe,
)
from superweight_ensembles.models import build_member, evaluating, is_out_of_memory
from superweight_ensembles.models.adaptive import WidthLoss, make_adaptive
from superweight_ensembles.plan import SharingPlan, check_num_groups, plan_sharing
from superweight_ensembles.search import Untying, check_searchable
from superweight_ensembles.storage import (
    PathError,
    check_plain,
    dump_yaml,
    no_recipe,
    parse_yaml,
    read_yaml,
    recipe_path,
)
from superweight_ensembles.training import (
    EACH_OTHER,
    PREFIXES,
    AveragedWeights,
    Distillation,
    EarlyStopping,
    Hook,
    LearnedWidths,
    TrainConfig,
    augmentation_of,
    check_lessons,
    precision_of,
    recomputed_blocks,
    repeated_blocks,
    tuned_config,
)

INDEPENDENT = "independent"
_MOST_PIXELS = 2**26  # numbers of one image, of every channel
_MOST_MADE_UP = 2**33  # numbers of all images that are made up
# Keys of older recipes: the value with which each did nothing, and what takes its place.
_RETIRED: dict[tuple[str, ...], tuple[Any, str]] = {
    ("teacher",): (None, "write distillation: {teacher: ..., weight: ..., temperature: ...}"),
    ("training", "distillation"): (0.0, "write distillation: {teacher: ..., weight: ...}"),
    ("training", "distillation_temperature"): (4.0, "write distillation: {teacher: ..., temperature: ...}"),
    ("training", "coefficient_rate"): (1.0, "coefficients take the learning rate of everything else"),
    ("sharing", "allocation"): ("sweeps", "slots get their templates in sweeps, as published"),
}
# Switches, and the value of each for off; null, false, 0 and none are read as that value.
_OFF: dict[tuple[str, ...], Any] = {
    ("anytime",): None, ("averaging",): None, ("baseline",): "none", ("distillation",): None, ("fine_tuning",): None,
    ("learn_widths",): None, ("width_loss",): None, ("early_stopping",): None, ("uncertainty",): None,
    ("sharing", "init"): "random", ("sharing", "search"): "none",
    ("sharing", "search_epochs"): None, ("sharing", "untie_epoch"): None,
}  # fmt: skip


class Recipe(Strict):
    """A whole run.

    Attributes:
        name: Names the run folder under runs/.
        seed: Seed of all start values, the validation split, the data order and augmentation.
        data: The data set and its options.
        members: The networks of the ensemble.
        sharing: The parameter budget, and which layers share.
        training: How members are trained.
        fine_tuning: Settings other than in ``training``, for a bank that starts from trained members.
        evaluation: How results are measured.
        learn_widths: Members learn their widths in a training of their own; then the sharing is planned, and all that
            is trained has these widths. Without it, widths are learned in the training itself, where nothing is shared.
        width_loss: Priors of the weights and rates where widths are learned.
        anytime: Whether and how stream and cascade are measured.
        baseline: ``independent`` trains the same members apart as well; ``none`` does not.
        distillation: What the shared arm learns from besides the labels.
        averaging: Whether all arms end with the mean of their weights over the last steps.
        early_stopping: Whether arms end once they are no better on validation images.
        uncertainty: What is measured on corrupted images, and on those of another data set.
    """

    name: str = Field(pattern=r"^\.?[A-Za-z0-9_-][A-Za-z0-9._-]*$", max_length=100)
    seed: StrictInt = Field(default=0, ge=0, lt=2**32)
    data: DataRecipe
    members: tuple[MemberRecipe, ...] = Field(min_length=1, max_length=1000)
    sharing: SharingRecipe
    training: TrainConfig = Field(default_factory=TrainConfig)
    fine_tuning: dict[str, Any] | None = Field(default=None, max_length=100)
    learn_widths: WidthStageRecipe | None = None
    width_loss: WidthLoss | None = None
    evaluation: EvaluationRecipe = Field(default_factory=EvaluationRecipe)
    anytime: AnytimeRecipe | None = None
    baseline: Literal["independent", "none"] = "independent"
    distillation: DistillationRecipe | None = None
    averaging: AveragingRecipe | None = None
    early_stopping: EarlyStoppingRecipe | None = None
    uncertainty: UncertaintyRecipe | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_today(cls, content: Any) -> Any:
        """Drop retired keys, write off in one way, and give ``training.seed`` the recipe's seed where none is given."""
        if not isinstance(content, dict):
            return content
        content = _switched_off(_without_retired(content))
        if isinstance(content.get("training", {}), dict) and "seed" in content:
            content = {**content, "training": {"seed": content["seed"], **content.get("training", {})}}
        return content

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        sharing, epochs = self.sharing, self.shared_training().epochs
        untie_epoch = sharing.untie_epoch
        learns = any(member.adaptive is not None for member in self.members)
        plain = self.learn_widths is not None and not self.learn_widths.keep_importance
        teacher = None if self.teaching is None else self.teaching.teacher
        self.refuse_idle(self.starts_warm, "without sharing.init: svd or trained members", "fine_tuning")
        self.refuse_idle(learns, "without a member that is adaptive: {pairs: ...}", "learn_widths", "width_loss")
        if untie_epoch is not None and untie_epoch >= epochs:
            raise ValueError(f"sharing.untie_epoch {untie_epoch} must come before the last of {epochs} epochs")
        if self.trains_its_start and self.baseline != INDEPENDENT:
            raise ValueError(
                "sharing.init svd needs trained members: baseline: independent, or sharing.init_from, a saved ensemble"
            )
        if learns and self.learn_widths is None and sharing.clusters != "none":
            raise ValueError(
                "widths change only while nothing is shared: learn them first (learn_widths: {epochs: N}), or set "
                "sharing.clusters: none"
            )
        if teacher in EACH_OTHER:
            check_lessons(teacher, len(self.members), self.training.member_batches)
        if teacher == INDEPENDENT and self.baseline != INDEPENDENT:
            raise ValueError(f"teacher {INDEPENDENT!r} is the baseline of that name: set baseline: {INDEPENDENT}")
        if not learns and self.training.width_rate not in (1.0, 0):
            raise ValueError("training.width_rate does nothing without a member that is adaptive: leave it out")
        if self.anytime is not None and self.anytime.truncations and not learns:
            raise ValueError("anytime.truncations do nothing: no member is adaptive: leave them out")
        if self.anytime is not None and self.anytime.truncations and plain:
            raise ValueError("anytime.truncations need learn_widths.keep_importance: true: leave one of them out")
        self._check_names()
        return self

    def _check_names(self) -> None:
        """Refuse members of one name, and an order of exits that is not theirs."""
        names = [member.name for member in self.members]
        repeated = next((name for name in names if names.count(name) > 1), None)
        if repeated is not None:
            raise ValueError(f"members: two are named {repeated!r}: give each a name of its own")
        if self.anytime is None:
            return
        with at("anytime"):
            order = checked_order(self.anytime.order, names)
        if len(names if isinstance(order, str) else order) < 2:
            raise ValueError("anytime: one member alone leaves nothing to stop before: leave the section out")

    def _check_known_data(self) -> None:
        """Check training and exits against what is known of the data set before it is read."""
        name, facts = self.data.name, self.data.facts
        shape, num_train = facts.image_shape, facts.num_train
        if shape is not None and math.prod(shape) > _MOST_PIXELS:
            raise SuperWeightError(
                f"data: images of {list(shape)} have {math.prod(shape):,} numbers each, more than {_MOST_PIXELS:,}: "
                "make them smaller"
            )
        if name == "synthetic" and shape is not None and num_train and num_train * math.prod(shape) > _MOST_MADE_UP:
            raise SuperWeightError(
                f"data: {num_train:,} images of {list(shape)} would not fit into memory: make them fewer or smaller"
            )
        slack = self.classes_and_channels()[0] or 0  # splits are rounded class by class
        for section, config in (("training", self.training), ("fine_tuning", self.shared_training())):
            with at(section):
                if config.random_resized_crop and name != "image_folder":
                    raise SuperWeightError(
                        "random_resized_crop cuts parts out of files of image_folder: use crop_padding"
                    )
                if shape is not None:
                    augmentation_of(config).check_fits(shape)
                if isinstance(config.micro_batches, int) and config.micro_batches > config.batch_size:
                    raise SuperWeightError(
                        f"micro_batches {config.micro_batches} are more than batch_size {config.batch_size}"
                    )
                if num_train is not None and config.batch_size > num_train + slack:
                    raise SuperWeightError(
                        f"{name} has about {num_train} training images, fewer than batch_size {config.batch_size}"
                    )
        others = None if self.uncertainty is None else self.uncertainty.others
        if others is not None and (others.name, others.options) == (name, self.data.options):
            raise SuperWeightError(f"uncertainty.others: {name} is the run's own data: name another data set")
        of_others = None if others is None else others.facts.image_shape
        if others is not None and None not in (shape, of_others) and shape != of_others:
            raise SuperWeightError(
                f"uncertainty.others: {others.name} has images {of_others}, {name} {shape}: give images of one shape"
            )
        if self.anytime is not None and facts.num_validation is not None:
            check_held_out(name, facts.num_validation, slack)

    def to_content(self) -> dict[str, Any]:
        """The recipe as plain data, of which :func:`parse_recipe` makes an equal one."""
        content = self.model_dump(mode="json", exclude_none=True)
        for entry, given in zip((content["data"], *content["members"]), (self.data, *self.members)):
            entry.update(given.model_extra or {})  # a null that was given there is an option's value
        return content

    def to_yaml(self) -> str:
        return dump_yaml(self.to_content())

    def load_data(self) -> ImageData:
        """Load the data set and check it against what the recipe says of it."""
        with at("data"):
            try:
                data = load_data(self.data.name, **self.data.seeded(self.seed))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                raise SuperWeightError(
                    f"{self.data.name} does not fit into memory: take fewer or smaller images"
                ) from error
            self.data.check_says(data.num_classes, data.image_shape[0])
        return data

    @property
    def starts_warm(self) -> bool:
        """Whether the bank starts from trained members: by ``sharing.init``, or as they come with weights."""
        return self.sharing.init == "svd" or any(member.is_trained for member in self.members)

    @property
    def trains_its_start(self) -> bool:
        """Whether the bank starts from the baseline that this very run trains first."""
        return self.sharing.init == "svd" and self.sharing.init_from is None

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """(C, H, W) of the images, as far as it is known before they are read."""
        return self.data.facts.image_shape

    def build_members(self, data: ImageData | None = None) -> dict[str, nn.Module]:
        """Make the members with start values drawn from the recipe's seed; data are read only for unknown classes.

        Raises:
            SuperWeightError: An unknown model, an option that it does not take, a number of classes that is not known.
        """
        classes, channels = self.classes_and_channels()
        if classes is None or channels is None:
            data = data or self.load_data()
            classes, channels = data.num_classes, data.image_shape[0]
        for member in self.members:
            for key in ("num_classes", "in_channels"):
                if key in (member.model_extra or {}):
                    raise SuperWeightError(f"members: {member.name!r} must not set {key}: the data decide it")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return {member.name: self._build(member, classes, channels) for member in self.members}

    def _build(self, member: MemberRecipe, classes: int, channels: int) -> nn.Module:
        with at(f"members: {member.name!r}"):
            module = build_member(
                member.model, num_classes=classes, in_channels=channels, pretrained=bool(member.pretrained),
                weights=member.weights, **(member.model_extra or {}),
            )  # fmt: skip
        if member.adaptive is None:
            return module
        with at(f"members: {member.name!r}, adaptive"):
            example = None if self.image_shape is None else torch.zeros(2, *self.image_shape)
            return make_adaptive(module, example=example, **dict(member.adaptive))

    def prepare(self) -> tuple[dict[str, nn.Module], SharingPlan]:
        """Make members and plan and check them before any training; data are read only for unknown classes.

        Raises:
            SuperWeightError: As :meth:`build_members` and :meth:`plan`; a member that does not run on the images,
                blocks to recompute that are not there, a target of FLOPs that the members cannot meet.
        """
        self._check_known_data()
        members = self.build_members()
        plan = self.plan(members)
        if self.training.recompute and not any(map(repeated_blocks, members.values())):
            recomputed_blocks(members)  # raises, and says why
        if self.image_shape is None:
            return members, plan
        with evaluating(nn.ModuleList(members.values())), at("members"):
            flops = flops_of_members(members, torch.zeros(1, *self.image_shape))
        if self.anytime is not None and self.learn_widths is None:
            what, amount = self.anytime.curve_options()["target"]
            order = self.anytime.order
            exits = list(flops.values()) if isinstance(order, str) else [flops[name] for name in order]
            least, most = min(exits) if isinstance(order, str) else exits[0], sum(exits)
            if what == "flops" and not least <= (amount * most if amount <= 1 else amount) <= most:
                raise SuperWeightError(
                    f"anytime.flops: a mean cost must lie between the first member's and all members', {least:,} to "
                    f"{most:,} ({least / most:.3g} to 1 of all); got {amount:g}"
                )
        return members, plan

    def plan(self, members: dict[str, nn.Module]) -> SharingPlan:
        """Plan the sharing that a run begins with; a search splits the clusters of this plan."""
        sharing, options = self.sharing, self.sharing.plan_options()
        if sharing.clusters == "random":
            options["group_seed"] = self.seed if sharing.group_seed is None else sharing.group_seed
        with at("sharing"):
            plan = plan_sharing(members, **options)
            if sharing.search in ("gradient", "weight"):
                check_searchable(plan)
                # After the search each layer may be alone in its cluster, with coefficients of its own: refuse now a
                # budget that could not hold these.
                most = "own" if sharing.coefficient_kind == "tied" else sharing.coefficient_kind
                plan_sharing(members, **{**options, "coefficients": most, "reserve_untied": False})
            if sharing.search == "k_means":
                # The groups are not known yet: a plan of as many random groups shows whether the budget is enough.
                check_num_groups(sharing.num_groups, True, sum(len(c.targets) for c in plan.clusters), "k-means")
                like = {"clusters": "random", "num_groups": sharing.num_groups, "ssn": sharing.ssn}
                plan_sharing(members, **{**options, **like})
        return plan

    def estimate(self, members: dict[str, nn.Module], plan: SharingPlan) -> TrainingEstimate | None:
        """Estimate what the training takes, without data; None where only the files show the size of the images."""
        if self.image_shape is None:
            return None
        config, hook = self.shared_training(), distillation_of(self) if self.taught_by(*EACH_OTHER) else None
        return estimate_training(
            members, plan, self.image_shape, config, bfloat16=precision_of(config) != "float32",
            num_images=self.data.facts.num_train,
            together=hook is not None and hook.together,
        )  # fmt: skip

    def taught_by(self, *teachers: str) -> bool:
        """Whether the shared arm learns from one of these."""
        return self.teaching is not None and self.teaching.teacher in teachers

    @property
    def teaching(self) -> DistillationRecipe | None:
        """The distillation, where its weight does not turn it off."""
        return self.distillation if self.distillation is not None and self.distillation.weight else None

    def shared_training(self) -> TrainConfig:
        """Settings of the shared ensemble's training: ``training``, with the changes of ``fine_tuning``."""
        return tuned_config(self.training, self.fine_tuning or {})

    def hooks(self, arm: str, independent: SuperWeightEnsemble | Path | None = None) -> list[Hook]:
        """Hooks of an arm's training; only the shared one un-ties, and learns from a teacher (``independent``)."""
        found: list[Hook | None] = []
        sharing = self.sharing
        if arm == "shared" and sharing.untie_epoch is not None:
            batches = sharing.search_batches
            found.append(Untying(epoch=sharing.untie_epoch, threshold=sharing.untie_threshold, max_batches=batches))
        if arm == "shared":
            found.append(distillation_of(self, independent))
        if self.averaging is not None:
            found.append(AveragedWeights(**self.averaging.model_dump()))
        if self.early_stopping is not None:
            found.append(EarlyStopping(**self.early_stopping.model_dump()))
        if self.learn_widths is None:  # else widths are those of the stage before
            found.append(LearnedWidths(self.width_loss))
        return [hook for hook in found if hook is not None]

    def search_training(self) -> TrainConfig:
        """Settings of the training before a search: those of the final one, but fewer epochs, steps and teachers."""
        assert self.sharing.search_epochs is not None, "checked with the recipe"
        return self._in_epochs(self.sharing.search_epochs)

    def width_training(self) -> TrainConfig:
        """Settings of the training that learns widths: those of the final one, but other epochs and no teachers."""
        assert self.learn_widths is not None, "there is such a stage"
        return self._in_epochs(self.learn_widths.epochs)

    def _in_epochs(self, epochs: int) -> TrainConfig:
        config = self.training
        if config.schedule == "step":
            config = replace(config, schedule="constant", milestones=(), gamma=TrainConfig().gamma)
        return replace(config, epochs=epochs)

    def bank_generator(self) -> torch.Generator:
        """Generator of the bank's start values."""
        return torch.Generator().manual_seed(self.seed)

    def classes_and_channels(self) -> tuple[int | None, int | None]:
        """Numbers of classes and image channels that the recipe gives, else those known of the data set, else None."""
        facts = self.data.facts
        return self.data.num_classes or facts.num_classes, self.data.channels or facts.channels


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply ``key.path=value`` overrides (values are YAML).

    Args:
        path: Path of the file; or a name that is no file, such as ``digits``: the bundled recipe of that name.
        overrides: Each ``key.path=value``.

    Raises:
        SuperWeightError: No such file, no YAML, an unknown key (suggests the nearest), a value that does not fit.
    """
    path = recipe_path(path)
    try:
        content = read_yaml(path)
    except PathError as error:
        if isinstance(error.cause, (FileNotFoundError, IsADirectoryError, NotADirectoryError)):
            raise no_recipe(path) from None
        raise
    if not isinstance(content, dict):
        raise SuperWeightError(f"recipe {path} must hold keys and values; got {type(content).__name__}")
    for override in overrides:
        set_value(content, override)
    return parse_recipe(content, where=str(path))


def check_overrides(overrides: Sequence[str]) -> None:
    """Refuse an override that a later one replaces: in a command that somebody types, one is a mistake."""
    keys = [override.partition("=")[0] for override in overrides]
    for place, key in enumerate(keys):
        if later := next((one for one in keys[place + 1 :] if f"{key}.".startswith(f"{one}.")), None):
            raise SuperWeightError(f"--set {key} is overridden by --set {later} after it: leave one of them out")


def set_value(content: dict[str, Any], override: str, option: str = "--set") -> None:
    """Set one value in place: ``training.epochs=5``, ``members.0.width=4``."""
    where = f"{option} {override!r}"
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise SuperWeightError(f"{where}: write key.path=value, such as training.epochs=5")

    def place(spot: Any, part: str) -> Any:
        if isinstance(spot, list) and part in map(str, range(len(spot))):
            return int(part)
        if isinstance(spot, dict):
            return part
        raise SuperWeightError(f"{where}: the recipe has nothing at {part!r}")

    *path, last = key.split(".")
    spot: Any = content
    for part in path:
        at = place(spot, part)
        spot = spot.setdefault(at, {}) if isinstance(spot, dict) else spot[at]
    value = parse_yaml(text, f"{option} {override!r:.200}")
    spot[place(spot, last)] = value


def parse_recipe(content: dict[str, Any], where: str = "recipe") -> Recipe:
    """Make a recipe of plain data and check it."""
    check_plain(content, where)
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        # An unknown key is reported before a missing one: it may be the missing one, misspelt.
        tags = ("int", "float", "str", "dict[str,list[str]]")
        problem = first_problem(error, tags=tags, before=UNKNOWN_KEY)
    if problem.kind in UNKNOWN_KEY:
        *parents, key = problem.path
        unknown = unknown_name("key", str(key), _known_keys(parents))
        raise SuperWeightError(f"{where}: {'.'.join(map(str, parents)) or 'top level'}: {unknown}")
    if problem.kind == "missing":
        raise SuperWeightError(f"{where}: {problem.where} is missing")
    if problem.where == "sharing.budget":
        said = "must be an int (parameters) or a float (fraction of what the members own apart)"
        problem = problem._replace(said=said)
    raise SuperWeightError(f"{where}: {problem}")


@contextmanager
def at(place: str) -> Iterator[None]:
    """Prefix the errors raised inside with a recipe's key or an arm."""
    try:
        yield
    except SuperWeightError as error:
        raise SuperWeightError(f"{place}: {error}") from None


def _known_keys(parents: list[Any]) -> list[str]:
    model: Any = Recipe
    for part in parents:
        if isinstance(part, str):
            model = model.model_fields[part].annotation
            model = next((kind for kind in get_args(model) if kind is not type(None)), model)
    if is_dataclass(model):
        return [field.name for field in fields(model)]
    return list(model.model_fields)


def _without_retired(content: dict[str, Any]) -> dict[str, Any]:
    """A recipe's content without retired keys; one that did something is a ValueError that names its replacement."""
    training = content.get("training")
    weight = content.get("distillation", training.get("distillation") if isinstance(training, dict) else None)
    for path, (idle, remedy) in _RETIRED.items():
        section, key = _section(content, path), path[-1]
        if key in section:
            if section[key] != idle and not (path == ("teacher",) and weight == 0):
                raise ValueError(f"{'.'.join(path)} is no key any more: {remedy}")
            kept = {name: value for name, value in section.items() if name != key}
            content = {**content, path[0]: kept} if path[1:] else kept
    return content


def _switched_off(content: dict[str, Any]) -> dict[str, Any]:
    """A recipe's content in which every switch that is off has the one value that its section uses for off."""
    for path, off in _OFF.items():
        section = _section(content, path)
        given = section.get(path[-1], "not given")
        if given is None or given == "none" or (isinstance(given, (bool, int, float)) and not given):
            changed = {**section, path[-1]: off}
            content = {**content, path[0]: changed} if path[1:] else changed
    return content


def _section(content: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """The section that holds the key at a path; empty where a recipe has something else there."""
    found = content.get(path[0]) if path[1:] else content
    return found if isinstance(found, dict) else {}


def check_held_out(name: str, num_validation: int, slack: int = 0) -> None:  # slack of an inexact number
    """Refuse an anytime section with too few validation images to fit thresholds on."""
    if num_validation + slack < MIN_SAMPLES:
        raise SuperWeightError(
            f"anytime: thresholds are fitted on at least {MIN_SAMPLES} validation images; {name} has "
            f"{num_validation}: raise data.validation_fraction, or leave the section out"
        )


def distillation_of(recipe: Recipe, independent: SuperWeightEnsemble | Path | None = None) -> Distillation | None:
    """The hook that teaches the shared arm, from the saved baseline where that teaches; None without a teacher."""
    given = recipe.teaching
    if given is None:
        return None
    if given.teacher in EACH_OTHER:
        exits = None if recipe.anytime is None or given.teacher != PREFIXES else recipe.anytime.order
        return given.hook(given.teacher, None if isinstance(exits, str) else exits)
    if not isinstance(independent, SuperWeightEnsemble):
        independent = SuperWeightEnsemble.load(independent or _saved(Path(given.teacher)))
    return given.hook(independent)


def check_saved_teacher(recipe: Recipe) -> None:
    """Read a teacher that a recipe names by its folder, and check its classes, before a training."""
    if recipe.teaching is None or recipe.taught_by(*EACH_OTHER, INDEPENDENT):
        return
    taught, (classes, _) = distillation_of(recipe), recipe.classes_and_channels()
    assert taught is not None and taught.teacher is not None, "a folder is given"
    if recipe.image_shape is not None and classes is not None:
        with at(f"distillation.teacher: {recipe.teaching.teacher}"), taught.teacher.on_device(torch.device("cpu")):
            answered = taught.taught(torch.zeros(2, *recipe.image_shape)).shape[1]
            if answered != classes:
                raise SuperWeightError(f"it answers {answered} classes, the data have {classes}")


def _saved(folder: Path) -> Path:
    """The folder of a saved ensemble, from that folder or from the folder of a run's arm."""
    with at("distillation.teacher"):
        if not folder.is_dir():
            known = f"{', '.join(EACH_OTHER)}, {INDEPENDENT}"
            raise SuperWeightError(f"{folder} is no folder: give {known}, or the folder of a saved ensemble")
        if (folder / "recipe.yaml").is_file():
            raise SuperWeightError(f"{folder} is a run: give one of its arms, such as {folder / 'shared'}")
        if not (folder.parent / "recipe.yaml").is_file():
            return folder
        if not (folder / "training.json").is_file():
            raise SuperWeightError(f"the arm {folder} is not trained to its end: train it with --resume first")
    return folder / "ensemble"
