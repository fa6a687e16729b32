"""Knowledge distillation: members learn from the answers of a teacher besides the labels.

Shapes: M networks of a teacher, B batch, K classes. w is the weight of the teacher, T the temperature.

Source: Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015, arXiv 1503.02531, section 2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from superweight_ensembles.ensemble import SuperWeightEnsemble
from superweight_ensembles.errors import SuperWeightError, unknown_name
from superweight_ensembles.models import kept_modes
from superweight_ensembles.training.config import TrainConfig
from superweight_ensembles.training.device import is_out_of_memory, is_refusal

OWN_MEAN: Literal["ensemble"] = "ensemble"
Teacher = nn.Module | Literal["ensemble"]


class FixedTeacher:
    """A network that members learn from and that does not learn: in eval mode, without gradients.

    Args:
        module: Answers logits (B, K), or those of several networks (M, B, K), as a SuperWeightEnsemble does.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._networks: list[nn.Module] = []
        self._contiguous = False

    @contextmanager
    def placed(self, device: torch.device) -> Iterator[None]:
        """On a device and in eval mode for a while; its modes come back, and it stays on the device.

        The networks of a SuperWeightEnsemble are materialised: its weights are generated once, not at every step.
        """
        whole = self._module
        with kept_modes(whole):
            if isinstance(whole, SuperWeightEnsemble):
                self._networks = [whole.materialize(name).to(device).eval() for name in whole.member_names]
            else:
                self._networks = [whole.to(device).eval()]
            try:
                yield
            finally:
                self._networks = []

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Its answers (M, B, K).

        Raises:
            SuperWeightError: It cannot run on the images, or answers something else.
        """
        answers = [self._answer(network, images) for network in self._networks]
        for answer in answers:
            fits = isinstance(answer, Tensor) and answer.ndim in (2, 3) and answer.shape[-2] == len(images)
            if not fits:
                shape = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
                raise SuperWeightError(
                    f"a teacher must answer logits (batch, classes) or (networks, batch, classes); got {shape} for a "
                    f"batch of {len(images)}"
                )
        if len({answer.shape for answer in answers}) > 1:
            shapes = ", ".join(str(tuple(answer.shape)) for answer in answers)
            raise SuperWeightError(f"the networks of a teacher must answer the same classes; got {shapes}")
        return torch.cat([answer if answer.ndim == 3 else answer[None] for answer in answers])

    def _answer(self, network: nn.Module, images: Tensor) -> Tensor:
        try:
            answer: Tensor = network(images.contiguous() if self._contiguous else images)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            if is_refusal(error) and not self._contiguous:
                self._contiguous = True  # it takes views that channels-last feature maps do not have
                return self._answer(network, images)
            reason = " ".join(str(error).split()) or type(error).__name__
            raise SuperWeightError(
                f"the teacher cannot run on images {tuple(images.shape)} of {images.dtype}: {reason:.200}"
            ) from error
        return answer

    def fingerprint(self) -> str:
        """Of every parameter and buffer, and of an ensemble's plan."""
        found = hashlib.sha256()
        if isinstance(self._module, SuperWeightEnsemble):
            found.update(self._module.plan.fingerprint.encode())
        for name, value in self._module.state_dict().items():
            if isinstance(value, Tensor):
                found.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
                found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return f"sha256:{found.hexdigest()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Distillation:
    """What members learn from besides the labels.

    Attributes:
        weight: w, above 0, to 1.
        temperature: T.
        teacher: None for the mean of the members' own answers.
    """

    weight: float
    temperature: float
    teacher: FixedTeacher | None

    @property
    def name(self) -> str:
        """That a training is resumed by: other numbers, another teacher."""
        return OWN_MEAN if self.teacher is None else self.teacher.fingerprint()

    def target(self, logits: Tensor) -> Tensor:
        """The mean softmax (B, K) at T of logits (M, B, K), without gradient."""
        return (at_least_float32(logits.detach()) / self.temperature).softmax(2).mean(0)

    def taught(self, images: Tensor) -> Tensor:
        """The teacher's target (B, K) for images (B, ...)."""
        assert self.teacher is not None, "the members' own mean needs their logits"
        return self.target(self.teacher.logits(images))

    def loss(self, name: str, hard: Tensor, logits: Tensor, target: Tensor) -> Tensor:
        """(1 - w) times the loss on the labels + w T^2 KL(target || the member's softmax at T), a mean over the batch.

        T^2 keeps the size of the gradient, which falls with its inverse.

        Args:
            name: Of the member.
            hard: Its loss on the labels, a scalar.
            logits: Its answer (B, K).
            target: (B, K).

        Raises:
            SuperWeightError: Other classes than the member's.
        """
        if target.shape != logits.shape:
            raise SuperWeightError(
                f"the teacher answers {target.shape[1]} classes, member {name!r} {logits.shape[1]}: "
                "give a teacher of the same classes"
            )
        tempered = (at_least_float32(logits) / self.temperature).log_softmax(1)
        soft = F.kl_div(tempered, target.to(tempered.dtype), reduction="batchmean")
        return (1 - self.weight) * hard + self.weight * self.temperature**2 * soft


def distillation_of(
    config: TrainConfig, teacher: Teacher | None, ensemble: SuperWeightEnsemble, members: Collection[str]
) -> Distillation | None:
    """What a training's config and teacher come to; None without either.

    Raises:
        SuperWeightError: One of the two without the other, a teacher that is none, or that is part of what is trained,
            the mean of one member or of members that do not see one batch.
    """
    if teacher is None:
        if config.distillation:
            raise SuperWeightError(
                f"distillation {config.distillation} needs teacher=: a network, a SuperWeightEnsemble, or {OWN_MEAN!r} "
                "for the members' own mean"
            )
        return None
    if not config.distillation:
        raise SuperWeightError("teacher= does nothing with distillation 0: set its weight, or leave the teacher out")
    if isinstance(teacher, nn.Module):
        if {id(module) for module in teacher.modules()} & {id(module) for module in ensemble.modules()}:
            raise SuperWeightError(
                f"the teacher is part of the ensemble that is trained: {OWN_MEAN!r} has members learn from their mean"
            )
        return _distillation(config, FixedTeacher(teacher))
    if isinstance(teacher, str) and teacher != OWN_MEAN:
        raise unknown_name("teacher", teacher, [OWN_MEAN])
    if not isinstance(teacher, str):
        raise SuperWeightError(f"teacher= takes a network (nn.Module) or {OWN_MEAN!r}; got {type(teacher).__name__}")
    check_own_mean(len(members), config)
    return _distillation(config, None)


def check_own_mean(num_members: int, config: TrainConfig) -> None:
    """Refuse a mean of members that says nothing, or that is of no one batch."""
    if num_members < 2:
        raise SuperWeightError(f"teacher {OWN_MEAN!r} is the mean of the members: one alone would learn from itself")
    if config.member_batches != "same":
        raise SuperWeightError(
            f"teacher {OWN_MEAN!r} is a mean on one batch that all members see: member_batches must be 'same'"
        )


def _distillation(config: TrainConfig, teacher: FixedTeacher | None) -> Distillation:
    return Distillation(weight=config.distillation, temperature=config.distillation_temperature, teacher=teacher)


def at_least_float32(logits: Tensor) -> Tensor:
    """Logits that a softmax is exact enough of."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
