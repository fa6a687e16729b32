"""The ensemble: unmodified members that read their weights from one bank; and how it moves to a plan with fewer ties.

Shapes: M members, B batch, K classes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from huggingface_hub import ModelCard
from torch import Tensor, nn

from superweight_ensembles.data import Inputs, Preprocessing, mapped, plain
from superweight_ensembles.ensemble.bank import SuperWeightBank
from superweight_ensembles.ensemble.generation import Weights, slot_key
from superweight_ensembles.ensemble.hub import HubModel, local_folder, model_card
from superweight_ensembles.ensemble.initialization import own_deviations
from superweight_ensembles.ensemble.members import MemberDict, fixed
from superweight_ensembles.ensemble.placement import Call, Placement, one_call_at_a_time
from superweight_ensembles.ensemble.saving import (
    build_members,
    check_ensemble_files,
    check_tensors_suffice,
    read_config,
    read_ensemble_tensors,
    read_plan,
    registered,
    write_ensemble,
)
from superweight_ensembles.ensemble.tasks import CLASSIFICATION, TASKS, Select, Task, task_named
from superweight_ensembles.errors import SuperWeightError, names_options, naming, unknown_name
from superweight_ensembles.models import (
    answer_in,
    call_with,
    calling,
    check_functions,
    copied,
    exchange_parameter,
    set_parameter,
)
from superweight_ensembles.plan import (
    Cluster,
    Members,
    PlanOptions,
    SharingPlan,
    check_plan_fits,
    check_plan_options,
    count_parameters,
    named_members,
    plan_sharing,
)
from superweight_ensembles.storage import escape_controls

if TYPE_CHECKING:  # typing_extensions is no requirement of this package
    from typing_extensions import Self, Unpack

_LOG = logging.getLogger(__name__)
_MEMBERS_SHOWN = 6  # of a repr of ten lines
_HAS_WEIGHT = (nn.Linear, nn.modules.conv._ConvNd)


@names_options
class SuperWeightEnsemble(nn.Module, HubModel):
    """Different networks whose weights come from one bank inside one parameter budget.

    The members given are copied, never changed. In the copies every generated tensor is None until a call puts it
    there, so it is in no ``state_dict``, in no optimiser, and takes no memory of its own; norms, biases and heads
    stay the copies' own parameters.

    Args:
        members: Networks by name, (name, network) pairs, or networks alone, which become ``member0``, ``member1``, ...;
            all answer logits (B, K) for the same images, or what ``task`` says. If a member answers more than one
            tensor, its ``logits`` or, without these, its first tensor is the answer.
        budget: Number of trainable scalars (int), or fraction of the members' parameters apart (float). Give this or
            ``plan``.
        plan: A plan made, found or loaded before.
        rng: Source of the bank's start values; torch's global one where None.
        task: ``classification``: logits (B, K), one class a row; ``segmentation``: logits (B, K, H, W), or of other
            places, a class index each; ``multilabel``: logits (B, L), yes or no each; ``regression``: numbers (B, ...).
            It decides the default loss and what the members' mean is taken of: softmax, sigmoid, or answers.
        select: Function that picks the answer from a member's output, where that is several tensors and the rule above
            picks the wrong one. It becomes a part of the members, also of materialised ones, and is not saved. Where
            None, members that have such a function, such as materialised ones of another ensemble, keep it.
        **plan_options: Options of :func:`plan_sharing`, with ``budget``.

    Attributes:
        task: The :class:`superweight_ensembles.ensemble.Task`.
        images: How images are preprocessed, and the names of classes, as :func:`superweight_ensembles.train` found them
            in its data; None before, and after training on other batches. It is saved with the ensemble.
        bank: The trainable templates and coefficients.
        members: The copies, without their generated tensors, as an ``nn.ModuleDict`` that stays as it is.

    Raises:
        SuperWeightError: Whatever :func:`plan_sharing` raises; a plan that does not fit (names the first mismatch);
            weights that are not finite.

    Source: Teterwak et al., WACV 2024.

    Example:
        >>> import torch, superweight_ensembles as swe
        >>> members = {"wrn16-1": swe.wide_resnet(16, 1, 10), "wrn10-2": swe.wide_resnet(10, 2, 10)}
        >>> ensemble = swe.SuperWeightEnsemble(members, budget=0.83)
        >>> ensemble(torch.zeros(5, 3, 32, 32)).shape
        torch.Size([2, 5, 10])
        >>> ensemble.num_parameters <= 0.83 * ensemble.independent_parameters
        True
    """

    def __init__(
        self,
        members: Members,
        *,
        budget: float | None = None,
        plan: SharingPlan | None = None,
        rng: torch.Generator | None = None,
        task: str = CLASSIFICATION.name,
        select: Select | None = None,
        **plan_options: Unpack[PlanOptions],
    ) -> None:
        super().__init__()
        self.task: Task = task_named(task)
        if select is not None and not callable(select):
            raise SuperWeightError(f"select must be a function of what a member answers; got {select!r:.80}")
        self.images: Preprocessing | None = None
        if "init" in plan_options:
            raise SuperWeightError(
                "init= was retired: build the ensemble, then call swe.warm_start(ensemble, trained_members)"
            )
        check_plan_options(plan_options)
        modules = named_members(members)
        _check_plain(modules)
        if (budget is None) == (plan is None):
            raise SuperWeightError("give either budget= (with plan options) or plan=, not both and not neither")
        if plan is None:
            assert budget is not None
            plan = plan_sharing(modules, budget=budget, **plan_options)
        elif plan_options:
            raise SuperWeightError(f"plan= has decided the sharing; drop {', '.join(plan_options)}=")
        if not isinstance(plan, SharingPlan):
            raise SuperWeightError(f"plan must be a SharingPlan (SharingPlan.from_json reads one); got {plan!r:.80}")
        if rng is not None and not isinstance(rng, torch.Generator):
            raise SuperWeightError(
                f"rng must be a torch.Generator, such as torch.Generator().manual_seed(0); got {rng!r}"
            )
        check_plan_fits(plan, modules)
        like = first_parameter(modules)
        _check_weights(plan, modules, like)
        _warn_of_shared(modules)
        with torch.inference_mode(False):  # tensors made in inference mode could not be trained
            self.bank = SuperWeightBank(plan, own_deviations(plan, modules), rng).to(like.device, like.dtype)
            self.members = MemberDict(
                {name: _hollow_copy(module, name, generated_names(plan, name)) for name, module in modules.items()}
            )
        self.select = select or selects_by(self.members.values())
        if self.select is not None:
            for member in self.members.values():
                _have_select(member, self.select)

    if TYPE_CHECKING:  # nn.Module's call is untyped

        def __call__(self, inputs: Inputs = None, **named: Any) -> Tensor: ...

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """As ``nn.Module.to``; ``memory_format=torch.channels_last`` also becomes that of the generated weights."""
        self.bank.memory_format = kwargs.get("memory_format") or self.bank.memory_format
        return super().to(*args, **kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("bank", "members") and name in self.__dict__.get("_modules", {}):
            raise fixed(f"the {name} of an ensemble")
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if name in ("bank", "members", "plan"):
            raise fixed(f"the {name} of an ensemble")
        super().__delattr__(name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        ensemble = type(self).__new__(type(self))
        memo[id(self)] = ensemble
        ensemble.__setstate__(copied(self.__dict__, "the ensemble", memo))
        return ensemble

    def __repr__(self) -> str:
        plan, names = self.plan, self.member_names
        of_apart = f"{plan.num_parameters / max(plan.independent_parameters, 1):.3f} of {plan.independent_parameters:,}"
        held = f"{plan.num_templates:,} in templates, {plan.num_coefficients:,} in coefficients"
        lines = [
            f"{type(self).__name__} of {len(names)} members, {self.task.name}",
            f"  budget {plan.budget:,}: {plan.num_parameters:,} parameters, {of_apart} apart",
            f"  bank of {len(plan.clusters)} clusters: {held}; members' own {plan.num_private:,}",
        ]
        for member in plan.members[:_MEMBERS_SHOWN]:
            kind, name = type(self.members[member.name]).__name__, escape_controls(member.name, keep="")
            lines.append(f"  {name}: {kind}, {member.num_parameters:,} parameters, {member.num_private:,} its own")
        more = len(names) - _MEMBERS_SHOWN
        return "\n".join([*lines, f"  and {more} more"] if more > 0 else lines)

    @property
    def plan(self) -> SharingPlan:
        """The sharing plan."""
        return self.bank.plan

    @plan.setter
    def plan(self, plan: SharingPlan) -> None:
        raise fixed("the plan of an ensemble")

    def set_plan(self, plan: SharingPlan) -> None:
        """Switch to a plan that the tensors of the bank and of the members already fit."""
        self.bank.set_plan(plan)
        self.members.note_tensors()

    @property
    def member_names(self) -> tuple[str, ...]:
        return self.plan.member_names

    @property
    def num_parameters(self) -> int:
        """Unique trainable scalars, counted from the tensors themselves."""
        return count_parameters(self)

    @property
    def independent_parameters(self) -> int:
        """Trainable scalars that the members own apart."""
        return self.plan.independent_parameters

    def generate(self) -> Weights:
        """All generated weights, differentiable: ``{member: {parameter name: tensor}}``."""
        return self.bank.generate()

    def forward(self, inputs: Inputs = None, **named: Any) -> Tensor:
        """Images (B, ...) to the logits of all members, in their order: (M, B, K), or (M, B, ...) of another task.

        Args:
            inputs: (B, ...); a dictionary, which members take as keywords; or a tuple, which they take as arguments.
            **named: The keywords, in the place of a dictionary.

        Raises:
            SuperWeightError: Members answer in different shapes, or in one that the task does not have.
        """
        if (inputs is None) != bool(named):
            raise SuperWeightError("an ensemble is called with its inputs, or with keywords for its members")
        given, weights = plain(named or inputs), self.generate()
        answers = {name: self.run_member(name, given, weights[name]) for name in self.member_names}
        check_answers(answers, self.task)
        return torch.stack(list(answers.values()))

    def run_member(
        self, name: str, inputs: Inputs, weights: Mapping[str, Tensor], call: Callable[..., Any] | None = None
    ) -> Tensor:
        """The logits (B, K) of one member with the weights given, or its answer (B, ...) in another task.

        Backward may run at any later time, even if the member checkpoints activations.

        Args:
            inputs: Inputs as the ensemble takes them.
            weights: Generated weights by parameter name, from :meth:`generate`.
            call: Function that runs in the place of the member, such as its compiled call.

        Raises:
            SuperWeightError: No member of that name; the member's call fails (names it and what it was given).
        """
        member = self._member(name)
        inputs = mapped(own_copy, inputs)
        running = Call(name, member, weights)
        with self.with_weights(name, running.weights), calling(name, inputs):
            return running.left(answer_in(call_with(call or member, inputs)))

    @contextmanager
    def with_weights(self, name: str, weights: Mapping[str, Tensor]) -> Iterator[nn.Module]:
        """One member with its generated weights in place until the context ends; meanwhile other threads wait.

        If the member checkpoints activations, run backward inside the context, or call :meth:`run_member` instead.

        Raises:
            SuperWeightError: No member, or no parameter, of that name.
        """
        member = self._member(name)
        with one_call_at_a_time(member):
            placement = Placement(name, member, weights)
            try:
                yield member
            finally:
                placement.remove()

    @torch.no_grad()
    def materialize(self, name: str) -> nn.Module:
        """One member as the plain network that its author wrote, with its generated weights as parameters.

        In the mode (train or eval), on the device and with the buffers that the member has now; equal outputs; no
        reference to the bank. Weights tied inside the member stay tied.

        Raises:
            SuperWeightError: No member of that name.
        """
        module = copied(self._member(name), f"member {name!r}")
        made: dict[int, nn.Parameter] = {}
        with torch.autocast(first_parameter({name: self}).device.type, enabled=False):
            weights = self.bank.generate([name])[name]
        for parameter_name, tensor in weights.items():
            owner, local = _locate(module, parameter_name)
            set_parameter(owner, local, made.setdefault(id(tensor), nn.Parameter(tensor.clone())))
        for layer in module.modules():
            if isinstance(layer, nn.RNNBase):
                layer.flatten_parameters()  # as the plain layer is: on a GPU, in one block
        return module

    def save(self, folder: str | Path) -> None:
        """Write the ensemble into a folder: config, plan, model.safetensors (the bank, not the members) and a manifest.

        A saved ensemble of that name is replaced as a whole, or not at all.

        Raises:
            SuperWeightError: The folder holds something else than a saved ensemble.
        """
        write_ensemble(self, self.plan, dict(self.members.items()), Path(folder))

    @classmethod
    def load(
        cls, folder: str | Path, members: Members | None = None, *, select: Select | None = None
    ) -> SuperWeightEnsemble:
        """Read a saved ensemble; nothing in the folder is executed.

        Args:
            folder: What :meth:`save` wrote.
            members: Networks of the saved names and shapes; None where all were made by registry name
                (:func:`wide_resnet`, :func:`build_member`).
            select: The function that the ensemble had when it was saved.

        Raises:
            SuperWeightError: Files missing, damaged or of another version; members that do not fit the plan; no
                ``select`` for an ensemble that had one, or one for an ensemble that had none.
        """
        folder = Path(folder)
        with naming(folder):
            check_ensemble_files(folder)
            plan = read_plan(folder)
            check_tensors_suffice(folder, plan)
            config = read_config(folder)
            given = {} if members is None else named_members(members)
            if (select is not None or selects_by(given.values()) is not None) != config.select:
                raise SuperWeightError(f"the ensemble was made {'with' if config.select else 'without'} select=")
            modules = build_members(config, folder, plan) if members is None else given
            ensemble = cls(modules, plan=plan, task=config.task, select=select)
            read_ensemble_tensors(ensemble, folder)
            ensemble.images = config.images
        return ensemble

    def generate_model_card(self, *, repo_id: str | None = None) -> ModelCard:
        """What the ensemble is and how to load it, in Markdown with the Hub's metadata.

        Args:
            repo_id: ``user/name`` of the repository; a placeholder where None.
        """
        found = {member.name: registered(self.members[member.name], member) for member in self.plan.members}
        made = {name: None if architecture is None else architecture.model for name, architecture in found.items()}
        metadata = self._hub_mixin_info.model_card_data.to_yaml()
        return model_card(metadata, self.plan, made, self.num_parameters, repo_id)

    def _save_pretrained(self, save_directory: Path) -> None:
        self.save(save_directory)

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str | Path, members: Members | None = None, **download: Any
    ) -> SuperWeightEnsemble:
        return cls.load(local_folder(model_id, **download), members)

    def _member(self, name: str) -> nn.Module:
        if name not in self.member_names:
            raise unknown_name("member", name, self.member_names)
        return self.members[name]


class _HasImages(Protocol):
    images: Preprocessing | None


def transform_of(ensemble: _HasImages) -> Preprocessing:
    """The preprocessing from an image file, a picture or pixels to an ensemble's inputs; it has the class names, too.

    Args:
        ensemble: An ensemble, or a predictor.

    Raises:
        SuperWeightError: The ensemble has no ``images``, as after training on other batches than :class:`ImageData`.

    Example:
        >>> import superweight_ensembles as swe
        >>> ensemble = swe.SuperWeightEnsemble({"a": swe.wide_resnet(10, 1, 10, in_channels=1)}, budget=1.0)
        >>> ensemble.images = swe.data.Preprocessing.of(swe.load_data("digits"))
        >>> swe.transform_of(ensemble).classes[:3]
        ('0', '1', '2')
    """
    if ensemble.images is None:
        raise SuperWeightError(
            "this ensemble does not know how its images are preprocessed: set ensemble.images = "
            "swe.data.Preprocessing(image_shape=..., mean=..., std=..., classes=...)"
        )
    return ensemble.images


def own_copy(tensor: Tensor) -> Tensor:
    """A copy of an inference tensor, to which torch does not count writes; any other tensor as it is."""
    return tensor.clone() if tensor.is_inference() else tensor


def check_answers(answers: Mapping[str, Any], task: Task = CLASSIFICATION) -> None:
    """Refuse member answers that cannot stand in one tensor of all members."""
    shapes = {name: tuple(value.shape) if isinstance(value, Tensor) else () for name, value in answers.items()}
    for name, shape in shapes.items():
        if not shape or not task.fits(shape):
            given = shape if isinstance(answers[name], Tensor) else type(answers[name]).__name__
            others = [other.name for other in TASKS.values() if shape and other is not task and other.fits(shape)]
            remedy = f"; of another task ({', '.join(others)})? or: select=" if shape else "; select= picks it"
            raise SuperWeightError(f"member {name!r} must answer {task.answers}; got {given}{remedy}")
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name}: {shape}" for name, shape in shapes.items())
        raise SuperWeightError(f"members must answer one shape, of the same batch and classes; got {listed}")


def selects_by(members: Iterable[nn.Module]) -> Select | None:
    """The function that picks the answer of members from an ensemble with ``select``; None where there is none."""
    hooks = (hook for member in members for hook in member._forward_hooks.values())
    return next((hook.select for hook in hooks if isinstance(hook, _Selecting)), None)


def _have_select(member: nn.Module, select: Select) -> None:
    """Have ``select`` alone pick a member's answer, in the place of any function that did before."""
    for key, hook in list(member._forward_hooks.items()):
        if isinstance(hook, _Selecting):
            del member._forward_hooks[key]
    member.register_forward_hook(_Selecting(select))


class _Selecting:
    """A forward hook that has a member answer what a function picks of its output."""

    def __init__(self, select: Select) -> None:
        self.select = select

    def __call__(self, member: nn.Module, inputs: Any, output: Any) -> Tensor:
        return self.select(output)


def _check_plain(modules: Mapping[str, nn.Module]) -> None:
    """Refuse ensembles as members, and members of ensembles."""
    for name, module in modules.items():
        for path, layer in module.named_modules():
            if isinstance(layer, SuperWeightEnsemble):
                raise SuperWeightError(
                    f"member {name!r} holds an ensemble: give the ensemble's members, each by materialize(name)"
                )
            if isinstance(layer, _HAS_WEIGHT) and "weight" in layer._parameters and layer._parameters["weight"] is None:
                raise SuperWeightError(
                    f"member {name!r} has no {f'{path}.weight'.lstrip('.')}: give a member of an ensemble by its "
                    "materialize(name)"
                )


def _check_weights(plan: SharingPlan, modules: Mapping[str, nn.Module], like: Tensor) -> None:
    """Refuse weights without numbers, of two types, or on two devices: one bank cannot generate them."""
    for target in (target for cluster in plan.clusters for target in cluster.targets):
        weight = modules[target.member].get_parameter(target.name)
        if weight.is_meta:
            raise SuperWeightError(
                f"{target.label} is on the meta device and has no numbers: give the member memory by to_empty(), and "
                "its start values"
            )
        for what, wanted, found in (("type", like.dtype, weight.dtype), ("device", like.device, weight.device)):
            if wanted != found:
                raise SuperWeightError(
                    f"one bank generates weights of one {what}: {target.label} has {found}, the first member "
                    f"{wanted}; bring all members to one by .to(...)"
                )


def _warn_of_shared(modules: Mapping[str, nn.Module]) -> None:
    """Warn that a module, parameter or buffer that two members share becomes a copy in each."""
    owners: dict[int, tuple[str, str]] = {}
    warned: set[tuple[str, str]] = set()
    for member, module in modules.items():
        held = [*module.named_modules(), *module.named_parameters(), *module.named_buffers()]  # modules first
        for path, part in held:
            if isinstance(part, nn.Module) and not any(True for _ in (*part.parameters(), *part.buffers())):
                continue
            owner, name = owners.setdefault(id(part), (member, path))
            if owner != member and (owner, member) not in warned:
                warned.add((owner, member))
                _LOG.warning(
                    "members %r and %r are given one %s; here each gets a copy of its own, tied by the bank alone",
                    owner, member, f"object, {name!r}" if name else "network",
                )  # fmt: skip


def _hollow_copy(module: nn.Module, member: str, generated: tuple[str, ...]) -> nn.Module:
    """A copy whose generated parameters are None: names and order stay, the tensors are gone."""
    memo: dict[int, Any] = {}
    hollow = copied(module, f"member {member!r}", memo)
    check_functions(hollow, memo, f"member {member!r}")
    for name in generated:
        owner, local = _locate(hollow, name)
        set_parameter(owner, local, None)
        if isinstance(owner, nn.RNNBase):
            _leave_block(owner)
    return hollow


def _leave_block(layer: nn.RNNBase) -> None:
    """Give a recurrent layer's other parameters their own memory: cuDNN's one block would keep all weights alive."""
    for parameter in layer._parameters.values():
        if (
            parameter is not None
            and parameter.untyped_storage().nbytes() > parameter.numel() * parameter.element_size()
        ):
            parameter.data = parameter.data.clone()


def generated_names(plan: SharingPlan, member: str) -> tuple[str, ...]:
    return tuple(
        name
        for cluster in plan.clusters
        for target in cluster.targets
        if target.member == member
        for name in target.names
    )


def _locate(module: nn.Module, parameter_name: str) -> tuple[nn.Module, str]:
    path, _, local = parameter_name.rpartition(".")
    return module.get_submodule(path), local


def first_parameter(modules: Mapping[str, nn.Module]) -> Tensor:
    """A floating-point tensor whose device and type the modules have; an empty one where they have no parameters."""
    parameters = (parameter for module in modules.values() for parameter in module.parameters())
    return next((parameter for parameter in parameters if parameter.is_floating_point()), torch.empty(0))


@torch.no_grad()
def adopt_plan(
    ensemble: SuperWeightEnsemble, plan: SharingPlan, optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Move an ensemble to a plan that un-ties some of its coefficients (:func:`untie_coefficients`).

    Every generated weight keeps its value: a new vector starts as a copy of the one that it leaves. The optimiser goes
    on with the new parameters in the groups of the old ones; rows that stay keep their moments, new rows start with the
    moments of the vector that they leave. Schedules are not touched; gradients of split coefficients are dropped.

    Args:
        ensemble: Changed in place.
        plan: Differs from the ensemble's plan only in coefficient vectors of SuperWeights, each of them split from one
            old vector.
        optimizer: Optimizer of the ensemble's parameters; None outside of training.

    Raises:
        SuperWeightError: A plan that differs in anything else; an optimiser that does not hold the coefficients.

    Source: Teterwak et al., WACV 2024
    Differs from paper: the published code gives new vectors no moments, and trains only the last of them.
    """
    if not isinstance(plan, SharingPlan):
        raise SuperWeightError(f"plan must be a SharingPlan; got {plan!r:.80}")
    if plan.spent > plan.budget:
        raise SuperWeightError(f"the plan costs {plan.spent:,}, more than its budget of {plan.budget:,}")
    if _without_vectors(plan) != _without_vectors(ensemble.plan):
        raise SuperWeightError(
            "the plan differs from the ensemble's in more than coefficient vectors: build a new ensemble"
        )
    bank = ensemble.bank
    moves: dict[str, Tensor] = {}
    for (index, old), new in zip(ensemble.plan.superweight_clusters.items(), plan.superweight_clusters.values()):
        for slot in range(len(old.slots)):
            origins = _origins(old, new, slot)
            if origins != list(range(old.slots[slot].num_vectors)):
                moves[slot_key(index, slot)] = torch.tensor(
                    origins, device=bank.coefficients[slot_key(index, slot)].device
                )
    held = {id(parameter) for group in (optimizer.param_groups if optimizer else []) for parameter in group["params"]}
    for key in moves:
        if optimizer is not None and bank.coefficients[key].requires_grad and id(bank.coefficients[key]) not in held:
            raise SuperWeightError("the optimizer does not hold this ensemble's coefficients")
    for key, rows in moves.items():
        before = bank.coefficients[key]
        after = nn.Parameter(before[rows], requires_grad=before.requires_grad)
        bank.coefficients[key] = after
        if optimizer is not None:
            exchange_parameter(optimizer, before, after, itemgetter(rows))
    ensemble.set_plan(plan)


def _origins(old: Cluster, new: Cluster, slot: int) -> list[int]:
    """For each new vector of a slot, the old one whose users it serves."""
    found: dict[int, set[int]] = {}
    for before, after in zip(old.targets, new.targets):
        if before.slot >= slot:
            found.setdefault(after.vectors[slot], set()).add(before.vectors[slot])
    if any(len(sources) > 1 for sources in found.values()):
        raise SuperWeightError(
            f"cluster {new.name!r}: the plan ties coefficients that were apart; only un-tying keeps values"
        )
    return [next(iter(found[vector])) for vector in range(new.slots[slot].num_vectors)]


def _without_vectors(plan: SharingPlan) -> SharingPlan:
    return replace(
        plan,
        clusters=tuple(
            replace(
                cluster,
                slots=tuple(replace(slot, num_vectors=1) for slot in cluster.slots),
                targets=tuple(replace(target, vectors=()) for target in cluster.targets),
            )
            if isinstance(cluster, Cluster)
            else cluster
            for cluster in plan.clusters
        ),
    )
