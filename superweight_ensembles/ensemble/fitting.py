"""A flat bank and the coefficients of its layers, fitted to given weights.

A weight is linear in the bank and linear in its layer's coefficients, but layers overlap in the bank, so that no
decomposition gives both at once: each is solved for in turn, the bank by conjugate gradients, which need nothing but
the two passes of generation. Every turn comes closer.

Shapes: P numbers in the bank, N layers with one number of windows K, E numbers in an embedding, n numbers of a weight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from superweight_ensembles.ensemble.combination import combination
from superweight_ensembles.ensemble.low_rank import best_affine_factors
from superweight_ensembles.ensemble.ssn_composition import (
    GroupProgram,
    add_to_bank_,
    compile_group,
    folded,
    layer_numbers,
    layer_windows,
    masks_key,
    prolonged,
    tiles_key,
)
from superweight_ensembles.ensemble.upsampling import Layer, enlarge
from superweight_ensembles.plan.group import SsnGroup

_ROUNDS = 4
_STEPS = 20  # of conjugate gradients a round
_ENOUGH = 1e-12  # of the squared gradient at the start of a round


@torch.no_grad()
def fit_group(
    index: int,
    group: SsnGroup,
    weights: Sequence[Tensor],
    bank: Tensor,
    coefficients: Mapping[str, Tensor],
    mixers: Mapping[str, Tensor],
    gains: Mapping[str, Tensor],
) -> None:
    """Set the tensors of a group, from where they are, so that they generate given weights as closely as they come.

    Args:
        index: Of the group in its plan.
        group: Which one.
        weights: (O, I, *k) of its targets, in their order.
        bank: (P,), set.
        coefficients: By key, set: (N, K), embeddings (N, E), tiles, masks. Those of a softmax stay as they are.
        mixers: By key, set where there are embeddings.
        gains: By key, set where there are some: the best factor a layer.
    """
    program = compile_group(index, group, {target.member for target in group.targets})
    assert program is not None, "a group has targets"
    wanted = [weight.detach().movedim(1, -1).flatten().to(bank.device, torch.float64) for weight in weights]
    numbers = bank.double()
    held = {key: tensor.double() for key, tensor in coefficients.items() if key in program.keys}
    factors = {key: tensor.double() for key, tensor in gains.items() if key in program.keys}
    maps = {key: mixers[key].double() for key in program.keys if key in mixers}

    def combined() -> dict[str, Tensor]:
        return {key: combination(held.get(key), maps.get(key), factors.get(key)) for key in program.keys}

    for _ in range(_ROUNDS):
        numbers = _best_bank(program, numbers, combined(), wanted)
        _fit_layers(program, numbers, combined(), wanted, held, maps, factors)
        numbers = _rescaled(index, group, numbers, held)
    bank.copy_(_best_bank(program, numbers, combined(), wanted))
    for tensors, found in ((coefficients, held), (mixers, maps), (gains, factors)):
        for key, values in found.items():
            tensors[key].copy_(values)


def _best_bank(
    program: GroupProgram, bank: Tensor, coefficients: Mapping[str, Tensor], wanted: Sequence[Tensor]
) -> Tensor:
    """Conjugate gradients on the squared distance, from the bank given."""

    def forward(values: Tensor) -> Tensor:
        numbers = prolonged(program, values)
        return torch.cat([layer_numbers(program, layer, numbers, coefficients) for layer in program.layers])

    def back(residual: Tensor) -> Tensor:
        of_numbers = residual.new_zeros(program.length)
        for layer, part in zip(program.layers, residual.split([layer.num_weights for layer in program.layers])):
            add_to_bank_(program, layer, part, coefficients, of_numbers)
        return folded(of_numbers, len(bank))

    found = bank.clone()
    residual = torch.cat(list(wanted)) - forward(found)
    direction = gradient = back(residual)
    length = start = gradient.dot(gradient)
    for _ in range(_STEPS):
        if length <= _ENOUGH * start:
            break
        moved = forward(direction)
        step = length / moved.dot(moved)
        found.add_(direction, alpha=float(step))
        residual.sub_(moved, alpha=float(step))
        gradient = back(residual)
        before, length = length, gradient.dot(gradient)
        direction = gradient + length / before * direction
    return found


def _fit_layers(
    program: GroupProgram,
    bank: Tensor,
    coefficients: Mapping[str, Tensor],
    wanted: Sequence[Tensor],
    held: Mapping[str, Tensor],
    maps: Mapping[str, Tensor],
    factors: Mapping[str, Tensor],
) -> None:
    """What is each layer's own, solved for with the bank as it is."""
    numbers = prolonged(program, bank)
    alphas = {key: coefficients[key].clone() for key in program.keys}
    for layer, given in zip(program.layers, wanted):
        windows = layer_windows(numbers, layer)
        masks = held[masks_key(program.index)][layer.masks] if layer.reading.masked else None
        if layer.reading.mixed:
            held[tiles_key(program.index)][layer.tiles] = _tile_coefficients(windows, given, layer)
            continue
        if layer.key in factors:
            made = enlarge(layer, alphas[layer.key][layer.row] @ windows, masks)
            factors[layer.key][layer.row] *= given.dot(made) / made.dot(made) if made.any() else 1.0
            continue
        basis = torch.stack([enlarge(layer, window, masks) for window in windows], dim=1)
        alphas[layer.key][layer.row] = _least_squares(basis, given)
        if masks is not None:
            tiles = (alphas[layer.key][layer.row] @ windows).repeat(layer.reading.num_tiles)[: layer.num_weights]
            held[masks_key(program.index)][layer.masks] = _masks(tiles, given, masks, layer)
    for key in program.keys:
        if key in maps:
            _place_embeddings(alphas[key], held[key], maps[key])
        elif key in held and key not in factors and key not in (tiles_key(program.index), masks_key(program.index)):
            held[key].copy_(alphas[key])


def _least_squares(basis: Tensor, given: Tensor) -> Tensor:
    """The shortest (K,) that comes nearest to ``given`` (n,), whatever the rank of ``basis`` (n, K).

    Not ``torch.linalg.lstsq``, which on CUDA takes full rank for granted.
    """
    return torch.linalg.pinv(basis) @ given


def _tile_coefficients(windows: Tensor, given: Tensor, layer: Layer) -> Tensor:
    """(m, 2): of each tile the best mixture of the halves; the last one sees as much as the weight has."""
    size = layer.reading.size
    found = []
    for start in range(0, len(given), size):
        part = given[start : start + size]
        found.append(_least_squares(windows[:, : len(part)].T, part))
    return torch.stack(found)


def _masks(tiles: Tensor, given: Tensor, masks: Tensor, layer: Layer) -> Tensor:
    """Of each window of a mask the best factor."""
    size, window = layer.reading.size, layer.mask_window
    found = masks.clone()
    for place in range(len(masks)):
        part = slice(size + place * window, min(size + (place + 1) * window, len(given)))
        if tiles[part].any():
            found[place] = given[part].dot(tiles[part]) / tiles[part].dot(tiles[part])
    return found


def _place_embeddings(alphas: Tensor, embeddings: Tensor, mixer: Tensor) -> None:
    """Embeddings and their map that give coefficients (N, K): exactly up to K = E, beyond it the best affine ones."""
    size, count = embeddings.shape[1], alphas.shape[1]
    if count <= size:
        left, _, right = torch.linalg.svd(mixer[:, :-1], full_matrices=False)
        turn = left @ right
        mixer[:, :-1] = turn * math.sqrt(size)
        mixer[:, -1] = 0
        embeddings.copy_(alphas @ turn / math.sqrt(size))
        return
    found, directions = best_affine_factors(alphas, size)
    parts = found.shape[1] - 1
    embeddings.zero_()
    mixer.zero_()
    embeddings[:, :parts] = found[:, :-1]
    mixer[:, :parts], mixer[:, -1] = directions[:-1].T, directions[-1]


def _rescaled(index: int, group: SsnGroup, bank: Tensor, held: Mapping[str, Tensor]) -> Tensor:
    """The bank with the deviation that makes coefficient vectors of norm one on average; they are divided by it."""
    if group.options.combine != "wavg":
        return bank
    keys = [key for key in held if key != masks_key(index)]
    norms = torch.cat([held[key].norm(dim=1) for key in keys])
    scale = float(norms.mean())
    if not scale:
        return bank
    for key in keys:
        held[key] /= scale
    return bank * scale
