"""The device and the precision that a config comes to on this machine."""

from __future__ import annotations

import torch
from lightning_fabric import Fabric

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.training.config import TrainConfig


def build_fabric(config: TrainConfig) -> Fabric:
    """Fabric for the device and precision that a config asks for.

    Raises:
        SuperWeightError: CUDA is asked for and not there.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise SuperWeightError("device 'cuda' is not available on this machine: use device 'auto' or 'cpu'")
    precision = "bf16-mixed" if uses_bfloat16(config) else "32-true"
    return Fabric(accelerator=_device(config), devices=1, precision=precision)


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
