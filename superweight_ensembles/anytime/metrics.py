"""How good probabilities are. Shapes: M members, N samples, K classes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

NUM_BINS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Of one predictor on one data set.

    Attributes:
        accuracy: Fraction whose most probable class is right.
        top5_accuracy: Fraction whose five most probable classes hold the right one.
        nll: Mean negative log likelihood, in nats.
        ece: Expected calibration error over 15 equal bins of confidence.
        brier: Mean squared distance of the probabilities from the one-hot label, 0 to 2.
    """

    accuracy: float
    top5_accuracy: float
    nll: float
    ece: float
    brier: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def probability_metrics(probabilities: Tensor, labels: Tensor) -> Metrics:
    """Metrics of probabilities (N, K) for labels (N,)."""
    classes = probabilities.shape[1]
    picked = probabilities.gather(1, labels[:, None])[:, 0]
    one_hot = F.one_hot(labels, classes)
    top5 = multiclass_accuracy(probabilities, labels, num_classes=classes, average="micro", top_k=min(5, classes))
    ece = multiclass_calibration_error(probabilities, labels, num_classes=classes, n_bins=NUM_BINS, norm="l1")
    return Metrics(
        accuracy=float(multiclass_accuracy(probabilities, labels, num_classes=classes, average="micro")),
        top5_accuracy=float(top5),
        nll=float(-picked.clamp_min(torch.finfo(picked.dtype).tiny).log().mean()),
        ece=float(ece),
        brier=float((probabilities - one_hot).square().sum(1).mean()),
    )


def diversity(probabilities: Tensor, labels: Tensor) -> float | None:
    """Mean pairwise disagreement of the members over the ensemble's error; None for one member or no error.

    Args:
        probabilities: (M, N, K).
        labels: (N,).

    Source: Teterwak et al., WACV 2024
    """
    answers = probabilities.argmax(2)
    error = float((probabilities.mean(0).argmax(1) != labels).double().mean())
    pairs = list(combinations(range(len(answers)), 2))
    if not pairs or error == 0:
        return None
    return sum(float((answers[a] != answers[b]).double().mean()) for a, b in pairs) / len(pairs) / error


def reliability(probabilities: Tensor, labels: Tensor) -> list[dict[str, float | int | None]]:
    """Confidence and accuracy in 15 equal bins of confidence: the bars of a reliability diagram."""
    confidence, answer = probabilities.double().max(1)
    right = (answer == labels).double()
    edges = torch.linspace(0, 1, NUM_BINS + 1, dtype=torch.float64)
    bin_of = torch.bucketize(confidence, edges[1:-1])
    bins: list[dict[str, float | int | None]] = []
    for index in range(NUM_BINS):
        inside = bin_of == index
        count = int(inside.sum())
        bins.append(
            {
                "lower": float(edges[index]),
                "upper": float(edges[index + 1]),
                "confidence": float(confidence[inside].mean()) if count else None,
                "accuracy": float(right[inside].mean()) if count else None,
                "count": count,
            }
        )
    return bins
