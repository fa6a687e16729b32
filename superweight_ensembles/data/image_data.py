"""A data set of images: its three splits and what a model and a loader must know of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from superweight_ensembles.data.augmentation import Augmentation
from superweight_ensembles.data.loader import ImageLoader
from superweight_ensembles.data.splits import ImageSplit
from superweight_ensembles.errors import SuperWeightError, unknown_name


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageData:
    """Images and labels in three splits.

    Attributes:
        name: What results call it.
        classes: Names in the order of the labels.
        image_shape: (C, H, W).
        mean: Per channel, of pixels scaled to [0, 1].
        std: Per channel, of pixels scaled to [0, 1].
        train: For training.
        validation: For every decision, thresholds among them; may be empty.
        test: For figures alone.

    Raises:
        SuperWeightError: No training images, a split of another shape, labels outside the classes, or other than
            one mean and one positive std a channel.

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

    def __post_init__(self) -> None:
        channels = self.image_shape[0]
        if not len(self.mean) == len(self.std) == channels or min(self.std) <= 0:
            raise SuperWeightError(
                f"{self.name}: {channels} channels need as many means and positive stds; got {self.mean}, {self.std}"
            )
        if not len(self.train):
            raise SuperWeightError(f"{self.name}: no image is left to train on")
        for name, split in self._splits().items():
            if tuple(split.image_shape) != tuple(self.image_shape):
                raise SuperWeightError(
                    f"{self.name}: {name} images have the shape {tuple(split.image_shape)}, not {self.image_shape}"
                )
            if len(split) and not 0 <= int(split.labels.min()) <= int(split.labels.max()) < self.num_classes:
                raise SuperWeightError(f"{self.name}: {name} labels must be 0 to {self.num_classes - 1}")

    @property
    def num_classes(self) -> int:
        """Classes, K."""
        return len(self.classes)

    def loader(
        self,
        split: str,
        batch_size: int,
        *,
        augmentation: Augmentation | None = None,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        device: torch.device | str = "cpu",
        num_workers: int = 0,
        shard: tuple[int, int] = (0, 1),
    ) -> ImageLoader:
        """Normalised batches of ``train``, ``validation`` or ``test``; see :class:`ImageLoader` for the settings.

        Raises:
            SuperWeightError: No such split, or a setting that :class:`ImageLoader` refuses.
        """
        splits = self._splits()
        if split not in splits:
            raise unknown_name("split", split, splits)
        return ImageLoader(
            splits[split],
            batch_size,
            mean=self.mean,
            std=self.std,
            augmentation=augmentation,
            shuffle=shuffle,
            drop_last=drop_last,
            seed=seed,
            device=device,
            num_workers=num_workers,
            shard=shard,
        )

    def _splits(self) -> dict[str, ImageSplit]:
        return {"train": self.train, "validation": self.validation, "test": self.test}
