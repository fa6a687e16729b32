"""What results, searches, comparisons and files of benchmarks must hold before anything is drawn or told from them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from superweight_ensembles.errors import SuperWeightError, naming

_LOG = logging.getLogger(__name__)
_Name = Annotated[str, Field(max_length=500)]
_Count = Annotated[int, Field(ge=0, lt=2**53)]
_Number = Annotated[float, Field(ge=-1e30, le=1e30)]
_Amount = Annotated[float, Field(ge=0, le=1e30)]
_Positive = Annotated[float, Field(gt=0, le=1e30)]
_Share = Annotated[float, Field(ge=0, le=1)]
_Any = float  # finite or not: a training that diverged is a result too


class _Part(BaseModel):
    """Keys that nobody reads may be there; those that are read are of their type, without conversions."""

    model_config = ConfigDict(extra="allow", strict=True)


class _Accuracy(_Part):
    accuracy: _Share


class _Metrics(_Accuracy):
    nll: _Any
    ece: _Any
    brier: _Any


class _Entry(_Part):
    flops: _Amount
    metrics: _Metrics


class _Timed(_Entry):
    latency_ms: _Amount


class _Member(_Timed):
    name: _Name
    num_parameters: _Count


class _Subset(_Entry):
    members: list[_Name]


class _Bin(_Part):
    lower: _Share
    upper: _Share
    count: _Count
    confidence: _Share | None
    accuracy: _Share | None


class _Validation(_Part):
    ensemble: _Accuracy
    members: dict[_Name, _Accuracy]


class _Epoch(_Part):
    epoch: _Count
    train_loss: dict[_Name, _Any | None]
    validation: _Validation | None
    widths: dict[_Name, dict[_Name, _Positive]] | None = None


class _Widths(_Part):
    epoch: _Count
    widths: dict[_Name, dict[_Name, _Positive]]


class _Training(_Part):
    seconds: _Amount | None = None
    device: _Name | None = None


class _Point(_Accuracy):
    flops: _Positive
    latency_ms: _Positive


class _Curve(_Part):
    name: _Name
    area: _Any
    latency_area: _Any
    points: list[_Point] = Field(min_length=1, max_length=10_000)


class _Exit(_Accuracy):
    name: _Name
    flops: _Positive


class _Anytime(_Part):
    members: list[_Point] = Field(min_length=1, max_length=256)
    curves: list[_Curve] = Field(max_length=100)
    calibrated: _Point | None = None
    truncated: _Anytime | None = None
    exits: list[_Exit] | None = Field(default=None, max_length=4096)

    @model_validator(mode="after")
    def _both(self) -> _Anytime:
        if not {"stream", "cascade"} <= {curve.name for curve in self.curves}:
            raise ValueError("needs the curves stream and cascade")
        return self


class _WarmError(_Part):
    member: _Name
    parameter: str
    error: _Any


class _WarmStart(_Part):
    init_from: str
    mean_error: _Any
    errors: list[_WarmError] = Field(max_length=2**20)


class _TestedStart(_WarmStart):
    ensemble: _Accuracy


class _Arm(_Part):
    name: _Name
    num_parameters: _Count
    independent_parameters: _Count
    members: list[_Member] = Field(min_length=1, max_length=256)
    ensemble: _Timed
    subsets: list[_Subset] = Field(min_length=1, max_length=2**14)
    reliability: list[_Bin] = Field(min_length=1, max_length=1000)
    history: list[_Epoch] = Field(max_length=100_000)
    training: _Training | None = None
    anytime: _Anytime | None = None
    warm_start: _TestedStart | None = None


class _Dataset(_Part):
    name: _Name
    num_train: _Count
    num_validation: _Count
    num_test: _Count
    image_shape: list[_Count] = Field(max_length=8)


class _RunDataset(_Dataset):
    classes: list[str]


class _Provenance(_Part):
    packages: dict[_Name, Any] | None = None


class _Run(_Part):
    provenance: _Provenance | None = None


class _Results(_Run):
    name: _Name
    seed: _Count
    dataset: _RunDataset
    arms: list[_Arm] = Field(max_length=16)
    widths: list[_Widths] | None = Field(default=None, max_length=100_000)

    @model_validator(mode="after")
    def _same_members(self) -> _Results:
        if len({tuple(member.name for member in arm.members) for arm in self.arms}) > 1:
            raise ValueError("the members of its arms must have the same names")
        return self


class _Spread(_Part):
    mean: _Share
    std: _Amount | None


class _Summary(_Part):
    accuracy: _Spread


class _Seed(_Part):
    metrics: _Accuracy
    subsets: list[_Subset] | None = Field(default=None, max_length=2**14)


class _Compared(_Part):
    name: _Name
    label: _Name | None = None
    kind: _Name = ""
    num_parameters: _Positive
    flops: _Positive
    runs: list[_Seed] = Field(max_length=1000)
    summary: _Summary
    series: _Name | None = None
    group: _Name | None = None


class _Comparison(_Part):
    name: _Name
    arms: list[_Compared] = Field(max_length=500)


class _Searched(_Part):
    name: _Name
    targets: list[_Name] = Field(max_length=4096)
    anchors: _Count
    sets: list[_Count]
    leaders: list[_Count]
    similarity: list[list[_Number | None] | None]


class _Search(_Part):
    anchor: _Name = ""
    representatives: list[_Name] = []
    threshold: _Number | None = None
    threshold_given: _Number | None = None
    similarity: _Name = "gradient"
    clusters: list[_Searched] = Field(max_length=1000)


class _Series(_Part):
    measured: list[_Positive] = Field(min_length=1, max_length=1000)
    own: list[_Positive] = Field(default=[], max_length=1000)
    on_paper: list[_Positive] = Field(max_length=1000)
    slope: _Number | None


class _Sweep(_Part):
    name: _Name
    label: _Name
    values: list[_Positive] = Field(min_length=1, max_length=1000)
    series: dict[_Name, _Series]


class _Growth(_Part):
    sweeps: list[_Sweep] = Field(max_length=16)


class _NpasArm(_Part):
    name: _Name
    label: _Name


class _NpasCell(_Part):
    arm: _Name
    budget: _Positive | None
    seed: _Count
    status: Literal["done", "skipped", "failed"]
    accuracy: _Share | None = None

    @model_validator(mode="after")
    def _measured(self) -> _NpasCell:
        if self.status == "done" and self.accuracy is None:
            raise ValueError("a cell that is done needs its accuracy")
        return self


class _Npas(_Part):
    arms: list[_NpasArm] = Field(max_length=32)
    cells: list[_NpasCell] = Field(max_length=10_000)


class _WidthQuality(_Part):
    width: _Positive
    test: _Accuracy


class _LearnedWidth(_WidthQuality):
    rate: _Positive
    start: _Positive
    history: list[Annotated[list[_Positive], Field(min_length=2, max_length=2)]] = Field(
        min_length=1, max_length=10_000
    )  # (epoch, neurons)


class _LearnedWidthsCell(_Part):
    task: _Name
    seed: _Count
    learned: list[_LearnedWidth] = Field(min_length=1, max_length=32)
    fixed: list[_WidthQuality] = Field(min_length=1, max_length=100)


class _LearnedWidths(_Part):
    published_widths: dict[_Name, _Positive] = {}
    cells: list[_LearnedWidthsCell] = Field(max_length=1000)


class _Trained(_Part):
    history: list[_Epoch] = Field(max_length=100_000)


class _SeedArm(_Part):
    """What a comparison reads of one arm and seed."""

    num_parameters: _Count
    ensemble: _Entry
    members: list[_Member] = Field(min_length=1)
    diversity: _Any | None
    training: dict[str, Any]
    subsets: list[_Subset]


class _SeedResults(_Part):
    arms: list[_SeedArm] = Field(min_length=1)


_KINDS: dict[str, tuple[type[_Part], str]] = {
    "results": (_Results, "evaluate the run again"),
    "run": (_Run, "train the run again"),
    "training": (_Trained, "train the arm again"),
    "search": (_Search, "search again"),
    "warm start": (_WarmStart, "train the shared arm again"),
    "comparison": (_Comparison, "compare again"),
    "seed": (_SeedResults, "remove its folder and compare again with --resume"),
    "growth": (_Growth, "measure again"),
    "npas": (_Npas, "measure again"),
    "learned_widths": (_LearnedWidths, "measure again"),
}


def check_content(content: dict[str, Any], file: Path, kind: str) -> dict[str, Any]:
    """The content as it was read from a file, where it holds what is read of such a file.

    Args:
        content: Parsed JSON.
        file: It was read from.
        kind: ``results``, ``run``, ``training``, ``search``, ``warm start``, ``comparison``, ``seed``, ``growth``,
            ``npas`` or ``learned_widths``.

    Raises:
        SuperWeightError: Names the file and the key.
    """
    model, remedy = _KINDS[kind]
    if "format" in content and (type(content["format"]) is not int or content["format"] != 1):
        return content  # of another version: whatever reads it says so
    try:
        model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the top"
        said = str(first["msg"]).removeprefix("Value error, ")
        raise SuperWeightError(f"{file} is damaged ({where:.200}: {said}): {remedy}") from None
    return content


@contextmanager
def naming_files(*files: Path) -> Iterator[None]:
    """Numbers that have their types and cannot be drawn all the same are a matter of the files.

    Raises:
        SuperWeightError: Instead of what an impossible number raises in the middle of a drawing; names the files.
    """
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
