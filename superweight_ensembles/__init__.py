"""Ensembles of different PyTorch models inside one parameter budget.

``members -> plan_sharing -> SuperWeightEnsemble -> train -> evaluate``; the README has two commands that do it all.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from superweight_ensembles.anytime.costs import member_costs
    from superweight_ensembles.anytime.evaluation import evaluate
    from superweight_ensembles.anytime.policy import ExitPolicy
    from superweight_ensembles.anytime.predictor import AnytimePredictor
    from superweight_ensembles.data.datasets import load_data
    from superweight_ensembles.ensemble.adoption import adopt_plan
    from superweight_ensembles.ensemble.bank import SuperWeightBank
    from superweight_ensembles.ensemble.ensemble import SuperWeightEnsemble
    from superweight_ensembles.ensemble.warm_starting import WarmStart, warm_start
    from superweight_ensembles.errors import SuperWeightError
    from superweight_ensembles.export.cascade_files import export_cascade
    from superweight_ensembles.export.member import export_member
    from superweight_ensembles.models.adaptive.network import adaptive_mlp, make_adaptive
    from superweight_ensembles.models.adaptive.resizing import WidthLoss, adaptive_widths, freeze_widths, resize_widths
    from superweight_ensembles.models.adaptive.truncation import truncate, truncated_exits
    from superweight_ensembles.models.adaptive.width import AdaptiveWidth
    from superweight_ensembles.models.registry import build_member
    from superweight_ensembles.models.wideresnet import wide_resnet
    from superweight_ensembles.plan.planner import independent_plan, plan_sharing
    from superweight_ensembles.plan.sharing_plan import SharingPlan
    from superweight_ensembles.plan.ssn import SsnOptions
    from superweight_ensembles.plan.targets import find_targets
    from superweight_ensembles.search.gradient_clusters import search_clusters
    from superweight_ensembles.search.learned_groups import learn_groups
    from superweight_ensembles.search.untying import Untying, untie_coefficients
    from superweight_ensembles.training.config import TrainConfig
    from superweight_ensembles.training.loop import TrainResult, train
    from superweight_ensembles.training.signals import TrainingStopped

__all__ = [
    "AdaptiveWidth",
    "AnytimePredictor",
    "ExitPolicy",
    "SharingPlan",
    "SsnOptions",
    "SuperWeightBank",
    "SuperWeightEnsemble",
    "SuperWeightError",
    "TrainConfig",
    "TrainResult",
    "TrainingStopped",
    "Untying",
    "WarmStart",
    "WidthLoss",
    "adaptive_mlp",
    "adaptive_widths",
    "adopt_plan",
    "build_member",
    "evaluate",
    "export_cascade",
    "export_member",
    "find_targets",
    "freeze_widths",
    "independent_plan",
    "learn_groups",
    "load_data",
    "make_adaptive",
    "member_costs",
    "plan_sharing",
    "resize_widths",
    "search_clusters",
    "train",
    "truncate",
    "truncated_exits",
    "untie_coefficients",
    "warm_start",
    "wide_resnet",
]

# Imported when they are first asked for: PyTorch takes seconds, and `superweights --help` needs none of it.
_HOMES = {
    "AdaptiveWidth": "models.adaptive.width",
    "AnytimePredictor": "anytime.predictor",
    "ExitPolicy": "anytime.policy",
    "SharingPlan": "plan.sharing_plan",
    "SsnOptions": "plan.ssn",
    "SuperWeightBank": "ensemble.bank",
    "SuperWeightEnsemble": "ensemble.ensemble",
    "SuperWeightError": "errors",
    "TrainConfig": "training.config",
    "TrainResult": "training.loop",
    "TrainingStopped": "training.signals",
    "Untying": "search.untying",
    "WarmStart": "ensemble.warm_starting",
    "WidthLoss": "models.adaptive.resizing",
    "adaptive_mlp": "models.adaptive.network",
    "adaptive_widths": "models.adaptive.resizing",
    "adopt_plan": "ensemble.adoption",
    "build_member": "models.registry",
    "evaluate": "anytime.evaluation",
    "export_cascade": "export.cascade_files",
    "export_member": "export.member",
    "find_targets": "plan.targets",
    "freeze_widths": "models.adaptive.resizing",
    "independent_plan": "plan.planner",
    "learn_groups": "search.learned_groups",
    "load_data": "data.datasets",
    "make_adaptive": "models.adaptive.network",
    "member_costs": "anytime.costs",
    "plan_sharing": "plan.planner",
    "resize_widths": "models.adaptive.resizing",
    "search_clusters": "search.gradient_clusters",
    "train": "training.loop",
    "truncate": "models.adaptive.truncation",
    "truncated_exits": "models.adaptive.truncation",
    "untie_coefficients": "search.untying",
    "warm_start": "ensemble.warm_starting",
    "wide_resnet": "models.wideresnet",
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
