"""Shapeshifter Networks: options of a group, the numbers of its bank that each layer reads, and the bank's size.

Shapes: P numbers in the bank; a weight (O, I, *k) of n numbers, in the order (O, *k, I), as everywhere in the bank.

Source: Plummer et al., ICLR 2022, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal

import pydantic
from pydantic import Field

from superweight_ensembles.errors import SuperWeightError, names_options
from superweight_ensembles.plan.slots import EMBEDDING_SIZE, Shape
from superweight_ensembles.plan.targets import MOST_PARAMETERS, MOST_TARGETS, Name, Target
from superweight_ensembles.storage import ONLY_FIELDS, whole

Combination = Literal["avg", "wavg", "emb", "softmax"]
Upsampling = Literal["inter", "repeat", "mask", "wavg"]
MOST_WINDOWS = 2**12
_MOST_SIZE = 2**16
_MATRIX_SHARES = tuple(round(0.95 - 0.05 * step, 2) for step in range(19))
_MASK_UNIT = 9
_MASK_SHARE = 10  # masks take at most one part in this many of a group's budget


@names_options
@pydantic.dataclasses.dataclass(frozen=True, slots=True, kw_only=True, config=ONLY_FIELDS)
class SsnOptions:
    """How the layers of a Shapeshifter Network read their bank.

    Attributes:
        combine: How windows are summed to a weight: by their mean (``avg``), with coefficients of the layer (``wavg``),
            with coefficients that are an affine function of a small embedding of the layer (``emb``), or with
            coefficients that a softmax makes positive and sum to one (``softmax``; published for learning groups).
        upsample: How a layer reads a bank that is smaller than itself: a smaller matrix, interpolated (``inter``); the
            bank, repeated (``repeat``); the bank, repeated, each repetition times a learned mask (``mask``); the halves
            of the bank, mixed by two learned numbers for each repetition (``wavg``).
        windows: Windows that a layer reads at most.
        templates: 0: each layer begins where the one before it stopped reading (round robin). Otherwise the bank is cut
            into this many templates, and every layer reads all of them, each from its beginning.
        embedding_size: Numbers in an embedding; ``emb`` alone reads it.
        mask_window: Numbers of a weight that one number of a mask multiplies; 0 for the smallest multiple of nine with
            which the masks take at most a tenth of the group's budget; ``mask`` alone reads it.

    Raises:
        SuperWeightError: An unknown name, a number out of bounds, an option that would do nothing.

    Source: Plummer et al., ICLR 2022, section 3.

    Example:
        >>> SsnOptions(combine="emb", upsample="repeat").embedding_size
        24
    """

    combine: Combination = "wavg"
    upsample: Upsampling = "wavg"
    windows: Annotated[int, whole(1, MOST_WINDOWS)] = 8
    templates: Annotated[int, whole(0, MOST_WINDOWS)] = 0
    embedding_size: Annotated[int, whole(1, _MOST_SIZE)] = EMBEDDING_SIZE
    mask_window: Annotated[int, whole(0, _MOST_SIZE)] = 0

    def __post_init__(self) -> None:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowSpec:
    """Windows that one layer reads of the bank, which wraps to its start, and how they become a weight."""

    num_windows: int  # K
    size: int  # numbers in a window
    start: int  # of the first window
    stride: int  # from the start of one window to that of the next
    matrix: tuple[int, int] = (0, 0)  # rows and columns of the smaller matrix that a window is (``inter``); else (0, 0)
    num_tiles: int = 1  # times that a window is repeated to fill the weight; the last repetition may be cut
    mixed: bool = False  # whether each tile has coefficients of its own (up-sampling ``wavg``)
    masked: int = 0  # numbers of the weight beyond the first tile, which masks multiply (``mask``)

    @property
    def end(self) -> int:
        """Place where the last window ends, not wrapped."""
        return self.start + (self.num_windows - 1) * self.stride + self.size

    @property
    def is_enlarged(self) -> bool:
        """Whether the layer has more scalars than it reads, as its bank is too small for it."""
        return self.matrix != (0, 0) or self.num_tiles > 1

    @property
    def resolution(self) -> int:
        """Count of different numbers before they are enlarged: of a window, or of both halves that tiles mix."""
        return self.num_windows * self.size if self.mixed else self.size


@lru_cache(maxsize=1024)
def window_specs(shapes: tuple[Shape, ...], bank_size: int, options: SsnOptions) -> tuple[WindowSpec, ...]:
    """Windows of a bank of P numbers that the layers of a group read, in their order.

    Example:
        >>> for one in window_specs(((4, 4), (2, 4)), 24, SsnOptions()):
        ...     print(one.num_windows, one.size, one.start)
        1 16 0
        3 8 16
        >>> window_specs(((10, 10),), 30, SsnOptions(upsample="inter"))[0].matrix
        (5, 5)
        >>> window_specs(((10, 10),), 30, SsnOptions(upsample="repeat"))[0].num_tiles
        4
    """
    found = []
    start = 0
    for shape in shapes:
        spec = _window_spec(shape, bank_size, start, options)
        found.append(spec)
        start = 0 if options.templates else spec.end % bank_size  # where this one stopped: layers overlap evenly
    return tuple(found)


def _window_spec(shape: Shape, bank_size: int, start: int, options: SsnOptions) -> WindowSpec:
    numbers, templates = math.prod(shape), options.templates
    room = bank_size // templates if templates else bank_size
    count = templates or min(max(bank_size // numbers, 1), options.windows)  # K = clamp(floor(P / n), 1, windows)
    if numbers <= room:
        return WindowSpec(num_windows=count, size=numbers, start=start, stride=room if templates else numbers)
    if options.upsample == "inter":
        matrix = smaller_matrix(shape, room)
        size = math.prod(matrix)
        return WindowSpec(num_windows=count, size=size, start=start, stride=room if templates else size, matrix=matrix)
    if options.upsample == "wavg":
        half = bank_size // 2
        return WindowSpec(
            num_windows=2, size=half, start=start, stride=half, num_tiles=math.ceil(numbers / half), mixed=True
        )
    assert options.upsample in ("repeat", "mask"), options.upsample
    masked = numbers - room if options.upsample == "mask" else 0
    tiles = math.ceil(numbers / room)
    return WindowSpec(num_windows=count, size=room, start=start, stride=room, num_tiles=tiles, masked=masked)


def smaller_matrix(shape: Shape, numbers: int) -> tuple[int, int]:
    """Rows and columns of the largest (round(p O), k round(p I)), p = 0.95, 0.90, ... 0.05, within so many numbers.

    Example:
        >>> smaller_matrix((64, 32, 3, 3), 9000)
        (45, 198)
    """
    rows, columns, *kernel = shape
    positions = math.prod(kernel)
    for share in _MATRIX_SHARES:
        matrix = max(1, round(share * rows)), max(1, round(share * columns)) * positions
        if math.prod(matrix) <= numbers:
            return matrix
    return 1, positions  # the smallest matrix


def least_bank(shapes: Sequence[Shape], options: SsnOptions) -> int:
    """Size of the smallest bank that layers of these shapes can read."""
    if options.upsample == "wavg":
        return 2
    one = max(math.prod(shape[2:]) for shape in shapes) if options.upsample == "inter" else 1
    return one * max(options.templates, 1)


def numbers_read(found: Sequence[WindowSpec]) -> int:
    """Count of numbers that all layers read, each reading counted."""
    return sum(spec.num_windows * spec.size for spec in found)


def num_coefficients(found: Sequence[WindowSpec], options: SsnOptions, mask_window: int) -> int:
    """Trainable scalars beside the bank: those of each layer's combination and up-sampling."""
    combined = [spec.num_windows for spec in found if not spec.mixed]
    count = sum(2 * spec.num_tiles for spec in found if spec.mixed)
    count += sum(math.ceil(spec.masked / mask_window) for spec in found if spec.masked)
    if options.combine == "emb":
        return count + options.embedding_size * len(combined) + (options.embedding_size + 1) * sum(set(combined))
    if options.combine == "softmax":  # the softmax of one window is one, whatever its coefficient
        combined = [windows for windows in combined if windows > 1]
    return count + (sum(combined) if options.combine != "avg" else 0)


def group_cost(
    shapes: Sequence[Shape], bank_size: int, options: SsnOptions, mask_window: int = 0, count_all: bool = True
) -> int:
    """Trainable scalars of a group with a bank of this size; without ``count_all``, those of the bank alone."""
    if not count_all:
        return bank_size
    return bank_size + num_coefficients(window_specs(tuple(shapes), bank_size, options), options, mask_window)


def mask_window_of(shapes: Sequence[Shape], budget: int, options: SsnOptions) -> int:
    """Scalars of a weight for each number of a mask: the least multiple of nine that costs a tenth of the budget."""
    if options.upsample != "mask":
        return 0
    if options.mask_window:
        return options.mask_window
    masked = sum(max(math.prod(shape) - budget, 0) for shape in shapes)
    units = math.ceil(masked * _MASK_SHARE / (_MASK_UNIT * max(budget, 1)))
    return _MASK_UNIT * max(units, 1)


@lru_cache(maxsize=1024)
def least_cost(shapes: tuple[Shape, ...], options: SsnOptions, count_all: bool = True) -> int:
    """The fewest trainable scalars with which a group of these layers works; with ``wavg`` up to a few more.

    Example:
        >>> least_cost(((16, 8, 3, 3), (16, 16, 3, 3)), SsnOptions(upsample="inter"))  # 9, and 1 a layer
        11
    """
    size = least_bank(shapes, options)
    if not count_all or (options.upsample != "wavg" and not options.mask_window):
        window = max(math.prod(shape) for shape in shapes) if options.upsample == "mask" else 0
        return group_cost(shapes, size, options, window, count_all)
    costs = []
    largest = max(size, *(math.prod(shape) for shape in shapes))
    while size <= largest:  # coefficients become fewer as the bank grows, so the least cost is somewhere in between
        costs.append(group_cost(shapes, size, options, options.mask_window, count_all))
        size += max(1, size // 16)
    return min(costs)


def bank_within(shapes: Sequence[Shape], budget: int, options: SsnOptions, count_all: bool = True) -> tuple[int, int]:
    """Size of the largest bank within a budget of :func:`least_cost` or more, and the window of its masks."""
    shapes = tuple(shapes)
    window = mask_window_of(shapes, budget, options)
    largest = max(math.prod(shape) for shape in shapes)
    while True:
        size = _largest_bank(shapes, budget, options, window, count_all)
        fits = group_cost(shapes, size, options, window, count_all) <= budget
        chosen = options.upsample == "mask" and not options.mask_window
        if not chosen or window >= largest or (fits and size * _MASK_SHARE >= (_MASK_SHARE - 2) * min(budget, largest)):
            break
        window *= 2  # each layer's mask is rounded up, so those of many small layers cost more
    assert fits, "the caller compares the budget with least_cost"
    if options.templates:
        return options.templates * max(spec.size for spec in window_specs(shapes, size, options)), window
    return min(size, numbers_read(window_specs(shapes, size, options))), window


def _largest_bank(shapes: tuple[Shape, ...], budget: int, options: SsnOptions, window: int, count_all: bool) -> int:
    """The largest bank whose group costs no more than the budget; the smallest one where none does."""
    sizes = [math.prod(shape) for shape in shapes]
    upper = min(budget, options.templates * max(sizes) if options.templates else options.windows * sum(sizes))
    least = least_bank(shapes, options)
    steps = {count * size for size in set(sizes) for count in range(1, options.windows + 1)}
    # At each step a layer comes to read one window more. Between two steps, coefficients only become fewer as the bank
    # grows, so that subtracting the excess from the upper end never passes the largest size that fits.
    for lower in sorted({least, *(step for step in steps if least < step <= upper)}, reverse=True):
        size = upper
        while size >= lower:
            excess = group_cost(shapes, size, options, window, count_all) - budget
            if excess <= 0:
                return size
            size -= excess
        upper = lower - 1
    return least


@dataclass(frozen=True, slots=True, kw_only=True)
class SsnGroup:
    """Targets of any kind and shape that read windows of one flat bank; counts are those of :class:`Cluster`.

    Source: Plummer et al., ICLR 2022.
    """

    __pydantic_config__ = ONLY_FIELDS

    name: Name  # unique, for people
    bank_size: Annotated[int, Field(le=MOST_PARAMETERS)]  # numbers in the bank, P
    targets: Annotated[
        tuple[Target, ...], Field(min_length=1, max_length=MOST_TARGETS)
    ]  # in the order in which they read it
    options: SsnOptions
    mask_window: Annotated[int, Field(ge=0, le=2**31)] = 0  # numbers that one number of a mask multiplies; 0: no masks
    generator: Literal["ssn"] = "ssn"

    @property
    def kind(self) -> str:
        return ", ".join(dict.fromkeys(target.kind for target in self.targets))

    @property
    def shapes(self) -> tuple[Shape, ...]:
        return tuple(target.shape for target in self.targets)

    @property
    def window_specs(self) -> tuple[WindowSpec, ...]:
        return window_specs(self.shapes, self.bank_size, self.options)

    @property
    def num_templates(self) -> int:
        return self.bank_size

    def readers(self) -> Iterator[tuple[list[int], list[Target]]]:
        yield [math.prod(shape) for shape in self.shapes], [*self.targets]

    @property
    def minimum_templates(self) -> int:
        return least_bank(self.shapes, self.options)

    @property
    def num_coefficients(self) -> int:
        return num_coefficients(self.window_specs, self.options, self.mask_window)

    @property
    def minimum_parameters(self) -> int:
        return least_cost(self.shapes, self.options)

    @property
    def num_weights(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes)
