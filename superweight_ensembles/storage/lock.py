"""One process at a time in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from superweight_ensembles.errors import SuperWeightError

LOCK_FILE = ".lock"
# Of a process that was killed: the workers that it had started hold the lock until they see that it is gone.
_PATIENCE_SECONDS = 8.0


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold a folder, which is there; the system lets it go when this process ends, however it ends.

    Raises:
        SuperWeightError: Another process holds it.
    """
    lock = FileLock(folder / LOCK_FILE, timeout=_PATIENCE_SECONDS)
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
