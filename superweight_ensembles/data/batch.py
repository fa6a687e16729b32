"""What a loader yields: inputs and targets of any structure of tensors. Shapes: B rows of a batch, K classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from superweight_ensembles.errors import SuperWeightError

# A tensor (B, ...), or a dictionary, which members take as keywords, or a tuple, which they take as arguments.
Inputs = Any
Targets = Any
LABELS = "labels"
LABEL_TYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_PLAIN = (bool, int, float, type(None))


def tensors_of(structure: Any) -> list[Tensor]:
    """Every tensor of a structure, in order.

    Example:
        >>> [tuple(one.shape) for one in tensors_of({"ids": torch.zeros(2, 5), "pair": (torch.ones(2), None)})]
        [(2, 5), (2,)]
    """
    return [structure] if isinstance(structure, Tensor) else [x for x in tree_leaves(structure) if _is_tensor(x)]


def mapped(function: Callable[[Tensor], Tensor], structure: Any) -> Any:
    """The structure with a function applied to each of its tensors."""
    return function(structure) if isinstance(structure, Tensor) else tree_map_only(Tensor, function, structure)


def rows_of(structure: Any, rows: slice | Tensor) -> Any:
    """Some rows of every tensor that has rows.

    Example:
        >>> rows_of({"ids": torch.arange(6).view(3, 2), "scale": 2.0}, slice(0, 1))
        {'ids': tensor([[0, 1]]), 'scale': 2.0}
    """
    return mapped(lambda tensor: tensor[rows] if tensor.ndim else tensor, structure)


def num_rows(structure: Any) -> int:
    """Number of rows B of the first tensor that has rows; 0 without one."""
    return next((len(tensor) for tensor in tensors_of(structure) if tensor.ndim), 0)


def checked_loader(loader: Any) -> Iterator[Any]:
    """Iterator over the batches of a loader; an object that cannot be iterated is refused."""
    if not isinstance(loader, Iterable):
        raise SuperWeightError(
            f"loader must yield (images, labels), as ImageData.loader(...) does; got {type(loader).__name__}"
        )
    return iter(loader)


def checked_pair(batch: Any, *, dtype: torch.dtype | None = None) -> tuple[Inputs, Targets]:
    """Inputs and targets of a batch, as plain dictionaries and tuples of tensors that have the same rows.

    Example:
        >>> checked_pair({"ids": torch.zeros(2, 3), "labels": torch.tensor([0, 1])})[1]
        tensor([0, 1])
    """
    if isinstance(batch, Mapping):  # as Hugging Face's loaders yield it
        if LABELS not in batch or len(batch) < 2:
            raise SuperWeightError(
                f"a batch that is one mapping needs inputs and {LABELS!r}; got {', '.join(map(str, batch)) or 'none'}"
            )
        batch = ({key: value for key, value in batch.items() if key != LABELS}, batch[LABELS])
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
        size = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
        raise SuperWeightError(
            f"a batch must be a pair (images, labels) of tensors; the loader yields a {type(batch).__name__}{size}"
        )
    inputs, targets = (plain(part) for part in batch)
    count = _check_tensors(inputs, targets)
    what = "images" if isinstance(inputs, Tensor) else "inputs"
    for name, tensor in _named_tensors(inputs, what):
        if dtype is not None and tensor.is_floating_point() and tensor.dtype != dtype:
            raise SuperWeightError(f"the {name} are {tensor.dtype}, the members {dtype}: convert one of them")
    for name, tensor in (*_named_tensors(inputs, what), *_named_tensors(targets, "targets")):
        if tensor.ndim and len(tensor) != count and not (isinstance(inputs, Tensor) and isinstance(targets, Tensor)):
            raise SuperWeightError(f"a batch must have the same rows throughout: {name} has {len(tensor)}, not {count}")
    return inputs, targets


def checked_batch(
    batch: Any, *, num_classes: int | None = None, dtype: torch.dtype | None = None
) -> tuple[Inputs, Tensor]:
    """Inputs (B, ...) of :func:`checked_pair`, and class indices (B,) of any integer type, as int64."""
    inputs, labels = checked_pair(batch, dtype=dtype)
    labels = checked_labels(labels, num_rows(inputs))
    if num_classes is not None:
        check_labels(labels, num_classes)
    return inputs, labels


def checked_labels(labels: Any, count: int) -> Tensor:
    """Class indices (count,) of any integer type, as int64; labels of another shape or type are refused."""
    if not isinstance(labels, Tensor):
        raise SuperWeightError(
            f"labels must be a tensor of class indices ({count},), one an image; got {type(labels).__name__}: "
            "torch.as_tensor makes one of an array"
        )
    if labels.dtype not in LABEL_TYPES or tuple(labels.shape) != (count,):
        remedy = "squeeze(1)" if labels.shape[1:] == (1,) else "argmax(1)" if labels.ndim == 2 else "long()"
        fits = labels.ndim in (1, 2) and len(labels) == count
        raise SuperWeightError(
            f"labels must be class indices ({count},) of an integer type, one an image; got {labels.dtype} "
            f"{tuple(labels.shape)}{f': labels.{remedy}' if fits else ''}"
        )
    return labels.long()


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Refuse labels that are no classes of the members."""
    if not labels.numel():
        return
    least, most = (int(bound) for bound in labels.aminmax())
    if least < 0 or most >= num_classes:
        raise SuperWeightError(
            f"labels must be 0 to {num_classes - 1}, the members' classes; the loader has {least} to {most}"
            + (": leave out the images without a class" if least < 0 else "")
        )


def plain(structure: Any) -> Any:
    """Mappings of any class as dictionaries, sequences as tuples; leaves must be tensors or numbers."""
    if isinstance(structure, Tensor):
        return structure
    if isinstance(structure, Mapping):
        return {str(key): plain(value) for key, value in structure.items()}
    if isinstance(structure, (tuple, list)):
        return tuple(map(plain, structure))
    if not isinstance(structure, (Tensor, *_PLAIN)):
        raise SuperWeightError(
            "a batch must be a pair (images, labels) of tensors, or of dictionaries and tuples of tensors and numbers; "
            f"it holds a {type(structure).__name__}"
        )
    return structure


def _check_tensors(inputs: Inputs, targets: Targets) -> int:
    """Number of rows B; meta tensors, sparse tensors and inputs without rows are refused."""
    for tensor in (*tensors_of(inputs), *tensors_of(targets)):
        if tensor.is_meta:
            raise SuperWeightError("a batch of meta tensors holds no numbers: load it on a device with memory")
        if tensor.layout != torch.strided:
            raise SuperWeightError(f"a batch must be dense tensors; its images are {tensor.layout}: images.to_dense()")
    if not any(tensor.ndim for tensor in tensors_of(inputs)):
        raise SuperWeightError(
            "a batch must be a pair (images, labels) of tensors, its images (batch, ...); got no tensor with rows"
        )
    return num_rows(inputs)


def _named_tensors(structure: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(structure, Tensor):
        yield name, structure
    parts = structure.items() if isinstance(structure, dict) else enumerate(structure) if _is_tuple(structure) else ()
    for key, part in parts:
        yield from _named_tensors(part, f"{name}[{key!r}]")


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


def _is_tuple(value: object) -> bool:
    return isinstance(value, tuple)
