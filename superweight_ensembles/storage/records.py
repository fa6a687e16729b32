"""Frozen dataclasses as JSON: the type that a file is written from reads it, within the bounds that its fields state.

A field that defaults to None is a key that is left out. What is always written but missing in older files has its
default in the annotation alone: ``Annotated[int, Field(default=0)]``. Keys that a type does not have are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.storage.files import read_json

Name = Annotated[str, Field(max_length=500)]
Count = Annotated[int, Field(ge=0, lt=2**53)]
Amount = Annotated[float, Field(ge=0, le=1e30)]
Positive = Annotated[float, Field(gt=0, le=1e30)]
Share = Annotated[float, Field(ge=0, le=1)]
T = TypeVar("T")


def one_of(names: Sequence[str]) -> Any:
    """A field that lists names in the JSON schema; the code that takes the text refuses others, with the nearest."""
    return Field(json_schema_extra={"enum": list(names)})


_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)


def read_as(kind: type[T], file: Path, remedy: str) -> T:
    """Read a JSON file as the dataclass that it was written from; ``remedy`` is told with a damaged file."""
    return content_as(kind, read_json(file), file, remedy)


def content_as(kind: type[T], content: dict[str, Any], file: Path, remedy: str) -> T:
    """As :func:`read_as`, from content that was read already."""
    # A file must hold the default of a field ``format``, where there is one.
    version = next((field.default for field in fields(kind) if field.name == "format"), None)  # type: ignore[arg-type]
    held = content.get("format")
    if version is not None and (type(held) is not int or held != version):
        raise SuperWeightError(f'{file} must hold "format": {version}; got {held!r:.40}: {remedy}')
    try:
        record: T = _adapter(kind).validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        found = first_problem(error)
        raise SuperWeightError(
            f"{file} is damaged ({found.where or 'the top':.200}: {found.said}{found.got}): {remedy}"
        ) from None
    return record


class Problem(NamedTuple):
    """A value that a type refuses: its path, a sentence on it, pydantic's kind of the problem, and the value."""

    path: tuple[int | str, ...]
    said: str
    kind: str
    given: Any

    @property
    def where(self) -> str:
        return ".".join(map(str, self.path))

    @property
    def got(self) -> str:
        """The value that was given, as the end of a sentence; nothing where the sentence says it, or there is none."""
        told = self.kind in ("value_error", "missing", *UNKNOWN_KEY)
        return "" if told else f" (got {self.given!r:.200})"


UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")


def first_problem(error: ValidationError, tags: Collection[str] = (), before: Collection[str] = ()) -> Problem:
    """The first problem in an error of pydantic, for a message."""
    found = error.errors()
    first = next((one for one in found if one["type"] in before), found[0])
    # Tags are the names of a union's alternatives, and no keys.
    path = tuple(part for part in first["loc"] if part not in tags)
    said = str(first["msg"]).removeprefix("Value error, ")
    of_one_union = [one for one in found if one["loc"] and one["loc"][:-1] == first["loc"][:-1]]
    alternatives = {one["type"] for one in of_one_union if one["loc"][-1] in tags}
    if alternatives == {"int_type", "float_type"}:
        said = "must be a number"
    return Problem(path, said, first["type"], first["input"])


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
