"""What a group of a Shapeshifter Network holds and computes in a training step, counted from its readings."""

from __future__ import annotations

import math

from superweight_ensembles.ensemble.ssn_composition import vectors_by_key
from superweight_ensembles.plan.group import SsnGroup
from superweight_ensembles.plan.windows import Reading

_INTERPOLATION = 8  # a number of the weight is the weighted sum of four of the smaller matrix


def num_trained_tensors(group: SsnGroup) -> int:
    """Trainable tensors: the bank, coefficients or embeddings and their maps, tiles, masks."""
    found = group.readings
    each = {"avg": 0, "emb": 2}.get(group.options.combine, 1)
    keys = vectors_by_key(0, found)
    if group.options.combine == "softmax":
        keys = {key: places for key, places in keys.items() if found[places[0]].num_windows > 1}
    further = any(reading.mixed for reading in found) + any(reading.masked for reading in found)
    return 1 + each * len(keys) + further


def num_gains(group: SsnGroup) -> int:
    """Numbers that are held and not trained, where coefficients cannot scale a weight."""
    combined = [reading.num_windows for reading in group.readings if not reading.mixed]
    return {"avg": sum(combined), "softmax": len(combined)}.get(group.options.combine, 0)


def copied_numbers(group: SsnGroup) -> int:
    """Numbers beside the bank and its gradient in backward: a bank whose end is passed is copied, longer by its start.

    Example:
        >>> from superweight_ensembles.ssn.group import SsnTarget
        >>> from superweight_ensembles.ssn.options import SsnOptions
        >>> a = SsnTarget(member="m", names=("a",), kind="linear", shape=(4, 5))
        >>> b = SsnTarget(member="m", names=("b",), kind="linear", shape=(4, 4))
        >>> group = SsnGroup(name="g", bank_size=30, targets=(a, b), options=SsnOptions())
        >>> copied_numbers(group)  # b reads numbers 20 to 36: a copy of 36, and as many gradients for a bank of 30
        42
    """
    longest = max(reading.end for reading in group.readings)
    return longest + longest - group.bank_size if longest > group.bank_size else 0


def group_flops(group: SsnGroup) -> int:
    """Of a step, forward and backward: windows are combined, and enlarged where the bank is smaller than a layer.

    Both gradients of a combination cost as much as itself; interpolation, which has but one, is counted twice.
    """
    return sum(
        3 * _combination_flops(reading) + _enlarging_flops(reading, math.prod(shape))
        for reading, shape in zip(group.readings, group.shapes)
    )


def _combination_flops(reading: Reading) -> int:
    rows = reading.num_tiles if reading.mixed else 1
    return 2 * rows * reading.num_windows * reading.size


def _enlarging_flops(reading: Reading, num_weights: int) -> int:
    if reading.matrix != (0, 0):
        return 2 * _INTERPOLATION * num_weights
    if reading.mixed or reading.num_tiles == 1:
        return 0
    return num_weights + 4 * reading.masked  # repetitions are summed in backward; masks multiply and get gradients
