"""Everything that a training writes: its checkpoints and its log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from superweight_ensembles.ensemble import SuperWeightEnsemble
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.training.checkpoint import Checkpoints, Progress, load_checkpoint
from superweight_ensembles.training.config import TrainConfig
from superweight_ensembles.training.log import RunLog

CHECKPOINT_FOLDER = "checkpoints"


class Records:
    """What stands in the folder of a training.

    Args:
        folder: That is there, and held by this process.
        settings: What a training is told besides its config; a run is resumed with the same.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self._settings = settings
        self._checkpoints = Checkpoints(folder / CHECKPOINT_FOLDER)
        self._checkpoints.clear_drafts()
        self._log: RunLog | None = None

    def load(
        self,
        ensemble: SuperWeightEnsemble,
        optimizer: torch.optim.Optimizer,
        schedule: LRScheduler,
        config: TrainConfig,
    ) -> tuple[Progress, Mapping[str, Tensor]] | None:
        """Go back to the newest checkpoint: its progress and random states; None where there is none."""
        newest = self._checkpoints.newest()
        if newest is None:
            return None
        progress, states = load_checkpoint(newest, ensemble, optimizer, schedule, config, self._settings)
        return progress, states[0]

    def open_log(self, history: Sequence[dict[str, Any]]) -> None:
        """Begin the log again at what is known."""
        try:
            self._log = RunLog(self.folder, list(history))
        except OSError as error:
            raise SuperWeightError(f"the log in {self.folder} cannot be written: {error}") from None

    def append(self, record: dict[str, Any]) -> None:
        """Log an epoch.

        Raises:
            SuperWeightError: It cannot be written; the checkpoint before it stays.
        """
        assert self._log is not None, "opened when the training began"
        try:
            self._log.append(record)
        except OSError as error:
            raise SuperWeightError(
                f"the log in {self.folder} cannot be written: {error}; the last checkpoint is whole: make room and "
                "resume"
            ) from None

    def save(
        self,
        ensemble: SuperWeightEnsemble,
        optimizer: torch.optim.Optimizer,
        schedule: LRScheduler,
        config: TrainConfig,
        progress: Progress,
        states: Sequence[Mapping[str, Tensor]],
    ) -> None:
        """Write a checkpoint."""
        self._checkpoints.save(ensemble, optimizer, schedule, config, self._settings, progress, states)

    def close(self) -> None:
        if self._log is not None:
            self._log.close()
