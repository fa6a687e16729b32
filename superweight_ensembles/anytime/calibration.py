"""Thresholds from held-out samples. Pure functions of tables. Shapes: M members and exits, N samples, K classes.

Which fraction leaves at which exit is one number, q: exit e gets a share in proportion to q ** e, and lets the samples
go that it is surest of. On held-out data the q that meets a target is found by bisection, and the thresholds are the
confidences that cut there. Source of the geometric shares: Huang et al., *Multi-Scale Dense Networks for Resource
Efficient Image Classification*, ICLR 2018, section 5.2. Measured (four WideResNets on CIFAR-10 at 16 x 16, 2,000
samples to fit, 13,000 to test, six draws): one common threshold for all exits gives 0.7 points less at a third of the
FLOPs, a stopping index from isotonic regressions of the gain nothing more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import AliasChoices, Field
from torch import Tensor

from superweight_ensembles.anytime.policy import ExitPolicy, exits_of, fit_temperature, means_of
from superweight_ensembles.errors import SuperWeightError

MIN_SAMPLES = 100
_ROUNDING = 1e-9
_LOG_RATES = (math.log(1e-6), math.log(1e6))
OVERTHINKING_KEYS: Any = Field(
    default={}, validation_alias=AliasChoices("overthinking", "worsening")
)  # older files' name


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What a policy does to the samples that it was fitted on.

    Attributes:
        num_samples: Held-out samples.
        target: What was asked for: ``flops``, ``latency_ms`` or ``max_accuracy_drop``, and how much.
        accuracy: Of the cascade.
        full_accuracy: Of all members.
        flops: Mean of an image, in the cascade.
        full_flops: Of all members.
        exits: Fraction of the samples that leaves at each exit.
        overthinking: How often more compute takes a right answer away: see :func:`overthinking`.
    """

    num_samples: int
    target: tuple[str, float]
    accuracy: float
    full_accuracy: float
    flops: float
    full_flops: int
    exits: tuple[float, ...]
    overthinking: Annotated[dict[str, float], OVERTHINKING_KEYS]


@dataclass(frozen=True, slots=True, kw_only=True)
class CascadeResult:
    """A cascade played on a table.

    Attributes:
        exits: The exit of each sample (N,), from 0.
        predictions: What it leaves with (N, K).
        confidence: How sure that is (N,).
    """

    exits: Tensor
    predictions: Tensor
    confidence: Tensor

    def mean_cost(self, costs: Sequence[float]) -> float:
        """Mean over the samples of what the members that they ran cost."""
        return float(torch.tensor(costs, dtype=torch.float64).cumsum(0)[self.exits].mean())

    def accuracy(self, labels: Tensor) -> float:
        return float((self.predictions.argmax(1) == labels).double().mean())


def simulate(probabilities: Tensor, policy: ExitPolicy) -> CascadeResult:
    """What a policy does with the softmax (M, N, K) of all members in its order.

    Example:
        >>> policy = ExitPolicy(order=("a", "b"), temperatures=(1.0, 1.0), thresholds=(0.5,))
        >>> softmax = torch.tensor([[[0.9, 0.1], [0.6, 0.4]], [[0.2, 0.8], [0.2, 0.8]]])
        >>> simulate(softmax, policy).exits, simulate(softmax, policy).predictions.argmax(1)
        (tensor([0, 1]), tensor([0, 1]))
    """
    return _outcome(*exits_under(probabilities, policy), policy.thresholds)


def exits_under(probabilities: Tensor, policy: ExitPolicy) -> tuple[Tensor, Tensor]:
    """The prediction (M, N, K) and its confidence (M, N) at every exit of a policy, whatever its thresholds are."""
    return exits_of(probabilities, policy.confidence, policy.temperatures, policy.monotone, policy.replaces)


def _outcome(predictions: Tensor, sure: Tensor, thresholds: Sequence[float]) -> CascadeResult:
    limits = torch.tensor([*thresholds, -math.inf], dtype=sure.dtype, device=sure.device)
    leaves = (sure >= limits[:, None]).to(torch.uint8).argmax(0)
    rows = torch.arange(len(leaves), device=leaves.device)
    return CascadeResult(exits=leaves, predictions=predictions[leaves, rows], confidence=sure[leaves, rows])


def fit_policy(
    probabilities: Tensor,
    labels: Tensor,
    costs: Sequence[float],
    order: tuple[str, ...],
    target: tuple[str, float],
    *,
    confidence: str = "margin",
    temperature: bool = True,
    monotone: bool = False,
    replaces: tuple[int | None, ...] = (),
) -> ExitPolicy:
    """The policy that meets a target on held-out samples.

    Args:
        probabilities: Softmax (M, N, K) of the members in ``order``.
        labels: (N,).
        costs: Of each member alone, in the unit of the target.
        order: Names.
        target: ``("cost", mean cost of a sample)``, or ``("max_accuracy_drop", fraction)``: the cheapest policy that
            stays within that of all members.
        confidence: A name of :data:`CONFIDENCES`.
        temperature: Whether each exit's temperature is fitted too.
        monotone: Whether an earlier, surer prediction stands.
        replaces: As :class:`ExitPolicy` has it.

    Raises:
        SuperWeightError: A mean cost below the first member's or above all members'; an accuracy that ``monotone``
            predictions do not reach; members that answer NaN.
    """
    if not bool(probabilities.isfinite().all()):
        broken = [name for name, own in zip(order, probabilities) if not bool(own.isfinite().all())]
        raise SuperWeightError(f"members {', '.join(broken)} answer NaN on held-out samples: check images and training")
    running_means = means_of(probabilities, replaces)
    temperatures = tuple(fit_temperature(mean, labels) if temperature else 1.0 for mean in running_means)
    shape = {
        "order": order, "confidence": confidence, "temperatures": temperatures, "monotone": monotone,
        "replaces": replaces,
    }  # fmt: skip
    # What the exits answer, and how sure they are, is the same at all thresholds.
    predictions, sure = exits_of(probabilities, confidence, temperatures, monotone, replaces)

    def played(policy: ExitPolicy) -> CascadeResult:
        return _outcome(predictions, sure, policy.thresholds)

    def policy_at(log_rate: float) -> ExitPolicy:
        return ExitPolicy(**shape, thresholds=thresholds_for(sure, exit_shares(len(order), math.exp(log_rate))))  # type: ignore[arg-type]

    none_leaves = ExitPolicy(**shape, thresholds=(math.inf,) * (len(order) - 1))  # type: ignore[arg-type]
    what, amount = target
    if what == "cost":
        low, high = costs[0], sum(costs)
        if not low * (1 - _ROUNDING) <= amount <= high * (1 + _ROUNDING):
            raise SuperWeightError(
                f"a mean cost must lie between the first member's and all members', {low:.4g} to {high:.4g} "
                f"({low / high:.3g} to 1 of all); got {amount:.4g}"
            )
        if amount >= high:
            return none_leaves
        return policy_at(_bisect(lambda rate: played(policy_at(rate)).mean_cost(costs) <= amount))
    full = _full_accuracy(probabilities, labels, replaces)
    grid = [_LOG_RATES[0] / 4 + step * (_LOG_RATES[1] - _LOG_RATES[0]) / 4 / 100 for step in range(101)]
    for policy in (*map(policy_at, (_LOG_RATES[0], *grid)), none_leaves):  # from the cheapest up
        if played(policy).accuracy(labels) >= full - amount:  # need not rise with every step
            return policy
    least = full - played(none_leaves).accuracy(labels)
    raise SuperWeightError(
        f"monotone predictions of all members are {least:.4f} less accurate than their mean; "
        f"allow as much (max_accuracy_drop={amount:g}), or leave monotone=True out"
    )


def exit_shares(exits: int, rate: float) -> list[float]:
    """Fractions that leave at each exit, in proportion to rate ** exit.

    Example:
        >>> exit_shares(3, 0.5)
        [0.5714285714285714, 0.2857142857142857, 0.14285714285714285]
    """
    logs = [index * math.log(rate) for index in range(exits)]
    weights = [math.exp(value - max(logs)) for value in logs]
    return [weight / sum(weights) for weight in weights]


def thresholds_for(confidence: Tensor, shares: Sequence[float]) -> tuple[float, ...]:
    """The thresholds at which such fractions of the samples leave, of confidences (M, N)."""
    count = confidence.shape[1]
    left = torch.ones(count, dtype=torch.bool, device=confidence.device)
    thresholds = []
    for sure, share in zip(confidence[:-1], shares):
        values = sure[left].sort(descending=True).values
        leaving = min(round(share * count), len(values))
        if leaving == len(values):  # all leave: so do those of other data, however unsure
            thresholds.append(0.0)
        elif leaving:  # half-way to the next, so that no sample stands on the threshold itself
            thresholds.append(float(values[leaving - 1].double() + values[leaving].double()) / 2)
        else:
            thresholds.append(math.inf)
        left &= sure < thresholds[-1]
    return tuple(thresholds)


def overthinking(predictions: Tensor, labels: Tensor) -> dict[str, float]:
    """How predictions (M, N, K) after each member get worse for labels (N,).

    Returns:
        ``right_to_wrong``: samples that some exit answers right and a later one wrong, of all; ``probability_drop``:
        mean over the samples of the largest fall of the true class's probability from an exit to a later one;
        ``accuracy_drop``: the largest fall of the accuracy from an exit to a later one.

    Source: conditional monotonicity, Jazbec et al., *Towards Anytime Classification in Early-Exit Architectures by
    Enforcing Conditional Monotonicity*, NeurIPS 2023
    """
    right = predictions.argmax(2) == labels
    lost = ((right.byte().cummax(0).values == 1) & ~right).any(0)
    true = predictions.gather(2, labels.expand(len(predictions), -1)[..., None])[..., 0]
    drop = (true.cummax(0).values - true).amax(0)
    accuracy = right.double().mean(1)
    return {
        "right_to_wrong": float(lost.double().mean()),
        "probability_drop": float(drop.double().mean()),
        "accuracy_drop": float((accuracy.cummax(0).values - accuracy).max()),
    }


def check_samples(labels: Tensor) -> None:
    """Refuse held-out data that say little.

    Raises:
        SuperWeightError: Fewer than 100 samples.
    """
    if len(labels) < MIN_SAMPLES:
        raise SuperWeightError(f"calibration needs at least {MIN_SAMPLES} held-out samples; got {len(labels)}")


def describe(
    probabilities: Tensor, labels: Tensor, policy: ExitPolicy, flops: Sequence[int], target: tuple[str, float]
) -> Calibration:
    """What a policy does to the samples that it was fitted on."""
    predictions, sure = exits_under(probabilities, policy)
    outcome = _outcome(predictions, sure, policy.thresholds)
    counts = torch.bincount(outcome.exits, minlength=len(flops)).double() / len(labels)
    return Calibration(
        num_samples=len(labels),
        target=target,
        accuracy=outcome.accuracy(labels),
        full_accuracy=_full_accuracy(probabilities, labels, policy.replaces),
        flops=outcome.mean_cost([float(value) for value in flops]),
        full_flops=sum(flops),
        exits=tuple(counts.tolist()),
        overthinking=overthinking(predictions, labels),
    )


def _full_accuracy(probabilities: Tensor, labels: Tensor, replaces: tuple[int | None, ...]) -> float:
    """Of the mean of all members, added up as the cascade does."""
    means = means_of(probabilities, replaces)
    return float((means[-1].argmax(1) == labels).double().mean())


def _bisect(holds: Callable[[float], Any]) -> float:
    """The largest rate, as its logarithm, for which a condition holds that does so at the smallest."""
    low, high = _LOG_RATES
    for _ in range(50):
        middle = (low + high) / 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return low
