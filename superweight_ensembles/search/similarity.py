"""How alike tensors of different widths are, and the sets that similarities make."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def cropped_cosines(tensors: Sequence[Tensor]) -> Tensor:
    """Cosine of every pair of tensors, each pair cropped to its common leading (out, in) block.

    One Gram matrix of normalised crops for each pair of shapes; a tensor that is zero is unlike every other.

    Args:
        tensors: T of them, (O, I, *kernel), all of one kernel.

    Returns:
        (T, T), symmetric, float32, on the CPU; ones on the diagonal.

    Source: Teterwak et al., WACV 2024

    Example:
        >>> narrow, wide = torch.ones(2, 2), torch.zeros(3, 2).index_fill(0, torch.tensor(0), 1.0)
        >>> [[round(value, 3) for value in row] for row in cropped_cosines([narrow, wide]).tolist()]
        [[1.0, 0.707], [0.707, 1.0]]
    """
    places: dict[tuple[int, ...], list[int]] = {}
    for index, tensor in enumerate(tensors):
        places.setdefault(tuple(tensor.shape), []).append(index)
    stacks = {shape: torch.stack([tensors[index].float() for index in where]) for shape, where in places.items()}
    cosines = torch.eye(len(tensors))
    shapes = list(places)
    for first, shape in enumerate(shapes):
        for other in shapes[first:]:
            rows, columns = min(shape[0], other[0]), min(shape[1], other[1])
            left = _unit_rows(stacks[shape][:, :rows, :columns])
            right = left if other == shape else _unit_rows(stacks[other][:, :rows, :columns])
            block = (left @ right.T).cpu()
            mine, theirs = torch.tensor(places[shape]), torch.tensor(places[other])
            cosines[mine[:, None], theirs] = block
            cosines[theirs[:, None], mine] = block.T
    return cosines.clamp(-1, 1).fill_diagonal_(1.0)


def merged_sets(similarity: Tensor, threshold: float) -> list[int]:
    """Start with every item alone and merge the sets of two items while their similarity exceeds a threshold.

    Visiting pairs from the most similar down makes no difference to the outcome, for whole sets are merged: the sets
    are the connected components.

    Args:
        similarity: (T, T), symmetric.
        threshold: Merge above it.

    Returns:
        The set of each item, numbered by first appearance.

    Source: Teterwak et al., WACV 2024
    Differs from paper: the published code moves one item at a time, and the last move wins.

    Example:
        >>> chain = torch.tensor([[1.0, 0.5, 0.0], [0.5, 1.0, 0.4], [0.0, 0.4, 1.0]])
        >>> merged_sets(chain, 0.3), merged_sets(chain, 0.45)
        ([0, 0, 0], [0, 0, 1])
    """
    parent = list(range(len(similarity)))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    for first, second in (similarity > threshold).nonzero().tolist():
        a, b = sorted((root(first), root(second)))
        parent[b] = a
    numbers: dict[int, int] = {}
    return [numbers.setdefault(root(item), len(numbers)) for item in range(len(similarity))]


def _unit_rows(stack: Tensor) -> Tensor:
    """Flattened tensors of norm one; zero where the tensor is."""
    flat = stack.flatten(1)
    flat = flat / flat.abs().amax(1, keepdim=True).clamp_min(torch.finfo(flat.dtype).tiny)  # no underflow in squares
    return torch.nn.functional.normalize(flat, dim=1)
