"""One joint training step: the members' losses are summed, and only one member's activations live at a time.

Source: Teterwak et al., WACV 2024: loss = sum over members of the cross-entropy on one batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from superweight_ensembles.data import Inputs, Targets, num_rows, plain, rows_of
from superweight_ensembles.ensemble import Begun, SuperWeightEnsemble, check_answers
from superweight_ensembles.errors import SuperWeightError, names_options
from superweight_ensembles.models import answer_in, call_with, calling, first_line, is_out_of_memory, unchanged
from superweight_ensembles.training.device import Calls, explain_oom
from superweight_ensembles.training.distillation import Distillation, at_least_float32
from superweight_ensembles.training.hooks import Objective, Penalty
from superweight_ensembles.training.recomputation import Blocks, recomputing

LossFunction = Callable[[Tensor, Any], Tensor]
TargetGradients = Mapping[tuple[str, str], Tensor]


@names_options
@dataclass(frozen=True, slots=True, kw_only=True)
class JointLoss:
    """What members minimise in a step; either ``loss_function`` or ``objective`` is given."""

    loss_function: LossFunction | None = None  # (answer (B, ...), targets) -> mean over the batch
    objective: Objective | None = None  # (member, its weights in place, inputs, targets) -> scalar
    ensemble_weight: float = 0.0  # weight of the negative log likelihood of the members' mean softmax
    distillation: Distillation | None = None
    teacher_weight: float | None = None  # w of this step; the distillation's where None
    penalty: Penalty | None = None  # (member, its weights in place) -> scalar, added to the member's loss
    # targets -> number of terms that their loss averages, which weights parts of a batch; None for one term a row
    num_terms: Callable[[Any], Tensor | None] | None = None
    # answers of the members that run here -> answers of all members; those from elsewhere have no gradient
    gather: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None = None

    @property
    def together(self) -> bool:
        """Whether a member's loss needs the others' answers: then all members' activations live at once."""
        return bool(self.ensemble_weight) or (self.distillation is not None and self.distillation.together)

    @property
    def weight_of_teacher(self) -> float:
        if self.teacher_weight is not None or self.distillation is None:
            return self.teacher_weight or 0.0
        return self.distillation.weight


class OwnBatches(dict[str, Any]):
    """Inputs, or targets, of each member's own batch, by the member's name."""


def batches_in(inputs: Inputs | OwnBatches) -> list[Inputs]:
    """The one batch of all members, or each member's own."""
    return list(inputs.values()) if isinstance(inputs, OwnBatches) else [inputs]


@names_options
@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """How the backward pass of a step is computed; the result stays the same."""

    backward: Callable[[Tensor], None] = torch.Tensor.backward  # Fabric's, for instance
    recomputed: Blocks = field(default_factory=dict)  # by member: blocks that are run again in backward
    compiled: Calls = field(default_factory=dict)  # by member: called in place of the member
    # parts that the batch runs in one by one, losses weighted by rows: less memory, equal gradients but for batch norm
    micro_batches: int = 1


@names_options
def joint_backward(
    ensemble: SuperWeightEnsemble,
    inputs: Inputs | OwnBatches,
    targets: Targets | OwnBatches,
    loss: JointLoss | LossFunction,
    *,
    members: Collection[str] | None = None,
    execution: Execution | None = None,
    weight: float = 1.0,  # share of these rows in the batch, of which several processes have parts
    look: Callable[[TargetGradients], None] | None = None,  # sees generated weights' gradients before the bank does
) -> dict[str, Tensor]:
    """Add the gradient of the summed member losses to every parameter; returns detached losses times ``weight``.

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
    begun = ensemble.bank.begin(names)
    loss = loss if isinstance(loss, JointLoss) else JointLoss(loss_function=loss)
    inputs, targets = (one if isinstance(one, OwnBatches) else plain(one) for one in (inputs, targets))
    task = _Task(ensemble, inputs, targets, loss, execution or Execution(), weight)
    if not task.batch_size:
        raise SuperWeightError("a batch has no rows: let the loader leave empty ones out")
    # Each member's backward ends at its generated weights and frees its activations; a pass through the bank follows.
    losses = (_together if loss.together else _one_by_one)(task, begun)
    if look is not None:
        look(begun.labelled())
    with explain_oom(None, task.batch_size, task.num_parts):
        begun.backward()
    return losses


@dataclass(slots=True)
class _Task:
    """One joint step: batches, loss and execution of each member."""

    ensemble: SuperWeightEnsemble
    inputs: Inputs | OwnBatches
    targets: Targets | OwnBatches
    joint: JointLoss
    execution: Execution
    weight: float
    answers: dict[str, Tensor] = field(default_factory=dict)
    taught: dict[int, Tensor] = field(default_factory=dict)

    @property
    def batch_size(self) -> int:
        return num_rows(batches_in(self.inputs)[0])

    @property
    def num_parts(self) -> int:
        return min(self.execution.micro_batches, most_parts(self.batch_size))

    def parts(self, name: str) -> list[tuple[slice, float | Tensor]]:
        """Rows of each part of a member's batch, with the factor of its loss."""
        size, parts = self.batch_size, row_parts(self.batch_size, self.num_parts)
        if self.joint.num_terms is not None and len(parts) > 1:
            terms = [self.joint.num_terms(self.targets_of(name, rows)) for rows in parts]
            known = [one for one in terms if one is not None]
            if len(known) == len(parts):
                whole = torch.stack(known).sum().clamp_min(1)
                return [(rows, self.weight * own / whole) for rows, own in zip(parts, known)]
        return [(rows, self.weight * (rows.stop - rows.start) / size) for rows in parts]

    @contextmanager
    def with_weights(self, name: str, weights: Mapping[str, Tensor]) -> Iterator[nn.Module]:
        with (
            explain_oom(name, self.batch_size, self.num_parts),
            self.ensemble.with_weights(name, weights) as member,
            recomputing(self.execution.recomputed.get(name, ())),
        ):
            yield member

    def target(self, name: str, rows: slice) -> Tensor | None:
        """A teacher's target (B, K) for some rows of a member's batch; computed once where all see one batch."""
        if self.joint.distillation is None or self.joint.distillation.teacher is None:
            return None
        same = not isinstance(self.inputs, OwnBatches)
        if same and rows.start in self.taught:
            return self.taught[rows.start]
        with explain_oom(None, self.batch_size, self.num_parts, otherwise="in the teacher"):
            target = self.joint.distillation.taught(self.inputs_of(name, rows))
        if same:
            self.taught[rows.start] = target
        return target

    def loss(self, name: str, member: nn.Module, rows: slice, target: Tensor | None) -> Tensor:
        """The loss of a member, its weights in place, on some rows of its batch."""
        inputs = self.inputs_of(name, rows)
        if self.joint.objective is None:
            with calling(name, inputs):
                answer = answer_in(call_with(self.execution.compiled.get(name, member), inputs))
            return self.loss_of(name, member, answer, rows, target)
        with (
            _failing(f"the objective fails for member {name!r}"),
            unchanged(f"the objective of member {name!r}", inputs),
        ):
            loss = self.joint.objective(member, inputs, self.targets_of(name, rows))
        return self._with_penalty(name, loss, member)

    def loss_of(self, name: str, member: nn.Module, answer: Tensor, rows: slice, target: Tensor | None) -> Tensor:
        """The loss of a member, its weights in place, that has answered some rows of its batch."""
        check_answers({name: answer}, self.ensemble.task)
        if len(answer) != rows.stop - rows.start:
            raise SuperWeightError(f"member {name!r} answers {len(answer)} rows for {rows.stop - rows.start} images")
        if rows.start == 0:  # members' answers are compared on the first part
            self.answers[name] = answer.detach()
            check_answers(self.answers, self.ensemble.task)
        assert self.joint.loss_function is not None, "there is no objective"
        with _failing(f"the loss fails for member {name!r}"):
            loss = self.joint.loss_function(answer, self.targets_of(name, rows))
        distillation, weight = self.joint.distillation, self.joint.weight_of_teacher
        if distillation is not None and target is not None:
            loss = distillation.loss(name, loss, answer, target, weight)
        elif distillation is not None and distillation.history is not None:
            loss = distillation.recalled_loss(name, loss, answer, rows, weight)
        return self._with_penalty(name, loss, member)

    def _with_penalty(self, name: str, loss: Tensor, member: nn.Module) -> Tensor:
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            given = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise SuperWeightError(f"the loss of member {name!r} must be a scalar tensor; got {given}")
        if not loss.requires_grad:
            raise SuperWeightError(
                f"the loss of member {name!r} depends on nothing that is trained: let the member answer without "
                "detach() or no_grad(), thaw some of it, or leave it out by members="
            )
        if self.joint.penalty is None:
            return loss
        with _failing(f"a hook's penalty fails for member {name!r}"):
            return loss + self.joint.penalty(member)

    def inputs_of(self, name: str, rows: slice) -> Inputs:
        return rows_of(self.inputs[name] if isinstance(self.inputs, OwnBatches) else self.inputs, rows)

    def targets_of(self, name: str, rows: slice) -> Targets:
        return rows_of(self.targets[name] if isinstance(self.targets, OwnBatches) else self.targets, rows)


def _one_by_one(task: _Task, begun: Begun) -> dict[str, Tensor]:
    """Run each member forward and backward on its own, and free its weights after it."""
    losses: dict[str, Tensor] = {}
    for name in tuple(begun.weights):
        weights = begun.weights.pop(name)
        for rows, share in task.parts(name):
            target = task.target(name, rows)
            with task.with_weights(name, weights) as member:
                loss = _scaled(task.loss(name, member, rows, target), share)
                with _failing(f"the backward pass of member {name!r} fails"):
                    task.execution.backward(loss)
            losses[name] = losses[name] + loss.detach() if name in losses else loss.detach()
        begun.collect(name, weights)
        weights = {}
    return losses


def _together(task: _Task, begun: Begun) -> dict[str, Tensor]:
    """Run all members forward, then one backward pass of their losses and of the loss of their mean."""
    distillation, ensemble_weight = task.joint.distillation, task.joint.ensemble_weight
    assert task.joint.objective is None and not isinstance(task.inputs, OwnBatches), "one batch, and a mean of logits"
    losses: dict[str, Tensor] = {}
    for rows, share in task.parts(next(iter(begun.weights))):
        found: dict[str, Tensor] = {}
        logits: dict[str, Tensor] = {}
        for name, weights in begun.weights.items():
            target = task.target(name, rows)
            inputs, call = task.inputs_of(name, rows), task.execution.compiled.get(name)
            with task.with_weights(name, weights) as member:
                logits[name] = task.ensemble.run_member(name, inputs, weights, call)
                found[name] = task.loss_of(name, member, logits[name], rows, target)
        if task.joint.gather is not None:
            logits = task.joint.gather(logits)
            found |= {name: answer.new_zeros(()) for name, answer in logits.items() if name not in found}
        every = torch.stack(list(logits.values()))
        if distillation is not None and distillation.together:
            order = distillation.cheapest_first(task.ensemble, list(logits), task.inputs_of(name, slice(0, 1)))
            found = distillation.joint_losses(found, logits, task.joint.weight_of_teacher, order)
        # losses of members that run elsewhere are here, too: answers of members that run here are part of them
        found = {name: _scaled(loss, share) for name, loss in found.items()}
        total = torch.stack(list(found.values())).sum()
        if ensemble_weight:
            total = total + ensemble_weight * _scaled(ensemble_nll(every, rows_of(task.targets, rows)), share)
        oom = explain_oom(None, task.batch_size, task.num_parts)
        with oom, _failing("the backward pass of the members together fails"):
            task.execution.backward(total)
        own = {name: found[name].detach() for name in begun.weights}
        losses = {name: losses[name] + loss if losses else loss for name, loss in own.items()}
    while begun.weights:
        begun.collect(*begun.weights.popitem())
    return losses


@contextmanager
def _failing(what: str) -> Iterator[None]:
    """Begin the message of an error with ``what`` has failed; out-of-memory errors pass unchanged."""
    try:
        yield
    except SuperWeightError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise SuperWeightError(f"{what}: {first_line(error)}") from error


def row_parts(num_rows: int, count: int) -> list[slice]:
    """Rows of a batch in parts that differ by at most one row.

    Example:
        >>> row_parts(5, 2)
        [slice(0, 2, None), slice(2, 5, None)]
    """
    bounds = [num_rows * index // count for index in range(count + 1)]
    return [slice(start, stop) for start, stop in pairwise(bounds)]


def most_parts(num_rows: int) -> int:
    """Most parts that a batch can run in: no part is a single row, which batch norm would refuse."""
    return max(1, num_rows // 2)


def _scaled(loss: Tensor, share: float | Tensor) -> Tensor:
    return loss if isinstance(share, float) and share == 1 else loss * share


def ensemble_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the mean softmax of logits (M, B, K) at labels (B,), or at probabilities (B, K)."""
    log_mean = at_least_float32(logits).log_softmax(2).logsumexp(0) - math.log(len(logits))
    if labels.is_floating_point():
        return -(labels * log_mean).sum(1).mean()
    return F.nll_loss(log_mean, labels)
