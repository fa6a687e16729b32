"""The sections of a recipe, each with what its keys may be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, model_validator

from superweight_ensembles.anytime import ORDERS
from superweight_ensembles.data import CORRUPTIONS, Corruption, DataFacts, check_options, known_facts, takes_option
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.models.adaptive import BOUNDS, DISTRIBUTIONS, QUANTILE, SCALES, check_fractions
from superweight_ensembles.plan import (
    BUDGET_COUNTS,
    CLUSTER_RULES,
    COEFFICIENT_KINDS,
    GENERATORS,
    RETIRED_CHANNEL,
    Kernels,
    SsnOptions,
)
from superweight_ensembles.search import LEARNING
from superweight_ensembles.storage import one_of
from superweight_ensembles.training import Distillation, Teacher

Number = StrictInt | StrictFloat


class Strict(BaseModel):
    """A section whose unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def refuse_idle(self, acts: bool, why: str, *keys: str) -> None:
        """Refuse keys that were given where they do not act, with a ValueError "KEY does nothing WHY"."""
        for key in keys:
            if not acts and getattr(self, key) not in (type(self).model_fields[key].default, {}):
                raise ValueError(f"{key} does nothing {why}: leave it out")


class DataRecipe(BaseModel):
    """``data:`` a name, the number of classes and channels where no registry knows them, and the set's options.

    Attributes:
        name: Name of the data set: ``cifar10``, ``cifar100``, ``digits``, ``double_moon``, ``image_folder``,
            ``spiral``, ``spiral_hard`` or ``synthetic``; an entry point of an installed package; or, with ``--trust``,
            ``python:package.module.make``.
        num_classes: Number of classes, where only the files show it; members are then built without reading them.
        channels: Number of image channels, where only the files show it.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str
    num_classes: StrictInt | None = Field(default=None, ge=2)
    channels: StrictInt | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _known(self) -> DataRecipe:
        check_options(self.name, self.options)
        self.check_says(self.facts.num_classes, self.facts.channels)
        return self

    @property
    def options(self) -> dict[str, Any]:
        """Options of the data set, without the recipe's seed."""
        given = dict(self.model_extra or {})
        if self.num_classes is not None and takes_option(self.name, "num_classes"):
            given["num_classes"] = self.num_classes
        return given

    @property
    def facts(self) -> DataFacts:
        """What is known of the data set before it is read."""
        return known_facts(self.name, self.options)

    def seeded(self, seed: int) -> dict[str, Any]:
        """The options with the recipe's seed, where the data set takes one and none is given."""
        return {**({"seed": seed} if takes_option(self.name, "seed") else {}), **self.options}

    def check_says(self, classes: int | None, channels: int | None) -> None:
        """Refuse classes and channels that the data do not have; None where that is not known."""
        said = self.num_classes or classes, self.channels or channels
        if (classes or said[0], channels or said[1]) != said:
            raise SuperWeightError(
                f"the recipe says {said[0]} classes and {said[1]} channels; {self.name} has "
                f"{classes or said[0]} and {channels or said[1]}"
            )


class AdaptiveRecipe(Strict):
    """``adaptive:`` of a member has it learn hidden widths, as :func:`make_adaptive` takes them.

    Attributes:
        pairs: [producer, consumer] paths of layers, between which the widths lie; globs stand for all that match.
        distribution: Distribution by which neurons count less and less: ``exponential`` or ``power_law``.
    """

    pairs: tuple[tuple[str, str], ...] = Field(min_length=1, max_length=1000)
    rate: Number | None = None
    width: StrictInt | None = None
    distribution: Annotated[str, one_of(DISTRIBUTIONS)] = "exponential"
    quantile: StrictFloat = QUANTILE
    bounds: tuple[StrictInt, StrictInt] = BOUNDS
    scale: Annotated[str, one_of(SCALES)] = "rms"


class MemberRecipe(BaseModel):
    """One of ``members:``: a name, a registry name, the model's options, and the widths that it learns.

    Attributes:
        name: Name of the member in results and files; each has its own.
        model: Network: ``wide_resnet`` (options depth, width), ``mlp`` (options widths, pixels), ``timm/NAME``,
            ``torchvision/NAME``, an entry point of an installed package; or, with ``--trust``,
            ``python:package.module.Name``. Further keys of a member are options of its model.
        pretrained: Whether it has the trained weights that timm or torchvision offers. Where a member comes trained,
            the bank starts from the members' weights (:func:`warm_start`).
        weights: A safetensors file with the state dict of a trained network, instead of ``pretrained``.
        adaptive: Hidden widths that the member learns.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str
    model: str
    pretrained: StrictBool | None = None
    weights: str | None = None
    adaptive: AdaptiveRecipe | None = None

    @property
    def is_trained(self) -> bool:
        return bool(self.pretrained) or self.weights is not None


class WidthStageRecipe(Strict):
    """``learn_widths:`` has members learn their widths first, apart from each other.

    Attributes:
        epochs: Epochs of that training; all else is as ``training`` says.
        keep_importance: Whether neurons still count less and less in the networks that are trained then, so that these
            can be truncated. If false, they are plain networks of the learned widths, which are more accurate whole.
    """

    epochs: StrictInt = Field(ge=1, le=10**6)
    keep_importance: StrictBool = True


# Keys that plan_sharing does not take, or not as the recipe has them.
_OF_A_RUN = {
    "coefficients", "group_seed", "init", "init_from", "search", "search_batches", "search_epochs", "ssn", "threshold",
    "untie_epoch", "untie_threshold",
}  # fmt: skip


def _not_retired(coefficients: object) -> object:
    if coefficients == "channel":
        raise SuperWeightError(RETIRED_CHANNEL)
    return coefficients


class SharingRecipe(Strict):
    """``sharing:`` as :func:`plan_sharing` takes it, and the search that goes on from there.

    Attributes:
        budget: Trainable scalars of the whole ensemble: an int, or as a float the fraction of what the members own
            apart, such as 0.83.
        generator: What makes the weights: ``superweight`` (templates mixed by coefficients), ``ssn`` (windows of a flat
            bank, which may be smaller than a layer), or ``auto``: SuperWeights where the budget reaches their minimum.
        clusters: Which layers share: ``depth_bins``, ``shape`` (of one kind and shape), ``type`` (of one kind), ``one``
            (all), ``random``, ``none``, or globs by the clusters' names.
        kernels: ``apart``: layers of one kernel size share; ``centre``: a small kernel is the centre of a large one.
        bins: Depth bins of a member, for clusters ``depth_bins``.
        num_groups: Number of groups, for clusters ``random`` and search ``k_means``.
        group_seed: Seed of clusters ``random``; the recipe's unless given.
        ssn: How layers read a flat bank.
        cap: Most templates of a slot.
        coefficients: ``own``: a vector for each layer and slot; ``tied``: one a slot, for all its layers;
            ``embedding``: each is an affine function of a small embedding. ``own`` unless given, ``tied`` with a
            search.
        include: Globs of layers to share as well, which are left to their member otherwise.
        exclude: Globs of layers to leave to their member.
        budget_counts: What the budget counts: ``all`` trainable scalars, or ``templates`` alone, as the papers do.
        search: ``gradient`` or ``weight`` splits clusters by similarity, ``k_means`` learns groups of flat banks
            (:func:`superweight_ensembles.search.search_sharing`); ``none`` does neither.
        search_epochs: Epochs that the first plan is trained for before the search.
        search_batches: Training batches that gradients are taken on, in the search and in un-tying.
        threshold: Cosine above which two layers go on sharing templates.
        untie_epoch: Un-tie coefficients after this epoch of the final training.
        untie_threshold: Cosine above which two uses of a coefficient vector stay tied.
        init: ``svd`` starts the bank from trained members (:func:`warm_start`): those that this run's own baseline
            trains first, or those of ``init_from``; ``random`` does not.
        init_from: Folder of a saved ensemble of the same members, such as RUN/independent/ensemble.
    """

    budget: Number
    generator: Annotated[str, one_of(GENERATORS)] = "auto"
    clusters: Annotated[str, one_of(CLUSTER_RULES)] | Annotated[dict[str, list[str]], Field(max_length=1000)] = (
        "depth_bins"
    )
    kernels: Kernels = "apart"
    bins: StrictInt = 4
    num_groups: StrictInt | None = None
    group_seed: StrictInt | None = Field(default=None, ge=0)
    ssn: SsnOptions | None = None
    cap: StrictInt = 8
    coefficients: Annotated[Annotated[str, one_of(COEFFICIENT_KINDS)] | None, BeforeValidator(_not_retired)] = None
    include: tuple[str, ...] = Field(default=(), max_length=1000)
    exclude: tuple[str, ...] = Field(default=(), max_length=1000)
    budget_counts: Annotated[str, one_of(BUDGET_COUNTS)] = "all"
    search: Literal["none", "gradient", "weight", "k_means"] = "none"
    search_epochs: StrictInt | None = Field(default=None, ge=1)
    search_batches: StrictInt | None = Field(default=None, ge=1)
    threshold: Number = Field(default=0.1, ge=-1, le=1)
    untie_epoch: StrictInt | None = Field(default=None, ge=1)
    untie_threshold: Number = Field(default=0.9, ge=-1, le=1)
    init: Literal["random", "svd"] = "random"
    init_from: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> SharingRecipe:
        search, unties = self.search, self.untie_epoch is not None
        searches, splits, groups = search != "none", search in ("gradient", "weight"), search == "k_means"
        of_groups = "with search 'k_means', which makes groups of flat banks"
        if searches and self.search_epochs is None:
            raise ValueError("a search needs search_epochs: the epochs that the first plan is trained for")
        if splits and self.clusters == "none":
            raise ValueError("a search splits clusters, and clusters 'none' makes none")
        if splits and self.generator == "ssn":
            raise ValueError(
                f"search {search!r} splits clusters of SuperWeights: generator must be 'superweight' or 'auto'; search "
                "'k_means' learns groups of flat banks"
            )
        if splits and self.kernels != "apart":
            raise ValueError(f"search {search!r} compares layers of one kernel: leave kernels out")
        if groups and self.num_groups is None:
            raise ValueError("search 'k_means' needs num_groups")
        if groups and self.generator == "superweight":
            raise ValueError("search 'k_means' groups layers of any kernel: generator must be 'ssn' or 'auto'")
        for acts, why, *keys in (
            (not splits, f"with search {search!r}, which splits SuperWeights", "ssn"),
            (not groups, of_groups, "bins", "cap", "clusters", "coefficients", "kernels"),
            (searches, "without a search (search: gradient)", "search_epochs"),
            (splits, "without search: gradient", "threshold"),
            (unties, "without untie_epoch", "untie_threshold"),
            (search == "gradient" or unties, "without search: gradient or untie_epoch", "search_batches"),
            (self.coefficient_kind == "tied", "without tied coefficients", "untie_epoch"),
            (self.clusters == "random", "without clusters: random", "group_seed"),
            (self.init == "svd", "without init: svd", "init_from"),
        ):
            self.refuse_idle(acts, why, *keys)
        return self

    @property
    def coefficient_kind(self) -> str:
        """Coefficients of the plan that is trained to the end."""
        return self.coefficients or ("tied" if self.search in ("gradient", "weight") else "own")

    def plan_options(self) -> dict[str, Any]:
        """Options of :func:`plan_sharing` for the plan that a run begins with."""
        options = self.model_dump(exclude=_OF_A_RUN)
        if self.search == "k_means":
            learning = {"generator": "ssn", "clusters": "one", "num_groups": None, "ssn": LEARNING}
            return {**options, **learning}
        first = {"none": self.coefficient_kind, "gradient": "tied", "weight": "own"}[self.search]
        if self.search != "none" and options["generator"] == "auto":
            options["generator"] = "superweight"  # similarity splits nothing else
        untied = first == "tied" and self.untie_epoch is not None
        return {**options, "ssn": self.ssn, "coefficients": first, "reserve_untied": untied}


class EvaluationRecipe(Strict):
    """``evaluation:`` how results are measured.

    Attributes:
        batch_size: Images a batch.
    """

    batch_size: StrictInt = Field(default=256, ge=1)


class DistillationRecipe(Strict):
    """``distillation:`` what the shared arm learns from besides the labels: see :class:`Distillation`.

    Attributes:
        teacher: Who teaches: ``ensemble`` (the mean of its members), ``others`` (the mean of the other members),
            ``prefixes`` (the mean of all members teaches the mean of the first ones), ``history`` (the mean of the
            members' answers in earlier epochs), ``independent`` (that arm, trained first) or the folder of a saved
            ensemble.
        weight: Weight of the teacher's answers against the labels, 0 to 1; 0 is off.
        temperature: Temperature, which divides the logits of teacher and member before the softmax.
        ramp_up: Share of the training in which the weight grows from 0.
        ramp_down: Share of the training at its end in which the weight falls to 0.
    """

    teacher: str = Field(min_length=1)
    weight: Number = Field(ge=0, le=1)
    temperature: Number = Field(default=4.0, gt=0, lt=1e6)
    ramp_up: Number = Field(default=0.0, ge=0, le=1)
    ramp_down: Number = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _one_after_the_other(self) -> DistillationRecipe:
        if self.ramp_up + self.ramp_down > 1:
            raise ValueError(f"ramp_up and ramp_down must be 1 together at most; got {self.ramp_up}, {self.ramp_down}")
        return self

    def hook(self, teacher: Teacher, order: Sequence[str] | None = None) -> Distillation:
        """The hook with these settings for a teacher; ``order`` of the members is for the teacher ``prefixes``."""
        return Distillation(teacher, **self.model_dump(exclude={"teacher"}), order=order)


class AveragingRecipe(Strict):
    """``averaging:`` every arm ends with the mean of its weights: see :class:`AveragedWeights`.

    Attributes:
        start: Share of the training done when the mean begins, 0 to below 1.
        decay: Decay of a moving mean, 0 to below 1; all steps count alike where it is left out.
    """

    start: Number = Field(default=0.75, ge=0, lt=1)
    decay: Number | None = Field(default=None, ge=0, lt=1)


class EarlyStoppingRecipe(Strict):
    """``early_stopping:`` every arm ends once its ensemble is no better on validation: see :class:`EarlyStopping`.

    Attributes:
        patience: Validations without a better score after which the training ends.
        score: Score on the validation images: ``accuracy`` or ``nll``.
        min_delta: Least change of the score that counts as better.
    """

    patience: StrictInt = Field(ge=1, le=10**6)
    score: Literal["accuracy", "nll"] = "accuracy"
    min_delta: Number = Field(default=0.0, ge=0, lt=1e6)


class UncertaintyRecipe(Strict):
    """``uncertainty:`` has ``superweights evaluate`` ask what the ensemble knows of data that it was not trained on.

    With validation images it also fits one temperature for the whole ensemble on them.

    Attributes:
        corruptions: Names of corruptions that are made of the test images.
        severities: Severities of each corruption, 1 to 5.
        others: A data set of other things, written as ``data``: measures how well its test images are told from the
            run's.
    """

    corruptions: tuple[Annotated[str, one_of(CORRUPTIONS)], ...] = Field(default=(), max_length=100)
    severities: tuple[StrictInt, ...] = Field(default=(1, 3, 5), min_length=1, max_length=5)
    others: DataRecipe | None = None

    @model_validator(mode="after")
    def _acts(self) -> UncertaintyRecipe:
        self.refuse_idle(bool(self.corruptions), "without corruptions", "severities")
        if not self.corruptions and self.others is None:
            raise ValueError("give corruptions, others or both, or leave the section out")
        for what, given in (("corruptions", self.corruptions), ("severities", self.severities)):
            if len(set(given)) < len(given):
                raise ValueError(f"{what} must name each once; got {', '.join(map(str, given))}")
        self.made()
        return self

    def made(self) -> tuple[Corruption, ...]:
        """Every corruption at every severity."""
        return tuple(Corruption(name=name, severity=one) for name in self.corruptions for one in self.severities)


_TARGETS = ("flops", "latency_ms", "max_accuracy_drop")


class AnytimeRecipe(Strict):
    """``anytime:`` has ``superweights evaluate`` measure stream and cascade, and keep a calibrated cascade.

    Thresholds are fitted on the validation images, at least 100. Give one of ``flops``, ``latency_ms`` and
    ``max_accuracy_drop`` as the target of the cascade that is kept; without any, it is half of all members' FLOPs.

    Attributes:
        order: Order in which members answer: ``cost`` (cheapest first), ``greedy`` (found on validation images), or
            member names.
        confidence: How sure an answer is: ``margin``, ``max_probability``, ``entropy`` or ``agreement``.
        temperature: Whether each exit's temperature is fitted.
        monotone: Whether an earlier, surer prediction stands.
        weights: Weights of the members at each exit: ``equal``, or ``fitted`` on the validation images.
        flops: Target: mean FLOPs of an image; a number up to 1.0 is a fraction of all members' FLOPs.
        latency_ms: Target: mean latency of an image in milliseconds, in batches of ``batch_size``.
        max_accuracy_drop: Target: most that the accuracy may be below that of all members, as a fraction.
        num_points: Points of the cascade's curve.
        batch_size: Images a batch when latency is measured.
        timed_images: Test images that latency is measured on.
        truncations: Fractions of learned widths: members cut to them are exits as well, measured beside the others.
            Validation images decide which of them are used, and in which order.
    """

    order: Annotated[str, one_of(ORDERS)] | tuple[str, ...] = "cost"
    confidence: Literal["margin", "max_probability", "entropy", "agreement"] = "margin"
    temperature: StrictBool = True
    monotone: StrictBool = False
    weights: Literal["equal", "fitted"] = "equal"
    flops: Number | None = Field(default=None, gt=0)
    latency_ms: Number | None = Field(default=None, gt=0)
    max_accuracy_drop: Number | None = Field(default=None, ge=0, lt=1)
    num_points: StrictInt = Field(default=8, ge=2, le=100)
    batch_size: StrictInt = Field(default=64, ge=1)
    timed_images: StrictInt = Field(default=512, ge=1)
    truncations: tuple[StrictFloat, ...] = Field(default=(), max_length=20)

    @model_validator(mode="after")
    def _one_target(self) -> AnytimeRecipe:
        if len(self._targets) > 1:
            raise ValueError(f"give one of {', '.join(self._targets)}")
        if self.truncations:
            check_fractions(self.truncations)
        return self

    def curve_options(self) -> dict[str, Any]:
        """Options of :func:`measure_curves`."""
        options = self.model_dump(exclude={"order", "truncations", *_TARGETS})
        return {**options, "target": next(iter(self._targets.items()), ("flops", 0.5))}

    @property
    def _targets(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in _TARGETS if getattr(self, name) is not None}
