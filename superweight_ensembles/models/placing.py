"""Tensors into the places of a module's parameters, and out of them: the one way in which this library does it."""

from __future__ import annotations

import weakref

from torch import Tensor, nn


def place(owner: nn.Module, local: str, tensor: Tensor | None) -> None:
    """Put a tensor, or nothing, in the place of a parameter, so that the module's next call reads it.

    Recurrent layers hold their tensors a second time, in the list that they hand to torch. It follows here; torch's
    own way to renew it would first copy all weights into one block, on a GPU, and keeps what was taken away.
    """
    owner._parameters[local] = tensor  # type: ignore[assignment]  # generated tensors are no parameters
    if isinstance(owner, nn.RNNBase) and local in owner._flat_weights_names:
        index = owner._flat_weights_names.index(local)
        owner._flat_weights[index] = tensor
        owner._flat_weight_refs[index] = None if tensor is None else weakref.ref(tensor)  # type: ignore[arg-type]
