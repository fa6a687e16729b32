"""Data sets by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from superweight_ensembles.data.cifar import cifar10, cifar100
from superweight_ensembles.data.digits import digits
from superweight_ensembles.data.image_data import ImageData
from superweight_ensembles.data.image_folder import image_folder
from superweight_ensembles.data.synthetic import synthetic
from superweight_ensembles.errors import unknown_name

DATA_SETS: Mapping[str, Callable[..., ImageData]] = MappingProxyType(
    {
        "cifar10": cifar10,
        "cifar100": cifar100,
        "digits": digits,
        "image_folder": image_folder,
        "synthetic": synthetic,
    }
)


def load_data(name: str, **options: Any) -> ImageData:
    """Load a data set by name.

    Args:
        name: A key of :data:`DATA_SETS`.
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
            raise unknown_name(f"option of {name}", option, known)
    return DATA_SETS[name](**options)
