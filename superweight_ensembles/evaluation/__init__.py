"""Quality and cost of members, ensemble and subsets."""

from superweight_ensembles.evaluation.costs import MemberCost, member_costs
from superweight_ensembles.evaluation.evaluate import Evaluation, SubsetResult, evaluate, predict
from superweight_ensembles.evaluation.metrics import Metrics, probability_metrics

__all__ = [
    "Evaluation",
    "MemberCost",
    "Metrics",
    "SubsetResult",
    "evaluate",
    "member_costs",
    "predict",
    "probability_metrics",
]
