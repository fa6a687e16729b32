"""A network as an ONNX file, checked against PyTorch."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.export.plain import PlainMember, example_images, float_type, said
from superweight_ensembles.export.program import torch_program

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
INPUT, OUTPUT = "images", "logits"
_TOLERANCE = 1e-4
_LARGEST = 2**31 - 2**24  # bytes of weights: a protobuf message ends at 2 GiB


def check_onnx_packages() -> None:
    """See that the packages are there before any work is done.

    Raises:
        SuperWeightError: One is missing; says what to install.
    """
    for package in ONNX_PACKAGES:
        _package(package)


def write_onnx(member: PlainMember, path: Path) -> None:
    """Write ``path`` with input ``images`` and output ``logits``, and run it in onnxruntime beside PyTorch.

    Raises:
        SuperWeightError: A package is missing; the network is not float32, too large, or uses an operation that ONNX
            does not have; the file answers otherwise than the network.
    """
    check_onnx_packages()
    dtype = float_type(member.module)
    if dtype != torch.float32:
        raise SuperWeightError(f"ONNX files are written in float32; the network is {dtype}: give module.float()")
    tensors = (*member.module.parameters(), *member.module.buffers())
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if size > _LARGEST:
        raise SuperWeightError(f"one ONNX file holds 2 GiB; the network has {size / 2**30:.1f}: use torch-export")
    program = torch_program(member)
    try:
        made = torch.onnx.export(
            program,
            (),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=None if member.fixed_batch else ({0: "batch"},),
            verbose=False,
        )
    except Exception as error:  # the exporter raises whatever a translation raises
        raise SuperWeightError(
            f"torch.onnx cannot translate {type(member.module).__name__}: {said(error)} (format='torch-export' can)"
        ) from error
    assert made is not None
    made.save(str(path))
    _verify(member, path)


def _verify(member: PlainMember, path: Path) -> None:
    """Compare logits on noise, for one, two and five images; the tolerance grows with logits above 1."""
    runtime = _package("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    shape, tokens = tuple(member.images.shape[1:]), not member.images.is_floating_point()
    for batch_size in (len(member.images),) if member.fixed_batch else (1, 2, 5):
        images = example_images(member.module, shape, batch_size, seed=batch_size, tokens=tokens)
        with torch.no_grad():
            expected = member.module(images)
        try:
            answered = torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])
        except Exception as error:
            raise SuperWeightError(f"onnxruntime cannot run the export on {batch_size} images: {said(error)}") from None
        difference = float((answered - expected).abs().max())
        if not difference <= _TOLERANCE * max(1.0, float(expected.abs().max())):
            raise SuperWeightError(
                f"onnxruntime and PyTorch differ by {difference:.2g} on {batch_size} images, more than {_TOLERANCE:g}: "
                "nothing is written; format='torch-export' keeps PyTorch's own operations"
            )


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise SuperWeightError(
            f'export to ONNX needs the package {name}: pip install "superweight-ensembles[export]"'
        ) from None
