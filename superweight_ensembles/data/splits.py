"""One part of a data set: images in memory, or files that are read when they are needed.

Shapes: N images of the split, B of a batch, C channels, H W pixels.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from superweight_ensembles.data.batch import checked_labels
from superweight_ensembles.data.images import ImageReader
from superweight_ensembles.data.options import checked_integer
from superweight_ensembles.errors import SuperWeightError

_MOST_READ = 2**28  # bytes of a split, for its fingerprint
_MOST_MARKED = 10_000  # images


def checksum(values: torch.Tensor | str) -> str:
    """BLAKE2b of a text, or of a tensor's bytes: beyond 256 MiB, of numbers evenly spaced in each of its rows."""
    if isinstance(values, str):
        return hashlib.blake2b(values.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    return hashlib.blake2b(_bytes_of(values), digest_size=16).hexdigest()


def _bytes_of(values: torch.Tensor) -> memoryview:
    values = values.detach()
    step = -(-values.nbytes // _MOST_READ)
    if step > 1 and values.ndim > 1:
        values = values.flatten(1)[:, ::step]
    return values.cpu().contiguous().flatten().view(torch.uint8).numpy().data


def stratified_split(labels: torch.Tensor, fraction: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ascending indices to keep and to hold out of labels int64 (N,); 0 <= fraction < 1 of them is held out.

    Example:
        >>> keep, hold = stratified_split(torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]), 0.25, seed=0)
        >>> len(keep), len(hold)
        (6, 2)
    """
    # Not scikit-learn's splitter: it refuses classes of one image and small hold-outs, which image folders do have.
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
    """Number of images that each class gives, int64 (K,), by largest remainder."""
    exact = counts * fraction
    shares = np.floor(exact).astype(np.int64)
    missing = round(float(exact.sum())) - int(shares.sum())
    largest_first = np.argsort(shares - exact, kind="stable")
    shares[largest_first[:missing]] += 1
    # A class of two or more images gives at least one and keeps at least one.
    return np.minimum(np.maximum(shares, 1), counts - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRows:
    """Rows of each batch for one of several processes, from ``first_batch`` on.

    Example:
        >>> list(BatchRows(num_images=10, batch_size=4, shard=(1, 2)))
        [slice(2, 4, None), slice(6, 8, None), slice(9, 10, None)]
        >>> list(BatchRows(num_images=10, batch_size=4, first_batch=2))
        [slice(8, 10, None)]
    """

    num_images: int
    batch_size: int
    shard: tuple[int, int] = (0, 1)  # index of the process, number of processes
    first_batch: int = 0

    def __len__(self) -> int:
        return max(0, -(-self.num_images // self.batch_size) - self.first_batch)

    def __iter__(self) -> Iterator[slice]:
        index, count = self.shard
        for start in range(self.first_batch * self.batch_size, self.num_images, self.batch_size):
            size = min(self.batch_size, self.num_images - start)
            yield slice(start + index * size // count, start + (index + 1) * size // count)


def checked_shard(shard: object, batch_size: int) -> tuple[int, int]:
    """A process's place (index, count) among those that share each batch; no more of them than images a batch."""
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


# Reads batches of pixels, (B, C, H, W) of a split's type on its device. Takes the order of the split's images (int64,
# on the CPU), each batch's rows in it, and the key of an epoch's random parts of files (None for whole images).
ReadBatches = Callable[[torch.Tensor, BatchRows, np.ndarray | None], Iterator[torch.Tensor]]
_Request = tuple[np.ndarray, np.ndarray | None]  # of one batch: indices (B,) into the split, and that key


class ImageSplit(ABC):
    """Images (N, C, H, W) of uint8, or of float32 as they are, and their labels (N,) of int64."""

    labels: torch.Tensor  # int64 (N,), on the CPU
    image_shape: tuple[int, int, int]  # (C, H, W)
    unit: float = 255.0  # pixel level that stands for one: 255 of uint8, 1 of float32
    paths: PathTable | None = None  # files that the images were read from; None without files
    _fingerprint: dict[str, str] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def fingerprint(self) -> dict[str, str]:
        """Checksums of the images and labels, by name, taken once: two splits that train alike have the same."""
        if self._fingerprint is None:
            marks, found = self._checksums()
            if len(self) <= _MOST_MARKED:
                marks = (zlib.crc32(b"%d" % label, mark) for mark, label in zip(marks, self.labels.tolist()))
                # A CRC-32 of each image, of small splits alone.
                found["image marks"] = "".join(f"{mark:08x}" for mark in marks)
            self._fingerprint = {"labels": checksum(self.labels), **found}
        return self._fingerprint

    @abstractmethod
    def _checksums(self) -> tuple[Iterable[int], dict[str, str]]:
        """A CRC-32 of each image, and checksums of all."""

    @abstractmethod
    def open(self, *, device: torch.device, num_workers: int) -> ReadBatches:
        """Function that reads this split's batches for one loader, onto a device; workers decode files."""

    @abstractmethod
    def subset(self, indices: torch.Tensor) -> ImageSplit:
        """Images at these indices, int64 (n,), as a split of their own."""


class MemorySplit(ImageSplit):
    """Split in memory, and on each device that asks for it.

    Args:
        images: uint8 (N, C, H, W), or float32.
        labels: Integers (N,); kept as int64.
        paths: The N files of the images, where there are some; errors name them.

    Raises:
        SuperWeightError: Images or labels that are no tensors or of other types or shapes; numbers that are not finite.
    """

    def __init__(
        self, images: torch.Tensor, labels: torch.Tensor, paths: Sequence[str] | PathTable | None = None
    ) -> None:
        if not isinstance(images, torch.Tensor):
            raise SuperWeightError(
                f"images must be a tensor; got {type(images).__name__}: torch.as_tensor makes one of an array"
            )
        images = images.detach()
        fits = images.ndim == 4 and images.layout is torch.strided and 0 not in images.shape[1:]
        if images.dtype not in (torch.uint8, torch.float32) or not fits:
            remedy = "images.float()" if images.is_floating_point() else "images.to(torch.uint8), of levels 0 to 255"
            raise SuperWeightError(
                f"images must be uint8 or float32 (N, C, H, W); got {images.dtype} {tuple(images.shape)}"
                + (f": {remedy}" if fits else "" if images.layout is torch.strided else ": images.to_dense()")
            )
        if images.is_floating_point() and not bool(images.isfinite().all()):
            row = int((~images.isfinite()).flatten(1).any(1).nonzero()[0])
            raise SuperWeightError(f"image {row} holds numbers that are not finite: leave it out, or mend it")
        self.images = images.contiguous()
        self.unit = 255.0 if images.dtype == torch.uint8 else 1.0
        self.labels = checked_labels(labels, len(images)).cpu()
        self.paths = paths if paths is None or isinstance(paths, PathTable) else PathTable(paths)
        channels, height, width = images.shape[1:]
        self.image_shape = (channels, height, width)
        self._resident: dict[torch.device, torch.Tensor] = {images.device: self.images}

    def open(self, *, device: torch.device, num_workers: int) -> ReadBatches:
        """See :meth:`ImageSplit.open`."""
        return partial(self._read, device)

    def _read(
        self, device: torch.device, order: torch.Tensor, rows: BatchRows, crop_key: np.ndarray | None
    ) -> Iterator[torch.Tensor]:
        assert crop_key is None, "refused by the loader"
        if device not in self._resident:
            self._resident[device] = self.images.to(device)
        indices = order.to(device)
        for place in rows:
            yield self._resident[device].index_select(0, indices[place])

    def _checksums(self) -> tuple[Iterable[int], dict[str, str]]:
        return (zlib.crc32(_bytes_of(image)) for image in self.images), {"pixels": checksum(self.images)}

    def subset(self, indices: torch.Tensor) -> MemorySplit:
        """See :meth:`ImageSplit.subset`."""
        paths = None if self.paths is None else self.paths.subset(indices.numpy())
        return MemorySplit(self.images[indices], self.labels[indices], paths)


class FileSplit(ImageSplit):
    """Split of files that are read batch by batch, for data that memory cannot hold."""

    paths: PathTable

    def __init__(self, paths: Sequence[str] | PathTable, labels: torch.Tensor, reader: ImageReader) -> None:
        self.paths = paths if isinstance(paths, PathTable) else PathTable(paths)
        self.labels = checked_labels(labels, len(self.paths)).cpu()
        self.reader = reader
        self.image_shape = reader.image_shape

    def open(self, *, device: torch.device, num_workers: int) -> ReadBatches:
        """See :meth:`ImageSplit.open`."""
        return _FileBatches(_Files(self.paths, self.reader), device, num_workers)

    def _checksums(self) -> tuple[Iterable[int], dict[str, str]]:
        """Marks and checksums of names and sizes; of contents, too, where all files together have 256 MiB at most."""
        paths = [self.paths[index] for index in range(len(self))]
        start = len(os.path.join(os.path.commonpath(paths), "")) if len(paths) > 1 else 0  # a folder may be moved
        names = [path[start:] for path in paths] if start else [os.path.basename(path) for path in paths]
        try:
            sizes = [os.path.getsize(path) for path in paths]
            found = {"file names": checksum("\0".join(names)), "file sizes": checksum(torch.tensor(sizes))}
            marks = [zlib.crc32(os.fsencode(f"{name} {size}")) for name, size in zip(names, sizes)]
            if sum(sizes) <= _MOST_READ:
                marks = [zlib.crc32(Path(path).read_bytes(), mark) for path, mark in zip(paths, marks)]
                found["file contents"] = checksum(torch.tensor(marks))
        except OSError as error:
            raise SuperWeightError(f"cannot read the image {error.filename}: {error.strerror}") from error
        return marks, found

    def subset(self, indices: torch.Tensor) -> FileSplit:
        """See :meth:`ImageSplit.subset`."""
        return FileSplit(self.paths.subset(indices.numpy()), self.labels[indices], self.reader)


class PathTable:
    """Paths as one string of bytes and where each ends, which forked processes share without copying.

    Example:
        >>> table = PathTable(["images/a.jpg", "images/b.jpg"])
        >>> len(table), table[1], list(table.subset(np.array([1])))
        (2, 'images/b.jpg', ['images/b.jpg'])
    """

    def __init__(self, paths: Sequence[str]) -> None:
        # A list of a million strings is copied into every worker bit by bit, as reading a Python object writes its
        # reference count; of these arrays nothing is written.
        encoded = [os.fsencode(path) for path in paths]
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return os.fsdecode(self._bytes[self._ends[index] : self._ends[index + 1]].tobytes())

    def subset(self, indices: np.ndarray) -> PathTable:
        """Paths at indices (n,)."""
        return PathTable([self[index] for index in indices.tolist()])


class _FileBatches:
    """Reader of the batches of one split of files, epoch after epoch; 0 workers decode in the caller."""

    def __init__(self, files: _Files, device: torch.device, num_workers: int) -> None:
        self._files = files
        self._device = device
        self._num_workers = num_workers
        # Workers are processes of one thread each. The first epoch starts them; they decode two batches each ahead, and
        # wait here for the next epoch. They end with this object, or when an epoch is left before its end.
        self._idle: list[tuple[_Requests, DataLoader[torch.Tensor | SuperWeightError]]] = []

    def __call__(self, order: torch.Tensor, rows: BatchRows, crop_key: np.ndarray | None) -> Iterator[torch.Tensor]:
        # Two epochs that are read at once, by two iterators, need workers of their own.
        requests, loader = self._idle.pop() if self._idle else self._start_workers()
        requests.set(order, rows, crop_key)
        decoded = _raised(iter(loader))
        # On CUDA, batches come in pinned memory and are copied one ahead, beside the step.
        yield from _copied_ahead(decoded, self._device) if self._device.type == "cuda" else decoded
        self._idle.append((requests, loader))

    def _start_workers(self) -> tuple[_Requests, DataLoader[torch.Tensor | SuperWeightError]]:
        requests = _Requests()
        loader: DataLoader[torch.Tensor | SuperWeightError] = DataLoader(
            self._files,
            batch_size=None,
            sampler=requests,
            num_workers=self._num_workers,
            persistent_workers=self._num_workers > 0,
            pin_memory=self._device.type == "cuda",
            generator=torch.Generator(),  # without one, each epoch would advance the global generator
        )
        return requests, loader


class _Requests(Sampler[_Request]):
    """The batches of one epoch, made one by one: a list of all of them would hold every index as a Python object."""

    def set(self, order: torch.Tensor, rows: BatchRows, crop_key: np.ndarray | None) -> None:
        self._order, self._rows, self._crop_key = order.numpy(), rows, crop_key

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[_Request]:
        order, crop_key = self._order, self._crop_key
        for place in self._rows:
            yield order[place].copy(), crop_key


class _Files(Dataset[torch.Tensor]):
    """Reads batches in a worker; an error is handed over as a value, as DataLoader would wrap it in a traceback."""

    def __init__(self, paths: PathTable, reader: ImageReader) -> None:
        self._paths = paths
        self._reader = reader

    def __getitem__(self, request: _Request) -> torch.Tensor | SuperWeightError:  # type: ignore[override]
        indices, crop_key = request
        images = indices.tolist()
        try:
            return self._reader.read([self._paths[image] for image in images], images, crop_key)
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
    """A batch for whose copy the caller's stream waits; its memory is not reused before that stream is done."""
    current = torch.cuda.current_stream(batch.device)
    current.wait_event(copied)
    batch.record_stream(current)
    return batch
