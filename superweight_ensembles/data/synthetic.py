"""Generated images that a small model learns in a few steps, for tests and trials."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from superweight_ensembles.data.image_data import ImageData
from superweight_ensembles.data.options import checked_fraction, checked_integer, checked_seed
from superweight_ensembles.data.splits import MemorySplit, split_off_validation
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.storage.machine_memory import check_parameters_fit

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
