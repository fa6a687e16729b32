"""The order of members and their truncations, which need not all be of use.

Shapes: M exits, N samples, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from superweight_ensembles.anytime.calibration import fit_policy, play
from superweight_ensembles.anytime.curves import costs_between, log_area
from superweight_ensembles.anytime.ordering import order_greedily
from superweight_ensembles.anytime.policy import replaced_exits

_POINTS = 6  # of a cascade's curve


def order_exits(
    names: Sequence[str],
    version_of: Mapping[str, str],
    probabilities: Tensor,
    labels: Tensor,
    flops: Mapping[str, int],
    **options: Any,
) -> tuple[str, ...]:
    """The order of exits whose cascade is most accurate over all costs: the largest area on held-out samples.

    A truncation that has run costs what it costs, and more of its member takes its place in the mean later. So the
    choice is between the greedy order of all exits, and the whole members after so many of the truncations, from none
    on: the first ones of the greedy order, or the cheapest.

    Args:
        names: Of all exits.
        version_of: The member that an exit is a truncation of.
        probabilities: Softmax (M, N, K) on held-out samples.
        labels: (N,).
        flops: An image, of each.
        options: Of :func:`fit_policy`: how thresholds are fitted.

    Returns:
        Names, not always all; every member whole.
    """
    rows = dict(zip(names, probabilities))
    low, high = min(flops.values()), sum(flops[name] for name in names if name not in version_of)

    def area(order: tuple[str, ...]) -> float:
        table, costs = torch.stack([rows[name] for name in order]), [float(flops[name]) for name in order]
        points = []
        for cost in costs_between(costs[0], sum(costs), _POINTS):
            policy = fit_policy(
                table, labels, costs, order, ("cost", cost), replaces=replaced_exits(order, version_of), **options
            )
            outcome = play(table, policy)
            points.append((outcome.mean_cost(costs), outcome.accuracy(labels)))
        return log_area(points, low, high, before=1 / probabilities.shape[2], steps=False)

    def greedy(some: Sequence[str]) -> tuple[str, ...]:
        return order_greedily(some, torch.stack([rows[name] for name in some]), labels, flops, version_of)

    whole, everything = greedy([name for name in names if name not in version_of]), greedy(names)
    first = [name for name in everything if name in version_of]
    cheapest = sorted(version_of, key=lambda name: flops[name])
    candidates = [(*everything, *(name for name in whole if name not in everything))]
    candidates += [(*some[:count], *whole) for some in (first, cheapest) for count in range(len(some) + 1)]
    return max(dict.fromkeys(candidates), key=area)
