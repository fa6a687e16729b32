"""Predictions at any compute budget, and what they cost and are worth.

Evaluation of members and subsets, FLOPs and latency, streams, deadlines, calibrated cascades, accuracy-compute curves.
"""

from superweight_ensembles.anytime.calibration import (
    MIN_SAMPLES,
    Calibration,
    exit_shares,
    fit_policy,
    order_greedily,
    overthinking,
    samples_per_member,
    simulate,
    thresholds_for,
)
from superweight_ensembles.anytime.cascade import AnytimeAnswer
from superweight_ensembles.anytime.costs import LatencyTable, MemberCost, count_flops, member_costs, now, timed_call
from superweight_ensembles.anytime.curves import (
    AnytimeResult,
    Curve,
    CurvePoint,
    ExitPoint,
    MemberPoint,
    log_area,
    measure_curves,
    order_exits,
)
from superweight_ensembles.anytime.evaluation import (
    EnsembleResult,
    Evaluation,
    MemberResult,
    Metrics,
    Predictions,
    ReliabilityBin,
    SubsetResult,
    diversity,
    evaluate,
    evaluate_predictions,
    predict,
    probability_metrics,
    reliability,
)
from superweight_ensembles.anytime.policy import (
    CONFIDENCES,
    ExitPolicy,
    confidence_of,
    exits_of,
    fit_temperature,
    replaced_exits,
    tempered,
)
from superweight_ensembles.anytime.predictor import AnytimePredictor, ExitStep
from superweight_ensembles.anytime.predictor_files import write_policy

__all__ = [
    "CONFIDENCES",
    "MIN_SAMPLES",
    "AnytimeAnswer",
    "AnytimePredictor",
    "AnytimeResult",
    "Calibration",
    "Curve",
    "CurvePoint",
    "EnsembleResult",
    "Evaluation",
    "ExitPoint",
    "ExitPolicy",
    "ExitStep",
    "LatencyTable",
    "MemberCost",
    "MemberPoint",
    "MemberResult",
    "Metrics",
    "Predictions",
    "ReliabilityBin",
    "SubsetResult",
    "confidence_of",
    "count_flops",
    "diversity",
    "evaluate",
    "evaluate_predictions",
    "exit_shares",
    "exits_of",
    "fit_policy",
    "fit_temperature",
    "log_area",
    "measure_curves",
    "member_costs",
    "now",
    "order_exits",
    "order_greedily",
    "overthinking",
    "predict",
    "probability_metrics",
    "reliability",
    "replaced_exits",
    "samples_per_member",
    "simulate",
    "tempered",
    "thresholds_for",
    "timed_call",
    "write_policy",
]
