"""From members and a budget to a sharing plan."""

from __future__ import annotations

import logging
import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypedDict

from torch import nn

from superweight_ensembles.errors import SuperWeightError, unknown_name
from superweight_ensembles.plan.allocation import ALLOCATION_ORDERS
from superweight_ensembles.plan.clusters import ClusterRule, TargetGroup, group_targets, mixed_kernels
from superweight_ensembles.plan.generators import GENERATORS, Spending, spend
from superweight_ensembles.plan.sharing_plan import PlannedMember, SharingPlan
from superweight_ensembles.plan.slots import CoefficientForm
from superweight_ensembles.plan.ssn import SsnOptions
from superweight_ensembles.plan.targets import (
    MOST_PARAMETERS,
    MOST_TEMPLATES,
    Members,
    find_targets,
    named_members,
    num_classes,
    unused_patterns,
)

# FOLDED plan.budget: A budget in trainable scalars, from how it was given.


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
            f"write {float(budget) / 100!r} for {budget:g} %, or an int for a number of parameters"
        )
    return math.floor(float(budget) * apart + 1e-9)


def percentage_hint(budget: float) -> str:
    """What to write instead of an int that looks like a percentage; empty for others."""
    if isinstance(budget, numbers.Integral) and budget < 1000:
        share = "1.0 for as many as the members own" if budget <= 10 else f"{int(budget) / 100!r} for {budget} %"
        return f"; an int counts parameters: write {share}"
    return ""


def spelled(budget: float, limit: int) -> str:
    """A budget as it was given, with the parameters that it is."""
    return f"{limit:,} parameters" if isinstance(budget, numbers.Integral) else f"{budget:g} ({limit:,} parameters)"


# FOLDED plan.plan_options: What :func:`plan_sharing` is told: options that contradict each other, or that nothing
# would read.

_LOG = logging.getLogger(__name__)
_OF_SUPERWEIGHTS = {"coefficients": "own", "cap": 8, "allocation": "sweeps"}  # which they alone read, and defaults
_OF_FLAT_BANKS = {"coefficients": " (ssn: combine is like it)", "cap": " (ssn: windows is like it)", "allocation": ""}


def most_that_is_used(plan: SharingPlan) -> tuple[str, str]:
    """What keeps a plan from spending its budget, and what would change that."""
    banks = plan.ssn_groups.values()
    if plan.superweight_clusters:
        return f"{plan.cap} templates a slot", "raise cap"
    for bank in banks:
        options = bank.options
        if options.templates:
            return f"{options.templates} templates of the size of the largest layer", "raise ssn: templates"
        if any(reading.num_windows == options.windows for reading in bank.readings):
            return f"{options.windows} windows a layer", "raise ssn: windows"
    if any(reading.is_enlarged for bank in banks for reading in bank.readings):
        return "up-sampling from fewer numbers", "take ssn: upsample 'wavg' or 'repeat', or larger groups,"
    return "layers that share with no other", "take larger groups"


def check_budget(
    budget: float, limit: int, own: int, least: int, members: Sequence[PlannedMember], generator: str
) -> None:
    """Refuse a budget that no plan of these groups fits."""
    if limit >= own + least:
        return
    apart = sum(member.num_parameters for member in members)
    if limit < own:
        remedy = (
            f"what stays the members' own (heads, norms, biases, layers left out) is {own:,} alone: raise it, or "
            "include more layers"
        )
    else:
        remedy = "raise it, share in fewer groups, or include more layers"
        if generator == "superweight":
            remedy += ", or take generator 'ssn' or 'auto', which go below (but for a search that splits clusters)"
    raise SuperWeightError(
        f"a budget of {spelled(budget, limit)} is below the minimum of this sharing, {own + least:,} parameters "
        f"({(own + least) / apart:.3f} of the members apart): {remedy}{percentage_hint(budget)}"
    )


def check_generator(
    generator: str, ssn: SsnOptions | None, superweights: Mapping[str, object], clusters: ClusterRule
) -> None:
    """Refuse what no plan would read, whatever its budget."""
    if not isinstance(generator, str):
        raise SuperWeightError(
            f"generator is one of {', '.join(GENERATORS)} (a torch.Generator goes as rng=); got {generator!r:.60}"
        )
    if generator not in GENERATORS:
        raise unknown_name("generator", str(generator), GENERATORS)
    given = [name for name, value in superweights.items() if value != _OF_SUPERWEIGHTS[name]]
    if clusters == "none":
        given += [name for name, there in (("ssn", ssn is not None), ("generator", generator != "auto")) if there]
        if given:
            raise SuperWeightError(f"{given[0]} does nothing with clusters 'none': leave it out")
    if generator == "superweight" and ssn is not None:
        raise SuperWeightError("ssn does nothing with generator 'superweight': leave it out")
    if generator == "ssn" and given:
        raise SuperWeightError(f"{given[0]} does nothing with generator 'ssn'{_OF_FLAT_BANKS[given[0]]}: leave it out")


def tell_idle(plan: SharingPlan, ssn: SsnOptions | None, superweights: Mapping[str, object]) -> None:
    """Say which of the options given no cluster reads that ``auto`` made at this budget."""
    idle = ["ssn"] if ssn is not None and not plan.ssn_groups else []
    if not plan.superweight_clusters:
        idle += [name for name, value in superweights.items() if value != _OF_SUPERWEIGHTS[name]]
    if idle:
        _LOG.warning(
            "%s: not used, since at this budget generator 'auto' makes %s alone",
            ", ".join(idle),
            "SuperWeights" if plan.superweight_clusters else "flat banks",
        )


def check_options(cap: int, allocation: str, budget_counts: str, clusters: ClusterRule, bins: int) -> None:
    """Refuse values that are none."""
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


def check_classes(modules: Mapping[str, nn.Module]) -> None:
    """Refuse members that answer different numbers of classes, as far as their heads tell."""
    counts = {name: num_classes(module) for name, module in modules.items()}
    known = {name: count for name, count in counts.items() if count is not None}
    if len(set(known.values())) > 1:
        listed = ", ".join(f"{name}: {count}" for name, count in known.items())
        raise SuperWeightError(f"members must answer the same classes; their heads have {listed}")


COEFFICIENT_KINDS = ("own", "tied", "embedding", "channel")


class PlanOptions(TypedDict, total=False):
    """What :func:`plan_sharing` takes besides members and budget, and says the meaning of."""

    generator: str
    clusters: ClusterRule
    bins: int
    num_groups: int | None
    group_seed: int
    ssn: SsnOptions | None
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
    generator: str = "auto",
    clusters: ClusterRule = "depth_bins",
    bins: int = 4,
    num_groups: int | None = None,
    group_seed: int = 0,
    ssn: SsnOptions | None = None,
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
        generator: ``superweight``: templates a slot, mixed by coefficients; ``ssn``: windows of a flat bank, which may
            be smaller than a layer (Shapeshifter Networks); ``auto``: SuperWeights where the budget reaches their
            minimum, below it for those of the clusters that get theirs, and flat banks for the others: one each, or one
            for all of them where there are less than 0.075 numbers a weight. What was given for a generator that the
            budget makes no use of is said in a warning.
        clusters: ``depth_bins``, ``shape`` (of one kind and shape), ``type`` (of one kind of layer), ``one`` (all),
            ``random``, ``none``, or a mapping of cluster names to globs. SuperWeights need one kernel a cluster.
        bins: Depth bins B of a member: a kernel has round(B x its share of the targets of the first member that has
            it), at least one. ``depth_bins`` alone reads it.
        num_groups: Clusters that ``random`` makes; it alone reads them.
        group_seed: Of the draw of ``random``.
        ssn: How layers read a flat bank; where None, the defaults of :class:`SsnOptions`, but in ``auto`` without
            coefficients of tiles where the budget is too small for them.
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

    Source: Teterwak et al., WACV 2024; Plummer et al., ICLR 2022 (``ssn``).
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
    check_options(cap, allocation, budget_counts, clusters, bins)
    superweights = {"coefficients": coefficients, "cap": cap, "allocation": allocation}
    check_generator(generator, ssn, superweights, clusters)
    if reserve_untied and coefficients != "tied":
        raise SuperWeightError(f"reserve_untied does nothing with coefficients {coefficients!r}: leave it out")
    for option, globs in (("include", include), ("exclude", exclude)):
        if isinstance(globs, str) or not all(isinstance(glob, str) for glob in globs):
            raise SuperWeightError(f"{option} must be a list of globs; got {globs!r}")
    check_classes(modules)
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
    groups = group_targets(targets, clusters, bins=bins, num_groups=num_groups, seed=group_seed)
    plan = plan_groups(
        _planned_members(modules, groups),
        tie_all(groups) if coefficients == "tied" else groups,
        budget=budget,
        cap=cap,
        allocation=allocation,
        budget_counts=budget_counts,
        form=coefficient_form(coefficients),
        reserve_untied=reserve_untied,
        generator=generator,
        ssn=ssn,
    )
    if groups and generator == "auto":
        tell_idle(plan, ssn, superweights)
    return plan


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
    generator: str = "superweight",
    ssn: SsnOptions | None = None,
) -> SharingPlan:
    """Spend a budget on groups of targets that were chosen already.

    Args:
        members: All members, as a plan knows them.
        groups: What shares with what; targets of no group stay their member's own.
        budget: As :func:`plan_sharing` takes it, like ``cap`` and ``budget_counts``.
        cap: Templates a slot at most.
        allocation: As :func:`plan_sharing` takes it.
        budget_counts: ``all`` or ``templates``.
        form: In which the coefficients are held.
        reserve_untied: Leave so much of the budget unspent that every tied vector can be un-tied later.
        generator: As :func:`plan_sharing` takes it.
        ssn: As :func:`plan_sharing` takes it.

    Raises:
        SuperWeightError: A budget below the minimum of these groups (states it), or no budget at all; a group of
            SuperWeights with several kernels.
    """
    if ssn is not None and not isinstance(ssn, SsnOptions):
        raise SuperWeightError(f"ssn must be SsnOptions; got {ssn!r:.80}")
    everything = budget_counts == "all"
    how = Spending(
        generator=generator, ssn=ssn, form=form, cap=cap, allocation=allocation, everything=everything,
        reserve_untied=reserve_untied,
    )  # fmt: skip
    for group in groups:
        if generator == "superweight" and (kernels := mixed_kernels(group)):
            raise SuperWeightError(
                f"cluster {group.name!r} mixes {' and '.join(kernels)}: use one cluster a kernel, or generator 'ssn'"
            )
    limit = resolve_budget(budget, sum(member.num_parameters for member in members))
    own = sum(member.num_private for member in members) if everything else 0
    check_budget(budget, limit, own, how.least(groups), members, generator)
    made = spend(groups, limit - own, how)
    plan = SharingPlan(
        members=_keeping(members, made.ordinary),
        clusters=made.clusters,
        budget=limit,
        budget_counts=budget_counts,
        cap=cap,
        allocation=allocation,
    )
    if groups and everything and plan.num_parameters < 0.95 * limit:
        limit_of, remedy = most_that_is_used(plan)
        _LOG.warning(
            "the budget of %s allows more than %s can use: %s parameters; %s to spend it",
            f"{limit:,}",
            limit_of,
            f"{plan.num_parameters:,}",
            remedy,
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
    """The smallest budget, in trainable scalars, with which :func:`plan_groups` makes SuperWeights of these groups."""
    everything = budget_counts == "all"
    how = Spending(form=form, everything=everything, reserve_untied=reserve_untied)
    return how.least(groups) + (sum(member.num_private for member in members) if everything else 0)


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
        for target, planned in zip(cluster.targets, cluster.shapes):
            parameters = owned[target.member]
            for name in target.names:
                if name not in parameters:
                    raise SuperWeightError(f"the plan does not fit: member {target.member!r} has no parameter {name!r}")
                shape = tuple(parameters[name].shape)
                if shape != planned:
                    raise SuperWeightError(
                        f"the plan does not fit: {target.member}.{name} is {shape}, planned {planned}"
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


def _planned_members(modules: Mapping[str, nn.Module], groups: Sequence[TargetGroup]) -> tuple[PlannedMember, ...]:
    shared = dict.fromkeys(modules, 0)
    for target in (target for group in groups for target in group.targets):
        shared[target.member] += math.prod(target.shape)
    return tuple(
        PlannedMember(name=name, num_parameters=count, num_private=count - shared[name])
        for name, count in ((name, count_parameters(module)) for name, module in modules.items())
    )


def _keeping(members: Sequence[PlannedMember], ordinary: Sequence[TargetGroup]) -> tuple[PlannedMember, ...]:
    """The members, with ordinary weights among what stays their own."""
    kept = {member.name: 0 for member in members}
    for target in (target for group in ordinary for target in group.targets):
        kept[target.member] += math.prod(target.shape)
    return tuple(replace(member, num_private=member.num_private + kept[member.name]) for member in members)
