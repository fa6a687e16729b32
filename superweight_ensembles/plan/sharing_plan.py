"""The sharing plan: which targets share which templates, decided once, as pure data; its JSON, checks and table."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal, Union

from pydantic import Field, ValidationError
from torch import Tensor

from superweight_ensembles.errors import SuperWeightError, first_problem
from superweight_ensembles.plan.slots import (
    CoefficientForm,
    Shape,
    SlotBlocks,
    coefficient_count,
    placements,
    slot_blocks,
    spelled,
)
from superweight_ensembles.plan.ssn import SsnGroup
from superweight_ensembles.plan.targets import (
    MOST_PARAMETERS,
    MOST_SLOTS_OF_KERNELS,
    MOST_TARGETS,
    MOST_TEMPLATES,
    GeneratedTensor,
    Name,
    StoredShape,
)
from superweight_ensembles.storage import ONLY_FIELDS, adapter_of, escape_controls, html_table, parse_json

PLAN_FORMAT = 2
BUDGET_COUNTS = ("all", "templates")
RETIRED_ALLOCATION = (
    "allocation was retired, as no other order trained better (docs/measured.md): slots get their templates in sweeps, "
    "as published; leave it out"
)
RETIRED_CHANNEL = "'channel' was retired, as it trained no better than 'own' (docs/measured.md): plan with 'own'"
_ALLOCATION = {"allocation": "sweeps"}  # plan files name the order in which slots get templates; there is only one
_MOST_SLOTS = 2**12  # of a cluster
_Count = Annotated[int, Field(ge=0, le=MOST_PARAMETERS)]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedMember:
    """A member of a plan: trainable scalars that it has apart, and those that stay its own."""

    __pydantic_config__ = ONLY_FIELDS

    name: Name
    num_parameters: _Count
    num_private: _Count


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedSlot:
    """One width slot of a cluster: the shape that it completes, its templates and its coefficient vectors."""

    __pydantic_config__ = ONLY_FIELDS

    shape: StoredShape
    num_templates: Annotated[int, Field(ge=1, le=MOST_TEMPLATES)]
    num_vectors: Annotated[int, Field(ge=1, le=MOST_TARGETS)]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTarget(GeneratedTensor):
    """One generated tensor of a cluster of SuperWeights.

    Attributes:
        slot: Index of the slot whose shape it has; it is composed of slots 0 to this one.
        vectors: Its coefficient vector in each of those slots; equal numbers are tied coefficients.
        ones: Number of dimensions of size 1 that its layer has beyond those of the slots, as a convolution among linear
            layers; below 0 where it has fewer, as a linear layer among convolutions.
    """

    __pydantic_config__ = ONLY_FIELDS

    slot: Annotated[int, Field(ge=0, le=_MOST_SLOTS)]
    vectors: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(max_length=_MOST_SLOTS)]
    ones: Annotated[int, Field(ge=-3, le=3)] = 0

    def of(self, whole: Tensor) -> Tensor:
        part = GeneratedTensor.of(self, whole)  # super() without arguments fails in dataclasses with slots
        with_ones = (slice(None), slice(None), *(None,) * -self.ones)
        return part.flatten(1) if self.ones > 0 else part[with_ones]

    def as_layer(self, made: Tensor) -> Tensor:
        return made.view(_with_ones(tuple(made.shape), self.ones)) if self.ones else made


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Targets of one kind that share templates; their kernels are equal, or have their centre in common."""

    __pydantic_config__ = ONLY_FIELDS

    name: Name  # unique, for people
    kind: Name  # kind of the layers
    slots: Annotated[tuple[PlannedSlot, ...], Field(min_length=1, max_length=_MOST_SLOTS)]  # by size
    targets: Annotated[tuple[PlannedTarget, ...], Field(min_length=1, max_length=MOST_TARGETS)]  # ordered by slot
    coefficients: CoefficientForm = "vector"  # form in which every slot holds its coefficients
    embedding_size: Annotated[int, Field(ge=0, le=2**16)] = 0  # numbers in an embedding; 0 for the other forms
    generator: Literal["superweight"] = "superweight"

    @property
    def kernels(self) -> tuple[Shape, ...]:
        """Kernels of its slots, each once."""
        return tuple(dict.fromkeys(slot.shape[2:] for slot in self.slots))

    @property
    def blocks(self) -> tuple[SlotBlocks, ...]:
        return slot_blocks([slot.shape for slot in self.slots])

    @property
    def num_templates(self) -> int:
        """Trainable scalars in templates."""
        return sum(slot.num_templates * block.size for slot, block in zip(self.slots, self.blocks))

    @property
    def minimum_templates(self) -> int:
        """Trainable scalars in templates with one template a slot."""
        return sum(block.size for block in self.blocks)

    @property
    def num_coefficients(self) -> int:
        """Trainable scalars in coefficients."""
        return self._coefficients([slot.num_templates for slot in self.slots])

    @property
    def minimum_parameters(self) -> int:
        """Trainable scalars, coefficients too, with one template a slot."""
        return self.minimum_templates + self._coefficients([1] * len(self.slots))

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Shapes of the targets."""
        return tuple(map(self.shape_of, self.targets))

    @property
    def num_weights(self) -> int:
        """Scalars in all weights that it generates."""
        return sum(math.prod(shape) for shape in self.shapes)

    def shape_of(self, target: PlannedTarget) -> Shape:
        return _with_ones(self.slots[target.slot].shape, target.ones)

    def kind_of(self, target: PlannedTarget) -> str:
        """Kind of the layer that reads a target; in a cluster of several kinds, a linear layer or a convolution."""
        if self.kind not in ("matrix", "dense"):
            return self.kind
        dimensions = len(self.shape_of(target)) - 2
        return f"conv{dimensions}d" if dimensions else "linear"

    def readers(self) -> Iterator[tuple[list[int], list[PlannedTarget]]]:
        """For each slot: how many scalars of each target its templates make, and those targets."""
        blocks = self.blocks
        counts: list[dict[int, int]] = []  # for each slot as a target's own: how many numbers each slot makes
        for last in range(len(blocks)):
            counts.append({})
            for place in placements(blocks[: last + 1]):
                numbers = math.prod(stop - start for start, stop in place.at)
                counts[-1][place.slot] = counts[-1].get(place.slot, 0) + numbers
        for slot in range(len(self.slots)):
            targets = [target for target in self.targets if slot in counts[target.slot]]
            yield [counts[target.slot][slot] for target in targets], targets

    def _coefficients(self, num_templates: Sequence[int]) -> int:
        return sum(
            coefficient_count(count, slot.num_vectors, self.embedding_size)
            for count, slot in zip(num_templates, self.slots)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Company:
    """Scalars of a member, by whom it shares them with."""

    between: int  # in weights made of templates, or of a flat bank, that other members read too
    within: int  # in weights made of templates, or of a bank, that several layers of this member read, and no other
    alone: int  # all else: the member's own parameters, and weights made of templates that nothing else reads


PlannedCluster = Annotated[Union[Cluster, SsnGroup], Field(discriminator="generator")]


@dataclass(frozen=True, slots=True, kw_only=True)
class SharingPlan:
    """Who shares what, and what it costs. Immutable, hashable, equal after a JSON round trip.

    Attributes:
        members: Members, in ensemble order.
        clusters: Clusters of SuperWeights, or groups of a Shapeshifter Network, in the order in which the allocator
            served them.
        budget: Trainable scalars allowed.
        budget_counts: ``all`` trainable scalars, or ``templates`` alone, as published.
        cap: Most templates of a slot.
    """

    __pydantic_config__ = ONLY_FIELDS

    members: Annotated[tuple[PlannedMember, ...], Field(min_length=1, max_length=10_000)]
    clusters: Annotated[tuple[PlannedCluster, ...], Field(max_length=2**17)]
    budget: _Count
    budget_counts: str = "all"
    cap: int = 8

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
        """Cost of the plan, as ``budget_counts`` counts."""
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

    def company(self) -> dict[str, Company]:
        """Scalars of each member, by whom it shares them with: other members, itself, or nobody."""
        between: Counter[str] = Counter()
        within: Counter[str] = Counter()
        for cluster in self.clusters:
            for numbers, targets in cluster.readers():
                found = between if len({target.member for target in targets}) > 1 else within
                for target, count in zip(targets, numbers):
                    found[target.member] += count if len(targets) > 1 else 0
        return {
            member.name: Company(
                between=between[member.name],
                within=within[member.name],
                alone=member.num_parameters - between[member.name] - within[member.name],
            )
            for member in self.members
        }

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
            file: File that it is from, for messages.

        Raises:
            SuperWeightError: No JSON; a field that is missing, of a wrong type or out of bounds; numbers that
                contradict each other; the fingerprint of another plan.
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
        if content.pop("allocation", "sweeps") != "sweeps":
            raise SuperWeightError(f"{where}, at allocation: {RETIRED_ALLOCATION}")
        try:
            plan = adapter_of(cls).validate_json(json.dumps(content), strict=True)
        except ValidationError as error:
            first = first_problem(error, tags=("superweight", "ssn"))
            retired = first.where.endswith(".coefficients") and first.given == "channel"
            problem = f"{first.where}: {RETIRED_CHANNEL}" if retired else str(first)
            raise SuperWeightError(f"{where}, at {problem}") from None
        for spot, why in _contradictions(plan):
            raise SuperWeightError(f"{where}, {spot}: {why}")
        written = _fingerprint(text.replace(f'\n "fingerprint": "{noted}",', "", 1))  # quick, if to_json wrote it
        if noted is not None and noted != written and noted != plan.fingerprint:
            raise SuperWeightError(
                f"{where}, fingerprint: {noted!r:.40} is not that of its content, {plan.fingerprint}: "
                "the file is damaged; leave the fingerprint out where you changed it by hand"
            )
        return plan

    def _content(self) -> str:
        content = asdict(self)
        for target in (target for cluster in content["clusters"] for target in cluster["targets"]):
            for key in ("part", "ones"):
                if not target.get(key):
                    target.pop(key, None)
        return json.dumps({"format": PLAN_FORMAT, **content, **_ALLOCATION}, indent=1)

    def __str__(self) -> str:
        """A table of the clusters: slots, templates, targets and who shares; then the account of the budget."""
        *columns, last = zip(*_rows(self))
        padded = [[cell.ljust(max(map(len, column))) for cell in column] for column in columns]
        padded.append([cell.rjust(max(map(len, last))) for cell in last])
        head, *rows = map("  ".join, zip(*padded))
        return "\n".join([f"Sharing plan {self.fingerprint}", head, "-" * len(head), *rows, "", *_account(self)])

    def _repr_html_(self) -> str:
        return html_table(_rows(self), f"Sharing plan {self.fingerprint}", _account(self))


def _fingerprint(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def _contradictions(plan: SharingPlan) -> Iterator[tuple[str, str]]:
    """Places where numbers of a plan contradict each other, and how, in time that grows with its text."""
    if plan.budget_counts not in BUDGET_COUNTS:
        yield "budget_counts", f"must be 'all' or 'templates', not {plan.budget_counts!r:.80}"
    if len(set(plan.member_names)) < len(plan.members):
        yield "members", "each needs a name of its own"
    cluster_names = Counter(cluster.name for cluster in plan.clusters)
    yield from (("clusters", f"two are named {name!r:.80}") for name, count in cluster_names.items() if count > 1)
    shared = dict.fromkeys(plan.member_names, 0)
    held: dict[tuple[str, str], list[GeneratedTensor]] = {}
    for cluster in plan.clusters:
        strangers = (target.member for target in cluster.targets if target.member not in shared)
        problems = _contradictions_of_bank(cluster) if cluster.generator == "ssn" else _contradictions_of_slots(cluster)
        for why in chain(
            (f"a target of member {name!r:.80}, which the plan does not have" for name in strangers), problems
        ):
            yield f"cluster {cluster.name!r:.80}", why
        for target, shape in zip(cluster.targets, cluster.shapes):
            shared[target.member] += math.prod(shape)
            for name in dict.fromkeys(target.names):
                held.setdefault((target.member, name), []).append(target)
    for same in held.values():
        label, parts = f"{same[0].label:.200}", [one.part for one in same]
        if len(set(parts)) < len(parts) or (None in parts and len(parts) > 1):
            yield "clusters", f"{label} stands there twice"
        needed = {(index, parts[0][1]) for index in range(parts[0][1])} if parts[0] else {None}
        if set(parts) != needed or any(one.names != same[0].names for one in same):
            yield "clusters", f"{label} needs each of its parts once, with the same names"
    for member in plan.members:
        if member.num_private + shared[member.name] != member.num_parameters:
            yield "members", f"{member.name!r:.80}: num_private and its targets do not add up to num_parameters"
    most = max(plan.num_parameters, plan.independent_parameters)
    if most > MOST_PARAMETERS:
        yield "clusters", f"claim {most:,} parameters; at most {MOST_PARAMETERS:,} are taken"
    if plan.spent > plan.budget:
        yield "budget", f"{plan.budget:,} is less than the plan costs, {plan.spent:,}"
    if any(slot.num_templates > plan.cap for cluster in plan.superweight_clusters.values() for slot in cluster.slots):
        yield "cap", f"a slot holds more than {plan.cap} templates"


def _contradictions_of_slots(cluster: Cluster) -> Iterator[str]:
    if (cluster.embedding_size > 0) != (cluster.coefficients == "embedding"):
        yield "embedding_size must be positive with coefficients 'embedding', and 0 with the others"
    if len({len(slot.shape) for slot in cluster.slots}) > 1:
        yield "all slots must have equally many dimensions"
    if len(cluster.kernels) > 1 and len(cluster.slots) > MOST_SLOTS_OF_KERNELS:
        yield f"slots of several kernels are at most {MOST_SLOTS_OF_KERNELS}"
    used: list[set[int]] = [set() for _ in cluster.slots]
    for target in cluster.targets:
        for found, vector in zip(used, target.vectors):
            found.add(vector)
    for index, (slot, block, found) in enumerate(zip(cluster.slots, cluster.blocks, used)):
        if block.size < 1:
            yield f"slot {index} must add numbers"
        if len(found) != slot.num_vectors or max(found) != slot.num_vectors - 1:
            yield f"slot {index}: its {slot.num_vectors} coefficient vectors do not match their users"
    for target in cluster.targets:
        if target.slot >= len(cluster.slots) or len(target.vectors) != target.slot + 1:
            yield f"{target.label:.200} needs one coefficient vector for each slot up to its own"
        shape = cluster.slots[target.slot].shape
        if target.ones > 0 and len(shape) > 2:
            yield f"{target.label:.200} has more dimensions than its slot, which has a kernel"
        dropped = shape[2 : 2 - target.ones] if target.ones < 0 else ()
        if len(dropped) != max(-target.ones, 0) or set(dropped) > {1}:
            yield f"{target.label:.200} has fewer dimensions than its slot, and those that it lacks are not of size 1"


def _contradictions_of_bank(group: SsnGroup) -> Iterator[str]:
    if any(math.prod(shape) > MOST_PARAMETERS for shape in group.shapes):
        yield f"shapes have {MOST_PARAMETERS:,} numbers at most"
    if group.bank_size < group.minimum_templates:
        yield f"a bank of {group.bank_size:,} numbers is smaller than its layers can read, {group.minimum_templates:,}"
    if (group.mask_window > 0) != (group.options.upsample == "mask"):
        yield "mask_window must be positive with upsample 'mask', and 0 with the others"
    if group.options.mask_window not in (0, group.mask_window):
        yield f"mask_window is {group.mask_window}, but its options say {group.options.mask_window}"


def _with_ones(shape: Shape, ones: int) -> Shape:
    """A shape with ``ones`` more dimensions of size 1 or, if negative, without as many first ones of its kernel."""
    return shape + (1,) * ones if ones >= 0 else shape[:2] + shape[2 - ones :]


def _rows(plan: SharingPlan) -> list[tuple[str, ...]]:
    what = ["slots (templates x shape)"] * bool(plan.superweight_clusters or not plan.clusters)
    what += ["bank and what layers read"] * bool(plan.ssn_groups)
    header = ("cluster", "generator", ", or ".join(what), "targets", "who shares", "parameters")
    return [header, *map(_row, plan.clusters)]


def bank_words(group: SsnGroup) -> str:
    """How the layers of a group read their bank, such as ``1 to 8 windows (wavg), 3 layers larger (inter)``."""
    larger = sum(spec.is_enlarged for spec in group.window_specs)
    words = f"{window_words(group)} ({group.options.combine})"
    if larger:
        count = "all" if larger == len(group.targets) > 1 else str(larger)
        words += f", {count} layer{'s' * (larger != 1)} larger ({group.options.upsample})"
    return words


def window_words(group: SsnGroup) -> str:
    """How many windows of the bank the layers of a group read: ``1 window``, ``2 to 8 windows``."""
    windows = sorted({spec.num_windows for spec in group.window_specs})
    if len(windows) == 1:
        return f"{windows[0]} window{'s' * (windows[0] != 1)}"
    return f"{windows[0]} to {windows[-1]} windows"


def _row(cluster: Cluster | SsnGroup) -> tuple[str, ...]:
    members = Counter(target.member for target in cluster.targets)
    shares = ", ".join(f"{escape_controls(name, keep='')} x{count}" for name, count in members.items())
    if cluster.generator == "ssn":
        made, tied = f"bank of {cluster.bank_size:,}, {bank_words(cluster)}", 0
    else:
        made = _slots(cluster)
        tied = sum(target.slot + 1 for target in cluster.targets) - sum(slot.num_vectors for slot in cluster.slots)
    return (
        escape_controls(cluster.name, keep=""),
        cluster.generator,
        made,
        str(len(cluster.targets)) + (f" ({tied} tied)" if tied else ""),
        shares,
        f"{cluster.num_templates + cluster.num_coefficients:,}",
    )


def _slots(cluster: Cluster) -> str:
    shown = None if len(cluster.kernels) > 1 else 2  # dimensions to show: the name of a cluster of one kernel tells it
    parts = [f"{slot.num_templates} x {spelled(slot.shape[:shown])}" for slot in cluster.slots]
    if len(parts) > 6:
        counts = [slot.num_templates for slot in cluster.slots]
        first, last = (spelled(slot.shape[:shown]) for slot in (cluster.slots[0], cluster.slots[-1]))
        return f"{len(parts)} slots, {first} to {last}, {min(counts)} to {max(counts)} templates"
    return " + ".join(parts)


def _account(plan: SharingPlan) -> list[str]:
    independent = plan.independent_parameters
    counted = "templates alone" if plan.budget_counts == "templates" else "every trainable scalar"
    embedded = {cluster.coefficients for cluster in plan.superweight_clusters.values()} == {"embedding"}
    held = "flat banks" if plan.ssn_groups and not plan.superweight_clusters else "templates"
    flat = sum(group.num_templates for group in plan.ssn_groups.values())
    mixed = f"{flat:,} of them in flat banks; " if flat and plan.superweight_clusters else ""
    company = plan.company().values()
    between, within, alone = (sum(getattr(one, what) for one in company) for what in ("between", "within", "alone"))
    entries = [
        (held, plan.num_templates, f"{mixed}minimum {plan.minimum_templates:,}"),
        ("coefficients", plan.num_coefficients, "as embeddings and their maps" if embedded else ""),
        ("members' own", plan.num_private, "heads, norms, biases, unshared weights"),
        ("in all", plan.num_parameters, f"{plan.num_parameters / max(independent, 1):.3f} of {independent:,} apart"),
        ("budget", plan.budget, f"counts {counted}; {plan.budget - plan.spent:,} unspent"),
    ]
    width = max(len(f"{number:,}") for _, number, _ in entries)
    lines = [f"{name:<14}{number:>{width},}  {note}".rstrip() for name, number, note in entries]
    shared = f"between members {between:,}, within one {within:,}, not at all {alone:,}"
    return [*lines, f"{'shared':<14}of {independent:,} parameters apart: {shared}"]
