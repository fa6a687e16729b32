"""Recurrent layers run as matrix products, where cuDNN's and oneDNN's calls do not do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_BACKENDS: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.mkldnn)


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
