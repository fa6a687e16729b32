"""Start values of the groups of a Shapeshifter Network: each target starts with its own layer's deviation.

Source: Plummer et al., ICLR 2022: coefficients start orthogonal, masks at 1 / (window x tiles).
Differs from paper: scaled to the deviation that the layer's own initialiser gave it, and no number of a bank is left
out, whatever its length. ``avg`` and ``softmax`` cannot scale: a fixed gain a layer, which is not trained, does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from superweight_ensembles.ensemble.combination import combination
from superweight_ensembles.ensemble.random_rows import orthonormal_runs
from superweight_ensembles.ensemble.ssn_composition import (
    bank_key,
    compile_group,
    compose_group,
    group_layers,
    masks_key,
    tiles_key,
    vectors_by_key,
)
from superweight_ensembles.plan.group import SsnGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupValues:
    """Tensors of one group, by key.

    Attributes:
        bank: (P,).
        coefficients: (N, K) or embeddings (N, E); of tiles (m, 2); masks (numbers,).
        mixers: (K, E + 1) of embeddings.
        gains: Factors that are not trained: (N, K) in the place of coefficients (``avg``), (N, 1) of a softmax.
    """

    bank: dict[str, Tensor]
    coefficients: dict[str, Tensor] = field(default_factory=dict)
    mixers: dict[str, Tensor] = field(default_factory=dict)
    gains: dict[str, Tensor] = field(default_factory=dict)


def group_values(
    index: int,
    group: SsnGroup,
    deviations: Mapping[tuple[str, str], float],
    generator: torch.Generator | None = None,
) -> GroupValues:
    """Draw the bank and the coefficients of a group.

    Args:
        index: Of the group in its plan.
        group: What to draw for.
        deviations: Of every target, by (member, parameter name).
        generator: Source of the randomness; the global one where None.
    """
    wanted = [deviations[target.member, target.name] for target in group.targets]
    reference = min((value for value in wanted if value > 0), default=1.0)
    values = GroupValues(bank={bank_key(index): reference * torch.randn(group.bank_size, generator=generator)})
    layers = group_layers(index, group)
    for key, places in vectors_by_key(index, group.readings).items():
        num_windows = layers[places[0]].reading.num_windows
        options = group.options
        if options.combine == "emb":
            values.coefficients[key] = orthonormal_runs(len(places), options.embedding_size, generator)
            mixer = torch.randn(num_windows, options.embedding_size, generator=generator)
            values.mixers[key] = torch.cat([mixer, torch.zeros(num_windows, 1)], dim=1)
        elif options.combine == "wavg" or (options.combine == "softmax" and num_windows > 1):
            values.coefficients[key] = orthonormal_runs(len(places), num_windows, generator)
        if options.combine == "avg" or (options.combine == "softmax" and num_windows == 1):
            values.gains[key] = torch.full((len(places), num_windows), 1 / num_windows)
        elif options.combine == "softmax":
            values.gains[key] = torch.ones(len(places), 1)
    mixed = [layer.reading.num_tiles for layer in layers if layer.reading.mixed]
    if mixed:
        runs = [orthonormal_runs(num_tiles, 2, generator) for num_tiles in mixed]
        values.coefficients[tiles_key(index)] = torch.cat(runs)
    masked = [layer for layer in layers if layer.reading.masked]
    if masked:
        starts = [
            torch.full((layer.masks.stop - layer.masks.start,), 1 / (layer.mask_window * layer.reading.num_tiles))
            for layer in masked
        ]
        values.coefficients[masks_key(index)] = torch.cat(starts)
    _scale_(index, group, values, wanted)
    return values


def _scale_(index: int, group: SsnGroup, values: GroupValues, wanted: list[float]) -> None:
    """Scale what is each layer's own so that its weight has the deviation wanted."""
    members = {target.member for target in group.targets}
    program = compile_group(index, group, members)
    assert program is not None, "a group has targets"
    combined = {
        key: combination(values.coefficients.get(key), values.mixers.get(key), values.gains.get(key))
        for key in program.keys
    }
    made = compose_group(program, values.bank[program.bank], combined)
    for layer, weight, deviation in zip(program.layers, made, wanted):
        found = float(weight.double().square().mean().sqrt())
        factor = deviation / found if found else 0.0
        if not layer.key:
            values.coefficients[tiles_key(index)][layer.tiles] *= factor
        elif layer.key in values.gains:
            values.gains[layer.key][layer.row] *= factor
        else:
            values.coefficients[layer.key][layer.row] *= factor
