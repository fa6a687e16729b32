"""What mkdocs builds beside the pages of this folder: the front page, changes, keys of a recipe, the command line.

Pages link to files of the checkout (``../figures/x.png``, ``../recipes/digits.yaml``) as they stand, so that links work
where the sources are read, too. The site gets a copy of each such file.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
_LINK = re.compile(r"(?P<sign>!?)\[(?P<text>[^\[\]]*)\]\((?!\w+:|#)(?P<link>[^)#\s]+)(?P<heading>#[^)\s]*)?\)")


class Docstrings(griffe.Extension):
    """Docstrings as mkdocstrings reads them: names as code, and examples under the heading that it knows."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", obj.docstring.value)
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made, and the files of the checkout that pages link to."""
    made = {
        "index.md": (ROOT / "README.md").read_text(encoding="utf-8"),
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
        "reference/recipe.md": recipe_keys(),
        "reference/command-line.md": command_line(),
    }
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    for file in [file for file in files if file.src_uri.endswith(".md")]:
        for match in _LINK.finditer(file.content_string):
            target = _target(file.src_uri, match["link"])
            if target is not None and target.is_file() and files.get_file_from_path(_in_site(target)) is None:
                files.append(File.generated(config, _in_site(target), abs_src_path=str(target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Have links to files of the checkout lead to their copies; those to its folders become text."""
    depth = page.file.src_uri.count("/")

    def led(match: re.Match[str]) -> str:
        target = _target(page.file.src_uri, match["link"])
        if target is None or not target.exists():
            return match[0]  # a page that is made, or none: mkdocs says so
        if target.is_dir():
            return match["text"]
        return f"{match['sign']}[{match['text']}]({'../' * depth}{_in_site(target)}{match['heading'] or ''})"

    return _LINK.sub(led, markdown)


def _target(page: str, link: str) -> Path | None:
    """The file of the checkout that a link of a page names; None outside of it."""
    at = ROOT if page in ("index.md", "changelog.md") else (ROOT / "docs" / page).parent
    target = (at / link).resolve()
    return target if ROOT in target.parents else None


def _in_site(target: Path) -> str:
    """Where the site has a file of the checkout."""
    inside = target.relative_to(ROOT).as_posix()
    return {"README.md": "index.md", "CHANGELOG.md": "changelog.md"}.get(inside, inside.removeprefix("docs/"))


def recipe_keys() -> str:
    """A table for each section of a recipe, in the order of its keys, from its JSON schema."""
    from superweight_ensembles.experiment import recipe_schema

    schema = recipe_schema()
    headings = {schema["title"]: "The recipe"}
    pending = [schema]
    while pending:  # sections get the name of the key that holds them
        for key, facts in pending.pop(0)["properties"].items():
            for name in re.findall(r"'#/\$defs/(\w+)'", str(facts)):
                if name not in headings and "properties" in schema["$defs"][name]:
                    headings[name] = key
                    pending.append(schema["$defs"][name])
    lines = [
        "# Keys of a recipe",
        "A recipe is a YAML file. `superweights schema` prints this as JSON schema; editors complete and check by it.",
    ]
    for name, heading in headings.items():
        section = schema["$defs"].get(name, schema)
        lines += [f"## {heading}", "", section.get("description", ""), "", *_table(section, schema["$defs"], headings)]
    return "\n".join(lines)


def _table(section: dict[str, Any], sections: dict[str, Any], headings: dict[str, str]) -> list[str]:
    needed = section.get("required", ())
    rows = ["| key | values | default | meaning |", "| --- | --- | --- | --- |"]
    for key, facts in section["properties"].items():
        default = "needed" if key in needed else f"`{_shown(facts['default'])}`" if "default" in facts else ""
        meaning = " ".join(facts.get("description", "").split()).replace("|", "\\|").replace("``", "`")
        rows.append(f"| `{key}` | {_values(facts, sections, headings)} | {default} | {meaning} |")
    return [*rows, ""]


def _values(facts: dict[str, Any], sections: dict[str, Any], headings: dict[str, str]) -> str:
    """What a key may be, in words; sections are linked."""
    if "$ref" in facts:
        name = facts["$ref"].rpartition("/")[2]
        if name in headings:
            return f"[{headings[name]}](#{headings[name]})"
        return _values(sections[name], sections, headings)
    if several := facts.get("anyOf") or facts.get("oneOf") or facts.get("allOf"):
        return " or ".join(dict.fromkeys(_values(one, sections, headings) for one in several))
    if "enum" in facts or "const" in facts:
        return ", ".join(f"`{_shown(value)}`" for value in facts.get("enum", [facts.get("const")]))
    words = {"integer": "whole number", "array": "list", "object": "mapping", "string": "text"}
    kind = words.get(facts.get("type", "any"), facts.get("type", "any"))
    if "items" in facts:
        kind = f"list of {_values(facts['items'], sections, headings)}"
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {facts[key]}" for key, sign in signs.items() if key in facts]
    return " ".join([kind, *bounds])


def _shown(value: Any) -> str:
    """A value as YAML has it."""
    from superweight_ensembles.storage import dump_yaml

    return value if isinstance(value, str) else dump_yaml([value])[2:].strip().replace("\n", " ") or "''"


def command_line() -> str:
    """The commands with their options, as typer tells them."""
    text = subprocess.run(
        [sys.executable, "-m", "typer", "superweight_ensembles.__main__", "utils", "docs", "--name", "superweights"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    return text.replace("# `superweights`", "# Command line", 1)
