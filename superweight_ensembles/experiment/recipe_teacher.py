"""What a recipe's ``teacher:`` names: the members' own mean, the independent arm, or a saved ensemble."""

from __future__ import annotations

from pathlib import Path

from superweight_ensembles.ensemble.ensemble import SuperWeightEnsemble
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.training.config import TrainConfig
from superweight_ensembles.training.distillation import OWN_MEAN, Teacher, check_own_mean

INDEPENDENT = "independent"


def check_teacher(teacher: str | None, training: TrainConfig, num_members: int, baseline: str) -> None:
    """Hold a recipe's teacher against what the recipe trains.

    Raises:
        SuperWeightError: A weight without a teacher or the other way round; ``independent`` without that baseline;
            ``ensemble`` of one member, or of members that see different batches.
    """
    if teacher is None:
        if training.distillation:
            raise SuperWeightError(
                f"training.distillation {training.distillation} needs teacher: {OWN_MEAN}, {INDEPENDENT}, or the "
                "folder of a saved ensemble"
            )
        return
    if not training.distillation:
        raise SuperWeightError(
            f"teacher {teacher!r:.80} does nothing with training.distillation 0: set its weight, or leave it out"
        )
    if teacher == OWN_MEAN:
        check_own_mean(num_members, training)
    if teacher == INDEPENDENT and baseline != INDEPENDENT:
        raise SuperWeightError(f"teacher {INDEPENDENT!r} is the baseline of that name: set baseline: {INDEPENDENT}")


def teacher_of(teacher: str | None, independent: Path | None) -> Teacher | None:
    """What :func:`train` takes as the shared arm's teacher.

    Args:
        teacher: Of the recipe.
        independent: Where the trained independent arm is saved, if that is the teacher.
    """
    if teacher is None:
        return None
    if teacher == OWN_MEAN:
        return OWN_MEAN
    return SuperWeightEnsemble.load(_saved(Path(teacher)) if independent is None else independent)


def check_saved_teacher(teacher: str | None) -> None:
    """Read a teacher that a recipe names by its folder, ahead of a training.

    Raises:
        SuperWeightError: No saved ensemble is there.
    """
    if teacher not in (None, OWN_MEAN, INDEPENDENT):
        teacher_of(teacher, None)


def _saved(folder: Path) -> Path:
    """The folder of a saved ensemble, given that or the arm of a run that it is of."""
    if not folder.is_dir():
        raise SuperWeightError(
            f"teacher: {folder} is no folder: give {OWN_MEAN}, {INDEPENDENT}, or the folder of a saved ensemble"
        )
    if (folder / "recipe.yaml").is_file():
        raise SuperWeightError(f"teacher: {folder} is a run: give one of its arms, such as {folder / 'shared'}")
    if not (folder.parent / "recipe.yaml").is_file():
        return folder
    if not (folder / "training.json").is_file():
        raise SuperWeightError(f"teacher: the arm {folder} is not trained to its end: train it with --resume first")
    return folder / "ensemble"
