"""One part of a data set: images in memory, or files that are read when they are needed.

Shapes: N images of the split, B of a batch, C channels, H W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch

from superweight_ensembles.data.batch_rows import BatchRows
from superweight_ensembles.data.file_batches import FileBatches
from superweight_ensembles.data.image_files import ImageReader
from superweight_ensembles.data.paths import PathTable
from superweight_ensembles.data.stratified import stratified_split
from superweight_ensembles.errors import SuperWeightError


class PixelSource(Protocol):
    """Reads the batches of one split."""

    def batches(
        self, order: torch.Tensor, rows: BatchRows, *, crop_key: np.ndarray | None = None
    ) -> Iterator[torch.Tensor]:
        """Batches of pixels, (B, C, H, W) of the split's type on its device, in the order given.

        Args:
            order: int64, on the CPU, indices into the split.
            rows: Of the order, those of each batch.
            crop_key: Of the epoch's random parts of files; None for whole images.
        """


class ImageSplit(ABC):
    """Images (N, C, H, W) of uint8, or of float32 as they are, and their labels (N,) of int64.

    Attributes:
        labels: int64 (N,), on the CPU.
        image_shape: (C, H, W).
        unit: What stands for one: 255 of uint8, 1 of float32.
    """

    labels: torch.Tensor
    image_shape: tuple[int, int, int]
    unit: float = 255.0

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def open(self, *, device: torch.device, num_workers: int) -> PixelSource:
        """What reads this split's batches for one loader.

        Args:
            device: Where the batches go.
            num_workers: Processes that decode files; images in memory need none.
        """

    @abstractmethod
    def subset(self, indices: torch.Tensor) -> ImageSplit:
        """The images at these indices, int64 (n,), as a split of their own."""


class MemorySplit(ImageSplit):
    """A split that is held in memory, and on each device that asks for it.

    Args:
        images: uint8 (N, C, H, W), or float32.
        labels: int64 (N,).

    Raises:
        SuperWeightError: Tensors of other types or shapes.
    """

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        if images.dtype not in (torch.uint8, torch.float32) or images.ndim != 4:
            raise SuperWeightError(
                f"images must be uint8 or float32 (N, C, H, W); got {images.dtype} {tuple(images.shape)}"
            )
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise SuperWeightError(
                f"labels must be int64 ({len(images)},), one an image; got {labels.dtype} {tuple(labels.shape)}"
            )
        self.images = images.contiguous()
        self.unit = 255.0 if images.dtype == torch.uint8 else 1.0
        self.labels = labels
        channels, height, width = images.shape[1:]
        self.image_shape = (channels, height, width)
        self._resident: dict[torch.device, torch.Tensor] = {images.device: self.images}

    def open(self, *, device: torch.device, num_workers: int) -> PixelSource:
        """See :meth:`ImageSplit.open`."""
        return _MemoryBatches(self, device)

    def subset(self, indices: torch.Tensor) -> MemorySplit:
        """See :meth:`ImageSplit.subset`."""
        return MemorySplit(self.images[indices], self.labels[indices])

    def images_on(self, device: torch.device) -> torch.Tensor:
        """All images, copied to a device once."""
        if device not in self._resident:
            self._resident[device] = self.images.to(device)
        return self._resident[device]


class FileSplit(ImageSplit):
    """A split that is read from files batch by batch, for data that memory cannot hold.

    Args:
        paths: N files.
        labels: int64 (N,).
        reader: Decodes them to images of one size.
    """

    def __init__(self, paths: Sequence[str] | PathTable, labels: torch.Tensor, reader: ImageReader) -> None:
        self.paths = paths if isinstance(paths, PathTable) else PathTable(paths)
        self.labels = labels
        self.reader = reader
        self.image_shape = reader.image_shape

    def open(self, *, device: torch.device, num_workers: int) -> PixelSource:
        """See :meth:`ImageSplit.open`."""
        return FileBatches(self.paths, self.reader, device=device, num_workers=num_workers)

    def subset(self, indices: torch.Tensor) -> FileSplit:
        """See :meth:`ImageSplit.subset`."""
        return FileSplit(self.paths.subset(indices.numpy()), self.labels[indices], self.reader)


class _MemoryBatches:
    """Batches of a split in memory."""

    def __init__(self, split: MemorySplit, device: torch.device) -> None:
        self._split = split
        self._device = device

    def batches(
        self, order: torch.Tensor, rows: BatchRows, *, crop_key: np.ndarray | None = None
    ) -> Iterator[torch.Tensor]:
        assert crop_key is None, "refused by the loader"
        images = self._split.images_on(self._device)
        indices = order.to(self._device)
        for place in rows:
            yield images.index_select(0, indices[place])


def split_off_validation(
    images: torch.Tensor, labels: torch.Tensor, fraction: float, seed: int
) -> tuple[MemorySplit, MemorySplit]:
    """Training and validation splits in memory, stratified; a fraction of 0 gives an empty validation split."""
    keep, hold = stratified_split(labels, fraction, seed)
    return MemorySplit(images[keep], labels[keep]), MemorySplit(images[hold], labels[hold])
