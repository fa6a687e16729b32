"""All weights of all members from templates and coefficients, batched per (cluster, slot).

The plan is compiled once into slices (``compile_plan``) and run every step (``run_program``): one matrix product
a (cluster, slot) makes every SuperWeight of the slot, each unique coefficient vector once (one batched product a block
where every output channel has its own coefficients); targets of equal shape are then assembled together, block by
block. Backward keeps the two factors of each product and nothing else.

Shapes: N coefficient vectors of a slot, Q numbers in it, K templates, O output channels, n targets of one shape.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Union

import torch
from torch import Tensor

from superweight_ensembles.plan import Cluster, PlannedTarget, SharingPlan
from superweight_ensembles.slots import SlotBlocks

Positions = Union[slice, tuple[int, ...]]
Weights = dict[str, dict[str, Tensor]]


def slot_key(cluster: int, slot: int) -> str:
    """The name of a slot's tensors in a state dict."""
    return f"c{cluster}s{slot}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeGroup:
    """Targets of one shape, and where their SuperWeights stand in each slot's product."""

    targets: tuple[PlannedTarget, ...]
    positions: tuple[Positions, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterProgram:
    """What one cluster computes: the coefficient vectors it needs of each slot, then groups of equal shape."""

    keys: tuple[str, ...]
    blocks: tuple[SlotBlocks, ...]
    rows: tuple[Positions, ...]
    groups: tuple[ShapeGroup, ...]


def compile_plan(plan: SharingPlan, members: Collection[str] | None = None) -> tuple[ClusterProgram, ...]:
    """Turn a plan into slices, for all members or for some of them."""
    wanted = plan.member_names if members is None else members
    programs = [
        _compile_cluster(index, cluster, [target for target in cluster.targets if target.member in wanted])
        for index, cluster in enumerate(plan.clusters)
    ]
    return tuple(program for program in programs if program.groups)


def run_program(
    programs: Sequence[ClusterProgram], templates: Mapping[str, Tensor], coefficients: Mapping[str, Tensor]
) -> Weights:
    """Generate weights.

    Args:
        programs: From :func:`compile_plan`.
        templates: (K, Q) by :func:`slot_key`.
        coefficients: (N, K), or (N, O, K) with a vector an output channel, by :func:`slot_key`.

    Returns:
        Tensors by member and parameter name, in the autocast dtype where one is active; tied names hold one tensor.
    """
    weights: Weights = {}
    for program in programs:
        superweights = [
            combine(_take(coefficients[key], rows), templates[key], block)
            for key, rows, block in zip(program.keys, program.rows, program.blocks)
        ]
        for group in program.groups:
            vectors = [_take(superweights[slot], where) for slot, where in enumerate(group.positions)]
            for target, weight in zip(group.targets, compose(program.blocks, vectors).unbind(0)):
                weights.setdefault(target.member, {}).update(dict.fromkeys(target.names, weight))
    return weights


def combine(coefficients: Tensor, templates: Tensor, block: SlotBlocks) -> Tensor:
    """SuperWeights (N, Q) of a slot: linear combinations of its templates (K, Q).

    Args:
        coefficients: (N, K), or (N, O, K) with a vector an output channel.
        templates: (K, Q).
        block: Of the slot.
    """
    if coefficients.ndim == 2:
        return coefficients @ templates
    parts = [
        torch.bmm(rows.transpose(0, 1), numbers.transpose(0, 1)).transpose(0, 1).flatten(1)
        for rows, numbers in zip(
            coefficients.split([shape[0] for shape in block.shapes], dim=1), by_channel(templates, block)
        )
    ]
    return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


def by_channel(vectors: Tensor, block: SlotBlocks) -> list[Tensor]:
    """Vectors (n, Q) of a slot as one (n, O, Q / O) a block: output channel by output channel."""
    parts = vectors.split([math.prod(shape) for shape in block.shapes], dim=1)
    return [part.unflatten(1, (shape[0], -1)) for part, shape in zip(parts, block.shapes)]


def compose(blocks: Sequence[SlotBlocks], vectors: Sequence[Tensor]) -> Tensor:
    """Assemble weights of one shape from their SuperWeights.

    Args:
        blocks: Of slots 0, 1, ..., at least as many as ``vectors``.
        vectors: (n, Q_r) for slots 0 to the shape's own.

    Returns:
        (n, O, I, *kernel).

    Source: Teterwak et al., WACV 2024
    """
    first = blocks[0].row
    assert first is not None, "slot 0 is one block"
    weight = vectors[0].view(-1, *first)
    for block, vector in zip(blocks[1:], vectors[1:]):
        rows, columns = block.keep
        weight = weight[:, :rows, :columns]
        column_size = math.prod(block.column) if block.column is not None else 0
        if block.column is not None:
            weight = torch.cat([weight, vector[:, :column_size].view(-1, *block.column)], dim=2)
        if block.row is not None:
            weight = torch.cat([weight, vector[:, column_size:].view(-1, *block.row)], dim=1)
    return weight


def decompose(blocks: Sequence[SlotBlocks], weight: Tensor) -> list[Tensor]:
    """The SuperWeights that compose to a weight: what :func:`compose` undoes.

    Numbers of a slot that the weight does not have (a later slot cropped them) are zero.

    Args:
        blocks: Of slots 0 to the one whose shape the weight has.
        weight: (O, I, *kernel).

    Returns:
        (Q_r,) for each slot.
    """
    vectors: list[Tensor] = []
    for index in range(len(blocks) - 1, 0, -1):
        block, parts = blocks[index], []
        if block.row is not None:
            parts.append(weight[-block.row[0] :].flatten())
            weight = weight[: -block.row[0]]
        if block.column is not None:
            parts.insert(0, weight[:, -block.column[1] :].flatten())
            weight = weight[:, : -block.column[1]]
        vectors.insert(0, torch.cat(parts))
        previous = weight.new_zeros(_shape_after(blocks[:index]))
        previous[: block.keep[0], : block.keep[1]] = weight
        weight = previous
    return [weight.flatten(), *vectors]


def _shape_after(blocks: Sequence[SlotBlocks]) -> tuple[int, ...]:
    last = blocks[-1]
    shape = last.row if last.row is not None else last.column
    assert shape is not None, "every slot adds numbers"
    rows = last.keep[0] + (last.row[0] if last.row is not None else 0)
    columns = last.keep[1] + (last.column[1] if last.column is not None else 0)
    return (rows, columns if last.keep[1] else shape[1], *shape[2:])


def _compile_cluster(index: int, cluster: Cluster, targets: Sequence[PlannedTarget]) -> ClusterProgram:
    deepest = max((target.slot for target in targets), default=-1)
    used = [sorted({t.vectors[slot] for t in targets if t.slot >= slot}) for slot in range(deepest + 1)]
    place = [{vector: position for position, vector in enumerate(vectors)} for vectors in used]
    groups = []
    for shape_slot in sorted({target.slot for target in targets}):
        same = tuple(target for target in targets if target.slot == shape_slot)
        positions = tuple(
            _positions([place[slot][target.vectors[slot]] for target in same]) for slot in range(shape_slot + 1)
        )
        groups.append(ShapeGroup(targets=same, positions=positions))
    return ClusterProgram(
        keys=tuple(slot_key(index, slot) for slot in range(deepest + 1)),
        blocks=cluster.blocks[: deepest + 1],
        rows=tuple(_positions(vectors) for vectors in used),
        groups=tuple(groups),
    )


def _positions(numbers: Sequence[int]) -> Positions:
    """A slice where the numbers are consecutive (a view), else the numbers themselves (a copy)."""
    if list(numbers) == list(range(numbers[0], numbers[0] + len(numbers))):
        return slice(numbers[0], numbers[0] + len(numbers))
    return tuple(numbers)


def _take(tensor: Tensor, positions: Positions) -> Tensor:
    if isinstance(positions, slice):
        return tensor[positions]
    return tensor.index_select(0, torch.tensor(positions, device=tensor.device))
