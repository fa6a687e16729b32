"""What the README and the pages show is run, and what they name is there."""

from __future__ import annotations

import re
from operator import attrgetter
from pathlib import Path
from types import ModuleType

import pytest

import superweight_ensembles as swe

ROOT = Path(__file__).parents[1]
MADE = ("reference/recipe.md", "reference/command-line.md")  # of the site alone; its strict build sees their links
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md")))]
SNIPPETS = {page: re.findall(r"```python\n(.*?)```", (ROOT / page).read_text("utf-8"), re.DOTALL) for page in PAGES}


@pytest.mark.parametrize("page", [page for page in PAGES if SNIPPETS[page]])
def test_the_snippets_of_a_page_run_one_after_the_other(
    page: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    variables: dict = {}
    for snippet in SNIPPETS[page]:
        exec(compile(snippet, page, "exec"), variables)
    ensemble = variables.get("ensemble")
    assert ensemble is None or ensemble.num_parameters <= ensemble.independent_parameters
    expected = {
        "docs/your-problem.md": lambda: variables["found"].ensemble["r2"] > 0,
        "docs/sweeps.md": lambda: len(variables["rows"]) == 2,
        "docs/deploy.md": lambda: Path("cascade").is_dir() and Path("wrn10-1.onnx").is_file(),
        "docs/start.md": lambda: Path("runs/predictor").is_dir(),
    }
    assert expected.get(page, lambda: True)()


def test_files_that_the_guide_to_extension_names_exist() -> None:
    guide = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    files = re.findall(r"`((?:plan|ensemble|experiment|report|data|models)/[a-z_/]+\.py)`", guide)
    assert files and len(SNIPPETS["docs/extending.md"]) >= 8
    for file in files:
        assert (ROOT / "superweight_ensembles" / file).is_file(), file


def headings(page: Path) -> list[str]:
    """As links name them."""
    names = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [re.sub(r"[^\w -]", "", name.lower()).replace(" ", "-") for name in names]


@pytest.mark.parametrize("page", PAGES)
def test_named_files_exist(page: str) -> None:
    found = re.findall(r"\]\((?!http)([^)]+)\)", (ROOT / page).read_text(encoding="utf-8"))
    for link in found:
        path, _, heading = link.partition("#")
        if path in MADE:
            continue
        place = (ROOT / page).parent / path if path else ROOT / page
        assert place.exists(), link
        assert not heading or heading in headings(place), link


def test_named_recipes_and_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make ([a-z]+)", README):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    recipes = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    for recipe in (ROOT / "recipes").glob("*.yaml"):
        assert f"`{recipe.stem}`" in recipes, recipe
    for recipe in re.findall(r"recipes/([a-z0-9-]+)\.yaml", README):
        assert (ROOT / "recipes" / f"{recipe}.yaml").is_file(), recipe


def test_the_reference_has_every_public_name_and_all_that_pages_name() -> None:
    shown = set()
    for page in (ROOT / "docs" / "reference").glob("*.md"):
        shown |= set(re.findall(r"^::: superweight_ensembles\.([\w.]+)$", page.read_text("utf-8"), re.MULTILINE))
    names = {f"{swe.__name__}.{name}": getattr(swe, name) for name in swe.__all__}
    public = {name for name, value in names.items() if not isinstance(value, ModuleType)}
    assert {name.rpartition(".")[2] for name in public} <= {name.rpartition(".")[2] for name in shown}
    pages = [ROOT / page for page in PAGES] + sorted((ROOT / "docs" / "tutorials").glob("*.py"))
    rooms = "|".join(name.rpartition(".")[2] for name in names if name not in public)
    used = {name for page in pages for name in re.findall(rf"\bswe\.((?:{rooms})\.\w+)", page.read_text("utf-8"))}
    used = {name.replace("adaptive.", "models.adaptive.", 1) if name.startswith("adaptive.") else name for name in used}
    used = {name for name in used if not isinstance(attrgetter(name)(swe), ModuleType)}
    assert used - shown == set()
