"""What a member costs as the plain network that it is at inference."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from superweight_ensembles.ensemble import SuperWeightEnsemble
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.models import unfused_recurrence
from superweight_ensembles.plan import count_parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberCost:
    """Of one materialised member.

    Attributes:
        flops: Floating point operations an image: two for each multiply-add.
        latency_ms: Median time of one call with ``batch_size`` images, in milliseconds.
        batch_size: Images in that call.
        num_parameters: Trainable scalars of the plain network.
    """

    flops: int
    latency_ms: float
    batch_size: int
    num_parameters: int


def member_costs(
    ensemble: SuperWeightEnsemble,
    input_shape: tuple[int, ...],
    *,
    batch_size: int = 1,
    rounds: int = 5,
    dtype: torch.dtype | None = None,
) -> dict[str, MemberCost]:
    """FLOPs, latency and parameters of every member, materialised, in eval mode, on the ensemble's device.

    Args:
        ensemble: Of which each member is measured.
        input_shape: Of one image, (C, H, W).
        batch_size: Images in the call that is timed.
        rounds: Turns in which the members are timed one after the other; the median of all is taken, so that a
            machine that slows down does so for all of them.
        dtype: Of the images; that of the parameters where None.

    Raises:
        SuperWeightError: ``batch_size`` or ``rounds`` below one.
    """
    if batch_size < 1 or rounds < 1:
        raise SuperWeightError(f"batch_size and rounds must be at least 1; got {batch_size} and {rounds}")
    like = next(ensemble.parameters())
    images = torch.zeros(batch_size, *input_shape, device=like.device, dtype=dtype or like.dtype)
    modules = {name: ensemble.materialize(name).eval() for name in ensemble.member_names}
    seconds: dict[str, list[float]] = {name: [] for name in modules}
    with torch.inference_mode():
        flops = {name: count_flops(module, images[:1]) for name, module in modules.items()}
        for _ in range(rounds):
            for name, module in modules.items():
                seconds[name] += _timed_calls(module, images)
    return {
        name: MemberCost(
            flops=flops[name],
            latency_ms=1e3 * statistics.median(seconds[name]),
            batch_size=batch_size,
            num_parameters=count_parameters(module),
        )
        for name, module in modules.items()
    }


def _timed_calls(module: nn.Module, images: torch.Tensor, at_least: float = 0.02) -> list[float]:
    """Seconds of single calls, after one that is not counted, until they add up to ``at_least`` seconds."""
    synchronize = torch.cuda.synchronize if images.is_cuda else _nothing
    module(images)
    times: list[float] = []
    while sum(times) < at_least:
        synchronize()
        start = time.perf_counter()
        module(images)
        synchronize()
        times.append(time.perf_counter() - start)
    return times


def _nothing() -> None:
    """A CPU call has ended when it returns."""


def count_flops(module: nn.Module, images: torch.Tensor) -> int:
    """Floating point operations of one call, as ``torch.utils.flop_counter`` counts them."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the fused attention call is one that the counter does not know
    counter = FlopCounterMode(display=False)
    try:
        with sdpa_kernel(SDPBackend.MATH), unfused_recurrence(module), counter:  # as products, which it counts
            module(images)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return int(counter.get_total_flops())
