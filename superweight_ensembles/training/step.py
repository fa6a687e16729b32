"""One step of a training: the batch, the gradients, what may go wrong with them, and the optimiser."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import islice
from signal import SIGINT, SIGTERM
from typing import Any

import torch
from torch import Tensor

from superweight_ensembles.data import Inputs, Targets, mapped, num_rows, rows_of, tensors_of
from superweight_ensembles.ensemble import first_parameter, num_classes_in
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.models import buffers_as_now, copied, first_line, is_out_of_memory
from superweight_ensembles.training.batches import (
    check_targets,
    in_memory_format,
    leaves_one_row,
    needs_checks,
    prepared_batch,
)
from superweight_ensembles.training.device import OutOfMemoryError, leaves_channels_last, scaler_of
from superweight_ensembles.training.distributed import synchronised
from superweight_ensembles.training.hooks import Hook, TrainState
from superweight_ensembles.training.joint import (
    Execution,
    JointLoss,
    LossFunction,
    OwnBatches,
    TargetGradients,
    batches_in,
    joint_backward,
    most_parts,
    row_parts,
)
from superweight_ensembles.training.member_ranks import agree_on_rows, own_answers, step_optimizer
from superweight_ensembles.training.randomness import own_randomness, random_states, set_random_states

_SHOWN = 3
_LOG = logging.getLogger(__name__)


def gradient_check(parameters: Iterable[Tensor]) -> Tensor:
    """A scalar that is not finite where any gradient is not, or where gradients are too large to add up."""
    held = [parameter.grad for parameter in parameters if parameter.grad is not None]
    gradients = [torch.view_as_real(gradient) if gradient.is_complex() else gradient for gradient in held]
    # one pass over memory: sums on the CPU, where a norm takes eight times as long; one fused norm on CUDA
    if not gradients or gradients[0].is_cuda:
        return torch.nn.utils.get_total_norm(gradients)
    return torch.stack([gradient.sum() for gradient in gradients]).sum()


def _is_finite(value: Tensor) -> bool:
    return bool(value.detach().isfinite().all())


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def checked_scalars(hook: Hook, scalars: Tensor | None) -> Tensor | None:
    """Check the numbers (n,) that a hook asks for."""
    if scalars is not None and not (isinstance(scalars, Tensor) and scalars.ndim == 1):
        given = tuple(scalars.shape) if isinstance(scalars, Tensor) else type(scalars).__name__
        raise SuperWeightError(f"hook {hook.name!r}: scalars gives a tensor of numbers (n,), or None; got {given}")
    return scalars


class TrainStep:
    """Takes steps; the state holds the penalty of the hooks and the number of micro-batches."""

    def __init__(self, state: TrainState, loss: JointLoss, execution: Execution) -> None:
        self._state = state
        self._loss = loss
        self._execution = execution
        self._scaler = scaler_of(state.fabric)
        self._dtype = first_parameter({"": state.ensemble}).dtype
        self._begun = False
        self._answered = False  # whether this attempt's answers have gone to other processes already
        self._num_classes: int | None = None  # from the first answer, where a loss function takes answers

    def __call__(self, batches: Sequence[Any], signal: int = 0) -> int:
        """Take a step on one batch for all members, or on one for each, and note it in the progress."""
        state, progress = self._state, self._state.progress
        ready = [self._prepared(batch) for batch in batches]
        inputs, targets = ready[0]
        if len(ready) > 1:
            inputs, targets = (OwnBatches(zip(state.own_members, parts)) for parts in zip(*ready))
        count = num_rows(ready[0][0])
        returns = state.config.skip_non_finite > 0 or state.config.micro_batches == "auto" or not self._begun
        put_back = buffers_as_now(state.ensemble) if returns else lambda: None
        weight, signal = self._share(count, self._num_terms(targets), signal)
        state.num_rows = count * state.rows.size
        if self._loss.distillation is not None and self._loss.distillation.history is not None:
            self._loss.distillation.history.open(progress.step, count)
        losses = self._of_all(self._gradients(inputs, targets, weight, put_back))
        if not self._begun:
            agree_on_rows(state, ready[0][1])
            self._check_one_row(rows_of(ready[0][0], slice(0, 1)))
            for name in state.own_members:  # a call may leave things in a member that cannot be copied
                copied(state.ensemble.members[name], f"after a call, member {name!r}")
            self._agree_on_gradients()
            self._begun = True
        self._add_up(losses)
        if self._scaler is not None:
            self._scaler.unscale_(state.optimizer)
        check = gradient_check(state.ensemble.parameters())
        if state.is_split:  # only the ranks that run a member see its own non-finite gradients
            state.peers.all_reduce_([check])
        wanted = [checked_scalars(hook, hook.scalars(state)) for hook in state.hooks]
        read = [losses, check.to(losses)[None], *(one.to(losses) for one in wanted if one is not None)]
        numbers = iter(torch.cat(read).tolist())  # the only copy to the host in a step
        found, gradients = list(islice(numbers, len(losses))), next(numbers)
        finite = math.isfinite(gradients) or not state.peers.any(not all(map(_is_finite, self._grads().values())))
        counts = all(map(math.isfinite, found)) and (finite or self._overflows())
        if counts:
            for name, loss in zip(state.members, found):
                progress.loss_sums[name] = progress.loss_sums.get(name, 0.0) + loss
            progress.num_summed += 1
        else:
            self._skip_step(inputs, targets, dict(zip(state.members, found)))
            put_back()
        taken = counts and finite
        if taken:
            if state.config.clip_norm:
                self._clip(state.config.clip_norm)
            state.losses = dict(zip(state.members, found))
            try:
                step_optimizer(state)
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                message = f"optimizer {state.config.optimizer!r} fails in a step: {first_line(error)}"
                raise SuperWeightError(message) from error
            for hook, scalars in zip(state.hooks, wanted):
                hook.after_step(state, list(islice(numbers, 0 if scalars is None else len(scalars))))
        if self._scaler is not None:
            self._scaler.update()
        with nullcontext() if taken else warnings.catch_warnings():
            if not taken:  # torch warns of a schedule stepped without its optimiser
                warnings.simplefilter("ignore", UserWarning)
            state.schedule.step()
        progress.step += 1
        return signal

    def _prepared(self, batch: Any) -> tuple[Inputs, Targets]:
        state = self._state
        num_classes = self._num_classes if all(map(needs_checks, state.loaders)) else None
        return prepared_batch(
            batch, state.fabric.device, state.channels_last, num_classes=num_classes, dtype=self._dtype,
            task=state.ensemble.task, labelled=self._loss.objective is None,
        )  # fmt: skip

    def _overflows(self) -> bool:
        """Whether gradients are not finite because of the loss scale, which then falls."""
        overflows = self._scaler is not None and self._scaler.get_scale() > 1
        if overflows:
            _LOG.info("step %d: gradients overflow, left out at a lower scale", self._state.progress.step + 1)
        return overflows

    def _num_terms(self, targets: Targets) -> float | None:
        """Number of terms that the loss of this process's part of the batch averages; None where it is its rows."""
        if self._loss.num_terms is None or isinstance(targets, OwnBatches) or self._state.rows.size == 1:
            return None
        found = self._loss.num_terms(targets)
        return None if found is None else float(found)

    def _share(self, num_rows: int, num_terms: float | None, signal: int) -> tuple[float, int]:
        """The share of this process in the batch, and the signal that has reached any process."""
        if self._state.processes.size == 1:
            return 1.0, signal
        # losses are weighed before backward: synchronised batch norm mixes the gradients of all processes
        amount = num_rows if num_terms is None else num_terms
        counts = torch.tensor(
            [amount, signal == SIGINT, signal == SIGTERM, num_rows == 0],
            dtype=torch.float64,
            device=self._state.fabric.device,
        )
        self._state.processes.all_reduce_([counts])
        total, interrupted, terminated, empty = counts.tolist()
        if empty:  # known to all processes: all raise, and none waits for another
            raise SuperWeightError(
                f"{empty:.0f} of {self._state.processes.size} processes have a batch without rows: give each a row"
            )
        total /= self._state.peers.size  # peers counted the same rows
        return amount / max(total, 1), SIGTERM if terminated else SIGINT if interrupted else 0

    def _of_all(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Losses (M,) of all members; 0 for members that other processes run."""
        own = {name: loss.double() for name, loss in losses.items()}
        nothing = next(iter(own.values())).new_zeros(())
        return torch.stack([own.get(name, nothing) for name in self._state.members])

    def _add_up(self, losses: Tensor) -> None:
        """Sum losses (M,) and gradients over the processes that contribute to them."""
        state = self._state
        if state.processes.size == 1:
            return
        if not state.is_split:
            state.processes.all_reduce_([losses, *self._grads().values()])
            return
        named = dict(state.ensemble.named_parameters())
        there = losses.new_tensor([parameter.grad is not None for parameter in named.values()])
        state.processes.all_reduce_([there])  # in every step, as parameters may be frozen or unread later
        bank: list[Tensor] = []
        own: list[Tensor] = []
        for (name, parameter), count in zip(named.items(), there.tolist()):
            if count and (_is_shared(name) or name.split(".")[1] in state.own_members):
                if parameter.grad is None:  # no member that runs here reads it
                    parameter.grad = torch.zeros_like(parameter)
                (bank if _is_shared(name) else own).append(parameter.grad)
        state.processes.all_reduce_([losses, *bank])
        state.rows.all_reduce_(own)

    def _agree_on_gradients(self) -> None:
        if not self._state.is_split:
            self._state.processes.assert_equal_across_ranks(list(self._grads()), "the parameters that have gradients")

    def _grads(self) -> dict[str, Tensor]:
        return {name: one.grad for name, one in self._state.ensemble.named_parameters() if one.grad is not None}

    def _clip(self, most: float) -> None:
        """Scale gradients down so that their norm, over the parameters of all processes, is at most ``most``."""
        state, held = self._state, self._grads()
        if not state.is_split:
            torch.nn.utils.clip_grad_norm_(state.ensemble.parameters(), most)
            return
        shared, own = (
            torch.nn.utils.get_total_norm([grad for name, grad in held.items() if _is_shared(name) == of_all])
            for of_all in (True, False)
        )
        squared = own.to(state.fabric.device).square()
        state.peers.all_reduce_([squared])
        total = (shared.to(squared.device).square() + squared).sqrt()
        torch.nn.utils.clip_grads_with_norm_(state.ensemble.parameters(), most, total)

    @torch.no_grad()
    def _check_one_row(self, row: Inputs) -> None:
        """Refuse, before any step, members that would fail on a later batch of one row."""
        state = self._state
        # synchronised batch norm also has the rows of other processes
        if not any(map(leaves_one_row, state.loaders)) or (state.rows.size > 1 and state.config.sync_batch_norm):
            return
        before, put_back = random_states(state.fabric.device), buffers_as_now(state.ensemble)
        weights = state.ensemble.bank.generate(state.own_members)
        with state.fabric.autocast():
            for name in state.own_members:
                try:
                    state.ensemble.run_member(name, row, weights[name])
                except SuperWeightError as error:
                    raise SuperWeightError(f"a batch of each epoch has one row: {error}") from error
        put_back()
        set_random_states(before, state.fabric.device)

    def _gradients(
        self, inputs: Inputs, targets: Targets, weight: float, put_back: Callable[[], None]
    ) -> dict[str, Tensor]:
        """Fill ``.grad``; where the config says ``auto``, failures lead to more micro-batches or contiguous tensors."""
        progress, doubles = self._state.progress, self._state.config.micro_batches == "auto"
        states = random_states(self._state.fabric.device) if doubles or not self._begun else None
        while True:
            self._answered = False
            self._state.optimizer.zero_grad(set_to_none=True)
            try:
                look = None if self._begun else self._warn_of_unread
                return self._forward_and_backward(inputs, targets, weight, look)
            except OutOfMemoryError:
                size = num_rows(batches_in(inputs)[0])
                if not doubles or progress.micro_batches >= most_parts(size):
                    raise
                short = True
            except SuperWeightError as error:
                if self._begun or self._answered or not leaves_channels_last(self._state, error):
                    raise
                short = False
            # outside of the handler, whose error keeps the tensors of the failed attempt alive
            if short:
                progress.micro_batches = min(2 * progress.micro_batches, most_parts(size))
                _LOG.warning("out of memory at a batch of %d: from now on in %d parts", size, progress.micro_batches)
            else:
                inputs = _contiguous(inputs)
            put_back()
            assert states is not None
            set_random_states(states, self._state.fabric.device)
            if self._state.fabric.device.type == "cuda":
                torch.cuda.empty_cache()

    def _forward_and_backward(
        self,
        inputs: Inputs,
        targets: Targets,
        weight: float = 1.0,
        look: Callable[[TargetGradients], None] | None = None,
        *,
        together: bool = True,
    ) -> dict[str, Tensor]:
        state = self._state
        loss = replace(self._loss, penalty=state.penalty())
        if loss.distillation is not None:
            loss = replace(loss, teacher_weight=loss.distillation.weight_at(state.fraction_done))
        if loss.gather is not None:
            loss = replace(loss, gather=self._gathered if together else partial(own_answers, state))
        together = together and state.config.sync_batch_norm
        if loss.loss_function is not None and self._num_classes is None:
            loss = replace(loss, loss_function=partial(self._first_loss, loss.loss_function, targets))
        execution = replace(self._execution, micro_batches=state.progress.micro_batches)
        with synchronised(state.rows) if together else nullcontext(), state.fabric.autocast():
            return joint_backward(
                state.ensemble, inputs, targets, loss, members=state.own_members, execution=execution, weight=weight,
                look=look,
            )  # fmt: skip

    def _gathered(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        assert self._loss.gather is not None, "there are members elsewhere"
        self._answered = True
        return self._loss.gather(own)

    def _warn_of_unread(self, gradients: TargetGradients) -> None:
        """Warn of generated weights that get no gradient in the first step."""
        bank = self._state.ensemble.bank
        if not all(parameter.requires_grad for parameter in bank.parameters()):  # frozen: no gradient
            return
        unread = [
            target.label
            for cluster in bank.plan.clusters
            for target in cluster.targets
            if target.member in self._state.own_members
            and not any((target.member, name) in gradients for name in target.names)
        ]
        if unread:
            _LOG.warning(
                "no gradient came to %s in the first step: the member does not read it from its layer (but from a copy "
                "kept elsewhere?), or not on this batch", _listed(unread),
            )  # fmt: skip

    def _first_loss(self, loss_function: LossFunction, every: Targets, answer: Tensor, targets: Targets) -> Tensor:
        """The loss, after the first answer has fixed the number of classes and the targets are checked against it."""
        if self._num_classes is None:
            with own_randomness(self._state.fabric.device):
                for one in batches_in(every):
                    check_targets(num_classes_in(answer), one, self._state.loaders, self._state.ensemble.task)
            self._num_classes = num_classes_in(answer)
        return loss_function(answer, targets)

    def _skip_step(self, inputs: Inputs, targets: Targets, losses: Mapping[str, float]) -> None:
        """Drop the gradients of a step with bad numbers, or stop: all processes alike, and in the same words."""
        state, progress = self._state, self._state.progress
        seen = self._nonfinite(inputs, targets, losses)
        why = max(state.processes.gather_objects(seen), key=len)  # the longest explanation
        state.optimizer.zero_grad(set_to_none=True)
        most = state.config.skip_non_finite
        where = f"step {progress.step + 1} of epoch {state.epoch}: {why}"
        if progress.num_skipped >= most:
            note = f"{most} steps were left out before it" if most else "skip_non_finite leaves such steps out"
            raise SuperWeightError(f"{where}; lower learning_rate ({note})")
        progress.num_skipped += 1
        _LOG.warning("left out (%d of at most %d): %s", progress.num_skipped, most, where)

    def _nonfinite(self, inputs: Inputs, targets: Targets, losses: Mapping[str, float]) -> str:
        """Say in one line what is not finite; runs the backward pass again and overwrites the step's gradients."""
        state, members = self._state, self._state.own_members
        found = [f"the loss of member {name!r} is {loss}" for name, loss in losses.items() if not math.isfinite(loss)]
        batches = batches_in(inputs)
        if any(one.is_floating_point() and not _is_finite(one) for batch in batches for one in tensors_of(batch)):
            return "; ".join([*found, "the images hold numbers that are not finite: look at the data"])
        if not all(_is_finite(target) for batch in batches for target in self._taught(batch)):
            return "; ".join([*found, "the teacher's answers are not finite: look at the teacher"])
        with torch.no_grad():
            weights = state.ensemble.bank.generate(members)
        held = {f"{member}.{name}": one for member in members for name, one in weights[member].items()}
        own = {
            f"{member}.{name}": one
            for member in members
            for name, one in state.ensemble.members[member].named_parameters()
        }
        broken = [name for name, value in (*held.items(), *own.items()) if not _is_finite(value)]
        if broken:
            return "; ".join([*found, f"weights were not finite before the step: {_listed(broken)}"])
        seen: list[str] = []

        def look(gradients: TargetGradients) -> None:
            seen.extend(f"{member}.{name}" for (member, name), value in gradients.items() if not _is_finite(value))

        for parameter in state.ensemble.parameters():
            parameter.grad = None
        # Other processes may have returned their reason already: this one cannot wait for their norms or answers.
        self._forward_and_backward(inputs, targets, look=look, together=False)
        seen += [name for name, value in own.items() if value.grad is not None and not _is_finite(value.grad)]
        if seen:
            found.append(f"the gradient of {_listed(seen)} is not finite")
        return "; ".join(found) or "a gradient of the bank is not finite"

    def _taught(self, inputs: Inputs) -> Iterator[Tensor]:
        """A teacher's targets for a batch, part by part; nothing without a teacher."""
        if self._loss.distillation is None or self._loss.distillation.teacher is None:
            return
        count, parts = num_rows(inputs), self._state.progress.micro_batches
        with self._state.fabric.autocast():
            for rows in row_parts(count, min(parts, most_parts(count))):
                yield self._loss.distillation.taught(rows_of(inputs, rows))


def _is_shared(name: str) -> bool:
    """Whether a parameter's name is one of the bank's; those of members' own parameters are ``members.NAME...``."""
    return not name.startswith("members.")


def _contiguous(inputs: Inputs) -> Inputs:
    if isinstance(inputs, OwnBatches):
        return OwnBatches({name: _contiguous(batch) for name, batch in inputs.items()})
    return mapped(lambda one: in_memory_format(one, channels_last=False), inputs)
