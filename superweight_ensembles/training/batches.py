"""Where training batches come from: one loader for all members, or one for each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
)

from superweight_ensembles.data import (
    Augmentation,
    ImageData,
    ImageLoader,
    Inputs,
    Targets,
    check_labels,
    checked_batch,
    checked_labels,
    checked_pair,
    checksum,
    mapped,
    num_rows,
    tensors_of,
)
from superweight_ensembles.ensemble import CLASSIFICATION, Task
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.training.config import TrainConfig

Batches = Iterable[object]  # pairs of inputs and targets, or mappings
_SEEDS_APART = 1_000_003


class SizedBatches(Protocol):
    """Batches of inputs and targets that can be iterated every epoch, and whose number is known."""

    def __iter__(self) -> Iterator[object]: ...

    def __len__(self) -> int: ...


def training_batches(
    data: ImageData | SizedBatches,
    validation: Batches | None,
    config: TrainConfig,
    device: torch.device,
    members: Sequence[str],
    shard: tuple[int, int] = (0, 1),
) -> tuple[list[SizedBatches], Batches | None]:
    """Training batches, one loader for all members or one for each, and validation batches."""
    if validation is not None and (isinstance(validation, str) or not isinstance(validation, Iterable)):
        raise SuperWeightError(
            f"validation must yield (images, labels), as ImageData.loader(...) does; got {type(validation).__name__}"
        )
    if hasattr(validation, "__next__"):
        raise SuperWeightError(
            f"validation is read every epoch, and a {type(validation).__name__} can be read once: give a DataLoader, "
            "or a list of batches"
        )
    if not isinstance(data, ImageData):
        if isinstance(data, str) or not hasattr(data, "__len__") or len(data) == 0:
            raise SuperWeightError(
                "training data must be ImageData (from load_data) or a sized iterable of at least one batch"
            )
        if augmentation_of(config) != Augmentation() or config.num_workers:
            raise SuperWeightError(
                "flip, crop_padding, cutout, random_resized_crop, transforms and num_workers are for ImageData: let "
                "your own loader augment"
            )
        if config.member_batches != "same":
            raise SuperWeightError("member_batches 'own' needs ImageData: a loader of your own has one order")
        return [data], validation
    streams = range(len(members)) if config.member_batches == "own" else range(1)
    loaders: list[SizedBatches] = [
        training_loader(data, replace(config, seed=(config.seed + index * _SEEDS_APART) % 2**32), device, shard)
        for index in streams
    ]
    if validation is None and len(data.validation):
        validation = data.loader(
            "validation", max(256, config.batch_size), device=device, num_workers=config.num_workers, shard=shard
        )
    return loaders, validation


def training_loader(
    data: ImageData, config: TrainConfig, device: torch.device | str = "cpu", shard: tuple[int, int] = (0, 1)
) -> ImageLoader:
    """Shuffled, augmented batches of the training split."""
    if len(data.train) < config.batch_size:
        raise SuperWeightError(
            f"{data.name} has {len(data.train)} training images, fewer than batch_size {config.batch_size}"
        )
    return data.loader(
        "train",
        config.batch_size,
        augmentation=augmentation_of(config),
        shuffle=True,
        drop_last=True,
        seed=config.seed,
        device=device,
        num_workers=config.num_workers,
        shard=shard,
    )


def augmentation_of(config: TrainConfig) -> Augmentation:
    """The augmentation of training images that a config asks for."""
    return Augmentation(
        flip=config.flip,
        crop_padding=config.crop_padding,
        cutout=config.cutout,
        random_resized_crop=config.random_resized_crop,
        transforms=config.transforms,
    )


def fingerprint_of(name: str, loader: Batches | None, num_processes: int = 1) -> dict[str, str]:
    """Sizes and checksums that identify a user's own loader, as far as they are known without reading its batches."""
    if loader is None or isinstance(loader, ImageLoader):
        return {}
    dataset, size = getattr(loader, "dataset", None), getattr(loader, "batch_size", None)
    counted = {"batches": loader, "images": dataset}
    found = {f"number of {name} {what}": str(len(held)) for what, held in counted.items() if isinstance(held, Sized)}
    if isinstance(size, int):
        found[f"number of {name} images a batch"] = str(size * num_processes)
    labels = _labels_of(dataset) if isinstance(dataset, Sized) else None
    if labels is not None:
        found[f"{name} labels"] = checksum(labels)
    held = [one for batch in loader for one in tensors_of(batch)] if isinstance(loader, (list, tuple)) else []
    tensors = dataset.tensors if isinstance(dataset, TensorDataset) else held
    if tensors:
        found[f"{name} tensors"] = checksum("".join(map(checksum, tensors)))
    return found


def prepared_batch(
    batch: Any,
    device: torch.device,
    channels_last: bool,
    *,
    num_classes: int | None = None,  # number of classes to check the targets against, if any
    dtype: torch.dtype | None = None,  # floating-point type of the members
    task: Task = CLASSIFICATION,
    labelled: bool = True,  # whether the task compares answers with targets; an objective does it itself
) -> tuple[Inputs, Targets]:
    """A batch as :func:`checked_pair` returns it, on the device and in the memory format of the members."""
    inputs, targets = checked_pair(batch, dtype=dtype)
    if labelled and task is CLASSIFICATION and not _are_soft(targets):
        targets = checked_labels(targets, num_rows(inputs))
    if labelled and num_classes is not None:
        task.check_range(targets, num_classes)
    ahead = device.type == "cuda"  # a copy into the host's memory would be read before it is complete

    def moved(tensor: Tensor) -> Tensor:  # inference tensors are copied, as backward cannot save them
        return tensor.to(device, non_blocking=ahead, copy=tensor.is_inference())

    return mapped(lambda one: in_memory_format(moved(one), channels_last), inputs), mapped(moved, targets)


def _are_soft(targets: Targets) -> bool:
    """Whether targets are probabilities of classes (B, K)."""
    return isinstance(targets, Tensor) and targets.ndim == 2 and targets.is_floating_point()


def in_memory_format(images: Tensor, channels_last: bool) -> Tensor:
    """Images (B, C, H, W) channels-last or contiguous; other inputs stay as they are."""
    if images.ndim != 4:
        return images
    if channels_last:
        return images.contiguous(memory_format=torch.channels_last)
    # a one-channel tensor can be in both formats at once, and convolutions go by its strides: the views reset them
    return images.contiguous().view(-1).view(images.shape)


def check_targets(num_classes: int, targets: Targets, loaders: Iterable[Batches], task: Task) -> None:
    """Check targets, and labels that loaders are known to have, against the classes that members answer."""
    if task is CLASSIFICATION and num_classes < 2:
        raise SuperWeightError("members must answer logits of two classes or more; these answer one")
    task.check_range(targets, num_classes)
    if task is not CLASSIFICATION or _are_soft(targets):
        return
    for loader in loaders:
        known = _known_labels(loader)
        if known is None:
            continue
        if not isinstance(loader, DataLoader):
            check_labels(known, num_classes)
            continue
        suspects = ((known < 0) | (known >= num_classes)).nonzero().flatten().tolist()
        try:
            samples = [checked_batch(loader.collate_fn([loader.dataset[row]])) for row in suspects[:1]]
        except Exception:  # reading it in its batch will say what is wrong
            continue
        for _, label in samples:
            check_labels(label, num_classes)


def needs_checks(loader: Batches) -> bool:
    """Whether the labels of each batch must be checked; those of an :class:`ImageLoader` are known from the start."""
    return not isinstance(loader, ImageLoader)


def leaves_one_row(loader: Batches) -> bool:
    """Whether it is known that some batch of an epoch has one row."""
    if type(loader) in (list, tuple):
        return any(num_rows(checked_pair(batch)[0]) == 1 for batch in loader)
    if not isinstance(loader, DataLoader) or not _reads_all(loader):
        return False
    size = loader.batch_size or 1
    return not loader.drop_last and len(loader.sampler) % size == 1  # type: ignore[arg-type]  # it has a length


def _known_labels(loader: Batches) -> Tensor | None:
    """Labels (N,) that a loader is going to give, where they are known without reading it."""
    if isinstance(loader, ImageLoader):
        return loader.split.labels
    if type(loader) in (list, tuple):
        pairs = map(checked_pair, loader)
        hard = (pair for pair in pairs if not _are_soft(pair[1]))
        return torch.cat([checked_labels(targets, num_rows(inputs)) for inputs, targets in hard])
    return _labels_of(loader.dataset) if isinstance(loader, DataLoader) and _reads_all(loader) else None


def _reads_all(loader: DataLoader[Any]) -> bool:
    """Whether every image of the data set is in some batch."""
    samplers = (SequentialSampler, RandomSampler, DistributedSampler)
    return type(loader.batch_sampler) is BatchSampler and type(loader.sampler) in samplers


def _labels_of(dataset: Any) -> Tensor | None:
    if isinstance(dataset, Subset):
        labels = _labels_of(dataset.dataset)
        return None if labels is None else labels[torch.as_tensor(dataset.indices, dtype=torch.int64)]
    held = dataset.tensors[-1] if isinstance(dataset, TensorDataset) else getattr(dataset, "targets", None)
    try:
        labels = torch.as_tensor(held)
    except (TypeError, ValueError, RuntimeError):
        return None
    fits = labels.ndim == 1 and not labels.is_floating_point() and len(labels) == len(dataset)
    return labels if fits else None
