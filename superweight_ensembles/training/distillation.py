"""Knowledge distillation: members learn from the answers of a teacher besides the labels.

Shapes: M networks of a teacher, B batch, K classes. w is the weight of the teacher, T the temperature.

Source: Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015, arXiv 1503.02531, section 2.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from superweight_ensembles.ensemble import SuperWeightEnsemble
from superweight_ensembles.errors import SuperWeightError, names_options, unknown_name
from superweight_ensembles.models import first_line, is_out_of_memory, kept_modes, unchanged
from superweight_ensembles.training.batches import in_memory_format
from superweight_ensembles.training.config import TrainConfig
from superweight_ensembles.training.device import is_refusal
from superweight_ensembles.training.hooks import Hook, TrainState

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
    def on_device(self, device: torch.device) -> Iterator[None]:
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
        given = in_memory_format(images, channels_last=False) if self._contiguous else images
        try:
            with unchanged("the teacher", given):
                answer: Tensor = network(given)
        except SuperWeightError:
            raise
        except Exception as error:  # a teacher is anyone's code
            if is_out_of_memory(error):
                raise
            if is_refusal(error) and not self._contiguous:
                self._contiguous = True  # it takes views that channels-last feature maps do not have
                for one in self._networks:
                    one.to(memory_format=torch.contiguous_format)
                return self._answer(network, images)
            raise SuperWeightError(
                f"the teacher cannot run on images {tuple(images.shape)} of {images.dtype}: {first_line(error)}"
            ) from error
        return answer

    def shares_modules(self, ensemble: nn.Module) -> bool:
        """Whether any of its modules is one of an ensemble's."""
        return bool({id(module) for module in self._module.modules()} & {id(module) for module in ensemble.modules()})

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


@names_options
class Distillation(Hook):
    """Members learn from a teacher besides the labels.

    A member's loss is (1 - w) cross-entropy + w T^2 KL(teacher at T || member at T).

    Args:
        teacher: A network that answers logits (B, K) for the same images; a SuperWeightEnsemble, or a network that
            answers (M, B, K), for the mean of their softmax; or ``"ensemble"`` for the mean of the members themselves
            on each batch. Its numbers stay as they are; it ends on the training device. It is not saved: to resume,
            give the same again.
        weight: w, 0 to 1; 0 is off: the teacher is not asked.
        temperature: T, which divides the logits of both before the softmax.

    Raises:
        SuperWeightError: A teacher that is none, a weight or temperature out of range. When the training starts: a
            teacher that is part of the ensemble, the mean of one member or of members that see different batches.

    Source: Hinton, Vinyals, Dean, arXiv 1503.02531, section 2.

    Example:
        >>> import superweight_ensembles as swe
        >>> data = swe.load_data("synthetic", num_train=128)
        >>> members = {"a": swe.wide_resnet(10, 1, data.num_classes), "b": swe.wide_resnet(16, 1, data.num_classes)}
        >>> ensemble = swe.SuperWeightEnsemble(members, budget=0.9)
        >>> own_mean = swe.Distillation("ensemble", weight=0.5)
        >>> result = swe.train(ensemble, data, swe.TrainConfig(epochs=1, batch_size=64), hooks=[own_mean])
    """

    def __init__(self, teacher: Teacher, *, weight: float, temperature: float = 4.0) -> None:
        if isinstance(teacher, str) and teacher != OWN_MEAN:
            raise unknown_name("teacher", teacher, [OWN_MEAN])
        if not isinstance(teacher, (str, nn.Module)):
            raise SuperWeightError(
                f"teacher= takes a network (nn.Module) or {OWN_MEAN!r}; got {type(teacher).__name__}"
            )
        for what, value, fits, limits in (
            ("weight", weight, lambda number: 0 <= number <= 1, "0 to 1"),
            ("temperature", temperature, lambda number: 0 < number < math.inf, "positive and finite"),
        ):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not fits(value):
                raise SuperWeightError(f"the {what} of a distillation must be {limits}; got {value!r}")
        self.weight = weight
        self.temperature = temperature
        self.teacher = None if isinstance(teacher, str) else FixedTeacher(teacher)
        self._ending = ExitStack()

    def settings(self) -> dict[str, Any]:
        teacher = OWN_MEAN if self.teacher is None else self.teacher.fingerprint()
        return {"teacher": teacher, "weight": self.weight, "temperature": self.temperature}

    def start(self, state: TrainState) -> None:
        if self.teacher is None:
            check_own_mean(len(state.members), state.config)
            return
        if self.teacher.shares_modules(state.ensemble):
            raise SuperWeightError(
                f"the teacher is part of the ensemble that is trained: {OWN_MEAN!r} has members learn from their mean"
            )
        self._ending.enter_context(self.teacher.on_device(state.fabric.device))

    def end(self, state: TrainState) -> None:
        self._ending.close()

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


def check_own_mean(num_members: int, config: TrainConfig) -> None:
    """Refuse a mean of members that says nothing, or that is of no one batch."""
    if num_members < 2:
        raise SuperWeightError(f"teacher {OWN_MEAN!r} is the mean of the members: one alone would learn from itself")
    if config.member_batches != "same":
        raise SuperWeightError(
            f"teacher {OWN_MEAN!r} is a mean on one batch that all members see: member_batches must be 'same'"
        )


def at_least_float32(logits: Tensor) -> Tensor:
    """Logits that a softmax is exact enough of."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
