"""A new recipe file: a few choices, each key under a comment with its description from the schema."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.experiment.recipe import Recipe, parse_recipe
from superweight_ensembles.experiment.recipe_schema import recipe_schema
from superweight_ensembles.experiment.run_folder import planned_run
from superweight_ensembles.storage import dump_yaml, schema_file, write_text

_WIDTH = 100


def write_new_recipe(path: Path, content: dict[str, Any], *, overwrite: bool = False) -> Recipe:
    """Write a recipe file with a comment on each key, if :func:`parse_recipe` and the plan take its content."""
    if path.exists() and not overwrite:
        raise SuperWeightError(f"{path} exists already: --overwrite replaces it")
    recipe = parse_recipe(content, where=str(path))
    if None not in recipe.classes_and_channels():  # else only the data's files show these
        planned_run(recipe)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        f"# yaml-language-server: $schema={schema_file().resolve().as_uri()}",
        f"# superweights plan {path} tells what it shares and costs; superweights schema has every other key.",
        "# anytime: {flops: 0.5} # measures early exit, and keeps a cascade for `superweights export --cascade`",
        *_commented(content, recipe_schema()),
    ]
    write_text(path, "\n".join(lines) + "\n")
    return recipe


def _commented(content: Mapping[str, Any], section: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    for key, value in content.items():
        known = section["properties"].get(key, {})
        yield from _comment(known, indent)
        inner = _section_of(known)
        if inner is None or not isinstance(value, (dict, list)):
            yield textwrap.indent(dump_yaml({key: value}), indent).rstrip()
            continue
        yield f"{indent}{key}:"
        if isinstance(value, dict):
            yield from _commented(value, inner, indent + "  ")
            continue
        for name in dict.fromkeys(name for one in value for name in one):
            yield from _comment(inner["properties"].get(name, {}), indent + "  ", f"{name}: ")
        yield textwrap.indent(dump_yaml(value), indent + "  ").rstrip()


def _comment(known: Mapping[str, Any], indent: str, start: str = "") -> list[str]:
    """Comment lines with what the schema says of a key, and its default."""
    if "description" not in known:
        return []
    default = known.get("default")
    text = start + known["description"] + (f" Default: {default}." if default not in (None, [], {}) else "")
    return textwrap.wrap(text, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}#   ")


def _section_of(known: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Schema of the section that a key holds, or holds a list of; None for another value."""
    for one in (known, known.get("items", {}), *known.get("anyOf", ())):
        if "$ref" in one:
            found: Mapping[str, Any] = recipe_schema()["$defs"][one["$ref"].rpartition("/")[2]]
            return found
    return None
