"""The sharing plan: which targets share which templates, decided once, as pure data."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass

from pydantic import ConfigDict, TypeAdapter, ValidationError

from superweight_ensembles.allocation import ALLOCATION_ORDERS
from superweight_ensembles.coefficients import CoefficientForm, fixed_numbers, numbers_per_template
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.plan_table import plan_table
from superweight_ensembles.slots import Shape, SlotBlocks, slot_blocks

PLAN_FORMAT = 1
_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedMember:
    """What the plan knows of a member: trainable scalars apart, and those that stay its own."""

    __pydantic_config__ = _STRICT

    name: str
    num_parameters: int
    num_private: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedSlot:
    """One width slot of a cluster: the shape it completes, and its templates and coefficient vectors."""

    __pydantic_config__ = _STRICT

    shape: tuple[int, ...]
    num_templates: int
    num_vectors: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTarget:
    """One generated tensor.

    Attributes:
        member: Member that reads it.
        names: Parameter name in the member, then the names tied to it.
        slot: Index of the slot whose shape it has; it composes slots 0 to this one.
        vectors: Its coefficient vector in each of those slots; equal numbers are tied coefficients.
    """

    __pydantic_config__ = _STRICT

    member: str
    names: tuple[str, ...]
    slot: int
    vectors: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def label(self) -> str:
        return f"{self.member}.{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Targets of one kind and kernel that share templates.

    Attributes:
        name: Unique, for people.
        kind: Of the layers.
        slots: By size.
        targets: Ordered by slot.
        coefficients: Form in which every slot holds its coefficients (see ``superweight_ensembles.coefficients``).
        embedding_size: Numbers in an embedding; 0 for the other forms.
    """

    __pydantic_config__ = _STRICT

    name: str
    kind: str
    slots: tuple[PlannedSlot, ...]
    targets: tuple[PlannedTarget, ...]
    coefficients: CoefficientForm = "vector"
    embedding_size: int = 0

    @property
    def kernel(self) -> Shape:
        return self.slots[0].shape[2:]

    @property
    def blocks(self) -> tuple[SlotBlocks, ...]:
        return slot_blocks([slot.shape for slot in self.slots])

    @property
    def num_templates(self) -> int:
        """Trainable scalars in templates."""
        return sum(slot.num_templates * block.size for slot, block in zip(self.slots, self.blocks))

    @property
    def minimum_templates(self) -> int:
        """Trainable scalars with one template a slot."""
        return sum(block.size for block in self.blocks)

    @property
    def num_coefficients(self) -> int:
        """Trainable scalars in coefficients."""
        return sum(self._slot_coefficients(index, slot.num_templates) for index, slot in enumerate(self.slots))

    @property
    def minimum_coefficients(self) -> int:
        """Trainable scalars in coefficients with one template a slot."""
        return sum(self._slot_coefficients(index, 1) for index in range(len(self.slots)))

    def shape_of(self, target: PlannedTarget) -> Shape:
        return self.slots[target.slot].shape

    def _slot_coefficients(self, index: int, num_templates: int) -> int:
        vectors = self.slots[index].num_vectors
        each = numbers_per_template(self.coefficients, self.blocks[index], vectors, self.embedding_size)
        return num_templates * each + fixed_numbers(self.coefficients, vectors, self.embedding_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class SharingPlan:
    """Who shares what, and what it costs. Immutable, hashable, equal after a JSON round trip.

    Attributes:
        members: In ensemble order.
        clusters: In the order in which the allocator served them.
        budget: Trainable scalars allowed.
        budget_counts: ``all`` trainable scalars, or ``templates`` alone, as published.
        cap: Templates a slot at most.
        allocation: The order in which slots got their templates (see ``allocate``).
    """

    __pydantic_config__ = _STRICT

    members: tuple[PlannedMember, ...]
    clusters: tuple[Cluster, ...]
    budget: int
    budget_counts: str = "all"
    cap: int = 8
    allocation: str = "sweeps"

    @property
    def member_names(self) -> tuple[str, ...]:
        return tuple(member.name for member in self.members)

    @property
    def independent_parameters(self) -> int:
        """Trainable scalars of the members apart."""
        return sum(member.num_parameters for member in self.members)

    @property
    def num_private(self) -> int:
        """Trainable scalars that stay the members' own: heads, norms, biases, unshared weights."""
        return sum(member.num_private for member in self.members)

    @property
    def num_templates(self) -> int:
        """Trainable scalars in templates."""
        return sum(cluster.num_templates for cluster in self.clusters)

    @property
    def minimum_templates(self) -> int:
        """Trainable scalars in templates with one template a slot."""
        return sum(cluster.minimum_templates for cluster in self.clusters)

    @property
    def num_coefficients(self) -> int:
        """Trainable scalars in coefficients."""
        return sum(cluster.num_coefficients for cluster in self.clusters)

    @property
    def num_parameters(self) -> int:
        """Every trainable scalar of the ensemble."""
        return self.num_templates + self.num_coefficients + self.num_private

    @property
    def spent(self) -> int:
        """What of the budget the plan costs, as ``budget_counts`` counts."""
        return self.num_parameters if self.budget_counts == "all" else self.num_templates

    @property
    def minimum_parameters(self) -> int:
        """Every trainable scalar with one template a slot: no smaller budget fits this sharing."""
        coefficients = sum(cluster.minimum_coefficients for cluster in self.clusters)
        return self.minimum_templates + coefficients + self.num_private

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits of the plan's content, the same on every machine."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]

    def to_json(self) -> str:
        return json.dumps({"format": PLAN_FORMAT, **asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> SharingPlan:
        """Read a plan written by ``to_json``.

        Raises:
            SuperWeightError: No JSON, a field missing or of a wrong type, numbers that contradict each other.
        """
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise SuperWeightError(f"the sharing plan is no JSON: {error}") from None
        found = content.pop("format", None) if isinstance(content, dict) else None
        if type(found) is not int or found != PLAN_FORMAT:
            raise SuperWeightError(f'the sharing plan must be a JSON object with "format": {PLAN_FORMAT}')
        try:
            plan = TypeAdapter(cls).validate_json(json.dumps(content), strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise SuperWeightError(f"the sharing plan, at {where or 'the top'}: {first['msg']}") from None
        _check_consistent(plan)
        return plan

    def __str__(self) -> str:
        return plan_table(self)


def _check_consistent(plan: SharingPlan) -> None:
    """Refuse a plan whose numbers contradict each other."""

    def refuse(where: str, why: str) -> SuperWeightError:
        return SuperWeightError(f"the sharing plan, {where}: {why}")

    if plan.budget_counts not in ("all", "templates"):
        raise refuse("budget_counts", f"must be 'all' or 'templates', not {plan.budget_counts!r}")
    if plan.allocation not in ALLOCATION_ORDERS:
        raise refuse("allocation", f"must be one of {', '.join(ALLOCATION_ORDERS)}, not {plan.allocation!r}")
    if len(set(plan.member_names)) != len(plan.members) or not plan.members:
        raise refuse("members", "needs at least one, each with a name of its own")
    if any(not 0 <= member.num_private <= member.num_parameters for member in plan.members):
        raise refuse("members", "counts must hold 0 <= num_private <= num_parameters")
    seen: set[tuple[str, str]] = set()
    for cluster in plan.clusters:
        where = f"cluster {cluster.name!r}"
        if not cluster.slots or not cluster.targets:
            raise refuse(where, "needs slots and targets")
        if any(len(slot.shape) < 2 or min(slot.shape) < 1 for slot in cluster.slots):
            raise refuse(where, "slot shapes are (out, in, *kernel), all positive")
        if (cluster.embedding_size < 1) if cluster.coefficients == "embedding" else cluster.embedding_size != 0:
            raise refuse(where, "embedding_size is positive with coefficients 'embedding', and 0 with the others")
        if len({slot.shape[2:] for slot in cluster.slots}) > 1:
            raise refuse(where, "all slots must have one kernel")
        for index, (slot, block) in enumerate(zip(cluster.slots, cluster.blocks)):
            if block.size < 1 or slot.num_templates < 1:
                raise refuse(where, f"slot {index} must add numbers and hold templates")
            used = {target.vectors[index] for target in cluster.targets if index < len(target.vectors)}
            if used != set(range(slot.num_vectors)):
                raise refuse(
                    where,
                    f"slot {index}: its {slot.num_vectors} coefficient vectors do not match their users",
                )
        for target in cluster.targets:
            if target.member not in plan.member_names or not target.names:
                raise refuse(where, f"a target of member {target.member!r} without a member or a name")
            if not 0 <= target.slot < len(cluster.slots) or len(target.vectors) != target.slot + 1:
                raise refuse(where, f"{target.label} needs one coefficient vector for each slot up to its own")
            if seen & {(target.member, name) for name in target.names}:
                raise refuse(where, f"{target.label} stands there twice")
            seen |= {(target.member, name) for name in target.names}
    shared = dict.fromkeys(plan.member_names, 0)
    for cluster in plan.clusters:
        for target in cluster.targets:
            shared[target.member] += math.prod(cluster.shape_of(target))
    for member in plan.members:
        if member.num_private + shared[member.name] != member.num_parameters:
            raise refuse("members", f"{member.name!r}: num_private and its targets do not add up to num_parameters")
    if plan.spent > plan.budget:
        raise refuse("budget", f"{plan.budget:,} is less than the plan costs, {plan.spent:,}")
    if any(slot.num_templates > plan.cap for cluster in plan.clusters for slot in cluster.slots):
        raise refuse("cap", f"a slot holds more than {plan.cap} templates")
