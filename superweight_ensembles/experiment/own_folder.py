"""Folders that a command makes, goes on in, or replaces: never anybody else's."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.experiment.recipe import Recipe, load_recipe
from superweight_ensembles.storage.files import is_draft
from superweight_ensembles.storage.lock import LOCK_FILE
from superweight_ensembles.training.config import RESUMABLE, TrainConfig


def check_own_folder(
    folder: Path,
    recipe: Recipe,
    *,
    kind: str,
    marks: Sequence[str],
    contents: Callable[[], Collection[str]],
    resume: bool,
    overwrite: bool,
) -> None:
    """Refuse a folder that must not be written to.

    Args:
        folder: That a command is about to make.
        recipe: That the command was given.
        kind: What the folder would be, for messages: ``run``, ``comparison``.
        marks: Files by which such a folder is known, in the order in which they are written.
        contents: Gives every name that such a folder holds.
        resume: Go on in a folder that the same recipe began.
        overwrite: Replace a folder that is there.

    Raises:
        SuperWeightError: It is there and neither option says what to do, or both are given; it is another kind of
            folder, holds something else as well, or was begun with another recipe.
    """
    if resume and overwrite:
        raise SuperWeightError("--resume goes on and --overwrite begins anew: use one of them")
    if not folder.exists():
        return
    # A process that was killed as it began may have left its lock, and files that it had not finished.
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
    names = {name for name in there if not is_draft(name) and name != LOCK_FILE}
    if there and not names:
        return
    if not (resume or overwrite):
        raise SuperWeightError(
            f"{folder} exists already: --resume goes on, --overwrite begins anew, --out names another"
        )
    just_begun = resume and names == {marks[0]}
    if not set(marks) <= names and not just_begun:
        raise SuperWeightError(f"{folder} exists and is no {kind} folder: --out names another")
    if overwrite:
        foreign = names - set(contents())
        if foreign:
            raise SuperWeightError(f"{folder} also holds {min(foreign)}, which is no part of a {kind}: move it away")
    elif _what_counts(load_recipe(folder / "recipe.yaml")) != _what_counts(recipe):
        raise SuperWeightError(
            f"{folder} was begun with another recipe or other overrides: resume with the same, but for training."
            f"{', '.join(RESUMABLE)}"
        )


def _what_counts(recipe: Recipe) -> Recipe:
    """A recipe without what may differ from one part of a run to the next."""
    defaults = asdict(TrainConfig())
    training = replace(recipe.training, **{key: defaults[key] for key in RESUMABLE})
    changes = recipe.fine_tuning
    tuned = None if changes is None else {key: value for key, value in changes.items() if key not in RESUMABLE}
    return recipe.model_copy(update={"training": training, "fine_tuning": tuned})
