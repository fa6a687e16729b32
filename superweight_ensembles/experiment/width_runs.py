"""The stage of a run in which members learn their widths, apart from each other, before anything is shared.

RUN/widths/widths.json   the widths and rates that they ended with, and the widths of each epoch; written last
RUN/widths/log.jsonl     one record an epoch, with the widths; and TensorBoard's
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from superweight_ensembles.data.image_data import ImageData
from superweight_ensembles.ensemble.ensemble import SuperWeightEnsemble
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.experiment.recipe import Recipe
from superweight_ensembles.models.adaptive.resizing import adaptive_widths
from superweight_ensembles.models.adaptive.restoring import adopt_widths, drop_importance
from superweight_ensembles.plan.planning import independent_plan
from superweight_ensembles.storage.files import read_json, write_json
from superweight_ensembles.training.distributed.group import Processes
from superweight_ensembles.training.epochs import TrainProgress
from superweight_ensembles.training.loop import train
from superweight_ensembles.training.records import CHECKPOINT_FOLDER

WIDTHS_FOLDER = "widths"
_FILE = "widths.json"
_FORMAT = 1


def learned_members(
    recipe: Recipe,
    members: dict[str, nn.Module],
    data: ImageData,
    folder: Path,
    progress: Callable[[TrainProgress], None] | None,
    processes: Processes,
) -> dict[str, nn.Module]:
    """Members with the widths that they learn in this stage, or have learned before: with new start values; frozen,
    or plain where the recipe keeps no importance.

    Args:
        recipe: Of the run.
        members: As the recipe builds them.
        data: Trained on.
        folder: Of the run.
        progress: Called after every step.
        processes: Of the job.
    """
    assert recipe.learn_widths is not None, "there is such a stage"
    own = folder / WIDTHS_FOLDER
    if not processes.first((own / _FILE).is_file):
        ensemble = SuperWeightEnsemble(members, plan=independent_plan(members), rng=recipe.bank_generator())
        result = train(
            ensemble, data, recipe.width_training(), width_loss=recipe.width_loss, out=own, resume=True,
            callback=progress,
        )  # fmt: skip
        found = {
            name: {
                path: {"width": width.width, "rate": float(width.rate.detach())}
                for path, width in adaptive_widths(ensemble.members[name]).items()
            }
            for name in ensemble.member_names
        }
        history = [{"epoch": record["epoch"], "widths": record["widths"]} for record in result.history]
        processes.first(lambda: write_json(own / _FILE, {"format": _FORMAT, "members": found, "history": history}))
    processes.first(lambda: shutil.rmtree(own / CHECKPOINT_FOLDER, ignore_errors=True))
    learned = processes.first(lambda: read_widths(own / _FILE))
    fresh = recipe.build_members()
    for name, module in fresh.items():
        if adaptive_widths(module):
            adopt_widths(module, learned.get(name, {}), torch.Generator().manual_seed(recipe.seed))
            if not recipe.learn_widths.keep_importance:
                drop_importance(module)
    return fresh


def learned_widths(folder: Path) -> dict[str, Any]:
    """What results.json holds of the stage: ``widths``, epoch by epoch; nothing where there was none."""
    file = folder / WIDTHS_FOLDER / _FILE
    return {"widths": read_json(file)["history"]} if file.is_file() else {}


def read_widths(file: Path) -> dict[str, dict[str, tuple[int, float]]]:
    """Widths and rates by member and path.

    Raises:
        SuperWeightError: The file is damaged.
    """
    content: Any = read_json(file)
    try:
        if content["format"] != _FORMAT:
            raise SuperWeightError(f"{file} has format {content['format']!r:.40}; this version reads {_FORMAT}")
        return {
            member: {path: (int(one["width"]), float(one["rate"])) for path, one in widths.items()}
            for member, widths in content["members"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, SuperWeightError):
            raise
        raise SuperWeightError(f"{file} is damaged: {error!r:.200}") from None
