"""Width slots: how a narrow layer's weight is a corner of a wide layer's.

Shapes: O out, I in, k kernel positions. The distinct shapes of a cluster, sorted by (numel, shape), are
s_0, s_1, ...; slot r holds the numbers that s_r needs beyond s_(r-1): a vector with the blocks one after the other,
each in the order (O, *k, I), input channel last, so that channels-last weights are assembled by straight copies.

A slot has K templates and N coefficient vectors, in one of two forms: ``vector``, a K-vector each, as published; or
``embedding``, an E-vector e each, and one affine map a slot, alpha = A e + b.

Source: Teterwak et al., WACV 2024 (vector); Plummer et al., ICLR 2022 (embedding, with E = 24).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

Shape = tuple[int, ...]
CoefficientForm = Literal["vector", "embedding"]
EMBEDDING_SIZE = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotBlocks:
    """What slot r adds to the running weight, in the order in which it is added."""

    keep: tuple[int, int]  # (rows, columns) of the running weight that survive; (0, 0) for slot 0
    column: Shape | None  # shape of the block appended on dimension 1, or None
    row: Shape | None  # shape of the block appended on dimension 0, or None

    @property
    def size(self) -> int:
        """Numbers in the slot."""
        return sum(math.prod(shape) for shape in self.shapes)

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Of the column block, then of the row block, where they are there."""
        return tuple(shape for shape in (self.column, self.row) if shape is not None)


def ordered_shapes(shapes: Iterable[Shape]) -> tuple[Shape, ...]:
    """The distinct shapes by (numel, shape): one width slot each.

    Source: Teterwak et al., WACV 2024
    Differs from paper: of shapes of one size the published code takes first the one that it meets first; here it is the
    smaller shape, whatever the order of members.

    Example:
        >>> ordered_shapes([(32, 16), (16, 16), (32, 16)])
        ((16, 16), (32, 16))
    """
    return tuple(sorted(set(shapes), key=lambda shape: (math.prod(shape), shape)))


def slot_blocks(shapes: Sequence[Shape]) -> tuple[SlotBlocks, ...]:
    """The blocks of every slot of a cluster whose ordered shapes are given.

    Example:
        >>> first, second = slot_blocks([(16, 16), (32, 24)])
        >>> first.row, second.column, second.row
        ((16, 16), (16, 8), (16, 24))
        >>> first.size + second.size == 32 * 24
        True
    """
    blocks = [SlotBlocks(keep=(0, 0), column=None, row=shapes[0])]
    for before, shape in pairwise(shapes):
        (rows, columns, *kernel), (rows_before, columns_before) = shape, before[:2]
        keep = (min(rows, rows_before), min(columns, columns_before))
        more_rows, more_columns = rows - rows_before, columns - columns_before
        blocks.append(
            SlotBlocks(
                keep=keep,
                column=(keep[0], more_columns, *kernel) if more_columns > 0 else None,
                row=(more_rows, columns, *kernel) if more_rows > 0 else None,
            )
        )
    return tuple(blocks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a block of a slot stands in a weight."""

    slot: int  # index of the slot
    start: int  # place in the slot's vector at which the block's numbers begin
    shape: Shape  # of the block, (O, I, *k)
    corner: tuple[int, int]  # row and column of the weight where the block begins
    size: tuple[int, int]  # rows and columns of the block that are in the weight; later slots may have cropped it


def placements(blocks: Sequence[SlotBlocks]) -> tuple[Placement, ...]:
    """Where each block stands in the weight of the last slot's shape; blocks that were cropped away are left out.

    Example:
        >>> for place in placements(slot_blocks([(16, 16), (32, 24)])):
        ...     print(place.slot, place.start, place.corner, place.size)
        0 0 (0, 0) (16, 16)
        1 0 (0, 16) (16, 8)
        1 128 (16, 0) (16, 24)
    """
    found = []
    kept: list[tuple[float, float]] = [(math.inf, math.inf)]  # of the last slot, then back to the first
    for block in reversed(blocks[1:]):
        kept.append((min(kept[-1][0], block.keep[0]), min(kept[-1][1], block.keep[1])))
    for index, (block, (rows, columns)) in enumerate(zip(blocks, reversed(kept))):
        start = 0
        for shape, corner in ((block.column, (0, block.keep[1])), (block.row, (block.keep[0], 0))):
            if shape is None:
                continue
            height, width = int(min(shape[0], rows - corner[0])), int(min(shape[1], columns - corner[1]))
            if height > 0 and width > 0:
                found.append(Placement(slot=index, start=start, shape=shape, corner=corner, size=(height, width)))
            start += math.prod(shape)
    return tuple(found)


def coefficient_count(num_templates: int, num_vectors: int, embedding_size: int) -> int:
    """Coefficient scalars of a slot: vectors (N, K), or embeddings (N, E) and their map (K, E + 1) where E is not 0."""
    if embedding_size:
        return num_vectors * embedding_size + num_templates * (embedding_size + 1)
    return num_vectors * num_templates
