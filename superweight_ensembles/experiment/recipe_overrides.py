"""``--set key.path=value``: one value of a recipe, changed before the recipe is checked."""

from __future__ import annotations

from typing import Any

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.storage.yaml_file import parse_yaml


def set_value(content: dict[str, Any], override: str, option: str = "--set") -> None:
    """Set one value in place: ``training.epochs=5``, ``members.0.width=4``."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise SuperWeightError(f"{option} {override!r}: write key.path=value, such as training.epochs=5")
    *path, last = key.split(".")
    spot: Any = content
    for part in path:
        if isinstance(spot, dict):
            spot = spot.setdefault(part, {})
        elif isinstance(spot, list) and part in map(str, range(len(spot))):
            spot = spot[int(part)]
        else:
            raise SuperWeightError(f"{option} {override!r}: the recipe has nothing at {part!r}")
    value = parse_yaml(text, f"{option} {override!r:.200}")
    if isinstance(spot, dict):
        spot[last] = value
    elif isinstance(spot, list) and last in map(str, range(len(spot))):
        spot[int(last)] = value
    else:
        raise SuperWeightError(f"{option} {override!r}: the recipe has nothing at {last!r}")
