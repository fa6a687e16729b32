"""Random numbers that are functions of a seed and an epoch alone."""

from __future__ import annotations

import numpy as np
import torch

# A stream of its own for each purpose: switching the flips on leaves the order and the crops as they were.
_PURPOSES = ("order", "flip", "crop", "cutout", "resized_crop", "transforms", "corruption")


def generator_for(seed: int, epoch: int, purpose: str) -> torch.Generator:
    """CPU generator for one purpose in one epoch; the global generator is neither read nor advanced.

    Example:
        >>> first, again = (torch.rand(3, generator=generator_for(0, 5, "flip")) for _ in range(2))
        >>> torch.equal(first, again)
        True
    """
    return torch.Generator().manual_seed(int(_state(seed, epoch, purpose, 1)[0]))


def image_key(seed: int, epoch: int, purpose: str) -> np.ndarray:
    """Key with which :func:`image_generator` draws for single images of one epoch: uint64 (2,)."""
    return _state(seed, epoch, purpose, 2)


def image_generator(key: np.ndarray, image: int) -> np.random.Generator:
    """Generator for one image that starts at its index, so that no worker needs the numbers of the images before it.

    Example:
        >>> key = image_key(0, 5, "resized_crop")
        >>> first, again, other = (image_generator(key, image).random() for image in (7, 7, 8))
        >>> first == again, first == other
        (True, False)
    """
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, image]))


def epoch_order(num_images: int, seed: int, epoch: int, shuffle: bool) -> torch.Tensor:
    """Order in which an epoch visits the images: int64 (num_images,)."""
    if not shuffle:
        return torch.arange(num_images)
    return torch.randperm(num_images, generator=generator_for(seed, epoch, "order"))


def _state(seed: int, epoch: int, purpose: str, num_words: int) -> np.ndarray:
    sequence = np.random.SeedSequence(seed, spawn_key=(epoch, _PURPOSES.index(purpose)))
    return sequence.generate_state(num_words, np.uint64)
