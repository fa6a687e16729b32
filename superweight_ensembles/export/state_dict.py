"""A network as its own tensors, and how to make it again."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import nn

from superweight_ensembles.ensemble.saving import rebuild_member
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.export.plain import PlainMember, float_type
from superweight_ensembles.models.architecture import recall_architecture
from superweight_ensembles.plan.planning import count_parameters
from superweight_ensembles.storage.files import read_json, write_json
from superweight_ensembles.storage.manifest import check_file, file_entry
from superweight_ensembles.storage.tensors import count_numbers, read_module

STATE_FORMAT = 2
_FLOATS = {str(dtype): dtype for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)}


def notes_path(path: Path) -> Path:
    """The JSON beside a safetensors file."""
    return path.with_name(f"{path.name}.json")


def write_state_dict(member: PlainMember, path: Path) -> None:
    """Write ``path`` (safetensors; tied tensors once) and ``path``.json (architecture, shape, type, checksum)."""
    made = recall_architecture(member.module)
    save_model(member.module, str(path))
    write_json(
        notes_path(path),
        {
            "format": STATE_FORMAT,
            "architecture": made and asdict(made),
            "input_shape": list(member.images.shape[1:]),
            "num_classes": member.num_classes,
            "num_parameters": count_parameters(member.module),
            "dtype": str(float_type(member.module)),
            "tensors": file_entry(path),
        },
    )


def load_member(path: str | Path) -> nn.Module:
    """Make a network again that was exported as ``state-dict``; nothing in the files is executed.

    Args:
        path: The safetensors file, with its JSON beside it.

    Returns:
        The plain network, in eval mode on the CPU.

    Raises:
        SuperWeightError: Files missing, damaged or of another version; a network that no registry made.

    Example:
        >>> import tempfile, superweight_ensembles as swe
        >>> from superweight_ensembles.export import export_member
        >>> path = tempfile.mkdtemp() + "/wrn.safetensors"
        >>> export_member(swe.wide_resnet(10, 1, 5), path, format="state-dict", input_shape=(3, 8, 8)).name
        'wrn.safetensors'
        >>> load_member(path).fc.out_features
        5
    """
    path = Path(path)
    notes = notes_path(path)
    content = read_json(notes)
    if content.get("format") != STATE_FORMAT:
        raise SuperWeightError(f"{notes} has format {content.get('format')!r}; this version reads {STATE_FORMAT}")
    dtype = _FLOATS.get(str(content.get("dtype")))
    if dtype is None:
        raise SuperWeightError(f"{notes}: dtype must be one of {', '.join(_FLOATS)}; got {content.get('dtype')!r}")
    check_file(path, content.get("tensors"), f"{notes}, tensors")
    # A network of names takes no more numbers than its file holds: of what is not saved, buffers alone.
    module = _build(content.get("architecture"), notes, count_numbers(path)).to(dtype)
    read_module(path, module)
    return module.eval()


def _build(made: Any, notes: Path, num_numbers: int) -> nn.Module:
    if made is None:
        raise SuperWeightError(
            f"{notes}: no registry made this network: build it, then safetensors.torch.load_model fills it"
        )
    return rebuild_member(made, notes, "architecture", num_numbers)
