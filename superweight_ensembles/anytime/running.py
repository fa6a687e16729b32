"""The mean prediction of the members so far, sample by sample. Shapes: M members, N or B samples, K classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from superweight_ensembles.anytime.confidence import confidence_of


@dataclass(slots=True)
class Running:
    """What is known of the samples that are still in the running, after some members.

    Attributes:
        total: Sum of the members' softmax (B, K).
        answers: The class that each member answers (members so far, B).
        kept: With ``monotone``: the prediction (B, K) that stands, and its confidence (B,).
    """

    total: Tensor
    answers: Tensor
    kept: tuple[Tensor, Tensor] | None = None

    def add(self, probabilities: Tensor) -> None:
        """Add one member's softmax (B, K)."""
        self.total = self.total + probabilities
        self.answers = torch.cat([self.answers, probabilities.argmax(1)[None]])

    @property
    def mean(self) -> Tensor:
        """Mean softmax (B, K)."""
        return self.total / len(self.answers)

    def keep(self, rows: Tensor) -> Running:
        """Of these samples alone."""
        kept = None if self.kept is None else (self.kept[0][rows], self.kept[1][rows])
        return Running(self.total[rows], self.answers[:, rows], kept)

    def judge(self, confidence: str, temperature: float, monotone: bool) -> tuple[Tensor, Tensor]:
        """The prediction (B, K) that stands now, and how sure it is (B,)."""
        mean = self.mean
        votes = (self.answers == mean.argmax(1)).sum(0)
        sure = confidence_of(confidence, mean, votes, len(self.answers), temperature)
        if not monotone:
            return mean, sure
        if self.kept is not None:
            earlier = self.kept[1] > sure
            mean = torch.where(earlier[:, None], self.kept[0], mean)
            sure = torch.where(earlier, self.kept[1], sure)
        self.kept = (mean, sure)
        return mean, sure


def advance(running: Running | None, probabilities: Tensor) -> Running:
    """After one more member's softmax (B, K); the first where nothing is running."""
    if running is None:
        return Running(probabilities, probabilities.argmax(1)[None])
    running.add(probabilities)
    return running


def run_member(module: nn.Module, images: Tensor, running: Running | None) -> Running:
    """Run one more member on the images (B, ...) that are left."""
    return advance(running, module(images).float().softmax(1))


def exits_of(
    probabilities: Tensor, confidence: str, temperatures: tuple[float, ...], monotone: bool
) -> tuple[Tensor, Tensor]:
    """Every exit of every sample.

    Args:
        probabilities: Softmax (M, N, K) of the members in their order.
        confidence: A name of :data:`CONFIDENCES`.
        temperatures: Of each exit.
        monotone: Whether an earlier, surer prediction stands.

    Returns:
        The prediction (M, N, K) and its confidence (M, N) after each member.
    """
    predictions, sure = [], []
    running: Running | None = None
    for member, temperature in zip(probabilities, temperatures):
        running = advance(running, member)
        prediction, confident = running.judge(confidence, temperature, monotone)
        predictions.append(prediction)
        sure.append(confident)
    return torch.stack(predictions), torch.stack(sure)
