"""How sure a running prediction is, between 0 and 1. Shapes: B batch, K classes.

Sources: maximum probability as in Huang et al., *Multi-Scale Dense Networks for Resource Efficient Image
Classification*, ICLR 2018; entropy as in Teerapittayanon et al., *BranchyNet*, ICPR 2016; agreement as in Wang et al.,
*Wisdom of Committees*, ICLR 2022, with the maximum probability between equal votes; temperature of the pooled
prediction as in Rahaman and Thiery, *Uncertainty Quantification and Deep Ensembles*, NeurIPS 2021.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from superweight_ensembles.errors import unknown_name

_TINY = 1e-30
_LOG_TEMPERATURES = (math.log(0.05), math.log(20.0))


def max_probability(probabilities: Tensor, votes: Tensor, num_members: int) -> Tensor:
    """The probability of the answer (B,)."""
    return probabilities.amax(1)


def margin(probabilities: Tensor, votes: Tensor, num_members: int) -> Tensor:
    """The probability of the answer minus that of the next best class (B,)."""
    best = probabilities.topk(2, dim=1).values
    return best[:, 0] - best[:, 1]


def entropy(probabilities: Tensor, votes: Tensor, num_members: int) -> Tensor:
    """One minus the entropy over that of the uniform distribution (B,)."""
    nats = -(probabilities * probabilities.clamp_min(_TINY).log()).sum(1)
    return (1 - nats / math.log(probabilities.shape[1])).clamp_min(0)  # rounding can take uniform ones below


def agreement(probabilities: Tensor, votes: Tensor, num_members: int) -> Tensor:
    """Votes of the members so far for their mean's answer, the probability of the answer between equal votes (B,)."""
    return ((votes - 1).clamp_min(0) + probabilities.amax(1)) / num_members


CONFIDENCES: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "max_probability": max_probability,
    "margin": margin,
    "entropy": entropy,
    "agreement": agreement,
}


def confidence_of(name: str, mean: Tensor, votes: Tensor, num_members: int, temperature: float = 1.0) -> Tensor:
    """The confidence (B,) of a running mean.

    Args:
        name: Of :data:`CONFIDENCES`.
        mean: Mean softmax (B, K) of the members so far.
        votes: How many of them answer what their mean answers (B,).
        num_members: Members so far.
        temperature: The logarithm of the mean is divided by it first; the answer stays the same.

    Raises:
        SuperWeightError: An unknown name.

    Example:
        >>> mean = torch.tensor([[0.7, 0.2, 0.1]])
        >>> round(float(confidence_of("margin", mean, torch.tensor([1]), 1)), 4)
        0.5
    """
    if name not in CONFIDENCES:
        raise unknown_name("confidence", name, CONFIDENCES)
    return CONFIDENCES[name](tempered(mean, temperature), votes, num_members)


def tempered(probabilities: Tensor, temperature: float) -> Tensor:
    """Probabilities (B, K) at another temperature: softmax(log p / T)."""
    if temperature == 1:
        return probabilities
    return (probabilities.clamp_min(_TINY).log() / temperature).softmax(1)


def fit_temperature(probabilities: Tensor, labels: Tensor) -> float:
    """The temperature, 0.05 to 20, at which probabilities (N, K) give labels (N,) the highest likelihood.

    Source: Guo et al., *On Calibration of Modern Neural Networks*, ICML 2017
    """
    logarithms = probabilities.double().clamp_min(_TINY).log()

    def loss(log_temperature: float) -> float:
        return float(torch.nn.functional.cross_entropy(logarithms / math.exp(log_temperature), labels))

    found = minimize_scalar(loss, bounds=_LOG_TEMPERATURES, method="bounded")
    return float(math.exp(found.x))
