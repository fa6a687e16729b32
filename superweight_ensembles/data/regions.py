"""Which part of a picture becomes an image: its centre, or a random part."""

from __future__ import annotations

import math

import numpy as np

Region = tuple[float, float, float, float]

_AREA = (0.08, 1.0)
_RATIO = (3 / 4, 4 / 3)
_ATTEMPTS = 10


def centre_square(width: int, height: int, size: int) -> Region:
    """What is left of a picture whose shorter side is resized to ``size`` and whose centre square is then cut out.

    Args:
        width: Of the picture, in pixels.
        height: Of the picture, in pixels.
        size: Of the square, in pixels of the resized picture.

    Returns:
        Left, top, right, bottom, in pixels of the picture.

    Example:
        >>> centre_square(400, 200, 100)
        (100.0, 0.0, 300.0, 200.0)
    """
    # Whole pixels of the resized picture, rounded as torchvision's resize and center_crop do.
    long = int(size * max(width, height) / min(width, height))
    resized = (long, size) if width >= height else (size, long)
    left, top = (round((length - size) / 2.0) for length in resized)
    across, down = width / resized[0], height / resized[1]
    return left * across, top * down, (left + size) * across, (top + size) * down


def random_region(width: int, height: int, generator: np.random.Generator) -> Region:
    """A part of 8 to 100 % of a picture's area with sides in a ratio of 3/4 to 4/3, anywhere in it.

    Where ten attempts do not fit into a long, narrow picture, the largest centred part of such a ratio.

    Args:
        width: Of the picture, in pixels.
        height: Of the picture, in pixels.
        generator: Of this image and epoch.

    Returns:
        Left, top, right, bottom, in whole pixels of the picture.

    Source: Szegedy et al., arXiv:1409.4842, section 6; in the form of torchvision's RandomResizedCrop.
    """
    areas = width * height * generator.uniform(*_AREA, size=_ATTEMPTS)
    ratios = np.exp(generator.uniform(math.log(_RATIO[0]), math.log(_RATIO[1]), size=_ATTEMPTS))
    across = np.rint(np.sqrt(areas * ratios)).astype(int)
    down = np.rint(np.sqrt(areas / ratios)).astype(int)
    where = generator.random(2)
    fits = (across >= 1) & (across <= width) & (down >= 1) & (down <= height)
    if fits.any():
        first = int(fits.argmax())
        wide, high = int(across[first]), int(down[first])
        left, top = math.floor(where[0] * (width - wide + 1)), math.floor(where[1] * (height - high + 1))
    else:
        wide = min(width, max(1, round(height * _RATIO[1])))
        high = min(height, max(1, round(width / _RATIO[0])))
        left, top = (width - wide) // 2, (height - high) // 2
    return float(left), float(top), float(left + wide), float(top + high)
