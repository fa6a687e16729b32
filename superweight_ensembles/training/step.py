"""One step of a training: the batch, the gradients, what may go wrong with them, and the optimiser."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from signal import SIGINT, SIGTERM
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from superweight_ensembles.ensemble import SuperWeightEnsemble
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.training.batches import by_member, prepared_batch
from superweight_ensembles.training.checkpoint import Progress, random_states, set_random_states
from superweight_ensembles.training.config import TrainConfig
from superweight_ensembles.training.device import OutOfMemoryError, is_refusal
from superweight_ensembles.training.distillation import Distillation
from superweight_ensembles.training.distributed import Processes, synchronised
from superweight_ensembles.training.joint import TargetGradients
from superweight_ensembles.training.widths import LearnedWidths

# FOLDED training.non_finite: Where the numbers of a step stopped being finite.

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


_LOG = logging.getLogger(__name__)


class TrainStep:
    """Takes steps, one batch after the other.

    Args:
        ensemble: Trained in place.
        members: Those that are trained.
        backward: :func:`joint_backward`, with all but the batch decided.
        optimizer: Of the ensemble's parameters.
        schedule: Stepped once a batch, also where the step is left out.
        fabric: Of device and precision.
        config: How.
        channels_last: Memory format of the images.
        processes: Of the job; gradients are those of the rows of all of them.
        widths: That the members learn.
        distillation: What ``backward`` has members learn from besides the labels.
    """

    def __init__(
        self,
        ensemble: SuperWeightEnsemble,
        members: Sequence[str],
        backward: Callable[..., dict[str, Tensor]],
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
        fabric: Fabric,
        config: TrainConfig,
        channels_last: bool,
        processes: Processes,
        widths: LearnedWidths,
        distillation: Distillation | None = None,
    ) -> None:
        self._ensemble = ensemble
        self._members = members
        self._backward = backward
        self._optimizer = optimizer
        self._schedule = schedule
        self._fabric = fabric
        self._config = config
        self._channels_last = channels_last
        self._processes = processes
        self._widths = widths
        self._distillation = distillation
        self._agreed = False

    def __call__(self, batches: Sequence[Any], progress: Progress, signal: int = 0) -> int:
        """Take a step on one batch for all members, or on one for each, and note it in the progress.

        Args:
            batches: Of this process: of several, each has its part of the batch.
            progress: Changed here.
            signal: The number of one that has come to this process; 0 for none.

        Returns:
            The highest such number over all processes.

        Raises:
            SuperWeightError: A batch that is none; a loss or a gradient that is not finite, more often than the config
                leaves out (names members and targets); no memory left; a member that cannot read channels-last images.
        """
        ready = [prepared_batch(batch, self._fabric.device, self._channels_last) for batch in batches]
        images, labels = ready[0] if len(ready) == 1 else by_member(self._members, ready)
        returns = self._config.skip_non_finite > 0 or self._config.micro_batches == "auto"
        buffers = [(buffer, buffer.clone()) for buffer in self._ensemble.buffers()] if returns else []
        weight, signal = self._share(len(ready[0][1]), signal)
        losses = torch.stack(list(self._gradients(images, labels, weight, progress, buffers).values())).double()
        self._add_up(losses)
        sign = gradient_sign(self._ensemble.parameters())
        numbers = torch.cat([losses, sign.to(losses)[None], self._widths.rates()]).tolist()  # the one read of a step
        found, gradients, rates = numbers[: len(losses)], numbers[len(losses)], numbers[len(losses) + 1 :]
        finite = math.isfinite(gradients) or are_finite(self._ensemble.parameters())
        if finite and all(map(math.isfinite, found)):
            self._optimizer.step()
            self._widths.follow(rates, len(progress.history), progress.step)
            for name, loss in zip(self._members, found):
                progress.loss_sums[name] = progress.loss_sums.get(name, 0.0) + loss
            progress.num_summed += 1
        else:
            self._leave_out(images, labels, dict(zip(self._members, found)), progress)
            _put_back(buffers)
        self._schedule.step()
        progress.step += 1
        return signal

    def _share(self, num_rows: int, signal: int) -> tuple[float, int]:
        """The share of this process in the rows of the batch, and the signal that has come to any.

        Losses are weighed before backward: synchronised batch norm mixes the gradients of all processes.
        """
        if self._processes.size == 1:
            return 1.0, signal
        told = torch.tensor(
            [num_rows, signal == SIGINT, signal == SIGTERM], dtype=torch.float64, device=self._fabric.device
        )
        self._processes.all_reduce_([told])
        every_row, interrupted, terminated = told.tolist()
        return num_rows / every_row, SIGTERM if terminated else SIGINT if interrupted else 0

    def _add_up(self, losses: Tensor) -> None:
        """Sum losses (M,) and gradients over the processes."""
        if self._processes.size == 1:
            return
        held = {name: one.grad for name, one in self._ensemble.named_parameters() if one.grad is not None}
        if not self._agreed:
            self._processes.assert_equal_across_ranks(list(held), "the parameters that have gradients")
            self._agreed = True
        self._processes.all_reduce_([losses, *held.values()])

    def _gradients(
        self,
        images: Tensor | Mapping[str, Tensor],
        labels: Tensor | Mapping[str, Tensor],
        weight: float,
        progress: Progress,
        buffers: list[tuple[Tensor, Tensor]],
    ) -> dict[str, Tensor]:
        """Fill ``.grad``; where memory runs out and the config says ``auto``, in more parts."""
        doubles = self._config.micro_batches == "auto"
        states = random_states(self._fabric.device) if doubles else None
        while True:
            self._optimizer.zero_grad(set_to_none=True)
            try:
                return self._forward_and_backward(images, labels, progress, weight)
            except OutOfMemoryError:
                size = len(labels if isinstance(labels, Tensor) else next(iter(labels.values())))
                if not doubles or progress.micro_batches >= size:
                    raise
            # outside of the handler, whose error holds on to the tensors of the attempt
            progress.micro_batches = min(2 * progress.micro_batches, size)
            _LOG.warning("out of memory at a batch of %d: from now on in %d parts", size, progress.micro_batches)
            _put_back(buffers)
            assert states is not None
            set_random_states(states, self._fabric.device)
            if self._fabric.device.type == "cuda":
                torch.cuda.empty_cache()

    def _forward_and_backward(
        self,
        images: Tensor | Mapping[str, Tensor],
        labels: Tensor | Mapping[str, Tensor],
        progress: Progress,
        weight: float = 1.0,
        look: Callable[[TargetGradients], None] | None = None,
    ) -> dict[str, Tensor]:
        # A process that looks for a reason may be the only one that still does: it cannot wait for the others' norms.
        together = self._config.sync_batch_norm and look is None
        num_rows = len(labels if isinstance(labels, Tensor) else next(iter(labels.values()))) * self._processes.size
        penalty = self._widths.penalty(len(progress.history), progress.step, num_rows)
        try:
            with synchronised(self._processes) if together else nullcontext(), self._fabric.autocast():
                return self._backward(
                    images, labels, micro_batches=progress.micro_batches, weight=weight, look=look, penalty=penalty
                )
        except RuntimeError as error:
            if self._channels_last and is_refusal(error):
                raise SuperWeightError(
                    "a member takes a view of feature maps that channels-last ones do not have: set channels_last to "
                    "false, or let the member flatten by torch.flatten"
                ) from error
            raise

    def _leave_out(
        self,
        images: Tensor | Mapping[str, Tensor],
        labels: Tensor | Mapping[str, Tensor],
        losses: Mapping[str, float],
        progress: Progress,
    ) -> None:
        """Drop the gradients of a step with bad numbers, or stop: all processes alike, and in the same words."""
        seen = what_is_not_finite(
            self._ensemble,
            self._members,
            images,
            losses,
            lambda look: self._forward_and_backward(images, labels, progress, look=look),
            partial(self._targets, parts=progress.micro_batches),
        )
        why = max(self._processes.gather_objects(seen), key=len)  # of several, the one that has most to tell
        self._optimizer.zero_grad(set_to_none=True)
        most = self._config.skip_non_finite
        where = f"step {progress.step + 1} of epoch {len(progress.history) + 1}: {why}"
        if progress.num_skipped >= most:
            told = f"{most} steps were left out before it" if most else "skip_non_finite leaves such steps out"
            raise SuperWeightError(f"{where}; lower learning_rate ({told})")
        progress.num_skipped += 1
        _LOG.warning("left out (%d of at most %d): %s", progress.num_skipped, most, where)

    def _targets(self, images: Tensor, parts: int) -> Iterator[Tensor]:
        """What a teacher has members learn on a batch, part by part; nothing without one."""
        if self._distillation is None or self._distillation.teacher is None:
            return
        with self._fabric.autocast():
            yield from map(self._distillation.taught, images.tensor_split(min(parts, len(images))))


def _put_back(buffers: list[tuple[Tensor, Tensor]]) -> None:
    for buffer, before in buffers:
        buffer.copy_(before)
