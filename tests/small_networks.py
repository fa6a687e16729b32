"""Networks and data of several tests; each test module has those of its own beside its tests."""

from __future__ import annotations

import functools
from itertools import pairwise

import torch
from torch import nn

import superweight_ensembles as swe
from superweight_ensembles.data import ImageData, ImageLoader


class Bag(nn.Module):
    """Tokens (B, T) to the mean of a table's rows, a hidden layer and three classes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding, self.hidden, self.fc = nn.Embedding(20, 8), nn.Linear(8, width), nn.Linear(width, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.fc(self.hidden(self.embedding(tokens).mean(1)).relu())


def linear_chain(*sizes: int) -> nn.Sequential:
    """Linear layers from size to size, and a head of three classes."""
    return nn.Sequential(*(nn.Linear(i, o) for i, o in pairwise(sizes)), nn.Linear(sizes[-1], 3))


def two_mlps() -> dict[str, nn.Module]:
    """Members of six inputs and three classes that no registry made."""
    torch.manual_seed(1)
    return {name: nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)) for name in ("a", "b")}


def rms(tensor: torch.Tensor) -> float:
    return tensor.detach().double().square().mean().sqrt().item()


@functools.lru_cache
def patterns() -> ImageData:
    """96 made-up images of four classes to train on, 8 x 8."""
    return swe.load_data("synthetic", num_train=96, num_test=32)


def pattern_batches() -> ImageLoader:
    """The training images in order; the last batch is smaller."""
    return patterns().loader("train", 36)
