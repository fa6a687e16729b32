"""How large the bank of a group is under a budget that its coefficients count in as well."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from superweight_ensembles.plan.options import SsnOptions
from superweight_ensembles.plan.slots import Shape
from superweight_ensembles.plan.windows import least_bank, num_coefficients, numbers_read, readings

_MASK_UNIT = 9
_MASK_SHARE = 10  # masks take one part in so many of a group's budget at most


def group_cost(
    shapes: Sequence[Shape], bank_size: int, options: SsnOptions, mask_window: int = 0, everything: bool = True
) -> int:
    """Trainable scalars of a group with a bank of this size; of the bank alone where not everything counts."""
    if not everything:
        return bank_size
    return bank_size + num_coefficients(readings(tuple(shapes), bank_size, options), options, mask_window)


def mask_window_of(shapes: Sequence[Shape], budget: int, options: SsnOptions) -> int:
    """Numbers that one number of a mask is for: the fewest nines that cost a tenth of the budget at most."""
    if options.upsample != "mask":
        return 0
    if options.mask_window:
        return options.mask_window
    masked = sum(max(math.prod(shape) - budget, 0) for shape in shapes)
    units = math.ceil(masked * _MASK_SHARE / (_MASK_UNIT * max(budget, 1)))
    return _MASK_UNIT * max(units, 1)


@lru_cache(maxsize=1024)
def least_cost(shapes: tuple[Shape, ...], options: SsnOptions, everything: bool = True) -> int:
    """The fewest trainable scalars with which a group of these layers works; with ``wavg`` up to a few more.

    Example:
        >>> least_cost(((16, 8, 3, 3), (16, 16, 3, 3)), SsnOptions(upsample="inter"))  # 9, and 1 a layer
        11
    """
    size = least_bank(shapes, options)
    if not everything or (options.upsample != "wavg" and not options.mask_window):
        window = max(math.prod(shape) for shape in shapes) if options.upsample == "mask" else 0
        return group_cost(shapes, size, options, window, everything)
    costs = []
    largest = max(size, *(math.prod(shape) for shape in shapes))
    while size <= largest:  # coefficients become fewer as the bank grows: somewhere between the two is the least
        costs.append(group_cost(shapes, size, options, options.mask_window, everything))
        size += max(1, size // 16)
    return min(costs)


def bank_within(shapes: Sequence[Shape], budget: int, options: SsnOptions, everything: bool = True) -> tuple[int, int]:
    """The largest bank that fits a budget together with its coefficients, and the window of its masks.

    Never larger than what the layers read.

    Args:
        shapes: Of the layers, in order.
        budget: Trainable scalars of the group, at least :func:`least_cost`.
        options: Of the group.
        everything: Whether coefficients count as well.
    """
    shapes = tuple(shapes)
    window = mask_window_of(shapes, budget, options)
    largest = max(math.prod(shape) for shape in shapes)
    while True:
        size = _largest_bank(shapes, budget, options, window, everything)
        fits = group_cost(shapes, size, options, window, everything) <= budget
        chosen = options.upsample == "mask" and not options.mask_window
        if not chosen or window >= largest or (fits and size * _MASK_SHARE >= (_MASK_SHARE - 2) * min(budget, largest)):
            break
        window *= 2  # masks of many small layers are rounded up
    assert fits, "the caller compares the budget with least_cost"
    if options.templates:
        return options.templates * max(reading.size for reading in readings(shapes, size, options)), window
    return min(size, numbers_read(readings(shapes, size, options))), window


def _largest_bank(shapes: tuple[Shape, ...], budget: int, options: SsnOptions, window: int, everything: bool) -> int:
    """The largest bank whose group costs no more than the budget; the smallest one where none does.

    Between two sizes at which a layer comes to read one window more, the other coefficients only become fewer as the
    bank grows: from the upper end down, taking off what is too much never passes the largest that fits.
    """
    sizes = [math.prod(shape) for shape in shapes]
    upper = min(budget, options.templates * max(sizes) if options.templates else options.windows * sum(sizes))
    least = least_bank(shapes, options)
    steps = {count * size for size in set(sizes) for count in range(1, options.windows + 1)}
    for lower in sorted({least, *(step for step in steps if least < step <= upper)}, reverse=True):
        size = upper
        while size >= lower:
            excess = group_cost(shapes, size, options, window, everything) - budget
            if excess <= 0:
                return size
            size -= excess
        upper = lower - 1
    return least
