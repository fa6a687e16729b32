"""All weights of all members from templates and coefficients, batched per (cluster, slot).

The plan is compiled once into programs (``compile_plan``) that run every step: as a part of a graph
(``run_programs``), or beside the members' graphs (``begin_programs``), which costs less.

Shapes: N coefficient vectors of a slot, Q numbers in it, K templates, P numbers in a flat bank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from superweight_ensembles.ensemble.ssn_weights import compile_group
from superweight_ensembles.ensemble.superweights import (
    Block,
    BlockUse,
    ClusterProgram,
    Positions,
    Program,
    ShapeGroup,
    autocast_type,
    compose,
    kernel_and_columns,
)
from superweight_ensembles.plan import (
    Box,
    Cluster,
    GeneratedTensor,
    PlannedTarget,
    SharingPlan,
    SlotBlocks,
    placements,
)

Weights = dict[str, dict[str, Tensor]]

_NUMBERS_TOGETHER = 2**18  # up to this, a cluster takes one product for all members: the time is worth the memory


def slot_key(cluster: int, slot: int) -> str:
    """The name of a slot's tensors in a state dict."""
    return f"c{cluster}s{slot}"


def compile_plan(plan: SharingPlan, members: Collection[str] | None = None) -> tuple[Program, ...]:
    """Compile a plan into programs, for all members or for some of them."""
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
def run_programs(
    programs: Sequence[Program],
    coefficients: Mapping[str, Tensor],
    templates: Mapping[str, Tensor],
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Weights:
    """Generate weights from templates and coefficients by key, in the autocast dtype where one is active."""
    weights = _Sorted(torch.cat)
    for program in programs:
        weights.add(program.targets, compose(program, program.factors(coefficients, templates), memory_format))
    return weights.by_member


class _Sorted:
    """Weights by member and name, as layers read them; ``join`` makes one tensor of the parts of a fused one."""

    def __init__(self, join: Callable[[list[Tensor]], Tensor]) -> None:
        self.by_member: Weights = {}
        self._join = join
        self._parts: dict[tuple[str, str], dict[int, Tensor]] = {}

    def add(self, targets: Sequence[GeneratedTensor], made: Sequence[Tensor]) -> None:
        for target, weight in zip(targets, made):
            weight = target.as_layer(weight)
            if target.part is not None:
                index, count = target.part
                parts = self._parts.setdefault((target.member, target.name), {})
                parts[index] = weight
                if len(parts) < count:
                    continue
                weight = self._join([parts[index] for index in range(count)])
                del self._parts[target.member, target.name]
            self.by_member.setdefault(target.member, {}).update(dict.fromkeys(target.names, weight))


def _joined(parts: list[Tensor]) -> Tensor:
    """One tensor of its parts, outside of autograd: a view where they follow one another in memory."""
    first, size = parts[0], parts[0].numel()
    if all(
        part.is_contiguous()
        and part.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        and part.storage_offset() == first.storage_offset() + index * size
        for index, part in enumerate(parts)
    ):
        return first.as_strided((len(parts) * len(first), *first.shape[1:]), first.stride())
    return torch.cat(parts)


class Begun:
    """Generated weights as leaves of the members' graphs; takes their gradients to the bank."""

    def __init__(self, weights: Weights, parts: Sequence[_Part]) -> None:
        self.weights = weights  # as SuperWeightBank.generate gives them; nothing else here holds on to them
        self._parts = parts
        self._end: Tensor | None = None
        if parts:
            self._end = _End.apply(parts, *(factor for part in parts for factor in part.factors))
        self._places: dict[str, list[tuple[GeneratedTensor, list[Tensor | None], int]]] = {}
        for part in parts:
            for place, target in enumerate(part.program.targets):
                self._places.setdefault(target.member, []).append((target, part.gradients, place))

    def collect(self, name: str, weights: Mapping[str, Tensor]) -> None:
        """Take the gradients off a member's weights."""
        for target, gradients, place in self._places.get(name, ()):
            gradient = weights[target.name].grad
            gradients[place] = None if gradient is None else target.of(gradient)
        for weight in weights.values():
            weight.grad = None

    def labelled(self) -> dict[tuple[str, str], Tensor]:
        """The collected gradients by (member, parameter name); of tied names the first."""
        found = _Sorted(torch.cat)
        for part in self._parts:
            targets, gradients = part.program.targets, part.gradients
            came = [(target, gradient) for target, gradient in zip(targets, gradients) if gradient is not None]
            found.add([target for target, _ in came], [gradient for _, gradient in came])
        first = dict.fromkeys((target.member, target.name) for part in self._parts for target in part.program.targets)
        return {key: found.by_member[key[0]][key[1]] for key in first if key[1] in found.by_member.get(key[0], {})}

    def backward(self) -> None:
        """Pass the collected gradients on to the bank, once; each cluster's are freed when it is done."""
        came = any(gradient is not None for part in self._parts for gradient in part.gradients)
        if came and self._end is not None and self._end.requires_grad:
            self._end.backward()


@dataclass(frozen=True, slots=True)
class _Part:
    """Factors of one program, and the gradients that come to its weights."""

    program: Program
    factors: tuple[Tensor, ...]
    gradients: list[Tensor | None]


class _End(torch.autograd.Function):
    """End of the factors' graph: backward begins here, with gradients that were collected apart."""

    @staticmethod
    def forward(ctx: Any, parts: Sequence[_Part], *factors: Tensor) -> Tensor:
        ctx.parts = parts
        return factors[0].new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, start: Tensor) -> tuple[Tensor | None, ...]:
        needed, found = list(ctx.needs_input_grad[1:]), []
        for part in ctx.parts:
            count = len(part.factors)
            wanted, needed = needed[:count], needed[count:]
            if any(wanted) and any(gradient is not None for gradient in part.gradients):
                found += part.program.gradients(part.factors, wanted, part.gradients)
            else:
                found += [None] * count
            part.gradients.clear()
        return None, *found


def begin_programs(
    programs: Sequence[Program],
    coefficients: Mapping[str, Tensor],
    templates: Mapping[str, Tensor],
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Begun:
    """As :func:`run_programs`, for backward in two steps: to the weights, and from them to the bank."""
    weights = _Sorted(_joined)
    parts = []
    for program in programs:
        factors = program.factors(coefficients, templates)
        with torch.no_grad():
            made = program.compose(factors, autocast_type(factors[0]), memory_format)
            weights.add(program.targets, made)
        parts.append(_Part(program, factors, [None] * len(made)))
    for weight in (weight for own in weights.by_member.values() for weight in own.values()):
        weight.requires_grad_()
    return Begun(weights.by_member, parts)


def decompose(blocks: Sequence[SlotBlocks], weight: Tensor) -> list[Tensor]:
    """The SuperWeights (Q_r,) of slots 0 to the weight's own that compose to a weight (O, I, *kernel)."""
    vectors = [weight.new_zeros(block.size) for block in blocks]
    for place in placements(blocks):
        rows, columns, *kernel = place.shape
        numbers = vectors[place.slot][place.start : place.start + math.prod(place.shape)]
        # numbers that a later slot cropped stay zero
        numbers.view(rows, *kernel, columns).movedim(-1, 1)[_slices(place.inside)] = weight[_slices(place.at)]
    return vectors


def _slices(box: Box) -> tuple[slice, ...]:
    return tuple(slice(*side) for side in box)


def _compile_cluster(index: int, cluster: Cluster, targets: Sequence[PlannedTarget]) -> ClusterProgram:
    deepest, every_block = max((target.slot for target in targets), default=-1), cluster.blocks
    groups: list[ShapeGroup] = []
    uses: dict[tuple[int, int], list[BlockUse]] = {}
    # weights of one member alone are freed when it has run; groups of all members save products
    together = sum(math.prod(cluster.slots[target.slot].shape) for target in targets) <= _NUMBERS_TOGETHER
    grouped: dict[tuple[int, str], list[PlannedTarget]] = {}
    for target in targets:
        grouped.setdefault((target.slot, "" if together else target.member), []).append(target)
    used = [  # in the order of their uses, so that uses read consecutive rows
        list(dict.fromkeys(t.vectors[slot] for (last, _), same in grouped.items() if last >= slot for t in same))
        for slot in range(deepest + 1)
    ]
    order = [{vector: position for position, vector in enumerate(vectors)} for vectors in used]
    for (last, _), same in grouped.items():
        for place in placements(every_block[: last + 1]):
            vectors = tuple(order[place.slot][target.vectors[place.slot]] for target in same)
            use = BlockUse(
                group=len(groups), place=place, positions=_positions(vectors), vectors=vectors,
                at=kernel_and_columns(place.at, cluster.slots[last].shape),
                inside=kernel_and_columns(place.inside, place.shape),
            )  # fmt: skip
            uses.setdefault((place.slot, place.start), []).append(use)
        groups.append(ShapeGroup(shape=cluster.slots[last].shape, targets=tuple(same)))
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
    """``Block.whole``: not empty if every use is of whole weights, and every vector makes exactly one."""
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
