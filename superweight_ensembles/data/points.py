"""Points of the plane in two classes, more or less entangled: how many hidden neurons do they need?

Points are images of one pixel: float32 (N, 2, 1, 1).

Source: Errica et al., Adaptive Width Neural Networks, arXiv 2501.15889, section 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from superweight_ensembles.data.image_data import ImageData
from superweight_ensembles.data.options import checked_fraction, checked_integer, checked_seed
from superweight_ensembles.data.splits import MemorySplit, split_off_validation
from superweight_ensembles.data.stratified import stratified_split
from superweight_ensembles.storage.machine_memory import check_parameters_fit

_NOISE = 0.3
_TEST_FRACTION = 0.2


def double_moon(*, num_points: int = 5000, validation_fraction: float = 0.1, seed: int = 0) -> ImageData:
    """Two half circles of radius 10, one above the other.

    A fifth of the points is the test split, ``validation_fraction`` of the others the validation split, stratified.

    Args:
        num_points: Of both classes together.
        validation_fraction: Of the points that are not for test.
        seed: Of the points and the splits.

    Raises:
        SuperWeightError: An option out of range.

    Source: Errica et al., arXiv 2501.15889.
    """

    def draw(count: int, random: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
        halves = []
        for _ in range(2):
            angle = math.pi * random.uniform(size=count)
            halves.append((10 * np.cos(angle), 10 * np.sin(angle), _NOISE * random.normal(size=(2, count))))
        (x, y, noise), (other_x, other_y, other) = halves
        above = np.stack([x - 5 + noise[0], y + noise[1]], 1)
        below = np.stack([5 - other_x - other[0], 5 - other_y - other[1]], 1)
        return above, below

    return _points("double_moon", draw, num_points, validation_fraction, seed)


def spiral(*, num_points: int = 5000, validation_fraction: float = 0.1, seed: int = 0) -> ImageData:
    """Two arms that wind around each other twice.

    Args:
        num_points: Of both classes together.
        validation_fraction: Of the points that are not for test.
        seed: Of the points and the splits.

    Raises:
        SuperWeightError: An option out of range.

    Source: Errica et al., arXiv 2501.15889.
    """
    return _points("spiral", _arms(1.0), num_points, validation_fraction, seed)


def spiral_hard(*, num_points: int = 10_000, validation_fraction: float = 0.1, seed: int = 0) -> ImageData:
    """Two arms that wind around each other four times.

    Args:
        num_points: Of both classes together.
        validation_fraction: Of the points that are not for test.
        seed: Of the points and the splits.

    Raises:
        SuperWeightError: An option out of range.

    Source: Errica et al., arXiv 2501.15889.
    """
    return _points("spiral_hard", _arms(2.0), num_points, validation_fraction, seed)


_Draw = Callable[[int, np.random.RandomState], tuple[np.ndarray, np.ndarray]]


def _arms(turns: float) -> _Draw:
    def arm(count: int, random: np.random.RandomState) -> np.ndarray:
        angle = 4 * math.pi * turns * np.sqrt(random.uniform(size=count))
        noise = _NOISE * random.normal(size=(2, count))
        return np.stack([-angle * np.cos(angle) + noise[0], angle * np.sin(angle) + noise[1]], 1) / turns

    def draw(count: int, random: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
        return arm(count, random), -arm(count, random)

    return draw


def _points(name: str, draw: _Draw, num_points: int, validation_fraction: float, seed: int) -> ImageData:
    fraction, seed = checked_fraction("validation_fraction", validation_fraction), checked_seed(seed)
    num_points = checked_integer("num_points", num_points, 20)
    check_parameters_fit(8 * num_points, name, "numbers")
    # RandomState's stream is frozen by numpy for good; those of newer generators may change with a version.
    first, second = draw(num_points - num_points // 2, np.random.RandomState(seed))
    points = torch.from_numpy(np.concatenate([first, second[: num_points // 2]])).float()[:, :, None, None]
    labels = (torch.arange(num_points) >= len(first)).long()
    keep, held = stratified_split(labels, _TEST_FRACTION, seed)
    train, validation = split_off_validation(points[keep], labels[keep], fraction, seed)
    return ImageData(
        name=name,
        classes=("first", "second"),
        image_shape=(2, 1, 1),
        mean=(0.0, 0.0),
        std=(1.0, 1.0),
        train=train,
        validation=validation,
        test=MemorySplit(points[held], labels[held]),
    )
