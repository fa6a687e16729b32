"""Recipes: YAML files that say everything a run is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, ValidationError, model_validator
from torch import nn

from superweight_ensembles.carried_recipes import no_recipe, recipe_path
from superweight_ensembles.data import ImageData, load_data
from superweight_ensembles.data.known_shapes import image_shape_of, num_training_images
from superweight_ensembles.errors import SuperWeightError, unknown_name
from superweight_ensembles.estimate import TrainingEstimate, estimate_training
from superweight_ensembles.fine_tuning import tuned_config
from superweight_ensembles.plan import SharingPlan
from superweight_ensembles.planning import plan_sharing
from superweight_ensembles.recipe_overrides import set_value
from superweight_ensembles.recipe_teacher import check_teacher
from superweight_ensembles.registry import build_member
from superweight_ensembles.search import LEARNING, Untying, check_searchable
from superweight_ensembles.ssn.options import SsnOptions
from superweight_ensembles.storage.plain_data import check_plain
from superweight_ensembles.storage.yaml_file import read_yaml
from superweight_ensembles.training.config import TrainConfig
from superweight_ensembles.training.distillation import OWN_MEAN
from superweight_ensembles.training.fabric import uses_bfloat16

_KNOWN_DATA = {"digits": (10, 1), "cifar10": (10, 3), "cifar100": (100, 3)}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataRecipe(BaseModel):
    """``data:`` a name, the number of classes and channels where no registry knows them, and the set's options."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str
    num_classes: int | None = Field(default=None, ge=2)
    channels: int | None = Field(default=None, ge=1)


class MemberRecipe(BaseModel):
    """One of ``members:``: a name, a registry name, and the model's options."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str
    model: str


_SEARCH_KEYS = (
    "coefficients",
    "search",
    "search_epochs",
    "search_batches",
    "threshold",
    "untie_epoch",
    "untie_threshold",
    "init",
    "init_from",
)


class SharingRecipe(_Strict):
    """``sharing:`` as :func:`plan_sharing` takes it, and the search that goes on from there.

    Attributes:
        coefficients: As :func:`plan_sharing` takes it; ``own`` by default, ``tied`` with a search.
        num_groups: Of clusters ``random``, and of search ``k_means``.
        group_seed: Of clusters ``random``; the recipe's seed unless given.
        search: ``gradient`` or ``weight`` splits clusters by similarity (:func:`search_clusters`); ``k_means`` learns
            groups (:func:`learn_groups`); ``none`` does neither.
        search_epochs: Epochs that the first plan is trained for before the search.
        search_batches: Training batches that gradients are taken on, in the search and in un-tying.
        threshold: Cosine above which two layers go on sharing templates.
        untie_epoch: Un-tie coefficients after this epoch of the final training.
        untie_threshold: Cosine above which two uses of a coefficient vector stay tied.
        init: ``svd`` starts the bank from trained members (:func:`warm_start`): those that this run's own baseline
            trains first, or those of ``init_from``; ``random`` does not.
        init_from: Folder of a saved ensemble of the same members, such as RUN/independent/ensemble.
    """

    budget: StrictInt | StrictFloat
    generator: str = "auto"
    clusters: str | Annotated[dict[str, list[str]], Field(max_length=1000)] = "depth_bins"
    bins: int = 4
    num_groups: StrictInt | None = None
    group_seed: StrictInt | None = Field(default=None, ge=0)
    ssn: SsnOptions | None = None
    cap: int = 8
    allocation: str = "sweeps"
    coefficients: str | None = None
    include: tuple[str, ...] = Field(default=(), max_length=1000)
    exclude: tuple[str, ...] = Field(default=(), max_length=1000)
    budget_counts: str = "all"
    search: Literal["none", "gradient", "weight", "k_means"] = "none"
    search_epochs: StrictInt | None = Field(default=None, ge=1)
    search_batches: StrictInt | None = Field(default=None, ge=1)
    threshold: StrictInt | StrictFloat = Field(default=0.1, ge=-1, le=1)
    untie_epoch: StrictInt | None = Field(default=None, ge=1)
    untie_threshold: StrictInt | StrictFloat = Field(default=0.9, ge=-1, le=1)
    init: Literal["random", "svd"] = "random"
    init_from: str | None = None

    @model_validator(mode="after")
    def _nothing_idle(self) -> SharingRecipe:
        given = {name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default}
        searches, unties = self.search != "none", self.untie_epoch is not None
        if searches and self.search_epochs is None:
            raise ValueError("a search needs search_epochs: the epochs that the first plan is trained for")
        splits = self.search in ("gradient", "weight")
        if splits and self.clusters == "none":
            raise ValueError("a search splits clusters, and clusters 'none' makes none")
        if self.search == "k_means":
            for key in sorted(given & {"clusters", "bins", "coefficients", "cap", "allocation"}):
                raise ValueError(
                    f"{key} does nothing with search 'k_means', which makes groups of flat banks: leave it out"
                )
            if self.num_groups is None:
                raise ValueError("search 'k_means' needs num_groups")
            if self.generator == "superweight":
                raise ValueError("search 'k_means' groups layers of any kernel: generator must be 'ssn' or 'auto'")
        for acts, without, keys in (
            (searches, "a search (search: gradient)", ("search_epochs",)),
            (splits, "search: gradient", ("threshold",)),
            (unties, "untie_epoch", ("untie_threshold",)),
            (self.search == "gradient" or unties, "search: gradient or untie_epoch", ("search_batches",)),
            (self.coefficient_kind == "tied", "tied coefficients", ("untie_epoch",)),
            (self.clusters == "random", "clusters: random", ("group_seed",)),
            (self.init == "svd", "init: svd", ("init_from",)),
        ):
            for key in keys:
                if key in given and not acts:
                    raise ValueError(f"{key} does nothing without {without}: leave it out")
        return self

    @property
    def coefficient_kind(self) -> str:
        """Of the plan that is trained to the end."""
        return self.coefficients or ("tied" if self.search in ("gradient", "weight") else "own")

    def plan_options(self) -> dict[str, Any]:
        """What :func:`plan_sharing` takes for the plan that a run begins with."""
        options = self.model_dump(exclude={*_SEARCH_KEYS, "ssn", "group_seed"})
        if self.search == "k_means":
            learning = {"generator": "ssn", "clusters": "one", "num_groups": None, "ssn": LEARNING}
            return {**options, **learning}
        first = {"none": self.coefficient_kind, "gradient": "tied", "weight": "own"}[self.search]
        if self.search != "none" and options["generator"] == "auto":
            options["generator"] = "superweight"  # similarity splits nothing else
        untied = first == "tied" and self.untie_epoch is not None
        return {**options, "ssn": self.ssn, "coefficients": first, "reserve_untied": untied}


class EvaluationRecipe(_Strict):
    """``evaluation:``."""

    batch_size: int = Field(default=256, ge=1)


class AnytimeRecipe(_Strict):
    """``anytime:`` has ``superweights evaluate`` measure stream and cascade, and keep a calibrated cascade.

    Thresholds are fitted on the validation images, at least 100. Of ``flops``, ``latency_ms`` and
    ``max_accuracy_drop`` give one, the target of the cascade that is kept; half of all members' FLOPs without any.

    Attributes:
        order: ``cost``, ``greedy``, or member names.
        confidence: ``margin``, ``max_probability``, ``entropy`` or ``agreement``.
        temperature: Whether each exit's temperature is fitted.
        monotone: Whether an earlier, surer prediction stands.
        flops: Mean of an image; up to 1.0, the fraction of all members'.
        latency_ms: Mean of an image, in batches of ``batch_size``.
        max_accuracy_drop: At most so much below all members, as a fraction.
        num_points: Of the cascade's curve.
        batch_size: Images a batch, for the clock.
        timed_images: Test images for the clock.
    """

    order: str | tuple[str, ...] = "cost"
    confidence: Literal["margin", "max_probability", "entropy", "agreement"] = "margin"
    temperature: bool = True
    monotone: bool = False
    flops: StrictInt | StrictFloat | None = Field(default=None, gt=0)
    latency_ms: StrictInt | StrictFloat | None = Field(default=None, gt=0)
    max_accuracy_drop: StrictInt | StrictFloat | None = Field(default=None, ge=0, lt=1)
    num_points: int = Field(default=8, ge=2, le=100)
    batch_size: int = Field(default=64, ge=1)
    timed_images: int = Field(default=512, ge=1)

    @model_validator(mode="after")
    def _one_target(self) -> AnytimeRecipe:
        if len(self._targets()) > 1:
            raise ValueError(f"give one of {', '.join(self._targets())}")
        return self

    def curve_options(self) -> dict[str, Any]:
        """What :func:`measure_curves` takes."""
        options = self.model_dump(exclude={"order", "flops", "latency_ms", "max_accuracy_drop"})
        return {**options, "target": next(iter(self._targets().items()), ("flops", 0.5))}

    def _targets(self) -> dict[str, float]:
        found = {name: getattr(self, name) for name in ("flops", "latency_ms", "max_accuracy_drop")}
        return {name: value for name, value in found.items() if value is not None}


class Recipe(_Strict):
    """A whole run.

    Attributes:
        name: Names the run folder under runs/.
        seed: Of the members' and the bank's start values, the validation split, the data order and augmentation.
        data: The data set and its options.
        members: The networks.
        sharing: Budget and clusters.
        training: As :class:`TrainConfig`.
        fine_tuning: Settings in which the training of a bank that starts from trained members differs.
        evaluation: How results are measured.
        anytime: Whether and how stream and cascade are measured.
        baseline: ``independent`` trains the same members apart as well; ``none`` does not.
        teacher: What the shared arm learns from besides the labels, with ``training.distillation``: ``ensemble`` (the
            mean of its members), ``independent`` (that arm, trained first) or the folder of a saved ensemble.
    """

    name: str = Field(pattern=r"^\.?[A-Za-z0-9_-][A-Za-z0-9._-]*$", max_length=100)
    seed: int = Field(default=0, ge=0, lt=2**32)
    data: DataRecipe
    members: tuple[MemberRecipe, ...] = Field(min_length=1, max_length=1000)
    sharing: SharingRecipe
    training: TrainConfig = Field(default_factory=TrainConfig)
    fine_tuning: dict[str, Any] | None = Field(default=None, max_length=100)
    evaluation: EvaluationRecipe = Field(default_factory=EvaluationRecipe)
    anytime: AnytimeRecipe | None = None
    baseline: Literal["independent", "none"] = "independent"
    teacher: str | None = Field(default=None, min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _one_seed(cls, content: Any) -> Any:
        """``training.seed`` is the recipe's, unless it is given."""
        if isinstance(content, dict) and isinstance(content.get("training", {}), dict) and "seed" in content:
            return {**content, "training": {"seed": content["seed"], **content.get("training", {})}}
        return content

    @model_validator(mode="after")
    def _untied_in_time(self) -> Recipe:
        epoch, epochs = self.sharing.untie_epoch, self.shared_training().epochs
        if epoch is not None and epoch >= epochs:
            raise ValueError(f"sharing.untie_epoch {epoch} must come before the last of {epochs} epochs")
        return self

    @model_validator(mode="after")
    def _something_to_start_from(self) -> Recipe:
        svd = self.sharing.init == "svd"
        if svd and self.sharing.init_from is None and self.baseline != "independent":
            raise ValueError(
                "sharing.init svd needs trained members: baseline: independent, or sharing.init_from, a saved ensemble"
            )
        if self.fine_tuning is not None and not svd:
            raise ValueError("fine_tuning does nothing without sharing.init: svd: leave it out")
        return self

    @model_validator(mode="after")
    def _taught(self) -> Recipe:
        check_teacher(self.teacher, self.training, len(self.members), self.baseline)
        return self

    @model_validator(mode="after")
    def _members_to_stop_between(self) -> Recipe:
        if self.anytime is not None and len(self.members) < 2:
            raise ValueError("anytime: one member alone leaves nothing to stop before: leave the section out")
        return self

    def to_content(self) -> dict[str, Any]:
        """Plain data that :func:`parse_recipe` makes the same recipe of."""
        content = self.model_dump(mode="json", exclude_none=True)
        for entry, given in zip((content["data"], *content["members"]), (self.data, *self.members)):
            entry.update(given.model_extra or {})  # a null that was given there is an option's value
        return content

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_content(), sort_keys=False, width=100, allow_unicode=True)

    def load_data(self) -> ImageData:
        """Load the data set and hold it against what the recipe says of it."""
        data = load_data(self.data.name, **{"seed": self.seed, **(self.data.model_extra or {})})
        classes, channels = self._classes_and_channels()
        if classes not in (None, data.num_classes) or channels not in (None, data.image_shape[0]):
            raise SuperWeightError(
                f"data: the recipe says {classes} classes and {channels} channels; "
                f"{self.data.name} has {data.num_classes} and {data.image_shape[0]}"
            )
        return data

    def build_members(self, data: ImageData | None = None) -> dict[str, nn.Module]:
        """Make the members with start values drawn from the recipe's seed; without data where none are needed.

        Raises:
            SuperWeightError: Two members of one name, an unknown model, classes that nothing tells.
        """
        names = [member.name for member in self.members]
        repeated = next((name for name in names if names.count(name) > 1), None)
        if repeated is not None:
            raise SuperWeightError(f"members: two are named {repeated!r}: give each a name of its own")
        classes, channels = self._classes_and_channels()
        if classes is None or channels is None:
            data = data or self.load_data()
            classes, channels = data.num_classes, data.image_shape[0]
        for member in self.members:
            for key in ("num_classes", "in_channels"):
                if key in (member.model_extra or {}):
                    raise SuperWeightError(f"members: {member.name!r} must not set {key}: the data decide it")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return {
                member.name: build_member(
                    member.model, num_classes=classes, in_channels=channels, **(member.model_extra or {})
                )
                for member in self.members
            }

    def plan(self, members: dict[str, nn.Module]) -> SharingPlan:
        """The plan that a run begins with; with a search, the one whose clusters are split."""
        options = self.sharing.plan_options()
        if self.sharing.clusters == "random":
            options["group_seed"] = self.seed if self.sharing.group_seed is None else self.sharing.group_seed
        plan = plan_sharing(members, **options)
        if self.sharing.search in ("gradient", "weight"):
            check_searchable(plan)
            # A search ties coefficients to those of a layer, so that as many as layers may be left: refuse now what
            # might not fit then.
            most = "own" if self.sharing.coefficient_kind == "tied" else self.sharing.coefficient_kind
            plan_sharing(members, **{**options, "coefficients": most, "reserve_untied": False})
        return plan

    def estimate(self, members: dict[str, nn.Module], plan: SharingPlan) -> TrainingEstimate | None:
        """What the training takes, without data; None where only the files tell the size of the images."""
        options = self.data.model_extra or {}
        shape = image_shape_of(self.data.name, options)
        if shape is None:
            return None
        config, images = self.shared_training(), num_training_images(self.data.name, options)
        cast, own_mean = uses_bfloat16(config), self.teacher == OWN_MEAN
        return estimate_training(members, plan, shape, config, bfloat16=cast, num_images=images, own_mean=own_mean)

    def shared_training(self) -> TrainConfig:
        """How the shared ensemble is trained: as ``training``, but for what ``fine_tuning`` changes."""
        return tuned_config(self.training, self.fine_tuning or {})

    def untying(self) -> Untying | None:
        """When and how coefficients are un-tied; None for never."""
        if self.sharing.untie_epoch is None:
            return None
        return Untying(
            epoch=self.sharing.untie_epoch,
            threshold=self.sharing.untie_threshold,
            max_batches=self.sharing.search_batches,
        )

    def search_training(self) -> TrainConfig:
        """How the first plan is trained before a search: as the final one, but in fewer epochs, steps and teachers."""
        assert self.sharing.search_epochs is not None, "checked with the recipe"
        config = self.training.without_distillation()
        if config.schedule == "step":
            config = replace(config, schedule="constant", milestones=(), gamma=TrainConfig().gamma)
        return replace(config, epochs=self.sharing.search_epochs)

    def bank_generator(self) -> torch.Generator:
        """The source of the bank's start values."""
        return torch.Generator().manual_seed(self.seed)

    def _classes_and_channels(self) -> tuple[int | None, int | None]:
        known_classes, known_channels = _KNOWN_DATA.get(self.data.name, (None, None))
        classes = self.data.num_classes if self.data.num_classes is not None else known_classes
        if self.data.name == "image_folder" and self.data.channels is None:
            return classes, 3
        return classes, self.data.channels if self.data.channels is not None else known_channels


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply ``key.path=value`` overrides (values are YAML).

    Args:
        path: Of the file; or a name that is no file, such as ``digits``: the carried recipe of that name.
        overrides: ``key.path=value``.

    Raises:
        SuperWeightError: No such file, no YAML, an unknown key (suggests the nearest), a value that does not fit.
    """
    path = recipe_path(path)
    try:
        content = read_yaml(path)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise no_recipe(path) from None
    except OSError as error:
        raise SuperWeightError(f"recipe {path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise SuperWeightError(f"recipe {path} must hold keys and values; got {type(content).__name__}")
    for override in overrides:
        set_value(content, override)
    return parse_recipe(content, where=str(path))


def parse_recipe(content: dict[str, Any], where: str = "recipe") -> Recipe:
    """A recipe from plain data, checked.

    Raises:
        SuperWeightError: An unknown key (suggests the nearest), a value that does not fit; names the key.
    """
    check_plain(content, where)
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise _explained(
            where, [part for part in first["loc"] if part not in ("int", "float", "str", "dict[str,list[str]]")], first
        ) from None


def _explained(where: str, location: list[Any], first: Any) -> SuperWeightError:
    spot = ".".join(str(part) for part in location)
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        *parents, key = location
        known = _known_keys(parents)
        problem = unknown_name("key", str(key), known)
        return SuperWeightError(f"{where}: {'.'.join(map(str, parents)) or 'top level'}: {problem}")
    if first["type"] == "missing":
        return SuperWeightError(f"{where}: {spot} is missing")
    message = str(first["msg"]).removeprefix("Value error, ")
    if location == ["sharing", "budget"]:
        message = "must be an int (parameters) or a float (fraction of what the members own apart)"
    given = "" if first["type"] == "value_error" else f" (got {first['input']!r:.200})"
    if not spot:
        return SuperWeightError(f"{where}: {message}{given}")
    return SuperWeightError(f"{where}: {spot}: {message}{given}")


def _known_keys(parents: list[Any]) -> list[str]:
    model: Any = Recipe
    for part in parents:
        if isinstance(part, str):
            model = model.model_fields[part].annotation
            model = next((kind for kind in get_args(model) if kind is not type(None)), model)
    if is_dataclass(model):
        return [field.name for field in fields(model)]
    return list(model.model_fields)
