"""Files that are in the folder that they are asked for in: plain names, no links out, nothing but regular files."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from superweight_ensembles.errors import SuperWeightError

_SEPARATORS = frozenset("/\\:\0")


def check_plain_name(name: str, where: str) -> None:
    """Refuse what is no plain name of a file, on any system.

    Raises:
        SuperWeightError: Says where it was read.

    Example:
        >>> check_plain_name("../up", "cascade.json")
        Traceback (most recent call last):
        superweight_ensembles.errors.SuperWeightError: cascade.json: '../up' is no plain name of a file in its folder
    """
    bad = not name or name in (".", "..") or len(name) > 255 or not name.isprintable()
    if bad or not _SEPARATORS.isdisjoint(name):
        raise SuperWeightError(f"{where}: {name!r:.80} is no plain name of a file in its folder")


def contained_file(folder: Path, name: str) -> Path:
    """A regular file of a folder; the folder itself may be reached by links, as its user says.

    A link is taken where the Hugging Face Hub's download cache made it: from REPOSITORY/snapshots/REVISION into
    REPOSITORY/blobs, and nowhere else.

    Raises:
        SuperWeightError: It is missing, a link, or no regular file; the name leads out of the folder.
    """
    path = folder / name
    check_plain_name(name, str(folder))
    try:
        found = path.lstat()
        if stat.S_ISLNK(found.st_mode):
            if not _in_hub_cache(path):
                raise SuperWeightError(f"{path} is a link, which may lead anywhere: put the file itself there")
            found = path.stat()
    except FileNotFoundError:
        raise SuperWeightError(f"{path} is missing") from None
    except OSError as error:
        raise SuperWeightError(f"{path} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode):
        raise SuperWeightError(f"{path} is no regular file")
    return path


def check_no_links(folder: Path) -> None:
    """Refuse a folder that is written into, such as a run's, if anything below it is a link or a special file.

    What is not there yet is fine; the folder itself may be a link.

    Raises:
        SuperWeightError: Names the first.
    """
    left = [os.fspath(folder)] if folder.is_dir() else []
    while left:
        with os.scandir(left.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    left.append(entry.path)
                elif not entry.is_file(follow_symlinks=False):
                    what = "a link, which may lead anywhere" if entry.is_symlink() else "no regular file"
                    raise SuperWeightError(f"{entry.path} is {what}: remove it from {folder}")


def _in_hub_cache(path: Path) -> bool:
    revision = Path(os.path.realpath(path.parent))
    blobs = revision.parents[1] / "blobs" if revision.parent.name == "snapshots" else None
    return blobs is not None and Path(os.path.realpath(path)).parent == blobs
