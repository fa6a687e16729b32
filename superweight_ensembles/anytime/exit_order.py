"""The order of members and their truncations, which need not all be of use.

Shapes: M exits, N samples, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from superweight_ensembles.anytime.curves import log_area
from superweight_ensembles.anytime.ordering import order_greedily


def order_exits(
    names: Sequence[str], whole: Sequence[str], probabilities: Tensor, labels: Tensor, flops: Mapping[str, int]
) -> tuple[str, ...]:
    """The order of exits whose running mean is most accurate over all costs: the largest area on held-out samples.

    The mean after each exit is that of all before it, and weak truncations would stay in it for ever. So the choice is
    among the greedy order of all exits, up to where it is most accurate, and the whole members after so many of the
    truncations, from none on.

    Args:
        names: Of all exits.
        whole: Of those that are no truncations.
        probabilities: Softmax (M, N, K) on held-out samples.
        labels: (N,).
        flops: An image, of each.

    Returns:
        Names, not always all.
    """
    rows = dict(zip(names, probabilities))

    def accuracies(order: Sequence[str]) -> list[float]:
        means = torch.stack([rows[name] for name in order]).cumsum(0)
        return [float((mean.argmax(1) == labels).double().mean()) for mean in means]

    def greedy(some: Sequence[str]) -> tuple[str, ...]:
        return order_greedily(some, torch.stack([rows[name] for name in some]), labels, flops)

    low, high = min(flops.values()), sum(flops.values())

    def area(order: Sequence[str]) -> float:
        costs = accumulate(flops[name] for name in order)
        return log_area(list(zip(costs, accuracies(order))), low, high, before=1 / probabilities.shape[2], steps=True)

    everything = greedy(names)
    found = accuracies(everything)
    members, truncations = greedy(whole), [name for name in everything if name not in whole]
    candidates = [everything[: found.index(max(found)) + 1]]
    candidates += [(*truncations[:count], *members) for count in range(len(truncations) + 1)]
    return max(candidates, key=area)
