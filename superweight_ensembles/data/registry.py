"""Data sets by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from superweight_ensembles.data.cifar import cifar10, cifar100
from superweight_ensembles.data.digits import digits
from superweight_ensembles.data.image_data import ImageData
from superweight_ensembles.data.image_folder import image_folder
from superweight_ensembles.data.options import checked_integer
from superweight_ensembles.data.points import double_moon, spiral, spiral_hard
from superweight_ensembles.data.stratified import stratified_split
from superweight_ensembles.data.synthetic import synthetic
from superweight_ensembles.errors import SuperWeightError, unknown_name

DATA_SETS: Mapping[str, Callable[..., ImageData]] = MappingProxyType(
    {
        "cifar10": cifar10,
        "cifar100": cifar100,
        "digits": digits,
        "double_moon": double_moon,
        "image_folder": image_folder,
        "spiral": spiral,
        "spiral_hard": spiral_hard,
        "synthetic": synthetic,
    }
)


def load_data(name: str, *, num_train: int | None = None, **options: Any) -> ImageData:
    """Load a data set by name.

    Args:
        name: A key of :data:`DATA_SETS`.
        num_train: Keep so many of the training images, stratified and chosen by the seed, for experiments with little
            data; all where None. A set that is made up on the spot (``synthetic``) makes so many.
        **options: Those of its function; all take ``validation_fraction`` and ``seed``.

    Raises:
        SuperWeightError: No such data set or option, or an option that the data set refuses.

    Example:
        >>> data = load_data("synthetic", num_classes=3, validation_fraction=0.25)
        >>> data.classes, len(data.train), len(data.validation), len(data.test)
        (('pattern0', 'pattern1', 'pattern2'), 192, 64, 128)
    """
    if name not in DATA_SETS:
        raise unknown_name("data set", name, DATA_SETS)
    known = inspect.signature(DATA_SETS[name]).parameters
    for option in options:
        if option not in known:
            raise unknown_name(f"option of {name}", option, (*known, "num_train"))
    if "num_train" in known and num_train is not None:
        return DATA_SETS[name](num_train=num_train, **options)
    data = DATA_SETS[name](**options)
    if num_train is None:
        return data
    count, seed = checked_integer("num_train", num_train, 1), int(options.get("seed", 0))
    if count > len(data.train):
        raise SuperWeightError(f"num_train is {count}; {data.name} has {len(data.train)} training images")
    kept, _ = stratified_split(data.train.labels, 1 - count / len(data.train), seed)
    return replace(data, train=data.train.subset(kept))
