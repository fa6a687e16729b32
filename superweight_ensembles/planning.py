"""From members and a budget to a sharing plan."""

from __future__ import annotations

import logging
import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypedDict

from torch import nn

from superweight_ensembles.allocation import ALLOCATION_ORDERS, SlotNeed, allocate, minimum_cost
from superweight_ensembles.clusters import ClusterRule, TargetGroup, group_targets
from superweight_ensembles.coefficients import (
    EMBEDDING_SIZE,
    CoefficientForm,
    fixed_numbers,
    numbers_per_template,
)
from superweight_ensembles.errors import SuperWeightError, unknown_name
from superweight_ensembles.plan import Cluster, PlannedMember, PlannedSlot, PlannedTarget, SharingPlan
from superweight_ensembles.plan_checks import MOST_PARAMETERS, MOST_TEMPLATES
from superweight_ensembles.slots import ordered_shapes
from superweight_ensembles.targets import (
    Members,
    find_targets,
    named_members,
    num_classes,
    unused_patterns,
)

_LOG = logging.getLogger(__name__)
COEFFICIENT_KINDS = ("own", "tied", "embedding", "channel")


class PlanOptions(TypedDict, total=False):
    """What :func:`plan_sharing` takes besides members and budget, and says the meaning of."""

    clusters: ClusterRule
    bins: int
    cap: int
    allocation: str
    coefficients: str
    reserve_untied: bool
    include: Sequence[str]
    exclude: Sequence[str]
    budget_counts: str


def plan_sharing(
    members: Members,
    *,
    budget: float,
    clusters: ClusterRule = "depth_bins",
    bins: int = 4,
    cap: int = 8,
    allocation: str = "sweeps",
    coefficients: str = "own",
    reserve_untied: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    budget_counts: str = "all",
) -> SharingPlan:
    """Decide which weights of which members share templates, inside a parameter budget.

    Args:
        members: Networks by name, (name, network) pairs, or networks alone; they are read, never changed.
        budget: Trainable scalars as an int, or as a float the fraction of what the members own apart
            (0.83; above 1 to buy accuracy at unchanged inference cost).
        clusters: ``depth_bins``, ``shape``, ``none``, or a mapping of cluster names to globs.
        bins: Depth bins B of a member: a kernel has round(B x its share of the targets of the first member that has
            it), at least one. ``depth_bins`` alone reads it.
        cap: Templates a slot at most.
        allocation: Which slots get their templates first: ``sweeps`` (all in turn, as published), ``balanced`` (the one
            with the fewest for its users), ``cheapest`` (the smallest, so that only large slots go short).
        coefficients: ``own``: a vector for each target and slot; ``tied``: one vector a slot, for all its targets;
            ``embedding``: each vector is an affine function of a small embedding; ``channel``: a vector for each output
            channel of each target.
        reserve_untied: Leave so much of the budget unspent that tied coefficients can be un-tied later
            (:func:`untie_coefficients`); ``tied`` alone reads it.
        include: Globs of layers to generate as well (see :func:`find_targets`).
        exclude: Globs of layers to leave to their member.
        budget_counts: ``all`` trainable scalars (templates, coefficients, norms, biases, heads), or
            ``templates`` alone, as the papers count.

    Raises:
        SuperWeightError: A budget below the minimum (states the minimum) or no budget at all; no target left;
            members of different class counts; a pattern that names nothing.

    Source: Teterwak et al., WACV 2024
    Differs from paper: the budget bounds every trainable scalar unless ``budget_counts="templates"``, and an
    infeasible one is an error.

    Example:
        >>> import superweight_ensembles as swe
        >>> members = {"deep": swe.wide_resnet(16, 1, 10), "shallow": swe.wide_resnet(10, 1, 10)}
        >>> plan = swe.plan_sharing(members, budget=0.83)
        >>> plan.num_parameters <= 0.83 * plan.independent_parameters
        True
    """
    modules = named_members(members)
    _check_options(cap, allocation, budget_counts, clusters, bins)
    if reserve_untied and coefficients != "tied":
        raise SuperWeightError(f"reserve_untied does nothing with coefficients {coefficients!r}: leave it out")
    for option, globs in (("include", include), ("exclude", exclude)):
        if isinstance(globs, str) or not all(isinstance(glob, str) for glob in globs):
            raise SuperWeightError(f"{option} must be a list of globs; got {globs!r}")
    _check_classes(modules)
    targets = [
        target
        for name, module in modules.items()
        for target in find_targets(module, name, include=include, exclude=exclude)
    ]
    unused = unused_patterns(modules, (*include, *exclude))
    if unused:
        raise SuperWeightError(f"the pattern {unused[0]!r} names no layer of any member (write 'member.layer')")
    if not targets and clusters != "none":
        raise SuperWeightError("no weight is left to share after exclusion: exclude less, or include layers by name")
    groups = group_targets(targets, clusters, bins=bins)
    return plan_groups(
        _planned_members(modules, groups),
        tie_all(groups) if coefficients == "tied" else groups,
        budget=budget,
        cap=cap,
        allocation=allocation,
        budget_counts=budget_counts,
        form=coefficient_form(coefficients),
        reserve_untied=reserve_untied,
    )


def coefficient_form(kind: str) -> CoefficientForm:
    """The form of a coefficient kind: tied vectors are vectors.

    Raises:
        SuperWeightError: No such kind.
    """
    if kind not in COEFFICIENT_KINDS:
        raise unknown_name("coefficients", kind, COEFFICIENT_KINDS)
    if kind == "embedding":
        return "embedding"
    return "channel" if kind == "channel" else "vector"


def tie_all(groups: Sequence[TargetGroup]) -> list[TargetGroup]:
    """The same groups, each with one coefficient vector a slot for all its targets."""
    return [replace(group, leaders=(0,) * len(group.targets)) for group in groups]


def independent_plan(members: Members) -> SharingPlan:
    """The plan in which nothing is shared: the same members apart, for a baseline."""
    return plan_sharing(members, budget=1.0, clusters="none")


def plan_groups(
    members: Sequence[PlannedMember],
    groups: Sequence[TargetGroup],
    *,
    budget: float,
    cap: int = 8,
    allocation: str = "sweeps",
    budget_counts: str = "all",
    form: CoefficientForm = "vector",
    reserve_untied: bool = False,
) -> SharingPlan:
    """Allocate templates to groups of targets that were chosen already.

    Args:
        members: All members, as a plan knows them.
        groups: What shares with what; targets of no group stay their member's own.
        budget: As :func:`plan_sharing` takes it, like ``cap`` and ``budget_counts``.
        cap: Templates a slot at most.
        allocation: As :func:`plan_sharing` takes it.
        budget_counts: ``all`` or ``templates``.
        form: In which the coefficients are held.
        reserve_untied: Leave so much of the budget unspent that every tied vector can be un-tied later.

    Raises:
        SuperWeightError: A budget below the minimum of these groups (states it), or no budget at all.
    """
    drafts = [_draft(group, form) for group in groups]
    needs = [need for draft in drafts for need in _needs(draft, reserve_untied)]
    apart = sum(member.num_parameters for member in members)
    limit = resolve_budget(budget, apart)
    everything = budget_counts == "all"
    own = sum(member.num_private for member in members) if everything else 0
    minimum = minimum_cost(needs, everything) + own
    if limit < minimum:
        raise SuperWeightError(
            f"a budget of {_spelled(budget, limit)} is below the minimum of this sharing, {minimum:,} parameters "
            f"({minimum / apart:.3f} of the members apart): raise it, use fewer bins, or include more layers"
            f"{_percentage_hint(budget)}"
        )
    counts = iter(allocate(needs, limit - own, cap=cap, count_coefficients=everything, order=allocation))
    plan = SharingPlan(
        members=tuple(members),
        clusters=tuple(
            replace(draft, slots=tuple(replace(slot, num_templates=next(counts)) for slot in draft.slots))
            for draft in drafts
        ),
        budget=limit,
        budget_counts=budget_counts,
        cap=cap,
        allocation=allocation,
    )
    if needs and everything and plan.num_parameters < 0.95 * limit:
        _LOG.warning(
            "the budget of %s allows more than %d templates a slot can use: %s parameters; raise cap to spend it",
            f"{limit:,}",
            cap,
            f"{plan.num_parameters:,}",
        )
    return plan


def groups_minimum(
    members: Sequence[PlannedMember],
    groups: Sequence[TargetGroup],
    *,
    budget_counts: str = "all",
    form: CoefficientForm = "vector",
    reserve_untied: bool = False,
) -> int:
    """The smallest budget, in trainable scalars, with which :func:`plan_groups` makes a plan of these groups."""
    needs = [need for group in groups for need in _needs(_draft(group, form), reserve_untied)]
    everything = budget_counts == "all"
    return minimum_cost(needs, everything) + (sum(member.num_private for member in members) if everything else 0)


def check_plan_fits(plan: SharingPlan, members: Mapping[str, nn.Module]) -> None:
    """Refuse members that a plan was not made for.

    Raises:
        SuperWeightError: Names the first difference.
    """
    if plan.member_names != tuple(members):
        raise SuperWeightError(
            f"the plan is for the members {', '.join(plan.member_names)}; given: {', '.join(members)}"
        )
    owned = {name: dict(module.named_parameters(remove_duplicate=False)) for name, module in members.items()}
    for cluster in plan.clusters:
        for target in cluster.targets:
            parameters = owned[target.member]
            for name in target.names:
                if name not in parameters:
                    raise SuperWeightError(f"the plan does not fit: member {target.member!r} has no parameter {name!r}")
                shape = tuple(parameters[name].shape)
                if shape != cluster.shape_of(target):
                    raise SuperWeightError(
                        f"the plan does not fit: {target.member}.{name} is {shape}, planned {cluster.shape_of(target)}"
                    )
                if parameters[name] is not parameters[target.name]:
                    raise SuperWeightError(
                        f"the plan does not fit: {target.member}.{name} is not tied to {target.name}, as planned"
                    )
    for member in plan.members:
        count = count_parameters(members[member.name])
        if count != member.num_parameters:
            raise SuperWeightError(
                f"the plan does not fit: member {member.name!r} has {count:,} trainable parameters, "
                f"planned {member.num_parameters:,}"
            )


def count_parameters(module: nn.Module) -> int:
    """Unique trainable scalars of a module."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def resolve_budget(budget: float, apart: int) -> int:
    """A budget in trainable scalars.

    Raises:
        SuperWeightError: No finite positive number, or a float of 10 and more (a percentage).

    Example:
        >>> resolve_budget(0.83, 1000), resolve_budget(700, 1000)
        (830, 700)
    """
    if isinstance(budget, bool) or not isinstance(budget, numbers.Real):
        raise SuperWeightError(f"budget must be an int (parameters) or a float (fraction); got {budget!r}")
    if (not isinstance(budget, numbers.Integral) and not math.isfinite(budget)) or budget <= 0:
        raise SuperWeightError(f"budget must be a positive number; got {budget!r:.40}")
    if isinstance(budget, numbers.Integral):
        if budget > MOST_PARAMETERS:
            raise SuperWeightError(f"a budget is at most {MOST_PARAMETERS:,} parameters; got {budget!r:.40}")
        return int(budget)
    if budget > 1000 and float(budget).is_integer():
        raise SuperWeightError(f"a number of parameters must be an int; got {budget!r}: write {int(budget)}")
    if budget >= 10:
        raise SuperWeightError(
            f"a float budget is a fraction of what the members own apart; got {budget!r}: "
            f"write {budget / 100:g} for {budget:g} %, or an int for a number of parameters"
        )
    return math.floor(float(budget) * apart + 1e-9)


def _planned_members(modules: Mapping[str, nn.Module], groups: Sequence[TargetGroup]) -> tuple[PlannedMember, ...]:
    shared = dict.fromkeys(modules, 0)
    for target in (target for group in groups for target in group.targets):
        shared[target.member] += math.prod(target.shape)
    return tuple(
        PlannedMember(name=name, num_parameters=count, num_private=count - shared[name])
        for name, count in ((name, count_parameters(module)) for name, module in modules.items())
    )


def _draft(group: TargetGroup, form: CoefficientForm) -> Cluster:
    """A cluster with one template a slot; targets ordered by slot so that their vectors stand side by side."""
    shapes = ordered_shapes(target.shape for target in group.targets)
    slot_of = {shape: index for index, shape in enumerate(shapes)}
    leaders = group.leaders if group.leaders is not None else range(len(group.targets))
    used: list[dict[int, int]] = [{} for _ in shapes]
    planned = []
    for target, leader in sorted(zip(group.targets, leaders), key=lambda pair: slot_of[pair[0].shape]):
        slot = slot_of[target.shape]
        vectors = tuple(used[index].setdefault(leader, len(used[index])) for index in range(slot + 1))
        planned.append(PlannedTarget(member=target.member, names=target.names, slot=slot, vectors=vectors))
    return Cluster(
        name=group.name,
        kind=group.targets[0].kind,
        slots=tuple(
            PlannedSlot(shape=shape, num_vectors=len(found), num_templates=1) for shape, found in zip(shapes, used)
        ),
        targets=tuple(planned),
        coefficients=form,
        embedding_size=EMBEDDING_SIZE if form == "embedding" else 0,
    )


def _needs(draft: Cluster, reserve_untied: bool) -> list[SlotNeed]:
    """What each slot of a cluster asks of the budget; with ``reserve_untied``, as if no coefficients were tied."""
    needs = []
    for index, (slot, block) in enumerate(zip(draft.slots, draft.blocks)):
        users = sum(target.slot >= index for target in draft.targets)
        vectors = users if reserve_untied else slot.num_vectors
        needs.append(
            SlotNeed(
                size=block.size,
                num_users=users,
                num_coefficients=numbers_per_template(draft.coefficients, block, vectors, draft.embedding_size),
                num_fixed=fixed_numbers(draft.coefficients, vectors, draft.embedding_size),
            )
        )
    return needs


def _check_options(cap: int, allocation: str, budget_counts: str, clusters: ClusterRule, bins: int) -> None:
    if allocation not in ALLOCATION_ORDERS:
        raise unknown_name("allocation", str(allocation), ALLOCATION_ORDERS)
    if clusters != "depth_bins" and bins != 4:
        raise SuperWeightError(f"bins does nothing with clusters {clusters!r}: leave it out")
    if isinstance(cap, bool) or not isinstance(cap, int) or cap < 1:
        raise SuperWeightError(f"cap must be a positive integer; got {cap!r}")
    if cap > MOST_TEMPLATES:
        raise SuperWeightError(f"cap is at most {MOST_TEMPLATES:,} templates; got {cap!r:.40}")
    if budget_counts not in ("all", "templates"):
        raise SuperWeightError(f"budget_counts must be 'all' or 'templates'; got {budget_counts!r}")


def _check_classes(modules: Mapping[str, nn.Module]) -> None:
    counts = {name: num_classes(module) for name, module in modules.items()}
    known = {name: count for name, count in counts.items() if count is not None}
    if len(set(known.values())) > 1:
        listed = ", ".join(f"{name}: {count}" for name, count in known.items())
        raise SuperWeightError(f"members must answer the same classes; their heads have {listed}")


def _percentage_hint(budget: float) -> str:
    if isinstance(budget, numbers.Integral) and budget <= 1000:
        share = "1.0 for as many as the members own" if budget <= 10 else f"{budget / 100:g} for {budget} %"
        return f"; an int counts parameters: write {share}"
    return ""


def _spelled(budget: float, limit: int) -> str:
    return f"{limit:,} parameters" if isinstance(budget, numbers.Integral) else f"{budget:g} ({limit:,} parameters)"
