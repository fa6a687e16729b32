"""Recipes by name: those that the library carries, beside its modules or, in a checkout, beside the package."""

from __future__ import annotations

import difflib
from pathlib import Path

from superweight_ensembles.errors import SuperWeightError

_PACKAGE = Path(__file__).parent


def carried_recipes() -> dict[str, Path]:
    """The files of the carried recipes by their names.

    Example:
        >>> carried_recipes()["digits"].name
        'digits.yaml'
    """
    installed, checkout = _PACKAGE / "recipes", _PACKAGE.parent / "recipes"
    folder = installed if installed.is_dir() else checkout
    return {path.stem: path for path in sorted(folder.glob("*.yaml"), key=lambda path: path.stem)}


def recipe_path(given: str | Path) -> Path:
    """The file that is meant: the one given, or of a name that is no file, the carried recipe of that name."""
    path = Path(given)
    carried = carried_recipes().get(str(path))
    return path if carried is None or path.is_file() else carried


def no_recipe(path: Path) -> SuperWeightError:
    """An error for a file that is not there: the nearest one beside it or carried, and where the carried ones are."""
    carried = carried_recipes()
    beside = sorted(path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
    known = {name: name for name in carried} | {other.stem: str(other) for other in beside}
    near = difflib.get_close_matches(path.stem, known, n=1)
    hint = f"; did you mean {known[near[0]]}?" if near else ""
    folder = next((file.parent for file in carried.values()), None)
    listed = f" By name there are {', '.join(carried)}, in {folder}" if folder else ""
    return SuperWeightError(f"no recipe file {path}{hint or '.'}{listed}")
