"""Safetensors files, read as what is expected of them: names, shapes and types are compared before any number is."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.storage.files import contained_file, parse_json

TensorSpec = tuple[Sequence[int], torch.dtype]
_MOST_HEADER = 2**25  # bytes; 100,000 tensors take half of that
_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64,
}  # fmt: skip


def read_tensors(
    path: Path, expected: Mapping[str, TensorSpec], *, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Read a safetensors file that holds exactly these tensors; anything else is refused.

    Another floating-point type is taken for a floating-point type; the tensors come back in the type of the file.

    Example:
        >>> import tempfile
        >>> from safetensors.torch import save_file
        >>> path = Path(tempfile.mkdtemp()) / "numbers.safetensors"
        >>> save_file({"a": torch.zeros(2, 3)}, path)
        >>> read_tensors(path, {"a": ((2, 3), torch.float32)})["a"].shape
        torch.Size([2, 3])
    """
    header = read_header(path)
    _check_taken(path, header, expected)
    _compare(path, header, expected)
    return _load(path, header, device)


def read_module(path: Path, module: nn.Module, *, device: torch.device | str = "cpu") -> None:
    """Read a file of ``safetensors.torch.save_model`` into a module; of names that share a tensor it holds one.

    Where it is refused, as :func:`read_tensors` does, the module is as it was.
    """
    header, state = read_header(path), module.state_dict()
    _check_taken(path, header, state)
    names = _one_name_each(state, header)
    _compare(path, header, {name: (tuple(state[name].shape), state[name].dtype) for name in names})
    for name in header:
        if name not in names:
            raise SuperWeightError(
                f"{path} does not fit: tensor {name!r:.200} is the same as another one that it holds"
            )
    try:
        module.load_state_dict(_load(path, header, device), strict=False)
    except RuntimeError as error:  # modules may have rules of their own
        raise SuperWeightError(f"{path} does not fit: {' '.join(str(error).split()):.400}") from None


def read_header(path: Path) -> dict[str, TensorSpec]:
    """Shape and type of each tensor of a safetensors file, by name; no number is read."""
    contained_file(path.parent, path.name)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(size - 8, _MOST_HEADER):
            raise SuperWeightError(f"{path} is damaged: its header claims {length:,} bytes; the file has {size:,}")
        header = file.read(length)
    try:
        content = parse_json(header.decode("utf-8"), f"{path}, header,")
    except UnicodeDecodeError:
        raise SuperWeightError(f"{path} is damaged: its header is no text") from None
    if not isinstance(content, dict):
        raise SuperWeightError(f"{path} is damaged: its header is no object")
    content.pop("__metadata__", None)
    return {name: _spec(path, name, entry) for name, entry in content.items()}


def count_numbers(path: Path) -> int:
    """Numbers in all tensors of a safetensors file, as its header says; none is read."""
    return sum(math.prod(shape) for shape, _ in read_header(path).values())


def _spec(path: Path, name: str, entry: object) -> TensorSpec:
    shape = entry.get("shape") if isinstance(entry, dict) else None
    dtype = _TYPES.get(str(entry.get("dtype"))) if isinstance(entry, dict) else None
    if dtype is None or not isinstance(shape, list) or any(type(size) is not int or size < 0 for size in shape):
        raise SuperWeightError(
            f"{path} is damaged: tensor {name!r:.200} needs a known dtype and a shape; got {entry!r:.120}"
        )
    return tuple(shape), dtype


def _check_taken(path: Path, header: Iterable[str], takers: Container[str]) -> None:
    for name in header:
        if name not in takers:
            raise SuperWeightError(f"{path} does not fit: nothing takes its tensor {name!r:.200}")


def _compare(path: Path, header: Mapping[str, TensorSpec], expected: Mapping[str, TensorSpec]) -> None:
    for name, (shape, dtype) in expected.items():
        if name not in header:
            raise SuperWeightError(f"{path} does not fit: tensor {name!r:.200} is missing")
        found_shape, found = header[name]
        if tuple(found_shape) != tuple(shape):
            raise SuperWeightError(
                f"{path} does not fit: tensor {name!r:.200} has the shape {tuple(found_shape)}, expected {tuple(shape)}"
            )
        if found != dtype and not (found.is_floating_point and dtype.is_floating_point):
            raise SuperWeightError(f"{path} does not fit: tensor {name!r:.200} is {found}, expected {dtype}")


def _load(path: Path, header: Iterable[str], device: torch.device | str) -> dict[str, Tensor]:
    try:
        with safe_open(str(path), framework="pt", device=str(device)) as file:
            return {name: file.get_tensor(name) for name in header}
    except (SafetensorError, RuntimeError, OSError, ValueError) as error:
        raise SuperWeightError(f"{path} is damaged: {' '.join(str(error).split()):.400}") from None


def _one_name_each(state: Mapping[str, Tensor], given: Mapping[str, TensorSpec]) -> list[str]:
    """The names under which a file must hold a state: of those that share their numbers, the one that it has.

    As ``save_model`` writes it, the one that is held covers all that its names share.
    """
    storages: dict[object, list[str]] = {}
    for name, tensor in state.items():
        start = tensor.untyped_storage().data_ptr()
        storages.setdefault((tensor.device, start) if start else name, []).append(name)
    names = []
    for shared in storages.values():
        covering = [name for name in shared if len(shared) > 1 and _covers(state[name])]
        held = [name for name in covering if name in given]
        names += (held or covering)[:1] or shared
    return names


def _covers(tensor: Tensor) -> bool:
    storage = tensor.untyped_storage()
    return tensor.data_ptr() == storage.data_ptr() and tensor.numel() * tensor.element_size() == storage.nbytes()
