"""Running members on the samples that are left, and on no other. Shapes: B batch, K classes."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from superweight_ensembles.anytime.calibration import exit_shares
from superweight_ensembles.anytime.policy import ExitPolicy, Running, run_member
from superweight_ensembles.errors import SuperWeightError

# FOLDED anytime.spending: A budget for a whole batch: how many samples run each member. Pure.


def samples_per_member(count: int, flops: Sequence[int], budget: float) -> tuple[int, ...]:
    """How many of a batch's samples run each member: all the first, ever fewer the next ones.

    The exits' shares are geometric, as in calibration, and the budget is never exceeded. Who goes on are the samples
    whose prediction so far is least sure: those gain most (measured on four WideResNets and CIFAR-10 at 16 x 16: 11.7
    points in the least sure tenth, falling to none in the surest).

    Args:
        count: Samples in the batch.
        flops: Of one image, by member in order.
        budget: FLOPs for the batch, finite.

    Raises:
        SuperWeightError: Less than the first member needs.

    Example:
        >>> samples_per_member(10, [1, 4], 30)
        (10, 5)
        >>> samples_per_member(10, [1, 4], 50)
        (10, 10)
    """
    least = count * flops[0]
    if budget < least:
        raise SuperWeightError(
            f"a budget of {budget:,.0f} FLOPs is too small for {count} images: the first member alone needs {least:,}"
        )
    low, high = math.log(1e-6), math.log(1e6)
    best = _counts(count, len(flops), low)
    for _ in range(50):
        middle = (low + high) / 2
        counts = _counts(count, len(flops), middle)
        if sum(number * cost for number, cost in zip(counts, flops)) <= budget:
            low, best = middle, counts
        else:
            high = middle
    # What rounding left over lets more samples go on, to the cheap members first.
    numbers = list(best)
    rest = budget - sum(number * cost for number, cost in zip(numbers, flops))
    for index in range(1, len(flops)):
        more = min(numbers[index - 1] - numbers[index], int(rest // flops[index])) if flops[index] else 0
        numbers[index] += more
        rest -= more * flops[index]
    return tuple(numbers)


def _counts(count: int, exits: int, log_rate: float) -> tuple[int, ...]:
    shares = exit_shares(exits, math.exp(log_rate))
    return tuple(math.floor(count * sum(shares[index:]) + 1e-9) if index else count for index in range(exits))


# FOLDED anytime.latency: How long a member takes for a batch of some size on this device: measured, and corrected as
# calls go by.

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


@dataclass(frozen=True, slots=True, kw_only=True)
class AnytimeAnswer:
    """The answer to a batch.

    Attributes:
        probabilities: (B, K), the mean softmax of the members that each sample ran.
        members_used: How many that were (B,).
        confidence: How sure each answer is (B,), by the policy's measure; margin at temperature 1 without one.
        flops: What was computed for each sample (B,).
        skipped: Members that the deadline left no time for.
        latency_ms: From the call to the answer.
    """

    probabilities: Tensor
    members_used: Tensor
    confidence: Tensor
    flops: Tensor
    skipped: tuple[str, ...]
    latency_ms: float


class _Outputs:
    """Where the samples of a batch leave their answers."""

    def __init__(self, count: int, flops: Mapping[str, int], like: Tensor) -> None:
        self.flops = torch.tensor([*flops.values()], device=like.device).cumsum(0)
        self.probabilities: Tensor | None = None
        self.confidence = torch.empty(count, device=like.device)
        self.used = torch.empty(count, dtype=torch.int64, device=like.device)

    def leave(self, rows: Tensor | None, prediction: Tensor, sure: Tensor, used: int) -> None:
        """Samples ``rows`` of the batch, all where None, leave after ``used`` members."""
        if rows is None:
            self.probabilities, self.confidence = prediction, sure
            self.used.fill_(used)
            return
        if self.probabilities is None:
            self.probabilities = prediction.new_empty(len(self.used), prediction.shape[1])
        self.probabilities[rows] = prediction
        self.confidence[rows] = sure.float()
        self.used[rows] = used

    def answer(self, skipped: tuple[str, ...], began: float) -> AnytimeAnswer:
        assert self.probabilities is not None
        flops = self.flops[self.used - 1]
        seconds = now(self.probabilities) - began
        return AnytimeAnswer(
            probabilities=self.probabilities,
            members_used=self.used,
            confidence=self.confidence,
            flops=flops,
            skipped=skipped,
            latency_ms=1e3 * seconds,
        )


@torch.inference_mode()
def run_cascade(
    modules: Mapping[str, nn.Module],
    flops: Mapping[str, int],
    images: Tensor,
    policy: ExitPolicy | None,
    latencies: LatencyTable | None,
    deadline_ms: float | None,
    replaces: tuple[int | None, ...] = (),
) -> AnytimeAnswer:
    """Run members in turn; samples leave when the policy lets them, or when the next member would end too late."""
    began = now(images)
    out = _Outputs(len(images), flops, images)
    names = list(modules)
    rows: Tensor | None = None
    running: Running | None = None
    slow = 1.0
    for index, name in enumerate(names):
        entered = now(images) if latencies is not None else 0.0
        running = run_member(modules[name], images, running, replaces)
        prediction, sure = _judge(running, policy, index)
        last = index == len(names) - 1
        if latencies is not None:
            slow = latencies.observe(name, len(images), now(images) - entered)
        stays = None if last or policy is None else sure < policy.thresholds[index]
        left = 0 if last else len(images) if stays is None else int(stays.sum())
        if left == 0:
            out.leave(rows, prediction, sure, index + 1)
            return out.answer((), began)
        if latencies is not None and deadline_ms is not None:
            spent = now(images) - began
            if 1e3 * (spent + latencies.careful(names[index + 1], left, slow)) > deadline_ms:
                out.leave(rows, prediction, sure, index + 1)
                return out.answer(tuple(names[index + 1 :]), began)
        if stays is not None and left < len(images):
            rows, images, running = _compact(out, stays, rows, images, running, prediction, sure, index + 1)
    raise AssertionError("the last member lets all leave")


@torch.inference_mode()
def run_within_budget(
    modules: Mapping[str, nn.Module],
    flops: Mapping[str, int],
    images: Tensor,
    budget: float,
    policy: ExitPolicy | None,
    replaces: tuple[int | None, ...] = (),
) -> AnytimeAnswer:
    """Run members in turn; after each, as many samples go on as the batch's budget pays for: the least sure ones."""
    counts = samples_per_member(len(images), list(flops.values()), budget)
    began = now(images)
    out = _Outputs(len(images), flops, images)
    rows: Tensor | None = None
    running: Running | None = None
    for index, name in enumerate(modules):
        running = run_member(modules[name], images, running, replaces)
        prediction, sure = _judge(running, policy, index)
        left = counts[index + 1] if index + 1 < len(counts) else 0
        if left == 0:
            out.leave(rows, prediction, sure, index + 1)
            return out.answer((), began)
        if left < len(images):
            stays = torch.zeros(len(images), dtype=torch.bool, device=images.device)
            stays[sure.argsort()[:left]] = True
            rows, images, running = _compact(out, stays, rows, images, running, prediction, sure, index + 1)
    raise AssertionError("no sample is left after the last member")


def _judge(running: Running, policy: ExitPolicy | None, index: int) -> tuple[Tensor, Tensor]:
    if policy is None:
        return running.judge("margin", 1.0, False)
    return running.judge(policy.confidence, policy.temperatures[index], policy.monotone)


def _compact(
    out: _Outputs, stays: Tensor, rows: Tensor | None, images: Tensor, running: Running,
    prediction: Tensor, sure: Tensor, used: int,
) -> tuple[Tensor, Tensor, Running]:  # fmt: skip
    """Let some samples leave; of the others, their places in the batch, images and running means."""
    inside = stays.nonzero()[:, 0]
    outside = (~stays).nonzero()[:, 0]
    out.leave(outside if rows is None else rows[outside], prediction[outside], sure[outside], used)
    return (inside if rows is None else rows[inside]), images[inside], running.keep(inside)
