"""Batches decoded from files, by workers that live as long as the loader and go ahead of the step.

Shapes: B images of a batch, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from superweight_ensembles.data.batch_rows import BatchRows
from superweight_ensembles.data.image_files import ImageReader
from superweight_ensembles.data.paths import PathTable
from superweight_ensembles.errors import SuperWeightError


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
