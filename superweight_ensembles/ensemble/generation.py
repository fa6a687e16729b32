"""All weights of all members from templates and coefficients, batched per (cluster, slot).

The plan is compiled once into programs (``compile_plan``) that run every step (``run_program``).

Shapes: N coefficient vectors of a slot, Q numbers in it, K templates, P numbers in a flat bank.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Union

import torch
from torch import Tensor

from superweight_ensembles.ensemble.ssn_weights import GroupProgram, compile_group, compose_group
from superweight_ensembles.ensemble.superweights import (
    Block,
    BlockUse,
    ClusterProgram,
    Positions,
    ShapeGroup,
    compose,
    take,
)
from superweight_ensembles.plan import Cluster, PlannedTarget, SharingPlan, SlotBlocks, placements

Weights = dict[str, dict[str, Tensor]]
Program = Union[ClusterProgram, GroupProgram]


def slot_key(cluster: int, slot: int) -> str:
    """The name of a slot's tensors in a state dict."""
    return f"c{cluster}s{slot}"


def compile_plan(plan: SharingPlan, members: Collection[str] | None = None) -> tuple[Program, ...]:
    """Turn a plan into slices, for all members or for some of them."""
    wanted = plan.member_names if members is None else members
    programs: list[Program | None] = []
    for index, cluster in enumerate(plan.clusters):
        if isinstance(cluster, Cluster):
            targets = [target for target in cluster.targets if target.member in wanted]
            programs.append(_compile_cluster(index, cluster, targets) if targets else None)
        else:
            programs.append(compile_group(index, cluster, wanted))
    return tuple(program for program in programs if program is not None)


@torch.compiler.disable  # products and slices that differ in every cluster: traced, they would be compiled one by one
def run_program(
    programs: Sequence[Program],
    templates: Mapping[str, Tensor],
    coefficients: Mapping[str, Tensor],
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Weights:
    """Generate weights, in the autocast dtype where one is active; tied names hold one tensor.

    Templates are (K, Q) by :func:`slot_key`, or (P,) by ``bank_key``; coefficients (N, K) by :func:`slot_key`, or those
    of groups by the keys of ``ssn_weights``. Weights of other dimensions than the memory format's are contiguous.
    """
    weights: Weights = {}
    for program in programs:
        if isinstance(program, GroupProgram):
            made = compose_group(program, templates[program.bank], coefficients, memory_format)
        else:
            alphas = [take(coefficients[key], rows) for key, rows in zip(program.keys, program.rows)]
            made = compose(program, alphas, [templates[key] for key in program.keys], memory_format)
        for target, weight in zip(program.targets, made):
            weights.setdefault(target.member, {}).update(dict.fromkeys(target.names, weight))
    return weights


def decompose(blocks: Sequence[SlotBlocks], weight: Tensor) -> list[Tensor]:
    """The SuperWeights, (Q_r,) for each slot, that compose to a weight (O, I, *kernel).

    The blocks are those of slots 0 to the one whose shape the weight has. Numbers of a slot that the weight does not
    have (a later slot cropped them) are zero.
    """
    vectors: list[Tensor] = []
    for index in range(len(blocks) - 1, 0, -1):
        block, parts = blocks[index], []
        if block.row is not None:
            parts.append(_flat(weight[-block.row[0] :]))
            weight = weight[: -block.row[0]]
        if block.column is not None:
            parts.insert(0, _flat(weight[:, -block.column[1] :]))
            weight = weight[:, : -block.column[1]]
        vectors.insert(0, torch.cat(parts))
        previous = weight.new_zeros(_shape_after(blocks[:index]))
        previous[: block.keep[0], : block.keep[1]] = weight
        weight = previous
    return [_flat(weight), *vectors]


def _flat(block: Tensor) -> Tensor:
    """A block (O, I, *k) in the order in which slots hold it: (O, *k, I)."""
    return block.movedim(1, -1).flatten()


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
    order = [{vector: position for position, vector in enumerate(vectors)} for vectors in used]
    groups: list[ShapeGroup] = []
    uses: dict[tuple[int, int], list[BlockUse]] = {}
    for last, member in dict.fromkeys((target.slot, target.member) for target in targets):
        same = tuple(target for target in targets if (target.slot, target.member) == (last, member))
        for place in placements(cluster.blocks[: last + 1]):
            vectors = tuple(order[place.slot][target.vectors[place.slot]] for target in same)
            use = BlockUse(group=len(groups), place=place, positions=_positions(vectors), vectors=vectors)
            uses.setdefault((place.slot, place.start), []).append(use)
        groups.append(ShapeGroup(shape=cluster.slots[last].shape, targets=same))
    return ClusterProgram(
        keys=tuple(slot_key(index, slot) for slot in range(deepest + 1)),
        rows=tuple(_positions(vectors) for vectors in used),
        groups=tuple(groups),
        blocks=tuple(
            Block(
                slot=slot,
                start=start,
                shape=found[0].place.shape,
                uses=tuple(found),
                whole=_whole_weights(found, groups, len(used[slot])),
            )
            for (slot, start), found in sorted(uses.items())
        ),
    )


def _whole_weights(
    uses: Sequence[BlockUse], groups: Sequence[ShapeGroup], num_vectors: int
) -> tuple[tuple[int, int], ...]:
    """As :class:`Block` has it: every use is of whole weights, and every vector in one of them."""
    if any(use.place.start or use.place.shape != groups[use.group].shape for use in uses):
        return ()
    found = {vector: (use.group, index) for use in uses for index, vector in enumerate(use.vectors)}
    once = len(found) == num_vectors == sum(len(use.vectors) for use in uses)
    return tuple(found[vector] for vector in range(num_vectors)) if once else ()


def _positions(numbers: Sequence[int]) -> Positions:
    """A slice where the numbers are consecutive (a view), else the numbers themselves (a copy)."""
    if list(numbers) == list(range(numbers[0], numbers[0] + len(numbers))):
        return slice(numbers[0], numbers[0] + len(numbers))
    return tuple(numbers)
