"""Folders that are whole or absent, whatever stops the writer, locked by one process, with checksums of their files.

``manifest.json`` gives size and SHA-256 of each file, so that damage is seen before anything is read.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.storage.files import (
    PathError,
    accessing,
    check_plain_name,
    contained_file,
    draft_of,
    is_draft,
    read_json,
    sync_folder,
    write_json,
)

LOCK_FILE = ".lock"
MANIFEST_FILE = "manifest.json"
MANIFEST_FORMAT = 1
# The workers of a process that was killed hold its lock until they see that it is gone.
_PATIENCE_SECONDS = 8.0
_MOST_BYTES = 2**20  # of a manifest
_MOST_FILES = 1000


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Make a folder if it is missing, and lock it; the system unlocks it when this process ends, however it ends."""
    lock = FileLock(folder / LOCK_FILE, timeout=_PATIENCE_SECONDS)
    with accessing(folder, "written to"):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout:
            raise SuperWeightError(
                f"another process is at work in {folder}: wait for it, or give another folder by --out"
            ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Write into a new folder beside ``folder`` and put it in its place at the end; nothing stays after an error."""
    draft = draft_of(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        recover_folder(folder)
        draft.mkdir()
        yield draft
        _sync(draft)  # before it gets its name, so that a folder of that name is whole after a power failure too
        old = _older(folder)
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        draft.rename(folder)
        sync_folder(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, PathError) as error:  # name the folder: no user knows the draft
        raise PathError(folder, "written", getattr(error, "cause", error)) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def recover_folder(folder: Path) -> None:
    """Bring back the folder that :func:`whole_folder` was replacing when it was stopped between its two renames."""
    with accessing(folder):
        if not folder.exists() and _older(folder).is_dir():
            _older(folder).rename(folder)


def _older(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _sync(folder: Path) -> None:
    """Flush a folder to the disk; its files get the user's usual permissions (safetensors sets its own)."""
    mode = folder.stat().st_mode & 0o666
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            sync_folder(path)
            continue
        path.chmod(mode)
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    sync_folder(folder)


def clear_drafts(parent: Path) -> None:
    """Remove drafts that killed calls of :func:`whole_folder` and ``write_text`` left; nobody may be writing there."""
    with accessing(parent):
        for draft in parent.iterdir():
            if draft.is_symlink() or not is_draft(draft.name):
                continue
            if draft.is_dir():
                shutil.rmtree(draft, ignore_errors=True)
            else:
                draft.unlink()


def empty_folder(folder: Path) -> None:
    """Remove everything in a folder but its lock file, which is in use."""
    with accessing(folder):
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != LOCK_FILE:
                path.unlink()


def write_manifest(folder: Path) -> None:
    """Write manifest.json, which lists every other file directly in the folder."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != MANIFEST_FILE)
    _write_entries(folder, {path.name: file_entry(path) for path in files})


def list_file(folder: Path, name: str) -> None:
    """Add or update the entry of one file in an existing manifest; other entries stay."""
    _write_entries(folder, {**_read_entries(folder), name: file_entry(folder / name)})


def check_manifest(folder: Path, names: Collection[str]) -> None:
    """Compare files of a folder with its manifest, all sizes before the first checksum."""
    listed = _read_entries(folder)
    for name in names:
        if name not in listed:
            raise SuperWeightError(f"{folder / MANIFEST_FILE} does not list {name}")
        _check_size(folder / name, listed[name])
    for name in names:
        _check_sum(folder / name, listed[name])


def file_entry(path: Path) -> dict[str, Any]:
    """A manifest's entry of a file: ``{"bytes": ..., "sha256": ...}``."""
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def check_file(path: Path, entry: Any, where: str) -> None:
    """Compare one file with its :func:`file_entry` in the file ``where``."""
    if not _is_entry(entry):
        raise SuperWeightError(f"{where}: must give bytes and sha256 of {path.name}; got {entry!r:.80}")
    _check_size(path, entry)
    _check_sum(path, entry)


def _check_size(path: Path, entry: dict[str, Any]) -> None:
    size = contained_file(path.parent, path.name).stat().st_size
    if size != entry["bytes"]:
        raise SuperWeightError(
            f"{path} has {size:,} bytes, and {entry['bytes']:,} were written: the file is damaged or was changed"
        )


def _check_sum(path: Path, entry: dict[str, Any]) -> None:
    if _sha256(path) != entry["sha256"]:
        raise SuperWeightError(f"{path} does not have its checksum: the file is damaged or was changed")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with accessing(path, "read"), path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def _write_entries(folder: Path, entries: dict[str, dict[str, Any]]) -> None:
    write_json(folder / MANIFEST_FILE, {"format": MANIFEST_FORMAT, "files": entries})


def _read_entries(folder: Path) -> dict[str, dict[str, Any]]:
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
