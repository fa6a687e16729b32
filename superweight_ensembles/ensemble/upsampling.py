"""From what a layer reads of a bank that is smaller than it, to as many numbers as it has, and gradients back.

Shapes: K windows of r numbers, m tiles, n numbers of the weight (O, *k, I) as one vector.

Source: Plummer et al., ICLR 2022, section 3.2
Differs from paper: a smaller matrix has columns in the order (*k, I), not (I, *k), so that interpolation goes along the
input channels of one kernel position instead of across positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from superweight_ensembles.plan.slots import Shape
from superweight_ensembles.plan.windows import Reading


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """What one target computes.

    Attributes:
        shape: (O, I, *k).
        reading: What it reads.
        key: Of the coefficients that combine its windows; empty with tiles that are mixed each on their own.
        row: Of its vector there.
        tiles: Its rows among the tiles' coefficients of the group.
        masks: Its numbers among the masks of the group.
        mask_window: Numbers that one number of a mask is for.
    """

    shape: Shape
    reading: Reading
    key: str
    row: int
    tiles: slice
    masks: slice
    mask_window: int

    @property
    def num_weights(self) -> int:
        return math.prod(self.shape)

    @property
    def full_matrix(self) -> tuple[int, int]:
        """Rows and columns, (O, k I), that a smaller matrix is interpolated to."""
        return self.shape[0], self.num_weights // self.shape[0]


def enlarge(layer: Layer, combined: Tensor, masks: Tensor | None) -> Tensor:
    """A combined window (r,), or mixed tiles (m, r), to the weight's numbers (n,)."""
    reading = layer.reading
    if reading.matrix != (0, 0):
        small = combined.view(1, 1, *reading.matrix)
        return F.interpolate(small, layer.full_matrix, mode="bilinear", align_corners=False).view(-1)
    if reading.mixed:
        return combined.reshape(-1)[: layer.num_weights]
    if reading.num_tiles == 1:
        return combined
    tiled = combined.repeat(reading.num_tiles)[: layer.num_weights]
    if masks is not None:
        tiled[reading.size :] *= spread(layer, masks)
    return tiled


def shrink(layer: Layer, gradient: Tensor, masks: Tensor | None) -> Tensor:
    """The adjoint of :func:`enlarge`: from the gradient of the weight's numbers (n,) that of what it took."""
    reading = layer.reading
    if reading.matrix != (0, 0):
        return _bilinear_backward(gradient.view(1, 1, *layer.full_matrix), reading.matrix).view(-1)
    if reading.num_tiles == 1:
        return gradient
    tiles = gradient.new_zeros(reading.num_tiles, reading.size)
    flat = tiles.view(-1)[: layer.num_weights]
    flat.copy_(gradient)
    if reading.mixed:
        return tiles
    if masks is not None:
        flat[reading.size :] *= spread(layer, masks)
    return tiles.sum(0)


def mask_gradient(layer: Layer, gradient: Tensor, combined: Tensor, num_masks: int) -> Tensor:
    """The gradient of a layer's masks, from that of the weight's numbers (n,) and the window (r,) they multiply."""
    beyond = gradient[layer.reading.size :]
    repeated = combined.repeat(layer.reading.num_tiles - 1)[: len(beyond)]
    return F.pad(beyond * repeated, (0, num_masks * layer.mask_window - len(beyond))).view(num_masks, -1).sum(1)


def spread(layer: Layer, masks: Tensor) -> Tensor:
    """Masks, each number repeated over its window: (numbers beyond the first tile,)."""
    return masks.repeat_interleave(layer.mask_window)[: layer.reading.masked]


def _bilinear_backward(gradient: Tensor, matrix: tuple[int, int]) -> Tensor:
    if gradient.is_cuda and torch.are_deterministic_algorithms_enabled():
        with torch.enable_grad():  # interpolate knows a way without atomic sums
            small = gradient.new_zeros(1, 1, *matrix).requires_grad_()
            made = F.interpolate(small, gradient.shape[2:], mode="bilinear", align_corners=False)
        return torch.autograd.grad(made, small, gradient)[0]
    size = [1, 1, *matrix]
    return torch.ops.aten.upsample_bilinear2d_backward(gradient, list(gradient.shape[2:]), size, False, None, None)
