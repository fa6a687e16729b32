"""What must be known of a network's training images before it is given others. Shapes: C channels, H W pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import ConfigDict
from torch import Tensor

from superweight_ensembles.data.images import average_pool, decode_whole, turned_colours
from superweight_ensembles.data.loader import ImageData
from superweight_ensembles.errors import SuperWeightError, names_options

_MOST_CLASSES = 2**20


@names_options
@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """Preprocessing of an image for members: its centre in the proportions of (H, W), resized and normalised.

    Example:
        >>> preprocessing = Preprocessing(image_shape=(3, 8, 8), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
        >>> preprocessing(np.full((20, 10, 3), 255, np.uint8)).shape
        torch.Size([3, 8, 8])
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    image_shape: tuple[int, int, int]  # (C, H, W)
    mean: tuple[float, ...]  # per channel, of pixels scaled to [0, 1]
    std: tuple[float, ...]  # likewise
    classes: tuple[str, ...] = ()  # in the order of the labels; empty where the task has none
    pool: int = 1  # factor of the average pooling after reading, as in the data set

    def __post_init__(self) -> None:
        shape, channels = self.image_shape, self.image_shape[0] if self.image_shape else 0
        if len(shape) != 3 or not all(type(size) is int and 0 < size < 2**16 for size in shape):
            raise SuperWeightError(f"image_shape must be (C, H, W); got {shape!r:.80}")
        fits = len(self.mean) == len(self.std) == channels and all(map(math.isfinite, (*self.mean, *self.std)))
        if not fits or min(self.std) <= 0:
            given = f"{self.mean}, {self.std}"
            raise SuperWeightError(f"{channels} channels need a mean and a positive std each; got {given}")
        if type(self.pool) is not int or not 1 <= self.pool <= 64:
            raise SuperWeightError(f"pool must be a whole number of at least 1; got {self.pool!r:.80}")
        if len(self.classes) > _MOST_CLASSES or not all(isinstance(name, str) for name in self.classes):
            raise SuperWeightError(f"classes must be names; got {self.classes!r:.80}")

    @classmethod
    def of(cls, data: ImageData) -> Preprocessing:
        """Preprocessing of a data set."""
        return cls(image_shape=data.image_shape, mean=data.mean, std=data.std, classes=data.classes, pool=data.pool)

    def __call__(self, image: str | Path | Image.Image | np.ndarray | Tensor) -> Tensor:
        """float32 (C, H, W) of a file, a Pillow image, or uint8 pixels, (H, W, C) of numpy or (C, H, W) of torch."""
        # ImageFolder(folder, transform=preprocessing) of torchvision calls it with Pillow images.
        pixels = average_pool(torch.from_numpy(self._pixels(image).copy())[None], self.pool)[0].float() / 255
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std

    def batch(self, images: Sequence[str | Path | Image.Image | np.ndarray | Tensor]) -> Tensor:
        """float32 (B, C, H, W) of several images."""
        if not len(images):
            return torch.empty(0, *self.image_shape)
        return torch.stack([self(image) for image in images])

    def _pixels(self, image: Any) -> np.ndarray:
        """uint8 (C, H, W) before pooling."""
        channels, height, width = self.image_shape
        size = (height * self.pool, width * self.pool)
        if isinstance(image, (str, Path)):
            planes = decode_whole(str(image), size)
        else:
            planes = turned_colours(_picture(image), size)
        if channels == 1:
            planes = np.asarray(Image.fromarray(planes).convert("L"))[:, :, None]
        if planes.shape[2] != channels:
            raise SuperWeightError(f"images are taken with {channels} channels; these have {planes.shape[2]}")
        return np.ascontiguousarray(planes.transpose(2, 0, 1))


def _picture(image: Any) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, Tensor) and image.ndim == 3:
        image = image.permute(1, 2, 0).cpu().numpy()
    fits = (
        isinstance(image, np.ndarray)
        and image.dtype == np.uint8
        and image.ndim == 3
        and image.shape[2] in (1, 3)
        and image.size
    )
    if not fits:
        given = f"{image.dtype} {tuple(image.shape)}" if hasattr(image, "dtype") else type(image).__name__
        raise SuperWeightError(
            "give a file, a picture of Pillow's, or uint8 pixels (H, W, C) of numpy or (C, H, W) of torch, with 1 "
            f"or 3 channels; got {given}"
        )
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
