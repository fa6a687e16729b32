"""From what is trained of coefficients to the numbers that combine templates.

Shapes: N vectors, K templates, E numbers in an embedding.
"""

from __future__ import annotations

from torch import Tensor, autocast
from torch.nn import functional as F


def combination(coefficients: Tensor | None, mixer: Tensor | None = None, gains: Tensor | None = None) -> Tensor:
    """The coefficients as they combine templates: (N, K), or whatever else is held as it is used.

    Args:
        coefficients: (N, K), or embeddings (N, E); None where the gains alone combine.
        mixer: (K, E + 1): the A and b of alpha = A e + b.
        gains: Factors that are not trained: (N, K) without coefficients, else (N, 1) of their softmax.

    Example:
        >>> import torch
        >>> combination(torch.zeros(1, 2), gains=torch.tensor([[3.0]]))
        tensor([[1.5000, 1.5000]])
    """
    if coefficients is None:
        assert gains is not None, "one of the two combines"
        return gains
    if mixer is not None:
        with autocast(mixer.device.type, enabled=False):
            return F.linear(coefficients, mixer[:, :-1], mixer[:, -1])
    return coefficients if gains is None else coefficients.softmax(1) * gains
