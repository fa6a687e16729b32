"""How a training is run on this machine: device, precision, memory format, compilation, and memory that runs out."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch._dynamo.config
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import TorchElasticEnvironment
from torch import Tensor, nn

from superweight_ensembles.data import ImageData
from superweight_ensembles.ensemble import SuperWeightEnsemble
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.models import evaluating, first_line, is_out_of_memory
from superweight_ensembles.training.config import TrainConfig
from superweight_ensembles.training.distributed import Launch, join, launch_of

Calls = Mapping[str, Callable[[Tensor], Any]]
_SHAPES = 8  # of images, as torch compiles one function for
_COMPILER = ("torch._dynamo", "torch._inductor")
_LOG = logging.getLogger(__name__)


def build_fabric(config: TrainConfig) -> Fabric:
    """Fabric for the device and precision that a config asks for.

    Started by torchrun, the process joins the others of its job on the first call: gloo on the CPU, NCCL on CUDA, where
    each process has the device of its local rank. A process group that is there already is used as it is.

    Raises:
        SuperWeightError: CUDA is asked for and not there, fewer CUDA devices than processes on this machine, or a job
            of several processes that cannot be joined.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise SuperWeightError("device 'cuda' is not available on this machine: use device 'auto' or 'cpu'")
    precision = "bf16-mixed" if uses_bfloat16(config) else "32-true"
    launch = launch_of(os.environ)
    if launch is None:
        return Fabric(accelerator=_device(config), devices=_device_here(config), precision=precision)
    if _device(config) == "cuda" and torch.cuda.device_count() < launch.local_size:
        raise SuperWeightError(
            f"{launch.local_size} processes and {torch.cuda.device_count()} CUDA devices on this machine: start with "
            f"--nproc-per-node {torch.cuda.device_count()}, or train on device 'cpu'"
        )
    _join(launch, torch.device("cuda", launch.local_rank) if _device(config) == "cuda" else torch.device("cpu"))
    fabric = Fabric(
        accelerator=_device(config),
        strategy="ddp",
        devices=launch.local_size,
        num_nodes=launch.num_nodes,
        precision=precision,
        plugins=[TorchElasticEnvironment()],
    )
    if os.environ.get("LT_CLI_USED") != "1":  # `fabric run` launches by itself
        fabric.launch()
    return fabric


def _join(launch: Launch, device: torch.device) -> None:
    """Join the other processes.

    Raises:
        SuperWeightError: They cannot be reached.
    """
    try:
        join(launch, device)
    except (RuntimeError, ValueError, OSError) as error:
        raise SuperWeightError(
            f"WORLD_SIZE says {launch.size} processes, and this one cannot reach the others at {launch.address}: start "
            f"all of them by torchrun, or unset WORLD_SIZE for a single one\nseen here: {first_line(error):.200}"
        ) from error


def uses_bfloat16(config: TrainConfig) -> bool:
    """What a config's precision comes to: ``auto`` is bfloat16 where the hardware multiplies it faster."""
    if config.precision != "auto":
        return config.precision == "bfloat16"
    if _device(config) == "cuda":
        return torch.cuda.is_bf16_supported()
    instructions = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name, bool)() for name in instructions)


def faster_channels_last(device: torch.device, bfloat16: bool) -> bool:
    """Whether convolutions are faster in the channels-last memory format: on the CPU, and in bfloat16."""
    return device.type == "cpu" or bfloat16


def _device(config: TrainConfig) -> str:
    if config.device != "auto":
        return config.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _device_here(config: TrainConfig) -> int | list[int]:
    """One device; in a process group that someone else began, the one that the process has chosen."""
    begun = dist.is_available() and dist.is_initialized()
    return [torch.cuda.current_device()] if begun and _device(config) == "cuda" else 1


def set_memory_format(
    ensemble: SuperWeightEnsemble, data: object, config: TrainConfig, fabric: Fabric, members: Collection[str]
) -> bool:
    """Bring an ensemble into the memory format that a config asks for.

    ``auto`` is channels-last where convolutions are faster so. A member that flattens
    feature maps by ``view`` cannot read it; where the data tell the shape of images, each member is tried on two of
    them, and all stay contiguous if one cannot.

    Returns:
        Whether it is channels-last.
    """
    if isinstance(config.channels_last, bool):
        channels_last = config.channels_last
    else:
        channels_last = faster_channels_last(fabric.device, uses_bfloat16(config))
    if channels_last:
        ensemble.to(memory_format=torch.channels_last)
    if channels_last and config.channels_last == "auto" and isinstance(data, ImageData):
        refusing = _refusing(ensemble, data.image_shape, fabric, members)
        if refusing is not None:
            _LOG.info("member %r cannot read channels-last images: all are trained contiguous", refusing)
            ensemble.to(memory_format=torch.contiguous_format)
            return False
    return channels_last


def is_refusal(error: Exception) -> bool:
    """Whether an error says that a tensor's memory format cannot be viewed in the shape asked for."""
    return "view size is not compatible" in str(error)


def _refusing(
    ensemble: SuperWeightEnsemble, image_shape: tuple[int, int, int], fabric: Fabric, members: Collection[str]
) -> str | None:
    """The first member that cannot run on channels-last images."""
    images = torch.zeros(2, *image_shape, device=fabric.device).contiguous(memory_format=torch.channels_last)
    with evaluating(ensemble), torch.no_grad(), fabric.autocast():
        weights = ensemble.bank.generate(tuple(members))
        for name in members:
            try:
                ensemble.run_member(name, images, weights[name])
            except Exception as error:  # whatever else is wrong, training says so, in its own words
                if is_refusal(error):
                    return name
    return None


def compiled_calls(members: Mapping[str, nn.Module]) -> dict[str, Callable[[Tensor], Any]]:
    """What runs in the place of each member's call in training steps; compilation waits for the first images.

    Generated weights stand in the members' ``_parameters`` as leaves of the same shapes every step, so that nothing is
    compiled again. The members themselves stay plain: evaluation and saving see those that their authors wrote.
    """
    limit = _SHAPES * len(members)
    return {name: _compiled_call(name, member, limit) for name, member in members.items()}


def _compiled_call(name: str, member: nn.Module, limit: int) -> Callable[[Tensor], Any]:
    """A member's compiled call.

    Raises:
        SuperWeightError: When called: the member cannot be compiled on this machine.
    """
    compiled = torch.compile(member)

    def call(images: Tensor) -> Any:
        try:
            with torch._dynamo.config.patch(recompile_limit=limit):  # past it members of one class would run plain
                return compiled(images)
        except Exception as error:
            if not type(error).__module__.startswith(_COMPILER):
                raise
            raise SuperWeightError(
                f"member {name!r} cannot be compiled here: {first_line(error):.200}\n"
                "install a C++ compiler such as g++ if there is none, or train with compile: false"
            ) from error

    return call


class OutOfMemoryError(SuperWeightError):
    """A training step did not fit the memory; says the batch, the member, and what to lower."""


@contextmanager
def explain_oom(
    member: str | None, batch_size: int, micro_batches: int, *, otherwise: str = "between the members"
) -> Iterator[None]:
    """Say, where memory runs out inside, what was running.

    Args:
        member: The one that runs; None where it is none of them.
        batch_size: Images of the step, in this process.
        micro_batches: Parts that they are run in.
        otherwise: Where that is, without a member.

    Raises:
        OutOfMemoryError: In the place of torch's errors.
    """
    try:
        yield
    except SuperWeightError:
        raise
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        running = otherwise if member is None else f"in member {member!r}"
        batch = f"a batch of {batch_size}" + (f" in {micro_batches} parts" if micro_batches > 1 else "")
        raise OutOfMemoryError(
            f"out of memory {running}, at {batch}: raise training.micro_batches (or 'auto'), set recompute, lower "
            f"batch_size, or leave the largest member out ({first_line(error):.160})"
        ) from error
