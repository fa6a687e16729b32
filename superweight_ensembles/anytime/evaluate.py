"""Members, ensemble and every subset of members, on one data set. Shapes: M members, N samples, B batch, K classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from einops import reduce
from torch import Tensor

from superweight_ensembles.anytime.costs import MemberCost, member_costs
from superweight_ensembles.anytime.metrics import Metrics, diversity, probability_metrics, reliability
from superweight_ensembles.anytime.predictions import Predictions, predict_all
from superweight_ensembles.ensemble.ensemble import SuperWeightEnsemble

MAX_EXHAUSTIVE = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class SubsetResult:
    """The mean prediction of some members, and what it costs.

    Attributes:
        members: Names, in ensemble order.
        metrics: Of the mean of their softmax.
        flops: An image; the sum over the members.
        latency_ms: Of one image on the device of the evaluation; the sum over the members' medians.
    """

    members: tuple[str, ...]
    metrics: Metrics
    flops: int
    latency_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What :func:`evaluate` found.

    Attributes:
        num_samples: Images evaluated.
        costs: By member.
        members: Metrics by member.
        ensemble: Metrics of the mean of all members' softmax.
        subsets: Every non-empty subset, singles and the whole included; for more than ten members, the singles and
            the running ensembles from the cheapest member up.
        diversity: Mean pairwise disagreement over the ensemble's error.
        reliability: Of the ensemble, in 15 bins of confidence.
    """

    num_samples: int
    costs: dict[str, MemberCost]
    members: dict[str, Metrics]
    ensemble: Metrics
    subsets: tuple[SubsetResult, ...]
    diversity: float | None
    reliability: list[dict[str, float | int | None]]

    def to_dict(self) -> dict[str, Any]:
        """As results.json holds it."""
        whole = max(self.subsets, key=lambda subset: len(subset.members))
        return {
            "num_samples": self.num_samples,
            "members": [
                {"name": name, **asdict(self.costs[name]), "metrics": metrics.to_dict()}
                for name, metrics in self.members.items()
            ],
            "ensemble": {
                "flops": whole.flops,
                "latency_ms": whole.latency_ms,
                "metrics": self.ensemble.to_dict(),
            },
            "subsets": [asdict(subset) for subset in self.subsets],
            "diversity": self.diversity,
            "reliability": self.reliability,
        }


def evaluate(ensemble: SuperWeightEnsemble, loader: Iterable[tuple[Tensor, Tensor]]) -> Evaluation:
    """Evaluate members, ensemble and every subset of members.

    Args:
        ensemble: Evaluated in eval mode with materialised members; its own mode is left as it is.
        loader: Batches of images (B, C, H, W), normalised, and labels (B,).

    Raises:
        SuperWeightError: The loader has no samples, its batches are no (images, class indices), or its labels are no
            classes of the members.

    Source: Teterwak et al., WACV 2024
    """
    return evaluate_predictions(ensemble, predict(ensemble, loader))


def evaluate_predictions(ensemble: SuperWeightEnsemble, table: Predictions) -> Evaluation:
    """What :func:`evaluate` finds, from predictions that were made before: members run for their costs alone.

    Args:
        ensemble: Whose members the predictions are of.
        table: From :func:`predict`.

    Raises:
        SuperWeightError: The table lacks a member.
    """
    probabilities, labels = table.of(ensemble.member_names), table.labels
    costs = member_costs(ensemble, tuple(table.image.shape[1:]), dtype=table.image.dtype)
    subsets = tuple(
        SubsetResult(
            members=names,
            metrics=probability_metrics(_mean_probabilities(ensemble, probabilities, names), labels),
            flops=sum(costs[name].flops for name in names),
            latency_ms=sum(costs[name].latency_ms for name in names),
        )
        for names in _subsets(ensemble.member_names, costs)
    )
    by_names = {subset.members: subset.metrics for subset in subsets}
    return Evaluation(
        num_samples=len(labels),
        costs=costs,
        members={name: by_names[(name,)] for name in ensemble.member_names},
        ensemble=by_names[ensemble.member_names],
        subsets=subsets,
        diversity=diversity(probabilities, labels),
        reliability=reliability(reduce(probabilities, "m n k -> n k", "mean"), labels),
    )


def predict(ensemble: SuperWeightEnsemble, loader: Iterable[tuple[Tensor, Tensor]]) -> Predictions:
    """Softmax of every member, materialised and in eval mode, on every sample: see :func:`predict_all`."""
    modules = {name: ensemble.materialize(name).eval() for name in ensemble.member_names}
    return predict_all(modules, loader, next(ensemble.parameters()).device)


def _mean_probabilities(ensemble: SuperWeightEnsemble, probabilities: Tensor, names: tuple[str, ...]) -> Tensor:
    chosen = [ensemble.member_names.index(name) for name in names]
    return reduce(probabilities[chosen], "m n k -> n k", "mean")


def _subsets(names: tuple[str, ...], costs: Mapping[str, MemberCost]) -> list[tuple[str, ...]]:
    if len(names) <= MAX_EXHAUSTIVE:
        return [subset for size in range(1, len(names) + 1) for subset in combinations(names, size)]
    cheapest = sorted(names, key=lambda name: costs[name].flops)
    running = [tuple(name for name in names if name in cheapest[:size]) for size in range(2, len(names) + 1)]
    return [(name,) for name in names] + running
