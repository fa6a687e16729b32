"""HTML by construction: text is escaped wherever it stands, markup is made by :func:`tag` alone."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from superweight_ensembles.storage.visible_text import visible

_VOID = {"meta", "img", "link"}
MINUS = "\N{MINUS SIGN}"
NOTHING = "\N{EN DASH}"  # in a table, where there is no value


class Html(str):
    """Markup that :func:`tag` made; any other string is text."""

    __slots__ = ()


def tag(name: str, /, *children: str | Iterable[str], **attributes: object) -> Html:
    """An element. Strings are escaped, :class:`Html` is not; attributes of None are left out.

    Args:
        name: Of the element.
        *children: Text, elements, or iterables of them.
        **attributes: Values by name; ``class_`` is ``class``, ``aria_label`` is ``aria-label``.

    Example:
        >>> print(tag("p", "1 < 2 ", tag("b", "so"), class_="a b", title='"', id=None))
        <p class="a b" title="&quot;">1 &lt; 2 <b>so</b></p>
    """
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    opened = "".join(f' {key}="{_text(value)}"' for key, value in given.items())
    if name in _VOID:
        return Html(f"<{name}{opened}>")
    return Html(f"<{name}{opened}>{join(children)}</{name}>")


def join(children: Iterable[str | Iterable[str]], between: str = "") -> Html:
    """Text and elements one after the other."""
    parts = (
        child if isinstance(child, Html) else _text(child) if isinstance(child, str) else join(child)
        for child in children
    )
    return Html(_text(between).join(parts))


def scrolled(*children: str, label: str, class_: str = "") -> Html:
    """A box of its own that scrolls where its content is wider than the page; the keyboard reaches it."""
    return tag("div", *children, class_=f"scroll {class_}".strip(), role="region", aria_label=label, tabindex=0)


def signed(value: float, decimals: int) -> str:
    """A difference with its sign, U+2212 for minus; none where it rounds to nothing.

    Example:
        >>> signed(0.254, 1), signed(-3, 0) == f"{MINUS}3", signed(-0.01, 1)
        ('+0.3', True, '0.0')
    """
    text = f"{value:+,.{decimals}f}"
    return text.lstrip("+-") if not any(digit in text for digit in "123456789") else text.replace("-", MINUS)


def _text(value: object) -> str:
    """Escaped for text and attributes; what UTF-8 cannot hold is a question mark, control characters are spelled."""
    return escape(visible(str(value).encode("utf-8", "replace").decode("utf-8")), quote=True)
