"""One member more or less, or other classes: a new ensemble that starts from what another has learned."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from superweight_ensembles.ensemble.ensemble import SuperWeightEnsemble, generated_names
from superweight_ensembles.ensemble.warm_starting import WarmStart, warm_start
from superweight_ensembles.errors import SuperWeightError, check_number, names_options, unknown_name
from superweight_ensembles.models import recall_architecture, remember_architecture
from superweight_ensembles.plan import PlanOptions, count_parameters, head_layers

if TYPE_CHECKING:  # typing_extensions is no requirement of this package
    from typing_extensions import Unpack


@names_options
def with_member(
    ensemble: SuperWeightEnsemble,
    name: str,
    network: nn.Module,
    *,
    budget: float | None = None,
    **plan_options: Unpack[PlanOptions],
) -> tuple[SuperWeightEnsemble, WarmStart]:
    """The members of an ensemble and one more, in a new bank that is fitted to their weights.

    Args:
        ensemble: Read, not changed.
        name: Name of the new member, which comes last.
        network: The new member, trained or not; copied.
        budget: Budget of :func:`plan_sharing`; the ensemble's fraction of its members' parameters apart where None.
        **plan_options: Options of :func:`plan_sharing`; those of the old plan are not kept.

    Returns:
        The ensemble, and how far each generated weight is from what it was (:func:`warm_start`).

    Raises:
        SuperWeightError: A name that is taken; what :func:`plan_sharing` and :class:`SuperWeightEnsemble` refuse.

    Example:
        >>> import superweight_ensembles as swe
        >>> ensemble = swe.SuperWeightEnsemble({"a": swe.wide_resnet(10, 1, 4)}, budget=1.0)
        >>> larger, start = swe.ensemble.with_member(ensemble, "b", swe.wide_resnet(16, 1, 4))
        >>> larger.member_names
        ('a', 'b')
    """
    if name in ensemble.member_names:
        raise SuperWeightError(f"the ensemble has a member named {name!r}: give another name")
    return _fitted(ensemble, {**_members(ensemble), name: network}, budget, plan_options)


@names_options
def without_member(
    ensemble: SuperWeightEnsemble, name: str, *, budget: float | None = None, **plan_options: Unpack[PlanOptions]
) -> tuple[SuperWeightEnsemble, WarmStart]:
    """The other members of an ensemble, in a new bank that is fitted to their weights.

    Arguments and return values are those of :func:`with_member`.

    Raises:
        SuperWeightError: No member of that name, or no other; what :func:`plan_sharing` refuses.
    """
    if name not in ensemble.member_names:
        raise unknown_name("member", name, ensemble.member_names)
    members = _members(ensemble)
    del members[name]
    if not members:
        raise SuperWeightError(f"{name!r} is the only member: an ensemble needs one")
    return _fitted(ensemble, members, budget, plan_options)


def reset_classifier(ensemble: SuperWeightEnsemble, num_classes: int) -> SuperWeightEnsemble:
    """The same members with new heads for other classes; all else, of the bank and the members, is as it was.

    Members of timm do so by their own ``reset_classifier``; in others, the last linear layer is replaced.

    Raises:
        SuperWeightError: A class count below one; a member whose head is not one linear layer, or is generated.

    Example:
        >>> import torch, superweight_ensembles as swe
        >>> ensemble = swe.SuperWeightEnsemble({"a": swe.wide_resnet(10, 1, 4)}, budget=1.0)
        >>> swe.ensemble.reset_classifier(ensemble, 7)(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([1, 2, 7])
    """
    check_number("num_classes", num_classes, whole=True, least=1)
    members = _members(ensemble)
    for name, module in members.items():
        heads = {id(parameter) for layer in head_layers(module).values() for parameter in layer.parameters()}
        own = dict(module.named_parameters(remove_duplicate=False))
        shared = next((key for key in generated_names(ensemble.plan, name) if id(own[key]) in heads), None)
        if shared is not None:
            raise SuperWeightError(f"member {name!r}: its head {shared} is generated: build a new ensemble without it")
        _exchange_head(name, module, num_classes)
    more = {name: count_parameters(module) for name, module in members.items()}
    planned = tuple(
        replace(
            member, num_parameters=more[member.name],
            num_private=member.num_private + more[member.name] - member.num_parameters,
        )
        for member in ensemble.plan.members
    )  # fmt: skip
    grown = sum(more.values()) - ensemble.plan.independent_parameters
    counts = ensemble.plan.budget_counts == "all"
    plan = replace(ensemble.plan, members=planned, budget=ensemble.plan.budget + (grown if counts else 0))
    changed = _like(ensemble, SuperWeightEnsemble(members, plan=plan, task=ensemble.task.name, select=ensemble.select))
    changed.bank.load_state_dict(ensemble.bank.state_dict())
    if changed.images is not None:
        changed.images = replace(changed.images, classes=())
    return changed


def _members(ensemble: SuperWeightEnsemble) -> dict[str, nn.Module]:
    return {name: ensemble.materialize(name) for name in ensemble.member_names}


def _fitted(
    ensemble: SuperWeightEnsemble, members: dict[str, nn.Module], budget: float | None, plan_options: PlanOptions
) -> tuple[SuperWeightEnsemble, WarmStart]:
    fraction = ensemble.plan.budget / ensemble.plan.independent_parameters
    changed = SuperWeightEnsemble(
        members, budget=fraction if budget is None else budget, task=ensemble.task.name, select=ensemble.select,
        **plan_options,
    )  # fmt: skip
    return _like(ensemble, changed), warm_start(changed, members)


def _like(ensemble: SuperWeightEnsemble, changed: SuperWeightEnsemble) -> SuperWeightEnsemble:
    """The changed ensemble in the memory format and mode of another, with its image preprocessing."""
    changed.images = ensemble.images
    return changed.to(memory_format=ensemble.bank.memory_format).train(ensemble.training)


def _exchange_head(name: str, module: nn.Module, num_classes: int) -> None:
    made, reset = recall_architecture(module), getattr(module, "reset_classifier", None)
    if callable(reset):
        reset(num_classes)
    else:
        heads = {id(layer) for layer in head_layers(module).values()}
        paths = [path for path, layer in module.named_modules() if id(layer) in heads]
        head = module.get_submodule(paths[0]) if len(paths) == 1 and paths[0] else None
        if not isinstance(head, nn.Linear):
            raise SuperWeightError(f"member {name!r}: its head is not one linear layer: exchange it before, by hand")
        kind = {"device": head.weight.device, "dtype": head.weight.dtype}
        owner, _, local = paths[0].rpartition(".")
        fresh = nn.Linear(head.in_features, num_classes, bias=head.bias is not None, **kind)
        setattr(module.get_submodule(owner), local, fresh.train(head.training))
        if isinstance(getattr(module, "num_classes", None), int):
            vars(module)["num_classes"] = num_classes
    if made is not None:
        remember_architecture(module, replace(made, num_classes=num_classes))
