"""How a member was made, so that it can be made again by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import ConfigDict
from torch import nn

_ATTRIBUTE = "_superweight_architecture"
Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A registry name and the arguments that it was called with; plain data, fit for JSON."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    model: str
    num_classes: int
    in_channels: int = 3
    options: dict[str, Any] = field(default_factory=dict)


def remember_architecture(module: Module, architecture: Architecture) -> Module:
    """Note on a module how it was made; copies carry the note along."""
    setattr(module, _ATTRIBUTE, architecture)
    return module


def recall_architecture(module: nn.Module) -> Architecture | None:
    """How a module was made, or None where no registry made it."""
    return getattr(module, _ATTRIBUTE, None)
