"""Which numbers of its bank each layer of a group reads.

Shapes: P numbers in the bank; a weight (O, I, *k) of n numbers, in the order (O, *k, I), as everywhere in the bank.

Source: Plummer et al., ICLR 2022, section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from superweight_ensembles.plan.options import SsnOptions
from superweight_ensembles.plan.slots import Shape

_STEPS = tuple(round(0.95 - 0.05 * step, 2) for step in range(19))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What one layer reads: windows of the bank, which wraps to its start, and how they become a weight.

    Attributes:
        num_windows: K.
        size: Numbers in a window.
        start: Of the first window.
        stride: From the start of one window to that of the next.
        matrix: ``inter``: rows and columns of the smaller matrix that a window is; (0, 0) otherwise.
        num_tiles: Times that a window is laid out to fill the weight, the last time as far as needed.
        mixed: Whether each tile has coefficients of its own (up-sampling ``wavg``).
        masked: Numbers beyond the first tile, which masks are for (up-sampling ``mask``).
    """

    num_windows: int
    size: int
    start: int
    stride: int
    matrix: tuple[int, int] = (0, 0)
    num_tiles: int = 1
    mixed: bool = False
    masked: int = 0

    @property
    def end(self) -> int:
        """Where the last window ends, not wrapped."""
        return self.start + (self.num_windows - 1) * self.stride + self.size

    @property
    def is_enlarged(self) -> bool:
        """Whether the layer has more numbers than it reads, because its bank is too small for it."""
        return self.matrix != (0, 0) or self.num_tiles > 1

    @property
    def resolution(self) -> int:
        """Numbers that are told apart before they are enlarged: of a window, or of both halves that tiles mix."""
        return self.num_windows * self.size if self.mixed else self.size


@lru_cache(maxsize=1024)
def readings(shapes: tuple[Shape, ...], bank_size: int, options: SsnOptions) -> tuple[Reading, ...]:
    """Where the layers of a group read a bank, in their order.

    A layer of n numbers reads K = clamp(floor(P / n), 1, windows) windows of n numbers, from where the layer before it
    stopped, so that layers overlap evenly; one that is larger than the bank reads what its up-sampling says.

    Args:
        shapes: (O, I, *k) of the layers.
        bank_size: P.
        options: How they read it.

    Example:
        >>> for one in readings(((4, 4), (2, 4)), 24, SsnOptions()):
        ...     print(one.num_windows, one.size, one.start)
        1 16 0
        3 8 16
        >>> readings(((10, 10),), 30, SsnOptions(upsample="inter"))[0].matrix
        (5, 5)
        >>> readings(((10, 10),), 30, SsnOptions(upsample="repeat"))[0].num_tiles
        4
    """
    found = []
    start = 0
    for shape in shapes:
        reading = _reading(shape, bank_size, start, options)
        found.append(reading)
        start = 0 if options.templates else reading.end % bank_size
    return tuple(found)


def _reading(shape: Shape, bank_size: int, start: int, options: SsnOptions) -> Reading:
    numbers, templates = math.prod(shape), options.templates
    room = bank_size // templates if templates else bank_size
    count = templates or min(max(bank_size // numbers, 1), options.windows)
    if numbers <= room:
        return Reading(num_windows=count, size=numbers, start=start, stride=room if templates else numbers)
    if options.upsample == "inter":
        matrix = smaller_matrix(shape, room)
        size = math.prod(matrix)
        return Reading(num_windows=count, size=size, start=start, stride=room if templates else size, matrix=matrix)
    if options.upsample == "wavg":
        half = bank_size // 2
        return Reading(
            num_windows=2, size=half, start=start, stride=half, num_tiles=math.ceil(numbers / half), mixed=True
        )
    masked = numbers - room if options.upsample == "mask" else 0
    tiles = math.ceil(numbers / room)
    return Reading(num_windows=count, size=room, start=start, stride=room, num_tiles=tiles, masked=masked)


def smaller_matrix(shape: Shape, numbers: int) -> tuple[int, int]:
    """Rows and columns of the largest (round(p O), k round(p I)) of p = 0.95, 0.90, ... 0.05 within so many numbers.

    (1, k) where none of them is: the least.

    Example:
        >>> smaller_matrix((64, 32, 3, 3), 9000)
        (45, 198)
    """
    rows, columns, *kernel = shape
    positions = math.prod(kernel)
    for share in _STEPS:
        matrix = max(1, round(share * rows)), max(1, round(share * columns)) * positions
        if math.prod(matrix) <= numbers:
            return matrix
    return 1, positions


def least_bank(shapes: Sequence[Shape], options: SsnOptions) -> int:
    """The smallest bank that layers of these shapes can read."""
    if options.upsample == "wavg":
        return 2
    one = max(math.prod(shape[2:]) for shape in shapes) if options.upsample == "inter" else 1
    return one * max(options.templates, 1)


def numbers_read(found: Sequence[Reading]) -> int:
    """Numbers that all layers read, each reading counted."""
    return sum(reading.num_windows * reading.size for reading in found)


def num_coefficients(found: Sequence[Reading], options: SsnOptions, mask_window: int) -> int:
    """Trainable scalars beside the bank: of each layer's combination and up-sampling."""
    combined = [reading.num_windows for reading in found if not reading.mixed]
    count = sum(2 * reading.num_tiles for reading in found if reading.mixed)
    count += sum(math.ceil(reading.masked / mask_window) for reading in found if reading.masked)
    if options.combine == "emb":
        return count + options.embedding_size * len(combined) + (options.embedding_size + 1) * sum(set(combined))
    if options.combine == "softmax":  # of one window it is one, whatever its coefficient
        combined = [windows for windows in combined if windows > 1]
    return count + (sum(combined) if options.combine != "avg" else 0)
