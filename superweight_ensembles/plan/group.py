"""A group of a Shapeshifter Network, as a sharing plan holds it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from superweight_ensembles.plan.bank_size import least_cost
from superweight_ensembles.plan.generated_tensor import MOST_PARAMETERS, MOST_TARGETS, GeneratedTensor, Name
from superweight_ensembles.plan.options import SsnOptions
from superweight_ensembles.plan.slots import Shape
from superweight_ensembles.plan.windows import Reading, least_bank, num_coefficients, readings

_STRICT = ConfigDict(extra="forbid")
_Size = Annotated[int, Field(le=2**31)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SsnTarget(GeneratedTensor):
    """One generated tensor of a group.

    Attributes:
        shape: (out, in, *kernel).
        kind: Of its layer.
    """

    __pydantic_config__ = _STRICT

    kind: Name
    shape: Annotated[tuple[_Size, ...], Field(max_length=8)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SsnGroup:
    """Targets of any kind and shape that read windows of one flat bank.

    Attributes:
        name: Unique, for people.
        bank_size: Numbers in the bank, P.
        targets: In the order in which they read it.
        options: How they read it.
        mask_window: Numbers that one number of a mask is for; 0 without masks.

    Source: Plummer et al., ICLR 2022.
    """

    __pydantic_config__ = _STRICT

    name: Name
    bank_size: Annotated[int, Field(le=MOST_PARAMETERS)]
    targets: Annotated[tuple[SsnTarget, ...], Field(max_length=MOST_TARGETS)]
    options: SsnOptions
    mask_window: Annotated[int, Field(le=2**31)] = 0
    generator: Literal["ssn"] = "ssn"

    @property
    def kind(self) -> str:
        """Of the layers; several, separated by commas."""
        return ", ".join(dict.fromkeys(target.kind for target in self.targets))

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Of the targets."""
        return tuple(target.shape for target in self.targets)

    @property
    def readings(self) -> tuple[Reading, ...]:
        """What each target reads."""
        return readings(self.shapes, self.bank_size, self.options)

    @property
    def num_templates(self) -> int:
        """Trainable scalars in the bank."""
        return self.bank_size

    @property
    def minimum_templates(self) -> int:
        """Numbers in the smallest bank that its targets can read."""
        return least_bank(self.shapes, self.options)

    @property
    def num_coefficients(self) -> int:
        """Trainable scalars in coefficients, embeddings and their maps, masks."""
        return num_coefficients(self.readings, self.options, self.mask_window)

    @property
    def minimum_parameters(self) -> int:
        """Trainable scalars with the bank that costs least."""
        return least_cost(self.shapes, self.options)

    @property
    def num_weights(self) -> int:
        """Numbers in all that it generates."""
        return sum(math.prod(shape) for shape in self.shapes)
