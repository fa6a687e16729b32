"""What a loader must yield."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from superweight_ensembles.errors import SuperWeightError


def checked_batch(batch: Any) -> tuple[Tensor, Tensor]:
    """One batch of images (B, ...) and class indices (B,) of an integer type.

    Raises:
        SuperWeightError: Anything else.
    """
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch)):
        kind = type(batch).__name__
        size = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
        raise SuperWeightError(f"a batch must be a pair (images, labels) of tensors; the loader yields a {kind}{size}")
    images, labels = batch
    if labels.ndim != 1 or labels.dtype not in (torch.int64, torch.int32, torch.uint8) or len(labels) != len(images):
        raise SuperWeightError(
            "labels must be class indices (batch,) of an integer type, one an image; "
            f"got {labels.dtype} {tuple(labels.shape)} for images {tuple(images.shape)}"
        )
    return images, labels.long()
