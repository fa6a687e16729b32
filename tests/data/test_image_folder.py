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

from superweight_ensembles.data import FileSplit, ImageData, MemorySplit, load_data
from superweight_ensembles.errors import SuperWeightError

CLASSES = ("cat", "dog")


def write(path: Path, grey: int = 100, mode: str = "RGB", size: tuple[int, int] = (8, 8), **how: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, grey).convert(mode).save(path, **how)


def write_tree(root: Path, *folders: str, classes: tuple[str, ...] = CLASSES, count: int = 6) -> Path:
    """``count`` images in each class of each folder; folders that end in a slash are class folders themselves."""
    for folder in folders:
        for name in ("",) if folder.endswith("/") else classes:
            for index in range(count):
                write(root / folder / name / f"{index}.png", 10 * index)
    return root


def sizes(data: ImageData) -> tuple[int, int, int]:
    return len(data.train), len(data.validation), len(data.test)


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
    (("train",), r"has train but no test folder: add test/<class>/\*$"),
    (("train", "holdout"), "has train but no test folder: .*, or name one of holdout so"),
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


BAD_FILES: list[tuple[str, Callable[[Path], Any], str]] = [
    ("empty", lambda path: path.write_bytes(b""), r"cannot read the image .*9\.png: it is empty"),
    ("link to nothing", lambda path: path.symlink_to("absent"), "absent|9.png cannot be read: No such file"),
    ("16 bits", lambda path: Image.fromarray(np.zeros((8, 8), np.uint16)).save(path), "more than 8 bits a channel"),
]


@pytest.mark.parametrize(("spoil", "message"), [case[1:] for case in BAD_FILES], ids=[case[0] for case in BAD_FILES])
def test_bad_files_are_named(tmp_path: Path, spoil: Callable[[Path], Any], message: str) -> None:
    spoil(write_tree(tmp_path, "") / "cat/9.png")
    with pytest.raises(SuperWeightError, match=message):
        load_data("image_folder", folder=tmp_path)


def test_an_empty_file_is_refused_before_anything_is_decoded(tmp_path: Path) -> None:
    (write_tree(tmp_path, "") / "cat/9.png").write_bytes(b"")
    with pytest.raises(SuperWeightError, match="it is empty"):
        load_data("image_folder", folder=tmp_path, memory_limit_mb=0)


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
    data = load_data("image_folder", folder=root, memory_limit_mb=0)
    assert isinstance(data.train, FileSplit)
    image = data.train.reader.read([str(root / "cat/z.png")])[0]
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
    data = load_data("image_folder", folder=root, memory_limit_mb=0)
    assert isinstance(data.train, FileSplit)
    images = data.train.reader.read([str(root / "cat/lies.jpg"), str(root / "cat/pages.tiff")])
    assert images.flatten(1)[:, 0].tolist() == [77, 20]
    assert "1 files have several frames: the first of each is taken" in caplog.text


def test_colours_of_16_bits_give_their_upper_8(tmp_path: Path) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + struct.pack(">3H", 0x1234, 0x80FF, 0xFF00) * 8 for _ in range(8))
    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    path = write_tree(tmp_path, "") / "cat/z.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    data = load_data("image_folder", folder=tmp_path, memory_limit_mb=0)
    assert isinstance(data.train, FileSplit)
    assert data.train.reader.read([str(path)])[0, :, 0, 0].tolist() == [0x12, 0x80, 0xFF]


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(write_tree(tmp_path, "") / "dog/9.png", size=(64, 64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(SuperWeightError, match=r"cannot read the image .*dog.9\.png: .*decompression bomb"):
        load_data("image_folder", folder=tmp_path, image_size=8, memory_limit_mb=0)


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


GIVEN: list[tuple[str, Any, Any, str]] = [
    (
        "arrays",
        np.zeros((2, 3, 4, 4), np.uint8),
        torch.zeros(2),
        "images must be a tensor; got ndarray: torch.as",
    ),
    ("array labels", torch.zeros(2, 3, 4, 4), np.zeros(2), r"labels must be a tensor of .* \(2,\).*ndarray: torch.as_"),
    ("integers", torch.zeros(2, 3, 4, 4).long(), torch.zeros(2), r"got torch.int64 .*: images.to\(torch.uint8\)"),
    ("sparse", torch.zeros(2, 3, 4, 4).to_sparse(), torch.zeros(2), r"got torch.float32 .*: images.to_dense\(\)"),
    ("no pixels", torch.zeros(2, 3, 0, 4), torch.zeros(2), r"got torch.float32 \(2, 3, 0, 4\)$"),
    ("one label", torch.zeros(2, 3, 4, 4), torch.tensor(1), r"got torch.int64 \(\)$"),
    ("truth", torch.zeros(2, 3, 4, 4), torch.zeros(2).bool(), r"got torch.bool \(2,\): labels.long\(\)"),
    ("double", torch.zeros(2, 3, 4, 4).double(), torch.zeros(2), r"uint8 or float32 .*float64.*: images.float\(\)"),
    ("half", torch.zeros(2, 3, 4, 4).half(), torch.zeros(2), r"got torch.float16 .*: images.float\(\)"),
    ("no channel", torch.zeros(2, 4, 4), torch.zeros(2), r"\(N, C, H, W\); got torch.float32 \(2, 4, 4\)$"),
    ("nan", torch.full((2, 3, 4, 4), float("nan")), torch.zeros(2).long(), "image 0 holds numbers that are not finite"),
    (
        "column",
        torch.zeros(2, 3, 4, 4),
        torch.zeros(2, 1).long(),
        r"indices \(2,\) of an integer .*: labels.squeeze\(1\)",
    ),
    ("one-hot", torch.zeros(2, 3, 4, 4), torch.eye(2), r"labels.argmax\(1\)"),
    ("floats", torch.zeros(2, 3, 4, 4), torch.zeros(2), r"got torch.float32 \(2,\): labels.long\(\)"),
]


@pytest.mark.parametrize(("images", "labels", "message"), [case[1:] for case in GIVEN], ids=[case[0] for case in GIVEN])
def test_images_that_no_split_holds(images: Any, labels: Any, message: str) -> None:
    with pytest.raises(SuperWeightError, match=message):
        MemorySplit(images, labels)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.uint8])
def test_labels_of_every_integer_type_are_kept_as_int64(dtype: torch.dtype) -> None:
    assert MemorySplit(torch.zeros(2, 1, 2, 2), torch.tensor([0, 1], dtype=dtype)).labels.dtype == torch.int64


def test_images_with_a_graph_and_in_any_order_are_held() -> None:
    images = torch.rand(2, 4, 5, 3, requires_grad=True).permute(0, 3, 1, 2)
    split = MemorySplit(images, torch.zeros(2).int())
    assert split.images.is_contiguous() and not split.images.requires_grad and torch.equal(split.images, images)
    assert list(split.fingerprint()) == ["labels", "pixels", "image marks"]


def test_float_images_of_another_range_than_mean_and_std_are_said(caplog: pytest.LogCaptureFixture) -> None:
    for highest, warned in ((1.0, 0), (255.0, 1)):
        split = MemorySplit(torch.linspace(0, highest, 8).view(2, 1, 2, 2), torch.arange(2))
        ImageData(
            name="mine", classes=("a", "b"), image_shape=(1, 2, 2), mean=(0.5,), std=(0.25,), train=split,
            validation=split, test=split,
        )  # fmt: skip
        assert caplog.text.count("float images go from 0 to 255") == warned


def test_one_class_is_refused() -> None:
    split = MemorySplit(torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(SuperWeightError, match=r"mine: a network tells two classes or more apart; got \['only'\]"):
        ImageData(
            name="mine", classes=("only",), image_shape=(1, 2, 2), mean=(0.0,), std=(1.0,), train=split,
            validation=split, test=split,
        )  # fmt: skip


def test_postscript_is_read_by_no_program(tmp_path: Path) -> None:
    root = write_tree(tmp_path, "")
    (root / "cat/z.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with pytest.raises(SuperWeightError, match=r"cannot read the image .*z\.png: cannot identify image file"):
        load_data("image_folder", folder=root, image_size=8)


def test_a_transparent_colour_of_16_bits_is_refused(tmp_path: Path) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    colour = struct.pack(">3H", 0x1234, 0x80FF, 0xFF00)
    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + colour * 8 for _ in range(8)))
    parts = (b"IHDR", header), (b"tRNS", colour), (b"IDAT", rows), (b"IEND", b"")
    path = write_tree(tmp_path, "") / "cat/z.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))
    with pytest.raises(SuperWeightError, match=r"z\.png has more than 8 bits a channel, and a transparent colour"):
        load_data("image_folder", folder=tmp_path)


def test_splits_that_are_one_folder_deeper_are_not_lost(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_tree(tmp_path / split / "images", "")
    with pytest.raises(SuperWeightError, match=r"move what is in .*train.images up into .*train, and"):
        load_data("image_folder", folder=tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="names are text elsewhere")
def test_names_and_files_that_are_none(tmp_path: Path) -> None:
    root = write_tree(tmp_path, "")
    os.mkfifo(root / "cat/pipe.png")
    with pytest.raises(SuperWeightError, match=r"pipe\.png: it is no regular file; take it out"):
        load_data("image_folder", folder=root)
    (root / "cat/pipe.png").unlink()
    os.mkdir(os.fsencode(root) + b"/b\xffd")
    with pytest.raises(SuperWeightError, match=r"has a folder 'b\\udcffd', a name that is no text"):
        load_data("image_folder", folder=root)
