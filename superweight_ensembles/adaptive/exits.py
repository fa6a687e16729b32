"""Members and their truncations, as plain networks: more exits for an anytime prediction.

Shapes: M exits, N samples, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from superweight_ensembles.adaptive.resizing import adaptive_widths
from superweight_ensembles.adaptive.truncation import truncate
from superweight_ensembles.anytime.curves import log_area
from superweight_ensembles.anytime.ordering import order_greedily
from superweight_ensembles.errors import SuperWeightError

FRACTIONS = (0.25, 0.5, 0.75)


def truncated_exits(
    members: Mapping[str, nn.Module], fractions: Sequence[float] = FRACTIONS, *, norm_data: Iterable[Any] | None = None
) -> dict[str, nn.Module]:
    """Every member whole, and cut to fractions of its learned widths, as plain networks by name.

    Args:
        members: Plain networks by name, such as :meth:`SuperWeightEnsemble.materialize` makes.
        fractions: Of every learned width, in (0, 1).
        norm_data: Batches of inputs on which the truncations' batch norm statistics are estimated again.

    Returns:
        For a member ``a`` with learned widths ``a@25%``, ``a@50%``, ``a@75%`` and ``a``; the others alone.

    Raises:
        SuperWeightError: No member with learned widths, a fraction that is none, two that are equal.

    Source: Errica et al., arXiv 2501.15889, section 4 (truncation); as exits of an ensemble they are ours.

    Example:
        >>> import superweight_ensembles as swe
        >>> members = {"mlp": swe.adaptive_mlp(4, 3, rate=0.1), "linear": nn.Linear(4, 3)}
        >>> predictor = swe.AnytimePredictor(swe.truncated_exits(members, [0.5]), input_shape=(4,))
        >>> predictor.order
        ('linear', 'mlp@50%', 'mlp')
    """
    for fraction in fractions:
        if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 < fraction < 1:
            raise SuperWeightError(f"a truncation is a fraction above 0 and below 1; got {fraction!r:.40}")
    if not fractions or len(set(map(_percent, fractions))) < len(fractions):
        raise SuperWeightError(
            f"truncations must be fractions, at least one, and one a whole per cent; got {list(fractions)}"
        )
    exits: dict[str, nn.Module] = {}
    for name, module in members.items():
        if adaptive_widths(module):
            for fraction in sorted(fractions):
                exits[f"{name}@{_percent(fraction)}%"] = truncate(module, fraction=fraction, norm_data=norm_data)
        exits[name] = module
    if len(exits) == len(members):
        raise SuperWeightError("no member has learned widths to truncate")
    return exits


def _percent(fraction: float) -> int:
    return round(100 * fraction)


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
