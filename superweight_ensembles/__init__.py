"""Ensembles of different PyTorch models inside one parameter budget.

``members -> plan_sharing -> SuperWeightEnsemble -> train -> evaluate``; see the README for two commands that do it all.
"""

from superweight_ensembles.bank import SuperWeightBank
from superweight_ensembles.ensemble import SuperWeightEnsemble
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.plan import SharingPlan
from superweight_ensembles.planning import independent_plan, plan_sharing
from superweight_ensembles.targets import find_targets
from superweight_ensembles.wide_resnet import wide_resnet

__all__ = [
    "SharingPlan",
    "SuperWeightBank",
    "SuperWeightEnsemble",
    "SuperWeightError",
    "find_targets",
    "independent_plan",
    "plan_sharing",
    "wide_resnet",
]
