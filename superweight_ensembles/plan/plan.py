"""The sharing plan: which targets share which templates, decided once, as pure data."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal, Union

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.plan.coefficients import CoefficientForm, fixed_numbers, numbers_per_template
from superweight_ensembles.plan.generated_tensor import (
    MOST_CLUSTERS,
    MOST_MEMBERS,
    MOST_PARAMETERS,
    MOST_SLOTS,
    MOST_TARGETS,
    MOST_TEMPLATES,
    GeneratedTensor,
    Name,
)
from superweight_ensembles.plan.group import SsnGroup
from superweight_ensembles.plan.plan_checks import check_consistent
from superweight_ensembles.plan.plan_table import plan_table
from superweight_ensembles.plan.slots import Shape, SlotBlocks, slot_blocks
from superweight_ensembles.storage.files import parse_json

PLAN_FORMAT = 2
_STRICT = ConfigDict(extra="forbid")
# Bounds of what a file may say, seen before anything is computed; in memory a plan is whatever made it.
_Count = Annotated[int, Field(le=MOST_PARAMETERS)]
_Size = Annotated[int, Field(le=2**31)]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedMember:
    """What the plan knows of a member: trainable scalars apart, and those that stay its own."""

    __pydantic_config__ = _STRICT

    name: Name
    num_parameters: _Count
    num_private: _Count


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedSlot:
    """One width slot of a cluster: the shape it completes, and its templates and coefficient vectors."""

    __pydantic_config__ = _STRICT

    shape: Annotated[tuple[_Size, ...], Field(max_length=8)]
    num_templates: Annotated[int, Field(le=MOST_TEMPLATES)]
    num_vectors: Annotated[int, Field(le=MOST_TARGETS)]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTarget(GeneratedTensor):
    """One generated tensor of a cluster of SuperWeights.

    Attributes:
        slot: Index of the slot whose shape it has; it composes slots 0 to this one.
        vectors: Its coefficient vector in each of those slots; equal numbers are tied coefficients.
    """

    __pydantic_config__ = _STRICT

    slot: Annotated[int, Field(le=MOST_SLOTS)]
    vectors: Annotated[tuple[int, ...], Field(max_length=MOST_SLOTS)]


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

    name: Name
    kind: Name
    slots: Annotated[tuple[PlannedSlot, ...], Field(max_length=MOST_SLOTS)]
    targets: Annotated[tuple[PlannedTarget, ...], Field(max_length=MOST_TARGETS)]
    coefficients: CoefficientForm = "vector"
    embedding_size: Annotated[int, Field(le=2**16)] = 0
    generator: Literal["superweight"] = "superweight"

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
        return sum(
            self._slot_coefficients(slot, block, slot.num_templates) for slot, block in zip(self.slots, self.blocks)
        )

    @property
    def minimum_coefficients(self) -> int:
        """Trainable scalars in coefficients with one template a slot."""
        return sum(self._slot_coefficients(slot, block, 1) for slot, block in zip(self.slots, self.blocks))

    @property
    def minimum_parameters(self) -> int:
        """Trainable scalars with one template a slot."""
        return self.minimum_templates + self.minimum_coefficients

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Of the targets."""
        return tuple(self.shape_of(target) for target in self.targets)

    @property
    def num_weights(self) -> int:
        """Numbers in all that it generates."""
        return sum(math.prod(shape) for shape in self.shapes)

    def shape_of(self, target: PlannedTarget) -> Shape:
        return self.slots[target.slot].shape

    def _slot_coefficients(self, slot: PlannedSlot, block: SlotBlocks, num_templates: int) -> int:
        each = numbers_per_template(self.coefficients, block, slot.num_vectors, self.embedding_size)
        return num_templates * each + fixed_numbers(self.coefficients, slot.num_vectors, self.embedding_size)


_TAGS = ("superweight", "ssn")
PlannedCluster = Annotated[Union[Cluster, SsnGroup], Field(discriminator="generator")]


@dataclass(frozen=True, slots=True, kw_only=True)
class SharingPlan:
    """Who shares what, and what it costs. Immutable, hashable, equal after a JSON round trip.

    Attributes:
        members: In ensemble order.
        clusters: In the order in which the allocator served them: of SuperWeights, or groups of a Shapeshifter Network.
        budget: Trainable scalars allowed.
        budget_counts: ``all`` trainable scalars, or ``templates`` alone, as published.
        cap: Templates a slot at most.
        allocation: The order in which slots got their templates (see ``allocate``).
    """

    __pydantic_config__ = _STRICT

    members: Annotated[tuple[PlannedMember, ...], Field(max_length=MOST_MEMBERS)]
    clusters: Annotated[tuple[PlannedCluster, ...], Field(max_length=MOST_CLUSTERS)]
    budget: _Count
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
        """Every trainable scalar with one template a slot and the smallest banks: no smaller budget fits."""
        return sum(cluster.minimum_parameters for cluster in self.clusters) + self.num_private

    @property
    def superweight_clusters(self) -> dict[int, Cluster]:
        """The clusters that SuperWeights generate, by their place in the plan."""
        return {index: cluster for index, cluster in enumerate(self.clusters) if isinstance(cluster, Cluster)}

    @property
    def ssn_groups(self) -> dict[int, SsnGroup]:
        """The groups of Shapeshifter Networks, by their place in the plan."""
        return {index: cluster for index, cluster in enumerate(self.clusters) if isinstance(cluster, SsnGroup)}

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits of the plan's content, the same on every machine."""
        return _fingerprint(self._content())

    def to_json(self) -> str:
        """The plan as text, with its fingerprint; a plan that is edited by hand leaves the fingerprint out."""
        content = self._content()
        start = f'{{\n "format": {PLAN_FORMAT},'
        return content.replace(start, f'{start}\n "fingerprint": "{_fingerprint(content)}",', 1)

    @classmethod
    def from_json(cls, text: str, file: str | Path | None = None) -> SharingPlan:
        """Read a plan written by ``to_json``.

        Args:
            text: The JSON.
            file: Where it stands, for messages.

        Raises:
            SuperWeightError: No JSON, a field missing, of a wrong type or out of bounds, numbers that contradict each
                other, a fingerprint that is another plan's.
        """
        where = f"{file}, the sharing plan" if file is not None else "the sharing plan"
        try:
            content = parse_json(text, where)
        except SuperWeightError as error:
            raise SuperWeightError(str(error).replace("cannot be read as JSON", "is no JSON", 1)) from None
        found = content.pop("format", None) if isinstance(content, dict) else None
        if type(found) is not int or found != PLAN_FORMAT:
            raise SuperWeightError(f'{where} must be a JSON object with "format": {PLAN_FORMAT}')
        noted = content.pop("fingerprint", None)
        try:
            plan = TypeAdapter(cls).validate_json(json.dumps(content), strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            at = ".".join(str(part) for part in first["loc"] if part not in _TAGS)
            raise SuperWeightError(f"{where}, at {at or 'the top'}: {first['msg']}") from None
        check_consistent(plan, where)
        written = _fingerprint(text.replace(f'\n "fingerprint": "{noted}",', "", 1))  # as to_json wrote it: quickly
        if noted is not None and noted != written and noted != plan.fingerprint:
            raise SuperWeightError(
                f"{where}, fingerprint: {noted!r:.40} is not that of its content, {plan.fingerprint}: "
                "the file is damaged; leave the fingerprint out where you changed it by hand"
            )
        return plan

    def _content(self) -> str:
        return json.dumps({"format": PLAN_FORMAT, **asdict(self)}, indent=1)

    def __str__(self) -> str:
        return plan_table(self)


def _fingerprint(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()[:12]
