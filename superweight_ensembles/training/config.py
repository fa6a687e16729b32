"""Settings of a training run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Annotated, Any

from pydantic import BeforeValidator, StrictBool, StrictInt
from pydantic.dataclasses import dataclass

from superweight_ensembles.data import check_transforms
from superweight_ensembles.errors import SuperWeightError, names_options, unknown_name
from superweight_ensembles.storage import ONLY_FIELDS, one_of, real, whole

_GO_WITH = {
    "schedule": ("milestones", "gamma", "schedule_options"),
    "optimizer": ("momentum", "nesterov", "optimizer_options"),
}

OPTIMIZERS = ("sgd", "adamw")  # torch's; all others are timm's
SCHEDULES = ("constant", "step", "cosine", "one_cycle", "poly", "tanh", "wsd", "rsqrt")
MESHES = ("rows", "auto")
_MOST_PROCESSES = 2**20
_GIVEN_BY = {
    "lr": "learning_rate", "max_lr": "learning_rate", "weight_decay": "weight_decay", "params": "the ensemble",
}  # fmt: skip
# Settings that may differ when a run is resumed: they change how a step is computed, not what it computes.
RESUMABLE = (
    "checkpoint_steps", "compile", "device", "mesh", "micro_batches", "num_threads", "num_workers", "recompute",
    "shard_moments", "skip_non_finite",
)  # fmt: skip


def _checked_mesh(mesh: object) -> object:
    axes = mesh if isinstance(mesh, Mapping) else {}
    sizes = [type(size) is int and 1 <= size <= _MOST_PROCESSES for size in axes.values()]
    if mesh not in MESHES and not (axes.keys() == {"members", "rows"} and all(sizes)):
        raise SuperWeightError(
            f"must be {' or '.join(map(repr, MESHES))}, or numbers of processes for members and rows, such as "
            f"{{'members': 2, 'rows': 1}}; got {mesh!r:.80}"
        )
    return mesh


def _without_card(device: object) -> object:
    if isinstance(device, str) and device.startswith("cuda:"):
        card = device.removeprefix("cuda:")
        raise SuperWeightError(f"{device!r}: write 'cuda', and CUDA_VISIBLE_DEVICES={card} for the card")
    return device


@names_options
@dataclass(frozen=True, slots=True, kw_only=True, config=ONLY_FIELDS)
class TrainConfig:
    """How an ensemble is trained. The defaults are the published CIFAR recipe's, but for schedule and length.

    Attributes:
        epochs: Passes over the training data.
        batch_size: Images a step, the same number for all members; in several processes, the sum over them.
        micro_batches: Parts that each step's batch is run in, one after the other, for less memory; ``auto`` doubles
            them when memory runs out. Gradients stay the same, but for batch norm, which sees the parts.
        learning_rate: Peak learning rate. Member losses are summed, so it is what one member alone would take.
        width_rate: Learning rate of the rates that learned widths follow, as a multiple of ``learning_rate``. A step of
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
        schedule_options: Further settings of the schedule: options of torch's OneCycleLR for ``one_cycle``, such as
            ``pct_start``; of timm's ``create_scheduler_v2`` for the others, such as ``min_lr``.
        warmup_epochs: Epochs, or a part of one, in which the learning rate first rises linearly from a hundredth of
            ``learning_rate``; for every schedule but ``one_cycle``, which rises by itself. They count in ``epochs``.
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
        channels_last: Whether images and members' own convolutions are in the channels-last memory format; ``auto``: on
            the CPU and in 16 bits, if every member can read it.
        recompute: Activation checkpointing: blocks that a member repeats (residual blocks, transformer layers) keep
            only their inputs and are run again in backward: less memory, more time, the same losses and gradients.
        compile: Run members by ``torch.compile`` in training steps (not in validation): each is compiled once, in a
            minute or so on a CPU, with a C++ compiler. Results differ only by rounding; benchmarks/compile.py says
            whether it pays.
        skip_non_finite: Most steps that may be left out because their loss or gradient is not finite; their changes of
            norm statistics are undone. One more such step stops the training; at 0, the first does.
        sync_batch_norm: In several processes, batch norm takes the statistics of the whole batch, as in one process.
        mesh: How several processes divide a step: ``rows`` (each runs all members on its rows), ``{members: R, rows:
            D}`` (R groups of D processes: a group runs some of the members, each of its processes on its own rows; R D
            is the number of processes), or ``auto``: the fastest of these by the members' measured times and the cost
            of norms over several processes. With rows: 1 members see whole batches.
        shard_moments: Each of several processes keeps the optimizer's state of a part of the bank only, steps that part
            and sends it to the others: less memory, half as many bytes again are sent.
        device: Device of the training: ``cpu``, ``cuda``, or ``auto``: a GPU where there is one.
        num_threads: CPU threads of a step; 0 leaves torch's own number. One is fastest for tiny images, and on busy
            machines.
        num_workers: Processes that decode images; only data too large for memory need them.
        validate_every: Epochs between validations; the last epoch is always validated.
        checkpoint_steps: Steps between checkpoints within an epoch; 0 to write them at the ends of epochs only.
        seed: Seed of the data order, augmentation and dropout; in a recipe, the recipe's unless given.
    """

    epochs: Annotated[int, whole(1, 10**6)] = 30
    batch_size: Annotated[int, whole(1, 2**24)] = 128
    micro_batches: Annotated[int, whole(1, 2**24)] | Annotated[str, one_of(["auto"])] = 1
    learning_rate: Annotated[float, real(gt=0)] = 0.1
    width_rate: Annotated[float, real(ge=0)] = 1.0
    optimizer: str = "sgd"
    optimizer_options: Mapping[str, object] = dataclasses.field(default_factory=dict)
    momentum: Annotated[float, real(ge=0, lt=1)] = 0.9
    nesterov: StrictBool = True
    weight_decay: Annotated[float, real(ge=0)] = 5e-4
    label_smoothing: Annotated[float, real(ge=0, le=1)] = 0.0
    schedule: Annotated[str, one_of(SCHEDULES)] = "cosine"
    milestones: tuple[StrictInt, ...] = ()
    gamma: Annotated[float, real(gt=0)] = 0.2
    schedule_options: Mapping[str, object] = dataclasses.field(default_factory=dict)
    warmup_epochs: Annotated[float, real(ge=0)] = 0.0
    clip_norm: Annotated[float, real(ge=0)] = 0.0
    member_batches: Annotated[str, one_of(["same", "own"])] = "same"
    ensemble_loss: Annotated[float, real(ge=0)] = 0.0
    flip: StrictBool = False
    crop_padding: Annotated[int, whole(0)] = 0
    cutout: Annotated[int, whole(0)] = 0
    random_resized_crop: StrictBool = False
    transforms: Mapping[str, Mapping[str, object]] = dataclasses.field(default_factory=dict)
    precision: Annotated[str, one_of(["auto", "float32", "bfloat16", "float16"])] = "auto"
    channels_last: StrictBool | Annotated[str, one_of(["auto"])] = "auto"
    recompute: StrictBool = False
    compile: StrictBool = False
    skip_non_finite: Annotated[int, whole(0)] = 0
    sync_batch_norm: StrictBool = True
    mesh: Annotated[str | Mapping[str, int], BeforeValidator(_checked_mesh)] = "rows"
    shard_moments: StrictBool = False
    device: Annotated[str, one_of(["auto", "cpu", "cuda"]), BeforeValidator(_without_card)] = "auto"
    num_threads: Annotated[int, whole(0, 4096)] = 0
    num_workers: Annotated[int, whole(0, 4096)] = 0
    validate_every: Annotated[int, whole(1)] = 1
    checkpoint_steps: Annotated[int, whole(0)] = 0
    seed: Annotated[int, whole(0, 2**32 - 1)] = 0

    def __post_init__(self) -> None:
        known = OPTIMIZERS if self.optimizer in OPTIMIZERS else optimizer_names()  # timm's take a second to look up
        if self.optimizer not in known:
            raise unknown_name("optimizer", self.optimizer, known)
        for key in (*self.optimizer_options, *self.schedule_options):
            if key in _GIVEN_BY:
                raise SuperWeightError(f"{key} is not an option here: {_GIVEN_BY[key]} gives it")
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
            raise SuperWeightError("ensemble_loss needs one batch that all members see: set member_batches to 'same'")
        if self.compile and self.recompute:
            raise SuperWeightError("compile and recompute do not go together: leave one of them out")

    def __hash__(self) -> int:
        return hash(repr(self))  # mappings, such as optimizer_options, have no hash

    def _refuse_idle(self) -> None:
        """Refuse settings that were given and would do nothing."""
        defaults = {field.name: field.default for field in fields(self)}
        for key, acts, names in (
            ("schedule", self.schedule == "step", ("milestones", "gamma")),
            ("optimizer", self.optimizer == "sgd", ("momentum", "nesterov")),
            ("schedule", self.schedule != "one_cycle", ("warmup_epochs",)),
        ):
            for name in () if acts else names:
                if getattr(self, name) not in (defaults[name], 0):  # a setting that is off does nothing anyway
                    raise SuperWeightError(f"{name} does nothing with {key} {getattr(self, key)!r}: leave it out")


def optimizer_names() -> list[str]:
    """Every name of ``optimizer``: torch's, and timm's."""
    from timm.optim import list_optimizers  # seconds, which most runs can do without

    left_out = ["bnb*", "fused*", "kron*", "adahessian"]  # other packages; lists as state; second derivatives
    return [*OPTIMIZERS, *(one for one in list_optimizers(exclude_filters=left_out) if one not in OPTIMIZERS)]


def tuned_config(training: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig:
    """A training's config with some settings changed; settings of a replaced schedule or optimizer are dropped.

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
