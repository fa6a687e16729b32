"""An ensemble as a folder: plan and architectures as JSON, tensors as safetensors. Nothing in it is executed."""

from __future__ import annotations

import functools
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, ValidationError
from torch import nn

from superweight_ensembles.data import Preprocessing
from superweight_ensembles.ensemble.members import MemberDict, TensorKinds, first_difference, kinds_of
from superweight_ensembles.ensemble.tasks import CLASSIFICATION, task_named
from superweight_ensembles.errors import SuperWeightError, first_problem
from superweight_ensembles.models import Architecture, build_architecture, recall_architecture
from superweight_ensembles.plan import PlannedMember, SharingPlan, count_parameters
from superweight_ensembles.storage import (
    MANIFEST_FILE,
    PathError,
    accessing,
    adapter_of,
    as_content,
    check_manifest,
    contained_file,
    count_numbers,
    read_as,
    read_module,
    read_text,
    whole_folder,
    write_json,
    write_manifest,
    write_module,
    write_text,
)

_LOG = logging.getLogger(__name__)
ENSEMBLE_FORMAT = 3
_MOST_NUMBERS_A_PARAMETER = 4  # registered while a member is made: some twice, frozen ones, buffers
_MOST_BUFFERS = 2**24
_NEEDED = ("config.json", "plan.json", "model.safetensors")
ENSEMBLE_FILES = frozenset({*_NEEDED, MANIFEST_FILE, "anytime.json", "README.md"})


def write_ensemble(
    ensemble: nn.Module,
    plan: SharingPlan,
    members: Mapping[str, nn.Module],
    folder: Path,
    beside: Callable[[Path], None] | None = None,
) -> None:
    """Write an ensemble with a manifest, replacing a saved one as a whole; ``beside`` writes more files there."""
    with accessing(folder):
        folder = folder.resolve()
        if folder.exists() and (not folder.is_dir() or {path.name for path in folder.iterdir()} - ENSEMBLE_FILES):
            raise SuperWeightError(f"{folder} exists and is no saved ensemble: give another folder")
        before = "; the ensemble saved there is unchanged" if folder.exists() else ""
    try:
        with whole_folder(folder) as draft:
            write_ensemble_files(ensemble, plan, members, draft)
            if beside is not None:
                beside(draft)
            write_manifest(draft)
            # the one file that is kept, since people write it
            if (folder / "README.md").exists():
                shutil.copy2(contained_file(folder, "README.md"), draft / "README.md")
    except PathError as error:
        raise SuperWeightError(f"{error}{before}") from None


def write_ensemble_files(
    ensemble: nn.Module, plan: SharingPlan, members: Mapping[str, nn.Module], folder: Path
) -> None:
    """Write config.json, plan.json and model.safetensors into a folder that is being made."""
    check_unchanged(ensemble)
    architectures = {member.name: registered(members[member.name], member) for member in plan.members}
    held: Any = ensemble
    config = SavedConfig(
        task=held.task.name, select=held.select is not None, images=held.images,
        members={name: made and asdict(made) for name, made in architectures.items()},
    )  # fmt: skip
    write_json(folder / "config.json", as_content(config))
    write_text(folder / "plan.json", plan.to_json())
    write_module(folder / "model.safetensors", ensemble)


def check_unchanged(ensemble: nn.Module) -> None:
    """Refuse an ensemble that could not be loaded again: members that have changed, and tensors beside them."""
    held = ensemble.get_submodule("members")
    assert isinstance(held, MemberDict), "an ensemble's"
    held.check_tensors()
    beside = [name for name, _ in ensemble.named_children() if name not in ("bank", "members")]
    beside += [*ensemble._parameters, *ensemble._buffers]
    if beside and type(ensemble).__module__.startswith("superweight_ensembles."):  # a subclass makes its own again
        raise SuperWeightError(
            f"the ensemble holds {beside[0]!r} beside its bank and members, which nothing would read again: put it "
            "into a member before the ensemble is made, or make it in __init__ of a subclass"
        )


def registered(module: nn.Module, planned: PlannedMember) -> Architecture | None:
    """How a member was made; None where no registry name makes it as it is now (says so once)."""
    made = recall_architecture(module)
    again = None if made is None else _made_again(json.dumps(asdict(made), sort_keys=True))
    if made is None or again is None:
        return made
    kinds, classes, num_parameters = again
    own, now = kinds_of(module), _classes_of(module)
    difference = first_difference({name: kind for name, kind in kinds.items() if name in own or kind is None}, own)
    changed = [path for path in (*classes, *now) if classes.get(path) is not now.get(path)]
    if changed:
        difference = f"{changed[0]} is another layer"
    if not difference and num_parameters != planned.num_parameters:
        difference = f"{num_parameters:,} trainable parameters, planned {planned.num_parameters:,}"
    if not difference:
        return made
    _warn_once(
        f"member {planned.name!r} is no longer what {made.model!r} makes ({difference}): load this ensemble with "
        f"members={{{planned.name!r}: its module, ...}}"
    )
    return None


@functools.lru_cache(maxsize=64)
def _made_again(described: str) -> tuple[TensorKinds, dict[str, type], int] | None:
    """The tensors, classes and parameters of a description, made as shapes alone; None where that fails."""
    architecture = adapter_of(Architecture).validate_json(described)
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            module = build_architecture(architecture)
    except Exception:  # not every network can be made of shapes alone
        return None
    return kinds_of(module), _classes_of(module), count_parameters(module)


def _classes_of(module: nn.Module) -> dict[str, type]:
    """Classes of layers without tensors or layers inside, such as activations, which no state dict shows."""
    return {
        path: type(layer)
        for path, layer in module.named_modules()
        if not (layer._parameters or layer._buffers or layer._modules)
    }


@functools.lru_cache(maxsize=64)
def _warn_once(message: str) -> None:
    _LOG.warning(message)


def check_ensemble_files(folder: Path) -> None:
    """Check the files of a saved ensemble against its manifest."""
    _check_there(folder / "plan.json")
    check_manifest(folder, _NEEDED)


def read_plan(folder: Path) -> SharingPlan:
    path = folder / "plan.json"
    _check_there(path)
    return SharingPlan.from_json(read_text(path), path)


def _check_there(path: Path) -> None:
    with accessing(path, "read"):
        if not path.is_file():
            raise SuperWeightError(f"{path} is missing: {path.parent} is no saved ensemble")


def check_tensors_suffice(folder: Path, plan: SharingPlan) -> None:
    """Refuse a plan that claims more numbers than the file has, before anything of that size is made."""
    path = folder / "model.safetensors"
    held = count_numbers(path)
    claimed = plan.num_templates + plan.num_coefficients
    if held < claimed:
        raise SuperWeightError(f"{path} does not fit the plan: it holds {held:,} numbers, the bank has {claimed:,}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedConfig:
    """The content of config.json."""

    format: int = ENSEMBLE_FORMAT
    task: Annotated[str, Field(default=CLASSIFICATION.name)]
    select: Annotated[bool, Field(default=False)]  # whether a function of the user's own picks the answers
    images: Preprocessing | None = None  # where that is known
    members: dict[str, Any]  # how each was made; None where no registry name makes it

    def __post_init__(self) -> None:
        task_named(self.task)


def read_config(folder: Path) -> SavedConfig:
    return read_as(SavedConfig, folder / "config.json", "save the ensemble again")


def build_members(config: SavedConfig, folder: Path, plan: SharingPlan) -> dict[str, nn.Module]:
    """Build the members of a saved ensemble by registry name, with start values."""
    members = {}
    for planned in plan.members:
        name, made = planned.name, config.members.get(planned.name)
        if not isinstance(made, dict):
            every = ", ".join(f"{own!r}: ..." for own in plan.member_names)
            raise SuperWeightError(
                f"member {name!r} was not made by a registry name: load with members={{{every}}}, a module of each"
            )
        members[name] = rebuild_member(made, folder / "config.json", f"members.{name}", planned.num_parameters)
    return members


def rebuild_member(made: Any, file: Path, key: str, num_numbers: int) -> nn.Module:
    """Build a network from its architecture under a key of a file, unless it is much larger than ``num_numbers``."""
    try:
        architecture = adapter_of(Architecture).validate_json(json.dumps(made), strict=True)
    except ValidationError as error:
        raise SuperWeightError(f"{file}, {key}.{first_problem(error)}") from None
    try:
        # a network with many more numbers than it should have is not built
        return build_architecture(architecture, _MOST_NUMBERS_A_PARAMETER * num_numbers + _MOST_BUFFERS)
    except SuperWeightError as error:
        raise SuperWeightError(f"{file}, {key}: {error}") from None


def read_ensemble_tensors(ensemble: nn.Module, folder: Path) -> None:
    """Read model.safetensors into an ensemble, name by name."""
    device = next(ensemble.parameters(), torch.empty(0)).device
    read_module(folder / "model.safetensors", ensemble, device=device)
