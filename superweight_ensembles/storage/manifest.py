"""A folder's manifest: size and SHA-256 of each file, so that damage is seen before anything is read."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.storage.contained import check_plain_name, contained_file
from superweight_ensembles.storage.files import read_json, write_json

MANIFEST_FILE = "manifest.json"
MANIFEST_FORMAT = 1
_MOST_BYTES = 2**20
_MOST_FILES = 1000


def write_manifest(folder: Path) -> None:
    """Write manifest.json over every other file that a folder holds itself."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != MANIFEST_FILE)
    entries = {path.name: file_entry(path) for path in files}
    write_json(folder / MANIFEST_FILE, {"format": MANIFEST_FORMAT, "files": entries})


def list_file(folder: Path, name: str) -> None:
    """List one file, new or changed, in a manifest that is there; the others keep what was noted of them.

    Raises:
        SuperWeightError: The manifest is missing or damaged.
    """
    entries = {**_read(folder), name: file_entry(folder / name)}
    write_json(folder / MANIFEST_FILE, {"format": MANIFEST_FORMAT, "files": entries})


def check_manifest(folder: Path, names: Collection[str]) -> None:
    """Hold files of a folder against its manifest, all sizes before the first checksum.

    Raises:
        SuperWeightError: The manifest is missing or damaged; a file is missing, not listed, or not what was written.
    """
    listed = _read(folder)
    for name in names:
        if name not in listed:
            raise SuperWeightError(f"{folder / MANIFEST_FILE} does not list {name}")
        _check_size(folder / name, listed[name])
    for name in names:
        _check_sum(folder / name, listed[name])


def check_file(path: Path, entry: Any, where: str) -> None:
    """Hold one file against its ``{"bytes": ..., "sha256": ...}``, as another file notes it.

    Raises:
        SuperWeightError: No such entry, or the file is missing or not what was written.
    """
    if not _is_entry(entry):
        raise SuperWeightError(f"{where}: must give bytes and sha256 of {path.name}; got {entry!r:.80}")
    _check_size(path, entry)
    _check_sum(path, entry)


def file_entry(path: Path) -> dict[str, Any]:
    """What :func:`check_file` takes."""
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _check_size(path: Path, entry: dict[str, Any]) -> None:
    size = contained_file(path.parent, path.name).stat().st_size
    if size != entry["bytes"]:
        raise SuperWeightError(
            f"{path} has {size:,} bytes, and {entry['bytes']:,} were written: the file is damaged or was changed"
        )


def _check_sum(path: Path, entry: dict[str, Any]) -> None:
    if sha256_of(path) != entry["sha256"]:
        raise SuperWeightError(f"{path} does not have its checksum: the file is damaged or was changed")


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
    if not isinstance(files, dict) or len(files) > _MOST_FILES:
        raise SuperWeightError(f"{path}: files must be an object of at most {_MOST_FILES:,} names")
    for name, entry in files.items():
        check_plain_name(name, f"{path}, files")
        if not _is_entry(entry):
            raise SuperWeightError(f"{path}: files.{name} must give its bytes and sha256; got {entry!r:.80}")
    return files


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and set(entry) == {"bytes", "sha256"}
        and type(entry["bytes"]) is int
        and entry["bytes"] >= 0
        and isinstance(entry["sha256"], str)
        and re.fullmatch("[0-9a-f]{64}", entry["sha256"]) is not None
    )
