"""The page around the sections: a head that forbids scripts and the network, and one place for every part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from superweight_ensembles.report.elements import Html, tag
from superweight_ensembles.report.looks import STYLE

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of the page with a heading of its own.

    Attributes:
        key: What links to it name; letters alone.
        title: Its heading, and its name in the list of contents.
        content: Below the heading.
        half: Whether it takes half of a wide page.
    """

    key: str
    title: str
    content: Html
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
    contents = tag(
        "nav",
        tag("ul", [tag("li", tag("a", section.title, href=f"#{section.key}")) for section in sections]),
        aria_label="Contents",
    )
    parts = [
        tag(
            "section",
            tag("h2", section.title, id=section.key),
            section.content,
            aria_labelledby=section.key,
            class_="half" if section.half else None,
        )
        for section in sections
    ]
    body = tag("body", tag("header", header, contents), tag("main", parts))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"
