"""Where the numbers of a step stopped being finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping

import torch
from torch import Tensor

from superweight_ensembles.ensemble.ensemble import SuperWeightEnsemble
from superweight_ensembles.training.joint import TargetGradients

_SHOWN = 3


def gradient_sign(parameters: Iterable[Tensor]) -> Tensor:
    """A scalar of all gradients that is not finite where any of them is not, or where they are too large to add up.

    One pass over memory: sums on the CPU, where a norm takes eight times as long, and one fused norm on CUDA.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients or gradients[0].is_cuda:
        return torch.nn.utils.get_total_norm(gradients)
    return torch.stack([gradient.sum() for gradient in gradients]).sum()


def are_finite(parameters: Iterable[Tensor]) -> bool:
    """Whether every gradient is finite, looked at one by one."""
    return all(_is_finite(parameter.grad) for parameter in parameters if parameter.grad is not None)


def what_is_not_finite(
    ensemble: SuperWeightEnsemble,
    members: Collection[str],
    images: Tensor | Mapping[str, Tensor],
    losses: Mapping[str, float],
    repeat: Callable[[Callable[[TargetGradients], None]], object],
    targets: Callable[[Tensor], Iterable[Tensor]] = lambda images: (),
) -> str:
    """Name members and targets, in one line.

    Args:
        ensemble: After the backward pass of the step; its gradients are overwritten.
        members: Those that were run.
        images: Of the step.
        losses: Of each member.
        repeat: Runs the backward pass of the step again, and has a function see the gradients of generated weights.
        targets: What a teacher has members learn on a batch.
    """
    found = [f"the loss of member {name!r} is {loss}" for name, loss in losses.items() if not math.isfinite(loss)]
    batches = [images] if isinstance(images, Tensor) else list(images.values())
    if any(batch.is_floating_point() and not _is_finite(batch) for batch in batches):
        return "; ".join([*found, "the images hold numbers that are not finite: look at the data"])
    if not all(_is_finite(target) for batch in batches for target in targets(batch)):
        return "; ".join([*found, "the teacher's answers are not finite: look at the teacher"])
    with torch.no_grad():
        weights = ensemble.bank.generate(tuple(members))
    held = [(f"{member}.{name}", value) for member in members for name, value in weights[member].items()]
    broken = [name for name, value in (*held, *_own_parameters(ensemble, members)) if not _is_finite(value)]
    if broken:
        return "; ".join([*found, f"the weights themselves are not, before the step: {_listed(broken)}"])
    seen: list[str] = []

    def look(gradients: TargetGradients) -> None:
        seen.extend(f"{member}.{name}" for (member, name), value in gradients.items() if not _is_finite(value))

    for parameter in ensemble.parameters():
        parameter.grad = None
    repeat(look)
    own = _own_parameters(ensemble, members)
    seen += [name for name, value in own if value.grad is not None and not _is_finite(value.grad)]
    if seen:
        found.append(f"the gradient of {_listed(seen)} is not finite")
    return "; ".join(found) or "a gradient of the bank is not finite"


def _own_parameters(ensemble: SuperWeightEnsemble, members: Collection[str]) -> list[tuple[str, Tensor]]:
    return [
        (f"{member}.{name}", value) for member in members for name, value in ensemble.members[member].named_parameters()
    ]


def _is_finite(value: Tensor) -> bool:
    return bool(value.detach().isfinite().all())


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
