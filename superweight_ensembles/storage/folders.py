"""Folders that are whole or absent, whatever stops the writer."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from superweight_ensembles.storage.files import draft_of, is_draft, sync_folder
from superweight_ensembles.storage.lock import LOCK_FILE


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Write into a new folder beside ``folder`` and put it in its place at the end; nothing stays after an error.

    All of it is on the disk before it gets its name, so that a folder of that name is whole after a power failure too.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    recover_folder(folder)
    draft = draft_of(folder)
    draft.mkdir()
    try:
        yield draft
        _sync(draft)
        old = _older(folder)
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        draft.rename(folder)
        sync_folder(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def recover_folder(folder: Path) -> None:
    """Bring back what stood there before, where :func:`whole_folder` was stopped between its two renames."""
    if not folder.exists() and _older(folder).is_dir():
        _older(folder).rename(folder)


def clear_drafts(parent: Path) -> None:
    """Remove what :func:`whole_folder` and ``write_text`` left when they were killed; nobody may be writing there."""
    for draft in parent.iterdir():
        if draft.is_symlink() or not is_draft(draft.name):
            continue
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
        else:
            draft.unlink()


def empty_folder(folder: Path) -> None:
    """Remove everything in a folder but its lock, which is held."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK_FILE:
            path.unlink()


def _older(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _sync(folder: Path) -> None:
    """Put a folder on the disk, its files with the permissions that the user gives (safetensors has its own)."""
    mode = folder.stat().st_mode & 0o666
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            sync_folder(path)
            continue
        path.chmod(mode)
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    sync_folder(folder)
