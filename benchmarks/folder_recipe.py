"""A recipe of CIFAR's archive, on a folder of images instead: for machines that cannot download it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from superweight_ensembles.experiment import Recipe, load_recipe
from superweight_ensembles.models import recall_architecture


def recipe_parser(description: str | None, jobs: str) -> argparse.ArgumentParser:
    """The options of a benchmark that trains a recipe with several seeds; ``jobs``: what runs in processes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--data-root", type=Path, help="a folder with train/CLASS/* and test/CLASS/*, for the recipe's")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help=f"{jobs} at a time, a process and a thread each")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    return parser


def folder_recipe(file: str | Path, overrides: Sequence[str], folder: Path | None) -> Recipe:
    """The recipe of a file, on the images of a folder with train/CLASS/* and test/CLASS/* where one is given."""
    if folder is None:
        return load_recipe(file, overrides)
    network = recall_architecture(next(iter(load_recipe(file, overrides).build_members().values())))
    assert network is not None, "a recipe's members are built by name"
    data = ("data.name=image_folder", f"data.folder={json.dumps(str(folder))}")
    return load_recipe(file, [*overrides, *data, f"data.num_classes={network.num_classes}"])


def told_recipe(recipe: Recipe, *left_out: str) -> dict[str, Any]:
    """A recipe's content for a results file, a folder of images by its name alone."""
    content = recipe.model_dump(mode="json", exclude=set(left_out), exclude_none=True)
    if "folder" in content["data"]:
        content["data"]["folder"] = Path(content["data"]["folder"]).name
    return content
