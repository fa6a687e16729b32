"""How a member was made, in plain numbers, so that it can be made again by name."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import nn

from superweight_ensembles.storage import ONLY_FIELDS

VERSION_OF = "version_of"  # attribute of a module: the name of the network that it is a version of

_ATTRIBUTE = "_superweight_architecture"
Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedWidth:
    """How a width is learned: options of :class:`AdaptiveWidth`, and whether it still changes."""

    __pydantic_config__ = ONLY_FIELDS

    distribution: str
    quantile: float
    bounds: tuple[int, int]
    scale: str
    deviation: float
    frozen: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class HiddenLayer:
    """A hidden width that differs from the one that options make, with its layers by path."""

    __pydantic_config__ = ONLY_FIELDS

    producer: str  # whose outputs are the neurons
    consumer: str  # which reads the neurons
    between: tuple[str, ...]  # layers in between that hold numbers for each neuron
    width: int
    learned: LearnedWidth | None = None  # None for a plain width


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A registry name, the arguments that it was called with, and widths changed since; plain data, fit for JSON."""

    __pydantic_config__ = ONLY_FIELDS

    model: str
    num_classes: int
    in_channels: int = 3
    options: dict[str, Any] = field(default_factory=dict)
    hidden: tuple[HiddenLayer, ...] = ()


@runtime_checkable
class Described(Protocol):
    """A part of a module that knows one of the module's hidden widths."""

    def hidden_layer(self, path: str) -> HiddenLayer | None:
        """The note on the width, for a part at this path."""


def remember_architecture(module: Module, architecture: Architecture) -> Module:
    """Note on a module how it was made; copies carry the note along."""
    setattr(module, _ATTRIBUTE, architecture)
    return module


def recall_architecture(module: nn.Module) -> Architecture | None:
    """How a module was made, with the hidden widths that it has now, or None where no registry made it."""
    made: Architecture | None = getattr(module, _ATTRIBUTE, None)
    if made is None:
        return None
    described = [part.hidden_layer(path) for path, part in module.named_modules() if isinstance(part, Described)]
    now = {hidden.producer: hidden for hidden in (*made.hidden, *described) if hidden is not None}
    return replace(made, hidden=tuple(now.values()))


def is_positive(value: object, limit: float = math.inf) -> bool:
    """Whether it is a number, and no bool, above 0 and below a limit."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < limit
