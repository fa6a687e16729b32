"""Hooks that are ready to use: early stopping, a progress bar, and logs."""

from __future__ import annotations

import csv
import io
import sys
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from rich.console import Console
from rich.errors import LiveError
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from superweight_ensembles.errors import SuperWeightError, check_number, names_options, unknown_name
from superweight_ensembles.storage import accessing, escape_controls, write_text
from superweight_ensembles.training.hooks import Hook, TrainState

_LOWER_IS_BETTER = ("nll", "mse")


def flat_numbers(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of an epoch's record by path, such as ``train_loss/a``; without the epoch itself.

    Example:
        >>> flat_numbers({"epoch": 1, "lr": 0.1, "train_loss": {"a": 2.0}, "validation": None})
        {'lr': 0.1, 'train_loss/a': 2.0}
    """
    found: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            found |= flat_numbers(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)) and key != "epoch":
            found[prefix + key] = float(value)
    return found


@names_options
class EarlyStopping(Hook):
    """Ends the training when the members' mean has not become better on validation rows for some epochs.

    Args:
        patience: Validated epochs without an improvement, at least 1, after which the training ends.
        score: Score that is watched, one of the task's (``accuracy``, ``nll``, ``mse``); its first where None.
        min_delta: Change of the score above which it counts as improved.

    Raises:
        SuperWeightError: A number out of range. When the training starts: no validation, or a score that the task does
            not have.

    Example:
        >>> import superweight_ensembles as swe
        >>> data = swe.load_data("synthetic", num_train=128)
        >>> ensemble = swe.SuperWeightEnsemble([swe.wide_resnet(10, 1, data.num_classes)], budget=1.0)
        >>> config = swe.TrainConfig(epochs=9, batch_size=len(data.train), learning_rate=1e-9)
        >>> stopping = swe.training.EarlyStopping(patience=2, min_delta=0.01)
        >>> swe.train(ensemble, data, config, hooks=[stopping]).stopped
        'accuracy is no better for 2 epochs'
    """

    def __init__(self, *, patience: int, score: str | None = None, min_delta: float = 0.0) -> None:
        check_number("patience", patience, whole=True, least=1)
        check_number("min_delta", min_delta, least=0)
        self.patience, self.score, self.min_delta = patience, score, float(min_delta)
        self._best: float | None = None
        self._waited = 0

    def settings(self) -> dict[str, Any]:
        return {"patience": self.patience, "score": self.score, "min_delta": self.min_delta}

    def start(self, state: TrainState) -> None:
        self._best, self._waited = None, 0
        if state.validation is None:
            raise SuperWeightError("early stopping needs validation: give validation=, or data with such a split")
        if self.score is not None and self.score not in state.ensemble.task.scores:
            raise unknown_name("score", self.score, state.ensemble.task.scores)

    def after_validation(self, state: TrainState, record: Mapping[str, Any]) -> None:
        if record["validation"] is None:
            return
        score = self.score or state.ensemble.task.scores[0]
        now = record["validation"]["ensemble"][score] * (-1 if score in _LOWER_IS_BETTER else 1)
        if self._best is None or now > self._best + self.min_delta:
            self._best, self._waited = now, 0
            return
        self._waited += 1
        if self._waited >= self.patience:
            epochs = "one epoch" if self._waited == 1 else f"{self._waited} epochs"
            state.stop(f"{score} is no better for {epochs}")

    def state_dict(self) -> Mapping[str, Any]:
        return {"best": self._best, "waited": self._waited}

    def load_state_dict(self, content: Mapping[str, Any]) -> None:
        best, waited = content["best"], content["waited"]
        self._best, self._waited = None if best is None else float(best), int(waited)


class ProgressBar(Hook):
    """A bar on the error stream, with the epoch's loss and validation.

    :func:`train` shows one by itself in terminals and notebooks.

    Args:
        console: A rich console; one on the error stream where None.
    """

    watches: ClassVar[bool] = True

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._bars: Progress | None = None
        self._task: TaskID | None = None

    @staticmethod
    def is_seen() -> bool:
        """Whether the error stream is a terminal or a notebook."""
        return sys.stderr is not None and (sys.stderr.isatty() or Console(stderr=True).is_jupyter)

    def start(self, state: TrainState) -> None:
        if state.processes.rank:
            return
        self._bars = Progress(*progress_columns(), console=self._console)
        self._task = self._bars.add_task("training", total=state.config.epochs * state.steps_per_epoch, state="")
        try:
            self._bars.start()
        except LiveError:  # the program shows a live display of its own
            self._bars = None

    def end(self, state: TrainState) -> None:
        if self._bars is not None:
            self._bars.stop()
        self._bars = None

    def after_step(self, state: TrainState, scalars: Sequence[float]) -> None:
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=state.step + 1)

    def after_validation(self, state: TrainState, record: Mapping[str, Any]) -> None:
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, state=describe_epoch(record))


def progress_columns() -> tuple[ProgressColumn, ...]:
    """Columns of the progress bar."""
    return (
        TextColumn("{task.description:<11}", markup=False),
        BarColumn(bar_width=16),
        TaskProgressColumn(),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        TextColumn("{task.fields[state]}", markup=False),
    )


def describe_epoch(record: Mapping[str, Any]) -> str:
    """An epoch in a few words.

    Example:
        >>> describe_epoch({"epoch": 2, "train_loss": {"a": 0.5, "b": 1.0}, "validation": {"ensemble": {"mse": 0.25}}})
        'epoch 2: loss 0.750, validation mse 0.25'
    """
    loss = sum(record["train_loss"].values()) / len(record["train_loss"])
    scores = record["validation"]["ensemble"] if record["validation"] else {}
    scored = f", validation {100 * scores['accuracy']:.1f} %" if "accuracy" in scores else ""
    scored = f", validation mse {scores['mse']:.4g}" if "mse" in scores else scored
    return escape_controls(f"epoch {record['epoch']}: loss {loss:.3f}{scored}")


class _Log(Hook):
    """Writes the numbers of each epoch somewhere, on the first of several processes only."""

    watches: ClassVar[bool] = True

    def start(self, state: TrainState) -> None:
        if not state.processes.rank:
            self.open(state)

    def after_validation(self, state: TrainState, record: Mapping[str, Any]) -> None:
        if not state.processes.rank:
            self.write(state, record)

    def end(self, state: TrainState) -> None:
        if not state.processes.rank:
            self.close()

    def open(self, state: TrainState) -> None:
        """Called before the first step."""

    @abstractmethod
    def write(self, state: TrainState, record: Mapping[str, Any]) -> None:
        """Write the record of one epoch."""

    def close(self) -> None:
        """Called after the training, also where it has failed."""


class CSVLog(_Log):
    """A CSV file with one line an epoch; a resumed training writes the lines of earlier epochs again.

    Args:
        path: The file; its folder is made.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = _path(path)

    def write(self, state: TrainState, record: Mapping[str, Any]) -> None:
        rows = [{"epoch": one["epoch"], **flat_numbers(one)} for one in (*state.progress.history, record)]
        table = io.StringIO()
        writer = csv.DictWriter(table, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        with accessing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, table.getvalue())


def summary_writer() -> Callable[..., Any] | None:
    """The class that writes TensorBoard's events; None where tensorboard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter  # slow to import
    except ImportError:
        return None
    return SummaryWriter


def write_scalars(writer: Any, record: Mapping[str, Any]) -> None:
    """An epoch's numbers as TensorBoard's scalars."""
    for name, value in flat_numbers(record).items():
        writer.add_scalar(name, value, record["epoch"])
    writer.flush()


class TensorBoardLog(_Log):
    """The numbers of each epoch as TensorBoard's scalars.

    ``train(out=...)`` writes them by itself where tensorboard is installed (``pip install tensorboard``).

    Args:
        folder: Folder of the events.

    Raises:
        SuperWeightError: When the training starts: tensorboard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = _path(folder)
        self._writer: Any = None

    def open(self, state: TrainState) -> None:
        make = summary_writer()
        if make is None:
            raise SuperWeightError(f"{self.name} needs tensorboard: pip install tensorboard")
        with accessing(self.folder):
            self._writer = make(str(self.folder))

    def write(self, state: TrainState, record: Mapping[str, Any]) -> None:
        write_scalars(self._writer, record)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class WandbLog(_Log):
    """The training's config and the numbers of each epoch as a run of Weights & Biases (``pip install wandb``).

    Args:
        **options: Options of ``wandb.init``, such as ``project`` and ``name``.

    Raises:
        SuperWeightError: When the training starts: wandb is not installed.
    """

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._run: Any = None

    def open(self, state: TrainState) -> None:
        self._run = _imported("wandb", self).init(**{"config": asdict(state.config), **self._options})

    def write(self, state: TrainState, record: Mapping[str, Any]) -> None:
        self._run.log(flat_numbers(record), step=record["epoch"])

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
        self._run = None


class MLflowLog(_Log):
    """The training's config and the numbers of each epoch as a run of MLflow (``pip install mlflow``).

    Args:
        **options: Options of ``mlflow.start_run``, such as ``run_name``.

    Raises:
        SuperWeightError: When the training starts: mlflow is not installed.
    """

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._mlflow: Any = None

    def open(self, state: TrainState) -> None:
        mlflow = _imported("mlflow", self)
        mlflow.start_run(**self._options)
        self._mlflow = mlflow  # from here on there is a run to end
        mlflow.log_params(asdict(state.config))

    def write(self, state: TrainState, record: Mapping[str, Any]) -> None:
        self._mlflow.log_metrics(flat_numbers(record), step=record["epoch"])

    def close(self) -> None:
        if self._mlflow is not None:
            self._mlflow.end_run()
        self._mlflow = None


def _path(given: str | Path) -> Path:
    if not isinstance(given, (str, Path)):
        raise SuperWeightError(f"a log is written to a path; got {given!r:.80}")
    return Path(given)


def _imported(name: str, hook: Hook) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SuperWeightError(f"{hook.name} needs {name}: pip install {name} ({error!s:.100})") from None
