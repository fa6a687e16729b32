"""Data sets by name, and what is known of each before anything is read.

Points of the plane (``double_moon``, ``spiral``, ``spiral_hard``) are images of one pixel: float32 (N, 2, 1, 1).
"""

from __future__ import annotations

import functools
import http.client
import inspect
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
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
from superweight_ensembles.data.options import (
    checked_channels,
    checked_folder,
    checked_fraction,
    checked_integer,
    checked_seed,
    checked_shape,
    checked_switch,
)
from superweight_ensembles.data.splits import MemorySplit, stratified_split
from superweight_ensembles.errors import SuperWeightError, names_options, unknown_name
from superweight_ensembles.storage import PYTHON, check_parameters_fit, found_code, offered_names

DATASETS = "superweight_ensembles.datasets"  # group of entry points
_DIGITS_TEST_FRACTION = 0.5  # as in scikit-learn's own example; a fifth is too few to tell two good ensembles apart
_DIGITS_TEST_SEED = 0  # not the user's seed, so that every run answers the same test images
_POINTS_TEST_FRACTION = 0.2
_POINTS_NOISE = 0.3
_GREY, _PATTERN_STD, _NOISE_STD = 127.5, 40.0, 40.0

_OF_TRAINING = (
    "batch_size",
    "num_workers",
    "shuffle",
    "drop_last",
    "flip",
    "crop_padding",
    "cutout",
    "random_resized_crop",
)

_Part = tuple[torch.Tensor, torch.Tensor]  # images (N, C, H, W), uint8 or float32, and labels int64 (N,)
_DrawPoints = Callable[[int, np.random.RandomState], tuple[np.ndarray, np.ndarray]]


@names_options
def load_data(name: str, *, num_train: int | None = None, **options: Any) -> ImageData:
    """Load a data set by name.

    Args:
        name: A key of :data:`DATA_SETS`, or what an installed package offers as an entry point of
            ``superweight_ensembles.datasets``; inside :func:`superweight_ensembles.models.trusted`,
            ``python:package.module.make``, a function of the options that returns :class:`ImageData`.
        num_train: Number of training images to keep, stratified and chosen by the seed, for experiments with little
            data; all where None. A generated set (``synthetic``) makes this many.
        **options: ``validation_fraction`` (of the images that are not for test) and ``seed``; ``folder``, ``download``
            and ``pool`` of the CIFAR sets; ``num_points`` of points of the plane; ``num_test``, ``num_classes`` and
            ``shape`` of ``synthetic``; those of :func:`image_folder`.

    Raises:
        SuperWeightError: No such data set or option, or an option that the data set refuses.

    Example:
        >>> data = load_data("synthetic", num_classes=3, validation_fraction=0.25)
        >>> data.classes, len(data.train), len(data.validation), len(data.test)
        (('pattern0', 'pattern1', 'pattern2'), 192, 64, 128)
    """
    options = check_options(name, {**options, "num_train": num_train})
    num_train = options.pop("num_train")
    load = _data_set(name).load
    defaults = _options_of(load)
    if num_train is None:
        return load(**options)
    if "num_train" in defaults:
        return load(num_train=num_train, **options)
    data = load(**options)
    if num_train > len(data.train):
        raise SuperWeightError(f"num_train is {num_train}; {data.name} has {len(data.train)} training images")
    seed = options.get("seed", defaults["seed"].default if "seed" in defaults else 0)
    kept, _ = stratified_split(data.train.labels, 1 - num_train / len(data.train), seed)
    return replace(data, train=data.train.subset(kept))


def check_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as a data set takes them: Python's numbers for numpy's, paths for texts; no file is read."""
    if isinstance(name, os.PathLike) or (isinstance(name, str) and os.sep in name):
        raise SuperWeightError(
            f"a data set has a name; got the path {os.fspath(name)!r}: its images are "
            "load_data('image_folder', folder=...)"
        )
    known = _options_of(_data_set(name).load)
    if name not in DATA_SETS:
        if not any(one.kind is one.VAR_KEYWORD for one in known.values()):
            for option in options:
                if option not in known and option != "num_train":  # load_data itself takes num_train
                    raise unknown_name(f"option of {name}", option, [*known, "num_train"])
        return dict(options)
    defaults = {"num_train": None, **{option: one.default for option, one in known.items()}}
    checked = dict(options)
    for option, value in options.items():
        if option not in defaults:
            if option in _OF_TRAINING or "augment" in option or "transform" in option:
                raise SuperWeightError(
                    f"{option} is no option of a data set: TrainConfig, training: in a recipe, says how images are "
                    "batched and augmented"
                )
            if "class" in option and "num_classes" not in defaults:
                raise SuperWeightError(f"{option} is no option of {name}, whose classes are known: leave it out")
            raise unknown_name(f"option of {name}", option, defaults)
        if value is not defaults[option] and not (option == "num_train" and value is None):
            checked[option] = _CHECKS[option](option, value)
    given = {**defaults, **{option: value for option, value in checked.items() if value is not None}}
    if "folder" in given and given["folder"] is None:
        raise SuperWeightError(f"{name} needs folder=, where the images are")
    if "num_classes" in given:  # of generated images: each class needs at least one
        for option in ("num_train", "num_test"):
            checked_integer(option, given[option], given["num_classes"])
    height, pool = DATA_SETS[name].image_shape[1], given.get("pool", 1)
    if height is not None and height % pool:
        raise SuperWeightError(f"pool={pool} does not divide the {height} x {height} pixels of {name}")
    facts = known_facts(name, {**checked, "num_train": None})
    if "num_train" not in known and facts.num_train is not None and given["num_train"] is not None:
        slack = facts.num_classes or 0  # splits round the number of each class
        if given["num_train"] > facts.num_train + slack:
            raise SuperWeightError(
                f"num_train is {given['num_train']}; {name} has about {facts.num_train} training images"
            )
    return checked


def _options_of(load: Callable[..., ImageData]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(load).parameters


def _data_set(name: str) -> DataSet:
    """A data set by its name: one of :data:`DATA_SETS`, one that a package offers, or what trusted code names."""
    if isinstance(name, str) and name in DATA_SETS:
        return DATA_SETS[name]
    offered = found_code(DATASETS, name) if isinstance(name, str) else None
    if offered is None:
        raise unknown_name("data set", name, data_set_needs())

    @functools.wraps(offered)
    def load(**options: Any) -> ImageData:
        found = offered(**options)
        if not isinstance(found, ImageData):
            raise SuperWeightError(f"data set {name!r} must make ImageData; it makes a {type(found).__name__}")
        return found

    return DataSet(load)


def data_set_needs() -> dict[str, str]:
    """Needs of every data set, by name.

    Example:
        >>> data_set_needs()["cifar10"]
        '10 classes, images of 3 x 32 x 32; files in folder, downloaded where absent'
    """
    found = {}
    for name, known in DATA_SETS.items():
        facts = [] if known.num_classes is None else [f"{known.num_classes} classes"]
        if None not in known.image_shape:
            facts.append(f"images of {' x '.join(map(str, known.image_shape))}")
        needs = "files in folder" if reads_files(name) else "needs no files"
        needs += ", downloaded where absent" * takes_option(name, "download")
        found[name] = "; ".join([", ".join(facts), needs] if facts else [needs])
    return found | dict.fromkeys(offered_names(DATASETS), "of an installed package")


def reads_files(name: str) -> bool:
    """Whether a data set is in files of the user's; others come with a library, or are generated."""
    return "folder" in _defaults(name)


def takes_option(name: str, option: str) -> bool:
    """Whether a data set has an option."""
    return option in _defaults(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFacts:
    """What is known of a data set before anything is read; None where only its files tell.

    Attributes:
        num_train: Number of training images, to within one a class.
        num_validation: Number of validation images, to within one a class.
        num_test: Number of test images.
        num_classes: Number of classes, K.
        channels: Number of channels, C.
        image_shape: (C, H, W).
    """

    num_train: int | None = None
    num_validation: int | None = None
    num_test: int | None = None
    num_classes: int | None = None
    channels: int | None = None
    image_shape: tuple[int, int, int] | None = None


def known_facts(name: str, options: Mapping[str, Any]) -> DataFacts:
    """What a data set's name and options tell of it.

    Example:
        >>> facts = known_facts("cifar10", {"pool": 2, "validation_fraction": 0.1})
        >>> facts.image_shape, facts.num_classes, facts.num_train, facts.num_validation, facts.num_test
        ((3, 16, 16), 10, 45000, 5000, 10000)
        >>> known_facts("image_folder", {"image_size": 224})
        DataFacts(num_train=None, num_validation=None, num_test=None, num_classes=None, channels=3, \
image_shape=(3, 224, 224))
    """
    if name not in DATA_SETS:
        limit = options.get("num_train")
        return DataFacts(num_train=None if limit is None else int(limit))
    known = DATA_SETS[name]
    given = {**_defaults(name), **{option: value for option, value in options.items() if value is not None}}
    channels, *sides = given.get("shape", known.image_shape)
    height, width = (given.get("image_size") if side is None else side for side in sides)
    pool = given.get("pool", 1)
    num_rest, num_test = known.sizes(given)
    num_train = num_rest if num_rest is None else round(num_rest * (1 - given["validation_fraction"]))
    limits = [count for count in (num_train, given.get("num_train")) if count is not None]
    return DataFacts(
        num_train=min(limits, default=None),
        num_validation=None if num_rest is None or num_train is None else num_rest - num_train,
        num_test=num_test,
        num_classes=given.get("num_classes", known.num_classes),
        channels=channels,
        image_shape=None if height is None or width is None else (channels, height // pool, width // pool),
    )


def _defaults(name: str) -> dict[str, Any]:
    """Options of a data set and their defaults; empty for a name that no data set has."""
    if name not in DATA_SETS and not name.startswith(PYTHON) and name not in offered_names(DATASETS):
        return {}
    return {option: one.default for option, one in _options_of(_data_set(name).load).items()}


def _in_memory(
    name: str,
    classes: Iterable[object],
    rest: _Part,
    test: _Part,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    held_out: tuple[float, int],
) -> ImageData:
    """Data set in memory; ``held_out`` is the fraction of ``rest`` that is for validation, stratified, and its seed."""
    images, labels = rest
    keep, hold = stratified_split(labels, *held_out)
    channels, height, width = images.shape[1:]
    return ImageData(
        name=name,
        classes=tuple(map(str, classes)),
        image_shape=(channels, height, width),
        mean=mean,
        std=std,
        train=MemorySplit(images[keep], labels[keep]),
        validation=MemorySplit(images[hold], labels[hold]),
        test=MemorySplit(*test),
    )


def _digits(*, validation_fraction: float = 0.1, seed: int = 0) -> ImageData:
    """1,797 grey images of 8 x 8 pixels in 10 classes, which scikit-learn carries; a stratified half is the test split.

    Args:
        validation_fraction: Fraction of the non-test images that is held out for validation, stratified.
        seed: Seed that chooses the validation images.

    Source: UCI ML hand-written digits (Alpaydin & Kaynak, 1998), test part, as scikit-learn packs it.
    """
    raw = load_digits()
    # 16 levels of ink and no ink, 0 to 16.
    images = torch.from_numpy(np.round(raw.images * (255 / 16)).astype(np.uint8))[:, None]
    labels = torch.from_numpy(raw.target.astype(np.int64))
    keep, held = stratified_split(labels, _DIGITS_TEST_FRACTION, _DIGITS_TEST_SEED)
    scaled = images[keep].double() / 255
    return _in_memory(
        "digits",
        range(10),
        (images[keep], labels[keep]),
        (images[held], labels[held]),
        mean=(round(float(scaled.mean()), 4),),
        std=(round(float(scaled.std()), 4),),
        held_out=(validation_fraction, seed),
    )


def _synthetic(
    *,
    num_train: int = 256,
    num_test: int = 128,
    num_classes: int = 4,
    shape: Sequence[int] = (3, 8, 8),
    validation_fraction: float = 0.1,
    seed: int = 0,
) -> ImageData:
    """A fixed random pattern a class, with as much noise as pattern in each image: learned in a few steps.

    Args:
        num_train: Images for training and validation together.
        num_test: Number of test images.
        num_classes: Classes, in equal numbers.
        shape: Shape of an image: channels, height, width.
        validation_fraction: Fraction of the non-test images that is held out for validation, stratified.
        seed: Seed of the generated data, and of the choice of validation images.
    """
    size = tuple(shape)
    check_parameters_fit((num_classes + num_train + num_test) * math.prod(size), "synthetic", "numbers")
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(num_classes, *size, generator=generator) * _PATTERN_STD + _GREY

    def draw_images(count: int) -> _Part:
        labels = torch.arange(count) % num_classes
        noise = torch.randn(count, *size, generator=generator) * _NOISE_STD
        return (patterns[labels] + noise).round().clamp(0, 255).to(torch.uint8), labels

    return _in_memory(
        "synthetic",
        (f"pattern{index}" for index in range(num_classes)),
        draw_images(num_train),
        draw_images(num_test),
        mean=(0.5,) * size[0],
        std=(0.25,) * size[0],
        held_out=(validation_fraction, seed),
    )


def _points(
    name: str, draw: _DrawPoints, *, num_points: int = 5000, validation_fraction: float = 0.1, seed: int = 0
) -> ImageData:
    """Points of the plane in two classes, more or less entangled; a stratified fifth is the test split.

    Args:
        name: Name of the data set.
        draw: Function that draws the points of both classes.
        num_points: Number of points, of both classes together.
        validation_fraction: Fraction of the non-test images that is held out for validation, stratified.
        seed: Seed of the generated data, and of the choice of validation images.

    Source: Errica et al., Adaptive Width Neural Networks, arXiv 2501.15889, section 5.
    """
    check_parameters_fit(8 * num_points, name, "numbers")
    # RandomState's stream is frozen by numpy for good; those of newer generators may change with a version.
    first, second = draw(num_points - num_points // 2, np.random.RandomState(seed))
    points = torch.from_numpy(np.concatenate([first, second[: num_points // 2]])).float()[:, :, None, None]
    labels = (torch.arange(num_points) >= len(first)).long()
    keep, held = stratified_split(labels, _POINTS_TEST_FRACTION, seed)
    return _in_memory(
        name,
        ("first", "second"),
        (points[keep], labels[keep]),
        (points[held], labels[held]),
        mean=(0.0, 0.0),
        std=(1.0, 1.0),
        held_out=(validation_fraction, seed),
    )


def _moons(count: int, random: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """Two half circles of radius 10, one above the other."""
    halves = []
    for _ in range(2):
        angle = math.pi * random.uniform(size=count)
        halves.append((10 * np.cos(angle), 10 * np.sin(angle), _POINTS_NOISE * random.normal(size=(2, count))))
    (x, y, noise), (other_x, other_y, other) = halves
    above = np.stack([x - 5 + noise[0], y + noise[1]], 1)
    below = np.stack([5 - other_x - other[0], 5 - other_y - other[1]], 1)
    return above, below


def _arms(turns: float) -> _DrawPoints:
    """Two arms that wind around each other twice a turn."""

    def arm(count: int, random: np.random.RandomState) -> np.ndarray:
        angle = 4 * math.pi * turns * np.sqrt(random.uniform(size=count))
        noise = _POINTS_NOISE * random.normal(size=(2, count))
        return np.stack([-angle * np.cos(angle) + noise[0], angle * np.sin(angle) + noise[1]], 1) / turns

    return lambda count, random: (arm(count, random), -arm(count, random))


def _cifar(
    source: type[CIFAR10],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    *,
    folder: str | os.PathLike[str] = "data",
    download: bool = True,
    pool: int = 1,
    validation_fraction: float = 0.1,
    seed: int = 0,
) -> ImageData:
    """50,000 training and 10,000 test images of 3 x 32 x 32 pixels in 10 or 100 classes, as torchvision reads them.

    Args:
        source: Torchvision's class.
        mean: Mean per channel, in levels of 0 to 255.
        std: Standard deviation per channel, in levels of 0 to 255.
        folder: Folder that holds ``cifar-10-batches-py`` or ``cifar-100-python``, or will after a download.
        download: Fetch the files if they are absent.
        pool: Average-pool images by this factor: 2 halves height and width.
        validation_fraction: Fraction of the non-test images that is held out for validation, stratified.
        seed: Seed that chooses the validation images.

    Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009; mean and std as in
    Zagoruyko & Komodakis' Wide Residual Networks code.
    """
    name, root = source.__name__.lower(), Path(folder)
    existed = root.exists()
    if root.is_file() or root.resolve().name == source.base_folder:
        what = f"{source.base_folder}: go up by one" if root.is_dir() else "a file: unpack it"
        raise SuperWeightError(f"{name}: {root} is {what}, and give the folder that holds {source.base_folder}")
    try:
        # Before it unpickles anything, torchvision compares the files with the checksums that it carries.
        parts = source(root, train=True, download=download), source(root, train=False, download=False)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        if not existed and root.is_dir() and not any(root.iterdir()):
            root.rmdir()  # made for a download that did not begin
        raise _absent(name, source, root, download, error) from error
    images = (torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous() for part in parts)  # of (N, H, W, C)
    labels = (torch.tensor(part.targets, dtype=torch.int64) for part in parts)
    rest, test = ((average_pool(pixels, pool), answers) for pixels, answers in zip(images, labels))
    found = _in_memory(
        name,
        parts[0].classes,
        rest,
        test,
        mean=tuple(level / 255 for level in mean),
        std=tuple(level / 255 for level in std),
        held_out=(validation_fraction, seed),
    )
    return replace(found, pool=pool)


def _absent(name: str, source: type[CIFAR10], root: Path, download: bool, error: Exception) -> SuperWeightError:
    base = root / source.base_folder
    expected = [*source.train_list, *source.test_list, (source.meta["filename"], source.meta["md5"])]
    bad = [file for file, md5 in expected if not check_integrity(str(base / file), md5)]
    tried = f" and the download failed ({error})" if download else " and download is off"
    return SuperWeightError(
        f"{name}: {', '.join(bad) or 'files'} absent or damaged in {base}{tried}.\n"
        f"Unpack {source.url} in {root}, or give the folder= that holds {source.base_folder}"
        + ("" if download else ", or download=True")
    )


@dataclass(frozen=True, slots=True)
class DataSet:
    """How a data set is loaded, and its facts; a fact is None where options or files decide it."""

    load: Callable[..., ImageData]  # its keyword-only parameters are the options
    num_classes: int | None = None
    image_shape: tuple[int | None, int | None, int | None] = (None, None, None)  # (C, H, W)
    # Numbers of images for training and validation together, and for test, by the options.
    sizes: Callable[[Mapping[str, Any]], tuple[int | None, int | None]] = lambda options: (None, None)


def _point_counts(options: Mapping[str, Any]) -> tuple[int, int]:
    num_points, test = options["num_points"], _POINTS_TEST_FRACTION
    return round(num_points * (1 - test)), round(num_points * test)


_CIFAR10 = partial(_cifar, CIFAR10, (125.3, 123.0, 113.9), (63.0, 62.1, 66.7))
_CIFAR100 = partial(_cifar, CIFAR100, (129.3, 124.1, 112.4), (68.2, 65.4, 70.4))
DATA_SETS: Mapping[str, DataSet] = MappingProxyType(
    {
        "cifar10": DataSet(_CIFAR10, 10, (3, 32, 32), lambda options: (50_000, 10_000)),
        "cifar100": DataSet(_CIFAR100, 100, (3, 32, 32), lambda options: (50_000, 10_000)),
        "digits": DataSet(_digits, 10, (1, 8, 8), lambda options: (899, 898)),
        "double_moon": DataSet(partial(_points, "double_moon", _moons), 2, (2, 1, 1), _point_counts),
        "image_folder": DataSet(image_folder, None, (3, None, None)),
        "spiral": DataSet(partial(_points, "spiral", _arms(1.0)), 2, (2, 1, 1), _point_counts),
        "spiral_hard": DataSet(
            partial(_points, "spiral_hard", _arms(2.0), num_points=10_000), 2, (2, 1, 1), _point_counts
        ),
        "synthetic": DataSet(_synthetic, sizes=lambda options: (options["num_train"], options["num_test"])),
    }
)


def _at_least(minimum: int) -> Callable[[str, object], object]:
    return lambda name, value: checked_integer(name, value, minimum)


_CHECKS: Mapping[str, Callable[[str, object], object]] = MappingProxyType(
    {
        "download": checked_switch,
        "folder": lambda name, value: checked_folder(value),
        "image_size": _at_least(1),
        "mean": lambda name, value: checked_channels(name, value, positive=False),
        "memory_limit_mb": _at_least(0),
        "num_classes": _at_least(2),
        "num_points": _at_least(20),
        "num_test": _at_least(1),
        "num_train": _at_least(1),
        "pool": _at_least(1),
        "seed": lambda name, value: checked_seed(value),
        "shape": checked_shape,
        "std": lambda name, value: checked_channels(name, value, positive=True),
        "validation_fraction": checked_fraction,
    }
)
