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
    """Make a folder, if it is not there, and hold it; the system lets it go when this process ends, however it ends.

    Raises:
        SuperWeightError: Another process holds it, or it cannot be made or written to.
    """
    lock = FileLock(folder / LOCK_FILE, timeout=_PATIENCE_SECONDS)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        if not isinstance(error, Timeout):
            raise SuperWeightError(f"{folder} cannot be written to: {error}; give another folder by --out") from None
        raise SuperWeightError(
            f"another process is at work in {folder}: wait for it, or give another folder by --out"
        ) from None
    try:
        yield
    finally:
        lock.release()
