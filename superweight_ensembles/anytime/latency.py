"""How long a member takes for a batch of some size on this device: measured, and corrected as calls go by."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Mapping

import torch
from torch import nn

_ROUNDS = 5
_RECENT = 64
_CAREFUL = 0.95


class LatencyTable:
    """Estimates of a member's time for n images.

    Members are timed at powers of two, when a size is first asked for; between them the estimate is linear. What calls
    then take, in proportion to the estimate, is remembered for the last 64, the timed ones among them: a machine that
    slows down is noticed, and one slow call is not taken for that.

    Args:
        modules: The members.
        image: One image of a batch (1, ...), on the device and of the type that they take.
    """

    def __init__(self, modules: Mapping[str, nn.Module], image: torch.Tensor) -> None:
        self._modules = modules
        self._image = image.clone()  # not a view that holds the caller's whole batch
        self._seconds: dict[tuple[str, int], float] = {}
        self._ratios: deque[float] = deque(maxlen=_RECENT)

    def measure(self, batch_size: int) -> None:
        """Time every member at the powers of two around every size up to ``batch_size``, once."""
        size = 1
        while size < 2 * batch_size:
            if (next(iter(self._modules)), size) not in self._seconds:
                self._time(size)
            size *= 2

    def median(self, member: str, batch_size: int) -> float:
        """Seconds that a member takes for a batch, half of the time."""
        self.measure(batch_size)
        low = 1 << (batch_size.bit_length() - 1)
        share = (batch_size - low) / low
        first = self._seconds[member, low]
        return first if share == 0 else (1 - share) * first + share * self._seconds[member, 2 * low]

    def careful(self, member: str, batch_size: int, latest: float = 1.0) -> float:
        """Seconds that 95 % of the recent calls, were they of this member and size, stayed within.

        Args:
            member: To be run.
            batch_size: Images that are left for it.
            latest: What :meth:`observe` said of the member before it: that much slower is expected at least.
        """
        median = self.median(member, batch_size)
        ordered = sorted(self._ratios)
        return median * max(1.0, latest, ordered[int(_CAREFUL * (len(ordered) - 1) + 0.5)])

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


def timed_call(module: nn.Module, images: torch.Tensor) -> float:
    """Seconds of one call, the device's work included."""
    start = now(images)
    module(images)
    return now(images) - start


def now(like: torch.Tensor) -> float:
    """The time in seconds when a tensor's device has done all that it was given."""
    if like.is_cuda:
        torch.cuda.synchronize(like.device)
    return time.perf_counter()
