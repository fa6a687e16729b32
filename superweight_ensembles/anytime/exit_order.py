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
from superweight_ensembles.anytime.policy import replaced_exits
from superweight_ensembles.anytime.running import means_of


def order_exits(
    names: Sequence[str],
    version_of: Mapping[str, str],
    probabilities: Tensor,
    labels: Tensor,
    flops: Mapping[str, int],
) -> tuple[str, ...]:
    """The order of exits whose running mean is most accurate over all costs: the largest area on held-out samples.

    A truncation that has run costs what it costs, and its member takes its place in the mean later. So the choice is
    between the greedy order of all exits, and the whole members after so many of the truncations, from none on.

    Args:
        names: Of all exits.
        version_of: The member that an exit is a truncation of.
        probabilities: Softmax (M, N, K) on held-out samples.
        labels: (N,).
        flops: An image, of each.

    Returns:
        Names, not always all; every member whole.
    """
    rows = dict(zip(names, probabilities))
    low, high = min(flops.values()), sum(flops.values())

    def area(order: Sequence[str]) -> float:
        means = means_of(torch.stack([rows[name] for name in order]), replaced_exits(order, version_of))
        accuracies = [float((mean.argmax(1) == labels).double().mean()) for mean in means]
        costs = accumulate(flops[name] for name in order)
        return log_area(list(zip(costs, accuracies)), low, high, before=1 / probabilities.shape[2], steps=True)

    def greedy(some: Sequence[str]) -> tuple[str, ...]:
        return order_greedily(some, torch.stack([rows[name] for name in some]), labels, flops, version_of)

    whole = greedy([name for name in names if name not in version_of])
    everything = greedy(names)
    truncations = [name for name in everything if name in version_of]
    candidates = [(*everything, *(name for name in whole if name not in everything))]
    candidates += [(*truncations[:count], *whole) for count in range(len(truncations) + 1)]
    return max(candidates, key=area)
