"""The device and the precision that a config comes to on this machine."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import TorchElasticEnvironment

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.training.config import TrainConfig
from superweight_ensembles.training.distributed.joining import join
from superweight_ensembles.training.distributed.launch import Launch, launch_of


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
        reason = next((line for line in map(str.strip, str(error).splitlines()) if line), type(error).__name__)
        raise SuperWeightError(
            f"WORLD_SIZE says {launch.size} processes, and this one cannot reach the others at {launch.address}: start "
            f"all of them by torchrun, or unset WORLD_SIZE for a single one\nseen here: {reason:.200}"
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
