"""One member as a file that a plain runtime reads: a torch.export program, an ONNX file, or a state dict.

NAME.pt2                  a program; torch.export.load(path).module() is the network
NAME.onnx                 input "images", output "logits"; compared with PyTorch before the file appears
NAME.safetensors, .json   the network's own tensors, and what :func:`load_member` needs to build the network again
"""

from __future__ import annotations

import importlib
import io
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from superweight_ensembles.data import Preprocessing
from superweight_ensembles.ensemble import SuperWeightEnsemble, check_answers, first_parameter, rebuild_member
from superweight_ensembles.errors import SuperWeightError, check_number, names_options, unknown_name
from superweight_ensembles.models import copied, is_out_of_memory, recall_architecture
from superweight_ensembles.plan import count_parameters
from superweight_ensembles.storage import (
    PathError,
    accessing,
    check_file,
    count_numbers,
    draft_of,
    file_entry,
    read_json,
    read_module,
    write_bytes,
    write_json,
    write_module,
)

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
STATE_FORMAT = 2
_MOST_NUMBERS = 2**26  # in one image
_EXAMPLE_BATCH = 2  # torch takes a size of 1 as a constant
_TOLERANCE = 1e-4
_LARGEST_ONNX = 2**31 - 2**24  # bytes of weights: a protobuf message ends at 2 GiB
_FLOATS = {str(dtype): dtype for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainMember:
    """A network to export: what every format starts from."""

    module: nn.Module  # a copy on the CPU, in eval mode
    input_shape: tuple[int, ...]
    batch_size: int | None  # the only one that the export must take; None for any
    tokens: bool  # whether it takes int64 instead of its floating-point type
    num_classes: int
    images: Preprocessing | None = None

    @property
    def dtype(self) -> torch.dtype:
        return first_parameter({"": self.module}).dtype  # float32 without one

    @property
    def notes(self) -> dict[str, Any]:
        """Facts about inputs and outputs, for a JSON file beside the export."""
        known = {"input_shape": list(self.input_shape), "num_classes": self.num_classes}
        reads = self.images is not None and self.images.image_shape[0] in (1, 3)  # channels of image files
        return {**known, "images": asdict(self.images)} if self.images is not None and reads else known

    def example(self, batch_size: int | None = None, seed: int = 0) -> Tensor:
        """Images (B, ...) that it takes."""
        size = batch_size or self.batch_size or _EXAMPLE_BATCH
        return _example_images(self.module, self.input_shape, size, self.tokens, seed)


def plain_member(
    module: nn.Module,
    input_shape: Sequence[int],
    batch_size: int | None = None,
    images: Preprocessing | None = None,
) -> PlainMember:
    """Copy a network and see that it answers logits (B, K) for images, or else for tokens."""
    if isinstance(module, SuperWeightEnsemble):
        raise SuperWeightError(
            f"an ensemble is exported member by member: give ensemble.materialize({module.member_names[0]!r})"
        )
    if not isinstance(module, nn.Module):
        raise SuperWeightError(f"export needs an nn.Module; got {type(module).__name__}")
    shape = checked_shape(input_shape)
    if batch_size is not None:
        check_number("batch_size (None for any)", batch_size, whole=True, least=1)
    plain = copied(module).cpu().eval()
    noise, tokens = (_example_images(plain, shape, batch_size or _EXAMPLE_BATCH, kind) for kind in (False, True))
    takes_tokens = False
    with torch.no_grad():
        try:
            logits = plain(noise)
        except Exception as error:  # whatever the network's own code raises
            if is_out_of_memory(error):
                raise
            try:
                logits, takes_tokens = plain(tokens), True
            except Exception:
                raise SuperWeightError(
                    f"the network does not take images {tuple(noise.shape)}: {_reason(error)} "
                    "(check input_shape; a member of an ensemble is given as ensemble.materialize(name))"
                ) from error
    check_answers({type(module).__name__: logits})
    if len(logits) != len(noise):
        raise SuperWeightError(f"the network answers {len(logits)} rows of logits for {len(noise)} images")
    num_classes = int(logits.shape[1])
    if images is not None and images.image_shape != shape:
        raise SuperWeightError(f"images are {images.image_shape} by their preprocessing, {shape} by input_shape")
    if images is not None and len(images.classes) not in (0, num_classes):
        raise SuperWeightError(f"images have {len(images.classes)} names of classes, the network answers {num_classes}")
    return PlainMember(
        module=plain, input_shape=shape, batch_size=batch_size, tokens=takes_tokens, num_classes=num_classes,
        images=images,
    )  # fmt: skip


def checked_shape(input_shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of one image as a tuple."""
    shape = tuple(input_shape) if isinstance(input_shape, (tuple, list)) else ()
    if not shape or any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in shape):
        raise SuperWeightError(f"input_shape is that of one image, such as (3, 32, 32); got {input_shape!r}")
    if math.prod(shape) > _MOST_NUMBERS:
        raise SuperWeightError(f"an image has at most {_MOST_NUMBERS:,} numbers; input_shape is {input_shape!r:.80}")
    return shape


def _example_images(module: nn.Module, shape: tuple[int, ...], batch_size: int, tokens: bool, seed: int = 0) -> Tensor:
    """Normal noise (B, ...) in the floating-point type of the module; or tokens, which all its embeddings have."""
    generator = torch.Generator().manual_seed(seed)
    if tokens:
        tables = (layer for layer in module.modules() if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)))
        most = min((table.num_embeddings for table in tables), default=1) or 1
        return torch.randint(most, (batch_size, *shape), generator=generator)
    return torch.randn(batch_size, *shape, generator=generator).to(first_parameter({"": module}).dtype)


def _reason(error: BaseException) -> str:
    """The first paragraph of what an exception's first cause says, on one line of at most 240 characters."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).strip().split("\n\n")[0].split()) or type(error).__name__
    return text if len(text) <= 240 else text[:237] + "..."


def write_program(member: PlainMember, path: Path) -> None:
    """Write a torch.export program (.pt2); torch's own writer would end the process where the disk is full."""
    content = io.BytesIO()
    torch.export.save(_traced(member), content, extra_files={"notes.json": json.dumps(member.notes)})
    write_bytes(path, content.getbuffer())


def _traced(member: PlainMember) -> ExportedProgram:
    """The network's program; the first dimension of images and logits is free unless the batch is fixed."""
    shapes = None if member.batch_size else ({0: Dim("batch", min=1)},)
    try:
        with torch.no_grad():
            program = torch.export.export(member.module, (member.example(),), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # tracing runs the network's own code, which may raise anything
        remedy = "" if member.batch_size else "batch_size= fixes the batch, and "
        raise SuperWeightError(
            f"torch.export cannot trace {type(member.module).__name__}: {_reason(error)} "
            f"({remedy}format='state-dict' takes any network)"
        ) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of source files on this machine
    return program


def write_onnx(member: PlainMember, path: Path) -> None:
    """Write an ONNX file, and run it in onnxruntime beside PyTorch; :func:`check_onnx_packages` was called before."""
    if member.dtype != torch.float32:
        raise SuperWeightError(f"ONNX files are written in float32; the network is {member.dtype}: give module.float()")
    tensors = (*member.module.parameters(), *member.module.buffers())
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if size > _LARGEST_ONNX:
        raise SuperWeightError(f"one ONNX file holds 2 GiB; the network has {size / 2**30:.1f}: use torch-export")
    program = _traced(member)
    try:
        made = torch.onnx.export(
            program,
            (),
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=None if member.batch_size else ({0: "batch"},),
            verbose=False,
        )
    except Exception as error:  # the exporter raises whatever a translation raises
        raise SuperWeightError(
            f"torch.onnx cannot translate {type(member.module).__name__}: {_reason(error)} (format='torch-export' can)"
        ) from error
    assert made is not None
    made.model.metadata_props.update({key: json.dumps(value) for key, value in member.notes.items()})
    made.save(str(path))
    _compare_onnx(member, path)


def _compare_onnx(member: PlainMember, path: Path) -> None:
    """Compare logits on noise, for one, two and five images; the tolerance grows with logits above 1."""
    runtime = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for batch_size in (member.batch_size,) if member.batch_size else (1, 2, 5):
        images = member.example(batch_size, seed=batch_size)
        with torch.no_grad():
            expected = member.module(images)
        try:
            answered = torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
        except Exception as error:
            raise SuperWeightError(
                f"onnxruntime cannot run the export on {batch_size} images: {_reason(error)}"
            ) from None
        difference = float((answered - expected).abs().max())
        if not difference <= _TOLERANCE * max(1.0, float(expected.abs().max())):
            raise SuperWeightError(
                f"onnxruntime and PyTorch differ by {difference:.2g} on {batch_size} images, more than {_TOLERANCE:g}: "
                "nothing is written; format='torch-export' keeps PyTorch's own operations"
            )


def check_onnx_packages() -> None:
    """See that the packages are there before any work is done."""
    for package in ONNX_PACKAGES:
        try:
            importlib.import_module(package)
        except ImportError:
            raise SuperWeightError(
                f'export to ONNX needs the package {package}: pip install "superweight-ensembles[export]"'
            ) from None


def write_state_dict(member: PlainMember, path: Path) -> None:
    """Write safetensors (tied tensors once), and beside them architecture, shape, type and checksum as JSON."""
    write_module(path, member.module)
    architecture = recall_architecture(member.module)
    write_json(
        _notes_path(path),
        {
            "format": STATE_FORMAT,
            "architecture": architecture and asdict(architecture),
            **member.notes,
            "num_parameters": count_parameters(member.module),
            "dtype": str(member.dtype),
            "tensors": file_entry(path),
        },
    )


def _notes_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def load_member(path: str | Path) -> nn.Module:
    """Make a network again that was exported as ``state-dict``; nothing in the files is executed.

    Args:
        path: The safetensors file, with its JSON beside it.

    Returns:
        The plain network, in eval mode on the CPU.

    Raises:
        SuperWeightError: Files that are missing, damaged or of another version; a network that no registry made.

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
    notes = _notes_path(path)
    if path.suffix in (".pt2", ".onnx"):
        raise SuperWeightError(
            f"{path} is no state-dict export (.safetensors with its .json): torch.export.load reads a .pt2 file, "
            "onnxruntime an .onnx file"
        )
    content = read_json(notes)
    if content.get("format") != STATE_FORMAT:
        raise SuperWeightError(f"{notes} has format {content.get('format')!r}; this version reads {STATE_FORMAT}")
    dtype = _FLOATS.get(str(content.get("dtype")))
    if dtype is None:
        raise SuperWeightError(f"{notes}: dtype must be one of {', '.join(_FLOATS)}; got {content.get('dtype')!r}")
    check_file(path, content.get("tensors"), f"{notes}, tensors")
    # A network built by name may have only as many numbers as its file holds, and buffers that are not saved.
    num_numbers, architecture = count_numbers(path), content.get("architecture")
    if architecture is None:
        raise SuperWeightError(
            f"{notes}: no registry made this network: build it, then safetensors.torch.load_model fills it"
        )
    module = rebuild_member(architecture, notes, "architecture", num_numbers).to(dtype)
    read_module(path, module)
    return module.eval()


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


@names_options
def export_member(
    module: nn.Module,
    path: str | Path,
    *,
    format: str,
    input_shape: Sequence[int],
    batch_size: int | None = None,
    images: Preprocessing | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a plain network, such as ``ensemble.materialize(name)``, into a file that does not need this library.

    The file holds the network on the CPU in eval mode; the network given keeps its mode and device. Nothing is
    written where an error is raised.

    Args:
        module: A network that answers logits (B, K) for images (B, ...).
        path: File to write, whose name ends as the format says; its folder is made.
        format: ``torch-export`` (.pt2, for ``torch.export.load``), ``onnx`` (.onnx, input ``images``, output
            ``logits``, float32, compared with PyTorch in onnxruntime) or ``state-dict`` (.safetensors, and .json with
            the architecture, for :func:`load_member` or your own code).
        input_shape: Shape of one image, (C, H, W), or of one sequence; a network that refuses floating-point numbers
            is given tokens of int64.
        batch_size: The one batch size that the program takes; None for any. Not for ``state-dict``.
        images: Preprocessing of image files and names of the classes (``ensemble.images``), which the file keeps.
        overwrite: Whether a file that is there is replaced.

    Returns:
        The path.

    Raises:
        SuperWeightError: An unknown format, a path that ends otherwise or is taken, images that the network does not
            take, or a network that cannot be exported in this format (with torch's message); missing ONNX packages; an
            ONNX file whose logits differ by more than 1e-4, or 1e-4 of the largest where that is above 1.

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
    suffix = FORMATS[format].suffix
    with accessing(Path(path)):
        path = Path(path).resolve()
        if path.suffix != suffix:
            raise SuperWeightError(f"a file in format {format!r} ends in {suffix}; got {path.name}")
        for taken in (path, _notes_path(path)) if format == "state-dict" else (path,):
            if taken.is_dir():
                raise SuperWeightError(f"{taken} is a folder: name a file")
            if taken.exists() and not overwrite:
                raise SuperWeightError(f"{taken} exists already: overwrite replaces it")
    if format == "onnx":
        check_onnx_packages()
    member = plain_member(module, input_shape, batch_size, images)
    with _whole_files(path) as draft:
        FORMATS[format].write(member, draft / path.name)
    return path


@contextmanager
def _whole_files(path: Path) -> Iterator[Path]:
    """Write into a new folder beside ``path``; its files move up at the end, or none does after an error."""
    folder, draft = path.parent, draft_of(path.with_name("export"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draft.mkdir()
        yield draft
        for file in sorted(draft.iterdir()):
            file.replace(folder / file.name)
    except (OSError, PathError) as error:  # the draft's names mean nothing to the user
        raise PathError(path, "written", getattr(error, "cause", error)) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
