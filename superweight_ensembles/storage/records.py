"""Frozen dataclasses as JSON: a file is read by the type that it was written from, within the bounds of its fields.

A field that is None by default is left out of the file while it is None. A field that is always written, but that older
files lack, has its default in the annotation alone: ``Annotated[int, Field(default=0)]``. Unknown keys are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field, GetCoreSchemaHandler, TypeAdapter, ValidationError

from superweight_ensembles.errors import SuperWeightError, first_problem
from superweight_ensembles.storage.files import read_json

Name = Annotated[str, Field(max_length=500)]
Count = Annotated[int, Field(ge=0, lt=2**53)]
Amount = Annotated[float, Field(ge=0, le=1e30)]
Positive = Annotated[float, Field(gt=0, le=1e30)]
Share = Annotated[float, Field(ge=0, le=1)]
T = TypeVar("T")


ONLY_FIELDS = ConfigDict(extra="forbid")  # for dataclasses that people write


def whole(least: int, most: int | None = None) -> Any:
    """A field for whole numbers within bounds; truth values, fractions and texts are refused."""
    return Field(strict=True, ge=least, le=most)


def real(**bounds: Any) -> Any:
    """A field for finite numbers within pydantic's bounds (``gt``, ``ge``, ``lt``, ``le``)."""
    return Field(strict=True, allow_inf_nan=False, **bounds)


class one_of:
    """A text field that takes only these names; type checkers see a ``str``, so a variable may be given."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = list(names)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        return handler.generate_schema(Literal[tuple(self._names)])


# made once a type: that takes longer than to read most files
adapter_of: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)


def read_as(kind: type[T], file: Path, remedy: str) -> T:
    """Read a JSON file as the dataclass that it was written from; ``remedy`` ends the error of a damaged file."""
    return content_as(kind, read_json(file), file, remedy)


def content_as(kind: type[T], content: dict[str, Any], file: Path, remedy: str) -> T:
    """As :func:`read_as`, from content that was read already."""
    # Where the type has a field ``format``, the file must hold its default.
    version = next((field.default for field in fields(kind) if field.name == "format"), None)  # type: ignore[arg-type]
    held = content.get("format")
    if version is not None and (type(held) is not int or held != version):
        raise SuperWeightError(f'{file} must hold "format": {version}; got {held!r:.40}: {remedy}')
    try:
        record: T = adapter_of(kind).validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        raise SuperWeightError(f"{file} is damaged ({first_problem(error)!s:.400}): {remedy}") from None
    return record


def as_content(record: Any) -> Any:
    """A record as plain data, as JSON holds it."""
    if is_dataclass(record):
        if hasattr(record, "to_dict"):
            return record.to_dict()
        found = {field: getattr(record, field.name) for field in fields(record)}
        return {
            field.name: as_content(value)
            for field, value in found.items()
            if not (value is None and field.default is None)
        }
    if isinstance(record, Mapping):
        return {key: as_content(value) for key, value in record.items()}
    return [as_content(value) for value in record] if isinstance(record, (list, tuple)) else record
