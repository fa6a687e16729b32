"""Data sets by name."""

from __future__ import annotations

import http.client
import inspect
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import check_integrity

from superweight_ensembles.data.image_folder import image_folder
from superweight_ensembles.data.images import average_pool
from superweight_ensembles.data.loader import ImageData
from superweight_ensembles.data.options import checked_folder, checked_fraction, checked_integer, checked_seed
from superweight_ensembles.data.splits import MemorySplit, split_off_validation, stratified_split
from superweight_ensembles.errors import SuperWeightError, unknown_name
from superweight_ensembles.storage import check_parameters_fit

# FOLDED data.digits: The handwritten digits that scikit-learn carries: no download, trained on in seconds.

_DIGITS_TEST_FRACTION = 0.5  # as in scikit-learn's own example; a fifth is too few to tell two good ensembles apart
_TEST_SEED = 0  # never the user's: every run answers the same test images


def digits(*, validation_fraction: float = 0.1, seed: int = 0) -> ImageData:
    """1,797 grey images of 8 x 8 pixels in 10 classes; a stratified half is the test split.

    Args:
        validation_fraction: Of the images that are not for test, stratified.
        seed: Chooses the validation images.

    Raises:
        SuperWeightError: An option out of range.

    Source: UCI ML hand-written digits (Alpaydin & Kaynak, 1998), test part, as scikit-learn packs it.
    """
    fraction, seed = checked_fraction("validation_fraction", validation_fraction), checked_seed(seed)
    raw = load_digits()
    # 16 levels of ink and no ink, 0 to 16.
    images = torch.from_numpy(np.round(raw.images * (255 / 16)).astype(np.uint8))[:, None]
    labels = torch.from_numpy(raw.target.astype(np.int64))
    keep, held = stratified_split(labels, _DIGITS_TEST_FRACTION, _TEST_SEED)
    scaled = images[keep].double() / 255
    train, validation = split_off_validation(images[keep], labels[keep], fraction, seed)
    return ImageData(
        name="digits",
        classes=tuple(str(digit) for digit in range(10)),
        image_shape=(1, 8, 8),
        mean=(round(float(scaled.mean()), 4),),
        std=(round(float(scaled.std()), 4),),
        train=train,
        validation=validation,
        test=MemorySplit(images[held], labels[held]),
    )


# FOLDED data.synthetic: Generated images that a small model learns in a few steps, for tests and trials.

_GREY = 127.5
_PATTERN_STD = 40.0
_NOISE_STD = 40.0


def synthetic(
    *,
    num_train: int = 256,
    num_test: int = 128,
    num_classes: int = 4,
    shape: Sequence[int] = (3, 8, 8),
    validation_fraction: float = 0.1,
    seed: int = 0,
) -> ImageData:
    """A fixed random pattern a class, with as much noise as pattern in each image.

    Args:
        num_train: Images for training and validation together.
        num_test: Images for test.
        num_classes: Classes, in equal numbers.
        shape: (C, H, W).
        validation_fraction: Of ``num_train``, stratified.
        seed: Of the patterns, the noise and the choice of validation images.

    Raises:
        SuperWeightError: An option out of range.
    """
    fraction, seed = checked_fraction("validation_fraction", validation_fraction), checked_seed(seed)
    num_classes = checked_integer("num_classes", num_classes, 2)
    num_train = checked_integer("num_train", num_train, num_classes)
    num_test = checked_integer("num_test", num_test, num_classes)
    if isinstance(shape, str) or not isinstance(shape, Sequence) or len(shape) != 3:
        raise SuperWeightError(f"shape must be (channels, height, width); got {shape!r}")
    channels, height, width = (checked_integer("shape", size, 1) for size in shape)
    check_parameters_fit((num_classes + num_train + num_test) * channels * height * width, "synthetic", "numbers")
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(num_classes, channels, height, width, generator=generator) * _PATTERN_STD + _GREY

    def draw_images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.arange(count) % num_classes
        noise = torch.randn(count, channels, height, width, generator=generator) * _NOISE_STD
        return (patterns[labels] + noise).round().clamp(0, 255).to(torch.uint8), labels

    train, validation = split_off_validation(*draw_images(num_train), fraction, seed)
    return ImageData(
        name="synthetic",
        classes=tuple(f"pattern{index}" for index in range(num_classes)),
        image_shape=(channels, height, width),
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
        train=train,
        validation=validation,
        test=MemorySplit(*draw_images(num_test)),
    )


# FOLDED data.points: Points of the plane in two classes, more or less entangled: how many hidden neurons do they need?
#
# Points are images of one pixel: float32 (N, 2, 1, 1).
#
# Source: Errica et al., Adaptive Width Neural Networks, arXiv 2501.15889, section 5.

_NOISE = 0.3
_POINTS_TEST_FRACTION = 0.2


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
    keep, held = stratified_split(labels, _POINTS_TEST_FRACTION, seed)
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


# FOLDED data.cifar: CIFAR-10 and CIFAR-100 as torchvision reads them.


def cifar10(
    *,
    folder: str | os.PathLike[str] = "data",
    download: bool = True,
    pool: int = 1,
    validation_fraction: float = 0.1,
    seed: int = 0,
) -> ImageData:
    """50,000 training and 10,000 test images of 3 x 32 x 32 pixels in 10 classes.

    Args:
        folder: Holds ``cifar-10-batches-py``, or will after a download.
        download: Fetch the files if they are absent.
        pool: Average-pool images by this factor: 2 gives 16 x 16 pixels.
        validation_fraction: Of the training images, stratified.
        seed: Chooses the validation images.

    Raises:
        SuperWeightError: The files are absent or damaged and cannot be fetched; an option out of range.

    Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009; mean and std as in
    Zagoruyko & Komodakis' Wide Residual Networks code.
    """
    return _load(
        "cifar10",
        CIFAR10,
        folder=folder,
        download=download,
        pool=checked_integer("pool", pool, 1),
        mean=(125.3 / 255, 123.0 / 255, 113.9 / 255),
        std=(63.0 / 255, 62.1 / 255, 66.7 / 255),
        fraction=checked_fraction("validation_fraction", validation_fraction),
        seed=checked_seed(seed),
    )


def cifar100(
    *,
    folder: str | os.PathLike[str] = "data",
    download: bool = True,
    pool: int = 1,
    validation_fraction: float = 0.1,
    seed: int = 0,
) -> ImageData:
    """50,000 training and 10,000 test images of 3 x 32 x 32 pixels in 100 classes.

    Args:
        folder: Holds ``cifar-100-python``, or will after a download.
        download: Fetch the files if they are absent.
        pool: Average-pool images by this factor: 2 gives 16 x 16 pixels.
        validation_fraction: Of the training images, stratified.
        seed: Chooses the validation images.

    Raises:
        SuperWeightError: The files are absent or damaged and cannot be fetched; an option out of range.

    Source: As :func:`cifar10`.
    """
    return _load(
        "cifar100",
        CIFAR100,
        folder=folder,
        download=download,
        pool=checked_integer("pool", pool, 1),
        mean=(129.3 / 255, 124.1 / 255, 112.4 / 255),
        std=(68.2 / 255, 65.4 / 255, 70.4 / 255),
        fraction=checked_fraction("validation_fraction", validation_fraction),
        seed=checked_seed(seed),
    )


def _load(
    name: str,
    source: Any,
    *,
    folder: str | os.PathLike[str],
    download: bool,
    pool: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    fraction: float,
    seed: int,
) -> ImageData:
    root = checked_folder(folder)
    existed = root.exists()
    try:
        # Before it unpickles anything, torchvision compares the files with the checksums that it carries.
        train_part = source(root, train=True, download=download)
        test_part = source(root, train=False, download=False)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        if not existed and root.is_dir() and not any(root.iterdir()):
            root.rmdir()  # made for a download that did not begin
        raise _absent(name, source, root, download, error) from error
    (images, labels), (test_images, test_labels) = _tensors(train_part), _tensors(test_part)
    if images.shape[2] % pool:
        raise SuperWeightError(
            f"pool={pool} does not divide the {images.shape[2]} x {images.shape[3]} pixels of {name}"
        )
    images, test_images = average_pool(images, pool), average_pool(test_images, pool)
    train, validation = split_off_validation(images, labels, fraction, seed)
    channels, height, width = images.shape[1:]
    return ImageData(
        name=name,
        classes=tuple(train_part.classes),
        image_shape=(channels, height, width),
        mean=mean,
        std=std,
        train=train,
        validation=validation,
        test=MemorySplit(test_images, test_labels),
    )


def _tensors(part: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Images uint8 (N, C, H, W) and labels int64 (N,) of a torchvision part, whose images are (N, H, W, C)."""
    images = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor(part.targets, dtype=torch.int64)


def _absent(name: str, source: Any, root: Path, download: bool, error: Exception) -> SuperWeightError:
    base = root / source.base_folder
    expected = [*source.train_list, *source.test_list, (source.meta["filename"], source.meta["md5"])]
    bad = [file for file, md5 in expected if not check_integrity(str(base / file), md5)]
    tried = f" and the download failed ({error})" if download else " and download is off"
    return SuperWeightError(
        f"{name}: {', '.join(bad) or 'files'} absent or damaged in {base}{tried}.\n"
        f"Unpack {source.url} in {root}, or give the folder= that holds {source.base_folder}"
        + ("" if download else ", or download=True")
    )


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


# FOLDED data.known_shapes: What a data set's name and options tell of its images before anything is read.

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
