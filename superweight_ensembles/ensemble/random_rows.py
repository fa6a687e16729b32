"""Random rows that are orthogonal to each other, for the start of templates and coefficients."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def orthogonal_templates(count: int, size: int, generator: torch.Generator | None = None) -> Tensor:
    """Random rows (count, size) of root mean square one, orthogonal to each other where count <= size.

    Orthogonality makes the deviation of any combination exact instead of exact on average.
    """
    rows = torch.randn(count, size, generator=generator)
    if 1 < count <= size:
        factor = torch.linalg.cholesky(rows.double() @ rows.double().T)
        # contiguous: the solver's answer is column by column, which would slow every product with the templates
        rows = torch.linalg.solve_triangular(factor.to(rows), rows, upper=False).contiguous()
    return rows * (math.sqrt(size) / rows.norm(dim=1, keepdim=True))


def orthonormal_runs(count: int, size: int, generator: torch.Generator | None = None) -> Tensor:
    """Unit vectors (count, size), each run of ``size`` of them orthogonal: as far as the dimension allows."""
    runs = []
    for start in range(0, count, size):
        square = torch.empty(size, size)
        nn.init.orthogonal_(square, generator=generator)
        runs.append(square[: count - start])
    return torch.cat(runs)
