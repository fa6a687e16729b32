"""The members of an ensemble, which cannot be exchanged, since the plan was made for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn, Union

from torch import Tensor, nn

from superweight_ensembles.errors import SuperWeightError

TensorKinds = dict[str, Union[tuple[tuple[int, ...], str], None]]
_REMEDY = (
    "build a new SuperWeightEnsemble of the members as they are to be (swe.warm_start brings over what this one has "
    "learned)"
)


class MemberDict(nn.ModuleDict):
    """Members by name, none of which can be added, removed or exchanged, and a note of the tensors that each had."""

    def __init__(self, members: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, member in members.items():
            super().add_module(name, member)
        self.note_tensors()

    def note_tensors(self) -> None:
        """Remember the tensors of the members as they are now."""
        # a saved ensemble is read into these
        self._tensors = {name: kinds_of(member) for name, member in self.items()}

    def check_tensors(self) -> None:
        """Refuse members whose tensors are not those that they had when the plan was made."""
        for name, before in self._tensors.items():
            difference = first_difference(before, kinds_of(self[name]))
            if difference:
                raise SuperWeightError(
                    f"member {name!r} has changed since the ensemble was made, and could not be loaded: "
                    f"{difference}; {_REMEDY}"
                )

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, nn.Module) or name in self.__dict__.get("_modules", {}):
            raise fixed(f"member {name!r}")
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        raise fixed(f"member {name!r}")

    def __delitem__(self, name: str) -> None:
        raise fixed(f"member {name!r}")

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Refused, but for the module that is there already."""
        if module is None or self._modules.get(name) is not module:
            raise fixed(f"member {name!r}")

    def clear(self) -> NoReturn:
        """Refused."""
        raise fixed("the members of an ensemble")


def fixed(what: str) -> SuperWeightError:
    """The error for an attempt to exchange a part that an ensemble keeps."""
    return SuperWeightError(f"{what} cannot be set or removed, since the plan was made for these members: {_REMEDY}")


def kinds_of(module: nn.Module) -> TensorKinds:
    """Shape and type of each tensor in a module's state; all floating-point types count as one."""
    kinds: TensorKinds = {}
    # a buffer that is registered and not filled yet counts as None; reading a file fills it
    for path, layer in module.named_modules(remove_duplicate=False):
        kinds |= {f"{path}.{name}".lstrip("."): None for name, buffer in layer._buffers.items() if buffer is None}
    for name, value in module.state_dict().items():
        tensor = isinstance(value, Tensor)
        kind = ("" if value.is_floating_point() else str(value.dtype)) if tensor else type(value).__name__
        kinds[name] = (tuple(value.shape) if tensor else (), kind.removeprefix("torch."))
    return kinds


def first_difference(before: TensorKinds, now: TensorKinds) -> str:
    """The first tensor that is not as it was, in words; empty buffers may be filled."""
    for name in (*before, *now):
        was, found = before.get(name), now.get(name)
        if was != found and not (name in before and was is None):
            hint = "" if was else " (register buffers in __init__, as None if they are filled later)"
            return f"{name} is {_described(found)}, it was {_described(was)}{hint}"
    return ""


def _described(kind: tuple[tuple[int, ...], str] | None) -> str:
    return "not there" if kind is None else f"{kind[1]} {kind[0]}".lstrip()
