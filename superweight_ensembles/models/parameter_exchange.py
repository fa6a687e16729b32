"""A parameter of another shape in the place of an old one, for the optimiser as well."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def exchange_parameter(
    optimizer: torch.optim.Optimizer, before: nn.Parameter, after: nn.Parameter, carried: Callable[[Tensor], Tensor]
) -> None:
    """Have an optimiser go on with a parameter in the group and at the place of another.

    Args:
        optimizer: Of the old one.
        before: It holds no more.
        after: It holds instead.
        carried: Of a moment of the old one's shape, that of the new one.
    """
    for group in optimizer.param_groups:
        group["params"] = [after if parameter is before else parameter for parameter in group["params"]]
    if before in optimizer.state:
        state = optimizer.state.pop(before)
        optimizer.state[after] = {
            name: carried(value) if isinstance(value, Tensor) and value.shape == before.shape else value
            for name, value in state.items()
        }
