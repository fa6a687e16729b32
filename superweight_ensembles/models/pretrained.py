"""Trained weights for a member: from timm, from torchvision, or from a file of tensors. No pickle is opened."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import timm
import torch
import torchvision
from torch import Tensor, nn

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.models.architecture import Architecture
from superweight_ensembles.models.surgery import first_line
from superweight_ensembles.storage import read_header, read_tensors

_COUNTER = "num_batches_tracked"  # of batch norms: files may leave it out


def load_pretrained(module: nn.Module, made: Architecture) -> None:
    """Give a network of the registry the weights that its library offers; a head of other classes stays as drawn."""
    library, _, name = made.model.partition("/")
    options = copy.deepcopy(made.options)
    try:
        if library == "timm":
            source = timm.create_model(
                name, pretrained=True, num_classes=made.num_classes, in_chans=made.in_channels, **options
            )
        elif library == "torchvision":
            source = torchvision.models.get_model(name, weights="DEFAULT", **options)
        else:
            raise SuperWeightError("there are none")
    except Exception as error:  # of the library, the network or the disk
        reason = f"no trained weights: {first_line(error)}; weights= takes a .safetensors file of yours"
        raise SuperWeightError(f"model {made.model!r}: {reason}") from error
    _take(module, source.state_dict(), made.num_classes, f"the trained weights of {made.model!r}")


def load_weights(module: nn.Module, file: str | Path, num_classes: int) -> None:
    """Read a network's weights from a safetensors file of its state dict; a head of other classes stays as drawn."""
    path = Path(file)
    if path.suffix != ".safetensors":
        read = f'torch.load("{path.name}", weights_only=True)'
        raise SuperWeightError(
            f"weights: {path} is no .safetensors file, and others can run code when they are read: convert one that "
            f'holds tensors by safetensors.torch.save_file({read}, "{path.stem}.safetensors")'
        )
    if not path.is_file():
        raise SuperWeightError(f"weights: no file {path}")
    _take(module, read_tensors(path, read_header(path)), num_classes, f"weights: {path}")


@torch.no_grad()
def _take(module: nn.Module, tensors: Mapping[str, Tensor], num_classes: int, source: str) -> None:
    """Copy all tensors, or none; those of a head for other classes are left out."""
    own = module.state_dict()
    found: dict[str, Tensor] = {}
    for name, held in own.items():
        given = tensors.get(name)
        if given is None:
            if name.endswith(_COUNTER):
                continue
            raise SuperWeightError(f"{source} has no {name}, {tuple(held.shape)} in this network")
        if given.shape == held.shape:
            found[name] = given
        elif given.ndim == 0 or held.shape != (num_classes, *given.shape[1:]):  # only a head's rows may differ
            raise SuperWeightError(f"{source}: {name} is {tuple(given.shape)}, in this network {tuple(held.shape)}")
    for name in tensors:
        if name not in own and not name.endswith(_COUNTER):
            raise SuperWeightError(f"{source}: this network has no {name}")
    for name, given in found.items():
        own[name].copy_(given)
