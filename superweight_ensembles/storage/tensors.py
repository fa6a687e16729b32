"""Safetensors files: modules are written whole, and only the tensors that are expected are read.

Names, shapes and types are compared before any number is read. The numbers are not checked and may be NaN: the caller
says what they may be. Where several names share their numbers, a file holds one of the names.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.storage.files import PathError, accessing, contained_file

_ASIDE = "or register the buffer with persistent=False"
TensorSpec = tuple[Sequence[int], torch.dtype]
_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}  # fmt: skip


def read_tensors(
    path: Path, expected: Mapping[str, TensorSpec], *, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Read a safetensors file that holds exactly these tensors, in the file's types; any other file is refused.

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
    """Read a file of :func:`write_module` into a module; if a name, shape or type does not fit, nothing changes."""
    header, state = read_header(path), _state(module, f"{path} does not fit")
    empty = {name: owner for name in header if name not in state and (owner := _owner_of_empty_buffer(module, name))}
    _check_taken(path, header, {**state, **empty})
    names = _tied(state, header)
    _compare(path, header, {name: (tuple(state[name].shape), state[name].dtype) for name in names})
    for name in header:
        if name not in names and name not in empty:
            raise SuperWeightError(
                f"{path} does not fit: tensor {name!r:.200} is the same as another one that it holds"
            )
    tensors = _load(path, header, device)
    for name, owner in empty.items():
        setattr(owner, name.rpartition(".")[2], tensors.pop(name))
    problem = _take(module, tensors)
    if problem:
        raise SuperWeightError(f"{path} does not fit: {problem}")


def _owner_of_empty_buffer(module: nn.Module, name: str) -> nn.Module | None:
    """The module that registered a buffer of this name as None, though it may be filled since; None without one."""
    path, _, local = name.rpartition(".")
    owner = dict(module.named_modules()).get(path)
    return owner if owner is not None and owner._buffers.get(local, owner) is None else None


def read_header(path: Path) -> dict[str, TensorSpec]:
    """Shape and type of each tensor of a safetensors file, by name; no number is read."""
    with _opened(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # safe_open is no mapping
        found = {name: (tuple(one.get_shape()), one.get_dtype()) for name, one in slices.items()}
    for name, (_, kind) in found.items():
        if kind not in _TYPES:
            raise SuperWeightError(f"{path} does not fit: tensor {name!r:.200} is of type {kind}, which torch lacks")
    return {name: (shape, _TYPES[kind]) for name, (shape, kind) in found.items()}


@contextmanager
def _opened(path: Path, device: torch.device | str = "cpu") -> Iterator[safe_open]:
    """A safetensors file whose header was checked, against the file's size too, before anything is allocated for it."""
    contained_file(path.parent, path.name)
    try:
        with accessing(path, "read"), safe_open(str(path), framework="pt", device=str(device)) as file:
            yield file
    except torch.OutOfMemoryError:  # the GPU is full: the file may be whole
        raise
    except (SafetensorError, RuntimeError) as error:
        raise SuperWeightError(f"{path} is damaged: {' '.join(str(error).split()):.400}") from None


def count_numbers(path: Path) -> int:
    """Numbers in all tensors of a safetensors file, as its header says; none is read."""
    return sum(math.prod(shape) for shape, _ in read_header(path).values())


def _check_taken(path: Path, header: Iterable[str], takers: Container[str]) -> None:
    for name in header:
        if name not in takers:
            raise SuperWeightError(
                f"{path} does not fit: nothing takes its tensor {name!r:.200} (register buffers in __init__, as None "
                "if they are filled later)"
            )


def _compare(path: Path, header: Mapping[str, TensorSpec], expected: Mapping[str, TensorSpec]) -> None:
    for name, (shape, dtype) in expected.items():
        if name not in header:
            raise SuperWeightError(f"{path} does not fit: tensor {name!r:.200} is missing")
        found_shape, found = header[name]
        if tuple(found_shape) != tuple(shape):
            raise SuperWeightError(
                f"{path} does not fit: tensor {name!r:.200} has the shape {tuple(found_shape)}, expected {tuple(shape)}"
            )
        # A floating-point tensor may come in another floating-point type.
        if found != dtype and not (found.is_floating_point and dtype.is_floating_point):
            raise SuperWeightError(f"{path} does not fit: tensor {name!r:.200} is {found}, expected {dtype}")


def _load(path: Path, header: Iterable[str], device: torch.device | str) -> dict[str, Tensor]:
    with _opened(path, device) as file:
        return {name: file.get_tensor(name) for name in header}


def write_module(path: Path, module: nn.Module) -> None:
    """Write what a module's ``state_dict`` holds, for :func:`read_module` and ``safetensors.torch.load_model``."""
    state = _state(module, f"{type(module).__name__} cannot be saved")
    tied = _tied(state)
    write_tensors(
        path,
        {name: state[name] for name in tied},
        {other: name for name, others in tied.items() for other in others},
    )


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors by name, each whole and contiguous, whatever memory it is a view of."""
    _check_kinds(tensors, str(path))
    owned: dict[str, Tensor] = {}
    storages: set[tuple[torch.device, int]] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().resolve_conj().resolve_neg().contiguous()
        place = (own.device, own.untyped_storage().data_ptr())
        owned[name] = own.clone() if place in storages else own
        storages.add(place)
    try:
        save_file(owned, path, metadata=dict(metadata) if metadata else None)
    except SafetensorError as error:  # its text holds the system's error number
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise SuperWeightError(f"{path} cannot be written: {error}") from None
        raise PathError(path, "written", OSError(int(number[1]), os.strerror(int(number[1])))) from None


def check_savable(module: nn.Module, named: str) -> None:
    """Check, before any work is done, that the state of a module can be written and read back.

    Example:
        >>> module = nn.Linear(3, 2)
        >>> module.register_buffer("mask", torch.ones(1).expand(3))
        >>> check_savable(module, "member 'a'")
        Traceback (most recent call last):
        superweight_ensembles.errors.SuperWeightError: member 'a' cannot be saved: tensor 'mask' is expanded: give it \
memory of its own by .clone(), or register the buffer with persistent=False
    """
    where = f"{named} cannot be saved"
    state = _state(module, where)
    counted = tuple(tensor for tensor in state.values() if not tensor.is_inference())
    # The module loads its own state, as it would from a file. Loading copies in place: without the counters preserved,
    # a backward pass that is still to come would refuse its weights as changed.
    with torch.autograd._unsafe_preserve_version_counter(counted), torch.inference_mode(len(counted) < len(state)):
        problem = _take(module, {name: state[name] for name in _tied(state)})
    if problem:
        raise SuperWeightError(f"{where}: its module does not take its own state again: {problem}")


def _state(module: nn.Module, where: str) -> Mapping[str, Tensor]:
    """A module's ``state_dict``; refused if safetensors cannot hold it or its tensors cannot be copied into."""
    try:
        state = module.state_dict()
    except Exception as error:  # modules may have hooks of their own
        raise SuperWeightError(f"{where}: state_dict() raises {' '.join(repr(error).split()):.400}") from error
    _check_kinds(state, where)
    for name, tensor in state.items():
        if any(size > 1 and not stride for size, stride in zip(tensor.shape, tensor.stride())):
            raise SuperWeightError(
                f"{where}: tensor {name!r:.200} is expanded: give it memory of its own by .clone(), {_ASIDE}"
            )
    return state


def _check_kinds(state: Mapping[str, object], where: str) -> None:
    """Refuse values and names that a safetensors file cannot hold."""
    for name, value in state.items():
        problem = _problem(value)
        if problem or name == "__metadata__":
            problem = problem or "has a name that safetensors keep for themselves: rename it"
            raise SuperWeightError(f"{where}: tensor {name!r:.200} {problem}")


def _problem(value: object) -> str:
    if not isinstance(value, Tensor):
        return f"is of the type {type(value).__name__}, which no safetensors file holds: get_extra_state gives a tensor"
    if is_lazy(value):
        return "has no shape yet: run one batch through the module first"
    if value.is_meta:
        return "is on the meta device and has no numbers: give the module memory by to_empty, then load its weights"
    if value.layout != torch.strided or value.is_nested:
        return f"is {str(value.layout).removeprefix('torch.')}: make it dense by to_dense(), {_ASIDE}"
    if value.is_quantized or hasattr(value, "__tensor_flatten__"):
        kind = "quantised" if value.is_quantized else f"a {type(value).__name__}"
        return f"is {kind}, which no safetensors file holds: save the plain network, and convert it after loading"
    if value.dtype not in _TYPES.values():
        return f"is {value.dtype}, which no safetensors file holds: use another type, {_ASIDE}"
    return ""


def _take(module: nn.Module, tensors: Mapping[str, Tensor]) -> str:
    """Load tensors, which may lack some of the module's; returns what went wrong, or an empty text."""
    left: list[str] = []

    def note(_: nn.Module, keys: Any) -> None:
        left.extend(keys.unexpected_keys)
        keys.unexpected_keys.clear()
        keys.missing_keys.clear()

    handle = module.register_load_state_dict_post_hook(note)
    try:
        module.load_state_dict(dict(tensors))
    except Exception as error:  # modules may have rules of their own
        return " ".join(str(error).split())[:400] or type(error).__name__
    finally:
        handle.remove()
    return f"nothing takes {left[0]!r:.200}: a set_extra_state or a hook for loading is missing" if left else ""


def _tied(state: Mapping[str, Tensor], held: Container[str] = ()) -> dict[str, list[str]]:
    """The other names of each tensor, by the name under which a file holds it: one in ``held``, else the first."""
    storages: dict[object, list[str]] = {}
    for name, tensor in sorted(state.items()):
        start = tensor.untyped_storage().data_ptr() if tensor.numel() else 0
        storages.setdefault((tensor.device, start) if start else name, []).append(name)
    found: dict[str, list[str]] = {}
    for shared in storages.values():
        # As in safetensors.torch.save_model, a tensor that covers the memory stands for all; else each view for itself.
        covering = [name for name in shared if _covers(state[name])]
        views: dict[object, list[str]] = {}
        for name in [] if covering else shared:
            tensor = state[name]
            views.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype), []).append(name)
        for names, all_names in [(covering, shared)] if covering else [(same, same) for same in views.values()]:
            chosen = next((name for name in names if name in held), names[0])
            found[chosen] = [name for name in all_names if name != chosen]
    return found


def _covers(tensor: Tensor) -> bool:
    storage = tensor.untyped_storage()
    return tensor.data_ptr() == storage.data_ptr() and tensor.numel() * tensor.element_size() == storage.nbytes()
