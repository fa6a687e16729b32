"""Files by plain names in their folder: text and JSON, written whole and read within bounds.

Errors of the system are reported with the path and a remedy (:func:`accessing`).
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.storage.limits import check_levels

_MOST_BYTES = 2**26  # of a text file: a plan of 100,000 targets has a third of that
_SEPARATORS = frozenset("/\\:\0")
_REMEDIES = {
    errno.ENOSPC: "free space there, or give another place",
    errno.EDQUOT: "free space there, or give another place",
    errno.EFBIG: "the system allows no file of that size there: give another place",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EACCES: "change its permissions, or give another place",
    errno.EPERM: "change its permissions, or give another place",
    errno.EROFS: "give a place that can be written to",
    errno.EISDIR: "it is a folder: give a file",
    errno.ENOTDIR: "a part of it is a file, where a folder must be",
    errno.ENOENT: "see that its folder is there",
    errno.EEXIST: "a file is there already: give another name",
    errno.ENOTEMPTY: "something else is written there: wait for it, or give another place",
    errno.ELOOP: "its links lead in a circle: give the place itself",
    errno.EMFILE: "too many files are open: raise ulimit -n",
    errno.EIO: "the disk is damaged or gone: give another place",
}
_DRAFT = re.compile(r"\..+\.[0-9a-f]{12}")


class PathError(SuperWeightError):
    """An error of the system, reported with the path and a remedy."""

    names_place = True

    def __init__(self, path: Path | None, done: str, cause: OSError | ValueError) -> None:
        named = path if path is not None else getattr(cause, "filename", None) or "a file"
        reason = getattr(cause, "strerror", None) or str(cause)
        remedy = _REMEDIES.get(getattr(cause, "errno", None) or 0, "give another path")
        super().__init__(f"{named} cannot be {done}: {reason}; {remedy}")
        self.cause = cause  # what the system raised


@contextmanager
def accessing(path: Path | None = None, done: str = "written") -> Iterator[None]:
    """Raise a :class:`PathError` for the system's errors inside; without a ``path``, for the path that they name."""
    try:
        yield
    except SuperWeightError:
        raise
    except OSError as error:
        raise PathError(path, done, error) from error
    except ValueError as error:
        # These two are raised for a name that no system takes.
        if not isinstance(error, UnicodeEncodeError) and "null" not in str(error):
            raise
        raise PathError(path, done, error) from error


def check_plain_name(name: str, where: str) -> None:
    """Refuse a text that is not a plain file name on every system.

    Example:
        >>> check_plain_name("../up", "cascade.json")
        Traceback (most recent call last):
        superweight_ensembles.errors.SuperWeightError: cascade.json: '../up' is no plain name of a file in its folder
    """
    bad = not name or name in (".", "..") or len(name) > 255 or not name.isprintable()
    if bad or not _SEPARATORS.isdisjoint(name):
        raise SuperWeightError(f"{where}: {name!r:.80} is no plain name of a file in its folder")


def contained_file(folder: Path, name: str) -> Path:
    """A regular file of a folder; the folder itself may be reached by links, as the user named it."""
    path = folder / name
    check_plain_name(name, str(folder))
    try:
        with accessing(path, "read"):
            found = path.lstat()
            if stat.S_ISLNK(found.st_mode):
                if not _in_hub_cache(path):
                    raise SuperWeightError(f"{path} is a link, which may lead anywhere: put the file itself there")
                found = path.stat()
    except PathError as error:
        if isinstance(error.cause, FileNotFoundError):
            raise SuperWeightError(f"{path} is missing") from None
        raise
    if not stat.S_ISREG(found.st_mode):
        raise SuperWeightError(f"{path} is no regular file")
    return path


def _in_hub_cache(path: Path) -> bool:
    # Links of the Hugging Face Hub's download cache: from REPOSITORY/snapshots/REVISION into REPOSITORY/blobs.
    revision = Path(os.path.realpath(path.parent))
    blobs = revision.parents[1] / "blobs" if revision.parent.name == "snapshots" else None
    return blobs is not None and Path(os.path.realpath(path)).parent == blobs


def check_no_links(folder: Path) -> None:
    """Refuse a folder that is written into, such as a run's, if anything below it is a link or a special file."""
    with accessing(folder, "read"):
        left = [os.fspath(folder)] if folder.is_dir() else []  # it may be a link itself, or not be there yet
        while left:
            with os.scandir(left.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        left.append(entry.path)
                    elif not entry.is_file(follow_symlinks=False):
                        what = "a link, which may lead anywhere" if entry.is_symlink() else "no regular file"
                        raise SuperWeightError(f"{entry.path} is {what}: remove it from {folder}")


def read_text(path: Path, most_bytes: int = _MOST_BYTES) -> str:
    """Read a text file; one that is missing, a link, no text or too long is refused."""
    try:
        return read_bytes(path, most_bytes).decode("utf-8")
    except UnicodeDecodeError as error:
        raise SuperWeightError(f"{path} cannot be read: {error}") from None


def read_bytes(path: Path, most_bytes: int = _MOST_BYTES) -> bytes:
    """Read a file; one that is missing, a link or too long is refused."""
    contained_file(path.parent, path.name)
    with accessing(path, "read"), path.open("rb") as file:
        if os.fstat(file.fileno()).st_size > most_bytes:
            raise SuperWeightError(f"{path} is longer than {most_bytes:,} bytes, which no such file is")
        return file.read(most_bytes)


def read_json(path: Path, most_bytes: int = _MOST_BYTES) -> dict[str, Any]:
    """Read a JSON object; anything else is refused."""
    content = parse_json(read_text(path, most_bytes), str(path))
    if not isinstance(content, dict):
        raise SuperWeightError(f"{path} must hold a JSON object; got {type(content).__name__}")
    return content


def parse_json(text: str | bytes, where: str) -> Any:
    """Plain data from JSON: no key twice in an object, and no more levels than :func:`check_levels` takes."""
    try:
        content = json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise SuperWeightError(f"{where} cannot be read as JSON: {error}") from None
    check_levels(content, where)
    return content


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for name, value in pairs:
        if name in content:
            raise ValueError(f"the key {name!r:.80} is given twice")
        content[name] = value
    return content


def write_json(path: Path, content: Any, indent: int | None = 1) -> None:
    """Write JSON as :func:`write_text` does; without ``indent`` on one line, which is twenty times as fast."""
    write_text(path, json.dumps(content, indent=indent) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file whole: to a new name, to the disk, then into place; a link of that name is replaced."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file whole, as :func:`write_text` does."""
    draft = draft_of(path)
    with accessing(path):
        try:
            with draft.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
        sync_folder(path.parent)


def draft_of(path: Path) -> Path:
    """A new name beside a file or folder, to use while that is being written or removed."""
    return path.with_name(f".{path.name}.{os.urandom(6).hex()}")


def is_draft(name: str) -> bool:
    """Whether a name is one of :func:`draft_of`: a file or folder with it was never finished."""
    return _DRAFT.fullmatch(name) is not None


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, on systems that can."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
