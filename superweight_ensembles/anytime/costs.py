"""What a member costs as the plain network that it is at inference: FLOPs, and time on this device."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from superweight_ensembles.ensemble import SuperWeightEnsemble, check_logits
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.models import unfused_recurrence
from superweight_ensembles.plan import count_parameters

_TIMED_SECONDS = 0.02
_ROUNDS = 5
_RECENT_CALLS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberCost:
    """Cost of one materialised member.

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
        ensemble: The members to measure.
        input_shape: Shape of one image, (C, H, W).
        batch_size: Images in the call that is timed.
        rounds: Turns in which the members are timed one after the other; the median of all is taken, so that a
            machine that slows down does so for all of them.
        dtype: Type of the images; that of the parameters where None.

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
                module(images)  # to warm up
                times: list[float] = []
                while sum(times) < _TIMED_SECONDS:
                    times.append(timed_call(module, images))
                seconds[name] += times
    return {
        name: MemberCost(
            flops=flops[name],
            latency_ms=1e3 * statistics.median(seconds[name]),
            batch_size=batch_size,
            num_parameters=count_parameters(module),
        )
        for name, module in modules.items()
    }


def count_flops(module: nn.Module, images: Tensor) -> int:
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


@torch.inference_mode()
def flops_of_members(modules: Mapping[str, nn.Module], image: Tensor) -> dict[str, int]:
    """FLOPs of each member for one image (1, ...); members that cannot take it, or answer together, are refused."""
    flops, logits = {}, {}
    for name, module in modules.items():
        try:
            flops[name], logits[name] = count_flops(module, image), module(image)
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
            raise SuperWeightError(
                f"member {name!r} cannot take images {tuple(image.shape)} of {image.dtype}: "
                f"{(str(error) or type(error).__name__).splitlines()[0]}"
            ) from None
    check_logits(logits)
    name, answer = next(iter(logits.items()))
    if answer.shape[1] < 2:
        raise SuperWeightError(f"members must answer logits of two classes or more; {name!r} answers one")
    return flops


class LatencyTable:
    """Estimates of a member's time for n images.

    Members are timed at powers of two, when a size is first asked for; between them the estimate is linear. What calls
    then take, in proportion to the estimate, is remembered for the last 64, the timed ones among them: a machine that
    slows down is noticed, and one slow call is not taken for that.

    Args:
        modules: The members.
        image: One image of a batch (1, ...), on the device and of the type that they take.
    """

    def __init__(self, modules: Mapping[str, nn.Module], image: Tensor) -> None:
        self._modules = modules
        self._image = image.clone()  # not a view that holds the caller's whole batch
        self._seconds: dict[tuple[str, int], float] = {}
        self._ratios: deque[float] = deque(maxlen=_RECENT_CALLS)

    def measure(self, batch_size: int) -> None:
        """Time every member at the powers of two around every size up to ``batch_size``, once."""
        size = 1
        while size < 2 * batch_size:
            if (next(iter(self._modules)), size) not in self._seconds:
                self._time(size)
            size *= 2

    def median(self, member: str, batch_size: int) -> float:
        """Median seconds of a member's call with a batch."""
        self.measure(batch_size)
        low = 1 << (batch_size.bit_length() - 1)
        share = (batch_size - low) / low
        first = self._seconds[member, low]
        return first if share == 0 else (1 - share) * first + share * self._seconds[member, 2 * low]

    def percentile_95(self, member: str, batch_size: int, latest: float = 1.0) -> float:
        """Seconds that 95 % of the recent calls, were they of this member and size, stayed within.

        Args:
            member: The member to run next.
            batch_size: Images that are left for it.
            latest: What :meth:`observe` said of the member before it: that much slower is expected at least.
        """
        median = self.median(member, batch_size)
        ordered = sorted(self._ratios)
        return median * max(1.0, latest, ordered[int(0.95 * (len(ordered) - 1) + 0.5)])

    def observe(self, member: str, batch_size: int, seconds: float) -> float:
        """Remember what a call took; returns it in proportion to the median."""
        ratio = seconds / self.median(member, batch_size)
        self._ratios.append(ratio)
        return ratio

    @torch.inference_mode()
    def _time(self, size: int) -> None:
        images = self._image.expand(size, *self._image.shape[1:]).contiguous()
        times: dict[str, list[float]] = {name: [] for name in self._modules}
        for turn in range(_ROUNDS + 1):
            for name, module in self._modules.items():
                seconds = timed_call(module, images)
                if turn:  # the first is to warm up
                    times[name].append(seconds)
        for name, values in times.items():
            median = self._seconds[name, size] = statistics.median(values)
            self._ratios.extend(value / median for value in values)  # so that one slow first call is not all there is


def timed_call(module: nn.Module, images: Tensor) -> float:
    """Seconds of one call, the device's work included."""
    start = now(images)
    module(images)
    return now(images) - start


def now(like: Tensor) -> float:
    """The time in seconds when a tensor's device has done all that it was given."""
    if like.is_cuda:
        torch.cuda.synchronize(like.device)
    return time.perf_counter()
