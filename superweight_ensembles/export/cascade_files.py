"""A whole cascade as a folder for a machine that has numpy and onnxruntime alone."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from superweight_ensembles.anytime import CONFIDENCES, ExitPolicy
from superweight_ensembles.data import Preprocessing
from superweight_ensembles.errors import SuperWeightError, names_options, unknown_name
from superweight_ensembles.export.member import (
    ONNX_PACKAGES,
    PlainMember,
    check_onnx_packages,
    checked_shape,
    plain_member,
    write_onnx,
)
from superweight_ensembles.models import count_flops
from superweight_ensembles.storage import accessing, file_entry, whole_folder, write_json

CASCADE_FORMAT = 2
_PACKAGES = ("superweight_ensembles", "torch", *ONNX_PACKAGES)
_LOADER = Path(__file__).with_name("onnx_cascade.py")
_OWN = {"cascade.json", _LOADER.name, "__pycache__"}


@names_options
def export_cascade(
    modules: Mapping[str, nn.Module],
    policy: ExitPolicy,
    folder: str | Path,
    *,
    input_shape: Sequence[int],
    flops: Mapping[str, int] | None = None,
    images: Preprocessing | None = None,
    overwrite: bool = False,
) -> Path:
    """Write an ONNX file for each member, cascade.json, and onnx_cascade.py, which predicts with them.

    The folder is written whole or not at all; the networks given stay as they are.

    Args:
        modules: Plain networks by name, those of ``policy.order`` at least.
        policy: Order, confidence and thresholds.
        folder: Folder to make.
        input_shape: Shape of one image, (C, H, W).
        flops: FLOPs of an image, of each member; counted where None.
        images: Preprocessing of image files (``ensemble.images``), for the loader's ``read()``; without it the loader
            takes arrays alone.
        overwrite: Whether an exported cascade that is there is replaced; nothing else is ever replaced.

    Returns:
        The folder.

    Raises:
        SuperWeightError: A member without a network or FLOPs, members that answer different classes or take tokens,
            a folder that is there, or an error of :func:`export_member` for ONNX.

    Example:
        >>> import sys, tempfile, numpy, torch
        >>> from superweight_ensembles.anytime import ExitPolicy
        >>> def linear():
        ...     return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4))
        >>> policy = ExitPolicy(order=("a", "b"), temperatures=(1.0, 1.0), thresholds=(0.5,))
        >>> folder = tempfile.mkdtemp() + "/cascade"
        >>> folder = export_cascade({"a": linear(), "b": linear()}, policy, folder, input_shape=(3, 2, 2))
        >>> sys.path.append(str(folder))  # on the other machine: no torch, no superweight_ensembles
        >>> from onnx_cascade import OnnxCascade
        >>> answer = OnnxCascade(folder)(numpy.zeros((5, 3, 2, 2), numpy.float32))
        >>> answer.probabilities.shape, answer.members_used.shape
        ((5, 4), (5,))
    """
    if not isinstance(policy, ExitPolicy):
        raise SuperWeightError(
            f"policy is {type(policy).__name__}, not an ExitPolicy: predictor.calibrate(loader, flops=...) makes "
            "predictor.policy"
        )
    if policy.confidence not in CONFIDENCES:
        raise SuperWeightError(f"a cascade needs one class an image; this policy's confidence is {policy.confidence!r}")
    shape = checked_shape(input_shape)
    with accessing(Path(folder)):
        folder = Path(folder).resolve()
        _check_folder(folder, overwrite=overwrite)
    for name in policy.order:
        if name not in modules:
            raise unknown_name("member of the policy's order", name, modules)
        if flops is None:
            continue
        if name not in flops:
            raise unknown_name("member of flops", name, flops)
        if isinstance(flops[name], bool) or not isinstance(flops[name], int) or flops[name] < 0:
            raise SuperWeightError(f"flops of member {name!r} must be an int of at least 0; got {flops[name]!r}")
    check_onnx_packages()
    members = {name: plain_member(modules[name], shape, images=images) for name in policy.order}
    _check_members(members)
    with whole_folder(folder) as draft:
        listed = []
        for index, (name, member) in enumerate(members.items()):
            file = f"{index:02}-{file_name(name)}.onnx"
            write_onnx(member, draft / file)
            with torch.no_grad():
                count = count_flops(member.module, member.example(1)) if flops is None else flops[name]
            listed.append({"name": name, "file": file, "flops": count, **file_entry(draft / file)})
        write_json(
            draft / "cascade.json",
            {
                "format": CASCADE_FORMAT,
                **next(iter(members.values())).notes,
                "members": listed,
                "policy": policy.to_dict(),
                "packages": {package: _version(package) for package in _PACKAGES},
            },
        )
        shutil.copyfile(_LOADER, draft / _LOADER.name)
    return folder


def file_name(name: str) -> str:
    """A member's name with what file systems do not take replaced by ``_``.

    Example:
        >>> file_name("timm/resnet 18"), file_name("../up")
        ('timm_resnet_18', 'up')
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:80].strip("._") or "member"


def _check_folder(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that is there, unless it is an exported cascade and may be replaced."""
    if not folder.exists():
        return
    if not overwrite:
        raise SuperWeightError(f"{folder} exists already: overwrite replaces an exported cascade")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if "cascade.json" not in names or any(name not in _OWN and not name.endswith(".onnx") for name in names):
        raise SuperWeightError(f"{folder} exists and is no exported cascade: give another folder")


def _check_members(members: Mapping[str, PlainMember]) -> None:
    """Refuse members that do not answer the same two classes or more for float32 images."""
    counts = {name: member.num_classes for name, member in members.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name}: {count}" for name, count in counts.items())
        raise SuperWeightError(f"members of a cascade must answer the same classes; got {listed}")
    if min(counts.values()) < 2:
        raise SuperWeightError("a cascade needs at least two classes; its members answer one logit")
    for name, member in members.items():
        if member.tokens:
            raise SuperWeightError(
                f"a cascade takes float32 images; member {name!r} takes tokens: export its members one by one"
            )


def _version(package: str) -> str | None:
    """Version of a package, by its module first: distributions may have other names, such as onnxruntime-gpu."""
    version = getattr(importlib.import_module(package), "__version__", None)
    if version is not None:
        return str(version)
    try:
        return importlib.metadata.version(package.replace("_", "-"))
    except importlib.metadata.PackageNotFoundError:
        return None
