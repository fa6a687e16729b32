"""CIFAR-10 and CIFAR-100 as torchvision reads them."""

from __future__ import annotations

import http.client
import os
from pathlib import Path
from typing import Any

import torch
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import check_integrity

from superweight_ensembles.data.image_data import ImageData
from superweight_ensembles.data.image_files import average_pool
from superweight_ensembles.data.options import checked_folder, checked_fraction, checked_integer, checked_seed
from superweight_ensembles.data.splits import MemorySplit, split_off_validation
from superweight_ensembles.errors import SuperWeightError


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
