"""The best common templates of given vectors: a singular value decomposition by way of the small Gram matrix.

Shapes: N vectors of Q numbers, K templates, n rows that share vectors; ``...`` are batch dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Fit = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

_NUMBERS_A_PIECE = 2**22  # of float64, 32 MiB: what is held beside the vectors themselves
_MOST_ROUNDS = 200
_SETTLED = 1e-10


def best_factors(vectors: Tensor, rank: int, counts: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Coefficients and templates whose products come as close to vectors as a matrix of a rank can.

    The columns of the coefficients are orthogonal and of one length (without counts); their rows have norm one on
    average, so that the templates have the mean square of the products.

    Args:
        vectors: (..., N, Q).
        rank: Templates at most.
        counts: (N,), how much each vector's squared distance weighs; 1 where None.

    Returns:
        Coefficients (..., N, K) in float64 and templates (..., K, Q), K = min(rank, N).

    Source: Eckart and Young, 1936. The eigenvectors U of the N x N Gram matrix in float64 are all that is needed:
    the best fit is the projection U U^T W, which divides by no singular value.

    Example:
        >>> vectors = torch.tensor([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
        >>> coefficients, templates = best_factors(vectors, 1)
        >>> torch.allclose((coefficients @ templates.double()).float(), vectors)
        True
    """
    weights = torch.ones_like(vectors[..., 0], dtype=torch.float64) if counts is None else counts.to(vectors).double()
    roots = weights.sqrt().expand(vectors.shape[:-1])[..., None]
    gram = torch.zeros(*vectors.shape[:-1], vectors.shape[-2], dtype=torch.float64, device=vectors.device)
    for columns in _pieces(vectors):
        piece = vectors[..., columns].double() * roots
        gram += piece @ piece.mT
    kept = min(rank, vectors.shape[-2])
    directions = torch.linalg.eigh(gram).eigenvectors.flip(-1)[..., :kept]  # that of the largest first
    coefficients = directions / roots
    length = (coefficients.square().sum((-2, -1), keepdim=True) / vectors.shape[-2]).sqrt()
    templates = vectors.new_empty(*vectors.shape[:-2], kept, vectors.shape[-1])
    for columns in _pieces(vectors):
        templates[..., columns] = directions.mT @ (vectors[..., columns].double() * roots) * length
    return coefficients / length, templates


def best_affine_factors(vectors: Tensor, rank: int, counts: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """As :func:`best_factors` of ``rank`` templates and one more, the mean, that all vectors take once.

    Returns:
        Coefficients (N, K + 1) whose last column is one, and templates (K + 1, Q), K = min(rank, N).
    """
    weights = torch.ones(len(vectors), dtype=torch.float64) if counts is None else counts.double()
    shares = (weights / weights.sum()).to(vectors.device)
    mean = (shares @ vectors.double()).to(vectors)
    coefficients, templates = best_factors(vectors - mean, rank, counts)
    return torch.cat([coefficients, torch.ones_like(coefficients[:, :1])], dim=1), torch.cat([templates, mean[None]])


def fit_rows(rows: Tensor, owners: Tensor, fit: Fit, there: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The best factors of vectors, each of which stands for one row or for several.

    Args:
        rows: (..., n, Q).
        owners: (n,), the vector of each row.
        fit: Of vectors (..., N, Q) that count (N,) times to coefficients (..., N, K) and templates (..., K, Q).
        there: (..., n, Q), false where a number is not given, and must be zero; all are given where None.
    """
    if there is not None and not bool(there.all()):
        rows = _completed(rows, owners, fit, there)
    counts = torch.bincount(owners)
    return fit(_sums(rows, owners) / counts[:, None], counts)


def _completed(rows: Tensor, owners: Tensor, fit: Fit, there: Tensor) -> Tensor:
    """The rows with numbers in the gaps, such that a fit comes closest to the numbers that were given.

    Takes the fit and what it says of the gaps in turn: each round comes closer. The first takes the vector's mean.
    """
    counts = torch.bincount(owners)
    mean = _sums(rows, owners) / _sums(there.to(rows), owners).clamp(min=1)
    filled = torch.where(there, rows, mean.index_select(-2, owners))
    total, before = float(rows.double().norm()), math.inf
    for _ in range(_MOST_ROUNDS):
        coefficients, templates = fit(_sums(filled, owners) / counts[:, None], counts)
        guess = (coefficients @ templates.double()).to(rows).index_select(-2, owners)
        filled = torch.where(there, rows, guess)
        distance = float((filled - guess).double().norm())
        if before - distance <= _SETTLED * total:
            break
        before = distance
    return filled


def _sums(rows: Tensor, owners: Tensor) -> Tensor:
    """The sums (..., N, Q) of the rows (..., n, Q) of each vector."""
    size = (*rows.shape[:-2], int(owners.max()) + 1, rows.shape[-1])
    return rows.new_zeros(size).index_add_(-2, owners, rows)


def _pieces(vectors: Tensor) -> list[slice]:
    size = vectors.shape[-1]
    step = max(1, _NUMBERS_A_PIECE * size // max(1, vectors.numel()))
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]
