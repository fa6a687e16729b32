"""What a member costs at inference, as a plain network: FLOPs, and time on this device."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor, nn

from superweight_ensembles.data import Inputs, mapped, num_rows, rows_of, tensors_of
from superweight_ensembles.ensemble import CLASSIFICATION, SuperWeightEnsemble, Task, check_answers, own_copy
from superweight_ensembles.errors import SuperWeightError, check_number, unknown_name
from superweight_ensembles.models import (
    MEASURING,
    answer_in,
    call_with,
    calling,
    counted_flops,
    first_line,
    is_out_of_memory,
)
from superweight_ensembles.plan import count_parameters
from superweight_ensembles.training import explain_oom

_LOG = logging.getLogger(__name__)
_TIMED_SECONDS = 0.02
_ROUNDS = 5
_RECENT_CALLS = 64
SMALLER = "give smaller batches"  # remedy where no memory is left


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
        input_shape: Shape of one image, (C, H, W).
        batch_size: Images in the call that is timed.
        rounds: Number of turns in which the members are timed one after the other, so that a machine that slows down
            does so for all of them; the median of all is taken.
        dtype: Type of the images; that of the parameters where None.

    Raises:
        SuperWeightError: ``batch_size`` or ``rounds`` below one; a member that cannot take the images.
    """
    check_count("batch_size", batch_size)
    check_count("rounds", rounds)
    like = next(ensemble.parameters())
    image = torch.zeros(1, *checked_shape(input_shape), device=like.device, dtype=dtype or like.dtype)
    return costs_of(ensemble, image, batch_size=batch_size, rounds=rounds)


def costs_of(
    ensemble: SuperWeightEnsemble, row: Inputs, *, batch_size: int = 1, rounds: int = 5
) -> dict[str, MemberCost]:
    """What :func:`member_costs` finds, on copies of one row of inputs, on the ensemble's device."""
    modules = {name: ensemble.materialize(name).eval() for name in ensemble.member_names}
    batch = repeated(row, batch_size)
    seconds: dict[str, list[float]] = {name: [] for name in modules}
    with MEASURING, torch.no_grad():
        flops = flops_of_members(modules, rows_of(batch, slice(0, 1)), ensemble.task)
        for _ in range(rounds):
            for name, module in modules.items():
                answer_of(name, module, batch, ensemble.task)  # to warm up
                times: list[float] = []
                while sum(times) < _TIMED_SECONDS:
                    times.append(timed_call(module, batch))
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


def repeated(row: Inputs, size: int) -> Inputs:
    """A batch (size, ...) of copies of one row (1, ...), in the row's memory format."""
    return mapped(lambda tensor: torch.cat([tensor] * size) if tensor.ndim else tensor, row)


@torch.no_grad()
def flops_of_members(modules: Mapping[str, nn.Module], row: Inputs, task: Task = CLASSIFICATION) -> dict[str, int]:
    """FLOPs of each member for one row (1, ...); operators that the counter does not know count 0, with a warning."""
    flops, answers = {}, {}
    for name, module in modules.items():
        with explain_oom(name, num_rows(row), remedy=SMALLER), calling(name, row):
            try:
                flops[name], output, left_out = counted_flops(module, row)
            except Exception as error:  # of the member, or of the counter
                if is_out_of_memory(error):
                    raise
                flops[name], output, left_out = 0, call_with(module, row), {first_line(error)}
        answers[name] = answer_in(output)
        check_rows({name: answers[name]}, num_rows(row), task)
        if left_out or not flops[name]:
            _LOG.warning(
                "member %r counts %d FLOPs: torch's counter does not know %s; order= names members in your own order",
                name, flops[name], ", ".join(sorted(left_out)) or "its operators",
            )  # fmt: skip
    check_answers(answers, task)
    return flops


def answer_of(name: str, module: nn.Module, inputs: Inputs, task: Task = CLASSIFICATION) -> Tensor:
    """The logits (B, K) of a member, or its answer (B, ...) of another task; errors name the member."""
    inputs = mapped(own_copy, inputs)
    with explain_oom(name, num_rows(inputs), remedy=SMALLER), calling(name, inputs):
        answer: Tensor = answer_in(call_with(module, inputs))
    check_rows({name: answer}, num_rows(inputs), task)
    return answer


def check_rows(answers: Mapping[str, Tensor], count: int, task: Task) -> None:
    """Refuse answers that do not fit the task, or have other than one row for each row of the inputs."""
    check_answers(answers, task)
    for name, answer in answers.items():
        if not answer.is_floating_point():
            raise SuperWeightError(f"member {name!r} must answer floating-point logits; got {answer.dtype}")
        if len(answer) != count:
            raise SuperWeightError(f"member {name!r} must answer one row an image; got {len(answer)} of {count}")
        if task is CLASSIFICATION and answer.shape[1] < 2:
            raise SuperWeightError(f"members must answer logits of two classes or more; {name!r} answers one")


def checked_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of one image as a tuple."""
    if not isinstance(shape, Sequence) or not shape or not all(map(_is_count, shape)):
        raise SuperWeightError(f"input_shape must list the sizes of one image, such as (3, 32, 32); got {shape!r:.80}")
    return tuple(map(int, shape))


def check_count(what: str, count: object) -> None:
    """Refuse all but whole numbers of at least 1; numpy's integers pass."""
    check_number(what, int(count) if _is_count(count) else count, whole=True, least=1)  # type: ignore[call-overload]


def _is_count(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) > 0


class LatencyTable:
    """Estimates of a member's time for n images.

    Members are timed at powers of two, when a size is first asked for; between them the estimate is linear. The ratios
    of time to estimate of the last 64 calls, these timed ones included, are remembered, so that a machine that slows
    down is noticed, and a single slow call is not mistaken for one.

    Args:
        modules: Members by name.
        row: One row of a batch (1, ...), on the device and of the type that the members take.
    """

    def __init__(self, modules: Mapping[str, nn.Module], row: Inputs) -> None:
        self._modules = modules
        self._row = mapped(lambda one: one.detach().clone(), row)  # a view would keep the caller's whole batch
        # Replaced as a whole, so that a call in another thread reads the old or the new one, never a mixture.
        self._seconds: dict[tuple[str, int], float] = {}
        self._ratios: tuple[float, ...] = ()
        self._largest = 0

    def measure(self, batch_size: int) -> None:
        """Time every member at the powers of two around every size up to ``batch_size``, once.

        Of several threads the first one measures, and the others wait.
        """
        check_count("batch_size", batch_size)
        if batch_size > self._largest:
            with MEASURING:
                while batch_size > self._largest:
                    self._time(2 * self._largest or 1)

    def median(self, member: str, batch_size: int) -> float:
        """Median seconds of a member's call with a batch."""
        if member not in self._modules:
            raise unknown_name("member", member, self._modules)
        self.measure(batch_size)
        batch_size = int(batch_size)
        low = 1 << (batch_size.bit_length() - 1)
        share = (batch_size - low) / low
        first = self._seconds[member, low]
        return first if share == 0 else (1 - share) * first + share * self._seconds[member, 2 * low]

    def percentile_95(self, member: str, batch_size: int, latest: float = 1.0) -> float:
        """95th percentile of the recent calls in seconds, as if all were of this member and batch size.

        Args:
            member: Name of the member to run next.
            batch_size: Number of images that are left for it.
            latest: Ratio that :meth:`observe` returned for the member before; the next is expected to be as slow.
        """
        median = self.median(member, batch_size)
        ordered = sorted(self._ratios)
        return median * max(1.0, latest, ordered[int(0.95 * (len(ordered) - 1) + 0.5)])

    def observe(self, member: str, batch_size: int, seconds: float) -> float:
        """Remember the seconds of a call, and return their ratio to the median."""
        ratio = seconds / self.median(member, batch_size)
        self._ratios = (*self._ratios, ratio)[-_RECENT_CALLS:]
        return ratio

    @torch.no_grad()
    def _time(self, size: int) -> None:
        batch = repeated(self._row, size)
        times: dict[str, list[float]] = {name: [] for name in self._modules}
        for turn in range(_ROUNDS + 1):
            for name, module in self._modules.items():
                with explain_oom(name, size, remedy=SMALLER), calling(name, batch):
                    seconds = timed_call(module, batch)
                if turn:  # the first is to warm up
                    times[name].append(seconds)
        medians = {(name, size): statistics.median(values) for name, values in times.items()}
        # All calls that were timed, so that the ratios do not begin with a single slow call.
        ratios = [value / medians[name, size] for name, values in times.items() for value in values]
        self._ratios = (*self._ratios, *ratios)[-_RECENT_CALLS:]
        self._seconds = {**self._seconds, **medians}
        self._largest = size


def timed_call(module: nn.Module, inputs: Inputs) -> float:
    """Seconds of one call, the device's work included."""
    start = now(inputs)
    call_with(module, inputs)
    return now(inputs) - start


def now(inputs: Inputs) -> float:
    """The time in seconds, after the device of these inputs has finished all its work."""
    device = next((tensor.device for tensor in tensors_of(inputs)), torch.device("cpu"))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
