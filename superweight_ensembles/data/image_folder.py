"""A user's own images, sorted in folders by class."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence

from superweight_ensembles.data.folder_listing import ImageFiles, list_folder
from superweight_ensembles.data.image_data import ImageData
from superweight_ensembles.data.image_files import ImageReader, reader_for
from superweight_ensembles.data.options import (
    checked_channels,
    checked_folder,
    checked_fraction,
    checked_integer,
    checked_seed,
)
from superweight_ensembles.data.splits import FileSplit, ImageSplit, MemorySplit
from superweight_ensembles.errors import SuperWeightError

_LOG = logging.getLogger(__name__)
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_LARGEST_SIDE = 2**14
_VALIDATION_FRACTION = 0.1


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

    Plain class folders give a stratified fifth, the same in every run, to test; ``train`` and ``val`` without ``test``
    make ``val`` the test split. Grey images become RGB. The data set takes the folder's name.

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
    fraction = checked_fraction(
        "validation_fraction", _VALIDATION_FRACTION if validation_fraction is None else validation_fraction
    )
    means, stds = checked_channels("mean", mean, positive=False), checked_channels("std", std, positive=True)
    seed = checked_seed(seed)

    root = checked_folder(folder)
    listing = list_folder(root)
    if listing.validation is None:
        train, validation = listing.train.split(fraction, seed)
    else:
        train, validation = listing.train, listing.validation
        if validation_fraction is not None:
            _LOG.warning("%s has validation images of its own: validation_fraction is not used", root)
    parts = (train, validation, listing.test)
    reader = reader_for(train.paths[0], image_size, pool)
    num_bytes = sum(len(part.paths) for part in parts) * math.prod(reader.image_shape)
    in_memory = num_bytes <= limit
    _LOG.info("%s: %.0f MiB of pixels, %s", root, num_bytes / 2**20, "in memory" if in_memory else "read as needed")
    train_split, validation_split, test_split = (_split(part, reader, in_memory) for part in parts)
    return ImageData(
        name=root.resolve().name,
        classes=listing.classes,
        image_shape=reader.image_shape,
        mean=means,
        std=stds,
        train=train_split,
        validation=validation_split,
        test=test_split,
    )


def _split(files: ImageFiles, reader: ImageReader, in_memory: bool) -> ImageSplit:
    if in_memory:
        return MemorySplit(reader.read_all(files.paths), files.labels)
    return FileSplit(files.paths, files.labels, reader)
