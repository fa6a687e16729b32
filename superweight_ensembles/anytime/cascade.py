"""The cascade: each member runs only on the samples that have not left. Shapes: B batch, K classes."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from superweight_ensembles.anytime.costs import LatencyTable, answer_of, now
from superweight_ensembles.anytime.policy import TASK_CONFIDENCES, ExitPolicy, RunningMean, margin
from superweight_ensembles.data import Inputs, num_rows, rows_of, tensors_of
from superweight_ensembles.ensemble import CLASSIFICATION, Task

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnytimeAnswer:
    """The answer to a batch.

    Attributes:
        probabilities: Mean softmax (B, K) of the members that each sample ran; NaN, which is warned of, where a member
            answered NaN. Of a task other than classification, the mean (B, ...) of the members' predictions.
        members_used: Number of members that each sample ran (B,). A sample with NaN never leaves early.
        confidence: Confidence of each answer (B,), by the policy's measure; without a policy, by the task's own (of
            classification the margin) at temperature 1; 0 where the answer is NaN; NaN where the task has no measure.
        flops: FLOPs that were computed for each sample (B,).
        skipped: Names of the members that the deadline left no time for.
        latency_ms: Milliseconds from the call to the answer.
    """

    probabilities: Tensor
    members_used: Tensor
    confidence: Tensor
    flops: Tensor
    skipped: tuple[str, ...]
    latency_ms: float


StoppingRule = Callable[[int, Tensor], Tensor | None]
"""(exit, confidences there (B,)) -> mask (B,) of the samples that go on; None where all do."""


def stop_when_sure(policy: ExitPolicy) -> StoppingRule:
    """A rule: samples go on unless their confidence reaches the exit's threshold, so those with NaN do."""
    return lambda index, confidence: ~(confidence >= policy.thresholds[index])


def stop_at_counts(counts: Sequence[int]) -> StoppingRule:
    """A rule: each member runs on as many samples as ``counts`` has for it, those with NaN and the least sure first."""

    # These gain most: 11.7 points in the least sure tenth, none in the surest (four WideResNets, CIFAR-10 at 16 x 16).
    def rule(index: int, confidence: Tensor) -> Tensor | None:
        if counts[index + 1] == len(confidence):
            return None
        goes_on = torch.zeros(len(confidence), dtype=torch.bool, device=confidence.device)
        goes_on[confidence.nan_to_num(nan=-1.0).argsort()[: counts[index + 1]]] = True
        return goes_on

    return rule


@dataclass(slots=True)
class Deadline:
    """Milliseconds from the start of a cascade; members that would end later are not run."""

    milliseconds: float
    latencies: LatencyTable  # learns from the calls
    slowdown: float = 1.0  # time of the latest call over its median

    def observe(self, member: str, batch_size: int, seconds: float) -> None:
        self.slowdown = self.latencies.observe(member, batch_size, seconds)

    def forbids(self, member: str, batch_size: int, spent: float) -> bool:
        """Whether a member would end too late, ``spent`` seconds after the start."""
        return 1e3 * (spent + self.latencies.percentile_95(member, batch_size, self.slowdown)) > self.milliseconds


def warn_of_nan(values: Tensor) -> bool:
    """Whether any answer is NaN, judged by one number of each (B,); logs one warning for all."""
    if not math.isnan(float(values.sum())):  # one operator where all is well; values other than NaN are finite
        return False
    count = int(values.isnan().sum())
    _LOG.warning("%d of %d answers are NaN: the images or the members' weights are not finite", count, len(values))
    return True


@torch.no_grad()
def run_cascade(
    modules: Mapping[str, nn.Module],
    flops: Mapping[str, int],
    inputs: Inputs,
    running: RunningMean,
    policy: ExitPolicy | None,  # without one the confidence is the task's own
    rule: StoppingRule | None,  # without one all samples go on
    deadline: Deadline | None = None,
    task: Task = CLASSIFICATION,
) -> AnytimeAnswer:
    """Run members in turn; samples leave by a rule, and all of them where the next member would end too late."""
    began, count = now(inputs), num_rows(inputs)
    device = tensors_of(inputs)[0].device
    measure = default_confidence(task)
    names = list(modules)
    rows = torch.arange(count, device=device)  # places in the batch of the samples that are left
    exits: list[tuple[Tensor, ...]] = []  # of samples that leave together: rows, predictions, confidences, members run
    skipped: tuple[str, ...] = ()
    for index, name in enumerate(names):
        entered = now(inputs) if deadline is not None else 0.0
        running.add(task.predicted(answer_of(name, modules[name], inputs, task)))
        if measure:
            prediction, confidence = running.at_exit(policy, measure)
        else:
            prediction, confidence = running.mean, torch.full((count,), math.nan, device=device)
        if deadline is not None:
            deadline.observe(name, count, now(inputs) - entered)
        last = index == len(names) - 1
        goes_on = None if last or rule is None else rule(index, confidence)
        left = 0 if last else count if goes_on is None else int(goes_on.sum())
        if left and deadline is not None and deadline.forbids(names[index + 1], left, now(inputs) - began):
            left, skipped = 0, tuple(names[index + 1 :])
        if not left:
            exits.append((rows, prediction, confidence, torch.full_like(rows, index + 1)))
            break
        if goes_on is not None and left < count:
            inside, outside = goes_on.nonzero()[:, 0], (~goes_on).nonzero()[:, 0]
            used = torch.full_like(outside, index + 1)
            exits.append((rows[outside], prediction[outside], confidence[outside], used))
            rows, inputs, count = rows[inside], rows_of(inputs, inside), left
            running.keep(inside)
    _, probabilities, confidence, used = exits[0]
    if len(exits) > 1:
        place, *columns = map(torch.cat, zip(*exits))
        probabilities, confidence, used = (torch.empty_like(column).index_copy_(0, place, column) for column in columns)
    if warn_of_nan(confidence if measure else probabilities.reshape(len(probabilities), -1)[:, 0]) and measure:
        confidence = confidence.nan_to_num(nan=0.0)
    return AnytimeAnswer(
        probabilities=probabilities,
        members_used=used,
        confidence=confidence,
        flops=torch.tensor([*flops.values()], device=device).cumsum(0)[used - 1],
        skipped=skipped,
        latency_ms=1e3 * (now(inputs) - began),
    )


def default_confidence(task: Task) -> str | None:
    """The name of a task's measure of confidence; None where it has none."""
    if task.has_classes:
        return margin.__name__
    return TASK_CONFIDENCES[task.name].__name__ if task.name in TASK_CONFIDENCES else None
