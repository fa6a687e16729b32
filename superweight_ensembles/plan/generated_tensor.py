"""What every generator knows of a tensor that it generates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import ConfigDict, Field

MOST_PARAMETERS = 2**36  # trainable scalars, of a plan or a budget
MOST_MEMBERS = 10_000
MOST_CLUSTERS = 2**17
MOST_SLOTS = 2**12  # of a cluster
MOST_TARGETS = 2**20
MOST_NAMES = 1000  # that are tied to one tensor
MOST_TEMPLATES = 2**12  # of a slot

Name = Annotated[str, Field(max_length=4096)]


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedTensor:
    """One generated tensor.

    Attributes:
        member: Member that reads it.
        names: Parameter name in the member, then the names tied to it.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    member: Name
    names: Annotated[tuple[Name, ...], Field(max_length=MOST_NAMES)]

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def label(self) -> str:
        return f"{self.member}.{self.name}"
