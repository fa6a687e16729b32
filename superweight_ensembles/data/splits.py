"""One part of a data set: images in memory, or files that are read when they are needed.

Shapes: N images of the split, B of a batch, C channels, H W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import DataLoader, Dataset

from superweight_ensembles.data.image_files import ImageReader
from superweight_ensembles.data.stratified import stratified_split
from superweight_ensembles.errors import SuperWeightError


class ImageSplit(ABC):
    """Images (N, C, H, W) of uint8 and their labels (N,) of int64.

    Attributes:
        labels: int64 (N,), on the CPU.
        image_shape: (C, H, W).
    """

    labels: torch.Tensor
    image_shape: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def batches(
        self, order: torch.Tensor, batch_size: int, *, device: torch.device, num_workers: int
    ) -> Iterator[torch.Tensor]:
        """Batches of pixels, uint8 (B, C, H, W) on ``device``, in the order given.

        Args:
            order: int64, on the CPU, indices into the split.
            batch_size: Images a batch; the last may be smaller.
            device: Where the batches go.
            num_workers: Processes that decode files; images in memory need none.
        """

    @abstractmethod
    def subset(self, indices: torch.Tensor) -> ImageSplit:
        """The images at these indices, int64 (n,), as a split of their own."""


class MemorySplit(ImageSplit):
    """A split that is held in memory, and on each device that asks for it.

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,).

    Raises:
        SuperWeightError: Tensors of other types or shapes.
    """

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise SuperWeightError(f"images must be uint8 (N, C, H, W); got {images.dtype} {tuple(images.shape)}")
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise SuperWeightError(
                f"labels must be int64 ({len(images)},), one an image; got {labels.dtype} {tuple(labels.shape)}"
            )
        self.images = images.contiguous()
        self.labels = labels
        channels, height, width = images.shape[1:]
        self.image_shape = (channels, height, width)
        self._resident: dict[torch.device, torch.Tensor] = {images.device: self.images}

    def batches(
        self, order: torch.Tensor, batch_size: int, *, device: torch.device, num_workers: int
    ) -> Iterator[torch.Tensor]:
        """See :meth:`ImageSplit.batches`."""
        images = self._images_on(device)
        for indices in order.to(device).split(batch_size):
            if len(indices):  # splitting no indices yields one batch of none
                yield images.index_select(0, indices)

    def subset(self, indices: torch.Tensor) -> MemorySplit:
        """See :meth:`ImageSplit.subset`."""
        return MemorySplit(self.images[indices], self.labels[indices])

    def _images_on(self, device: torch.device) -> torch.Tensor:
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

    def __init__(self, paths: Sequence[str], labels: torch.Tensor, reader: ImageReader) -> None:
        self.paths = tuple(paths)
        self.labels = labels
        self.reader = reader
        self.image_shape = reader.image_shape

    def batches(
        self, order: torch.Tensor, batch_size: int, *, device: torch.device, num_workers: int
    ) -> Iterator[torch.Tensor]:
        """See :meth:`ImageSplit.batches`.

        Raises:
            SuperWeightError: Names the first file that cannot be read.
        """
        batches: DataLoader[torch.Tensor | SuperWeightError] = DataLoader(
            _FileBatches(self.paths, self.reader),
            batch_size=None,
            sampler=[indices.tolist() for indices in order.split(batch_size) if len(indices)],
            num_workers=num_workers,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # without one, each epoch would advance the global generator
        )
        for images in batches:
            if isinstance(images, SuperWeightError):
                raise images
            yield images.to(device, non_blocking=True)

    def subset(self, indices: torch.Tensor) -> FileSplit:
        """See :meth:`ImageSplit.subset`."""
        return FileSplit([self.paths[index] for index in indices.tolist()], self.labels[indices], self.reader)


class _FileBatches(Dataset[torch.Tensor | SuperWeightError]):
    """Reads batches in a worker; an error is handed over as a value, as DataLoader would wrap it in a traceback."""

    def __init__(self, paths: tuple[str, ...], reader: ImageReader) -> None:
        self._paths = paths
        self._reader = reader

    def __getitem__(self, indices: list[int]) -> torch.Tensor | SuperWeightError:
        try:
            return self._reader.read([self._paths[index] for index in indices])
        except SuperWeightError as error:
            return error


def split_off_validation(
    images: torch.Tensor, labels: torch.Tensor, fraction: float, seed: int
) -> tuple[MemorySplit, MemorySplit]:
    """Training and validation splits in memory, stratified; a fraction of 0 gives an empty validation split."""
    keep, hold = stratified_split(labels, fraction, seed)
    return MemorySplit(images[keep], labels[keep]), MemorySplit(images[hold], labels[hold])
