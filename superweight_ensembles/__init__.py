"""Ensembles of different PyTorch models inside one parameter budget.

``members -> plan_sharing -> SuperWeightEnsemble -> train -> evaluate``; the README has two commands that do it all.
"""

from superweight_ensembles.adoption import adopt_plan
from superweight_ensembles.anytime import AnytimePredictor, ExitPolicy
from superweight_ensembles.bank import SuperWeightBank
from superweight_ensembles.data import load_data
from superweight_ensembles.ensemble import SuperWeightEnsemble
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.evaluation import evaluate, member_costs
from superweight_ensembles.export import export_cascade, export_member
from superweight_ensembles.plan import SharingPlan
from superweight_ensembles.planning import independent_plan, plan_sharing
from superweight_ensembles.registry import build_member
from superweight_ensembles.search import Untying, search_clusters, untie_coefficients
from superweight_ensembles.targets import find_targets
from superweight_ensembles.training import TrainConfig, TrainResult, train
from superweight_ensembles.wide_resnet import wide_resnet

__all__ = [
    "AnytimePredictor",
    "ExitPolicy",
    "SharingPlan",
    "SuperWeightBank",
    "SuperWeightEnsemble",
    "SuperWeightError",
    "TrainConfig",
    "TrainResult",
    "Untying",
    "adopt_plan",
    "build_member",
    "evaluate",
    "export_cascade",
    "export_member",
    "find_targets",
    "independent_plan",
    "load_data",
    "member_costs",
    "plan_sharing",
    "search_clusters",
    "train",
    "untie_coefficients",
    "wide_resnet",
]
