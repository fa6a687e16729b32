"""A user's own images, sorted in folders by class."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from superweight_ensembles.data.images import ImageReader, reader_for
from superweight_ensembles.data.loader import ImageData
from superweight_ensembles.data.options import checked_channels, checked_folder, checked_integer
from superweight_ensembles.data.splits import FileSplit, ImageSplit, MemorySplit, stratified_split
from superweight_ensembles.errors import SuperWeightError

_LOG = logging.getLogger(__name__)
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_LARGEST_SIDE = 2**14
_VALIDATION_FRACTION = 0.1
_TEST_FRACTION = 0.2
_TEST_SEED = 0  # never the user's: every run answers the same test images


def image_folder(
    *,
    folder: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
    pool: int = 1,
    memory_limit_mb: int = 2048,
    mean: Sequence[float] = _IMAGENET_MEAN,
    std: Sequence[float] = _IMAGENET_STD,
    validation_fraction: float | None = None,
    seed: int = 0,
) -> ImageData:
    """Images in ``train/<class>/*`` and ``test/<class>/*`` (and ``val`` or ``validation``), or in ``<class>/*``.

    Plain class folders give a stratified fifth, the same in every run, to test; ``train`` and ``val`` without ``test``,
    as ImageNet is published, make ``val`` the test split. Names that start with a dot are no classes. Grey images
    become RGB. The data set takes the folder's name.

    Args:
        folder: The images, sorted.
        image_size: Pixels: the shorter side is resized to it (bilinear, antialiased) and the centre square cut out.
            None keeps images as they are, which must then be of one size.
        pool: Average-pool decoded images by this factor: 32 x 32 with 2 gives 16 x 16.
        memory_limit_mb: Images that need more memory than this, in MiB of decoded pixels, stay in files and are
            decoded batch by batch.
        mean: Per channel, of pixels scaled to [0, 1]; ImageNet's unless given.
        std: Per channel, of pixels scaled to [0, 1]; ImageNet's unless given.
        validation_fraction: Of the training images, stratified, where the folder has no validation images of its
            own; 0.1 unless given.
        seed: Chooses the validation images.

    Raises:
        SuperWeightError: Names the folder that is absent or not sorted so, the file that is no image (when it is
            read: at once if all fit in memory), or the option out of range.
    """
    if folder is None:
        raise SuperWeightError("image_folder needs folder=, where the images are")
    if image_size is not None:
        image_size = checked_integer("image_size", image_size, 1)
        if image_size > _LARGEST_SIDE:
            raise SuperWeightError(f"image_size is at most {_LARGEST_SIDE:,} pixels; got {image_size!r:.40}")
    pool = checked_integer("pool", pool, 1)
    limit = checked_integer("memory_limit_mb", memory_limit_mb, 0) * 2**20
    means, stds = checked_channels("mean", mean, positive=False), checked_channels("std", std, positive=True)

    root = checked_folder(folder)
    classes, train, validation, test = _list(root)
    if validation is None:
        fraction = _VALIDATION_FRACTION if validation_fraction is None else validation_fraction
        train, validation = train.split(fraction, seed)
    elif validation_fraction is not None:
        _LOG.warning("%s has validation images of its own: validation_fraction is not used", root)
    parts = (train, validation, test)
    reader = reader_for(train.paths[0], image_size, pool)
    num_bytes = sum(len(part.paths) for part in parts) * math.prod(reader.image_shape)
    in_memory = num_bytes <= limit
    _LOG.info("%s: %.0f MiB of pixels, %s", root, num_bytes / 2**20, "in memory" if in_memory else "read as needed")
    train_split, validation_split, test_split = (part.open(reader, in_memory) for part in parts)
    return ImageData(
        name=root.resolve().name,
        classes=classes,
        image_shape=reader.image_shape,
        mean=means,
        std=stds,
        train=train_split,
        validation=validation_split,
        test=test_split,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Files:
    """Paths of N images and their labels, int64 (N,)."""

    paths: tuple[str, ...]
    labels: torch.Tensor

    def split(self, fraction: float, seed: int) -> tuple[_Files, _Files]:
        """Those to keep and those to hold out, stratified."""
        kept, held = (
            _Files(paths=tuple(self.paths[index] for index in indices.tolist()), labels=self.labels[indices])
            for indices in stratified_split(self.labels, fraction, seed)
        )
        return kept, held

    def open(self, reader: ImageReader, in_memory: bool) -> ImageSplit:
        if in_memory:
            return MemorySplit(reader.read_all(self.paths), self.labels)
        return FileSplit(self.paths, self.labels, reader)


def _list(root: Path) -> tuple[tuple[str, ...], _Files, _Files | None, _Files]:
    """Classes, sorted, and files for training, for validation where the folder has some of its own, and for test."""
    if not root.is_dir():
        raise SuperWeightError(f"image_folder: no folder {root}")
    names = set(_sub_folders(root))
    held_out = names & {"test", "val", "validation"}
    if "train" not in names or not (held_out or names == {"train"}):
        classes = _classes(root)
        train, test = _files(root, classes, classes).split(_TEST_FRACTION, _TEST_SEED)
        if not test.paths:
            raise SuperWeightError(f"image_folder: {root} has too few images to hold a fifth out for test")
        return classes, train, None, test
    if not held_out:
        raise SuperWeightError(f"image_folder: {root} has train but no test folder: add test/<class>/*")
    if {"val", "validation"} <= held_out:
        raise SuperWeightError(f"image_folder: {root} has both val and validation: keep one")
    if others := names - held_out - {"train"}:
        _LOG.warning("%s: not read, as there is a train folder: %s", root, ", ".join(sorted(others)))
    classes = _classes(root / "train")
    files = {name: _files(root / name, _known(root / name, classes), classes) for name in ("train", *held_out)}
    validation = files.get("val", files.get("validation"))
    if "test" in files:
        return classes, files["train"], validation, files["test"]
    _LOG.info("%s has no test folder: its validation folder is the test split", root)
    assert validation is not None, "something is held out"
    return classes, files["train"], None, validation


def _sub_folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _classes(folder: Path) -> tuple[str, ...]:
    names = _sub_folders(folder)
    if not names:
        raise SuperWeightError(f"image_folder: no class folders in {folder}: sort the images as {folder}/<class>/*")
    if len(names) == 1:
        raise SuperWeightError(f"image_folder: one class alone in {folder}, {names[0]!r}: is it the folder above?")
    return tuple(names)


def _known(folder: Path, classes: tuple[str, ...]) -> tuple[str, ...]:
    """The classes that a split's folder has, all of which training has."""
    names = _sub_folders(folder)
    if not names:
        raise SuperWeightError(f"image_folder: no class folders in {folder}")
    strange = [name for name in names if name not in classes]
    if strange:
        raise SuperWeightError(f"image_folder: class {strange[0]!r} of {folder} has no folder in train")
    return tuple(names)


def _files(folder: Path, present: tuple[str, ...], classes: tuple[str, ...]) -> _Files:
    for name in present:
        _check_tree(folder / name)
    label_of = {name: classes.index(name) for name in present}
    found = make_dataset(str(folder), label_of, extensions=IMG_EXTENSIONS, allow_empty=True)
    labels = torch.tensor([label for _, label in found], dtype=torch.int64)
    full = set(labels.tolist())
    empty = [name for name in present if label_of[name] not in full]
    if empty:
        raise SuperWeightError(
            f"image_folder: no images in {folder / empty[0]}; files that count end in {', '.join(IMG_EXTENSIONS)}"
        )
    return _Files(paths=tuple(path for path, _ in found), labels=labels)


def _check_tree(folder: Path) -> None:
    """Refuse links that make the walk through a class folder come by a folder again, and so perhaps never end."""
    seen: set[tuple[int, int]] = set()
    for place, _, _ in os.walk(folder, followlinks=True):
        found = os.stat(place)
        if (found.st_dev, found.st_ino) in seen:
            raise SuperWeightError(f"image_folder: links lead to {place} twice: leave one of them out")
        seen.add((found.st_dev, found.st_ino))
