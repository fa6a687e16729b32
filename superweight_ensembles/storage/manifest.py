"""A folder's manifest: size and SHA-256 of each file, so that damage is seen before anything is read."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.storage.files import read_json, write_json

MANIFEST_FILE = "manifest.json"
MANIFEST_FORMAT = 1
_MOST_BYTES = 2**20
_MOST_FILES = 1000


def write_manifest(folder: Path) -> None:
    """Write manifest.json over every other file that a folder holds itself."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != MANIFEST_FILE)
    entries = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in files}
    write_json(folder / MANIFEST_FILE, {"format": MANIFEST_FORMAT, "files": entries})


def check_manifest(folder: Path, names: Collection[str]) -> None:
    """Hold files of a folder against its manifest, all sizes before the first checksum.

    Raises:
        SuperWeightError: The manifest is missing or damaged; a file is missing, not listed, or not what was written.
    """
    listed = _read(folder)
    for name in names:
        path, entry = folder / name, listed.get(name)
        if entry is None:
            raise SuperWeightError(f"{folder / MANIFEST_FILE} does not list {name}")
        try:
            size = path.stat().st_size
        except OSError:
            raise SuperWeightError(f"{path} is missing") from None
        if size != entry["bytes"]:
            raise SuperWeightError(
                f"{path} has {size:,} bytes, and {entry['bytes']:,} were written: the file is damaged or was changed"
            )
    for name in names:
        if sha256_of(folder / name) != listed[name]["sha256"]:
            raise SuperWeightError(f"{folder / name} does not have its checksum: the file is damaged or was changed")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> str:
    digest = hashlib.sha256()
    for part in iter(lambda: file.read(2**20), b""):
        digest.update(part)
    return digest.hexdigest()


def _read(folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / MANIFEST_FILE
    content = read_json(path, _MOST_BYTES)
    if content.get("format") != MANIFEST_FORMAT or isinstance(content["format"], bool):
        raise SuperWeightError(f"{path} has format {content.get('format')!r:.40}; this version reads {MANIFEST_FORMAT}")
    files = content.get("files")
    if not isinstance(files, dict) or len(files) > _MOST_FILES or not all(map(_is_entry, files.values())):
        raise SuperWeightError(f"{path}: files must give each file's bytes and sha256")
    return files


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and set(entry) == {"bytes", "sha256"}
        and type(entry["bytes"]) is int
        and isinstance(entry["sha256"], str)
    )
