"""Tensors of any layout exchanged in a few large flat pieces."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

BUCKET_BYTES = 25 * 2**20
_IN_FLIGHT = 4

Collective = Callable[[Tensor], Any]


def exchanged_(tensors: Sequence[Tensor], collective: Collective, bucket_bytes: int = BUCKET_BYTES) -> int:
    """Run an in-place collective on every tensor, bucket by bucket, a few of them under way at a time.

    A bucket holds numbers in the order of the shape, whatever the strides: processes whose tensors lie differently in
    memory (channels-last or not) exchange the same numbers, and each tensor keeps its own layout.

    Args:
        tensors: Changed in place.
        collective: Starts the exchange of one flat tensor, and gives what has a ``wait``.
        bucket_bytes: At most so many a bucket, but for a tensor that is larger.

    Returns:
        Bytes handed to the collective.
    """
    under_way: deque[tuple[Any, Tensor, list[Tensor]]] = deque()
    total = 0
    with torch.no_grad():
        for bucket in buckets_of(tensors, bucket_bytes):
            flat = _flattened(bucket)
            total += flat.numel() * flat.element_size()
            under_way.append((collective(flat), flat, bucket))
            if len(under_way) > _IN_FLIGHT:
                _finish(*under_way.popleft())
        while under_way:
            _finish(*under_way.popleft())
    return total


def buckets_of(tensors: Sequence[Tensor], bucket_bytes: int = BUCKET_BYTES) -> Iterator[list[Tensor]]:
    """Tensors of one type and device together, in the order given.

    Example:
        >>> tensors = [torch.zeros(3), torch.zeros(2, dtype=torch.float64), torch.zeros(4), torch.zeros(2)]
        >>> [[len(tensor) for tensor in bucket] for bucket in buckets_of(tensors, bucket_bytes=28)]
        [[3, 4], [2], [2]]
    """
    open_buckets: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    filled: dict[tuple[torch.dtype, torch.device], int] = {}
    for tensor in tensors:
        if not tensor.numel():
            continue
        key, size = (tensor.dtype, tensor.device), tensor.numel() * tensor.element_size()
        if key in open_buckets and filled[key] + size > bucket_bytes:
            yield open_buckets.pop(key)
        if key not in open_buckets:
            open_buckets[key], filled[key] = [], 0
        open_buckets[key].append(tensor)
        filled[key] += size
    yield from open_buckets.values()


def _flattened(bucket: list[Tensor]) -> Tensor:
    """The numbers of a bucket one after the other; a tensor that lies so already is not copied."""
    if len(bucket) == 1 and bucket[0].is_contiguous():
        return bucket[0].detach().view(-1)
    first = bucket[0]
    flat = torch.empty(sum(tensor.numel() for tensor in bucket), dtype=first.dtype, device=first.device)
    torch._foreach_copy_(_views(flat, bucket), [tensor.detach() for tensor in bucket])
    return flat


def _finish(work: Any, flat: Tensor, bucket: list[Tensor]) -> None:
    work.wait()
    if flat.data_ptr() != bucket[0].data_ptr():
        torch._foreach_copy_([tensor.detach() for tensor in bucket], _views(flat, bucket))


def _views(flat: Tensor, bucket: list[Tensor]) -> list[Tensor]:
    parts = flat.split([tensor.numel() for tensor in bucket])
    return [part.view(tensor.shape) for part, tensor in zip(parts, bucket)]
