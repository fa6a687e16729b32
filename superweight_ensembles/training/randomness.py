"""The generators of random numbers that a training draws from: of torch, numpy and Python."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

_PYTHON_VERSION = 3  # of random.getstate


def seed_all(seed: int) -> None:
    """Seed all generators of this process."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def random_states(device: torch.device) -> dict[str, Tensor]:
    """The states of all generators by name, as tensors whose shapes never change."""
    states = {"torch": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    _, keys, place, has_gauss, gauss = np.random.get_state()
    states["numpy.keys"] = torch.from_numpy(np.asarray(keys, dtype=np.int64))
    states["numpy.rest"] = torch.tensor([place, has_gauss, gauss], dtype=torch.float64)
    _, words, next_gauss = random.getstate()
    states["python.keys"] = torch.tensor(words, dtype=torch.int64)
    states["python.gauss"] = torch.tensor([math.nan if next_gauss is None else next_gauss], dtype=torch.float64)
    return states


def set_random_states(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Put all generators back into states that :func:`random_states` gave."""
    place, has_gauss, gauss = states["numpy.rest"].tolist()
    np.random.set_state(("MT19937", states["numpy.keys"].numpy().astype(np.uint32), int(place), int(has_gauss), gauss))
    gauss_left = states["python.gauss"].item()
    next_gauss = None if math.isnan(gauss_left) else gauss_left
    random.setstate((_PYTHON_VERSION, tuple(states["python.keys"].tolist()), next_gauss))
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


@contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """Restore the caller's generators at the end, whatever is drawn or seeded inside."""
    before = random_states(device)
    try:
        yield
    finally:
        set_random_states(before, device)
