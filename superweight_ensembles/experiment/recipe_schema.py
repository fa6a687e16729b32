"""The JSON schema of a recipe, for editors and documentation: names, defaults, and what the docstrings say of each key.

A description is written once, in the ``Attributes:`` or ``Args:`` of the class or function that takes the key.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any, get_type_hints

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from superweight_ensembles.data import DATA_SETS, load_data
from superweight_ensembles.experiment.recipe import Recipe
from superweight_ensembles.experiment.recipe_sections import AdaptiveRecipe
from superweight_ensembles.models import wide_resnet
from superweight_ensembles.models.adaptive import make_adaptive, multilayer_perceptron

if TYPE_CHECKING:
    from pydantic_core import core_schema

_MODELS: dict[str, Callable[..., Any]] = {"wide_resnet": wide_resnet, "mlp": multilayer_perceptron}
_GIVEN = ("name", "num_classes", "in_channels")  # arguments of networks and data sets that other keys give
_ENTRY = re.compile(r"^ {4}(\w+): (.*(?:\n {6,}.*)*)", re.MULTILINE)
_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
_ANYTHING = ("additionalProperties", True)  # the default, which some versions of pydantic write
_ROLE = re.compile(r":\w+:`~?(?:[\w.]+\.)?(\w+)`")


@functools.cache
def recipe_schema() -> dict[str, Any]:
    """Make the JSON schema of a recipe, in which every key has a description.

    Example:
        >>> schema = recipe_schema()
        >>> schema["$defs"]["TrainConfig"]["properties"]["epochs"]["description"]
        'Passes over the training data.'
    """
    schema = _standard(Recipe.model_json_schema(schema_generator=_Described))
    sections, tuned = schema["$defs"], schema["properties"]["fine_tuning"]
    tuned["anyOf"][0] = {"$ref": "#/$defs/TrainConfig"}
    loaders = {name: data.load for name, data in DATA_SETS.items()}
    for section, key, names, options in (
        ("DataRecipe", "name", loaders, {**_options(loaders), **_options({"every data set": load_data})}),
        ("MemberRecipe", "model", _MODELS, _options(_MODELS)),
    ):
        found = sections[section]["properties"]
        found[key]["anyOf"] = [{"enum": list(names)}, {"type": found[key].pop("type")}]  # names of entry points, too
        found.update({name: option for name, option in options.items() if name not in found})
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _standard(node: Any) -> Any:
    """A schema with JSON schema's names for bounds where pydantic leaves its own."""
    if isinstance(node, list):
        return [_standard(one) for one in node]
    if not isinstance(node, dict):
        return node
    if node.get("anyOf") == [{"type": "integer"}, {"type": "number"}]:
        node = {"type": "number", **{key: value for key, value in node.items() if key != "anyOf"}}
    return {_BOUNDS.get(key, key): _standard(value) for key, value in node.items() if (key, value) != _ANYTHING}


class _Described(GenerateJsonSchema):
    """Pydantic's schema, with descriptions from docstrings, and with defaults that a field makes."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False  # a title only repeats the key

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        return _explained(super().model_schema(schema), schema["cls"])

    def dataclass_schema(self, schema: core_schema.DataclassSchema) -> JsonSchemaValue:
        found = _explained(super().dataclass_schema(schema), schema["cls"])
        for field in fields(schema["cls"]):
            if field.default_factory is not MISSING:
                found["properties"][field.name]["default"] = field.default_factory()
        return found


def _explained(schema: JsonSchemaValue, kind: type) -> JsonSchemaValue:
    texts = {**(described(make_adaptive) if kind is AdaptiveRecipe else {}), **described(kind)}
    for name, entry in schema["properties"].items():
        entry["description"] = texts[name]
    return {**schema, "description": _plain((inspect.getdoc(kind) or "").partition("\n\n")[0])}


def _options(makers: Mapping[str, Callable[..., Any]]) -> dict[str, Any]:
    """Schemas of the options of some functions; a description that differs between them is given with their names."""
    found: dict[str, Any] = {}
    texts: dict[str, dict[str, list[str]]] = {}
    defaults: dict[str, list[Any]] = {}
    for name, make in makers.items():
        plain = make.func if isinstance(make, functools.partial) else inspect.unwrap(make)
        hints, said = get_type_hints(plain), described(plain)
        for option, parameter in inspect.signature(make).parameters.items():
            if option in _GIVEN or parameter.kind is parameter.VAR_KEYWORD:
                continue
            found.setdefault(option, TypeAdapter(hints[option]).json_schema())
            defaults.setdefault(option, []).append(parameter.default)
            texts.setdefault(option, {}).setdefault(said[option], []).append(name)
    for option, of in texts.items():
        found[option]["description"] = " ".join(f"Of {', '.join(names)}: {text}" for text, names in of.items())
        if all(one == defaults[option][0] is not inspect.Parameter.empty for one in defaults[option]):
            found[option]["default"] = json.loads(json.dumps(defaults[option][0]))
    return found


def described(what: Any) -> dict[str, str]:
    """Descriptions of the attributes of a class, or arguments of a function, by name, from its docstring.

    Example:
        >>> described(wide_resnet)["num_classes"]
        'K.'
    """
    text = inspect.getdoc(what) or ""
    section = re.search(r"^(?:Attributes|Args):\n((?: {4}.*\n?|\n)+)", text, re.MULTILINE)
    return {} if section is None else {name: _plain(said) for name, said in _ENTRY.findall(section[1])}


def _plain(text: str) -> str:
    """A text without line breaks and the marks of Sphinx."""
    return " ".join(_ROLE.sub(r"`\1`", text).replace("``", "`").split())
