"""Running members on the samples that are left, and on no other. Shapes: B batch, K classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from superweight_ensembles.anytime.latency import LatencyTable, now
from superweight_ensembles.anytime.policy import ExitPolicy
from superweight_ensembles.anytime.running import Running, run_member
from superweight_ensembles.anytime.spending import samples_per_member


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
