"""The tutorials are executed whole, as a reader would run them, and keep to what the documentation site shows."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import superweight_ensembles as swe

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.py"))
# What each leaves in the folder it runs in, and what it prints that shows that it did what it says.
ENDS = {
    "01_first_ensemble": (
        {"first-ensemble/anytime.json", "first-ensemble/model.safetensors"},
        [r"226,437 parameters; apart the members have 272,846", r"images by number of members: \[\d+, \d+, \d+\]",
         r"loaded predictor answers the same"],
    ),
    "02_compress": (
        {"compressed/model.safetensors"},
        [r"apart +252,340 +\d", r"after the fit +125,934 +\d", r"after tuning +125,934 +\d", r"loaded 125,934"],
    ),
    "03_not_images": (set(), [r"(?s)perceptron .*the cascade .*bag .*gru .*transformer .*the cascade"]),
    "04_own_loop": (set(), [r"own loop: \d", r"Lightning: \d", r"stopped: accuracy is no better for one epoch"]),
    "05_serve": (
        {"cascade/cascade.json", "cascade/onnx_cascade.py"},
        [r"short deadline: \(200, .*'members_used': 1", r"long deadline: +\(200, .*'members_used': 2",
         r"422 Input should be greater than 0", r"422 Input should be a valid number", r"400 the body is no picture",
         r"stopped$"],
    ),
}  # fmt: skip
NEEDS = {"04_own_loop": ["lightning"], "05_serve": ["fastapi", "uvicorn", "httpx", "onnx", "onnxscript", "onnxruntime"]}


def names(paths: list[Path]) -> list[str]:
    return [path.stem for path in paths]


def test_every_tutorial_has_an_end_that_is_looked_at() -> None:
    assert names(TUTORIALS) == sorted(ENDS)


@pytest.mark.slow
@pytest.mark.parametrize("path", TUTORIALS, ids=names(TUTORIALS))
def test_it_runs_and_ends_as_it_says(path: Path, tmp_path: Path) -> None:
    for package in NEEDS.get(path.stem, []):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install superweight-ensembles[dev]")
    before = written_files()
    environment = {**os.environ, "MPLBACKEND": "Agg", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, path], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    files, facts = ENDS[path.stem]
    assert not {name for name in files if not (tmp_path / name).is_file()}
    for fact in facts:
        assert re.search(fact, done.stdout.strip(), flags=re.MULTILINE), (fact, done.stdout)
    assert written_files() <= before


def written_files() -> set[str]:
    """The checkout's files and folders, but for those that other programs at work in it may write at any time."""
    found: set[str] = set()
    for folder, folders, files in os.walk(ROOT):
        # changed in place, so that os.walk does not go into them: a virtual environment has 80,000 files
        folders[:] = [
            name for name in folders if not name.startswith(".") and name not in ("__pycache__", "runs", "build")
        ]
        found.update(os.path.join(folder, name) for name in (*folders, *files) if not name.startswith("."))
    return found


@pytest.mark.parametrize("path", TUTORIALS, ids=names(TUTORIALS))
def test_it_is_in_the_percent_format(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 200 and lines[0] == "# %% [markdown]" and re.match(r"# # \S", lines[1])
    cells = re.split(r"^# %%", "\n".join(lines), flags=re.MULTILINE)[1:]
    words, code = 0, 0
    for cell in cells:
        kind, *content = cell.split("\n")
        assert kind in (" [markdown]", ""), kind
        written = [line for line in content if line]
        assert written, "an empty cell"
        if kind:
            words += 1
            assert all(line.startswith("#") for line in written), cell
        else:
            code += 1
            ast.parse("\n".join(content))
            assert len(written) <= 30, f"a cell of {len(written)} lines: part it"
    assert words >= 5 and code >= 5


@pytest.mark.parametrize("path", TUTORIALS, ids=names(TUTORIALS))
def test_it_uses_public_names_alone(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    ours = [ast.unparse(node) for node in imports if "superweight_ensembles" in ast.unparse(node)]
    assert ours == ["import superweight_ensembles as swe"]
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    assert not [node.attr for node in found if node.attr.startswith("_") and node.attr != "__init__"]
    chains = {text for text in map(ast.unparse, found) if re.fullmatch(r"swe(\.\w+)+", text)}
    assert chains
    for chain in chains:
        owner = swe
        for name in chain.split(".")[1:]:
            public = getattr(owner, "__all__", None)
            assert public is None or name in public, chain
            owner = getattr(owner, name)
