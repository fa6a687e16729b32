"""From members and a budget to a sharing plan."""

from __future__ import annotations

import logging
import math
import numbers
from collections.abc import Mapping, Sequence

from torch import nn

from superweight_ensembles.allocation import SlotNeed, allocate, minimum_cost
from superweight_ensembles.clusters import ClusterRule, TargetGroup, group_targets
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.plan import Cluster, PlannedMember, PlannedSlot, PlannedTarget, SharingPlan
from superweight_ensembles.slots import ordered_shapes
from superweight_ensembles.targets import (
    Members,
    Target,
    find_targets,
    named_members,
    num_classes,
    unused_patterns,
)

_LOG = logging.getLogger(__name__)


def plan_sharing(
    members: Members,
    *,
    budget: float,
    clusters: ClusterRule = "depth_bins",
    bins: int = 4,
    cap: int = 8,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    budget_counts: str = "all",
) -> SharingPlan:
    """Decide which weights of which members share templates, inside a parameter budget.

    Args:
        members: Networks by name, or (name, network) pairs; they are read, never changed.
        budget: Trainable scalars as an int, or as a float the fraction of what the members own apart
            (0.83; above 1 to buy accuracy at unchanged inference cost).
        clusters: ``depth_bins``, ``shape``, ``none``, or a mapping of cluster names to globs.
        bins: Depth bins B of a member: a kernel has round(B x its share of the targets of the first member that has
            it), at least one. ``depth_bins`` alone reads it.
        cap: Templates a slot at most.
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
    _check_options(cap, budget_counts, clusters, bins)
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
    return plan_groups(
        modules,
        group_targets(targets, clusters, bins=bins),
        budget=budget,
        cap=cap,
        budget_counts=budget_counts,
    )


def independent_plan(members: Members) -> SharingPlan:
    """The plan in which nothing is shared: the same members apart, for a baseline."""
    return plan_sharing(members, budget=1.0, clusters="none")


def plan_groups(
    modules: Mapping[str, nn.Module],
    groups: Sequence[TargetGroup],
    *,
    budget: float,
    cap: int = 8,
    budget_counts: str = "all",
) -> SharingPlan:
    """Allocate templates to groups of targets that were chosen already, one coefficient vector a target and slot.

    Args:
        modules: All members, checked.
        groups: What shares with what; targets of no group stay their member's own.
        budget: As :func:`plan_sharing` takes it, like ``cap`` and ``budget_counts``.
        cap: Templates a slot at most.
        budget_counts: ``all`` or ``templates``.

    Raises:
        SuperWeightError: A budget below the minimum of these groups (states it), or no budget at all.
    """
    shared = dict.fromkeys(modules, 0)
    for target in (target for group in groups for target in group.targets):
        shared[target.member] += math.prod(target.shape)
    planned_members = tuple(
        PlannedMember(name=name, num_parameters=count, num_private=count - shared[name])
        for name, count in ((name, count_parameters(module)) for name, module in modules.items())
    )
    drafts = [_draft(group) for group in groups]
    needs = [
        SlotNeed(size=block.size, num_users=slot.num_vectors, num_vectors=slot.num_vectors)
        for draft in drafts
        for slot, block in zip(draft.slots, draft.blocks)
    ]
    apart = sum(member.num_parameters for member in planned_members)
    limit = resolve_budget(budget, apart)
    everything = budget_counts == "all"
    own = sum(member.num_private for member in planned_members) if everything else 0
    minimum = minimum_cost(needs, everything) + own
    if limit < minimum:
        raise SuperWeightError(
            f"a budget of {_spelled(budget, limit)} is below the minimum of this sharing, {minimum:,} parameters "
            f"({minimum / apart:.3f} of the members apart): raise it, use fewer bins, or include more layers"
            f"{_percentage_hint(budget)}"
        )
    counts = iter(allocate(needs, limit - own, cap=cap, count_coefficients=everything))
    plan = SharingPlan(
        members=planned_members,
        clusters=tuple(
            Cluster(
                name=draft.name,
                kind=draft.kind,
                targets=draft.targets,
                slots=tuple(
                    PlannedSlot(shape=slot.shape, num_vectors=slot.num_vectors, num_templates=next(counts))
                    for slot in draft.slots
                ),
            )
            for draft in drafts
        ),
        budget=limit,
        budget_counts=budget_counts,
        cap=cap,
    )
    if needs and everything and plan.num_parameters < 0.95 * limit:
        _LOG.warning(
            "the budget of %s allows more than %d templates a slot can use: %s parameters; raise cap to spend it",
            f"{limit:,}",
            cap,
            f"{plan.num_parameters:,}",
        )
    return plan


def check_plan_fits(plan: SharingPlan, members: Mapping[str, nn.Module]) -> None:
    """Refuse members that a plan was not made for.

    Raises:
        SuperWeightError: Names the first difference.
    """
    if plan.member_names != tuple(members):
        raise SuperWeightError(
            f"the plan is for the members {', '.join(plan.member_names)}; given: {', '.join(members)}"
        )
    for cluster in plan.clusters:
        for target in cluster.targets:
            parameters = dict(members[target.member].named_parameters(remove_duplicate=False))
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
    if not math.isfinite(budget) or budget <= 0:
        raise SuperWeightError(f"budget must be a positive number; got {budget!r}")
    if isinstance(budget, numbers.Integral):
        return int(budget)
    if budget > 1000 and float(budget).is_integer():
        raise SuperWeightError(f"a number of parameters must be an int; got {budget!r}: write {int(budget)}")
    if budget >= 10:
        raise SuperWeightError(
            f"a float budget is a fraction of what the members own apart; got {budget!r}: "
            f"write {budget / 100:g} for {budget:g} %, or an int for a number of parameters"
        )
    return math.floor(float(budget) * apart + 1e-9)


def _draft(group: TargetGroup) -> Cluster:
    """A cluster with one template a slot; targets ordered by slot so that their vectors stand side by side."""
    shapes = ordered_shapes(target.shape for target in group.targets)
    slot_of = {shape: index for index, shape in enumerate(shapes)}
    ordered: list[Target] = sorted(group.targets, key=lambda target: slot_of[target.shape])
    used = [0] * len(shapes)
    planned = []
    for target in ordered:
        slot = slot_of[target.shape]
        planned.append(
            PlannedTarget(member=target.member, names=target.names, slot=slot, vectors=tuple(used[: slot + 1]))
        )
        for index in range(slot + 1):
            used[index] += 1
    return Cluster(
        name=group.name,
        kind=group.targets[0].kind,
        slots=tuple(PlannedSlot(shape=shape, num_vectors=count, num_templates=1) for shape, count in zip(shapes, used)),
        targets=tuple(planned),
    )


def _check_options(cap: int, budget_counts: str, clusters: ClusterRule, bins: int) -> None:
    if clusters != "depth_bins" and bins != 4:
        raise SuperWeightError(f"bins does nothing with clusters {clusters!r}: leave it out")
    if isinstance(cap, bool) or not isinstance(cap, int) or cap < 1:
        raise SuperWeightError(f"cap must be a positive integer; got {cap!r}")
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
