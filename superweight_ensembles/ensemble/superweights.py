"""The weights of one cluster from its coefficients and templates: the fast path of generation, forward and backward.

Block by block, one matrix product makes the SuperWeights of all coefficient vectors, and one copy for each member and
shape puts them in place, in the type and the memory format that layers read. Backward gathers every gradient once and
takes two products, one for the templates and one for the coefficients; only templates and coefficients are kept for it.
On the CPU a block is worked on in pieces of rows that the cache holds, so that templates are read once and weights are
written once.

Shapes: N coefficient vectors of a slot, K templates, E numbers in an embedding, O I *k a block's output channels, input
channels and kernel, H rows of a piece, n targets of one shape.

Source: Teterwak et al., WACV 2024
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from types import EllipsisType
from typing import Any, Protocol, Union

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from superweight_ensembles.plan import Box, GeneratedTensor, Placement, PlannedTarget, Shape

Positions = Union[slice, tuple[int, ...]]

_NUMBERS_IN_CACHE = 2**20  # 4 MiB of float32, which a last-level cache holds; half or four times as many took longer
_NUMBERS_A_THREAD = 2**23  # below that, waking a thread costs more than its work saves: measured on two cores
_ROOMS = threading.local()  # working memory of each thread, by type
_FORMATS = {torch.channels_last: 4, torch.channels_last_3d: 5}


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeGroup:
    """Targets of one shape whose weights are one tensor: of one member, or of all where a cluster has few numbers."""

    shape: Shape  # (O, I, *k)
    targets: tuple[PlannedTarget, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockUse:
    """A part of a block in the weights of a group."""

    group: int  # index of the group
    place: Placement  # where the part stands there
    at: tuple[slice | EllipsisType, ...]  # its kernel positions and columns there, in the order (*k, I)
    inside: tuple[slice | EllipsisType, ...]  # the same in the block
    positions: Positions  # rows of the targets' SuperWeights in the slot's product, in the order of the targets
    vectors: tuple[int, ...]  # the same, one by one


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A block of a slot."""

    slot: int  # index of the slot
    start: int  # place in the slot's vectors at which the block's numbers begin
    shape: Shape  # (O, I, *k)
    uses: tuple[BlockUse, ...]  # one for each group that has a part of it
    # If every vector makes one weight and nothing else: by vector, the weight's group and its index there. Else empty.
    whole: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterProgram:
    """The computation of the weights of one cluster."""

    keys: tuple[str, ...]  # keys of its slots in a state dict
    rows: tuple[Positions, ...]  # the coefficient vectors that it needs of each slot
    groups: tuple[ShapeGroup, ...]  # groups of weights that it makes
    blocks: tuple[Block, ...]  # blocks that it makes them of

    @property
    def targets(self) -> tuple[PlannedTarget, ...]:
        return tuple(target for group in self.groups for target in group.targets)

    @property
    def num_weights(self) -> int:
        """Numbers in all weights that it makes."""
        return sum(len(group.targets) * math.prod(group.shape) for group in self.groups)

    def covers(self, slot: int, templates: Tensor) -> bool:
        """Whether blocks in use are made of every number of a slot's templates (K, Q)."""
        return sum(math.prod(block.shape) for block in self.blocks if block.slot == slot) == templates.shape[1]

    def factors(self, coefficients: Mapping[str, Tensor], templates: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Coefficients (N, K) of each slot, then templates (K, Q) of each; their Q is block after block, (O, *k, I)."""
        alphas = (take(coefficients[key], rows) for key, rows in zip(self.keys, self.rows))
        return *alphas, *(templates[key] for key in self.keys)

    def compose(
        self, factors: Sequence[Tensor], dtype: torch.dtype, memory_format: torch.memory_format
    ) -> tuple[Tensor, ...]:
        """As :class:`Program`; weights of one group are parts of one tensor."""
        coefficients, templates = _halves(factors)
        device = templates[0].device
        groups = [empty_weights(len(group.targets), group.shape, memory_format, dtype, device) for group in self.groups]
        with torch.autocast(device.type, enabled=False), fitting_threads(self.num_weights, device):
            for block in self.blocks:
                alpha, numbers = coefficients[block.slot], templates[block.slot]
                flat = _flat_weights(block, groups) if numbers.dtype == dtype else []
                for rows in _pieces(block, len(alpha), device):
                    if flat:  # the products are the weights: there is nothing to put in place
                        columns = _columns(block, rows)
                        for use, weights in zip(block.uses, flat):
                            torch.mm(take(alpha, use.positions), numbers[:, columns], out=weights[:, columns])
                        continue
                    made = _superweights(alpha, numbers, block, rows)
                    for use in block.uses:
                        part = _part(groups[use.group].movedim(2, -1), use, rows)
                        part.copy_(take(_same_part(made, use, rows), use.positions))
        return tuple(weight for group in groups for weight in group.unbind(0))

    def gradients(
        self, factors: Sequence[Tensor], needed: Sequence[bool], gradients: Sequence[Tensor | None]
    ) -> tuple[Tensor | None, ...]:
        """As :class:`Program`."""
        coefficients, templates = _halves(factors)
        of_coefficients = [torch.zeros_like(own) if wanted else None for own, wanted in zip(coefficients, needed)]
        of_templates = [
            (torch.empty_like if self.covers(slot, own) else torch.zeros_like)(own) if wanted else None
            for slot, (own, wanted) in enumerate(zip(templates, needed[len(coefficients) :]))
        ]
        one_by_one = iter(gradients)
        grouped = [[next(one_by_one) for _ in group.targets] for group in self.groups]
        device = templates[0].device
        with torch.autocast(device.type, enabled=False), fitting_threads(self.num_weights, device):
            for block in self.blocks:
                alpha, numbers = coefficients[block.slot], templates[block.slot]
                for rows in _pieces(block, len(alpha), device):
                    made = _gathered(block, rows, grouped, len(alpha), numbers).view(len(alpha), -1)
                    columns = _columns(block, rows)
                    of_alpha, of_numbers = of_coefficients[block.slot], of_templates[block.slot]
                    if of_alpha is not None:
                        of_alpha.addmm_(made, numbers[:, columns].T)
                    if of_numbers is not None:
                        torch.mm(alpha.T, made, out=of_numbers[:, columns])
        return *of_coefficients, *of_templates


def combination(coefficients: Tensor | None, mixer: Tensor | None = None, gains: Tensor | None = None) -> Tensor:
    """Coefficients as they combine templates, (N, K); gains of a softmax (N, 1).

    Example:
        >>> combination(torch.zeros(1, 2), gains=torch.tensor([[3.0]]))
        tensor([[1.5000, 1.5000]])
    """
    # coefficients (N, K), or embeddings (N, E) with a mixer (K, E + 1), the A and b of alpha = A e + b; gains are not
    # trained: (N, K) in the place of coefficients, else (N, 1), factors of their softmax
    if coefficients is None:
        assert gains is not None, "one of the two combines"
        return gains
    if mixer is not None:
        with torch.autocast(mixer.device.type, enabled=False):
            return F.linear(coefficients, mixer[:, :-1], mixer[:, -1])
    return coefficients if gains is None else coefficients.softmax(1) * gains


class Program(Protocol):
    """Makes some of the weights of a plan from its factors, outside of autograd, and takes gradients back."""

    @property
    def targets(self) -> Sequence[GeneratedTensor]:
        """Targets whose weights it makes."""

    def factors(self, coefficients: Mapping[str, Tensor], templates: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Tensors of a bank, by key, that it reads."""

    def compose(
        self, factors: Sequence[Tensor], dtype: torch.dtype, memory_format: torch.memory_format
    ) -> tuple[Tensor, ...]:
        """The weights (O, I, *k) of its targets."""

    def gradients(
        self, factors: Sequence[Tensor], needed: Sequence[bool], gradients: Sequence[Tensor | None]
    ) -> tuple[Tensor | None, ...]:
        """The gradients of those factors that need one, from those of the weights."""


def compose(
    program: Program, factors: Sequence[Tensor], memory_format: torch.memory_format = torch.contiguous_format
) -> tuple[Tensor, ...]:
    """The weights (O, I, *k) of ``program.targets``, differentiable once, in the autocast type where one is active."""
    # products are taken in the factors' own type, and rounded once
    made: tuple[Tensor, ...] = _Composition.apply(program, autocast_type(factors[0]), memory_format, *factors)
    return made


class _Composition(torch.autograd.Function):
    @staticmethod
    def forward(
        program: Program, dtype: torch.dtype, memory_format: torch.memory_format, *factors: Tensor
    ) -> tuple[Tensor, ...]:
        return program.compose(factors, dtype, memory_format)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.program = inputs[0]
        ctx.save_for_backward(*inputs[3:])
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, None, None, *ctx.program.gradients(ctx.saved_tensors, ctx.needs_input_grad[3:], gradients)


def _flat_weights(block: Block, groups: Sequence[Tensor]) -> list[Tensor]:
    """Weights (n, O, I, *k) of each use as rows (n, Q), if they lie in memory as slots do; else nothing."""
    if not block.whole:
        return []
    held = [groups[use.group].movedim(2, -1) for use in block.uses]
    return [weights.view(len(weights), -1) for weights in held] if held[0].is_contiguous() else []


def _superweights(alpha: Tensor, templates: Tensor, block: Block, rows: slice) -> Tensor:
    """Some rows of a block of every SuperWeight: (N, H, *k, I)."""
    made = _room((len(alpha), rows.stop - rows.start, *block.shape[2:], block.shape[1]), templates)
    torch.mm(alpha, templates[:, _columns(block, rows)], out=made.view(len(alpha), -1))
    return made


def _gathered(
    block: Block, rows: slice, gradients: list[list[Tensor | None]], num_vectors: int, like: Tensor
) -> Tensor:
    """The gradients of some rows of a block of every SuperWeight, summed over its uses: (N, H, *k, I)."""
    made = _room((num_vectors, rows.stop - rows.start, *block.shape[2:], block.shape[1]), like)
    one_each = [gradients[group][index] for group, index in block.whole]
    if one_each and not any(gradient is None for gradient in one_each):
        return torch.stack([gradient.movedim(1, -1)[rows] for gradient in one_each if gradient is not None], out=made)
    fresh = [True] * num_vectors
    for use in block.uses:
        for vector, gradient in zip(use.vectors, gradients[use.group]):
            if gradient is None:
                continue
            part = _part(gradient.movedim(1, -1)[None], use, rows)[0]
            there = made[vector]
            if fresh[vector] and part.shape == there.shape:
                there.copy_(part)
            else:
                if fresh[vector]:
                    there.zero_()
                _same_part(there[None], use, rows)[0].add_(part)
            fresh[vector] = False
    for vector, nothing in enumerate(fresh):
        if nothing:
            made[vector].zero_()
    return made


def _room(shape: Sequence[int], like: Tensor) -> Tensor:
    """Memory for one piece at a time; on the CPU it is reused, since its pages and cache lines are there already."""
    size = math.prod(shape)
    stands_in = type(like) not in (Tensor, nn.Parameter) or torch._C._are_functorch_transforms_active()
    if stands_in or like.device.type != "cpu" or size > _NUMBERS_IN_CACHE:
        return like.new_empty(shape)
    held: dict[torch.dtype, Tensor] = _ROOMS.__dict__.setdefault("held", {})
    if like.dtype not in held or len(held[like.dtype]) < size:
        with torch.inference_mode(False):  # other calls will write there, too
            held[like.dtype] = torch.empty(size, dtype=like.dtype, device=like.device)
    return held[like.dtype][:size].view(shape)


def _pieces(block: Block, num_vectors: int, device: torch.device) -> Iterator[slice]:
    """Runs of a block's rows: all at once or, on the CPU, as many as the cache holds for all vectors."""
    height = block.shape[0]
    if device.type == "cpu":
        height = max(1, _NUMBERS_IN_CACHE // (num_vectors * math.prod(block.shape[1:])))
    for start in range(0, block.shape[0], height):
        yield slice(start, min(start + height, block.shape[0]))


def _part(weights: Tensor, use: BlockUse, rows: slice) -> Tensor:
    """Part of weights (n, O, *k, I) that some rows of a block fill, without rows that are cropped away."""
    (top, _), (_, height) = use.place.at[0], use.place.inside[0]
    held = (slice(None), slice(top + min(rows.start, height), top + min(rows.stop, height)), *use.at)
    return weights[held]


def _same_part(made: Tensor, use: BlockUse, rows: slice) -> Tensor:
    """The same part in those rows of the block, (N, H, *k, I)."""
    _, height = use.place.inside[0]
    held = (slice(None), slice(min(rows.stop, height) - min(rows.start, height)), *use.inside)
    return made[held]


def kernel_and_columns(box: Box, whole: Shape) -> tuple[slice | EllipsisType, ...]:
    """The last indices of a box in a tensor (n, O, *k, I); no slice of the kernel where all of it is there."""
    _, columns, *kernel = box
    if all(side == (0, size) for side, size in zip(kernel, whole[2:])):
        return ..., slice(*columns)
    return *(slice(*side) for side in kernel), slice(*columns)


def _columns(block: Block, rows: slice) -> slice:
    """Columns of some rows of a block in the vectors of its slot."""
    size = math.prod(block.shape[1:])
    return slice(block.start + rows.start * size, block.start + rows.stop * size)


def _halves(tensors: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    middle = len(tensors) // 2
    return tensors[:middle], tensors[middle:]


def take(tensor: Tensor, positions: Positions) -> Tensor:
    """Rows of a tensor: a view where they follow one another, the tensor where they are all of it."""
    if isinstance(positions, slice):
        return tensor if positions == slice(0, len(tensor)) else tensor[positions]
    return tensor.index_select(0, _index(positions, tensor.device))


@lru_cache(maxsize=4096)
def _index(positions: tuple[int, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # a later call with autograd keeps it for backward
        return torch.tensor(positions, device=device)


def autocast_type(templates: Tensor) -> torch.dtype:
    """Type of weights made from templates: autocast's where it is active, but for float64."""
    device_type = templates.device.type
    if torch.is_autocast_enabled(device_type) and templates.dtype != torch.float64:
        return torch.get_autocast_dtype(device_type)
    return templates.dtype


@contextmanager
def fitting_threads(num_weights: int, device: torch.device) -> Iterator[None]:
    """Use no more CPU threads than making so many numbers is worth."""
    before = torch.get_num_threads()
    worth = 1 + num_weights // _NUMBERS_A_THREAD
    if device.type != "cpu" or worth >= before:
        yield
        return
    torch.set_num_threads(worth)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def empty_weights(
    count: int, shape: Shape, memory_format: torch.memory_format, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Empty weights (n, O, I, *k), each in the memory format where that is one for their dimensions."""
    if _FORMATS.get(memory_format) == len(shape):
        rows, columns, *kernel = shape
        return torch.empty(count, rows, *kernel, columns, dtype=dtype, device=device).movedim(-1, 2)
    return torch.empty(count, *shape, dtype=dtype, device=device)
