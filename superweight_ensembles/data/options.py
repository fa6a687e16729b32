"""Checks of the options that a user gives to a data set or a loader."""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Sequence
from pathlib import Path

from superweight_ensembles.errors import SuperWeightError


def checked_integer(name: str, value: object, minimum: int, below: int | None = None) -> int:
    """A whole number of at least ``minimum`` (and less than ``below``)."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    number = int(value) if whole else minimum - 1  # type: ignore[call-overload]
    if number < minimum or (below is not None and number >= below):
        upper = "" if below is None else f" and less than {below}"
        raise SuperWeightError(f"{name} must be a whole number of at least {minimum}{upper}; got {value!r}")
    return number


def checked_seed(value: object) -> int:
    """A seed: a whole number of 32 bits."""
    return checked_integer("seed", value, 0, below=2**32)


def checked_fraction(name: str, value: object) -> float:
    """A fraction ``0 <= f < 1``."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= float(value) < 1:
        raise SuperWeightError(f"{name} must be a number from 0 to less than 1; got {value!r}")
    return float(value)


def checked_switch(name: str, value: object) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise SuperWeightError(f"{name} must be true or false; got {value!r}")
    return value


def checked_shape(name: str, value: object) -> tuple[int, ...]:
    """(C, H, W)."""
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 3:
        raise SuperWeightError(f"{name} must be (channels, height, width); got {value!r}")
    return tuple(checked_integer(name, length, 1) for length in value)


def checked_channels(name: str, value: object, positive: bool) -> tuple[float, float, float]:
    """Three finite numbers, one a colour channel; all above 0 if ``positive``."""
    given = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
    good = len(given) == 3 and all(
        isinstance(number, numbers.Real) and math.isfinite(number) and (float(number) > 0 or not positive)
        for number in given
    )
    if not good:
        kind = "positive numbers" if positive else "numbers"
        raise SuperWeightError(f"{name} must be three {kind}, one a colour channel of [0, 1]; got {value!r}")
    red, green, blue = map(float, given)
    return red, green, blue


def checked_folder(value: object) -> Path:
    """A folder's path, its ``~`` resolved; it need not be there."""
    try:
        if not isinstance(value, (str, os.PathLike)):
            raise TypeError(f"got {type(value).__name__}")
        if not os.fspath(value):
            raise ValueError("an empty text; '.' is the folder that you are in")
        folder = Path(value).expanduser()
        folder.exists()
    except (TypeError, ValueError, RuntimeError, OSError) as error:
        raise SuperWeightError(f"folder must be the path of a folder; got {value!r:.200} ({error!s:.80})") from None
    return folder
