"""The files of a run, one dataclass each, which writes the file and reads it.

RUN/run.json                :class:`RunRecord`
RUN/results.json            :class:`RunResults`
RUN/ARM/training.json       :class:`TrainedArm`
RUN/shared/warm_start.json  :class:`WarmStartRecord`
RUN/search/search.json      :class:`SearchRecord`
RUN/widths/widths.json      :class:`WidthRecord`
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from superweight_ensembles.anytime import TABLE_HEADINGS, AnytimeResult, Evaluation, Metrics, Shift
from superweight_ensembles.data import ImageData
from superweight_ensembles.errors import SuperWeightError, naming
from superweight_ensembles.storage import Amount, Count, Name, html_table
from superweight_ensembles.training import Validation

RUN_FORMAT = 1  # of run.json and results.json
WIDTHS_FORMAT = 1
_LOG = logging.getLogger(__name__)
_Noted = Annotated[str | None, Field(default=None)]
_Width = Annotated[int, Field(gt=0, lt=2**53)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Versions and hardware of what wrote a file: see :func:`superweight_ensembles.storage.provenance`."""

    time: _Noted
    python: _Noted
    packages: Annotated[dict[Name, Any] | None, Field(default=None)]
    cpu: _Noted
    cpu_capability: _Noted
    num_threads: Annotated[int | None, Field(default=None)]
    omp_wait_policy: _Noted
    gpu: _Noted
    commit: _Noted


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """Provenance of the start of a run."""

    format: int = RUN_FORMAT
    name: _Noted
    provenance: Provenance | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSizes:
    """A data set's name, number of images and their shape."""

    name: Name
    num_train: Count
    num_validation: Count
    num_test: Count
    image_shape: Annotated[tuple[Count, ...], Field(max_length=8)]


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetFacts(DataSizes):
    """The data of a run."""

    classes: tuple[str, ...]

    @classmethod
    def of(cls, data: ImageData) -> DatasetFacts:
        return cls(
            name=data.name,
            num_train=len(data.train),
            num_validation=len(data.validation),
            num_test=len(data.test),
            classes=tuple(data.classes),
            image_shape=tuple(data.image_shape),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """One record of a training's log."""

    epoch: Count  # from 1
    lr: float  # of its last step
    train_loss: dict[Name, float | None]  # mean over its steps, by member; NaN or infinite where a training diverged
    skipped_steps: Annotated[Count, Field(default=0)]  # left out because their loss was not finite
    validation: Validation | None  # None in an epoch that is not validated
    seconds: float  # of training and validation
    widths: dict[Name, dict[Name, _Width]] | None = None  # by member and path, where members learn some


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How an arm was trained: see :class:`superweight_ensembles.TrainResult`."""

    seconds: Amount
    precision: Name
    channels_last: bool
    device: Name
    best_epoch: Annotated[Count | None, Field(default=None)]
    micro_batches: Annotated[Count, Field(default=1)]
    stopped: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedArm(Training):
    """Record of an arm's training."""

    history: Annotated[tuple[Epoch, ...], Field(max_length=100_000)]


@dataclass(frozen=True, slots=True, kw_only=True)
class StartError:
    """Distance of one generated weight from the trained weight that it should equal at the start."""

    member: Name
    parameter: str
    error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmStartRecord:
    """The trained members that a shared arm started from, and the errors of that start."""

    init_from: str
    mean_error: float
    errors: Annotated[tuple[StartError, ...], Field(max_length=2**20)]


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedMetrics:
    """Metrics of one member."""

    name: Name
    metrics: Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmStartResult(WarmStartRecord):
    """A warm start, and the metrics of the arm on test images before any training of its own."""

    ensemble: Metrics
    members: tuple[NamedMetrics, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmResults(Evaluation):
    """Evaluation of one arm."""

    name: Name  # "shared" or "independent"
    num_parameters: Count  # trainable scalars of the ensemble
    independent_parameters: Count  # trainable scalars of its members apart
    budget: Count
    training: Training
    history: Annotated[tuple[Epoch, ...], Field(max_length=100_000)]
    anytime: AnytimeResult | None = None  # with an anytime section
    shift: Shift | None = None  # with an uncertainty section
    warm_start: WarmStartResult | None = None  # where the arm started from trained members


@dataclass(frozen=True, slots=True, kw_only=True)
class WidthEpoch:
    """Widths after an epoch, by member and path."""

    epoch: Count
    widths: dict[Name, dict[Name, _Width]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResults:
    """Results of evaluating a run.

    Attributes:
        format: Format of results.json.
        name: Name of the recipe.
        seed: Seed of the recipe.
        provenance: Versions and hardware of the evaluation.
        dataset: Data set of the evaluation.
        recipe: Content of the recipe.
        arms: Results of each arm, the shared one first; all have the same members.
        widths: Widths by epoch, where members learned theirs before anything was shared.
    """

    format: int = RUN_FORMAT
    name: Name
    seed: Count
    provenance: Provenance
    dataset: DatasetFacts
    recipe: dict[str, Any]
    arms: Annotated[tuple[ArmResults, ...], Field(max_length=16)]
    widths: Annotated[tuple[WidthEpoch, ...], Field(max_length=100_000)] | None = None

    def __post_init__(self) -> None:
        if len({tuple(member.name for member in arm.members) for arm in self.arms}) > 1:
            raise SuperWeightError("the members of its arms must have the same names")

    def arm(self, name: str) -> ArmResults | None:
        return next((arm for arm in self.arms if arm.name == name), None)

    def table_rows(self) -> list[tuple[str, ...]]:
        """Rows of a table: headings, then the arms of each member, then the arms of the ensemble."""
        rows: list[tuple[str, ...]] = [("", "", *TABLE_HEADINGS)]
        for members in zip(*(arm.members for arm in self.arms)):
            for arm, one in zip(self.arms, members):
                count = "in the bank" if arm.name == "shared" else f"{one.num_parameters:,}"
                rows.append((one.name, arm.name, *one.table_row(count)))
        return rows + [("ensemble", arm.name, *arm.ensemble.table_row(f"{arm.num_parameters:,}")) for arm in self.arms]

    def _repr_html_(self) -> str:
        return html_table(
            self.table_rows(), f"{self.name}: {self.dataset.num_test:,} test images of {self.dataset.name}"
        )

    def to_rows(self) -> list[dict[str, Any]]:
        """One row for each member, subset and ensemble of each arm: names, costs, and every metric."""
        rows: list[dict[str, Any]] = []
        for arm in self.arms:
            kinds = {1: "member", len(arm.members): "ensemble"}
            for subset in arm.subsets:
                size = len(subset.members)
                rows.append({
                    "run": self.name, "seed": self.seed, "arm": arm.name, "kind": kinds.get(size, "subset"),
                    "members": "+".join(subset.members), "num_members": size, "flops": subset.flops,
                    "latency_ms": subset.latency_ms, "ensemble_parameters": arm.num_parameters,
                    **asdict(subset.metrics),
                })  # fmt: skip
        return rows

    def to_pandas(self) -> Any:
        """The rows of :meth:`to_rows` as a ``pandas.DataFrame``.

        Raises:
            SuperWeightError: pandas is not installed.
        """
        try:
            pandas = importlib.import_module("pandas")
        except ImportError:
            raise SuperWeightError("to_pandas() needs pandas: pip install pandas; to_rows() needs none") from None
        return pandas.DataFrame(self.to_rows())


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedWidth:
    """Number of neurons of a layer, and the rate of the distribution that it comes from."""

    width: int
    rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WidthRecord:
    """The widths that members learned before anything was shared, by member and path, and those of each epoch."""

    format: int = WIDTHS_FORMAT
    members: dict[str, dict[str, LearnedWidth]]
    history: Annotated[tuple[WidthEpoch, ...], Field(max_length=100_000)]


def fields_of(record: Any, kind: Any = None) -> dict[str, Any]:
    """The fields of a record, or those that a type names, to make another record with."""
    return {field.name: getattr(record, field.name) for field in fields(kind or record)}


@contextmanager
def naming_files(*files: Path) -> Iterator[None]:
    """Report errors of drawing as damage of these files, whose numbers have the right types and still do not fit."""
    listed = ", ".join(map(str, files))
    try:
        with naming(*files):
            yield
    except SuperWeightError:
        raise
    except (KeyError, TypeError, IndexError, ValueError, AttributeError, ArithmeticError) as error:
        _LOG.info("what was raised:", exc_info=True)
        raise SuperWeightError(
            f"{listed} is damaged or does not fit its plan ({type(error).__name__}: {error!s:.200}): "
            "evaluate the run again; if that does not help it is a defect of this program, and superweights --verbose "
            "says where"
        ) from error
