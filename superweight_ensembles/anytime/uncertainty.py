"""How well an ensemble knows what it does not know. Shapes: M members, N samples, K classes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Annotated

import torch
from einops import reduce
from pydantic import Field
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, binary_specificity_at_sensitivity

from superweight_ensembles.storage import Amount, Name, Share

NUM_COVERAGES = 20
_TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """The error on the share of samples that the ensemble is surest of."""

    coverage: Share
    risk: Share


@dataclass(frozen=True, slots=True, kw_only=True)
class Uncertainty:
    """Means over samples, in nats where they are entropies.

    Attributes:
        entropy: Entropy of the members' mean softmax: all uncertainty.
        expected_entropy: Mean entropy of the members' own softmax: the uncertainty that stays if the members are right
            (aleatoric).
        mutual_information: Difference of the two: the members' disagreement (epistemic).
        disagreement: Share of pairs of members that answer different classes; 0 for one member.
        risk_coverage_area: Mean error over all coverages, where the least sure samples are left out first, by the
            probability of the answer: 0 is best (AURC).
        risk_coverage: Curve of that error at twenty coverages.

    Source: Depeweg et al., ICML 2018, section 3 (entropies); Geifman et al., ICLR 2019 (risk and coverage).
    """

    entropy: Amount
    expected_entropy: Amount
    mutual_information: Amount
    disagreement: Share
    risk_coverage_area: Share
    risk_coverage: Annotated[tuple[Coverage, ...], Field(max_length=1000)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """How well one score tells samples of another kind from those of the data set's own."""

    score: Name
    auroc: Share
    fpr95: Share  # share of own samples taken for others where 95 % of the others are found


def scores_of(probabilities: Tensor) -> dict[str, Tensor]:
    """How uncertain each answer is (N,), by several scores, from the members' softmax (M, N, K).

    Example:
        >>> agree = torch.tensor([[[0.5, 0.5]], [[0.5, 0.5]]])
        >>> differ = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
        >>> [round(float(scores_of(one)["mutual_information"]), 3) for one in (agree, differ)]
        [0.0, 0.693]
    """
    rows = probabilities.double()
    mean = reduce(rows, "m n k -> n k", "mean")
    whole, own = _entropy(mean), reduce(_entropy(rows), "m n -> n", "mean")
    answers, pairs = rows.argmax(2), list(combinations(range(len(rows)), 2))
    differing = [(answers[one] != answers[other]).double() for one, other in pairs]
    return {
        "entropy": whole,
        "mutual_information": (whole - own).clamp_min(0),
        "disagreement": torch.stack(differing).mean(0) if pairs else torch.zeros_like(whole),
        "max_probability": 1 - mean.amax(1),
    }


def uncertainty(probabilities: Tensor, labels: Tensor) -> Uncertainty:
    """Uncertainty of the members' softmax (M, N, K), and its risk for labels (N,).

    Example:
        >>> rows = torch.tensor([[[0.9, 0.1], [0.4, 0.6]], [[0.7, 0.3], [0.6, 0.4]]])
        >>> found = uncertainty(rows, torch.tensor([0, 1]))
        >>> found.disagreement, found.risk_coverage_area
        (0.5, 0.25)
    """
    scores = scores_of(probabilities)
    entropy, between = float(scores["entropy"].mean()), float(scores["mutual_information"].mean())
    risk = risk_coverage(probabilities, labels)
    shares = torch.arange(1, NUM_COVERAGES + 1, dtype=torch.float64) / NUM_COVERAGES
    last = (shares * len(risk)).ceil().long().clamp_min(1) - 1
    return Uncertainty(
        entropy=entropy,
        expected_entropy=max(0.0, entropy - between),
        mutual_information=between,
        disagreement=float(scores["disagreement"].mean()),
        risk_coverage_area=float(risk.mean()),
        risk_coverage=tuple(
            Coverage(coverage=share, risk=one) for share, one in zip(shares.tolist(), risk[last].tolist())
        ),
    )


def risk_coverage(probabilities: Tensor, labels: Tensor) -> Tensor:
    """The ensemble's error on the n samples that it is surest of, for n of 1 to N: (N,); from softmax (M, N, K).

    Source: Geifman and El-Yaniv, Selective Classification for Deep Neural Networks, NeurIPS 2017.
    """
    confidence, answer = reduce(probabilities.double(), "m n k -> n k", "mean").max(1)
    # Stable: samples that are equally sure keep their order.
    wrong = (answer != labels)[confidence.sort(descending=True, stable=True).indices].double()
    return wrong.cumsum(0) / torch.arange(1, len(wrong) + 1)


def detection(own: Tensor, others: Tensor) -> tuple[Detection, ...]:
    """How well each score tells other samples (M, N, K) from the data set's own, the best first."""
    within, outside = scores_of(own), scores_of(others)
    truth = torch.cat([torch.zeros(own.shape[1]), torch.ones(others.shape[1])]).long()
    found = []
    for name, inside in within.items():
        score = torch.cat([inside, outside[name]])
        low, high = score.aminmax()
        score = (score - low) / (high - low).clamp_min(_TINY)  # torchmetrics takes others than 0 to 1 for logits
        specificity, _ = binary_specificity_at_sensitivity(score, truth, 0.95)
        found.append(Detection(score=name, auroc=float(binary_auroc(score, truth)), fpr95=1 - float(specificity)))
    return tuple(sorted(found, key=lambda one: -one.auroc))


def _entropy(probabilities: Tensor) -> Tensor:
    return torch.special.entr(probabilities).sum(-1)
