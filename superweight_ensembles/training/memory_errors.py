"""What to do when a step does not fit the memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from superweight_ensembles.errors import SuperWeightError

_SIGNS = ("can't allocate memory", "out of memory", "not enough memory", "std::bad_alloc", "ALLOC_FAILED")


class OutOfMemoryError(SuperWeightError):
    """A training step did not fit the memory; says the batch, the member, and what to lower."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that no memory was left, on CUDA or the CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


@contextmanager
def memory_told(
    member: str | None, batch_size: int, micro_batches: int, *, otherwise: str = "between the members"
) -> Iterator[None]:
    """Say, where memory runs out inside, what was running.

    Args:
        member: The one that runs; None where it is none of them.
        batch_size: Images of the step, in this process.
        micro_batches: Parts that they are run in.
        otherwise: Where that is, without a member.

    Raises:
        OutOfMemoryError: In the place of torch's errors.
    """
    try:
        yield
    except SuperWeightError:
        raise
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        running = otherwise if member is None else f"in member {member!r}"
        batch = f"a batch of {batch_size}" + (f" in {micro_batches} parts" if micro_batches > 1 else "")
        reason = str(error).strip().splitlines()
        raise OutOfMemoryError(
            f"out of memory {running}, at {batch}: raise training.micro_batches (or 'auto'), set recompute, lower "
            f"batch_size, or leave the largest member out ({reason[0] if reason else type(error).__name__:.160})"
        ) from error
