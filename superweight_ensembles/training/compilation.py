"""Members compiled by ``torch.compile``, for training steps alone: each once, at its first step.

Generated weights stand in the members' ``_parameters`` as leaves of the same shapes every step, so that nothing is
compiled again. The members themselves are not touched: evaluation and saving see those that their authors wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch._dynamo.config
from torch import Tensor, nn

from superweight_ensembles.errors import SuperWeightError

Calls = Mapping[str, Callable[[Tensor], Any]]
_SHAPES = 8  # of images, as torch compiles one function for
_COMPILER = ("torch._dynamo", "torch._inductor")


def compiled_calls(members: Mapping[str, nn.Module]) -> dict[str, Callable[[Tensor], Any]]:
    """Of each member what runs in the place of its call; compilation waits for the first images."""
    limit = _SHAPES * len(members)
    return {name: _compiled_call(name, member, limit) for name, member in members.items()}


def _compiled_call(name: str, member: nn.Module, limit: int) -> Callable[[Tensor], Any]:
    """A member's compiled call.

    Raises:
        SuperWeightError: When called: the member cannot be compiled on this machine.
    """
    compiled = torch.compile(member)

    def call(images: Tensor) -> Any:
        try:
            with torch._dynamo.config.patch(recompile_limit=limit):  # past it members of one class would run plain
                return compiled(images)
        except Exception as error:
            if not type(error).__module__.startswith(_COMPILER):
                raise
            reason = next((line for line in map(str.strip, str(error).splitlines()) if line), type(error).__name__)
            raise SuperWeightError(
                f"member {name!r} cannot be compiled here: {reason:.200}\n"
                "install a C++ compiler such as g++ if there is none, or train with compile: false"
            ) from error

    return call
