"""A user's own images, sorted in folders by class."""

from __future__ import annotations

import difflib
import functools
import logging
import math
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torchvision.datasets.folder import IMG_EXTENSIONS

from superweight_ensembles.data.images import ImageReader, reader_for
from superweight_ensembles.data.loader import ImageData
from superweight_ensembles.data.splits import FileSplit, ImageSplit, MemorySplit, stratified_split
from superweight_ensembles.errors import SuperWeightError

_LOG = logging.getLogger(__name__)
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_LARGEST_SIDE = 2**14
_VALIDATION_FRACTION = 0.1
_TEST_FRACTION = 0.2
_TEST_SEED = 0  # not the user's seed, so that every run answers the same test images
_SPLITS = {
    "train": ("train", "training", "trn"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing", "tst", "eval", "evaluation"),
}
_WORDS = {word: split for split, words in _SPLITS.items() for word in words}
# Words around such a word in a name that means the same: train_images, Test Set, val2017.
_AROUND = "(set|data|dataset|split|images?|imgs?|pictures?|photos?)*"
_SPLIT_NAME = re.compile(f"{_AROUND}({'|'.join(_WORDS)}){_AROUND}")
_IMAGES_ALONE = re.compile(f"{_AROUND}")  # Tiny ImageNet has CLASS/images/*
_OF_OTHERS = {"cifar-10-batches-py": "cifar10", "cifar-100-python": "cifar100"}
_HIDDEN_FILES = "hidden files"
_OF_FRAMES = (".png", ".tif", ".tiff", ".webp")
_MOST_CHECKED = 100_000  # files of a split whose headers are read before a training, which takes some seconds
_MOST_NAMED = 5
_MOST_KINDS = 20


def image_folder(
    *,
    folder: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
    pool: int = 1,
    memory_limit_mb: int = 2048,
    mean: Sequence[float] = _IMAGENET_MEAN,
    std: Sequence[float] = _IMAGENET_STD,
    validation_fraction: float | None = None,
    seed: int = 0,
) -> ImageData:
    """Images in ``train/<class>/*`` and ``test/<class>/*`` (and ``validation/<class>/*``), or in ``<class>/*``.

    Splits may have their usual other names, in any case of letters: ``training``, ``trn``; ``val``, ``valid``, ``dev``;
    ``testing``, ``tst``, ``eval``, ``evaluation``. Plain class folders give a stratified fifth, the same in every run,
    to test; ``train`` and ``val`` without ``test``, as ImageNet is published, make ``val`` the test split. One warning
    counts the files that are left out (hidden ones, other suffixes). The data set takes the folder's name.

    Pictures are turned as their EXIF orientation says, transparent pixels become white, grey and palette images RGB,
    and of several frames the first is taken.

    Args:
        folder: Folder of the images, sorted.
        image_size: Side in pixels: the shorter side is resized to it (bilinear, antialiased) and the centre square cut
            out. None keeps images as they are, which must then be of one size.
        pool: Average-pool images by this factor: 2 halves height and width.
        memory_limit_mb: Images that need more memory than this, in MiB of decoded pixels, stay in files and are
            decoded batch by batch.
        mean: Mean per channel, of pixels scaled to [0, 1]; ImageNet's unless given.
        std: Standard deviation per channel, of pixels scaled to [0, 1]; ImageNet's unless given.
        validation_fraction: Fraction of the training images that is held out for validation, stratified, where the
            folder has no validation images of its own; 0.1 unless given.
        seed: Seed that chooses the validation images.

    Raises:
        SuperWeightError: Names the folder that is absent or not sorted so, the file that is no image (when it is
            read: at once if all fit in memory), or the option out of range.
    """
    # load_data has checked every option, but not how large a side may be.
    if image_size is not None and image_size > _LARGEST_SIDE:
        raise SuperWeightError(f"image_size is at most {_LARGEST_SIDE:,} pixels; got {image_size!r:.40}")
    assert folder is not None, "load_data asks for it"
    root = Path(folder)
    try:
        classes, train, validation, test = _list(root)
    except OSError as error:
        raise SuperWeightError(f"image_folder: {error.filename or root} cannot be read: {error.strerror}") from error
    if validation is None:
        fraction = _VALIDATION_FRACTION if validation_fraction is None else validation_fraction
        train, validation = train.split(fraction, seed)
    elif validation_fraction is not None:
        _say(f"{root} has validation images of its own: validation_fraction is not used")
    parts = (train, validation, test)
    reader = reader_for(train.paths[0], image_size, pool)
    num_bytes = sum(len(part.paths) for part in parts) * math.prod(reader.image_shape)
    in_memory = num_bytes <= memory_limit_mb * 2**20
    _LOG.info("%s: %.0f MiB of pixels, %s", root, num_bytes / 2**20, "in memory" if in_memory else "read as needed")
    # Headers are read now where pixels are not, and in formats that may hold several frames.
    headers = [[path for path in part.paths if not in_memory or path.lower().endswith(_OF_FRAMES)] for part in parts]
    if several := sum(reader.check(paths) for paths in headers if len(paths) <= _MOST_CHECKED):
        _say(f"{root}: {several:,} files have several frames: the first of each is taken")
    train_split, validation_split, test_split = (part.open(reader, in_memory) for part in parts)
    return ImageData(
        name=root.resolve().name,
        classes=classes,
        image_shape=reader.image_shape,
        mean=tuple(mean),
        std=tuple(std),
        train=train_split,
        validation=validation_split,
        test=test_split,
        pool=pool,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Files:
    """Paths of N images and their labels, int64 (N,)."""

    paths: tuple[str, ...]
    labels: torch.Tensor

    def split(self, fraction: float, seed: int) -> tuple[_Files, _Files]:
        """Files to keep and files to hold out, stratified."""
        kept, held = (
            _Files(paths=tuple(self.paths[index] for index in indices.tolist()), labels=self.labels[indices])
            for indices in stratified_split(self.labels, fraction, seed)
        )
        return kept, held

    def open(self, reader: ImageReader, in_memory: bool) -> ImageSplit:
        if in_memory:
            return MemorySplit(reader.read_all(self.paths), self.labels, self.paths)
        return FileSplit(self.paths, self.labels, reader)


def _list(root: Path) -> tuple[tuple[str, ...], _Files, _Files | None, _Files]:
    """Classes, sorted, and files for training, for validation where the folder has some of its own, and for test."""
    if not root.is_dir():
        remedy = f" in {Path.cwd()}" if not root.is_absolute() else ""
        if root.exists():
            remedy = ", which is a file: unpack it, or give the folder that it is in"
        raise SuperWeightError(f"image_folder: no folder {root}{remedy}")
    left: Counter[str] = Counter()
    names = _sub_folders(root, left)
    for name in (root.resolve().name, *names):
        if name in _OF_OTHERS:
            raise SuperWeightError(
                f"image_folder: {name} in {root} is no folder of images: load_data({_OF_OTHERS[name]!r}, folder=...) "
                f"reads it, given the folder that {name} is in"
            )
    splits = _splits(root, names)
    if not splits:
        classes = _classes(root, names)
        rest = _files(root, classes, classes, left)
        train, test = rest.split(_TEST_FRACTION, _TEST_SEED)
        if not test.paths:
            raise SuperWeightError(f"image_folder: {root} has too few images to hold a fifth out for test")
        _warn_of_left_out(root, left)
        _say(
            f"{root} has no train and test folders: {len(test.paths):,} of {len(rest.paths):,} images, a fifth of each "
            "class and the same in every run, are the test split"
        )
        tested = set(test.labels.tolist())
        _say_missing(
            "the test split", [name for label, name in enumerate(classes) if label not in tested], len(classes)
        )
        return classes, train, None, test
    if others := sorted(set(names) - set(splits.values())):
        _say(f"{root}: not read, as there is a train folder: {_listed(others)}")
    classes = _classes(root / splits["train"], _sub_folders(root / splits["train"], left))
    files = {}
    for split, name in splits.items():
        present = classes if split == "train" else _known(root / name, classes, left)
        files[split] = _files(root / name, present, classes, left)
    _warn_of_left_out(root, left)
    if "test" in files:
        return classes, files["train"], files.get("validation"), files["test"]
    num_images = len(files["validation"].paths)
    _say(f"{root} has no test folder: the {num_images:,} images of its validation folder are the test split")
    return classes, files["train"], None, files["validation"]


def _splits(root: Path, names: Sequence[str]) -> dict[str, str]:
    """Folders by the split that they are; empty where all are classes."""
    found: dict[str, str] = {}
    for name in names:
        split = _WORDS.get(_folded(name))
        if split in found:
            raise SuperWeightError(f"image_folder: {root} has both {found[split]} and {name}: keep one")
        if split is not None:
            found[split] = name
    others = [name for name in names if name not in found.values()]
    if list(found) == ["train"] and others and not _sub_folders(root / found["train"]):
        _say(f"{root}: {found['train']} is taken for a class like the others, as it holds no folders")
        return {}
    if found and "train" not in found:
        raise SuperWeightError(
            f"image_folder: {root} has {' and '.join(found.values())}, but no train folder: sort the training images "
            f"as {root}/train/<class>/*, or give a class of that name another one"
        )
    if len(found) == 1:
        raise SuperWeightError(
            f"image_folder: {root} has {found['train']} but no test folder: add test/<class>/*"
            + (f", or rename one of {_listed(others)} to test" if others else "")
        )
    return dict(sorted(found.items()))


def _folded(name: str) -> str:
    """Name without differences of spelling: case, blanks around it, forms of Unicode."""
    return unicodedata.normalize("NFKC", name).strip().casefold()


def _splits_named(names: Iterable[str]) -> set[str]:
    """Splits that folders seem to be, two or more: by whole names (``val2017``) or a word of each one (``a_train``)."""
    whole: set[str] = set()
    parts: list[set[str]] = []
    for name in names:
        words = re.split(r"[\W_\d]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
        if match := _SPLIT_NAME.fullmatch("".join(words)):
            whole.add(_WORDS[match[2]])
        parts.append({_WORDS[match[2]] for word in words if (match := _SPLIT_NAME.fullmatch(word))})
    found = set().union(*parts) if all(parts) else whole  # many classes may hold a bullet_train and a test_tube
    return found if len(found) > 1 else set()


def _check_are_classes(folder: Path, inside: Mapping[str, Sequence[str]]) -> None:
    """Refuse splits and folds in the place of classes, given the folders inside each of them."""
    if _splits_named(inside):
        raise SuperWeightError(
            f"image_folder: {_listed(list(inside))} of {folder} look like splits, not classes. Name them train and "
            "test (and validation) in the folder that you give"
        )
    for name, below in inside.items():
        if _splits_named(below):
            raise SuperWeightError(
                f"image_folder: {folder / name} holds folders {_listed(below)}: they look like splits, not images of a "
                f"class. Give folder={folder / name}, or sort the images as train/{name}/* and test/{name}/*"
            )
    holders: dict[str, list[str]] = {}
    for name, below in inside.items():
        for one in below:
            if not _IMAGES_ALONE.fullmatch(one.lower()):
                holders.setdefault(one, []).append(name)
    for one, names in holders.items():
        if len(names) > 1:
            raise SuperWeightError(
                f"image_folder: {names[0]} and {names[1]} of {folder} both hold a folder {one}: they look like splits, "
                "not classes. Name them train and test (and validation), give one of them as folder, or, where they "
                "are classes, put the images of each into one folder"
            )


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED:,} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


@functools.lru_cache(maxsize=1000)
def _say(line: str) -> None:
    """Warn once in a process, since a folder is listed again by whoever needs its classes."""
    _LOG.warning("%s", line)


def _say_missing(where: str, missing: Sequence[str], num_classes: int) -> None:
    if missing:
        _say(f"{where} has no images of {len(missing):,} of {num_classes:,} classes: {_listed(missing)}")


def _sub_folders(folder: Path, left: Counter[str] | None = None) -> list[str]:
    """Names of the folders in one, sorted; all other entries are counted as left out."""
    names = []
    for entry in os.scandir(folder):
        if _is_hidden(entry.name):
            kind = "hidden folders" if entry.is_dir() else _HIDDEN_FILES
        elif entry.is_dir():
            if any("\ud800" <= letter <= "\udfff" for letter in entry.name):  # bytes that are no UTF-8
                raise SuperWeightError(
                    f"image_folder: {folder} has a folder {entry.name!a}, a name that is no text: give it another"
                )
            names.append(entry.name)
            continue
        else:
            kind = "files beside the class folders"
        if left is not None:
            left[kind] += 1
    return sorted(names)


def _classes(folder: Path, names: Sequence[str]) -> tuple[str, ...]:
    if not names:
        raise SuperWeightError(f"image_folder: no class folders in {folder}: sort the images as {folder}/<class>/*")
    if len(names) == 1:
        inner = folder / names[0]
        if not _sub_folders(inner):
            below = "add another class"
        elif _WORDS.get(_folded(folder.name)):  # giving the inner folder would lose the other splits
            below = f"move what is in {inner} up into {folder}, and likewise in the other splits"
        else:
            below = f"give folder={inner}"
        raise SuperWeightError(f"image_folder: one class alone in {folder}, {names[0]!r}: {below}")
    spelled: dict[str, str] = {}
    for name in names:
        if (other := spelled.setdefault(_folded(name), name)) != name:
            raise SuperWeightError(
                f"image_folder: {other!r} and {name!r} of {folder} are spellings of one name: make them one class, or "
                "give one of them another name"
            )
    return tuple(names)


def _known(folder: Path, classes: tuple[str, ...], left: Counter[str]) -> tuple[str, ...]:
    """Classes of a split's folder, all of which training has."""
    names = _sub_folders(folder, left)
    if not names:
        raise SuperWeightError(f"image_folder: no class folders in {folder}: sort the images as {folder}/<class>/*")
    spelled = {_folded(name): name for name in classes}
    for name in names:
        if spelled.get(_folded(name)) != name:
            near = difflib.get_close_matches(_folded(name), spelled, n=1, cutoff=0.75)
            hint = "".join(f", which has {spelled[one]!r}" for one in near)
            raise SuperWeightError(
                f"image_folder: class {name!r} of {folder} has no folder in train{hint}: sort the images of both alike"
            )
    _say_missing(str(folder), [name for name in classes if name not in names], len(classes))
    return tuple(names)


def _files(folder: Path, present: tuple[str, ...], classes: tuple[str, ...], left: Counter[str]) -> _Files:
    paths: list[str] = []
    labels: list[int] = []
    inside: dict[str, list[str]] = {}
    for name in present:
        found, inside[name] = _images(folder / name, left)
        if not found:
            raise SuperWeightError(
                f"image_folder: no images in {folder / name}; files that count end in {', '.join(IMG_EXTENSIONS)}"
            )
        paths += found
        labels += [classes.index(name)] * len(found)
    _check_are_classes(folder, inside)
    return _Files(paths=tuple(paths), labels=torch.tensor(labels, dtype=torch.int64))


def _images(folder: Path, left: Counter[str]) -> tuple[list[str], list[str]]:
    """Images in a class folder and those below it, in torchvision's order, and the folders in it."""

    def refuse(error: OSError) -> None:
        raise error

    paths: list[str] = []
    seen: set[tuple[int, int]] = set()
    places: list[tuple[str, list[str]]] = []
    inside: list[str] = []
    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:  # the walk would perhaps never end
            raise SuperWeightError(f"image_folder: links lead to {place} twice: leave one of them out")
        seen.add((status.st_dev, status.st_ino))
        left["hidden folders"] += sum(map(_is_hidden, folders))
        folders[:] = [name for name in folders if not _is_hidden(name)]
        if not places:
            inside = list(folders)
        places.append((place, files))
    for place, files in sorted(places):
        for name in sorted(files):
            path = os.path.join(place, name)
            if _is_hidden(name):
                left[_HIDDEN_FILES] += 1
            elif not name.lower().endswith(IMG_EXTENSIONS):
                left[os.path.splitext(name)[1].lower() or "files without a suffix"] += 1
            elif not stat.S_ISREG((status := os.stat(path)).st_mode):
                raise SuperWeightError(f"cannot read the image {path}: it is no regular file; take it out")
            elif not status.st_size:
                raise SuperWeightError(f"cannot read the image {path}: it is empty; put it there again or take it out")
            else:
                paths.append(path)
    return paths, sorted(inside)


def image_files(folder: str | Path) -> list[str]:
    """Images in a folder and those below it, as in a class folder; a warning counts the files left out."""
    left: Counter[str] = Counter()
    found, _ = _images(Path(folder), left)
    _warn_of_left_out(Path(folder), left)
    if not found:
        raise SuperWeightError(f"{folder} holds no image file ({', '.join(IMG_EXTENSIONS)})")
    return found


def _warn_of_left_out(root: Path, left: Counter[str]) -> None:
    if listed := ", ".join(f"{kind} ({count:,})" for kind, count in left.most_common(_MOST_KINDS) if count):
        rest = sum(left.values()) - sum(count for _, count in left.most_common(_MOST_KINDS))
        _say(f"{root}: left out: {listed}" + (f" and others ({rest:,})" if rest else ""))
