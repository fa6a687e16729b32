"""anytime.json, which stands beside a saved ensemble: order, shape of an input, calibrated policy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, PlainValidator

from superweight_ensembles.anytime.policy import ExitPolicy
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.storage import (
    ONLY_FIELDS,
    Name,
    accessing,
    as_content,
    check_manifest,
    content_as,
    list_file,
    read_as,
    write_json,
)

ANYTIME_FILE = "anytime.json"
_MOST_NUMBERS = 2**26  # a damaged file must not fill the memory with one image
_DAMAGED = "save the predictor again"


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedPredictor:
    """What anytime.json holds; ``input_shape`` is None where inputs are no single tensor."""

    __pydantic_config__ = ONLY_FIELDS
    format: int = 1
    order: Annotated[tuple[Name, ...], Field(min_length=1)]
    input_shape: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1, max_length=8)] | None
    policy: Annotated[ExitPolicy, PlainValidator(ExitPolicy.from_dict)] | None

    def __post_init__(self) -> None:
        if math.prod(self.input_shape or ()) > _MOST_NUMBERS:
            raise SuperWeightError(
                f"input_shape must list sizes of at most {_MOST_NUMBERS:,} numbers in all; got {self.input_shape!r:.80}"
            )


def write_policy(folder: Path, order: Sequence[str], input_shape: Sequence[int], policy: ExitPolicy | None) -> None:
    """Write anytime.json into the folder of a saved ensemble, and into its manifest."""
    write_saved(folder, SavedPredictor(order=tuple(order), input_shape=tuple(input_shape) or None, policy=policy))
    list_file(folder, ANYTIME_FILE)


def write_saved(folder: Path, saved: SavedPredictor) -> None:
    content = as_content(saved)
    content_as(SavedPredictor, content, folder / ANYTIME_FILE, _DAMAGED)  # what could not be read again is not written
    write_json(folder / ANYTIME_FILE, content)


def read_saved(folder: Path) -> SavedPredictor:
    """The content of a folder's anytime.json; a file that is missing or damaged is refused."""
    path = folder / ANYTIME_FILE
    with accessing(path, "read"):
        if not path.is_file():
            raise SuperWeightError(
                f"{path} is missing: {folder} is no saved predictor (AnytimePredictor.save writes one)"
            )
    check_manifest(folder, [ANYTIME_FILE])
    return read_as(SavedPredictor, path, _DAMAGED)
