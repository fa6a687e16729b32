"""Where training batches come from: one loader for all members, or one for each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from superweight_ensembles.data import Augmentation, ImageData, ImageLoader, checked_batch
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.training.config import TrainConfig

Batches = Iterable[tuple[Tensor, Tensor]]
_SEEDS_APART = 1_000_003


class SizedBatches(Protocol):
    """Batches of images and labels that can be iterated every epoch and tell how many they are."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...

    def __len__(self) -> int: ...


def training_batches(
    data: ImageData | SizedBatches,
    validation: Batches | None,
    config: TrainConfig,
    device: torch.device,
    members: Sequence[str],
    shard: tuple[int, int] = (0, 1),
) -> tuple[list[SizedBatches], Batches | None]:
    """Training batches, one loader for all members or one for each, and validation batches.

    Args:
        data: As :func:`train` takes it; an iterable of your own is used as it is.
        validation: As :func:`train` takes it.
        config: Decides size, order and augmentation.
        device: Where batches appear.
        members: Those that are trained.
        shard: This process and how many there are: of each batch, it has its rows alone.
    """
    if not isinstance(data, ImageData):
        if isinstance(data, str) or not hasattr(data, "__len__") or len(data) == 0:
            raise SuperWeightError(
                "training data must be ImageData (from load_data) or a sized iterable of at least one batch"
            )
        if any((config.flip, config.crop_padding, config.cutout, config.random_resized_crop, config.num_workers)):
            raise SuperWeightError(
                "flip, crop_padding, cutout, random_resized_crop and num_workers are for ImageData: let your own "
                "loader augment"
            )
        if config.member_batches != "same":
            raise SuperWeightError("member_batches 'own' needs ImageData: a loader of your own has one order")
        return [data], validation
    streams = range(len(members)) if config.member_batches == "own" else range(1)
    loaders: list[SizedBatches] = [
        training_loader(data, replace(config, seed=(config.seed + index * _SEEDS_APART) % 2**32), device, shard)
        for index in streams
    ]
    if validation is None and len(data.validation):
        validation = data.loader(
            "validation", max(256, config.batch_size), device=device, num_workers=config.num_workers, shard=shard
        )
    return loaders, validation


def training_loader(
    data: ImageData, config: TrainConfig, device: torch.device | str = "cpu", shard: tuple[int, int] = (0, 1)
) -> ImageLoader:
    """Shuffled, augmented batches of the training split.

    Raises:
        SuperWeightError: Fewer images than a batch, or an augmentation that is larger than the images.
    """
    if len(data.train) < config.batch_size:
        raise SuperWeightError(
            f"{data.name} has {len(data.train)} training images, fewer than batch_size {config.batch_size}"
        )
    return data.loader(
        "train",
        config.batch_size,
        augmentation=augmentation_of(config),
        shuffle=True,
        drop_last=True,
        seed=config.seed,
        device=device,
        num_workers=config.num_workers,
        shard=shard,
    )


def augmentation_of(config: TrainConfig) -> Augmentation:
    """What a config does to training images."""
    return Augmentation(
        flip=config.flip,
        crop_padding=config.crop_padding,
        cutout=config.cutout,
        random_resized_crop=config.random_resized_crop,
    )


def prepared_batch(batch: Any, device: torch.device, channels_last: bool) -> tuple[Tensor, Tensor]:
    images, labels = checked_batch(batch)
    images, labels = images.to(device), labels.to(device)
    if channels_last and images.ndim == 4:
        images = images.contiguous(memory_format=torch.channels_last)
    return images, labels


def by_member(
    members: Sequence[str], batches: Sequence[tuple[Tensor, Tensor]]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Images and labels of each member's own batch."""
    images, labels = zip(*batches)
    return dict(zip(members, images)), dict(zip(members, labels))
