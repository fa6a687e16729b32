"""Joint training of all members: one loop with hooks, and checkpoints that resume it bit by bit.

:func:`train` builds a :class:`TrainState`; hooks add to the loss and act after steps and epochs.
Training in several processes is in :mod:`superweight_ensembles.training.distributed`.
"""

from superweight_ensembles.training.averaging import AveragedWeights
from superweight_ensembles.training.batches import Batches, augmentation_of, prepared_batch, training_loader
from superweight_ensembles.training.checkpoint import (
    CHECKPOINT_FOLDER,
    Checkpoints,
    best_epoch,
    check_same_data,
    load_checkpoint,
)
from superweight_ensembles.training.config import (
    RESUMABLE,
    SCHEDULES,
    TrainConfig,
    optimizer_names,
    tuned_config,
)
from superweight_ensembles.training.device import (
    build_fabric,
    compiled_calls,
    explain_oom,
    faster_channels_last,
    precision_of,
    uses_bfloat16,
)
from superweight_ensembles.training.distillation import (
    EACH_OTHER,
    PREFIXES,
    Distillation,
    FixedTeacher,
    Teacher,
    check_lessons,
)
from superweight_ensembles.training.hooks import Hook, Progress, TrainState, Validation
from superweight_ensembles.training.joint import Execution, JointLoss, Objective, OwnBatches, joint_backward
from superweight_ensembles.training.loop import TrainProgress, TrainResult, train
from superweight_ensembles.training.member_ranks import moment_owners
from superweight_ensembles.training.optim import build_optimizer, build_schedule, num_moments, parameter_groups
from superweight_ensembles.training.recomputation import recomputed_blocks, recomputing, repeated_blocks
from superweight_ensembles.training.step import TrainStep
from superweight_ensembles.training.tracking import (
    CSVLog,
    EarlyStopping,
    MLflowLog,
    ProgressBar,
    TensorBoardLog,
    WandbLog,
    describe_epoch,
    progress_columns,
)
from superweight_ensembles.training.widths import LearnedWidths

__all__ = [
    "CHECKPOINT_FOLDER",
    "EACH_OTHER",
    "PREFIXES",
    "RESUMABLE",
    "SCHEDULES",
    "AveragedWeights",
    "Batches",
    "CSVLog",
    "Checkpoints",
    "Distillation",
    "EarlyStopping",
    "Execution",
    "FixedTeacher",
    "Hook",
    "JointLoss",
    "LearnedWidths",
    "MLflowLog",
    "Objective",
    "OwnBatches",
    "Progress",
    "ProgressBar",
    "Teacher",
    "TensorBoardLog",
    "TrainConfig",
    "TrainProgress",
    "TrainResult",
    "TrainState",
    "TrainStep",
    "Validation",
    "WandbLog",
    "augmentation_of",
    "best_epoch",
    "build_fabric",
    "build_optimizer",
    "build_schedule",
    "check_lessons",
    "check_same_data",
    "compiled_calls",
    "describe_epoch",
    "explain_oom",
    "faster_channels_last",
    "joint_backward",
    "load_checkpoint",
    "moment_owners",
    "num_moments",
    "optimizer_names",
    "parameter_groups",
    "precision_of",
    "prepared_batch",
    "progress_columns",
    "recomputed_blocks",
    "recomputing",
    "repeated_blocks",
    "train",
    "training_loader",
    "tuned_config",
    "uses_bfloat16",
]
