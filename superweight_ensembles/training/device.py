"""How a training is run on this machine: device, precision, memory format, compilation, and memory that runs out."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch._dynamo.config
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision, Precision
from lightning_fabric.plugins.environments import TorchElasticEnvironment
from torch import Tensor, nn
from torch.amp import GradScaler

from superweight_ensembles.ensemble import SuperWeightEnsemble
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.models import first_line, is_out_of_memory
from superweight_ensembles.training.config import TrainConfig
from superweight_ensembles.training.distributed import Launch, join, launch_of
from superweight_ensembles.training.hooks import Hook, TrainState

Calls = Mapping[str, Callable[..., Any]]
_SHAPES = 8  # most shapes of images that a member is compiled for; torch's own limit for a function
_COMPILER = ("torch._dynamo", "torch._inductor")
_LOG = logging.getLogger(__name__)


def build_fabric(config: TrainConfig) -> Fabric:
    """Fabric for the device and precision of a config; a process that torchrun started joins its job here."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise SuperWeightError("device 'cuda' is not available on this machine: use device 'auto' or 'cpu'")
    device, launch = _device(config), launch_of(os.environ)
    with _quiet_lightning():
        plugins = [_precision_plugin(config)]
        return _fabric_alone(device, plugins) if launch is None else _fabric_of(launch, device, plugins)


def _fabric_alone(device: str, plugins: list[Any]) -> Fabric:
    """Fabric on one device; in a process group that the caller began, on the GPU that this process has selected."""
    begun = dist.is_available() and dist.is_initialized()
    return Fabric(
        accelerator=device, devices=[torch.cuda.current_device()] if begun and device == "cuda" else 1, plugins=plugins
    )


def _fabric_of(launch: Launch, device: str, plugins: list[Any]) -> Fabric:
    """Fabric in a job of torchrun, which this process joins."""
    if device == "cuda" and torch.cuda.device_count() < launch.local_size:
        raise SuperWeightError(
            f"{launch.local_size} processes and {torch.cuda.device_count()} CUDA devices on this machine: start with "
            f"--nproc-per-node {torch.cuda.device_count()}, or train on device 'cpu'"
        )
    try:
        join(launch, torch.device("cuda", launch.local_rank) if device == "cuda" else torch.device("cpu"))
    except (RuntimeError, ValueError, OSError) as error:
        raise SuperWeightError(
            f"WORLD_SIZE says {launch.size} processes, and this one cannot reach the others at {launch.address}: start "
            f"all of them by torchrun, or unset WORLD_SIZE for a single one\nseen here: {first_line(error):.200}"
        ) from error
    fabric = Fabric(
        accelerator=device,
        strategy="ddp",
        devices=launch.local_size,
        num_nodes=launch.num_nodes,
        plugins=[*plugins, TorchElasticEnvironment()],
    )
    if os.environ.get("LT_CLI_USED") != "1":  # `fabric run` launches by itself
        fabric.launch()
    return fabric


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silence Lightning's own messages on stderr; a level that the user has set is left as it is."""
    above, speaking = (logging.getLogger(name) for name in ("lightning_fabric", "lightning_fabric.utilities.rank_zero"))
    unasked = speaking.level == logging.NOTSET and above.level == logging.INFO  # Lightning's own choice
    if unasked:
        speaking.setLevel(logging.WARNING)
    try:
        yield
    finally:
        if unasked:
            speaking.setLevel(logging.NOTSET)


def _precision_plugin(config: TrainConfig) -> Precision:
    precision = precision_of(config)
    if precision == "float32":
        return Precision()
    if precision == "bfloat16":
        return MixedPrecision("bf16-mixed", _device(config))
    return MixedPrecision("16-mixed", _device(config), GradScaler(_device(config)))  # scaled on the CPU, too


def precision_of(config: TrainConfig) -> str:
    """The precision of a config; ``auto`` is bfloat16 where the hardware multiplies it faster."""
    if config.precision != "auto":
        return config.precision
    if _device(config) == "cuda":
        faster = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        instructions = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        faster = any(getattr(torch.cpu, name, bool)() for name in instructions)
    return "bfloat16" if faster else "float32"


def uses_bfloat16(config: TrainConfig) -> bool:
    return precision_of(config) == "bfloat16"


def scaler_of(fabric: Fabric) -> GradScaler | None:
    """The scaler of float16 losses before backward; None in other precisions."""
    return getattr(fabric.strategy.precision, "scaler", None)


class LossScale(Hook):
    """Remembers the scale of float16 losses; :func:`train` adds this hook where they are scaled."""

    def __init__(self, scaler: GradScaler) -> None:
        self._scaler = scaler

    def state_dict(self) -> Mapping[str, Any]:
        held = self._scaler.state_dict()
        return {"scale": held["scale"], "growth_tracker": held["_growth_tracker"]}

    def load_state_dict(self, content: Mapping[str, Any]) -> None:
        scale, tracker = float(content["scale"]), int(content["growth_tracker"])
        if not 0 < scale < math.inf or not 0 <= tracker < 2**31:
            raise SuperWeightError(f"a loss scale of {scale} after {tracker} steps is out of range")
        self._scaler.load_state_dict({**self._scaler.state_dict(), "scale": scale, "_growth_tracker": tracker})


def faster_channels_last(device: torch.device, bfloat16: bool) -> bool:
    """Whether convolutions are faster in the channels-last memory format: on the CPU, and in 16 bits."""
    return device.type == "cpu" or bfloat16


def _device(config: TrainConfig) -> str:
    if config.device != "auto":
        return config.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _corrupts_memory(ensemble: SuperWeightEnsemble, device: torch.device) -> bool:
    """Whether torch (2.11 to 2.14) would write past its buffers in backward of a channels-last convolution."""
    return (
        device.type == "cpu"
        # on CPUs with AVX2 alone, in strided 1 x 1 convolutions of 2 to 7 channels
        and torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")
        and any(
            isinstance(layer, nn.Conv2d)
            and layer.kernel_size == (1, 1)
            and layer.stride != (1, 1)
            and 1 < layer.in_channels < 8
            for layer in ensemble.modules()
        )
    )


def set_memory_format(ensemble: SuperWeightEnsemble, config: TrainConfig, fabric: Fabric) -> bool:
    """Bring an ensemble into the memory format of a config; returns whether that is channels-last."""
    unsound = _corrupts_memory(ensemble, fabric.device)
    if isinstance(config.channels_last, bool):
        channels_last = config.channels_last
    else:
        channels_last = faster_channels_last(fabric.device, precision_of(config) != "float32") and not unsound
    if channels_last and unsound:
        raise SuperWeightError(
            "channels_last: true: on this CPU torch corrupts memory in strided 1 x 1 convolutions of 2 to 7 channels, "
            "which a member has: leave channels_last out, or give false"
        )
    if channels_last:
        ensemble.to(memory_format=torch.channels_last)
    return channels_last


def leaves_channels_last(state: TrainState, error: Exception) -> bool:
    """Train contiguous from now on where a member refuses ``auto``'s channels-last; returns whether to try again."""
    # such a member views feature maps in a shape that channels-last memory does not allow
    if not state.channels_last or state.config.channels_last != "auto" or not is_refusal(error):
        return False
    _LOG.info("all members are trained contiguous: %s", error)
    state.channels_last = False
    state.ensemble.to(memory_format=torch.contiguous_format)
    for entries in state.optimizer.state.values():  # fused optimisers need the parameters' memory format
        entries.update({key: one.contiguous() for key, one in entries.items() if isinstance(one, Tensor)})
    return True


def is_refusal(error: Exception) -> bool:
    """Whether an error says that a tensor's memory format cannot be viewed in the shape asked for."""
    return "view size is not compatible" in str(error)


def compiled_calls(members: Mapping[str, nn.Module]) -> dict[str, Callable[..., Any]]:
    """Compiled calls of the members for training steps, by name; compilation waits for the first images."""
    # Generated weights stand in the members' _parameters as leaves of the same shapes every step: nothing is compiled
    # again. The members themselves stay uncompiled: evaluation and saving see the modules that their authors wrote.
    limit = _SHAPES * len(members)
    return {name: partial(_call_compiled, torch.compile(one), name, one, limit) for name, one in members.items()}


def _call_compiled(
    compiled: Callable[..., Any], name: str, member: nn.Module, limit: int, /, *inputs: Any, **named: Any
) -> Any:
    try:
        with torch._dynamo.config.patch(recompile_limit=limit):  # past it, members of one class run uncompiled
            return compiled(*inputs, **named)
    except Exception as error:
        if not type(error).__module__.startswith(_COMPILER):
            raise
        with torch.no_grad():
            member(*inputs, **named)  # raises the member's own error, where it has one
        raise SuperWeightError(
            f"member {name!r} cannot be compiled here: {first_line(error):.200}\n"
            "install a C++ compiler such as g++ if there is none, or train with compile: false"
        ) from error


class OutOfMemoryError(SuperWeightError):
    """A training step did not fit the memory; says the batch, the member, and what to lower."""


_IN_TRAINING = "raise training.micro_batches (or 'auto'), set recompute, lower batch_size"


@contextmanager
def explain_oom(
    member: str | None,
    batch_size: int,
    micro_batches: int = 1,
    *,
    otherwise: str = "between the members",  # the place that is named where no member runs
    remedy: str = _IN_TRAINING,
) -> Iterator[None]:
    """Turn memory that runs out inside into an :class:`OutOfMemoryError`: what was running, the batch, the remedy."""
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
            f"out of memory {running}, at {batch}: {remedy}, or leave the largest member out ({first_line(error):.160})"
        ) from error
