"""The JSON schema of a recipe: every key described, the file of it up to date, and bundled recipes valid."""

from __future__ import annotations

import json

import pytest
from command_line import superweights

from superweight_ensembles.experiment import recipe_schema
from superweight_ensembles.storage import bundled_recipes, read_yaml, schema_file


def test_every_key_has_a_description() -> None:
    schema = recipe_schema()
    sections = {"recipe": schema, **schema["$defs"]}
    for name, section in sections.items():
        assert section["description"], name
        for key, entry in section["properties"].items():
            assert len(entry.get("description", "").strip()) > 5, f"{name}.{key}"
            assert "``" not in entry["description"] and ":class:" not in entry["description"], f"{name}.{key}"


def test_keys_have_their_values_and_defaults() -> None:
    sections = recipe_schema()["$defs"]
    training, data = sections["TrainConfig"]["properties"], sections["DataRecipe"]["properties"]
    assert training["schedule"]["enum"][:2] == ["constant", "step"] and training["schedule"]["default"] == "cosine"
    assert training["precision"]["enum"] == ["auto", "float32", "bfloat16", "float16"]
    assert training["transforms"]["default"] == {}
    assert sections["SharingRecipe"]["properties"]["threshold"]["maximum"] == 1
    assert data["pool"]["default"] == 1 and "default" not in data["num_points"]  # which differ by data set


def test_the_schema_file_is_up_to_date(monkeypatch, capsys) -> None:
    assert superweights(monkeypatch, "schema") == 0
    assert capsys.readouterr().out == schema_file().read_text(), "superweights schema > recipes/recipe.schema.json"


def test_bundled_recipes_name_the_schema_and_fit_it() -> None:
    validator = pytest.importorskip("jsonschema").Draft202012Validator(json.loads(schema_file().read_text()))
    for path in bundled_recipes().values():
        assert path.read_text().startswith("# yaml-language-server: $schema=recipe.schema.json\n"), path
        assert not list(validator.iter_errors(read_yaml(path))), path
    wrong = {**read_yaml(bundled_recipes()["digits"]), "training": {"epoch": 3}}
    assert [error.validator for error in validator.iter_errors(wrong)] == ["additionalProperties"]
