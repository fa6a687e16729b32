"""What a training run is told."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict

from superweight_ensembles.data import check_transforms
from superweight_ensembles.errors import SuperWeightError, names_options, unknown_name
from superweight_ensembles.storage import one_of

_GO_WITH = {
    "schedule": ("milestones", "gamma", "schedule_options"),
    "optimizer": ("momentum", "nesterov", "optimizer_options"),
}

OPTIMIZERS = ("sgd", "adamw")  # of torch; all others are timm's
SCHEDULES = ("constant", "step", "cosine", "one_cycle", "poly", "tanh", "wsd", "rsqrt")
MEMBER_BATCHES = ("same", "own")
MESHES = ("rows", "auto")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda")
_MOST_PROCESSES = 2**20
_MOST = {
    "epochs": 10**6, "batch_size": 2**24, "micro_batches": 2**24, "num_threads": 4096, "num_workers": 4096,
}  # fmt: skip
_CHOICES = {
    "schedule": SCHEDULES, "precision": PRECISIONS, "member_batches": MEMBER_BATCHES, "device": DEVICES,
}  # fmt: skip
_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "bool": ((bool,), "true or false"), "int": ((int,), "a whole number"), "float": ((int, float), "a number"),
}  # fmt: skip
_NOT_NEGATIVE = (
    "crop_padding", "cutout", "num_threads", "num_workers", "skip_non_finite", "checkpoint_steps", "weight_decay",
    "ensemble_loss", "width_rate", "warmup_epochs", "clip_norm", "momentum", "label_smoothing",
)  # fmt: skip
_LIMITS: tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...] = (
    (("epochs", "batch_size", "validate_every"), lambda value: value >= 1, "at least 1"),
    (_NOT_NEGATIVE, lambda value: 0 <= value < math.inf, "finite and not negative"),
    (("learning_rate", "gamma"), lambda value: 0 < value < math.inf, "positive and finite"),
    (("momentum",), lambda value: value < 1, "below 1"),
    (("label_smoothing",), lambda value: value <= 1, "at most 1"),
    (("seed",), lambda value: 0 <= value < 2**32, "0 to 2**32 - 1"),
)
_SAID_BY = {
    "lr": "learning_rate", "max_lr": "learning_rate", "weight_decay": "weight_decay", "params": "the ensemble",
}  # fmt: skip
# What may differ when a run is resumed: it changes how a step is computed, not what it computes.
RESUMABLE = (
    "checkpoint_steps", "compile", "device", "mesh", "micro_batches", "num_threads", "num_workers", "recompute",
    "shard_moments", "skip_non_finite",
)  # fmt: skip


@names_options
@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How an ensemble is trained. The defaults are the published CIFAR recipe's, but for schedule and length.

    Attributes:
        epochs: Passes over the training data.
        batch_size: Images a step, the same for all members; of several processes, together.
        micro_batches: Parts that each step's batch is run in, one after the other, for less memory; ``auto`` doubles
            them when memory runs out. The same gradients, but for batch norm, which sees the parts.
        learning_rate: Peak learning rate. Member losses are summed, so it is what one member alone would take.
        width_rate: Learning rate of what learned widths follow, as a multiple of that of everything else. A step of
            Adam by 0.1 changes a width by a tenth, whatever the gradient is.
        optimizer: Optimizer: ``sgd`` (with ``momentum`` and ``nesterov``), ``adamw``, or one of timm's by name, such as
            ``lamb``, ``lion`` or ``muon`` (``timm.optim.list_optimizers()``).
        optimizer_options: Further settings of the optimizer, such as ``{"betas": [0.9, 0.95]}``.
        momentum: Momentum coefficient of SGD, 0 to below 1.
        nesterov: Nesterov momentum of SGD, where momentum is not 0.
        weight_decay: Weight decay of templates, private weights and heads; never of coefficients, norms and biases.
            Differs from paper: the published run decays norms too.
        label_smoothing: Label smoothing of the cross-entropy, 0 to 1.
        schedule: Learning rate over the steps: ``constant``, ``step`` (times ``gamma`` at each of ``milestones``),
            ``cosine`` to zero, ``one_cycle``, or timm's ``poly``, ``tanh``, ``wsd`` and ``rsqrt``.
        schedule_options: Further settings of the schedule: of ``one_cycle`` those of torch's OneCycleLR, such as
            ``pct_start``; of others those of timm's ``create_scheduler_v2``, such as ``min_lr``.
        warmup_epochs: Epochs, or a part of one, in which the learning rate first rises linearly from a hundredth; of
            every schedule but ``one_cycle``, which rises by itself. They are part of ``epochs``.
        clip_norm: Gradients are scaled down so that their norm, over all parameters together, is at most this; 0 for no
            limit.
        milestones: Epochs at which the learning rate of schedule ``step`` falls.
        gamma: Factor by which schedule ``step`` multiplies the learning rate at each milestone.
        member_batches: What members see in a step: ``same``: all members see one batch a step, as published; ``own``:
            each member goes through the training images in an order and with an augmentation of its own, as members
            trained apart would.
        ensemble_loss: Weight of one more term, the negative log likelihood of the members' mean softmax, which asks the
            members to complement each other, and keeps the activations of all of them at once. Ours; 0 for none.
        flip: Augmentation: mirror half of the images. Augmentation, ``batch_size`` and ``num_workers`` are for
            :class:`ImageData`; a DataLoader of your own brings its own.
        crop_padding: Augmentation: pad images by so many pixels and crop back at random; 0 for none.
        cutout: Augmentation: side, in pixels, of a square of each image that is set to zero; 0 for none.
        random_resized_crop: Augmentation: cut out random parts of image files, as ImageNet is trained; for files read
            as needed.
        transforms: Transforms of torchvision.transforms.v2 by name, each with its options, applied in this order to
            each training image before all else (``RandAugment``, ``ColorJitter``), after normalising
            (``RandomErasing``), or to the batch (``MixUp`` or ``CutMix`` with ``alpha``, whose labels are soft).
        precision: Number format of forward and backward passes: ``float32``, ``bfloat16`` or ``float16`` (autocast), or
            ``auto``: bfloat16 on CUDA and on CPUs that multiply it (AMX or AVX-512 BF16), where it trains about twice
            as fast. ``float16`` is for GPUs without it: losses are scaled, and a step whose gradients overflow is left
            out while the scale falls.
        channels_last: Memory format of images and own convolutions; ``auto``: on the CPU and with bfloat16, if
            every member can read it.
        recompute: Activation checkpointing: blocks that a member repeats (residual blocks, transformer layers) keep
            their inputs alone and are run again in backward: less memory, more time, the same losses and gradients.
        compile: Run members by ``torch.compile`` in training steps (not in validation): each is compiled once, in a
            minute or so on a CPU, with a C++ compiler. Equal to the rounding of the precision; benchmarks/compile.py
            says whether it pays.
        skip_non_finite: Leave out so many steps at most whose loss or gradient is not finite, with their changes of
            norm statistics; one more, or the first where 0, stops the training.
        sync_batch_norm: In several processes, batch norm takes the statistics of the whole batch, as in one.
        mesh: How several processes divide a step: ``rows`` (each runs all members on its rows), ``{members: R, rows:
            D}`` (R groups of processes run some members each, the D processes of a group on their rows; R D is the
            number of processes), or ``auto``: the fastest of these by the members' measured times and the cost of norms
            over several processes. With rows: 1 members see whole batches.
        shard_moments: Of several processes, each keeps the optimizer's state of a part of the bank alone, steps it and
            gives it on: less memory, half as many bytes more.
        device: Device of the training: ``cpu``, ``cuda``, or ``auto``: a GPU where there is one.
        num_threads: CPU threads of a step; 0 leaves torch's own number. One is fastest for tiny images, and on busy
            machines.
        num_workers: Processes that decode images; only data too large for memory need them.
        validate_every: Epochs between validations; the last epoch is always validated.
        checkpoint_steps: Steps between checkpoints within an epoch; 0 for those at the ends of epochs alone.
        seed: Seed of the data order, augmentation and dropout; in a recipe, the recipe's unless given.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    epochs: int = 30
    batch_size: int = 128
    micro_batches: int | Annotated[str, one_of(["auto"])] = 1
    learning_rate: float = 0.1
    width_rate: float = 1.0
    optimizer: str = "sgd"
    optimizer_options: Mapping[str, object] = dataclasses.field(default_factory=dict)
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    schedule: Annotated[str, one_of(SCHEDULES)] = "cosine"
    milestones: tuple[int, ...] = ()
    gamma: float = 0.2
    schedule_options: Mapping[str, object] = dataclasses.field(default_factory=dict)
    warmup_epochs: float = 0.0
    clip_norm: float = 0.0
    member_batches: Annotated[str, one_of(MEMBER_BATCHES)] = "same"
    ensemble_loss: float = 0.0
    flip: bool = False
    crop_padding: int = 0
    cutout: int = 0
    random_resized_crop: bool = False
    transforms: Mapping[str, Mapping[str, object]] = dataclasses.field(default_factory=dict)
    precision: Annotated[str, one_of(PRECISIONS)] = "auto"
    channels_last: bool | Annotated[str, one_of(["auto"])] = "auto"
    recompute: bool = False
    compile: bool = False
    skip_non_finite: int = 0
    sync_batch_norm: bool = True
    mesh: Annotated[str, one_of(MESHES)] | Mapping[str, int] = "rows"
    shard_moments: bool = False
    device: Annotated[str, one_of(DEVICES)] = "auto"
    num_threads: int = 0
    num_workers: int = 0
    validate_every: int = 1
    checkpoint_steps: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_types()
        if isinstance(self.device, str) and self.device.startswith("cuda:"):
            card = self.device.removeprefix("cuda:")
            raise SuperWeightError(
                f"device {self.device!r}: write 'cuda', and CUDA_VISIBLE_DEVICES={card} for the card"
            )
        for name, known in {"optimizer": _optimizers(self.optimizer), **_CHOICES}.items():
            if getattr(self, name) not in known:
                raise unknown_name(name, getattr(self, name), known)
        self._check_mesh()
        if not isinstance(self.channels_last, bool) and self.channels_last != "auto":
            raise SuperWeightError(f"channels_last must be true, false or 'auto'; got {self.channels_last!r}")
        parts = self.micro_batches
        if parts != "auto" and (isinstance(parts, bool) or not isinstance(parts, int) or parts < 1):
            raise SuperWeightError(f"micro_batches must be a whole number of at least 1 or 'auto'; got {parts!r}")
        for names, fits, limits in _LIMITS:
            for name in names:
                if not fits(getattr(self, name)):
                    raise SuperWeightError(f"{name} must be {limits}; got {getattr(self, name)}")
        for name, most in _MOST.items():
            if isinstance(value := getattr(self, name), int) and value > most:
                raise SuperWeightError(f"{name} must be at most {most:,}; got {value:,}")
        if self.schedule == "step" and not self.milestones:
            raise SuperWeightError("schedule 'step' needs milestones: the epochs at which the learning rate falls")
        if any(not 1 <= milestone <= self.epochs for milestone in self.milestones):
            raise SuperWeightError(f"milestones must be epochs from 1 to {self.epochs}; got {list(self.milestones)}")
        if self.warmup_epochs >= self.epochs:
            raise SuperWeightError(
                f"warmup_epochs must be less than the {self.epochs} epochs; got {self.warmup_epochs}"
            )
        self._refuse_idle()
        check_transforms(self.transforms)
        if self.ensemble_loss and self.member_batches != "same":
            raise SuperWeightError("ensemble_loss is of one batch that all members see: member_batches must be 'same'")
        if self.compile and self.recompute:
            raise SuperWeightError("compile and recompute do not go together: leave one of them out")

    def __hash__(self) -> int:
        return hash(repr(self))  # settings by name have none of their own

    def _check_mesh(self) -> None:
        mesh = self.mesh
        axes = dict(mesh) if isinstance(mesh, Mapping) else {}
        if axes.keys() == {"members", "rows"} and all(
            type(size) is int and 1 <= size <= _MOST_PROCESSES for size in axes.values()
        ):
            object.__setattr__(self, "mesh", axes)
        elif mesh not in MESHES:
            raise SuperWeightError(
                f"mesh must be {' or '.join(map(repr, MESHES))}, or numbers of processes for members and rows, such as "
                f"{{'members': 2, 'rows': 1}}; got {mesh!r:.80}"
            )

    def _check_types(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            types, called = _TYPES.get(str(field.type), ((type(value),), ""))
            if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
                raise SuperWeightError(f"{field.name} must be {called}; got {value!r}")
        epochs = self.milestones
        if not isinstance(epochs, (list, tuple)) or not all(type(epoch) is int for epoch in epochs):
            raise SuperWeightError(f"milestones must be a list of epochs, whole numbers; got {epochs!r}")
        object.__setattr__(self, "milestones", tuple(epochs))
        for name in ("optimizer_options", "schedule_options", "transforms"):
            value = getattr(self, name)
            if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
                raise SuperWeightError(f"{name} must be settings by name; got {value!r:.80}")
            object.__setattr__(self, name, dict(value))
        for key in (*self.optimizer_options, *self.schedule_options):
            if key in _SAID_BY:
                raise SuperWeightError(f"{key} is no option of its own: {_SAID_BY[key]} says it")

    def _refuse_idle(self) -> None:
        """Refuse settings that were given and would do nothing."""
        defaults = {field.name: field.default for field in fields(self)}
        for key, acts, names in (
            ("schedule", self.schedule == "step", ("milestones", "gamma")),
            ("optimizer", self.optimizer == "sgd", ("momentum", "nesterov")),
            ("schedule", self.schedule != "one_cycle", ("warmup_epochs",)),
        ):
            for name in () if acts else names:
                if getattr(self, name) not in (defaults[name], 0):  # what is off does nothing anyway
                    raise SuperWeightError(f"{name} does nothing with {key} {getattr(self, key)!r}: leave it out")


def _optimizers(name: str) -> Sequence[str]:
    """Known names; timm's are looked up only where torch has none."""
    return OPTIMIZERS if name in OPTIMIZERS else optimizer_names()


def optimizer_names() -> list[str]:
    """Every name of ``optimizer``: torch's, and timm's."""
    from timm.optim import list_optimizers  # seconds, which most runs can do without

    left_out = ["bnb*", "fused*", "kron*", "adahessian"]  # of other packages; state of lists; second derivatives
    return [*OPTIMIZERS, *(one for one in list_optimizers(exclude_filters=left_out) if one not in OPTIMIZERS)]


def _as_given(content: Any) -> Any:
    """Built by the constructor, which unlike pydantic takes no ``true`` for 1 and no text for a number."""
    known = {field.name for field in fields(TrainConfig)}
    return TrainConfig(**content) if isinstance(content, dict) and content.keys() <= known else content


CheckedTrainConfig = Annotated[TrainConfig, BeforeValidator(_as_given)]  # of a section of a recipe


def tuned_config(training: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig:
    """A training with other settings; those that go with a schedule or an optimizer are left behind with it.

    Example:
        >>> steps = TrainConfig(epochs=200, schedule="step", milestones=(60, 120))
        >>> tuned = tuned_config(steps, {"epochs": 5, "schedule": "cosine"})
        >>> tuned.epochs, tuned.milestones
        (5, ())
    """
    known = [field.name for field in fields(TrainConfig)]
    for key in changes:
        if key not in known:
            raise SuperWeightError(f"fine_tuning: {unknown_name('key', str(key), known)}")
    kept = asdict(training)
    for of, keys in _GO_WITH.items():
        if changes.get(of, kept[of]) != kept[of]:
            kept = {key: value for key, value in kept.items() if key not in keys}
    try:
        return TrainConfig(**{**kept, **changes})
    except SuperWeightError as error:
        raise SuperWeightError(f"fine_tuning: {error}") from None
