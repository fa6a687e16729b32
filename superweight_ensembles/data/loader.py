"""A data set of images in three splits, and its batches, normalised and augmented on a device."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

import numpy as np
import torch

from superweight_ensembles.data.augmentation import Augmentation, Draws, crop_and_flip, cut_out_, draw
from superweight_ensembles.data.corruptions import Corruption
from superweight_ensembles.data.options import checked_integer, checked_seed, checked_shape
from superweight_ensembles.data.random_streams import epoch_order, generator_for, image_key
from superweight_ensembles.data.splits import BatchRows, FileSplit, ImageSplit, MemorySplit, checked_shard, checksum
from superweight_ensembles.data.transforms import Transforms
from superweight_ensembles.errors import SuperWeightError, names_options, unknown_name

if TYPE_CHECKING:
    from typing_extensions import Unpack

_LOG = logging.getLogger(__name__)
_MARKS = "image marks"
_FAR = 50.0  # standard deviations: no pixel is that far from the mean


class LoaderSettings(TypedDict, total=False):
    """Settings of :class:`ImageLoader` that do not follow from the data; their meaning is explained there."""

    augmentation: Augmentation | None
    shuffle: bool
    drop_last: bool
    seed: int
    device: torch.device | str
    num_workers: int
    shard: tuple[int, int]
    corruption: Corruption | None


@names_options
@dataclass(frozen=True, slots=True, kw_only=True)
class ImageData:
    """Images and labels in three splits.

    Attributes:
        name: Name of the data set in results.
        classes: Names in the order of the labels.
        image_shape: (C, H, W).
        mean: Mean per channel, of pixels scaled to [0, 1].
        std: Standard deviation per channel, of pixels scaled to [0, 1].
        train: Split for training.
        validation: Split for every decision, thresholds among them; may be empty.
        test: Split for the reported numbers alone.
        pool: Factor of the average pooling with which files are read; 1 for none.

    Raises:
        SuperWeightError: Fewer than two classes or two of one name, no training images, a split of another type or
            image shape, labels outside the classes, or other than one mean and one positive std a channel.

    Example:
        >>> from superweight_ensembles.data import load_data
        >>> data = load_data("digits")
        >>> data.image_shape, data.num_classes, len(data.train), len(data.validation), len(data.test)
        ((1, 8, 8), 10, 809, 90, 898)
        >>> images, labels = next(iter(data.loader("train", 32, shuffle=True)))
        >>> images.shape, labels.shape
        (torch.Size([32, 1, 8, 8]), torch.Size([32]))
    """

    name: str
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: ImageSplit
    validation: ImageSplit
    test: ImageSplit
    pool: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or isinstance(self.classes, str) or not isinstance(self.classes, Sequence):
            raise SuperWeightError(f"name must be a text, classes a list of names; got {self.name!r}, {self.classes!r}")
        classes = tuple(map(str, self.classes))
        shape = checked_shape(f"{self.name}: image_shape", self.image_shape)
        mean, std = _numbers(self.mean), _numbers(self.std)
        if not len(mean) == len(std) == shape[0] or min(std) <= 0:
            raise SuperWeightError(
                f"{self.name}: {shape[0]} channels need as many means and positive stds; got {self.mean}, {self.std}"
            )
        for key, value in {"classes": classes, "image_shape": shape, "mean": mean, "std": std}.items():
            object.__setattr__(self, key, value)
        if len(set(classes)) < 2:
            raise SuperWeightError(f"{self.name}: a network tells two classes or more apart; got {list(classes)}")
        if len(set(classes)) < len(classes):
            twice = next(name for name in classes if classes.count(name) > 1)
            raise SuperWeightError(f"{self.name}: two classes are named {twice!r}: give each a name of its own")
        for name, split in self._splits().items():
            if not isinstance(split, ImageSplit):
                raise SuperWeightError(
                    f"{self.name}: {name} must be MemorySplit(images, labels) or another split, an empty one where "
                    f"there are no images; got {type(split).__name__}"
                )
            if tuple(split.image_shape) != shape:
                high, wide, channels = split.image_shape
                last = ": images.permute(0, 3, 1, 2) puts channels first" if (channels, high, wide) == shape else ""
                raise SuperWeightError(
                    f"{self.name}: {name} images have the shape {tuple(split.image_shape)}, not {shape}{last}"
                )
            least, most = map(int, split.labels.aminmax()) if len(split) else (0, 0)
            if not 0 <= least <= most < len(classes):
                raise SuperWeightError(
                    f"{self.name}: {name} labels must be 0 to {len(classes) - 1}; they are {least} to {most}"
                )
        if not len(self.train):
            raise SuperWeightError(f"{self.name}: no image is left to train on")
        self._check_range()

    def _check_range(self) -> None:
        """Warn of float images whose mean and std are of another range, as of pixels up to 255."""
        if not isinstance(self.train, MemorySplit) or not self.train.images.is_floating_point():
            return
        low, high = (float(bound) for bound in self.train.images.aminmax())
        if max(abs(bound - mean) / std for bound in (low, high) for mean, std in zip(self.mean, self.std)) > _FAR:
            _LOG.warning(
                "%s: float images go from %g to %g, and are normalised by mean %s and std %s as they are: give uint8 "
                "images, or mean and std of that range", self.name, low, high, self.mean, self.std,
            )  # fmt: skip

    @property
    def num_classes(self) -> int:
        """Number of classes, K."""
        return len(self.classes)

    def loader(
        self,
        split: str,
        batch_size: int,
        **settings: Unpack[LoaderSettings],
    ) -> ImageLoader:
        """Normalised batches of ``train``, ``validation`` or ``test``; see :class:`ImageLoader` for the settings."""
        splits = self._splits()
        if split not in splits:
            raise unknown_name("split", split, splits)
        return ImageLoader(
            splits[split], batch_size, mean=self.mean, std=self.std, num_classes=self.num_classes, **settings
        )

    def fingerprint(self) -> dict[str, str]:
        """Sizes and checksums of the splits, with classes, mean and std: equal for data that train alike.

        Raises:
            SuperWeightError: An image file cannot be read.
        """
        found = {"classes": checksum("\0".join(self.classes)), "mean and std": f"{self.mean} {self.std}"}
        for name, split in self._splits().items():
            found[f"number of {name} images"] = str(len(split))
            found |= {f"{name} {what}": sum_of for what, sum_of in split.fingerprint().items()}
        return found

    def unknown_images(self, fingerprint: Mapping[str, str]) -> list[str]:
        """Images, by file or index, that are not in another data's fingerprint; empty where it marks no images."""
        splits = self._splits()
        marks = [fingerprint.get(f"{name} {_MARKS}") for name in splits]
        if not all(isinstance(one, str) for one in marks):
            return []
        known = {mark for one in marks for mark in _marks_of(one)}
        return [
            f"{name} image {index}" if split.paths is None else split.paths[index]
            for name, split in splits.items()
            for index, mark in enumerate(_marks_of(split.fingerprint().get(_MARKS)))
            if mark not in known
        ]

    def _splits(self) -> dict[str, ImageSplit]:
        return {"train": self.train, "validation": self.validation, "test": self.test}


def _numbers(values: object) -> tuple[float, ...]:
    """Finite numbers; empty where the values are anything else."""
    try:
        found = tuple(float(value) for value in values)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        return ()
    return found if all(map(math.isfinite, found)) else ()


def _marks_of(marks: str | None) -> list[str]:
    """The mark of each image, eight digits."""
    marks = marks or ""
    return [marks[start : start + 8] for start in range(0, len(marks), 8)]


@names_options
class ImageLoader:
    """Iterable of (images, labels): float32 (B, C, H, W), normalised, and int64 (B,), both on the device.

    Order and augmentation are functions of (seed, epoch) alone: earlier random draws and the device change nothing, so
    that a resumed run continues exactly. Call :meth:`set_epoch` before each epoch.

    Several processes share each batch by ``shard``: their parts, put together in order, are the batch of a single
    process, and each decodes its own part alone.

    Args:
        split: Images and their labels.
        batch_size: Images a batch, over all processes.
        mean: Mean per channel, of pixels scaled to [0, 1]; float32 pixels are taken as they are.
        std: Standard deviation per channel, likewise.
        num_classes: K, for transforms that mix images and make labels float32 (B, K); from the split's labels if None.
        augmentation: Augmentation of the images; None for none, as evaluation wants.
        shuffle: Whether each epoch has a new order; else the order is that of the split.
        drop_last: Whether to leave out a last batch that is smaller.
        seed: Seed of order and augmentation, 0 to 2**32 - 1.
        device: Device on which pixels are worked on and batches appear.
        num_workers: Processes of one thread that decode files some batches ahead of the step; they live as long as the
            loader. The batches are the same for any number. Images in memory need none.
        shard: (index, count): yield the rows from index * B // count to (index + 1) * B // count of each batch of B. A
            last batch smaller than the count, where it is kept, leaves some processes a part without images.
        corruption: Corruption of every image, to measure robustness; its noise follows from the seed, so that the same
            batches have the same noise.

    Raises:
        SuperWeightError: A setting out of range, an augmentation larger than the images, ``random_resized_crop`` of
            images in memory, ``drop_last`` with fewer images than a batch, or more shards than images a batch.
    """

    def __init__(
        self,
        split: ImageSplit,
        batch_size: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        num_classes: int | None = None,
        augmentation: Augmentation | None = None,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        device: torch.device | str = "cpu",
        num_workers: int = 0,
        shard: tuple[int, int] = (0, 1),
        corruption: Corruption | None = None,
    ) -> None:
        self.split = split
        if corruption is not None and not isinstance(corruption, Corruption):
            raise SuperWeightError(f"corruption must be a swe.data.Corruption; got {corruption!r:.80}")
        self.corruption = corruption
        self.batch_size = checked_integer("batch_size", batch_size, 1)
        self.shard = checked_shard(shard, self.batch_size)
        self.augmentation = augmentation or Augmentation()
        self.augmentation.check_fits(split.image_shape)
        if self.augmentation.random_resized_crop and not isinstance(split, FileSplit):
            raise SuperWeightError(
                "random_resized_crop cuts parts out of files, and these images are in memory: use crop_padding, or, "
                "for an image_folder, memory_limit_mb: 0"
            )
        classes = num_classes or max(2, 1 + int(split.labels.max())) if len(split) else 2
        self._transforms = Transforms(self.augmentation.transforms, classes)
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.seed = checked_seed(seed)
        self.epoch = 0
        self.first_batch = 0
        self._order: tuple[int, torch.Tensor] | None = None  # of an epoch, for indices()
        self.device = torch.device(device)
        self.num_workers = checked_integer("num_workers", num_workers, 0)
        self._read = split.open(device=self.device, num_workers=self.num_workers)
        if drop_last and len(split) < self.batch_size:
            raise SuperWeightError(
                f"drop_last leaves no batch: the split has {len(split)} images, a batch {batch_size}; "
                "take a smaller batch_size"
            )
        # (x / unit - mean) / std as one multiplication and one addition a pixel.
        means, stds = (torch.tensor(list(values), dtype=torch.float64).view(-1, 1, 1) for values in (mean, std))
        self._scale = (1 / (split.unit * stds)).float().to(self.device)
        self._shift = (-means / stds).float().to(self.device)

    def __len__(self) -> int:
        """Number of batches of a whole epoch, wherever the next iteration starts; the same for every shard."""
        full, rest = divmod(len(self.split), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Set the epoch, for the order and augmentation of the next iterations, and the batch at which they start.

        Args:
            epoch: Index of the epoch, from 0.
            first_batch: Index of the first batch, from 0; the batches before it are neither yielded nor decoded, so
                that a run can go on in the middle of an epoch.

        Raises:
            SuperWeightError: A value that is no whole number of at least 0, or a first batch past the end of the epoch.
        """
        epoch = checked_integer("epoch", epoch, 0)
        if checked_integer("first_batch", first_batch, 0) > len(self):
            raise SuperWeightError(f"first_batch {first_batch} is past the end: an epoch has {len(self)} batches")
        self.epoch, self.first_batch = epoch, first_batch

    @property
    def num_images(self) -> int:
        """Number of images in the split."""
        return len(self.split)

    def indices(self, batch: int) -> torch.Tensor:
        """Indices into the split of the images of a batch of the epoch, over all shards: int64 (B,)."""
        if self._order is None or self._order[0] != self.epoch:
            self._order = self.epoch, epoch_order(self.num_images, self.seed, self.epoch, self.shuffle)
        return self._order[1][batch * self.batch_size : (batch + 1) * self.batch_size]

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        # Drawn here, not in the generator below: a set_epoch during an epoch must not change that epoch.
        num_images = len(self.split)
        order = epoch_order(num_images, self.seed, self.epoch, self.shuffle)[: len(self) * self.batch_size]
        draws = draw(self.augmentation, num_images, self.split.image_shape, seed=self.seed, epoch=self.epoch)
        random_parts = self.augmentation.random_resized_crop
        crop_key = image_key(self.seed, self.epoch, "resized_crop") if random_parts else None
        rows = BatchRows(
            num_images=len(order), batch_size=self.batch_size, shard=self.shard, first_batch=self.first_batch
        )
        return self._batches(order, rows, draws.to(self.device), crop_key)

    def _batches(
        self, order: torch.Tensor, every_rows: BatchRows, draws: Draws, crop_key: np.ndarray | None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        labels = self.split.labels[order].to(self.device)
        noise = generator_for(self.seed, self.epoch, "corruption")
        pixels = self._read(order, every_rows, crop_key)
        for images, rows in zip(pixels, every_rows):  # pixels first, to run their reader to its end
            if self.corruption is not None:
                images = self.corruption(images.float() / self.split.unit, noise) * self.split.unit
            yield self._augmented(images, labels[rows], draws.rows(rows))

    def _augmented(self, images: torch.Tensor, labels: torch.Tensor, draws: Draws) -> tuple[torch.Tensor, torch.Tensor]:
        """Transforms, crop, flip, normalise, Cutout, transforms: (B, C, H, W) to float32."""
        seeds = [] if draws.seed is None else draws.seed.tolist()
        images = crop_and_flip(self._transforms.of_pixels(images, seeds), draws, self.augmentation.crop_padding)
        normalised = images.float().mul_(self._scale).add_(self._shift)
        return self._transforms.of_normalised(cut_out_(normalised, draws, self.augmentation.cutout), labels, seeds)
