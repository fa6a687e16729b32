"""The mean prediction of the members so far, sample by sample. Shapes: M members, N or B samples, K classes."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from superweight_ensembles.anytime.confidence import confidence_of


@dataclass(slots=True)
class Running:
    """What is known of the samples that are still in the running, after some members.

    Attributes:
        total: Sum of the softmax (B, K) of the members in the mean.
        answers: The class that each of them answers (members in the mean, B).
        num_run: Members so far, those that others took the place of too.
        replaces: Of every exit, the earlier one that it takes the place of; empty where none does.
        parts: Softmax (B, K) of the members in the mean by their exits, as ``answers``; only where some are replaced.
        kept: With ``monotone``: the prediction (B, K) that stands, and its confidence (B,).
    """

    total: Tensor
    answers: Tensor
    num_run: int = 1
    replaces: tuple[int | None, ...] = ()
    parts: dict[int, Tensor] = field(default_factory=dict)
    kept: tuple[Tensor, Tensor] | None = None

    def add(self, probabilities: Tensor) -> None:
        """Add one member's softmax (B, K)."""
        answers = self.answers
        replaced = self.replaces[self.num_run] if self.replaces else None
        if replaced is not None:
            rows = [row for row, index in enumerate(self.parts) if index != replaced]
            self.total, answers = self.total - self.parts.pop(replaced), answers[rows]
        self.total = self.total + probabilities
        self.answers = torch.cat([answers, probabilities.argmax(1)[None]])
        if self.replaces:
            self.parts[self.num_run] = probabilities
        self.num_run += 1

    @property
    def mean(self) -> Tensor:
        """Mean softmax (B, K)."""
        return self.total / len(self.answers)

    def keep(self, rows: Tensor) -> Running:
        """Of these samples alone."""
        kept = None if self.kept is None else (self.kept[0][rows], self.kept[1][rows])
        parts = {index: part[rows] for index, part in self.parts.items()}
        return Running(self.total[rows], self.answers[:, rows], self.num_run, self.replaces, parts, kept)

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


def advance(running: Running | None, probabilities: Tensor, replaces: tuple[int | None, ...] = ()) -> Running:
    """After one more member's softmax (B, K); the first where nothing is running."""
    if running is None:
        parts = {0: probabilities} if replaces else {}
        return Running(probabilities, probabilities.argmax(1)[None], replaces=replaces, parts=parts)
    running.add(probabilities)
    return running


def run_member(
    module: nn.Module, images: Tensor, running: Running | None, replaces: tuple[int | None, ...] = ()
) -> Running:
    """Run one more member on the images (B, ...) that are left."""
    return advance(running, module(images).float().softmax(1), replaces)


def means_of(probabilities: Tensor, replaces: tuple[int | None, ...] = ()) -> Tensor:
    """The mean softmax (M, N, K) of the members so far, after each of them."""
    means = []
    running: Running | None = None
    for member in probabilities:
        running = advance(running, member, replaces)
        means.append(running.mean)
    return torch.stack(means)


def exits_of(
    probabilities: Tensor,
    confidence: str,
    temperatures: tuple[float, ...],
    monotone: bool,
    replaces: tuple[int | None, ...] = (),
) -> tuple[Tensor, Tensor]:
    """Every exit of every sample.

    Args:
        probabilities: Softmax (M, N, K) of the members in their order.
        confidence: A name of :data:`CONFIDENCES`.
        temperatures: Of each exit.
        monotone: Whether an earlier, surer prediction stands.
        replaces: Of each exit, the earlier one that it takes the place of in the mean; empty where none does.

    Returns:
        The prediction (M, N, K) and its confidence (M, N) after each member.
    """
    predictions, sure = [], []
    running: Running | None = None
    for member, temperature in zip(probabilities, temperatures):
        running = advance(running, member, replaces)
        prediction, confident = running.judge(confidence, temperature, monotone)
        predictions.append(prediction)
        sure.append(confident)
    return torch.stack(predictions), torch.stack(sure)
