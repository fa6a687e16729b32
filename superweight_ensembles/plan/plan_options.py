"""What :func:`plan_sharing` is told: options that contradict each other, or that nothing would read."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from torch import nn

from superweight_ensembles.errors import SuperWeightError, unknown_name
from superweight_ensembles.plan.allocation import ALLOCATION_ORDERS
from superweight_ensembles.plan.budget import percentage_hint, spelled
from superweight_ensembles.plan.clusters import ClusterRule
from superweight_ensembles.plan.generated_tensor import MOST_TEMPLATES
from superweight_ensembles.plan.generators import GENERATORS
from superweight_ensembles.plan.options import SsnOptions
from superweight_ensembles.plan.plan import PlannedMember, SharingPlan
from superweight_ensembles.plan.targets import num_classes

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
