"""Decoding of image files to uint8 tensors of one size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch.nn import functional
from torchvision.transforms import functional as transforms

from superweight_ensembles.errors import SuperWeightError

_FILES_A_TASK = 64
# Pillow clips these to 8 bits instead of scaling them, which turns most such images white.
_DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageReader:
    """How files become images.

    Attributes:
        image_size: Pixels: the shorter side is resized to it and the centre square cut out; None keeps images as
            they are.
        pool: Factor of the average pooling that follows, 1 for none.
        decoded_size: (H, W) before pooling, which every file must have.
    """

    image_size: int | None
    pool: int
    decoded_size: tuple[int, int]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(3, H, W) after pooling."""
        height, width = self.decoded_size
        return 3, height // self.pool, width // self.pool

    def read(self, paths: Sequence[str]) -> torch.Tensor:
        """Decode files, in this thread.

        Returns:
            uint8 (len(paths), 3, H, W).

        Raises:
            SuperWeightError: Names the first file that is no image, or is of another size.
        """
        pixels = np.empty((len(paths), *self.decoded_size, 3), dtype=np.uint8)
        for row, path in enumerate(paths):
            image = decode(path, self.image_size)
            if image.shape[:2] != self.decoded_size:
                height, width = self.decoded_size
                raise SuperWeightError(
                    f"images of different sizes: {path} has {image.shape[0]} x {image.shape[1]} pixels, "
                    f"the first has {height} x {width}: give image_size"
                )
            pixels[row] = image
        return average_pool(rearrange(torch.from_numpy(pixels), "b h w c -> b c h w").contiguous(), self.pool)

    def read_all(self, paths: Sequence[str]) -> torch.Tensor:
        """Decode files in a pool of threads.

        Returns:
            uint8 (len(paths), 3, H, W).

        Raises:
            SuperWeightError: As :meth:`read`.
        """
        images = torch.empty(len(paths), *self.image_shape, dtype=torch.uint8)
        starts = range(0, len(paths), _FILES_A_TASK)
        with ThreadPoolExecutor() as pool:
            decoded: Iterator[torch.Tensor] = pool.map(
                self.read, [paths[start : start + _FILES_A_TASK] for start in starts]
            )
            for start, block in zip(starts, decoded):
                images[start : start + len(block)] = block
        return images


def reader_for(first_path: str, image_size: int | None, pool: int) -> ImageReader:
    """A reader for files that are like the first one.

    Raises:
        SuperWeightError: The file is no image, or ``pool`` does not divide its size.
    """
    height, width, _ = decode(first_path, image_size).shape
    if height % pool or width % pool:
        raise SuperWeightError(f"pool={pool} does not divide the {height} x {width} pixels of {first_path}")
    return ImageReader(image_size=image_size, pool=pool, decoded_size=(height, width))


def decode(path: str, image_size: int | None) -> np.ndarray:
    """One file as colours.

    Returns:
        uint8 (H, W, 3); H = W = image_size unless that is None.

    Raises:
        SuperWeightError: Names a file that is no image, or has more than 8 bits a channel.
    """
    try:
        with Image.open(path) as file:
            mode = file.mode
            image = file.convert("RGB")
    except Exception as error:  # Pillow's plugins raise nearly anything on a broken file
        raise SuperWeightError(f"cannot read the image {path}: {error}") from error
    if mode in _DEEP_MODES:
        raise SuperWeightError(f"{path} has more than 8 bits a channel (mode {mode}): convert it to 8 bits")
    if image_size is not None:
        bilinear = transforms.InterpolationMode.BILINEAR
        image = transforms.center_crop(transforms.resize(image, image_size, bilinear, antialias=True), image_size)
    return np.asarray(image)


def average_pool(images: torch.Tensor, factor: int) -> torch.Tensor:
    """Mean of each factor x factor square, rounded: uint8 (B, C, H, W) to (B, C, H / factor, W / factor)."""
    if factor == 1:
        return images
    return functional.avg_pool2d(images.float(), factor).round().to(torch.uint8)
