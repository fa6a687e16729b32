"""Everything that a training writes: its checkpoints and its log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import Tensor

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.storage.lock import locked_folder
from superweight_ensembles.training.checkpoint import Checkpoints, Progress, Subject, load_checkpoint
from superweight_ensembles.training.distributed.group import Processes
from superweight_ensembles.training.log import RunLog

CHECKPOINT_FOLDER = "checkpoints"


class Records:
    """What stands in the folder of a training.

    Of several processes the first writes, and all hear whether it could.

    Args:
        folder: Made here, and held until :meth:`close`.
        subject: What the checkpoints are of.
        processes: Of the job.

    Raises:
        SuperWeightError: Another job is at work in the folder, or it cannot be made.
    """

    def __init__(self, folder: Path, subject: Subject, processes: Processes) -> None:
        self.folder = folder
        self._subject = subject
        self._processes = processes
        self._checkpoints = Checkpoints(folder / CHECKPOINT_FOLDER)
        self._log: RunLog | None = None
        self._ending = ExitStack()
        processes.first(self._hold)

    def _hold(self) -> None:
        self._ending.enter_context(locked_folder(self.folder))
        self._checkpoints.clear_drafts()

    def load(self) -> tuple[Progress, Mapping[str, Tensor]] | None:
        """Go back to the newest checkpoint: its progress and the random states of this process.

        None where there is no checkpoint; no states where it was made by another number of processes.
        """
        newest = self._processes.first(lambda: getattr(self._checkpoints.newest(), "name", None))
        if newest is None:
            return None
        progress, states = load_checkpoint(self._checkpoints.folder / newest, self._subject)
        return progress, states[self._processes.rank] if len(states) == self._processes.size else {}

    def open_log(self, history: Sequence[dict[str, Any]]) -> None:
        """Begin the log again at what is known."""
        self._processes.first(lambda: self._open_log(history))

    def _open_log(self, history: Sequence[dict[str, Any]]) -> None:
        try:
            self._log = RunLog(self.folder, list(history))
        except OSError as error:
            raise SuperWeightError(f"the log in {self.folder} cannot be written: {error}") from None

    def append(self, record: dict[str, Any]) -> None:
        """Log an epoch.

        Raises:
            SuperWeightError: It cannot be written; the checkpoint before it stays.
        """
        self._processes.first(lambda: self._append(record))

    def _append(self, record: dict[str, Any]) -> None:
        assert self._log is not None, "opened when the training began"
        try:
            self._log.append(record)
        except OSError as error:
            raise SuperWeightError(
                f"the log in {self.folder} cannot be written: {error}; the last checkpoint is whole: make room and "
                "resume"
            ) from None

    def save(self, progress: Progress, states: Mapping[str, Tensor]) -> None:
        """Write a checkpoint, with the random states of every process."""
        device = next(self._subject.ensemble.parameters()).device
        by_name = {name: self._processes.gathered(state.to(device)).cpu() for name, state in states.items()}
        every = [{name: rows[rank] for name, rows in by_name.items()} for rank in range(self._processes.size)]
        self._processes.first(lambda: self._checkpoints.save(self._subject, progress, every))

    def close(self) -> None:
        if self._log is not None:
            self._log.close()
        self._ending.close()
