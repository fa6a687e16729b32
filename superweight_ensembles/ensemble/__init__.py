"""The bank, the weights that it generates, and the ensemble of unmodified members that read them.

Also how an ensemble starts from trained members, moves to another plan, and is saved, loaded and shared.
"""

from superweight_ensembles.ensemble.bank import SuperWeightBank
from superweight_ensembles.ensemble.changing import reset_classifier, with_member, without_member
from superweight_ensembles.ensemble.ensemble import (
    SuperWeightEnsemble,
    adopt_plan,
    check_answers,
    first_parameter,
    own_copy,
    transform_of,
)
from superweight_ensembles.ensemble.generation import Begun, Weights, decompose, slot_key
from superweight_ensembles.ensemble.initialization import (
    Deviations,
    initial_values,
    orthogonal_templates,
    orthonormal_runs,
    own_deviations,
    user_deviations,
)
from superweight_ensembles.ensemble.saving import (
    check_ensemble_files,
    check_unchanged,
    read_ensemble_tensors,
    read_plan,
    rebuild_member,
    write_ensemble,
    write_ensemble_files,
)
from superweight_ensembles.ensemble.ssn_weights import compile_group, masks_key, tiles_key, vectors_by_key
from superweight_ensembles.ensemble.tasks import (
    CLASSIFICATION,
    TASKS,
    Select,
    Task,
    check_classes,
    num_classes_in,
    task_named,
)
from superweight_ensembles.ensemble.warm_starting import (
    WarmStart,
    best_affine_factors,
    best_factors,
    fit_rows,
    warm_start,
)

__all__ = [
    "CLASSIFICATION",
    "TASKS",
    "Begun",
    "Deviations",
    "Select",
    "SuperWeightBank",
    "SuperWeightEnsemble",
    "Task",
    "WarmStart",
    "Weights",
    "adopt_plan",
    "best_affine_factors",
    "best_factors",
    "check_answers",
    "check_classes",
    "check_ensemble_files",
    "check_unchanged",
    "compile_group",
    "decompose",
    "first_parameter",
    "fit_rows",
    "initial_values",
    "masks_key",
    "num_classes_in",
    "orthogonal_templates",
    "orthonormal_runs",
    "own_copy",
    "own_deviations",
    "read_ensemble_tensors",
    "read_plan",
    "rebuild_member",
    "reset_classifier",
    "slot_key",
    "task_named",
    "tiles_key",
    "transform_of",
    "user_deviations",
    "vectors_by_key",
    "warm_start",
    "with_member",
    "without_member",
    "write_ensemble",
    "write_ensemble_files",
]
