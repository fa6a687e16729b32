"""Folders that are whole or absent."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from superweight_ensembles.errors import SuperWeightError


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Write into a new folder beside ``folder`` and put it in its place at the end; nothing stays after an error."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    recover_folder(folder)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    draft.chmod(0o755)
    try:
        yield draft
        old = _older(folder)
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        draft.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def recover_folder(folder: Path) -> None:
    """Bring back what stood there before, where :func:`whole_folder` was stopped between its two renames."""
    if not folder.exists() and _older(folder).is_dir():
        _older(folder).rename(folder)


def _older(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def write_text(path: Path, text: str) -> None:
    """Write a file whole: to a new name, then into place."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=1) + "\n")


def read_text(path: Path) -> str:
    """Read a text file.

    Raises:
        SuperWeightError: The file is missing or no text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SuperWeightError(f"{path} is missing") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SuperWeightError(f"{path} cannot be read: {error}") from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        SuperWeightError: The file is missing, unreadable, or holds anything else.
    """
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, SuperWeightError):
            raise
        raise SuperWeightError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise SuperWeightError(f"{path} must hold a JSON object; got {type(content).__name__}")
    return content
