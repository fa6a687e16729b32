"""Whether what is asked for can be in this machine's memory at all: a rough bound, before anything is made."""

from __future__ import annotations

import os

from superweight_ensembles.errors import SuperWeightError

_BYTES_A_PARAMETER = 4


def memory_bytes() -> int | None:
    """Physical memory of this machine; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def check_parameters_fit(num_parameters: int, what: str, unit: str = "parameters") -> None:
    """Refuse parameters that alone are more than the machine's memory, in float32.

    Raises:
        SuperWeightError: States both.
    """
    there = memory_bytes()
    needed = _BYTES_A_PARAMETER * num_parameters
    if there is not None and needed > there:
        raise SuperWeightError(
            f"{what}: {num_parameters:,} {unit} take {needed / 2**30:,.0f} GiB; "
            f"this machine has {there / 2**30:,.0f} GiB of memory"
        )
