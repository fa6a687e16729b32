"""One part of a data set: images in memory, or files that are read when they are needed.

Shapes: N images of the split, B of a batch, C channels, H W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from superweight_ensembles.data.images import ImageReader, PathTable
from superweight_ensembles.data.options import checked_integer
from superweight_ensembles.errors import SuperWeightError

# FOLDED data.batch_rows: Which of an epoch's images one process reads, batch by batch.


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRows:
    """Consecutive batches of an order of images, and of each the rows of one process.

    Attributes:
        num_images: In the order.
        batch_size: Images a batch, over all processes; the last may be smaller.
        shard: (index, count): this process and how many there are. It has the rows from index * B // count to
            (index + 1) * B // count of each batch of B.
        first_batch: Those before it are left out.

    Example:
        >>> list(BatchRows(num_images=10, batch_size=4, shard=(1, 2)))
        [slice(2, 4, None), slice(6, 8, None), slice(9, 10, None)]
        >>> list(BatchRows(num_images=10, batch_size=4, first_batch=2))
        [slice(8, 10, None)]
    """

    num_images: int
    batch_size: int
    shard: tuple[int, int] = (0, 1)
    first_batch: int = 0

    def __len__(self) -> int:
        return max(0, -(-self.num_images // self.batch_size) - self.first_batch)

    def __iter__(self) -> Iterator[slice]:
        index, count = self.shard
        for start in range(self.first_batch * self.batch_size, self.num_images, self.batch_size):
            size = min(self.batch_size, self.num_images - start)
            yield slice(start + index * size // count, start + (index + 1) * size // count)


def checked_shard(shard: object, batch_size: int) -> tuple[int, int]:
    """A process's place among those that share each batch.

    Raises:
        SuperWeightError: No pair of whole numbers (index, count) with 0 <= index < count, or more than images a batch.
    """
    if not (isinstance(shard, tuple) and len(shard) == 2):
        raise SuperWeightError(f"shard must be a pair (index, count); got {shard!r}")
    count = checked_integer("the count of shard", shard[1], 1)
    index = checked_integer("the index of shard", shard[0], 0, below=count)
    if count > batch_size:
        raise SuperWeightError(
            f"{count} processes cannot share batches of {batch_size} images: take a batch_size of at least {count}, or "
            "fewer processes"
        )
    return index, count


# FOLDED data.file_batches: Batches decoded from files, by workers that live as long as the loader and go ahead of the
# step.
#
# Shapes: B images of a batch, H W pixels.


@dataclass(frozen=True, slots=True)
class _Request:
    """One batch: indices (B,) into the split, and the epoch's key of random parts, if any."""

    images: np.ndarray
    crop_key: np.ndarray | None


class FileBatches:
    """Reads batches of one split, epoch after epoch.

    Workers are processes of one thread each; they are started by the first epoch, decode two batches each ahead, and
    wait for the next epoch when one is done. They end with this object, or when an epoch is left before its end. On
    CUDA, batches come in pinned memory and are copied one ahead, beside the step.

    Args:
        paths: N files.
        reader: Decodes them.
        device: Where batches go.
        num_workers: Processes; 0 decodes in the caller.
    """

    def __init__(self, paths: PathTable, reader: ImageReader, *, device: torch.device, num_workers: int) -> None:
        self._dataset = _Files(paths, reader)
        self._device = device
        self._num_workers = num_workers
        self._idle: list[_Pool] = []

    def batches(
        self, order: torch.Tensor, rows: BatchRows, *, crop_key: np.ndarray | None = None
    ) -> Iterator[torch.Tensor]:
        """See :meth:`PixelSource.batches`.

        Raises:
            SuperWeightError: Names the first file that cannot be read.
        """
        # Two epochs that are read at once, by two iterators, need workers of their own.
        pool = self._idle.pop() if self._idle else _Pool(self._dataset, self._device, self._num_workers)
        pool.requests.set(order, rows, crop_key)
        decoded = _raised(iter(pool.loader))
        yield from _copied_ahead(decoded, self._device) if self._device.type == "cuda" else decoded
        self._idle.append(pool)


class _Pool:
    """Workers, and what they are asked for next."""

    def __init__(self, dataset: _Files, device: torch.device, num_workers: int) -> None:
        self.requests = _Requests()
        self.loader: DataLoader[torch.Tensor | SuperWeightError] = DataLoader(
            dataset,
            batch_size=None,
            sampler=self.requests,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # without one, each epoch would advance the global generator
        )


class _Requests(Sampler[_Request]):
    """The batches of one epoch, made one by one: a list of all of them would hold every index as a Python object."""

    def __init__(self) -> None:
        self.set(torch.empty(0, dtype=torch.int64), BatchRows(num_images=0, batch_size=1), None)

    def set(self, order: torch.Tensor, rows: BatchRows, crop_key: np.ndarray | None) -> None:
        self._order, self._rows, self._crop_key = order.numpy(), rows, crop_key

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[_Request]:
        order, crop_key = self._order, self._crop_key
        for place in self._rows:
            yield _Request(order[place].copy(), crop_key)


class _Files(Dataset[torch.Tensor]):
    """Reads batches in a worker; an error is handed over as a value, as DataLoader would wrap it in a traceback."""

    def __init__(self, paths: PathTable, reader: ImageReader) -> None:
        self._paths = paths
        self._reader = reader

    def __getitem__(self, request: _Request) -> torch.Tensor | SuperWeightError:  # type: ignore[override]
        images = request.images.tolist()
        try:
            return self._reader.read([self._paths[image] for image in images], images, request.crop_key)
        except SuperWeightError as error:
            return error


def _raised(answers: Iterator[torch.Tensor | SuperWeightError]) -> Iterator[torch.Tensor]:
    for answer in answers:
        if isinstance(answer, SuperWeightError):
            raise answer
        yield answer


def _copied_ahead(batches: Iterator[torch.Tensor], device: torch.device) -> Iterator[torch.Tensor]:
    """Copy each batch on a stream of its own, while the step on the batch before it runs."""
    stream = torch.cuda.Stream(device)
    ahead: tuple[torch.Tensor, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            copy = batch.to(device, non_blocking=True)
            copied = stream.record_event()
        if ahead is not None:
            yield _ready(*ahead)
        ahead = copy, copied
    if ahead is not None:
        yield _ready(*ahead)


def _ready(batch: torch.Tensor, copied: torch.cuda.Event) -> torch.Tensor:
    """A batch whose copy the caller's stream waits for; its memory is not given away before that stream is done."""
    current = torch.cuda.current_stream(batch.device)
    current.wait_event(copied)
    batch.record_stream(current)
    return batch


# FOLDED data.stratified: Splits that keep the proportions of the classes.


def stratified_split(labels: torch.Tensor, fraction: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices to keep and indices to hold out, both ascending.

    Round(``fraction`` x images) are held out, shared among the classes by largest remainder; then a class of two or
    more images gives at least one and keeps at least one. A fraction of 0 holds nothing out.
    scikit-learn's splitter refuses classes of one image and small hold-outs, which image folders do have.

    Args:
        labels: int64 (N,).
        fraction: 0 <= fraction < 1.
        seed: Chooses the images; the choice is the same on every platform and version.

    Example:
        >>> keep, hold = stratified_split(torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]), 0.25, seed=0)
        >>> len(keep), len(hold)
        (6, 2)
    """
    values = labels.numpy()
    held = np.zeros(len(values), dtype=bool)
    if fraction > 0 and len(values):
        # RandomState's stream is frozen by numpy for good; those of newer generators may change with a version.
        random = np.random.RandomState(seed)
        classes, counts = np.unique(values, return_counts=True)
        for label, share in zip(classes, _shares(counts, fraction)):
            members = np.flatnonzero(values == label)
            held[random.permutation(members)[:share]] = True
    return torch.from_numpy(np.flatnonzero(~held)), torch.from_numpy(np.flatnonzero(held))


def _shares(counts: np.ndarray, fraction: float) -> np.ndarray:
    """How many images each class gives: int64 (K,)."""
    exact = counts * fraction
    shares = np.floor(exact).astype(np.int64)
    missing = round(float(exact.sum())) - int(shares.sum())
    largest_first = np.argsort(shares - exact, kind="stable")
    shares[largest_first[:missing]] += 1
    return np.minimum(np.maximum(shares, 1), counts - 1)


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
