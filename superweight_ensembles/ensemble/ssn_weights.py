"""The weights of one group of a Shapeshifter Network from its bank and coefficients, forward and backward.

A layer's windows follow one another in the bank, so they are one strided view of it: one product with the layer's
coefficients combines them, and the weight is written once, in the type and the memory format that layers read.
Backward adds each layer's gradient into the same view of the bank's gradient; only the bank and the coefficients are
kept for it. Layers read the wrapped bank: the bank, and again as much of its start as windows read past its end. Where
a layer is larger than the bank, the numbers that it reads are enlarged to the size of its weight.

Shapes: P numbers in the bank, K windows of r numbers, N vectors of one K, m tiles, n numbers of a weight (O, I, *k) as
one vector, in the order (O, *k, I).

Source: Plummer et al., ICLR 2022, section 3.2
Differs from paper: a smaller matrix has columns in the order (*k, I), not (I, *k), so that interpolation goes along the
input channels of one kernel position instead of across positions.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from superweight_ensembles.ensemble.superweights import empty_weights, fitting_threads
from superweight_ensembles.plan import Shape, SsnGroup, Target, WindowSpec


def bank_key(index: int) -> str:
    """The name of a group's bank in a state dict."""
    return f"c{index}"


def tiles_key(index: int) -> str:
    """The name of the coefficients of a group's tiles, (tiles of all layers, 2)."""
    return f"c{index}tiles"


def masks_key(index: int) -> str:
    """The name of a group's masks, (numbers of all layers,)."""
    return f"c{index}masks"


def vectors_by_key(index: int, found: Sequence[WindowSpec]) -> dict[str, list[int]]:
    """Places of the layers that combine the same number of windows, by the key of their coefficients."""
    keys: dict[str, list[int]] = {}
    for place, spec in enumerate(found):
        if not spec.mixed:
            keys.setdefault(f"c{index}k{spec.num_windows}", []).append(place)
    return keys


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerProgram:
    """The computation of the weight of one target."""

    shape: Shape  # (O, I, *k)
    spec: WindowSpec  # the windows that it reads
    key: str  # key of the coefficients that combine its windows; empty where each tile has its own
    row: int  # row of its vector there
    tiles: slice  # its rows among the tiles' coefficients of the group
    masks: slice  # its numbers among the masks of the group
    mask_window: int  # numbers that one number of a mask multiplies

    @property
    def num_weights(self) -> int:
        return math.prod(self.shape)

    @property
    def full_matrix(self) -> tuple[int, int]:
        """Rows and columns, (O, k I), that a smaller matrix is interpolated to."""
        return self.shape[0], self.num_weights // self.shape[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupProgram:
    """The computation of the weights of one group."""

    index: int  # place of the group in its plan
    keys: tuple[str, ...]  # keys of the coefficients that it reads, in the order in which it takes them
    targets: tuple[Target, ...]  # targets whose weights it makes
    layers: tuple[LayerProgram, ...]  # the program of each target
    length: int  # numbers in the wrapped bank

    @property
    def bank(self) -> str:
        """Key of its bank."""
        return bank_key(self.index)

    @property
    def num_weights(self) -> int:
        """Numbers in all weights that it makes."""
        return sum(layer.num_weights for layer in self.layers)

    def factors(self, coefficients: Mapping[str, Tensor], templates: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """The bank (P,), then coefficients: (N, K) of layers with K windows, (m, 2) of tiles, (numbers,) of masks."""
        return templates[self.bank], *(coefficients[key] for key in self.keys)

    def compose(
        self, factors: Sequence[Tensor], dtype: torch.dtype, memory_format: torch.memory_format
    ) -> tuple[Tensor, ...]:
        """As :class:`Program`."""
        bank, *own = factors
        numbers, coefficients = wrapped_bank(self, bank), dict(zip(self.keys, own))
        weights = []
        with torch.autocast(bank.device.type, enabled=False), fitting_threads(self.num_weights, bank.device):
            for layer in self.layers:
                made = layer_numbers(self, layer, numbers, coefficients)
                rows, columns, *kernel = layer.shape
                weight = empty_weights(1, layer.shape, memory_format, dtype, bank.device)[0]
                weight.movedim(1, -1).copy_(made.view(rows, *kernel, columns))
                weights.append(weight)
        return tuple(weights)

    def gradients(
        self, factors: Sequence[Tensor], needed: Sequence[bool], gradients: Sequence[Tensor | None]
    ) -> tuple[Tensor | None, ...]:
        """As :class:`Program`, of all factors."""
        bank, *own = factors
        numbers, coefficients = wrapped_bank(self, bank), dict(zip(self.keys, own))
        of_numbers = torch.zeros_like(numbers)
        found = {key: torch.zeros_like(factor) for key, factor in coefficients.items()}
        with torch.autocast(bank.device.type, enabled=False), fitting_threads(self.num_weights, bank.device):
            for layer, gradient in zip(self.layers, gradients):
                if gradient is not None:
                    flat = gradient.movedim(1, -1).reshape(-1).to(bank.dtype)
                    _add_gradients_(self, layer, flat, numbers, coefficients, of_numbers, found)
        return unwrap_gradient(of_numbers, len(bank)), *found.values()


def compile_group(index: int, group: SsnGroup, members: Collection[str]) -> GroupProgram | None:
    """Turn a group into views of its bank, for the members asked for; None where none of them is in it."""
    layers = group_layers(index, group)
    chosen = [place for place, target in enumerate(group.targets) if target.member in members]
    if not chosen:
        return None
    kept = tuple(layers[place] for place in chosen)
    keys = dict.fromkeys(layer.key for layer in kept if layer.key)
    if any(layer.spec.mixed for layer in kept):
        keys[tiles_key(index)] = None
    if any(layer.spec.masked for layer in kept):
        keys[masks_key(index)] = None
    return GroupProgram(
        index=index,
        keys=tuple(keys),
        targets=tuple(group.targets[place] for place in chosen),
        layers=kept,
        length=max(group.bank_size, *(layer.spec.end for layer in kept)),
    )


def group_layers(index: int, group: SsnGroup) -> tuple[LayerProgram, ...]:
    """The programs of all targets of a group."""
    found = group.window_specs
    rows = {
        place: (key, row) for key, places in vectors_by_key(index, found).items() for row, place in enumerate(places)
    }
    layers = []
    tiles = masks = 0
    for place, (target, spec) in enumerate(zip(group.targets, found)):
        key, row = rows.get(place, ("", 0))
        num_tiles = spec.num_tiles if spec.mixed else 0
        num_masks = math.ceil(spec.masked / group.mask_window) if spec.masked else 0
        layers.append(
            LayerProgram(
                shape=target.shape,
                spec=spec,
                key=key,
                row=row,
                tiles=slice(tiles, tiles + num_tiles),
                masks=slice(masks, masks + num_masks),
                mask_window=min(group.mask_window, max(spec.masked, 1)),
            )
        )
        tiles, masks = tiles + num_tiles, masks + num_masks
    return tuple(layers)


def layer_numbers(
    program: GroupProgram, layer: LayerProgram, numbers: Tensor, coefficients: Mapping[str, Tensor]
) -> Tensor:
    """The numbers of one weight, (n,) in the order (O, *k, I), from the wrapped bank."""
    alpha, masks = _coefficients_of(program, layer, coefficients)
    return enlarge(layer, alpha @ layer_windows(numbers, layer), masks)


def _add_gradients_(
    program: GroupProgram,
    layer: LayerProgram,
    gradient: Tensor,
    numbers: Tensor,
    coefficients: Mapping[str, Tensor],
    of_numbers: Tensor,
    found: Mapping[str, Tensor],
) -> None:
    """Add one layer's gradient (n,) into the gradients of the bank and of its coefficients."""
    windows = layer_windows(numbers, layer)
    of_combined = add_to_bank_(program, layer, gradient, coefficients, of_numbers)
    of_alpha, of_masks = _coefficients_of(program, layer, found)
    of_alpha += windows @ of_combined if of_combined.ndim == 1 else of_combined @ windows.T
    if of_masks is not None:
        alpha, _ = _coefficients_of(program, layer, coefficients)
        of_masks += mask_gradient(layer, gradient, alpha @ windows, len(of_masks))


def add_to_bank_(
    program: GroupProgram, layer: LayerProgram, gradient: Tensor, coefficients: Mapping[str, Tensor], of_numbers: Tensor
) -> Tensor:
    """Add one layer's gradient (n,) into the wrapped bank's gradient; returns that of the combined windows."""
    alpha, masks = _coefficients_of(program, layer, coefficients)
    of_combined, here = shrink(layer, gradient, masks), layer_windows(of_numbers, layer)
    if of_combined.ndim == 1:
        here.addr_(alpha, of_combined)
    else:
        here.addmm_(alpha.T, of_combined)
    return of_combined


def _coefficients_of(
    program: GroupProgram, layer: LayerProgram, coefficients: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor | None]:
    """A layer's combination, (K,) or of mixed tiles (m, 2), and its masks where it has some."""
    alpha = coefficients[layer.key][layer.row] if layer.key else coefficients[tiles_key(program.index)][layer.tiles]
    return alpha, coefficients[masks_key(program.index)][layer.masks] if layer.spec.masked else None


def layer_windows(numbers: Tensor, layer: LayerProgram) -> Tensor:
    """The windows of a layer as a view of the wrapped bank: (K, r)."""
    spec = layer.spec
    return numbers.as_strided((spec.num_windows, spec.size), (spec.stride, 1), numbers.storage_offset() + spec.start)


def wrapped_bank(program: GroupProgram, bank: Tensor) -> Tensor:
    """The bank, then as much of its start as a window that passes its end reads."""
    more = program.length - len(bank)
    return torch.cat([bank, bank[:more]]) if more else bank.contiguous()


def unwrap_gradient(of_numbers: Tensor, size: int) -> Tensor:
    """A gradient of a wrapped bank, added up where it wraps: (size,)."""
    of_bank, wrapped = of_numbers[:size], of_numbers[size:]
    of_bank[: len(wrapped)] += wrapped
    return of_bank


def enlarge(layer: LayerProgram, combined: Tensor, masks: Tensor | None) -> Tensor:
    """The weight's numbers (n,) from a combined window (r,), or from mixed tiles (m, r)."""
    spec = layer.spec
    if spec.matrix != (0, 0):
        small = combined.view(1, 1, *spec.matrix)
        return F.interpolate(small, layer.full_matrix, mode="bilinear", align_corners=False).view(-1)
    if spec.mixed:
        return combined.reshape(-1)[: layer.num_weights]
    if spec.num_tiles == 1:
        return combined
    tiled = combined.repeat(spec.num_tiles)[: layer.num_weights]
    if masks is not None:
        tiled[spec.size :] *= spread(layer, masks)
    return tiled


def shrink(layer: LayerProgram, gradient: Tensor, masks: Tensor | None) -> Tensor:
    """The adjoint of :func:`enlarge`: the gradient of its input from that of the weight's numbers (n,)."""
    spec = layer.spec
    if spec.matrix != (0, 0):
        return _bilinear_backward(gradient.view(1, 1, *layer.full_matrix), spec.matrix).view(-1)
    if spec.num_tiles == 1:
        return gradient
    tiles = gradient.new_zeros(spec.num_tiles, spec.size)
    flat = tiles.view(-1)[: layer.num_weights]
    flat.copy_(gradient)
    if spec.mixed:
        return tiles
    if masks is not None:
        flat[spec.size :] *= spread(layer, masks)
    return tiles.sum(0)


def _bilinear_backward(gradient: Tensor, matrix: tuple[int, int]) -> Tensor:
    if gradient.is_cuda and torch.are_deterministic_algorithms_enabled():
        with torch.enable_grad():  # interpolate then has a backward without atomic sums
            small = gradient.new_zeros(1, 1, *matrix).requires_grad_()
            made = F.interpolate(small, gradient.shape[2:], mode="bilinear", align_corners=False)
        return torch.autograd.grad(made, small, gradient)[0]
    size = [1, 1, *matrix]
    return torch.ops.aten.upsample_bilinear2d_backward(gradient, list(gradient.shape[2:]), size, False, None, None)


def mask_gradient(layer: LayerProgram, gradient: Tensor, combined: Tensor, num_masks: int) -> Tensor:
    """The gradient of a layer's masks, from that of the weight's numbers (n,) and the window (r,) they multiply."""
    beyond = gradient[layer.spec.size :]
    repeated = combined.repeat(layer.spec.num_tiles - 1)[: len(beyond)]
    return F.pad(beyond * repeated, (0, num_masks * layer.mask_window - len(beyond))).view(num_masks, -1).sum(1)


def spread(layer: LayerProgram, masks: Tensor) -> Tensor:
    """Masks, each number repeated over its window: (numbers beyond the first tile,)."""
    return masks.repeat_interleave(layer.mask_window)[: layer.spec.masked]
