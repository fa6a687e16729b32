"""What the README shows is run, and what it names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_python_snippets_run(snippet: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    variables: dict = {}
    exec(compile(snippet, "README.md", "exec"), variables)
    assert variables["ensemble"].num_parameters <= 0.83 * variables["ensemble"].independent_parameters


def test_the_snippets_of_a_page_run_one_after_the_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    page, variables = (ROOT / "docs" / "your-problem.md").read_text(encoding="utf-8"), {}
    snippets = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(snippets) >= 6
    for snippet in snippets:
        exec(compile(snippet, "your-problem.md", "exec"), variables)
    assert variables["predictor"].policy is not None and variables["found"].ensemble["r2"] > 0
    assert len(variables["rows"]) == 2


def test_what_extends_the_library_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    snippets = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(snippets) >= 8
    variables: dict = {}
    for snippet in snippets:
        exec(compile(snippet, "extending.md", "exec"), variables)
    for file in re.findall(r"`((?:plan|ensemble|experiment|report|data|models)/[a-z_/]+\.py)`", page):
        assert (ROOT / "superweight_ensembles" / file).is_file(), file


def headings(page: Path) -> list[str]:
    """As links name them."""
    names = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [re.sub(r"[^\w -]", "", name.lower()).replace(" ", "-") for name in names]


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md")))]
)
def test_named_files_exist(page: str) -> None:
    found = re.findall(r"\]\((?!http)([^)]+)\)", (ROOT / page).read_text(encoding="utf-8"))
    assert found
    for link in found:
        path, _, heading = link.partition("#")
        place = (ROOT / page).parent / path if path else ROOT / page
        assert place.exists(), link
        assert not heading or heading in headings(place), link


def test_named_recipes_and_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make ([a-z]+)", README):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    for recipe in (ROOT / "recipes").glob("*.yaml"):
        assert f"`{recipe.stem}`" in README, recipe
    for recipe in re.findall(r"recipes/([a-z0-9-]+)\.yaml", README):
        assert (ROOT / "recipes" / f"{recipe}.yaml").is_file(), recipe
