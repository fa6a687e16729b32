"""Who shares weights with whom, inside a budget: pure data, decided once.

``find_targets -> group_targets -> allocate_generators -> SharingPlan``. A plan is JSON, and everything that runs is
derived from it.
"""

from superweight_ensembles.plan.clusters import TargetGroup, check_num_groups, check_seed, depth_runs, group_targets
from superweight_ensembles.plan.generators import BudgetPolicy, SlotNeed, allocate, minimum_cost, proportional_shares
from superweight_ensembles.plan.planner import (
    PlanOptions,
    check_plan_fits,
    check_plan_options,
    count_parameters,
    groups_minimum,
    independent_plan,
    plan_groups,
    plan_sharing,
    resolve_budget,
    tie_all,
)
from superweight_ensembles.plan.sharing_plan import (
    Cluster,
    PlannedMember,
    PlannedSlot,
    PlannedTarget,
    SharingPlan,
    bank_words,
    window_words,
)
from superweight_ensembles.plan.slots import (
    Box,
    CoefficientForm,
    Placement,
    Shape,
    SlotBlocks,
    ordered_shapes,
    placements,
    slot_blocks,
)
from superweight_ensembles.plan.ssn import (
    SsnGroup,
    SsnOptions,
    WindowSpec,
    bank_within,
    group_cost,
    least_cost,
    window_specs,
)
from superweight_ensembles.plan.targets import (
    GeneratedTensor,
    Kernels,
    Members,
    Target,
    find_targets,
    head_layers,
    named_members,
)

__all__ = [
    "Box",
    "BudgetPolicy",
    "Cluster",
    "CoefficientForm",
    "GeneratedTensor",
    "Kernels",
    "Members",
    "Placement",
    "PlanOptions",
    "PlannedMember",
    "PlannedSlot",
    "PlannedTarget",
    "Shape",
    "SharingPlan",
    "SlotBlocks",
    "SlotNeed",
    "SsnGroup",
    "SsnOptions",
    "Target",
    "TargetGroup",
    "WindowSpec",
    "allocate",
    "bank_within",
    "bank_words",
    "check_num_groups",
    "check_plan_fits",
    "check_plan_options",
    "check_seed",
    "count_parameters",
    "depth_runs",
    "find_targets",
    "group_cost",
    "group_targets",
    "groups_minimum",
    "head_layers",
    "independent_plan",
    "least_cost",
    "minimum_cost",
    "named_members",
    "ordered_shapes",
    "placements",
    "plan_groups",
    "plan_sharing",
    "proportional_shares",
    "resolve_budget",
    "slot_blocks",
    "tie_all",
    "window_specs",
    "window_words",
]
