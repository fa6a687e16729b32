"""Slot geometry, and the composition of weights from slots, against the literal method in float64."""

import itertools
import math

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from superweight_ensembles.ensemble import decompose
from superweight_ensembles.plan import ordered_shapes, placements, slot_blocks

GROWING = {
    "one shape": [(3, 4, 3, 3)],
    "more rows": [(2, 3, 3, 3), (5, 3, 3, 3)],
    "more columns": [(2, 3, 3, 3), (2, 5, 3, 3)],
    "more of both": [(2, 3, 3, 3), (4, 5, 3, 3)],
    "three linear": [(2, 3), (4, 3), (4, 7)],
    "one dimension of kernel": [(2, 3, 5), (3, 4, 5), (8, 9, 5)],
}
SHRINKING = {
    "fewer columns": [(2, 6), (5, 3)],
    "fewer rows": [(6, 2), (3, 5)],
    "fewer columns of a convolution": [(2, 6, 3, 3), (7, 2, 3, 3)],
    "fewer rows of a convolution": [(6, 2, 3, 3), (2, 7, 3, 3)],
    "there and back": [(6, 2), (3, 5), (8, 2), (2, 9), (9, 9)],
    "equal sizes": [(2, 6), (3, 4), (4, 3), (6, 2)],
}
SEVERAL_KERNELS = {
    "a matrix in a convolution": [(2, 3, 1, 1), (4, 3, 3, 3)],
    "taking turns": [(2, 2, 1, 1), (2, 2, 3, 3), (6, 6, 1, 1), (4, 4, 3, 3), (5, 3, 5, 5)],
    "even kernels": [(2, 3, 1, 1), (2, 2, 2, 2), (3, 1, 3, 3), (2, 2, 4, 4)],
    "longer on one axis": [(2, 2, 1, 3), (2, 2, 3, 1), (2, 1, 3, 3)],
    "one dimension of kernel": [(6, 2, 1), (3, 2, 5), (2, 9, 3)],
}
CASES = GROWING | SHRINKING | SEVERAL_KERNELS

widths = st.integers(1, 7)
kernels = st.sampled_from([(), (1,), (3,), (2, 3), (1, 2, 2)])
shape_sets = st.tuples(st.sets(st.tuples(widths, widths), min_size=1, max_size=6), kernels).map(
    lambda drawn: reference.distinct_shapes((*pair, *drawn[1]) for pair in drawn[0])
)

small = st.integers(1, 3)
kernel_sets = st.sets(st.tuples(small, small, st.integers(1, 4), small), min_size=2, max_size=5).map(
    reference.distinct_shapes
)


def superweights(shapes, num=2):
    """(num, Q) for each slot."""
    return [torch.randn(num, reference.slot_size(shapes, slot), dtype=torch.float64) for slot in range(len(shapes))]


def compose(blocks, vectors):
    """(num, *shape of the last block's weight), by where the blocks stand in it."""
    blocks = blocks[: len(vectors)]
    weight = torch.full((len(vectors[0]), *blocks[-1].shape), torch.nan, dtype=torch.float64)
    for place in placements(blocks):
        numbers = vectors[place.slot][:, place.start : place.start + math.prod(place.shape)]
        part = torch.stack([reference.block(one, place.shape) for one in numbers])
        weight[(slice(None), *spans(place.at))] = part[(slice(None), *spans(place.inside))]
    return weight


def spans(box):
    return tuple(slice(*side) for side in box)


def test_order_of_shapes():
    assert ordered_shapes([(4, 4), (2, 8), (8, 2), (4, 4), (1, 3)]) == ((1, 3), (2, 8), (4, 4), (8, 2))


def test_blocks_by_hand():
    first, rows, columns, both = slot_blocks([(2, 3, 3), (4, 3, 3), (4, 5, 3), (6, 6, 3)])
    assert (first.shapes, first.boxes, first.size) == (((2, 3, 3),), (((0, 2), (0, 3), (-1, 2)),), 2 * 3 * 3)
    assert (rows.shapes, rows.boxes, rows.size) == (((2, 3, 3),), (((2, 4), (0, 3), (-1, 2)),), 2 * 3 * 3)
    assert (columns.shapes, columns.boxes, columns.size) == (((4, 2, 3),), (((0, 4), (3, 5), (-1, 2)),), 4 * 2 * 3)
    assert both.shapes == ((4, 1, 3), (2, 6, 3)), "the column block, then the row block"
    assert both.boxes == (((0, 4), (5, 6), (-1, 2)), ((4, 6), (0, 6), (-1, 2)))
    _, taller = slot_blocks([(2, 6), (5, 3)])
    assert taller.boxes == (((2, 5), (0, 3)),)
    _, wider = slot_blocks([(6, 2), (3, 5)])
    assert wider.boxes == (((0, 3), (2, 5)),)


def test_blocks_of_several_kernels_by_hand():
    first, second, third, last = slot_blocks([(2, 2, 1, 1), (1, 3, 2, 2), (1, 2, 3, 3), (4, 4, 1, 1)])
    assert first.boxes == (((0, 2), (0, 2), (0, 1), (0, 1)),)
    # 2 x 2 around the centre is what is above and to the left of it
    assert second.boxes == (
        ((0, 1), (0, 2), (0, 1), (-1, 0)),
        ((0, 1), (0, 2), (-1, 0), (-1, 1)),
        ((0, 1), (2, 3), (-1, 1), (-1, 1)),
    )
    assert second.size == 1 * 3 * 4 - 2 and third.size == 2 * 9 - 2 * 4
    assert last.size == 16 - 4 - 1, "of what the first two slots have, nothing is made again"


@pytest.mark.parametrize("case", GROWING)
def test_slots_of_growing_shapes_add_up_to_the_widest(case):
    shapes, blocks = GROWING[case], slot_blocks(GROWING[case])
    assert sum(block.size for block in blocks) == math.prod(shapes[-1])
    vectors = superweights(shapes, num=1)
    widest = compose(blocks, vectors)[0]
    for slot, shape in enumerate(shapes):
        narrow = compose(blocks, vectors[: slot + 1])[0]
        assert narrow.shape == shape
        assert torch.equal(widest[: shape[0], : shape[1]], narrow)
    assert all(torch.equal(part, vector[0]) for part, vector in zip(decompose(blocks, widest), vectors, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_compose_equals_the_reference(case):
    shapes = CASES[case]
    vectors = superweights(shapes)
    for end in range(1, len(shapes) + 1):
        together = compose(slot_blocks(shapes), vectors[:end])
        apart = [reference.compose(shapes, [vector[n] for vector in vectors[:end]]) for n in range(2)]
        assert_close(together, torch.stack(apart), atol=1e-12, rtol=0)


@given(shape_sets)
def test_sizes_and_compositions_of_any_shapes_equal_the_reference(shapes):
    blocks = slot_blocks(shapes)
    assert [block.size for block in blocks] == [reference.slot_size(shapes, slot) for slot in range(len(shapes))]
    assert all(block.size > 0 for block in blocks)
    vectors = superweights(shapes, num=1)
    expected = reference.compose(shapes, [vector[0] for vector in vectors])
    assert_close(compose(blocks, vectors)[0], expected, atol=1e-12, rtol=0)
    weight = torch.randn(shapes[-1], dtype=torch.float64)
    parts = decompose(blocks, weight)
    assert [part.numel() for part in parts] == [block.size for block in blocks]
    assert torch.equal(compose(blocks, [part[None] for part in parts])[0], weight)


@given(kernel_sets)
def test_weights_of_several_kernels_agree_where_they_overlap(shapes):
    if len({shape[2:] for shape in shapes}) == 1:
        return
    vectors, blocks = superweights(shapes, num=1), slot_blocks(shapes)
    held, taken = {}, set()
    for end, (shape, block) in enumerate(zip(shapes, blocks, strict=True), 1):
        there = reference.places_of(shape)
        own = [place for box in block.boxes for place in itertools.product(*(range(*side) for side in box))]
        assert len(own) == len(set(own)) == block.size
        assert set(own) == there - taken, "a place is in the first slot that has it"
        taken |= there
        weight = compose(blocks, vectors[:end])[0]
        assert torch.equal(weight, reference.compose(shapes, [vector[0] for vector in vectors[:end]]))
        for row, column, *position in there:
            spot = [place + size // 2 for place, size in zip(position, shape[2:])]
            value = float(weight[(row, column, *spot)])
            assert held.setdefault((row, column, *position), value) == value
    parts = decompose(blocks, weight)
    assert torch.equal(compose(blocks, [part[None] for part in parts])[0], weight)


def test_decompose_leaves_cropped_numbers_zero():
    # (2, 6) loses its last three columns on the way to (5, 3).
    first, _ = decompose(slot_blocks([(2, 6), (5, 3)]), torch.ones(5, 3))
    assert torch.equal(first.view(2, 6), torch.tensor([[1.0, 1, 1, 0, 0, 0]] * 2))
