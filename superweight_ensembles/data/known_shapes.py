"""What a data set's name and options tell of its images before anything is read."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from superweight_ensembles.data.registry import DATA_SETS

_SHAPES = {
    "digits": (1, 8, 8), "cifar10": (3, 32, 32), "cifar100": (3, 32, 32), "double_moon": (2, 1, 1),
    "spiral": (2, 1, 1), "spiral_hard": (2, 1, 1),
}  # fmt: skip
_NOT_FOR_TEST = {"digits": 899, "cifar10": 50_000, "cifar100": 50_000}


def image_shape_of(name: str, options: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """(C, H, W) of a data set's images; None where only its files tell.

    Args:
        name: A key of :data:`DATA_SETS`.
        options: As :func:`load_data` takes them.

    Example:
        >>> image_shape_of("image_folder", {"image_size": 224}), image_shape_of("cifar10", {"pool": 2})
        ((3, 224, 224), (3, 16, 16))
        >>> image_shape_of("image_folder", {}) is None
        True
    """
    options = _with_defaults(name, options)
    if name == "image_folder":
        size = options["image_size"]
        if not isinstance(size, int):
            return None
        shape = (3, size, size)
    elif name == "synthetic":
        shape = tuple(options["shape"])
    elif name in _SHAPES:
        shape = _SHAPES[name]
    else:
        return None
    channels, height, width = shape
    pool = options.get("pool", 1)
    return channels, height // pool, width // pool


def num_training_images(name: str, options: Mapping[str, Any]) -> int | None:
    """Training images of a data set, to within one a class; None where only its files tell."""
    limit = options.get("num_train")
    options = _with_defaults(name, options)
    if name == "synthetic":
        return round(options["num_train"] * (1 - options["validation_fraction"]))
    if "num_points" in options:
        not_for_test = round(options["num_points"] * 0.8)
    elif name in _NOT_FOR_TEST:
        not_for_test = _NOT_FOR_TEST[name]
    else:
        return None if limit is None else int(limit)
    found = round(not_for_test * (1 - options["validation_fraction"]))
    return found if limit is None else min(found, int(limit))


def _with_defaults(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    known = inspect.signature(DATA_SETS[name]).parameters if name in DATA_SETS else {}
    return {**{key: parameter.default for key, parameter in known.items()}, **options}
