"""What a training would take: memory of a step, FLOPs, and from these its time. Nothing is run but a measurement of the
machine's speed, and no file is read.

Shapes: B images of a batch, C H W of an image.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.nn import functional as F

from superweight_ensembles.ensemble import SuperWeightEnsemble, vectors_by_key
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.models import count_flops, kept_modes
from superweight_ensembles.plan import Members, SharingPlan, SsnGroup, named_members
from superweight_ensembles.training import TrainConfig, faster_channels_last, num_moments
from superweight_ensembles.training.distributed import check_mesh, chosen_ranks, placed, relative_cost

_INTERPOLATION = 8  # operations a number: the weighted sum of four of the smaller matrix
_CHANNELS, _PIXELS = 64, 32  # of the block that a machine's speed is measured on
_LEAST_CALLS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberEstimate:
    """What one member adds to a step."""

    name: str
    forward_flops: int  # of one image
    activation_bytes: int  # kept for backward, of a batch


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingEstimate:
    """Count of what a training takes: tensors and operations, without libraries, allocator and kernel workspaces."""

    # A process's resident memory on the CPU grows by more: on the small CIFAR recipe by a tenth (float32) or a third
    # (bfloat16) where freed memory goes back at once; by twice the count with glibc's allocator, which keeps some.
    members: tuple[MemberEstimate, ...]  # in the plan's order
    batch_size: int  # images a step
    micro_batches: int  # parts that they are run in; 1 for ``auto``, which begins so
    input_shape: tuple[int, ...]  # (C, H, W)
    bfloat16: bool  # whether activations and generated weights are of that type (autocast)
    own_batches: bool  # whether each member has a batch of its own
    # whether activations of all members live at once: ``ensemble_loss``, or members that teach each other
    keeps_all: bool
    parameter_bytes: int  # parameters, trainable and frozen, and buffers
    optimizer_bytes: int  # state of the optimiser
    gradient_bytes: int  # of all trainable parameters
    generated_bytes: int  # generated weights of all members, once
    generated_gradient_bytes: int  # of the generated weights, before they go through the bank
    bank_copy_bytes: int  # copy of the largest flat bank that layers read past its end, prolonged by its start
    generation_flops: int  # of a step: combining templates, and windows of flat banks, forward and backward
    num_images: int | None  # of an epoch; None where only the data tell
    epochs: int

    @property
    def largest(self) -> MemberEstimate:
        """The member with the most activations."""
        return max(self.members, key=lambda member: member.activation_bytes)

    @property
    def activation_bytes(self) -> int:
        """Activations that live at once: unless all are kept, only those of the largest member."""
        if self.keeps_all:
            return sum(member.activation_bytes for member in self.members)
        return self.largest.activation_bytes

    @property
    def batch_bytes(self) -> int:
        """Images of a step, in float32."""
        batches = len(self.members) if self.own_batches else 1
        return batches * self.batch_size * math.prod(self.input_shape) * 4

    @property
    def peak_bytes(self) -> int:
        """Most bytes of a step: after the largest member's forward pass, or in the backward pass through the bank."""
        # When a member has run, its weights give way to their gradients: both together are as many as all weights.
        # Members' own parameters have few gradients; these are counted in the backward pass through the bank only.
        running = self.generated_bytes + self.activation_bytes
        through_bank = self.generated_gradient_bytes + self.gradient_bytes + self.bank_copy_bytes
        return self.parameter_bytes + self.optimizer_bytes + self.batch_bytes + max(running, through_bank)

    @property
    def forward_flops(self) -> int:
        """FLOPs of one image through all members."""
        return sum(member.forward_flops for member in self.members)

    @property
    def step_flops(self) -> int:
        """FLOPs of a step, without the optimiser."""
        # Backward counts as two forward passes.
        return 3 * self.batch_size * self.forward_flops + self.generation_flops

    @property
    def num_steps(self) -> int | None:
        """Steps of the whole training; None where the number of images is not known."""
        return None if self.num_images is None else self.epochs * (self.num_images // self.batch_size)

    @property
    def total_flops(self) -> int | None:
        """FLOPs of the whole training; None where the number of images is not known."""
        return None if self.num_steps is None else self.num_steps * self.step_flops

    def seconds(self, flops_per_second: float, num_steps: int = 1) -> float:
        """Time of so many steps at so many floating point operations a second."""
        if not 0 < flops_per_second < math.inf:
            raise SuperWeightError(f"flops_per_second must be positive and finite; got {flops_per_second}")
        return num_steps * self.step_flops / flops_per_second


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshEstimate:
    """What a training takes on several processes."""

    placement: tuple[tuple[str, ...], ...]  # members by member rank
    rows: int  # processes that share the rows of a batch
    peak_bytes: int  # of the fullest process in a step
    # Gradients that a process hands to the others in a step, and its part of the bank where that is sharded; answers
    # and norms come on top.
    exchanged_bytes: int
    relative_seconds: float  # time of a step over that of one process


def estimate_on_mesh(
    estimate: TrainingEstimate,
    plan: SharingPlan,
    processes: int,
    mesh: str | Mapping[str, int],
    synchronised: bool,  # norms take the statistics of all rows
    sharded: bool = False,  # each process keeps the optimiser's state of a part of the bank
) -> MeshEstimate:
    """Estimate a training on several processes, whose members cost as much as their FLOPs."""
    costs = {member.name: float(member.forward_flops) for member in estimate.members}
    check_mesh(mesh, len(costs), processes)
    ranks = mesh["members"] if isinstance(mesh, Mapping) else 1
    if mesh == "auto":
        ranks = chosen_ranks(costs, processes, synchronised)
    placement, rows = placed(costs, ranks), processes // ranks
    private = {member.name: member.num_private for member in plan.members}
    made = {member.name: member.num_parameters - member.num_private for member in plan.members}
    number = estimate.gradient_bytes / max(plan.num_parameters, 1)
    bank = plan.num_parameters - plan.num_private
    parts = processes if sharded else 1
    peaks, exchanged = [], []
    for own in placement:
        held = bank + sum(private[name] for name in own)
        share = sum(made[name] for name in own) / max(sum(made.values()), 1)
        activations = [member.activation_bytes for member in estimate.members if member.name in own]
        kept = (sum if estimate.keeps_all else max)(activations) / rows
        through_bank = estimate.generated_gradient_bytes * share + held * number + estimate.bank_copy_bytes
        peaks.append(
            estimate.parameter_bytes
            + estimate.optimizer_bytes * (held - bank * (1 - 1 / parts)) / max(plan.num_parameters, 1)
            + estimate.batch_bytes / rows
            + max(estimate.generated_bytes * share + kept, through_bank)
        )
        exchanged.append(((held if rows > 1 else bank) + (bank if sharded else 0)) * number)
    return MeshEstimate(
        placement=placement,
        rows=rows,
        peak_bytes=round(max(peaks)),
        exchanged_bytes=round(max(exchanged)) if processes > 1 else 0,
        relative_seconds=relative_cost(costs, ranks, processes, synchronised) / processes,
    )


def estimate_training(
    members: SuperWeightEnsemble | Members,
    plan: SharingPlan,
    input_shape: Sequence[int],  # (C, H, W)
    config: TrainConfig,
    *,
    bfloat16: bool = False,
    num_images: int | None = None,
    together: bool = False,  # members learn from each other's answers; another teacher is not counted
) -> TrainingEstimate:
    """Count what training members under a plan takes, without running them: only shapes are passed through.

    Example:
        >>> import superweight_ensembles as swe
        >>> members = {"a": swe.wide_resnet(10, 1, 10), "b": swe.wide_resnet(16, 1, 10)}
        >>> plan = swe.plan_sharing(members, budget=0.9)
        >>> found = estimate_training(members, plan, (3, 32, 32), swe.TrainConfig(batch_size=4), num_images=40)
        >>> found.largest.name, found.num_steps, found.optimizer_bytes == 4 * plan.num_parameters
        ('b', 300, True)
    """
    if isinstance(members, SuperWeightEnsemble):
        members = {name: members.materialize(name) for name in members.member_names}
    modules = named_members(members)
    shape = tuple(int(size) for size in input_shape)
    generated: defaultdict[str, set[str]] = defaultdict(set)
    for cluster in plan.clusters:
        for target in cluster.targets:
            generated[target.member].update(target.names)
    parts = config.micro_batches if isinstance(config.micro_batches, int) else 1
    batch = max(2, -(-config.batch_size // parts))  # batch norm refuses a single image
    found = [
        _estimate_member(name, module, generated[name], (batch, *shape), bfloat16) for name, module in modules.items()
    ]
    type_bytes = next((p.element_size() for module in modules.values() for p in module.parameters()), 4)
    shared_bytes = 2 if bfloat16 else type_bytes
    num_generated = sum(cluster.num_weights for cluster in plan.clusters)
    groups = plan.ssn_groups.values()
    held = [tensor for module in modules.values() for tensor in (*module.parameters(), *module.buffers())]
    not_trained = sum(tensor.numel() * tensor.element_size() for tensor in held if not _is_trained(tensor))
    counters = 4 * _num_tensors(plan, modules, generated) if config.optimizer == "adamw" else 0
    return TrainingEstimate(
        members=tuple(found),
        batch_size=config.batch_size,
        micro_batches=parts,
        input_shape=shape,
        bfloat16=bfloat16,
        own_batches=config.member_batches == "own",
        keeps_all=config.ensemble_loss != 0 or together,
        parameter_bytes=(plan.num_parameters + sum(map(_num_gains, groups))) * type_bytes + not_trained,
        optimizer_bytes=round(num_moments(config) * plan.num_parameters) * type_bytes + counters,
        gradient_bytes=plan.num_parameters * type_bytes,
        generated_bytes=num_generated * shared_bytes,
        generated_gradient_bytes=num_generated * shared_bytes,
        bank_copy_bytes=max(map(_copied_numbers, groups), default=0) * type_bytes,
        generation_flops=3 * _combination_flops(plan) + sum(map(_group_flops, groups)),
        num_images=num_images,
        epochs=config.epochs,
    )


def _estimate_member(
    name: str, module: nn.Module, generated: Collection[str], shape: tuple[int, ...], bfloat16: bool
) -> MemberEstimate:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    parameters = dict(module.named_parameters())
    tensors = {
        key: mode.from_tensor(tensor.detach()) if key in parameters else mode.from_tensor(tensor)
        for key, tensor in (*parameters.items(), *module.named_buffers())
    }
    try:
        with kept_modes(module), mode:
            images = _images(module.eval(), tensors, shape)
            flops = count_flops(_WithTensors(module, tensors), images[:1])
            trained = {}  # as a step reads them: weights generated under autocast have its type already
            for key, parameter in parameters.items():
                cast = tensors[key].to(torch.bfloat16) if bfloat16 and key in generated else tensors[key]
                trained[key] = cast.detach().requires_grad_(parameter.requires_grad)
            activations = _saved_bytes(_WithTensors(module.train(), {**tensors, **trained}), images, bfloat16)
    except Exception as error:  # whatever a member's own code raises
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise SuperWeightError(
            f"member {name!r} does not run where only the shape {shape} is known, without numbers: {reason}"
        ) from error
    return MemberEstimate(name=name, forward_flops=flops, activation_bytes=activations)


def _images(module: nn.Module, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
    """A batch that the module takes: of floating-point numbers, or of tokens where it takes these alone."""
    images, tokens = torch.empty(shape), torch.zeros(shape, dtype=torch.int64)
    for batch in (images, tokens):
        try:
            _WithTensors(module, tensors)(batch[:1])
        except Exception:
            continue
        return batch
    return images  # the caller reports their error


class _WithTensors(nn.Module):
    """A module with other tensors in the place of its own."""

    def __init__(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.module = module
        self.tensors = dict(tensors)

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = functional_call(self.module, self.tensors, (images,))
        return answer


def _saved_bytes(module: _WithTensors, images: Tensor, bfloat16: bool) -> int:
    """Bytes that forward pass and loss keep for the backward pass."""

    def storage(tensor: Tensor) -> int:
        return int(tensor.untyped_storage()._cdata)

    labels = torch.zeros(len(images), dtype=torch.int64)
    given = {storage(tensor) for tensor in (*module.tensors.values(), images, labels)}  # counted elsewhere
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if storage(tensor) not in given:
            kept[storage(tensor)] = tensor  # held, so that no other storage gets its address
        return tensor

    casting = torch.autocast("cpu", torch.bfloat16) if bfloat16 else nullcontext()
    with casting, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        F.cross_entropy(module(images), labels)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _is_trained(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter) and tensor.requires_grad


def _num_tensors(plan: SharingPlan, modules: Mapping[str, nn.Module], generated: Mapping[str, Collection[str]]) -> int:
    """Number of trainable tensors: those of the bank and the members' own."""
    own = sum(
        _is_trained(parameter) and key not in generated[name]
        for name, module in modules.items()
        for key, parameter in module.named_parameters()
    )
    slots = sum(
        len(cluster.slots) * (3 if cluster.coefficients == "embedding" else 2)
        for cluster in plan.superweight_clusters.values()
    )
    return own + slots + sum(map(_num_trained_tensors, plan.ssn_groups.values()))


def _combination_flops(plan: SharingPlan) -> int:
    """FLOPs of making SuperWeights, forward: every coefficient vector times its slot's templates."""
    return sum(
        2 * slot.num_vectors * slot.num_templates * block.size
        for cluster in plan.superweight_clusters.values()
        for slot, block in zip(cluster.slots, cluster.blocks)
    )


def _num_trained_tensors(group: SsnGroup) -> int:
    """Number of a group's trainable tensors: bank, coefficients or embeddings and their maps, tiles, masks."""
    found = group.window_specs
    each = {"avg": 0, "emb": 2}.get(group.options.combine, 1)
    keys = vectors_by_key(0, found)
    if group.options.combine == "softmax":
        keys = {key: places for key, places in keys.items() if found[places[0]].num_windows > 1}
    further = any(reading.mixed for reading in found) + any(reading.masked for reading in found)
    return 1 + each * len(keys) + further


def _num_gains(group: SsnGroup) -> int:
    """Count of gains, which are kept but not trained, where coefficients cannot scale a weight."""
    combined = [reading.num_windows for reading in group.window_specs if not reading.mixed]
    return {"avg": sum(combined), "softmax": len(combined)}.get(group.options.combine, 0)


def _copied_numbers(group: SsnGroup) -> int:
    """Numbers beside the bank and its gradient in backward, where layers read past the end of the bank.

    Example:
        >>> from superweight_ensembles.plan import SsnOptions, Target
        >>> a = Target(member="m", names=("a",), kind="linear", shape=(4, 5))
        >>> b = Target(member="m", names=("b",), kind="linear", shape=(4, 4))
        >>> group = SsnGroup(name="g", bank_size=30, targets=(a, b), options=SsnOptions())
        >>> _copied_numbers(group)  # b reads numbers 20 to 36: a copy of 36, and as many gradients for a bank of 30
        42
    """
    longest = max(reading.end for reading in group.window_specs)  # the bank is copied, prolonged by its start
    return longest + longest - group.bank_size if longest > group.bank_size else 0


def _group_flops(group: SsnGroup) -> int:
    """FLOPs of a step, forward and backward: windows are combined, and enlarged where a layer exceeds the bank."""
    total = 0
    for reading, shape in zip(group.window_specs, group.shapes):
        num_weights, rows = math.prod(shape), reading.num_tiles if reading.mixed else 1
        # Each of a combination's two gradients costs as much as it does: 3 times; interpolation has one: 2 times.
        total += 3 * 2 * rows * reading.num_windows * reading.size
        if reading.matrix != (0, 0):
            total += 2 * _INTERPOLATION * num_weights
        elif not reading.mixed and reading.num_tiles > 1:
            # Repetitions are summed in backward; masks multiply and get gradients.
            total += num_weights + 4 * reading.masked
    return total


def training_flops_per_second(device: torch.device, *, bfloat16: bool, seconds: float = 1.0) -> float:
    """Training speed of this machine, in FLOPs a second: the median of steps of a residual block."""
    batch = 256 if device.type == "cuda" else 16
    layout = torch.channels_last if faster_channels_last(device, bfloat16) else torch.contiguous_format
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # Stands for the middle of a ResNet: wide convolutions run faster; stems, thin layers and data slower.
        block = _Block().to(device).to(memory_format=layout)
        images = torch.randn(batch, _CHANNELS, _PIXELS, _PIXELS).to(device).contiguous(memory_format=layout)
    images.requires_grad_()
    operations = 3 * count_flops(block, images)  # as estimates count them
    times: list[float] = []
    _timed_step(block, images, bfloat16)  # a warm-up
    while len(times) < _LEAST_CALLS or sum(times) < seconds:
        times.append(_timed_step(block, images, bfloat16))
    return operations / statistics.median(times)


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()

        def layer() -> nn.Sequential:
            convolution = nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1, bias=False)
            return nn.Sequential(convolution, nn.BatchNorm2d(_CHANNELS))

        self.branch = nn.Sequential(layer(), nn.ReLU(), layer())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.relu(images + self.branch(images))


def _timed_step(block: nn.Module, images: torch.Tensor, bfloat16: bool) -> float:
    casting = torch.autocast(images.device.type, torch.bfloat16) if bfloat16 else nullcontext()
    start = time.perf_counter()
    with casting:
        loss = block(images).sum()
    loss.backward()
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start
