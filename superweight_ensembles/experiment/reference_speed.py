"""How many floating point operations a second this machine does in training, for estimates of time."""

from __future__ import annotations

import statistics
import time
from contextlib import nullcontext

import torch
from torch import nn

from superweight_ensembles.anytime.costs import count_flops
from superweight_ensembles.training.fabric import faster_channels_last

_CHANNELS = 64
_PIXELS = 32
_LEAST_CALLS = 3


def training_flops_per_second(device: torch.device, *, bfloat16: bool, seconds: float = 1.0) -> float:
    """Forward and backward of a residual block (two 3 x 3 convolutions, norms, ReLUs), over and over, in the memory
    format that a training takes there.

    Operations are counted as three forward passes, as estimates count them. The block stands for the middle of a
    ResNet: wide convolutions run faster, stems, thin layers and data slower.

    Args:
        device: Where.
        bfloat16: Whether under autocast.
        seconds: To measure for, after one call that is not counted; three calls at least.

    Returns:
        The median of all calls.
    """
    batch = 256 if device.type == "cuda" else 16
    layout = torch.channels_last if faster_channels_last(device, bfloat16) else torch.contiguous_format
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        block = _Block().to(device).to(memory_format=layout)
        images = torch.randn(batch, _CHANNELS, _PIXELS, _PIXELS).to(device).contiguous(memory_format=layout)
    images.requires_grad_()
    operations = 3 * count_flops(block, images)
    times: list[float] = []
    _timed_step(block, images, bfloat16)
    while len(times) < _LEAST_CALLS or sum(times) < seconds:
        times.append(_timed_step(block, images, bfloat16))
    return operations / statistics.median(times)


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers = [
            layer
            for _ in range(2)
            for layer in (nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(_CHANNELS))
        ]
        self.branch = nn.Sequential(*layers[:2], nn.ReLU(), *layers[2:])

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
