"""Width slots: how a narrow layer's weight is a corner of a wide layer's, and a small kernel the centre of a large one.

Shapes: O out, I in, k kernel positions. The distinct shapes of a cluster, sorted by (numel, shape), are
s_0, s_1, ...; slot r holds the numbers that s_r needs beyond the slots before it: a vector with its blocks one after
the other, each in the order (O, *k, I), input channel last, so that channels-last weights are assembled by straight
copies.

A block is a box of places (row, column, *kernel position). Rows and columns count from 0, kernel positions from the
kernel's centre, so that the boxes of all shapes lie around one point: 3 x 3 takes positions -1 to 1 of both axes.

In a cluster of one kernel, s_r keeps the part of the weight before it that fits its shape; the part that it crops is
lost to later slots (as published). In a cluster of several kernels, a place belongs to the first slot whose shape has
it, and nothing is cropped: 1 x 1 and 3 x 3 alternate in the order of size, and would crop each other to almost nothing.

A slot has K templates and N coefficient vectors, in one of two forms: ``vector``, a K-vector each, as published; or
``embedding``, an E-vector e each, and one affine map a slot, alpha = A e + b.

Source: Teterwak et al., WACV 2024 (vector); Plummer et al., ICLR 2022 (embedding, with E = 24); several kernels: ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

Shape = tuple[int, ...]
Box = tuple[tuple[int, int], ...]  # (start, stop) on each axis
CoefficientForm = Literal["vector", "embedding"]
EMBEDDING_SIZE = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotBlocks:
    """Blocks that slot r adds, in the order in which its vector holds them."""

    whole: Box  # every place of s_r
    boxes: tuple[Box, ...]  # new kernel positions, then new columns, then new rows; those that there are
    crops: bool  # whether places outside s_r are lost to later slots

    @property
    def shape(self) -> Shape:
        """Shape s_r of the slot."""
        return _sides(self.whole)

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Shapes of the blocks."""
        return tuple(map(_sides, self.boxes))

    @property
    def size(self) -> int:
        """Numbers in the slot."""
        return sum(map(math.prod, self.shapes))


def spelled(numbers: Sequence[int]) -> str:
    """A shape, or a part of one, as text.

    Example:
        >>> spelled((64, 32, 3, 3))
        '64x32x3x3'
    """
    return "x".join(map(str, numbers))


def ordered_shapes(shapes: Iterable[Shape]) -> tuple[Shape, ...]:
    """The distinct shapes by (numel, shape): one width slot each.

    Source: Teterwak et al., WACV 2024
    Differs from paper: among shapes of one size, the published code begins with the one that it meets first; here the
    smaller shape comes first, whatever the order of members.

    Example:
        >>> ordered_shapes([(32, 16), (16, 16), (32, 16)])
        ((16, 16), (32, 16))
    """
    return tuple(sorted(set(shapes), key=lambda shape: (math.prod(shape), shape)))


def slot_blocks(shapes: Sequence[Shape]) -> tuple[SlotBlocks, ...]:
    """Blocks of every slot of a cluster, whose ordered shapes have equally many dimensions.

    Example:
        >>> first, second = slot_blocks([(16, 16), (32, 24)])
        >>> first.boxes, second.boxes
        ((((0, 16), (0, 16)),), (((0, 16), (16, 24)), ((16, 32), (0, 24))))
        >>> first.size + second.size == 32 * 24
        True
        >>> [slot.size for slot in slot_blocks([(16, 16, 1, 1), (8, 8, 3, 3)])]
        [256, 512]
    """
    crops = len({shape[2:] for shape in shapes}) == 1
    wholes = [_box(shape) for shape in shapes]
    found = []
    for index, whole in enumerate(wholes):
        boxes = [whole]
        for before in reversed(wholes[max(index - 1, 0) : index] if crops else wholes[:index]):
            boxes = [rest for box in boxes for rest in _beyond(box, before)]
        found.append(SlotBlocks(whole=whole, boxes=tuple(boxes), crops=crops))
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Place of a block of a slot in a weight."""

    slot: int  # index of the slot
    start: int  # place in the slot's vector at which the block's numbers begin
    shape: Shape  # of the block, (O, I, *k)
    inside: Box  # the part of the block that is in the weight, counted from the block's first place
    at: Box  # the place of that part, counted from the weight's first place


def placements(blocks: Sequence[SlotBlocks]) -> tuple[Placement, ...]:
    """Place of each block in the weight of the last slot's shape; blocks that were cropped away are left out.

    Example:
        >>> for place in placements(slot_blocks([(16, 16), (32, 24)])):
        ...     print(place.slot, place.start, place.shape, place.at)
        0 0 (16, 16) ((0, 16), (0, 16))
        1 0 (16, 8) ((0, 16), (16, 24))
        1 128 (16, 24) ((16, 32), (0, 24))
    """
    found = []
    whole = blocks[-1].whole
    kept: list[Box | None] = [whole] * len(blocks)  # the part of each slot's shape that is left in the weight
    if blocks[-1].crops:
        kept = [*accumulate((block.whole for block in reversed(blocks)), _overlap)][::-1]
    for index, (block, left) in enumerate(zip(blocks, kept)):
        start = 0
        for box, shape in zip(block.boxes, block.shapes):
            there = _overlap(box, left)
            if there is not None:
                found.append(
                    Placement(
                        slot=index, start=start, shape=shape, inside=_within(there, box), at=_within(there, whole)
                    )
                )
            start += math.prod(shape)
    return tuple(found)


def coefficient_count(num_templates: int, num_vectors: int, embedding_size: int) -> int:
    """Coefficient scalars of a slot: vectors (N, K), or embeddings (N, E) and their map (K, E + 1) where E is not 0."""
    if embedding_size:
        return num_vectors * embedding_size + num_templates * (embedding_size + 1)
    return num_vectors * num_templates


def _box(shape: Shape) -> Box:
    """The box of every place of a weight."""
    rows, columns, *kernel = shape
    return (0, rows), (0, columns), *((-(size // 2), size - size // 2) for size in kernel)


def _sides(box: Box) -> Shape:
    return tuple(stop - start for start, stop in box)


def _within(box: Box, other: Box) -> Box:
    """A box, its places counted from the first place of another box."""
    return tuple((start - first, stop - first) for (start, stop), (first, _) in zip(box, other))


def _overlap(box: Box | None, other: Box | None) -> Box | None:
    if box is None or other is None:
        return None
    both = []
    for (start, stop), (first, last) in zip(box, other):
        side = (start if start > first else first), (stop if stop < last else last)
        if side[0] >= side[1]:
            return None
        both.append(side)
    return tuple(both)


def _beyond(box: Box, other: Box) -> list[Box]:
    """The part of a box outside another one, in boxes: new kernel positions, new columns, new rows at all columns."""
    both = _overlap(box, other)
    if both is None:
        return [box]
    found: list[Box] = []
    for axis, ((start, stop), (first, last)) in enumerate(zip(box, both)):
        sides = [side for side in ((start, first), (last, stop)) if side[0] < side[1]]
        found = [(*both[:axis], side, *box[axis + 1 :]) for side in sides] + found
    return found
