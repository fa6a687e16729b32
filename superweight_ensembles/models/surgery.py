"""Surgery on any module: its parameters, in the module and in its optimiser, its modes, and how it runs recurrence."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_BACKENDS: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.mkldnn)


def set_parameter(owner: nn.Module, local: str, tensor: Tensor | None) -> None:
    """Put a tensor, or nothing, in the place of a parameter, so that the module's next call reads it.

    Recurrent layers hold their tensors a second time, in the list that they hand to torch. It follows here; torch's
    own way to renew it would first copy all weights into one block, on a GPU, and keeps what was taken away.
    """
    owner._parameters[local] = tensor  # type: ignore[assignment]  # generated tensors are no parameters
    if isinstance(owner, nn.RNNBase) and local in owner._flat_weights_names:
        index = owner._flat_weights_names.index(local)
        owner._flat_weights[index] = tensor
        owner._flat_weight_refs[index] = None if tensor is None else weakref.ref(tensor)  # type: ignore[arg-type]


def exchange_parameter(
    optimizer: torch.optim.Optimizer, before: nn.Parameter, after: nn.Parameter, carried: Callable[[Tensor], Tensor]
) -> None:
    """Have an optimiser hold a parameter in the group and at the place of another.

    ``carried`` makes, of a moment of the old one's shape, that of the new one.
    """
    for group in optimizer.param_groups:
        group["params"] = [after if parameter is before else parameter for parameter in group["params"]]
    if before in optimizer.state:
        state = optimizer.state.pop(before)
        optimizer.state[after] = {
            name: carried(value) if isinstance(value, Tensor) and value.shape == before.shape else value
            for name, value in state.items()
        }


@contextmanager
def kept_modes(module: nn.Module) -> Iterator[None]:
    """Whatever modes are set meanwhile, every part goes back to its own at the end."""
    modes = {part: part.training for part in module.modules()}
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while."""
    with kept_modes(module):
        module.eval()
        yield


@contextmanager
def unfused_recurrence(module: nn.Module) -> Iterator[None]:
    """Have the recurrent layers of a module, where it has any, run step by step inside the context.

    The FLOP counter knows nothing of the fused calls, and cuDNN's has no backward in evaluation mode.
    """
    if not any(isinstance(layer, nn.RNNBase) for layer in module.modules()):
        yield
        return
    before = [(backend, backend.enabled) for backend in _BACKENDS]
    try:
        for backend in _BACKENDS:
            backend.enabled = False
        yield
    finally:
        for backend, enabled in before:
            backend.enabled = enabled
