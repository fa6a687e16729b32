"""Accuracy against cost: of stream and cascade, in FLOPs and on the clock. Shapes: M members, N samples, K classes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
from pydantic import Field, PlainValidator
from torch import Tensor

from superweight_ensembles.anytime.calibration import (
    OVERTHINKING_KEYS,
    Calibration,
    ExitFit,
    FitOptions,
    order_greedily,
    overthinking,
    simulate,
)
from superweight_ensembles.anytime.costs import check_count, now
from superweight_ensembles.anytime.evaluation import Metrics, Predictions, first_images, probability_metrics
from superweight_ensembles.anytime.policy import ExitPolicy, exits_of, replaced_exits, running_means, tempered
from superweight_ensembles.anytime.predictor import TARGETS, AnytimePredictor, Loader
from superweight_ensembles.errors import SuperWeightError, unknown_name
from superweight_ensembles.storage import Count, Name, Positive, Share

if TYPE_CHECKING:
    from typing_extensions import Unpack

_ROUNDS = 3
_ORDER_POINTS = 6  # points of the cascade's curve by which an order is chosen
_Flops = Annotated[int, Field(gt=0, lt=2**53)]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberPoint:
    """A member alone, on test data, its time in batches."""

    name: Name
    flops: _Flops  # an image
    latency_ms: Positive  # an image
    accuracy: Share
    nll: float  # in nats


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitPoint:
    """A member or a truncation of one, alone, on test data."""

    name: Name
    flops: _Flops
    accuracy: Share


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """One way to run the members, in means over the images of test data."""

    flops: Positive
    latency_ms: Positive  # on the clock, in batches
    members_used: float
    accuracy: Share
    nll: float  # in nats


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Points from cheap to dear, on test data."""

    name: Literal["stream", "cascade"]  # a point a member; a point a budget, thresholds fitted on validation data
    points: Annotated[tuple[CurvePoint, ...], Field(min_length=1, max_length=10_000)]
    area: float  # see log_area
    latency_area: float  # the same over time instead of FLOPs


@dataclass(frozen=True, slots=True, kw_only=True)
class AnytimeResult:
    """Curves of a predictor on test data, and its policy: see :func:`measure_curves`."""

    order: tuple[Name, ...]
    batch_size: Count  # for the clock
    timed_images: Count
    members: Annotated[tuple[MemberPoint, ...], Field(min_length=1, max_length=256)]  # each alone
    curves: Annotated[tuple[Curve, ...], Field(max_length=100)]
    policy: Annotated[ExitPolicy, PlainValidator(ExitPolicy.from_dict)]
    calibration: Calibration
    calibrated: CurvePoint  # of the policy, on test data
    overthinking: Annotated[dict[str, dict[str, float]], OVERTHINKING_KEYS]  # of stream, policy and calibration
    tempered: Metrics | None = None  # of all members, at the temperature of the last exit; None in older files
    truncated: AnytimeResult | None = None  # with members' truncations; ``exits`` has each alone
    exits: Annotated[tuple[ExitPoint, ...], Field(max_length=4096)] | None = None

    def __post_init__(self) -> None:
        if not {"stream", "cascade"} <= {curve.name for curve in self.curves}:
            raise SuperWeightError("needs the curves stream and cascade")

    def curve(self, name: Literal["stream", "cascade"]) -> Curve:
        return next(curve for curve in self.curves if curve.name == name)


def measure_curves(
    predictor: AnytimePredictor,  # keeps the policy for ``target``
    calibration: Loader | Predictions,
    test: Loader,
    *,
    tested: Predictions | None = None,  # on ``test``
    target: tuple[str, float] = ("flops", 0.5),  # keyword of AnytimePredictor.calibrate, and its value
    num_points: int = 8,  # of the cascade's curve
    batch_size: int = 64,  # for the clock
    timed_images: int = 512,  # of ``test``, the first ones
    **options: Unpack[FitOptions],
) -> AnytimeResult:
    """Curves of a predictor's stream and cascade on test data, every threshold fitted on other data."""
    counts = {"num_points": num_points, "batch_size": batch_size, "timed_images": timed_images}
    for what, count in counts.items():
        check_count(what, count)
    if target[0] not in TARGETS:
        raise unknown_name("target", target[0], TARGETS)
    if tested is None and isinstance(test, Iterator):
        raise SuperWeightError("test is read twice, and an iterator can be read once: give a list or a DataLoader")
    held = predictor.predict(calibration)
    for name, cost in predictor.flops.items():
        if not cost:
            raise SuperWeightError(f"member {name!r} counts no FLOPs: it has no place on a curve over them")
    found = predictor.calibrate(held, **{target[0]: target[1]}, **options, batch_size=batch_size)
    chosen = predictor.policy
    assert chosen is not None
    answered = predictor.predict(test if tested is None else tested)
    probabilities, labels = answered.of(predictor.order), answered.labels
    flops = list(predictor.flops.values())
    costs = list(map(float, flops))
    fit = ExitFit(held.of(predictor.order), held.labels, predictor.order, replaces=predictor.replaces, **options)
    policies = [fit.policy(costs, ("cost", amount)) for amount in costs_between(costs[0], sum(costs), num_points)]
    timed = first_images(test, timed_images).to(predictor.device)
    batches = timed[: max(1, len(timed) // batch_size) * batch_size].split(batch_size)  # full ones, where there are any
    stream_ms, cascade_ms, alone_ms = _clock(predictor, [*policies, chosen], batches)
    predictor.set_policy(chosen)
    outcomes = [simulate(probabilities, policy) for policy in (*policies, chosen)]
    cascade = [
        CurvePoint(
            flops=outcome.mean_cost(costs),
            latency_ms=latency,
            members_used=float(outcome.exits.double().mean()) + 1,
            **_quality(outcome.predictions, labels),
        )
        for outcome, latency in zip(outcomes, cascade_ms)
    ]
    means = running_means(probabilities, predictor.replaces, chosen.weights)
    stream = [
        CurvePoint(
            flops=float(sum(flops[: index + 1])), latency_ms=stream_ms[index], members_used=index + 1,
            **_quality(mean, labels),
        )
        for index, mean in enumerate(means)
    ]  # fmt: skip
    chance = 1 / probabilities.shape[2]
    predictions, _ = exits_of(probabilities, chosen)
    singles = tuple(
        MemberPoint(name=name, flops=cost, latency_ms=latency, **_quality(own, labels))
        for name, cost, latency, own in zip(predictor.order, flops, alone_ms, probabilities)
    )
    return AnytimeResult(
        order=predictor.order,
        batch_size=batch_size,
        timed_images=sum(len(images) for images in batches),
        members=singles,
        curves=(_curve("stream", stream, chance), _curve("cascade", cascade[:-1], chance)),
        policy=chosen,
        calibration=found,
        calibrated=cascade[-1],
        tempered=probability_metrics(tempered(means[-1], chosen.temperatures[-1]), labels),
        overthinking={
            "stream": overthinking(means, labels),
            "policy": overthinking(predictions, labels),
            "calibration": found.overthinking,
        },
    )


def _curve(name: Literal["stream", "cascade"], points: Sequence[CurvePoint], chance: float) -> Curve:
    def area(what: Literal["flops", "latency_ms"]) -> float:
        pairs = [(getattr(point, what), point.accuracy) for point in points]
        low, high = min(pairs)[0], max(pairs)[0]
        if low == high:
            return points[-1].accuracy
        return log_area(pairs, low, high, before=chance, steps=name == "stream")

    return Curve(name=name, points=tuple(points), area=area("flops"), latency_area=area("latency_ms"))


def _quality(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    metrics = probability_metrics(probabilities, labels)
    return {"accuracy": metrics.accuracy, "nll": metrics.nll}


def costs_between(low: float, high: float, count: int) -> list[float]:
    """Costs from the lowest to the highest, even in their logarithm."""
    if low == high:
        return [high]
    inner = [low * (high / low) ** (index / (count - 1)) for index in range(1, count - 1)]
    return [low, *inner, high]


@torch.no_grad()
def _clock(
    predictor: AnytimePredictor, policies: Sequence[ExitPolicy], batches: Sequence[Tensor]
) -> tuple[list[float], list[float], list[float]]:
    """Milliseconds an image: after each member of the stream, of each policy, of each member alone."""
    count, exits = sum(len(images) for images in batches), len(predictor.order)
    rounds: list[list[float]] = []  # seconds of all batches: of the stream's exits, the policies, the members alone
    for module in predictor.modules.values():
        module(batches[0])
    for _ in range(_ROUNDS):
        spent = [0.0] * exits
        for images in batches:
            start = now(images)
            for index, _step in enumerate(predictor.stream(images)):
                spent[index] += now(images) - start
        for policy in policies:
            predictor.set_policy(policy)
            spent.append(sum(predictor(images).latency_ms for images in batches) / 1e3)
        for module in predictor.modules.values():
            start = now(batches[0])
            for images in batches:
                module(images)
            spent.append(now(batches[0]) - start)
        rounds.append(spent)
    medians = [1e3 * statistics.median(values) / count for values in zip(*rounds)]
    return medians[:exits], medians[exits:-exits], medians[-exits:]


def log_area(points: Sequence[tuple[float, float]], low: float, high: float, *, before: float, steps: bool) -> float:
    """Mean accuracy over the logarithm of the cost from ``low`` to ``high``: one number for a curve.

    Example:
        >>> log_area([(1, 0.5), (10, 0.7)], 1, 100, before=0.1, steps=True)
        0.6
        >>> log_area([(1, 0.5), (100, 0.7)], 1, 100, before=0.1, steps=False)
        0.6
    """
    if not points or not 0 < low < high:
        raise SuperWeightError(f"an area needs points and a range of costs; got {len(points)} points, {low} to {high}")
    ordered = sorted(points)
    costs, accuracies = zip(*ordered)
    total = 0.0
    for left, right in pairwise(sorted({low, high, *(cost for cost in costs if low < cost < high)})):
        if steps or right <= costs[0]:  # of two points the cheaper one holds: nothing else can be had between them
            mean = next((accuracy for cost, accuracy in reversed(ordered) if cost <= left), before)
        else:
            mean = float(np.interp(np.log([left, right]), np.log(costs), accuracies).mean())
        total += mean * math.log(right / left)
    return round(total / math.log(high / low), 12)


def order_exits(
    names: Sequence[str],
    version_of: Mapping[str, str],
    probabilities: Tensor,
    labels: Tensor,
    flops: Mapping[str, int],
    **options: Unpack[FitOptions],
) -> tuple[str, ...]:
    """The order of exits whose cascade, on held-out softmax (M, N, K), has the largest area over all costs."""
    rows = dict(zip(names, probabilities))
    low, high = min(flops.values()), sum(flops[name] for name in names if name not in version_of)

    def area(order: tuple[str, ...]) -> float:
        table, costs = torch.stack([rows[name] for name in order]), [float(flops[name]) for name in order]
        fit = ExitFit(table, labels, order, replaces=replaced_exits(order, version_of), **options)
        points = []
        for cost in costs_between(costs[0], sum(costs), _ORDER_POINTS):
            outcome = simulate(table, fit.policy(costs, ("cost", cost)))
            points.append((outcome.mean_cost(costs), outcome.accuracy(labels)))
        return log_area(points, low, high, before=1 / probabilities.shape[2], steps=False)

    def greedy(some: Sequence[str]) -> tuple[str, ...]:
        return order_greedily(some, torch.stack([rows[name] for name in some]), labels, flops, version_of)

    whole, everything = greedy([name for name in names if name not in version_of]), greedy(names)
    first = [name for name in everything if name in version_of]
    cheapest = sorted(version_of, key=lambda name: flops[name])
    # What a truncation costs is spent, even where more of its member replaces it in the mean later. So the whole
    # members are tried after 0, 1, 2, ... truncations: the first of the greedy order, or the cheapest.
    candidates = [(*everything, *(name for name in whole if name not in everything))]
    candidates += [(*some[:count], *whole) for some in (first, cheapest) for count in range(len(some) + 1)]
    return max(dict.fromkeys(candidates), key=area)
