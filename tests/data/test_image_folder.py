"""What is read of folders of images, and what is said of the rest: every line of docs/data.md."""

from __future__ import annotations

import logging
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from superweight_ensembles.data import Augmentation, FileSplit, ImageData, MemorySplit, load_data
from superweight_ensembles.errors import SuperWeightError

CLASSES = ("cat", "dog")
SPLIT_LAYOUT = {"train/cat": 10, "train/dog": 20, "test/cat": 3, "test/dog": 2}


def write(path: Path, grey: int = 100, mode: str = "RGB", size: tuple[int, int] = (8, 8), **how: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, grey).convert(mode).save(path, **how)


def write_image(path: Path, seed: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> None:
    """One image of random pixels, (H, W), in the format of the name's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (*size, 3) if mode == "RGB" else size
    Image.fromarray(np.random.RandomState(seed).randint(0, 256, shape, dtype=np.uint8)).save(path)


def write_folder(root: Path, counts: dict[str, int], ending: str = "png", **image: Any) -> Path:
    """``counts`` images in each folder, all different."""
    places = [(folder, index) for folder, count in counts.items() for index in range(count)]
    for seed, (folder, index) in enumerate(places):
        write_image(root / folder / f"{index:03}.{ending}", seed, **image)
    return root


def write_tree(root: Path, *folders: str, classes: tuple[str, ...] = CLASSES, count: int = 6) -> Path:
    """``count`` images in each class of each folder; folders that end in a slash are class folders themselves."""
    for folder in folders:
        for name in ("",) if folder.endswith("/") else classes:
            for index in range(count):
                write(root / folder / name / f"{index}.png", 10 * index)
    return root


def sizes(data: ImageData) -> tuple[int, int, int]:
    return len(data.train), len(data.validation), len(data.test)


def read(root: Path, *paths: Path) -> torch.Tensor:
    """Images of files, as the training split of a folder reads them: uint8 (N, 3, H, W)."""
    data = load_data("image_folder", folder=root, memory_limit_mb=0)
    assert isinstance(data.train, FileSplit)
    return data.train.reader.read([str(path) for path in paths])


READ: list[tuple[tuple[str, ...], tuple[int, int, int], str]] = [
    (("train", "test"), (10, 2, 12), ""),
    (("train", "val", "test"), (12, 12, 12), ""),
    (("train", "val"), (10, 2, 12), "the 12 images of its validation folder are the test split"),
    (("Train", "Test"), (10, 2, 12), ""),
    (("TRAINING", "Testing"), (10, 2, 12), ""),
    (("training", "VALIDATION", "testing"), (12, 12, 12), ""),
    (("train", "valid"), (10, 2, 12), "its validation folder are the test split"),
    (("trn", "dev", "tst"), (12, 12, 12), ""),
    (("train", "eval"), (10, 2, 12), ""),
    (("train", "Evaluation"), (10, 2, 12), ""),
    (("",), (8, 2, 2), "2 of 12 images, a fifth of each class and the same in every run, are the test split"),
    (("train/", "bus/"), (8, 2, 2), "train is taken for a class like the others, as it holds no folders"),
    (("train", "test", "unlabelled/"), (10, 2, 12), "not read, as there is a train folder: unlabelled"),
    (("train", "test/cat/"), (10, 2, 6), "has no images of 1 of 2 classes: dog"),
    (("cat/images/", "dog/images/", "dog/Photos/"), (12, 2, 4), ""),
    (("cat/indoor/", "dog/outdoor/"), (8, 2, 2), ""),
]


@pytest.mark.parametrize(("folders", "expected", "said"), READ, ids=["-".join(case[0]) or "flat" for case in READ])
def test_usual_names_of_splits(
    tmp_path: Path,
    folders: tuple[str, ...],
    expected: tuple[int, int, int],
    said: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = load_data("image_folder", folder=write_tree(tmp_path, *folders), seed=1)
    assert data.classes == (("bus", "train") if "bus/" in folders else CLASSES)
    assert sizes(data) == expected
    load_data("image_folder", folder=tmp_path, seed=1)
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert sum(said in line for line in warned) == 1 if said else "not read" not in caplog.text


REFUSED: list[tuple[tuple[str, ...], str]] = [
    (("train", "val", "valid"), "has both val and valid: keep one"),
    (("train", "Train", "test"), "has both Train and train: keep one"),
    ((), "no class folders in .*: sort the images as"),
    (("./",), "no class folders in .*: sort the images as"),
    (("train", "test/"), "no class folders in .*test: sort the images as"),
    (("train",), r"has train but no test folder: add test/<class>/\*$"),
    (("train", "holdout"), "has train but no test folder: .*, or rename one of holdout to test"),
    (("val", "test"), "has test and val, but no train folder: sort the training images as"),
    (("test", "cat/", "dog/"), "has test, but no train folder: .*or give a class of that name another one"),
    (("test/", "cat/", "dog/"), "has test, but no train folder"),
    (("fold1", "fold2"), "fold1 and fold2 of .* both hold a folder cat: they look like splits"),
    (("seg_train", "seg_test"), "seg_test, seg_train of .* look like splits, not classes"),
    (("train2017", "val2017"), "look like splits, not classes. Name them train and test"),
    (("data",), "one class alone in .*, 'data': give folder=.*data"),
    (("cat/",), "one class alone in .*, 'cat': add another class"),
    (("train", "test/Cat/"), "class 'Cat' of .*test has no folder in train, which has 'cat'"),
    (("train", "test/emu/"), "class 'emu' of .*test has no folder in train: sort the images of both alike$"),
    (("train", "test/cat /"), "class 'cat ' of .*test has no folder in train, which has 'cat'"),
    (("train/Cat/", "train/cat/", "test/cat/"), "'Cat' and 'cat' of .*train are spellings of one name"),
    (("cat/", "CAT/"), "'CAT' and 'cat' of .* are spellings of one name"),
    (("fold1/cat/", "fold2/cat/"), "both hold a folder cat: they look like splits"),
    (("train/fold1", "train/fold2", "test/fold1"), "fold1 and fold2 of .*train both hold a folder cat"),
    (("train/train", "train/test", "test/train"), "test, train of .*train look like splits"),
    (
        ("cat/train/", "cat/test/", "dog/"),
        "cat holds folders test, train: they look like splits, not images",
    ),
    (("Training Set/cat/", "TestSet/emu/"), "TestSet, Training Set of .* look like splits"),
    (("trainImages", "val_images/cat/", "notes/"), "look like splits, not classes"),
    (("pets_train/cat/", "pets_test/emu/"), "look like splits, not classes"),
]


@pytest.mark.parametrize(("folders", "message"), REFUSED, ids=["-".join(case[0]) for case in REFUSED])
def test_what_looks_like_splits_is_never_taken_for_classes(
    tmp_path: Path, folders: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SuperWeightError, match=message):
        load_data("image_folder", folder=write_tree(tmp_path, *folders))


@pytest.mark.parametrize("names", [("bullet_train", "test_tube", "cup"), ("valid", "invalid"), ("cat", "dev_board")])
def test_classes_whose_names_have_such_a_word_in_them(tmp_path: Path, names: tuple[str, ...]) -> None:
    data = load_data("image_folder", folder=write_tree(tmp_path, "train", "test", classes=names))
    assert data.classes == tuple(sorted(names))


def test_a_class_of_one_image_has_none_for_test(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(write_tree(tmp_path, "") / "emu/0.png")
    assert sizes(load_data("image_folder", folder=tmp_path)) == (8, 2, 3)
    assert "the test split has no images of 1 of 3 classes: emu" in caplog.text


def test_what_is_left_out_is_counted_in_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_tree(tmp_path, "train", "test")
    for name in ("a.heic", "b.heic", "c.gif", "._0.jpg", ".cache/y.png", "@eaDir/z.png"):
        (root / "train/cat" / name).parent.mkdir(exist_ok=True)
        (root / "train/cat" / name).write_bytes(b"no image")
    (root / "__MACOSX").mkdir()
    (root / "labels.csv").write_text("0,cat")
    (root / "train/dog/README").write_text("dogs")
    write(root / "test/beside.png")
    write(root / "train/cat/deep/below.PNG")
    assert sum(sizes(load_data("image_folder", folder=root))) == 25
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    for part in (
        "hidden folders (3)", "files beside the class folders (2)", ".heic (2)", ".gif (1)", "hidden files (1)",
        "files without a suffix (1)",
    ):  # fmt: skip
        assert part in warnings[0]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("image_size", "suffix"), [(None, "png"), (8, "png"), (8, "tiff"), (None, "tif")])
def test_pictures_are_turned_upright(tmp_path: Path, orientation: int, image_size: int | None, suffix: str) -> None:
    upright = np.zeros((8, 8, 3), np.uint8)
    upright[:4, :4] = 200  # the top left is bright
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.transpose(1, 0, 2), 6: np.rot90(upright), 7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, 3),
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in CLASSES:
        (tmp_path / name).mkdir()
        for index in range(4):
            picture = Image.fromarray(np.ascontiguousarray(stored[orientation]))
            picture.save(tmp_path / f"{name}/{index}.{suffix}", exif=exif)
    images = load_data("image_folder", folder=tmp_path, image_size=image_size).train.images
    assert torch.equal(images[0], torch.from_numpy(upright).permute(2, 0, 1))


def test_a_turned_jpeg_that_is_decoded_small_is_cut_as_an_upright_one(tmp_path: Path) -> None:
    gradient = np.linspace(0, 255, 160 * 96).reshape(160, 96).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in CLASSES:
        (tmp_path / name).mkdir()
        for index in range(2):
            Image.fromarray(gradient).save(tmp_path / f"{name}/{index}.jpg", quality=95)
            Image.fromarray(np.rot90(gradient).copy()).save(
                tmp_path / f"{name}/turned{index}.jpg", quality=95, exif=exif
            )
    data = load_data("image_folder", folder=tmp_path, image_size=8, memory_limit_mb=0, validation_fraction=0)
    assert isinstance(data.train, FileSplit)
    every = data.train.reader.read([str(tmp_path / "cat/0.jpg"), str(tmp_path / "cat/turned0.jpg")]).int()
    assert (every[0] - every[1]).abs().max() <= 2


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pictures_are_laid_on_white(tmp_path: Path, mode: str) -> None:
    root = write_tree(tmp_path, "")
    picture = Image.new("RGBA", (8, 8), (10, 20, 30, 0))
    picture.paste((50, 50, 50, 255), (0, 0, 4, 8))
    if mode == "P":
        palette = Image.new("P", (8, 8), 1)
        palette.putpalette([0, 0, 0, 50, 50, 50])
        palette.paste(0, (4, 0, 8, 8))
        palette.save(root / "cat/z.png", transparency=0)
    else:
        picture.convert(mode).save(root / "cat/z.png")
    (image,) = read(root, root / "cat/z.png")
    assert image[:, 0, 0].tolist() == [50] * 3 and image[:, 0, 7].tolist() == [255] * 3


@pytest.mark.parametrize(
    ("mode", "suffix"), [("L", "png"), ("P", "png"), ("1", "png"), ("CMYK", "jpg"), ("RGB", "WEBP"), ("RGB", "bmp")]
)
def test_every_mode_becomes_colours(tmp_path: Path, mode: str, suffix: str) -> None:
    root = write_tree(tmp_path, "")
    write(root / f"cat/z.{suffix}", 255, mode)
    assert sum(sizes(load_data("image_folder", folder=root))) == 13


def test_a_suffix_that_lies_and_the_first_of_several_frames(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_tree(tmp_path, "")
    write(root / "cat/lies.jpg", 77, format="PNG")
    frames = [Image.new("RGB", (8, 8), (grey,) * 3) for grey in (20, 220)]
    frames[0].save(root / "cat/pages.tiff", save_all=True, append_images=frames[1:])
    images = read(root, root / "cat/lies.jpg", root / "cat/pages.tiff")
    assert images.flatten(1)[:, 0].tolist() == [77, 20]
    assert "1 files have several frames: the first of each is taken" in caplog.text


COLOUR = struct.pack(">3H", 0x1234, 0x80FF, 0xFF00)


def write_16_bits(path: Path, *chunks: tuple[bytes, bytes]) -> None:
    """A PNG of one colour of 16 bits a channel, with further chunks before its pixels."""
    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + COLOUR * 8 for _ in range(8)))
    parts = (b"IHDR", header), *chunks, (b"IDAT", rows), (b"IEND", b"")
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c)) for kind, c in parts)
    )


def test_colours_of_16_bits_give_their_upper_8(tmp_path: Path) -> None:
    path = write_tree(tmp_path, "") / "cat/z.png"
    write_16_bits(path)
    assert read(tmp_path, path)[0, :, 0, 0].tolist() == [0x12, 0x80, 0xFF]


def cut_in_half(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
SPOILED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (lambda path: path.write_bytes(b""), ": it is empty; put it there again or take it out"),
    "text": (lambda path: path.write_bytes(b"no image"), ": cannot identify image file"),
    "header alone": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n broken"), ": .*broken PNG|: cannot identify"),
    "cut in half": (cut_in_half, ": .*truncated"),
    "postscript": (lambda path: path.write_bytes(POSTSCRIPT), ": cannot identify image file"),
    "other size": (
        lambda path: write_image(path, 1, (4, 5)),
        " has 4 x 5 pixels, the first has 8 x 8: give image_size",
    ),
    "16 bits": (
        lambda path: Image.fromarray(np.zeros((8, 8), np.uint16)).save(path),
        " has more than 8 bits a channel",
    ),
    "transparent": (
        lambda path: write_16_bits(path, (b"tRNS", COLOUR)),
        " has .* and a transparent colour: convert it",
    ),
    "bomb": (lambda path: write_image(path, 1, (64, 64)), ": .*decompression bomb"),
    "link to nothing": (lambda path: (path.unlink(), path.symlink_to("absent")), " cannot be read: No such file"),
    "pipe": (lambda path: (path.unlink(), os.mkfifo(path)), ": it is no regular file; take it out"),
}


@pytest.mark.parametrize("limit", [0, 64])
@pytest.mark.parametrize("place", ["train/dog", "test/cat"])
@pytest.mark.parametrize("case", SPOILED)
def test_spoiled_files_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, place: str, limit: int
) -> None:
    spoil, message = SPOILED[case]
    spoil(write_folder(tmp_path, SPLIT_LAYOUT) / place / "001.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)

    def read_all() -> None:
        data = load_data("image_folder", folder=tmp_path, memory_limit_mb=limit)
        assert case == "cut in half" and not limit, "seen in headers"
        for split in ("train", "validation", "test"):
            list(data.loader(split, 2))

    with pytest.raises(SuperWeightError, match=rf"{place}/001\.png({message})"):
        read_all()


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "images.zip").write_bytes(b"zip")
    with pytest.raises(SuperWeightError, match=r"no folder .*images\.zip, which is a file: unpack it"):
        load_data("image_folder", folder=tmp_path / "images.zip")


CHANGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "replaced": (lambda root: write(root / "train/cat/3.png", 99), "train pixels|train file contents"),
    "removed": (lambda root: (root / "train/cat/3.png").unlink(), "number of train images"),
    "added": (lambda root: write(root / "train/dog/7.png"), "number of train images"),
    "relabelled": (lambda root: (root / "train/cat/3.png").rename(root / "train/dog/8.png"), "train labels"),
    "test image removed": (lambda root: (root / "test/cat/3.png").unlink(), "number of test images"),
}


@pytest.mark.parametrize("limit", [64, 0])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_data_changes_their_fingerprint(tmp_path: Path, change: str, limit: int) -> None:
    def fingerprint() -> dict[str, str]:
        options: dict[str, Any] = {"folder": tmp_path, "memory_limit_mb": limit, "validation_fraction": 0}
        return load_data("image_folder", **options).fingerprint()

    write_tree(tmp_path, "train", "test")
    before = fingerprint()
    assert fingerprint() == before
    CHANGES[change][0](tmp_path)
    after = fingerprint()
    differing = [key for key in before if before[key] != after.get(key)]
    assert any(key in differing for key in CHANGES[change][1].split("|")), differing


def test_splits_that_are_one_folder_deeper_are_not_lost(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_tree(tmp_path / split / "images", "")
    with pytest.raises(SuperWeightError, match=r"move what is in .*train.images up into .*train, and"):
        load_data("image_folder", folder=tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="names are text elsewhere")
def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    os.mkdir(os.fsencode(write_tree(tmp_path, "")) + b"/b\xffd")
    with pytest.raises(SuperWeightError, match=r"has a folder 'b\\udcffd', a name that is no text"):
        load_data("image_folder", folder=tmp_path)


@pytest.mark.parametrize(
    ("counts", "options", "message"),
    [
        ({"a": 1, "b": 1}, {}, "too few images"),
        ({"a": 5, "b": 0}, {}, "no images in .*b; files that count end in .jpg"),
        ({**SPLIT_LAYOUT, "test/dog": 0}, {}, "no images in .*test.dog"),
        (SPLIT_LAYOUT, {"pool": 3}, r"pool=3 does not divide the 8 x 8 pixels of .*png"),
        (SPLIT_LAYOUT, {"image_size": 2**20}, "image_size is at most 16,384 pixels; got 1048576"),
    ],
)
def test_folders_that_do_not_do(tmp_path: Path, counts: dict[str, int], options: dict[str, Any], message: str) -> None:
    for name in counts:
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(SuperWeightError, match=message):
        load_data("image_folder", folder=write_folder(tmp_path, counts), **options)


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_folder_with_train_and_test(tmp_path: Path, ending: str) -> None:
    root = write_folder(tmp_path / "pets", SPLIT_LAYOUT, ending)
    data = load_data("image_folder", folder=root)
    assert (data.name, data.classes, data.image_shape) == ("pets", ("cat", "dog"), (3, 8, 8))
    assert (len(data.train), len(data.validation), len(data.test)) == (27, 3, 5)
    assert torch.bincount(data.validation.labels).tolist() == [1, 2]
    assert data.test.labels.tolist() == [0, 0, 0, 1, 1]
    for index, name in ((0, "cat/000"), (3, "dog/000")):
        pixels = torch.from_numpy(np.array(Image.open(root / "test" / f"{name}.{ending}"))).permute(2, 0, 1)
        assert torch.equal(data.test.images[index], pixels)


def test_folder_with_validation_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_folder(tmp_path, {**SPLIT_LAYOUT, "val/dog": 4, "notes/x": 1})
    data = load_data("image_folder", folder=tmp_path, validation_fraction=0.5)
    assert sizes(data) == (30, 4, 5) and data.validation.labels.tolist() == [1] * 4
    assert "validation_fraction is not used" in caplog.text
    assert "not read, as there is a train folder: notes" in caplog.text


def test_plain_class_folders_hold_a_constant_fifth_out(tmp_path: Path) -> None:
    root = write_folder(tmp_path, {"dog": 20, "cat/nested": 10, ".cache": 2})
    zero, one = (load_data("image_folder", folder=root, seed=seed) for seed in (0, 1))
    assert zero.classes == ("cat", "dog")
    assert torch.bincount(zero.test.labels).tolist() == [2, 4]
    assert (len(zero.train), len(zero.validation)) == (22, 2)
    assert torch.equal(zero.test.images, one.test.images)
    assert not torch.equal(zero.validation.images, one.validation.images)
    parts = (zero.train, zero.validation, zero.test)
    assert len({image.numpy().tobytes() for part in parts for image in part.images}) == 30


@pytest.mark.parametrize("num_workers", [0, 2])
def test_files_read_as_needed_give_the_batches_of_memory(tmp_path: Path, num_workers: int) -> None:
    root = write_folder(tmp_path, {"cat": 15, "dog": 15}, "jpg", size=(14, 11))
    options: dict[str, Any] = {"folder": root, "image_size": 8, "pool": 2, "mean": (0.5, 0.4, 0.3)}
    memory, lazy = (load_data("image_folder", **options, memory_limit_mb=limit) for limit in (1, 0))
    assert isinstance(memory.train, MemorySplit)
    assert isinstance(lazy.train, FileSplit)
    assert lazy.image_shape == memory.image_shape == (3, 4, 4)
    settings: dict[str, Any] = {"augmentation": Augmentation(flip=True, crop_padding=1, cutout=2), "shuffle": True}
    state = torch.get_rng_state()
    for split in ("train", "validation", "test"):
        loaders = memory.loader(split, 5, **settings), lazy.loader(split, 5, **settings, num_workers=num_workers)
        for loader in loaders:
            loader.set_epoch(3)
        for (images, labels), (expected, answers) in zip(*loaders, strict=True):
            assert torch.equal(images, expected) and torch.equal(labels, answers)
    assert torch.equal(torch.get_rng_state(), state)


def test_lazy_split_without_images(tmp_path: Path) -> None:
    root = write_folder(tmp_path, {"cat": 5, "dog": 5})
    data = load_data("image_folder", folder=root, memory_limit_mb=0, validation_fraction=0)
    assert isinstance(data.validation, FileSplit)
    assert list(data.loader("validation", 4, shuffle=True)) == []


def test_grey_images_become_three_equal_channels(tmp_path: Path) -> None:
    root = write_folder(tmp_path, {"cat": 3, "dog": 3}, mode="L")
    data = load_data("image_folder", folder=root)
    assert data.image_shape == (3, 8, 8)
    assert isinstance(data.test, MemorySplit)
    expected = torch.from_numpy(np.array(Image.open(root / "cat" / "000.png")))
    images = torch.cat([part.images for part in (data.train, data.validation, data.test)])
    assert torch.equal(images[:, 0], images[:, 1])
    assert torch.equal(images[:, 0], images[:, 2])
    assert any(torch.equal(image[0], expected) for image in images)


def test_pool_is_the_rounded_mean_of_squares(tmp_path: Path) -> None:
    root = write_folder(tmp_path, SPLIT_LAYOUT, size=(6, 9))
    full, pooled = (load_data("image_folder", folder=root, pool=pool).test.images for pool in (1, 3))
    assert pooled.shape == (5, 3, 2, 3)
    for row in range(2):
        for column in range(3):
            square = full[:, :, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3]
            mean = square.double().mean((2, 3))
            assert torch.equal(pooled[:, :, row, column], mean.round().to(torch.uint8))


def test_image_size_resizes_the_shorter_side_and_cuts_the_centre_out(tmp_path: Path) -> None:
    root = write_folder(tmp_path, SPLIT_LAYOUT, size=(20, 12))
    write_image(root / "test" / "cat" / "000.png", 99, size=(16, 24))
    images = load_data("image_folder", folder=root, image_size=8).test.images
    assert images.shape == (5, 3, 8, 8)
    wide = Image.open(root / "test" / "cat" / "000.png").resize((12, 8), Image.Resampling.BILINEAR)
    assert torch.equal(images[0], torch.from_numpy(np.array(wide)).permute(2, 0, 1)[:, :, 2:10])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_truncated_file_is_named_when_read_in_one_line(tmp_path: Path, num_workers: int) -> None:
    write_folder(tmp_path, SPLIT_LAYOUT)
    cut_in_half(tmp_path / "test/cat/001.png")
    data = load_data("image_folder", folder=tmp_path, memory_limit_mb=0)
    assert len(list(data.loader("train", 8))) == 4
    with pytest.raises(SuperWeightError, match=r"^cannot read the image .*cat.001\.png: [^\n]*: save it again [^\n]*$"):
        list(data.loader("test", 2, num_workers=num_workers))


@pytest.mark.parametrize("limit", [0, 2048])
def test_num_train_keeps_a_stratified_part(tmp_path: Path, limit: int) -> None:
    root = write_folder(tmp_path, SPLIT_LAYOUT)
    options: dict[str, Any] = {"folder": root, "validation_fraction": 0.0, "memory_limit_mb": limit}
    whole, part = load_data("image_folder", **options), load_data("image_folder", num_train=15, **options)
    assert torch.bincount(part.train.labels).tolist() == [5, 10]
    assert len(part.test) == len(whole.test) == 5
    every, kept, again, other = (
        [image.numpy().tobytes() for batch, _ in data.loader("train", 7) for image in batch]
        for data in (
            whole, part, load_data("image_folder", num_train=15, **options),
            load_data("image_folder", num_train=15, seed=1, **options),
        )
    )  # fmt: skip
    assert len(kept) == 15 and set(kept) <= set(every) and again == kept != other


def test_num_train_is_checked(tmp_path: Path) -> None:
    root = write_folder(tmp_path, SPLIT_LAYOUT)
    with pytest.raises(SuperWeightError, match=r"num_train is 31; .* has 30 training images"):
        load_data("image_folder", folder=root, validation_fraction=0.0, num_train=31)
    assert len(load_data("image_folder", folder=root, validation_fraction=0.0, num_train=30).train) == 30
