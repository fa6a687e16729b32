"""Random numbers that are functions of a seed and an epoch alone."""

from __future__ import annotations

import numpy as np
import torch

# A stream of its own for each purpose: switching the flips on leaves the order and the crops as they were.
_PURPOSES = ("order", "flip", "crop", "cutout")


def generator_for(seed: int, epoch: int, purpose: str) -> torch.Generator:
    """A CPU generator for one purpose in one epoch; the global generator is neither read nor advanced.

    Example:
        >>> first, again = (torch.rand(3, generator=generator_for(0, 5, "flip")) for _ in range(2))
        >>> torch.equal(first, again)
        True
    """
    sequence = np.random.SeedSequence(seed, spawn_key=(epoch, _PURPOSES.index(purpose)))
    return torch.Generator().manual_seed(int(sequence.generate_state(1, np.uint64)[0]))


def epoch_order(num_images: int, seed: int, epoch: int, shuffle: bool) -> torch.Tensor:
    """The order in which an epoch visits the images: int64 (num_images,)."""
    if not shuffle:
        return torch.arange(num_images)
    return torch.randperm(num_images, generator=generator_for(seed, epoch, "order"))
