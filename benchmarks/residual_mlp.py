"""Networks of any number of small weights: residual blocks, so that numbers stay finite however deep they are."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ResidualMLP(nn.Module):
    """Images to logits through blocks of two linear layers, narrow to wide and back; two targets a block.

    Args:
        num_blocks: Of two linear layers each.
        width: Numbers between blocks; twice as many inside.
        image_size: Height and width of the images (B, 3, H, W).
        num_classes: Logits.
    """

    def __init__(self, num_blocks: int, width: int, image_size: int, num_classes: int = 10) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(min(2, image_size))
        self.width = width
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
            for _ in range(num_blocks)
        )
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        pooled = self.pool(images).flatten(1)
        hidden = F.pad(pooled, (0, self.width - pooled.shape[1]))
        scale = len(self.blocks) ** -0.5
        for block in self.blocks:
            hidden = torch.add(hidden, block(hidden), alpha=scale)
        logits: Tensor = self.head(hidden)
        return logits
