"""In which order members run. Shapes: M members, N samples, K classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from superweight_ensembles.errors import SuperWeightError, unknown_name

ORDERS = ("cost", "greedy")


def order_by_cost(flops: Mapping[str, int]) -> tuple[str, ...]:
    """Cheapest first; equal ones as they were given.

    Example:
        >>> order_by_cost({"a": 3, "b": 1, "c": 3})
        ('b', 'a', 'c')
    """
    return tuple(sorted(flops, key=lambda name: flops[name]))


def order_greedily(
    names: Sequence[str],
    probabilities: Tensor,
    labels: Tensor,
    flops: Mapping[str, int],
    version_of: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """Each time the member that adds most accuracy a FLOP to the mean of those before it.

    Args:
        names: Of the members.
        probabilities: Their softmax (M, N, K) on held-out samples.
        labels: (N,).
        flops: An image, of each.
        version_of: The network that a member is a version of: a dearer version takes the place of a cheaper one, and
            a cheaper one has no place after it. None where each is its own.

    Returns:
        Names; the first is the one with most accuracy above chance a FLOP.
    """
    network = {name: (version_of or {}).get(name, name) for name in names}
    left = {name: probabilities[index] for index, name in enumerate(names)}
    nothing = probabilities.new_zeros(probabilities.shape[1:])
    total, accuracy = nothing, 1 / probabilities.shape[2]
    held: dict[str, Tensor] = {}
    order: list[str] = []
    while left:
        totals = {name: total - held.get(network[name], nothing) + own for name, own in left.items()}
        found = {name: float((added.argmax(1) == labels).double().mean()) - accuracy for name, added in totals.items()}
        # A loss is counted in full, not a FLOP: else the costliest member would be the least bad.
        best = max(found, key=lambda name: found[name] / max(flops[name], 1) if found[name] > 0 else found[name])
        order.append(best)
        total, accuracy = totals[best], accuracy + found[best]
        held[network[best]] = left[best]
        left = {
            name: own
            for name, own in left.items()
            if name != best and (network[name] != network[best] or flops[name] > flops[best])
        }
    return tuple(order)


def checked_order(order: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """An explicit order; it may leave members out.

    Raises:
        SuperWeightError: No sequence of names, no member, an unknown one, or one twice.
    """
    if not isinstance(order, Sequence):
        raise SuperWeightError(f"order must be {' or '.join(map(repr, ORDERS))}, or a list of names; got {order!r:.80}")
    for name in order:
        if name not in names:
            raise unknown_name("member", name, names)
    if not order or len(set(order)) < len(order):
        raise SuperWeightError(f"order must name at least one member, and each once; got {list(order)}")
    return tuple(order)
