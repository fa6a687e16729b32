"""Names from files as a terminal may show them: nothing in them steers it."""

from __future__ import annotations

import unicodedata

from rich.text import Text

_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # what follows them reads backwards


def visible(text: str, keep: str = "\n\t") -> str:
    r"""A text with control characters spelled out.

    Example:
        >>> print(visible("safe \x1b[31mred"))
        safe \x1b[31mred
    """
    if text.isprintable():
        return text
    return "".join(one if one in keep or not _steers(one) else repr(one)[1:-1] for one in text)


def cell(text: object) -> Text:
    """A cell or title of a table; square brackets are no markup in it."""
    return Text(visible(str(text), keep=""))


def _steers(one: str) -> bool:
    return one in _TURNING or unicodedata.category(one) in ("Cc", "Cs")
