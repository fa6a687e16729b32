"""From a recipe to a run folder: stages, results, tables, comparisons, estimates.

A recipe is a YAML file; everything that a run writes can be read again as the types that wrote it.
"""

from superweight_ensembles.experiment.arms import (
    Variant,
    build_arms,
    narrowed,
    narrower_recipe,
    parse_budgets,
    parse_variant,
)
from superweight_ensembles.experiment.compare import compare_arms, read_comparison, spread, summarise, with_seed
from superweight_ensembles.experiment.estimate import estimate_training
from superweight_ensembles.experiment.estimators import EstimatorMember, run_estimator_arm
from superweight_ensembles.experiment.recipe import Recipe, load_recipe, parse_recipe
from superweight_ensembles.experiment.results import (
    RUN_FORMAT,
    SEARCH_FORMAT,
    ArmResults,
    DatasetFacts,
    Epoch,
    Provenance,
    RunRecord,
    RunResults,
    SearchedCluster,
    SearchRecord,
    Training,
    WarmStartResult,
    WidthEpoch,
    check_content,
    naming_files,
)
from superweight_ensembles.experiment.run import (
    evaluate_run,
    export_run_cascade,
    export_run_member,
    read_results,
    read_run,
    read_search,
    train_run,
    trained_arm,
)
from superweight_ensembles.experiment.tables import (
    anytime_table,
    comparison_tables,
    estimate_lines,
    preview_lines,
    result_table,
)
from superweight_ensembles.experiment.uncertainty import UNCERTAINTY_ARMS, EstimatorNetwork, build_estimator_network

__all__ = [
    "RUN_FORMAT",
    "SEARCH_FORMAT",
    "UNCERTAINTY_ARMS",
    "ArmResults",
    "DatasetFacts",
    "Epoch",
    "EstimatorMember",
    "EstimatorNetwork",
    "Provenance",
    "Recipe",
    "RunRecord",
    "RunResults",
    "SearchRecord",
    "SearchedCluster",
    "Training",
    "Variant",
    "WarmStartResult",
    "WidthEpoch",
    "anytime_table",
    "build_arms",
    "build_estimator_network",
    "check_content",
    "compare_arms",
    "comparison_tables",
    "estimate_lines",
    "estimate_training",
    "evaluate_run",
    "export_run_cascade",
    "export_run_member",
    "load_recipe",
    "naming_files",
    "narrowed",
    "narrower_recipe",
    "parse_budgets",
    "parse_recipe",
    "parse_variant",
    "preview_lines",
    "read_comparison",
    "read_results",
    "read_run",
    "read_search",
    "result_table",
    "run_estimator_arm",
    "spread",
    "summarise",
    "train_run",
    "trained_arm",
    "with_seed",
]
