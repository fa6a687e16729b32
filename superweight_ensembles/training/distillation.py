"""Knowledge distillation: members learn from the answers of a teacher, or from each other's, besides the labels.

Shapes: M members, or networks of a teacher, B batch, K classes. w is the weight of the teacher, T the temperature.

Source: Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015, arXiv 1503.02531, section 2.
Members that teach each other: Zhang et al., Deep Mutual Learning, CVPR 2018; prefixes: Ruiz and Verbeek, Anytime
Inference with Distilled Hierarchical Neural Ensembles, AAAI 2021; history: Laine and Aila, Temporal Ensembling for
Semi-Supervised Learning, ICLR 2017.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from superweight_ensembles.data import Inputs, mapped, num_rows
from superweight_ensembles.ensemble import SuperWeightEnsemble
from superweight_ensembles.errors import SuperWeightError, check_number, names_options, unknown_name
from superweight_ensembles.models import (
    answer_in,
    call_with,
    count_flops,
    described,
    first_line,
    is_out_of_memory,
    kept_modes,
    unchanged,
)
from superweight_ensembles.training.answer_history import AnswerHistory
from superweight_ensembles.training.batches import in_memory_format
from superweight_ensembles.training.device import is_refusal
from superweight_ensembles.training.hooks import Hook, TrainState

_LOG = logging.getLogger(__name__)
Lessons = Literal["ensemble", "others", "prefixes", "history"]
EACH_OTHER: tuple[Lessons, ...] = get_args(Lessons)  # teachers that are the members themselves
OWN_MEAN, OTHERS, PREFIXES, HISTORY = EACH_OTHER
Teacher = nn.Module | Lessons


class FixedTeacher:
    """A network that answers logits (B, K) or (M, B, K), and does not learn: in eval mode, without gradients."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._networks: list[nn.Module] = []
        self._contiguous = False

    @contextmanager
    def on_device(self, device: torch.device) -> Iterator[None]:
        """Put the teacher on a device, where it stays, and in eval mode until the context ends."""
        whole = self._module
        with kept_modes(whole):
            if isinstance(whole, SuperWeightEnsemble):
                # weights are generated once here, not at every step
                self._networks = [whole.materialize(name).to(device).eval() for name in whole.member_names]
            else:
                self._networks = [whole.to(device).eval()]
            try:
                yield
            finally:
                self._networks = []

    @torch.no_grad()
    def logits(self, inputs: Inputs) -> Tensor:
        """The teacher's answers (M, B, K)."""
        answers, count = [self._answer(network, inputs) for network in self._networks], num_rows(inputs)
        for answer in answers:
            fits = isinstance(answer, Tensor) and answer.ndim in (2, 3) and answer.shape[-2] == count
            if not fits:
                shape = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
                raise SuperWeightError(
                    f"a teacher must answer logits (batch, classes) or (networks, batch, classes); got {shape} for a "
                    f"batch of {count}"
                )
        if len({answer.shape for answer in answers}) > 1:
            shapes = ", ".join(str(tuple(answer.shape)) for answer in answers)
            raise SuperWeightError(f"the networks of a teacher must answer the same classes; got {shapes}")
        return torch.cat([answer if answer.ndim == 3 else answer[None] for answer in answers])

    def _answer(self, network: nn.Module, inputs: Inputs) -> Tensor:
        given = mapped(lambda one: in_memory_format(one, channels_last=False), inputs) if self._contiguous else inputs
        try:
            with unchanged("the teacher", given):
                answer: Tensor = answer_in(call_with(network, given))
        except SuperWeightError:
            raise
        except Exception as error:  # a teacher is anyone's code
            if is_out_of_memory(error):
                raise
            if is_refusal(error) and not self._contiguous:
                self._contiguous = True  # it takes views that channels-last feature maps do not have
                for one in self._networks:
                    one.to(memory_format=torch.contiguous_format)
                return self._answer(network, inputs)
            raise SuperWeightError(f"the teacher cannot run on {described(inputs)}: {first_line(error)}") from error
        return answer

    def shares_modules(self, ensemble: nn.Module) -> bool:
        """Whether any module of the teacher is one of an ensemble's."""
        return bool({id(module) for module in self._module.modules()} & {id(module) for module in ensemble.modules()})

    def fingerprint(self) -> str:
        """SHA-256 of every parameter and buffer, and of an ensemble's plan."""
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

    A member's loss is (1 - w) cross-entropy + w T^2 KL(teacher at T || member at T). The teacher is

    - a network: its answers, without gradient;
    - ``"ensemble"``: the mean of all members' softmax at T on the batch;
    - ``"others"``: the mean of the other members' softmax;
    - ``"history"``: the mean of all members' answers to the image in the epochs before (momentum 0.6). It needs N x K
      numbers, but no activations of several members at once; an image not seen before is learned from its label alone;
    - ``"prefixes"``: the mean softmax of all members teaches the mean of the first j by cost, for each j below M: these
      means are the answers of anytime prediction. The cross-entropy keeps its full weight: the sum of losses is
      sum CE + w T^2 sum over j of KL(mean of M at T || mean of j at T).

    Args:
        teacher: A network that answers logits (B, K) for the same images; a SuperWeightEnsemble, or a network that
            answers (M, B, K), whose mean softmax teaches; or one of the names above. A network is not trained, and
            stays on the training device afterwards. It is not saved: to resume, give the same again.
        weight: w, 0 to 1; 0 is off: the teacher is not asked.
        temperature: T, which divides the logits of teacher and member before the softmax.
        ramp_up: Share of the training, 0 to 1, in which w grows from 0, linearly: young members have little to teach.
        ramp_down: Share at the end in which w falls to 0.
        order: Order of the members for ``"prefixes"``, as anytime prediction asks them; by their FLOPs where None.

    Raises:
        SuperWeightError: An unknown teacher, a number out of range. When the training starts: a teacher that is
            part of the ensemble; members that teach each other where there is one member, or where each sees its own
            batches (but for ``"history"``); a loader that does not say which images a batch holds, as ``"history"``
            needs.

    Source: Hinton, Vinyals, Dean, arXiv 1503.02531, section 2; Zhang et al., CVPR 2018; Ruiz and Verbeek, AAAI 2021;
    Laine and Aila, ICLR 2017.

    Example:
        >>> import superweight_ensembles as swe
        >>> data = swe.load_data("synthetic", num_train=128)
        >>> members = {"a": swe.wide_resnet(10, 1, data.num_classes), "b": swe.wide_resnet(16, 1, data.num_classes)}
        >>> ensemble = swe.SuperWeightEnsemble(members, budget=0.9)
        >>> own_mean = swe.Distillation("ensemble", weight=0.5)
        >>> result = swe.train(ensemble, data, swe.TrainConfig(epochs=1, batch_size=64), hooks=[own_mean])
    """

    def __init__(
        self,
        teacher: Teacher,
        *,
        weight: float,
        temperature: float = 4.0,
        ramp_up: float = 0.0,
        ramp_down: float = 0.0,
        order: Sequence[str] | None = None,
    ) -> None:
        if isinstance(teacher, str) and teacher not in EACH_OTHER:
            raise unknown_name("teacher", teacher, EACH_OTHER)
        if not isinstance(teacher, (str, nn.Module)):
            raise SuperWeightError(
                f"teacher= takes a network (nn.Module) or one of {', '.join(EACH_OTHER)}; got {type(teacher).__name__}"
            )
        check_number("the temperature of a distillation", temperature, above=0)
        for what, value in (("weight", weight), ("ramp_up", ramp_up), ("ramp_down", ramp_down)):
            check_number(f"the {what} of a distillation", value, least=0, most=1)
        if ramp_up + ramp_down > 1:
            raise SuperWeightError(f"ramp_up and ramp_down must be 1 together at most; got {ramp_up} and {ramp_down}")
        if order is not None and teacher != PREFIXES:
            raise SuperWeightError(f"order= goes with the teacher {PREFIXES!r} only: leave it out")
        self.weight = weight
        self.temperature = temperature
        self.ramp_up, self.ramp_down = ramp_up, ramp_down
        self.lessons: Lessons | None = teacher if isinstance(teacher, str) else None
        self.teacher = None if isinstance(teacher, str) else FixedTeacher(teacher)
        self.history: AnswerHistory | None = None
        self._given_order = self._order = None if order is None else tuple(order)
        self._ending = ExitStack()

    @property
    def together(self) -> bool:
        """Whether a member's loss needs the others' answers to the same batch."""
        return self.lessons is not None and self.lessons != HISTORY

    def settings(self) -> dict[str, Any]:
        teacher = self.lessons if self.teacher is None else self.teacher.fingerprint()
        found = {"teacher": teacher, "weight": self.weight, "temperature": self.temperature}
        further = {"ramp_up": self.ramp_up, "ramp_down": self.ramp_down, "order": self._given_order}
        return found | {key: value for key, value in further.items() if value}  # older checkpoints lack them

    def start(self, state: TrainState) -> None:
        if self.lessons is not None:
            check_lessons(self.lessons, len(state.members), state.config.member_batches)
            if self._given_order is not None and sorted(self._given_order) != sorted(state.members):
                raise SuperWeightError(
                    f"order= must name each trained member once: {', '.join(state.members)}; got "
                    f"{', '.join(map(str, self._given_order))}"
                )
            self._order = self._given_order
            if self.lessons == HISTORY:
                if state.config.epochs == 1:
                    _LOG.warning("teacher 'history' teaches from epoch 2 on: one epoch is trained without a teacher")
                self.history = AnswerHistory(state.loaders, state.members, state.processes, state.rows)
            return
        assert self.teacher is not None
        if self.teacher.shares_modules(state.ensemble):
            raise SuperWeightError(
                f"the teacher is part of the ensemble that is trained: give {OWN_MEAN!r} to learn from its mean"
            )
        self._ending.enter_context(self.teacher.on_device(state.fabric.device))

    def end(self, state: TrainState) -> None:
        self._ending.close()

    def after_step(self, state: TrainState, scalars: Sequence[float]) -> None:
        if self.history is not None:
            self.history.close()

    def state_dict(self) -> Mapping[str, Any]:
        found: dict[str, Any] = {} if self.history is None else self.history.state_dict()
        return found if self._order is None else {**found, "order": list(self._order)}

    def load_state_dict(self, content: Mapping[str, Any]) -> None:
        if self.history is not None:
            self.history.load_state_dict(content)
        if "order" in content:
            self._order = tuple(content["order"])

    def weight_at(self, fraction_done: float) -> float:
        """w after this share of the training, 0 to 1."""
        grown = fraction_done / self.ramp_up if self.ramp_up else 1.0
        left = (1 - fraction_done) / self.ramp_down if self.ramp_down else 1.0
        return self.weight * min(1.0, grown, left)

    def target(self, logits: Tensor) -> Tensor:
        """The mean softmax (B, K) at T of logits (M, B, K), without gradient."""
        return (at_least_float32(logits.detach()) / self.temperature).softmax(2).mean(0)

    def taught(self, inputs: Inputs) -> Tensor:
        """The teacher's target (B, K) for inputs of B rows."""
        assert self.teacher is not None, "members that teach each other need their logits"
        return self.target(self.teacher.logits(inputs))

    def loss(self, name: str, hard: Tensor, logits: Tensor, target: Tensor, weight: float | None = None) -> Tensor:
        """(1 - w) times the loss on the labels + w T^2 KL(target || the member at T), a mean over the batch."""
        if target.shape != logits.shape:
            raise SuperWeightError(
                f"the teacher answers {target.shape[1]} classes, member {name!r} {logits.shape[1]}: "
                "give a teacher of the same classes"
            )
        weight = self.weight if weight is None else weight
        return (1 - weight) * hard + weight * self._divergence(self._tempered(logits), target)

    def recalled_loss(self, name: str, hard: Tensor, logits: Tensor, rows: slice, weight: float) -> Tensor:
        """The :meth:`loss` of some rows of a member's batch against the history, in which the answers are noted."""
        assert self.history is not None, "a training has begun"
        tempered = self._tempered(logits)
        target, known = self.history.target(name, rows, tempered)
        self.history.note(name, rows, tempered.exp())
        # the weight counts only for images that were seen before
        return (1 - weight * known) * hard + weight * self._divergence(tempered, target)  # 0 for a row of zeros

    def joint_losses(
        self, hard: Mapping[str, Tensor], logits: Mapping[str, Tensor], weight: float, order: Sequence[str]
    ) -> dict[str, Tensor]:
        """The losses of members that learn from each other's answers to one batch."""
        if self.lessons != PREFIXES:
            mean, count = self.target(torch.stack(list(logits.values()))), len(logits)
            found = {}
            for name, answer in logits.items():
                taught = mean
                if self.lessons == OTHERS:
                    taught = ((count * mean - self._tempered(answer.detach()).exp()) / (count - 1)).clamp_min(0)
                found[name] = self.loss(name, hard[name], answer, taught, weight)
            return found
        tempered = torch.stack([self._tempered(logits[name]) for name in order])
        target = tempered.detach().exp().mean(0)
        found, summed = dict(hard), tempered.logcumsumexp(0)
        for index, name in enumerate(order[:-1]):
            found[name] = found[name] + weight * self._divergence(summed[index] - math.log(index + 1), target)
        return found

    def cheapest_first(self, ensemble: SuperWeightEnsemble, members: Sequence[str], image: Tensor) -> Sequence[str]:
        """The members by their FLOPs for an image (1, ...), counted once; as given, where order does not matter."""
        if self.lessons != PREFIXES:
            return members
        if self._order is None:
            flops = {name: count_flops(ensemble.materialize(name).eval(), image) for name in members}
            self._order = tuple(sorted(members, key=flops.__getitem__))
        return self._order

    def _tempered(self, logits: Tensor) -> Tensor:
        """Log-softmax (B, K) at T."""
        return (at_least_float32(logits) / self.temperature).log_softmax(1)

    def _divergence(self, tempered: Tensor, target: Tensor) -> Tensor:
        """T^2 KL(target || member), a mean over the batch; ``tempered`` has the member's log-softmax (B, K) at T."""
        # the gradient falls with 1 / T^2, for which the factor makes up
        return self.temperature**2 * F.kl_div(tempered, target.to(tempered.dtype), reduction="batchmean")


def check_lessons(lessons: Lessons, num_members: int, member_batches: str) -> None:
    """Refuse members that teach each other where there is one member, or where each sees its own batches."""
    if num_members < 2 and lessons != HISTORY:
        raise SuperWeightError(
            f"teacher {lessons!r} needs several members: one alone would learn from itself (with teacher 'history' it "
            "learns from its answers in earlier epochs)"
        )
    if member_batches != "same" and lessons != HISTORY:
        raise SuperWeightError(
            f"teacher {lessons!r} needs one batch that all members see: set member_batches to 'same', or take teacher "
            "'history'"
        )


def at_least_float32(logits: Tensor) -> Tensor:
    """Logits in a type that is exact enough for a softmax."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
