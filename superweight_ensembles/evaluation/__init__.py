"""Quality and cost of members, ensemble and subsets."""

from superweight_ensembles.evaluation.costs import MemberCost, member_costs
from superweight_ensembles.evaluation.evaluate import Evaluation, SubsetResult, evaluate, evaluate_predictions, predict
from superweight_ensembles.evaluation.metrics import Metrics, probability_metrics
from superweight_ensembles.evaluation.predictions import Predictions, predict_all

__all__ = [
    "Evaluation",
    "MemberCost",
    "Metrics",
    "Predictions",
    "SubsetResult",
    "evaluate",
    "evaluate_predictions",
    "member_costs",
    "predict",
    "predict_all",
    "probability_metrics",
]
