"""One joint training step: the members' losses are summed, and one member's activations live at a time.

Source: Teterwak et al., WACV 2024: loss = sum over members of the cross-entropy on one batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
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
    leaves, waiting = _leaves(ensemble.bank.generate(names))
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
    _backward_through_bank(waiting)
    return losses


def ensemble_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log likelihood of the mean softmax of logits (M, B, K) at labels (B,)."""
    log_mean = logits.float().log_softmax(2).logsumexp(0) - math.log(len(logits))
    return F.nll_loss(log_mean, labels)


class _Waiting:
    """A generated tensor that is gone but for its place in the graph, and the gradient that came to it."""

    def __init__(self, weight: Tensor) -> None:
        self.edge = get_gradient_edge(weight)
        self.gradient: Tensor | None = None

    def take(self, leaf: Tensor) -> None:
        """Take the gradient off a leaf; where backward reaches the leaf again, add to it."""
        gradient, leaf.grad = leaf.grad, None
        self.gradient = gradient if self.gradient is None or gradient is None else self.gradient + gradient


def _leaves(weights: Weights) -> tuple[Weights, list[_Waiting]]:
    """Each generated tensor as a leaf that hands on its gradient; tied names share one leaf."""
    made: dict[int, Tensor] = {}
    waiting: list[_Waiting] = []
    for weight in (weight for generated in weights.values() for weight in generated.values()):
        if id(weight) not in made:
            made[id(weight)] = weight.detach().requires_grad_()
            if weight.requires_grad:
                waiting.append(_Waiting(weight))
                made[id(weight)].register_post_accumulate_grad_hook(waiting[-1].take)
    leaves = {
        member: {name: made[id(weight)] for name, weight in generated.items()} for member, generated in weights.items()
    }
    return leaves, waiting


def _backward_through_bank(waiting: list[_Waiting]) -> None:
    """Hand the gradients on, one cluster's after the other; each is freed with its cluster."""
    clusters: dict[Any, list[_Waiting]] = {}
    while waiting:
        weight = waiting.pop(0)
        if weight.gradient is not None:
            clusters.setdefault(weight.edge.node, []).append(weight)
    for node in list(clusters):
        found = clusters.pop(node)
        edges, gradients = [weight.edge for weight in found], [weight.gradient for weight in found]
        found.clear()
        torch.autograd.backward(edges, gradients)
