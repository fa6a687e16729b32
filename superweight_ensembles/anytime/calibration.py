"""Order and thresholds from held-out samples. Pure functions of tables. Shapes: M members and exits, N samples,
K classes.

One number, q, decides which fraction of the samples leaves at which exit: exit e gets a share in proportion to q ** e,
and the samples that it is surest of leave there. On held-out data the q that meets a target is found, for a cost by
bisection, for an accuracy on a grid; the thresholds are the confidences at these cuts. Source of the geometric shares:
Huang et al., *Multi-Scale Dense Networks for Resource Efficient Image Classification*, ICLR 2018, section 5.2. Measured
(four WideResNets on CIFAR-10 at 16 x 16, 2,000 samples to fit, 13,000 to test, six draws): one common threshold for all
exits is 0.7 points less accurate at a third of the FLOPs; a stopping index from isotonic regressions of the gain is no
better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

import torch
from pydantic import AliasChoices, Field
from torch import Tensor, nn

from superweight_ensembles.anytime.evaluation import answered_batches, check_table
from superweight_ensembles.anytime.policy import (
    ExitPolicy,
    RunningMean,
    exits_of,
    fit_temperature,
    fit_weights,
    running_means,
)
from superweight_ensembles.data import Inputs
from superweight_ensembles.ensemble import Task
from superweight_ensembles.errors import SuperWeightError

if TYPE_CHECKING:
    from typing_extensions import Unpack

MIN_SAMPLES = 100
_ROUNDING = 1e-9
_LOG_RATES = (math.log(1e-6), math.log(1e6))
_GRID_STEPS = 100
# The key in files, and the key in older files.
OVERTHINKING_KEYS: Any = Field(default={}, validation_alias=AliasChoices("overthinking", "worsening"))


@dataclass(frozen=True, slots=True, kw_only=True)
class CascadeResult:
    """Exits and predictions of a cascade that was simulated on a table."""

    exits: Tensor  # (N,), from 0
    predictions: Tensor  # (N, K), with which samples leave
    confidence: Tensor  # (N,), of those predictions

    def mean_cost(self, costs: Sequence[float]) -> float:
        """Mean over the samples of the summed cost of the members that each ran."""
        return _mean_cost(self.exits, costs)

    def accuracy(self, labels: Tensor) -> float:
        return _accuracy(self.predictions, labels)


def simulate(probabilities: Tensor, policy: ExitPolicy) -> CascadeResult:
    """Exits and predictions of samples under a policy, from the softmax (M, N, K) of all members in its order.

    Example:
        >>> policy = ExitPolicy(order=("a", "b"), temperatures=(1.0, 1.0), thresholds=(0.5,))
        >>> softmax = torch.tensor([[[0.9, 0.1], [0.6, 0.4]], [[0.2, 0.8], [0.2, 0.8]]])
        >>> simulate(softmax, policy).exits, simulate(softmax, policy).predictions.argmax(1)
        (tensor([0, 1]), tensor([0, 1]))
    """
    predictions, confidence = exits_of(probabilities, policy)
    exits = _exits_at(confidence, policy.thresholds)
    rows = torch.arange(len(exits), device=exits.device)
    return CascadeResult(exits=exits, predictions=predictions[exits, rows], confidence=confidence[exits, rows])


def _exits_at(confidence: Tensor, thresholds: Sequence[float]) -> Tensor:
    """The exit of each sample (N,), by its confidences (M, N)."""
    limits = torch.tensor([*thresholds, -math.inf], dtype=confidence.dtype, device=confidence.device)
    leaves = confidence >= limits[:, None]
    leaves[-1] = True  # also with a confidence of NaN, which reaches no threshold
    return leaves.to(torch.uint8).argmax(0)


def _mean_cost(exits: Tensor, costs: Sequence[float]) -> float:
    return float(torch.tensor(costs, dtype=torch.float64, device=exits.device).cumsum(0)[exits].mean())


def _accuracy(predictions: Tensor, labels: Tensor) -> float:
    return float((predictions.argmax(1) == labels).double().mean())


def order_greedily(
    names: Sequence[str],
    probabilities: Tensor,
    labels: Tensor,
    flops: Mapping[str, int],
    version_of: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """Names, each the one that adds most accuracy a FLOP to the mean softmax of those before; softmax is (M, N, K)."""
    check_table(names, probabilities, labels)
    network = {name: (version_of or {}).get(name, name) for name in names}
    left = {name: probabilities[index] for index, name in enumerate(names)}
    nothing = probabilities.new_zeros(probabilities.shape[1:])
    total, accuracy = nothing, 1 / probabilities.shape[2]  # chance
    held: dict[str, Tensor] = {}
    order: list[str] = []
    while left:
        totals = {name: total - held.get(network[name], nothing) + own for name, own in left.items()}
        gains = {name: _accuracy(added, labels) - accuracy for name, added in totals.items()}
        # A loss of accuracy is not divided by FLOPs: else the costliest member would be the least bad.
        best = max(gains, key=lambda name: gains[name] / max(flops[name], 1) if gains[name] > 0 else gains[name])
        order.append(best)
        total, accuracy = totals[best], accuracy + gains[best]
        held[network[best]] = left[best]
        # A dearer version replaces a cheaper one of its network, so a cheaper one is useless after it.
        left = {
            name: own
            for name, own in left.items()
            if name != best and (network[name] != network[best] or flops[name] > flops[best])
        }
    return tuple(order)


class FitOptions(TypedDict, total=False):
    """How a policy is fitted: ``confidence``, ``temperature``, ``monotone`` and ``weights`` of :class:`ExitFit`."""

    confidence: str
    temperature: bool
    monotone: bool
    weights: Literal["equal", "fitted"]


def fit_policy(
    probabilities: Tensor,
    labels: Tensor,
    costs: Sequence[float],
    order: tuple[str, ...],
    target: tuple[str, float],
    *,
    replaces: tuple[int | None, ...] = (),
    **options: Unpack[FitOptions],
) -> ExitPolicy:
    """The policy that meets a target on held-out samples: :class:`ExitFit`, and its :meth:`~ThresholdFit.policy`."""
    return ExitFit(probabilities, labels, order, replaces=replaces, **options).policy(costs, target)


class ThresholdFit:
    """Thresholds for any target, from the confidence of every exit (M, N) and how right it is (M, N), 0 to 1."""

    def __init__(self, confidences: Tensor, right: Tensor, full_accuracy: float, never_exit: ExitPolicy) -> None:
        self._confidences, self._right = confidences, right.double()
        self._full_accuracy, self._never_exit = full_accuracy, never_exit

    def policy(self, costs: Sequence[float], target: tuple[str, float]) -> ExitPolicy:
        """The policy that meets ``("cost", mean)``, or the cheapest that meets ``("max_accuracy_drop", fraction)``."""
        never_exit = self._never_exit
        what, amount = target
        if what == "cost":  # in the unit of ``costs``, which has each member's own
            low, high = costs[0], sum(costs)
            if not low * (1 - _ROUNDING) <= amount <= high * (1 + _ROUNDING):
                raise SuperWeightError(
                    f"a mean cost must lie between the first member's and all members', {low:.4g} to {high:.4g} "
                    f"({low / high:.3g} to 1 of all); got {amount:.4g}"
                )
            if amount >= high:
                return never_exit
            rate = _largest_log_rate(lambda rate: _mean_cost(self._exits(self._thresholds_at(rate)), costs) <= amount)
            return replace(never_exit, thresholds=self._thresholds_at(rate))
        low, high = _LOG_RATES
        grid = [low, *(low / 4 + step * (high - low) / 4 / _GRID_STEPS for step in range(_GRID_STEPS + 1))]
        for thresholds in (*map(self._thresholds_at, grid), never_exit.thresholds):  # from the cheapest up
            if self._accuracy_at(thresholds) >= self._full_accuracy - amount:
                return replace(never_exit, thresholds=thresholds)  # accuracy need not rise with every step
        least = self._full_accuracy - self._accuracy_at(never_exit.thresholds)
        raise SuperWeightError(
            f"monotone predictions of all members are {least:.4f} less accurate than their mean; "
            f"allow as much (max_accuracy_drop={amount:g}), or leave monotone=True out"
        )

    def _thresholds_at(self, log_rate: float) -> tuple[float, ...]:
        return thresholds_for(self._confidences, exit_shares(len(self._confidences), math.exp(log_rate)))

    def _exits(self, thresholds: tuple[float, ...]) -> Tensor:
        return _exits_at(self._confidences, thresholds)

    def _accuracy_at(self, thresholds: tuple[float, ...]) -> float:
        return float(self._right.gather(0, self._exits(thresholds)[None]).mean())

    def described(self, policy: ExitPolicy, flops: Sequence[int], target: tuple[str, float]) -> Calibration:
        """Effect of a policy that was fitted here, on the same samples."""
        exits = self._exits(policy.thresholds)
        counts = torch.bincount(exits, minlength=len(flops)).double() / len(exits)
        return Calibration(
            num_samples=len(exits),
            target=target,
            accuracy=self._accuracy_at(policy.thresholds),
            full_accuracy=self._full_accuracy,
            flops=_mean_cost(exits, [float(value) for value in flops]),
            full_flops=sum(flops),
            exits=tuple(counts.tolist()),
            overthinking={},
        )


class ExitFit(ThresholdFit):
    """Answers of every exit on held-out samples: weights and temperatures fitted once, thresholds for any target."""

    def __init__(
        self,
        probabilities: Tensor,  # softmax (M, N, K) of the members in ``order``
        labels: Tensor,  # (N,)
        order: tuple[str, ...],
        *,
        confidence: str = "margin",
        temperature: bool = True,
        monotone: bool = False,
        replaces: tuple[int | None, ...] = (),
        weights: Literal["equal", "fitted"] = "equal",
    ) -> None:
        check_table(order, probabilities, labels)
        rows = fit_weights(probabilities, labels, replaces) if weights == "fitted" else ()
        means = running_means(probabilities, replaces, rows)
        never_exit = ExitPolicy(
            order=order, confidence=confidence, monotone=monotone, replaces=replaces, weights=rows,
            temperatures=tuple(fit_temperature(mean, labels) if temperature else 1.0 for mean in means),
            thresholds=(math.inf,) * (len(order) - 1),
        )  # fmt: skip
        predictions, confidences = exits_of(probabilities, never_exit)  # the same at all thresholds
        self._predictions, self._labels = predictions, labels
        right = predictions.argmax(2) == labels
        super().__init__(confidences, right, _accuracy(means[-1], labels), never_exit)

    def described(self, policy: ExitPolicy, flops: Sequence[int], target: tuple[str, float]) -> Calibration:
        """Effect of a policy that was fitted here, on the same samples, overthinking included."""
        found = super().described(policy, flops, target)
        return replace(found, overthinking=overthinking(self._predictions, self._labels))


@torch.no_grad()
def tabulate_exits(
    modules: Mapping[str, nn.Module],
    loader: Iterable[object],
    task: Task,
    policy: ExitPolicy,  # in the order of ``modules``; its thresholds are not read
    like: Tensor,
    check_inputs: Callable[[Inputs], None],
) -> ThresholdFit:
    """Confidence and rightness of every exit where predictions are maps or sets of labels, too many for a table."""
    confidences, rights, whole = [], [], []
    for _, _, truth, answers in answered_batches(modules, loader, like, task, check_inputs):
        running = RunningMean(policy.replaces)
        exits = []
        for answer in answers.values():
            running.add(task.predicted(answer))
            prediction, confidence = running.at_exit(policy)
            exits.append((confidence.cpu(), task.right(prediction, truth).cpu()))
        confidences.append(torch.stack([confidence for confidence, _ in exits]))
        rights.append(torch.stack([right for _, right in exits]))
        whole.append(task.right(running.mean, truth).cpu())
    count = sum(map(len, whole))
    check_enough(count)
    table = torch.cat(confidences, 1)
    if bool(table.isnan().any()):
        raise SuperWeightError("members answer NaN: the inputs, or the members' weights, are not finite")
    return ThresholdFit(table, torch.cat(rights, 1), float(torch.cat(whole).mean()), policy)


def check_enough(num_samples: int) -> None:
    """Refuse fewer held-out samples than thresholds can be fitted on."""
    if num_samples < MIN_SAMPLES:
        raise SuperWeightError(f"calibration needs at least {MIN_SAMPLES} held-out samples; got {num_samples}")


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
    """The thresholds at which these shares of the samples leave, from confidences (M, N)."""
    count = confidence.shape[1]
    left = torch.ones(count, dtype=torch.bool, device=confidence.device)
    thresholds = []
    for sure, share in zip(confidence[:-1], shares):
        values = sure[left].sort(descending=True).values
        leaving = min(round(share * count), len(values))
        if leaving == len(values):  # all leave: in other data all will too, however unsure
            thresholds.append(0.0)
        elif leaving:  # half-way to the next confidence, so that no sample has the threshold itself
            thresholds.append(float(values[leaving - 1].double() + values[leaving].double()) / 2)
        else:
            thresholds.append(math.inf)
        left &= ~(sure >= thresholds[-1])
    return tuple(thresholds)


def samples_per_member(count: int, flops: Sequence[int], budget: float) -> tuple[int, ...]:
    """How many of a batch's samples run each member within a budget: all run the first, ever fewer the next ones.

    Example:
        >>> samples_per_member(10, [1, 4], 30)
        (10, 5)
        >>> samples_per_member(10, [1, 4], 50)
        (10, 10)
    """
    least = count * flops[0]
    if budget < least:
        raise SuperWeightError(
            f"a budget of {budget:,.0f} FLOPs is too small for {count} images: the first member alone needs {least:,}"
        )

    def numbers_at(log_rate: float) -> list[int]:
        shares = exit_shares(len(flops), math.exp(log_rate))
        return [count, *(math.floor(count * sum(shares[index:]) + 1e-9) for index in range(1, len(flops)))]

    def spent(numbers: Sequence[int]) -> int:
        return sum(number * cost for number, cost in zip(numbers, flops))

    numbers = numbers_at(_largest_log_rate(lambda rate: spent(numbers_at(rate)) <= budget))
    rest = budget - spent(numbers)
    for index in range(1, len(flops)):  # FLOPs left over by rounding let more samples go on, to earlier members first
        more = min(numbers[index - 1] - numbers[index], int(rest // flops[index])) if flops[index] else 0
        numbers[index] += more
        rest -= more * flops[index]
    return tuple(numbers)


def _largest_log_rate(holds: Callable[[float], bool]) -> float:
    """The logarithm of the largest rate for which a condition holds, by bisection; it holds at the smallest."""
    low, high = _LOG_RATES
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Effect of a policy on the samples that it was fitted on.

    Attributes:
        num_samples: Number of held-out samples.
        target: Target that was asked for, ``flops``, ``latency_ms`` or ``max_accuracy_drop``, and its amount.
        accuracy: Accuracy of the cascade.
        full_accuracy: Accuracy of all members.
        flops: Mean FLOPs of an image, in the cascade.
        full_flops: FLOPs of an image, of all members.
        exits: Fraction of the samples that leaves at each exit.
        overthinking: How often more compute takes a right answer away. ``right_to_wrong``: fraction of the samples that
            some exit answers right and a later one wrong; ``probability_drop``: mean over the samples of the largest
            fall of the true class's probability from an exit to a later one; ``accuracy_drop``: the largest fall of the
            accuracy from an exit to a later one. Empty for tasks of several answers a row.
    """

    num_samples: int
    target: tuple[str, float]
    accuracy: float
    full_accuracy: float
    flops: float
    full_flops: int
    exits: tuple[float, ...]
    overthinking: Annotated[dict[str, float], OVERTHINKING_KEYS]


def overthinking(predictions: Tensor, labels: Tensor) -> dict[str, float]:
    """How predictions (M, N, K) after each member get worse for labels (N,): see :class:`Calibration`.

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
