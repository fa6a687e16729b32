"""Crop, flip and Cutout of whole batches, with random numbers drawn ahead for an epoch.

Shapes: N images of an epoch, B images of a batch, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import torch
from torch.nn import functional

from superweight_ensembles.data.options import checked_integer, checked_switch
from superweight_ensembles.data.random_streams import generator_for
from superweight_ensembles.data.transforms import check_transforms
from superweight_ensembles.errors import SuperWeightError, names_options


@names_options
@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """Augmentation of training images, in this order: resized crop, crop, flip, (normalising,) Cutout.

    Source: DeVries & Taylor, arXiv:1708.04552, section 3.2 (Cutout).
    """

    flip: bool = False  # left to right, with probability 1/2
    crop_padding: int = 0  # pixels of black border on each side, before a random crop of the original size
    cutout: int = 0  # side of the square in pixels; its centre is uniform over the image, the border clips it
    random_resized_crop: bool = False  # random_region in place of the centre square; for image files alone
    # Options of torchvision's transforms, by name; transforms of pixels run before all else, the others after it.
    transforms: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("flip", "random_resized_crop"):
            checked_switch(name, getattr(self, name))
        checked_integer("crop_padding", self.crop_padding, 0)
        checked_integer("cutout", self.cutout, 0)
        check_transforms(self.transforms)

    def check_fits(self, image_shape: tuple[int, int, int]) -> None:
        """Refuse borders and squares that would hide a whole image, and flips of images of one column."""
        if self.flip and image_shape[2] < 2:
            raise SuperWeightError("flip does nothing with images of one column: leave it out")
        side = min(image_shape[1:])
        for name, pixels in (("crop_padding", self.crop_padding), ("cutout", self.cutout)):
            if pixels >= side:
                raise SuperWeightError(f"{name} of {pixels} pixels must be less than the images' {side} pixels")


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws:
    """Random numbers of N images; None where an augmentation is off."""

    flip: torch.Tensor | None = None  # bool (N,)
    crop: torch.Tensor | None = None  # int64 (N, 2), row and column in the padded image where the crop starts
    cutout: torch.Tensor | None = None  # int64 (N, 2), row and column of the square's centre
    seed: torch.Tensor | None = None  # int64 (N,), of the transforms

    def rows(self, rows: slice) -> Draws:
        """Random numbers of some of the images."""
        return Draws(**{name: None if draws is None else draws[rows] for name, draws in self._named().items()})

    def to(self, device: torch.device) -> Draws:
        """Same numbers on a device; seeds stay on the CPU, where they are read."""
        moved = {name: draws.to(device) for name, draws in self._named().items() if draws is not None}
        return Draws(**{**moved, "seed": self.seed})

    def _named(self) -> dict[str, torch.Tensor | None]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def draw(
    augmentation: Augmentation, num_images: int, image_shape: tuple[int, int, int], *, seed: int, epoch: int
) -> Draws:
    """Random numbers of an epoch, in the order in which it visits its images."""
    _, height, width = image_shape

    def uniform(purpose: str, *limits: int) -> torch.Tensor:
        # On the CPU whatever the device is, so that every device sees the same images.
        generator = generator_for(seed, epoch, purpose)
        return torch.stack([torch.randint(limit, (num_images,), generator=generator) for limit in limits], dim=1)

    shifts = 2 * augmentation.crop_padding + 1
    return Draws(
        flip=uniform("flip", 2)[:, 0].bool() if augmentation.flip else None,
        crop=uniform("crop", shifts, shifts) if augmentation.crop_padding else None,
        cutout=uniform("cutout", height, width) if augmentation.cutout else None,
        seed=uniform("transforms", 2**62)[:, 0] if augmentation.transforms else None,
    )


def crop_and_flip(images: torch.Tensor, draws: Draws, crop_padding: int) -> torch.Tensor:
    """Pad images (B, C, H, W) of any type with 0, crop and mirror; one gather does all of it where there is a crop."""
    if draws.crop is None:
        if draws.flip is None:
            return images
        return torch.where(draws.flip[:, None, None, None], images.flip(3), images)
    batch, channels, height, width = images.shape
    rows = torch.arange(height, device=images.device).expand(batch, -1)
    columns = torch.arange(width, device=images.device).expand(batch, -1)
    if draws.flip is not None:
        columns = torch.where(draws.flip[:, None], width - 1 - columns, columns)
    images = functional.pad(images, (crop_padding,) * 4)
    rows = rows + draws.crop[:, :1]
    columns = columns + draws.crop[:, 1:]
    pixels = rows[:, :, None] * images.shape[3] + columns[:, None, :]
    index = pixels.flatten(1)[:, None].expand(-1, channels, -1)
    return images.flatten(2).gather(2, index).view(batch, channels, height, width)


def cut_out_(images: torch.Tensor, draws: Draws, size: int) -> torch.Tensor:
    """Set a square of each normalised image (B, C, H, W) to 0, in place."""
    if draws.cutout is None:
        return images
    # A square of an even size reaches one pixel further up and left of its centre.
    first = draws.cutout - size // 2
    inside = []
    for axis, length in enumerate(images.shape[2:]):
        distance = torch.arange(length, device=images.device) - first[:, axis : axis + 1]
        inside.append((distance >= 0) & (distance < size))
    square = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return images.masked_fill_(square, 0.0)
