"""Bounds on files: plain data of limited size and depth, networks that fit in memory, no control characters in text."""

from __future__ import annotations

import html
import math
import os
import unicodedata
from collections.abc import Sequence
from typing import Any

from rich.text import Text

from superweight_ensembles.errors import SuperWeightError

MOST_LEVELS = 64
MOST_VALUES = 100_000
_MOST_CHARACTERS = 10_000
_LARGEST = 2**63
_BYTES_A_PARAMETER = 4
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # text after them reads backwards


def check_levels(content: Any, where: str, most: int = MOST_LEVELS) -> None:
    """Refuse lists and objects nested deeper than any file of ours; takes linear time, without recursion."""
    level = [content]
    for _ in range(most + 1):
        level = [child for value in level for child in _children(value) if isinstance(child, (dict, list))]
        if not level:
            return
    raise SuperWeightError(f"{where} has more than {most} levels of lists and objects in each other")


def _children(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()


def check_plain(content: Any, where: str) -> None:
    """Refuse what no setting is: non-JSON types, keys that are no text, huge or non-finite numbers, control characters.

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
        problems = [_problem(value), *(map(_key_problem, value) if isinstance(value, dict) else ())]
        if any(problems):
            spot = ".".join(map(str, path))
            raise SuperWeightError(f"{where}: {f'{spot:.200}: ' if spot else ''}{next(filter(None, problems))}")
        inner = value.items() if isinstance(value, dict) else enumerate(_children(value))
        left += [((*path, key), one) for key, one in reversed(list(inner))]


def _problem(value: Any) -> str:
    if isinstance(value, str):
        if len(value) > _MOST_CHARACTERS:
            return f"a text of {len(value):,} characters; at most {_MOST_CHARACTERS:,} are taken"
        controls = not value.isprintable() and any(map(_is_control, value))
        return f"{value!r:.80} holds control characters" if controls else ""
    if value is None or isinstance(value, (bool, dict, list, tuple)):
        return ""
    if isinstance(value, int):
        return "" if abs(value) < _LARGEST else "a whole number of 2**63 or more"
    if isinstance(value, float):
        return "" if math.isfinite(value) else f"{value!r} is no finite number"
    return f"{value!r:.40} is of the type {type(value).__name__}, which no setting is: put it in quotes"


def _key_problem(key: Any) -> str:
    return _problem(key) if isinstance(key, str) else f"the key {key!r:.40} must be text: put it in quotes"


def _is_control(one: str) -> bool:
    """Whether a character controls a terminal or, as half a surrogate pair, cannot be written to a file."""
    return unicodedata.category(one) in ("Cc", "Cs")


def escape_controls(text: str, keep: str = "\n\t") -> str:
    r"""A text as a terminal may show it: control characters are spelled out.

    Example:
        >>> print(escape_controls("safe \x1b[31mred"))
        safe \x1b[31mred
    """
    if text.isprintable():
        return text
    return "".join(
        repr(one)[1:-1] if one not in keep and (one in _TURNING or _is_control(one)) else one for one in text
    )


def cell(text: object) -> Text:
    """A cell or title of a table; square brackets are no markup in it."""
    return Text(escape_controls(str(text), keep=""))


def html_table(rows: Sequence[Sequence[object]], title: str = "", notes: Sequence[str] = ()) -> str:
    """A table for notebooks: the first row is its header; every text is escaped.

    Example:
        >>> html_table([("name", "loss"), ("a<b", 0.5)])
        '<table><tr><th>name</th><th>loss</th></tr><tr><td>a&lt;b</td><td>0.5</td></tr></table>'
    """
    lines = [
        "".join(f"<{tag}>{html.escape(escape_controls(str(one)))}</{tag}>" for one in row)
        for row, tag in zip(rows, ("th", *["td"] * len(rows)))
    ]
    caption = f"<caption>{html.escape(escape_controls(title))}</caption>" if title else ""
    below = f"<pre>{html.escape(escape_controls(chr(10).join(notes)))}</pre>" if notes else ""
    return f"<table>{caption}{''.join(f'<tr>{line}</tr>' for line in lines)}</table>{below}"


def memory_bytes() -> int | None:
    """Physical memory of this machine; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def check_parameters_fit(num_parameters: int, what: str, unit: str = "parameters") -> None:
    """Refuse, before anything is made, parameters that alone exceed the machine's memory in float32."""
    there = memory_bytes()
    needed = _BYTES_A_PARAMETER * num_parameters
    if there is not None and needed > there:
        raise SuperWeightError(
            f"{what}: {num_parameters:,} {unit} take {needed / 2**30:,.0f} GiB; "
            f"this machine has {there / 2**30:,.0f} GiB of memory"
        )
