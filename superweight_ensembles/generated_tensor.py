"""What every generator knows of a tensor that it generates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import ConfigDict, Field

from superweight_ensembles.plan_checks import MOST_NAMES

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
