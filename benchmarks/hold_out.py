"""An image folder with more test images: training images that a small-data comparison leaves out are moved to test.

    python benchmarks/hold_out.py IMAGES OUT --train 10240 --test 20000

IMAGES/train/CLASS/* and IMAGES/test/CLASS/* become links in OUT/train/CLASS and OUT/test/CLASS: of each class the first
images by name stay in train, and test is filled up with those that follow. More test images make differences between
arms that a few seeds cannot blur.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=int, required=True, help="training images, in all")
    parser.add_argument("--test", type=int, required=True, help="test images, in all")
    options = parser.parse_args()
    classes = sorted(path.name for path in (options.images / "train").iterdir() if path.is_dir())
    for name in classes:
        train, rest = split(options.images / "train" / name, options.train // len(classes))
        test = sorted((options.images / "test" / name).iterdir())
        test += rest[: max(0, options.test // len(classes) - len(test))]
        link(train, options.out / "train" / name)
        link(test, options.out / "test" / name)
    print(f"{options.out}: {len(classes)} classes, {options.train:,} training and {options.test:,} test images")


def split(folder: Path, count: int) -> tuple[list[Path], list[Path]]:
    """The first files of a folder by name, and the others."""
    files = sorted(folder.iterdir())
    if len(files) < count:
        raise SystemExit(f"{folder} has {len(files)} images, fewer than {count}")
    return files[:count], files[count:]


def link(files: list[Path], folder: Path) -> None:
    folder.mkdir(parents=True)
    for file in files:
        (folder / f"{file.parent.parent.name}-{file.name}").symlink_to(file.resolve())


if __name__ == "__main__":
    main()
