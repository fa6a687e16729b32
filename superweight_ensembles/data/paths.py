"""Many file paths in two arrays, which processes that are forked share without copying them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import numpy as np


class PathTable:
    """Paths as one string of bytes and where each ends.

    A list of a million strings is copied into every worker bit by bit, as reading a Python object writes its reference
    count; of these arrays nothing is written.

    Args:
        paths: N paths.

    Example:
        >>> table = PathTable(["images/a.jpg", "images/b.jpg"])
        >>> len(table), table[1], list(table.subset(np.array([1])))
        (2, 'images/b.jpg', ['images/b.jpg'])
    """

    def __init__(self, paths: Sequence[str]) -> None:
        encoded = [os.fsencode(path) for path in paths]
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return os.fsdecode(self._bytes[self._ends[index] : self._ends[index + 1]].tobytes())

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def subset(self, indices: np.ndarray) -> PathTable:
        """Those at indices (n,)."""
        return PathTable([self[index] for index in indices.tolist()])
