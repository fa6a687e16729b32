"""HTML by construction, and the page around the sections, whose head forbids scripts and the network.

Text is escaped wherever it stands; markup is made by :func:`tag` alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from superweight_ensembles.storage import escape_controls

_VOID = {"meta", "img", "link"}
MINUS = "\N{MINUS SIGN}"
NOTHING = "\N{EN DASH}"  # in a table, where there is no value
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

# One column on a phone, two of figures on a desktop, light and dark, on paper.
STYLE = """
:root {
  color-scheme: light dark;
  --page: #fafaf8; --card: #fff; --ink: #1d2024; --soft: #5a616a; --line: #dfe2e5; --accent: #00619a; --tint: #eef4f8;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171a; --card: #1c2024; --ink: #e6e8ea; --soft: #a0a8b0; --line: #33393f; --accent: #6cbbea;
    --tint: #1d2a33;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  overflow-wrap: break-word;
}
main, header { max-width: 70rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2.5rem; }
main { padding-bottom: 4rem; }
section { min-width: 0; }
h1 {
  margin: 0; overflow-wrap: anywhere;
  font-size: clamp(1.6rem, 5vw, 2.25rem); line-height: 1.15; letter-spacing: -.02em;
}
h2 {
  margin: 3rem 0 1rem; padding-top: 1rem; border-top: 1px solid var(--line);
  font-size: 1.3rem; line-height: 1.25; letter-spacing: -.01em;
}
h3 { margin: 0 0 .2rem; font-size: 1rem; line-height: 1.35; }
p { max-width: 44rem; margin: 0 0 .8rem; }
a { color: var(--accent); }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .85em; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.kind { margin: 0 0 .35rem; color: var(--soft); font-size: .875rem; }
.lead { margin: .75rem 0 0; font-size: 1.125rem; line-height: 1.5; text-wrap: pretty; }
nav { margin-top: 1.25rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .3rem 1.25rem; margin: 0; padding: 0; list-style: none; }
nav a { display: inline-block; padding: .2rem 0; text-underline-offset: .25em; text-decoration-thickness: 1px; }
.tiles {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(9.25rem, 1fr)); gap: .75rem; margin: 1.5rem 0 0;
}
.tiles > div {
  display: flex; flex-direction: column; padding: .8rem .95rem; background: var(--card);
  border: 1px solid var(--line); border-radius: .6rem;
}
.tiles dt { color: var(--soft); font-size: .8125rem; }
.tiles dd { margin: 0; font-variant-numeric: tabular-nums; }
.tiles .value { font-size: 1.5rem; font-weight: 650; line-height: 1.3; letter-spacing: -.01em; }
.tiles .beside { color: var(--soft); font-size: .8125rem; line-height: 1.4; }
.facts { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: .35rem 1.5rem; margin: 0; }
.facts dt { color: var(--soft); }
.facts dd { margin: 0; min-width: 0; }
.scroll { overflow-x: auto; max-width: 100%; -webkit-overflow-scrolling: touch; }
.sheet { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }
table {
  width: 100%; border-collapse: separate; border-spacing: 0; font-variant-numeric: tabular-nums; font-size: .9rem;
}
caption { padding: .7rem .9rem 0; color: var(--soft); font-size: .8125rem; text-align: left; }
th, td { padding: .42rem .9rem; text-align: right; white-space: nowrap; vertical-align: baseline; }
thead th { color: var(--soft); font-size: .8125rem; font-weight: 500; vertical-align: bottom; }
th[scope="row"], th[scope="rowgroup"], .left { text-align: left; font-weight: 500; }
td.left { color: var(--soft); font-weight: 400; }
tbody tr:first-child > * { border-top: 1px solid var(--line); }
.lines tbody tr > * { border-top: 1px solid var(--line); }
tr > :first-child[scope] { position: sticky; left: 0; background: var(--card); }
tbody.strong > tr > * { font-weight: 650; }
tbody.strong > tr > td.left { color: inherit; }
tbody.change > tr > *, tbody.change > tr > :first-child[scope] { background: var(--tint); }
.wrap td { white-space: normal; text-align: left; min-width: 9rem; }
.wrap thead th { text-align: left; }
.note { margin: .7rem 0 0; color: var(--soft); font-size: .875rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); gap: 2rem 1.75rem; }
.figures > * { min-width: 0; }
.figures > .wide { grid-column: 1 / -1; }
figure { margin: 0; }
figcaption { margin-bottom: .6rem; }
figcaption p { margin: 0; color: var(--soft); font-size: .875rem; line-height: 1.5; }
.frame { padding: .6rem; background: #fff; border: 1px solid var(--line); border-radius: .6rem; }
.frame img { display: block; width: 100%; height: auto; margin: 0 auto; }
.wide .frame img { min-width: 37rem; }
.data { white-space: nowrap; }
figure:not(.wide) img { max-width: 32rem; }
* + .figures, * + h3 { margin-top: 2rem; }
figcaption h3 { margin-top: 0; }
.note { max-width: 54rem; }
h3 + .scroll { margin-top: .7rem; }
summary { cursor: pointer; padding: .3rem 0; color: var(--accent); }
pre { margin: 0; padding: .9rem 1.1rem; line-height: 1.5; }
@supports (grid-template-rows: subgrid) {
  .figures { row-gap: 0; }
  .figures figure { display: grid; grid-row: span 2; grid-template-rows: subgrid; grid-template-columns: 100%; }
  .figures .frame { align-self: start; margin-bottom: 2rem; }
  .figures figure:last-child .frame { margin-bottom: 0; }
}
@media (prefers-color-scheme: dark) { .frame img { filter: brightness(.94); } .frame { background: #f0f0f0; } }
@media (min-width: 62rem) {
  main { display: grid; grid-template-columns: 1fr 1fr; column-gap: 3rem; }
  section { grid-column: 1 / -1; }
  section.half { grid-column: auto; }
}
@media (max-width: 30rem) {
  main, header { padding-left: 1rem; padding-right: 1rem; }
  header { padding-top: 1.5rem; }
  .tiles { grid-template-columns: 1fr 1fr; }
  .facts { grid-template-columns: 1fr; gap: 0; }
  .facts dd { margin-bottom: .6rem; }
  th, td, caption { padding-left: .7rem; padding-right: .7rem; }
}
@media print {
  :root, :root:root {
    color-scheme: light;
    --page: #fff; --card: #fff; --ink: #000; --soft: #444; --line: #bbb; --accent: #000; --tint: #f2f2f2; }
  body { font-size: 10pt; }
  main, header { max-width: none; padding: 0; }
  nav { display: none; }
  h2 { margin-top: 1.5rem; }
  h2, h3 { break-after: avoid; }
  figure, .tiles > div, table, tbody { break-inside: avoid; }
  thead { break-after: avoid; }
  .figures { grid-template-columns: 1fr 1fr; gap: 1rem; }
  .scroll { overflow: visible; }
  .wide .frame img { min-width: 0; }
  .data { display: none; }
  table { font-size: 8pt; }
  th, td { padding: .2rem .4rem; }
  pre { white-space: pre-wrap; columns: 2; font-size: 7.5pt; }
  details::details-content { content-visibility: visible; block-size: auto; }
}
""".strip()


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


def head_row(*names: str, left: int) -> Html:
    """Headings of the columns; the first ``left`` of them stand to the left."""
    cells = [tag("th", name, scope="col", class_="left" if at < left else None) for at, name in enumerate(names)]
    return tag("tr", cells)


def row(name: str | None, cells: Iterable[str]) -> Html:
    """A row by its name, or by a heading that is there already; none where the heading spans it. Texts become cells."""
    heading = "" if name is None else name if isinstance(name, Html) else tag("th", name, scope="row")
    return tag("tr", heading, [cell if isinstance(cell, Html) else tag("td", cell) for cell in cells])


def sheet(label: str, *body: str | Iterable[str], head: Html, caption: str = "", class_: str | None = None) -> Html:
    """A table in a box that scrolls."""
    titled = tag("caption", caption) if caption else ""
    return scrolled(tag("table", titled, tag("thead", head), *body, class_=class_), label=label, class_="sheet")


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
    return escape(escape_controls(str(value).encode("utf-8", "replace").decode("utf-8")), quote=True)


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page with a heading of its own.

    Attributes:
        key: What links to it name; letters alone.
        title: Its heading, and its name in the list of contents.
        content: Below the heading; a section without any is left out.
        half: Whether it takes half of a wide page.
    """

    key: str
    title: str
    content: Html | None
    half: bool = False


def page(title: str, header: Html, sections: Sequence[Section]) -> str:
    """A whole HTML document."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", Html(STYLE)),
    )
    shown = [section for section in sections if section.content is not None]
    links = [tag("li", tag("a", section.title, href=f"#{section.key}")) for section in shown]
    contents = tag("nav", tag("ul", links), aria_label="Contents")
    parts = []
    for section in shown:
        heading = tag("h2", section.title, id=section.key)
        half = "half" if section.half else None
        parts.append(tag("section", heading, section.content or "", aria_labelledby=section.key, class_=half))
    body = tag("body", tag("header", header, contents), tag("main", parts))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"
