"""A bank that starts from trained members: in every slot the templates and coefficients nearest to their weights.

Shapes: N coefficient vectors of a slot, n targets that use it, Q numbers in it, K templates, O output channels,
E numbers in an embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from superweight_ensembles.ensemble.bank import SuperWeightBank
from superweight_ensembles.ensemble.ensemble import SuperWeightEnsemble
from superweight_ensembles.ensemble.fitting import fit_group
from superweight_ensembles.ensemble.generation import by_channel, decompose, slot_key
from superweight_ensembles.ensemble.low_rank import best_affine_factors, best_factors, fit_rows
from superweight_ensembles.ensemble.ssn_composition import bank_key
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.plan.coefficients import CoefficientForm
from superweight_ensembles.plan.group import SsnGroup
from superweight_ensembles.plan.plan import Cluster
from superweight_ensembles.plan.planning import check_plan_fits
from superweight_ensembles.plan.slots import SlotBlocks
from superweight_ensembles.plan.targets import Members, named_members
from superweight_ensembles.storage.visible_text import visible

_NOTHING = 1e-12  # beside a weight of zeros


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmStart:
    """How near a bank came to the weights that it was started from.

    Attributes:
        errors: By (member, parameter name), ||W - generated|| / ||W||, Frobenius norms; of a weight of zeros 0 where
            it stays zero, else 1.
    """

    errors: dict[tuple[str, str], float]

    @property
    def mean_error(self) -> float:
        """Over all generated tensors; 0 without any."""
        return math.fsum(self.errors.values()) / max(1, len(self.errors))

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "mean_error": self.mean_error,
            "errors": [
                {"member": member, "parameter": name, "error": error} for (member, name), error in self.errors.items()
            ],
        }

    def __str__(self) -> str:
        rows = [("member", "parameter", "error")]
        rows += [
            (visible(member, keep=""), visible(name, keep=""), f"{error:.4f}")
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
def warm_start(ensemble: SuperWeightEnsemble, members: Members | SuperWeightEnsemble) -> WarmStart:
    """Start an ensemble from trained members: every slot of the bank becomes the best fit to their weights.

    Of each slot, the vectors that the members' weights have there are a matrix (N, Q), and templates and coefficients
    become its best approximation of rank K (singular value decomposition). As many templates as coefficient vectors
    give the members' weights back. Norms, heads, biases and buffers are copied as they are.

    How the product is split between its factors decides how it trains on. The columns of the coefficients are
    orthogonal and of one length, their rows have norm one on average, and the templates together have the deviation of
    the fitted weights: the scale of the library's own start values, so that learning rates mean what they mean there.
    With as many templates as vectors, a step of SGD on the templates is one on the members' own weights. Templates left
    over keep the values that they have, with coefficients of zero. Where a later slot crops numbers away, the fit is to
    those that are there; tied coefficients fit the mean of their users; coefficients of an output channel are fitted
    channel by channel; embeddings of E numbers hold the fit of up to E templates, and beyond it the best affine one.

    Layers overlap in the bank of a Shapeshifter Network, which no decomposition solves at once: bank and coefficients
    are solved for in turn, by least squares, a few times.

    Args:
        ensemble: Changed in place; the result is kept as its ``warm_start``.
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
    modules = _as_modules(members)
    if set(modules) == set(ensemble.member_names):
        modules = {name: modules[name] for name in ensemble.member_names}
    check_plan_fits(ensemble.plan, modules)
    _check_finite(modules)
    own = {name: _own_tensors(ensemble.members[name], modules[name], name) for name in modules}
    weights = {name: dict(module.named_parameters(remove_duplicate=False)) for name, module in modules.items()}
    for index, cluster in enumerate(ensemble.plan.clusters):
        _FITS[type(cluster)](ensemble.bank, index, cluster, weights)
    for held, given in chain.from_iterable(own.values()):
        held.copy_(given)
    result = WarmStart(errors=_errors(ensemble, weights))
    ensemble.warm_start = result
    return result


def _as_modules(members: Members | SuperWeightEnsemble) -> dict[str, nn.Module]:
    if isinstance(members, SuperWeightEnsemble):
        return {name: members.materialize(name) for name in members.member_names}
    return named_members(members)


def _check_finite(modules: Mapping[str, nn.Module]) -> None:
    for member, module in modules.items():
        for name, tensor in chain(module.named_parameters(), module.named_buffers()):
            if not bool(torch.isfinite(tensor).all()):
                raise SuperWeightError(f"member {member!r}: {name} holds numbers that are not finite: train it again")


def _own_tensors(held: nn.Module, given: nn.Module, member: str) -> list[tuple[Tensor, Tensor]]:
    """What stays a member's own, beside the same of the trained one."""
    found = dict(chain(given.named_parameters(remove_duplicate=False), given.named_buffers(remove_duplicate=False)))
    pairs = []
    for name, tensor in chain(held.named_parameters(), held.named_buffers()):
        if name not in found or found[name].shape != tensor.shape:
            shape = tuple(found[name].shape) if name in found else "missing"
            raise SuperWeightError(
                f"the members do not fit: {member}.{name} is {shape}, expected {tuple(tensor.shape)}"
            )
        pairs.append((tensor, found[name]))
    return pairs


def _errors(ensemble: SuperWeightEnsemble, weights: Mapping[str, Mapping[str, Tensor]]) -> dict[tuple[str, str], float]:
    errors = {}
    like = next(ensemble.parameters(), torch.empty(0))
    with torch.autocast(like.device.type, enabled=False):
        for member in ensemble.member_names:
            made = ensemble.bank.generate([member])[member]
            targets = [target for cluster in ensemble.plan.clusters for target in cluster.targets]
            for target in (target for target in targets if target.member == member):
                weight = weights[member][target.name].to(like.device).double()
                distance = float((weight - made[target.name].double()).norm())
                length = float(weight.norm())
                errors[member, target.name] = distance / length if length else float(distance > _NOTHING)
    return errors


def _fit_superweights(
    bank: SuperWeightBank, index: int, cluster: Cluster, weights: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Fit the slots of a cluster of SuperWeights, one after the other: they hold different numbers of the weights."""
    for slot, block in enumerate(cluster.blocks):
        key = slot_key(index, slot)
        rows, there, owners = _users(cluster, slot, weights, bank.templates[key].device)
        fits: dict[CoefficientForm, Callable[..., None]] = {
            "vector": _fit_vectors, "embedding": _fit_embeddings, "channel": partial(_fit_channels, block)
        }  # fmt: skip
        fits[cluster.coefficients](bank, key, rows, owners, there)


def _users(
    cluster: Cluster, slot: int, weights: Mapping[str, Mapping[str, Tensor]], device: torch.device
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Of the targets that use a slot: their numbers (n, Q), which of them they have (n, Q), and their vectors (n,)."""
    rows, gaps, owners = [], [], []
    present: dict[int, Tensor] = {}
    for target in cluster.targets:
        if target.slot < slot:
            continue
        blocks, weight = cluster.blocks[: target.slot + 1], weights[target.member][target.name].detach()
        if target.slot not in present:
            present[target.slot] = decompose(blocks, torch.ones(weight.shape, device=device))[slot].bool()
        exact = torch.promote_types(weight.dtype, torch.float32)  # means in half precision would not be
        rows.append(decompose(blocks, weight)[slot].to(device, exact))
        gaps.append(present[target.slot])
        owners.append(target.vectors[slot])
    whole = all(bool(mask.all()) for mask in present.values())
    return torch.stack(rows), None if whole else torch.stack(gaps), torch.tensor(owners, device=device)


def _fit_vectors(bank: SuperWeightBank, key: str, rows: Tensor, owners: Tensor, there: Tensor | None) -> None:
    templates = bank.templates[key]
    coefficients, found = fit_rows(rows, owners, partial(_ranked, len(templates)), there)
    _place(coefficients, bank.coefficients[key])
    templates[: len(found)] = found.to(templates)


def _fit_embeddings(bank: SuperWeightBank, key: str, rows: Tensor, owners: Tensor, there: Tensor | None) -> None:
    """Up to E templates, embeddings are the coefficients turned; beyond, the map's b carries their mean."""
    templates, embeddings, mixer = bank.templates[key], bank.coefficients[key], bank.mixers[key]
    size = embeddings.shape[1]
    mixer[:, -1] = 0
    if len(templates) <= size:
        coefficients, found = fit_rows(rows, owners, partial(_ranked, len(templates)), there)
        left, _, right = torch.linalg.svd(mixer[:, :-1].double(), full_matrices=False)
        turn = left @ right  # orthonormal rows, those nearest to the map that was drawn
        mixer[:, :-1] = turn * math.sqrt(size)  # the scale of the map that was drawn: deviation one
        embeddings.copy_(coefficients @ turn[: len(found)] / math.sqrt(size))
    else:
        coefficients, found = fit_rows(
            rows, owners, lambda means, counts: best_affine_factors(means, size, counts), there
        )
        mixer.zero_()
        parts = len(found) - 1
        mixer[range(parts), range(parts)] = 1
        mixer[parts, -1] = 1
        _place(coefficients[:, :-1], embeddings)
    templates[: len(found)] = found.to(templates)


def _fit_channels(
    block: SlotBlocks, bank: SuperWeightBank, key: str, rows: Tensor, owners: Tensor, there: Tensor | None
) -> None:
    """A fit for each output channel of each block, all channels of a block at once."""
    templates, coefficients = bank.templates[key], bank.coefficients[key]
    masks = [None] * len(block.shapes) if there is None else by_channel(there, block)
    sizes = [shape[0] for shape in block.shapes]
    numbers = templates.split([math.prod(shape) for shape in block.shapes], dim=1)
    for part, mask, count, held, own in zip(
        by_channel(rows, block), masks, sizes, numbers, coefficients.split(sizes, dim=1)
    ):
        given = None if mask is None else mask.transpose(0, 1)
        alphas, found = fit_rows(part.transpose(0, 1), owners, partial(_ranked, len(templates)), given)
        _place(alphas.transpose(0, 1), own)
        held.unflatten(1, (count, -1))[: found.shape[1]] = found.transpose(0, 1).to(held)


def _ranked(rank: int, vectors: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    return best_factors(vectors, rank, counts)


def _place(found: Tensor, held: Tensor) -> None:
    """Write into the first columns; the rest are zero."""
    held.zero_()
    held[..., : found.shape[-1]] = found.to(held)


def _fit_flat_bank(
    bank: SuperWeightBank, index: int, group: SsnGroup, weights: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Fit a flat bank and the coefficients of its layers in turn."""
    given = [weights[target.member][target.name] for target in group.targets]
    gains = dict(bank.gains.named_buffers())
    coefficients, mixers = dict(bank.coefficients.items()), dict(bank.mixers.items())
    fit_group(index, group, given, bank.templates[bank_key(index)], coefficients, mixers, gains)


_FITS: dict[type, Callable[[SuperWeightBank, int, Any, Mapping[str, Mapping[str, Tensor]]], None]] = {
    Cluster: _fit_superweights,
    SsnGroup: _fit_flat_bank,
}
