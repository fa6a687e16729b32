"""Ensembles of different PyTorch models inside one parameter budget.

``members -> plan_sharing -> SuperWeightEnsemble -> train -> evaluate``; the README has two commands that do it all.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from superweight_ensembles.adaptive import (
        AdaptiveWidth,
        WidthLoss,
        adaptive_mlp,
        adaptive_widths,
        freeze_widths,
        make_adaptive,
        resize_widths,
        truncate,
        truncated_exits,
    )
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
    from superweight_ensembles.search import Untying, learn_groups, search_clusters, untie_coefficients
    from superweight_ensembles.ssn.options import SsnOptions
    from superweight_ensembles.targets import find_targets
    from superweight_ensembles.training import TrainConfig, TrainingStopped, TrainResult, train
    from superweight_ensembles.warm_starting import WarmStart, warm_start
    from superweight_ensembles.wide_residual_network import wide_resnet

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
    "AdaptiveWidth": "adaptive",
    "AnytimePredictor": "anytime",
    "ExitPolicy": "anytime",
    "SharingPlan": "plan",
    "SsnOptions": "ssn.options",
    "SuperWeightBank": "bank",
    "SuperWeightEnsemble": "ensemble",
    "SuperWeightError": "errors",
    "TrainConfig": "training",
    "TrainResult": "training",
    "TrainingStopped": "training",
    "Untying": "search",
    "WarmStart": "warm_starting",
    "WidthLoss": "adaptive",
    "adaptive_mlp": "adaptive",
    "adaptive_widths": "adaptive",
    "adopt_plan": "adoption",
    "build_member": "registry",
    "evaluate": "evaluation",
    "export_cascade": "export",
    "export_member": "export",
    "find_targets": "targets",
    "freeze_widths": "adaptive",
    "independent_plan": "planning",
    "learn_groups": "search",
    "load_data": "data",
    "make_adaptive": "adaptive",
    "member_costs": "evaluation",
    "plan_sharing": "planning",
    "resize_widths": "adaptive",
    "search_clusters": "search",
    "train": "training",
    "truncate": "adaptive",
    "truncated_exits": "adaptive",
    "untie_coefficients": "search",
    "warm_start": "warm_starting",
    "wide_resnet": "wide_residual_network",
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
