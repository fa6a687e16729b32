"""Plain data of bounded size and depth: what JSON and YAML files may hold once they are parsed."""

from __future__ import annotations

import math
import os
import unicodedata
from typing import Any

from rich.text import Text

from superweight_ensembles.errors import SuperWeightError

MOST_LEVELS = 64
MOST_VALUES = 100_000
MOST_CHARACTERS = 10_000
_LARGEST = 2**63


def check_levels(content: Any, where: str, most: int = MOST_LEVELS) -> None:
    """Refuse lists and objects that stand in each other deeper than any of ours; linear in time, without recursion.

    Raises:
        SuperWeightError: Says where.
    """
    level = [content]
    for _ in range(most + 1):
        level = [child for value in level for child in _children(value) if isinstance(child, (dict, list))]
        if not level:
            return
    raise SuperWeightError(f"{where} has more than {most} levels of lists and objects in each other")


def check_plain(content: Any, where: str) -> None:
    """Refuse what no setting is: other types than JSON has, keys that are no text, numbers without bounds, controls.

    Raises:
        SuperWeightError: Says where, down to the key.

    Example:
        >>> check_plain({"sharing": {"budget": float("nan")}}, "recipe.yaml")
        Traceback (most recent call last):
        superweight_ensembles.errors.SuperWeightError: recipe.yaml: sharing.budget: nan is no finite number
    """
    check_levels(content, where)
    left: list[tuple[tuple[Any, ...], Any]] = [((), content)]
    seen = 0
    while left:
        path, value = left.pop()
        seen += 1
        if seen > MOST_VALUES:
            raise SuperWeightError(f"{where} holds more than {MOST_VALUES:,} values")
        problem = _problem(value)
        if problem:
            raise SuperWeightError(f"{where}: {_spelled(path)}{problem}")
        if isinstance(value, dict):
            for key in value:
                problem = (
                    _problem(key) if isinstance(key, str) else f"the key {key!r:.40} must be text: put it in quotes"
                )
                if problem:
                    raise SuperWeightError(f"{where}: {_spelled(path)}{problem}")
            left += [((*path, key), one) for key, one in reversed(value.items())]
        elif isinstance(value, (list, tuple)):
            left += [((*path, index), one) for index, one in reversed(list(enumerate(value)))]


def has_controls(text: str) -> bool:
    """Whether a text holds characters that steer a terminal, or that no file holds."""
    return not text.isprintable() and any(unicodedata.category(one) in ("Cc", "Cs") for one in text)


def _problem(value: Any) -> str:
    if isinstance(value, str):
        if len(value) > MOST_CHARACTERS:
            return f"a text of {len(value):,} characters; at most {MOST_CHARACTERS:,} are taken"
        return f"{value!r:.80} holds control characters" if has_controls(value) else ""
    if value is None or isinstance(value, (bool, dict, list, tuple)):
        return ""
    if isinstance(value, int):
        return "" if abs(value) < _LARGEST else "a whole number of 2**63 or more"
    if isinstance(value, float):
        return "" if math.isfinite(value) else f"{value!r} is no finite number"
    return f"{value!r:.40} is of the type {type(value).__name__}, which no setting is: put it in quotes"


def _spelled(path: tuple[Any, ...]) -> str:
    text = ".".join(str(part) for part in path)
    return f"{text:.200}: " if text else ""


def _children(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()


# FOLDED storage.machine_memory: Whether what is asked for can be in this machine's memory at all: a rough bound,
# before anything is made.

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


# FOLDED storage.visible_text: Names from files as a terminal may show them: nothing in them steers it.

_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # what follows them reads backwards


def escape_controls(text: str, keep: str = "\n\t") -> str:
    r"""A text with control characters spelled out.

    Example:
        >>> print(escape_controls("safe \x1b[31mred"))
        safe \x1b[31mred
    """
    if text.isprintable():
        return text
    return "".join(one if one in keep or not _steers(one) else repr(one)[1:-1] for one in text)


def cell(text: object) -> Text:
    """A cell or title of a table; square brackets are no markup in it."""
    return Text(escape_controls(str(text), keep=""))


def _steers(one: str) -> bool:
    return one in _TURNING or unicodedata.category(one) in ("Cc", "Cs")
