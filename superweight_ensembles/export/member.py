"""One member as a file that a plain runtime reads."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from superweight_ensembles.errors import SuperWeightError, unknown_name
from superweight_ensembles.export.onnx_file import check_onnx_packages, write_onnx
from superweight_ensembles.export.plain import PlainMember, plain_member
from superweight_ensembles.export.program import write_program
from superweight_ensembles.export.state_dict import notes_path, write_state_dict


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A file format: how its names end and what writes it."""

    suffix: str
    write: Callable[[PlainMember, Path], None]


FORMATS = {
    "torch-export": Format(suffix=".pt2", write=write_program),
    "onnx": Format(suffix=".onnx", write=write_onnx),
    "state-dict": Format(suffix=".safetensors", write=write_state_dict),
}


def export_member(
    module: nn.Module,
    path: str | Path,
    *,
    format: str,
    input_shape: Sequence[int],
    batch_size: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a plain network, such as ``ensemble.materialize(name)``, into a file that does not need this library.

    The file holds the network on the CPU in eval mode; the network given keeps its mode and device. Nothing is
    written where an error is raised.

    Args:
        module: Answers logits (B, K) for images (B, ...).
        path: Ends as the format says; its folder is made.
        format: ``torch-export`` (.pt2, for ``torch.export.load``), ``onnx`` (.onnx, input ``images``, output
            ``logits``, float32, compared with PyTorch in onnxruntime) or ``state-dict`` (.safetensors, and .json with
            the architecture, for :func:`load_member` or your own code).
        input_shape: Of one image, (C, H, W), or of one sequence; a network that refuses floating-point numbers is given
            tokens of int64.
        batch_size: The one batch size that the program takes; None for any. Not for ``state-dict``.
        overwrite: Replace a file that is there.

    Returns:
        The path.

    Raises:
        SuperWeightError: An unknown format, a path that ends otherwise or is taken, images that the network does not
            take, or a network that cannot be exported so (says what torch said); ONNX packages missing; an ONNX file
            whose logits differ by more than 1e-4, or 1e-4 of the largest where that is above 1.

    Example:
        >>> import tempfile, torch, superweight_ensembles as swe
        >>> members = {"wrn10-1": swe.wide_resnet(10, 1, 5), "wrn10-2": swe.wide_resnet(10, 2, 5)}
        >>> network = swe.SuperWeightEnsemble(members, budget=0.9).materialize("wrn10-1")
        >>> path = tempfile.mkdtemp() + "/wrn10-1.pt2"
        >>> export_member(network, path, format="torch-export", input_shape=(3, 8, 8)).name
        'wrn10-1.pt2'
        >>> torch.export.load(path).module()(torch.zeros(7, 3, 8, 8)).shape
        torch.Size([7, 5])
    """
    if format not in FORMATS:
        raise unknown_name("export format", format, FORMATS)
    if format == "state-dict" and batch_size is not None:
        raise SuperWeightError("a state dict has no batch size: leave batch_size out")
    path, suffix = Path(path).resolve(), FORMATS[format].suffix
    if path.suffix != suffix:
        raise SuperWeightError(f"a file in format {format!r} ends in {suffix}; got {path.name}")
    for taken in (path, notes_path(path)) if format == "state-dict" else (path,):
        check_free(taken, overwrite=overwrite)
    if format == "onnx":
        check_onnx_packages()
    member = plain_member(module, input_shape, batch_size)
    with _whole_files(path.parent) as draft:
        FORMATS[format].write(member, draft / path.name)
    return path


def check_free(path: Path, *, overwrite: bool) -> None:
    """Refuse a file that is there unless it may be replaced, and a folder in any case.

    Raises:
        SuperWeightError: Says which.
    """
    if path.is_dir():
        raise SuperWeightError(f"{path} is a folder: name a file")
    if path.exists() and not overwrite:
        raise SuperWeightError(f"{path} exists already: overwrite replaces it")


@contextmanager
def _whole_files(folder: Path) -> Iterator[Path]:
    """Write into a new folder inside ``folder``; its files move up at the end, or none does after an error."""
    folder.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".export.", dir=folder))
    try:
        yield draft
        for file in sorted(draft.iterdir()):
            file.replace(folder / file.name)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
