"""From members and a budget to a sharing plan."""

from __future__ import annotations

import logging
import math
import numbers
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypedDict

from torch import nn

from superweight_ensembles.errors import SuperWeightError, names_options, unknown_name
from superweight_ensembles.plan.clusters import ClusterRule, TargetGroup, group_targets, mixed_kernels
from superweight_ensembles.plan.generators import BudgetPolicy, allocate_generators
from superweight_ensembles.plan.sharing_plan import RETIRED_ALLOCATION, PlannedMember, SharingPlan
from superweight_ensembles.plan.ssn import SsnOptions
from superweight_ensembles.plan.targets import (
    KERNELS,
    MOST_PARAMETERS,
    Kernels,
    Members,
    Target,
    check_patterns,
    find_targets,
    named_members,
    num_classes,
    why_not_taken,
)

if TYPE_CHECKING:  # typing_extensions is no requirement of this package
    from typing_extensions import Unpack

_HARDLY = 0.05  # share of a member's parameters: a member that shares less might as well be apart
_LOG = logging.getLogger(__name__)
_OF_SUPERWEIGHTS = {
    "coefficients": " (ssn: combine is like it)",
    "cap": " (ssn: windows is like it)",
    "kernels": " (a flat bank makes every kernel)",
}


class PlanOptions(TypedDict, total=False):
    """Options of :func:`plan_sharing` besides members and budget; their meaning is explained there."""

    generator: str
    clusters: ClusterRule
    kernels: Kernels
    bins: int
    num_groups: int | None
    group_seed: int
    ssn: SsnOptions | None
    cap: int
    coefficients: str
    reserve_untied: bool
    include: Sequence[str]
    exclude: Sequence[str]
    budget_counts: str


@dataclass(frozen=True, kw_only=True)
class _SharingOptions(BudgetPolicy):
    """:class:`PlanOptions` with every default, checked."""

    generator: str = "auto"
    clusters: ClusterRule = "depth_bins"
    kernels: Kernels = "apart"
    bins: int = 4
    num_groups: int | None = None
    group_seed: int = 0
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernels not in KERNELS:
            raise unknown_name("kernels", str(self.kernels), KERNELS)
        given = self.given_for_superweights
        if self.clusters == "none":
            given += ["ssn"] * (self.ssn is not None) + ["generator"] * (self.generator != "auto")
            if given:
                raise SuperWeightError(f"{given[0]} does nothing with clusters 'none': leave it out")
        if self.generator == "superweight" and self.ssn is not None:
            raise SuperWeightError("ssn does nothing with generator 'superweight': leave it out")
        if self.generator == "ssn" and given:
            hint = _OF_SUPERWEIGHTS[given[0]]
            raise SuperWeightError(f"{given[0]} does nothing with generator 'ssn'{hint}: leave it out")
        for option, globs in (("include", self.include), ("exclude", self.exclude)):
            if isinstance(globs, str) or not all(isinstance(glob, str) for glob in globs):
                raise SuperWeightError(f"{option} must be a list of globs; got {globs!r}")

    @property
    def given_for_superweights(self) -> list[str]:
        """Options with other values than their defaults that flat banks do not read."""
        return [name for name in _OF_SUPERWEIGHTS if getattr(self, name) != getattr(_SharingOptions, name)]


def check_plan_options(options: Iterable[str]) -> None:
    """Refuse a name that is no option of :func:`plan_sharing`."""
    for option in options:
        if option == "allocation":
            raise SuperWeightError(RETIRED_ALLOCATION)
        if option not in PlanOptions.__annotations__:
            raise unknown_name("plan option", option, ("budget", *PlanOptions.__annotations__))


@names_options
def plan_sharing(members: Members, *, budget: float, **options: Unpack[PlanOptions]) -> SharingPlan:
    """Decide which weights of which members share templates, inside a parameter budget.

    Args:
        members: Networks by name, (name, network) pairs, or networks alone; they are read, never changed.
        budget: Trainable scalars as an int, or as a float the fraction of what the members own apart
            (0.83; above 1 to buy accuracy at unchanged inference cost).
        **options: Any of the options below.
        generator: ``superweight``: templates a slot, mixed by coefficients; ``ssn``: windows of a flat bank, which may
            be smaller than a layer (Shapeshifter Networks); ``auto`` (the default): SuperWeights where the budget
            reaches their minimum. Below it, ``auto`` makes SuperWeights of the clusters whose share of the budget
            reaches their own minimum, and flat banks of the others: one each, or one for all of them where there are
            fewer than 0.075 numbers a weight. A warning names options for a generator that this budget does not use.
        clusters: ``depth_bins`` (the default), ``shape`` (of one kind and shape), ``type`` (of one kind of layer),
            ``one`` (all), ``random``, ``none``, or a mapping of cluster names to globs. SuperWeights need one kernel a
            cluster, unless ``kernels`` says otherwise.
        kernels: ``apart`` (the default): layers of one kernel size share; ``centre``: layers of one kind share, a small
            kernel as the centre of a large one, and a linear layer as the centre of any convolution. ``centre`` trained
            no better (docs/measured.md). A search that splits clusters refuses it; with tied coefficients, the weights
            of small kernels start as small as those of large ones. A cluster of several kernels has at most 128 shapes.
        bins: Depth bins B of a member, for ``depth_bins`` alone; 4 unless given. A kernel gets round(B s) bins, at
            least one, where s is its share of the targets of the first member that has it.
        num_groups: Number of clusters, for ``random`` alone.
        group_seed: Seed of ``random``; 0 unless given.
        ssn: How layers read a flat bank; by default as in :class:`SsnOptions`, except that ``auto`` leaves out the
            coefficients of tiles where the budget is too small for them.
        cap: Most templates of a slot; 8 unless given.
        coefficients: ``own`` (the default): a vector for each target and slot; ``tied``: one vector a slot, for all its
            targets; ``embedding``: each vector is an affine function of a small embedding.
        reserve_untied: Whether to leave enough of the budget unspent for tied coefficients to be un-tied later
            (:func:`untie_coefficients`), for ``tied`` alone.
        include: Globs of layers to generate as well (see :func:`find_targets`).
        exclude: Globs of layers to leave to their member.
        budget_counts: ``all`` (the default) trainable scalars (templates, coefficients, norms, biases, heads), or
            ``templates`` alone, as the papers count.

    Raises:
        SuperWeightError: A budget below the minimum (states the minimum) or no budget at all; no target left;
            members of different class counts; a pattern that names nothing; an option that is unknown or does nothing.

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
    check_plan_options(options)
    chosen = _SharingOptions(**options)
    _check_classes(modules)
    targets = [
        target
        for name, module in modules.items()
        for target in find_targets(module, name, include=chosen.include, exclude=chosen.exclude)
    ]
    check_patterns(modules, (*chosen.include, *chosen.exclude))
    if chosen.clusters != "none":
        _check_shared(modules, targets, chosen)
    groups = group_targets(
        targets,
        chosen.clusters,
        bins=chosen.bins,
        num_groups=chosen.num_groups,
        seed=chosen.group_seed,
        kernels=chosen.kernels,
    )
    shared = tie_all(groups) if chosen.coefficients == "tied" else groups
    generated = _num_weights(groups)
    counts = {name: count_parameters(module) for name, module in modules.items()}
    planned = [
        PlannedMember(name=name, num_parameters=count, num_private=count - generated[name])
        for name, count in counts.items()
    ]
    plan = plan_groups(planned, shared, budget, chosen)
    if groups and chosen.generator == "auto":
        _warn_of_idle_options(plan, chosen)
    if chosen.kernels == "centre" and not any(len(one.kernels) > 1 for one in plan.superweight_clusters.values()):
        _LOG.warning("kernels 'centre' changes nothing: no cluster of SuperWeights has several kernels")
    return plan


def independent_plan(members: Members) -> SharingPlan:
    """The plan in which nothing is shared: the same members apart, for a baseline."""
    return plan_sharing(members, budget=1.0, clusters="none")


def plan_groups(
    members: Sequence[PlannedMember], groups: Sequence[TargetGroup], budget: float, policy: BudgetPolicy
) -> SharingPlan:
    """Spend a budget on given groups of targets; targets of no group stay their member's own."""
    for group in groups:
        if policy.generator == "superweight" and (kernels := mixed_kernels(group)):
            centre = "" if mixed_kernels(replace(group, kernels="centre")) else "kernels 'centre', "
            raise SuperWeightError(
                f"cluster {group.name!r} mixes {' and '.join(kernels)}: use one cluster a kernel, "
                f"{centre}or generator 'ssn'"
            )
    limit = resolve_budget(budget, sum(member.num_parameters for member in members))
    private = _counted_private(members, policy)
    minimum = groups_minimum(members, groups, policy)
    if limit < minimum:
        raise _below_minimum(budget, limit, members, minimum, private, policy)
    made = allocate_generators(groups, limit - private, policy)
    plain = _num_weights(made.plain)
    plan = SharingPlan(
        members=tuple(replace(member, num_private=member.num_private + plain[member.name]) for member in members),
        clusters=made.clusters,
        budget=limit,
        budget_counts=policy.budget_counts,
        cap=policy.cap,
    )
    if groups and policy.count_all and plan.num_parameters < 0.95 * limit:
        limit_of, remedy = _what_limits(plan)
        _LOG.warning(
            "the budget of %s allows more than %s can use: %s parameters; %s to spend it",
            f"{limit:,}",
            limit_of,
            f"{plan.num_parameters:,}",
            remedy,
        )
    if groups:
        _warn_of_strangers(plan)
    return plan


def _warn_of_strangers(plan: SharingPlan) -> None:
    """Warn of members that share next to nothing with the others."""
    company = plan.company() if len(plan.members) > 1 else {}
    for member, own in zip(plan.members, company.values()):
        if own.between < _HARDLY * member.num_parameters:
            _LOG.warning(
                "member %r shares %.1f %% of its parameters with other members, as its layers are of other kinds or "
                "kernels than theirs: choose members that are more alike, kernels='centre', or generator='ssn' with "
                "clusters='one'",
                member.name, 100 * own.between / member.num_parameters,
            )  # fmt: skip


def groups_minimum(members: Sequence[PlannedMember], groups: Sequence[TargetGroup], policy: BudgetPolicy) -> int:
    """The smallest budget, in trainable scalars, that :func:`plan_groups` can spend on these groups."""
    return policy.least(groups) + _counted_private(members, policy)


def _counted_private(members: Sequence[PlannedMember], policy: BudgetPolicy) -> int:
    return sum(member.num_private for member in members) if policy.count_all else 0


def tie_all(groups: Sequence[TargetGroup]) -> list[TargetGroup]:
    """The same groups, each with one coefficient vector a slot for all its targets."""
    return [replace(group, leaders=(0,) * len(group.targets)) for group in groups]


def resolve_budget(budget: float, independent: int) -> int:
    """A budget in trainable scalars, from an int, or a float as a fraction of what the members own apart.

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
    if 1000 < budget <= MOST_PARAMETERS and float(budget).is_integer():
        raise SuperWeightError(f"a number of parameters must be an int; got {budget!r}: write {int(budget)}")
    if budget >= 10:
        raise SuperWeightError(
            f"a float budget is a fraction of what the members own apart; got {budget!r}: "
            f"write {float(budget) / 100!r} for {budget:g} %, or an int for a number of parameters"
        )
    return math.floor(float(budget) * independent + 1e-9)


def check_plan_fits(plan: SharingPlan, members: Mapping[str, nn.Module]) -> None:
    """Refuse members that a plan was not made for; the error names the first difference."""
    if plan.member_names != tuple(members):
        raise SuperWeightError(
            f"the plan is for the members {', '.join(plan.member_names)}; given: {', '.join(members)}"
        )
    held = {name: dict(module.named_parameters(remove_duplicate=False)) for name, module in members.items()}
    for cluster in plan.clusters:
        for target, planned in zip(cluster.targets, cluster.shapes):
            parameters = held[target.member]
            for name in target.names:
                if name not in parameters:
                    raise SuperWeightError(f"the plan does not fit: member {target.member!r} has no parameter {name!r}")
                shape, count = tuple(parameters[name].shape), 1 if target.part is None else target.part[1]
                if shape != (count * planned[0], *planned[1:]):
                    raise SuperWeightError(
                        f"the plan does not fit: {target.member}.{name} is {shape}, planned "
                        + (f"{count} parts of {planned}" if count > 1 else f"{planned}")
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


def _check_classes(modules: Mapping[str, nn.Module]) -> None:
    """Refuse members that answer different numbers of classes, as far as their heads tell."""
    counts = {name: num_classes(module) for name, module in modules.items()}
    known = {name: count for name, count in counts.items() if count is not None}
    if len(set(known.values())) > 1:
        listed = ", ".join(f"{name}: {count}" for name, count in known.items())
        raise SuperWeightError(f"members must answer the same classes; their heads have {listed}")


def _check_shared(modules: Mapping[str, nn.Module], targets: Sequence[Target], options: _SharingOptions) -> None:
    """Refuse members if none has anything to share, warn if only some have nothing; both messages say why."""
    without = {name: module for name, module in modules.items() if not any(name == one.member for one in targets)}
    reasons = why_not_taken(without, include=options.include, exclude=options.exclude)
    said = [
        f"{tensors[0]} {f'and {len(tensors) - 1} more are' if len(tensors) > 1 else 'is'} {reason}"
        for reason, tensors in reasons.items()
    ]
    why = "; ".join(said) or "no weight has two or more dimensions"
    if not targets:
        raise SuperWeightError(f"no weight is left to share: {why}")
    if without:
        _LOG.warning("nothing of %s is shared: %s", ", ".join(map(repr, without)), why)


def _num_weights(groups: Sequence[TargetGroup]) -> Counter[str]:
    """Scalars in the targets of some groups, by member."""
    found: Counter[str] = Counter()
    for target in (target for group in groups for target in group.targets):
        found[target.member] += math.prod(target.shape)
    return found


def _below_minimum(
    budget: float, limit: int, members: Sequence[PlannedMember], minimum: int, private: int, policy: BudgetPolicy
) -> SuperWeightError:
    """Error for a budget below every plan of the groups, with a remedy."""
    if limit < private:
        remedy = (
            f"the members' own parameters (heads, norms, biases, layers left out) alone are {private:,}: raise the "
            "budget, or include more layers"
        )
    else:
        remedy = "raise it, share in fewer groups, or include more layers"
        if policy.generator == "superweight":
            remedy += ", or take generator 'ssn' or 'auto', which go below (but for a search that splits clusters)"
    given = f"{limit:,} parameters"
    if not isinstance(budget, numbers.Integral):
        given = f"{budget:g} ({given})"
    elif budget < 1000:  # looks like a percentage
        share = "1.0 for as many as the members own" if budget <= 10 else f"{int(budget) / 100!r} for {budget} %"
        remedy += f"; an int counts parameters: write {share}"
    return SuperWeightError(
        f"a budget of {given} is below the minimum of this sharing, {minimum:,} parameters "
        f"({minimum / sum(member.num_parameters for member in members):.3f} of the members apart): {remedy}"
    )


def _what_limits(plan: SharingPlan) -> tuple[str, str]:
    """What keeps a plan from spending its budget, and what would change that."""
    if plan.superweight_clusters:
        return f"{plan.cap} templates a slot", "raise cap"
    for bank in plan.ssn_groups.values():
        options = bank.options
        if options.templates:
            return f"{options.templates} templates of the size of the largest layer", "raise ssn: templates"
        if any(spec.num_windows == options.windows for spec in bank.window_specs):
            return f"{options.windows} windows a layer", "raise ssn: windows"
    if any(spec.is_enlarged for bank in plan.ssn_groups.values() for spec in bank.window_specs):
        return "up-sampling from fewer numbers", "take ssn: upsample 'wavg' or 'repeat', or larger groups,"
    return "layers that share with no other", "take larger groups"


def _warn_of_idle_options(plan: SharingPlan, options: _SharingOptions) -> None:
    """Warn of given options that no cluster of this plan reads, as ``auto`` chose the generators by its budget."""
    idle = ["ssn"] if options.ssn is not None and not plan.ssn_groups else []
    if not plan.superweight_clusters:
        idle += options.given_for_superweights
    if idle:
        _LOG.warning(
            "%s: not used, since at this budget generator 'auto' makes %s alone",
            ", ".join(idle),
            "SuperWeights" if plan.superweight_clusters else "flat banks",
        )
