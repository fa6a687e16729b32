"""The plain network of the same kind that has a given number of parameters: what a budget must be better than."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import replace

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.models.architecture import Architecture
from superweight_ensembles.models.registry import build_architecture
from superweight_ensembles.plan.planning import count_parameters

_WIDEST_STAGE = 64  # channels of a WideResNet's last stage, at width 1


def narrowed(made: Architecture, num_parameters: int) -> Architecture:
    """The widest network of the same kind with at most so many parameters: narrower than the one given, or wider.

    Depth and all else stay. Of a ``wide_resnet`` the width changes, by one channel of the last stage at a time (the
    stem keeps its 16 channels, as in the paper); of a timm vision transformer ``embed_dim``, by as much as keeps the
    heads of one size, so that their number stays.

    Args:
        made: How the network was made.
        num_parameters: Trainable scalars at most.

    Raises:
        SuperWeightError: A network of another kind; fewer parameters than the narrowest one has (states them).

    Example:
        >>> wrn = Architecture(model="wide_resnet", num_classes=10, options={"depth": 16, "width": 2})
        >>> narrowed(wrn, 69_000).options
        {'depth': 16, 'width': 0.609375}
    """
    at = _by_width(made)

    def count(step: int) -> int:
        return count_parameters(_shapes(at(step)))

    if count(1) > num_parameters:
        raise SuperWeightError(
            f"the narrowest {made.model} with {made.options} has {count(1):,} parameters, more than the "
            f"{num_parameters:,} asked for: raise the budget, or leave 'narrower' out"
        )
    high = 2
    while count(high) <= num_parameters:
        high *= 2
    return at(bisect_right(range(high), num_parameters, lo=1, key=count) - 1)


def _by_width(made: Architecture) -> Callable[[int], Architecture]:
    """The networks of one kind, by a whole number that widens them."""
    if made.model == "wide_resnet":
        return lambda step: _with(made, "width", step / _WIDEST_STAGE)
    network = _shapes(made)
    if isinstance(network, VisionTransformer):
        heads = network.blocks[0].attn.num_heads
        return lambda step: _with(made, "embed_dim", step * heads)
    raise SuperWeightError(
        f"'narrower' narrows a wide_resnet or a vision transformer of timm, not {made.model!r}: leave it out"
    )


def _with(made: Architecture, option: str, value: float) -> Architecture:
    return replace(made, options={**made.options, option: value})


def _shapes(made: Architecture) -> nn.Module:
    """The network without numbers."""
    with torch.device("meta"):
        return build_architecture(made)
