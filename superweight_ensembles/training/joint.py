"""One joint training step: the members' losses are summed, and one member's activations live at a time.

Source: Teterwak et al., WACV 2024: loss = sum over members of the cross-entropy on one batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from superweight_ensembles.ensemble import SuperWeightEnsemble, check_logits
from superweight_ensembles.generation import Weights
from superweight_ensembles.training.compilation import Calls
from superweight_ensembles.training.recomputation import Blocks, recomputing

LossFunction = Callable[[Tensor, Tensor], Tensor]
Objective = Callable[[nn.Module, Tensor, Tensor], Tensor]


def joint_backward(
    ensemble: SuperWeightEnsemble,
    images: Tensor | Mapping[str, Tensor],
    labels: Tensor | Mapping[str, Tensor],
    loss_function: LossFunction | None,
    backward: Callable[[Tensor], None] = torch.Tensor.backward,
    members: Collection[str] | None = None,
    objective: Objective | None = None,
    ensemble_weight: float = 0.0,
    recomputed: Blocks | None = None,
    compiled: Calls | None = None,
) -> dict[str, Tensor]:
    """Add the gradient of the summed member losses to every parameter; each weight is generated once.

    Member after member runs forward and backward down to its generated weights, which frees its activations and, but
    for ``ensemble_weight``, its weights; a backward pass through the bank follows, cluster by cluster, which frees the
    gradients of the weights.

    Args:
        ensemble: In training mode, as a rule.
        images: (B, ...), or such a batch for each member by name.
        labels: (B,) class indices, or those of each member.
        loss_function: Of one member's logits (B, K) and the labels, to a scalar; None with ``objective``.
        backward: What takes the place of ``Tensor.backward`` (Fabric's, for instance).
        members: Those to run; all where None.
        objective: Of a member, its weights in place, the images and the labels, to a scalar: for losses that need more
            than logits.
        ensemble_weight: Of the negative log likelihood of the members' mean softmax, added to the sum; where it is not
            0, the activations of all members live at once.
        recomputed: Of each member by name, the blocks that run again in backward: :func:`recomputed_blocks`.
        compiled: Of each member by name, what runs in the place of its call: :func:`compiled_calls`.

    Raises:
        SuperWeightError: A member that does not answer (B, K), or not the classes of the members before it.

    Returns:
        The detached loss of each member.

    Example:
        >>> import torch, superweight_ensembles as swe
        >>> members = {"a": swe.wide_resnet(10, 1, 4), "b": swe.wide_resnet(16, 1, 4)}
        >>> ensemble = swe.SuperWeightEnsemble(members, budget=0.9)
        >>> images, labels = torch.zeros(2, 3, 8, 8), torch.tensor([0, 3])
        >>> losses = joint_backward(ensemble, images, labels, torch.nn.functional.cross_entropy)
        >>> sorted(losses), all(parameter.grad is not None for parameter in ensemble.parameters())
        (['a', 'b'], True)
    """
    names = tuple(ensemble.member_names if members is None else members)
    leaves, clusters = _leaves(ensemble.bank.generate(names))
    losses: dict[str, Tensor] = {}
    answers: dict[str, Tensor] = {}
    kept: dict[str, Tensor] = {}
    for name in names:
        own_images = images if isinstance(images, Tensor) else images[name]
        own_labels = labels if isinstance(labels, Tensor) else labels[name]
        own_weights = leaves[name] if ensemble_weight else leaves.pop(name)
        with ensemble.placed(name, own_weights) as member, recomputing((recomputed or {}).get(name, ())):
            if objective is not None:
                loss = objective(member, own_images, own_labels)
            else:
                assert loss_function is not None, "one of the two is given"
                logits = (compiled or {}).get(name, member)(own_images)
                answers[name] = logits.detach()
                check_logits(answers)
                loss = loss_function(logits, own_labels)
                if ensemble_weight:
                    kept[name] = logits
            losses[name] = loss if ensemble_weight else loss.detach()
            if not ensemble_weight:
                backward(loss)
    if ensemble_weight:
        assert objective is None and isinstance(labels, Tensor), "one batch, and logits to take the mean of"
        together = ensemble_nll(torch.stack(list(kept.values())), labels)
        backward(torch.stack(list(losses.values())).sum() + ensemble_weight * together)
        losses = {name: loss.detach() for name, loss in losses.items()}
    own_weights = {}
    leaves.clear()
    _backward_through_bank(clusters)
    return losses


def ensemble_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log likelihood of the mean softmax of logits (M, B, K) at labels (B,)."""
    log_mean = logits.float().log_softmax(2).logsumexp(0) - math.log(len(logits))
    return F.nll_loss(log_mean, labels)


class _HandOn(torch.autograd.Function):
    """The end of the graph of some weights, which keeps none of them: backward hands on gradients collected apart."""

    @staticmethod
    def forward(ctx: Any, gradients: list[Tensor | None], *weights: Tensor) -> Tensor:
        ctx.gradients = gradients
        return weights[0].new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, start: Tensor) -> tuple[Tensor | None, ...]:
        found = tuple(ctx.gradients)
        ctx.gradients.clear()
        return None, *found


@dataclass(frozen=True, slots=True)
class _Cluster:
    """Weights of one cluster that are gone but for their place in the graph, and the gradients that came to them."""

    end: Tensor
    gradients: list[Tensor | None]


def _leaves(weights: Weights) -> tuple[Weights, list[_Cluster]]:
    """Each generated tensor as a leaf that hands on its gradient; tied names share one leaf."""
    apart = {id(weight): weight for generated in weights.values() for weight in generated.values()}
    made = {key: weight.detach().requires_grad_() for key, weight in apart.items()}
    together: dict[Any, list[Tensor]] = {}
    for weight in apart.values():
        if weight.requires_grad:
            together.setdefault(weight.grad_fn, []).append(weight)
    clusters: list[_Cluster] = []
    for found in together.values():
        gradients: list[Tensor | None] = [None] * len(found)
        for place, weight in enumerate(found):
            made[id(weight)].register_post_accumulate_grad_hook(partial(_collect, gradients, place))
        clusters.append(_Cluster(_HandOn.apply(gradients, *found), gradients))
    leaves = {
        member: {name: made[id(weight)] for name, weight in generated.items()} for member, generated in weights.items()
    }
    return leaves, clusters


def _collect(gradients: list[Tensor | None], place: int, leaf: Tensor) -> None:
    """Take the gradient off a leaf; where backward reaches the leaf again, add to it."""
    new, leaf.grad = leaf.grad, None
    before = gradients[place]
    gradients[place] = new if before is None or new is None else before + new


def _backward_through_bank(clusters: list[_Cluster]) -> None:
    """Hand the gradients on, one cluster's after the other; each is freed with its cluster."""
    for cluster in clusters:
        if any(gradient is not None for gradient in cluster.gradients):
            cluster.end.backward()
