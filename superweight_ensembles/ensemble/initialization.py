"""Start values of templates, flat banks and coefficients.

Every target starts with the standard deviation that its own layer's initialiser gave it, whether a norm follows or
not: a target's coefficient vector in a slot has the norm ``deviation of the target / deviation of the templates``.

Where a norm follows, the choice is the one that trained best (benchmarks/start_values.py: WRN 16-2, 10-2, 16-1, 10-1 at
a budget of 0.83, 12,800 CIFAR-10 images at 16 x 16, 6 epochs, mean of two seeds). Final training loss, summed over the
members: members apart 4.67; templates with the deviation of the slot's widest user 4.57, of its narrowest 4.81; with
coefficient vectors of norm one instead 4.59 and 4.83. Templates of half that variance reach 4.50, but they learn as if
at twice the rate, and at twice the rate the members apart reach 4.37: a matter of the learning rate, not of the start.

In a group of a Shapeshifter Network, coefficients start orthogonal, masks at 1 / (window x tiles). ``avg`` and
``softmax`` cannot scale a weight: a fixed gain for each layer, which is not trained, does.

Source: Plummer et al., ICLR 2022 (groups)
Differs from paper: the published code draws every template with a Kaiming deviation of fan-in 9, whatever the layer;
groups are scaled to their layers' deviations, and no number of a bank is left out, whatever its length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from superweight_ensembles.ensemble.generation import slot_key
from superweight_ensembles.ensemble.ssn_weights import (
    bank_key,
    compile_group,
    group_layers,
    masks_key,
    tiles_key,
    vectors_by_key,
)
from superweight_ensembles.ensemble.superweights import combination, compose
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.plan import Cluster, SharingPlan, SsnGroup

Deviations = dict[tuple[str, str], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class StartValues:
    """The tensors of a bank, by key."""

    templates: dict[str, Tensor] = field(default_factory=dict)  # (K, Q) by slot; (P,) by Shapeshifter group
    coefficients: dict[str, Tensor] = field(default_factory=dict)  # (N, K), embeddings (N, E), of tiles (m, 2), masks
    mixers: dict[str, Tensor] = field(default_factory=dict)  # (K, E + 1) where there are embeddings
    gains: dict[str, Tensor] = field(default_factory=dict)  # not trained: (N, K) as coefficients, (N, 1) of a softmax


def own_deviations(plan: SharingPlan, members: dict[str, nn.Module]) -> Deviations:
    """The root mean square of every target as its member was built, by (member, parameter name)."""
    with torch.no_grad():
        found = {
            (target.member, target.name): float(
                members[target.member].get_parameter(target.name).double().square().mean().sqrt()
            )
            for cluster in plan.clusters
            for target in cluster.targets
        }
    for (member, name), deviation in found.items():
        if not math.isfinite(deviation):
            raise SuperWeightError(f"member {member!r}: {name} holds numbers that are not finite")
    return found


def initial_values(plan: SharingPlan, deviations: Deviations, rng: torch.Generator | None = None) -> StartValues:
    """Draw the start values of a plan, cluster by cluster, for the deviation of every target."""
    values = StartValues()
    for index, cluster in enumerate(plan.clusters):
        if isinstance(cluster, Cluster):
            _draw_slots(index, cluster, deviations, rng, values)
        else:
            _draw_group(index, cluster, deviations, rng, values)
    return values


def _draw_slots(
    index: int, cluster: Cluster, deviations: Deviations, rng: torch.Generator | None, values: StartValues
) -> None:
    for slot, (planned, block) in enumerate(zip(cluster.slots, cluster.blocks)):
        users = user_deviations(cluster, slot, deviations)
        # templates get the smallest deviation among users; coefficients scale each target to its own
        reference = min((value for value in users if value > 0), default=_kaiming(planned.shape))
        gains = torch.tensor(users, dtype=torch.float64) / reference
        key = slot_key(index, slot)
        values.templates[key] = reference * orthogonal_templates(planned.num_templates, block.size, rng)
        if cluster.coefficients == "embedding":
            embeddings = orthonormal_runs(planned.num_vectors, cluster.embedding_size, rng)
            mixer = torch.randn(planned.num_templates, cluster.embedding_size, generator=rng)
            rows = embeddings @ mixer.T
        else:
            rows = orthonormal_runs(planned.num_vectors, planned.num_templates, rng)
        made = (rows @ values.templates[key]).square().mean(1, keepdim=True).sqrt()
        scale = gains.to(rows)[:, None] * reference / made
        if cluster.coefficients == "embedding":
            values.coefficients[key] = embeddings * scale
            values.mixers[key] = torch.cat([mixer, torch.zeros(planned.num_templates, 1)], dim=1)
        else:
            values.coefficients[key] = rows * scale


def user_deviations(cluster: Cluster, slot: int, deviations: Deviations) -> list[float]:
    """The smallest deviation above zero among the users of each coefficient vector of a slot."""
    found: list[list[float]] = [[] for _ in range(cluster.slots[slot].num_vectors)]
    for target in cluster.targets:
        if target.slot >= slot:
            found[target.vectors[slot]].append(deviations[target.member, target.name])
    return [min((value for value in values if value > 0), default=0.0) for values in found]


def _draw_group(
    index: int, group: SsnGroup, deviations: Deviations, rng: torch.Generator | None, values: StartValues
) -> None:
    wanted = [deviations[target.member, target.name] for target in group.targets]
    reference = min((value for value in wanted if value > 0), default=1.0)
    values.templates[bank_key(index)] = reference * torch.randn(group.bank_size, generator=rng)
    layers, options = group_layers(index, group), group.options
    for key, places in vectors_by_key(index, group.window_specs).items():
        num_windows = layers[places[0]].spec.num_windows
        if options.combine == "emb":
            values.coefficients[key] = orthonormal_runs(len(places), options.embedding_size, rng)
            mixer = torch.randn(num_windows, options.embedding_size, generator=rng)
            values.mixers[key] = torch.cat([mixer, torch.zeros(num_windows, 1)], dim=1)
        elif options.combine == "wavg" or (options.combine == "softmax" and num_windows > 1):
            values.coefficients[key] = orthonormal_runs(len(places), num_windows, rng)
        if options.combine == "avg" or (options.combine == "softmax" and num_windows == 1):
            values.gains[key] = torch.full((len(places), num_windows), 1 / num_windows)
        elif options.combine == "softmax":
            values.gains[key] = torch.ones(len(places), 1)
    if mixed := [layer.spec.num_tiles for layer in layers if layer.spec.mixed]:
        runs = [orthonormal_runs(num_tiles, 2, rng) for num_tiles in mixed]
        values.coefficients[tiles_key(index)] = torch.cat(runs)
    if masked := [layer for layer in layers if layer.spec.masked]:
        starts = [
            torch.full((layer.masks.stop - layer.masks.start,), 1 / (layer.mask_window * layer.spec.num_tiles))
            for layer in masked
        ]
        values.coefficients[masks_key(index)] = torch.cat(starts)
    _scale_(index, group, values, wanted)


def _scale_(index: int, group: SsnGroup, values: StartValues, wanted: list[float]) -> None:
    """Scale each layer's own coefficients so that its weight has the deviation wanted."""
    members = {target.member for target in group.targets}
    program = compile_group(index, group, members)
    assert program is not None, "a group has targets"
    combined = {
        key: combination(values.coefficients.get(key), values.mixers.get(key), values.gains.get(key))
        for key in program.keys
    }
    made = compose(program, program.factors(combined, values.templates))
    for layer, weight, deviation in zip(program.layers, made, wanted):
        found = float(weight.double().square().mean().sqrt())
        factor = deviation / found if found else 0.0
        if not layer.key:
            values.coefficients[tiles_key(index)][layer.tiles] *= factor
        elif layer.key in values.gains:
            values.gains[layer.key][layer.row] *= factor
        else:
            values.coefficients[layer.key][layer.row] *= factor


def orthogonal_templates(count: int, size: int, rng: torch.Generator | None = None) -> Tensor:
    """Random rows (count, size) of root mean square one, orthogonal to each other where count <= size."""
    rows = torch.randn(count, size, generator=rng)
    # orthogonality makes the deviation of any combination exact instead of exact on average
    if 1 < count <= size:
        factor = torch.linalg.cholesky(rows.double() @ rows.double().T)
        # contiguous: the solver's answer is column by column, which would slow every product with the templates
        rows = torch.linalg.solve_triangular(factor.to(rows), rows, upper=False).contiguous()
    return rows * (math.sqrt(size) / rows.norm(dim=1, keepdim=True))


def orthonormal_runs(count: int, size: int, rng: torch.Generator | None = None) -> Tensor:
    """Unit vectors (count, size), orthogonal in runs of ``size``: as far as the dimension allows."""
    runs = []
    for start in range(0, count, size):
        square = torch.empty(size, size)
        nn.init.orthogonal_(square, generator=rng)
        runs.append(square[: count - start])
    return torch.cat(runs)


def _kaiming(shape: tuple[int, ...]) -> float:
    return math.sqrt(2 / math.prod(shape[1:]))
