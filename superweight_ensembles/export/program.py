"""A network as a torch.export program."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.export import Dim, ExportedProgram

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.export.plain import PlainMember, said


def torch_program(member: PlainMember) -> ExportedProgram:
    """Trace a network; the first dimension of images and logits is free unless the batch is fixed.

    Raises:
        SuperWeightError: The network cannot be traced; says why.
    """
    shapes = None if member.fixed_batch else ({0: Dim("batch", min=1)},)
    try:
        with torch.no_grad():
            program = torch.export.export(member.module, (member.images,), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # tracing runs the network's own code, which may raise anything
        remedy = "" if member.fixed_batch else "batch_size= fixes the batch, and "
        raise SuperWeightError(
            f"torch.export cannot trace {type(member.module).__name__}: {said(error)} "
            f"({remedy}format='state-dict' takes any network)"
        ) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of source files on this machine
    return program


def write_program(member: PlainMember, path: Path) -> None:
    """Write ``path`` (.pt2), which ``torch.export.load(path).module()`` reads."""
    torch.export.save(torch_program(member), path)
