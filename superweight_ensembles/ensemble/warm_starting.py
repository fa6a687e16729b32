"""A bank that starts from trained members: in every slot the templates and coefficients nearest to their weights.

Slots of SuperWeights: the best common templates of the members' weights come from a singular value decomposition, by
way of the small Gram matrix. Flat banks: a weight is linear in the bank and linear in its layer's coefficients, but
layers overlap in the bank, so that no decomposition gives both at once: each is solved for in turn, the bank by
conjugate gradients, which need nothing but the two passes of generation. Every turn comes closer.

Shapes: N coefficient vectors of a slot or of layers with one number of windows, n rows (targets) that share vectors,
Q numbers in a slot, K templates or windows, E numbers in an embedding, P numbers in a flat bank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from superweight_ensembles.ensemble.bank import SuperWeightBank
from superweight_ensembles.ensemble.ensemble import SuperWeightEnsemble
from superweight_ensembles.ensemble.generation import decompose, slot_key
from superweight_ensembles.ensemble.ssn_weights import (
    GroupProgram,
    LayerProgram,
    add_to_bank_,
    bank_key,
    compile_group,
    enlarge,
    layer_numbers,
    layer_windows,
    masks_key,
    tiles_key,
    unwrap_gradient,
    wrapped_bank,
)
from superweight_ensembles.ensemble.superweights import combination
from superweight_ensembles.errors import SuperWeightError, names_options
from superweight_ensembles.plan import Cluster, Members, SsnGroup, check_plan_fits, named_members
from superweight_ensembles.storage import escape_controls

GivenWeights = Mapping[str, Mapping[str, Tensor]]  # by member and parameter name
Fit = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

_NOTHING = 1e-12  # distance from a weight of zeros that counts as none
_NUMBERS_A_PIECE = 2**22  # float64 numbers, 32 MiB, that are held at a time beside the vectors themselves
_MOST_ROUNDS = 200  # rounds of filling gaps
_SETTLED = 1e-10  # share of the rows' norm: a round that comes closer by no more is the last
_ROUNDS = 4  # rounds that fit a flat bank and its layers in turn
_STEPS = 20  # steps of conjugate gradients in a round
_ENOUGH = 1e-12  # share of a round's first squared gradient at which its steps end


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmStart:
    """How near a bank came to the weights that it was started from.

    Attributes:
        errors: Relative error ||W - generated|| / ||W||, Frobenius norms, by (member, parameter name); of a weight of
            zeros 0 where it stays zero, else 1.
    """

    errors: dict[tuple[str, str], float]

    @property
    def mean_error(self) -> float:
        """Mean error of all generated tensors; 0 without any."""
        return math.fsum(self.errors.values()) / max(1, len(self.errors))

    def to_dict(self) -> dict[str, Any]:
        """The errors as JSON holds them."""
        return {
            "mean_error": self.mean_error,
            "errors": [
                {"member": member, "parameter": name, "error": error} for (member, name), error in self.errors.items()
            ],
        }

    def __str__(self) -> str:
        rows = [("member", "parameter", "error")]
        rows += [
            (escape_controls(member, keep=""), escape_controls(name, keep=""), f"{error:.4f}")
            for (member, name), error in self.errors.items()
        ]
        rows.append(("mean", f"of {len(self.errors)}", f"{self.mean_error:.4f}"))
        wide, wider = (max(len(row[column]) for row in rows) for column in range(2))
        lines = [f"{member:<{wide}}  {name:<{wider}}  {error:>6}" for member, name, error in rows]
        rule = "-" * len(lines[0])
        return "\n".join(
            ["Warm start: relative error of each generated weight", lines[0], rule, *lines[1:-1], rule, lines[-1]]
        )


@torch.no_grad()
@names_options
def warm_start(ensemble: SuperWeightEnsemble, members: Members | SuperWeightEnsemble) -> WarmStart:
    """Start an ensemble from trained members: every slot of the bank becomes the best fit to their weights.

    In each slot, the members' weights have vectors that form a matrix (N, Q); templates and coefficients become its
    best approximation of rank K (singular value decomposition). As many templates as coefficient vectors reproduce the
    members' weights. Norms, heads, biases and buffers are copied as they are.

    How the product is split between its factors decides how it trains on. The columns of the coefficients are
    orthogonal and of one length, their rows have norm one on average, and the templates together have the deviation of
    the fitted weights: the scale of the library's own start values, so that learning rates mean what they mean there.
    With as many templates as vectors, a step of SGD on the templates is one on the members' own weights. Templates left
    over keep the values that they have, with coefficients of zero. Numbers that a later slot crops away are left out of
    the fit; tied coefficients fit the mean of their users; embeddings of E numbers hold the fit of up to E templates,
    and beyond it the best affine one.

    Layers overlap in the bank of a Shapeshifter Network, which no decomposition solves at once: bank and coefficients
    are solved for in turn, by least squares, a few times.

    Args:
        ensemble: Changed in place.
        members: Trained networks of the ensemble's names and shapes, or an ensemble of them, whatever its plan.

    Raises:
        SuperWeightError: Other members or shapes than the plan's; a tensor that is not finite (names it).

    Example:
        >>> import superweight_ensembles as swe
        >>> members = {"deep": swe.wide_resnet(16, 1, 10), "shallow": swe.wide_resnet(10, 1, 10)}  # trained apart
        >>> ensemble = swe.SuperWeightEnsemble(members, budget=0.7)
        >>> result = swe.warm_start(ensemble, members)
        >>> 0 < result.mean_error < 1
        True
    """
    if not isinstance(ensemble, SuperWeightEnsemble):
        raise SuperWeightError(f"warm_start() takes a SuperWeightEnsemble; got {type(ensemble).__name__}")
    if isinstance(members, SuperWeightEnsemble):
        modules: dict[str, nn.Module] = {name: members.materialize(name) for name in members.member_names}
    else:
        modules = named_members(members)
    if set(modules) == set(ensemble.member_names):
        modules = {name: modules[name] for name in ensemble.member_names}
    check_plan_fits(ensemble.plan, modules)
    _check_finite(modules)
    private = [pair for name in modules for pair in _private_tensors(ensemble.members[name], modules[name], name)]
    weights = {name: dict(module.named_parameters(remove_duplicate=False)) for name, module in modules.items()}
    for index, cluster in enumerate(ensemble.plan.clusters):
        if isinstance(cluster, Cluster):
            for slot in range(len(cluster.slots)):
                _fit_slot(ensemble.bank, index, cluster, slot, weights)
        else:
            _fit_flat_bank(ensemble.bank, index, cluster, weights)
    for held, given in private:
        held.copy_(given)
    return WarmStart(errors=_errors(ensemble, weights))


def _check_finite(modules: Mapping[str, nn.Module]) -> None:
    for member, module in modules.items():
        for name, tensor in chain(module.named_parameters(), module.named_buffers()):
            if not bool(torch.isfinite(tensor).all()):
                raise SuperWeightError(f"member {member!r}: {name} holds numbers that are not finite: train it again")


def _private_tensors(held: nn.Module, given: nn.Module, member: str) -> Iterator[tuple[Tensor, Tensor]]:
    """A member's own tensors, each with the same tensor of the trained network."""
    found = dict(chain(given.named_parameters(remove_duplicate=False), given.named_buffers(remove_duplicate=False)))
    for name, tensor in chain(held.named_parameters(), held.named_buffers()):
        if name not in found or found[name].shape != tensor.shape:
            shape = tuple(found[name].shape) if name in found else "missing"
            raise SuperWeightError(
                f"the members do not fit: {member}.{name} is {shape}, expected {tuple(tensor.shape)}"
            )
        yield tensor, found[name]


def _errors(ensemble: SuperWeightEnsemble, weights: GivenWeights) -> dict[tuple[str, str], float]:
    errors = {}
    like = next(ensemble.parameters(), torch.empty(0))
    targets = [target for cluster in ensemble.plan.clusters for target in cluster.targets]
    with torch.autocast(like.device.type, enabled=False):
        for member in ensemble.member_names:
            made = ensemble.bank.generate([member])[member]
            for target in (target for target in targets if target.member == member):
                weight = weights[member][target.name].to(like.device).double()
                distance = float((weight - made[target.name].double()).norm())
                length = float(weight.norm())
                errors[member, target.name] = distance / length if length else float(distance > _NOTHING)
    return errors


def _fit_slot(bank: SuperWeightBank, index: int, cluster: Cluster, slot: int, weights: GivenWeights) -> None:
    """Fit the templates and coefficients of one slot to the weights that use it."""
    key = slot_key(index, slot)
    templates, held, mixer = bank.templates[key], bank.coefficients[key], bank.mixers.get(key, None)
    rows, there, owners = _users(cluster, slot, weights, templates.device)
    count, size = len(templates), held.shape[1]
    if mixer is None or count <= size:
        coefficients, found = fit_rows(rows, owners, lambda means, counts: best_factors(means, count, counts), there)
        if mixer is None:
            _fill(held, coefficients)
        else:
            _turn_embeddings(coefficients, held, mixer)
    else:  # the map's b carries the mean
        coefficients, found = fit_rows(
            rows, owners, lambda means, counts: best_affine_factors(means, size, counts), there
        )
        parts = len(found) - 1
        mixer.zero_()
        mixer[range(parts), range(parts)] = 1
        mixer[parts, -1] = 1
        _fill(held, coefficients[:, :-1])
    templates[: len(found)] = found.to(templates)


def _users(
    cluster: Cluster, slot: int, weights: GivenWeights, device: torch.device
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Numbers (n, Q) of the targets that use a slot, a mask of those that they have (n, Q), and their vectors (n,)."""
    rows, gaps, owners, every_block = [], [], [], cluster.blocks
    present: dict[int, Tensor] = {}
    for target in cluster.targets:
        if target.slot < slot:
            continue
        blocks = every_block[: target.slot + 1]
        weight = target.of(weights[target.member][target.name].detach())
        if target.slot not in present:
            present[target.slot] = decompose(blocks, torch.ones(weight.shape, device=device))[slot].bool()
        exact = torch.promote_types(weight.dtype, torch.float32)  # half precision is too coarse for means
        rows.append(decompose(blocks, weight)[slot].to(device, exact))
        gaps.append(present[target.slot])
        owners.append(target.vectors[slot])
    whole = all(bool(mask.all()) for mask in present.values())
    return torch.stack(rows), None if whole else torch.stack(gaps), torch.tensor(owners, device=device)


def _turn_embeddings(coefficients: Tensor, embeddings: Tensor, mixer: Tensor) -> None:
    """Embeddings of coefficients (N, K), K at most E: the map becomes the nearest with orthogonal rows."""
    size = embeddings.shape[1]
    left, _, right = torch.linalg.svd(mixer[:, :-1].double(), full_matrices=False)
    turn = left @ right
    mixer[:, :-1] = turn * math.sqrt(size)  # the scale of the map that was drawn: deviation one
    mixer[:, -1] = 0
    embeddings.copy_(coefficients @ turn[: coefficients.shape[1]] / math.sqrt(size))


def _fill(held: Tensor, found: Tensor) -> None:
    """Write into the first columns; the rest are zero."""
    held.zero_()
    held[:, : found.shape[1]] = found.to(held)


def best_factors(vectors: Tensor, rank: int, counts: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Coefficients (N, K), float64, and templates (K, Q) nearest to vectors (N, Q) that count (N,) times; K <= rank.

    Source: Eckart and Young, 1936.

    Example:
        >>> vectors = torch.tensor([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
        >>> coefficients, templates = best_factors(vectors, 1)
        >>> torch.allclose((coefficients @ templates.double()).float(), vectors)
        True
    """
    # The eigenvectors U of the N x N Gram matrix in float64 are all that is needed: the best fit is the projection
    # U U^T W, which divides by no singular value.
    num_vectors, size = vectors.shape
    weights = torch.ones_like(vectors[:, 0], dtype=torch.float64) if counts is None else counts.to(vectors).double()
    roots = weights.sqrt()[:, None]
    gram = torch.zeros(num_vectors, num_vectors, dtype=torch.float64, device=vectors.device)
    for columns in _pieces(vectors):
        piece = vectors[:, columns].double() * roots
        gram += piece @ piece.T
    kept = min(rank, num_vectors)
    directions = torch.linalg.eigh(gram).eigenvectors.flip(1)[:, :kept]  # largest eigenvalue first
    coefficients = directions / roots
    # columns stay orthogonal and of one length (without counts); rows get norm one on average
    length = (coefficients.square().sum((0, 1), keepdim=True) / num_vectors).sqrt()
    templates = vectors.new_empty(kept, size)
    for columns in _pieces(vectors):
        templates[:, columns] = directions.T @ (vectors[:, columns].double() * roots) * length
    return coefficients / length, templates


def best_affine_factors(vectors: Tensor, rank: int, counts: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """As :func:`best_factors`, and the mean as one more template: (N, K + 1), whose last column is one; (K + 1, Q)."""
    weights = torch.ones(len(vectors), dtype=torch.float64) if counts is None else counts.double()
    shares = (weights / weights.sum()).to(vectors.device)
    mean = (shares @ vectors.double()).to(vectors)
    coefficients, templates = best_factors(vectors - mean, rank, counts)
    return torch.cat([coefficients, torch.ones_like(coefficients[:, :1])], dim=1), torch.cat([templates, mean[None]])


def fit_rows(rows: Tensor, owners: Tensor, fit: Fit, there: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The best factors of vectors that stand for rows (n, Q) by ``owners`` (n,); ``there`` marks given numbers."""
    if there is not None and not bool(there.all()):
        # numbers that are not given must be zero in the rows
        rows = _completed(rows, owners, fit, there)
    counts = torch.bincount(owners)
    return fit(_sums(rows, owners) / counts[:, None], counts)


def _completed(rows: Tensor, owners: Tensor, fit: Fit, there: Tensor) -> Tensor:
    """The rows with the gaps filled by the fit, in turns that each come closer."""
    counts = torch.bincount(owners)
    mean = _sums(rows, owners) / _sums(there.to(rows), owners).clamp(min=1)
    filled = torch.where(there, rows, mean.index_select(0, owners))
    total, before = float(rows.double().norm()), math.inf
    for _ in range(_MOST_ROUNDS):
        coefficients, templates = fit(_sums(filled, owners) / counts[:, None], counts)
        guess = (coefficients @ templates.double()).to(rows).index_select(0, owners)
        filled = torch.where(there, rows, guess)
        distance = float((filled - guess).double().norm())
        if before - distance <= _SETTLED * total:
            break
        before = distance
    return filled


def _sums(rows: Tensor, owners: Tensor) -> Tensor:
    """The sums (N, Q) of the rows (n, Q) of each vector."""
    return rows.new_zeros(int(owners.max()) + 1, rows.shape[1]).index_add_(0, owners, rows)


def _pieces(vectors: Tensor) -> list[slice]:
    size = vectors.shape[-1]
    step = max(1, _NUMBERS_A_PIECE * size // max(1, vectors.numel()))
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


@dataclass(frozen=True, slots=True)
class _LayerFactors:
    """Tensors of the layers of a group, in float64 by key: coefficients or embeddings, their maps, gains."""

    held: dict[str, Tensor]
    maps: dict[str, Tensor]
    gains: dict[str, Tensor]

    def combined(self, program: GroupProgram) -> dict[str, Tensor]:
        return {key: combination(self.held.get(key), self.maps.get(key), self.gains.get(key)) for key in program.keys}


def _fit_flat_bank(bank: SuperWeightBank, index: int, group: SsnGroup, weights: GivenWeights) -> None:
    """Fit a flat bank and the factors of its layers, from where they are; softmax coefficients stay as they are."""
    program = compile_group(index, group, {target.member for target in group.targets})
    assert program is not None, "a group has targets"
    held_bank = bank.templates[bank_key(index)]
    given = (target.of(weights[target.member][target.name].detach()) for target in group.targets)
    wanted = [weight.movedim(1, -1).flatten().to(held_bank.device, torch.float64) for weight in given]
    numbers = held_bank.double()
    parts = (dict(bank.coefficients.items()), dict(bank.mixers.items()), dict(bank.gains.named_buffers()))
    found = [{key: tensor.double() for key, tensor in part.items() if key in program.keys} for part in parts]
    factors = _LayerFactors(*found)
    for _ in range(_ROUNDS):
        numbers = _best_bank(program, numbers, factors.combined(program), wanted)
        _fit_layers(program, numbers, factors, wanted)
        if group.options.combine == "wavg":
            numbers = _rescaled(program, numbers, factors.held)
    held_bank.copy_(_best_bank(program, numbers, factors.combined(program), wanted))
    for part, values in zip(parts, found):
        for key, value in values.items():
            part[key].copy_(value)


def _best_bank(
    program: GroupProgram, bank: Tensor, coefficients: Mapping[str, Tensor], wanted: Sequence[Tensor]
) -> Tensor:
    """Minimise the squared distance by conjugate gradients, from the bank given."""

    def forward(values: Tensor) -> Tensor:
        numbers = wrapped_bank(program, values)
        return torch.cat([layer_numbers(program, layer, numbers, coefficients) for layer in program.layers])

    def back(residual: Tensor) -> Tensor:
        of_numbers = residual.new_zeros(program.length)
        for layer, part in zip(program.layers, residual.split([layer.num_weights for layer in program.layers])):
            add_to_bank_(program, layer, part, coefficients, of_numbers)
        return unwrap_gradient(of_numbers, len(bank))

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


def _fit_layers(program: GroupProgram, bank: Tensor, factors: _LayerFactors, wanted: Sequence[Tensor]) -> None:
    """Solve for each layer's own factors, with the bank as it is."""
    numbers, held = wrapped_bank(program, bank), factors.held
    tiles_of_all, masks_of_all = tiles_key(program.index), masks_key(program.index)
    alphas = {key: alpha.clone() for key, alpha in factors.combined(program).items()}
    for layer, given in zip(program.layers, wanted):
        windows = layer_windows(numbers, layer)
        masks = held[masks_of_all][layer.masks] if layer.spec.masked else None
        if layer.spec.mixed:
            held[tiles_of_all][layer.tiles] = _tile_coefficients(windows, given, layer)
            continue
        if layer.key in factors.gains:
            made = enlarge(layer, alphas[layer.key][layer.row] @ windows, masks)
            factors.gains[layer.key][layer.row] *= given.dot(made) / made.dot(made) if made.any() else 1.0
            continue
        basis = torch.stack([enlarge(layer, window, masks) for window in windows], dim=1)
        alphas[layer.key][layer.row] = _least_squares(basis, given)
        if masks is not None:
            tiles = (alphas[layer.key][layer.row] @ windows).repeat(layer.spec.num_tiles)[: layer.num_weights]
            held[masks_of_all][layer.masks] = _masks(tiles, given, masks, layer)
    for key in program.keys:
        if key in factors.maps:
            _place_embeddings(alphas[key], held[key], factors.maps[key])
        elif key in held and key not in factors.gains and key not in (tiles_of_all, masks_of_all):
            held[key].copy_(alphas[key])


def _least_squares(basis: Tensor, given: Tensor) -> Tensor:
    """The shortest (K,) that comes nearest to ``given`` (n,), whatever the rank of ``basis`` (n, K)."""
    return torch.linalg.pinv(basis) @ given  # lstsq on CUDA takes full rank for granted


def _tile_coefficients(windows: Tensor, given: Tensor, layer: LayerProgram) -> Tensor:
    """The best mixture of the halves for each tile, (m, 2); the last tile may be cut."""
    return torch.stack([_least_squares(windows[:, : len(part)].T, part) for part in given.split(layer.spec.size)])


def _masks(tiles: Tensor, given: Tensor, masks: Tensor, layer: LayerProgram) -> Tensor:
    """The best factor for each window of a mask."""
    size, window = layer.spec.size, layer.mask_window
    found = masks.clone()
    for place in range(len(masks)):
        part = slice(size + place * window, min(size + (place + 1) * window, len(given)))
        if tiles[part].any():
            found[place] = given[part].dot(tiles[part]) / tiles[part].dot(tiles[part])
    return found


def _place_embeddings(alphas: Tensor, embeddings: Tensor, mixer: Tensor) -> None:
    """Write embeddings and their map for coefficients (N, K): exact up to K = E, beyond it the best affine ones."""
    size, count = embeddings.shape[1], alphas.shape[1]
    if count <= size:
        _turn_embeddings(alphas, embeddings, mixer)
        return
    found, directions = best_affine_factors(alphas, size)
    mixer.zero_()
    _fill(embeddings, found[:, :-1])
    mixer[:, : found.shape[1] - 1], mixer[:, -1] = directions[:-1].T, directions[-1]


def _rescaled(program: GroupProgram, bank: Tensor, held: Mapping[str, Tensor]) -> Tensor:
    """The bank scaled so that coefficient vectors, divided by the same, have norm one on average."""
    keys = [key for key in held if key != masks_key(program.index)]
    scale = float(torch.cat([held[key].norm(dim=1) for key in keys]).mean())
    if not scale:
        return bank
    for key in keys:
        held[key] /= scale
    return bank * scale
