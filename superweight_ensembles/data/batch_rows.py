"""Which of an epoch's images one process reads, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from superweight_ensembles.data.options import checked_integer
from superweight_ensembles.errors import SuperWeightError


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRows:
    """Consecutive batches of an order of images, and of each the rows of one process.

    Attributes:
        num_images: In the order.
        batch_size: Images a batch, over all processes; the last may be smaller.
        shard: (index, count): this process and how many there are. It has the rows from index * B // count to
            (index + 1) * B // count of each batch of B.
        first_batch: Those before it are left out.

    Example:
        >>> list(BatchRows(num_images=10, batch_size=4, shard=(1, 2)))
        [slice(2, 4, None), slice(6, 8, None), slice(9, 10, None)]
        >>> list(BatchRows(num_images=10, batch_size=4, first_batch=2))
        [slice(8, 10, None)]
    """

    num_images: int
    batch_size: int
    shard: tuple[int, int] = (0, 1)
    first_batch: int = 0

    def __len__(self) -> int:
        return max(0, -(-self.num_images // self.batch_size) - self.first_batch)

    def __iter__(self) -> Iterator[slice]:
        index, count = self.shard
        for start in range(self.first_batch * self.batch_size, self.num_images, self.batch_size):
            size = min(self.batch_size, self.num_images - start)
            yield slice(start + index * size // count, start + (index + 1) * size // count)


def checked_shard(shard: object, batch_size: int) -> tuple[int, int]:
    """A process's place among those that share each batch.

    Raises:
        SuperWeightError: No pair of whole numbers (index, count) with 0 <= index < count, or more than images a batch.
    """
    if not (isinstance(shard, tuple) and len(shard) == 2):
        raise SuperWeightError(f"shard must be a pair (index, count); got {shard!r}")
    count = checked_integer("the count of shard", shard[1], 1)
    index = checked_integer("the index of shard", shard[0], 0, below=count)
    if count > batch_size:
        raise SuperWeightError(
            f"{count} processes cannot share batches of {batch_size} images: take a batch_size of at least {count}, or "
            "fewer processes"
        )
    return index, count
