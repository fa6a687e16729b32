"""The one error that a user can cause, and the end that a signal brings."""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

_MOST_CHARACTERS = 1600


class SuperWeightError(ValueError):
    """What was given, what was expected, where, and the remedy, in one or two lines.

    What was given may be as long as a file: the middle of a message that is longer than a few lines is left out.
    """

    def __str__(self) -> str:
        text = super().__str__()
        half = _MOST_CHARACTERS // 2
        return text if len(text) <= _MOST_CHARACTERS else f"{text[:half]} [...] {text[-half:]}"


@contextmanager
def naming(*places: Path) -> Iterator[None]:
    """Have every refusal inside name what was being read.

    Raises:
        SuperWeightError: The one that was raised, after the names of the places where it says none of them.
    """
    try:
        yield
    except SuperWeightError as error:
        if any(str(place) in str(error) for place in places):
            raise
        raise SuperWeightError(f"{', '.join(map(str, places))}: {error}") from error


def unknown_name(what: str, given: str, known: Iterable[str]) -> SuperWeightError:
    """An error for a name that no registry holds, with the nearest one that it does hold.

    Example:
        >>> print(unknown_name("data set", "cifra10", ["cifar10", "digits"]))
        unknown data set 'cifra10': did you mean 'cifar10'? Known: cifar10, digits
    """
    names = sorted(known)
    near = difflib.get_close_matches(str(given), names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    if len(names) > 20:
        others = difflib.get_close_matches(str(given), names, n=5, cutoff=0.5)[1:]
        listed = f"Also near: {', '.join(others)}" if others else f"{len(names)} are known"
    else:
        listed = f"Known: {', '.join(names) or 'none'}"
    return SuperWeightError(f"unknown {what} {given!r}: {hint}{listed}")


class TrainingStopped(KeyboardInterrupt):
    """A training was asked to end by a signal, and has saved where it stood.

    Attributes:
        signal: The signal's number.
        saved: Whether a checkpoint of this very step is there.
    """

    def __init__(self, message: str, number: int, saved: bool = False) -> None:
        super().__init__(message)
        self.signal = number
        self.saved = saved


def stop_now(number: int, frame: FrameType | None) -> NoReturn:
    """A handler that ends what runs at once."""
    raise TrainingStopped(f"stopped by {signal.Signals(number).name}", number)
