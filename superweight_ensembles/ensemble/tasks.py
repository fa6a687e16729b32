"""What members answer, the targets that it is compared with, and how the answers of several become one.

Shapes: M members, B rows of a batch, K classes, L labels, ``...`` places of a row, such as pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from superweight_ensembles.data import check_labels, checked_labels
from superweight_ensembles.errors import SuperWeightError, unknown_name

_ROUNDING = 0.02  # of probabilities in 16 bits
IGNORED = -100  # the class index of a place that is not counted, as in torch's cross-entropy


class Select(Protocol):
    """Picks the answer from what a member answers."""

    def __call__(self, output: Any, /) -> Tensor: ...


class Task(ABC):
    """A kind of question that members answer.

    Attributes:
        name: Name that ``SuperWeightEnsemble(task=...)`` takes.
        answers: Shape of a member's answer, in words.
        scores: Names of the scores that :meth:`score` sums.
        has_classes: Whether each row has one class of K, and the members' mean is of their softmax (B, K), which a
            cascade's confidence, distillation and the standard metrics need.
    """

    name: ClassVar[str]
    answers: ClassVar[str]
    scores: ClassVar[tuple[str, ...]]
    has_classes: ClassVar[bool] = False

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return task_named, (self.name,)  # a copy, or what is unpickled, is the one object of its name

    @abstractmethod
    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether an answer may have this shape."""

    @abstractmethod
    def targets(self, targets: Any, answer: Tensor) -> Tensor:
        """The targets of a batch for a member's answer; refuses another shape or type."""

    @abstractmethod
    def check_range(self, targets: Any, num_classes: int) -> None:
        """Refuse targets whose numbers are out of range."""

    def truth(self, targets: Tensor) -> Tensor:
        """Targets as metrics take them."""
        return targets

    @abstractmethod
    def loss(self, answer: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Default loss of a member: a scalar, the mean over the batch."""

    @abstractmethod
    def predicted(self, answer: Tensor) -> Tensor:
        """Predictions that are averaged over members, in the shape of the answer."""

    def right(self, predicted: Tensor, targets: Tensor) -> Tensor:
        """Share of each row's answers that are right, (B,); refused where a task has no right and wrong."""
        raise SuperWeightError(f"task {self.name!r} has no right and wrong answers")

    @abstractmethod
    def score(self, predicted: Tensor, targets: Tensor) -> Tensor:
        """Sums over the rows (len(scores),), in float64."""

    def scored(self, targets: Tensor) -> Tensor:
        """Number of rows that the scores are sums of, a scalar."""
        return torch.tensor(float(len(targets)), dtype=torch.float64, device=targets.device)

    def num_terms(self, targets: Any) -> Tensor | None:
        """Number of terms that the loss is the mean of, a scalar; None where it is one a row."""
        return None


class Classification(Task):
    """Logits (B, K); class indices (B,), or, to train on, the classes' probabilities (B, K)."""

    name = "classification"
    answers = "one tensor of logits (batch, classes)"
    scores = ("accuracy", "nll")
    has_classes = True

    def fits(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == 2

    def targets(self, targets: Any, answer: Tensor) -> Tensor:
        if isinstance(targets, Tensor) and targets.is_floating_point() and targets.ndim == 2:
            if targets.shape != answer.shape:
                raise SuperWeightError(
                    f"soft labels must be (batch, classes) as the members answer, {tuple(answer.shape)}; got "
                    f"{tuple(targets.shape)}"
                )
            return targets
        return checked_labels(targets, len(answer))

    def check_range(self, targets: Any, num_classes: int) -> None:
        if not isinstance(targets, Tensor) or not len(targets):
            return
        if not targets.is_floating_point():
            check_labels(targets, num_classes)
        elif not (float(targets.min()) >= 0 and float((targets.sum(1) - 1).abs().max()) <= _ROUNDING):
            raise SuperWeightError("soft labels must be probabilities: 0 or more, and 1 together in each row")

    def loss(self, answer: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        return F.cross_entropy(answer, targets, label_smoothing=label_smoothing)

    def predicted(self, answer: Tensor) -> Tensor:
        return answer.float().softmax(1)

    def score(self, predicted: Tensor, targets: Tensor) -> Tensor:
        if targets.is_floating_point():
            raise SuperWeightError("accuracy needs class indices (batch,): labels.argmax(1)")
        right = (predicted.argmax(1) == targets).double().sum()
        return torch.stack([right, F.nll_loss(_logarithm(predicted), targets, reduction="sum")])


class Segmentation(Task):
    """Logits (B, K, ...) of every place; class indices (B, ...), -100 for places that count nothing."""

    name = "segmentation"
    answers = "logits (batch, classes, height, width), or of other places"
    scores = ("accuracy", "nll")

    def fits(self, shape: tuple[int, ...]) -> bool:
        return len(shape) >= 3 and shape[1] > 1

    def targets(self, targets: Any, answer: Tensor) -> Tensor:
        wanted = (len(answer), *answer.shape[2:])
        found = _of_shape(targets, wanted, "class indices, one a place")
        if found.is_floating_point() or found.dtype == torch.bool:
            raise SuperWeightError(f"targets must be class indices of an integer type; got {found.dtype}")
        return found.long()

    def check_range(self, targets: Any, num_classes: int) -> None:
        if not isinstance(targets, Tensor):
            return
        counted = targets[targets != IGNORED]
        if bool((counted < 0).any()):
            raise SuperWeightError(f"targets below 0 are no classes: {IGNORED} marks places that count nothing")
        check_labels(counted, num_classes)

    def loss(self, answer: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        options: dict[str, Any] = {"label_smoothing": label_smoothing, "ignore_index": IGNORED, "reduction": "sum"}
        return F.cross_entropy(answer, targets, **options) / (targets != IGNORED).sum().clamp_min(1)

    def scored(self, targets: Tensor) -> Tensor:
        return (targets != IGNORED).flatten(1).any(1).double().sum()

    def num_terms(self, targets: Any) -> Tensor | None:
        return (targets != IGNORED).sum() if isinstance(targets, Tensor) else None

    def predicted(self, answer: Tensor) -> Tensor:
        return answer.float().softmax(1)

    def right(self, predicted: Tensor, targets: Tensor) -> Tensor:
        return _mean_of_places((predicted.argmax(1) == targets).double(), targets)

    def score(self, predicted: Tensor, targets: Tensor) -> Tensor:
        nll = F.nll_loss(_logarithm(predicted), targets, reduction="none", ignore_index=IGNORED)
        return torch.stack([self.right(predicted, targets).sum(), _mean_of_places(nll, targets).sum()])


class Multilabel(Task):
    """One logit a label (B, L); targets (B, L) from 0 to 1."""

    name = "multilabel"
    answers = "one logit a label (batch, labels)"
    scores = ("accuracy", "nll")

    def fits(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == 2

    def targets(self, targets: Any, answer: Tensor) -> Tensor:
        return _of_shape(targets, tuple(answer.shape), "0 or 1, one a label").to(answer.dtype)

    def check_range(self, targets: Any, num_classes: int) -> None:
        if not isinstance(targets, Tensor) or not targets.numel():
            return
        least, most = (float(bound) for bound in targets.aminmax())
        if not 0 <= least <= most <= 1:
            raise SuperWeightError(f"targets must be 0 to 1; they are {least:g} to {most:g}")

    def truth(self, targets: Tensor) -> Tensor:
        return (targets > 0.5).long()

    def loss(self, answer: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        return F.binary_cross_entropy_with_logits(answer, targets)

    def predicted(self, answer: Tensor) -> Tensor:
        return answer.float().sigmoid()

    def right(self, predicted: Tensor, targets: Tensor) -> Tensor:
        return ((predicted > 0.5) == (targets > 0.5)).double().mean(1)

    def score(self, predicted: Tensor, targets: Tensor) -> Tensor:
        right = self.right(predicted, targets).sum()
        nll = -(targets * _logarithm(predicted) + (1 - targets) * _logarithm(1 - predicted)).mean(1).sum()
        return torch.stack([right, nll])


class Regression(Task):
    """Numbers (B, ...) of any one shape; targets of that shape."""

    name = "regression"
    answers = "numbers (batch, ...)"
    scores = ("mse",)

    def fits(self, shape: tuple[int, ...]) -> bool:
        return len(shape) >= 1

    def targets(self, targets: Any, answer: Tensor) -> Tensor:
        found = _of_shape(targets, tuple(answer.shape), "numbers")
        if not found.is_floating_point():
            raise SuperWeightError(f"targets must be floating-point numbers; got {found.dtype}: targets.float()")
        return found.to(answer.dtype)

    def check_range(self, targets: Any, num_classes: int) -> None:
        if isinstance(targets, Tensor) and not bool(targets.isfinite().all()):
            raise SuperWeightError("targets hold numbers that are not finite: look at the data")

    def loss(self, answer: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        return F.mse_loss(answer, targets)

    def predicted(self, answer: Tensor) -> Tensor:
        return answer.float()

    def score(self, predicted: Tensor, targets: Tensor) -> Tensor:
        squares: Tensor = (predicted.double() - targets.double()).square()
        return squares.flatten(1).mean(1).sum()[None] if squares.ndim > 1 else squares.sum()[None]


CLASSIFICATION = Classification()
TASKS: Mapping[str, Task] = {task.name: task for task in (CLASSIFICATION, Multilabel(), Regression(), Segmentation())}


def task_named(name: str) -> Task:
    """The task of a name; refuses an unknown one."""
    if not isinstance(name, str) or name not in TASKS:
        raise unknown_name("task", str(name), list(TASKS))
    return TASKS[name]


def check_classes(task: Task, what: str) -> None:
    """Refuse what only tasks with one class a row have."""
    if not task.has_classes:
        raise SuperWeightError(f"{what} needs one class an image: the ensemble's task is {task.name!r}")


def num_classes_in(answer: Tensor) -> int:
    """K, or whatever the second dimension of an answer is."""
    return answer.shape[1] if answer.ndim > 1 else 0


def _of_shape(targets: Any, shape: tuple[int, ...], what: str) -> Tensor:
    if not isinstance(targets, Tensor) or tuple(targets.shape) != shape:
        given = tuple(targets.shape) if isinstance(targets, Tensor) else type(targets).__name__
        column = isinstance(targets, Tensor) and (*targets.shape, 1) == shape
        raise SuperWeightError(
            f"targets must be {what}, {shape} for what the members answer; got {given}"
            + (": targets[:, None]" if column and len(shape) == 2 else "")
        )
    return targets


def _mean_of_places(values: Tensor, targets: Tensor) -> Tensor:
    """The mean (B,) of values (B, ...) over places that count; 0 where none does."""
    counts = (targets != IGNORED).double()
    return (values * counts).flatten(1).sum(1) / counts.flatten(1).sum(1).clamp_min(1)


def _logarithm(predicted: Tensor) -> Tensor:
    return predicted.double().clamp_min(1e-38).log()
