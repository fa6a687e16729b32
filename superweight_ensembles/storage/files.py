"""Text and JSON, written whole and read within bounds."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from superweight_ensembles.errors import SuperWeightError

MOST_BYTES = 2**26  # of a text file: a plan of 100,000 targets has a third of that


def write_text(path: Path, text: str) -> None:
    """Write a file whole: to a new name, to the disk, then into place."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=1) + "\n")


def read_text(path: Path, most_bytes: int = MOST_BYTES) -> str:
    """Read a text file.

    Raises:
        SuperWeightError: The file is missing, no text, or longer than it may be.
    """
    try:
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
        if len(content) > most_bytes:
            raise SuperWeightError(f"{path} is longer than {most_bytes:,} bytes, which no such file is")
        return content.decode("utf-8")
    except FileNotFoundError:
        raise SuperWeightError(f"{path} is missing") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SuperWeightError(f"{path} cannot be read: {error}") from None


def read_json(path: Path, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        SuperWeightError: The file is missing, unreadable, too long, or holds anything else.
    """
    try:
        content = json.loads(read_text(path, most_bytes))
    except (ValueError, RecursionError) as error:
        if isinstance(error, SuperWeightError):
            raise
        raise SuperWeightError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise SuperWeightError(f"{path} must hold a JSON object; got {type(content).__name__}")
    return content


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, where the system can say so."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
