"""What a group of a Shapeshifter Network is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from pydantic import ConfigDict

from superweight_ensembles.errors import SuperWeightError, unknown_name
from superweight_ensembles.plan.coefficients import EMBEDDING_SIZE

Combination = Literal["avg", "wavg", "emb", "softmax"]
Upsampling = Literal["inter", "repeat", "mask", "wavg"]
COMBINATIONS: tuple[str, ...] = get_args(Combination)
UPSAMPLINGS: tuple[str, ...] = get_args(Upsampling)
MOST_WINDOWS = 2**12
_MOST_SIZE = 2**16


@dataclass(frozen=True, slots=True, kw_only=True)
class SsnOptions:
    """How the layers of a Shapeshifter Network read their bank.

    Attributes:
        combine: Windows become a weight by their mean (``avg``), by coefficients of the layer (``wavg``), by an affine
            function of a small embedding of the layer (``emb``), or by coefficients that a softmax makes positive and
            sum to one (``softmax``; published for learning groups).
        upsample: How a layer reads a bank that is smaller than it: a smaller matrix, interpolated (``inter``); the bank
            over and over (``repeat``); so too, each repetition times a learned mask (``mask``); the halves of the bank
            mixed by two learned numbers for each repetition (``wavg``).
        windows: Windows that a layer reads at most.
        templates: 0: each layer goes on where the one before it stopped reading (round robin). Else the bank is cut
            into so many templates, and every layer reads them all, from their beginnings.
        embedding_size: Numbers in an embedding; ``emb`` alone reads it.
        mask_window: Numbers that one number of a mask is for; 0 for the fewest, in nines, with which the masks take a
            tenth of the group's budget at most; ``mask`` alone reads it.

    Raises:
        SuperWeightError: An unknown name, a number out of bounds, an option that would do nothing.

    Source: Plummer et al., ICLR 2022, section 3.

    Example:
        >>> SsnOptions(combine="emb", upsample="repeat").embedding_size
        24
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    combine: Combination = "wavg"
    upsample: Upsampling = "wavg"
    windows: int = 8
    templates: int = 0
    embedding_size: int = EMBEDDING_SIZE
    mask_window: int = 0

    def __post_init__(self) -> None:
        if self.combine not in COMBINATIONS:
            raise unknown_name("combine", str(self.combine), COMBINATIONS)
        if self.upsample not in UPSAMPLINGS:
            raise unknown_name("upsample", str(self.upsample), UPSAMPLINGS)
        for name, least, most in (
            ("windows", 1, MOST_WINDOWS),
            ("templates", 0, MOST_WINDOWS),
            ("embedding_size", 1, _MOST_SIZE),
            ("mask_window", 0, _MOST_SIZE),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise SuperWeightError(
                    f"ssn: {name} must be a whole number from {least} to {most:,}; got {value!r:.40}"
                )
        if self.embedding_size != EMBEDDING_SIZE and self.combine != "emb":
            raise SuperWeightError(f"ssn: embedding_size does nothing with combine {self.combine!r}: leave it out")
        if self.mask_window and self.upsample != "mask":
            raise SuperWeightError(f"ssn: mask_window does nothing with upsample {self.upsample!r}: leave it out")
        if self.templates and self.upsample == "wavg":
            raise SuperWeightError(
                "ssn: upsample 'wavg' cuts the bank into halves of its own: leave templates out, or take 'inter'"
            )
        if self.templates and self.windows != 8:
            raise SuperWeightError("ssn: windows does nothing with templates, which every layer reads: leave it out")
